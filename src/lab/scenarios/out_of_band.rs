// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H03 and H04: the device's completion dirties a page that the file system has finished with.

use rnic_agent::proto::{Advice, Op, kpf};

use super::overlap::{Healed, expected_page, heal};
use crate::bench::{Bench, FILE_LEN, PAGE};
use crate::verdict::{Finding, Stop, Verdict};

/// Trials of a step that the kernel may or may not take: a race with a worker, a page that reclaim may leave alone.
const TRIALS: u32 = 6;

/// H04: fsync cleans the page while the read is held; completion dirties it with no page_mkwrite; the promise of the next fsync
/// is what is judged. Where a worker of the file system has to put the page right first, fsync and the worker race: so several
/// trials, and one broken promise is enough.
pub fn dirtied(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let page = expected_page(bench, 'C', PAGE);
    for trial in 1..=TRIALS {
        bench.store('B')?;
        let read = bench.hold_read(PAGE)?;
        if let Err(errno) = bench.fsync()? {
            return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
        }
        bench.finish_read(&read)?;
        match heal(bench, &page)? {
            Healed::AtOnce => {}
            Healed::Late => {
                bench.say(format!("fsync broke its promise in trial {trial} of {TRIALS}"));
                return Ok(Finding::new(Verdict::Lost));
            }
            Healed::Never(errno) => return Ok(Finding::with_errno(Verdict::Lost, errno)),
        }
    }
    Ok(Finding::new(Verdict::Safe))
}

/// H03: as H04, but reclaim takes the page from the mapping, or the file system's data (ext4: buffers) from the page, in between.
pub fn stripped(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let page = expected_page(bench, 'C', PAGE);
    for trial in 1..=TRIALS {
        bench.store('B')?;
        // New pages wait in per-CPU lists where reclaim cannot see them; this empties the lists (the page itself is dirty and stays).
        bench.guest.must(Op::DropCaches { what: 1 })?;
        let read = bench.hold_read(PAGE)?;
        if let Err(errno) = bench.fsync()? {
            return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
        }
        let before = bench.page()?;
        let attached = attached(bench, before.folio_pfn)?;
        let map = bench.map();
        bench.mark("MADV_PAGEOUT");
        bench.guest.must(Op::Madvise { m: map, off: 0, len: FILE_LEN, advice: Advice::Pageout })?;
        let unmapped = !bench.page()?.present;
        let stripped = attached && !self::attached(bench, before.folio_pfn)?;
        bench.finish_read(&read)?;
        bench.say(format!(
            "trial {trial}: MADV_PAGEOUT while blk read {} was held {} page frame {:#x} of a folio of {} and {}",
            read.id,
            if unmapped { "unmapped" } else { "left mapped" },
            before.pfn,
            before.folio_pages,
            match (attached, stripped) {
                (true, true) => "took away the file system's data that was attached to it",
                (true, false) => "left the file system's data attached to it",
                (false, _) => "found no file system data attached to it",
            },
        ));
        if unmapped || stripped {
            return Ok(heal(bench, &page)?.lost().unwrap_or(Finding::new(Verdict::Safe)));
        }
        // Reclaim did not touch it: this trial says nothing. The next one starts from a clean page.
        if let Some(lost) = heal(bench, &page)?.lost() {
            return Ok(lost);
        }
    }
    Err(match bench.page()?.folio_pages {
        1 => Stop::Inconclusive(format!("MADV_PAGEOUT did nothing to the page in {TRIALS} trials")),
        pages => Stop::NotRun(format!("reclaim leaves a pinned folio of {pages} pages alone ({TRIALS} trials)")),
    })
}

/// Whether the folio whose first page frame is `pfn` has file system data (ext4: buffers) attached.
fn attached(bench: &Bench<'_>, pfn: u64) -> Result<bool, Stop> {
    let flags = bench.guest.must(Op::FrameFlags { pfn })?.num().unwrap_or(0);
    Ok(flags >> kpf::PRIVATE & 1 == 1)
}
