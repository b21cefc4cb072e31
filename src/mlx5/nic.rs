// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI function: configuration space, BAR0 with the initialization segment and the UAR pages, BAR2 with MSI-X (contract 1).
//!
//! Not there: VPD, SR-IOV, AER, ATS (contract 1.3), BlueFlame (D3).

use std::sync::Arc;

use thiserror::Error;

use super::command::{CommandUnit, Worker};
use super::device_memory::DeviceMemory;
use super::engine::Engines;
use super::hca::Hca;
use super::health;
use super::init_segment::{InitSegment, Order};
use super::uar::{self, UarDoorbells, UarRegisters};
use super::{BAR0_SIZE, Model, NicConfig, VECTORS, reset};
use dma::{BusMaster, DmaTarget, Ram, Reach};
use mlx5_spec::init::COMMAND_DOORBELL;
use pci::capability::{Capability, ID_VENDOR, PortType};
use pci::config::{BarSpec, ConfigError, ConfigSpace, Identity};
use pci::msix::{MESSAGE_CONTROL, Msix, MsixPlace};
use pci::{DirectWrites, Doorbell, DoorbellHost, MsiRouter, PciDevice};
use probe::ledger::Ledger;

const VENDOR: u16 = 0x15b3;
const SUBSYSTEM: u16 = 0x0008;
/// InfiniBand controller.
const CLASS: u32 = 0x02_0700;
const MSIX_BAR: u8 = 2;
/// A NIC could not be made. Never the guest's doing.
#[derive(Debug, Error)]
pub enum NicError {
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host kernel gave no eventfd or thread.
    #[error("the NIC could not start: {0}")]
    Io(#[from] std::io::Error),
}

/// The PCI function. Dropping it ends its threads.
pub struct Nic {
    config: ConfigSpace,
    msix_at: u16,
    segment: InitSegment,
    hca: Arc<Hca>,
    unit: Arc<CommandUnit>,
    worker: Option<Worker>,
    uars: Arc<UarRegisters>,
}

/// What the VMM and the lab hold of a NIC.
#[derive(Clone)]
pub struct NicHandle {
    hca: Arc<Hca>,
    unit: Arc<CommandUnit>,
}

impl NicHandle {
    /// The device's shared state.
    pub fn hca(&self) -> &Arc<Hca> {
        &self.hca
    }

    pub(super) fn command_unit(&self) -> &Arc<CommandUnit> {
        &self.unit
    }
}

impl std::fmt::Debug for NicHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicHandle").field("index", &self.hca.index).field("config", &self.hca.config).finish()
    }
}

impl Nic {
    /// MSI-X vectors that such a NIC has.
    pub fn vectors(_: &NicConfig) -> u16 {
        VECTORS
    }

    /// NIC number `index` of the machine, which does DMA as `requester` (bus << 8 | device << 3 | function) to `ram`. `router`
    /// must know [`Nic::vectors`] vectors. Its threads run from here on.
    pub fn new(
        index: u8,
        config: NicConfig,
        requester: u16,
        ram: Arc<dyn Ram>,
        ledger: Arc<Ledger>,
        router: Arc<dyn MsiRouter>,
        host: Arc<dyn DoorbellHost>,
    ) -> Result<(Self, NicHandle), NicError> {
        let master = Arc::new(BusMaster::default());
        let own = Arc::new(DeviceMemory::new()?);
        let reach = Reach { guest: ram, own: own.bytes.clone() };
        let dma = DmaTarget::new(requester, Arc::new(reach), master.clone());
        let (place, msix_size) = MsixPlace::own_bar(MSIX_BAR, VECTORS);
        let msix = Arc::new(Msix::new(VECTORS, place, router));
        let mut space = ConfigSpace::new(identity(&config), master.clone());
        space.add_bar(BarSpec { index: uar::BAR, size: BAR0_SIZE, prefetchable: true })?;
        space.add_bar(BarSpec { index: MSIX_BAR, size: msix_size, prefetchable: false })?;
        let msix_at = space.add_capability(&msix.capability())?;
        space.add_capability(&Capability::pcie(PortType::RootComplexIntegrated))?;
        space.add_capability(&Capability::power())?;
        if config.model == Model::Cx5 {
            space.add_capability(&vendor_gateway())?;
        }

        let hca = Arc::new(Hca::new(index, config, (dma, own), ledger, msix)?);
        hca.health.attach(master);
        let doorbells = hca.doorbells.get_or_init(|| Arc::new(UarDoorbells::new(host))).clone();
        let unit = CommandUnit::new(hca.clone(), doorbells)?;
        Engines::start(&hca)?;
        let worker = match Worker::start(&unit) {
            Ok(worker) => Some(worker),
            Err(error) => {
                hca.engines.stop();
                return Err(error.into());
            }
        };
        let handle = NicHandle { hca: hca.clone(), unit: unit.clone() };
        let (segment, uars) = (InitSegment::default(), Arc::new(UarRegisters::new(hca.clone())));
        Ok((Self { config: space, msix_at, segment, hca, unit, worker, uars }, handle))
    }

