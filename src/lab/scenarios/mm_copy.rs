// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H28, H29, H30: one page becomes two, or two become one. Each owner must see its own.

use std::time::{Duration, Instant};

use rnic_agent::proto::{Advice, MmOp, Op, kpf};

use super::mm::{
    Told, anonymous, child_sees, ended, fork as forked, mapping_shows, must_be, read_gives, register, write_shows,
};
use crate::bench::{Bench, FILE_LEN, PAGE, PAGE_AT, Plant};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;

/// How long ksmd is waited for.
const KSM_LIMIT: Duration = Duration::from_secs(15);

/// H29: the parent must see the NIC's writes, the child must not.
pub fn fork(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(fork_story(bench))
}

fn fork_story(bench: &mut Bench<'_>) -> Told<Finding> {
    anonymous(bench)?;
    register(bench)?;
    bench.prepare_write('C')?;
    bench.prepare_write('E')?;
    // With on-demand paging there is something to take away now.
    read_gives(bench, 'B')?;
    let child = forked(bench)?;
    let first = write_shows(bench, 'C')?;
    if bench.is_planted(Plant::ForeignBytes) {
        child_stores(bench, child, 'F')?;
    }
    let childs = child_has(bench, child, 'B')?;
    // Whoever stores first gets a page of its own, and that must be the one that the device has not.
    bench.store('D')?;
    let read = read_gives(bench, 'D')?;
    let second = write_shows(bench, 'E')?;
    let again = child_has(bench, child, 'B')?;
    child_stores(bench, child, 'F')?;
    let seen = bench.load()?;
    must_be(bench, 'E', seen, Verdict::LeakTo)?;
    let last = read_gives(bench, 'E')?;
    bench.guest.must(Op::Close { h: child })?;
    Ok(Finding::new(Verdict::Safe, first, [childs, read, second, again, last]))
}

fn child_stores(bench: &mut Bench<'_>, c: u32, tag: char) -> Told {
    let pattern = bench.pattern(tag);
    bench.mark(&format!("the child stores {tag}"));
    bench.guest.must(Op::Mm(MmOp::ForkStore { c, off: PAGE_AT, pattern }))?;
    Ok(())
}

fn child_has(bench: &mut Bench<'_>, child: u32, tag: char) -> Told<FactId> {
    let seen = child_sees(bench, child)?;
    must_be(bench, tag, seen, Verdict::LeakTo)
}

/// H30, registered for writing: the process sees the NIC's writes, the file never.
pub fn private(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(private_story(bench))
}

fn private_story(bench: &mut Bench<'_>) -> Told<Finding> {
    map_private(bench)?;
    register(bench)?;
    let first = write_shows(bench, 'C')?;
    if bench.is_planted(Plant::ForeignBytes) {
        file_writes(bench, 'F')?;
    }
    let file = file_has(bench, 'A')?;
    bench.store('D')?;
    let read = read_gives(bench, 'D')?;
    let second = write_shows(bench, 'E')?;
    bench.fsync()?;
    let after = file_has(bench, 'A')?;
    file_writes(bench, 'G')?;
    let own = mapping_shows(bench, 'E')?;
    let last = read_gives(bench, 'E')?;
    Ok(Finding::new(Verdict::Safe, first, [file, read, second, after, own, last]))
}

/// H30, registered for reading: what is read is what the mapping shows, whichever that is after a write of the file.
pub fn private_ro(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(private_ro_story(bench))
}

fn private_ro_story(bench: &mut Bench<'_>) -> Told<Finding> {
    map_private(bench)?;
    register(bench)?;
    let first = read_gives(bench, 'A')?;
    file_writes(bench, 'G')?;
    let (shown, seen) = bench.load()?;
    let letters = shown.letters();
    let follows = letters.starts_with('G');
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('F')?;
    }
    let read = read_gives(bench, if follows { 'G' } else { 'A' })?;
    let which = bench.note(match follows {
        true => "a write of the file after the registration is seen through it: the page is still the file's",
        false => "a write of the file after the registration is not seen through it: registration has made a copy",
    });
    bench.store('D')?;
    let stored = read_gives(bench, 'D')?;
    let file = file_has(bench, 'G')?;
    Ok(Finding::new(Verdict::Safe, first, [seen, read, which, stored, file]))
}

