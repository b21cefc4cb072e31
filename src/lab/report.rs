// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows for people and for machines.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::campaign::{Setting, Shard};
use super::check::Check;
use super::expect::{Expectation, NAMED, expected};
use super::fact::{Fact, FactId, Facts};
use super::finding::Found;
use super::plan::{Row, Scenario, all_rows};
use super::scenarios;
use super::verdict::{Observed, Verdict};

mod compare;
mod figure;
mod html;
mod junit;
mod ktap;
mod name;
mod prices;
pub mod timeline;

pub use compare::print_comparison;
pub use figure::{Figure, Spread};
pub use html::html;
pub use junit::junit;
pub use ktap::ktap;
pub use name::{row_name, visible};
pub use prices::print_prices;
use timeline::{Moment, Timeline};

/// In how many rounds of a story harm was seen. Field names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    /// In so many.
    pub hits: u32,
    /// Of so many that were played.
    pub of: u32,
}

/// One attempt at a row. Field names are stable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its verdict.
    pub observed: String,
    /// What was seen.
    pub facts: Facts,
    /// What that comes to, and which facts it rests on.
    pub findings: Vec<Found>,
    /// Duration.
    pub seconds: f64,
    /// What each actor did, in the ledger's order. Older reports have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
    /// How much more there was than the timeline keeps.
    #[serde(default, skip_serializing_if = "none_left_out")]
    pub timeline_left_out: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn none_left_out(count: &usize) -> bool {
    *count == 0
}

/// A row that has run. Field names are stable.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowResult {
    /// Catalogue number.
    pub scenario: String,
    /// File system; "none" of rows that are of memory alone.
    pub fs: String,
    /// The disk below it, where that is not the virtio disk itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// How the writer reached the page.
    pub mode: String,
    /// "single" or "large".
    pub folio: String,
    /// The kernel's name: "6.1", or the path that was given.
    pub kernel: String,
    /// Its full version.
    pub kernel_version: String,
    /// Expected verdict, "-" where none is known.
    pub expected: String,
    /// Where that comes from: a source that was read, or a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_source: Option<String>,
    /// Observed verdict.
    pub observed: String,
    /// What the observation rests on, for people: the attempts' facts in words.
    pub evidence: Vec<String>,
    /// The attempts with their facts; the last is the one that counts unless the row is FLAKY. Reports of step 2 have none.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// In negative controls: what was broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plant: Option<String>,
    /// In negative controls: the checks that had to notice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
    /// Duration.
    pub seconds: f64,
    /// Measurements, in rows that measure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
    /// In rows whose steps are played several times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<Rounds>,
    /// The seed of its data and injections, in a run over several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Its place in the whole run, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Under a plan: what became of each of its injections while this row ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub injections: Vec<inject::Outcome>,
    /// How it counts.
    pub score: Score,
}

/// How a row, or a run, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Score {
    /// As expected, or harmless where nothing is expected.
    #[serde(rename = "as_expected")]
    Good,
    /// Not enough evidence.
    Inconclusive,
    /// Differs, or harms data where nothing is expected.
    Differs,
}

impl Score {
    /// Of what was observed, where that was expected.
    fn of(expected: Option<&str>, observed: &Observed) -> Self {
        match (observed.verdict, expected) {
            (Verdict::Inconclusive, _) => Self::Inconclusive,
            (verdict, None) if verdict.harmful() || verdict == Verdict::Flaky || observed.complained => Self::Differs,
            (_, None) => Self::Good,
            (_, Some(expected)) if expected.split('|').any(|one| observed.to_string() == one) => Self::Good,
            _ => Self::Differs,
        }
    }
}

impl RowResult {
    /// A result of `row`.
    pub fn new(
        row: &Row,
        kernel: &str,
        version: &str,
        expected: Option<Expectation>,
        observed: &Observed,
        attempts: Vec<Attempt>,
    ) -> Self {
        Self {
            scenario: row.scenario.id.into(),
            fs: row.fs.name().into(),
            disk: row.disk_named().map(Into::into),
            mode: row.scenario.mode.into(),
            folio: row.folio.to_string(),
            kernel: kernel.into(),
            kernel_version: version.into(),
            expected: expected.map_or("-", |expected| expected.verdict).into(),
            expected_source: expected.map(|expected| expected.source.into()),
            observed: observed.to_string(),
            evidence: evidence(&attempts),
            plant: row.control.map(|control| control.plant.name().into()),
            checks: row.control.map_or(Vec::new(), |control| control.checks.iter().map(Check::to_string).collect()),
            rounds: rounds(&attempts),
            seconds: attempts.iter().map(|attempt| attempt.seconds).sum(),
            attempts,
            figures: Vec::new(),
            seed: row.seed,
            number: None,
            injections: Vec::new(),
            score: Score::of(expected.map(|expected| expected.verdict), observed),
        }
    }

