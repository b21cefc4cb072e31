// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bench that every scenario works at: a fresh file system with one file, a mapping of it, one page under test, a source
//! disk for O_DIRECT reads, levers on both disks, power cuts, and a second guest that mounts what a cut left behind; for RDMA
//! rows a device with a pair of queue pairs, and levers on it.
//!
//! The page under test lies in the middle of the file; control data live elsewhere, since a store to the same page would
//! re-dirty it and hide what is looked for.

use std::collections::BTreeMap;

use rnic_agent::pattern::{Pattern, fill};
use rnic_agent::proto::{Advice, Fadvice, Op, OpenFlags, Page};

use super::check::{Check, Tripped};
use super::fact::{FactId, Facts};
use super::finding::{Finding, Stop};
use super::guest::Guest;
use super::oracle;
use super::plan::{DiskKind, Folio, Fs, Row};
use super::report::{Figure, Spread};
use super::story::play::{self, Stage};
use blk::DiskLedger;
use blk::LeverId;
use mlx5::hooks::NicLedger;
use probe::RuleId;
use probe::ledger::{Note, Seq};

mod cuts;
mod drawn;
mod faults;
mod frames;
mod gates;
mod ground;
mod holds;
mod plant;
mod record;
mod stacks;
mod timeline;
mod verbs;

pub use cuts::{CutPage, Frozen, Promise};
pub use drawn::Cuts;
pub use faults::{Armed, outlasts};
pub use gates::Gate;
pub use ground::mount;
pub use holds::{HeldRead, PROMPT, errno_of};
pub use plant::Plant;
pub use stacks::Parts;
pub use verbs::{COMPLETION_LIMIT, Completion, wqe};

/// Bytes of the file.
pub const FILE_LEN: u64 = 1 << 20;
/// Byte offset of the page under test.
pub const PAGE_AT: u64 = 100 * PAGE;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The disk that O_DIRECT reads come from.
pub const SOURCE: &str = "/dev/vdc";
/// Where the file system under test is mounted.
pub const DIR: &str = "/mnt/t";

/// A row at work.
pub struct Bench<'a> {
    /// The guest under test.
    pub guest: &'a mut Guest,
    witness: &'a mut Guest,
    row: Row,
    nonce: u64,
    attempt: u64,
    planted: Option<Plant>,
    disk_rule: Option<RuleId>,
    /// What the lab itself was to carry out has been.
    acted: bool,
    /// What checks have noticed while the story ran.
    tripped: Vec<Tripped>,
    /// Ledger number at the row's begin.
    pub begun: Seq,
    /// And when its story could begin.
    ready: Seq,
    unrecorded: Vec<(u8, u64)>,
    unrecorded_nic: Vec<(u8, u64)>,
    file: u32,
    map: u32,
    source: u32,
    /// Guest physical address of the page under test.
    pub gpa: u64,
    facts: Facts,
    findings: Vec<Finding>,
    holds: Vec<(Disk, LeverId)>,
    cuts: u32,
    which_cuts: Cuts,
    work: std::path::PathBuf,
    verbs: Option<verbs::Verbs>,
    injected: Vec<RuleId>,
    figures: Vec<Figure>,
    stage: Option<Stage>,
    /// What the disk says of stable writes.
    disk_told: Option<FactId>,
    /// Where pages of files lie on the disk above a stack that keeps things twice.
    physical: BTreeMap<(String, u64), u64>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fsync {
    /// Its error, if it failed.
    pub errno: Option<i32>,
    /// It is on record.
    pub fact: FactId,
}

impl Fsync {
    /// Whether it returned 0: whatever the file had been given before is on disk.
    pub fn ok(&self) -> bool {
        self.errno.is_none()
    }
}

impl<'a> Bench<'a> {
    /// A fresh disk, file system, file and mapping.
    pub fn prepare(
        guest: &'a mut Guest,
        witness: &'a mut Guest,
        row: Row,
        (nonce, attempt): (u64, u64),
        work: &std::path::Path,
    ) -> Result<Self, Stop> {
        let source = match row.scenario.story {
            Some(story) => play::source(story, nonce),
            None => {
                let mut source = vec![0; FILE_LEN as usize];
                fill(&Pattern::new(nonce, 'C'), 0, &mut source);
                source
            }
        };
        guest.must(Op::Reset)?;
        // A row that ended early has left its file system mounted; usually there is none.
        drop(guest.call(Op::Umount { dir: DIR.into() }));
        stacks::clear(guest);
        guest.ledger().unwatch_all();
        let mkfs = ground::mkfs(guest, row);
        // A stack of devices, and persistent memory, are made for each row.
        let plain = mkfs.as_ref().filter(|_| row.disk == DiskKind::Plain);
        let made = guest.fresh_disks(&source, plain.map(|(fs, opts)| (*fs, opts.as_slice())))?;
        let begun = guest.ledger().now() + 1;
        let unrecorded = oracle::unrecorded(guest.ledger());
        let unrecorded_nic = oracle::nic::unrecorded(guest.ledger());
        let work = work.to_path_buf();
        let mut bench = Self {
            guest,
            witness,
            row,
            nonce,
            attempt,
            planted: None,
            disk_rule: None,
            acted: false,
            tripped: Vec::new(),
            begun,
            ready: begun,
            unrecorded,
            unrecorded_nic,
            file: 0,
            map: 0,
            source: 0,
            gpa: 0,
            facts: Facts::default(),
            findings: Vec::new(),
            holds: Vec::new(),
            cuts: 0,
            which_cuts: Cuts::default(),
            work,
            verbs: None,
            injected: Vec::new(),
            figures: Vec::new(),
            stage: None,
            disk_told: None,
            physical: BTreeMap::new(),
        };
        bench.make_fs(mkfs, made)?;
        let direct = OpenFlags { direct: true, ..Default::default() };
        bench.source = bench.guest.handle(Op::Open { path: SOURCE.into(), flags: direct })?;
        match row.scenario.story {
            Some(story) => bench.stage = Some(play::stage(&mut bench, story)?),
            None => {
                bench.make_file()?;
                bench.map_file()?;
            }
        }
        bench.quiet_nic();
        bench.open_verbs()?;
        bench.ready = bench.guest.ledger().now();
        Ok(bench)
    }