/// A private mapping of the file, which has A, is the memory under test.
fn map_private(bench: &mut Bench<'_>) -> Told {
    let map = bench.guest.handle(Op::Mmap { h: bench.file(), off: 0, len: FILE_LEN, write: true, private: true })?;
    bench.use_memory(map);
    bench.guest.must(Op::Touch { m: map, off: PAGE_AT, write: false })?;
    Ok(bench.locate()?)
}

/// The file itself, by pread(2).
fn file_has(bench: &mut Bench<'_>, tag: char) -> Told<FactId> {
    let value = bench.guest.must(Op::Read { h: bench.file(), off: PAGE_AT, len: PAGE })?;
    let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
    let fact = bench.seen("pread", "file", &Ok(content.clone()));
    must_be(bench, tag, (content, fact), Verdict::LeakTo)
}

fn file_writes(bench: &mut Bench<'_>, tag: char) -> Told {
    let pattern = bench.pattern(tag);
    bench.mark(&format!("pwrite {tag}"));
    bench.guest.must(Op::Write { h: bench.file(), off: PAGE_AT, len: PAGE, pattern })?;
    Ok(())
}

/// H28: of two merged pages the NIC's write is one owner's.
pub fn merge(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let told = merge_story(bench);
    // 2: pages that are merged are taken apart again.
    drop(ksm(bench, "run", "2"));
    ended(told)
}

fn merge_story(bench: &mut Bench<'_>) -> Told<Finding> {
    let other = bench.guest.handle(Op::AnonBuffer { len: FILE_LEN, huge: false })?;
    let pattern = bench.pattern('B');
    bench.guest.must(Op::Store { m: other, off: PAGE_AT, len: PAGE, pattern })?;
    anonymous(bench)?;
    register(bench)?;
    bench.prepare_write('C')?;
    bench.prepare_write('D')?;
    read_gives(bench, 'B')?;
    for m in [other, bench.map()] {
        bench.guest.must(Op::Madvise { m, off: PAGE_AT, len: PAGE, advice: Advice::Mergeable })?;
    }
    for (file, value) in [("sleep_millisecs", "10"), ("pages_to_scan", "1000"), ("run", "1")] {
        ksm(bench, file, value)?;
    }
    let merged = merged(bench)?;
    ksm(bench, "run", "0")?;
    if !merged && bench.registration().is_odp() {
        return Err(Stop::Inconclusive("ksmd has not merged the pages".into()).into());
    }
    bench.locate()?;
    let which = bench.note(format!(
        "the page of the registration was {}merged with the other one",
        if merged { "" } else { "not " }
    ));
    let first = write_shows(bench, 'C')?;
    if bench.is_planted(Plant::ForeignBytes) {
        let pattern = bench.pattern('F');
        bench.guest.must(Op::Store { m: other, off: PAGE_AT, len: PAGE, pattern })?;
    }
    let value = bench.guest.must(Op::Load { m: other, off: PAGE_AT, len: PAGE })?;
    let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
    let fact = bench.seen("the other mapping", "memory", &Ok(content.clone()));
    let apart = must_be(bench, 'B', (content, fact), Verdict::LeakTo)?;
    let read = read_gives(bench, 'C')?;
    let second = write_shows(bench, 'D')?;
    Ok(Finding::new(Verdict::Safe, first, [which, apart, read, second]))
}

/// Whether the page is KSM's before the time is over.
fn merged(bench: &Bench<'_>) -> Result<bool, Stop> {
    let start = Instant::now();
    while start.elapsed() < KSM_LIMIT {
        if bench.page()?.has(kpf::KSM) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(false)
}

fn ksm(bench: &Bench<'_>, file: &str, value: &str) -> Result<(), Stop> {
    bench.guest.must(Op::WriteSys { path: format!("/sys/kernel/mm/ksm/{file}"), text: value.into() }).map(drop)
}
