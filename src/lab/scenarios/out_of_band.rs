// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H03 and H04: the device's completion dirties a page that the file system has finished with.

use rnic_agent::proto::{Advice, Op, kpf};

use super::promise::{expected_page, failed, fsync_brings};
use crate::bench::{Bench, FILE_LEN, PAGE};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;

/// Trials of a step that the kernel may or may not take: a race with a worker, a page that reclaim may leave alone.
const TRIALS: u32 = 6;

/// H04: fsync cleans the page while the read is held; completion dirties it with no page_mkwrite; the promise of the next fsync
/// is what is judged. Where a worker of the file system has to put the page right first, fsync and the worker race: so several
/// trials, and one broken promise is enough.
pub fn dirtied(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let (before, page) = (expected_page(bench, 'B', PAGE), expected_page(bench, 'C', PAGE));
    let mut kept = Vec::new();
    for trial in 1..=TRIALS {
        bench.store('B')?;
        let read = bench.hold_read(PAGE)?;
        let fsync = bench.fsync()?;
        if !fsync.ok() {
            return failed(bench, &fsync, &before);
        }
        bench.finish_read(&read)?;
        let since = bench.mark("read complete");
        match fsync_brings(bench, &page, since)? {
            Ok(facts) => kept.extend(facts),
            Err(harm) => {
                trials(bench, "fsync broke its promise", 1, trial);
                return Ok(harm);
            }
        }
    }
    let all = trials(bench, "fsync broke its promise", 0, TRIALS);
    Ok(Finding::new(Verdict::Safe, all, kept))
}

/// H03: as H04, but reclaim takes the page from the mapping, or the file system's data (ext4: buffers) from the page, in between.
pub fn stripped(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let (before, page) = (expected_page(bench, 'B', PAGE), expected_page(bench, 'C', PAGE));
    for trial in 1..=TRIALS {
        bench.store('B')?;
        // New pages wait in per-CPU lists where reclaim cannot see them; this empties the lists (the page itself is dirty and stays).
        bench.guest.must(Op::DropCaches { what: 1 })?;
        let read = bench.hold_read(PAGE)?;
        let fsync = bench.fsync()?;
        if !fsync.ok() {
            return failed(bench, &fsync, &before);
        }
        let (taken, facts) = page_out(bench)?;
        bench.finish_read(&read)?;
        let since = bench.mark("read complete");
        match fsync_brings(bench, &page, since)? {
            Err(harm) => return Ok(harm.beside(facts)),
            Ok(kept) if taken => {
                let trials = trials(bench, "MADV_PAGEOUT took the page or what was attached to it", 1, trial);
                return Ok(Finding::new(Verdict::Safe, trials, facts.into_iter().chain(kept)));
            }
            // Reclaim did not touch it: this trial says nothing. The next one starts from a clean page.
            Ok(_) => {}
        }
    }
    trials(bench, "MADV_PAGEOUT took the page or what was attached to it", 0, TRIALS);
    Err(match bench.page()?.folio_pages {
        1 => Stop::Inconclusive(format!("MADV_PAGEOUT did nothing to the page in {TRIALS} trials")),
        pages => Stop::NotRun(format!("reclaim leaves a pinned folio of {pages} pages alone ({TRIALS} trials)")),
    })
}

/// MADV_PAGEOUT of the file: whether it took the page from the mapping, or the file system's data from its folio.
fn page_out(bench: &mut Bench<'_>) -> Result<(bool, [FactId; 2]), Stop> {
    let before = bench.page()?;
    let had = attached(bench, before.folio_pfn)?;
    let first = bench.now(What::folio("before MADV_PAGEOUT", &before, Some(had)));
    let map = bench.map();
    bench.mark("MADV_PAGEOUT");
    bench.guest.must(Op::Madvise { m: map, off: 0, len: FILE_LEN, advice: Advice::Pageout })?;
    let after = bench.page()?;
    let has = attached(bench, before.folio_pfn)?;
    let shown = if after.present { after } else { rnic_agent::proto::Page { present: false, ..before } };
    let second = bench.now(What::folio("after MADV_PAGEOUT", &shown, Some(has)));
    Ok((!after.present || had && !has, [first, second]))
}

/// Whether the folio whose first page frame is `pfn` has file system data (ext4: buffers) attached.
fn attached(bench: &Bench<'_>, pfn: u64) -> Result<bool, Stop> {
    let flags = bench.guest.must(Op::FrameFlags { pfn })?.num().unwrap_or(0);
    Ok(flags >> kpf::PRIVATE & 1 == 1)
}

fn trials(bench: &mut Bench<'_>, what: &str, hits: u32, of: u32) -> FactId {
    bench.now(What::Trials { what: what.into(), hits, of })
}
