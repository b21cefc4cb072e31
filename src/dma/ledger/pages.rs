// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The last access of any device to each page of guest memory. An access to a whole aligned block of pages is one entry, not four: the data path
//! pays for each (docs/performance.md).

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::FromZeros;

use super::{PAGE_SIZE, PageAccess, Seq};

/// Pages of a block.
const BLOCK: usize = 4;

#[derive(Default, FromZeros)]
struct Slot {
    written: AtomicU64,
    read: AtomicU64,
}

impl Slot {
    fn of(&self, write: bool) -> &AtomicU64 {
        if write { &self.written } else { &self.read }
    }

    fn access(&self) -> PageAccess {
        PageAccess { written: self.written.load(Ordering::Relaxed), read: self.read.load(Ordering::Relaxed) }
    }
}

/// A slot for each page and for each block of pages; what counts for a page is the later of its two.
pub struct Pages {
    pages: Vec<Slot>,
    blocks: Vec<Slot>,
}

/// Zeroes that the system has not handed out yet: 5 MiB for a guest of 1 GiB, most of which no device ever touches.
fn slots(count: usize) -> Vec<Slot> {
    Slot::new_vec_zeroed(count).unwrap_or_else(|_| (0..count).map(|_| Slot::default()).collect())
}

impl Pages {
    pub fn new(pages: usize) -> Self {
        Self { pages: slots(pages), blocks: slots(pages.div_ceil(BLOCK)) }
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// An access of `len` bytes at `gpa`, at `seq`. Pages that have no slot are left out.
    pub fn touch(&self, gpa: u64, len: u64, seq: Seq, write: bool) {
        if len == 0 {
            return;
        }
        let end = index(gpa.saturating_add(len - 1)).saturating_add(1).min(self.pages.len());
        let mut at = index(gpa).min(end);
        while at < end {
            if at % BLOCK == 0 && end - at >= BLOCK {
                self.blocks[at / BLOCK].of(write).fetch_max(seq, Ordering::Relaxed);
                at += BLOCK;
            } else {
                self.pages[at].of(write).fetch_max(seq, Ordering::Relaxed);
                at += 1;
            }
        }
    }

    /// The last accesses to the page that holds `gpa`.
    pub fn last(&self, gpa: u64) -> PageAccess {
        let at = index(gpa);
        let of = |slots: &[Slot], at: usize| slots.get(at).map(Slot::access).unwrap_or_default();
        let (page, block) = (of(&self.pages, at), of(&self.blocks, at / BLOCK));
        PageAccess { written: page.written.max(block.written), read: page.read.max(block.read) }
    }
}

fn index(gpa: u64) -> usize {
    usize::try_from(gpa / PAGE_SIZE).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_and_their_edges_are_told_alike() {
        let pages = Pages::new(10);
        // Pages 3 to 8: an edge, a whole block, an edge.
        pages.touch(3 * PAGE_SIZE + 100, 5 * PAGE_SIZE, 5, true);
        let written = |page: u64| pages.last(page * PAGE_SIZE).written;
        assert_eq!((0..11).map(written).collect::<Vec<_>>(), [0, 0, 0, 5, 5, 5, 5, 5, 5, 0, 0]);
        pages.touch(5 * PAGE_SIZE, 1, 9, true);
        pages.touch(4 * PAGE_SIZE, 4 * PAGE_SIZE, 7, true);
        assert_eq!((4..8).map(written).collect::<Vec<_>>(), [7, 9, 7, 7]);
        assert_eq!(pages.last(5 * PAGE_SIZE).read, 0);
        // The last block is not whole, and beyond it there is nothing.
        pages.touch(8 * PAGE_SIZE, u64::MAX, 11, false);
        assert_eq!((8..11).map(|page| pages.last(page * PAGE_SIZE).read).collect::<Vec<_>>(), [11, 11, 0]);
        pages.touch(u64::MAX, u64::MAX, 12, true);
    }
}
