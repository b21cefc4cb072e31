// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bench that every scenario works at: a fresh file system with one file, a mapping of it, one page under test, a source
//! disk for O_DIRECT reads, levers on both disks, power cuts, and a second guest that mounts what a cut left behind.
//!
//! The page under test lies in the middle of the file; control data live elsewhere, since a store to the same page would
//! re-dirty it and hide what is looked for.

use std::time::Duration;

use rnic_agent::client::CallError;
use rnic_agent::pattern::{Content, Pattern, fill};
use rnic_agent::proto::{Advice, Fadvice, FsType, JobState, Op, OpenFlags, Page, Value};

use super::guest::Guest;
use super::oracle;
use super::plan::{Folio, Row};
use super::verdict::Stop;
use crate::block::{HoldPoint, Lever, LeverId, PowerCut};
use crate::dma::ledger::{BlkOp, Note, RequestRecord, Seq};

/// Bytes of the file.
pub const FILE_LEN: u64 = 1 << 20;
/// Byte offset of the page under test.
pub const PAGE_AT: u64 = 100 * PAGE;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Longest hold. Far below the guest's 120 s hung-task limit.
const HOLD: Duration = Duration::from_secs(45);
/// How long a step may take that should not wait for anything held.
const PROMPT: Duration = Duration::from_secs(20);
/// Where the file system under test is mounted.
const DIR: &str = "/mnt/t";
/// Where the second guest mounts what a power cut left.
const CUT_DIR: &str = "/mnt/cut";

/// A row at work.
pub struct Bench<'a> {
    /// The guest under test.
    pub guest: &'a mut Guest,
    witness: &'a mut Guest,
    row: Row,
    nonce: u64,
    /// Ledger number at the row's begin.
    pub begun: Seq,
    unrecorded: Vec<(u8, u64)>,
    file: u32,
    map: u32,
    source: u32,
    /// Guest physical address of the page under test.
    pub gpa: u64,
    evidence: Vec<String>,
    holds: Vec<(Disk, LeverId)>,
    cuts: u32,
    work: std::path::PathBuf,
}

/// Which disk a lever sits on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The file system under test.
    Fs,
    /// The source of O_DIRECT reads.
    Source,
}

/// What fsync said.
pub type Fsync = Result<(), i32>;

impl<'a> Bench<'a> {
    /// A fresh disk, file system, file and mapping.
    pub fn prepare(
        guest: &'a mut Guest,
        witness: &'a mut Guest,
        row: Row,
        nonce: u64,
        work: &std::path::Path,
    ) -> Result<Self, Stop> {
        let mut source = vec![0; FILE_LEN as usize];
        fill(&Pattern::new(nonce, 'C'), 0, &mut source);
        guest.must(Op::Reset)?;
        // A row that ended early has left its file system mounted; usually there is none.
        drop(guest.call(Op::Umount { dir: DIR.into() }));
        guest.ledger().unwatch_all();
        guest.fresh_disks(&source)?;
        let begun = guest.ledger().now() + 1;
        let unrecorded = oracle::unrecorded(guest.ledger());
        let work = work.to_path_buf();
        let mut bench = Self {
            guest,
            witness,
            row,
            nonce,
            begun,
            unrecorded,
            file: 0,
            map: 0,
            source: 0,
            gpa: 0,
            evidence: Vec::new(),
            holds: Vec::new(),
            cuts: 0,
            work,
        };
        bench.make_file()?;
        bench.map_file()?;
        Ok(bench)
    }

    fn make_file(&mut self) -> Result<(), Stop> {
        // The flusher would heal behind the row's back; xfs and btrfs have timers of their own, see mount options.
        self.guest.must(Op::Sysctl { key: "vm.dirty_writeback_centisecs".into(), value: Some("0".into()) })?;
        let made = self.guest.must(Op::Mkfs { fs: self.row.fs, dev: "/dev/vdb".into(), opts: vec![] })?;
        if let Some(exec) = made.exec().filter(|exec| exec.status != 0) {
            return Err(Stop::Failed(format!("mkfs.{} failed: {}", self.row.fs.name(), exec.err)));
        }
        let opts = if self.row.fs == FsType::Btrfs { "commit=300" } else { "" };
        self.guest.must(mount("/dev/vdb", DIR, self.row.fs, opts))?;
        self.file = self.open("file", true)?;
        let pattern = self.pattern('A');
        self.guest.must(Op::Write { h: self.file, off: 0, len: FILE_LEN, pattern })?;
        self.guest.must(Op::Fsync { h: self.file })?;
        Ok(())
    }

