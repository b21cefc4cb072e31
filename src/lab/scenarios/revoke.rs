// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H24 and H34: a peer's RDMA goes on while its target is taken away. Does the peer hear of it, and after how long?

use std::time::{Duration, Instant};

use rnic_agent::client::CallError;
use rnic_agent::proto::{Advice, FallocMode, JobState, Op, OpenFlags, VerbsOp, Way, access};

use super::mm::{Told, anonymous, ended, mapping_shows};
use super::rdma::{refused, row};
use crate::bench::{Bench, DIR, PAGE, PAGE_AT, Plant};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::plan::Fs::{self, Btrfs, Ext4, Xfs};
use crate::plan::Registration::{Odp, Pinned, PinnedRo};
use crate::plan::{Scenario, Writer};
use crate::verdict::Verdict;
use probe::ledger::Seq;

const EXT4: &[Fs] = &[Ext4];
const ALL_FS: &[Fs] = &[Ext4, Xfs, Btrfs];

/// How long a peer gets that nothing holds up.
const LIMIT: Duration = Duration::from_secs(20);
/// Between looks.
const LOOK: Duration = Duration::from_millis(5);
/// How long whoever is to be asked waits for it.
const ASKED_MS: u32 = 60_000;

const UNMAP: &str = "munmap while a peer writes: does the peer hear of it?";
const ADVICE: &str = "MADV_DONTNEED while a peer writes: does the peer hear of it, or write to the new page?";
const PUNCH: &str = "a hole is punched while a peer writes: does the peer hear of it, or write to the new page?";
const TRUNCATE: &str = "a file is truncated while a peer writes: does the peer hear of it, and when?";
const DEREG: &str = "ibv_dereg_mr while a peer writes: when does the peer hear of it?";
const REREG: &str = "ibv_rereg_mr takes the peer's right to write away while it writes: when does the peer hear of it?";
const LEASE: &str =
    "the owner has a lease, and deregisters when another process opens the file in order to truncate it";
const WATCH: &str =
    "the owner listens for pre-content events (fanotify), and deregisters when another process punches a hole";

/// Every row of this family.
pub const TABLE: &[Scenario] = &[
    row("H24", "odp-munmap", Writer::Nic(Odp), EXT4, UNMAP, unmapped),
    row("H24", "odp-madvise", Writer::Nic(Odp), EXT4, ADVICE, advised),
    row("H24", "odp-punch", Writer::Nic(Odp), ALL_FS, PUNCH, punched),
    row("H24", "odp-truncate", Writer::Nic(Odp), ALL_FS, TRUNCATE, truncated),
    row("H24", "odp-dereg", Writer::Nic(Odp), EXT4, DEREG, deregistered),
    row("H24", "pinned-dereg", Writer::Nic(Pinned), EXT4, DEREG, deregistered),
    row("H24", "odp-lease", Writer::Nic(Odp), ALL_FS, LEASE, leased),
    row("H24", "ro-lease", Writer::Nic(PinnedRo), ALL_FS, LEASE, leased),
    row("H24", "odp-watch", Writer::Nic(Odp), ALL_FS, WATCH, watched),
    row("H24", "ro-watch", Writer::Nic(PinnedRo), ALL_FS, WATCH, watched),
    row("H34", "pinned-rereg", Writer::Nic(Pinned), EXT4, REREG, reregistered),
    row("H34", "odp-rereg", Writer::Nic(Odp), EXT4, REREG, reregistered),
];

/// What a row measures: what was done, and what came of the peer.
struct Ends {
    /// Name of what was done.
    what: &'static str,
    act: JobState,
    /// The ledger's number when it was known to have returned.
    done: Seq,
    returned: FactId,
}

/// munmap(2) by the owner.
fn unmapped(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(anonymous(bench).and_then(|()| {
        let stream = streaming(bench)?;
        let ends = act(bench, "munmap", Op::Munmap { m: bench.map() })?;
        heard(bench, stream, &ends)
    }))
}

/// MADV_DONTNEED by the owner: the memory stays, with other pages.
fn advised(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(anonymous(bench).and_then(|()| {
        let stream = streaming(bench)?;
        let advice = Op::Madvise { m: bench.map(), off: PAGE_AT, len: PAGE, advice: Advice::Dontneed };
        let ends = act(bench, "MADV_DONTNEED", advice)?;
        goes_on(bench, stream, &ends)
    }))
}

/// A hole, punched by another process.
fn punched(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let story = |bench: &mut Bench<'_>| {
        let (other, h) = other_process(bench)?;
        let stream = streaming(bench)?;
        let ends = act(bench, "punch", within(other, punch(h)))?;
        goes_on(bench, stream, &ends)
    };
    ended(story(bench))
}

/// Truncation by another process.
fn truncated(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let story = |bench: &mut Bench<'_>| {
        let (other, h) = other_process(bench)?;
        let stream = streaming(bench)?;
        let ends = act(bench, "truncation", within(other, Op::Ftruncate { h, len: PAGE_AT }))?;
        heard(bench, stream, &ends)
    };
    ended(story(bench))
}

