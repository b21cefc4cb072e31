// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a story expects of stock kernels: `[[expect]]`. The first that matches a row counts.

use serde::Deserialize;

use crate::expect::{Kernels, Version, is_verdict, plain_mode};
use crate::plan::{DiskKind, Folio, Fs, Row};

/// An expectation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Of rows on this file system only.
    #[serde(default)]
    pub fs: Option<Fs>,
    /// Of rows on this disk only.
    #[serde(default)]
    pub disk: Option<DiskKind>,
    /// Of rows with folios of this size only.
    #[serde(default)]
    pub folio: Option<Folio>,
    /// Of rows of this mode only, with all values of parameters that it does not name; those of soft-RoCE are of the registration's.
    #[serde(default)]
    pub mode: Option<String>,
    /// On these kernels only.
    #[serde(default = "any")]
    pub kernels: Kernels,
    /// The verdict with its qualifiers; several between bars.
    pub verdict: String,
    /// The source that was read, or the kernels and the date of a run.
    pub source: String,
}

/// "pinned+memfd" is of "pinned" too: the values of parameters come last.
fn is_of(mode: &str, wanted: &str) -> bool {
    mode.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

fn any() -> Kernels {
    Kernels::ANY
}

impl Expect {
    /// Whether it is about `row` on a kernel of `version`.
    pub fn fits(&self, row: &Row, version: Version) -> bool {
        self.fs.is_none_or(|fs| fs == row.fs)
            && self.disk.is_none_or(|disk| disk == row.disk)
            && self.folio.is_none_or(|folio| folio == row.folio)
            && self.mode.as_ref().is_none_or(|mode| is_of(plain_mode(row.scenario.mode), mode))
            && self.kernels.has(version)
    }

    /// What is wrong with it: the key, and a sentence.
    pub(super) fn mistake(&self) -> Option<(&'static str, String)> {
        if let Some(word) = self.verdict.split('|').find(|word| !is_verdict(word)) {
            let what = format!(
                "\"{word}\" is no verdict (`rnic lab --list` has the words; LOST(EUCLEAN)+LATE+WARN is one with all that may follow)"
            );
            return Some(("verdict", what));
        }
        if self.source.trim().is_empty() {
            return Some((
                "source",
                "say where this comes from: a source that was read, or a run with kernel and date".into(),
            ));
        }
        None
    }
}
