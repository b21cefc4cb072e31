// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine without a processor: guest memory, a PCI bus, one NIC or several, interrupts that are counted.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::GuestRam;
use mlx5::fabric::LocalFabric;
use mlx5::{EnginePolicy, Nic, NicConfig, NicHandle};
use pci::config::{COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use pci::msix::{ENTRY_SIZE, MESSAGE_CONTROL};
use pci::{DoorbellHost, MsiRouter, PciBus};
use probe::ledger::Ledger;
use vm_memory::GuestAddress;

use crate::host::{Doorbells, Interrupts};
use crate::memory::Guest;

const HIGH_RAM: u64 = 1 << 32;
const LOW_WINDOW: std::ops::Range<u64> = 0xc000_0000..0xe000_0000;
const HIGH_WINDOW: std::ops::Range<u64> = 1 << 40..1 << 41;
const MSI_ADDRESS: u64 = 0xfee0_0000;
/// First capability pointer, and id of MSI-X (PCIe base 7.5.1.1.11, 7.7.2).
const CAPABILITY_POINTER: u16 = 0x34;
const ID_MSIX: u8 = 0x11;
const ID_PCIE: u8 = 0x10;
const PCIE_DEVICE_CONTROL: u16 = 8;
const ID_POWER: u8 = 0x01;
const POWER_CONTROL: u16 = 4;
const INITIATE_FLR: u16 = 1 << 15;
const MSIX_ENABLE: u16 = 1 << 15;

/// Who runs the engines where a test does not say (`engines=` of the NIC); without it, two threads do. The suite is to pass with
/// `inline` as well.
pub const ENGINES: &str = "RNIC_TEST_ENGINES";

/// How a machine is made.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// MiB of guest memory, half of it above 4 GiB.
    pub ram_mib: u64,
    /// The NIC.
    pub nic: NicConfig,
    /// Doorbells as eventfds; else every one takes an exit.
    pub ioeventfds: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        let engines = match std::env::var(ENGINES) {
            Ok(policy) => policy.parse().unwrap_or_else(|error| panic!("{ENGINES}: {error}")),
            Err(_) => EnginePolicy::Threads(2),
        };
        Self { ram_mib: 64, nic: NicConfig { engines, ..NicConfig::default() }, ioeventfds: true }
    }
}

/// A machine, seen from one of its NICs: what is here is shared with the views of the others, but for the NIC and its interrupts.
pub struct Machine {
    /// Its memory.
    pub guest: Arc<Guest>,
    /// Who touched it.
    pub ledger: Arc<Ledger>,
    /// Interrupts that came.
    pub interrupts: Arc<Interrupts>,
    /// Doorbells that take no exit.
    pub doorbells: Arc<Doorbells>,
    /// What the lab holds of the NIC.
    pub nic: NicHandle,
    bus: Arc<PciBus>,
    slot: u8,
}

impl Machine {
    /// A machine after power-on: BARs placed, memory space and bus mastering off.
    pub fn new(config: MachineConfig) -> Self {
        Self::with_nics(config, 1).remove(0)
    }

    /// The same with `count` NICs on one fabric, each in a slot of its own.
    pub fn with_nics(config: MachineConfig, count: u8) -> Vec<Self> {
        let half = (config.ram_mib << 20) / 2;
        let ranges = [(GuestAddress(0), half as usize), (GuestAddress(HIGH_RAM), half as usize)];
        let ram = Arc::new(GuestRam::from_ranges(&ranges).expect("the test's memory fits into this process"));
        let ledger = Ledger::new();
        let doorbells = Arc::<Doorbells>::default();
        doorbells.refuse.store(!config.ioeventfds, Ordering::Relaxed);
        let bus = Arc::new(PciBus::new(doorbells.clone(), LOW_WINDOW, HIGH_WINDOW));
        let guest = Arc::new(Guest::new(ram.clone()));
        let fabric = Arc::<LocalFabric>::default();
        let machine = |index| {
            let interrupts = Arc::<Interrupts>::default();
            let requester = PciBus::requester(bus.next_slot().expect("the bus has room"));
            let (router, host): (Arc<dyn MsiRouter>, Arc<dyn DoorbellHost>) = (interrupts.clone(), doorbells.clone());
            let (function, nic) =
                Nic::new(index, config.nic.clone(), requester, ram.clone(), ledger.clone(), router, host)
                    .expect("this host gives threads and eventfds");
            assert!(fabric.join(nic.hca()), "the fabric has room");
            let slot = bus.add(Arc::new(Mutex::new(function))).expect("the bus has room");
            let (guest, ledger, doorbells, bus) = (guest.clone(), ledger.clone(), doorbells.clone(), bus.clone());
            Self { guest, ledger, interrupts, doorbells, nic, bus, slot }
        };
        (0..count).map(machine).collect()
    }

