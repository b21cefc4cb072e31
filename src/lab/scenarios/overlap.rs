// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H12: an O_DIRECT read whose destination is a shared file mapping meets writeback of the same page.

use std::time::Duration;

use rnic_agent::pattern::{Content, fill, identify};
use rnic_agent::proto::Op;

use crate::bench::{Bench, Disk, PAGE, PAGE_AT, errno_of};
use crate::oracle;
use crate::verdict::{Finding, Stop, Verdict, errno_name};
use blk::BlkOp;
use blk::{HoldPoint, PowerCut};

/// How long a held write waits before the read is let into its page: a file system may compute a checksum in a worker.
const CHECKSUM_TIME: Duration = Duration::from_millis(100);

/// How long a file system's own worker gets to put a page right.
const WORKER_TIME: Duration = Duration::from_millis(500);

/// The page is written back and clean, the read lands, fsync returns 0 again, the power goes: old bytes are on disk. Then the
/// read completes, fsync, the power goes again: has completion healed it?
pub fn after_writeback(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE)?;
    if let Err(errno) = bench.fsync()? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    bench.deliver(Disk::Source, read.lever)?;
    let landed = bench.record(read.id)?.data;
    let Some(landed) = landed else { return Err(Stop::Inconclusive("the read's data did not move".into())) };
    let written = oracle::last_write_before(bench.guest.ledger(), bench.gpa, bench.begun, landed);
    let Some(written) = written else {
        return Err(Stop::Inconclusive("the ledger shows no write of the page by the first fsync".into()));
    };
    if let Err(errno) = bench.fsync()? {
        return Ok(Finding::with_errno(Verdict::Lost, Some(errno)));
    }
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, landed);
    let cut = bench.cut_and_read(PowerCut::Kind, "file")?;
    bench.say(format!(
        "blk read {} wrote GPA {:#x} at #{landed}, after {} had taken the page's bytes at {}; fsync returned 0 again and {}; power cut at #{}: the disk has {}, memory has C*8",
        read.id,
        bench.gpa,
        oracle::describe(&written),
        oracle::seq(written.data),
        newer.as_ref().map_or("no write followed".into(), |write| format!("{} followed", oracle::describe(write))),
        cut.at,
        cut.text(),
    ));
    let exposed = cut.is(&bench.pattern('B')) && newer.is_none();
    let carried = cut.is(&bench.pattern('C'));
    bench.finish_read(&read)?;
    match heal(bench, &expected_page(bench, 'C', PAGE))?.lost() {
        Some(lost) => Ok(lost),
        None if exposed => Ok(Finding::new(Verdict::Exposed)),
        None if carried => Ok(Finding::new(Verdict::Safe)),
        None if cut.content.is_err() => Ok(Finding::new(Verdict::Torn)),
        None => Err(Stop::Inconclusive(format!("the disk had {} where B or C was possible", cut.text()))),
    }
}

