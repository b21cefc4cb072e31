// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios: stories ([`shipped`]), and two tables of what a story cannot ask for. Numbers are those of the hazard catalogue. Here the writer is the block device itself: an O_DIRECT
//! read whose destination is a shared mapping of the file under test. In [`rdma`] it is an RDMA device.

mod mm;
mod mm_copy;
mod mm_move;
mod mm_wait;
mod plants;
mod price;
mod promise;
pub mod rdma;
mod rdma_cache;
mod rdma_clean;
mod rdma_exit;
mod rdma_held;
mod reflink;
mod refusals;
mod revoke;

use super::plan::Fs::{Btrfs, Xfs};
use super::plan::{DiskKind, Folio, Scenario, Writer};
use super::story::shipped;

const BOTH: &[Folio] = &[Folio::Single, Folio::Large];
const SINGLE: &[Folio] = &[Folio::Single];
/// Rows of Rust are of the virtio disk itself.
const PLAIN_DISK: &[DiskKind] = &[DiskKind::Plain];

/// Every scenario there is.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    shipped::scenarios()
        .iter()
        .chain(DISK)
        .chain(rdma::TABLE)
        .chain(mm::TABLE)
        .chain(revoke::TABLE)
        .chain(plants::TABLE)
}

const DISK: &[Scenario] = &[
    Scenario {
        id: "H18",
        mode: "dio",
        writer: Writer::Disk,
        title: "fsync and FICLONE while the read is held: is the clone overwritten?",
        filesystems: &[Xfs],
        disks: PLAIN_DISK,
        core: &[Xfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: reflink::clone_under_read,
    },
    Scenario {
        id: "H19",
        mode: "dio",
        writer: Writer::Disk,
        title: "fsync and FICLONE while the read is held: is the clone overwritten?",
        filesystems: &[Btrfs],
        disks: PLAIN_DISK,
        core: &[Btrfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: reflink::clone_under_read,
    },
];
