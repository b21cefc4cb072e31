// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenarios as data: what a TOML file says, and what is wrong with it.
//!
//! * here: the format. `expect`: what it expects of stock kernels. `variants`: one story for each combination of its parameters. `check`: what the format alone cannot say (names that exist, steps that fit).
//! * [`crate::model`]: what each page may hold, by what has been promised. `play`: the steps, at a bench.

mod check;
mod expect;
pub mod play;
#[cfg(test)]
mod tests;
mod variants;

use std::collections::BTreeMap;

use rnic_agent::proto::FsType;
use serde::Deserialize;
use toml::Spanned;

use super::plan::{Folio, Registration};

pub use expect::Expect;

/// A scenario. `[pages]` names pages, `[[step]]` is what happens, in order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Story {
    /// Its number in the hazard catalogue, or a name of one's own.
    pub id: String,
    /// One line.
    pub title: String,
    /// File systems that it applies to.
    pub filesystems: Vec<FsType>,
    /// Folio sizes of its rows.
    #[serde(default = "single")]
    pub folios: Vec<Folio>,
    /// How memory is registered: a mode of the row each. None: no RDMA, and the mode is "disk".
    #[serde(default)]
    pub registrations: Vec<Registration>,
    /// Files that are made, written with A and fsynced before the first step.
    pub files: BTreeMap<String, FileSpec>,
    /// Pages that steps name.
    pub pages: BTreeMap<String, PageSpec>,
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

fn single() -> Vec<Folio> {
    vec![Folio::Single]
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its length in pages.
    pub pages: u32,
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

/// What an advice covers, around a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// The page.
    Page,
    /// The half of its folio that has it.
    HalfFolio,
    /// Its folio.
    Folio,
    /// The file.
    File,
}

/// madvise(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// MADV_PAGEOUT.
    Pageout,
    /// MADV_COLD.
    Cold,
    /// MADV_DONTNEED.
    Dontneed,
}

/// Where a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Before its data move.
    BeforeData,
    /// After that, before it completes.
    BeforeComplete,
}

/// What happens. A letter (`tag`) names the writer of bytes, and is found again wherever they are read.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A CPU store to the whole page.
    Store(Store),
    /// A CPU load of the whole page: it must show what was written last.
    Load(Load),
    /// fsync(2), which promises what was complete before it began.
    Fsync(Fsync),
    /// An O_DIRECT read from another disk into the mapping: a device writes the page.
    DioRead(DioRead),
    /// Holds the next request of the disk under test that touches a page.
    Hold(Hold),
    /// Lets a held request move its data, and holds it again before it completes.
    Deliver(Name),
    /// Lets what is held go on, and waits for the step that it belongs to.
    Finish(Name),
    /// Waits for a step in the background.
    Wait(Name),
    /// madvise(2).
    Advise(Advise),
    /// ibv_reg_mr(3) of the mapping of a file, as the row's mode says.
    Register(OfFile),
    /// ibv_dereg_mr(3).
    Deregister(OfFile),
    /// RDMA WRITE to the whole page.
    RdmaWrite(Store),
    /// RDMA READ of the whole page: it must show what was written last.
    RdmaRead(Load),
    /// An O_DIRECT write of the whole page through the file.
    DioWrite(Store),
    /// FALLOC_FL_PUNCH_HOLE of the page: zeroes.
    Punch(Load),
    /// drop_caches.
    DropCaches(Empty),
    /// A power cut, of which every page is read that the story names.
    Cut(Empty),
}

/// See [`Step::Store`] and [`Step::RdmaWrite`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
}

/// See [`Step::Load`] and [`Step::RdmaRead`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Name of the page.
    pub page: String,
}

/// See [`Step::Fsync`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fsync {
    /// Name of the file.
    pub file: String,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
}

/// See [`Step::DioRead`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DioRead {
    /// Name of the page that it writes.
    pub page: String,
    /// The letter of its bytes.
    pub tag: char,
    /// Bytes, a multiple of 512 from the page's first on.
    #[serde(default = "page")]
    pub bytes: u32,
    /// Its name, for steps that let it go on. It is held before its data.
    pub name: String,
}

fn page() -> u32 {
    4096
}

/// See [`Step::Hold`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Name of the page.
    pub page: String,
    /// Where.
    pub point: Point,
    /// The hold's name.
    pub name: String,
}

/// What an earlier step named.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// The name.
    pub name: String,
}

/// See [`Step::Advise`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advise {
    /// Which.
    pub advice: Advice,
    /// Name of the page that it is around.
    pub page: String,
    /// What it covers.
    pub range: Range,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfFile {
    /// Its name.
    pub file: String,
}

/// Nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

impl Story {
    /// Reads a file: a story for each combination of its parameters.
    ///
    /// # Errors
    /// One sentence with the line and the key.
    pub fn parse(text: &str) -> Result<Vec<Self>, String> {
        variants::of(text)?.into_iter().map(|(variant, text)| Ok(Self { variant, ..Self::parse_one(&text)? })).collect()
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
