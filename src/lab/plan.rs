// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which rows there are, and which of them a run takes.

use std::fmt;

use rnic_agent::proto::FsType;

use super::bench::Bench;
use super::scenarios;
use super::verdict::{Finding, Stop};

/// Size of the page cache's units under test, which decides the unit of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Folio {
    /// One page each.
    Single,
    /// Several pages, as the kernel makes them on a plain write.
    Large,
}

impl fmt::Display for Folio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Folio::Single => "single",
            Folio::Large => "large",
        })
    }
}

/// A planted fault, for negative controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The lever on the disk under test says that it holds and does not.
    LyingLever,
    /// The ledger misses a write of the page under test.
    MissedWrite,
}

/// One scenario: a story told by steps, judged by evidence.
pub struct Scenario {
    /// Its number in the hazard catalogue, or C-… for a control.
    pub id: &'static str,
    /// How the writer reaches the page: "dio", "dio-held", "cpu"...
    pub mode: &'static str,
    /// One line.
    pub title: &'static str,
    /// File systems that it applies to.
    pub filesystems: &'static [FsType],
    /// Whether it is part of the core set: on which file systems.
    pub core: &'static [FsType],
    /// A fault to plant.
    pub plant: Option<Plant>,
    /// Whether folio sizes matter to it.
    pub folios: &'static [Folio],
    /// The folio sizes of its rows in the core set.
    pub core_folios: &'static [Folio],
    /// The steps and the judgement.
    pub run: fn(&mut Bench<'_>) -> Result<Finding, Stop>,
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.id, self.mode)
    }
}

/// A row of the report before it has run.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What.
    pub scenario: &'static Scenario,
    /// On which file system.
    pub fs: FsType,
    /// With which folios.
    pub folio: Folio,
}

/// What the user asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Every row instead of the core set.
    pub all: bool,
    /// Scenario ids; empty means all.
    pub scenarios: Vec<String>,
    /// File system names; empty means all.
    pub filesystems: Vec<String>,
}

/// Every row there is.
pub fn all_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for scenario in scenarios::ALL {
        for &fs in scenario.filesystems {
            rows.extend(scenario.folios.iter().map(|&folio| Row { scenario, fs, folio }));
        }
    }
    rows
}

impl Row {
    /// Whether it belongs to the core set: the story in a few minutes.
    fn is_core(&self) -> bool {
        self.scenario.core.contains(&self.fs) && self.scenario.core_folios.contains(&self.folio)
    }
}

/// The rows of `selection`, or a sentence about what does not exist.
pub fn select(selection: &Selection) -> Result<Vec<Row>, String> {
    let known = |wanted: &[String], names: Vec<&str>, what: &str| match wanted.iter().find(|w| !has(&names, w)) {
        Some(unknown) => {
            Err(format!("no {what} {unknown}; there are {} (`rnic lab --list` explains them)", names.join(", ")))
        }
        None => Ok(()),
    };
    let mut ids: Vec<_> = scenarios::ALL.iter().map(|scenario| scenario.id).collect();
    ids.dedup();
    known(&selection.scenarios, ids, "scenario")?;
    known(&selection.filesystems, vec!["ext4", "xfs", "btrfs"], "file system")?;
    let named = !selection.scenarios.is_empty();
    let wants = |list: &[String], name: &str| list.is_empty() || list.iter().any(|w| w.eq_ignore_ascii_case(name));
    let rows: Vec<_> = all_rows()
        .into_iter()
        .filter(|row| selection.all || named || row.is_core())
        .filter(|row| wants(&selection.scenarios, row.scenario.id) && wants(&selection.filesystems, row.fs.name()))
        .collect();
    if rows.is_empty() {
        return Err("this selection has no rows; `rnic lab --list` shows which file systems each scenario has".into());
    }
    Ok(rows)
}

fn has(names: &[&str], wanted: &str) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_are_one_sentence() {
        let selection = Selection { scenarios: vec!["H99".into()], ..Default::default() };
        assert!(select(&selection).unwrap_err().starts_with("no scenario H99; there are H"));
        let selection = Selection { filesystems: vec!["fat".into()], ..Default::default() };
        assert!(select(&selection).unwrap_err().starts_with("no file system fat"));
    }

    #[test]
    fn the_core_set_tells_the_story_and_is_small() {
        let rows = select(&Selection::default()).unwrap();
        let all = all_rows();
        assert!(rows.len() < all.len() / 2, "{} of {}", rows.len(), all.len());
        for id in ["H12", "H03", "H04", "H18", "H19", "H10", "C-lie", "C-miss"] {
            assert!(rows.iter().any(|row| row.scenario.id == id), "{id}");
        }
    }

    #[test]
    fn naming_a_scenario_takes_all_its_rows() {
        let selection = Selection { scenarios: vec!["h12".into()], ..Default::default() };
        assert_eq!(select(&selection).unwrap().len(), all_rows().iter().filter(|row| row.scenario.id == "H12").count());
    }
}
