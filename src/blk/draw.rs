// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which unflushed changes a disk had written out when the power went: drawn by a seed.
//!
//! A disk may write its cache out in any order and stop anywhere. So any subset of the changes that no flush covers may be there; where two
//! cover a sector, it has the later one of those that are there. Disks promise no more than that a sector is whole.

use std::ops::Range;

use probe::drawn;
use probe::ledger::SECTOR_SIZE;

/// Pieces that one image is drawn from, at most; beyond, they are longer than a sector.
const MAX_PIECES: u64 = 1 << 22;

/// What an image keeps of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keep {
    All,
    Nothing,
    /// These bytes, in order.
    Parts(Vec<Range<u64>>),
}

impl From<bool> for Keep {
    fn from(all: bool) -> Self {
        if all { Self::All } else { Self::Nothing }
    }
}

/// How a disk came to what it had written out. Chances alone would hardly ever leave a long log nearly whole, or nearly empty.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// In order, up to the request with this number.
    InOrder(u64),
    /// Each with this chance, in eighths.
    Each(u64),
}

/// One drawing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    seed: u64,
    way: Way,
    tear: bool,
    /// Sectors that are there or not there together, within a request that is torn.
    grain: u64,
}

impl Draw {
    /// Drawing number `nth` of `seed`, of so many requests that change so many sectors.
    pub(super) fn new(seed: u64, nth: u32, tear: bool, requests: u64, sectors: u64) -> Self {
        let seed = drawn(seed, nth.into());
        let word = drawn(seed, u64::MAX);
        let way = match word % 4 {
            0 => Way::InOrder((word >> 8) % requests.saturating_add(1)),
            1 => Way::Each(1),
            2 => Way::Each(7),
            _ => Way::Each(4),
        };
        Self { seed, way, tear, grain: (sectors / MAX_PIECES).saturating_add(1) }
    }

    /// What is there of the change of `range` (bytes) by request number `number`, from 0, among those that no flush covers.
    pub(super) fn keep(&self, number: u64, range: &Range<u64>) -> Keep {
        let own = drawn(self.seed, number);
        // Half of the requests are torn, where requests may be; of one that is written in order only the last can be.
        let torn = self.tear && own >> 63 == 0;
        match self.way {
            Way::InOrder(end) if torn && number == end => self.parts(own, range, 4),
            Way::InOrder(end) => (number < end).into(),
            Way::Each(chance) if torn => self.parts(own, range, chance),
            Way::Each(chance) => (own % 8 < chance).into(),
        }
    }

    fn parts(&self, own: u64, range: &Range<u64>, chance: u64) -> Keep {
        let step = self.grain * SECTOR_SIZE;
        let mut parts: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = at.saturating_add(step).min(range.end);
            if drawn(own, at) % 8 < chance {
                match parts.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ => parts.push(at..end),
                }
            }
            at = end;
        }
        Keep::Parts(parts)
    }
}
