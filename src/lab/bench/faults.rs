// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plan of injections at a row: its rules are at the devices of the guest under test while the scenario's steps run, and not before or
//! after. What the lab itself adds to a device (levers, plants) is apart from it. The witness is never injected.

use super::Bench;
use crate::fact::{FactId, What};
use crate::finding::Stop;
use blk::DiskInjections;
use inject::{Outcome, Plan, Summary};
use mlx5::hooks::NicInjections;
use probe::ledger::Seq;
use probe::{Action, Match, Rule, RuleId, Rules, firings};

/// Firings that are facts, one by one.
const MOST_FACTS: usize = 16;
/// Actions of a NIC whose effect ends with the occasion, or with what the program was told.
const PASSING: [&str; 10] = [
    "command-status",
    "command-delay",
    "stall",
    "rnr-on-fault",
    "abort-on-fault",
    "fault-event-late",
    "fault-event-reordered",
    "resume-failing",
    "payload-corrupted",
    "interrupt-twice",
];

/// A plan's rules at the devices.
#[derive(Debug)]
pub struct Armed<'p> {
    plan: &'p Plan,
    /// Of each disk.
    disks: Vec<Vec<RuleId>>,
    nic: Vec<RuleId>,
    /// When they were added.
    since: Seq,
}

/// Whether a device may not be what it was after this: the next row wants another guest.
pub fn outlasts(outcome: &Outcome) -> bool {
    // The disks under test are exchanged after each row.
    let disk = outcome.device.starts_with("disk") && outcome.device != "disk0";
    outcome.fired > 0 && !disk && !PASSING.contains(&outcome.action.as_str())
}

/// Adds rules; their numbers.
fn add<M: Match, A: Action>(rules: &Rules<M, A>, all: Vec<Rule<M, A>>) -> Result<Vec<RuleId>, Stop> {
    let full = || Stop::Failed("a device has no room for the plan's injections".into());
    all.into_iter().map(|rule| rules.add(rule).ok_or_else(full)).collect()
}

/// Takes rules away, and adds up what became of them.
fn take<M: Match, A: Action>(rules: &Rules<M, A>, own: &[RuleId], summary: &mut Summary) {
    for id in own {
        if let Some(rule) = rules.rule(*id) {
            summary.add_rule(&rule);
        }
        rules.remove(*id);
    }
}

impl Bench<'_> {
    /// Adds the plan's rules, with their counters at zero; what is drawn is drawn by `seed`.
    ///
    /// # Errors
    /// A device has no room for them.
    pub fn arm_plan<'p>(&self, plan: &'p Plan, seed: u64) -> Result<Armed<'p>, Stop> {
        let since = self.guest.ledger().now() + 1;
        let disk = |(index, injections): (u8, &DiskInjections)| add(injections, plan.disk_rules(index, seed));
        let disks = (0..).zip(self.guest.disks()).map(|(index, handle)| disk((index, handle.injections())));
        let disks = disks.collect::<Result<_, _>>()?;
        let rules = |injections: &NicInjections| add(injections, plan.nic_rules(0, seed));
        let nic = self.guest.nic().map(|nic| rules(nic.injections())).transpose()?.unwrap_or_default();
        Ok(Armed { plan, disks, nic, since })
    }

    /// Takes them away: what became of each, and the facts of the first firings.
    pub fn disarm_plan(&mut self, armed: &Armed<'_>) -> (Summary, Vec<FactId>) {
        let mut summary = Summary::new(armed.plan);
        for (handle, own) in self.guest.disks().iter().zip(&armed.disks) {
            take(handle.injections(), own, &mut summary);
        }
        if let Some(nic) = self.guest.nic() {
            take(nic.injections(), &armed.nic, &mut summary);
        }
        (summary, self.tell_firings(armed))
    }

    /// The row's time counts no more.
    pub fn lift_limit(&self) {
        self.guest.end_steps_at(None);
        self.witness.end_steps_at(None);
    }

    fn tell_firings(&mut self, armed: &Armed<'_>) -> Vec<FactId> {
        let planned = |name: &str| armed.plan.injections.iter().any(|injection| injection.name == name);
        let all = firings(self.guest.ledger(), armed.since).into_iter().filter(|firing| planned(&firing.name));
        let mut facts = Vec::new();
        let mut more = 0;
        for firing in all {
            if facts.len() == MOST_FACTS {
                more += 1;
                continue;
            }
            let probe::Firing { seq, device, name, matched, occasion, .. } = firing;
            facts.push(self.fact(seq, What::Injected { name, device, matched, occasion }));
        }
        if more > 0 {
            self.note(format!("and {more} more firings of the plan's injections"));
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use blk::{BlkOp, DiskAction, DiskRule, RequestMatch, RequestShape};
    use probe::ledger::Ledger;

    fn outcome(device: &str, action: &str, fired: u64) -> Outcome {
        let (name, device, action) = ("x".into(), device.into(), action.into());
        Outcome { name, line: 1, device, action, matched: 9, fired }
    }

    #[test]
    fn a_plan_s_rules_go_and_the_lab_s_own_stay() {
        let text = "[[inject]]\nname = 'w'\ndevice = 'disk1'\naction = 'io-error'\nop = 'write'\nnth = 2\n";
        let plan = Plan::parse(Path::new("p"), text).unwrap();
        let injections = DiskInjections::default();
        let hide = DiskRule::new(0, DiskAction::HideFromLedger);
        let own = injections.add(hide.on(RequestMatch { op: Some(BlkOp::Read), ..Default::default() })).unwrap();
        let write = RequestShape { op: BlkOp::Write, lba: &[], memory: &[], ledger: &Ledger::new() };
        let fails = || injections.consult(&write, |action| matches!(action, DiskAction::Status(_))).is_some();
        for _ in 0..2 {
            // From zero each time.
            let armed = add(&injections, plan.disk_rules(1, 7)).unwrap();
            assert_eq!([fails(), fails(), fails()], [false, true, false]);
            let mut summary = Summary::new(&plan);
            take(&injections, &armed, &mut summary);
            assert_eq!((summary.injections[0].matched, summary.fired()), (3, 1));
            assert_eq!(injections.rules().iter().map(|rule| rule.id).collect::<Vec<_>>(), [own]);
        }
        assert!(!fails());
    }

    /// A list of names that says what the vocabulary does not know says nothing.
    #[test]
    fn what_passes_is_in_the_vocabulary() {
        let known = |action: &str| inject::words().iter().any(|word| word.name == action);
        assert!(PASSING.into_iter().all(known));
    }

    #[test]
    fn what_outlasts_its_occasion_costs_a_guest() {
        for (device, action) in [("nic0", "command-hang"), ("nic", "fault-event-lost"), ("disk0", "io-error")] {
            assert!(outlasts(&outcome(device, action, 1)) && !outlasts(&outcome(device, action, 0)), "{action}");
        }
        let passing = PASSING.map(|action| ("nic0", action));
        for (device, action) in [("disk1", "io-error"), ("nic", "command-status")].into_iter().chain(passing) {
            assert!(!outlasts(&outcome(device, action, 1)), "{action}");
        }
    }
}
