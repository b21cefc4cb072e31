// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H05 and H31: somebody has asked to be waited for before a page changes: a frozen file system, or a process that answers page faults.

use std::time::Duration;

use rnic_agent::pattern::identify;
use rnic_agent::proto::{MmOp, Op};

use super::mm::{Told, anonymous, ended, mapping_shows, read_gives, register, succeeded};
use super::promise::{expected_page, fsync_brings};
use super::rdma::clean;
use crate::bench::{Bench, COMPLETION_LIMIT, Completion, DIR, FILE_LEN, PAGE, PAGE_AT, Plant};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;

/// How long a write gets that may have to wait.
const WINDOW: Duration = Duration::from_secs(3);
/// How long whoever answers page faults takes.
const ANSWER: Duration = Duration::from_secs(1);

/// H05: an RDMA WRITE to a file of a frozen file system.
pub fn frozen(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    // Who thaws is another process: a page fault that waits for the thaw holds the mmap_lock of the memory's owner, in whom nothing is started
    // until then (seen on 7.3: the row was HUNG, with the owner in vm_mmap_pgoff behind ext4_page_mkwrite).
    let other = bench.guest.handle(Op::Process { user: false })?;
    let told = frozen_story(bench, other);
    // Where the story ended early it may still be frozen, and then nothing can be taken down.
    drop(freeze(bench, other, "-u"));
    bench.guest.must(Op::Kill { p: other })?;
    ended(told)
}

fn frozen_story(bench: &mut Bench<'_>, other: u32) -> Told<Finding> {
    bench.store('B')?;
    register(bench)?;
    bench.prepare_write('C')?;
    if let Err(finding) = clean(bench)? {
        return Ok(finding);
    }
    freeze(bench, other, "-f")?;
    let posted = bench.mark("frozen");
    let job = bench.start_write('C')?;
    let early = bench.wait_write(job, WINDOW)?;
    freeze(bench, other, "-u")?;
    let when = bench.note(match early {
        Some(_) => "the RDMA WRITE completed while the file system was frozen",
        None => "the RDMA WRITE had not completed after 3 s in a frozen file system, and went on once it was thawed",
    });
    let completion = match early {
        Some(completion) => completion,
        None => late(bench, job)?,
    };
    succeeded(bench, &completion)?;
    bench.locate()?;
    let facts = match fsync_brings(bench, &expected_page(bench, 'C', PAGE), posted)? {
        Ok(facts) => facts,
        Err(finding) => {
            bench.find(Finding::new(Verdict::Benign, when, []));
            return Ok(finding);
        }
    };
    let verdict = if is_early(&completion, when) { Verdict::Benign } else { Verdict::Safe };
    Ok(Finding::new(verdict, when, facts.into_iter().chain([completion.fact])))
}

/// Whether the completion was on record before it was said when it came.
fn is_early(completion: &Completion, when: FactId) -> bool {
    completion.fact.place() < when.place()
}

fn late(bench: &mut Bench<'_>, job: u32) -> Told<Completion> {
    let completion = bench.wait_write(job, COMPLETION_LIMIT)?;
    Ok(completion.ok_or_else(|| Stop::Inconclusive("the RDMA WRITE does not complete".into()))?)
}

/// fsfreeze(8) by process `other`.
fn freeze(bench: &Bench<'_>, other: u32, how: &str) -> Result<(), Stop> {
    let argv = ["fsfreeze", how, DIR].map(String::from).into();
    let op = Op::Exec { argv, stdin: String::new(), limit_s: 30 };
    match bench.guest.must(Op::In { p: other, op: Box::new(op) })?.exec() {
        Some(ran) if ran.status == 0 => Ok(()),
        ran => Err(Stop::Failed(format!("fsfreeze {how}: {ran:?}"))),
    }
}

/// H31: an RDMA WRITE into a page that is not there, whose absence a process has asked to be told.
pub fn missing(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(missing_story(bench))
}

fn missing_story(bench: &mut Bench<'_>) -> Told<Finding> {
    let map = bench.guest.handle(Op::AnonBuffer { len: FILE_LEN, huge: false })?;
    bench.use_memory(map);
    register(bench)?;
    let Answered { completion, told, .. } = write_under(bench, false)?;
    if bench.is_planted(Plant::ForeignBytes) {
        let pattern = bench.pattern('F');
        bench.guest.must(Op::Store { m: map, off: PAGE_AT, len: PAGE, pattern })?;
    }
    if completion.ok() {
        let shown = mapping_shows(bench, 'C')?;
        return Ok(Finding::new(Verdict::Safe, told, [completion.fact, shown]));
    }
    let (page, seen) = bench.load()?;
    let untouched = page == identify(&vec![0; PAGE as usize]);
    let verdict = if untouched { Verdict::ErrCqe } else { Verdict::Corrupt };
    Ok(Finding::new(verdict, completion.fact, [told, seen]))
}

/// H31: an RDMA WRITE into a page that a process has protected, in order to be told of writes.
pub fn protected(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    ended(protected_story(bench))
}

fn protected_story(bench: &mut Bench<'_>) -> Told<Finding> {
    anonymous(bench)?;
    register(bench)?;
    read_gives(bench, 'B')?;
    let Answered { completion, told, came } = write_under(bench, true)?;
    if bench.is_planted(Plant::ForeignBytes) {
        bench.store('F')?;
    }
    if !completion.ok() {
        let kept = mapping_shows(bench, 'B')?;
        return Ok(Finding::new(Verdict::ErrCqe, completion.fact, [told, kept]));
    }
    let shown = mapping_shows(bench, 'C')?;
    let verdict = if came { Verdict::Safe } else { Verdict::Benign };
    Ok(Finding::new(verdict, told, [completion.fact, shown]))
}

/// What came of an RDMA WRITE under userfaultfd.
struct Answered {
    completion: Completion,
    /// Whether an event came, in words.
    told: FactId,
    /// Whether one came.
    came: bool,
}

/// RDMA WRITE of C with the page's faults in a process's hands, which answers after a while.
fn write_under(bench: &mut Bench<'_>, protect: bool) -> Told<Answered> {
    bench.prepare_write('C')?;
    let u = bench.guest.handle(Op::Mm(MmOp::Uffd { m: bench.map(), off: PAGE_AT, protect }))?;
    let job = bench.start_write('C')?;
    let limit_ms = WINDOW.as_millis() as u32;
    let came = bench.guest.must(Op::Mm(MmOp::UffdWait { u, limit_ms }))?.num() == Some(1);
    let early = if came { bench.wait_write(job, ANSWER)? } else { None };
    let told = bench.note(match (came, &early) {
        (true, None) => "userfaultfd told of the page fault, and the RDMA WRITE waited for its answer",
        (true, Some(_)) => "userfaultfd told of the page fault, and the RDMA WRITE did not wait for its answer",
        (false, _) => "userfaultfd told of no page fault: who tracks writes by it has missed this one",
    });
    if came {
        let pattern = bench.pattern('B');
        bench.guest.must(Op::Mm(MmOp::UffdAnswer { u, pattern }))?;
    }
    let completion = match early {
        Some(completion) => completion,
        None => late(bench, job)?,
    };
    // From here on nobody waits for an answer.
    bench.guest.must(Op::Close { h: u })?;
    Ok(Answered { completion, told, came })
}
