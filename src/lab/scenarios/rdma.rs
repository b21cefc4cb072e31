// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The scenarios in which an RDMA device reaches the page, and what they have in common.

use rnic_agent::pattern::Content;
use rnic_agent::proto::Op;

use super::promise::{expected_page, failed};
use super::{price, rdma_cache, rdma_clean, rdma_exit, rdma_held, refusals};
use crate::bench::{Bench, Completion, PAGE, Plant};
use crate::check::Check;
use crate::controls::Control;
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::plan::Fs::{self, Btrfs, Ext4, Xfs};
use crate::plan::Registration::{Odp, OdpRo, Pinned};
use crate::plan::{Folio, Scenario, Writer};
use crate::verdict::Verdict;

type Run = fn(&mut Bench<'_>) -> Result<Finding, Stop>;

const ALL_FS: &[Fs] = &[Ext4, Xfs, Btrfs];
const EXT4: &[Fs] = &[Ext4];
const PLAIN: &[Fs] = &[Ext4, Xfs];
const BTRFS: &[Fs] = &[Btrfs];
const SINGLE: &[Folio] = &[Folio::Single];

pub(super) const fn row(
    id: &'static str,
    mode: &'static str,
    writer: Writer,
    filesystems: &'static [Fs],
    title: &'static str,
    run: Run,
) -> Scenario {
    let (core, control) = (&[], None);
    let (folios, core_folios) = (SINGLE, SINGLE);
    Scenario {
        id,
        mode,
        writer,
        title,
        filesystems,
        disks: super::PLAIN_DISK,
        core,
        control,
        folios,
        core_folios,
        named: false,
        story: None,
        run,
    }
}

const fn core(on: &'static [Fs], scenario: Scenario) -> Scenario {
    Scenario { core: on, ..scenario }
}

/// Neither in the core set nor in `--all`: only when it is named.
pub(super) const fn named(scenario: Scenario) -> Scenario {
    Scenario { named: true, ..scenario }
}

const fn control(plant: Plant, checks: &'static [Check], scenario: Scenario) -> Scenario {
    Scenario { control: Some(Control { plant, checks }), ..scenario }
}

const DEAD: &[Check] = &[Check::Translation];

const H02: &str = "RDMA WRITE after munmap, close and umount; then dereg and mount";
const H06: &str = "RDMA WRITE while the write of the same page is held, after its checksum was made; then a power cut";
const H10: &str =
    "RDMA WRITE while the write of the same page is held before its data is read; fsync; then a power cut";
const H10_LATE: &str = "RDMA WRITE after the write's data was read and before it completes; fsync; then a power cut";
const H36: &str = "RDMA READ of a hole, then fsync: was a block allocated?";
const H37: &str = "fsync while the payload of an RDMA WRITE is in flight; then a power cut";
const H38: &str = "two processes, 64 busy queue pairs; kill -9 of one, then of the other";
const PRICE: &str =
    "what on-demand paging costs: registration, first touch, bandwidth and latency, invalidation storms";
const REFUSALS: &str = "which memory is refused to whom: RDMA, io_uring, AF_XDP, O_DIRECT, process_vm_writev, vmsplice";
const C_LATE: &str = "negative control: H37 with a NIC that writes through a translation after its zap has completed";
const C_MTTW: &str = "negative control: H37 odp-clean with a NIC that ignores the write bit of a translation";
const C_GUARD: &str = "negative control: H37 with a NIC whose zaps do not wait for payload in flight";
const C_FREE: &str =
    "negative control: an RDMA WRITE under way when its key is freed, with a NIC that goes on with freed keys";
const RO_PAGE: &str = "RDMA WRITE through a translation that was made read-only from a clean page; then a power cut";

/// Every scenario with an RDMA device.
pub const TABLE: &[Scenario] = &[
    row("H02", "pinned", Writer::Nic(Pinned), ALL_FS, H02, rdma_clean::after_umount),
    row("H02", "odp", Writer::Nic(Odp), ALL_FS, H02, rdma_clean::after_umount),
    core(BTRFS, row("H06", "pinned", Writer::Nic(Pinned), BTRFS, H06, rdma_held::checksummed)),
    core(BTRFS, row("H06", "odp", Writer::Nic(Odp), BTRFS, H06, rdma_held::checksummed)),
    row("H10", "pinned", Writer::Nic(Pinned), PLAIN, H10, rdma_held::before_data),
    row("H10", "odp", Writer::Nic(Odp), PLAIN, H10, rdma_held::before_data),
    row("H10", "pinned-late", Writer::Nic(Pinned), PLAIN, H10_LATE, rdma_held::before_completion),
    row("H10", "odp-late", Writer::Nic(Odp), PLAIN, H10_LATE, rdma_held::before_completion),
    row("H36", "odp", Writer::Nic(Odp), ALL_FS, H36, rdma_cache::hole),
    row("H36", "odp-ro", Writer::Nic(OdpRo), ALL_FS, H36, rdma_cache::hole),
    row("H37", "odp", Writer::Nic(Odp), EXT4, H37, rdma_clean::in_flight),
    row("H37", "odp-clean", Writer::Nic(Odp), EXT4, RO_PAGE, rdma_clean::read_only_page),
    row("H38", "pinned", Writer::Nic(Pinned), EXT4, H38, rdma_exit::killed),
    row("H38", "odp", Writer::Nic(Odp), EXT4, H38, rdma_exit::killed),
    // A second opinion: the same with soft-RoCE, whose writes no code of ours makes.
    row("H02", "rxe-pinned", Writer::Rxe(Pinned), EXT4, H02, rdma_clean::after_umount),
    row("H06", "rxe-pinned", Writer::Rxe(Pinned), BTRFS, H06, rdma_held::checksummed),
    row("H06", "rxe-odp", Writer::Rxe(Odp), BTRFS, H06, rdma_held::checksummed),
    row("H10", "rxe-pinned", Writer::Rxe(Pinned), EXT4, H10, rdma_held::before_data),
    row("H10", "rxe-late", Writer::Rxe(Pinned), EXT4, H10_LATE, rdma_held::before_completion),
    row("H38", "rxe-pinned", Writer::Rxe(Pinned), EXT4, H38, rdma_exit::killed),
    control(Plant::Own, DEAD, core(EXT4, row("C-late", "odp", Writer::Nic(Odp), EXT4, C_LATE, rdma_clean::late_dma))),
    control(
        Plant::Own,
        &[Check::Harm],
        core(EXT4, row("C-mttw", "odp", Writer::Nic(Odp), EXT4, C_MTTW, rdma_clean::ignored_write_bit)),
    ),
    control(Plant::Own, DEAD, row("C-guard", "odp", Writer::Nic(Odp), EXT4, C_GUARD, rdma_clean::no_guard)),
    control(
        Plant::FreeIgnored,
        &[Check::Freed],
        row("C-free", "pinned", Writer::Nic(Pinned), EXT4, C_FREE, rdma_exit::freed_key),
    ),
    named(row("price", "pinned", Writer::Nic(Pinned), EXT4, PRICE, price::measure)),
    named(row("price", "odp", Writer::Nic(Odp), EXT4, PRICE, price::measure)),
    named(row("T-refusals", "errno", Writer::Nic(Pinned), ALL_FS, REFUSALS, refusals::table)),
];

/// The row's end where the kernel refuses the registration.
pub(super) fn refused(bench: &mut Bench<'_>, errno: i32) -> Finding {
    let access = bench.registration().access();
    let step = format!("ibv_reg_mr of the shared mapping with access flags {access:#x}");
    let fact = bench.now(What::Returned { step, errno: Some(errno) });
    Finding::new(Verdict::Refused, fact, []).told(Some(errno))
}

/// fsync that has to succeed for the row to go on; the page is then looked up again. Else the finding with which it ends.
pub(super) fn clean(bench: &mut Bench<'_>) -> Result<Result<FactId, Finding>, Stop> {
    let fsync = bench.fsync()?;
    if !fsync.ok() {
        let page = expected_page(bench, 'B', PAGE);
        return failed(bench, &fsync, &page).map(Err);
    }
    bench.locate()?;
    Ok(Ok(fsync.fact))
}

/// The end of a row whose work request failed. What it may have left of its bytes C is legal; anything else but what was there is not.
pub(super) fn error_completion(completion: &Completion, (page, seen): (&Content, FactId)) -> Finding {
    let legal = page.letters().chars().all(|letter| "BC".contains(letter));
    let verdict = if legal { Verdict::ErrCqe } else { Verdict::Corrupt };
    Finding::new(verdict, completion.fact, [seen])
}

/// The NIC's write of the page since `since`, on record. `None` where the device is not ours: then the ledger knows nothing of it.
pub(super) fn landed(bench: &mut Bench<'_>, since: u64) -> Result<Option<(FactId, u64)>, Stop> {
    if !bench.nic_is_ours() {
        return Ok(None);
    }
    let records = bench.nic_records(since);
    let write = oracle::nic::last_write(&records, bench.gpa).ok_or_else(|| {
        Stop::Inconclusive(format!(
            "the completion says success and the ledger has no NIC write of GPA {:#x}",
            bench.gpa
        ))
    })?;
    Ok(Some((bench.nic(write), write.seq)))
}

/// sync_file_range(2) of the page under test: starts its write and does not wait for it.
pub(super) fn start_writeback(bench: &Bench<'_>) -> Op {
    use crate::bench::PAGE_AT;
    Op::SyncFileRange { h: bench.file(), off: PAGE_AT, len: PAGE, wait_before: false, write: true, wait_after: false }
}
