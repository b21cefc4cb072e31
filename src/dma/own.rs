// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of a device's own, which its engines reach as they reach the guest's, at addresses that no guest has.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::{GuestRam, Ram};

/// Addresses from here on are the device's own.
const FIRST: u64 = 1 << 62;

/// Bytes of a device's own.
pub struct OwnMemory(GuestRam);

impl OwnMemory {
    /// `size` bytes of zeroes.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn new(size: usize) -> std::io::Result<Self> {
        GuestRam::from_ranges(&[(GuestAddress(FIRST), size)]).map(Self).map_err(std::io::Error::other)
    }

    /// Where a device that has it behind its door sees byte `at`.
    pub fn seen_at(at: u64) -> Option<u64> {
        FIRST.checked_add(at)
    }

    /// Reads at byte `at`. False: it has not as many.
    pub fn read(&self, at: u64, data: &mut [u8]) -> bool {
        Self::seen_at(at).is_some_and(|at| self.0.read_slice(data, GuestAddress(at)).is_ok())
    }

    /// Writes at byte `at`. False: it has not as many.
    pub fn write(&self, at: u64, data: &[u8]) -> bool {
        Self::seen_at(at).is_some_and(|at| self.0.write_slice(data, GuestAddress(at)).is_ok())
    }
}

/// What such a device reaches: the guest's memory, and its own.
pub struct Reach {
    /// The guest's.
    pub guest: Arc<dyn Ram>,
    /// The device's.
    pub own: Arc<OwnMemory>,
}

impl Ram for Reach {
    fn find(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        if addr < FIRST { self.guest.find(addr, len) } else { self.own.0.find(addr, len) }
    }

    fn bytes(&self) -> u64 {
        self.guest.bytes()
    }
}
