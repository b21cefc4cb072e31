// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Negative controls: what is broken on purpose, and which checks must notice. A row that says that nothing was harmed is worth what its
//! controls are worth: `rnic lab --selftest` runs them.

use std::io::{self, Write};

use super::bench::Plant;
use super::check::Check;
use super::expect::Expectation;
use super::plan::{Row, Scenario, Writer};
use super::scenarios;

/// Something that is broken, and what must notice: all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// What is broken.
    pub plant: Plant,
    /// The checks that must trip.
    pub checks: &'static [Check],
}

/// Controls of a scenario in one mode, or in every mode.
struct Line {
    scenario: &'static str,
    /// The only mode; empty: all.
    mode: &'static str,
    control: Control,
}

const fn line(scenario: &'static str, mode: &'static str, plant: Plant, checks: &'static [Check]) -> Line {
    Line { scenario, mode, control: Control { plant, checks } }
}

const ANY: &str = "";
/// A power cut that loses what was promised: the image belies the ledger, and the scenario sees the loss.
const LOSS: &[Check] = &[Check::Cut, Check::Harm];
const HARM: &[Check] = &[Check::Harm];
/// A key that goes on after it was freed: the NIC's records say so, and the scenario sees what it reaches.
const FREED: &[Check] = &[Check::Freed, Check::Harm];

const TABLE: &[Line] = &[
    line("H02", "odp", Plant::ZapIgnored, HARM),
    line("H06", ANY, Plant::CutDrops, LOSS),
    line("H06", "odp", Plant::LyingGate, &[Check::Gate]),
    line("H10", ANY, Plant::CutDrops, LOSS),
    line("H10", "odp", Plant::LyingGate, &[Check::Gate]),
    line("H19", ANY, Plant::CutDrops, LOSS),
    line("H05", ANY, Plant::CutDrops, LOSS),
    line("H05", "odp", Plant::ZapIgnored, HARM),
    line("H24", "odp-munmap", Plant::ZapIgnored, HARM),
    line("H24", "odp-madvise", Plant::ZapIgnored, HARM),
    line("H24", "odp-madvise", Plant::ForeignBytes, HARM),
    line("H24", "odp-punch", Plant::ZapIgnored, HARM),
    line("H24", "odp-punch", Plant::ForeignBytes, HARM),
    line("H24", "odp-truncate", Plant::ZapIgnored, HARM),
    line("H24", "odp-dereg", Plant::FreeIgnored, FREED),
    line("H24", "pinned-dereg", Plant::FreeIgnored, FREED),
    line("H24", "odp-lease", Plant::FreeIgnored, FREED),
    line("H24", "ro-lease", Plant::FreeIgnored, FREED),
    line("H24", "odp-watch", Plant::FreeIgnored, FREED),
    line("H24", "ro-watch", Plant::FreeIgnored, FREED),
    line("H34", ANY, Plant::RightsIgnored, HARM),
    line("H25", ANY, Plant::ForeignBytes, HARM),
    line("H25", "odp", Plant::ZapIgnored, HARM),
    line("H26", ANY, Plant::ForeignBytes, HARM),
    line("H26", "odp", Plant::ZapIgnored, HARM),
    line("H27", ANY, Plant::ForeignBytes, HARM),
    line("H28", ANY, Plant::ForeignBytes, HARM),
    line("H28", "odp", Plant::ZapIgnored, HARM),
    line("H29", ANY, Plant::ForeignBytes, HARM),
    line("H29", "odp", Plant::ZapIgnored, HARM),
    line("H30", ANY, Plant::ForeignBytes, HARM),
    line("H31", ANY, Plant::ForeignBytes, HARM),
    line("H36", ANY, Plant::ForeignBytes, HARM),
    line("H36", "odp-ro", Plant::Allocated, &[Check::Benign]),
    line("H37", ANY, Plant::CutDrops, LOSS),
    line("H38", ANY, Plant::Disturbed, HARM),
    line("H38", "pinned", Plant::LeakedQueuePair, HARM),
    line("H38", "odp", Plant::LeakedQueuePair, HARM),
];

/// The controls of `scenario`: those of its story, or those of the table.
pub fn of(scenario: &Scenario) -> impl Iterator<Item = Control> {
    let mine = |line: &&Line| line.scenario == scenario.id && (line.mode == ANY || line.mode == scenario.mode);
    let told = scenario.story.map_or(&[][..], |story| &story.controls).iter().filter(|control| {
        // Where it breaks the NIC, the NIC has to be ours.
        let ours = control.plant.is_of_nic() <= matches!(scenario.writer, Writer::Nic(_));
        let registered = control.registration.is_none() || control.registration == scenario.writer.registration();
        control.id.is_none() && ours && registered
    });
    let told = told.map(|control| Control { plant: control.plant, checks: &control.checks });
    let tabled = TABLE.iter().filter(move |line| scenario.story.is_none() && mine(line)).map(|line| line.control);
    told.chain(tabled)
}

