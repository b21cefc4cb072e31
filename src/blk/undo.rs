// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log of changes that a power cut may take back: old bytes, read before they are overwritten.
//!
//! Entries stand in the order in which the disk file changed. After a power cut each byte has the value of the last
//! change that is *kept*, so the image is the file with the others undone, newest first, but never under a newer kept
//! change. A flush covers the changes that were completed when the flush *arrived*, and counts once it has completed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::draw::{Draw, Keep};
use super::file_io::{self, Zero};
use probe::ledger::SECTOR_SIZE;

/// Old bytes kept. Beyond, the log syncs the disk and forgets, and images are no longer exact.
const CAP_BYTES: u64 = 256 << 20;
/// Entries kept.
const CAP_ENTRIES: usize = 1 << 20;

/// Which changes survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerCut {
    /// The disk's cache had just been written out: every completed write survives. To prove LOST.
    Kind,
    /// The disk's cache is gone: only what a completed flush covers survives. To prove SAFE.
    Cruel,
    /// The disk had written out a part of its cache, in an order of its own: of what no completed flush covers a part survives, that of requests
    /// under way included. To prove that a promise rests on no order. The same seed and number keep the same of the same changes.
    Drawn {
        /// What is drawn by.
        seed: u64,
        /// Number of the image among those of this seed.
        nth: u32,
        /// Any sector of 512 bytes survives or not by itself; otherwise a request's change does as a whole.
        tear: bool,
    },
}

impl fmt::Display for PowerCut {
    /// "kind", "cruel", "drawn 3".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind => f.write_str("kind"),
            Self::Cruel => f.write_str("cruel"),
            Self::Drawn { nth, .. } => write!(f, "drawn {nth}"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the file, not completed.
    Stored,
    /// Completed at this time of the log's clock.
    Completed(u64),
    /// Cancelled by a reset at this time: never completed, but in the cache that a later flush writes out.
    Abandoned(u64),
    /// Covered by a completed flush, or written through.
    Durable,
}

struct Entry {
    token: u64,
    range: Range<u64>,
    /// What was there: pieces of data, zeroes in between. Empty once durable.
    before: Vec<(u64, Vec<u8>)>,
    state: State,
}

impl Entry {
    /// Puts back into `gap` of `image` what was there before.
    fn restore(&self, image: &File, gap: Range<u64>) -> io::Result<()> {
        file_io::zero(image, gap.clone(), Zero::Punch)?;
        for (start, old) in &self.before {
            let from = gap.start.max(*start);
            let to = gap.end.min(start + old.len() as u64);
            if from < to {
                image.write_all_at(&old[(from - start) as usize..(to - start) as usize], from)?;
            }
        }
        Ok(())
    }

    fn forget(&mut self) -> u64 {
        self.state = State::Durable;
        std::mem::take(&mut self.before).iter().map(|(_, old)| old.len() as u64).sum()
    }
}

/// See the module's text. Offsets are bytes.
pub(super) struct UndoLog {
    entries: VecDeque<Entry>,
    /// Entries dropped from the front so far: the number of the first one.
    first: u64,
    /// Numbers of the entries that are [`State::Stored`], by token.
    stored: HashMap<u64, Vec<u64>>,
    bytes: u64,
    cap: u64,
    clock: u64,
    /// Set when old bytes had to be forgotten: the clock of that moment.
    inexact_since: Option<u64>,
}

impl Default for UndoLog {
    fn default() -> Self {
        Self::with_cap(CAP_BYTES)
    }
}

impl UndoLog {
    pub(super) fn with_cap(cap: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            stored: HashMap::new(),
            bytes: 0,
            cap,
            clock: 0,
            inexact_since: None,
        }
    }

    /// Notes that request `token` is about to change `range` of `file`.
    pub(super) fn before(&mut self, file: &File, token: u64, range: Range<u64>) -> io::Result<()> {
        let mut before = Vec::new();
        let mut from = range.start;
        let room = self.cap;
        let mut taken = 0;
        while let Some(data) = file_io::next_data(file, from..range.end)? {
            taken += data.end - data.start;
            if taken > room {
                return self.overflow(file, token, range);
            }
            let mut old = vec![0; usize::try_from(data.end - data.start).map_err(io::Error::other)?];
            file.read_exact_at(&mut old, data.start)?;
            from = data.end;
            before.push((data.start, old));
        }
        if self.bytes + taken > self.cap || self.entries.len() >= CAP_ENTRIES {
            self.make_room(file)?;
        }
        if self.bytes + taken > self.cap || self.entries.len() >= CAP_ENTRIES {
            return self.overflow(file, token, range);
        }
        self.bytes += taken;
        self.stored.entry(token).or_default().push(self.first + self.entries.len() as u64);
        self.entries.push_back(Entry { token, range, before, state: State::Stored });
        Ok(())
    }

