// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a row counts in which injections of a plan fired: what it would have come to without them is one of the outcomes that are right; so is
//! whatever does no harm. Harm that it would not have come to is none.

use inject::Outcome;

use crate::report::{RowResult, Score};
use crate::verdict::{Observed, Verdict};

impl RowResult {
    /// The same under a plan. `observed` is the row's verdict.
    pub(crate) fn under_plan(self, injections: Vec<Outcome>, observed: &Observed) -> Self {
        let fired = injections.iter().any(|outcome| outcome.fired > 0);
        // What the injection made a kernel complain of is for a person to see.
        let harmless = !observed.verdict.harmful() && !observed.complained;
        let doubtful = matches!(observed.verdict, Verdict::Inconclusive | Verdict::Flaky);
        let score = if fired && harmless && !doubtful { Score::Good } else { self.score };
        Self { injections, score, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::Expectation;
    use crate::plan::all_rows;

    fn outcome(fired: u64) -> Outcome {
        let (name, device, action) = ("a".into(), "disk1".into(), "io-error".into());
        Outcome { name, line: 1, device, action, matched: 3, fired }
    }

    /// How a row counts of which `expected` is known.
    fn score(expected: Option<&'static str>, observed: &Observed, fired: u64) -> Score {
        let expected = expected.map(|verdict| Expectation { verdict, source: "a test" });
        let row = RowResult::new(&all_rows()[0], "6.1", "v", expected, observed, Vec::new());
        let row = row.under_plan(vec![outcome(fired)], observed);
        assert_eq!(row.injections, [outcome(fired)]);
        row.score
    }

    #[test]
    fn an_injection_excuses_what_does_no_harm() {
        let of = |expected, verdict, fired| score(expected, &Observed::new(verdict), fired);
        for verdict in [Verdict::Safe, Verdict::Erred, Verdict::Refused, Verdict::ErrCqe, Verdict::Exposed] {
            assert_eq!(of(Some("SAFE"), verdict, 1), Score::Good, "{verdict:?}");
            assert_eq!(of(None, verdict, 1), Score::Good, "{verdict:?}");
        }
        // Harm that would have come anyway is expected; other harm differs.
        assert_eq!(of(Some("LOST"), Verdict::Lost, 1), Score::Good);
        assert_eq!(of(Some("LOST"), Verdict::Torn, 1), Score::Differs);
        assert_eq!(of(Some("SAFE"), Verdict::Lost, 1), Score::Differs);
        assert_eq!(of(None, Verdict::Hung, 1), Score::Differs);
        // Doubt stays, and so does what a kernel complains of.
        assert_eq!(of(Some("SAFE"), Verdict::Inconclusive, 1), Score::Inconclusive);
        let warned = Observed { complained: true, ..Observed::new(Verdict::Erred) };
        assert_eq!((score(Some("SAFE"), &warned, 1), score(None, &warned, 1)), (Score::Differs, Score::Differs));
    }

    #[test]
    fn without_a_firing_nothing_is_excused() {
        let of = |expected, verdict| score(expected, &Observed::new(verdict), 0);
        assert_eq!(of(Some("SAFE"), Verdict::Refused), Score::Differs);
        assert_eq!(of(Some("SAFE"), Verdict::Inconclusive), Score::Inconclusive);
        assert_eq!(of(Some("SAFE"), Verdict::Safe), Score::Good);
    }
}