    fn make_file(&mut self) -> Result<(), Stop> {
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
        self.locate()
    }

    /// Opens a file of the file system under test for reading and writing.
    pub fn open(&self, name: &str, create: bool) -> Result<u32, Stop> {
        let flags = OpenFlags { write: true, create, ..Default::default() };
        self.guest.handle(Op::Open { path: format!("{DIR}/{name}"), flags })
    }

    /// Content that names this row and `tag`.
    pub fn pattern(&self, tag: char) -> Pattern {
        Pattern::new(self.nonce, tag)
    }

    /// The file system of this row.
    pub fn fs(&self) -> Fs {
        self.row.fs
    }

    /// Which attempt at the row this is; the first is 0.
    pub fn attempt(&self) -> u64 {
        self.attempt
    }

    /// The file's handle.
    pub fn file(&self) -> u32 {
        self.file
    }

    /// The disk that O_DIRECT reads come from.
    pub fn source_handle(&self) -> u32 {
        self.source
    }

    /// The row.
    pub fn row(&self) -> Row {
        self.row
    }

    /// Its nonce.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// What the disk says of stable writes, where that was asked.
    pub fn disk_told(&self) -> Option<FactId> {
        self.disk_told
    }

    /// The files and pages of the row's story.
    pub fn take_stage(&mut self) -> Option<Stage> {
        self.stage.take()
    }

    /// From here on the page under test is in this mapping or buffer.
    pub fn use_memory(&mut self, map: u32) {
        self.map = map;
    }

    /// The mapping's handle.
    pub fn map(&self) -> u32 {
        self.map
    }

    /// Adds a measurement to the row.
    pub fn figure(&mut self, name: &str, value: f64, unit: &'static str) {
        self.figures.push(Figure { name: name.into(), value, unit: unit.into(), spread: None });
    }

    /// The same of what was measured several times; nothing of what never was.
    pub fn spread(&mut self, name: &str, values: Vec<f64>, unit: &'static str) {
        if let Some(spread) = Spread::of(values) {
            self.figures.push(Figure {
                name: name.into(),
                value: spread.median,
                unit: unit.into(),
                spread: Some(spread),
            });
        }
    }

    /// The measurements so far.
    pub fn take_figures(&mut self) -> Vec<Figure> {
        std::mem::take(&mut self.figures)
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

    // ---- the end ----

    /// Lets everything go and unmounts.
    pub fn close(&mut self) -> Result<(), Stop> {
        self.guest.fs_disk().disarm_all();
        self.guest.source_disk().disarm_all();
        self.quiet_nic();
        self.guest.must(Op::Reset)?;
        self.plant_hang();
        self.take_fs_down()
    }

    /// What the checks have noticed that every row passes, once nothing moves any more. Nothing where the evidence is sound.
    pub fn tripped(&self) -> Vec<Tripped> {
        let (ledger, nic) = (self.guest.ledger(), self.guest.ledger().nic(self.begun));
        let hold = ledger.requests(self.begun).iter().find_map(oracle::unsound_hold);
        let looked = [
            Tripped::by(Check::Hold, hold),
            Tripped::by(Check::DiskRecords, oracle::gap(ledger, self.begun, &self.unrecorded)),
            Tripped::by(Check::NicRecords, oracle::nic::gap(ledger, self.begun, &self.unrecorded_nic)),
            Tripped::by(Check::Translation, oracle::nic::dead_translation(&nic)),
            Tripped::by(Check::Gate, oracle::nic::gate_not_kept(&nic)),
            Tripped::by(Check::Freed, oracle::nic::freed_key(&nic)),
            Tripped::by(Check::Rights, oracle::nic::against_rights(&nic)),
        ];
        self.tripped.iter().cloned().chain(looked.into_iter().flatten()).collect()
    }

    /// The story is over: whoever still waits for a page that nobody brings has lost its fault.
    pub fn look_for_lost_faults(&mut self) {
        if self.what_is_held().is_some() {
            return;
        }
        let records = self.nic_records(self.begun);
        if let Some(fault) = oracle::nic::unanswered_fault(&records, &self.qpns()) {
            let why = format!("nobody has answered a page fault: {}", oracle::nic::describe(fault));
            self.tripped.push(Tripped { check: Check::Fault, why });
        }
    }
}
