// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which rows there are, and which of them a run takes.

use std::fmt;

use rnic_agent::proto::access;
use serde::Deserialize;

use super::bench::Bench;
use super::controls::Control;
use super::finding::{Finding, Stop};
use super::report::ground as ground_name;
use super::scenarios;
use super::story::{Story, rows};

mod ground;

pub use ground::{DiskKind, Fs};

/// Size of the page cache's units under test, which decides the unit of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// How memory is registered with an RDMA device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Registration {
    /// Pinned, with all rights.
    Pinned,
    /// Pinned, for RDMA READ only.
    PinnedRo,
    /// On-demand paging, with all rights.
    Odp,
    /// On-demand paging, for RDMA READ only.
    OdpRo,
}

impl Registration {
    /// ibv_reg_mr(3)'s flags.
    pub fn access(self) -> u32 {
        let write = access::LOCAL_WRITE | access::REMOTE_WRITE;
        let odp = if self.is_odp() { access::ON_DEMAND } else { 0 };
        access::REMOTE_READ | odp | if self.writable() { write } else { 0 }
    }

    /// Its name as a mode of a row.
    pub fn name(self) -> &'static str {
        match self {
            Registration::Pinned => "pinned",
            Registration::PinnedRo => "pinned-ro",
            Registration::Odp => "odp",
            Registration::OdpRo => "odp-ro",
        }
    }

    /// On-demand paging.
    pub fn is_odp(self) -> bool {
        matches!(self, Registration::Odp | Registration::OdpRo)
    }

    /// The device may write.
    pub fn writable(self) -> bool {
        matches!(self, Registration::Pinned | Registration::Odp)
    }
}

/// Which engine reaches the page under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Writer {
    /// The disk (O_DIRECT) or the CPU: no RDMA.
    Disk,
    /// Our NIC.
    Nic(Registration),
    /// The kernel's own RDMA in software (soft-RoCE): nothing of ours is in the way of its writes.
    Rxe(Registration),
}

impl Writer {
    /// How its memory is registered.
    pub fn registration(self) -> Option<Registration> {
        match self {
            Writer::Disk => None,
            Writer::Nic(registration) | Writer::Rxe(registration) => Some(registration),
        }
    }
}

/// One scenario: a story told by steps, judged by evidence.
pub struct Scenario {
    /// Its number in the hazard catalogue, or C-… for a control.
    pub id: &'static str,
    /// How the writer reaches the page: "dio", "cpu", "pinned", "odp"...
    pub mode: &'static str,
    /// The engine behind the mode.
    pub writer: Writer,
    /// One line.
    pub title: &'static str,
    /// File systems that it applies to.
    pub filesystems: &'static [Fs],
    /// Disks below them.
    pub disks: &'static [DiskKind],
    /// Whether it is part of the core set: on which file systems.
    pub core: &'static [Fs],
    /// A negative control by itself: what goes wrong on purpose, and what must notice.
    pub control: Option<Control>,
    /// Whether folio sizes matter to it.
    pub folios: &'static [Folio],
    /// The folio sizes of its rows in the core set.
    pub core_folios: &'static [Folio],
    /// Runs only when the user names it.
    pub named: bool,
    /// The steps, where they are data: then `run` is what plays them.
    pub story: Option<&'static Story>,
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
    pub fs: Fs,
    /// On which disk.
    pub disk: DiskKind,
    /// With which folios.
    pub folio: Folio,
    /// As a negative control: what is broken, and what must notice.
    pub control: Option<Control>,
    /// The seed of its data and injections, in a run over several; `None`: the run's.
    pub seed: Option<u64>,
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
    /// Names of disks; empty means all.
    pub disks: Vec<String>,
    /// Modes; empty means all.
    pub modes: Vec<String>,
    /// Folio sizes; empty means all.
    pub folios: Vec<String>,
    /// None of these: "H12", or "H12/dio" for one mode of it.
    pub exclude: Vec<String>,
}