    /// Makes all completed changes durable for real, as a disk does whose cache is full.
    fn make_room(&mut self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        self.inexact_since = Some(self.tick());
        log::warn!(
            "more than {} MiB of unflushed writes: power-cut images are not exact until a flush",
            self.cap >> 20
        );
        for entry in self.entries.iter_mut().filter(|e| e.state != State::Stored) {
            self.bytes -= entry.forget();
        }
        self.prune();
        Ok(())
    }

    /// The change cannot be undone: it counts as durable from the start.
    fn overflow(&mut self, file: &File, token: u64, range: Range<u64>) -> io::Result<()> {
        self.make_room(file)?;
        if self.entries.len() >= CAP_ENTRIES {
            self.first += self.entries.len() as u64;
            self.entries.clear();
            self.stored.clear();
            self.bytes = 0;
        }
        self.entries.push_back(Entry { token, range, before: Vec::new(), state: State::Durable });
        self.prune();
        Ok(())
    }

    /// Request `token` completes; with `through` its data is on stable storage already.
    pub(super) fn completed(&mut self, token: u64, through: bool) {
        let now = self.tick();
        for number in self.stored.remove(&token).unwrap_or_default() {
            let Some(entry) = self.entries.get_mut((number - self.first) as usize) else { continue };
            entry.state = State::Completed(now);
            if through {
                self.bytes -= entry.forget();
            }
        }
        self.prune();
    }

    /// Requests under way were cancelled by a reset.
    pub(super) fn abandon_stored(&mut self) {
        let now = self.tick();
        self.stored.clear();
        for entry in self.entries.iter_mut().filter(|e| e.state == State::Stored) {
            entry.state = State::Abandoned(now);
        }
    }

    /// A flush arrives: the time to give to [`UndoLog::flushed`] when it completes.
    pub(super) fn flush_arrives(&mut self) -> u64 {
        self.tick()
    }

    /// A flush that arrived at `arrival` completes.
    pub(super) fn flushed(&mut self, arrival: u64) {
        for entry in &mut self.entries {
            if matches!(entry.state, State::Completed(at) | State::Abandoned(at) if at < arrival) {
                self.bytes -= entry.forget();
            }
        }
        if self.inexact_since.is_some_and(|at| at < arrival) {
            self.inexact_since = None;
        }
        self.prune();
    }

    /// Whether images are exactly what a disk without any spontaneous write-back would leave.
    pub(super) fn exact(&self) -> bool {
        self.inexact_since.is_none()
    }

    /// Turns `image`, a copy of the file, into the disk after the power cut. Returns how many requests were undone, in part or wholly.
    pub(super) fn undo_on(&self, image: &File, cut: PowerCut) -> io::Result<usize> {
        let mut kept = Ranges::default();
        let mut undone = HashSet::new();
        for (entry, keep) in self.entries.iter().zip(self.keeps(cut)).rev() {
            let parts = match keep {
                Keep::All => {
                    kept.insert(entry.range.clone());
                    continue;
                }
                Keep::Nothing => Vec::new(),
                Keep::Parts(parts) if parts == std::slice::from_ref(&entry.range) => {
                    kept.insert(entry.range.clone());
                    continue;
                }
                Keep::Parts(parts) => parts,
            };
            undone.insert(entry.token);
            // Of this change, too, what is kept covers older ones.
            parts.into_iter().for_each(|part| kept.insert(part));
            for gap in kept.gaps(entry.range.clone()) {
                entry.restore(image, gap)?;
            }
        }
        Ok(undone.len())
    }

