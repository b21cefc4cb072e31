// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Power cuts: the disk frozen as it would be, mounted and read by the second guest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rnic_agent::client::CallError;
use rnic_agent::pattern::{Content, Pattern};
use rnic_agent::proto::{Op, OpenFlags, Value};

use super::ground::CUT_DIR;
use super::{Bench, DIR, PAGE, PAGE_AT, Parts, Plant, stacks};
use crate::check::{Check, Tripped};
use crate::complaints;
use crate::fact::{FactId, Role, What};
use crate::finding::{Finding, Stop};
use crate::guest::FS_DISK;
use crate::oracle;
use crate::plan::{DiskKind, Fs};
use crate::verdict::Verdict;
use blk::{DiskLedger, PowerCut};
use probe::ledger::Seq;

/// The interval of the kernel's rate limit (DEFAULT_RATELIMIT_INTERVAL), and a little.
const RATE_LIMIT: Duration = Duration::from_millis(5500);
/// dm-integrity's bitmap is clear again after this time without writes: then no block gets a new tag from whatever it has.
const BITMAP_TIME: Duration = Duration::from_secs(1);

/// What became of a promise.
#[derive(Debug, Clone)]
pub enum Promise {
    /// The page is as promised after a cruel cut.
    Kept(CutPage),
    /// It is not; both cuts are of the same moment.
    Broken {
        /// Only what a flush covers.
        cruel: CutPage,
        /// Every completed write.
        kind: CutPage,
    },
    /// It is as promised after a cruel cut, and not after one that keeps a part of what no flush covers.
    OutOfOrder {
        /// The drawn cut.
        drawn: CutPage,
        /// Only what a flush covers.
        cruel: CutPage,
    },
}

