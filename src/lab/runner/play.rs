// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One attempt at a row: its story is run at a bench, and its evidence judged as a whole.

use std::path::Path;
use std::time::Instant;

use crate::bench::{Bench, Cuts};
use crate::check::{Check, Tripped};
use crate::controls::Control;
use crate::fact::{FactId, Facts, What};
use crate::finding::{Finding, Stop, heaviest};
use crate::guest::Guest;
use crate::plan::Row;
use crate::report::Figure;
use crate::report::timeline::Timeline;
use crate::verdict::{Observed, Verdict};
use inject::{Outcome, Plan};

/// What came of an attempt.
#[derive(Default)]
pub(super) struct Played {
    pub(super) facts: Facts,
    /// Never empty when it is told.
    pub(super) findings: Vec<Finding>,
    pub(super) warned: bool,
    pub(super) figures: Vec<Figure>,
    /// What the guest's ledger has of it, page by page.
    pub(super) timeline: Timeline,
    /// What became of a plan's injections; empty without one, and where nothing was armed.
    pub(super) injections: Vec<Outcome>,
}

/// What an attempt is made of beside its row.
pub(super) struct Data<'p> {
    /// What its bytes are made of.
    pub(super) nonce: u64,
    /// Which attempt it is, from 0.
    pub(super) attempt: u64,
    /// Injections, and what is drawn by.
    pub(super) plan: Option<(&'p Plan, u64)>,
    /// Power cuts that it makes where it asks what one leaves.
    pub(super) cuts: Cuts,
    /// When the row's time is over.
    pub(super) deadline: Option<Instant>,
}

impl Played {
    /// The heaviest finding, with what qualifies it.
    pub(super) fn observed(&self) -> Observed {
        let verdict = heaviest(&self.findings).map_or(Observed::new(Verdict::Inconclusive), Finding::observed);
        Observed { complained: self.warned, ..verdict }
    }
}

/// Runs one row's story and judges its evidence as a whole.
pub(super) fn play(guest: &mut Guest, witness: &mut Guest, row: &Row, data: &Data<'_>, work: &Path) -> Played {
    guest.fs_disk().injections().clear();
    limit(guest, witness, data.deadline);
    let mut bench = match Bench::prepare(guest, witness, *row, (data.nonce, data.attempt), work) {
        Ok(bench) => bench,
        Err(stop) => {
            limit(guest, witness, None);
            let mut facts = Facts::default();
            let finding = stop.finding(&mut facts, 0);
            return Played { facts, findings: vec![finding], ..Played::default() };
        }
    };
    bench.make_cuts(data.cuts);
    if let Some(control) = row.control
        && let Err(stop) = bench.plant(control.plant)
    {
        bench.stop(stop);
    }
    let (told, injected) = tell(&mut bench, row, data.plan);
    // A row whose time was over was told nothing. Whatever follows is the lab's own work.
    let excuse = if bench.guest.out_of_time() { Excuse::default() } else { injected.excuse };
    bench.lift_limit();
    let until = bench.guest.ledger().now();
    bench.look_for_lost_faults();
    let acted = bench.plant_acted();
    // A guest that hangs would hang here as well.
    let hangs = matches!(told, Err(Stop::Hung(_)) | Err(Stop::Silent(_)) | Err(Stop::Panicked(_)));
    let closed = if hangs { Ok(()) } else { bench.close() };
    let said = bench.hear_kernels();
    let tripped = if hangs { Vec::new() } else { bench.tripped() };
    bench.uproot();
    match row.control {
        None => conclude(&mut bench, told, &tripped, &excuse),
        Some(control) => judge_control(&mut bench, control, acted, told, &tripped),
    }
    closed.err().into_iter().for_each(|stop| ended(&mut bench, stop, &excuse));
    // What a driver says of a device that was broken on purpose is right, and on record.
    let warned = bench.take_down(said) && !row.control.is_some_and(|control| control.plant.spoils());
    let (facts, findings) = bench.take_findings();
    let timeline = bench.timeline(&facts, &findings, until);
    Played { facts, findings, warned, figures: bench.take_figures(), timeline, injections: injected.outcomes }
}

fn limit(guest: &Guest, witness: &Guest, deadline: Option<Instant>) {
    guest.end_steps_at(deadline);
    witness.end_steps_at(deadline);
}

/// What a plan did to a row.
#[derive(Default)]
struct Injected {
    outcomes: Vec<Outcome>,
    excuse: Excuse,
}

/// What may have been an injection's doing.
#[derive(Default)]
struct Excuse {
    /// The first firings; empty: nothing.
    firings: Vec<FactId>,
    /// One of them was of a disk, whose errors fsync tells.
    disk: bool,
}

/// The scenario's steps, with the plan's injections at the devices as long as they last.
fn tell(bench: &mut Bench<'_>, row: &Row, plan: Option<(&Plan, u64)>) -> (Result<Finding, Stop>, Injected) {
    let Some((plan, seed)) = plan else { return ((row.scenario.run)(bench), Injected::default()) };
    let armed = match bench.arm_plan(plan, seed) {
        Ok(armed) => armed,
        Err(stop) => return (Err(stop), Injected::default()),
    };
    let told = (row.scenario.run)(bench);
    let (summary, firings) = bench.disarm_plan(&armed);
    let outcomes = summary.injections;
    let disk = outcomes.iter().any(|outcome| outcome.fired > 0 && outcome.device.starts_with("disk"));
    (told, Injected { outcomes, excuse: Excuse { firings, disk } })
}

