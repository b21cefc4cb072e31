// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger knows of RDMA NICs: payload that touched watched pages, page faults, dying translations, holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::mkey::Rights;
use dma::{Observer, Span};
use parking_lot::Mutex;
use probe::ledger::{Ledger, Seq};
use probe::{Event, ReleaseWhy, Ring};

/// One event of a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NicRecord {
    /// Its place in the order.
    pub seq: Seq,
    /// Index of the NIC.
    pub nic: u8,
    /// Queue pair; 0 for commands.
    pub qpn: u32,
    /// What happened.
    #[serde(flatten)]
    pub kind: NicKind,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum NicKind {
    /// Payload was placed in a watched page; `seq` was taken after the copy. One record a page.
    Wrote {
        /// Guest physical address of the first byte.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// Key that was used.
        key: u32,
        /// Taken before the copy, inside its section.
        begun: Seq,
    },
    /// Payload was taken from a watched page; as `Wrote`.
    Read {
        /// Guest physical address of the first byte.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// Key that was used.
        key: u32,
        /// Taken before the copy, inside its section.
        begun: Seq,
    },
    /// A page fault was raised. The driver sees it later than this.
    Fault {
        /// Key as the requester named it.
        key: u32,
        /// First byte without translation.
        va: u64,
        /// It is to be written.
        write: bool,
        /// Token of the event.
        token: u32,
    },
    /// The driver has resumed a page fault.
    Resumed {
        /// Token.
        token: u32,
        /// The driver could not map it.
        error: bool,
    },
    /// Translations or rights of a key were replaced; `seq` says from when on no DMA through the old ones is in flight.
    Updated {
        /// Index of the key.
        index: u32,
        /// First table entry.
        first_entry: u64,
        /// Entries; 0: only rights.
        entries: u64,
        /// When the device began with it.
        begun: Seq,
    },
    /// A key became free or was destroyed; `seq` as in `Updated`.
    Revoked {
        /// Index of the key.
        index: u32,
        /// When the device began with it.
        begun: Seq,
    },
    /// A key was made, or a UMR or an invalidation has changed its context: what it is from now on. In a change's own order right before
    /// its `Updated` or `Revoked`; none for DESTROY_MKEY, which is a `Revoked` alone. `seq` as in `Updated`: what the key allowed before may be
    /// used until then, what it allows now from `begun` on. It is what the device claims; whether accesses keep to it is seen in `Wrote` and `Read`.
    Keyed {
        /// Index of the key.
        index: u32,
        /// Low byte of the key.
        variant: u8,
        /// What it gives: bits of [`Rights`] (1 local read, 2 local write, 4 remote read, 8 remote write, 16 atomics).
        rights: Rights,
        /// It is free: it gives nothing whatever its rights say.
        free: bool,
        /// When the device began with it.
        begun: Seq,
    },
    /// A lever holds a WQE, of which nothing was translated.
    Gated {
        /// Opcode.
        opcode: u8,
        /// Token of the hold.
        token: u64,
    },
    /// The hold is over: from here on the WQE is translated and executed, unless it was cancelled.
    Ungated {
        /// Token of the hold.
        token: u64,
        /// Why.
        why: ReleaseWhy,
    },
    /// A work request completed (told only while a page is watched); `seq` was taken before the CQE.
    Completed {
        /// Index of the WQE.
        wqe_index: u16,
        /// Opcode of the WQE.
        opcode: u8,
        /// Syndrome; 0 is success.
        status: u8,
    },
}

/// Payload writes of a NIC into watched pages, as the door counts them, apart from what the NIC tells the ledger.
#[derive(Debug)]
pub struct NicCounters {
    ledger: Arc<Ledger>,
    writes: AtomicU64,
}

impl NicCounters {
    /// Counts pages that `ledger` watches.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, writes: AtomicU64::new(0) }
    }
}

impl Observer for NicCounters {
    /// One branch while no page is watched.
    #[inline]
    fn wrote(&self, span: Span) {
        if self.ledger.watches_any() {
            let parts = self.ledger.watched_parts(span.addr, span.len).count();
            self.writes.fetch_add(parts as u64, Ordering::Relaxed);
        }
    }
}

/// Both counts of one NIC since it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NicTotals {
    /// Index of the NIC.
    pub nic: u8,
    /// Writes into watched pages, counted by the door.
    pub device: u64,
    /// Put on record.
    pub recorded: u64,
}

