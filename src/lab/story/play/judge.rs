// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was seen, against what was promised.

use std::collections::BTreeMap;

use rnic_agent::pattern::{Content, Run};
use rnic_agent::proto::Value;

use super::stage::{File, Place, pattern};
use super::{Play, Promise, Running};
use crate::bench::{CutPage, Frozen, Fsync, PAGE};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::model::{Image, Kept, PageModel, SECTOR};
use crate::oracle;
use crate::plan::DiskKind;
use crate::story::memory::Memory;
use crate::verdict::Verdict;
use probe::ledger::Seq;

/// How long a file system's own worker gets to put a page right.
const WORKER_TIME: std::time::Duration = std::time::Duration::from_millis(500);

/// A page after a power cut, and how that compares with what was promised.
type Judged = (CutPage, Kept);

impl Play<'_, '_> {
    /// A reader must see what was written last; `or` it is that.
    pub(super) fn seen(&mut self, by: &str, page: &str, value: Value, or: Verdict) -> Result<(), Stop> {
        let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
        let image = self.image(page, &content);
        let place = self.place(page)?;
        let (file, at, right) = (place.file.clone(), place.at, place.model.may_show(&image));
        let found = crate::fact::Found::of(&Ok(content));
        let fact = self.bench.now(What::Seen { by: by.into(), file, at, found });
        match right {
            true => {
                self.kept.push(fact);
                self.place(page)?.trail.push(fact);
            }
            false => self.find(page, Finding::new(or, fact, [])),
        }
        Ok(())
    }

    fn image(&self, page: &str, content: &Content) -> Image {
        image(self.bench.nonce(), &self.files, self.places.get(page), content)
    }

    /// A power cut now: every page is compared with what was promised.
    pub(super) fn cut(&mut self) -> Result<(), Stop> {
        let on_disk = |place: &Place| self.files.get(&place.file).is_some_and(|file| file.memory.on_disk());
        let looked: Vec<_> = self.places.iter().filter(|(_, place)| !place.gone && on_disk(place)).collect();
        let names: Vec<String> = looked.iter().map(|(name, _)| (*name).clone()).collect();
        let pages: Vec<_> = looked.iter().map(|(_, place)| (place.file.clone(), place.at)).collect();
        let (nonce, files, places) = (self.bench.nonce(), &self.files, &self.places);
        let kept = |(name, cut): (&String, &CutPage)| kept_of(nonce, files, places.get(name), cut);
        let all = |cut: &[CutPage]| names.iter().zip(cut).map(kept).collect::<Vec<_>>();
        // What the cruel cut leaves is well mostly: then nobody asks the other.
        let doubtful = |cut: &[CutPage]| all(cut).into_iter().any(|kept| kept >= Kept::Exposed);
        let drawn = self.bench.draw_cuts()?;
        let (cruel, kind) = self.bench.cut_pages(&pages, doubtful)?;
        let kind = kind.unwrap_or_else(|| cruel.clone());
        let judged: Vec<_> = all(&cruel).into_iter().zip(all(&kind)).collect();
        for (((name, cruel), kind), (first, second)) in names.iter().zip(&cruel).zip(kind).zip(judged) {
            self.judge(name, (cruel.clone(), first), (kind, second))?;
        }
        self.cut_drawn(drawn, (&names, &pages), &cruel)
    }

    /// The same of disks that had written out a part of what no flush covers; `cruel` is of one that had written nothing of it.
    fn cut_drawn(
        &mut self,
        drawn: Vec<Frozen>,
        (names, pages): (&[String], &[(String, u64)]),
        cruel: &[CutPage],
    ) -> Result<(), Stop> {
        for frozen in drawn {
            // Where harm was found there is nothing left to ask.
            if self.found.iter().any(|(_, finding)| finding.verdict().harmful()) {
                break;
            }
            let cuts = self.bench.read_pages(frozen, pages)?;
            for ((name, cruel), cut) in names.iter().zip(cruel).zip(cuts) {
                let kept = kept_of(self.bench.nonce(), &self.files, self.places.get(name), &cut);
                self.judge_drawn(name, cruel, (cut, kept))?;
            }
        }
        Ok(())
    }

