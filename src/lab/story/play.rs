// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A story's steps at a bench. What each page may hold is [`PageModel`](crate::model::PageModel)'s to say; here is what is done, and what was seen.
//!
//! * here: the rounds of a story, and what they come to. `stage`: files and pages. `judge`: what was seen, against what was promised.
//! * `steps`: what each step does; `jobs`: what may come of it; `levers`: requests that are held; `buffers`: what O_DIRECT writes are from; `processes`: who does it; `gup`: io_uring, AF_XDP, vmsplice(2), process_vm_writev(2); `rdma`.

mod buffers;
mod gup;
mod jobs;
mod judge;
mod levers;
mod memory;
mod processes;
mod rdma;
mod stage;
mod steps;

use std::collections::BTreeMap;

use rnic_agent::proto::MrInfo;

use super::Story;
use crate::bench::Bench;
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::model::Promise;
use crate::verdict::Verdict;
use blk::LeverId;
use buffers::Buffers;
use jobs::{Job, Waiting};
use levers::Read;
use processes::{By, Process};
use stage::{File, Place};

pub use stage::{Stage, source, stage};

/// Void trials after which a kernel does not do what the story asks for.
pub(super) const VOIDS: u32 = 6;

/// What goes on beside the steps.
enum Running {
    Read(Read),
    Hold {
        lever: LeverId,
        page: String,
        buffer: Option<String>,
        held: Option<u64>,
        met: bool,
    },
    Job(Job),
    /// Memory that is registered with an io_uring, or with an AF_XDP socket.
    Ring {
        ring: u32,
        by: Option<String>,
    },
    /// A pipe with a page.
    Pipe {
        pipe: u32,
        by: Option<String>,
        page: String,
    },
    /// A step in the background that has ended already, or a read that never began.
    Ended,
}

impl Running {
    /// The process that it belongs to.
    fn by(&self) -> By<'_> {
        match self {
            Running::Read(read) => read.by.as_deref(),
            Running::Job(job) => job.by.as_deref(),
            Running::Ring { by, .. } | Running::Pipe { by, .. } => by.as_deref(),
            Running::Hold { .. } | Running::Ended => None,
        }
    }

    /// The agent's job, of a step that has one.
    fn job(&self) -> Option<u32> {
        match self {
            Running::Read(read) => Some(read.job),
            Running::Job(job) => Some(job.job),
            Running::Hold { .. } | Running::Ring { .. } | Running::Pipe { .. } | Running::Ended => None,
        }
    }
}

/// A story at work.
pub(super) struct Play<'p, 'b> {
    bench: &'p mut Bench<'b>,
    story: &'static Story,
    files: BTreeMap<String, File>,
    places: BTreeMap<String, Place>,
    processes: BTreeMap<String, Process>,
    /// Registrations that have a name.
    keys: BTreeMap<String, MrInfo>,
    buffers: Buffers,
    running: BTreeMap<String, Running>,
    /// How often the steps have been played before.
    round: u32,
    /// The round says nothing: a step that had to take something took nothing. With the folio that it left alone.
    void: Option<u32>,
    /// What was found out of a page beside what the row's end says; the heaviest is the row's.
    found: Vec<(String, Finding)>,
    /// Overlaps that the ledger shows: a page was written while a write of it was held.
    overlaps: Vec<FactId>,
    /// What shows that no promise was broken.
    kept: Vec<FactId>,
    /// Older bytes than memory had, and no promise broken: the first fact is the power cut.
    exposed: Vec<FactId>,
    /// Steps that waited for what was held.
    waited: Vec<FactId>,
    /// Those of them that may still wait.
    waiting: Vec<Waiting>,
}

/// Plays the story of the bench's row.
pub fn run(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let (Some(story), Some(Stage { files, places })) = (bench.row().scenario.story, bench.take_stage()) else {
        return Err(Stop::Failed("this row has no story".into()));
    };
    let mut play = Play {
        bench,
        story,
        files,
        places,
        processes: BTreeMap::new(),
        keys: BTreeMap::new(),
        buffers: Buffers::new(),
        running: BTreeMap::new(),
        round: 0,
        void: None,
        found: Vec::new(),
        overlaps: Vec::new(),
        kept: Vec::new(),
        exposed: Vec::new(),
        waited: Vec::new(),
        waiting: Vec::new(),
    };
    let told = play.make_buffers().and_then(|()| play.rounds());
    for (_, finding) in std::mem::take(&mut play.found) {
        play.bench.find(finding);
    }
    told.and_then(|()| play.conclude())
}

