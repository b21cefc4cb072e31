// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H10: the same overlap made by a CPU store, which the kernel sees. It must come out BENIGN, or the oracles give false positives.

use std::time::Duration;

use rnic_agent::proto::Op;

use super::promise::{expected_page, fsync_brings};
use crate::bench::{Bench, Disk, PAGE, PAGE_AT, errno_of};
use crate::finding::{Finding, Stop};
use crate::verdict::{Verdict, errno_name};
use blk::BlkOp;
use blk::HoldPoint;

/// A store that takes longer than this waits for the held write.
const STORE_LIMIT: Duration = Duration::from_secs(4);
/// What must come once nothing is held.
const AFTER: Duration = Duration::from_secs(30);

/// The store happens while the write waits for its data.
pub fn before_data(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    store_under_write(bench, HoldPoint::BeforeData)
}

/// The store happens after the write has taken its data.
pub fn before_completion(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    store_under_write(bench, HoldPoint::BeforeComplete)
}

fn store_under_write(bench: &mut Bench<'_>, point: HoldPoint) -> Result<Finding, Stop> {
    bench.store('B')?;
    let lever = bench.arm(Disk::Fs, BlkOp::Write, point);
    let (file, map, pattern) = (bench.file(), bench.map(), bench.pattern('D'));
    let start =
        Op::SyncFileRange { h: file, off: PAGE_AT, len: PAGE, wait_before: false, write: true, wait_after: false };
    let writeback = bench.spawn(start)?;
    let held = bench.wait_held(Disk::Fs, lever)?;
    bench.mark("store D begin");
    let store = bench.spawn(Op::Store { m: map, off: PAGE_AT, len: PAGE, pattern })?;
    let blocked = match bench.wait_job(store, STORE_LIMIT)?.done {
        true => None,
        false => Some(bench.waited("store D", STORE_LIMIT)),
    };
    let after = bench.mark("store D seen");
    bench.release(Disk::Fs, lever)?;
    if !bench.wait_job(writeback, AFTER)?.done {
        return Err(bench.waits("sync_file_range", AFTER));
    }
    let state = bench.wait_job(store, AFTER)?;
    match errno_of(&state) {
        Some(Ok(())) => {}
        None => return Err(bench.waits("store D", AFTER)),
        Some(Err(errno)) => return Err(Stop::Inconclusive(format!("the store failed with {}", errno_name(errno)))),
    }
    let write = bench.record(held)?;
    let write = bench.block(&write);
    let page = expected_page(bench, 'D', PAGE);
    match fsync_brings(bench, &page, after)? {
        Err(harm) => Ok(harm),
        Ok(facts) => Ok(match blocked {
            Some(waited) => Finding::new(Verdict::Blocked, waited, [write].into_iter().chain(facts)),
            None => Finding::new(Verdict::Benign, write, facts),
        }),
    }
}
