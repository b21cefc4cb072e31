// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenarios as data: what a TOML file says, and what is wrong with it.
//!
//! * here: the format; `step`: its steps; `memory`: what lies behind a mapping; `rows`: the rows that a story makes; `shipped`: those of this program. `expect`: what it expects of stock kernels. `variants`: one story for each combination of its parameters. `check`: what the format alone cannot say (names that exist, steps that fit).
//! * [`crate::model`]: what each page may hold, by what has been promised. `play`: the steps, at a bench.

mod check;
mod expect;
pub mod memory;
pub mod play;
pub mod rows;
pub mod shipped;
pub mod step;
#[cfg(test)]
mod tests;
mod variants;

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::bench::Plant;
use super::check::Check;
use super::plan::{DiskKind, Folio, Fs, Registration};

pub use expect::Expect;
use memory::Memory;
use step::Step;

/// A scenario. `[pages]` names pages, `[[step]]` is what happens, in order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Story {
    /// Its number in the hazard catalogue, or a name of one's own.
    pub id: String,
    /// One line.
    pub title: String,
    /// File systems that it applies to.
    pub filesystems: Vec<Fs>,
    /// Disks below them: rows for each.
    #[serde(default = "plain")]
    pub disks: Vec<DiskKind>,
    /// Folio sizes of its rows.
    #[serde(default = "single")]
    pub folios: Vec<Folio>,
    /// How the writer reaches the page, where that is not a registration: "dio". By default "disk".
    #[serde(default)]
    pub mode: Option<String>,
    /// How memory is registered: a mode of the row each. None: no RDMA.
    #[serde(default)]
    pub registrations: Vec<Registration>,
    /// The same over soft-RoCE, on the first file system with single pages: modes "rxe-...".
    #[serde(default)]
    pub soft_roce: Vec<Registration>,
    /// Its rows on these file systems are part of the core set.
    #[serde(default)]
    pub core: Vec<Fs>,
    /// With these folios.
    #[serde(default = "single")]
    pub core_folios: Vec<Folio>,
    /// In these modes; none: in all.
    #[serde(default)]
    pub core_modes: Vec<String>,
    /// Its rows run only when they are named.
    #[serde(default)]
    pub named: bool,
    /// The steps are played so often, on the same files and with other letters; one broken promise is enough.
    #[serde(default = "one")]
    pub trials: u32,
    /// Nothing is held.
    #[serde(default)]
    pub race: Option<Race>,
    /// Negative controls: the same steps with something that goes wrong on purpose.
    #[serde(default, rename = "control")]
    pub controls: Vec<Control>,
    /// Files that are made, written with A and fsynced before the first step.
    pub files: BTreeMap<String, FileSpec>,
    /// Pages that steps name.
    pub pages: BTreeMap<String, PageSpec>,
    /// Anonymous memory that O_DIRECT writes of a page take their bytes from.
    #[serde(default)]
    pub buffers: BTreeMap<String, BufferSpec>,
    /// Processes beside the agent's own, by which steps are done.
    #[serde(default)]
    pub processes: BTreeMap<String, ProcessSpec>,
    /// Values that `"$name"` stands for: a row for each combination.
    #[serde(default)]
    pub parameters: BTreeMap<String, Vec<toml::Value>>,
    /// The values of this story's combination, for the row's mode.
    #[serde(skip)]
    pub variant: String,
    /// What happens.
    #[serde(rename = "step")]
    pub steps: Vec<Spanned<Step>>,
    /// What is expected of stock kernels. None: harm is what differs.
    #[serde(default, rename = "expect")]
    pub expects: Vec<Spanned<Expect>>,
}

/// Actors run freely; what they did to the pages is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Race {
    /// How often the steps are played.
    pub rounds: u32,
}

fn one() -> u32 {
    1
}

/// The same steps with something that is broken on purpose, which checks must notice.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// C-...: it is a row of its own, on the story's first file system, with single pages. Without: only the self-test has it.
    #[serde(default)]
    pub id: Option<String>,
    /// One line, where it is a row of its own.
    #[serde(default)]
    pub title: String,
    /// What is broken.
    pub plant: Plant,
    /// The checks that must trip.
    pub checks: Vec<Check>,
    /// With RDMA: only where memory is registered like this; for a row of its own how it is.
    #[serde(default)]
    pub registration: Option<Registration>,
    /// It is part of the core set.
    #[serde(default)]
    pub core: bool,
}

/// B to Z.
const LETTERS: u32 = 25;

fn plain() -> Vec<DiskKind> {
    vec![DiskKind::Plain]
}

fn single() -> Vec<Folio> {
    vec![Folio::Single]
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its length in pages.
    pub pages: u32,
    /// What it is.
    #[serde(default)]
    pub memory: Memory,
    /// The mapping may only be read.
    #[serde(default)]
    pub read_only: bool,
}

/// A process beside the agent's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSpec {
    /// It is an ordinary user's, whose the files are then: user and group 65534, without capabilities.
    #[serde(default)]
    pub user: bool,
}

/// A page of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageSpec {
    /// Name of the file.
    pub file: String,
    /// Which page of it, from 0.
    pub at: u32,
}

/// A buffer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BufferSpec {
    /// Name of the page that is written from it.
    pub page: String,
}

impl Story {
    /// Reads a file: a story for each combination of its parameters.
    ///
    /// # Errors
    /// One sentence with the line and the key.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        variants::of(text)?.into_iter().map(|(variant, text)| Ok(Self { variant, ..Self::parse_one(&text)? })).collect()
    }

    /// How often its steps are played.
    pub(crate) fn rounds(&self) -> u32 {
        self.race.map_or(self.trials, |race| race.rounds)
    }

    /// With trials that say nothing.
    pub(crate) fn most_rounds(&self) -> u32 {
        let takes = |step: &Spanned<Step>| matches!(step.get_ref(), Step::Advise(advise) if advise.takes);
        self.rounds() + if self.steps.iter().any(takes) { play::VOIDS } else { 0 }
    }

    /// The letter that stands for `tag` in a round: each round has its own, as far as there are letters.
    pub(crate) fn letter(&self, tag: char, round: u32) -> char {
        let number = |tag: char| u32::from(tag).saturating_sub(u32::from('B'));
        let tags = self.steps.iter().filter_map(|step| step.get_ref().tag());
        let span = tags.map(number).max().unwrap_or(0) + 1;
        let letter = (number(tag) + round * span) % LETTERS + u32::from('B');
        char::from_u32(letter).unwrap_or(tag)
    }

    fn parse_one(text: &str) -> Result<Self, String> {
        let story: Self = toml::from_str(text).map_err(|error| sentence(text, &error))?;
        check::check(&story).map_err(|mistake| mistake.sentence(text))?;
        Ok(story)
    }
}

/// An error of the TOML reader, in one line.
fn sentence(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| line_of(text, span.start));
    format!("line {line}: {}", error.message().lines().collect::<Vec<_>>().join(", "))
}

/// The line, from 1, that byte `at` is in.
fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1
}
