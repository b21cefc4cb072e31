// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bus and configuration space as a guest uses them, and as a hostile guest abuses them.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::bus::SLOTS;
use super::capability::{Capability, ID_MSIX, ID_PCIE, ID_POWER, POWER_CONTROL};
use super::config::{BarSpec, COMMAND_BUS_MASTER, COMMAND_MEMORY, ConfigError, ConfigSpace};
use super::testing::{FAKE_BAR_SIZE, FakeFunction, FakeHost, FakeRouter, config_u32, set_command, set_config_u32};
use super::{PciBus, PciDevice, PciError};

const LOW: std::ops::Range<u64> = 0xc000_0000..0xd000_0000;
const HIGH: std::ops::Range<u64> = 0x10_0000_0000..0x11_0000_0000;
const SLOT: u8 = 1;
const BASE: u64 = HIGH.start;

struct Rig {
    bus: PciBus,
    host: Arc<FakeHost>,
    router: Arc<FakeRouter>,
    function: Arc<Mutex<FakeFunction>>,
}

impl Rig {
    fn new() -> Self {
        let host = Arc::new(FakeHost::default());
        let router = Arc::new(FakeRouter::default());
        let bus = PciBus::new(host.clone(), LOW, HIGH);
        let function = Arc::new(Mutex::new(FakeFunction::new(router.clone())));
        assert_eq!(bus.next_slot(), Some(SLOT));
        assert_eq!(bus.add(function.clone()), Ok(SLOT));
        Self { bus, host, router, function }
    }

    fn attached(&self) -> Vec<(u64, u8, u64)> {
        self.host.attached.lock().clone()
    }

    /// What is attached and mapped is just what the function decodes.
    fn check(&self) {
        let bars = self.function.lock().bars();
        let expected: Vec<_> = bars
            .iter()
            .filter(|bar| bar.0 == 0)
            .filter_map(|bar| Some((bar.1.checked_add(0x100)?, 0, 0x100)))
            .collect();
        assert_eq!(self.attached(), expected);
        let mut mapped: Vec<_> = bars.iter().map(|(bar, base, size)| (SLOT, *bar, *base, *size)).collect();
        mapped.sort_by_key(|mapping| mapping.2);
        assert_eq!(self.bus.mappings(), mapped);
        assert_eq!(config_u32(&self.bus, SLOT, 0), 0x101b_15b3);
    }
}

#[test]
fn bars_are_placed_and_sized_like_hardware() {
    let rig = Rig::new();
    assert_eq!(config_u32(&rig.bus, SLOT, 0x10), 0xc, "64-bit, prefetchable, base below 4 GiB is 0");
    assert_eq!(config_u32(&rig.bus, SLOT, 0x14), 0x10);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x18), FAKE_BAR_SIZE as u32 | 4);
    set_config_u32(&rig.bus, SLOT, 0x10, u32::MAX);
    set_config_u32(&rig.bus, SLOT, 0x14, u32::MAX);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x10), !(FAKE_BAR_SIZE as u32 - 1) | 0xc);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x14), u32::MAX);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x20), 0, "BAR 4 does not exist");
    set_config_u32(&rig.bus, SLOT, 0x20, u32::MAX);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x20), 0);
    rig.check();
}

