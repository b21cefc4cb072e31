// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device memory (MEMIC): bytes of the NIC's own behind the end of BAR0, which programs map and queue pairs reach by keys of their own mode.
//!
//! The engines see it beside guest memory, at addresses that no guest has: everything that moves bytes works on it as it is. A guest
//! that puts such an address into a translation reaches its own NIC's memory, and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::UAR_PAGES;
use dma::OwnMemory;

/// Bytes of it.
pub const SIZE: u64 = 256 << 10;
/// Where it begins in BAR0: behind the UAR pages.
pub const BAR_OFFSET: u64 = UAR_PAGES as u64 * 4096;
/// log2 of what allocations are rounded up to, and begin at multiples of.
pub const LOG_GRAIN: u32 = 6;
/// log2 of the largest alignment, in grains.
pub const LOG_MOST_ALIGNMENT: u32 = 6;

/// See the module's text.
pub struct DeviceMemory {
    /// For [`dma::Reach`].
    pub bytes: Arc<OwnMemory>,
    /// What is allocated: first byte and length, within it.
    taken: Mutex<BTreeMap<u64, u64>>,
}

impl DeviceMemory {
    /// All zero, nothing allocated.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn new() -> io::Result<Self> {
        let bytes = Arc::new(OwnMemory::new(SIZE as usize)?);
        Ok(Self { bytes, taken: Mutex::default() })
    }

    /// Allocates `len` bytes in the `range` of BAR0 (first byte, length), aligned to so many grains: the first that are free, filled with
    /// zeroes. The offset in BAR0; `None`: there is no such place.
    pub fn allocate(&self, range: (u64, u64), len: u64, log_alignment: u32) -> Option<u64> {
        let grain = 1 << LOG_GRAIN;
        let first = range.0.checked_sub(BAR_OFFSET)?;
        let end = first.checked_add(range.1)?.min(SIZE);
        let len = len.max(1).checked_next_multiple_of(grain)?;
        let step = grain << log_alignment.min(LOG_MOST_ALIGNMENT);
        let mut taken = self.taken.lock();
        let mut at = first.checked_next_multiple_of(step)?;
        while at.checked_add(len)? <= end {
            let before = taken.range(..at + len).next_back().map(|(from, len)| from + len);
            match before.filter(|free| *free > at) {
                Some(free) => at = free.next_multiple_of(step),
                None => {
                    let empty = self.bytes.write(at, &vec![0; len as usize]);
                    taken.insert(at, len);
                    return empty.then(|| BAR_OFFSET + at);
                }
            }
        }
        None
    }

    /// Frees what begins at an offset in BAR0. False: nothing does.
    pub fn free(&self, offset: u64) -> bool {
        offset.checked_sub(BAR_OFFSET).is_some_and(|at| self.taken.lock().remove(&at).is_some())
    }

    /// Frees everything.
    pub fn clear(&self) {
        self.taken.lock().clear();
    }

    /// Allocations.
    pub fn len(&self) -> usize {
        self.taken.lock().len()
    }

    /// Whether nothing is allocated.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where the engines see `len` bytes at an offset in BAR0; `None`: they do not lie in one allocation.
    pub fn seen_at(&self, offset: u64, len: u64) -> Option<u64> {
        let at = offset.checked_sub(BAR_OFFSET)?;
        let taken = self.taken.lock();
        let (from, has) = taken.range(..=at).next_back()?;
        let end = at.checked_add(len)?;
        OwnMemory::seen_at(at).filter(|_| end <= from + has)
    }

    /// A read of BAR0. False: it is not of this memory.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        offset.checked_sub(BAR_OFFSET).is_some_and(|at| self.bytes.read(at, data))
    }

    /// A write to BAR0. False: it is not to this memory.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        offset.checked_sub(BAR_OFFSET).is_some_and(|at| self.bytes.write(at, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (u64, u64) = (BAR_OFFSET, SIZE);

    #[test]
    fn allocations_do_not_overlap_and_come_back_empty() {
        let memory = DeviceMemory::new().unwrap();
        let first = memory.allocate(ALL, 65, 0).unwrap();
        assert_eq!(first, BAR_OFFSET);
        assert_eq!(memory.allocate(ALL, 64, 0), Some(first + 128));
        assert_eq!(memory.allocate(ALL, 1, 6), Some(first + 4096));
        // A range is kept to.
        assert_eq!(memory.allocate((first, 192), 64, 0), None);
        assert_eq!(memory.allocate((first + 192, 64), 64, 0), Some(first + 192));
        assert_eq!((memory.seen_at(first + 1, 127), memory.seen_at(first + 1, 128)), (OwnMemory::seen_at(1), None));
        assert!(memory.write(first, &[7; 4]) && memory.free(first) && !memory.free(first));
        assert_eq!((memory.seen_at(first, 1), memory.allocate(ALL, 128, 0)), (None, Some(first)));
        let mut seen = [1; 4];
        assert!(memory.read(first, &mut seen) && seen == [0; 4]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = DeviceMemory::new().unwrap();
        for (range, len, log) in [
            (ALL, SIZE + 1, 0),
            (ALL, u64::MAX, 0),
            ((0, SIZE), 64, 0),
            ((BAR_OFFSET + SIZE, 4096), 64, 0),
            ((u64::MAX, u64::MAX), 64, 63),
            ((BAR_OFFSET, 63), 1, 0),
        ] {
            assert_eq!(memory.allocate(range, len, log), None, "{range:x?} {len:#x}");
        }
        assert!(memory.allocate(ALL, SIZE, u32::MAX).is_some() && memory.allocate(ALL, 1, 0).is_none());
        let mut data = [0; 8];
        assert!(!memory.read(BAR_OFFSET - 4, &mut data) && !memory.write(BAR_OFFSET + SIZE - 4, &data));
        assert!(memory.seen_at(BAR_OFFSET, u64::MAX).is_none() && !memory.free(0));
    }
}
