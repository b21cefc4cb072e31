// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows of a report that are to run again.

use crate::plan::Row;
use crate::report::{Report, RowResult, Score};

/// Rows of a kernel that run again.
#[derive(Debug)]
pub struct Again {
    /// The kernel as the report names it.
    pub kernel: String,
    /// Its full version there.
    pub version: String,
    /// The rows, each with its seed, in the order of the report.
    pub rows: Vec<Row>,
}

/// The rows of `report` that did not come out well, or `all`, among those that are `known`. Kernels come in the order of the report.
///
/// # Errors
/// One is not known: a sentence.
pub fn replay(report: &Report, known: &[Row], all: bool) -> Result<Vec<Again>, String> {
    let mut again: Vec<Again> = Vec::new();
    for result in report.rows.iter().filter(|result| all || result.score != Score::Good) {
        let is_it =
            |row: &&Row| result.is_of(&Row { seed: result.seed, ..**row }, &result.kernel, &result.kernel_version);
        let Some(row) = known.iter().find(is_it) else { return Err(unknown(result)) };
        let row = Row { seed: result.seed, ..*row };
        let same = |one: &&mut Again| (&one.kernel, &one.version) == (&result.kernel, &result.kernel_version);
        match again.iter_mut().find(same) {
            Some(one) => one.rows.push(row),
            None => {
                let (kernel, version) = (result.kernel.clone(), result.kernel_version.clone());
                again.push(Again { kernel, version, rows: vec![row] });
            }
        }
    }
    Ok(again)
}

fn unknown(result: &RowResult) -> String {
    let RowResult { scenario, mode, fs, .. } = result;
    format!(
        "the report's row {scenario} {mode} {fs} is none of this program's: if it is of a scenario file, name that with --scenario-file"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::Expectation;
    use crate::plan::all_rows;
    use crate::verdict::{Observed, Verdict};

    fn result(at: usize, seed: u64, kernel: &str, verdict: Verdict) -> RowResult {
        let expected = Some(Expectation { verdict: "SAFE", source: "a test" });
        let row = Row { seed: Some(seed), ..all_rows()[at] };
        RowResult::new(&row, kernel, "v", expected, &Observed::new(verdict), Vec::new())
    }

    #[test]
    fn what_did_not_come_out_well_runs_again_with_its_seed_and_kernel() {
        let rows = vec![
            result(0, 1, "6.1", Verdict::Safe),
            result(1, 1, "6.1", Verdict::Lost),
            result(0, 2, "7.3", Verdict::Inconclusive),
            result(1, 3, "6.1", Verdict::Lost),
        ];
        let report = Report { rows, ..Report::default() };
        let known = all_rows();
        let named = |all| -> Vec<_> {
            let again = replay(&report, &known, all).unwrap();
            let rows = again
                .iter()
                .flat_map(|one| one.rows.iter().map(|row| format!("{} {} {}", one.kernel, row.seed.unwrap(), row)));
            rows.collect()
        };
        let (a, b) = (known[0].to_string(), known[1].to_string());
        assert_eq!(named(false), [format!("6.1 1 {b}"), format!("6.1 3 {b}"), format!("7.3 2 {a}")]);
        assert_eq!(named(true).len(), 4);
        assert_eq!(named(true)[0], format!("6.1 1 {a}"));
    }

    #[test]
    fn a_row_that_nobody_knows_is_said() {
        let mut row = result(0, 1, "6.1", Verdict::Lost);
        row.scenario = "X9".into();
        let said = replay(&Report { rows: vec![row], ..Report::default() }, &all_rows(), false).unwrap_err();
        assert!(said.contains("X9") && said.contains("--scenario-file"), "{said}");
    }
}