impl NicTotals {
    /// Whether the ledger saw all that the device did. Look while the NIC is quiet.
    pub fn agree(&self) -> bool {
        self.device == self.recorded
    }
}

struct NicEntry {
    nic: u8,
    counters: Arc<NicCounters>,
    base: u64,
    recorded: u64,
}

impl Event for NicRecord {
    fn ended(&self) -> Option<Seq> {
        Some(self.seq)
    }
}

#[derive(Default)]
struct Book {
    events: Ring<NicRecord>,
    nics: Mutex<Vec<NicEntry>>,
}

/// Events of NICs in a ledger: the newest 65,536 of all of them.
pub trait NicLedger {
    /// Puts an event on record under the next number, which it returns; only the number while the ledger is off.
    fn nic_push(&self, nic: u8, qpn: u32, kind: NicKind) -> Seq;
    /// Payload was placed at `gpa` with `key`: a record for each watched page. `begun` was taken before the copy.
    /// Returns the number of the moment, which lies after the copy.
    fn nic_wrote(&self, nic: u8, qpn: u32, span: (u64, u64), key: u32, begun: Seq) -> Seq;
    /// Payload was taken from `gpa`; as [`NicLedger::nic_wrote`].
    fn nic_read(&self, nic: u8, qpn: u32, span: (u64, u64), key: u32, begun: Seq) -> Seq;
    /// The events at `since` or later, oldest first.
    fn nic(&self, since: Seq) -> Vec<NicRecord>;
    /// The oldest events at `since` or later, at most `limit`.
    fn nic_page(&self, since: Seq, limit: usize) -> Vec<NicRecord>;
    /// Events on record.
    fn nic_events_held(&self) -> usize;
    /// Whether every event at `since` or later is still on record.
    fn nic_complete_since(&self, since: Seq) -> bool;
    /// A NIC registers the counters that it keeps by itself. Counts from here on are compared with the records.
    fn register_nic(&self, nic: u8, counters: &Arc<NicCounters>);
    /// Per NIC, in order of registration: writes into watched pages that the device counted, and those on record.
    fn nic_totals(&self) -> Vec<NicTotals>;
}

impl NicLedger for Ledger {
    fn nic_push(&self, nic: u8, qpn: u32, kind: NicKind) -> Seq {
        if !self.is_on() {
            return self.tick();
        }
        let book = self.book::<Book>();
        if matches!(kind, NicKind::Wrote { .. })
            && let Some(entry) = book.nics.lock().iter_mut().find(|entry| entry.nic == nic)
        {
            entry.recorded += 1;
        }
        book.events.push(self, |_, seq| NicRecord { seq, nic, qpn, kind }).1
    }

    fn nic_wrote(&self, nic: u8, qpn: u32, span: (u64, u64), key: u32, begun: Seq) -> Seq {
        let seq = self.tick();
        for (gpa, len) in self.watched_parts(span.0, span.1) {
            self.nic_push(nic, qpn, NicKind::Wrote { gpa, len, key, begun });
        }
        seq
    }

    fn nic_read(&self, nic: u8, qpn: u32, span: (u64, u64), key: u32, begun: Seq) -> Seq {
        let seq = self.tick();
        for (gpa, len) in self.watched_parts(span.0, span.1) {
            self.nic_push(nic, qpn, NicKind::Read { gpa, len, key, begun });
        }
        seq
    }

    fn nic(&self, since: Seq) -> Vec<NicRecord> {
        self.book::<Book>().events.select(since, |_| true)
    }

    fn nic_page(&self, since: Seq, limit: usize) -> Vec<NicRecord> {
        self.book::<Book>().events.page(limit, |record| record.seq >= since)
    }

    fn nic_events_held(&self) -> usize {
        self.book::<Book>().events.held().0
    }

    fn nic_complete_since(&self, since: Seq) -> bool {
        self.book::<Book>().events.complete_since(since)
    }

    fn register_nic(&self, nic: u8, counters: &Arc<NicCounters>) {
        let book = self.book::<Book>();
        let mut nics = book.nics.lock();
        if nics.iter().any(|entry| entry.nic == nic && Arc::ptr_eq(&entry.counters, counters)) {
            return;
        }
        nics.retain(|entry| entry.nic != nic);
        let base = counters.writes.load(Ordering::Relaxed);
        nics.push(NicEntry { nic, counters: counters.clone(), base, recorded: 0 });
    }