impl Selection {
    /// Whether scenario, file system, disk, mode and folio size are among those that are named, if any are, and it is not excluded.
    pub fn names(&self, row: &Row) -> bool {
        let wants = |list: &[String], name: &str| list.is_empty() || list.iter().any(|w| w.eq_ignore_ascii_case(name));
        wants(&self.scenarios, row.scenario.id)
            && wants(&self.filesystems, row.fs.name())
            && wants(&self.disks, row.disk.name())
            && wants(&self.modes, row.scenario.mode)
            && wants(&self.folios, &row.folio.to_string())
            && !self.exclude.iter().any(|text| excluded(text, row.scenario))
    }
}

/// Whether `text`, "ID" or "ID/mode", means it.
fn excluded(text: &str, scenario: &Scenario) -> bool {
    let (id, mode) = text.split_once('/').map_or((text, None), |(id, mode)| (id, Some(mode)));
    scenario.id.eq_ignore_ascii_case(id) && mode.is_none_or(|mode| scenario.mode.eq_ignore_ascii_case(mode))
}

/// Every row there is.
pub fn all_rows() -> Vec<Row> {
    scenarios::all().flat_map(Scenario::rows).collect()
}

impl Scenario {
    /// Its rows.
    pub fn rows(&'static self) -> Vec<Row> {
        let grounds = self.disks.iter().flat_map(|disk| self.filesystems.iter().map(|fs| (*fs, *disk)));
        grounds.flat_map(|ground| self.folios.iter().map(move |folio| Row::new(self, ground, *folio))).collect()
    }
}

impl Row {
    /// A row as its scenario has it.
    pub fn new(scenario: &'static Scenario, (fs, disk): (Fs, DiskKind), folio: Folio) -> Self {
        Self { scenario, fs, disk, folio, control: scenario.control, seed: None }
    }

    /// The disk's name where it is not the virtio disk itself.
    pub(crate) fn disk_named(&self) -> Option<&'static str> {
        (self.disk != DiskKind::Plain).then(|| self.disk.name())
    }

    /// Whether it belongs to the core set: the story in a few minutes.
    fn is_core(&self) -> bool {
        let plain = self.disk == DiskKind::Plain;
        plain && self.scenario.core.contains(&self.fs) && self.scenario.core_folios.contains(&self.folio)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { id, mode, .. } = self.scenario;
        write!(f, "{id} {mode} {} {}", ground_name(self.fs.name(), self.disk_named()), self.folio)?;
        match self.control {
            Some(control) => write!(f, " {}", control.plant.name()),
            None => Ok(()),
        }
    }
}

/// The rows of a story of the user's own. What they refer to lives as long as the program.
pub fn rows_of(story: Story) -> Vec<Row> {
    let scenarios: &'static [Scenario] = Vec::leak(rows::scenarios(story));
    scenarios.iter().flat_map(Scenario::rows).collect()
}

/// The rows of `selection`, or a sentence about what does not exist.
pub fn select(selection: &Selection) -> Result<Vec<Row>, String> {
    let known = |wanted: &[String], names: Vec<&str>, what: &str| match wanted.iter().find(|w| !has(&names, w)) {
        Some(unknown) => Err(format!(
            "no {what} {unknown}; there are {} (`rnic lab --list` explains them)",
            nearest(&names, unknown).join(", ")
        )),
        None => Ok(()),
    };
    known(&selection.scenarios, distinct(|scenario| scenario.id), "scenario")?;
    known(&selection.modes, distinct(|scenario| scenario.mode), "mode")?;
    known(&selection.filesystems, Fs::ALL.map(Fs::name).into(), "file system")?;
    known(&selection.disks, DiskKind::ALL.map(DiskKind::name).into(), "disk")?;
    known(&selection.folios, vec!["single", "large"], "folio size")?;
    let ids: Vec<_> = selection.exclude.iter().map(|text| text.split('/').next().unwrap_or(text).into()).collect();
    known(&ids, distinct(|scenario| scenario.id), "scenario")?;
    if let Some(text) = selection.exclude.iter().find(|text| !scenarios::all().any(|one| excluded(text, one))) {
        return Err(format!("no row is {text}; `rnic lab --list` shows which modes each scenario has"));
    }
    let named = !selection.scenarios.is_empty() || !selection.modes.is_empty();
    let rows: Vec<_> = all_rows()
        .into_iter()
        .filter(|row| named || row.is_core() || selection.all && !row.scenario.named)
        .filter(|row| selection.names(row))
        .collect();
    if rows.is_empty() {
        return Err(
            "this selection has no rows; `rnic lab --list` shows which file systems and modes each scenario has".into(),
        );
    }
    Ok(rows)
}

