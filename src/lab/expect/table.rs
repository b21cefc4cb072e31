// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is expected of the scenarios that are Rust. Sources: readings of kernel sources are those of docs/hazards.md, which names the
//! trees (Debian 6.1.192-2, 6.12.107-1, 7.3.4-1~bpo13+1); where a run disagreed, the run is right.

use super::{Expectation, Kernels, Version, plain_mode};
use crate::plan::Row;

const ANY: &str = "";

/// One expectation. The first line that matches counts.
struct Line {
    scenario: &'static str,
    mode: &'static str,
    fs: &'static str,
    kernels: Kernels,
    verdict: &'static str,
    source: &'static str,
}

const ALL: Kernels = Kernels::new((6, 1, 0), (7, 3));
const V6_1: Kernels = Kernels::new((6, 1, 0), (6, 1));
const V7_3: Kernels = Kernels::new((7, 3, 0), (7, 3));
/// btrfs without its fixup for pages that are dirtied behind its back.
const NO_FIXUP: Kernels = Kernels::new((6, 12, 97), (6, 12));
/// Kernels that refuse to pin a shared mapping of a file for writing.
const REFUSING: Kernels = Kernels::new((6, 5, 0), (7, 3));
const REFUSED: &str = "REFUSED(EFAULT)";

/// A run of every row on the three kernels, whose differences are findings.
const RUN: &str = "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29";
const RUN_6_1: &str = "run on 6.1.192-2, 2026-11-29";
const RACE: &str = "run on 6.1.192-2 and 7.3.4-1~bpo13+1, 2026-11-29: fsync races with the fixup's worker (finding 2)";
const EUCLEAN: &str = "run on 6.12.118-1, 2026-11-29 (finding 2); source read: 6.12.107's extent_writepage_io in fs/btrfs/extent_io.c has no fixup; since 6.12.97 by Debian's changelog";
const LEAK: &str = "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29 (finding 3)";
const PINNED: &str =
    "run on 6.1.192-2, 2026-11-29 (finding 7); source read: ib_umem_get in drivers/infiniband/core/umem.c";
const EFAULT: &str = "run on 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29 (finding 7); source read: check_vma_flags in mm/gup.c of 6.12.107; the release, 6.5, by memory";
const ON_DEMAND: &str = "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29 (finding 7); source read: mlx5_ib_invalidate_range in drivers/infiniband/hw/mlx5/odp.c";
const FAULT_WAITS: &str = "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29 (findings 7 and 8); source read: btrfs_page_mkwrite in fs/btrfs waits for writeback";
const BY_DESIGN: &str =
    "run on 6.1.192-2 and 6.12.118-1, 2026-11-29: a table of errnos, of which nothing is judged, whatever the kernel";
const NOT_OURS: &str = "run on 6.1.192-2, 6.12.118-1 and 7.3.4-1~bpo13+1, 2026-11-29: a check of the lab itself";

const fn line(
    scenario: &'static str,
    mode: &'static str,
    fs: &'static str,
    kernels: Kernels,
    verdict: &'static str,
    source: &'static str,
) -> Line {
    Line { scenario, mode, fs, kernels, verdict, source }
}

const TABLE: &[Line] = &[
    line("H18", "dio", "xfs", ALL, "LEAKTO", LEAK),
    line("H19", "dio", "btrfs", NO_FIXUP, "LOST(EUCLEAN)", EUCLEAN),
    line("H19", "dio", "btrfs", ALL, "SAFE|LOST+LATE", RACE),
    line("H02", "pinned", ANY, V6_1, "LOST", PINNED),
    line("H02", "pinned", ANY, REFUSING, REFUSED, EFAULT),
    line("H02", "odp", ANY, ALL, "ERR-CQE", ON_DEMAND),
    line("H06", "pinned", ANY, V6_1, "TORN", PINNED),
    line("H06", "pinned", ANY, REFUSING, REFUSED, EFAULT),
    line("H06", "odp", ANY, ALL, "SAFE", FAULT_WAITS),
    line("H10", "pinned", ANY, REFUSING, REFUSED, EFAULT),
    line("H10", "pinned-late", ANY, REFUSING, REFUSED, EFAULT),
    line("H10", "pinned-late", ANY, V6_1, "LOST", PINNED),
    line("H10", "pinned", ANY, V6_1, "BENIGN", RUN_6_1),
    line("H10", "odp", ANY, ALL, "BENIGN", RUN),
    line("H10", "odp-late", ANY, ALL, "BENIGN", RUN),
    line("H36", "odp", ANY, ALL, "BENIGN", ON_DEMAND),
    line("H36", "odp-ro", ANY, ALL, "SAFE", ON_DEMAND),
    line("H37", ANY, ANY, ALL, "SAFE", RUN),
    line("H38", ANY, ANY, ALL, "SAFE", RUN),
    line("H05", "pinned", ANY, REFUSING, REFUSED, RUN),
    line("H05", "pinned", ANY, V6_1, "LOST", RUN_6_1),
    line("H05", "odp", ANY, ALL, "SAFE", RUN),
    line("H24", "odp-madvise", ANY, ALL, "SAFE", RUN),
    line("H24", "odp-punch", ANY, ALL, "SAFE", RUN),
    line("H24", "odp-watch", ANY, V7_3, "ERR-CQE", RUN),
    line("H24", "ro-watch", ANY, V7_3, "ERR-CQE", RUN),
    line("H24", "odp-watch", ANY, ALL, "NOT-RUN", RUN),
    line("H24", "ro-watch", ANY, ALL, "NOT-RUN", RUN),
    line("H24", ANY, ANY, ALL, "ERR-CQE", RUN),
    line("H25", ANY, ANY, ALL, "SAFE", RUN),
    line("H26", ANY, ANY, ALL, "SAFE", RUN),
    line("H27", ANY, ANY, ALL, "SAFE", RUN),
    line("H28", ANY, ANY, ALL, "SAFE", RUN),
    line("H29", ANY, ANY, ALL, "SAFE", RUN),
    line("H30", ANY, ANY, ALL, "SAFE", RUN),
    line("H31", "odp-missing", ANY, V7_3, "SAFE", RUN),
    line("H31", "odp-missing", ANY, ALL, "ERR-CQE", RUN),
    line("H31", "odp-protect", ANY, V7_3, "SAFE", RUN),
    line("H31", "odp-protect", ANY, ALL, "ERR-CQE", RUN),
    line("H31", "pinned-protect", ANY, ALL, "BENIGN", RUN),
    line("H34", ANY, ANY, ALL, "ERR-CQE", RUN),
    line("price", ANY, ANY, ALL, "MEASURED", NOT_OURS),
    line("T-refusals", ANY, ANY, ALL, "MEASURED", BY_DESIGN),
];

/// The first line that is about `row` on a kernel of `version`.
pub(super) fn expected(row: &Row, version: Version) -> Option<Expectation> {
    let mode = plain_mode(row.scenario.mode);
    let fits = |pattern: &str, value: &str| pattern.is_empty() || pattern == value;
    let line = TABLE.iter().find(|line| {
        line.scenario == row.scenario.id
            && fits(line.mode, mode)
            && fits(line.fs, row.fs.name())
            && line.kernels.has(version)
    })?;
    Some(Expectation { verdict: line.verdict, source: line.source })
}