    /// Whether it is of `row` on this kernel.
    pub fn is_of(&self, row: &Row, kernel: &str, version: &str) -> bool {
        (self.scenario.as_str(), self.mode.as_str()) == (row.scenario.id, row.scenario.mode)
            && self.disk.as_deref() == row.disk_named()
            && (self.fs.as_str(), self.folio.as_str()) == (row.fs.name(), row.folio.to_string().as_str())
            && (self.kernel.as_str(), self.kernel_version.as_str()) == (kernel, version)
            && self.plant.as_deref() == row.control.map(|control| control.plant.name())
            && self.seed == row.seed
    }
}

/// "ext4", or "ext4/DISK".
pub(crate) fn ground(fs: &str, disk: Option<&str>) -> String {
    disk.map_or_else(|| fs.into(), |disk| format!("{fs}/{disk}"))
}

/// What the last attempt says of its rounds.
fn rounds(attempts: &[Attempt]) -> Option<Rounds> {
    let (hits, of) = attempts.last()?.facts.list().iter().rev().find_map(Fact::harmful_rounds)?;
    Some(Rounds { hits, of })
}

/// The attempts in words.
fn evidence(attempts: &[Attempt]) -> Vec<String> {
    let mut lines = Vec::new();
    for (attempt, number) in attempts.iter().zip(1..) {
        if attempts.len() > 1 {
            lines.push(format!("attempt {number} of {}: {}", attempts.len(), attempt.observed));
        }
        lines.extend(attempt.lines(|_| true));
    }
    lines
}

impl Attempt {
    /// Its facts with their places, in the ledger's order.
    fn in_order(&self) -> Vec<(&Fact, usize)> {
        let mut facts: Vec<_> = self.facts.list().iter().zip(0..).collect();
        facts.sort_by_key(|(fact, _)| if fact.seq == 0 { u64::MAX } else { fact.seq });
        facts
    }

    /// Its facts in words, in the ledger's order: those at the places that `wanted` says.
    fn lines(&self, wanted: impl Fn(usize) -> bool) -> Vec<String> {
        self.in_order().into_iter().filter(|(_, place)| wanted(*place)).map(|(fact, _)| fact.to_string()).collect()
    }

    /// All of them, each with whether its verdict rests on it.
    fn lines_with_grounds(&self) -> impl Iterator<Item = (String, bool)> {
        self.in_order().into_iter().map(|(fact, place)| (fact.to_string(), self.is_ground(place)))
    }

    /// The facts that its verdict rests on.
    fn ground_facts(&self) -> &[FactId] {
        let own = self.findings.iter().find(|finding| self.observed.starts_with(&finding.verdict));
        own.map_or(&[], |finding| &finding.facts)
    }

    /// Whether the fact at `place` is one that its verdict rests on, or what a kernel complained of.
    fn is_ground(&self, place: usize) -> bool {
        let rests = self.ground_facts().iter().any(|fact| fact.place() == place);
        rests || self.facts.list().get(place).is_some_and(Fact::is_report)
    }

    /// What its verdict rests on, and what its kernels complained of.
    fn grounds(&self) -> Vec<String> {
        self.lines(|place| self.is_ground(place))
    }

    /// The same attempt with its timeline.
    pub fn with_timeline(self, timeline: Timeline) -> Self {
        Self { timeline: timeline.moments, timeline_left_out: timeline.left_out, ..self }
    }
}

/// A whole run, for machines. `rows` is the only list at the top.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Version of this program.
    pub rnic: String,
    /// The program's bytes, as a number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build: String,
    /// The host's kernel and KVM.
    pub host: String,
    /// All nonces of the run derive from it; in a run over several seeds the first of them.
    pub seed: u64,
    /// The plan of injections: its path and title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What all rows ran under.
    #[serde(default, skip_serializing_if = "Setting::is_usual")]
    pub setting: Setting,
    /// Which part of a run it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// Merged: shards that are not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<u32>,
    /// Rows in the order of the run.
    pub rows: Vec<RowResult>,
}

impl Report {
    /// 0 all as expected, 1 some differ, 2 some inconclusive (and none differs).
    pub fn exit_status(&self) -> u8 {
        match self.rows.iter().map(|row| row.score).max() {
            None | Some(Score::Good) => 0,
            Some(Score::Differs) => 1,
            Some(Score::Inconclusive) => 2,
        }
    }