    fn map_file(&mut self) -> Result<(), Stop> {
        if self.row.folio == Folio::Single {
            // Refault page by page: no readahead, no large folio.
            self.guest.must(Op::Fadvise { h: self.file, off: 0, len: 0, advice: Fadvice::Random })?;
            self.guest.must(Op::DropCaches { what: 3 })?;
        } else if self.guest.hello().release.starts_with("6.1.") {
            // A write() of this kernel makes single pages; its readahead makes large folios where the file system can.
            self.guest.must(Op::DropCaches { what: 3 })?;
            self.guest.must(Op::Read { h: self.file, off: 0, len: FILE_LEN })?;
        }
        self.map = self.guest.handle(Op::Mmap { h: self.file, off: 0, len: FILE_LEN, write: true, private: false })?;
        if self.row.folio == Folio::Single {
            self.guest.must(Op::Madvise { m: self.map, off: 0, len: FILE_LEN, advice: Advice::Random })?;
        }
        self.guest.must(Op::Touch { m: self.map, off: PAGE_AT, write: false })?;
        let page = self.page()?;
        let large = page.folio_pages > 1;
        if large != (self.row.folio == Folio::Large) {
            return Err(Stop::NotRun(format!(
                "the kernel made a folio of {} pages where a {} one was asked for",
                page.folio_pages, self.row.folio
            )));
        }
        self.source = self
            .guest
            .handle(Op::Open { path: "/dev/vdc".into(), flags: OpenFlags { direct: true, ..Default::default() } })?;
        self.locate()
    }

    fn open(&self, name: &str, create: bool) -> Result<u32, Stop> {
        let flags = OpenFlags { write: true, create, ..Default::default() };
        self.guest.handle(Op::Open { path: format!("{DIR}/{name}"), flags })
    }

    /// Content that names this row and `tag`.
    pub fn pattern(&self, tag: char) -> Pattern {
        Pattern::new(self.nonce, tag)
    }

    /// The file system of this row.
    pub fn fs(&self) -> FsType {
        self.row.fs
    }

    /// The file's handle.
    pub fn file(&self) -> u32 {
        self.file
    }

    /// The mapping's handle.
    pub fn map(&self) -> u32 {
        self.map
    }

    /// Adds a line to the row's evidence.
    pub fn say(&mut self, line: impl Into<String>) {
        self.evidence.push(line.into());
    }

    /// The evidence so far.
    pub fn take_evidence(&mut self) -> Vec<String> {
        std::mem::take(&mut self.evidence)
    }

    /// Marks a step in the ledger's order; returns its number.
    pub fn mark(&self, text: &str) -> Seq {
        self.guest.ledger().stamp(Note::new(text))
    }

    // ---- the page ----

    /// The page under test as the guest's page tables have it.
    pub fn page(&self) -> Result<Page, Stop> {
        let value = self.guest.must(Op::PageInfo { m: self.map, off: PAGE_AT })?;
        value.page().ok_or_else(|| Stop::Failed("the agent gave no page".into()))
    }

    /// Reads the page's address again and watches it; needed after each step that may move it.
    pub fn locate(&mut self) -> Result<(), Stop> {
        let page = self.page()?;
        if !page.present {
            return Err(Stop::Inconclusive("the page under test is not present in the mapping".into()));
        }
        self.gpa = page.gpa();
        self.guest.ledger().watch(self.gpa);
        Ok(())
    }

    /// CPU store of `tag` to the page under test.
    pub fn store(&mut self, tag: char) -> Result<(), Stop> {
        let pattern = self.pattern(tag);
        self.mark(&format!("store {tag}"));
        self.guest.must(Op::Store { m: self.map, off: PAGE_AT, len: PAGE, pattern })?;
        self.locate()
    }

    // ---- levers ----

    /// Holds the next request of kind `op` on `disk` that touches the page under test.
    pub fn arm(&mut self, disk: Disk, op: BlkOp, point: HoldPoint) -> LeverId {
        let lever = Lever { page: Some(self.gpa), ..Lever::new(op, point, HOLD) };
        let id = self.disk(disk).arm(lever);
        self.holds.push((disk, id));
        id
    }

    fn disk(&self, disk: Disk) -> &crate::block::DiskHandle {
        match disk {
            Disk::Fs => self.guest.fs_disk(),
            Disk::Source => self.guest.source_disk(),
        }
    }

    /// Waits until the lever holds a request; its ledger id.
    pub fn wait_held(&self, disk: Disk, lever: LeverId) -> Result<u64, Stop> {
        let held = self.disk(disk).wait_held(lever, PROMPT);
        held.map_err(|error| Stop::Inconclusive(format!("the lever on the {disk:?} disk did not fire: {error}")))
    }

    /// Lets a held request move its data and holds it again before it completes.
    pub fn deliver(&self, disk: Disk, lever: LeverId) -> Result<(), Stop> {
        let stepped = self.disk(disk).step_to(lever, HoldPoint::BeforeComplete);
        stepped.map(drop).map_err(|error| Stop::Inconclusive(error.to_string()))
    }

    /// Lets a held request go.
    pub fn release(&self, disk: Disk, lever: LeverId) -> Result<(), Stop> {
        let report = self.disk(disk).release(lever).map_err(|error| Stop::Inconclusive(error.to_string()))?;
        if report.expired > 0 || report.released.is_empty() {
            return Err(Stop::Inconclusive(format!("the lever on the {disk:?} disk let go before it was told to")));
        }
        Ok(())
    }

    /// The ledger's record of a request.
    pub fn record(&self, id: u64) -> Result<RequestRecord, Stop> {
        let record = self.guest.ledger().request(id);
        record.ok_or_else(|| Stop::Inconclusive(format!("request {id} is not in the ledger")))
    }

