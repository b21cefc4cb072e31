// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `DmaTarget`: requester id, guest memory and the bus-master switch in one value. A device that has none cannot touch memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest RAM as every device sees it: shared, mapped once, never moved while the guest lives.
pub type GuestRam = GuestMemoryMmap<()>;

/// Why a device was not let through the door. The device turns this into the status its specification names.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DmaError {
    /// PCI command register bit 2 (Bus Master Enable, PCIe base 7.5.1.1.3) is clear.
    #[error("the guest has not enabled bus mastering for device {0:#06x}")]
    BusMasterOff(u16),
    /// Some byte of the range is not guest RAM, or the range wraps.
    #[error("device {requester:#06x} asked for {len} bytes at {addr:#x}, which is not all guest RAM")]
    OutsideRam {
        /// Bus, device and function of the requester.
        requester: u16,
        /// Guest physical address of the first byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// The Bus Master Enable bit of one function, shared between its configuration space and its engines.
#[derive(Debug, Default)]
pub struct BusMaster {
    enabled: AtomicBool,
    refused: AtomicU64,
}

impl BusMaster {
    /// Follows the command register.
    pub fn set(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Whether the function may start an access now.
    pub fn get(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Accesses refused since the device was made.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// A device's licence to reach guest memory. Clones share the switch and the counters.
#[derive(Clone)]
pub struct DmaTarget {
    requester: u16,
    ram: Arc<GuestRam>,
    master: Arc<BusMaster>,
}

impl DmaTarget {
    /// A target for the function `requester` (bus << 8 | device << 3 | function).
    pub fn new(requester: u16, ram: Arc<GuestRam>, master: Arc<BusMaster>) -> Self {
        Self { requester, ram, master }
    }

    /// Bus, device and function.
    pub fn requester(&self) -> u16 {
        self.requester
    }

    /// Guest memory for walking rings and copying, or a refusal while bus mastering is off.
    pub fn ram(&self) -> Result<&GuestRam, DmaError> {
        if self.master.get() {
            return Ok(&self.ram);
        }
        self.refuse(DmaError::BusMasterOff(self.requester))
    }

    /// Copies guest memory from `addr` on into `bytes`.
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM: nothing was copied.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        let len = bytes.len() as u64;
        self.check(addr, len)?.read_slice(bytes, GuestAddress(addr)).or_else(|_| self.refuse(self.outside(addr, len)))
    }

    /// Copies `bytes` to guest memory at `addr`.
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM: nothing was copied.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), DmaError> {
        let len = bytes.len() as u64;
        self.check(addr, len)?.write_slice(bytes, GuestAddress(addr)).or_else(|_| self.refuse(self.outside(addr, len)))
    }

    /// Checks that `len` bytes at `addr` are guest RAM and may be reached now.
    pub fn check(&self, addr: u64, len: u64) -> Result<&GuestRam, DmaError> {
        let ram = self.ram()?;
        let whole = usize::try_from(len).is_ok_and(|len| ram.check_range(GuestAddress(addr), len));
        if whole && addr.checked_add(len).is_some() {
            return Ok(ram);
        }
        self.refuse(self.outside(addr, len))
    }

    fn outside(&self, addr: u64, len: u64) -> DmaError {
        DmaError::OutsideRam { requester: self.requester, addr, len }
    }

    fn refuse<T>(&self, error: DmaError) -> Result<T, DmaError> {
        // A hostile guest can ask a million times a second: log the first of each power of two.
        let count = self.master.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::info!("DMA refused ({count} so far): {error}");
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 0x3000;

    /// RAM of two regions without a gap, and a hole above.
    fn door() -> (DmaTarget, Arc<BusMaster>) {
        let ranges = [(GuestAddress(0), 0x2000), (GuestAddress(0x2000), 0x1000)];
        let master = Arc::new(BusMaster::default());
        master.set(true);
        (DmaTarget::new(8, Arc::new(GuestRam::from_ranges(&ranges).unwrap()), master.clone()), master)
    }

    #[test]
    fn bytes_go_through_the_door_across_regions() {
        let (dma, master) = door();
        dma.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut bytes = [0; 6];
        dma.read(0x1ffd, &mut bytes).unwrap();
        assert_eq!((bytes, master.refused()), ([0, 1, 2, 3, 4, 0], 0));
    }

    #[test]
    fn what_is_not_all_ram_is_refused_whole_and_counted() {
        let (dma, master) = door();
        for (count, (addr, len)) in [(RAM - 1, 2), (RAM, 1), (u64::MAX, 2), (u64::MAX - 1, 1)].into_iter().enumerate() {
            let outside = Err(DmaError::OutsideRam { requester: 8, addr, len: len as u64 });
            assert_eq!(dma.write(addr, &[0xee; 2][..len]), outside);
            assert_eq!(dma.read(addr, &mut [0; 2][..len]), outside);
            assert_eq!(master.refused(), 2 * (count as u64 + 1));
        }
        let mut last = [0xaa];
        dma.read(RAM - 1, &mut last).unwrap();
        assert_eq!(last, [0], "not a byte of it was written");
    }

    #[test]
    fn without_bus_mastering_nothing_moves() {
        let (dma, master) = door();
        dma.write(0, &[7]).unwrap();
        master.set(false);
        let mut byte = [9];
        assert_eq!(dma.read(0, &mut byte), Err(DmaError::BusMasterOff(8)));
        assert_eq!(dma.write(0, &[8]), Err(DmaError::BusMasterOff(8)));
        master.set(true);
        assert_eq!((byte, master.refused()), ([9], 2));
        dma.read(0, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
