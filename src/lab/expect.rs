// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is expected of a stock kernel, by version range, and where each expectation comes from: a source that was read, or a run.
//! Expectations never reach an oracle; the report sets them beside what was observed. Rows of Rust have theirs in `table`, stories
//! bring their own.

mod kernels;
mod table;

use super::plan::{Folio, Row};
use super::verdict::{Verdict, errno_name};

pub use kernels::{Kernels, Version, parse_version};

/// Kernels that have names, as they were run.
pub const NAMED: [(&str, Version); 3] = [("6.1", (6, 1, 192)), ("6.12", (6, 12, 118)), ("7.3", (7, 3, 4))];

/// What is expected of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// A verdict with its qualifiers; several between bars where the outcome is a race inside the kernel.
    pub verdict: &'static str,
    /// The source that was read, or the kernels and the date of a run.
    pub source: &'static str,
}

/// What every negative control has to come to.
pub const CAUGHT: Expectation =
    Expectation { verdict: "CAUGHT", source: "what is planted has to be noticed (docs/selftest.md)" };
const NO_LARGE: Expectation = Expectation {
    verdict: "NOT-RUN",
    source: "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29 (finding 5); the releases in between by memory",
};
const NO_RXE_ODP: Expectation = Expectation {
    verdict: "NOT-RUN",
    source: "run on 6.1.192-2 and 6.12.118-1, 2026-11-29: its soft-RoCE offers none; 6.15, which has it, by memory",
};

/// Whether a kernel of `version` gives a plain write (6.1: readahead) of a file on `fs` folios of several pages. 6.1 has them on
/// xfs by readahead only; ext4 since 6.16, btrfs since 6.17 (from memory; runs showed none on 6.12 and both on 7.3).
fn makes_large(fs: &str, version: Version) -> bool {
    match fs {
        "xfs" => true,
        "ext4" => version >= (6, 16, 0),
        _ => version >= (6, 17, 0),
    }
}

/// soft-RoCE behaves as our NIC does; it has on-demand paging since 6.15 (by memory; runs showed none on 6.1, and 7.3 with it).
pub(crate) fn plain_mode(mode: &'static str) -> &'static str {
    const NAMES: [(&str, &str); 4] =
        [("rxe-pinned", "pinned"), ("rxe-odp", "odp"), ("rxe-late", "pinned-late"), ("rxe-ro", "pinned-ro")];
    NAMES.iter().find(|(rxe, _)| *rxe == mode).map_or(mode, |(_, plain)| plain)
}

/// What is expected of `row` on a stock kernel of `version`; `None` where nothing is known.
pub fn expected(row: &Row, version: Version) -> Option<Expectation> {
    if row.control.is_some() {
        return Some(CAUGHT);
    }
    let story = row.scenario.story;
    if story.is_some_and(|story| story.expects.is_empty()) {
        return None;
    }
    if row.folio == Folio::Large && !makes_large(row.fs.name(), version) {
        return Some(NO_LARGE);
    }
    if row.scenario.mode == "rxe-odp" && version < (6, 15, 0) {
        return Some(NO_RXE_ODP);
    }
    match story {
        Some(story) => story.expects.iter().find(|expect| expect.get_ref().fits(row, version)).map(|expect| {
            let expect = expect.get_ref();
            Expectation { verdict: &expect.verdict, source: &expect.source }
        }),
        None => table::expected(row, version),
    }
}

/// Whether `text` is a verdict as rows show it: a word, an error in parentheses, "+LATE", "+WARN"; "FLAKY(OOPS 1 of 2)".
pub fn is_verdict(text: &str) -> bool {
    if let Some(of) = text.strip_prefix("FLAKY(").and_then(|of| of.strip_suffix(')')) {
        let words: Vec<_> = of.split(' ').collect();
        return matches!(words[..], [word, hits, "of", all] if Verdict::all().any(|verdict| verdict.word() == word)
            && hits.parse::<u32>().is_ok() && all.parse::<u32>().is_ok());
    }
    let text = text.strip_suffix("+WARN").unwrap_or(text);
    let text = text.strip_suffix("+LATE").unwrap_or(text);
    let (word, errno) = match text.strip_suffix(')').and_then(|text| text.split_once('(')) {
        Some((word, errno)) => (word, Some(errno)),
        None => (text, None),
    };
    Verdict::all().any(|verdict| verdict.word() == word)
        && errno.is_none_or(|errno| (1..200).any(|number| errno_name(number) == errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_word_with_its_qualifiers() {
        for good in ["SAFE", "LOST(EUCLEAN)", "LOST+LATE", "LOST(EIO)+WARN", "REFUSED(errno 2)", "FLAKY(OOPS 1 of 2)"] {
            assert!(is_verdict(good), "{good}");
        }
        for bad in ["", "SAVE", "LOST(EUKLEAN)", "LOST+WARN+LATE", "LOST ", "LOST()", "FLAKY(OOPS)"] {
            assert!(!is_verdict(bad), "{bad}");
        }
    }

    #[test]
    fn every_planned_row_of_a_named_kernel_has_an_expectation() {
        // Of a guest that is broken on purpose nothing is expected, nor of a story that runs only when it is named.
        let without =
            |row: &Row| row.scenario.mode.starts_with("plant") || row.scenario.named && row.scenario.story.is_some();
        for row in super::super::plan::all_rows().into_iter().filter(|row| !without(row)) {
            for (_, version) in NAMED {
                let expected = expected(&row, version).unwrap_or_else(|| panic!("{row:?} {version:?}"));
                assert!(expected.verdict.split('|').all(is_verdict), "{row:?}: {}", expected.verdict);
                let says = |word| expected.source.contains(word);
                assert!(expected == CAUGHT || says("run on") || says("source read"), "{row:?}: {}", expected.source);
            }
        }
    }
}
