// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios: stories ([`shipped`]), and two tables of what a story cannot ask for. Numbers are those of the hazard catalogue. Here the writer is the block device itself: an O_DIRECT
//! read whose destination is a shared mapping of the file under test. In [`rdma`] it is an RDMA device.

mod plants;
mod price;
mod promise;
pub mod rdma;
mod rdma_cache;
mod rdma_clean;
mod rdma_exit;
mod rdma_held;
mod reflink;

use rnic_agent::proto::FsType::{Btrfs, Xfs};

use super::plan::{Folio, Scenario, Writer};
use super::story::shipped;

const BOTH: &[Folio] = &[Folio::Single, Folio::Large];
const SINGLE: &[Folio] = &[Folio::Single];

/// Every scenario there is.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    shipped::scenarios().iter().chain(DISK).chain(rdma::TABLE).chain(plants::TABLE)
}

const DISK: &[Scenario] = &[
    Scenario {
        id: "H18",
        mode: "dio",
        writer: Writer::Disk,
        title: "fsync and FICLONE while the read is held: is the clone overwritten?",
        filesystems: &[Xfs],
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
        core: &[Btrfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: reflink::clone_under_read,
    },
];
