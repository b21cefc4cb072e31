// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ledger: which device touched which guest page, when, and with what, in one order with the marks of the lab.
//!
//! One u64 sequence ([`Seq`]) orders everything: device accesses, holds, completions, lab marks. An oracle compares
//! sequence numbers, never clock times. Devices of one guest share one ledger. It costs one branch when off, and one
//! short lock per step of a request when on; no lock is held across a data copy.
//!
//! * Block requests are kept as [`RequestRecord`]s, the newest 65,536 of them; [`Ledger::complete_since`] tells an
//!   oracle whether anything that it should have seen was dropped.
//! * Watched pages (at most 64) get content hashes at each step of a request, per 512-byte sector.
//! * NICs put events on record as [`NicRecord`]s, payload only of watched pages; the newest 65,536.
//! * [`Ledger::totals`] and [`Ledger::nic_totals`] set what devices counted for themselves beside what was recorded.

mod hash;
mod nic;
mod record;
mod ring;
#[cfg(test)]
mod tests;
mod totals;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

pub use crate::ReleaseWhy;
pub use hash::{PAGE_SIZE, PageHash, SECTOR_SIZE};
pub use nic::{NicCounters, NicKind, NicRecord, NicTotals};
pub use record::{BlkOp, Hold, HoldPoint, PageTouch, RequestRecord, RequestStart};
pub use totals::{DiskCounters, DiskTotals, OpCounts};

use nic::NicRing;
use ring::{NoteRing, RequestRing};
use totals::DiskEntry;

/// A place in the one order of events. 0 means never.
pub type Seq = u64;

/// At most this many pages are watched.
pub const MAX_WATCHED: usize = 64;

/// A mark that the lab puts between device events, such as "step fsync begin".
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// What happened. Kept up to 1,024 bytes.
    pub text: String,
}

impl Note {
    /// A mark with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

/// See the module's text.
pub struct Ledger {
    seq: AtomicU64,
    on: AtomicBool,
    watched_count: AtomicUsize,
    watched: RwLock<Vec<u64>>,
    requests: Mutex<RequestRing>,
    notes: Mutex<NoteRing>,
    disks: Mutex<Vec<DiskEntry>>,
    nics: Mutex<NicRing>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("seq", &self.now()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// An empty ledger that records.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            seq: AtomicU64::new(0),
            on: AtomicBool::new(true),
            watched_count: AtomicUsize::new(0),
            watched: RwLock::default(),
            requests: Mutex::default(),
            notes: Mutex::default(),
            disks: Mutex::default(),
            nics: Mutex::default(),
        })
    }

    /// Switches recording on or off (on at first). Sequence numbers and notes go on while it is off.
    pub fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// The newest number given out.
    pub fn now(&self) -> Seq {
        self.seq.load(Ordering::SeqCst)
    }

    /// Takes the next number of the order.
    pub fn tick(&self) -> Seq {
        self.seq.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Puts a mark into the order.
    pub fn stamp(&self, note: Note) -> Seq {
        let mut notes = lock(&self.notes);
        // Inside the lock, so that the ring is sorted.
        let seq = self.tick();
        notes.push(seq, note);
        seq
    }

    /// The marks made at `since` or later, oldest first (the newest 65,536).
    pub fn notes(&self, since: Seq) -> Vec<(Seq, Note)> {
        lock(&self.notes).since(since)
    }

    // ---- pages ----

    /// Hashes the page at `page_gpa` at each step of every request that arrives from now on. False when 64 pages are
    /// watched already. Watching a page twice counts once.
    pub fn watch(&self, page_gpa: u64) -> bool {
        let base = page_gpa & !(PAGE_SIZE - 1);
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        if !watched.contains(&base) {
            if watched.len() >= MAX_WATCHED {
                return false;
            }
            watched.push(base);
        }
        self.watched_count.store(watched.len(), Ordering::Release);
        true
    }

    /// Watches nothing any more.
    pub fn unwatch_all(&self) {
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        watched.clear();
        self.watched_count.store(0, Ordering::Release);
    }

    /// Whether a device must hash at all: the one branch of the common case.
    pub fn watches_any(&self) -> bool {
        self.watched_count.load(Ordering::Acquire) != 0 && self.on.load(Ordering::Relaxed)
    }

    /// Whether the page with this base is watched.
    pub fn watches(&self, page_gpa: u64) -> bool {
        self.watches_any() && self.watched.read().unwrap_or_else(PoisonError::into_inner).contains(&page_gpa)
    }

    // ---- block requests ----

    /// Starts the record of a request that arrived now; its id, or `None` while the ledger is off.
    pub fn begin(&self, start: RequestStart) -> Option<u64> {
        if !self.on.load(Ordering::Relaxed) {
            return None;
        }
        totals::recorded(&mut lock(&self.disks), start.disk, start.op);
        let mut requests = lock(&self.requests);
        let arrived = self.tick();
        Some(requests.push(start, arrived))
    }

    /// Changes the record of request `id`, unless it has been dropped. `change` must be short: it runs under a lock.
    pub fn amend(&self, id: u64, change: impl FnOnce(&mut RequestRecord)) {
        if let Some(record) = lock(&self.requests).get_mut(id) {
            change(record);
        }
    }

    /// The record of request `id`, unless it has been dropped.
    pub fn request(&self, id: u64) -> Option<RequestRecord> {
        lock(&self.requests).get_mut(id).cloned()
    }

    /// Requests that were alive at `since` or arrived later (0: all that are kept), in order of arrival.
    pub fn requests(&self, since: Seq) -> Vec<RequestRecord> {
        lock(&self.requests).select(since, |_| true)
    }

    /// Of [`Ledger::requests`] those that touch the page with base `page_gpa`.
    pub fn touching(&self, page_gpa: u64, since: Seq) -> Vec<RequestRecord> {
        let base = page_gpa & !(PAGE_SIZE - 1);
        lock(&self.requests).select(since, |r| r.pages.iter().any(|touch| touch.gpa == base))
    }

    /// Records dropped because the ring was full.
    pub fn dropped(&self) -> u64 {
        lock(&self.requests).dropped()
    }

    /// Whether every request alive at `since` or later is still on record and with all its pages. An oracle that finds
    /// nothing may say "nothing" only when this holds.
    pub fn complete_since(&self, since: Seq) -> bool {
        lock(&self.requests).complete_since(since)
    }

    // ---- totals ----

    /// A device registers the counters that it keeps by itself. Counts from here on are compared with the records.
    pub fn register_disk(&self, disk: u8, counters: &Arc<DiskCounters>) {
        totals::register(&mut lock(&self.disks), disk, counters);
    }

    /// Per disk, in order of registration: requests counted by the device, and requests on record.
    pub fn totals(&self) -> Vec<DiskTotals> {
        lock(&self.disks).iter().map(DiskEntry::totals).collect()
    }
}

/// A panic elsewhere must not take the evidence with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
