// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PCI function around a virtio device: capabilities, BARs, status, start and reset.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::{Common, QueueSetup, Step, VERSION_1};
use crate::device::{ActivateError, Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
use crate::layout::{self, DEVICE_BAR, DEVICE_BAR_SIZE, MSIX_BAR, NOTIFY_STRIDE, cfg_access};
use crate::notifier::Notifier;
use dma::{BusMaster, DmaTarget, Ram};
use pci::capability::{Capability, PortType};
use pci::config::{BarSpec, ConfigError, ConfigSpace};
use pci::msix::{MESSAGE_CONTROL, Msix, MsixPlace};
use pci::rate_limit::RateLimit;
use pci::{Doorbell, MsiRouter, PciDevice};

/// Transport features that need registers or ring formats which we do not have (virtio 1.2 §6): packed rings, SR-IOV,
/// notification data, notification configuration data, ring reset.
const NEVER_OFFERED: u64 = 1 << 34 | 1 << 37 | 1 << 38 | 1 << 39 | 1 << 40;
/// VIRTIO_F_EVENT_IDX.
const EVENT_IDX: u64 = 1 << 29;
/// The most queues a device may have: MSI-X has 2048 vectors, the notification region 1024 addresses.
const MAX_QUEUES: usize = 1023;

/// The transport could not be built around a device. Never the guest's doing.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No queue, or more than the notification region has room for.
    #[error("a virtio device has 1 to 1023 queues, this one has {0}")]
    Queues(usize),
    /// A queue's largest size is not one that a split ring can have.
    #[error("a virtqueue's size is a power of two up to 32768, not {0}")]
    QueueSize(u16),
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel gave no eventfd for a doorbell.
    #[error("no eventfd for a doorbell: {0}")]
    EventFd(#[from] io::Error),
}

/// Why DRIVER_OK did not start the device.
#[derive(Debug, Error)]
enum StartError {
    #[error("queue {0}: its rings are misaligned or not all in guest RAM")]
    Ring(usize),
    #[error(transparent)]
    Activate(#[from] ActivateError),
}

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    config: ConfigSpace,
    msix: Arc<Msix>,
    msix_at: u16,
    access_at: u16,
    common: Common,
    notifier: Arc<Notifier>,
    kicks: Vec<Arc<EventFd>>,
    dma: DmaTarget,
    device: Box<dyn VirtioDevice>,
    wrong_sizes: RateLimit,
    failed_starts: RateLimit,
}

impl VirtioPci {
    /// MSI-X vectors that a device needs: one for configuration changes and one for each queue.
    pub fn vectors(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_sizes().len()).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// A function for `device`, which does DMA as `requester` (bus << 8 | device << 3 | function) to `ram`.
    /// `router` must know [`VirtioPci::vectors`] vectors.
    pub fn new(
        mut device: Box<dyn VirtioDevice>,
        requester: u16,
        ram: Arc<dyn Ram>,
        router: Arc<dyn MsiRouter>,
    ) -> Result<Self, TransportError> {
        let queues = checked_queues(device.queue_sizes())?;
        let master = Arc::new(BusMaster::default());
        let dma = DmaTarget::new(requester, ram, Arc::clone(&master));

        let vectors = Self::vectors(&*device);
        let (place, msix_size) = MsixPlace::own_bar(MSIX_BAR, vectors);
        let msix = Arc::new(Msix::new(vectors, place, router));
        let notifier = Arc::new(Notifier::new(Arc::clone(&msix), queues));
        device.attach(Arc::clone(&notifier) as _);
        let offered = device.features() & !NEVER_OFFERED | VERSION_1;

        let mut config = ConfigSpace::new(layout::identity(device.device_type()), master);
        config.add_bar(BarSpec { index: DEVICE_BAR, size: DEVICE_BAR_SIZE, prefetchable: false })?;
        config.add_bar(BarSpec { index: MSIX_BAR, size: msix_size, prefetchable: false })?;
        let msix_at = config.add_capability(&msix.capability())?;
        config.add_capability(&Capability::pcie(PortType::RootComplexIntegrated))?;
        config.add_capability(&Capability::power())?;
        for region in layout::regions(queues) {
            config.add_capability(&region)?;
        }
        let access_at = config.add_capability(&layout::cfg_access())?;

        let kick = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        Ok(Self {
            msix_at,
            access_at,
            common: Common::new(offered, device.queue_sizes(), Arc::clone(&notifier)),
            kicks: (0..queues).map(kick).collect::<Result<_, _>>()?,
            config,
            msix,
            notifier,
            dma,
            device,
            wrong_sizes: RateLimit::default(),
            failed_starts: RateLimit::default(),
        })
    }

    fn common_write(&mut self, offset: u64, data: &[u8]) {
        match self.common.write(offset, data) {
            Ok(Some(Step::Reset)) => self.reset_device(),
            Ok(Some(Step::Forward { features_ok, driver_ok })) => {
                if features_ok {
                    self.device.features_ok(self.common.features());
                }
                if driver_ok {
                    self.start();
                }
            }
            Ok(None) => {}
            Err(error) => {
                if let Some(count) = self.wrong_sizes.next() {
                    log::warn!("virtio common configuration: {error}; ignored ({count} so far)");
                }
            }
        }
    }

    /// Returns when the device has stopped: only then does device_status read 0 (virtio 1.2 §2.4.1).
    fn reset_device(&mut self) {
        self.device.reset();
        for kick in &self.kicks {
            // Empty is as good as drained.
            let _ = kick.read();
        }
        self.common.reset();
        self.notifier.reset();
    }

    fn start(&mut self) {
        if let Err(error) = self.try_start() {
            if let Some(count) = self.failed_starts.next() {
                log::error!("virtio device {:#06x} failed to start ({count} so far): {error}", self.dma.requester());
            }
            self.notifier.needs_reset();
        }
    }

    fn try_start(&mut self) -> Result<(), StartError> {
        let features = self.common.features();
        let mut queues = Vec::new();
        for (index, setup) in self.common.queues().iter().enumerate().filter(|(_, setup)| setup.enabled) {
            let queue = self.ring(setup, features).ok_or(StartError::Ring(index))?;
            // `checked_queues` saw at most MAX_QUEUES.
            queues.push(ActiveQueue { index: index as u16, queue, kick: Arc::clone(&self.kicks[index]) });
        }
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::clone(&self.notifier) as _;
        Ok(self.device.activate(Activation { dma: self.dma.clone(), queues, interrupt, features })?)
    }

    /// The queue, if its rings are aligned and in RAM (virtio 1.2 §2.7). To ask that is no access: bus mastering may be off.
    fn ring(&self, setup: &QueueSetup, features: u64) -> Option<Queue> {
        let size = u64::from(setup.size);
        let [desc, driver, device] = setup.rings;
        // Rings with their event index words.
        for (base, len) in [(desc, 16 * size), (driver, 6 + 2 * size), (device, 6 + 8 * size)] {
            self.dma.is_ram(base, len).then_some(())?;
        }
        let mut queue = Queue::new(setup.max).ok()?;
        queue.try_set_size(setup.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(desc)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(device)).ok()?;
        queue.set_event_idx(features & EVENT_IDX != 0);
        queue.set_ready(true);
        queue.is_valid(&self.dma).then_some(queue)
    }

    /// BAR, offset and length that the configuration access window shows now, if they make sense (virtio 1.2 §4.1.4.9).
    fn access_window(&self) -> Option<(u8, u64, usize)> {
        let at = self.access_at;
        // The byte after the BAR index is the capability's id field.
        let bar = self.config.read_u16(at + cfg_access::BAR) as u8;
        let offset = self.config.read_u32(at + cfg_access::OFFSET);
        let len = self.config.read_u32(at + cfg_access::LENGTH);
        let exists = matches!(bar, DEVICE_BAR | MSIX_BAR);
        (exists && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len)).then_some((
            bar,
            u64::from(offset),
            len as usize,
        ))
    }

    fn in_access_data(&self, offset: u16, len: usize) -> bool {
        let data = usize::from(self.access_at + cfg_access::DATA);
        let offset = usize::from(offset);
        offset < data + 4 && data < offset + len
    }
}

