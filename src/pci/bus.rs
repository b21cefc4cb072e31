// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bus 0: up to 32 single-function devices behind a host bridge, reached through ECAM, CF8/CFC and their BARs.
//!
//! Lock order: a device's own lock, then its `Attachments`, then the mapping table. The table is never held while a device is
//! called, so a guest that moves a BAR on one vCPU and uses it on another gets one of the two outcomes and no deadlock. A function's
//! [`DirectWrites`] are called without any lock.

use parking_lot::{Mutex, MutexGuard, RwLock};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::host_bridge::HostBridge;
use super::placement::{Placement, Window, Windows, apply};
use super::rate_limit::RateLimit;
use super::{DirectWrites, Doorbell, DoorbellHost, PciDevice, PciError};

/// A device as the bus and its owner share it.
pub type SharedDevice = Arc<Mutex<dyn PciDevice>>;

/// Devices a bus can have, the host bridge included.
pub const SLOTS: u8 = 32;
/// Bytes of ECAM for one bus (PCIe base 7.2.2).
pub const ECAM_BUS_SIZE: u64 = 1 << 20;
/// First and last I/O port of configuration mechanism 1.
pub const PORTS: std::ops::RangeInclusive<u16> = 0xcf8..=0xcff;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function, dword: the bits of CF8 that exist.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// One decoding BAR.
struct Mapping {
    base: u64,
    size: u64,
    slot: u8,
    bar: u8,
    target: Target,
}

/// Who answers an access.
#[derive(Clone)]
struct Target {
    device: SharedDevice,
    direct: Option<Arc<dyn DirectWrites>>,
}

/// What of a device is visible to the guest now.
#[derive(Default)]
struct Attachments {
    bars: Vec<(u8, u64, u64)>,
    doorbells: Vec<(u64, Doorbell)>,
}

#[derive(Clone)]
struct Slot {
    device: SharedDevice,
    direct: Option<Arc<dyn DirectWrites>>,
    placement: Arc<Placement>,
    attachments: Arc<Mutex<Attachments>>,
}

/// The one PCI bus of a guest.
pub struct PciBus {
    slots: RwLock<Vec<Slot>>,
    windows: Mutex<Windows>,
    mappings: RwLock<Vec<Mapping>>,
    address: AtomicU32,
    host: Arc<dyn DoorbellHost>,
    failures: RateLimit,
}

impl PciBus {
    /// A bus with a host bridge at 00.0. BARs are placed in `low` (below 4 GiB) and `high` (64-bit).
    pub fn new(host: Arc<dyn DoorbellHost>, low: Range<u64>, high: Range<u64>) -> Self {
        let bridge = Slot {
            device: Arc::new(Mutex::new(HostBridge::default())),
            direct: None,
            placement: Arc::default(),
            attachments: Arc::default(),
        };
        Self {
            slots: RwLock::new(vec![bridge]),
            windows: Mutex::new(Windows { low: Window::new(low), high: Window::new(high) }),
            mappings: RwLock::default(),
            address: AtomicU32::new(0),
            host,
            failures: RateLimit::default(),
        }
    }

    /// The slot that the next [`PciBus::add`] takes, if there is one: a device needs to know its requester id first.
    pub fn next_slot(&self) -> Option<u8> {
        u8::try_from(self.slots.read().len()).ok().filter(|slot| *slot < SLOTS)
    }

    /// Requester id (bus << 8 | device << 3 | function) of the device in `slot`.
    pub fn requester(slot: u8) -> u16 {
        u16::from(slot) << 3
    }

    /// Puts `device` into the next free slot and places its BARs, as firmware would.
    ///
    /// # Errors
    /// No free slot, or a BAR that does not fit into the windows.
    pub fn add(&self, device: SharedDevice) -> Result<u8, PciError> {
        let mut slots = self.slots.write();
        let index = u8::try_from(slots.len()).ok().filter(|slot| *slot < SLOTS).ok_or(PciError::BusFull)?;
        let placement = lock(&self.windows).place(&mut *lock(&device))?;
        let direct = lock(&device).direct_writes();
        slots.push(Slot { device, direct, placement: Arc::new(placement), attachments: Arc::default() });
        Ok(index)
    }