/// ibv_dereg_mr(3).
fn deregistered(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(anonymous(bench).and_then(|()| {
        let stream = streaming(bench)?;
        let ends = act(bench, "ibv_dereg_mr", Op::Verbs(VerbsOp::Dereg { mr: bench.mr_handle()? }))?;
        heard(bench, stream, &ends)
    }))
}

/// ibv_rereg_mr(3): the owner keeps the registration and its keys, the peer may read only.
fn reregistered(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(anonymous(bench).and_then(|()| {
        let stream = streaming(bench)?;
        let kept = bench.registration().access() & !access::REMOTE_WRITE;
        let ends = act(bench, "ibv_rereg_mr", Op::Verbs(VerbsOp::Rereg { mr: bench.mr_handle()?, access: kept }))?;
        heard(bench, stream, &ends)
    }))
}

/// Another process opens the file, which breaks the owner's lease; it waits until the owner has let go, and truncates.
fn leased(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let story = |bench: &mut Bench<'_>| {
        let other = bench.guest.handle(Op::Process { user: false })?;
        let stream = streaming(bench)?;
        let give = guard(bench, Way::Lease)?;
        let flags = OpenFlags { write: true, ..Default::default() };
        let open = within(other, Op::Open { path: format!("{DIR}/file"), flags });
        let ends = act(bench, "open by another process", open)?;
        let h = ends.act.result.as_deref().and_then(|value| value.as_ref().ok()?.clone().handle());
        let h = h.ok_or_else(|| Stop::Failed("the agent gave no handle".into()))?;
        given(bench, give)?;
        let finding = heard(bench, stream, &ends)?;
        bench.guest.must(within(other, Op::Ftruncate { h, len: PAGE_AT }))?;
        Ok(finding)
    };
    ended(story(bench))
}

/// Another process punches a hole; it waits until the owner, who is asked, has let go.
fn watched(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let story = |bench: &mut Bench<'_>| {
        let other = bench.guest.handle(Op::Process { user: false })?;
        let stream = streaming(bench)?;
        let give = guard(bench, Way::PreContent)?;
        // Who had the file open before there was a listener is not asked about.
        let h = opened_by(bench, other)?;
        let ends = act(bench, "punch", within(other, punch(h)))?;
        given(bench, give)?;
        heard(bench, stream, &ends)
    };
    ended(story(bench))
}

fn punch(h: u32) -> Op {
    Op::Fallocate { h, mode: FallocMode::PunchHole, off: PAGE_AT, len: PAGE }
}

fn within(p: u32, op: Op) -> Op {
    Op::In { p, op: Box::new(op) }
}

/// Another process that has the file open: its handle, and its handle of the file.
fn other_process(bench: &Bench<'_>) -> Result<(u32, u32), Stop> {
    let other = bench.guest.handle(Op::Process { user: false })?;
    Ok((other, opened_by(bench, other)?))
}

fn opened_by(bench: &Bench<'_>, other: u32) -> Result<u32, Stop> {
    let flags = OpenFlags { write: true, ..Default::default() };
    bench.guest.handle(within(other, Op::Open { path: format!("{DIR}/file"), flags }))
}

/// The owner, who waits to be asked: the job that ends when it has let go.
fn guard(bench: &mut Bench<'_>, way: Way) -> Told<u32> {
    let g = match bench.guest.call(Op::Verbs(VerbsOp::Guard { h: bench.file(), way })) {
        Ok(value) => value.handle().ok_or_else(|| Stop::Failed("the agent gave no handle".into()))?,
        Err(CallError::Failed(failure)) if way == Way::PreContent && failure.errno == libc::EINVAL => {
            return Err(Stop::NotRun("this kernel has no pre-content events".into()).into());
        }
        Err(error) => return Err(bench.guest.stop_for("asking to be asked", &error).into()),
    };
    let mr = bench.mr_handle()?;
    Ok(bench.spawn(Op::Verbs(VerbsOp::GiveWay { g, mr, limit_ms: ASKED_MS }))?)
}

/// The owner was asked and has let go.
fn given(bench: &mut Bench<'_>, job: u32) -> Told {
    let state = bench.wait_job(job, LIMIT)?;
    match state.result.as_deref() {
        Some(Ok(_)) => Ok(()),
        Some(Err(failure)) => Err(Stop::Inconclusive(format!("the owner: {}", failure.what)).into()),
        None => Err(Stop::Inconclusive("nobody asked the owner, and the other process went on".into()).into()),
    }
}

