// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a row puts on record: facts, and the findings that rest on them.

use super::Bench;
use crate::check::{Check, Tripped};
use crate::complaints::{Complaint, Gravity};
use crate::fact::{FactId, Facts, Role, What};
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;
use probe::ledger::Seq;

impl Bench<'_> {
    /// Puts a fact on record, as of `seq` in the ledger's order.
    pub fn fact(&mut self, seq: Seq, what: What) -> FactId {
        self.facts.add(seq, what)
    }

    /// The same, as of now.
    pub fn now(&mut self, what: What) -> FactId {
        let seq = self.guest.ledger().now();
        self.facts.add(seq, what)
    }

    /// A sentence beside the facts.
    pub fn note(&mut self, text: impl Into<String>) -> FactId {
        self.now(What::Note { text: text.into() })
    }

    /// A finding beside that with which the scenario ends: the heaviest is the row's.
    pub fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The row ended before its story did.
    pub fn stop(&mut self, stop: Stop) {
        let finding = self.finding_of(stop);
        self.findings.push(finding);
    }

    /// What a stop comes to.
    pub fn finding_of(&mut self, stop: Stop) -> Finding {
        let now = self.guest.ledger().now();
        stop.finding(&mut self.facts, now)
    }

    /// The findings so far, which are not the row's: a negative control judges them.
    pub fn take_found(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.findings)
    }

    /// Lines of the test guest's dump of blocked tasks that have one of `words`, on record.
    pub fn blocked(&mut self, words: &[&str]) -> Vec<FactId> {
        let lines = self.guest.blocked_tasks().into_iter().filter(|line| words.iter().any(|word| line.contains(word)));
        let guest = self.guest.role();
        lines.map(|line| self.now(What::Kernel { guest, gravity: Gravity::Message, line })).collect()
    }

    /// What both kernels have said since the last row. A check trips where the lab's own line was not heard.
    pub fn hear_kernels(&mut self) -> Vec<(Role, Complaint)> {
        let mut all = Vec::new();
        let heard = [&*self.guest, &*self.witness].map(|guest| (guest.role(), guest.hear()));
        for (role, (said, heard)) in heard {
            if !heard {
                let why =
                    format!("the {role} guest's kernel is not heard: a line that the lab put into its log is missing");
                self.tripped.push(Tripped { check: Check::Kernel, why });
            }
            all.extend(said.into_iter().map(|one| (role, one)));
        }
        all
    }

    /// Takes down what was heard. A thread that died is a finding, and so is a task that does not get on. Whether there were warnings.
    pub fn take_down(&mut self, said: Vec<(Role, Complaint)>) -> bool {
        let mut warned = false;
        for (guest, complaint) in said {
            let Complaint { gravity, line } = complaint;
            let fact = self.fact(0, What::Kernel { guest, gravity, line });
            let verdict = match gravity {
                Gravity::Oops => Verdict::Oops,
                Gravity::Hung => Verdict::Hung,
                Gravity::Warning | Gravity::Message => {
                    warned |= gravity == Gravity::Warning;
                    continue;
                }
            };
            match guest {
                Role::Test => self.guest.give_up(),
                Role::Witness => self.witness.give_up(),
            }
            self.find(Finding::new(verdict, fact, []));
        }
        warned
    }

    /// The facts and findings so far.
    pub fn take_findings(&mut self) -> (Facts, Vec<Finding>) {
        (std::mem::take(&mut self.facts), std::mem::take(&mut self.findings))
    }
}
