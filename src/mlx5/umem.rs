// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Umems: pieces of a program's memory that its driver has pinned and listed once. Queues, doorbell records and memory keys of user contexts
//! lie in them, by number and offset.

use super::buffer::GuestBuffer;
use super::users::{Used, Users};

/// See the module's text.
#[derive(Debug)]
pub struct Umem {
    /// All of its bytes.
    pub bytes: GuestBuffer,
    /// Every page may be written.
    pub writable: bool,
    /// What lies in it.
    pub users: Users,
}

impl Used for Umem {
    fn users(&self) -> &Users {
        &self.users
    }
}

impl Umem {
    /// A doorbell record at byte `at`: its guest physical address, at a multiple of eight.
    pub fn record(&self, at: u64) -> Option<u64> {
        self.bytes.address(at, 8).filter(|address| address.is_multiple_of(8))
    }

    /// A queue of `len` bytes at byte `at`; its entries, which begin at multiples of `entry` bytes, cross no page.
    pub fn queue(&self, at: u64, len: u64, entry: u64) -> Option<GuestBuffer> {
        let aligned = self.bytes.address(at, 1)?.is_multiple_of(entry);
        if aligned { self.bytes.view(at, len) } else { None }
    }

    /// `count` translation entries of pages of `1 << log_page` bytes from byte `at` on, as memory keys have them.
    pub fn translations(&self, at: u64, log_page: u32, count: usize) -> Option<Vec<u8>> {
        let page = 1_u64.checked_shl(log_page)?;
        // Entries come in pairs.
        if count as u64 > self.bytes.len().checked_sub(at)?.div_ceil(page) + 1 {
            return None;
        }
        let rights = 1 | u64::from(self.writable) << 1;
        let mut list = Vec::new();
        for n in 0..count as u64 {
            let from = at.checked_add(n.checked_mul(page)?)?;
            // What is beyond the end translates to nothing.
            let left = self.bytes.len().saturating_sub(from).min(page);
            let entry = match left {
                0 => 0,
                left => self.bytes.address(from, left).filter(|gpa| gpa.is_multiple_of(page))? | rights,
            };
            list.extend_from_slice(&entry.to_be_bytes());
        }
        Some(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Geometry;

    /// Pages 5, 6 and 9, from byte 64 of the first on.
    fn umem() -> Umem {
        let list: Vec<u8> = [0x5003_u64, 0x6003, 0x9003].iter().flat_map(|page| page.to_be_bytes()).collect();
        let bytes = GuestBuffer::new(Geometry::whole(0, 64, 3).unwrap(), &list).unwrap();
        Umem { bytes, writable: true, users: Users::default() }
    }

    #[test]
    fn what_lies_in_it_is_found() {
        let umem = umem();
        assert_eq!(umem.bytes.len(), 3 * 4096 - 64);
        assert_eq!((umem.record(0), umem.record(4), umem.record(4032)), (Some(0x5040), None, Some(0x6000)));
        assert_eq!(
            (umem.record(3 * 4096 - 72), umem.record(3 * 4096 - 71), umem.record(u64::MAX)),
            (Some(0x9ff8), None, None)
        );
        assert!(
            umem.queue(0, 4096, 64).is_some()
                && umem.queue(0, 4096, 128).is_none()
                && umem.queue(64, 4096, 128).is_some()
        );
        assert!(umem.queue(64, 3 * 4096 - 128, 64).is_some() && umem.queue(64, 3 * 4096 - 127, 64).is_none());
        assert!(umem.queue(u64::MAX, 1, 64).is_none() && umem.queue(0, 0, 64).is_none());
    }

    #[test]
    fn keys_of_it_have_its_pages() {
        let umem = umem();
        let list = |at, log_page, count| {
            let list = umem.translations(at, log_page, count)?;
            Some(list.chunks(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap())).collect::<Vec<_>>())
        };
        assert_eq!(list(4032, 12, 2), Some(vec![0x6003, 0x9003]));
        assert_eq!((list(4032, 12, 3), list(4032, 12, 4)), (Some(vec![0x6003, 0x9003, 0]), None));
        // Two pages of the list are one of the key's where they follow each other.
        assert_eq!((list(0, 12, 1), list(4032, 13, 1), list(4032, 64, 1)), (None, None, None));
        let pair: Vec<u8> = [0x8003_u64, 0x9003].iter().flat_map(|page| page.to_be_bytes()).collect();
        let bytes = GuestBuffer::new(Geometry::whole(0, 0, 2).unwrap(), &pair).unwrap();
        let umem = Umem { bytes, writable: false, users: Users::default() };
        assert_eq!(umem.translations(0, 13, 1), Some(0x8001_u64.to_be_bytes().to_vec()));
    }
}
