// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H10: the same overlap made by a CPU store, which the kernel sees. It must come out BENIGN, or the oracles give false positives.

use std::time::Duration;

use rnic_agent::proto::Op;

use super::overlap::expected_page;
use crate::bench::{Bench, Disk, PAGE, PAGE_AT, errno_of};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict};
use blk::BlkOp;
use blk::{HoldPoint, PowerCut};

/// A store that takes longer than this waits for the held write.
const STORE_LIMIT: Duration = Duration::from_secs(4);

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
    let stored = bench.mark("store D begin");
    let store = bench.spawn(Op::Store { m: map, off: PAGE_AT, len: PAGE, pattern })?;
    let state = bench.wait_job(store, STORE_LIMIT)?;
    let blocked = !state.done;
    let after = bench.mark("store D seen");
    bench.release(Disk::Fs, lever)?;
    bench.wait_job(writeback, Duration::from_secs(30))?;
    let state = bench.wait_job(store, Duration::from_secs(30))?;
    if errno_of(&state) != Some(Ok(())) {
        return Err(Stop::Inconclusive(format!("the store did not succeed: {:?}", state.result)));
    }
    let errno = bench.fsync()?.err();
    let write = bench.record(held)?;
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, after);
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    bench.say(format!(
        "CPU store at #{stored}..#{after} while {} of GPA {:#x} was held ({point:?}){}; the write took its data at {}; {}; fsync returned {}; power cut at #{}: the disk has {}",
        oracle::describe(&write),
        bench.gpa,
        if blocked { " had to wait for it" } else { "" },
        oracle::seq(write.data),
        match &newer {
            Some(newer) if newer.id == held => "that write carried the store".into(),
            Some(newer) => format!("{} followed", oracle::describe(newer)),
            None => "no write followed".to_string(),
        },
        errno.map_or("0".into(), crate::verdict::errno_name),
        cut.at,
        cut.text(),
    ));
    let there = cut.holds(&expected_page(bench, 'D', PAGE));
    match (there && errno.is_none(), blocked) {
        (false, _) => Ok(Finding::with_errno(Verdict::Lost, errno)),
        (true, true) => Ok(Finding::new(Verdict::Blocked)),
        (true, false) => Ok(Finding::new(Verdict::Benign)),
    }
}
