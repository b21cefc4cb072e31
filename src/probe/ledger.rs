// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ledger: one order for what devices do to guest pages and for the marks of the lab.
//!
//! One u64 sequence ([`Seq`]) orders everything: device accesses, holds, completions, lab marks. An oracle compares
//! sequence numbers, never clock times. Devices of one guest share one ledger. It costs one branch when off, and one
//! short lock per step of a request when on; no lock is held across a data copy.
//!
//! What is put on record is a device's own: a [`Ring`] of its events in its own [`Ledger::book`]. At most 64 pages are watched; devices
//! put on record what goes through them.

mod hash;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::ring::{Event, Ring};
pub use hash::{PAGE_SIZE, PageHash, SECTOR_SIZE};

/// A place in the one order of events. 0 means never.
pub type Seq = u64;

/// At most this many pages are watched.
pub const MAX_WATCHED: usize = 64;
/// Bytes kept of a mark.
const NOTE_BYTES: usize = 1024;

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

impl Event for (Seq, Note) {
    fn ended(&self) -> Option<Seq> {
        Some(self.0)
    }
}

/// See the module's text.
pub struct Ledger {
    seq: AtomicU64,
    on: AtomicBool,
    watched_count: AtomicUsize,
    watched: RwLock<Vec<u64>>,
    notes: Ring<(Seq, Note)>,
    books: RwLock<Vec<Arc<dyn Any + Send + Sync>>>,
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
            notes: Ring::default(),
            books: RwLock::default(),
        })
    }

    /// Switches recording on or off (on at first). Sequence numbers and notes go on while it is off.
    pub fn set_on(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// Whether devices are to put on record what they do.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
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
    pub fn stamp(&self, mut note: Note) -> Seq {
        if note.text.len() > NOTE_BYTES {
            let cut = (0..=NOTE_BYTES).rev().find(|&at| note.text.is_char_boundary(at)).unwrap_or(0);
            note.text.truncate(cut);
        }
        self.notes.push(self, |_, seq| (seq, note)).1
    }

    /// The marks made at `since` or later, oldest first (the newest 65,536).
    pub fn notes(&self, since: Seq) -> Vec<(Seq, Note)> {
        self.notes.select(since, |_| true)
    }

    /// The oldest marks made at `since` or later, at most `limit`.
    pub fn notes_page(&self, since: Seq, limit: usize) -> Vec<(Seq, Note)> {
        self.notes.page(limit, |note| note.0 >= since)
    }

    /// Whether every mark made at `since` or later is still on record.
    pub fn notes_complete_since(&self, since: Seq) -> bool {
        self.notes.complete_since(since)
    }

    /// The book of one kind of device: its rings and counts. One of each type, made when it is first asked for.
    pub fn book<B: Default + Send + Sync + 'static>(&self) -> Arc<B> {
        let find = |books: &[Arc<dyn Any + Send + Sync>]| books.iter().find_map(|book| book.clone().downcast().ok());
        if let Some(book) = find(&self.books.read()) {
            return book;
        }
        let mut books = self.books.write();
        // Somebody else may have been quicker.
        find(&books).unwrap_or_else(|| {
            let book = Arc::new(B::default());
            books.push(book.clone());
            book
        })
    }

    // ---- pages ----

    /// Devices put on record what goes through the page at `page_gpa` from now on. False when 64 pages are
    /// watched already. Watching a page twice counts once.
    pub fn watch(&self, page_gpa: u64) -> bool {
        let base = page_gpa & !(PAGE_SIZE - 1);
        let mut watched = self.watched.write();
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
        let mut watched = self.watched.write();
        watched.clear();
        self.watched_count.store(0, Ordering::Release);
    }

    /// Whether any page is watched: the one branch of the common case.
    pub fn watches_any(&self) -> bool {
        self.watched_count.load(Ordering::Acquire) != 0 && self.is_on()
    }

    /// Whether the page with this base is watched.
    pub fn watches(&self, page_gpa: u64) -> bool {
        self.watches_any() && self.watched.read().contains(&page_gpa)
    }

    /// Whether a page of this range is watched: the cost is that of the watched pages, however long the range.
    pub fn watches_any_of(&self, gpa: u64, len: u64) -> bool {
        let end = gpa.saturating_add(len);
        let overlaps = |base: &u64| *base < end && gpa < base.saturating_add(PAGE_SIZE);
        len != 0 && self.watches_any() && self.watched.read().iter().any(overlaps)
    }

    /// The watched parts of a range by page: address and bytes.
    pub fn watched_parts(&self, gpa: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let len = if self.watches_any() { len } else { 0 };
        pages(gpa, len).filter(|(at, _)| self.watches(at & !(PAGE_SIZE - 1)))
    }
}

/// The pieces of a range by page, which do not cross the end of the address space.
fn pages(gpa: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let len = len.min(u64::MAX - gpa);
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = gpa + done;
        let now = (PAGE_SIZE - at % PAGE_SIZE).min(len - done);
        done += now;
        Some((at, now))
    })
}