impl Bench<'_> {
    /// Cuts the power now (the guest lives on, its disk is frozen) and has the second guest mount the image and read
    /// the page under test of `name`.
    pub fn cut_and_read(&mut self, cut: PowerCut, name: &str) -> Result<CutPage, Stop> {
        let frozen = self.freeze(cut)?;
        self.read_frozen(frozen, name)
    }

    /// Whether a power cut now leaves `page` in file `name`, whatever it does to the disk's cache. Where it does not, a kind cut of the same
    /// moment tells more: what that lacks was never written. Where it does, drawn cuts are looked at as well, if the row makes any.
    pub fn promised(&mut self, page: &Content, name: &str) -> Result<Promise, Stop> {
        let (cruel, kind) = (self.freeze(PowerCut::Cruel)?, self.freeze(PowerCut::Kind)?);
        let drawn = self.draw_cuts()?;
        let cruel = self.read_frozen(cruel, name)?;
        if !cruel.holds(page) {
            drop(drawn);
            return Ok(Promise::Broken { cruel, kind: self.read_frozen(kind, name)? });
        }
        // Nobody asks any more what the other would have said.
        drop(kind);
        for frozen in drawn {
            let found = self.read_frozen(frozen, name)?;
            if !found.holds(page) {
                return Ok(Promise::OutOfOrder { drawn: found, cruel });
            }
        }
        Ok(Promise::Kept(cruel))
    }

    pub(super) fn freeze(&mut self, cut: PowerCut) -> Result<Frozen, Stop> {
        if self.row.disk == DiskKind::Pmem {
            return self.freeze_pmem();
        }
        self.cuts += 1;
        if self.row.disk == DiskKind::IntegrityBitmap {
            std::thread::sleep(BITMAP_TIME);
        }
        let word = cut.to_string().replace(' ', "-");
        let image = self.work.join(format!("cut-{word}-{}-{}", std::process::id(), self.nonce ^ u64::from(self.cuts)));
        let real = if cut == PowerCut::Cruel && self.is_planted(Plant::CutKeeps) { PowerCut::Kind } else { cut };
        let frozen = self.guest.fs_disk().freeze(real, &image).map_err(|error| Stop::Failed(error.to_string()))?;
        if !frozen.exact {
            return Err(Stop::Inconclusive("the log of unflushed writes was too small for an exact power cut".into()));
        }
        self.plant_drop(cut, &image)?;
        self.check_image(cut, frozen.at, &image)?;
        Ok(Frozen { cut, at: frozen.at, image })
    }

    /// Of persistent memory there is the kind cut only: nobody sees which stores a processor's cache still had.
    fn freeze_pmem(&mut self) -> Result<Frozen, Stop> {
        self.cuts += 1;
        let name = format!("cut-pmem-{}-{}", std::process::id(), self.nonce ^ u64::from(self.cuts));
        let image = self.work.join(name);
        let at = self.guest.freeze_pmem(&image)?;
        self.plant_drop_pmem(&image)?;
        Ok(Frozen { cut: PowerCut::Kind, at, image })
    }

    /// The image must be what the ledger says. One that is not ends the row, unless it was planted: then the story goes on with it.
    fn check_image(&mut self, cut: PowerCut, at: Seq, image: &Path) -> Result<(), Stop> {
        let records = self.guest.ledger().requests(self.begun);
        let looked = File::open(image).and_then(|file| oracle::cut::disagrees(&records, FS_DISK as u8, &file, cut, at));
        let Some(why) = looked.map_err(|error| Stop::Failed(format!("{}: {error}", image.display())))? else {
            return Ok(());
        };
        if self.planted.is_none() {
            return Err(Stop::Inconclusive(why));
        }
        self.tripped.push(Tripped { check: Check::Cut, why });
        Ok(())
    }

    fn read_frozen(&mut self, frozen: Frozen, name: &str) -> Result<CutPage, Stop> {
        let mut pages = self.read_pages(frozen, &[(name.to_string(), PAGE_AT)])?;
        pages.pop().ok_or_else(|| Stop::Failed("the witness read no page".into()))
    }

    /// Both cuts of this moment: what the cruel one leaves of each page; the other is read only if `wanted` says so. Of persistent memory
    /// there is one, which stands for both.
    pub fn cut_pages(
        &mut self,
        pages: &[(String, u64)],
        wanted: impl FnOnce(&[CutPage]) -> bool,
    ) -> Result<(Vec<CutPage>, Option<Vec<CutPage>>), Stop> {
        if self.row.disk == DiskKind::Pmem {
            let only = self.freeze_pmem()?;
            return self.read_pages(only, pages).map(|only| (only, None));
        }
        let (cruel, kind) = (self.freeze(PowerCut::Cruel)?, self.freeze(PowerCut::Kind)?);
        let cruel = self.read_pages(cruel, pages)?;
        if !wanted(&cruel) {
            return Ok((cruel, None));
        }
        let kind = self.read_pages(kind, pages)?;
        Ok((cruel, Some(kind)))
    }

    /// What a power cut left of each page.
    ///
    /// # Errors
    /// What it left is no file system, or the witness failed.
    pub fn read_pages(&mut self, frozen: Frozen, pages: &[(String, u64)]) -> Result<Vec<CutPage>, Stop> {
        let Frozen { cut, at, image } = &frozen;
        let (cut, at) = (*cut, *at);
        let mark = self.witness.must(Op::DmesgMark)?.num().unwrap_or(0);
        let parts: Vec<_> = pages.iter().map(|page| self.parts_of(image, page)).collect::<Result<_, _>>()?;
        let contents = self.read_cut(cut, image, pages, mark)?;
        let mut found = Vec::new();
        for ((content, parts), (name, place)) in contents.into_iter().zip(parts).zip(pages) {
            let fact = self.fact(at, What::cut(cut, name, *place, &content));
            let checksum = if content.is_err() { self.checksum_line(mark) } else { None };
            let twice = parts.map(|parts| (parts.agree(), self.fact(at, What::twice(cut, name, *place, &parts))));
            found.push(CutPage { at, content, fact, checksum, twice });
        }
        Ok(found)
    }

    /// What an image has of a page, part by part, where the disk keeps things twice.
    fn parts_of(&self, image: &Path, page: &(String, u64)) -> Result<Option<Parts>, Stop> {
        let Some(at) = self.physical.get(page) else { return Ok(None) };
        let looked = stacks::parts(self.row.disk, image, *at);
        looked.map_err(|error| Stop::Failed(format!("{}: {error}", image.display())))
    }

    /// Looks up where a page of a file lies on the disk, if that keeps things twice. It stays there where the file system writes in place.
    pub fn note_physical(&mut self, h: u32, name: &str, at: u64) -> Result<(), Stop> {
        if !stacks::keeps_twice(self.row.disk) {
            return Ok(());
        }
        let extents = self.guest.must(Op::Fiemap { h, sync: true })?.extents().unwrap_or_default();
        let extent = extents.iter().find(|extent| (extent.logical..extent.logical + extent.len).contains(&at));
        let extent = extent.ok_or_else(|| Stop::Failed(format!("no extent of {name} has byte {at}")))?;
        self.physical.insert((name.into(), at), extent.physical + at - extent.logical);
        Ok(())
    }

    /// The witness's line about a wrong checksum, on record.
    fn checksum_line(&mut self, mark: u64) -> Option<FactId> {
        let (said, _) = complaints::since(self.witness, mark);
        let line = said.into_iter().find(|said| complaints::CHECKSUM.iter().any(|word| said.line.contains(word)))?;
        Some(self.now(What::Kernel { guest: Role::Witness, gravity: line.gravity, line: line.line }))
    }

    /// A step on a power cut's image has failed: the file system that was promised is not there.
    fn corrupt(&mut self, cut: PowerCut, step: &str, error: &CallError) -> Stop {
        let CallError::Failed(failure) = error else { return self.witness.stop_for(step, error) };
        let step = format!("{step} of a {cut} power cut's image").to_lowercase();
        let fact = self.now(What::Returned { step, errno: Some(failure.errno) });
        Stop::Found(Finding::new(Verdict::Corrupt, fact, []).told(Some(failure.errno)))
    }

    fn read_cut(
        &mut self,
        cut: PowerCut,
        image: &Path,
        pages: &[(String, u64)],
        mark: u64,
    ) -> Result<Vec<Result<Content, i32>>, Stop> {
        self.plant_image(image)?;
        self.witness.must(Op::Reset)?;
        stacks::clear(self.witness);
        self.witness.insert(image)?;
        stacks::up(self.witness, self.row.disk, true)?;
        if self.row.fs == Fs::Raw {
            self.link_cut()?;
        } else if let Err(error) = self.mount_cut() {
            return Err(self.corrupt(cut, "mount", &error));
        }
        let read = pages.iter().map(|(name, at)| self.read_cut_page(cut, name, *at, mark)).collect::<Vec<_>>();
        self.witness.must(Op::Reset)?;
        self.unmount_cut()?;
        read.into_iter().collect()
    }

    fn read_cut_page(&mut self, cut: PowerCut, name: &str, at: u64, mark: u64) -> Result<Result<Content, i32>, Stop> {
        let opened = self.witness.call(Op::Open { path: format!("{CUT_DIR}/{name}"), flags: OpenFlags::default() });
        let h = match opened {
            Ok(value) => value.handle().unwrap_or_default(),
            Err(error) => return Err(self.corrupt(cut, "open", &error)),
        };
        let mut answer = self.witness.call(Op::Read { h, off: at, len: PAGE });
        if matches!(answer, Err(CallError::Failed(_))) && self.checksum_line(mark).is_none() {
            // Kernels limit the rate of such lines, and an earlier row's may have used it up: then this read's is worth a wait.
            std::thread::sleep(RATE_LIMIT);
            self.witness.must(Op::DropCaches { what: 3 })?;
            answer = self.witness.call(Op::Read { h, off: at, len: PAGE });
        }
        match answer {
            Ok(Value::Content(content)) => Ok(Ok(content)),
            Ok(_) => Err(Stop::Failed("the witness gave no content".into())),
            Err(CallError::Failed(failure)) => Ok(Err(failure.errno)),
            Err(error) => Err(self.witness.stop_for("reading the power-cut image", &error)),
        }
    }

    /// The page under test of another file of the guest, past its page cache.
    pub fn read_direct(&mut self, name: &str) -> Result<(Content, FactId), Stop> {
        let flags = OpenFlags { direct: true, ..Default::default() };
        let file = self.guest.handle(Op::Open { path: format!("{DIR}/{name}"), flags })?;
        let value = self.guest.must(Op::Read { h: file, off: PAGE_AT, len: PAGE })?;
        self.guest.must(Op::Close { h: file })?;
        let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
        let fact = self.seen("an O_DIRECT read", name, &Ok(content.clone()));
        Ok((content, fact))
    }

    /// FICLONE of the file into a new file; the clone's first state.
    pub fn clone_file(&mut self, name: &str) -> Result<(), Stop> {
        let clone = self.open(name, true)?;
        self.mark("FICLONE begin");
        self.guest.must(Op::Ficlone { src: self.file, dst: clone })?;
        self.mark("FICLONE end");
        self.guest.must(Op::Fsync { h: clone })?;
        self.guest.must(Op::Close { h: clone })?;
        Ok(())
    }
}

