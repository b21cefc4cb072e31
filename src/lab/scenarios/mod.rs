// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios: stories ([`shipped`]), and two tables of what a story cannot ask for. Numbers are those of the hazard catalogue. Here the writer is the block device itself: an O_DIRECT
//! read whose destination is a shared mapping of the file under test. In [`rdma`] it is an RDMA device.

mod control_store;
mod out_of_band;
mod plants;
mod price;
mod promise;
pub mod rdma;
mod rdma_cache;
mod rdma_clean;
mod rdma_exit;
mod rdma_held;
mod reflink;

use rnic_agent::proto::FsType::{self, Btrfs, Ext4, Xfs};

use super::plan::{Folio, Scenario, Writer};
use super::story::shipped;

const ALL_FS: &[FsType] = &[Ext4, Xfs, Btrfs];
const BOTH: &[Folio] = &[Folio::Single, Folio::Large];
const SINGLE: &[Folio] = &[Folio::Single];

/// Every scenario there is.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    shipped::scenarios().iter().chain(DISK).chain(rdma::TABLE).chain(plants::TABLE)
}

const DISK: &[Scenario] = &[
    Scenario {
        id: "H03",
        mode: "dio",
        writer: Writer::Disk,
        title: "fsync and MADV_PAGEOUT while the read is held, so that the page loses its buffers before it is dirtied",
        filesystems: ALL_FS,
        core: &[Ext4],
        control: None,
        folios: BOTH,
        core_folios: BOTH,
        named: false,
        story: None,
        run: out_of_band::stripped,
    },
    Scenario {
        id: "H04",
        mode: "dio",
        writer: Writer::Disk,
        title: "the read's completion dirties a page that the file system knows as clean",
        filesystems: &[Btrfs],
        core: &[Btrfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: out_of_band::dirtied,
    },
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
    Scenario {
        id: "H10",
        mode: "cpu",
        writer: Writer::Disk,
        title: "control: a CPU store in place of the device while the write is held before its data is read",
        filesystems: &[Ext4, Xfs],
        core: &[Ext4],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: control_store::before_data,
    },
    Scenario {
        id: "H10",
        mode: "cpu-late",
        writer: Writer::Disk,
        title: "control: a CPU store after the write's data has been read and before it completes",
        filesystems: &[Ext4, Xfs],
        core: &[],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: control_store::before_completion,
    },
];
