// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disks' book in the ledger: block requests, and what disks counted for themselves beside what was recorded.

use std::sync::Arc;

use parking_lot::Mutex;

use super::record::{RequestRecord, RequestStart};
use super::totals::{self, DiskCounters, DiskEntry, DiskTotals};
use probe::Ring;
use probe::ledger::{Ledger, PAGE_SIZE, Seq};

#[derive(Default)]
struct Book {
    requests: Ring<RequestRecord>,
    disks: Mutex<Vec<DiskEntry>>,
}

/// Block requests in a ledger: the newest 65,536 of all disks, in order of arrival.
pub trait DiskLedger {
    /// Starts the record of a request that arrived now; its id, or `None` while the ledger is off.
    fn begin(&self, start: RequestStart) -> Option<u64>;
    /// Changes the record of request `id`, unless it has been dropped. `change` must be short: it runs under a lock.
    fn amend(&self, id: u64, change: impl FnOnce(&mut RequestRecord));
    /// The record of request `id`, unless it has been dropped.
    fn request(&self, id: u64) -> Option<RequestRecord>;
    /// Requests that were alive at `since` or arrived later (0: all that are kept), in order of arrival.
    fn requests(&self, since: Seq) -> Vec<RequestRecord>;
    /// The oldest requests that arrived at `since` or later, at most `limit`, as they stand.
    fn requests_page(&self, since: Seq, limit: usize) -> Vec<RequestRecord>;
    /// Of [`DiskLedger::requests`] those that touch the page with base `page_gpa`.
    fn touching(&self, page_gpa: u64, since: Seq) -> Vec<RequestRecord>;
    /// Records dropped because the ring was full.
    fn dropped(&self) -> u64;
    /// Requests on record, and pages of theirs.
    fn requests_held(&self) -> (usize, usize);
    /// Whether every request alive at `since` or later is still on record and with all its pages. An oracle that finds
    /// nothing may say "nothing" only when this holds.
    fn complete_since(&self, since: Seq) -> bool;
    /// A device registers the counters that it keeps by itself. Counts from here on are compared with the records.
    fn register_disk(&self, disk: u8, counters: &Arc<DiskCounters>);
    /// Per disk, in order of registration: requests counted by the device, and requests on record.
    fn totals(&self) -> Vec<DiskTotals>;
}

impl DiskLedger for Ledger {
    fn begin(&self, start: RequestStart) -> Option<u64> {
        if !self.is_on() {
            return None;
        }
        let book = self.book::<Book>();
        totals::recorded(&mut book.disks.lock(), start.disk, start.op);
        Some(book.requests.push(self, |id, arrived| RequestRecord::new(id, start, arrived)).0)
    }

    fn amend(&self, id: u64, change: impl FnOnce(&mut RequestRecord)) {
        self.book::<Book>().requests.with(id, change);
    }

    fn request(&self, id: u64) -> Option<RequestRecord> {
        self.book::<Book>().requests.with(id, |record| record.clone())
    }

    fn requests(&self, since: Seq) -> Vec<RequestRecord> {
        self.book::<Book>().requests.select(since, |_| true)
    }

    fn requests_page(&self, since: Seq, limit: usize) -> Vec<RequestRecord> {
        self.book::<Book>().requests.page(limit, |record| record.arrived >= since)
    }

    fn touching(&self, page_gpa: u64, since: Seq) -> Vec<RequestRecord> {
        let base = page_gpa & !(PAGE_SIZE - 1);
        self.book::<Book>().requests.select(since, |r| r.pages.iter().any(|touch| touch.gpa == base))
    }

    fn dropped(&self) -> u64 {
        self.book::<Book>().requests.dropped()
    }

    fn requests_held(&self) -> (usize, usize) {
        self.book::<Book>().requests.held()
    }

    fn complete_since(&self, since: Seq) -> bool {
        self.book::<Book>().requests.complete_since(since)
    }

    fn register_disk(&self, disk: u8, counters: &Arc<DiskCounters>) {
        totals::register(&mut self.book::<Book>().disks.lock(), disk, counters);
    }

    fn totals(&self) -> Vec<DiskTotals> {
        self.book::<Book>().disks.lock().iter().map(DiskEntry::totals).collect()
    }
}
