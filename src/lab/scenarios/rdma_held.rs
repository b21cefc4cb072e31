// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H06 and H10: the device writes the page while a write of the same page is held at the disk.

use std::time::Duration;

use rnic_agent::proto::Op;

use super::promise::{expected_page, failed, fsync_brings};
use super::rdma::{error_completion, refused, start_writeback};
use crate::bench::{Bench, Completion, Disk, Fsync, PAGE, errno_of};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::plan::Fs;
use crate::verdict::Verdict;
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
    completion: Completion,
    /// It completed while the write was held.
    during: bool,
    /// The NIC's write of the page, where the NIC is ours.
    landed: Option<NicRecord>,
    /// A page fault was open when the window closed.
    pending: bool,
    /// What started the writeback failed.
    errno: Option<i32>,
    /// All of it on record.
    facts: Vec<FactId>,
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
    let mut facts = Vec::new();
    if early.is_none() {
        facts.push(bench.waited("RDMA WRITE C", WINDOW));
    }
    let pending = match (&early, bench.nic_is_ours()) {
        (None, true) => oracle::nic::fault_open_at(&bench.nic_records(since), bench.rkey()?, closed).cloned(),
        _ => None,
    };
    facts.extend(pending.as_ref().map(|fault| bench.nic(fault)));
    // Of a device that is not ours its kernel tells: what does its work there waits in a page fault.
    let stands = if early.is_none() && !bench.nic_is_ours() { bench.blocked(&["rxe", "odp"]) } else { Vec::new() };
    let pending = pending.is_some() || !stands.is_empty();
    facts.extend(stands);
    let (completion, during, errno) = let_go(bench, lever, started, write_job, early)?;
    let landed = oracle::nic::last_write(&bench.nic_records(since), bench.gpa).cloned();
    facts.extend(landed.as_ref().map(|landed| bench.nic(landed)));
    let write = bench.record(held)?;
    facts.push(bench.block(&write));
    facts.push(completion.fact);
    Ok(Ok(Window { write, completion, during, landed, pending, errno, facts }))
}

fn let_go(
    bench: &mut Bench<'_>,
    lever: LeverId,
    started: u32,
    write_job: u32,
    early: Option<Completion>,
) -> Result<(Completion, bool, Option<i32>), Stop> {
    bench.release(Disk::Fs, lever)?;
    let state = bench.wait_job(started, AFTER)?;
    let Some(writeback) = errno_of(&state) else { return Err(bench.waits("writeback", AFTER)) };
    let during = early.is_some();
    let completion = match early {
        Some(completion) => Some(completion),
        None => bench.wait_write(write_job, AFTER)?,
    };
    match completion {
        Some(completion) => Ok((completion, during, writeback.err())),
        None => Err(bench.waits("RDMA WRITE C", AFTER)),
    }
}

impl Window {
    /// Why nothing can be concluded: the NIC's access to the page was not attempted during the hold (rule 9), or fell outside of what the
    /// row asks for.
    fn missed(&self, order: fn(&NicRecord, &RequestRecord) -> bool) -> Option<&'static str> {
        if !self.during && !self.pending {
            return Some("the RDMA WRITE neither landed nor faulted while the write was held");
        }
        let outside = self.during && self.landed.as_ref().is_some_and(|landed| !order(landed, &self.write));
        outside.then_some("the NIC's write did not fall into the hold")
    }
}

/// H06: a file system with data checksums.
pub fn checksummed(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let fsync = Op::Fsync { h: bench.file() };
    judge(bench, HoldPoint::BeforeData, fsync, oracle::nic::landed_before_data)
}

/// H10, the NIC's write before the held write's data is read.
pub fn before_data(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let writeback = start_writeback(bench);
    judge(bench, HoldPoint::BeforeData, writeback, oracle::nic::landed_before_data)
}

/// H10, the NIC's write after the held write's data was read.
pub fn before_completion(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let writeback = start_writeback(bench);
    judge(bench, HoldPoint::BeforeComplete, writeback, oracle::nic::landed_before_completion)
}

fn judge(
    bench: &mut Bench<'_>,
    point: HoldPoint,
    writeback: Op,
    order: fn(&NicRecord, &RequestRecord) -> bool,
) -> Result<Finding, Stop> {
    let window = match meet(bench, point, writeback)? {
        Ok(window) => window,
        Err(errno) => return Ok(refused(bench, errno)),
    };
    if let Some(why) = window.missed(order) {
        return Err(Stop::Inconclusive(why.into()));
    }
    if let Some(errno) = window.errno {
        let step = "writeback".into();
        let fact = bench.now(What::Returned { step, errno: Some(errno) });
        let page = expected_page(bench, 'C', PAGE);
        return failed(bench, &Fsync { errno: Some(errno), fact }, &page);
    }
    // A cut now, before anything heals it: a checksum that is wrong on disk at this moment is harm, whatever comes later.
    let torn = match point {
        HoldPoint::BeforeData if bench.fs() == Fs::Btrfs => bench.cut_and_read(PowerCut::Kind, "file")?.unreadable(),
        _ => None,
    };
    torn.into_iter().for_each(|torn| bench.find(torn.beside(window.facts.iter().copied())));
    settled(bench, window)
}

/// fsync after the overlap, power cut: C must be there. Overlap without harm is BENIGN, a NIC that had to wait is SAFE.
fn settled(bench: &mut Bench<'_>, window: Window) -> Result<Finding, Stop> {
    if !window.completion.ok() {
        let (page, seen) = bench.load()?;
        return Ok(error_completion(&window.completion, (&page, seen)));
    }
    let page = expected_page(bench, 'C', PAGE);
    let since = window.landed.as_ref().map_or(window.write.arrived, |landed| landed.seq);
    Ok(match fsync_brings(bench, &page, since)? {
        Err(harm) => harm.beside(window.facts),
        Ok(kept) => {
            let verdict = if window.during { Verdict::Benign } else { Verdict::Safe };
            Finding::new(verdict, window.completion.fact, window.facts.into_iter().chain(kept))
        }
    })
}
