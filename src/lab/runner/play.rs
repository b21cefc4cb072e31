// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One attempt at a row: its story is run at a bench, and its evidence judged as a whole.

use std::path::Path;

use crate::bench::Bench;
use crate::fact::{FactId, Facts, What};
use crate::finding::{Finding, Stop, heaviest};
use crate::guest::Guest;
use crate::plan::{Injected, Row};
use crate::report::Figure;
use crate::verdict::{Observed, Verdict};
use blk::BlkOp;
use blk::{DiskAction, DiskRule, RequestMatch};

/// What came of an attempt.
pub(super) struct Played {
    pub(super) facts: Facts,
    /// Never empty.
    pub(super) findings: Vec<Finding>,
    pub(super) warned: bool,
    pub(super) figures: Vec<Figure>,
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
            return Played { facts, findings: vec![finding], warned: false, figures: Vec::new() };
        }
    };
    let action = match row.scenario.inject {
        Some(Injected::LyingLever) => Some(DiskAction::LieAboutHold),
        Some(Injected::MissedWrite) => Some(DiskAction::HideFromLedger),
        Some(Injected::Nic) | None => None,
    };
    let rule = action.and_then(|action| {
        let request = RequestMatch { op: Some(BlkOp::Write), page: Some(bench.gpa), lba: None };
        bench.guest.fs_disk().injections().add(DiskRule::new(1, action).on(request))
    });
    let told = (row.scenario.run)(&mut bench);
    let fired = match row.scenario.inject {
        Some(Injected::Nic) => bench.injections_fired(),
        _ => rule.and_then(|id| bench.guest.fs_disk().injections().rule(id)).is_some_and(|rule| rule.fired > 0),
    };
    // A guest that hangs would hang here as well.
    let hangs = matches!(told, Err(Stop::Hung(_)) | Err(Stop::Silent(_)) | Err(Stop::Panicked(_)));
    let closed = if hangs { Ok(()) } else { bench.close() };
    let broken = if hangs { None } else { bench.broken_evidence() };
    bench.guest.fs_disk().injections().clear();
    match row.scenario.inject {
        None => conclude(&mut bench, told, broken),
        Some(_) => control(&mut bench, fired, told, broken),
    }
    closed.err().into_iter().for_each(|stop| bench.stop(stop));
    let warned = bench.hear_kernels();
    let (facts, findings) = bench.take_findings();
    Played { facts, findings, warned, figures: bench.take_figures() }
}

/// The story's own finding; beside it, evidence that cannot be used is one too.
fn conclude(bench: &mut Bench<'_>, told: Result<Finding, Stop>, broken: Option<String>) {
    match told {
        Ok(finding) => bench.find(finding),
        Err(stop) => bench.stop(stop),
    }
    if let Some(why) = broken {
        bench.stop(Stop::Inconclusive(why));
    }
}

/// Judges a negative control: was the injection noticed? By the checks that every row passes; or, where the device itself misbehaves,
/// by the scenario, which then has to find harm.
fn control(bench: &mut Bench<'_>, fired: bool, told: Result<Finding, Stop>, noticed: Option<String>) {
    if !fired {
        return bench.stop(Stop::Inconclusive("the injection did not act".into()));
    }
    let device = bench.injection() == Some(Injected::Nic);
    let alone = match told {
        // What the device was to do wrong did not come about.
        Err(Stop::Inconclusive(why)) if device && noticed.is_none() => return bench.stop(Stop::Inconclusive(why)),
        Err(stop @ (Stop::Inconclusive(_) | Stop::Found(_))) => bench.finding_of(stop),
        Err(stop) => return bench.stop(stop),
        Ok(finding) => finding,
    };
    let verdict = alone.verdict();
    let note = bench.note(format!("alone, the scenario would have said {}", alone.observed()));
    let seen: Option<FactId> = noticed.map(|why| bench.now(What::Unsound { why }));
    let caught = seen.is_some() || device && verdict.harmful();
    let facts = [note].into_iter().chain(alone.facts().iter().copied());
    bench.forget_findings();
    bench.find(match (caught, seen) {
        (true, Some(seen)) => Finding::new(Verdict::Caught, seen, facts),
        (true, None) => Finding::new(Verdict::Caught, note, alone.facts().iter().copied()),
        (false, _) => Finding::new(Verdict::Missed, note, alone.facts().iter().copied()),
    });
}