/// A disk as a power cut left it.
pub struct Frozen {
    cut: PowerCut,
    at: Seq,
    image: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that was read has no name any more; one that nobody is to read any more goes here.
        drop(std::fs::remove_file(&self.image));
    }
}

/// What the second guest found after a power cut.
#[derive(Debug, Clone)]
pub struct CutPage {
    /// Ledger number of the cut.
    pub at: Seq,
    /// The page's content, or the errno of reading it.
    pub content: Result<Content, i32>,
    /// It is on record.
    pub fact: FactId,
    /// The line of the witness's kernel about a wrong checksum, if it could not be read because of one.
    pub checksum: Option<FactId>,
    /// On a disk that keeps things twice: whether one can be had for another, and that is on record.
    pub twice: Option<(bool, FactId)>,
}

impl CutPage {
    /// Whether the page is wholly `pattern`.
    pub fn is(&self, pattern: &Pattern) -> bool {
        self.content.as_ref().is_ok_and(|content| content.is(pattern, PAGE_AT))
    }

    /// Whether the page is `page`, as identified.
    pub fn holds(&self, page: &Content) -> bool {
        self.content.as_ref().is_ok_and(|content| content == page)
    }

    /// A page that cannot be read is TORN if its checksum is wrong, and CORRUPT otherwise. `None`: it can be read.
    pub fn unreadable(&self) -> Option<Finding> {
        let errno = self.content.as_ref().err()?;
        Some(match self.checksum {
            Some(line) => Finding::new(Verdict::Torn, self.fact, [line]),
            None => Finding::new(Verdict::Corrupt, self.fact, []).told(Some(*errno)),
        })
    }

    /// Mirror or parity disagree.
    pub fn apart(&self) -> Option<Finding> {
        let (_, fact) = self.twice.filter(|(agree, _)| !agree)?;
        Some(Finding::new(Verdict::Torn, fact, [self.fact]))
    }

    /// The page can be read and is nothing that was possible: what nobody wrote is CORRUPT, a mixture of `letters` cannot be judged.
    pub fn impossible(&self, letters: &str) -> Stop {
        match &self.content {
            Ok(content) if content.letters().chars().all(|letter| letters.contains(letter)) => {
                Stop::Inconclusive(format!("the disk had {content}, which the order of steps does not explain"))
            }
            _ => Stop::Found(Finding::new(Verdict::Corrupt, self.fact, [])),
        }
    }
}
