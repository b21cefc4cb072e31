// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H18 and H19: a clone is made while the device still writes to the original's page.

use rnic_agent::pattern::Content;
use rnic_agent::proto::Op;

use super::promise::{expected_page, failed, fsync_brings};
use crate::bench::{Bench, PAGE};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;
use blk::PowerCut;

/// fsync and FICLONE while the read is held; then the read lands, completes, and fsync writes it: where to?
pub fn clone_under_read(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let (intact, page) = (expected_page(bench, 'B', PAGE), expected_page(bench, 'C', PAGE));
    let read = bench.hold_read(PAGE)?;
    let fsync = bench.fsync()?;
    if !fsync.ok() {
        return failed(bench, &fsync, &intact);
    }
    bench.clone_file("clone")?;
    let cloned = bench.mark("clone is durable");
    let original = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, cloned);
    bench.finish_read(&read)?;
    let since = bench.mark("read complete");
    let healed = fsync_brings(bench, &page, since)?;
    let late = oracle::newer_write(bench.guest.ledger(), bench.gpa, cloned);
    let mut writes = Vec::new();
    for write in [&original, &late].into_iter().flatten() {
        writes.push(bench.block(write));
    }
    bench.guest.must(Op::DropCaches { what: 3 })?;
    let (live, seen) = bench.read_direct("clone")?;
    let cut = bench.cut_and_read(PowerCut::Cruel, "clone")?;
    if live == intact && cut.holds(&intact) {
        return Ok(match healed {
            Err(harm) => harm,
            Ok(facts) => Finding::new(Verdict::Safe, cut.fact, [seen].into_iter().chain(writes).chain(facts)),
        });
    }
    healed.err().into_iter().for_each(|harm| bench.find(harm));
    if let Some(unreadable) = cut.unreadable() {
        return Ok(unreadable);
    }
    let lba = |write: &blk::RequestRecord| lba_of(write, bench.gpa);
    let in_place = original.as_ref().map(lba).is_some_and(|at| late.as_ref().map(lba) == Some(at));
    Ok(changed(&page, (&live, seen), &cut, in_place, writes))
}

/// The clone is not what it was. It is LEAKTO if it holds the read's bytes, and they went to the block that it shares.
fn changed(
    page: &Content,
    (live, seen): (&Content, FactId),
    cut: &crate::bench::CutPage,
    in_place: bool,
    writes: Vec<FactId>,
) -> Finding {
    let leaked = in_place && (live == page || cut.holds(page));
    let verdict = if leaked { Verdict::LeakTo } else { Verdict::Corrupt };
    Finding::new(verdict, cut.fact, [seen].into_iter().chain(writes))
}

/// Sector on the disk to which `record` moved page `gpa`.
fn lba_of(record: &blk::RequestRecord, gpa: u64) -> u64 {
    record.pages.iter().find(|touch| touch.gpa == gpa).map_or(record.lba, |touch| touch.lba)
}
