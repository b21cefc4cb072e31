// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One row: its story is run at a bench, and its evidence judged as a whole.

use std::path::Path;

use crate::bench::Bench;
use crate::guest::Guest;
use crate::plan::{Injected, Row};
use crate::report::Figure;
use crate::verdict::{Finding, Stop, Verdict};
use blk::BlkOp;
use blk::{DiskAction, DiskRule, RequestMatch};

/// What came of a row's story.
pub(super) struct Played {
    pub(super) outcome: Result<Finding, Stop>,
    pub(super) evidence: Vec<String>,
    pub(super) figures: Vec<Figure>,
}

/// Runs one row's story and judges its evidence as a whole.
pub(super) fn play(guest: &mut Guest, witness: &mut Guest, row: &Row, nonce: u64, work: &Path) -> Played {
    guest.fs_disk().injections().clear();
    let mut bench = match Bench::prepare(guest, witness, *row, nonce, work) {
        Ok(bench) => bench,
        Err(stop) => return Played { outcome: Err(stop), evidence: Vec::new(), figures: Vec::new() },
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
    let closed = bench.close();
    let evidence = bench.take_evidence();
    bench.guest.fs_disk().injections().clear();
    let (outcome, evidence) = match row.scenario.inject {
        None => (told.and_then(|finding| closed.map(|()| finding)), evidence),
        Some(_) => control(&bench, fired, told, evidence),
    };
    Played { outcome, evidence, figures: bench.take_figures() }
}

/// Judges a negative control: was the injection noticed? By the checks that every row passes; or, where the device itself misbehaves,
/// by the scenario, which then has to find harm.
fn control(
    bench: &Bench<'_>,
    fired: bool,
    told: Result<Finding, Stop>,
    mut evidence: Vec<String>,
) -> (Result<Finding, Stop>, Vec<String>) {
    if !fired {
        return (Err(Stop::Inconclusive("the injection did not act".into())), evidence);
    }
    let device = bench.injection() == Some(Injected::Nic);
    let noticed = bench.broken_evidence();
    let (alone, harmful) = match told {
        Ok(finding) => (format!("would have said {}", finding.observed), finding.observed.verdict.harmful()),
        // What the device was to do wrong did not come about.
        Err(Stop::Inconclusive(why)) if device && noticed.is_none() => return (Err(Stop::Inconclusive(why)), evidence),
        Err(Stop::Inconclusive(why)) => (format!("would have stopped: {why}"), false),
        Err(stop) => return (Err(stop), evidence),
    };
    evidence.push(format!("alone, the scenario {alone}"));
    let caught = noticed.is_some() || device && harmful;
    evidence.extend(noticed.map(|what| format!("noticed: {what}")));
    (Ok(Finding::new(if caught { Verdict::Caught } else { Verdict::Missed })), evidence)
}