    // ---- steps that may wait ----

    /// Starts an O_DIRECT read of `len` bytes of the source's C into the page under test, held before its bytes are delivered.
    /// Returns (job, lever, ledger id).
    pub fn hold_read(&mut self, len: u64) -> Result<HeldRead, Stop> {
        self.locate()?;
        let lever = self.arm(Disk::Source, BlkOp::Read, HoldPoint::BeforeData);
        self.mark("dio read begin");
        let read = Op::DioReadInto { h: self.source, foff: PAGE_AT, m: self.map, moff: PAGE_AT, len };
        let job = self.guest.handle(read)?;
        let id = self.wait_held(Disk::Source, lever)?;
        // Pinning may have broken a copy-on-write page; the pinned page is the one that counts.
        let gpa = self.gpa;
        self.locate()?;
        if gpa != self.gpa {
            return Err(Stop::Inconclusive("the page moved while the read was being submitted".into()));
        }
        Ok(HeldRead { job, lever, id, len })
    }

    /// Ends a held read: completion, and the job's own result.
    pub fn finish_read(&self, read: &HeldRead) -> Result<(), Stop> {
        self.release(Disk::Source, read.lever)?;
        let state = self.wait_job(read.job, PROMPT)?;
        match state.result.as_deref() {
            Some(Ok(Value::Num(n))) if *n == read.len => Ok(()),
            other => Err(Stop::Inconclusive(format!("the O_DIRECT read did not end well: {other:?}"))),
        }
    }

    /// Runs `op` as a job.
    pub fn spawn(&self, op: Op) -> Result<u32, Stop> {
        self.guest.spawn(op)
    }

    /// Waits for a job.
    pub fn wait_job(&self, job: u32, limit: Duration) -> Result<JobState, Stop> {
        self.guest.agent().wait_job(job, limit).map_err(|error| self.guest.stop_for("waiting for a job", &error))
    }

    /// fsync of the file, which must return within the prompt limit; its errno otherwise.
    pub fn fsync(&self) -> Result<Fsync, Stop> {
        self.mark("fsync begin");
        let job = self.spawn(Op::Fsync { h: self.file })?;
        let state = self.wait_job(job, PROMPT)?;
        let result = errno_of(&state);
        let text = match &result {
            None => "fsync still waits".into(),
            Some(Ok(())) => "fsync returned 0".to_string(),
            Some(Err(errno)) => format!("fsync returned errno {errno}"),
        };
        self.mark(&text);
        result.ok_or_else(|| Stop::Inconclusive("fsync did not return while the O_DIRECT read was held".into()))
    }

    // ---- power cuts ----

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

    // ---- the end ----

    /// Lets everything go, unmounts, and looks at the evidence as a whole: every hold sound, the ledger without a gap.
    pub fn close(&mut self) -> Result<(), Stop> {
        self.guest.fs_disk().disarm_all();
        self.guest.source_disk().disarm_all();
        self.guest.must(Op::Reset)?;
        // A file system that refuses to unmount is reported by the next row's swap at the latest.
        let unmounted = self.guest.call(Op::Umount { dir: DIR.into() });
        if self.row.fs == FsType::Btrfs && unmounted.is_ok() {
            let forget = vec!["btrfs".into(), "device".into(), "scan".into(), "--forget".into()];
            self.guest.must(Op::Exec { argv: forget, stdin: String::new(), limit_s: 10 })?;
        }
        if let Some(broken) = self.broken_evidence() {
            return Err(Stop::Inconclusive(broken));
        }
        unmounted.map(drop).map_err(|error| self.guest.stop_for("unmounting", &error))
    }

    /// Why the row's evidence cannot be used: a hold that was none, or a gap in the ledger. `None` when it is sound.
    pub fn broken_evidence(&self) -> Option<String> {
        let ledger = self.guest.ledger();
        let unsound = ledger.requests(self.begun).iter().find_map(oracle::unsound_hold);
        unsound.or_else(|| oracle::gap(ledger, self.begun, &self.unrecorded))
    }
}

/// An O_DIRECT read that waits at a lever.
#[derive(Debug, Clone, Copy)]
pub struct HeldRead {
    /// The agent's job.
    pub job: u32,
    /// The lever on the source disk.
    pub lever: LeverId,
    /// Ledger id of the request.
    pub id: u64,
    /// Bytes.
    pub len: u64,
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
            Err(errno) => super::verdict::errno_name(*errno),
        }
    }
}

/// mount(2) of `dev`.
pub fn mount(dev: &str, dir: &str, fs: FsType, opts: &str) -> Op {
    Op::Mount { dev: dev.into(), dir: dir.into(), fs: fs.name().into(), opts: opts.into(), ro: false }
}

/// The outcome of a job that returns nothing; `None` while it runs.
pub fn errno_of(state: &JobState) -> Option<Fsync> {
    match state.result.as_deref()? {
        Ok(_) => Some(Ok(())),
        Err(failure) => Some(Err(failure.errno)),
    }
}
