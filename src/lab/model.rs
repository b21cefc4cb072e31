// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a page may hold, by what has been promised: the judge of every story.
//!
//! It knows no kernel and no file system. A write that has completed is what every reader must see from then on. What an fsync that
//! returned 0 had found complete must be on disk from then on, and nothing older. A device's write that has not completed may be seen, and
//! may be on disk, in whole or not at all. Of one whose process was killed any sector may, until another write covers it.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Unit of identification.
pub const SECTOR: usize = 512;

/// A page by the writers of its sectors: 'A' to 'Z'.
pub type Image = [char; PAGE / SECTOR];

/// How what a power cut left of a page compares with what was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    /// It is what was written last.
    Newest,
    /// It is older than what memory shows, and nothing newer was promised.
    Allowed,
    /// It is older than what memory showed when an fsync returned 0, because of a device's write that had not completed: no promise was
    /// broken.
    Exposed,
    /// An fsync that returned 0 had promised something newer.
    Lost,
    /// No order of the steps leaves this there.
    Impossible,
}

/// A device's write that has not completed.
#[derive(Debug, Clone)]
struct Open {
    sectors: Range<usize>,
    tag: char,
    landed: bool,
    /// Images that were complete before it began.
    after: usize,
}

/// What was complete at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    image: Image,
    /// Of each sector the writers that were killed: theirs may be there instead.
    left: [String; PAGE / SECTOR],
}

/// A page.
#[derive(Debug, Clone)]
pub struct PageModel {
    /// By every write that has completed.
    complete: Image,
    /// All that was complete at some time, oldest first; the last is `complete`.
    history: Vec<State>,
    /// How many of them are older than what an fsync promised.
    promised: usize,
    open: BTreeMap<String, Open>,
    /// A device's write had landed, and had not completed, when the last fsync began.
    exposed: bool,
}

impl PageModel {
    /// A page of A, on disk.
    pub fn new() -> Self {
        let (complete, left) = (['A'; 8], Default::default());
        let history = vec![State { image: complete, left }];
        Self { complete, history, promised: 0, open: BTreeMap::new(), exposed: false }
    }

    /// A write of the whole page has completed at once.
    pub fn write(&mut self, tag: char) {
        self.set(0..PAGE / SECTOR, tag);
    }

    /// A device begins to write the first `bytes` bytes.
    pub fn begin(&mut self, name: &str, bytes: usize, tag: char) {
        let after = self.history.len() - 1;
        let open = Open { sectors: 0..bytes.div_ceil(SECTOR), tag, landed: false, after };
        self.open.insert(name.into(), open);
    }

    /// Its bytes are in memory.
    pub fn land(&mut self, name: &str) {
        if let Some(open) = self.open.get_mut(name) {
            open.landed = true;
        }
    }

    /// It has completed.
    pub fn complete(&mut self, name: &str) {
        if let Some(open) = self.open.remove(name) {
            self.set(open.sectors, open.tag);
        }
    }

    /// It has failed: what it left, nobody knows, and nobody promised.
    pub fn fail(&mut self, name: &str) {
        self.open.remove(name);
    }

    /// Who asked for it was killed: what of it is there, nobody knows, and nobody promised.
    pub fn abandon(&mut self, name: &str) {
        let Some(open) = self.open.remove(name) else { return };
        for state in &mut self.history[open.after..] {
            state.left[open.sectors.clone()].iter_mut().for_each(|left| left.push(open.tag));
        }
    }

    fn set(&mut self, sectors: Range<usize>, tag: char) {
        let last = &self.history[self.history.len() - 1];
        let mut next = last.clone();
        next.image[sectors.clone()].fill(tag);
        next.left[sectors].fill(String::new());
        if *last != next {
            self.complete = next.image;
            self.history.push(next);
        }
    }

    /// What an fsync that begins now will promise when it returns 0.
    pub fn fsync_begins(&self) -> Promise {
        Promise { images: self.history.len() - 1, exposed: self.open.values().any(|open| open.landed) }
    }

    /// It returned 0.
    pub fn fsync_returned(&mut self, promise: &Promise) {
        self.promised = self.promised.max(promise.images);
        self.exposed = promise.exposed;
    }

    /// Whether this is what every reader must see: one of several while a device writes.
    pub fn may_show(&self, seen: &Image) -> bool {
        self.is_since(self.history.len() - 1, seen)
    }

    /// `image` and what open writes may make of it.
    fn with_open(&self, image: &Image) -> Vec<Image> {
        let mut images = vec![*image];
        for open in self.open.values() {
            for at in 0..images.len() {
                let mut with = images[at];
                with[open.sectors.clone()].fill(open.tag);
                images.push(with);
            }
        }
        images
    }