    /// What a driver does with the function first: memory space and bus mastering on, MSI-X enabled with all vectors unmasked,
    /// vector `n` sending data `n`.
    pub fn enable(&self) {
        self.config_write16(COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
        let msix = self.capability(ID_MSIX).expect("the NIC has MSI-X");
        for vector in 0..=(self.config_read16(msix + MESSAGE_CONTROL) & 0x7ff) {
            self.set_vector(vector, u32::from(vector), false);
        }
        self.config_write16(msix + MESSAGE_CONTROL, MSIX_ENABLE);
    }

    /// Writes a vector's table entry.
    pub fn set_vector(&self, vector: u16, data: u32, masked: bool) {
        let entry = self.msix_table() + u64::from(vector) * ENTRY_SIZE;
        self.mmio_write(entry, &MSI_ADDRESS.to_le_bytes());
        self.mmio_write(entry + 8, &data.to_le_bytes());
        self.mmio_write(entry + 12, &u32::from(masked).to_le_bytes());
    }

    /// Bus mastering on or off.
    pub fn set_bus_master(&self, on: bool) {
        self.config_write16(COMMAND, COMMAND_MEMORY | if on { COMMAND_BUS_MASTER } else { 0 });
    }

    /// Power state of the function: 0 for D0, 3 for D3hot.
    pub fn set_power_state(&self, state: u16) {
        let power = self.capability(ID_POWER).expect("the NIC has power management");
        self.config_write16(power + POWER_CONTROL, state);
    }

    /// Function level reset. Command register, BARs and MSI-X are as after power-on; BARs are then restored.
    pub fn function_reset(&self) {
        let bars: Vec<u32> = (0..6).map(|bar| self.config_read32(0x10 + 4 * bar)).collect();
        let pcie = self.capability(ID_PCIE).expect("the NIC is a PCI Express function");
        self.config_write16(pcie + PCIE_DEVICE_CONTROL, INITIATE_FLR);
        for (bar, value) in (0..).zip(bars) {
            self.config_write32(0x10 + 4 * bar, value);
        }
    }

    /// Platform reset.
    pub fn reset(&self) {
        self.bus.reset();
    }

    /// Guest physical address of a BAR.
    pub fn bar(&self, index: u16) -> u64 {
        let low = u64::from(self.config_read32(0x10 + 4 * index)) & !0xf;
        low | u64::from(self.config_read32(0x14 + 4 * index)) << 32
    }

    /// Reads a BAR at a guest physical address.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.bus.mmio_read(address, data);
    }

    /// Writes a BAR at a guest physical address: a doorbell's eventfd is signalled, all else is an exit.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if !self.doorbells.ring(address, data) {
            self.bus.mmio_write(address, data);
        }
    }

    /// Configuration space.
    pub fn config_read32(&self, register: u16) -> u32 {
        let mut bytes = [0; 4];
        self.bus.ecam_read(self.ecam(register), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Configuration space.
    pub fn config_read16(&self, register: u16) -> u16 {
        let mut bytes = [0; 2];
        self.bus.ecam_read(self.ecam(register), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Configuration space.
    pub fn config_write16(&self, register: u16, value: u16) {
        self.bus.ecam_write(self.ecam(register), &value.to_le_bytes());
    }

    /// Configuration space.
    pub fn config_write32(&self, register: u16, value: u32) {
        self.bus.ecam_write(self.ecam(register), &value.to_le_bytes());
    }

    fn ecam(&self, register: u16) -> u64 {
        u64::from(self.slot) << 15 | u64::from(register)
    }

    /// Where the first capability with this id begins in configuration space.
    pub fn capability(&self, id: u8) -> Option<u16> {
        let mut at = self.config_read16(CAPABILITY_POINTER) & 0xfc;
        for _ in 0..48 {
            let [found, next] = self.config_read16(at).to_le_bytes();
            match at {
                0 => return None,
                _ if found == id => return Some(at),
                _ => at = u16::from(next & 0xfc),
            }
        }
        None
    }

    fn msix_table(&self) -> u64 {
        let place = self.config_read32(self.capability(ID_MSIX).expect("the NIC has MSI-X") + 4);
        self.bar((place & 7) as u16) + u64::from(place & !7)
    }
}