    fn judge_drawn(&mut self, name: &str, cruel: &CutPage, (drawn, kept): Judged) -> Result<(), Stop> {
        let harm = match kept {
            _ if drawn.content.is_err() => drawn.unreadable().map(|unreadable| unreadable.beside([cruel.fact])),
            Kept::Newest | Kept::Allowed | Kept::Exposed => None,
            Kept::Lost => Some(self.lost(name, (cruel, &drawn), None)?),
            Kept::Impossible => Some(self.foreign(name, [&drawn, cruel])),
        };
        match harm {
            Some(harm) => self.find(name, harm),
            None => self.kept.push(drawn.fact),
        }
        Ok(())
    }

    /// The page has what no order of the steps leaves there: another page's bytes, or nobody's.
    fn foreign(&self, name: &str, cuts: [&CutPage; 2]) -> Finding {
        let foreign = |page: &CutPage| page.content.as_ref().is_ok_and(|it| self.image(name, it).contains(&'!'));
        let verdict = if cuts.into_iter().any(foreign) { Verdict::LeakTo } else { Verdict::Corrupt };
        Finding::new(verdict, cuts[0].fact, [cuts[1].fact])
    }

    fn judge(&mut self, name: &str, cruel: Judged, kind: Judged) -> Result<(), Stop> {
        if let Some(unreadable) = kind.0.unreadable().or_else(|| cruel.0.unreadable()) {
            self.find(name, unreadable);
            return Ok(());
        }
        self.told_twice(&[&cruel.0, &kind.0]);
        // While a write is under way one part may have it and another not: that is what resynchronisation is for.
        if let Some(apart) = kind.0.apart().or_else(|| cruel.0.apart()).filter(|_| !self.writes_are_open()) {
            self.find(name, apart);
            return Ok(());
        }
        match (cruel.1, kind.1) {
            (Kept::Newest, _) => {
                self.kept.push(cruel.0.fact);
                // A page that nobody has written is a witness.
                if self.place(name)?.since > 0 && self.bench.row().disk != DiskKind::Pmem {
                    let (_, fact) = self.newer(name, cruel.0.at)?;
                    self.place(name)?.trail.push(fact);
                }
            }
            (Kept::Allowed, _) => self.kept.push(cruel.0.fact),
            (Kept::Exposed, Kept::Exposed) => self.expose(name, &cruel.0, &kind.0)?,
            // It is written, and nobody owes that it is flushed.
            (Kept::Exposed, Kept::Newest | Kept::Allowed) => self.kept.push(kind.0.fact),
            (Kept::Impossible, _) | (_, Kept::Impossible) => {
                let impossible = self.foreign(name, [&cruel.0, &kind.0]);
                self.find(name, impossible);
            }
            (Kept::Lost, Kept::Lost) => {
                let lost = self.lost(name, (&cruel.0, &kind.0), None)?;
                self.find(name, lost);
            }
            (Kept::Lost, _) | (_, Kept::Lost) => {
                return Err(Stop::Inconclusive("what fsync was to write is written, and no flush covers it".into()));
            }
        }
        Ok(())
    }

    fn told_twice(&mut self, cuts: &[&CutPage]) {
        self.kept.extend(cuts.iter().filter_map(|cut| cut.twice).filter(|(agree, _)| *agree).map(|(_, fact)| fact));
    }

    /// Whether a write may be on its way to the disk.
    fn writes_are_open(&self) -> bool {
        let open = |running: &Running| match running {
            Running::Hold { held, .. } => held.is_some(),
            Running::Job(job) => job.effect.writes_disk(),
            Running::Read(_) | Running::Ring { .. } | Running::Pipe { .. } | Running::Ended => false,
        };
        self.running.values().any(open)
    }

    /// Older bytes than memory had when an fsync returned 0, and no promise broken: if the ledger has no newer write of the page either.
    fn expose(&mut self, name: &str, cruel: &CutPage, kind: &CutPage) -> Result<(), Stop> {
        let (newer, fact) = self.newer(name, kind.at)?;
        if newer {
            let what = "the ledger has a newer write of the page than the power cut shows";
            return Err(Stop::Inconclusive(what.into()));
        }
        self.exposed.extend([kind.fact, cruel.fact, fact]);
        Ok(())
    }

