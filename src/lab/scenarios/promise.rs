// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a successful fsync promises, and what it means when the promise is not kept. Every scenario is judged by it.

use std::time::Duration;

use rnic_agent::pattern::{Content, fill, identify};

use crate::bench::{Bench, CutPage, Fsync, PAGE, PAGE_AT, Promise};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;
use blk::PowerCut;
use probe::ledger::Seq;

/// How long a file system's own worker gets to put a page right.
const WORKER_TIME: Duration = Duration::from_millis(500);

/// The page under test with `len` bytes of `tag` over B, as an identification.
pub(super) fn expected_page(bench: &Bench<'_>, tag: char, len: u64) -> Content {
    let mut bytes = vec![0; PAGE as usize];
    fill(&bench.pattern('B'), PAGE_AT, &mut bytes);
    fill(&bench.pattern(tag), PAGE_AT, &mut bytes[..len as usize]);
    identify(&bytes)
}

/// fsync now, and `page` must be on disk. Facts of a promise that was kept, or the finding.
pub(super) fn fsync_brings(
    bench: &mut Bench<'_>,
    page: &Content,
    since: Seq,
) -> Result<Result<Vec<FactId>, Finding>, Stop> {
    let fsync = bench.fsync()?;
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, since);
    let newer = bench.newer_write(newer.as_ref(), since);
    match bench.promised(page, "file")? {
        Promise::Kept(cut) if fsync.ok() => Ok(Ok(vec![cut.fact, fsync.fact, newer])),
        Promise::OutOfOrder { drawn, cruel } if fsync.ok() => {
            out_of_order(bench, page, &fsync, (&drawn, &cruel), newer).map(Err)
        }
        Promise::Kept(_) | Promise::OutOfOrder { .. } => {
            Err(Stop::Inconclusive("fsync failed, and what it was to write is on disk".into()))
        }
        Promise::Broken { cruel, kind } => broken(bench, page, &fsync, (&cruel, &kind), newer).map(Err),
    }
}

/// The bytes were not there when fsync had returned. Does a second one bring them?
fn broken(
    bench: &mut Bench<'_>,
    page: &Content,
    fsync: &Fsync,
    (cruel, kind): (&CutPage, &CutPage),
    newer: FactId,
) -> Result<Finding, Stop> {
    if let Some(unreadable) = kind.unreadable() {
        return Ok(unreadable);
    }
    if kind.holds(page) {
        return Err(Stop::Inconclusive("what fsync was to write is written, and no flush covers it".into()));
    }
    let (came, [second, again]) = second_fsync(bench, page)?;
    let facts = [fsync.fact, cruel.fact, newer, second, again];
    let lost = Finding::new(Verdict::Lost, kind.fact, facts).told(fsync.errno);
    match (came, fsync.ok()) {
        (true, true) => Ok(lost.late()),
        (true, false) => Err(Stop::Inconclusive("fsync failed, and a second one brought what it was to write".into())),
        (false, _) => Ok(lost),
    }
}

/// fsync had returned 0, and a disk that had written out a part of what no flush covers has not what was promised, although one that had written
/// nothing of it has: the file system relies on an order that it never asked for. Does a second fsync bring it?
fn out_of_order(
    bench: &mut Bench<'_>,
    page: &Content,
    fsync: &Fsync,
    (drawn, cruel): (&CutPage, &CutPage),
    newer: FactId,
) -> Result<Finding, Stop> {
    if let Some(unreadable) = drawn.unreadable() {
        return Ok(unreadable.beside([cruel.fact, fsync.fact]));
    }
    let (came, [second, again]) = second_fsync(bench, page)?;
    let lost = Finding::new(Verdict::Lost, drawn.fact, [fsync.fact, cruel.fact, newer, second, again]);
    Ok(if came { lost.late() } else { lost })
}

/// Whether another fsync, a little later, brings `page`; the facts of it and of the power cut after it.
fn second_fsync(bench: &mut Bench<'_>, page: &Content) -> Result<(bool, [FactId; 2]), Stop> {
    std::thread::sleep(WORKER_TIME);
    let second = bench.fsync()?;
    Ok(match bench.promised(page, "file")? {
        Promise::Kept(cut) => (second.ok(), [second.fact, cut.fact]),
        Promise::Broken { kind: cut, .. } | Promise::OutOfOrder { drawn: cut, .. } => (false, [second.fact, cut.fact]),
    })
}

/// An fsync that had to succeed for the row to go on has failed: is what it was to write on disk?
pub(super) fn failed(bench: &mut Bench<'_>, fsync: &Fsync, page: &Content) -> Result<Finding, Stop> {
    let cut = bench.cut_and_read(PowerCut::Kind, "file")?;
    if let Some(unreadable) = cut.unreadable() {
        return Ok(unreadable);
    }
    if cut.holds(page) {
        return Err(Stop::Inconclusive("fsync failed, and what it was to write is on disk".into()));
    }
    Ok(Finding::new(Verdict::Lost, cut.fact, [fsync.fact]).told(fsync.errno))
}
