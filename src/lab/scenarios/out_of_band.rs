// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H03 and H04: the device's completion dirties a page that the file system has finished with.

use rnic_agent::proto::{Advice, Op, kpf};

use super::overlap::{expected_page, heal};
use crate::lab::bench::{Bench, FILE_LEN, PAGE};
use crate::lab::verdict::{Finding, Stop, Verdict};

/// Tries to have reclaim take the page from the mapping; it is free to refuse.
const TRIALS: u32 = 6;

/// H04: fsync cleans the page while the read is held; completion dirties it with no page_mkwrite; fsync again.
pub fn dirtied(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE)?;
    if let Err(errno) = bench.fsync()? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    bench.finish_read(&read)?;
    let page = expected_page(bench, 'C', PAGE);
    Ok(heal(bench, &page)?.unwrap_or(Finding::new(Verdict::Safe)))
}

/// H03: as H04, but reclaim takes the page from the mapping (and, on ext4, its buffers from the page) in between.
pub fn stripped(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    for trial in 1..=TRIALS {
        bench.store('B')?;
        // Pages wait in per-CPU lists before reclaim can see them; dropping caches empties those lists.
        bench.guest.must(Op::DropCaches { what: 1 })?;
        let read = bench.hold_read(PAGE)?;
        if let Err(errno) = bench.fsync()? {
            return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
        }
        let before = bench.page()?;
        let map = bench.map();
        bench.mark("MADV_PAGEOUT");
        bench.guest.must(Op::Madvise { m: map, off: 0, len: FILE_LEN, advice: Advice::Pageout })?;
        let after = bench.page()?;
        bench.finish_read(&read)?;
        if after.present {
            // Reclaim did not take it: this trial says nothing.
            bench.say(format!("trial {trial}: MADV_PAGEOUT left the page mapped; void"));
            continue;
        }
        bench.say(format!(
            "MADV_PAGEOUT unmapped page frame {:#x} (private data before: {}) while blk read {} into it was held",
            before.pfn,
            if before.has(kpf::PRIVATE) { "yes" } else { "no" },
            read.id
        ));
        let page = expected_page(bench, 'C', PAGE);
        return Ok(heal(bench, &page)?.unwrap_or(Finding::new(Verdict::Safe)));
    }
    Err(Stop::Inconclusive(format!("MADV_PAGEOUT left the page mapped in {TRIALS} trials")))
}
