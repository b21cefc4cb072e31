// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What on-demand paging costs, against pinning, on one machine in one run: figures instead of a judgement.
//!
//! Memory is anonymous, so that every kernel takes both kinds of registration; one figure is of a file, where fsync takes the
//! translations away. Then the parts of it, lap by lap: of one cycle of paging, and of a store that waits for writeback. Times are the guest's,
//! but for those of the device. On an emulated host only ratios mean something.

mod parts;
mod stores;
mod traced;

use rnic_agent::client::CallError;
use rnic_agent::proto::{Between, MrInfo, Op, Timed, VerbsOp, Wr, WrKind};

use crate::bench::{Bench, PAGE, PAGE_AT};
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;
use parts::Cycle;

/// Bytes of the memory that is registered.
const REGION: u64 = 16 << 20;
/// Bytes of the largest message.
const LARGEST: u32 = 1 << 20;
/// Message sizes of the steady figures.
const SIZES: [(u32, &str); 3] = [(4 << 10, "4 KiB"), (64 << 10, "64 KiB"), (LARGEST, "1 MiB")];
/// Registrations of each kind.
const REGISTRATIONS: u32 = 8;
/// Messages of a latency figure.
const PINGS: u32 = 100;
/// Bytes of a bandwidth figure.
const VOLUME: u32 = 64 << 20;
/// Unfinished at a time for bandwidth.
const DEPTH: u32 = 8;
/// Cycles of a storm.
const STORM: u32 = 50;
/// Most for one completion.
const LIMIT_MS: u32 = 20_000;

/// Memory, and its registration.
struct Target {
    map: u32,
    mr: MrInfo,
}

/// Measures with the row's kind of registration.
pub fn measure(bench: &mut Bench<'_>) -> Result<Finding, Stop> {
    registration(bench)?;
    let target = target(bench)?;
    let source = bench.anonymous(u64::from(LARGEST))?;
    let wr = Wr {
        kind: WrKind::Write,
        end: 0,
        local: source.handle,
        local_off: 0,
        len: LARGEST,
        remote: target.mr.handle,
        remote_off: 0,
        value: 0,
        swap: 0,
    };
    let first = batch(bench, wr, 1, 1, None)?;
    bench.figure("first RDMA WRITE of 1 MiB into untouched memory", micros(first.ns), "us");
    for (len, size) in SIZES {
        let wr = Wr { len, ..wr };
        batch(bench, wr, 4, 1, None)?;
        let ping = batch(bench, wr, PINGS, 1, None)?;
        bench.figure(&format!("latency of RDMA WRITE, {size}"), micros(ping.ns) / f64::from(PINGS), "us");
        let flow = batch(bench, wr, VOLUME / len, DEPTH, None)?;
        bench.figure(
            &format!("bandwidth of RDMA WRITE, {size}"),
            f64::from(VOLUME) * 1e3 / flow.ns.max(1) as f64,
            "MB/s",
        );
    }
    let dontneed = Between::Dontneed { m: target.map, off: 0, len: u64::from(LARGEST) };
    let storm = batch(bench, wr, STORM, 1, Some(dontneed))?;
    let name = "MADV_DONTNEED and RDMA WRITE, 1 MiB, again and again: each";
    bench.figure(name, micros(storm.ns) / f64::from(STORM), "us");
    let small = Wr { len: PAGE as u32, ..wr };
    let between = Between::Dontneed { m: target.map, off: 0, len: PAGE };
    let (what, call, rkey) = ("anonymous page", "madvise", target.mr.rkey);
    parts::measure(bench, Cycle { what, call, between, wr: small, rkey })?;
    file(bench, wr)?;
    stores::measure(bench)?;
    let fact = bench.note("measured in the guest's time");
    Ok(Finding::new(Verdict::Measured, fact, []))
}

/// Registration of memory that was never touched (pinning has to make it), and of the same memory again.
fn registration(bench: &mut Bench<'_>) -> Result<(), Stop> {
    let access = bench.registration().access();
    for (touched, what) in [(false, "never touched"), (true, "in memory")] {
        let (map, nic) = (bench.guest.handle(Op::AnonBuffer { len: REGION, huge: false })?, bench.nic_handle()?);
        if touched {
            let pattern = bench.pattern('A');
            bench.guest.must(Op::Store { m: map, off: 0, len: REGION, pattern })?;
        }
        let count = if touched { REGISTRATIONS } else { 1 };
        let op = VerbsOp::RegBatch { nic, m: map, off: 0, len: REGION, access, count };
        let timed = timed(bench, op)?;
        bench.figure(&format!("registration of 16 MiB {what}"), micros(timed.ns) / f64::from(count), "us");
        bench.guest.must(Op::Close { h: map })?;
    }
    Ok(())
}

fn target(bench: &mut Bench<'_>) -> Result<Target, Stop> {
    let map = bench.guest.handle(Op::AnonBuffer { len: REGION, huge: false })?;
    let mr = bench.register_map(map, REGION, bench.registration().access())?;
    let mr = mr.map_err(|errno| Stop::Failed(format!("anonymous memory cannot be registered: errno {errno}")))?;
    Ok(Target { map, mr })
}

/// A page of a file: RDMA WRITE and fsync. Where the kernel refuses to pin it there is no figure.
fn file(bench: &mut Bench<'_>, wr: Wr) -> Result<(), Stop> {
    let Ok(mr) = bench.register()? else {
        bench.note("no figure of a file: this kernel refuses to pin it");
        return Ok(());
    };
    let wr = Wr { len: PAGE as u32, remote: mr.handle, remote_off: PAGE_AT, ..wr };
    let between = Between::Fsync { h: bench.file() };
    let storm = batch(bench, wr, STORM, 1, Some(between))?;
    bench.figure(
        "fsync and RDMA WRITE of a page of a file, again and again: each",
        micros(storm.ns) / f64::from(STORM),
        "us",
    );
    let (what, call, rkey) = ("file page", "fsync", mr.rkey);
    parts::measure(bench, Cycle { what, call, between, wr, rkey })
}

fn batch(bench: &Bench<'_>, wr: Wr, count: u32, depth: u32, between: Option<Between>) -> Result<Timed, Stop> {
    timed(bench, VerbsOp::Batch { p: bench.pair_handle()?, wr, count, depth, limit_ms: LIMIT_MS, between })
}

fn timed(bench: &Bench<'_>, op: VerbsOp) -> Result<Timed, Stop> {
    let value = match bench.guest.call(Op::Verbs(op)) {
        Err(CallError::Failed(failure)) => return Err(Stop::Inconclusive(failure.what)),
        other => other.map_err(|error| bench.guest.stop_for("measuring", &error))?,
    };
    value.timed().ok_or_else(|| Stop::Failed("the agent gave no time".into()))
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}