impl PciDevice for VirtioPci {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.in_access_data(offset, data.len())
            && let Some((bar, at, len)) = self.access_window()
        {
            let mut window = [0; 4];
            self.bar_read(bar, at, &mut window[..len]);
            self.config.store(self.access_at + cfg_access::DATA, &window[..len]);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        let effects = self.config.write(offset, data);
        if effects.function_reset {
            self.reset();
            return;
        }
        let control = self.config.read_u16(self.msix_at + MESSAGE_CONTROL);
        self.msix.set_control(control, self.config.bus_master().get());
        if self.in_access_data(offset, data.len())
            && let Some((bar, at, len)) = self.access_window()
        {
            let window = self.config.read_u32(self.access_at + cfg_access::DATA).to_le_bytes();
            self.bar_write(bar, at, &window[..len]);
        }
    }

    fn bars(&self) -> Vec<(u8, u64, u64)> {
        self.config.bars()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if bar == MSIX_BAR {
            return self.msix.read(offset, data);
        }
        if bar != DEVICE_BAR || data.is_empty() {
            return;
        }
        if let Some(at) = within(layout::COMMON, offset) {
            self.common.read(at, data);
        } else if within(layout::ISR, offset).is_some() {
            data[0] = self.notifier.take_isr();
        } else if let Some(at) = within(layout::DEVICE, offset) {
            let device = &self.device;
            self.notifier.steady_config(|| device.config_read(at, data));
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == MSIX_BAR {
            return self.msix.write(offset, data);
        }
        if bar != DEVICE_BAR {
            return;
        }
        if let Some(at) = within(layout::COMMON, offset) {
            self.common_write(at, data);
        } else if let Some(at) = within(layout::DEVICE, offset) {
            self.device.config_write(at, data);
        } else if let Some(at) = within(layout::NOTIFY, offset)
            && let Some(kick) = self.kicks.get((at / NOTIFY_STRIDE) as usize)
        {
            // Only an eventfd that is already full of kicks refuses one more.
            let _ = kick.write(1);
        }
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        let doorbell = |(index, event): (u64, &Arc<EventFd>)| Doorbell {
            bar: DEVICE_BAR,
            offset: layout::NOTIFY.0 + index * NOTIFY_STRIDE,
            len: 0,
            value: None,
            event: Arc::clone(event),
        };
        (0..).zip(&self.kicks).map(doorbell).collect()
    }

    fn reset(&mut self) {
        // DMA is refused first, so that the engines cannot start anything new while they stop.
        self.config.reset();
        self.msix.reset();
        self.reset_device();
    }
}

/// Number of queues, if each can be built.
fn checked_queues(sizes: &[u16]) -> Result<u16, TransportError> {
    if let Some(size) = sizes.iter().find(|size| Queue::new(**size).is_err()) {
        return Err(TransportError::QueueSize(*size));
    }
    let count = sizes.len();
    u16::try_from(count).ok().filter(|_| (1..=MAX_QUEUES).contains(&count)).ok_or(TransportError::Queues(count))
}

/// Offset within a region.
fn within((start, len): layout::Region, offset: u64) -> Option<u64> {
    offset.checked_sub(start).filter(|at| *at < len)
}
