// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H18 and H19: a clone is made while the device still writes to the original's page.

use rnic_agent::proto::Op;

use super::overlap::{expected_page, heal};
use crate::bench::{Bench, PAGE};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict};
use blk::PowerCut;

/// fsync and FICLONE while the read is held; then the read lands, completes, and fsync writes it: where to?
pub fn clone_under_read(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE)?;
    if let Err(errno) = bench.fsync()? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    bench.clone_file("clone")?;
    let cloned = bench.mark("clone is durable");
    let original = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, cloned);
    bench.finish_read(&read)?;
    let page = expected_page(bench, 'C', PAGE);
    let lost = heal(bench, &page)?.lost();
    if let (Some(original), Some(late)) = (original, oracle::newer_write(bench.guest.ledger(), bench.gpa, cloned)) {
        bench.say(format!(
            "{} wrote LBA {} before the clone; {} wrote LBA {} after it{}",
            oracle::describe(&original),
            lba_of(&original, bench.gpa),
            oracle::describe(&late),
            lba_of(&late, bench.gpa),
            if lba_of(&original, bench.gpa) == lba_of(&late, bench.gpa) { ": the shared block, in place" } else { "" },
        ));
    }
    bench.guest.must(Op::DropCaches { what: 3 })?;
    let live = bench.read_direct("clone")?;
    let cut = bench.cut_and_read(PowerCut::Cruel, "clone")?;
    bench.say(format!(
        "the clone was made of B*8; it now reads {live}, and {} after a power cut at #{}",
        cut.text(),
        cut.at
    ));
    let intact = expected_page(bench, 'B', PAGE);
    if live != intact || !cut.holds(&intact) {
        return Ok(Finding::new(Verdict::LeakTo));
    }
    Ok(lost.unwrap_or(Finding::new(Verdict::Safe)))
}

/// Sector on the disk to which `record` moved page `gpa`.
fn lba_of(record: &blk::RequestRecord, gpa: u64) -> u64 {
    record.pages.iter().find(|touch| touch.gpa == gpa).map_or(record.lba, |touch| touch.lba)
}
