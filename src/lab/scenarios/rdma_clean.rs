// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H01, H02 and H37: the device writes a page that the file system has finished with; and the device bugs that would make
//! on-demand paging lose data too.

use std::time::Duration;

use rnic_agent::client::CallError;
use rnic_agent::proto::Op;

use super::promise::{expected_page, failed, fsync_brings};
use super::rdma::{clean, error_completion, landed, refused};
use crate::bench::{Bench, Completion, DIR, PAGE, PAGE_AT, mount, wqe};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;
use mlx5::hooks::{NicAction, NicRule, WqeMatch};

/// A rule that fires on every match.
const EVERY: u32 = 0;
/// How long the payload of H37 stays in flight: much longer than the zap of the fsync beside it takes.
const FLIGHT: Duration = Duration::from_secs(2);

/// After an RDMA WRITE of C has completed: fsync, power cut, and the bytes must be there.
fn durable(bench: &mut Bench<'_>, completion: &Completion, since: u64) -> Result<Finding, Stop> {
    if !completion.ok() {
        let (page, seen) = bench.load()?;
        return Ok(error_completion(completion, (&page, seen)));
    }
    let landed = landed(bench, since)?;
    let at = landed.map_or(since, |(_, at)| at);
    let mut facts = vec![completion.fact];
    facts.extend(landed.map(|(fact, _)| fact));
    let before = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, at);
    if let Some(before) = before {
        facts.push(bench.block(&before));
    }
    facts.push(bench.load()?.1);
    if bench.registration().is_odp() && bench.nic_is_ours() {
        let paging = oracle::nic::paging(&bench.nic_records(bench.begun), bench.rkey()?);
        facts.push(bench.now(paging));
    }
    let page = expected_page(bench, 'C', PAGE);
    Ok(match fsync_brings(bench, &page, at)? {
        Ok(kept) => Finding::new(Verdict::Safe, completion.fact, facts.into_iter().skip(1).chain(kept)),
        Err(harm) => harm.beside(facts),
    })
}

/// H02: the registration outlives mapping, file and mount.
pub fn after_umount(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(harm) = clean(bench)? {
        return Ok(harm);
    }
    bench.prepare_write('C')?;
    let (file, map) = (bench.file(), bench.map());
    bench.guest.must(Op::Munmap { m: map })?;
    bench.guest.must(Op::Close { h: file })?;
    if let Err(error) = bench.guest.call(Op::Umount { dir: DIR.into() }) {
        let CallError::Failed(failure) = &error else { return Err(bench.guest.stop_for("umount", &error)) };
        let step = "umount with a live registration".into();
        let fact = bench.now(What::Returned { step, errno: Some(failure.errno) });
        return Ok(Finding::new(Verdict::Refused, fact, []).told(Some(failure.errno)));
    }
    let since = bench.mark("unmounted");
    let completion = bench.rdma_write('C')?;
    let landed = if completion.ok() { landed(bench, since)? } else { None };
    bench.deregister()?;
    bench.guest.must(mount("/dev/vdb", DIR, bench.fs(), &bench.mount_options("")))?;
    let (page, seen) = bench.read_direct("file")?;
    if !completion.ok() {
        return Ok(error_completion(&completion, (&page, seen)));
    }
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, since);
    let newer = bench.newer_write(newer.as_ref(), since);
    let there = page.is(&bench.pattern('C'), PAGE_AT);
    let verdict = match page.is(&bench.pattern('B'), PAGE_AT) {
        _ if there => Verdict::Safe,
        true => Verdict::Lost,
        false => Verdict::Corrupt,
    };
    let facts = landed.map(|(fact, _)| fact).into_iter().chain([completion.fact, newer]);
    Ok(Finding::new(verdict, seen, facts))
}

/// H37: a translation for writing exists; an RDMA WRITE's payload hangs in flight while fsync takes the translation away.
pub fn in_flight(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    beside_fsync(bench, &[stall()])
}

fn stall() -> NicRule {
    let ms = FLIGHT.as_millis() as u32;
    NicRule::new(1, NicAction::StallInFlight { ms }).on(WqeMatch::opcode(wqe::RDMA_WRITE))
}

/// One RDMA WRITE makes the translation; `faults` concern a second one, and the fsync beside it.
fn beside_fsync(bench: &mut Bench<'_>, faults: &[NicRule]) -> Result<Finding, Stop> {
    bench.own_engine()?;
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    bench.prepare_write('C')?;
    let first = bench.rdma_write('E')?;
    if !first.ok() {
        return Err(Stop::Inconclusive("the first RDMA WRITE failed".into()));
    }
    bench.locate()?;
    for fault in faults {
        bench.inject(fault.clone())?;
    }
    let since = bench.mark("RDMA WRITE goes into flight");
    let job = bench.start_write('C')?;
    // Until it has been translated: from then on it is in flight.
    std::thread::sleep(FLIGHT / 4);
    let fsync = bench.fsync()?;
    bench.mark("fsync beside the flight returned");
    if !fsync.ok() {
        let page = expected_page(bench, 'E', PAGE);
        return failed(bench, &fsync, &page);
    }
    let completion = bench.wait_write(job, FLIGHT * 5)?;
    let completion =
        completion.ok_or_else(|| Stop::Inconclusive("the RDMA WRITE in flight did not complete".into()))?;
    let records = bench.nic_records(since);
    let write =
        oracle::nic::last_write(&records, bench.gpa).filter(|write| oracle::nic::met_in_flight(&records, write));
    let Some(write) = write else {
        return Err(Stop::Inconclusive("the payload was not in flight when fsync took its translation away".into()));
    };
    bench.nic(write);
    durable(bench, &completion, since)
}

/// An RDMA WRITE that meets a translation made from a clean page, which the CPU may only read.
pub fn read_only_page(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    // The bench has read the page by CPU: clean and mapped read-only, as the registration's snapshot will find it.
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    let since = bench.mark("registered");
    let completion = bench.rdma_write('C')?;
    durable(bench, &completion, since)
}

/// Control: the payload of an RDMA WRITE waits until fsync has taken its translation away, and then goes through it.
pub fn late_dma(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let fault = NicRule::new(1, NicAction::LateDma).on(WqeMatch::opcode(wqe::RDMA_WRITE));
    beside_fsync(bench, &[fault])
}

/// Control: the write bit of the translation is not looked at.
pub fn ignored_write_bit(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.inject(NicRule::new(EVERY, NicAction::IgnoreMttWriteBit))?;
    read_only_page(bench)
}

/// Control: a zap completes with payload in flight.
pub fn no_guard(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let no_guard = NicRule::new(EVERY, NicAction::NoGuard).on(WqeMatch::opcode(wqe::UMR));
    beside_fsync(bench, &[stall(), no_guard])
}
