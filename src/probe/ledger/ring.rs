// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bounded rings of request records and notes.

use std::collections::VecDeque;

use super::record::{RequestRecord, RequestStart};
use super::{Note, Seq};

/// Records and notes kept.
pub(super) const KEPT: usize = 65_536;
/// Page touches kept over all records (about 270 bytes each).
const KEPT_TOUCHES: usize = 1 << 19;
const NOTE_BYTES: usize = 1024;

/// Requests in order of arrival; ids are consecutive.
#[derive(Default)]
pub(super) struct RequestRing {
    records: VecDeque<RequestRecord>,
    touches: usize,
    pushed: u64,
    dropped: u64,
    /// The newest moment at which a record that is no longer kept, or lacks its pages, was alive.
    incomplete_until: Seq,
}

impl RequestRing {
    pub(super) fn push(&mut self, start: RequestStart, arrived: Seq) -> u64 {
        self.pushed += 1;
        self.touches += start.pages.len();
        if !start.pages_known {
            self.incomplete_until = arrived;
        }
        self.records.push_back(RequestRecord::new(self.pushed, start, arrived));
        while self.records.len() > KEPT || (self.touches > KEPT_TOUCHES && self.records.len() > 1) {
            let Some(old) = self.records.pop_front() else { break };
            self.touches -= old.pages.len();
            self.dropped += 1;
            self.incomplete_until = self.incomplete_until.max(old.ended().unwrap_or(arrived));
        }
        self.pushed
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut RequestRecord> {
        let first = self.records.front()?.id;
        let index = usize::try_from(id.checked_sub(first)?).ok()?;
        self.records.get_mut(index)
    }

    pub(super) fn select(&self, since: Seq, want: impl Fn(&RequestRecord) -> bool) -> Vec<RequestRecord> {
        let alive = |r: &&RequestRecord| r.ended().is_none_or(|end| end >= since);
        self.records.iter().filter(alive).filter(|r| want(r)).cloned().collect()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    pub(super) fn complete_since(&self, since: Seq) -> bool {
        (self.dropped == 0 && self.incomplete_until == 0) || self.incomplete_until < since
    }
}

/// Notes in order of their numbers.
#[derive(Default)]
pub(super) struct NoteRing {
    notes: VecDeque<(Seq, Note)>,
}

impl NoteRing {
    pub(super) fn push(&mut self, seq: Seq, mut note: Note) {
        if note.text.len() > NOTE_BYTES {
            let cut = (0..=NOTE_BYTES).rev().find(|&at| note.text.is_char_boundary(at)).unwrap_or(0);
            note.text.truncate(cut);
        }
        if self.notes.len() == KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back((seq, note));
    }

    pub(super) fn since(&self, since: Seq) -> Vec<(Seq, Note)> {
        let start = self.notes.partition_point(|(seq, _)| *seq < since);
        self.notes.range(start..).cloned().collect()
    }
}
