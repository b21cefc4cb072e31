// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stand-ins for the host of a device: tests of every room that has PCI devices use them.
#![allow(missing_docs, reason = "fields say what they are by their names")]

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::capability::{Capability, PortType};
use super::config::{BarSpec, COMMAND, ConfigSpace, Identity};
use super::msix::{MESSAGE_CONTROL, Msix, MsixPlace};
use super::{Doorbell, DoorbellHost, MsiRouter, PciDevice};
use dma::BusMaster;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Remembers every route and every message.
#[derive(Default)]
pub struct FakeRouter {
    pub routes: Mutex<Vec<(u16, u64, u32)>>,
    pub sent: Mutex<Vec<u16>>,
    pub broken: AtomicBool,
}

impl FakeRouter {
    /// Messages sent since the last call.
    pub fn take(&self) -> Vec<u16> {
        std::mem::take(&mut *self.sent.lock())
    }
}

impl MsiRouter for FakeRouter {
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("no routes left"));
        }
        self.routes.lock().push((vector, address, data));
        Ok(())
    }

    fn trigger(&self, vector: u16) {
        self.sent.lock().push(vector);
    }
}

/// Keeps the doorbells that are attached: (address, BAR, offset). Attaching or detaching twice is a failed test.
#[derive(Default)]
pub struct FakeHost {
    pub attached: Mutex<Vec<(u64, u8, u64)>>,
    pub broken: AtomicBool,
}

impl DoorbellHost for FakeHost {
    fn attach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("no ioeventfds left"));
        }
        let entry = (address, doorbell.bar, doorbell.offset);
        let mut attached = self.attached.lock();
        assert!(!attached.contains(&entry), "attached twice: {entry:x?}");
        attached.push(entry);
        Ok(())
    }

    fn detach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        let entry = (address, doorbell.bar, doorbell.offset);
        let mut attached = self.attached.lock();
        let at = attached.iter().position(|one| *one == entry).expect("detached what was never attached");
        attached.remove(at);
        Ok(())
    }
}

/// Bytes of BAR 0 of [`FakeFunction`].
pub const FAKE_BAR_SIZE: u64 = 0x4000;

/// A function with 16 KiB of registers that remember, a doorbell at 0x100, MSI-X in BAR 2 and a PCI Express capability.
pub struct FakeFunction {
    pub config: ConfigSpace,
    pub msix: Arc<Msix>,
    msix_at: u16,
    pub memory: Vec<u8>,
    pub event: Arc<EventFd>,
    pub resets: usize,
}

impl FakeFunction {
    pub fn new(router: Arc<FakeRouter>) -> Self {
        let identity = Identity {
            vendor: 0x15b3,
            device: 0x101b,
            revision: 3,
            class: 0x02_0700,
            subsystem_vendor: 0x15b3,
            subsystem: 7,
        };
        let mut config = ConfigSpace::new(identity, Arc::new(BusMaster::default()));
        config.add_bar(BarSpec { index: 0, size: FAKE_BAR_SIZE, prefetchable: true }).unwrap();
        let (place, size) = MsixPlace::own_bar(2, 4);
        config.add_bar(BarSpec { index: 2, size, prefetchable: false }).unwrap();
        let msix = Arc::new(Msix::new(4, place, router));
        let msix_at = config.add_capability(&msix.capability()).unwrap();
        config.add_capability(&Capability::pcie(PortType::Endpoint)).unwrap();
        config.add_capability(&Capability::power()).unwrap();
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { config, msix, msix_at, memory: vec![0; FAKE_BAR_SIZE as usize], event, resets: 0 }
    }

    fn cell(&mut self, offset: u64) -> Option<&mut u8> {
        self.memory.get_mut(usize::try_from(offset).ok()?)
    }
}

impl PciDevice for FakeFunction {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        if self.config.write(offset, data).function_reset {
            return self.reset();
        }
        let control = self.config.read_u16(self.msix_at + MESSAGE_CONTROL);
        self.msix.set_control(control, self.config.bus_master().get());
    }

    fn bars(&self) -> Vec<(u8, u64, u64)> {
        self.config.bars()
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 2 {
            return self.msix.read(offset, data);
        }
        for (at, byte) in (offset..).zip(data) {
            *byte = self.cell(at).map_or(0xff, |cell| *cell);
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 2 {
            return self.msix.write(offset, data);
        }
        if offset == 0x100 {
            self.event.write(1).unwrap();
        }
        for (at, byte) in (offset..).zip(data) {
            self.cell(at).into_iter().for_each(|cell| *cell = *byte);
        }
    }

    fn doorbells(&self) -> Vec<Doorbell> {
        vec![Doorbell { bar: 0, offset: 0x100, len: 0, value: None, event: Arc::clone(&self.event) }]
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.config.reset();
        self.msix.reset();
    }
}

/// Sets the command register of the device in `slot`.
pub fn set_command(bus: &super::PciBus, slot: u8, command: u16) {
    bus.ecam_write(u64::from(slot) << 15 | u64::from(COMMAND), &command.to_le_bytes());
}

/// Reads a dword of configuration space.
pub fn config_u32(bus: &super::PciBus, slot: u8, register: u16) -> u32 {
    let mut bytes = [0; 4];
    bus.ecam_read(u64::from(slot) << 15 | u64::from(register), &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Writes a dword of configuration space.
pub fn set_config_u32(bus: &super::PciBus, slot: u8, register: u16, value: u32) {
    bus.ecam_write(u64::from(slot) << 15 | u64::from(register), &value.to_le_bytes());
}
