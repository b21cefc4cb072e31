// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A report as KTAP, version 1 (Documentation/dev-tools/ktap.rst of Linux): a subtest a kernel, a test a row. No clock time is in it: the same
//! verdicts with the same facts are the same text.

use super::name::{full_name, one_line, visible};
use super::{Report, RowResult, Score};
use crate::verdict::Verdict;

/// The line that begins a level.
const VERSION: &str = "KTAP version 1";

/// The report in KTAP. Rows of one kernel are in the report's order.
pub fn ktap(report: &Report) -> String {
    let kernels = report.kernels();
    let mut text = format!("{VERSION}\n1..{}\n", kernels.len());
    for (kernel, number) in kernels.iter().zip(1..) {
        let rows = report.rows_of(*kernel);
        let (name, version) = (words(kernel.0), one_line(kernel.1));
        let mut lines = vec![VERSION.into(), format!("# Subtest: {name}"), format!("# kernel version {version}")];
        lines.push(format!("1..{}", rows.len()));
        rows.iter().zip(1..).for_each(|(row, number)| lines.extend(test(row, number)));
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        let good = rows.iter().all(|row| row.score == Score::Good);
        text.push_str(&format!("{} {number} {name}\n", result(good)));
    }
    text
}

/// The lines of a row: its facts, then its result, since what KTAP says of a test stands before its result.
fn test(row: &RowResult, number: usize) -> Vec<String> {
    let told = format!("{}: expected {}, observed {}", mark(row.score), row.expected, row.observed);
    let mut lines = comment(&told);
    row.evidence.iter().for_each(|fact| lines.extend(comment(fact)));
    let skip = match row.score {
        Score::Good if not_run(row) => format!(" # SKIP {}", words(&why_not_run(row))),
        _ => String::new(),
    };
    lines.push(format!("{} {number} {}{skip}", result(row.score == Score::Good), words(&full_name(row))));
    lines
}

/// How a row counts, in a word.
pub(super) fn mark(score: Score) -> &'static str {
    match score {
        Score::Good => "as expected",
        Score::Differs => "differs",
        Score::Inconclusive => "inconclusive",
    }
}

/// Whether there was nothing to run.
pub(super) fn not_run(row: &RowResult) -> bool {
    row.observed.split(['(', '+']).next() == Some(Verdict::NotRun.word())
}

/// Why, as far as it is on record.
pub(super) fn why_not_run(row: &RowResult) -> String {
    row.evidence.last().map_or_else(|| Verdict::NotRun.meaning().into(), Clone::clone)
}

fn result(good: bool) -> &'static str {
    if good { "ok" } else { "not ok" }
}

/// Diagnostics, a line for each of `text`.
fn comment(text: &str) -> Vec<String> {
    visible(text).split('\n').map(|line| format!("# {line}").trim_end().to_owned()).collect()
}

/// Words of a description: in one line, and without the sign that ends it.
fn words(text: &str) -> String {
    one_line(text).replace('#', "_").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::name::tests::hostile;
    use tap_parser::{DirectiveKind, TapParser, TapStatement, TapTest};

    /// A subtest of TAP 14 has its name before it and four spaces in front; otherwise KTAP is the same.
    fn as_tap(text: &str) -> String {
        let nested = format!("  {VERSION}\n  # Subtest");
        let text = text.replace(&nested, "# Subtest").replacen(VERSION, "TAP version 14", 1);
        text.lines().map(|line| format!("{}{line}\n", if line.starts_with("  ") { "  " } else { "" })).collect()
    }

    fn points<'a>(statements: &'a [TapStatement<'a>]) -> Vec<&'a TapTest<'a>> {
        let point = |statement: &'a TapStatement<'a>| match statement {
            TapStatement::TestPoint(test) => Some(test),
            _ => None,
        };
        statements.iter().filter_map(point).collect()
    }

    #[test]
    fn a_public_parser_sees_the_rows() {
        let report = hostile();
        let text = as_tap(&ktap(&report));
        let statements = TapParser::new().parse(&text).unwrap();
        let subtests: Vec<_> = statements
            .iter()
            .filter_map(|statement| match statement {
                TapStatement::Subtest(subtest) => Some(subtest),
                _ => None,
            })
            .collect();
        let kernels = report.kernels();
        assert_eq!(subtests.len(), kernels.len());
        for (subtest, kernel) in subtests.into_iter().zip(kernels) {
            let rows = report.rows_of(kernel);
            let tests = points(&subtest.statements);
            assert_eq!((subtest.name, subtest.ending.desc), (Some(words(kernel.0).as_str()), subtest.name));
            assert_eq!(subtest.ending.result, rows.iter().all(|row| row.score == Score::Good));
            assert_eq!(tests.len(), rows.len());
            for ((test, row), number) in tests.into_iter().zip(rows).zip(1..) {
                assert_eq!((test.number, test.result), (Some(number), row.score == Score::Good), "{row:?}");
                assert_eq!(test.desc, Some(words(&full_name(row)).as_str()));
                let skipped = test.directive.as_ref().is_some_and(|found| found.kind == DirectiveKind::Skip);
                assert_eq!(skipped, row.score == Score::Good && not_run(row));
            }
        }
    }

    #[test]
    fn the_text_is_what_the_format_says_and_has_no_time() {
        let mut report = hostile();
        let text = ktap(&report);
        for line in text.lines() {
            let line = line.trim_start_matches("  ");
            let known = ["# ", "#", "ok ", "not ok ", "1..", VERSION].iter().any(|begin| line.starts_with(begin));
            assert!(known && !line.contains(|c: char| c.is_control() && c != '\t'), "{line:?}");
        }
        report.rows.iter_mut().for_each(|row| row.seconds += 1.0);
        assert_eq!(ktap(&report), text);
    }
}
