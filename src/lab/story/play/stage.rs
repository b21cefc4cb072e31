// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and pages of a story, made before its first step.

use std::collections::BTreeMap;

use rnic_agent::pattern::{Pattern, fill};
use rnic_agent::proto::{Advice as Madvice, Fadvice, Op, OpenFlags, Page};

use super::processes::Opened;
use super::{By, Play};
use crate::bench::{Bench, DIR, PAGE};
use crate::fact::FactId;
use crate::finding::Stop;
use crate::model::PageModel;
use crate::plan::Folio;
use crate::story::memory::Memory;
use crate::story::step::{DioRead, Step};
use crate::story::{FileSpec, Story};
use probe::ledger::Seq;

/// Where a tmpfs is mounted for files that are of one.
const TMPFS: &str = "/mnt/tmpfs";
/// Huge pages beyond those that a file has: a page that is punched out and comes again while a pin keeps the old one, and one that
/// [`Bench::take_huge_page`] takes.
const SPARE_HUGE: u64 = 3;

/// A file of the story.
pub struct File {
    pub(super) opened: Opened,
    pub(super) pages: u32,
    pub(super) memory: Memory,
    /// Its place among the story's files: part of its patterns.
    pub(super) number: u64,
}

/// A page that the story names.
pub struct Place {
    pub(super) file: String,
    pub(super) at: u64,
    pub(super) gpa: u64,
    pub(super) model: PageModel,
    /// When its newest bytes came, in the ledger's order.
    pub(super) since: Seq,
    /// The mapping has it no more: who reaches it still reaches what nobody else sees.
    pub(super) gone: bool,
    /// What happened to it.
    pub(super) trail: Vec<FactId>,
}

/// Files and pages.
pub struct Stage {
    pub(super) files: BTreeMap<String, File>,
    pub(super) places: BTreeMap<String, Place>,
}

/// The pattern of `tag` in file number `number`.
pub(super) fn pattern(nonce: u64, number: u64, tag: char) -> Pattern {
    Pattern::new(nonce ^ number << 56, tag)
}

fn number_of(story: &Story, file: &str) -> u64 {
    story.files.keys().position(|name| name == file).unwrap_or_default() as u64
}

pub(super) fn reads(story: &Story) -> impl Iterator<Item = &DioRead> {
    story.steps.iter().filter_map(|step| match step.get_ref() {
        Step::DioRead(read) => Some(read),
        _ => None,
    })
}

/// The disk that O_DIRECT reads come from: for each round a page for each of the story's reads, in their order.
pub fn source(story: &Story, nonce: u64) -> Vec<u8> {
    let mut source = Vec::new();
    for round in 0..story.most_rounds() {
        for read in reads(story) {
            let page = &story.pages[&read.page];
            let mut bytes = vec![0; PAGE as usize];
            let pattern = pattern(nonce, number_of(story, &page.file), story.letter(read.tag, round));
            fill(&pattern, u64::from(page.at) * PAGE, &mut bytes);
            source.extend(bytes);
        }
    }
    source
}

/// Makes the story's files and looks up its pages. The bench's own page is then the story's first.
pub fn stage(bench: &mut Bench<'_>, story: &Story) -> Result<Stage, Stop> {
    let mut stage = Stage { files: BTreeMap::new(), places: BTreeMap::new() };
    for (name, spec) in &story.files {
        let number = number_of(story, name);
        let opened = open(bench, (name, spec), number)?;
        stage.files.insert(name.clone(), File { opened, pages: spec.pages, memory: spec.memory, number });
    }
    for (name, spec) in story.pages.iter().rev() {
        let (at, map) = (u64::from(spec.at) * PAGE, stage.files[&spec.file].opened.map);
        bench.guest.must(Op::Touch { m: map, off: at, write: false })?;
        let page = page_of(bench, Op::PageInfo { m: map, off: at })?;
        if story.files[&spec.file].memory == Memory::File {
            check_folio(bench, &page)?;
        }
        if !page.present {
            return Err(absent(name));
        }
        bench.gpa = page.gpa();
        bench.guest.ledger().watch(page.gpa());
        bench.note_physical(stage.files[&spec.file].opened.handle, &spec.file, at)?;
        let (file, model) = (spec.file.clone(), PageModel::new());
        let place = Place { file, at, gpa: page.gpa(), model, since: 0, gone: false, trail: Vec::new() };
        stage.places.insert(name.clone(), place);
    }
    Ok(stage)
}

/// Makes a file, fills it with A and maps it.
fn open(bench: &mut Bench<'_>, (name, spec): (&str, &FileSpec), number: u64) -> Result<Opened, Stop> {
    let (len, pattern) = (u64::from(spec.pages) * PAGE, pattern(bench.nonce(), number, 'A'));
    let handle = match spec.memory {
        Memory::File | Memory::Private => bench.open(name, true)?,
        Memory::Tmpfs => open_tmpfs(bench, name)?,
        Memory::Memfd | Memory::Hugetlb => open_memfd(bench, spec.memory, len)?,
        Memory::Thp => return Ok(Opened { handle: 0, map: bench.huge_memory(len, pattern)?, mr: None }),
        Memory::Anon => {
            let map = bench.guest.handle(Op::AnonBuffer { len, huge: false })?;
            bench.guest.must(Op::Store { m: map, off: 0, len, pattern })?;
            return Ok(Opened { handle: 0, map, mr: None });
        }
    };
    // A file of huge pages has no write(2).
    if spec.memory != Memory::Hugetlb {
        bench.guest.must(Op::Write { h: handle, off: 0, len, pattern })?;
    }
    let map = if spec.memory.on_disk() {
        bench.guest.must(Op::Fsync { h: handle })?;
        map(bench, handle, spec)?
    } else {
        bench.guest.handle(Op::Mmap { h: handle, off: 0, len, write: !spec.read_only, private: false })?
    };
    if spec.memory == Memory::Hugetlb {
        bench.guest.must(Op::Store { m: map, off: 0, len, pattern })?;
    }
    Ok(Opened { handle, map, mr: None })
}

