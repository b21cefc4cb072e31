// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One attempt at a row: its story is run at a bench, and its evidence judged as a whole.

use std::path::Path;

use crate::bench::Bench;
use crate::check::{Check, Tripped};
use crate::controls::Control;
use crate::fact::{Facts, What};
use crate::finding::{Finding, Stop, heaviest};
use crate::guest::Guest;
use crate::plan::Row;
use crate::report::Figure;
use crate::report::timeline::Timeline;
use crate::verdict::{Observed, Verdict};

/// What came of an attempt.
pub(super) struct Played {
    pub(super) facts: Facts,
    /// Never empty.
    pub(super) findings: Vec<Finding>,
    pub(super) warned: bool,
    pub(super) figures: Vec<Figure>,
    pub(super) timeline: Timeline,
}

impl Played {
    /// The heaviest finding, with what qualifies it.
    pub(super) fn observed(&self) -> Observed {
        let verdict = heaviest(&self.findings).map_or(Observed::new(Verdict::Inconclusive), Finding::observed);
        Observed { complained: self.warned, ..verdict }
    }
}

/// Runs one row's story and judges its evidence as a whole. `data`: the nonce, and which attempt this is.
pub(super) fn play(guest: &mut Guest, witness: &mut Guest, row: &Row, data: (u64, u64), work: &Path) -> Played {
    guest.fs_disk().injections().clear();
    let mut bench = match Bench::prepare(guest, witness, *row, data, work) {
        Ok(bench) => bench,
        Err(stop) => {
            let mut facts = Facts::default();
            let finding = stop.finding(&mut facts, 0);
            let (figures, timeline) = Default::default();
            return Played { facts, findings: vec![finding], warned: false, figures, timeline };
        }
    };
    if let Some(control) = row.control
        && let Err(stop) = bench.plant(control.plant)
    {
        bench.stop(stop);
    }
    let told = (row.scenario.run)(&mut bench);
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
        None => conclude(&mut bench, told, &tripped),
        Some(control) => judge_control(&mut bench, control, acted, told, &tripped),
    }
    closed.err().into_iter().for_each(|stop| bench.stop(stop));
    // What a driver says of a device that was broken on purpose is right, and on record.
    let warned = bench.take_down(said) && !row.control.is_some_and(|control| control.plant.spoils());
    let (facts, findings) = bench.take_findings();
    let timeline = bench.timeline(&facts, &findings, until);
    Played { facts, findings, warned, figures: bench.take_figures(), timeline }
}

/// The story's own finding; beside it, evidence that cannot be used is one too.
fn conclude(bench: &mut Bench<'_>, told: Result<Finding, Stop>, tripped: &[Tripped]) {
    match told {
        Ok(finding) => bench.find(finding),
        Err(stop) => bench.stop(stop),
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