    /// Resets every device and places its BARs again: what a platform reset does.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        for index in 0..SLOTS {
            let Some(slot) = self.slot(index) else { return };
            let mut device = lock(&slot.device);
            device.reset();
            apply(&mut *device, &slot.placement);
            self.follow(index, &slot, &*device);
        }
    }

    /// Reads ECAM at `offset` from the start of the region. What no device answers reads as all ones.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        match decode(offset, data.len()) {
            Some((slot, register)) => self.config_read(slot, register, data),
            None => data.fill(0xff),
        }
    }

    /// Writes ECAM. What no device answers is dropped.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        if let Some((slot, register)) = decode(offset, data.len()) {
            self.config_write(slot, register, data);
        }
    }

    /// Reads CF8 (whole dwords only) or CFC to CFF. `false`: not ours, `data` is all ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) -> bool {
        data.fill(0xff);
        if port == ADDRESS_PORT && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            return true;
        }
        if let Some(offset) = self.data_port(port, data.len()) {
            self.ecam_read(offset, data);
        }
        (DATA_PORT..=*PORTS.end()).contains(&port)
    }

    /// Writes CF8 (whole dwords only) or CFC to CFF. `false`: not ours; a byte at CF9, for one, is the chipset's reset register.
    pub fn port_write(&self, port: u16, data: &[u8]) -> bool {
        if port == ADDRESS_PORT
            && let Ok(bytes) = data.try_into()
        {
            self.address.store(u32::from_le_bytes(bytes) & ADDRESS_BITS, Ordering::Relaxed);
            return true;
        }
        if let Some(offset) = self.data_port(port, data.len()) {
            self.ecam_write(offset, data);
        }
        (DATA_PORT..=*PORTS.end()).contains(&port)
    }

    /// Reads a BAR at a guest physical address. `false`: no BAR there, `data` is all ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((Target { device, .. }, bar, offset)) = self.find(address) else { return false };
        lock(&device).bar_read(bar, offset, data);
        true
    }

    /// Writes a BAR at a guest physical address. `false`: no BAR there.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((Target { device, direct }, bar, offset)) = self.find(address) else { return false };
        if !direct.is_some_and(|direct| direct.write(bar, offset, data)) {
            lock(&device).bar_write(bar, offset, data);
        }
        true
    }

    /// Decoding BARs of all devices, sorted by base: (slot, BAR, base, size).
    pub fn mappings(&self) -> Vec<(u8, u8, u64, u64)> {
        let table = self.mappings.read();
        table.iter().map(|mapping| (mapping.slot, mapping.bar, mapping.base, mapping.size)).collect()
    }

    fn slot(&self, index: u8) -> Option<Slot> {
        self.slots.read().get(usize::from(index)).cloned()
    }

    fn config_read(&self, slot: u8, register: u16, data: &mut [u8]) {
        match self.slot(slot) {
            Some(slot) => lock(&slot.device).config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, index: u8, register: u16, data: &[u8]) {
        let Some(slot) = self.slot(index) else { return };
        let mut device = lock(&slot.device);
        device.config_write(register, data);
        self.follow(index, &slot, &*device);
    }

    /// ECAM offset of a data port access, if it is enabled and stays within the dword.
    fn data_port(&self, port: u16, len: usize) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        let byte = u64::from(port.checked_sub(DATA_PORT)?);
        if address & ADDRESS_ENABLE == 0 || byte + len as u64 > 4 {
            return None;
        }
        // Bus, device and function sit 4 bits higher in ECAM: its registers take 12 bits, not 8.
        let function = u64::from(address & 0x00ff_ff00) << 4;
        Some(function | u64::from(address & 0xfc) | byte)
    }

    fn find(&self, address: u64) -> Option<(Target, u8, u64)> {
        let table = self.mappings.read();
        let below = table.partition_point(|mapping| mapping.base <= address);
        // The first is the hit, unless a guest has laid one BAR over another.
        let hit = table[..below].iter().rev().find(|mapping| address - mapping.base < mapping.size)?;
        Some((hit.target.clone(), hit.bar, address - hit.base))
    }

    /// Brings mappings and doorbells in line with the BARs that `device` (locked by the caller) decodes now.
    fn follow(&self, index: u8, slot: &Slot, device: &dyn PciDevice) {
        let bars = device.bars();
        let mut attachments = lock(&slot.attachments);
        if attachments.bars == bars {
            return;
        }
        for (address, doorbell) in attachments.doorbells.drain(..) {
            if let Err(error) = self.host.detach(address, &doorbell) {
                self.complain("detach", index, address, &error);
            }
        }
        self.remap(index, slot, &bars);
        for doorbell in device.doorbells() {
            let Some(address) = doorbell_address(&doorbell, &bars) else { continue };
            match self.host.attach(address, &doorbell) {
                Ok(()) => attachments.doorbells.push((address, doorbell)),
                // The write then takes an exit and reaches `bar_write`: slower, not lost.
                Err(error) => self.complain("attach", index, address, &error),
            }
        }
        attachments.bars = bars;
    }

    fn remap(&self, index: u8, slot: &Slot, bars: &[(u8, u64, u64)]) {
        let mut table = self.mappings.write();
        table.retain(|mapping| mapping.slot != index);
        let target = Target { device: slot.device.clone(), direct: slot.direct.clone() };
        let mapped = |&(bar, base, size): &_| Mapping { base, size, slot: index, bar, target: target.clone() };
        table.extend(bars.iter().map(mapped));
        table.sort_by_key(|mapping| (mapping.base, mapping.slot, mapping.bar));
    }

    fn complain(&self, what: &str, slot: u8, address: u64, error: &std::io::Error) {
        if let Some(count) = self.failures.next() {
            log::warn!("cannot {what} the doorbell of slot {slot} at {address:#x} ({count} failures so far): {error}");
        }
    }
}

/// Slot and register of an ECAM access; none for another bus, another function, or an access that leaves the function.
fn decode(offset: u64, len: usize) -> Option<(u8, u16)> {
    let function = offset >> 12 & 7;
    let register = offset & 0xfff;
    let inside = offset < ECAM_BUS_SIZE && function == 0 && register + len as u64 <= 0x1000;
    inside.then_some(((offset >> 15) as u8, register as u16))
}

/// Where `doorbell` is in guest physical memory while `bars` decode.
fn doorbell_address(doorbell: &Doorbell, bars: &[(u8, u64, u64)]) -> Option<u64> {
    let (_, base, size) = bars.iter().find(|(bar, ..)| *bar == doorbell.bar)?;
    (doorbell.offset < *size).then(|| base.checked_add(doorbell.offset))?
}

/// A device that panicked in a test build is still a device.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
