// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Power cuts: the disk frozen as it would be, mounted and read by the second guest.

use rnic_agent::client::CallError;
use rnic_agent::pattern::{Content, Pattern};
use rnic_agent::proto::{FsType, Op, OpenFlags, Value};

use super::{Bench, DIR, PAGE, PAGE_AT, mount};
use crate::verdict::{Stop, errno_name};
use blk::PowerCut;
use probe::ledger::Seq;

/// Where the second guest mounts what a power cut left.
const CUT_DIR: &str = "/mnt/cut";

impl Bench<'_> {
    /// Cuts the power now (the guest lives on, its disk is frozen) and has the second guest mount the image and read
    /// the page under test of `name`.
    pub fn cut_and_read(&mut self, cut: PowerCut, name: &str) -> Result<CutPage, Stop> {
        self.cuts += 1;
        let image =
            self.work.join(format!("cut-{:?}-{}-{}", cut, std::process::id(), self.nonce ^ u64::from(self.cuts)));
        let frozen = self.guest.fs_disk().freeze(cut, &image).map_err(|error| Stop::Failed(error.to_string()))?;
        if !frozen.exact {
            return Err(Stop::Inconclusive("the log of unflushed writes was too small for an exact power cut".into()));
        }
        let content = self.read_cut(&image, name)?;
        Ok(CutPage { at: frozen.at, content })
    }

    fn read_cut(&mut self, image: &std::path::Path, name: &str) -> Result<Result<Content, i32>, Stop> {
        let witness = &mut *self.witness;
        witness.must(Op::Reset)?;
        witness.insert(image)?;
        let mounted = witness.call(mount("/dev/vdb", CUT_DIR, self.row.fs, ""));
        mounted.map_err(|error| witness.stop_for("mounting the power-cut image", &error))?;
        let file = witness.handle(Op::Open { path: format!("{CUT_DIR}/{name}"), flags: OpenFlags::default() })?;
        let read = witness.call(Op::Read { h: file, off: PAGE_AT, len: PAGE });
        witness.must(Op::Reset)?;
        witness.must(Op::Umount { dir: CUT_DIR.into() })?;
        if self.row.fs == FsType::Btrfs {
            // Else the kernel remembers this file system's identity and takes the next image for a stale copy of it.
            let forget = vec!["btrfs".into(), "device".into(), "scan".into(), "--forget".into()];
            witness.must(Op::Exec { argv: forget, stdin: String::new(), limit_s: 10 })?;
        }
        match read {
            Ok(Value::Content(content)) => Ok(Ok(content)),
            Err(CallError::Failed(failure)) => Ok(Err(failure.errno)),
            Ok(_) => Err(Stop::Failed("the witness gave no content".into())),
            Err(error) => Err(witness.stop_for("reading the power-cut image", &error)),
        }
    }

    /// The page under test of another file of the guest, past its page cache.
    pub fn read_direct(&self, name: &str) -> Result<Content, Stop> {
        let flags = OpenFlags { direct: true, ..Default::default() };
        let file = self.guest.handle(Op::Open { path: format!("{DIR}/{name}"), flags })?;
        let value = self.guest.must(Op::Read { h: file, off: PAGE_AT, len: PAGE })?;
        self.guest.must(Op::Close { h: file })?;
        value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))
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

/// What the second guest found after a power cut.
#[derive(Debug, Clone)]
pub struct CutPage {
    /// Ledger number of the cut.
    pub at: Seq,
    /// The page's content, or the errno of reading it.
    pub content: Result<Content, i32>,
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

    /// For evidence: "B*8" or "EIO".
    pub fn text(&self) -> String {
        match &self.content {
            Ok(content) => content.to_string(),
            Err(errno) => errno_name(*errno),
        }
    }
}
