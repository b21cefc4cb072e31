// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attempts at one row, and what they come to together. None is forgotten.

use super::play::Played;
use crate::report::Attempt;
use crate::verdict::{Observed, Verdict};
use inject::{Outcome, join};

/// Most attempts at a row.
const MOST: usize = 2;

/// What there was so far.
#[derive(Default)]
pub(super) struct Attempts {
    list: Vec<(Observed, Attempt)>,
    /// What became of a plan's injections, over all of them.
    injections: Vec<Outcome>,
}

impl Attempts {
    /// Takes down one that has ended.
    pub(super) fn add(&mut self, played: &Played, seconds: f64) {
        let observed = played.observed();
        let findings = played.findings.iter().map(Into::into).collect();
        let facts = played.facts.clone();
        let attempt = Attempt { observed: observed.to_string(), facts, findings, seconds, ..Attempt::default() };
        let attempt = attempt.with_timeline(played.timeline.clone());
        self.list.push((observed, attempt));
        match self.injections.is_empty() {
            true => self.injections = played.injections.clone(),
            false => join(&mut self.injections, &played.injections),
        }
    }

    /// What became of a plan's injections, over all attempts; empty without a plan.
    pub(super) fn injections(&self) -> Vec<Outcome> {
        self.injections.clone()
    }

    /// Whether one more is due: the evidence was not enough, or the kernel broke, which may be its host's fault. What came of an injection is
    /// nobody's fault, and would come again.
    pub(super) fn another(&self) -> bool {
        let again = |observed: &Observed| observed.verdict == Verdict::Inconclusive || observed.verdict.is_collapse();
        let injected = self.injections.iter().any(|outcome| outcome.fired > 0);
        !injected && self.list.len() < MOST && self.list.last().is_some_and(|(observed, _)| again(observed))
    }

    /// The row's verdict: the last attempt's, unless the kernel broke in an earlier one and not again.
    pub(super) fn observed(&self) -> Observed {
        let last = self.last();
        let broke =
            self.list.iter().map(|(observed, _)| observed.verdict).filter(|verdict| verdict.is_collapse()).min();
        match broke {
            Some(harm) if !last.verdict.is_collapse() => {
                let hits = self.list.iter().filter(|(observed, _)| observed.verdict.is_collapse()).count();
                Observed::flaky(harm, hits as u32, self.list.len() as u32)
            }
            _ => last,
        }
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.list.len() as u64
    }

    /// What the last one came to.
    pub(super) fn last(&self) -> Observed {
        self.list.last().map_or(Observed::new(Verdict::Inconclusive), |(observed, _)| observed.clone())
    }

    /// All of them.
    pub(super) fn list(self) -> Vec<Attempt> {
        self.list.into_iter().map(|(_, attempt)| attempt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::{Facts, What};
    use crate::finding::Finding;
    use crate::report::timeline::Timeline;

    fn after(verdicts: &[Verdict]) -> (String, bool) {
        after_injections(verdicts, 0)
    }

    fn after_injections(verdicts: &[Verdict], fired: u64) -> (String, bool) {
        let outcome = |action: &str| Outcome {
            name: "one".into(),
            line: 1,
            device: "nic".into(),
            action: action.into(),
            matched: 2,
            fired,
        };
        let mut attempts = Attempts::default();
        for verdict in verdicts {
            let mut facts = Facts::default();
            let fact = facts.add(1, What::Unsound { why: "a test".into(), check: None });
            let findings = vec![Finding::new(*verdict, fact, [])];
            attempts.add(
                &Played {
                    facts,
                    findings,
                    warned: false,
                    figures: Vec::new(),
                    timeline: Timeline::default(),
                    injections: vec![outcome("stall")],
                },
                0.0,
            );
        }
        let matched = attempts.injections().iter().map(|outcome| outcome.matched).sum::<u64>();
        assert_eq!(matched, 2 * verdicts.len() as u64);
        (attempts.observed().to_string(), attempts.another())
    }

    #[test]
    fn what_an_injection_did_is_not_tried_again() {
        assert_eq!(after_injections(&[Verdict::Oops], 1), ("OOPS".into(), false));
        assert_eq!(after_injections(&[Verdict::Inconclusive], 1), ("INCONCLUSIVE".into(), false));
        assert_eq!(after_injections(&[Verdict::Inconclusive], 0), ("INCONCLUSIVE".into(), true));
    }

    #[test]
    fn a_kernel_that_breaks_is_tried_again_and_what_does_not_come_again_is_flaky() {
        assert_eq!(after(&[Verdict::Oops]), ("OOPS".into(), true));
        assert_eq!(after(&[Verdict::Oops, Verdict::Oops]), ("OOPS".into(), false));
        assert_eq!(after(&[Verdict::Hung, Verdict::Safe]), ("FLAKY(HUNG 1 of 2)".into(), false));
        assert_eq!(after(&[Verdict::Panic, Verdict::Inconclusive]), ("FLAKY(PANIC 1 of 2)".into(), false));
        // Whatever the other found.
        assert_eq!(after(&[Verdict::Oops, Verdict::Lost]), ("FLAKY(OOPS 1 of 2)".into(), false));
    }

    #[test]
    fn doubt_is_tried_again_and_harm_to_data_is_not() {
        assert_eq!(after(&[Verdict::Inconclusive]), ("INCONCLUSIVE".into(), true));
        assert_eq!(after(&[Verdict::Inconclusive, Verdict::Safe]), ("SAFE".into(), false));
        assert_eq!(after(&[Verdict::Lost]), ("LOST".into(), false));
    }
}
