// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H38: a process dies with traffic running. What it registered must not be written any more, and nobody else may notice.

use std::time::Duration;

use rnic_agent::proto::{MrInfo, Op, Value, VerbsOp, Wr, WrKind, access};

use crate::bench::{Bench, PAGE, Plant, errno_of};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::verdict::Verdict;
use mlx5::hooks::NicRecord;
use probe::ledger::Seq;

/// Pairs of queue pairs in each of the two processes.
const PAIRS: usize = 16;
/// Entries of each queue.
const DEPTH: u32 = 4;
/// Bytes that each process registers, twice.
const REGION: u64 = 16 * PAGE;
/// Rounds that nobody lives to see the end of.
const ENDLESS: u32 = 1_000_000;
/// Rounds that show that all is well.
const SOME: u32 = 20;
const LIMIT_MS: u32 = 20_000;
/// For rounds that show that all is well.
const JOB: Duration = Duration::from_secs(60);
/// Traffic before and after a death.
const WHILE: Duration = Duration::from_millis(500);

/// A process with traffic.
struct Process {
    handle: u32,
    target: u32,
    /// Page that the traffic writes.
    gpa: u64,
    pairs: Vec<u32>,
    wr: Wr,
}

/// Two processes with 64 QPs in all; either is killed with all of its QPs at work.
pub fn killed(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let before = bench.nic_objects();
    let first = Process::start(bench, 'F')?;
    let second = Process::start(bench, 'S')?;
    let (dead, well, undisturbed) = kill_first(bench, &first, &second)?;
    second.run(bench, ENDLESS)?;
    std::thread::sleep(WHILE);
    let dead_too = second.kill(bench)?;
    std::thread::sleep(WHILE);
    let left = bench.nic_objects();
    let late = [(&first, dead), (&second, dead_too)].map(|(process, dead)| process.late(bench, dead));
    let late: Vec<FactId> = late.into_iter().flatten().map(|write| bench.nic(&write)).collect();
    let mut facts = vec![bench.fact(dead, What::Returned { step: "kill -9 of process 1".into(), errno: None })];
    facts.push(bench.fact(dead_too, What::Returned { step: "kill -9 of process 2".into(), errno: None }));
    if bench.nic_is_ours() {
        let list = |of: &[(&str, u64)]| of.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ");
        let text = format!("the NIC has {}; before the processes it had {}", list(&left), list(&before));
        facts.push(bench.note(text));
    }
    // The device must serve a newcomer as before.
    let again = Process::start(bench, 'N')?;
    let works = again.works(bench, 'N')?;
    again.kill(bench)?;
    let verb = if works { "works" } else { "does not work" };
    facts.push(bench.note(format!("a new process with {} QPs {verb}", 2 * PAIRS)));
    facts.push(undisturbed);
    if let Some(first) = late.first() {
        return Ok(Finding::new(Verdict::LeakTo, *first, late.iter().skip(1).copied().chain(facts)));
    }
    let well = well && works && left == before;
    let last = facts.pop().unwrap_or(undisturbed);
    Ok(Finding::new(if well { Verdict::Safe } else { Verdict::Lost }, last, facts))
}

/// Kills the first process while both are busy: when it had ended, and whether the second was undisturbed.
fn kill_first(bench: &mut Bench<'_>, first: &Process, second: &Process) -> Result<(Seq, bool, FactId), Stop> {
    first.run(bench, ENDLESS)?;
    let job = second.run(bench, SOME)?;
    std::thread::sleep(WHILE);
    let dead = first.kill(bench)?;
    let during = errno_of(&bench.wait_job(job, JOB)?) == Some(Ok(()));
    second.disturb(bench)?;
    let after = second.content(bench)?.is(&bench.pattern('S'), 0) && second.works(bench, 'S')?;
    let well = during && after;
    let text = if well { "all work, and its memory has what they wrote" } else { "do not all work" };
    let fact = bench
        .note(format!("process 1 was killed with {PAIRS} busy pairs; process 2 went on: its {} QPs {text}", 2 * PAIRS));
    Ok((dead, well, fact))
}

/// An RDMA WRITE waits at a gate when its key is freed: then it must fail.
pub fn freed_key(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    let (map, target) = bench.anonymous_map(crate::bench::FILE_LEN)?;
    bench.use_mr(target);
    let (off, len, pattern) = (crate::bench::PAGE_AT, PAGE, bench.pattern('B'));
    bench.guest.must(Op::Store { m: map, off, len, pattern })?;
    let page = bench.guest.must(Op::PageInfo { m: map, off })?.page();
    let page = page.ok_or_else(|| Stop::Failed("the agent gave no page".into()))?;
    bench.gpa = page.gpa();
    bench.guest.ledger().watch(bench.gpa);
    let gate = bench.arm_gate();
    let gated = bench.post_gated(gate, 'C')?;
    bench.deregister()?;
    let job = bench.open_gate(gate, gated, 'C')?;
    let completion = bench.wait_write(job, JOB)?;
    let completion = completion.ok_or_else(|| Stop::Inconclusive("the RDMA WRITE did not complete".into()))?;
    let value = bench.guest.must(Op::Load { m: map, off, len: PAGE })?;
    let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
    let intact = content.is(&bench.pattern('B'), off);
    let seen = bench.seen("the mapping", "anonymous memory", &Ok(content));
    let verdict = match (completion.ok(), intact) {
        (false, true) => Verdict::ErrCqe,
        _ => Verdict::LeakTo,
    };
    Ok(Finding::new(verdict, completion.fact, [seen]))
}

