// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When things happened at a NIC, by a monotonic clock of the host. Figures come of it and nothing else: what a verdict rests on has a place in
//! the one order ([`super::NicRecord`]), and those records have no time.
//!
//! Kept are page faults and changes of translations, of which a driver makes few; payload only where a page fault came before it.

use std::sync::OnceLock;
use std::time::Instant;

use probe::ledger::{Ledger, Seq};
use probe::{Event, Ring};
use serde::Serialize;

/// A moment at a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NicMoment {
    /// Its place in the order.
    pub seq: Seq,
    /// Queue pair.
    pub qpn: u32,
    /// Nanoseconds since some moment of this process.
    pub at_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: MomentKind,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "moment")]
pub enum MomentKind {
    /// A page fault is about to be told to the driver.
    Faulted {
        /// Token.
        token: u32,
    },
    /// The driver has resumed it: its command is being executed.
    Answered {
        /// Token.
        token: u32,
    },
    /// Payload is in place that had waited for a page fault, and with the last of it the completion.
    Placed,
    /// A UMR has changed a key: no DMA through what it replaced is in flight any more, and its completion is about to be written.
    Updated {
        /// Index of the key.
        index: u32,
        /// When the device had its WQE and began with it.
        begun_ns: u64,
    },
}

impl Event for NicMoment {
    fn ended(&self) -> Option<Seq> {
        Some(self.seq)
    }
}

#[derive(Default)]
struct Moments {
    ring: Ring<NicMoment>,
}

/// Nanoseconds of a monotonic clock since this was first asked.
pub fn clock_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Moments of NICs in a ledger: the newest 65,536 of all of them.
pub trait NicMoments {
    /// Puts a moment, which is now, on record. Nothing while the ledger is off.
    fn moment(&self, qpn: u32, kind: MomentKind);
    /// The moments at `since` or later, oldest first.
    fn moments(&self, since: Seq) -> Vec<NicMoment>;
}

impl NicMoments for Ledger {
    fn moment(&self, qpn: u32, kind: MomentKind) {
        if self.is_on() {
            let at_ns = clock_ns();
            self.book::<Moments>().ring.push(self, |_, seq| NicMoment { seq, qpn, at_ns, kind });
        }
    }

    fn moments(&self, since: Seq) -> Vec<NicMoment> {
        self.book::<Moments>().ring.select(since, |_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe::ledger::Note;

    #[test]
    fn moments_have_a_place_in_the_order_and_a_time_that_does_not_go_back() {
        let ledger = Ledger::new();
        ledger.moment(1, MomentKind::Faulted { token: 7 });
        let since = ledger.stamp(Note::new("from here"));
        ledger.moment(2, MomentKind::Answered { token: 7 });
        ledger.moment(2, MomentKind::Placed);
        let moments = ledger.moments(since);
        assert_eq!(moments.iter().map(|moment| moment.qpn).collect::<Vec<_>>(), [2, 2]);
        assert!(moments[0].seq > since && moments[0].at_ns <= moments[1].at_ns);
        ledger.set_on(false);
        ledger.moment(3, MomentKind::Placed);
        assert_eq!(ledger.moments(0).len(), 3);
    }
}