    /// What a power cut keeps of each entry.
    fn keeps(&self, cut: PowerCut) -> Vec<Keep> {
        let open = |entry: &&Entry| entry.state != State::Durable;
        let sectors = self.entries.iter().filter(open).map(|entry| (entry.range.end - entry.range.start) / SECTOR_SIZE);
        let draw = match cut {
            PowerCut::Drawn { seed, nth, tear } => {
                Some(Draw::new(seed, nth, tear, self.unflushed() as u64, sectors.sum()))
            }
            PowerCut::Kind | PowerCut::Cruel => None,
        };
        let (mut number, mut last) = (0, None);
        let mut keep = |entry: &Entry| match (entry.state, draw) {
            (State::Durable, _) => Keep::All,
            (state, None) => (cut == PowerCut::Kind && matches!(state, State::Completed(_))).into(),
            (_, Some(draw)) => {
                // The ranges of one request follow each other.
                number += u64::from(last.replace(entry.token).is_some_and(|last| last != entry.token));
                draw.keep(number, &entry.range)
            }
        };
        self.entries.iter().map(&mut keep).collect()
    }

    /// Requests whose changes no completed flush covers: without any, all power cuts leave the same.
    pub(super) fn unflushed(&self) -> usize {
        let open = self.entries.iter().filter(|entry| entry.state != State::Durable);
        open.map(|entry| entry.token).collect::<HashSet<_>>().len()
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A durable entry matters only as a cover over older ones.
    fn prune(&mut self) {
        while self.entries.front().is_some_and(|e| e.state == State::Durable) {
            self.entries.pop_front();
            self.first += 1;
        }
    }
}

/// A set of byte ranges, kept disjoint.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn insert(&mut self, mut new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        // Swallow all that overlap or adjoin.
        while let Some((&start, &end)) = self.0.range(..=new.end).next_back().filter(|(_, end)| **end >= new.start) {
            self.0.remove(&start);
            new = new.start.min(start)..new.end.max(end);
        }
        self.0.insert(new.start, new.end);
    }

    /// The parts of `range` that are not in the set.
    fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back().map(|(_, &end)| end);
        if let Some(end) = before {
            at = at.max(end);
        }
        for (&start, &end) in self.0.range(range.start..range.end) {
            if at < start {
                gaps.push(at..start);
            }
            at = at.max(end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_agree_with_a_bitmap(inserts in prop::collection::vec((0..64_u64, 0..20_u64), 0..12), ask in (0..64_u64, 0..30_u64)) {
            let mut ranges = Ranges::default();
            let mut map = [false; 128];
            for (start, len) in inserts {
                ranges.insert(start..start + len);
                map[start as usize..(start + len) as usize].fill(true);
            }
            let ask = ask.0..ask.0 + ask.1;
            let mut gaps = [false; 128];
            for gap in ranges.gaps(ask.clone()) {
                prop_assert!(!gap.is_empty());
                gaps[gap.start as usize..gap.end as usize].fill(true);
            }
            for at in 0..128 {
                prop_assert_eq!(gaps[at], ask.contains(&(at as u64)) && !map[at]);
            }
        }
    }

    #[test]
    fn over_the_cap_it_forgets_says_so_and_a_flush_makes_it_exact_again() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 0x4000], 0).unwrap();
        let mut log = UndoLog::with_cap(0x2000);
        let change = |log: &mut UndoLog, token: u64, at: u64, len: usize| {
            log.before(&file, token, at..at + len as u64).unwrap();
            file.write_all_at(&vec![token as u8; len], at).unwrap();
        };
        change(&mut log, 2, 0, 0x1000);
        log.completed(2, false);
        change(&mut log, 3, 0x1000, 0x1000);
        assert!(log.exact());
        change(&mut log, 4, 0x2000, 0x1000);
        assert!(!log.exact());
        log.completed(4, false);
        // 3 was never completed and can still be undone; 2 has become durable.
        let image = tempfile::tempfile().unwrap();
        image.write_all_at(&[9; 0x4000], 0).unwrap();
        assert_eq!(log.undo_on(&image, PowerCut::Kind).unwrap(), 1);
        let mut byte = [0; 1];
        image.read_exact_at(&mut byte, 0x1000).unwrap();
        assert_eq!(byte, [1]);
        image.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [9]);
        let arrival = log.flush_arrives();
        log.flushed(arrival);
        assert!(log.exact());
        // One change larger than the whole cap.
        change(&mut log, 5, 0, 0x3000);
        assert!(!log.exact());
        assert!(log.bytes <= log.cap);
    }
}