/// A name of every scenario, each once, in the order of the tables.
fn distinct(name: impl Fn(&Scenario) -> &'static str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for name in scenarios::all().map(name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Names that a sentence has room for: those that begin as `wanted` does come first.
fn nearest(names: &[&str], wanted: &str) -> Vec<String> {
    const ROOM: usize = 12;
    let same = |name: &&str| {
        let alike = |(a, b): &(char, char)| a.eq_ignore_ascii_case(b);
        name.chars().zip(wanted.chars()).take_while(alike).count()
    };
    let mut sorted = names.to_vec();
    sorted.sort_by_key(|name| std::cmp::Reverse(same(name)));
    let mut near: Vec<String> = sorted.iter().take(ROOM).map(|name| (*name).to_string()).collect();
    if names.len() > ROOM {
        near.push(format!("and {} more", names.len() - ROOM));
    }
    near
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
        let selection = Selection { scenarios: vec!["h12x".into()], ..Default::default() };
        let said = select(&selection).unwrap_err();
        assert!(
            said.starts_with("no scenario h12x; there are H12, ") && said.contains(" more (`") && said.len() < 200,
            "{said}"
        );
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
        let has = |id, mode| rows.iter().any(|row| row.scenario.id == id && row.scenario.mode == mode);
        for (id, mode) in [("H01", "pinned"), ("H01", "odp"), ("H06", "pinned"), ("H06", "odp"), ("H13", "odp")] {
            assert!(has(id, mode), "{id} {mode}");
        }
        assert!(has("C-late", "odp") && has("C-mttw", "odp"));
    }

    #[test]
    fn rows_are_left_out_by_folio_and_by_name() {
        let rows = |exclude: &[&str], folios: &[&str]| {
            let [exclude, folios] = [exclude, folios].map(|list| list.iter().map(|text| (*text).into()).collect());
            select(&Selection { scenarios: vec!["H01".into()], exclude, folios, ..Selection::default() })
        };
        let all = rows(&[], &[]).unwrap();
        let single = rows(&[], &["single"]).unwrap();
        assert!(single.len() < all.len() && single.iter().all(|row| row.folio == Folio::Single));
        let without = rows(&["h01/ODP"], &[]).unwrap();
        assert_eq!(without.len(), all.iter().filter(|row| row.scenario.mode != "odp").count());
        assert!(without.len() < all.len());
        assert!(rows(&["H01"], &[]).unwrap_err().contains("has no rows"));
        assert!(rows(&["H99/odp"], &[]).unwrap_err().starts_with("no scenario H99"));
        assert!(rows(&["H12/odp-x"], &[]).unwrap_err().starts_with("no row is H12/odp-x"));
        assert!(rows(&[], &["huge"]).unwrap_err().starts_with("no folio size huge"));
    }

    #[test]
    fn a_row_has_one_name() {
        // One that runs only when it is named may ask again what another asks: H10 cpu on the plain disk, beside other disks.
        let rows = all_rows().into_iter().filter(|row| !row.scenario.named);
        let mut names: Vec<_> = rows.map(|row| row.to_string()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn naming_a_scenario_takes_all_its_rows() {
        let selection = Selection { scenarios: vec!["h12".into()], ..Default::default() };
        assert_eq!(select(&selection).unwrap().len(), all_rows().iter().filter(|row| row.scenario.id == "H12").count());
    }
}
