// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H25, H26, H27: a registered page goes to swap, to another frame, or from one size to another. A pin keeps it where it is; without one the device must
//! find it again.

use rnic_agent::client::CallError;
use rnic_agent::proto::{Advice, MmOp, Op, Page};

use super::mm::{Told, anonymous, ended, mapping_shows, read_gives, register, succeeded, whereabouts, write_shows};
use super::rdma::refused;
use crate::bench::{Bench, PAGE, PAGE_AT, Plant, SOURCE};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;

/// Tries to have a page reclaimed.
const TRIES: u32 = 5;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

/// H25: swap.
pub fn swap(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    program(bench, &["mkswap", SOURCE])?;
    program(bench, &["swapon", SOURCE])?;
    let told = swap_story(bench);
    // The next row needs its disk.
    let off = program(bench, &["swapoff", SOURCE]);
    let finding = ended(told)?;
    off.map(|()| finding)
}

fn swap_story(bench: &mut Bench<'_>) -> Told<Finding> {
    anonymous(bench)?;
    register(bench)?;
    let first = write_shows(bench, 'C')?;
    bench.prepare_write('D')?;
    // Also what is read into, so that the reads below find their buffer.
    read_gives(bench, 'C')?;
    let out = page_out(bench)?;
    let read = read_gives(bench, 'C')?;
    let back = whereabouts(bench, "RDMA READ")?.1;
    let again = page_out(bench)?;
    let completion = bench.rdma_write('D')?;
    succeeded(bench, &completion)?;
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('F')?;
    }
    let second = mapping_shows(bench, 'D')?;
    let last = read_gives(bench, 'D')?;
    Ok(Finding::new(Verdict::Safe, first, [out, read, back, again, second, last]))
}

/// MADV_PAGEOUT, which must take an unpinned page and must not take a pinned one.
fn page_out(bench: &mut Bench<'_>) -> Told<FactId> {
    let before = bench.page()?;
    for _ in 0..TRIES {
        // Pages on a per-CPU list are not reclaimed yet.
        bench.guest.must(Op::DropCaches { what: 1 })?;
        bench.guest.must(Op::Madvise { m: bench.map(), off: PAGE_AT, len: PAGE, advice: Advice::Pageout })?;
        if bench.page()?.swapped {
            break;
        }
    }
    let (page, fact) = whereabouts(bench, "MADV_PAGEOUT")?;
    match bench.registration().is_odp() {
        true if page.swapped => {
            // The kernel keeps a page that it has written to swap in its swap cache, in the frame that it had: a device that still used that frame would
            // go unseen.
            if before.present {
                bench.retire_frame(&before)?;
            }
            Ok(fact)
        }
        true => Err(Stop::Inconclusive("MADV_PAGEOUT did not take the page".into()).into()),
        false => in_place(bench, (&before, &page), fact),
    }
}

/// A pinned page must be where it was.
fn in_place(bench: &mut Bench<'_>, (before, after): (&Page, &Page), fact: FactId) -> Told<FactId> {
    if after.present && after.pfn == before.pfn {
        return Ok(fact);
    }
    let moved = bench.note(format!("the page is pinned, and was in page frame {:#x}", before.pfn));
    Err(Finding::new(Verdict::Split, fact, [moved]).into())
}

fn program(bench: &Bench<'_>, argv: &[&str]) -> Result<(), Stop> {
    let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
    let name = argv.join(" ");
    let ran = bench.guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 30 })?.exec();
    match ran {
        Some(ran) if ran.status == 0 => Ok(()),
        Some(ran) => Err(Stop::Failed(format!("{name}: status {}: {}", ran.status, ran.err.trim()))),
        None => Err(Stop::Failed(format!("the agent said nothing of {name}"))),
    }
}

/// H26: migration. Soft-offlining moves one page at once, or says that it cannot; compaction may move any.
pub fn migrate(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(migrate_story(bench))
}

fn migrate_story(bench: &mut Bench<'_>) -> Told<Finding> {
    anonymous(bench)?;
    register(bench)?;
    bench.prepare_write('D')?;
    bench.prepare_write('E')?;
    let first = write_shows(bench, 'C')?;
    let before = bench.page()?;
    let offlined = advise(bench, Advice::SoftOffline, (PAGE_AT, PAGE))?;
    let (page, place) = whereabouts(bench, "MADV_SOFT_OFFLINE")?;
    if bench.registration().is_odp() {
        if page.present && page.pfn == before.pfn {
            return Err(Stop::Inconclusive("MADV_SOFT_OFFLINE did not move the page".into()).into());
        }
    } else {
        in_place(bench, (&before, &page), place)?;
    }
    let completion = bench.rdma_write('D')?;
    succeeded(bench, &completion)?;
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('F')?;
    }
    let second = mapping_shows(bench, 'D')?;
    let read = read_gives(bench, 'D')?;
    bench.mark("compaction");
    bench.guest.must(Op::WriteSys { path: "/proc/sys/vm/compact_memory".into(), text: "1".into() })?;
    let compacted = whereabouts(bench, "compaction")?.1;
    let third = write_shows(bench, 'E')?;
    let last = read_gives(bench, 'E')?;
    Ok(Finding::new(Verdict::Safe, first, [offlined, place, second, read, compacted, third, last]))
}

/// madvise(2) that may be refused, on record.
fn advise(bench: &mut Bench<'_>, advice: Advice, (off, len): (u64, u64)) -> Told<FactId> {
    let step = format!("madvise {advice:?}");
    bench.mark(&step);
    let errno = match bench.guest.call(Op::Madvise { m: bench.map(), off, len, advice }) {
        Ok(_) => None,
        Err(CallError::Failed(failure)) => Some(failure.errno),
        Err(error) => return Err(bench.guest.stop_for(&step, &error).into()),
    };
    Ok(bench.now(What::Returned { step, errno }))
}

/// H27: a huge page becomes small ones, a huge one again, and loses its other half.
pub fn huge(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(huge_story(bench))
}

fn huge_story(bench: &mut Bench<'_>) -> Told<Finding> {
    let map = bench.huge_memory(HUGE, bench.pattern('B'))?;
    bench.use_memory(map);
    match bench.register_map(map, HUGE, bench.registration().access())? {
        Ok(mr) => bench.use_mr(mr),
        Err(errno) => return Err(refused(bench, errno).into()),
    }
    for tag in ['D', 'E', 'F'] {
        bench.prepare_write(tag)?;
    }
    let first = write_shows(bench, 'C')?;
    // One page of it goes: the rest is mapped page by page.
    let mut facts = vec![
        advise(bench, Advice::Dontneed, (0, PAGE))?,
        whereabouts(bench, "MADV_DONTNEED of another page of it")?.1,
        write_shows(bench, 'D')?,
    ];
    facts.push(advise(bench, Advice::Collapse, (0, HUGE))?);
    facts.push(whereabouts(bench, "MADV_COLLAPSE")?.1);
    let completion = bench.rdma_write('E')?;
    succeeded(bench, &completion)?;
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('G')?;
    }
    facts.push(mapping_shows(bench, 'E')?);
    bench.mark("munmap of the other half");
    bench.guest.must(Op::Mm(MmOp::UnmapPart { m: map, off: HUGE / 2, len: HUGE / 2 }))?;
    facts.push(whereabouts(bench, "munmap of the other half")?.1);
    facts.push(write_shows(bench, 'F')?);
    facts.push(read_gives(bench, 'F')?);
    Ok(Finding::new(Verdict::Safe, first, facts))
}
