// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H01, H02 and H37: the device writes a page that the file system has finished with; and the device bugs that would make
//! on-demand paging lose data too.

use std::time::Duration;

use rnic_agent::proto::{Op, Wc};

use super::rdma::{clean, error_completion, landed, refused};
use crate::bench::{Bench, DIR, PAGE_AT, mount, status, wqe};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict, errno_name};
use blk::PowerCut;
use mlx5::hooks::{NicAction, NicRule, WqeMatch};

/// enum ibv_wc_status: the key does not allow it.
const REMOTE_ACCESS_ERROR: u32 = 10;
/// A rule that fires on every match.
const EVERY: u32 = 0;
/// How long the payload of H37 stays in flight: much longer than the zap of the fsync beside it takes.
const FLIGHT: Duration = Duration::from_secs(2);

/// H01: store, fsync, RDMA WRITE, fsync, power cut.
pub fn after_clean(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(errno) = clean(bench)? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    let since = bench.mark("page is clean");
    let wc = bench.rdma_write('C')?;
    durable(bench, &wc, since, 'C')
}

/// After an RDMA WRITE of `tag`, which completed as `wc`: fsync, power cut, and the bytes must be there.
fn durable(bench: &mut Bench<'_>, wc: &Wc, since: u64, tag: char) -> Result<Finding, Stop> {
    if !wc.ok() {
        let page = bench.load()?;
        return Ok(error_completion(bench, wc, &page, 'B'));
    }
    let (write, landed) = landed(bench, since)?;
    let before = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, landed.unwrap_or(since));
    let memory = bench.load()?;
    let errno = bench.fsync()?.err();
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, landed.unwrap_or(since));
    let said = errno.map_or("0".into(), errno_name);
    let paging = if bench.registration().is_odp() && bench.nic_is_ours() {
        format!(" ({})", oracle::nic::paging(&bench.nic_records(bench.begun), bench.rkey()?))
    } else {
        String::new()
    };
    let before = before.map_or("no blk write of that page came before".into(), |blk| {
        format!(
            "the last blk write of that page, {}, took its bytes at {}",
            oracle::describe(&blk),
            oracle::seq(blk.data)
        )
    });
    let after = newer.as_ref().map_or("no blk write of it followed".into(), |blk| {
        format!("{} took its bytes at {}", oracle::describe(blk), oracle::seq(blk.data))
    });
    bench.say(format!("{write}{paging}; {before}; completion: {}; fsync returned {said}; {after}", status(wc)));
    // Where the bytes are in what was flushed, nothing more is to be shown; else they must be missing from everything written.
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    let pattern = bench.pattern(tag);
    let safe = cut.is(&pattern) && errno.is_none();
    let cut = if safe { cut } else { bench.cut_and_read(PowerCut::Kind, "file")? };
    bench.say(format!("power cut at #{}: the disk has {}, memory has {memory}", cut.at, cut.text()));
    match (safe, &cut.content) {
        (true, _) => Ok(Finding::new(Verdict::Safe)),
        (false, Err(_)) => Ok(Finding::with_errno(Verdict::Torn, errno)),
        (false, Ok(_)) => Ok(Finding::with_errno(Verdict::Lost, errno)),
    }
}

/// H01 with a key that gives no right to write: the device sees every store, and can harm nothing.
pub fn read_only(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(errno) = clean(bench)? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    for tag in ['B', 'D'] {
        if tag == 'D' {
            bench.store('D')?;
        }
        let since = bench.mark("before RDMA READ");
        let (wc, read) = bench.rdma_read()?;
        if !wc.ok() {
            return Err(Stop::Inconclusive(format!("the RDMA READ ended with \"{}\"", status(&wc))));
        }
        let records = bench.nic_records(since);
        let from =
            oracle::nic::last_read(&records, bench.gpa).map_or("not in the ledger".into(), oracle::nic::describe);
        bench.say(format!("RDMA READ after store {tag}: {read} ({from})"));
        if !read.is(&bench.pattern(tag), PAGE_AT) {
            return Ok(Finding::new(Verdict::Stale));
        }
    }
    let wc = bench.rdma_write('C')?;
    if wc.ok() {
        return Err(Stop::Failed(
            "a key without the right to write let an RDMA WRITE through: the device is broken".into(),
        ));
    }
    let errno = bench.fsync()?.err();
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    let refused = if wc.code == REMOTE_ACCESS_ERROR { "refused" } else { "not done" };
    bench.say(format!(
        "RDMA WRITE was {refused}: \"{}\"; fsync returned {}; power cut at #{}: the disk has {}",
        status(&wc),
        errno.map_or("0".into(), errno_name),
        cut.at,
        cut.text()
    ));
    let there = cut.is(&bench.pattern('D')) && errno.is_none();
    Ok(Finding::with_errno(if there { Verdict::Safe } else { Verdict::Lost }, errno))
}

