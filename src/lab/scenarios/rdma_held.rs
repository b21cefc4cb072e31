// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H06 and H10: the device writes the page while a write of the same page is held at the disk.

use std::time::Duration;

use rnic_agent::proto::{Op, Wc};

use super::rdma::{refused, start_writeback};
use crate::bench::{Bench, Disk, errno_of, status};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict, errno_name};
use blk::{BlkOp, RequestRecord};
use blk::{HoldPoint, LeverId, PowerCut};
use mlx5::hooks::NicRecord;

/// How long a held write waits before the NIC is let at its page: a file system may compute a checksum in a worker.
const CHECKSUM_TIME: Duration = Duration::from_millis(100);
/// V5 of docs/hazards.md: when the NIC's write waits for the held write, this wait is the proof of safety; it is bounded.
const WINDOW: Duration = Duration::from_secs(3);
/// What must come once nothing is held.
const AFTER: Duration = Duration::from_secs(30);

/// What happened while the write was held.
struct Window {
    /// The held write, after it went on.
    write: RequestRecord,
    /// The RDMA WRITE's completion.
    wc: Wc,
    /// It completed while the write was held.
    during: bool,
    /// The NIC's write of the page, where the NIC is ours.
    landed: Option<NicRecord>,
    /// The page fault that was open when the window closed.
    pending: Option<NicRecord>,
    /// What started the writeback: its result.
    writeback: Result<(), i32>,
}

/// Holds the write that `writeback` starts at `point`, lets the RDMA WRITE of C at its page, lets the write go. `None`: the kernel
/// refused the registration, with this errno.
fn meet(bench: &mut Bench<'_>, point: HoldPoint, writeback: Op) -> Result<Result<Window, i32>, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(Err(errno));
    }
    let gate = bench.arm_gate();
    let gated = bench.post_gated(gate, 'C')?;
    let since = bench.mark("writeback begin");
    let lever = bench.arm(Disk::Fs, BlkOp::Write, point);
    let started = bench.spawn(writeback)?;
    let held = bench.wait_held(Disk::Fs, lever)?;
    std::thread::sleep(CHECKSUM_TIME);
    let write_job = bench.open_gate(gate, gated, 'C')?;
    let early = bench.wait_write(write_job, WINDOW)?;
    let closed = bench.mark("window closed");
    let pending = match (&early, bench.nic_is_ours()) {
        (None, true) => oracle::nic::fault_open_at(&bench.nic_records(since), bench.rkey()?, closed).cloned(),
        _ => None,
    };
    let (wc, during, writeback) = let_go(bench, lever, started, write_job, early)?;
    let landed = oracle::nic::last_write(&bench.nic_records(since), bench.gpa).cloned();
    let write = bench.record(held)?;
    Ok(Ok(Window { write, wc, during, landed, pending, writeback }))
}

fn let_go(
    bench: &mut Bench<'_>,
    lever: LeverId,
    started: u32,
    write_job: u32,
    early: Option<Wc>,
) -> Result<(Wc, bool, Result<(), i32>), Stop> {
    bench.release(Disk::Fs, lever)?;
    let state = bench.wait_job(started, AFTER)?;
    let writeback =
        errno_of(&state).ok_or_else(|| Stop::Inconclusive("writeback did not end after its release".into()))?;
    let during = early.is_some();
    let wc = match early {
        Some(wc) => Some(wc),
        None => bench.wait_write(write_job, AFTER)?,
    };
    let wc = wc.ok_or_else(|| Stop::Inconclusive("the RDMA WRITE did not complete after the release".into()))?;
    Ok((wc, during, writeback))
}

impl Window {
    /// Why nothing can be concluded: the NIC's access to the page was not attempted during the hold (rule 9).
    fn missed(&self, ours: bool) -> Option<String> {
        let attempted = self.during || self.pending.is_some() || !ours;
        (!attempted).then(|| "the RDMA WRITE neither landed nor faulted while the write was held".into())
    }

