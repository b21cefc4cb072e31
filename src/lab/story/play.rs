// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A story's steps at a bench. What each page may hold is [`PageModel`]'s to say; here is what is done, and what was seen.

mod steps;

use std::collections::BTreeMap;

use rnic_agent::pattern::{Content, Pattern, Run, fill};
use rnic_agent::proto::{Advice as Madvice, Fadvice, MrInfo, Op};

use super::{DioRead, Step, Story};
use crate::bench::{Bench, CutPage, PAGE};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::model::{Image, Kept, PageModel, Promise, SECTOR};
use crate::plan::Folio;
use crate::verdict::Verdict;
use blk::LeverId;

/// How long a file system's own worker gets to put a page right.
const WORKER_TIME: std::time::Duration = std::time::Duration::from_millis(500);

struct File {
    handle: u32,
    map: u32,
    pages: u32,
    /// Its place among the story's files: part of its patterns.
    number: u64,
    mr: Option<MrInfo>,
}

struct Place {
    file: String,
    at: u64,
    gpa: u64,
    model: PageModel,
}

/// A step that goes on beside the others.
enum Running {
    Read { job: u32, lever: LeverId, id: u64, page: String, bytes: u32 },
    Hold { lever: LeverId, held: Option<u64> },
    Fsync { job: u32, promises: BTreeMap<String, Promise> },
}

/// A story at work.
pub(super) struct Play<'p, 'b> {
    bench: &'p mut Bench<'b>,
    files: BTreeMap<String, File>,
    places: BTreeMap<String, Place>,
    running: BTreeMap<String, Running>,
    /// Overlaps that the ledger shows: a device wrote a page while a write of it was held.
    overlaps: Vec<FactId>,
    /// What shows that no promise was broken.
    kept: Vec<FactId>,
    exposed: Vec<FactId>,
}

/// The pattern of `tag` in file number `number`.
fn pattern(nonce: u64, number: u64, tag: char) -> Pattern {
    Pattern::new(nonce ^ number << 56, tag)
}

fn number_of(story: &Story, file: &str) -> u64 {
    story.files.keys().position(|name| name == file).unwrap_or_default() as u64
}

fn reads(story: &Story) -> impl Iterator<Item = &DioRead> {
    story.steps.iter().filter_map(|step| match step.get_ref() {
        Step::DioRead(read) => Some(read),
        _ => None,
    })
}

/// The disk that O_DIRECT reads come from: a page for each of the story's, in their order.
pub fn source(story: &Story, nonce: u64) -> Vec<u8> {
    let mut source = Vec::new();
    for read in reads(story) {
        let page = &story.pages[&read.page];
        let mut bytes = vec![0; PAGE as usize];
        fill(&pattern(nonce, number_of(story, &page.file), read.tag), u64::from(page.at) * PAGE, &mut bytes);
        source.extend(bytes);
    }
    source
}

/// Plays the story of the bench's row.
pub fn run(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let story = bench.row().scenario.story.ok_or_else(|| Stop::Failed("this row has no story".into()))?;
    let mut play = Play {
        bench,
        files: BTreeMap::new(),
        places: BTreeMap::new(),
        running: BTreeMap::new(),
        overlaps: Vec::new(),
        kept: Vec::new(),
        exposed: Vec::new(),
    };
    play.make(story)?;
    for step in &story.steps {
        play.step(story, step.get_ref())?;
    }
    play.conclude()
}

impl Play<'_, '_> {
    fn make(&mut self, story: &Story) -> Result<(), Stop> {
        for (name, spec) in &story.files {
            let number = number_of(story, name);
            let (len, handle) = (u64::from(spec.pages) * PAGE, self.bench.open(name, true)?);
            let pattern = pattern(self.bench.nonce(), number, 'A');
            self.bench.guest.must(Op::Write { h: handle, off: 0, len, pattern })?;
            self.bench.guest.must(Op::Fsync { h: handle })?;
            let map = self.map(handle, len)?;
            self.files.insert(name.clone(), File { handle, map, pages: spec.pages, number, mr: None });
        }
        for (name, spec) in &story.pages {
            let at = u64::from(spec.at) * PAGE;
            let place = Place { file: spec.file.clone(), at, gpa: 0, model: PageModel::new() };
            self.places.insert(name.clone(), place);
            let map = self.map_of(name)?;
            self.bench.guest.must(Op::Touch { m: map, off: at, write: false })?;
            self.check_folio(name)?;
            self.locate(name)?;
        }
        Ok(())
    }

