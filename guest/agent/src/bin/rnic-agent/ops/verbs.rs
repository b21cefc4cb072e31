// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verbs steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rnic_agent::proto::{Advice, Between, Failure, MrInfo, PairInfo, Timed, Value, VerbsOp, Way, Wc, Wr, WrKind};

use super::laps::{check_laps, nanos};
use super::{Outcome, failed, failure, unit};
use crate::serve::objects::Object;
use crate::serve::{Context, lock};
use crate::sys::guard::{Guard, Lease, Watch};
use crate::sys::verbs::{Mr, Nic, Qp, RawWr, op_number};

/// Polls at once before it sleeps between polls: a completion of a running device is microseconds away.
const SPINS: u32 = 2000;
/// Sleep between polls of a completion that something holds up.
const NAP: Duration = Duration::from_micros(200);
/// Most work requests or registrations of one batch.
const MAX_BATCH: u32 = 1 << 20;

/// Two QPs connected to each other.
#[derive(Debug)]
pub struct Pair {
    ends: [Qp; 2],
    depth: u32,
}

impl Pair {
    fn end(&self, end: u8) -> Result<&Qp, Failure> {
        self.ends
            .get(usize::from(end))
            .ok_or_else(|| failure(libc::EINVAL, format!("a pair has ends 0 and 1, not {end}")))
    }
}

/// Runs a verbs step.
pub fn run(context: &Context, op: VerbsOp) -> Outcome {
    let objects = &context.objects;
    match op {
        VerbsOp::Open { name } => {
            let nic = Nic::open(name.as_deref()).map_err(failed("opening the RDMA device"))?;
            objects.add(Object::Nic(Arc::new(nic))).map(Value::Handle)
        }
        VerbsOp::Info { nic } => Ok(Value::Nic(objects.nic(nic)?.info())),
        VerbsOp::Reg { nic, m, off, len, access } => {
            let mr = Mr::new(objects.nic(nic)?, objects.mapping(m)?, off, len, access).map_err(failed("ibv_reg_mr"))?;
            let (lkey, rkey, addr) = (mr.lkey, mr.rkey, mr.addr);
            objects.add(Object::Mr(Arc::new(mr))).map(|handle| Value::Mr(MrInfo { handle, lkey, rkey, addr }))
        }
        VerbsOp::Dereg { mr } => unit("ibv_dereg_mr", objects.mr(mr)?.deregister()),
        VerbsOp::Rereg { mr, access } => unit("ibv_rereg_mr", objects.mr(mr)?.reregister(access)),
        VerbsOp::Guard { h, way } => {
            let file = objects.file(h)?;
            let guard = match way {
                Way::Lease => Guard::Lease(Lease::take(file).map_err(failed("F_SETLEASE"))?),
                Way::PreContent => Guard::Watch(Watch::listen(&file).map_err(failed("fanotify"))?),
            };
            objects.add(Object::Guard(Arc::new(guard.into()))).map(Value::Handle)
        }
        VerbsOp::GiveWay { g, mr, limit_ms } => give_way(&mut lock(&*objects.guard(g)?), &*objects.mr(mr)?, limit_ms),
        VerbsOp::Pair { nic, depth } => pair(context, nic, depth),
        VerbsOp::Post { p, wr } => {
            let raw = raw(context, &wr)?;
            unit("posting a work request", objects.pair(p)?.end(wr.end)?.post(&raw))
        }
        VerbsOp::Poll { p, end, limit_ms } => poll(objects.pair(p)?.end(end)?, limit_ms).map(Value::Wc),
        VerbsOp::Do { p, wr, limit_ms } => {
            let (raw, pair) = (raw(context, &wr)?, objects.pair(p)?);
            let qp = pair.end(wr.end)?;
            qp.post(&raw).map_err(failed("posting a work request"))?;
            poll(qp, limit_ms).map(Value::Wc)
        }
        VerbsOp::QpState { p, end } => {
            let state = objects.pair(p)?.end(end)?.state().map_err(failed("ibv_query_qp"))?;
            Ok(Value::Num(state.into()))
        }
        VerbsOp::Batch { p, wr, count, depth, limit_ms, between } => {
            let batch = Batch { raw: raw(context, &wr)?, count, depth, limit_ms, between };
            batch.run(context, &*objects.pair(p)?, wr.end)
        }
        VerbsOp::Laps { p, wr, count, limit_ms, between } => {
            let batch = Batch { raw: raw(context, &wr)?, count, depth: 1, limit_ms, between: Some(between) };
            batch.laps(context, &*objects.pair(p)?, wr.end)
        }
        VerbsOp::Rounds { ps, wr, rounds, limit_ms } => {
            let pairs = ps.iter().map(|p| objects.pair(*p)).collect::<Result<Vec<_>, _>>()?;
            self::rounds(&pairs, wr.end, raw(context, &wr)?, rounds, limit_ms)
        }
        VerbsOp::RegBatch { nic, m, off, len, access, count } => {
            let (nic, mapping) = (objects.nic(nic)?, objects.mapping(m)?);
            register(|| Mr::new(nic.clone(), mapping.clone(), off, len, access), count)
        }
    }
}