    /// Judges what a power cut left.
    pub fn judge(&self, found: &Image) -> Kept {
        // With every write that has landed: what memory shows.
        let (mut memory, mut landed) = (self.complete, false);
        for open in self.open.values().filter(|open| open.landed) {
            memory[open.sectors.clone()].fill(open.tag);
            landed = true;
        }
        match () {
            _ if *found == memory => Kept::Newest,
            _ if self.promised + 1 == self.history.len() && self.may_show(found) => match self.exposed && landed {
                true => Kept::Exposed,
                false => Kept::Allowed,
            },
            _ if self.is_since(self.promised, found) => Kept::Allowed,
            _ if self.is_since(0, found) => Kept::Lost,
            _ => Kept::Impossible,
        }
    }

    /// Whether `found` is what an fsync with this promise was to bring, or newer.
    pub fn keeps(&self, found: &Image, promise: &Promise) -> bool {
        self.is_since(promise.images, found)
    }

    /// Whether `found` is a state from number `from` on, with what open writes and killed ones may make of it.
    fn is_since(&self, from: usize, found: &Image) -> bool {
        self.history[from..].iter().any(|State { image, left }| {
            let own = |image: &Image| (0..found.len()).all(|at| found[at] == image[at] || left[at].contains(found[at]));
            self.with_open(image).iter().any(own)
        })
    }
}

impl Default for PageModel {
    fn default() -> Self {
        Self::new()
    }
}

/// See [`PageModel::fsync_begins`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    images: usize,
    exposed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(tag: char) -> Image {
        [tag; 8]
    }

    fn fsync(page: &mut PageModel) {
        let promise = page.fsync_begins();
        page.fsync_returned(&promise);
    }

    #[test]
    fn a_store_is_owed_once_fsync_has_returned() {
        let mut page = PageModel::new();
        page.write('B');
        assert_eq!((page.judge(&all('A')), page.judge(&all('B'))), (Kept::Allowed, Kept::Newest));
        fsync(&mut page);
        assert_eq!((page.judge(&all('A')), page.judge(&all('B'))), (Kept::Lost, Kept::Newest));
        assert_eq!(page.judge(&all('C')), Kept::Impossible);
        // A store after it is not owed, and a store during an fsync is not either.
        let promise = page.fsync_begins();
        page.write('D');
        page.fsync_returned(&promise);
        assert_eq!((page.judge(&all('B')), page.judge(&all('A'))), (Kept::Allowed, Kept::Lost));
    }

    #[test]
    fn a_device_that_has_not_completed_exposes_and_owes_nothing() {
        let mut page = PageModel::new();
        page.write('B');
        page.begin("read", PAGE, 'C');
        fsync(&mut page);
        page.land("read");
        // fsync found the page clean and returned 0; B is on disk, and memory has C.
        fsync(&mut page);
        assert_eq!((page.judge(&all('B')), page.judge(&all('C'))), (Kept::Exposed, Kept::Newest));
        assert_eq!(page.judge(&all('A')), Kept::Lost);
        page.complete("read");
        assert_eq!(page.judge(&all('B')), Kept::Allowed);
        fsync(&mut page);
        assert_eq!((page.judge(&all('B')), page.judge(&all('C'))), (Kept::Lost, Kept::Newest));
    }

    #[test]
    fn half_a_page_is_a_page_of_two_writers() {
        let mut page = PageModel::new();
        page.write('B');
        page.begin("read", PAGE / 2, 'C');
        page.land("read");
        let mut mixed = all('B');
        mixed[..4].fill('C');
        assert_eq!(page.judge(&mixed), Kept::Newest);
        assert!(page.may_show(&mixed) && page.may_show(&all('B')) && !page.may_show(&all('C')));
        page.complete("read");
        fsync(&mut page);
        assert_eq!((page.judge(&mixed), page.judge(&all('B'))), (Kept::Newest, Kept::Lost));
        mixed[7] = 'C';
        assert_eq!(page.judge(&mixed), Kept::Impossible);
    }
    #[test]
    fn what_a_killed_process_was_writing_may_be_there_until_it_is_written_over() {
        let mut page = PageModel::new();
        page.write('B');
        page.begin("read", PAGE / 2, 'C');
        page.land("read");
        fsync(&mut page);
        page.abandon("read");
        let (mut mixed, mut torn) = (all('B'), all('B'));
        mixed[..4].fill('C');
        torn[..2].fill('C');
        for found in [mixed, torn, all('B')] {
            assert!(page.may_show(&found) && page.judge(&found) <= Kept::Allowed, "{found:?}");
        }
        assert_eq!((page.judge(&all('A')), page.judge(&all('C'))), (Kept::Lost, Kept::Impossible));
        page.write('D');
        assert!(page.judge(&mixed) == Kept::Allowed && !page.may_show(&mixed) && page.may_show(&all('D')));
        fsync(&mut page);
        assert_eq!((page.judge(&mixed), page.judge(&all('D'))), (Kept::Lost, Kept::Newest));
    }
}