    /// Maps a file with folios as the row wants them.
    fn map(&mut self, h: u32, len: u64) -> Result<u32, Stop> {
        let single = self.bench.row().folio == Folio::Single;
        if single {
            self.bench.guest.must(Op::Fadvise { h, off: 0, len: 0, advice: Fadvice::Random })?;
            self.bench.guest.must(Op::DropCaches { what: 3 })?;
        } else if self.bench.guest.hello().release.starts_with("6.1.") {
            // A write() of this kernel makes single pages; its readahead makes large folios where the file system can.
            self.bench.guest.must(Op::DropCaches { what: 3 })?;
            self.bench.guest.must(Op::Read { h, off: 0, len })?;
        }
        let map = self.bench.guest.handle(Op::Mmap { h, off: 0, len, write: true, private: false })?;
        if single {
            self.bench.guest.must(Op::Madvise { m: map, off: 0, len, advice: Madvice::Random })?;
        }
        Ok(map)
    }

    fn check_folio(&mut self, name: &str) -> Result<(), Stop> {
        let page = self.page_info(name)?;
        if (page.folio_pages > 1) == (self.bench.row().folio == Folio::Large) {
            return Ok(());
        }
        let (pages, wanted) = (page.folio_pages, self.bench.row().folio);
        Err(Stop::NotRun(format!("the kernel made a folio of {pages} pages where a {wanted} one was asked for")))
    }

    fn place(&mut self, name: &str) -> Result<&mut Place, Stop> {
        self.places.get_mut(name).ok_or_else(|| Stop::Failed(format!("there is no page {name}")))
    }

    fn file(&self, name: &str) -> Result<&File, Stop> {
        self.files.get(name).ok_or_else(|| Stop::Failed(format!("there is no file {name}")))
    }

    fn map_of(&mut self, page: &str) -> Result<u32, Stop> {
        let file = self.place(page)?.file.clone();
        Ok(self.file(&file)?.map)
    }

    fn page_info(&mut self, name: &str) -> Result<rnic_agent::proto::Page, Stop> {
        let (map, off) = (self.map_of(name)?, self.place(name)?.at);
        let value = self.bench.guest.must(Op::PageInfo { m: map, off })?;
        value.page().ok_or_else(|| Stop::Failed("the agent gave no page".into()))
    }

    /// Reads the page's address again and watches it; needed after each step that may move it.
    fn locate(&mut self, name: &str) -> Result<(), Stop> {
        let page = self.page_info(name)?;
        if !page.present {
            return Err(Stop::Inconclusive(format!("page \"{name}\" is not present in the mapping")));
        }
        let gpa = page.gpa();
        self.place(name)?.gpa = gpa;
        self.bench.gpa = gpa;
        self.bench.guest.ledger().watch(gpa);
        Ok(())
    }

    fn pattern(&mut self, page: &str, tag: char) -> Result<Pattern, Stop> {
        let file = self.place(page)?.file.clone();
        let number = self.file(&file)?.number;
        Ok(pattern(self.bench.nonce(), number, tag))
    }

    // ---- what was seen ----

    fn image(&self, page: &str, content: &Content) -> Image {
        image(self.bench.nonce(), &self.files, self.places.get(page), content)
    }

    /// A power cut now: every page is compared with what was promised.
    fn cut(&mut self) -> Result<(), Stop> {
        let names: Vec<String> = self.places.keys().cloned().collect();
        let pages: Vec<_> = self.places.values().map(|place| (place.file.clone(), place.at)).collect();
        let (nonce, files, places) = (self.bench.nonce(), &self.files, &self.places);
        let kept = |(cut, place): (&CutPage, &Place)| match &cut.content {
            Ok(content) => place.model.judge(&image(nonce, files, Some(place), content)),
            Err(_) => Kept::Impossible,
        };
        let all = |cut: &[CutPage]| cut.iter().zip(places.values()).map(kept).collect::<Vec<_>>();
        // What the cruel cut leaves is well mostly: then nobody asks the other.
        let broken = |cut: &[CutPage]| all(cut).into_iter().any(|kept| kept > Kept::Exposed);
        let (cruel, kind) = self.bench.cut_pages(&pages, broken)?;
        let kind = kind.unwrap_or_else(|| cruel.clone());
        let judged = all(&cruel).into_iter().zip(all(&kind));
        let found: Vec<_> = names.iter().zip(cruel.into_iter().zip(kind)).zip(judged).collect();
        for ((name, (cruel, kind)), (first, second)) in found {
            self.judge(name, (cruel, first), (kind, second))?;
        }
        Ok(())
    }