#[test]
fn in_d3hot_nothing_decodes_and_nothing_is_written() {
    let rig = Rig::new();
    set_command(&rig.bus, SLOT, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    let (power, master) = {
        let function = rig.function.lock();
        let at = (0x40..0x100).step_by(4).find(|at| function.config.read_u16(*at) as u8 == ID_POWER).unwrap();
        (at + POWER_CONTROL, function.config.bus_master().clone())
    };
    let set = |state: u8| {
        rig.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(power), &[state]);
        rig.check();
        (config_u32(&rig.bus, SLOT, power) & 3, rig.bus.mappings().is_empty(), master.get())
    };
    assert_eq!(set(0), (0, false, true));
    assert_eq!(set(3), (3, true, false));
    assert_eq!(set(2), (3, true, false), "D2 is not offered");
    set_command(&rig.bus, SLOT, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    assert!(!master.get(), "the command register does not wake the function");
    assert_eq!(set(0), (0, false, true), "no soft reset: the command register is as it was");
    assert_eq!(set(1), (0, false, true), "D1 is not offered");
}

#[test]
fn doorbells_follow_decode_and_base() {
    let rig = Rig::new();
    assert!(rig.attached().is_empty(), "memory decode is off at power-on");
    assert!(!rig.bus.mmio_write(BASE, &[1]));
    set_command(&rig.bus, SLOT, COMMAND_MEMORY);
    assert_eq!(rig.attached(), [(BASE + 0x100, 0, 0x100)]);
    set_config_u32(&rig.bus, SLOT, 0x14, 0x20);
    assert_eq!(rig.attached(), [(0x20_0000_0100, 0, 0x100)]);
    assert!(rig.bus.mmio_write(0x20_0000_0010, &[7, 8]));
    assert!(!rig.bus.mmio_write(BASE + 0x10, &[9]), "nothing is left at the old address");
    let mut read = [0; 4];
    assert!(rig.bus.mmio_read(0x20_0000_000f, &mut read));
    assert_eq!(read, [0, 7, 8, 0]);
    set_command(&rig.bus, SLOT, 0);
    assert!(rig.attached().is_empty());
    assert!(!rig.bus.mmio_read(0x20_0000_0010, &mut read));
    assert_eq!(read, [0xff; 4]);
    rig.check();
}

#[test]
fn a_doorbell_that_cannot_be_attached_still_rings() {
    let rig = Rig::new();
    rig.host.broken.store(true, Ordering::Relaxed);
    set_command(&rig.bus, SLOT, COMMAND_MEMORY);
    assert!(rig.bus.mmio_write(BASE + 0x100, &[1, 0]));
    assert_eq!(rig.function.lock().event.read().unwrap(), 1);
    set_command(&rig.bus, SLOT, 0);
}

#[test]
fn overlapping_bars_reach_one_of_them() {
    let rig = Rig::new();
    set_config_u32(&rig.bus, SLOT, 0x18, BASE as u32 + 0x1000);
    set_command(&rig.bus, SLOT, COMMAND_MEMORY);
    rig.check();
    let mut read = [0xff; 4];
    assert!(rig.bus.mmio_read(BASE + 0x3ffc, &mut read), "beyond the small BAR, still in the large one");
    assert_eq!(read, [0; 4]);
}

#[test]
fn bus_master_follows_the_command_register() {
    let rig = Rig::new();
    let master = rig.function.lock().config.bus_master().clone();
    assert!(!master.get());
    set_command(&rig.bus, SLOT, COMMAND_BUS_MASTER);
    assert!(master.get());
    rig.bus.ecam_write(u64::from(SLOT) << 15 | 4, &[0]);
    assert!(!master.get(), "a one-byte write counts too");
}

#[test]
fn what_is_absent_reads_as_ones() {
    let rig = Rig::new();
    let device = u64::from(SLOT) << 15;
    for offset in [2 << 15, device | 1 << 12, device | 1 << 20, u64::MAX, device | 0xfff] {
        let mut data = [0; 8];
        rig.bus.ecam_read(offset, &mut data);
        assert_eq!(data, [0xff; 8], "{offset:#x}");
        rig.bus.ecam_write(offset, &data);
    }
    assert_eq!(config_u32(&rig.bus, SLOT, 0x100), 0, "no extended capability");
    assert_eq!(config_u32(&rig.bus, 0, 8) >> 8, 0x06_0000, "a host bridge at 00.0");
    assert_eq!(config_u32(&rig.bus, SLOT, 0x3c), 0, "no interrupt pin");
}

#[test]
fn ports_reach_the_same_registers() {
    let rig = Rig::new();
    let address = 0x8000_0000 | u32::from(SLOT) << 11;
    assert!(rig.bus.port_write(0xcf8, &(address | 0x2c).to_le_bytes()));
    let mut dword = [0; 4];
    assert!(rig.bus.port_read(0xcf8, &mut dword));
    assert_eq!(u32::from_le_bytes(dword), address | 0x2c);
    let mut half = [0; 2];
    assert!(rig.bus.port_read(0xcfe, &mut half));
    assert_eq!(half, [7, 0], "subsystem id");
    assert!(rig.bus.port_read(0xcfe, &mut dword), "leaves the dword");
    assert_eq!(dword, [0xff; 4]);
    assert!(rig.bus.port_write(0xcf8, &(address | 4).to_le_bytes()));
    assert!(rig.bus.port_write(0xcfc, &COMMAND_MEMORY.to_le_bytes()));
    assert_eq!(rig.attached().len(), 1);
    assert!(!rig.bus.port_write(0xcf9, &[6]), "the reset register is not ours");
    assert!(!rig.bus.port_write(0xcfb, &[1]));
    assert!(rig.bus.port_write(0xcf8, &0_u32.to_le_bytes()));
    assert!(rig.bus.port_read(0xcfc, &mut dword));
    assert_eq!(dword, [0xff; 4], "disabled");
}

#[test]
fn the_capability_chain_ends_and_names_what_is_there() {
    let rig = Rig::new();
    assert_eq!(config_u32(&rig.bus, SLOT, 4) >> 20 & 1, 1);
    let mut at = config_u32(&rig.bus, SLOT, 0x34) as u8;
    let mut ids = Vec::new();
    while at != 0 {
        let header = config_u32(&rig.bus, SLOT, u16::from(at));
        ids.push(header as u8);
        at = (header >> 8) as u8;
        assert!(ids.len() < 48, "the chain is a loop");
    }
    assert_eq!(ids, [ID_MSIX, ID_PCIE, ID_POWER]);
}

#[test]
fn function_level_reset_and_platform_reset() {
    let rig = Rig::new();
    set_command(&rig.bus, SLOT, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    let pcie = (config_u32(&rig.bus, SLOT, config_u32(&rig.bus, SLOT, 0x34) as u16) >> 8 & 0xff) as u16;
    let control = config_u32(&rig.bus, SLOT, pcie + 8);
    set_config_u32(&rig.bus, SLOT, pcie + 8, control | 1 << 15);
    assert_eq!(config_u32(&rig.bus, SLOT, pcie + 8), control, "the FLR bit reads as zero");
    assert_eq!(rig.function.lock().resets, 1);
    assert_eq!(config_u32(&rig.bus, SLOT, 0x14), 0, "the BAR is unplaced");
    assert!(rig.attached().is_empty());
    rig.bus.reset();
    assert_eq!(rig.function.lock().resets, 2);
    set_command(&rig.bus, SLOT, COMMAND_MEMORY);
    assert_eq!(rig.attached(), [(BASE + 0x100, 0, 0x100)], "the bus has placed it again");
}

#[test]
fn a_full_bus_and_a_full_window_are_errors() {
    let rig = Rig::new();
    for slot in 2..SLOTS {
        assert_eq!(rig.bus.add(Arc::new(Mutex::new(FakeFunction::new(rig.router.clone())))), Ok(slot));
    }
    let more = Arc::new(Mutex::new(FakeFunction::new(rig.router.clone())));
    assert_eq!(rig.bus.add(more.clone()), Err(PciError::BusFull));
    let small = PciBus::new(rig.host.clone(), 0..0x1000, 0..0x5000);
    assert_eq!(small.add(more), Ok(1), "the second BAR fits only into the low window");
    let last = Arc::new(Mutex::new(FakeFunction::new(rig.router.clone())));
    assert_eq!(small.add(last), Err(PciError::WindowFull { bar: 0, size: FAKE_BAR_SIZE }));
}

#[test]
fn impossible_descriptions_are_errors() {
    let mut config: ConfigSpace = FakeFunction::new(Arc::default()).config;
    for (index, size) in [(1, 4096), (3, 4096), (5, 4096), (4, 4097), (4, 2048), (4, 0)] {
        let refused = config.add_bar(BarSpec { index, size, prefetchable: false });
        assert_eq!(refused, Err(ConfigError::Bar { index, size }));
    }
    assert_eq!(config.add_capability(&Capability::new(9, 200)), Err(ConfigError::NoRoom(9)));
}

#[derive(Debug, Clone)]
enum Access {
    EcamRead(u64, usize),
    EcamWrite(u64, Vec<u8>),
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Ones and zeros are what sizing and switches are made of.
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=8),
        (1..=8_usize).prop_map(|len| vec![0xff; len]),
        (1..=8_usize).prop_map(|len| vec![0; len]),
    ]
}