/// A row that ended before its story did. Where an injection had fired, and the guest lives, the program was told, and nothing is in doubt.
fn ended(bench: &mut Bench<'_>, stop: Stop, excuse: &Excuse) {
    let told = matches!(stop, Stop::Inconclusive(_) | Stop::Failed(_) | Stop::NotRun(_)) && bench.guest.alive();
    let finding = bench.finding_of(stop);
    let finding = if told { excuse.erred(finding) } else { excuse.of_loss(finding) };
    bench.find(finding);
}

impl Excuse {
    /// A program that was told of an error, with the firings.
    fn erred(&self, finding: Finding) -> Finding {
        let errno = finding.observed().errno;
        let facts = finding.facts().iter().chain(&self.firings).copied();
        match (self.firings.is_empty(), finding.facts().first()) {
            (false, Some(first)) => Finding::new(Verdict::Erred, *first, facts.skip(1)).told(errno),
            _ => finding,
        }
    }

    /// What an fsync was to write is gone, and it said so: that is what is owed where the disk failed the write.
    fn of_loss(&self, finding: Finding) -> Finding {
        let told = finding.verdict() == Verdict::Lost && finding.observed().errno.is_some();
        if told && self.disk { self.erred(finding) } else { finding }
    }
}

/// The story's own finding; beside it, evidence that cannot be used is one too.
fn conclude(bench: &mut Bench<'_>, told: Result<Finding, Stop>, tripped: &[Tripped], excuse: &Excuse) {
    match told {
        Ok(finding) => bench.find(excuse.of_loss(finding)),
        Err(stop) => ended(bench, stop, excuse),
    }
    for Tripped { check, why } in tripped {
        let fact = bench.now(What::Unsound { why: why.clone(), check: Some(*check) });
        bench.find(Finding::new(Verdict::Inconclusive, fact, []));
    }
}

/// Judges a negative control: did what had to notice? Checks that every row passes, and the scenario itself, which then has to find harm.
/// That something else noticed does not count.
fn judge_control(
    bench: &mut Bench<'_>,
    control: Control,
    acted: bool,
    told: Result<Finding, Stop>,
    tripped: &[Tripped],
) {
    if !acted {
        return bench.stop(Stop::Inconclusive(format!("what was planted ({}) did not act", control.plant.name())));
    }
    // A story that could not be told is none, unless a check says why.
    let alone = match told {
        Err(stop @ Stop::NotRun(_)) => return bench.stop(stop),
        Err(stop @ Stop::Failed(_)) if tripped.is_empty() => return bench.stop(stop),
        Err(stop) => bench.finding_of(stop),
        Ok(finding) => finding,
    };
    let mut told = bench.take_found();
    told.push(alone);
    let harm = heaviest(&told).filter(|finding| finding.verdict().harmful()).cloned();
    let alone = heaviest(&told).cloned();
    let mut missing = Vec::new();
    let mut facts = Vec::new();
    for check in control.checks {
        let noticed = match check {
            Check::Harm => harm.as_ref().map(|finding| finding.facts().to_vec()),
            Check::Benign => told.iter().find(|it| it.verdict() == Verdict::Benign).map(|it| it.facts().to_vec()),
            _ => tripped
                .iter()
                .find(|one| one.check == *check)
                .map(|one| vec![bench.now(What::Unsound { why: one.why.clone(), check: Some(one.check) })]),
        };
        match noticed {
            Some(noticed) => facts.extend(noticed),
            None => missing.push(check.name()),
        }
    }
    let words = alone.map_or_else(String::new, |alone| alone.observed().to_string());
    let note = bench.note(format!("alone, the scenario would have said {words}"));
    let finding = match missing.is_empty() {
        true => Finding::new(Verdict::Caught, note, facts),
        false => {
            let others: Vec<_> = tripped.iter().map(|one| one.check.name()).collect();
            let others = if others.is_empty() { "none".into() } else { others.join(", ") };
            let (plant, missing) = (control.plant.name(), missing.join(" and "));
            let what =
                bench.note(format!("{plant} was planted, and {missing} did not notice; of the others: {others}"));
            Finding::new(Verdict::Missed, what, [note].into_iter().chain(facts))
        }
    };
    bench.find(finding);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_was_told_is_excused_where_a_disk_was_made_to_fail() {
        let mut facts = Facts::default();
        let mut fact = |text: &str| facts.add(1, What::Note { text: text.into() });
        let (loss, firing) = (fact("loss"), fact("firing"));
        let excuse = |disk| Excuse { firings: vec![firing], disk };
        let lost = |errno| Finding::new(Verdict::Lost, loss, []).told(errno);
        let erred = excuse(true).of_loss(lost(Some(libc::EIO)));
        assert_eq!((erred.observed().to_string(), erred.facts()), ("ERRED(EIO)".into(), &[loss, firing][..]));
        // fsync returned 0; no disk failed; nothing fired; other harm.
        assert_eq!(excuse(true).of_loss(lost(None)), lost(None));
        assert_eq!(excuse(false).of_loss(lost(Some(libc::EIO))), lost(Some(libc::EIO)));
        assert_eq!(Excuse::default().of_loss(lost(Some(libc::EIO))), lost(Some(libc::EIO)));
        let torn = Finding::new(Verdict::Torn, loss, []).told(Some(libc::EIO));
        assert_eq!(excuse(true).of_loss(torn.clone()), torn);
    }

    #[test]
    fn a_row_that_ended_early_erred_only_where_something_fired() {
        let mut facts = Facts::default();
        let mut fact = |text: &str| facts.add(1, What::Note { text: text.into() });
        let (why, firing) = (fact("why"), fact("firing"));
        let doubt = Finding::new(Verdict::Inconclusive, why, []);
        let erred = Excuse { firings: vec![firing], disk: false }.erred(doubt.clone());
        assert_eq!((erred.verdict(), erred.facts()), (Verdict::Erred, &[why, firing][..]));
        assert_eq!(Excuse::default().erred(doubt.clone()), doubt);
    }
}
