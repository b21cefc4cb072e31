// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger is told of a request's data: when it moved, through which pages, and the hashes of watched ones.

use std::os::unix::fs::FileExt;

use super::flight::Flight;
use super::request::Request;
use super::worker::Worker;
use crate::hooks::{BlkOp, PageTouch, RequestStart};
use probe::ledger::{Ledger, PageHash, SECTOR_SIZE, Seq};

/// Which of a page's three hashes.
#[derive(Clone, Copy)]
pub(super) enum Moment {
    Arrival,
    Data,
    Completion,
}

impl Worker {
    /// The data moved between `begin` and `end`; when that failed (not `stored`), some of it may have.
    pub(super) fn stamp_data(&self, flight: &Flight, ledger: &Ledger, begin: Seq, end: Seq, stored: bool) {
        let op = flight.request.op;
        let moves = !flight.request.data.is_empty();
        flight.amend(ledger, |r| {
            r.medium.clone_from(&flight.injected.medium);
            if moves {
                r.data_begin = Some(begin);
                r.data = Some(end);
            }
            if stored && (op.changes_disk() || op == BlkOp::Flush) {
                r.stored = Some(end);
            }
        });
        match op {
            BlkOp::Write => self.hash_disk(flight),
            _ => self.hash_guest(flight, Moment::Data),
        }
    }

    /// What is left to note before the guest is told.
    pub(super) fn before_completion(&self, flight: &Flight) {
        self.hash_guest(flight, Moment::Completion);
    }

    /// Hashes the watched pages of a request as they are in guest memory.
    pub(super) fn hash_guest(&self, flight: &Flight, moment: Moment) {
        self.hash(flight, moment, |touch, _, bytes| self.dma.read(touch.gpa + u64::from(touch.offset), bytes).is_ok());
    }

    /// Hashes what a write left on disk. Read back, because the guest page may have changed since it was copied.
    fn hash_disk(&self, flight: &Flight) {
        let first = flight.injected.medium.as_ref().map_or(flight.request.lba, |medium| medium.start);
        let start = first.saturating_mul(SECTOR_SIZE);
        self.hash(flight, Moment::Data, |_, at, bytes| {
            self.shared.disk().file.read_exact_at(bytes, start.saturating_add(at)).is_ok()
        });
    }

    fn hash(&self, flight: &Flight, moment: Moment, read: impl Fn(&PageTouch, u64, &mut [u8]) -> bool) {
        let ledger = &self.shared.ledger;
        if !ledger.watches_any() || flight.record.is_none() {
            return;
        }
        let mut buffer = [0; 4096];
        for (index, (touch, at)) in flight.request.touches().into_iter().enumerate() {
            let bytes = &mut buffer[..usize::from(touch.len).min(4096)];
            if !ledger.watches(touch.gpa) || !read(&touch, at, bytes) {
                continue;
            }
            let hash = Some(PageHash::of(touch.offset, bytes));
            flight.amend(ledger, |r| {
                let Some(touch) = r.pages.get_mut(index) else { return };
                match moment {
                    Moment::Arrival => touch.at_arrival = hash,
                    Moment::Data => touch.at_data = hash,
                    Moment::Completion => touch.at_completion = hash,
                }
            });
        }
    }
}

/// The record of a request that arrives.
pub(super) fn start_of(disk: u8, request: &Request) -> RequestStart {
    RequestStart {
        disk,
        op: request.op,
        ranges: request.ranges.clone(),
        lba: request.lba,
        len: request.len,
        pages: request.touches().into_iter().map(|(touch, _)| touch).collect(),
        pages_known: request.pages_known(),
    }
}
