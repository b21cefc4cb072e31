// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H12: an O_DIRECT read whose destination is a shared file mapping meets writeback of the same page.

use std::time::Duration;

use rnic_agent::proto::Op;

use super::promise::{expected_page, failed, fsync_brings};
use crate::bench::{Bench, Disk, PAGE};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;
use blk::BlkOp;
use blk::{HoldPoint, PowerCut};

/// How long a held write waits before the read is let into its page: a file system may compute a checksum in a worker.
const CHECKSUM_TIME: Duration = Duration::from_millis(100);
/// What must come once nothing is held.
const AFTER: Duration = Duration::from_secs(30);

/// The page is written back and clean, the read lands, fsync returns 0 again, the power goes: old bytes are on disk. Then the
/// read completes, fsync, the power goes again: has completion healed it?
pub fn after_writeback(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let (before, after) = (expected_page(bench, 'B', PAGE), expected_page(bench, 'C', PAGE));
    let read = bench.hold_read(PAGE)?;
    let first = bench.fsync()?;
    if !first.ok() {
        return failed(bench, &first, &before);
    }
    bench.deliver(Disk::Source, read.lever)?;
    let Some(landed) = bench.record(read.id)?.data else {
        return Err(Stop::Inconclusive("the read's data did not move".into()));
    };
    let written = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, landed);
    let Some(written) = written else {
        return Err(Stop::Inconclusive("the ledger shows no write of the page by the first fsync".into()));
    };
    let written = bench.block(&written);
    let second = bench.fsync()?;
    if !second.ok() {
        return failed(bench, &second, &before);
    }
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, landed);
    let followed = bench.newer_write(newer.as_ref(), landed);
    let cut = bench.cut_and_read(PowerCut::Kind, "file")?;
    let read = bench.finish_read(&read)?;
    let since = bench.mark("read complete");
    let healed = match fsync_brings(bench, &after, since)? {
        Ok(facts) => facts,
        Err(harm) => return Ok(harm.beside([written, read])),
    };
    if let Some(unreadable) = cut.unreadable() {
        return Ok(unreadable.beside([written, read]));
    }
    match (cut.holds(&before) && newer.is_none(), cut.holds(&after)) {
        (true, _) => Ok(Finding::new(Verdict::Exposed, cut.fact, [written, read, second.fact, followed])),
        (_, true) => Ok(Finding::new(Verdict::Safe, cut.fact, healed)),
        _ => Err(cut.impossible("BC")),
    }
}

/// The write of the page is held before its data is read, half a page of read data lands in it, the write goes on: the
/// stored bytes are neither what was there when the write was made nor what the read alone would have given.
pub fn during_writeback(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE / 2)?;
    let lever = bench.arm(Disk::Fs, BlkOp::Write, HoldPoint::BeforeData);
    bench.mark("writeback begin");
    let job = bench.spawn(Op::Fsync { h: bench.file() })?;
    let held = bench.wait_held(Disk::Fs, lever)?;
    std::thread::sleep(CHECKSUM_TIME);
    bench.deliver(Disk::Source, read.lever)?;
    bench.release(Disk::Fs, lever)?;
    let mixed = expected_page(bench, 'C', PAGE / 2);
    let fsync = bench.await_fsync(job, AFTER)?;
    if !fsync.ok() {
        return failed(bench, &fsync, &mixed);
    }
    let (read_record, write) = (bench.record(read.id)?, bench.record(held)?);
    if !oracle::landed_before_data(&read_record, &write) {
        return Err(Stop::Inconclusive("the read did not land between arrival and data of the held write".into()));
    }
    let cut = bench.cut_and_read(PowerCut::Kind, "file")?;
    let torn = cut.unreadable();
    if torn.is_none() && !cut.holds(&mixed) {
        return Err(cut.impossible(""));
    }
    let overlap = [bench.finish_read(&read)?, bench.block(&write)];
    let since = bench.mark("read complete");
    let healed = fsync_brings(bench, &mixed, since)?;
    match (torn, healed) {
        (Some(torn), Ok(_)) => Ok(torn.beside(overlap)),
        (Some(torn), Err(harm)) => {
            bench.find(torn.beside(overlap));
            Ok(harm)
        }
        (None, Err(harm)) => Ok(harm.beside(overlap)),
        (None, Ok(facts)) => Ok(Finding::new(Verdict::Benign, cut.fact, overlap.into_iter().chain(facts))),
    }
}
