// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Versions of kernels, and ranges of them.

use serde::Deserialize;

/// An upstream version, e.g. 6.12.117.
pub type Version = (u32, u32, u32);

/// Behind every stable update.
const LAST: u32 = u32::MAX;

/// From a first to a last version, both included. In a story `"6.1"` is all of 6.1, `"6.12.97..6.12"` from 6.12.97 to the last 6.12; an
/// end that is left out is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Kernels {
    first: Version,
    last: Version,
}

impl Kernels {
    /// Every one.
    pub const ANY: Self = Self::new((0, 0, 0), (LAST, LAST));

    /// From `first` to the last update of `last`.
    pub const fn new(first: Version, last: (u32, u32)) -> Self {
        Self { first, last: (last.0, last.1, LAST) }
    }

    /// Whether `version` is one of them.
    pub fn has(&self, version: Version) -> bool {
        (self.first..=self.last).contains(&version)
    }
}

impl TryFrom<String> for Kernels {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`kernels`: \"{text}\" is no range of kernels like \"6.1\" or \"6.12.97..6.12\"");
        let (first, last) = text.split_once("..").unwrap_or((&text, &text));
        let end = |end: &str, open: Version, update: u32| match end {
            "" => Some(open),
            end => numbers(end).map(|(major, minor, patch)| (major, minor, patch.unwrap_or(update))),
        };
        let first = end(first, Self::ANY.first, 0).ok_or_else(wrong)?;
        let last = end(last, Self::ANY.last, LAST).ok_or_else(wrong)?;
        if text.is_empty() || first > last { Err(wrong()) } else { Ok(Self { first, last }) }
    }
}

/// "6.12" or "6.12.97".
fn numbers(text: &str) -> Option<(u32, u32, Option<u32>)> {
    let parts = text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
    match parts[..] {
        [major, minor] => Some((major, minor, None)),
        [major, minor, patch] => Some((major, minor, Some(patch))),
        _ => None,
    }
}

/// Reads the upstream version out of a Debian package version ("6.12.117-1") or `uname -v` ("... Debian 6.1.192-2 ...").
pub fn parse_version(text: &str) -> Option<Version> {
    let start = text.find("Debian ").map_or(0, |at| at + "Debian ".len());
    let text = text[start..].trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text[..end].split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_either_text() {
        assert_eq!(parse_version("6.12.117-1"), Some((6, 12, 117)));
        assert_eq!(parse_version("#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)"), Some((6, 1, 192)));
        assert_eq!(parse_version("7.3.4-1~bpo13+1"), Some((7, 3, 4)));
        assert_eq!(parse_version("nothing"), None);
    }

    #[test]
    fn ranges_have_their_ends_and_may_be_open() {
        let has = |text: &str, version| Kernels::try_from(text.to_string()).unwrap().has(version);
        assert!(has("6.1", (6, 1, 0)) && has("6.1", (6, 1, 192)) && !has("6.1", (6, 2, 0)) && !has("6.1", (6, 12, 0)));
        assert!(has("6.12.97..6.12", (6, 12, 97)) && has("6.12.97..6.12", (6, 12, 300)));
        assert!(!has("6.12.97..6.12", (6, 12, 96)) && !has("6.12.97..6.12", (6, 13, 0)));
        assert!(has("6.5..", (7, 3, 4)) && !has("6.5..", (6, 1, 192)) && has("..6.4", (6, 1, 0)));
        for bad in ["", "6", "6.1.2.3", "6.x", "7.3..6.1", "6.1-6.4"] {
            assert!(Kernels::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