    /// The kernels, in the order in which their first rows ended: name and version.
    pub fn kernels(&self) -> Vec<(&str, &str)> {
        let mut kernels = Vec::new();
        for row in &self.rows {
            let kernel = (row.kernel.as_str(), row.kernel_version.as_str());
            if !kernels.contains(&kernel) {
                kernels.push(kernel);
            }
        }
        kernels
    }

    /// Rows of a kernel that [`Report::kernels`] has named.
    pub fn rows_of(&self, kernel: (&str, &str)) -> Vec<&RowResult> {
        self.rows.iter().filter(|row| (row.kernel.as_str(), row.kernel_version.as_str()) == kernel).collect()
    }

    /// One line: how many rows there were and how they count.
    pub fn summary(&self) -> String {
        let count = |score| self.rows.iter().filter(|row| row.score == score).count();
        format!(
            "{} rows: {} as expected, {} differ, {} inconclusive",
            self.rows.len(),
            count(Score::Good),
            count(Score::Differs),
            count(Score::Inconclusive)
        )
    }
}

/// Heads the table.
pub fn print_head(out: &mut dyn Write) -> io::Result<()> {
    let words = ["scenario", "fs", "mode", "folio", "kernel", "expected", "observed", "seconds"];
    writeln!(out, "{}", columns(words))
}

/// A line of the table. Only a name longer than its column moves what stands right of it.
fn columns([scenario, ground, mode, folio, kernel, expected, observed, seconds]: [&str; 8]) -> String {
    format!("{scenario:<8} {ground:<9} {mode:<11} {folio:<6} {kernel:<6} {expected:<18} {observed:<18} {seconds:>7}")
}

/// One row, and below it what its verdict rests on.
pub fn print_row(out: &mut dyn Write, row: &RowResult) -> io::Result<()> {
    let mark = match row.score {
        Score::Good => "",
        Score::Differs => "  <-- differs",
        Score::Inconclusive => "  <-- inconclusive",
    };
    let (ground, seconds) = (ground(&row.fs, row.disk.as_deref()), format!("{:.1}", row.seconds));
    let [expected, observed] = [&row.expected, &row.observed].map(String::as_str);
    let line = [&row.scenario, &ground, &row.mode, &row.folio, short(&row.kernel), expected, observed, &seconds];
    let seed = row.seed.map_or_else(String::new, |seed| format!("  seed {seed}"));
    writeln!(out, "{}{seed}{mark}", columns(line))?;
    if let Some(plant) = &row.plant {
        writeln!(out, "         planted: {plant}; must notice: {}", row.checks.join(", "))?;
    }
    for (attempt, number) in row.attempts.iter().zip(1..) {
        if row.attempts.len() > 1 {
            writeln!(out, "         attempt {number} of {}: {}", row.attempts.len(), attempt.observed)?;
        }
        attempt.grounds().iter().try_for_each(|line| writeln!(out, "         {line}"))?;
    }
    out.flush()
}

/// A kernel given by path shows its file name only.
pub(crate) fn short(kernel: &str) -> &str {
    kernel.rsplit('/').next().unwrap_or(kernel)
}

/// `rnic lab --list`; with `sources` what is expected of each scenario on the kernels that have names, and where that comes from.
pub fn print_list(out: &mut dyn Write, sources: bool) -> io::Result<()> {
    writeln!(out, "Scenarios (* = part of the core set that `rnic lab` runs; --all runs every row):")?;
    for scenario in scenarios::all() {
        let name = |fs: &crate::plan::Fs| format!("{}{}", fs.name(), if scenario.core.contains(fs) { "*" } else { "" });
        let filesystems: Vec<_> = scenario.filesystems.iter().map(name).collect();
        writeln!(out, "  {:<7} {:<11} {:<19} {}", scenario.id, scenario.mode, filesystems.join(" "), scenario.title)?;
        if sources {
            print_expected(out, scenario)?;
        }
    }
    writeln!(out, "{} rows per kernel in all. Verdicts:", all_rows().len())?;
    for verdict in Verdict::all() {
        writeln!(out, "  {:<13} {}", verdict.word(), verdict.meaning())?;
    }
    Ok(())
}