fn give_way(guard: &mut Guard, mr: &Mr, limit_ms: u32) -> Outcome {
    if !guard.wait(limit_ms).map_err(failed("waiting to be asked"))? {
        return Err(failure(libc::ETIMEDOUT, "nobody asked"));
    }
    let deregistered = mr.deregister();
    // Whatever came of it: who asks must not wait for ever.
    guard.allow().map_err(failed("letting go on"))?;
    unit("ibv_dereg_mr", deregistered)
}

fn pair(context: &Context, nic: u32, depth: u32) -> Outcome {
    let nic = context.objects.nic(nic)?;
    let make = || Qp::new(nic.clone(), depth).map_err(failed("making a queue pair"));
    let ends = [make()?, make()?];
    ends[0].connect(ends[1].qpn).map_err(failed("connecting the first queue pair"))?;
    ends[1].connect(ends[0].qpn).map_err(failed("connecting the second queue pair"))?;
    let qpns = [ends[0].qpn, ends[1].qpn];
    let handle = context.objects.add(Object::Pair(Arc::new(Pair { ends, depth })))?;
    Ok(Value::Pair(PairInfo { handle, qpns }))
}

fn raw(context: &Context, wr: &Wr) -> Result<RawWr, Failure> {
    let local = context.objects.mr(wr.local)?;
    let one_sided = !matches!(wr.kind, WrKind::Send | WrKind::Recv);
    let remote = one_sided.then(|| context.objects.mr(wr.remote)).transpose()?;
    let (remote_addr, rkey) = remote.map_or((0, 0), |mr| (mr.addr.wrapping_add(wr.remote_off), mr.rkey));
    Ok(RawWr {
        id: 0,
        addr: local.addr.wrapping_add(wr.local_off),
        remote_addr,
        compare_add: wr.value,
        swap: wr.swap,
        len: wr.len,
        lkey: local.lkey,
        rkey,
        imm: wr.value as u32,
        op: op_number(wr.kind),
    })
}

/// Waits for one completion. Between polls nothing is locked, so that others may post meanwhile.
fn poll(qp: &Qp, limit_ms: u32) -> Result<Wc, Failure> {
    let (start, limit) = (Instant::now(), Duration::from_millis(limit_ms.into()));
    for turn in 0u32.. {
        let got = qp.poll(1).map_err(failed("ibv_poll_cq"))?;
        if let Some(wc) = got.into_iter().next() {
            return Ok(wc);
        }
        if start.elapsed() >= limit {
            break;
        }
        match turn < SPINS {
            true => std::hint::spin_loop(),
            false => std::thread::sleep(NAP),
        }
    }
    Err(failure(libc::ETIMEDOUT, format!("no completion on QP {:#x} within {limit_ms} ms", qp.qpn)))
}

/// The same work request again and again.
struct Batch {
    raw: RawWr,
    count: u32,
    depth: u32,
    limit_ms: u32,
    between: Option<Between>,
}

