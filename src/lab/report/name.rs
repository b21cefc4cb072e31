// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a row is called in reports, and text that any format can carry.

use std::borrow::Cow;

use super::{RowResult, ground};

/// What tells a row from the others of its scenario and kernel: "pinned/ext4/single", and "/seed 7" where it has one of its own. The one place where a row gets its name.
pub fn row_name(row: &RowResult) -> String {
    let plant = row.plant.as_ref().map_or_else(String::new, |plant| format!("/{plant}"));
    let seed = row.seed.map_or_else(String::new, |seed| format!("/seed {seed}"));
    format!("{}/{}/{}{plant}{seed}", row.mode, ground(&row.fs, row.disk.as_deref()), row.folio)
}

/// The same with the scenario in front.
pub fn full_name(row: &RowResult) -> String {
    format!("{}/{}", row.scenario, row_name(row))
}

/// `text` with its control characters shown as Unicode's pictures of them (U+2400 and so on), which XML, HTML and terminals carry. Line
/// ends stay, and so do tabulators.
pub fn visible(text: &str) -> Cow<'_, str> {
    let shown = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
        _ => c,
    };
    match text.chars().any(|c| shown(c) != c) {
        true => Cow::Owned(text.chars().map(shown).collect()),
        false => Cow::Borrowed(text),
    }
}

/// The same in one line.
pub fn one_line(text: &str) -> String {
    visible(text).replace(['\n', '\t'], " ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::expect::Expectation;
    use crate::fact::{Facts, What};
    use crate::finding::Finding;
    use crate::plan::all_rows;
    use crate::report::{Attempt, Report};
    use crate::verdict::{Observed, Verdict};

    /// What no format likes: its own signs, control characters, line ends.
    const HOSTILE: &str =
        "a # <b> & \"c\" ]]> </script><!-- --> ok 1 \0\x1b[31m\u{ffff}\nnot ok 7 # SKIP\r\n1..9\n\tend";

    /// A report of two kernels, with a row of each score, one that was not run, and texts as hostile as a file can bring.
    pub(in crate::report) fn hostile() -> Report {
        let row = |place: usize, kernel: &str, expected, verdict, why: &str| {
            let mut facts = Facts::default();
            let fact = facts.add(7, What::Unsound { why: why.into(), check: None });
            let findings = vec![(&Finding::new(verdict, fact, [])).into()];
            let observed = Observed::new(verdict);
            let attempt =
                Attempt { observed: observed.to_string(), facts, findings, seconds: 1.5, ..Attempt::default() };
            let expected = Some(Expectation { verdict: expected, source: "a test" });
            RowResult::new(&all_rows()[place], kernel, "6.1.192-2", expected, &observed, vec![attempt])
        };
        let mut rows = vec![
            row(0, "6.1", "LOST", Verdict::Lost, "plain"),
            row(1, "6.1", "LOST", Verdict::Safe, HOSTILE),
            row(2, "6.1", "LOST", Verdict::Inconclusive, HOSTILE),
            row(3, "6.1", "NOT-RUN", Verdict::NotRun, HOSTILE),
            row(0, "/k/a#b <\"7\">\n\x07", "SAFE", Verdict::Safe, "plain"),
            row(1, "/k/a#b <\"7\">\n\x07", "LOST", Verdict::NotRun, HOSTILE),
        ];
        rows[1].mode = HOSTILE.into();
        rows[2].scenario = HOSTILE.into();
        Report { rnic: "0".into(), host: HOSTILE.into(), seed: u64::MAX, rows, ..Report::default() }
    }

    #[test]
    fn what_no_format_carries_is_shown_and_the_rest_stays() {
        assert!(matches!(visible("a <b> & \u{e9}\n\t"), Cow::Borrowed("a <b> & \u{e9}\n\t")));
        assert_eq!(visible("\0\x1b[1m\r\x7f\u{85}\u{ffff}"), "\u{2400}\u{241b}[1m\u{240d}\u{2421}\u{fffd}\u{fffd}");
        assert_eq!(one_line("a\nb\tc"), "a b c");
    }
}
