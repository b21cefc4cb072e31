// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of a story.

use serde::Deserialize;

use crate::verdict::errno_name;

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
    Store(Write),
    /// A CPU load of the whole page: it must show what was written last.
    Load(OfPage),
    /// fsync(2), which promises what was complete before it began.
    Fsync(Fsync),
    /// sync_file_range(2) of a page: its write begins, and nothing is promised.
    Writeback(Writeback),
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
    RdmaWrite(Write),
    /// RDMA READ of the whole page: it must show what was written last.
    RdmaRead(OfPage),
    /// An O_DIRECT write of the whole page through the file.
    DioWrite(DioWrite),
    /// FALLOC_FL_PUNCH_HOLE of the page: zeroes.
    Punch(Punch),
    /// drop_caches.
    DropCaches(Empty),
    /// A power cut, of which every page is read that the story names.
    Cut(Empty),
}

/// What may come of a step. Nothing else may: it ends the row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Outcome {
    /// "returns": it does what it is for.
    Returns,
    /// "waits": in the background, until what is held goes on.
    Waits,
    /// "errno:EIO": it fails with this error.
    Errno(i32),
    /// "error:remote access error": a work request completes with this status (ibv_wc_status_str(3)).
    Status(String),
}

impl TryFrom<String> for Outcome {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let errno = |name: &str| (1..200).find(|number| errno_name(*number) == name);
        match (text.as_str(), text.split_once(':')) {
            ("returns", _) => Ok(Self::Returns),
            ("waits", _) => Ok(Self::Waits),
            (_, Some(("errno", name))) => errno(name).map(Self::Errno).ok_or_else(|| {
                format!(
                    "`allow`: \"{name}\" is no error that this program has a name for; \"errno N\" is one by its number"
                )
            }),
            (_, Some(("error", status))) => Ok(Self::Status(status.into())),
            _ => Err(format!("`allow`: \"{text}\" is no outcome; there are returns, waits, errno:NAME, error:STATUS")),
        }
    }
}

/// By default a step has to return.
fn returns() -> Vec<Outcome> {
    vec![Outcome::Returns]
}

/// See [`Step::Store`] and [`Step::RdmaWrite`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
}

/// See [`Step::DioWrite`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DioWrite {
    /// Name of the page.
    pub page: String,
    /// The writer's letter.
    pub tag: char,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
    /// The page must leave the mapping: else the row says nothing.
    #[serde(default)]
    pub replaces: bool,
}

/// See [`Step::Punch`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Punch {
    /// Name of the page.
    pub page: String,
    /// It runs beside the steps that follow, under this name.
    #[serde(default)]
    pub background: Option<String>,
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
}

/// See [`Step::Load`] and [`Step::RdmaRead`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfPage {
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
    /// What may come of it.
    #[serde(default = "returns")]
    pub allow: Vec<Outcome>,
}

/// See [`Step::Writeback`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Writeback {
    /// Name of the page.
    pub page: String,
    /// Its name: the next steps run beside it.
    pub background: String,
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
    /// It must take the page from the mapping, or what the file system had attached to its folio: else the trial is void.
    #[serde(default)]
    pub takes: bool,
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

impl Step {
    /// The writer's letter, of steps that write.
    pub fn tag(&self) -> Option<char> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => Some(write.tag),
            Step::DioWrite(write) => Some(write.tag),
            Step::DioRead(read) => Some(read.tag),
            _ => None,
        }
    }

    /// The page that it writes.
    pub fn writes(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => Some(&write.page),
            Step::DioWrite(write) => Some(&write.page),
            Step::DioRead(read) => Some(&read.page),
            Step::Punch(punch) => Some(&punch.page),
            _ => None,
        }
    }

    /// The name under which it runs beside the next steps.
    pub fn background(&self) -> Option<&str> {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => write.background.as_deref(),
            Step::DioWrite(write) => write.background.as_deref(),
            Step::Punch(punch) => punch.background.as_deref(),
            Step::Fsync(fsync) => fsync.background.as_deref(),
            Step::Writeback(writeback) => Some(&writeback.background),
            _ => None,
        }
    }

    /// What may come of it, of steps that can fail.
    pub fn allow(&self) -> &[Outcome] {
        match self {
            Step::Store(write) | Step::RdmaWrite(write) => &write.allow,
            Step::DioWrite(write) => &write.allow,
            Step::Punch(punch) => &punch.allow,
            Step::Fsync(fsync) => &fsync.allow,
            _ => &[],
        }
    }
}