    fn judge(&mut self, name: &str, cruel: (CutPage, Kept), kind: (CutPage, Kept)) -> Result<(), Stop> {
        if let Some(unreadable) = kind.0.unreadable().or_else(|| cruel.0.unreadable()) {
            self.bench.find(unreadable);
            return Ok(());
        }
        match (cruel.1, kind.1) {
            (Kept::Newest | Kept::Allowed, _) => self.kept.push(cruel.0.fact),
            (Kept::Exposed, _) => self.exposed.push(cruel.0.fact),
            (Kept::Impossible, _) | (_, Kept::Impossible) => {
                let foreign =
                    |page: &CutPage| page.content.as_ref().is_ok_and(|it| self.image(name, it).contains(&'!'));
                let leaked = foreign(&cruel.0) || foreign(&kind.0);
                let verdict = if leaked { Verdict::LeakTo } else { Verdict::Corrupt };
                self.bench.find(Finding::new(verdict, cruel.0.fact, [kind.0.fact]));
            }
            (Kept::Lost, Kept::Lost) => self.lost(name, &cruel.0, &kind.0)?,
            (Kept::Lost, _) => {
                return Err(Stop::Inconclusive("what fsync was to write is written, and no flush covers it".into()));
            }
        }
        Ok(())
    }

    /// A promise is broken. Does a later fsync keep it?
    fn lost(&mut self, name: &str, cruel: &CutPage, kind: &CutPage) -> Result<(), Stop> {
        std::thread::sleep(WORKER_TIME);
        let file = self.place(name)?.file.clone();
        let handle = self.file(&file)?.handle;
        let second = self.bench.fsync_of(handle)?;
        let page = (file, self.place(name)?.at);
        let (again, _) = self.bench.cut_pages(&[page], |_| false)?;
        let again = again.first().ok_or_else(|| Stop::Failed("the witness read no page".into()))?;
        let came = match &again.content {
            Ok(content) => {
                let image = self.image(name, content);
                self.place(name)?.model.judge(&image) == Kept::Newest
            }
            Err(_) => false,
        };
        let lost = Finding::new(Verdict::Lost, kind.fact, [cruel.fact, second.fact, again.fact]);
        self.bench.find(if came && second.ok() { lost.late() } else { lost.told(second.errno) });
        Ok(())
    }

    /// Nothing that was found is harm: what was it?
    fn conclude(self) -> Result<Finding, Stop> {
        let Self { overlaps, kept, exposed, .. } = self;
        let all = |first: FactId, more: Vec<FactId>, verdict| Ok(Finding::new(verdict, first, more));
        match (exposed.first(), overlaps.first(), kept.first()) {
            (Some(first), ..) => all(*first, kept, Verdict::Exposed),
            (None, Some(first), _) => all(*first, kept, Verdict::Benign),
            (None, None, Some(first)) => all(*first, kept[1..].to_vec(), Verdict::Safe),
            (None, None, None) => {
                Err(Stop::Inconclusive("the story has no power cut and nothing else to judge by".into()))
            }
        }
    }
}

/// A page by its writers: the letter of each sector that is this page's own, '!' where it is another's.
fn image(nonce: u64, files: &BTreeMap<String, File>, place: Option<&Place>, content: &Content) -> Image {
    let own = place.and_then(|place| files.get(&place.file)).map(|file| pattern(nonce, file.number, 'A').nonce);
    let first = place.map_or(0, |place| place.at / SECTOR as u64);
    let mut image = ['?'; PAGE as usize / SECTOR];
    let sectors = content.runs.iter().flat_map(|run| (0..run.sectors()).map(move |sector| (run, sector)));
    for (slot, ((run, sector), at)) in image.iter_mut().zip(sectors.zip(first..)) {
        *slot = match run {
            Run::Written { pattern, first: from, .. } => {
                let right = Some(pattern.nonce) == own && from.wrapping_add(sector) == at;
                if right { pattern.tag } else { '!' }
            }
            other => other.letter(),
        };
    }
    image
}