/// The write of the page is held before its data is read, half a page of read data lands in it, the write goes on: the
/// stored bytes are neither what was there when the write was made nor what the read alone would have given.
pub fn during_writeback(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    bench.store('B')?;
    let read = bench.hold_read(PAGE / 2)?;
    let lever = bench.arm(Disk::Fs, BlkOp::Write, HoldPoint::BeforeData);
    bench.mark("writeback begin");
    let fsync = bench.spawn(Op::Fsync { h: bench.file() })?;
    let held = bench.wait_held(Disk::Fs, lever)?;
    std::thread::sleep(CHECKSUM_TIME);
    bench.deliver(Disk::Source, read.lever)?;
    bench.release(Disk::Fs, lever)?;
    let state = bench.wait_job(fsync, Duration::from_secs(30))?;
    match errno_of(&state) {
        Some(Ok(())) => {}
        Some(Err(errno)) => return Ok(Finding::with_errno(Verdict::Lost, Some(errno))),
        None => return Err(Stop::Inconclusive("fsync did not return after its write was released".into())),
    }
    let (read_record, write) = (bench.record(read.id)?, bench.record(held)?);
    if !oracle::landed_before_data(&read_record, &write) {
        return Err(Stop::Inconclusive(format!(
            "{} landed at {}, not between arrival (#{}) and data ({}) of {}",
            oracle::describe(&read_record),
            oracle::seq(read_record.data),
            write.arrived,
            oracle::seq(write.data_begin),
            oracle::describe(&write),
        )));
    }
    let changed = oracle::changed_since_arrival(&write, bench.gpa);
    let cut = bench.cut_and_read(PowerCut::Kind, "file")?;
    bench.say(format!(
        "blk read {} wrote GPA {:#x} at {} while blk write {} of that page was held (#{} to {}); bytes stored {}; power cut at #{}: the disk has {}",
        read.id,
        bench.gpa,
        oracle::seq(read_record.data),
        held,
        write.arrived,
        oracle::seq(write.data_begin),
        if changed == Some(true) { "differ from both" } else { "are those of its arrival" },
        cut.at,
        cut.text(),
    ));
    let torn = cut.content.is_err();
    let mixed = expected_page(bench, 'C', PAGE / 2);
    if !torn && !cut.holds(&mixed) {
        return Err(Stop::Inconclusive(format!("the disk had {} where {mixed} was possible", cut.text())));
    }
    bench.finish_read(&read)?;
    match heal(bench, &mixed)?.lost() {
        _ if torn => Ok(Finding::new(Verdict::Torn)),
        Some(lost) => Ok(lost),
        None => Ok(Finding::new(Verdict::Benign)),
    }
}

/// What became of the data after the read had completed and fsync had returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Healed {
    /// On disk when fsync returned.
    AtOnce,
    /// fsync returned 0 and a power cut lost it, but a second fsync a moment later brought it: a worker of the file system was on
    /// its way. H04 is the scenario that judges this; others only tell it.
    Late,
    /// Gone, with what fsync said.
    Never(Option<i32>),
}

impl Healed {
    /// The loss, for scenarios to which lateness does not matter.
    pub(super) fn lost(self) -> Option<Finding> {
        match self {
            Healed::AtOnce | Healed::Late => None,
            Healed::Never(errno) => Some(Finding::with_errno(Verdict::Lost, errno)),
        }
    }
}

/// After the read has completed: fsync, power cut, and the page must be there.
pub(super) fn heal(bench: &mut Bench<'_>, page: &Content) -> Result<Healed, Stop> {
    let since = bench.mark("read complete");
    let errno = bench.fsync()?.err();
    let newer = oracle::newer_write(bench.guest.ledger(), bench.gpa, since);
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    let wrote = newer.as_ref().map_or("no write of the page followed".into(), |write| {
        format!("{} took it at {}", oracle::describe(write), oracle::seq(write.data))
    });
    let said = errno.map_or("0".into(), errno_name);
    let (at, text) = (cut.at, cut.text());
    bench.say(format!(
        "after the read completed fsync returned {said} and {wrote}; power cut at #{at}: the disk has {text}"
    ));
    if cut.holds(page) && errno.is_none() {
        return Ok(Healed::AtOnce);
    }
    std::thread::sleep(WORKER_TIME);
    let second = bench.fsync()?.err();
    let cut = bench.cut_and_read(PowerCut::Cruel, "file")?;
    let late = errno.is_none() && second.is_none() && cut.holds(page);
    let said = second.map_or("0".into(), errno_name);
    let (at, text) = (cut.at, cut.text());
    let end = if late { ", so it was late, not gone" } else { "" };
    bench.say(format!("a second fsync a moment later returned {said}; power cut at #{at}: the disk has {text}{end}"));
    Ok(if late { Healed::Late } else { Healed::Never(errno) })
}

/// The page under test with `len` bytes of `tag` over B, as an identification.
pub(super) fn expected_page(bench: &Bench<'_>, tag: char, len: u64) -> Content {
    let mut bytes = vec![0; PAGE as usize];
    fill(&bench.pattern('B'), PAGE_AT, &mut bytes);
    fill(&bench.pattern(tag), PAGE_AT, &mut bytes[..len as usize]);
    identify(&bytes)
}