/// Where other processes find a file.
pub(super) fn path_of(name: &str, memory: Memory) -> String {
    let dir = if memory == Memory::Tmpfs { TMPFS } else { DIR };
    format!("{dir}/{name}")
}

fn open_tmpfs(bench: &mut Bench<'_>, name: &str) -> Result<u32, Stop> {
    // One mount a boot does; each row makes its files anew.
    let path = path_of(name, Memory::Tmpfs);
    if bench.guest.call(Op::Unlink { path: path.clone() }).is_err() {
        drop(bench.guest.call(Op::Umount { dir: TMPFS.into() }));
        let (dev, fs) = ("tmpfs".to_string(), "tmpfs".to_string());
        bench.guest.must(Op::Mount { dev, dir: TMPFS.into(), fs, opts: String::new(), ro: false })?;
    }
    let flags = OpenFlags { write: true, create: true, ..Default::default() };
    bench.guest.handle(Op::Open { path, flags })
}

fn open_memfd(bench: &mut Bench<'_>, memory: Memory, len: u64) -> Result<u32, Stop> {
    if memory == Memory::Hugetlb {
        let value = (len / memory.unit() + SPARE_HUGE).to_string();
        bench.guest.must(Op::Sysctl { key: "vm.nr_hugepages".into(), value: Some(value) })?;
    }
    let kind = memory.memfd().ok_or_else(|| Stop::Failed(format!("{memory:?} is no memory file")))?;
    bench.guest.handle(Op::Memfd { kind, len })
}

/// Maps a file with folios as the row wants them.
fn map(bench: &mut Bench<'_>, h: u32, spec: &FileSpec) -> Result<u32, Stop> {
    let len = u64::from(spec.pages) * PAGE;
    let single = bench.row().folio == Folio::Single;
    if single {
        bench.guest.must(Op::Fadvise { h, off: 0, len: 0, advice: Fadvice::Random })?;
        bench.guest.must(Op::DropCaches { what: 3 })?;
    } else if bench.guest.hello().release.starts_with("6.1.") {
        // A write() of this kernel makes single pages; its readahead makes large folios where the file system can.
        bench.guest.must(Op::DropCaches { what: 3 })?;
        bench.guest.must(Op::Read { h, off: 0, len })?;
    }
    let (write, private) = (!spec.read_only, spec.memory == Memory::Private);
    let map = bench.guest.handle(Op::Mmap { h, off: 0, len, write, private })?;
    if single {
        bench.guest.must(Op::Madvise { m: map, off: 0, len, advice: Madvice::Random })?;
    }
    Ok(map)
}

fn check_folio(bench: &Bench<'_>, page: &Page) -> Result<(), Stop> {
    if (page.folio_pages > 1) == (bench.row().folio == Folio::Large) {
        return Ok(());
    }
    let (pages, wanted) = (page.folio_pages, bench.row().folio);
    Err(Stop::NotRun(format!("the kernel made a folio of {pages} pages where a {wanted} one was asked for")))
}

fn absent(page: &str) -> Stop {
    Stop::Inconclusive(format!("page \"{page}\" is not present in the mapping"))
}

fn page_of(bench: &Bench<'_>, info: Op) -> Result<Page, Stop> {
    let value = bench.guest.must(info)?;
    value.page().ok_or_else(|| Stop::Failed("the agent gave no page".into()))
}

impl Play<'_, '_> {
    pub(super) fn place(&mut self, name: &str) -> Result<&mut Place, Stop> {
        self.places.get_mut(name).ok_or_else(|| Stop::Failed(format!("there is no page {name}")))
    }

    pub(super) fn file(&self, name: &str) -> Result<&File, Stop> {
        self.files.get(name).ok_or_else(|| Stop::Failed(format!("there is no file {name}")))
    }

    /// The page in the page tables of a process.
    pub(super) fn page_info(&mut self, by: By<'_>, name: &str) -> Result<Page, Stop> {
        let (opened, off) = self.opened_at(by, name)?;
        page_of(self.bench, self.within(by, Op::PageInfo { m: opened.map, off })?)
    }

    /// Reads the page's address again and watches it; needed after each step that may move it.
    pub(super) fn locate(&mut self, by: By<'_>, name: &str) -> Result<(), Stop> {
        let page = self.page_info(by, name)?;
        if !page.present {
            return Err(absent(name));
        }
        let gpa = page.gpa();
        self.place(name)?.gpa = gpa;
        self.bench.gpa = gpa;
        self.bench.guest.ledger().watch(gpa);
        Ok(())
    }

    /// Makes the page the one that the bench's facts are about; its address.
    pub(super) fn aim(&mut self, page: &str) -> Result<u64, Stop> {
        self.bench.gpa = self.place(page)?.gpa;
        Ok(self.bench.gpa)
    }

    pub(super) fn pattern(&mut self, page: &str, letter: char) -> Result<Pattern, Stop> {
        let file = self.place(page)?.file.clone();
        let number = self.file(&file)?.number;
        Ok(pattern(self.bench.nonce(), number, letter))
    }
}
