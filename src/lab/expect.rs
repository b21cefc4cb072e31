// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is expected of a stock kernel, by version range. Expectations never reach an oracle; the report sets them beside what
//! was observed. Sources: the hazard catalogue's reading of kernel sources, corrected by runs (docs/findings.md).

use super::plan::{Folio, Row};
use super::verdict::Verdict;

/// An upstream version, e.g. 6.12.117.
pub type Version = (u32, u32, u32);

const ANY: &str = "";

/// One expectation. The first line that matches counts.
struct Line {
    scenario: &'static str,
    mode: &'static str,
    fs: &'static str,
    /// `None`: both sizes.
    folio: Option<Folio>,
    /// First and last version it holds for.
    versions: (Version, Version),
    verdict: &'static str,
}

const ALL: (Version, Version) = ((6, 1, 0), (7, 3, 999));
const V6_1: (Version, Version) = ((6, 1, 0), (6, 1, 999));
/// btrfs without its fixup for pages that are dirtied behind its back.
const NO_FIXUP: (Version, Version) = ((6, 12, 97), (6, 12, 999));

/// ext4 with large folios, whose buffers reclaim takes away under a pin.
const EXT4_LARGE: (Version, Version) = ((6, 16, 0), (7, 3, 999));

const fn line(
    scenario: &'static str,
    mode: &'static str,
    fs: &'static str,
    versions: (Version, Version),
    verdict: &'static str,
) -> Line {
    Line { scenario, mode, fs, folio: None, versions, verdict }
}

/// Kernels that refuse to pin a shared mapping of a file for writing (6.5 by memory; runs showed 6.1 without and 6.12 with it).
const REFUSING: (Version, Version) = ((6, 5, 0), (7, 3, 999));
const REFUSED: &str = "REFUSED(EFAULT)";

/// The same for large folios only.
const fn large(line: Line) -> Line {
    Line { folio: Some(Folio::Large), ..line }
}

const TABLE: &[Line] = &[
    line("H12", "dio", "btrfs", NO_FIXUP, "LOST(EUCLEAN)"),
    // A race of fsync with the fixup worker (finding 2).
    line("H12", "dio", "btrfs", ALL, "EXPOSED|LOST+LATE"),
    line("H12", "dio", ANY, ALL, "EXPOSED"),
    line("H12", "dio-held", "btrfs", ALL, "TORN"),
    line("H12", "dio-held", ANY, ALL, "BENIGN"),
    line("H03", "dio", "ext4", V6_1, "LOST+WARN"),
    large(line("H03", "dio", "ext4", EXT4_LARGE, "LOST+WARN")),
    line("H03", "dio", "btrfs", NO_FIXUP, "LOST(EUCLEAN)"),
    line("H03", "dio", "btrfs", ALL, "SAFE|LOST+LATE"),
    line("H03", "dio", ANY, ALL, "SAFE"),
    line("H04", "dio", "btrfs", NO_FIXUP, "LOST(EUCLEAN)"),
    line("H04", "dio", "btrfs", ALL, "LOST+LATE"),
    line("H18", "dio", "xfs", ALL, "LEAKTO"),
    line("H19", "dio", "btrfs", NO_FIXUP, "LOST(EUCLEAN)"),
    line("H19", "dio", "btrfs", ALL, "SAFE|LOST+LATE"),
    line("H01", "pinned", ANY, V6_1, "LOST"),
    line("H01", "pinned", ANY, REFUSING, REFUSED),
    line("H01", ANY, ANY, ALL, "SAFE"),
    line("H02", "pinned", ANY, V6_1, "LOST"),
    line("H02", "pinned", ANY, REFUSING, REFUSED),
    line("H02", "odp", ANY, ALL, "ERR-CQE"),
    line("H06", "pinned", ANY, V6_1, "TORN"),
    line("H06", "pinned", ANY, REFUSING, REFUSED),
    line("H06", "odp", ANY, ALL, "SAFE"),
    line("H10", "pinned", ANY, REFUSING, REFUSED),
    line("H10", "pinned-late", ANY, REFUSING, REFUSED),
    line("H10", "pinned-late", ANY, V6_1, "LOST"),
    line("H10", ANY, ANY, ALL, "BENIGN"),
    line("H13", "pinned", ANY, V6_1, "SPLIT"),
    line("H13", "pinned", ANY, REFUSING, REFUSED),
    line("H13", "pinned-ro", ANY, ALL, "STALE"),
    line("H13", ANY, ANY, ALL, "SAFE"),
    line("H36", "odp", ANY, ALL, "BENIGN"),
    line("H36", "odp-ro", ANY, ALL, "SAFE"),
    line("H37", ANY, ANY, ALL, "SAFE"),
    line("H38", ANY, ANY, ALL, "SAFE"),
    line("price", ANY, ANY, ALL, "MEASURED"),
];

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
fn plain_mode(mode: &'static str) -> &'static str {
    const NAMES: [(&str, &str); 4] =
        [("rxe-pinned", "pinned"), ("rxe-odp", "odp"), ("rxe-late", "pinned-late"), ("rxe-ro", "pinned-ro")];
    NAMES.iter().find(|(rxe, _)| *rxe == mode).map_or(mode, |(_, plain)| plain)
}

/// The verdict expected of `row` on a stock kernel of `version`; `None` where nothing is known.
pub fn expected(row: &Row, version: Version) -> Option<&'static str> {
    if row.control.is_some() {
        return Some(Verdict::Caught.word());
    }
    if row.folio == Folio::Large && !makes_large(row.fs.name(), version) {
        return Some("NOT-RUN");
    }
    if row.scenario.mode == "rxe-odp" && version < (6, 15, 0) {
        return Some("NOT-RUN");
    }
    let mode = plain_mode(row.scenario.mode);
    let fits = |pattern: &str, value: &str| pattern.is_empty() || pattern == value;
    let line = TABLE.iter().find(|line| {
        line.scenario == row.scenario.id
            && fits(line.mode, mode)
            && fits(line.fs, row.fs.name())
            && line.folio.is_none_or(|folio| folio == row.folio)
            && (line.versions.0..=line.versions.1).contains(&version)
    })?;
    Some(line.verdict)
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
    fn every_planned_row_of_a_named_kernel_has_an_expectation() {
        // Of a guest that is broken on purpose nothing is expected.
        let planted = |row: &Row| row.scenario.mode.starts_with("plant");
        for row in super::super::plan::all_rows().into_iter().filter(|row| !planted(row)) {
            for version in [(6, 1, 192), (6, 12, 117), (7, 3, 4)] {
                assert!(expected(&row, version).is_some(), "{row:?} {version:?}");
            }
        }
    }
}
