// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios, two tables. Numbers are those of the hazard catalogue. Here the writer is the block device itself: an O_DIRECT
//! read whose destination is a shared mapping of the file under test. In [`rdma`] it is an RDMA device.

mod control_store;
mod out_of_band;
mod overlap;
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

use super::bench::Plant;
use super::check::Check;
use super::controls::Control;
use super::plan::{Folio, Scenario, Writer};

const ALL_FS: &[FsType] = &[Ext4, Xfs, Btrfs];
const BOTH: &[Folio] = &[Folio::Single, Folio::Large];
const SINGLE: &[Folio] = &[Folio::Single];

/// Every scenario there is.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    DISK.iter().chain(rdma::TABLE).chain(plants::TABLE)
}

const DISK: &[Scenario] = &[
    Scenario {
        id: "H12",
        mode: "dio",
        writer: Writer::Disk,
        title: "fsync returns 0 after an O_DIRECT read has landed in a clean page of the file; then a power cut",
        filesystems: ALL_FS,
        core: &[Ext4, Btrfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: overlap::after_writeback,
    },
    Scenario {
        id: "H12",
        mode: "dio-held",
        writer: Writer::Disk,
        title: "an O_DIRECT read lands in a page while the write of the same page is held; then a power cut",
        filesystems: ALL_FS,
        core: &[Ext4, Btrfs],
        control: None,
        folios: BOTH,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: overlap::during_writeback,
    },
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
    Scenario {
        id: "C-lie",
        mode: "dio-held",
        writer: Writer::Disk,
        title: "negative control: H12 with a lever that says it holds the write and lets it go",
        filesystems: &[Ext4],
        core: &[Ext4],
        control: Some(Control { plant: Plant::LyingLever, checks: &[Check::Hold] }),
        folios: SINGLE,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: overlap::during_writeback,
    },
    Scenario {
        id: "C-miss",
        mode: "dio",
        writer: Writer::Disk,
        title: "negative control: H12 with a ledger that misses a write of the page under test",
        filesystems: &[Ext4],
        core: &[Ext4],
        control: Some(Control { plant: Plant::MissedWrite, checks: &[Check::DiskRecords] }),
        folios: SINGLE,
        core_folios: SINGLE,
        named: false,
        story: None,
        run: overlap::after_writeback,
    },
];
