// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Findings, each with the facts that it rests on, and what ends a row before its story does.

use std::fmt;

use probe::ledger::Seq;
use serde::{Deserialize, Serialize};

use super::complaints::{self, Gravity};
use super::fact::{FactId, Facts, Role, What};
use super::verdict::{Observed, Verdict};

/// What was found out, and the facts that it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    verdict: Verdict,
    errno: Option<i32>,
    late: bool,
    facts: Vec<FactId>,
}

impl Finding {
    /// `verdict`, because of `first` and `more`.
    pub fn new(verdict: Verdict, first: FactId, more: impl IntoIterator<Item = FactId>) -> Self {
        Self { verdict, errno: None, late: false, facts: std::iter::once(first).chain(more).collect() }
    }

    /// The application was told of it by this error.
    pub fn told(self, errno: Option<i32>) -> Self {
        Self { errno, ..self }
    }

    /// A later fsync brought what an earlier one had promised.
    pub fn late(self) -> Self {
        Self { late: true, ..self }
    }

    /// The same, with what came before.
    pub fn beside(mut self, more: impl IntoIterator<Item = FactId>) -> Self {
        self.facts.extend(more);
        self
    }

    /// The word.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What it rests on; never empty.
    pub fn facts(&self) -> &[FactId] {
        &self.facts
    }

    /// The verdict with its qualifiers.
    pub fn observed(&self) -> Observed {
        Observed { errno: self.errno, late: self.late, ..Observed::new(self.verdict) }
    }
}

/// A finding as reports carry it. Names are stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The verdict with its qualifiers.
    pub verdict: String,
    /// Places in the list of facts.
    pub facts: Vec<FactId>,
}

impl From<&Finding> for Found {
    fn from(finding: &Finding) -> Self {
        Self { verdict: finding.observed().to_string(), facts: finding.facts.clone() }
    }
}

/// The heaviest of several findings; of equals the first.
pub fn heaviest(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().min_by_key(|finding| finding.verdict)
}

/// Why a row ended before its story did.
#[derive(Debug)]
pub enum Stop {
    /// It has found out what it can: nothing that follows could be told apart.
    Found(Finding),
    /// A step that the judgement rests on did not do what it should: lever not fired, folio of the wrong size, trial void.
    Inconclusive(String),
    /// The kernel cannot make what the row is about.
    NotRun(String),
    /// The guest kernel panicked, and said so.
    Panicked(Box<Silence>),
    /// The guest does not answer any more although its machine runs.
    Silent(Box<Silence>),
    /// A step did not return; the guest answers, and its kernel says which tasks are blocked.
    Hung(Box<Silence>),
    /// The lab, the agent or the host failed; a guest that went away without a word is such a failure.
    Failed(String),
}

/// A guest that has stopped working, with its own last words.
#[derive(Debug)]
pub struct Silence {
    /// Which.
    pub guest: Role,
    /// The step during which it did.
    pub during: String,
    /// What happened.
    pub why: String,
    /// The end of its console.
    pub console: String,
    /// What its kernel says of blocked tasks.
    pub blocked: Vec<String>,
    /// Where its processors are, looked at twice.
    pub places: Vec<String>,
}

impl Stop {
    /// What it comes to, with its facts as of `now`.
    pub fn finding(self, facts: &mut Facts, now: Seq) -> Finding {
        let mut unsound = |verdict, why| Finding::new(verdict, facts.add(now, What::Unsound { why, check: None }), []);
        match self {
            Stop::Found(finding) => finding,
            Stop::Inconclusive(why) | Stop::Failed(why) => unsound(Verdict::Inconclusive, why),
            Stop::NotRun(why) => unsound(Verdict::NotRun, why),
            Stop::Panicked(silence) => silence.finding(Verdict::Panic, facts, now),
            Stop::Silent(silence) | Stop::Hung(silence) => silence.finding(Verdict::Hung, facts, now),
        }
    }
}

impl Silence {
    /// With its last words; a report of a thread that died, if the console has one, outranks a guest that hangs.
    fn finding(self, verdict: Verdict, facts: &mut Facts, now: Seq) -> Finding {
        let Self { guest, during, why, console, blocked, places } = self;
        let oops = complaints::sort(console.lines()).into_iter().find(|said| said.gravity == Gravity::Oops);
        let why = format!("{why} during {during}");
        let end = facts.add(now, What::Console { guest, why, tail: console });
        let blocked = blocked.into_iter().map(|line| What::Kernel { guest, gravity: Gravity::Hung, line });
        let places = places.into_iter().map(|place| What::Processor { guest, place });
        let lines: Vec<_> = blocked.chain(places).map(|what| facts.add(now, what)).collect();
        match oops {
            Some(said) if verdict == Verdict::Hung => {
                let report = facts.add(now, What::Kernel { guest, gravity: said.gravity, line: said.line });
                Finding::new(Verdict::Oops, report, [end])
            }
            _ => Finding::new(verdict, end, lines),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Found(finding) => finding.observed().fmt(f),
            Stop::Inconclusive(what) | Stop::NotRun(what) | Stop::Failed(what) => f.write_str(what),
            Stop::Panicked(end) | Stop::Silent(end) | Stop::Hung(end) => {
                write!(f, "the {} guest {} during {}", end.guest, end.why, end.during)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harm_outranks_doubt_and_doubt_outranks_comfort() {
        let mut facts = Facts::default();
        let fact = facts.add(1, What::Note { text: String::new() });
        let of = |verdicts: &[Verdict]| {
            let findings: Vec<_> = verdicts.iter().map(|verdict| Finding::new(*verdict, fact, [])).collect();
            heaviest(&findings).map(Finding::verdict)
        };
        assert_eq!(of(&[Verdict::Safe, Verdict::Inconclusive, Verdict::Lost]), Some(Verdict::Lost));
        assert_eq!(of(&[Verdict::Lost, Verdict::Oops, Verdict::Hung]), Some(Verdict::Oops));
        assert_eq!(of(&[Verdict::Safe, Verdict::Inconclusive]), Some(Verdict::Inconclusive));
        assert_eq!(of(&[]), None);
        let harm: Vec<_> = Verdict::all().filter(|verdict| verdict.harmful()).map(Verdict::word).collect();
        assert_eq!(harm.join(" "), "MISSED PANIC OOPS HUNG CORRUPT LEAKTO LOST TORN SPLIT STALE");
    }
}