/// Registers, and has a peer write or read again and again; its job, once it is under way.
fn streaming(bench: &mut Bench<'_>) -> Told<u32> {
    bench.store('B')?;
    if let Err(errno) = bench.register()? {
        return Err(refused(bench, errno).into());
    }
    bench.locate()?;
    let since = bench.mark("registered");
    let job = bench.start_stream('C')?;
    match await_access(bench, since)? {
        true => Ok(job),
        false => Err(Stop::Inconclusive(format!("the peer did not begin within {} s", LIMIT.as_secs())).into()),
    }
}

/// Whether an access to the page under test, where it is now, is on record that began after `since`.
fn await_access(bench: &Bench<'_>, since: Seq) -> Result<bool, Stop> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if bench.nic_records(since).iter().any(|record| oracle::nic::is_of(record, bench.gpa)) {
            return Ok(true);
        }
        std::thread::sleep(LOOK);
    }
    Ok(false)
}

/// Carries out what takes the page away.
fn act(bench: &mut Bench<'_>, what: &'static str, op: Op) -> Told<Ends> {
    bench.mark(what);
    let job = bench.spawn(op)?;
    let act = bench.wait_job(job, LIMIT)?;
    let done = bench.mark(&format!("{what} has returned"));
    let errno = match act.result.as_deref() {
        None => return Err(bench.waits(what, LIMIT).into()),
        Some(Err(failure)) => Some(failure.errno),
        Some(Ok(_)) => None,
    };
    let returned = bench.fact(done, What::Returned { step: what.into(), errno });
    if errno.is_some() {
        return Err(Finding::new(Verdict::Refused, returned, []).told(errno).into());
    }
    bench.figure(&format!("{what}, a peer at work"), act.us as f64 / 1000.0, "ms");
    Ok(Ends { what, act, done, returned })
}

/// The peer must get an error, and nothing of it may reach the page that was taken away once that has returned.
fn heard(bench: &mut Bench<'_>, stream: u32, ends: &Ends) -> Told<Finding> {
    let state = bench.wait_job(stream, LIMIT)?;
    let late = |bench: &Bench<'_>| {
        let records = bench.nic_records(ends.done);
        records.into_iter().find(|record| oracle::nic::is_of(record, bench.gpa) && record.seq > ends.done)
    };
    if let Some(record) = late(bench) {
        let fact = bench.nic(&record);
        return Ok(Finding::new(Verdict::LeakTo, fact, [ends.returned]));
    }
    let why = match state.result.as_deref() {
        None => {
            let fact = bench.waited("the peer, who gets no error,", LIMIT);
            return Ok(Finding::new(Verdict::Stale, fact, [ends.returned]));
        }
        Some(Ok(_)) => return Err(Stop::Inconclusive("the peer had done all that it was to do".into()).into()),
        Some(Err(failure)) => failure.what.clone(),
    };
    let begun = ends.act.at_us.saturating_sub(ends.act.us);
    let Some(after) = state.at_us.checked_sub(begun) else {
        return Err(Stop::Inconclusive(format!("the peer's {why}, before {} had begun", ends.what)).into());
    };
    let after = after as f64 / 1000.0;
    bench.figure(&format!("from {} to the peer's error", ends.what), after, "ms");
    let fact = bench.note(format!("the peer's {why}, {after:.1} ms after {} had begun", ends.what));
    Ok(Finding::new(Verdict::ErrCqe, fact, [ends.returned]))
}

/// The peer goes on, at the page that the memory has now, and the owner sees what it writes.
fn goes_on(bench: &mut Bench<'_>, stream: u32, ends: &Ends) -> Told<Finding> {
    let old = bench.gpa;
    // A device that keeps the old translation would go unseen if the memory came back into the frame that it had.
    bench.take_frames()?;
    // Looking at it brings a page to where there is none; the peer may have done so before.
    bench.load()?;
    bench.locate()?;
    if bench.gpa == old {
        bench.retire_frame(&bench.page()?)?;
        bench.load()?;
        bench.locate()?;
    }
    let from = bench.mark("the page is looked up again");
    let went_on = await_access(bench, from)?;
    let stale = bench.nic_records(from).into_iter().find(|r| oracle::nic::is_of(r, old) && old != bench.gpa);
    if let Some(record) = stale {
        let fact = bench.nic(&record);
        return Ok(Finding::new(Verdict::LeakTo, fact, [ends.returned]));
    }
    bench.guest.must(Op::Verbs(VerbsOp::Dereg { mr: bench.mr_handle()? }))?;
    let state = bench.wait_job(stream, LIMIT)?;
    if !went_on {
        let why = match state.result.as_deref() {
            Some(Err(failure)) => failure.what.clone(),
            _ => "nothing".into(),
        };
        let fact = bench.note(format!("the peer did not go on: {why}"));
        return Ok(Finding::new(Verdict::ErrCqe, fact, [ends.returned]));
    }
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('F')?;
    }
    let shown = mapping_shows(bench, 'C')?;
    let fact = bench.note("the peer went on, into the page that the memory has now, until the owner deregistered");
    Ok(Finding::new(Verdict::Safe, fact, [ends.returned, shown]))
}
