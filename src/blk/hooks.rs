// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab can match, hold, make go wrong and find on record in a disk's requests.

mod book;
mod record;
#[cfg(test)]
mod tests;
mod totals;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use probe::ledger::{Ledger, PAGE_SIZE};
use probe::{Holdable, Match, Rule, Rules};

pub use book::DiskLedger;
pub use record::{BlkOp, Hold, HoldPoint, PageTouch, RequestRecord, RequestStart};
pub use totals::{DiskCounters, DiskTotals, OpCounts};

/// What a matcher can see of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestShape<'a> {
    /// Kind.
    pub op: BlkOp,
    /// Sectors (512 bytes) covered.
    pub lba: &'a [Range<u64>],
    /// Guest memory of the data: address and length in bytes.
    pub memory: &'a [(u64, u64)],
    /// Which pages are watched.
    pub ledger: &'a Ledger,
}

impl fmt::Display for RequestShape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.op)?;
        match self.lba.first() {
            Some(range) => write!(f, " of sectors {}..{}", range.start, range.end),
            None => Ok(()),
        }
    }
}

/// All given conditions must hold; an empty matcher means every request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestMatch {
    /// Only this kind.
    #[serde(default)]
    pub op: Option<BlkOp>,
    /// Only requests that cover a sector (512 bytes) of this range.
    #[serde(default)]
    pub lba: Option<Range<u64>>,
    /// Only requests with data in the guest page that holds this address.
    #[serde(default)]
    pub page: Option<u64>,
    /// Only requests with data in a page that the ledger watches when they come: wherever on disk a file system puts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
}

impl From<BlkOp> for RequestMatch {
    /// Requests of this kind.
    fn from(op: BlkOp) -> Self {
        Self { op: Some(op), ..Self::default() }
    }
}

impl Match for RequestMatch {
    type Shape<'a> = RequestShape<'a>;

    fn matches(&self, request: &RequestShape<'_>) -> bool {
        let op = self.op.is_none_or(|op| op == request.op);
        let lba = self
            .lba
            .as_ref()
            .is_none_or(|want| request.lba.iter().any(|range| range.start < want.end && want.start < range.end));
        let page = self.page.is_none_or(|gpa| {
            let base = gpa & !(PAGE_SIZE - 1);
            let last = base | (PAGE_SIZE - 1);
            request.memory.iter().any(|&(addr, len)| len != 0 && addr <= last && base <= addr.saturating_add(len - 1))
        });
        let watched = || request.memory.iter().any(|&(addr, len)| request.ledger.watches_any_of(addr, len));
        op && lba && page && (!self.watched || watched())
    }
}

/// Requests can be held. Their worker carries out what the lab orders, so nobody else is to be woken.
#[derive(Debug)]
pub struct Requests;

impl Holdable for Requests {
    type Match = RequestMatch;
    type Point = HoldPoint;
    type Waiter = ();
}

/// Holds requests of a disk.
pub type Lever = probe::Lever<RequestMatch, HoldPoint>;
/// A disk's lever as it stands.
pub type LeverState = probe::LeverState<HoldPoint>;
/// All levers of one disk.
pub(super) type Levers = probe::Holds<Requests>;
/// A lever of a disk caught a request.
pub(super) type Caught = probe::Caught<HoldPoint>;

/// What a disk does wrong when a rule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiskAction {
    /// When a lever catches the request, the device says that it holds it, and lets it go on at once.
    LieAboutHold,
    /// The request is carried out but not put on record in the ledger.
    HideFromLedger,
    /// The request is answered with this status byte (virtio 1.2 §5.2.6) and no data moves.
    Status(u8),
    /// Only the first so many sectors of a longer write reach the medium; the others keep what they had.
    TornWrite {
        /// Sectors of 512 bytes; 0: none of it.
        sectors: u32,
        /// The write is answered with an I/O error, not with success.
        fails: bool,
    },
    /// A flush is answered with success, and makes nothing durable.
    FlushLost,
    /// The request is carried out late. Others are not delayed.
    Delay {
        /// Milliseconds, at most [`MAX_DELAY_MS`].
        ms: u32,
    },
    /// The request is carried out once one that came later has completed, or after 200 ms. Legal: virtio-blk promises no order. One request
    /// at a time.
    Reorder,
    /// Only the first so many sectors of a longer read reach the guest. It is answered with success, and the used length says how many bytes
    /// there are; the status byte behind them does not count then, since what lies between was not written (virtio 1.2 §2.7.8.2).
    Short {
        /// Sectors of 512 bytes.
        sectors: u32,
    },
    /// A read or a write is carried out at sectors further on, where the disk has them.
    Misdirected {
        /// Sectors of 512 bytes.
        by: u32,
    },
}

/// A request is not delayed longer than this. Linux has no time limit for virtio-blk, but its watchdog tells of tasks that wait for 120 s.
pub const MAX_DELAY_MS: u32 = 30_000;

impl probe::Action for DiskAction {
    fn bounded(self) -> Self {
        match self {
            Self::Delay { ms } => Self::Delay { ms: ms.min(MAX_DELAY_MS) },
            other => other,
        }
    }
}

/// An injection: which request, and what goes wrong with it.
pub type DiskRule = Rule<RequestMatch, DiskAction>;

/// The injections of one disk.
pub type DiskInjections = Rules<RequestMatch, DiskAction>;

#[cfg(test)]
mod match_tests {
    use super::*;

    #[test]
    fn each_condition_can_fail_alone() {
        let ledger = Ledger::new();
        let (lba, memory) = ([8..16, 100..101], [(0x1800, 0x1000)]);
        let request = RequestShape { op: BlkOp::Write, lba: &lba, memory: &memory, ledger: &ledger };
        let hit = |op, lba, page| RequestMatch { op, lba, page, watched: false }.matches(&request);
        assert!(hit(None, None, None));
        assert!(hit(Some(BlkOp::Write), Some(15..20), Some(0x2000)));
        assert!(!hit(Some(BlkOp::Read), None, None));
        assert!(hit(None, Some(100..200), None));
        assert!(!hit(None, Some(16..100), None));
        assert!(hit(None, None, Some(0x1000)));
        assert!(hit(None, None, Some(0x27ff)));
        assert!(!hit(None, None, Some(0x3000)));
        assert!(!hit(None, None, Some(0)));
        let watched = |op| RequestMatch { op, watched: true, ..RequestMatch::default() }.matches(&request);
        ledger.watch(0);
        assert!(!watched(None), "another page");
        ledger.watch(0x2000);
        assert!(watched(None) && watched(Some(BlkOp::Write)) && !watched(Some(BlkOp::Read)));
        ledger.unwatch_all();
        assert!(!watched(None));
    }

    #[test]
    fn wrapped_memory_does_not_panic() {
        let ledger = Ledger::new();
        let memory = [(u64::MAX, u64::MAX), (4, 0)];
        let request = RequestShape { op: BlkOp::Read, lba: &[], memory: &memory, ledger: &ledger };
        ledger.watch(u64::MAX);
        ledger.watch(4);
        assert!(!RequestMatch { watched: true, ..RequestMatch::default() }.matches(&request));
        assert!(RequestMatch { page: Some(u64::MAX), ..RequestMatch::default() }.matches(&request));
        assert!(!RequestMatch { page: Some(0), ..RequestMatch::default() }.matches(&request));
    }
}