impl Process {
    fn start(bench: &mut Bench<'_>, tag: char) -> Result<Self, Stop> {
        let handle = bench.guest.handle(Op::Process { user: false })?;
        let within = |op: Op| bench.guest.must(Op::In { p: handle, op: Box::new(op) });
        let name = bench.device_name()?;
        let nic = number(within(Op::Verbs(VerbsOp::Open { name: Some(name) }))?)?;
        let mut pairs = Vec::new();
        for _ in 0..PAIRS {
            let pair = within(Op::Verbs(VerbsOp::Pair { nic, depth: DEPTH }))?.pair();
            pairs.push(pair.ok_or_else(|| Stop::Failed("the agent gave no pair".into()))?.handle);
        }
        let rights = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
        let region = |access: u32| -> Result<(u32, MrInfo), Stop> {
            let map = number(within(Op::AnonBuffer { len: REGION, huge: false })?)?;
            let mr = within(Op::Verbs(VerbsOp::Reg { nic, m: map, off: 0, len: REGION, access }))?.mr();
            Ok((map, mr.ok_or_else(|| Stop::Failed("the agent gave no memory region".into()))?))
        };
        let (source, local) = region(rights)?;
        let (target, remote) = region(bench.registration().access())?;
        within(Op::Store { m: source, off: 0, len: REGION, pattern: bench.pattern(tag) })?;
        within(Op::Touch { m: target, off: 0, write: true })?;
        let page = within(Op::PageInfo { m: target, off: 0 })?.page();
        let gpa = page.ok_or_else(|| Stop::Failed("the agent gave no page".into()))?.gpa();
        bench.guest.ledger().watch(gpa);
        let wr = Wr {
            kind: WrKind::Write,
            end: 0,
            local: local.handle,
            local_off: 0,
            len: PAGE as u32,
            remote: remote.handle,
            remote_off: 0,
            value: 0,
            swap: 0,
        };
        Ok(Self { handle, target, gpa, pairs, wr })
    }

    /// Traffic on all pairs, as a job.
    fn run(&self, bench: &Bench<'_>, rounds: u32) -> Result<u32, Stop> {
        let op = VerbsOp::Rounds { ps: self.pairs.clone(), wr: self.wr, rounds, limit_ms: LIMIT_MS };
        bench.spawn(Op::In { p: self.handle, op: Box::new(Op::Verbs(op)) })
    }

    /// kill -9; the mark after its end.
    fn kill(&self, bench: &Bench<'_>) -> Result<Seq, Stop> {
        bench.mark("kill -9");
        bench.guest.must(Op::Kill { p: self.handle })?;
        Ok(bench.mark("the process has ended"))
    }

    /// Where it is planted: somebody else writes into its memory.
    fn disturb(&self, bench: &mut Bench<'_>) -> Result<(), Stop> {
        if !bench.is_planted(Plant::Disturbed) {
            return Ok(());
        }
        let store = Op::Store { m: self.target, off: 0, len: PAGE, pattern: bench.pattern('X') };
        bench.guest.must(Op::In { p: self.handle, op: Box::new(store) }).map(drop)
    }

    /// Traffic on all pairs ends well, and what it wrote is there.
    fn works(&self, bench: &Bench<'_>, tag: char) -> Result<bool, Stop> {
        let state = bench.wait_job(self.run(bench, SOME)?, JOB)?;
        Ok(errno_of(&state) == Some(Ok(())) && self.content(bench)?.is(&bench.pattern(tag), 0))
    }

    fn content(&self, bench: &Bench<'_>) -> Result<rnic_agent::pattern::Content, Stop> {
        let load = Op::Load { m: self.target, off: 0, len: PAGE };
        let value = bench.guest.must(Op::In { p: self.handle, op: Box::new(load) })?;
        value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))
    }

    /// A NIC write of its page after its end.
    fn late(&self, bench: &Bench<'_>, dead: Seq) -> Option<NicRecord> {
        let records = bench.nic_records(dead);
        oracle::nic::last_write(&records, self.gpa).filter(|write| write.seq > dead).cloned()
    }
}

fn number(value: Value) -> Result<u32, Stop> {
    value.handle().ok_or_else(|| Stop::Failed("the agent gave no handle".into()))
}
