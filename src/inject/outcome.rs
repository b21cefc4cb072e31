// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What became of a plan's injections: how often each matched, how often it fired.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use probe::{Action, Match, Rule, Rules};

/// What became of one injection, over all devices that it was for. Field names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Line of the plan.
    pub line: usize,
    /// The devices that it is for.
    pub device: String,
    /// What they do.
    pub action: String,
    /// Occasions that were meant.
    pub matched: u64,
    /// Times it fired.
    pub fired: u64,
}

/// What became of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// In the order of the plan.
    pub injections: Vec<Outcome>,
}

/// Adds what became of the same injections at another time.
pub fn join(all: &mut [Outcome], more: &[Outcome]) {
    for one in more {
        if let Some(outcome) = all.iter_mut().find(|outcome| outcome.name == one.name) {
            outcome.matched += one.matched;
            outcome.fired += one.fired;
        }
    }
}

impl Summary {
    /// Nothing has happened yet.
    pub fn new(plan: &Plan) -> Self {
        let outcome = |injection: &crate::Injection| Outcome {
            name: injection.name.clone(),
            line: injection.line,
            device: injection.device.to_string(),
            action: injection.action.into(),
            matched: 0,
            fired: 0,
        };
        Self { injections: plan.injections.iter().map(outcome).collect() }
    }

    /// Adds what the rules of a device say, those among them that were removed meanwhile.
    pub fn add<M: Match, A: Action>(&mut self, rules: &Rules<M, A>) {
        rules.rules().iter().chain(&rules.removed()).for_each(|rule| self.add_rule(rule));
    }

    /// Adds what one rule says, if it is of the plan.
    pub fn add_rule<M, A>(&mut self, rule: &Rule<M, A>) {
        // No two injections of a plan have one name.
        if let Some(outcome) = self.injections.iter_mut().find(|outcome| outcome.name == rule.name) {
            outcome.matched += rule.matched;
            outcome.fired += rule.fired;
        }
    }

    /// Times that any of them fired.
    pub fn fired(&self) -> u64 {
        self.injections.iter().map(|outcome| outcome.fired).sum()
    }

    /// Those that never fired.
    pub fn idle(&self) -> impl Iterator<Item = &Outcome> {
        self.injections.iter().filter(|outcome| outcome.fired == 0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.injections.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0).max("injection".len());
        write!(f, "{:width$} {:7} {:21} {:>8} {:>8}", "injection", "device", "action", "matched", "fired")?;
        for Outcome { name, device, action, matched, fired, .. } in &self.injections {
            write!(f, "\n{name:width$} {device:7} {action:21} {matched:8} {fired:8}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use blk::{BlkOp, DiskAction, DiskInjections, RequestShape};
    use probe::ledger::Ledger;

    #[test]
    fn what_two_devices_did_is_one_outcome() {
        let text = "[[inject]]\ndevice = 'disk'\naction = 'io-error'\nop = 'write'\nevery = 2\n\
            [[inject]]\nname = 'none'\ndevice = 'disk1'\naction = 'unsupported'\nop = 'flush'\n";
        let plan = Plan::parse(Path::new("p"), text).unwrap();
        let mut summary = Summary::new(&plan);
        let write = RequestShape { op: BlkOp::Write, lba: &[], memory: &[], ledger: &Ledger::new() };
        for index in 0..2 {
            let rules = DiskInjections::default();
            for rule in plan.disk_rules(index, 0) {
                rules.add(rule);
            }
            let fired = (0..4).filter(|_| rules.consult(&write, |a| matches!(a, DiskAction::Status(_))).is_some());
            assert_eq!(fired.count(), 2);
            // On one of them somebody disarms it in the end.
            rules.rules().iter().take(index.into()).for_each(|rule| drop(rules.remove(rule.id)));
            summary.add(&rules);
        }
        let counts: Vec<_> = summary.injections.iter().map(|one| (one.matched, one.fired)).collect();
        assert_eq!(counts, [(8, 4), (0, 0)]);
        assert_eq!(summary.idle().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["none"]);
        assert!(summary.to_string().lines().nth(1).unwrap().starts_with("injection 1 disk    io-error"));
        let mut twice = summary.clone();
        join(&mut twice.injections, &summary.injections);
        assert_eq!((twice.injections[0].matched, twice.fired(), summary.fired()), (16, 8, 4));
    }
}