    fn text(&self, point: HoldPoint) -> String {
        let nic = self.landed.as_ref().map_or("the RDMA WRITE (not in the ledger)".into(), oracle::nic::describe);
        let write = oracle::describe(&self.write);
        let hold = format!(
            "{write} of that page was held ({point:?}; arrived #{}, data at {}, completed at {})",
            self.write.arrived,
            oracle::seq(self.write.data),
            oracle::seq(self.write.completed)
        );
        match (self.during, &self.pending) {
            (true, _) => format!("{nic} while {hold}; completion: {}", status(&self.wc)),
            (false, Some(fault)) => format!(
                "{} and was still open {} s later, when {hold}; after the release: {nic}; completion: {}",
                oracle::nic::describe(fault),
                WINDOW.as_secs(),
                status(&self.wc)
            ),
            (false, None) => format!("the RDMA WRITE waited while {hold}; after the release: {nic}"),
        }
    }
}

/// H06: a file system with data checksums.
pub fn checksummed(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let fsync = Op::Fsync { h: bench.file() };
    let window = match meet(bench, HoldPoint::BeforeData, fsync)? {
        Ok(window) => window,
        Err(errno) => return Ok(refused(bench, errno)),
    };
    bench.say(window.text(HoldPoint::BeforeData));
    if let Some(why) = window.missed(bench.nic_is_ours()) {
        return Err(Stop::Inconclusive(why));
    }
    if let Some(landed) = window.landed.as_ref().filter(|_| window.during)
        && !oracle::nic::landed_before_data(landed, &window.write)
    {
        return Err(Stop::Inconclusive(
            "the NIC's write did not fall between arrival and data of the held write".into(),
        ));
    }
    if let Err(errno) = window.writeback {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    let first = bench.cut_and_read(PowerCut::Kind, "file")?;
    bench.say(format!("fsync returned 0; power cut at #{}: the disk has {}", first.at, first.text()));
    if first.content.is_err() {
        return Ok(Finding::new(Verdict::Torn));
    }
    settled(bench, &window)
}

/// H10, the NIC's write before the held write's data is read.
pub fn before_data(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    plain(bench, HoldPoint::BeforeData)
}

/// H10, the NIC's write after the held write's data was read.
pub fn before_completion(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    plain(bench, HoldPoint::BeforeComplete)
}

fn plain(bench: &mut Bench<'_>, point: HoldPoint) -> Result<Finding, Stop> {
    let writeback = start_writeback(bench);
    let window = match meet(bench, point, writeback)? {
        Ok(window) => window,
        Err(errno) => return Ok(refused(bench, errno)),
    };
    bench.say(window.text(point));
    if let Some(why) = window.missed(bench.nic_is_ours()) {
        return Err(Stop::Inconclusive(why));
    }
    let order = match point {
        HoldPoint::BeforeComplete => oracle::nic::landed_before_completion,
        _ => oracle::nic::landed_before_data,
    };
    if window.landed.as_ref().is_some_and(|landed| window.during && !order(landed, &window.write)) {
        return Err(Stop::Inconclusive("the NIC's write did not fall into the hold".into()));
    }
    settled(bench, &window)
}

/// fsync after the overlap, power cut: C must be there. Overlap without harm is BENIGN, a NIC that had to wait is SAFE.
fn settled(bench: &mut Bench<'_>, window: &Window) -> Result<Finding, Stop> {
    if !window.wc.ok() {
        let page = bench.load()?;
        return Ok(super::rdma::error_completion(bench, &window.wc, &page, 'B'));
    }
    let errno = bench.fsync()?.err();
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    let there = cut.is(&bench.pattern('C')) && errno.is_none();
    let said = errno.map_or("0".into(), errno_name);
    bench.say(format!("then fsync returned {said}; power cut at #{}: the disk has {}", cut.at, cut.text()));
    Ok(match (there, window.during) {
        (true, true) => Finding::new(Verdict::Benign),
        (true, false) => Finding::new(Verdict::Safe),
        (false, _) => Finding::with_errno(Verdict::Lost, errno),
    })
}