    fn obey(&mut self, order: Option<Order>, offset: u64, len: usize) {
        match order {
            Some(Order::Command(slots)) => self.unit.ring(slots),
            Some(Order::Queue(at)) => reset::restart(&self.hca, &self.unit, Some(at)),
            Some(Order::Disable) => reset::restart(&self.hca, &self.unit, None),
            None => log::trace!("nic{}: {len} bytes written at {offset:#x} of the init segment", self.hca.index),
        }
    }

    /// The driver is about to access a register. Whether the device is there; its health is as injections have it.
    fn is_there(&mut self) -> bool {
        let health = &self.hca.health;
        if !health.ails() {
            return true;
        }
        if health.returns() {
            self.segment.reset();
            reset::restart(&self.hca, &self.unit, None);
            let is_master = self.hca.health.back();
            self.config.bus_master().set(is_master);
            let control = self.config.read_u16(self.msix_at + MESSAGE_CONTROL);
            self.hca.msix.set_control(control, is_master);
        } else if health.disables() {
            let told = health.told();
            self.segment.reset();
            reset::restart(&self.hca, &self.unit, None);
            self.hca.health.give_up(told);
        }
        !self.hca.health.is_gone()
    }

    fn read_segment(&mut self, offset: u64, data: &mut [u8]) {
        let clock = self.hca.device_clock();
        if InitSegment::reads_counter(offset, data.len()) {
            health::occasion(&self.hca, None, InitSegment::health_counter(clock));
            if self.hca.health.is_gone() {
                return reset::settle(&self.hca, &self.unit);
            }
        }
        self.segment.tell(self.hca.health.told());
        if InitSegment::reads_severity(offset, data.len()) {
            self.hca.health.seen();
        }
        self.segment.read(clock, offset, data);
    }

    /// What follows from a change of configuration space: where BAR0 is, and whether DMA may go on.
    fn follow_config(&mut self, was_master: bool) {
        let bar0 = self.config.bars().into_iter().find(|(bar, ..)| *bar == uar::BAR).map(|(_, base, _)| base);
        self.unit.doorbells().moved(bar0);
        match (was_master, self.config.bus_master().get()) {
            (true, false) => reset::settle(&self.hca, &self.unit),
            (false, true) => reset::resume(&self.hca),
            _ => {}
        }
    }
}

fn identity(config: &NicConfig) -> Identity {
    Identity {
        vendor: VENDOR,
        device: config.model.device_id(),
        revision: 0,
        class: CLASS,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    }
}

/// The gateway into the device's own address spaces, which drivers of physical functions miss loudly, and for want of which they write
/// plain configuration space during recovery (contract 12.3). Its semaphore can be taken (free: 0; the taker writes the counter's
/// value) and no space behind it exists: the status bits of the control register stay 0.
fn vendor_gateway() -> Capability {
    const LENGTH: u8 = 0x18;
    const CONTROL: usize = 0x04;
    const COUNTER: usize = 0x08;
    const SEMAPHORE: usize = 0x0c;
    const ADDRESS: usize = 0x10;
    Capability::new(ID_VENDOR, LENGTH)
        .value(2, &[LENGTH])
        .writable(CONTROL, &[0xff; 2])
        .value(COUNTER, &1u32.to_le_bytes())
        .writable(SEMAPHORE, &[0xff; 4])
        .writable(ADDRESS, &[0xff; 4])
}

impl PciDevice for Nic {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        match self.is_there() {
            true => self.config.read(offset, data),
            false => data.fill(0xff),
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        if !self.is_there() {
            return;
        }
        let was_master = self.config.bus_master().get();
        if self.config.write(offset, data).function_reset {
            return self.reset();
        }
        let control = self.config.read_u16(self.msix_at + MESSAGE_CONTROL);
        self.hca.msix.set_control(control, self.config.bus_master().get());
        self.follow_config(was_master);
    }

    fn bars(&self) -> Vec<(u8, u64, u64)> {
        self.config.bars()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match bar {
            _ if !self.is_there() => {}
            MSIX_BAR => self.hca.msix.read(offset, data),
            uar::BAR if !self.hca.device_memory.read(offset, data) => self.read_segment(offset, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        match bar {
            _ if !self.is_there() => {}
            MSIX_BAR => self.hca.msix.write(offset, data),
            uar::BAR if !self.uars.write(bar, offset, data) => {
                let order = self.segment.write(offset, data);
                self.obey(order, offset, data.len());
            }
            _ => {}
        }
    }

    fn direct_writes(&self) -> Option<Arc<dyn DirectWrites>> {
        Some(self.uars.clone())
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        // The slots' bit is big-endian on the bus; the host compares what it sees as little-endian.
        let doorbell = |(bits, event): (u32, &Arc<_>)| Doorbell {
            bar: uar::BAR,
            offset: COMMAND_DOORBELL as u64,
            len: 4,
            value: Some(u64::from(bits.swap_bytes())),
            event: Arc::clone(event),
        };
        self.unit.events().map(doorbell).collect()
    }

    fn reset(&mut self) {
        // DMA is refused first, so that nothing new can start while the rest goes.
        self.config.reset();
        self.hca.msix.reset();
        self.unit.doorbells().moved(None);
        self.segment.reset();
        reset::restart(&self.hca, &self.unit, None);
        // A power cycle brings back what was gone; bus mastering is off.
        self.hca.health.back();
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.config.reset();
        self.unit.doorbells().moved(None);
        drop(self.worker.take());
        self.hca.engines.stop();
    }
}