    /// Whether the page was written between the coming of its newest bytes and the power cut at `cut`, and the fact.
    fn newer(&mut self, name: &str, cut: Seq) -> Result<(bool, FactId), Stop> {
        let (gpa, since) = (self.aim(name)?, self.place(name)?.since);
        let newer = oracle::newer_write(self.bench.guest.ledger(), gpa, since);
        // What a worker wrote while the witness was reading is no answer.
        match newer.filter(|write| write.data_begin.is_some_and(|begun| begun < cut)) {
            Some(write) => Ok((true, self.bench.block(&write))),
            None => Ok((false, self.bench.fact(cut, What::NoBlock { op: "write".into(), gpa, since }))),
        }
    }

    /// What an fsync was to bring is not there. Does a later one bring it? `failed`: that fsync told of an error.
    fn lost(&mut self, name: &str, cuts: (&CutPage, &CutPage), failed: Option<&Fsync>) -> Result<Finding, Stop> {
        let (_, newer) = self.newer(name, cuts.1.at)?;
        std::thread::sleep(WORKER_TIME);
        let file = self.place(name)?.file.clone();
        let handle = self.file(&file)?.opened.handle;
        let second = self.bench.fsync_of(handle)?;
        let page = (file, self.place(name)?.at);
        let (nonce, files, place) = (self.bench.nonce(), &self.files, self.places.get(name));
        let newest = |cut: &CutPage| {
            let content = cut.content.as_ref().ok();
            let image = content.map(|content| image(nonce, files, place, content));
            image.zip(place).is_some_and(|(image, place)| place.model.judge(&image) == Kept::Newest)
        };
        let (again, kind_again) = self.bench.cut_pages(&[page], |cut| !cut.iter().all(newest))?;
        let came = again.iter().all(newest);
        let again = kind_again.unwrap_or(again);
        let again = again.first().ok_or_else(|| Stop::Failed("the witness read no page".into()))?;
        let (cruel, kind) = cuts;
        let trail = self.place(name)?.trail.clone();
        let facts = [cruel.fact, newer, second.fact, again.fact].into_iter().chain(trail);
        let lost = Finding::new(Verdict::Lost, kind.fact, facts).told(failed.and_then(|fsync| fsync.errno));
        match (came && second.ok(), failed) {
            (true, None) => Ok(lost.late()),
            (true, Some(_)) => {
                Err(Stop::Inconclusive("fsync failed, and a second one brought what it was to write".into()))
            }
            (false, _) => Ok(lost),
        }
    }

    /// An fsync has failed that the story does not let fail: is what it was to write on disk? The row ends with the answer.
    pub(super) fn fsync_failed(&mut self, fsync: &Fsync, promises: &BTreeMap<String, Promise>) -> Stop {
        match self.after_failure(fsync, promises) {
            Ok(finding) => Stop::Found(finding),
            Err(stop) => stop,
        }
    }

    fn after_failure(&mut self, fsync: &Fsync, promises: &BTreeMap<String, Promise>) -> Result<Finding, Stop> {
        let mut pages = Vec::new();
        for name in promises.keys() {
            let place = self.place(name)?;
            pages.push((place.file.clone(), place.at));
        }
        let (cruel, kind) = self.bench.cut_pages(&pages, |_| true)?;
        for ((name, promise), (cruel, kind)) in
            promises.iter().zip(cruel.iter().zip(kind.unwrap_or_else(|| cruel.clone())))
        {
            if let Some(unreadable) = kind.unreadable() {
                return Ok(unreadable.beside([fsync.fact]));
            }
            let kept = match &kind.content {
                Ok(content) => {
                    let image = self.image(name, content);
                    self.place(name)?.model.keeps(&image, promise)
                }
                Err(_) => false,
            };
            if !kept {
                return self.lost(name, (cruel, &kind), Some(fsync));
            }
        }
        Err(Stop::Inconclusive("fsync failed, and what it was to write is on disk".into()))
    }
}

/// How what a power cut left of a page compares with what was promised.
fn kept_of(nonce: u64, files: &BTreeMap<String, File>, place: Option<&Place>, cut: &CutPage) -> Kept {
    let (Ok(content), Some(place)) = (&cut.content, place) else { return Kept::Impossible };
    let image = image(nonce, files, Some(place), content);
    match files.get(&place.file).map(|file| file.memory) {
        // Stores to a private mapping are none to the file.
        Some(Memory::Private) => PageModel::new().judge(&image),
        _ => place.model.judge(&image),
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