/// What is expected of a scenario's rows, by verdict and source.
fn print_expected(out: &mut dyn Write, scenario: &'static Scenario) -> io::Result<()> {
    let mut all: Vec<(Expectation, Vec<String>)> = Vec::new();
    for (kernel, version) in NAMED {
        for row in scenario.rows() {
            let Some(expected) = expected(&row, version) else { continue };
            let place = format!("{kernel} {} {}", ground(row.fs.name(), row.disk_named()), row.folio);
            match all.iter_mut().find(|(known, _)| *known == expected) {
                Some((_, places)) => places.push(place),
                None => all.push((expected, vec![place])),
            }
        }
    }
    for (Expectation { verdict, source }, places) in all {
        writeln!(out, "          {verdict} on {}: {source}", places.join(", "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fact::What;
    use crate::finding::Finding;

    fn row(expected: Option<&'static str>, verdict: Verdict) -> RowResult {
        let expected = expected.map(|verdict| Expectation { verdict, source: "a test" });
        RowResult::new(&all_rows()[0], "6.1", "6.1.192-2", expected, &Observed::new(verdict), Vec::new())
    }

    fn status(rows: Vec<RowResult>) -> u8 {
        Report { rows, ..Report::default() }.exit_status()
    }

    #[test]
    fn exit_status_tells_the_three_cases_apart() {
        assert_eq!(status(vec![row(Some("LOST"), Verdict::Lost)]), 0);
        assert_eq!(status(vec![row(Some("LOST"), Verdict::Safe), row(None, Verdict::Inconclusive)]), 1);
        assert_eq!(status(vec![row(Some("LOST"), Verdict::Inconclusive)]), 2);
    }

    #[test]
    fn a_kernel_of_ones_own_fails_only_by_harm() {
        assert_eq!(status(vec![row(None, Verdict::Benign), row(None, Verdict::Exposed)]), 0);
        assert_eq!(status(vec![row(None, Verdict::Torn)]), 1);
    }

    /// What step 2 wrote, and the fields that its reader wants.
    #[test]
    fn reports_of_step_2_are_read_and_its_readers_can_read_ours() {
        let old = r#"{"scenario":"H01","fs":"ext4","mode":"pinned","folio":"single","kernel":"6.1",
            "kernel_version":"6.1.192-2","expected":"LOST","observed":"LOST","evidence":["power cut at #6740: the disk has B*8"],
            "seconds":5.8,"score":"as_expected"}"#;
        let read: RowResult = serde_json::from_str(old).unwrap();
        assert_eq!((read.observed.as_str(), read.score, read.attempts.len()), ("LOST", Score::Good, 0));

        #[derive(Deserialize)]
        struct OldRow {
            scenario: String,
            fs: String,
            mode: String,
            folio: String,
            kernel: String,
            kernel_version: String,
            expected: String,
            observed: String,
            evidence: Vec<String>,
            seconds: f64,
            score: String,
        }
        let mut facts = Facts::default();
        let fact = facts.add(7, What::Returned { step: "fsync".into(), errno: None });
        facts.add(0, What::harm(1, 3));
        let findings = vec![(&Finding::new(Verdict::Lost, fact, [])).into()];
        let attempt = Attempt { observed: "LOST".into(), facts, findings, seconds: 2.5, ..Attempt::default() };
        let ours =
            RowResult::new(&all_rows()[0], "6.1", "6.1.192-2", None, &Observed::new(Verdict::Lost), vec![attempt]);
        let text = serde_json::to_string(&ours).unwrap();
        let old: OldRow = serde_json::from_str(&text).unwrap();
        let OldRow { scenario, fs, mode, folio, kernel, kernel_version, expected, observed, evidence, seconds, score } =
            old;
        let words = [scenario, fs, mode, folio, kernel, kernel_version, expected, observed, score].join(" ");
        assert_eq!(words, "H12 ext4 dio single 6.1 6.1.192-2 - LOST differs");
        assert_eq!(
            (evidence, seconds),
            (vec!["#7: fsync returned 0".to_string(), "harm: 1 of 3 trials".to_string()], 2.5)
        );
        let again: RowResult = serde_json::from_str(&text).unwrap();
        assert_eq!((again.attempts, again.rounds), (ours.attempts, Some(Rounds { hits: 1, of: 3 })));
    }

    #[test]
    fn json_has_the_stable_names() {
        let json = serde_json::to_value(row(Some("SAFE"), Verdict::Safe)).unwrap();
        assert_eq!(json["expected_source"], "a test");
        let mut names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        names.retain(|name| *name != "expected_source");
        names.sort_unstable();
        let stable = "attempts evidence expected folio fs kernel kernel_version mode observed scenario score seconds";
        assert_eq!(names.join(" "), stable);
    }
}