impl Batch {
    fn check(&self, pair: &Pair) -> Result<(), Failure> {
        let Batch { count, depth, .. } = *self;
        let fits = (1..=pair.depth).contains(&depth) && (1..=MAX_BATCH).contains(&count);
        if fits && (self.between.is_none() || depth == 1) {
            return Ok(());
        }
        Err(failure(libc::EINVAL, format!("a batch of {count}, {depth} at a time, on queues of {}", pair.depth)))
    }

    fn run(&self, context: &Context, pair: &Pair, end: u8) -> Outcome {
        self.check(pair)?;
        let qp = pair.end(end)?;
        let start = Instant::now();
        let (mut posted, mut timed) = (0, Timed::default());
        while timed.done < self.count {
            while posted < self.count && posted - timed.done < self.depth {
                self.between.map_or(Ok(()), |step| between(context, step))?;
                qp.post(&self.raw).map_err(failed("posting a work request"))?;
                posted += 1;
            }
            self.completed(qp, timed.done)?;
            timed.done += 1;
            if timed.done == 1 {
                timed.first_ns = nanos(start.elapsed());
            }
        }
        timed.ns = nanos(start.elapsed());
        Ok(Value::Timed(timed))
    }

    /// One after the other, each timed in two parts.
    fn laps(&self, context: &Context, pair: &Pair, end: u8) -> Outcome {
        self.check(pair)?;
        check_laps(self.count)?;
        let qp = pair.end(end)?;
        let mut laps = Vec::new();
        for done in 0..self.count {
            let start = Instant::now();
            self.between.map_or(Ok(()), |step| between(context, step))?;
            let ready = Instant::now();
            qp.post(&self.raw).map_err(failed("posting a work request"))?;
            self.completed(qp, done)?;
            laps.push([nanos(ready - start), nanos(ready.elapsed())]);
        }
        Ok(Value::Laps(laps))
    }

    /// Waits for the work request after `done` others.
    fn completed(&self, qp: &Qp, done: u32) -> Result<(), Failure> {
        let wc = poll(qp, self.limit_ms)?;
        if wc.ok() {
            return Ok(());
        }
        let count = self.count;
        let text = format!("work request {done} of {count} ended with \"{}\" ({:#x})", wc.status, wc.vendor_err);
        Err(failure(libc::EIO, text))
    }
}

fn rounds(pairs: &[Arc<Pair>], end: u8, raw: RawWr, rounds: u32, limit_ms: u32) -> Outcome {
    let start = Instant::now();
    let mut timed = Timed::default();
    for _ in 0..rounds {
        for pair in pairs {
            pair.end(end)?.post(&raw).map_err(failed("posting a work request"))?;
        }
        for pair in pairs {
            let wc = poll(pair.end(end)?, limit_ms)?;
            if !wc.ok() {
                let text =
                    format!("a work request on QP {:#x} ended with \"{}\" ({:#x})", wc.qpn, wc.status, wc.vendor_err);
                return Err(failure(libc::EIO, text));
            }
            timed.done = timed.done.saturating_add(1);
        }
    }
    timed.ns = nanos(start.elapsed());
    Ok(Value::Timed(timed))
}

fn between(context: &Context, step: Between) -> Result<(), Failure> {
    match step {
        Between::Dontneed { m, off, len } => {
            context.objects.mapping(m)?.advise(off, len, Advice::Dontneed).map_err(failed("madvise"))
        }
        Between::Fsync { h } => context.objects.file(h)?.sync_all().map_err(failed("fsync")),
    }
}

fn register(make: impl Fn() -> std::io::Result<Mr>, count: u32) -> Outcome {
    if count == 0 || count > MAX_BATCH {
        return Err(failure(libc::EINVAL, format!("a batch of {count} registrations")));
    }
    let mut timed = Timed::default();
    for turn in 0..count {
        let start = Instant::now();
        let mr = make().map_err(failed("ibv_reg_mr"))?;
        let taken = nanos(start.elapsed());
        mr.deregister().map_err(failed("ibv_dereg_mr"))?;
        timed.ns = timed.ns.saturating_add(taken);
        timed.done = turn + 1;
        if turn == 0 {
            timed.first_ns = taken;
        }
    }
    Ok(Value::Timed(timed))
}