impl Play<'_, '_> {
    /// Plays the steps as often as the story says. One broken promise is enough, but of a race each round counts.
    fn rounds(&mut self) -> Result<(), Stop> {
        let wanted = self.story.rounds();
        let (mut whole, mut hits, mut voids) = (0, 0, 0);
        while whole < wanted {
            let before = self.found.len();
            let told = self.play_once();
            self.tell_trails(before);
            let found = || self.found[before..].iter().any(|(_, it)| it.verdict().harmful());
            let harm = told.as_ref().map_or_else(harmful, |()| found());
            match self.void.filter(|_| !harm && told.is_ok()) {
                Some(pages) => {
                    voids += 1;
                    if voids == VOIDS {
                        self.count(wanted, hits, whole, voids);
                        return Err(left_alone(pages));
                    }
                }
                None => {
                    whole += 1;
                    hits += u32::from(harm);
                }
            }
            self.round += 1;
            let enough = harm && self.story.race.is_none();
            if told.is_err() || enough || whole == wanted {
                self.count(wanted, hits, whole, voids);
                return told;
            }
        }
        Ok(())
    }

    /// Puts on record in how many rounds harm was seen.
    fn count(&mut self, wanted: u32, hits: u32, whole: u32, voids: u32) {
        if self.story.most_rounds() > wanted {
            let what = "the advice took the page or what was attached to it".into();
            let fact = self.bench.now(What::Trials { what, hits: whole, of: whole + voids });
            self.kept.push(fact);
        }
        if wanted > 1 {
            let fact = self.bench.now(What::harm(hits, whole));
            self.kept.push(fact);
            let found = std::mem::take(&mut self.found);
            self.found = found.into_iter().map(|(page, finding)| (page, finding.beside([fact]))).collect();
        }
    }

    fn play_once(&mut self) -> Result<(), Stop> {
        self.void = None;
        self.waiting.clear();
        let told = self.bench.disk_told();
        self.places.values_mut().for_each(|place| place.trail = told.into_iter().collect());
        self.revive()?;
        let story = self.story;
        story.steps.iter().try_for_each(|step| self.step(step.get_ref()))
    }

    /// What happened to a page after something was found out of it tells of that too: when its read completed.
    fn tell_trails(&mut self, from: usize) {
        let (before, of_round) = (self.found.drain(..from).collect::<Vec<_>>(), std::mem::take(&mut self.found));
        let told = of_round.into_iter().map(|(page, finding)| {
            let trail = self.places.get(&page).map_or(&[][..], |place| &place.trail);
            let more: Vec<_> = trail.iter().filter(|fact| !finding.facts().contains(fact)).copied().collect();
            (page, finding.beside(more))
        });
        self.found = before.into_iter().chain(told.collect::<Vec<_>>()).collect();
    }

    /// What was found out of a page, beside others.
    fn find(&mut self, page: &str, finding: Finding) {
        self.found.push((page.into(), finding));
    }

    /// Nothing that was found is harm: what was it?
    fn conclude(self) -> Result<Finding, Stop> {
        let Self { places, overlaps, kept, exposed, waited, .. } = self;
        let trails = places.into_values().flat_map(|place| place.trail);
        let order = [
            (Verdict::Blocked, waited),
            (Verdict::Exposed, exposed),
            (Verdict::Benign, overlaps),
            (Verdict::Safe, kept),
        ];
        let verdict = order.iter().find(|(_, facts)| !facts.is_empty()).map(|(verdict, _)| *verdict);
        let Some(verdict) = verdict else {
            return Err(Stop::Inconclusive("the story has no power cut and nothing else to judge by".into()));
        };
        let mut facts: Vec<FactId> = Vec::new();
        // Those that say it come first.
        let own = order.iter().filter(|(of, _)| *of == verdict).chain(order.iter().filter(|(of, _)| *of != verdict));
        for fact in own.flat_map(|(_, facts)| facts.iter().copied()).chain(trails) {
            if !facts.contains(&fact) {
                facts.push(fact);
            }
        }
        Ok(Finding::new(verdict, facts[0], facts[1..].iter().copied()))
    }
}

fn harmful(stop: &Stop) -> bool {
    match stop {
        Stop::Found(finding) => finding.verdict().harmful(),
        Stop::Panicked(_) | Stop::Silent(_) | Stop::Hung(_) => true,
        Stop::Inconclusive(_) | Stop::NotRun(_) | Stop::Failed(_) => false,
    }
}

/// The advice did nothing to a folio of `pages` pages.
fn left_alone(pages: u32) -> Stop {
    match pages {
        1 => Stop::Inconclusive(format!("the advice did nothing to the page in {VOIDS} trials")),
        pages => Stop::NotRun(format!("reclaim leaves a pinned folio of {pages} pages alone ({VOIDS} trials)")),
    }
}

impl Play<'_, '_> {
    /// The letter that stands for `tag` in this round.
    fn letter(&self, tag: char) -> char {
        self.story.letter(tag, self.round)
    }

    /// What an fsync of `file` that begins now will promise.
    fn promises(&self, file: &str) -> BTreeMap<String, Promise> {
        let of = self.places.iter().filter(|(_, place)| place.file == file);
        of.map(|(name, place)| (name.clone(), place.model.fsync_begins())).collect()
    }
}