    fn nic_totals(&self) -> Vec<NicTotals> {
        let totals = |entry: &NicEntry| NicTotals {
            nic: entry.nic,
            device: entry.counters.writes.load(Ordering::Relaxed).saturating_sub(entry.base),
            recorded: entry.recorded,
        };
        self.book::<Book>().nics.lock().iter().map(totals).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use probe::KEPT;
    use probe::ledger::Note;

    #[test]
    fn records_of_watched_pages_only_in_one_order_with_the_marks() {
        let ledger = Ledger::new();
        let counters = Arc::new(NicCounters::new(ledger.clone()));
        ledger.register_nic(3, &counters);
        ledger.watch(0x2000);
        let write = |gpa, len| {
            let begun = ledger.tick();
            counters.wrote(Span { addr: gpa, len });
            ledger.nic_wrote(3, 0x40, (gpa, len), 7, begun)
        };
        let before = ledger.stamp(Note::new("before"));
        let seq = write(0x1ff0, 0x2000);
        write(0x5000, 0x1000);
        let after = ledger.stamp(Note::new("after"));
        let records = ledger.nic(before);
        let kind = NicKind::Wrote { gpa: 0x2000, len: 0x1000, key: 7, begun: before + 1 };
        assert_eq!(records.iter().map(|r| (r.nic, r.qpn, r.kind)).collect::<Vec<_>>(), [(3, 0x40, kind)]);
        assert!(before < seq && seq < records[0].seq && records[0].seq < after);
        assert!(ledger.nic(after).is_empty());
        assert_eq!(ledger.nic_totals(), [NicTotals { nic: 3, device: 1, recorded: 1 }]);
    }

    #[test]
    fn a_write_that_is_not_recorded_shows_in_the_totals() {
        let ledger = Ledger::new();
        let counters = Arc::new(NicCounters::new(ledger.clone()));
        ledger.watch(0);
        counters.wrote(Span { addr: 0, len: 1 });
        ledger.register_nic(0, &counters);
        assert!(ledger.nic_totals()[0].agree(), "counts from before do not matter");
        counters.wrote(Span { addr: 0xfff, len: 2 });
        assert!(!ledger.nic_totals()[0].agree());
        // Another device's records are not its own.
        ledger.nic_wrote(1, 0, (0, 8), 0, 0);
        assert_eq!(ledger.nic_totals()[0], NicTotals { nic: 0, device: 1, recorded: 0 });
    }

    #[test]
    fn the_ring_is_bounded_and_says_what_it_dropped() {
        let ledger = Ledger::new();
        let push = || ledger.nic_push(0, 0, NicKind::Resumed { token: 1, error: false });
        let first = push();
        (1..KEPT).for_each(|_| assert!(push() > first));
        assert!(ledger.nic_complete_since(0) && ledger.nic(0).len() == KEPT);
        push();
        assert!(!ledger.nic_complete_since(first) && ledger.nic_complete_since(first + 1));
        assert_eq!((ledger.nic(0).len(), ledger.nic(0)[0].seq), (KEPT, first + 1));
    }

    #[test]
    fn what_a_key_gives_is_a_number_in_json() {
        let rights = Rights(Rights::LOCAL_WRITE.0 | Rights::REMOTE_READ.0);
        let kind = NicKind::Keyed { index: 0x12, variant: 0x5a, rights, free: true, begun: 3 };
        let told = serde_json::to_value(NicRecord { seq: 4, nic: 0, qpn: 0, kind }).unwrap();
        let wanted = serde_json::json!({
            "seq": 4, "nic": 0, "qpn": 0, "event": "keyed", "index": 0x12, "variant": 0x5a, "rights": 6, "free": true, "begun": 3
        });
        assert_eq!(told, wanted);
    }

    #[test]
    fn off_gives_numbers_and_keeps_nothing() {
        let ledger = Ledger::new();
        ledger.watch(0);
        ledger.set_on(false);
        assert!(ledger.nic_wrote(0, 0, (0, 8), 0, 0) > 0);
        assert!(ledger.nic_push(0, 0, NicKind::Revoked { index: 1, begun: 0 }) > 0);
        assert!(ledger.nic(0).is_empty());
    }
}