/// H02: the registration outlives mapping, file and mount.
pub fn after_umount(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    if let Err(errno) = clean(bench)? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    bench.prepare_write('C')?;
    let (file, map) = (bench.file(), bench.map());
    bench.guest.must(Op::Munmap { m: map })?;
    bench.guest.must(Op::Close { h: file })?;
    if let Err(error) = bench.guest.call(Op::Umount { dir: DIR.into() }) {
        return Err(Stop::Inconclusive(format!("umount with a live registration: {error}")));
    }
    let since = bench.mark("unmounted");
    let wc = bench.rdma_write('C')?;
    let write = if wc.ok() { landed(bench, since)?.0 } else { "no NIC write".into() };
    bench.deregister()?;
    bench.guest.must(mount("/dev/vdb", DIR, bench.fs(), ""))?;
    let page = bench.read_direct("file")?;
    let healed = oracle::newer_write(bench.guest.ledger(), bench.gpa, since).is_some();
    bench.say(format!(
        "after munmap, close and umount (at #{since}): {write}; completion: {}; after dereg and mount the file reads {page}; {}",
        status(&wc),
        if healed { "a blk write of that page followed" } else { "no blk write of that page followed" },
    ));
    if !wc.ok() {
        return Ok(error_completion(bench, &wc, &page, 'B'));
    }
    let there = page.is(&bench.pattern('C'), PAGE_AT);
    Ok(Finding::new(if there { Verdict::Safe } else { Verdict::Lost }))
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
        return Err(Stop::Inconclusive(format!("the first RDMA WRITE ended with \"{}\"", status(&first))));
    }
    bench.locate()?;
    for fault in faults {
        bench.inject(fault.clone())?;
    }
    let since = bench.mark("RDMA WRITE goes into flight");
    let job = bench.start_write('C')?;
    // Until it has been translated: from then on it is in flight.
    std::thread::sleep(FLIGHT / 4);
    let fsynced = bench.fsync()?;
    let returned = bench.mark("fsync beside the flight returned");
    if let Err(errno) = fsynced {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    let wc = bench.wait_write(job, FLIGHT * 5)?;
    let wc = wc.ok_or_else(|| Stop::Inconclusive("the RDMA WRITE in flight did not complete".into()))?;
    let records = bench.nic_records(since);
    let write =
        oracle::nic::last_write(&records, bench.gpa).filter(|write| oracle::nic::met_in_flight(&records, write));
    let Some(write) = write else {
        return Err(Stop::Inconclusive("the payload was not in flight when fsync took its translation away".into()));
    };
    let order = if write.seq < returned { "before" } else { "only after" };
    bench.say(format!("the payload in flight landed at #{}, {order} fsync returned at #{returned}", write.seq));
    durable(bench, &wc, since, 'C')
}

/// An RDMA WRITE that meets a translation made from a clean page, which the CPU may only read.
pub fn read_only_page(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    // The bench has read the page by CPU: clean and mapped read-only, as the registration's snapshot will find it.
    if let Err(errno) = bench.register()? {
        return Ok(refused(bench, errno));
    }
    let since = bench.mark("registered");
    let wc = bench.rdma_write('C')?;
    durable(bench, &wc, since, 'C')
}

/// Control: the payload of an RDMA WRITE waits until fsync has taken its translation away, and then goes through it.
pub fn late_dma(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let fault = NicRule::new(1, NicAction::LateDma).on(WqeMatch::opcode(wqe::RDMA_WRITE));
    beside_fsync(bench, &[fault])
}

/// Control: the NIC's write is not in the ledger; its own counters know of it.
pub fn hidden_write(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.inject(NicRule::new(1, NicAction::HideFromLedger).on(WqeMatch::opcode(wqe::RDMA_WRITE)))?;
    after_clean(bench)
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
