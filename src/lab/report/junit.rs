// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A report as JUnit's XML: a test suite a kernel, a test case a row.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::ktap::{mark, not_run, why_not_run};
use super::name::{one_line, row_name, visible};
use super::{Report, RowResult, Score};

/// The report in XML. What is an attribute there is one line, since XML makes a space of a line end in one. A row that differs is a failure, an inconclusive one an error, one that was not run and need not be is skipped.
///
/// # Errors
/// Whatever the writer of XML says; it writes to memory.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let mut all = quick_junit::Report::new("rnic lab");
    for (kernel, version) in report.kernels() {
        let mut suite = TestSuite::new(one_line(kernel));
        let seed = report.seed.to_string();
        for (name, value) in
            [("kernel_version", version), ("host", &report.host), ("seed", &seed), ("rnic", &report.rnic)]
        {
            suite.add_property(Property::new(name, one_line(value)));
        }
        suite.add_test_cases(report.rows_of((kernel, version)).into_iter().map(case));
        let time = suite.test_cases.iter().filter_map(|case| case.time).fold(Duration::ZERO, Duration::saturating_add);
        suite.set_time(time);
        all.add_test_suite(suite);
    }
    all.to_string()
}

fn case(row: &RowResult) -> TestCase {
    let message = format!("expected {}, observed {}", row.expected, row.observed);
    // The writer drops tabulators.
    let evidence = visible(&row.evidence.join("\n")).replace('\t', " ");
    let failed = |kind| {
        let mut status = TestCaseStatus::non_success(kind);
        status.set_message(one_line(&message)).set_type(mark(row.score)).set_description(evidence.as_str());
        status
    };
    let status = match row.score {
        Score::Differs => failed(NonSuccessKind::Failure),
        Score::Inconclusive => failed(NonSuccessKind::Error),
        Score::Good if not_run(row) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(one_line(&why_not_run(row)));
            status
        }
        Score::Good => TestCaseStatus::success(),
    };
    let mut case = TestCase::new(one_line(&row_name(row)), status);
    case.set_classname(one_line(&row.scenario));
    // What a file says need not be a time.
    case.set_time(Duration::try_from_secs_f64(row.seconds).unwrap_or_default());
    case.set_system_out(format!("{}\n{evidence}\n", one_line(&message)));
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::name::tests::hostile;
    use junit_parser::TestStatus;

    #[test]
    fn a_public_parser_sees_the_rows() {
        let report = hostile();
        let text = junit(&report).unwrap();
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "what XML forbids");
        let read = junit_parser::from_reader(text.as_bytes()).unwrap();
        let kernels = report.kernels();
        assert_eq!((read.tests, read.suites.len()), (report.rows.len() as u64, kernels.len()));
        let count = |score| report.rows.iter().filter(|row| row.score == score).count() as u64;
        assert_eq!((read.failures, read.errors), (count(Score::Differs), count(Score::Inconclusive)));
        for (suite, kernel) in read.suites.iter().zip(kernels) {
            let rows = report.rows_of(kernel);
            assert_eq!((suite.name.as_str(), suite.cases.len()), (one_line(kernel.0).as_str(), rows.len()));
            for (case, row) in suite.cases.iter().zip(rows) {
                assert_eq!(case.original_name, one_line(&row_name(row)));
                assert_eq!(case.classname.as_deref(), Some(one_line(&row.scenario).as_str()));
                let (score, skipped) = match case.status {
                    TestStatus::Success => (Score::Good, false),
                    TestStatus::Skipped(_) => (Score::Good, true),
                    TestStatus::Failure(_) => (Score::Differs, false),
                    TestStatus::Error(_) => (Score::Inconclusive, false),
                };
                assert_eq!((score, skipped), (row.score, row.score == Score::Good && not_run(row)));
                // That parser leaves out what is written as an entity within a text, and space around it.
                let plain = |text: &str| text.replace(['<', '>', '&', '"', '\'', ' ', '\t', '\n'], "");
                let out = plain(case.system_out.as_deref().unwrap_or_default());
                for fact in &row.evidence {
                    assert!(out.contains(&plain(&visible(fact))), "{fact:?} is not in {out:?}");
                }
            }
        }
    }

    #[test]
    fn a_time_that_is_none_is_no_panic() {
        let mut report = hostile();
        for (row, seconds) in report.rows.iter_mut().zip([-1.0, f64::MAX, f64::NAN]) {
            row.seconds = seconds;
        }
        assert!(junit(&report).unwrap().contains("time=\"0.000\""));
    }
}