/// Words of an expectation that say that nothing was harmed, or that it was legal: what has to be believed.
const SAFE_LIKE: [&str; 4] = ["SAFE", "BENIGN", "EXPOSED", "ERR-CQE"];

/// Whether a row of which this is expected has to be believed when it says that all is well.
pub fn is_safe_like(expected: &str) -> bool {
    expected.split('|').any(|word| SAFE_LIKE.contains(&word))
}

/// The self-test of a kernel: of `rows`, each scenario and mode that has to be believed there, on the first file system and folio size on
/// which it has, once with each of its controls; and the rows that are controls by themselves. `expected` gives a row's expectation `None`
/// where none is known. A row without any control is in the list as it is: the runner makes it fail.
pub fn selftest(rows: &[Row], expected: impl Fn(&Row) -> Option<Expectation>) -> Vec<Row> {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let mut chosen = Vec::new();
    for row in rows {
        if row.control.is_some() {
            chosen.push(*row);
            continue;
        }
        let name = (row.scenario.id, row.scenario.mode);
        // Of a row that runs only when it is named there may be nothing to believe: a plant.
        let believed = expected(row).map_or(!row.scenario.named, |expected| is_safe_like(expected.verdict));
        if !believed || seen.contains(&name) {
            continue;
        }
        seen.push(name);
        let planted: Vec<_> = of(row.scenario).map(|control| Row { control: Some(control), ..*row }).collect();
        match planted.is_empty() {
            true => chosen.push(*row),
            false => chosen.extend(planted),
        }
    }
    chosen
}

/// `rnic lab --selftest --list`: what is broken, what has to notice, and whose controls they are.
pub fn print_list(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Negative controls of rows that say that all is well (every one has to be noticed):")?;
    let checks = |control: &Control| control.checks.iter().map(|check| check.name()).collect::<Vec<_>>().join(", ");
    for scenario in scenarios::all() {
        for control in scenario.control.into_iter().chain(of(scenario)) {
            let (plant, checks) = (control.plant.name(), checks(&control));
            writeln!(out, "  {:<7} {:<11} {plant:<15} must trip: {checks}", scenario.id, scenario.mode)?;
        }
    }
    writeln!(out, "What is planted:")?;
    for plant in Plant::all() {
        writeln!(out, "  {:<15} {}", plant.name(), plant.meaning())?;
    }
    writeln!(out, "What has to notice:")?;
    for check in Check::all() {
        writeln!(out, "  {:<15} {}", check.name(), check.meaning())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::{Version, expected};
    use crate::plan::all_rows;

    const STOCK: [Version; 3] = [(6, 1, 192), (6, 12, 118), (7, 3, 4)];

    #[test]
    fn every_row_that_says_that_all_is_well_has_a_control() {
        for version in STOCK {
            let rows = selftest(&all_rows(), |row| expected(row, version));
            let bare: Vec<_> = rows.iter().filter(|row| row.control.is_none()).map(|row| row.scenario).collect();
            assert!(bare.is_empty(), "{version:?}: {bare:?}");
            assert!(rows.len() > 30, "{version:?}: {}", rows.len());
        }
    }

    #[test]
    fn every_control_is_of_a_row_that_has_to_be_believed() {
        for line in TABLE {
            let used = all_rows().iter().any(|row| {
                let believed =
                    |version: &Version| expected(row, *version).is_some_and(|expected| is_safe_like(expected.verdict));
                of(row.scenario).any(|control| control == line.control)
                    && row.scenario.id == line.scenario
                    && STOCK.iter().any(believed)
            });
            assert!(used, "{} {}", line.scenario, line.mode);
        }
    }

    #[test]
    fn every_check_is_tripped_by_some_control() {
        let all: Vec<_> = all_rows()
            .iter()
            .flat_map(|row| row.control.into_iter().chain(of(row.scenario)))
            .flat_map(|control| control.checks)
            .collect();
        for check in Check::all() {
            assert!(all.contains(&&check), "nothing trips {check}");
        }
    }

    #[test]
    fn a_row_without_a_control_is_in_the_list_as_it_is() {
        let mut row = all_rows()[0];
        let scenario = Scenario { id: "H99", story: None, ..*row.scenario };
        row.scenario = Box::leak(Box::new(scenario));
        let said = |verdict| move |_: &Row| Some(Expectation { verdict, source: "a test" });
        let rows = selftest(&[row], said("SAFE"));
        assert!(rows.len() == 1 && rows[0].control.is_none());
        assert!(selftest(&[row], said("LOST")).is_empty());
    }
}