fn register() -> impl Strategy<Value = u64> {
    let ours = u64::from(SLOT) << 15;
    prop_oneof![6 => (0..0x80_u64).prop_map(move |at| ours | at), 2 => (0..0x1000_u64).prop_map(move |at| ours | at), 1 => any::<u64>()]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![3 => BASE..BASE + 0x9000, 1 => any::<u64>()]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        1 => (register(), 1..=8_usize).prop_map(|(at, len)| Access::EcamRead(at, len)),
        4 => (register(), bytes()).prop_map(|(at, data)| Access::EcamWrite(at, data)),
        1 => (0xcf0..0xd04_u16, 1..=8_usize).prop_map(|(port, len)| Access::PortRead(port, len)),
        1 => (0xcf0..0xd04_u16, bytes()).prop_map(|(port, data)| Access::PortWrite(port, data)),
        1 => (address(), 1..=8_usize).prop_map(|(at, len)| Access::Read(at, len)),
        1 => (address(), bytes()).prop_map(|(at, data)| Access::Write(at, data)),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_the_bus(accesses in prop::collection::vec(access(), 1..60)) {
        let rig = Rig::new();
        for access in accesses {
            match access {
                Access::EcamRead(at, len) => rig.bus.ecam_read(at, &mut vec![0; len]),
                Access::EcamWrite(at, data) => rig.bus.ecam_write(at, &data),
                Access::PortRead(port, len) => drop(rig.bus.port_read(port, &mut vec![0; len])),
                Access::PortWrite(port, data) => drop(rig.bus.port_write(port, &data)),
                Access::Read(at, len) => drop(rig.bus.mmio_read(at, &mut vec![0; len])),
                Access::Write(at, data) => drop(rig.bus.mmio_write(at, &data)),
            }
            rig.check();
        }
    }
}
