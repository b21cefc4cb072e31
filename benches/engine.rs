// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast one engine thread is: WRITE bandwidth against memcpy of the same sizes in the same run, and small work requests a second.
//! Everything that a guest gets is on: doorbells, mkey checks, sections, completions, ledger.
//!
//! `cargo bench -p rnic-testdrive --bench engine` prints the figures; `-- --check` also fails when one is below its floor (docs/performance.md).
#![allow(unsafe_code, reason = "a thread's own clock has no safe interface")]

use std::cell::Cell;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlx5::{EnginePolicy, NicConfig};
use rnic_testdrive::{Access, Buffer, Cq, Driver, Machine, MachineConfig, Mr, Qp, QpSpec, Wqe};

/// Bytes of source and of target: more than the second cache level, so that both sides see memory alike.
const REGION: u64 = 8 << 20;
/// Floors of the project's second step.
const BANDWIDTH_FLOOR: (u64, f64) = (64 << 10, 0.8);
const RATE_FLOOR: f64 = 2e6;
/// log2 of the send queue. Much is posted ahead, so that the engine has work while the other thread waits for a core.
const LOG_SQ: u32 = 12;
const AHEAD: u64 = 3 << (LOG_SQ - 2);
const AHEAD_BYTES: u64 = 64 << 20;
/// Each figure is the best of so many short measurements, taken in turns with those of its baseline: what else happens on the
/// machine only makes them slower. Memory is taken anew for each third of them, since where its pages are counts as well.
const PLACES: u32 = 3;
const ROUNDS: u32 = 20;
const MEASUREMENT: Duration = Duration::from_millis(20);

/// Something a second: of the thread's own time on a core, and by the clock on the wall.
#[derive(Clone, Copy)]
struct Rate {
    cpu: f64,
    wall: f64,
}

/// Time on a core of a thread of this process, 0 for the caller. /proc tells it too, but as of the last tick, which may be
/// milliseconds ago.
fn cpu_time(tid: i32) -> Duration {
    // A thread's clock as Linux numbers it: its complement, then "per thread" (4) and "scheduler's time" (2).
    let clock = if tid == 0 { libc::CLOCK_THREAD_CPUTIME_ID } else { !tid << 3 | 6 };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and outlives the call, whose result is checked.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(result, 0, "thread {tid} has no clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Time on a core of the engine. There is one; those of earlier lanes are gone.
fn engine_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let engine = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("nic0-engine"))
    };
    let time = tasks.filter(engine).filter_map(|task| task.file_name().to_str()?.parse().ok()).map(cpu_time).sum();
    assert!(time > Duration::ZERO, "there is no thread named nic0-engine, or it has done nothing");
    time
}

/// One queue pair on a machine with one engine.
struct Lane {
    driver: Arc<Driver>,
    qp: Qp,
    _peer: Qp,
    cq: Arc<Cq>,
    source: (Buffer, Mr),
    target: (Buffer, Mr),
    /// Completions that are to come.
    owed: Cell<u32>,
}

impl Lane {
    fn new(log_sq: u32) -> Self {
        Self::with_memory(log_sq, 128)
    }

    fn with_memory(log_sq: u32, ram_mib: u64) -> Self {
        let nic = NicConfig { engines: EnginePolicy::Threads(1), ..NicConfig::default() };
        let machine = Arc::new(Machine::new(MachineConfig { ram_mib, nic, ..MachineConfig::default() }));
        let driver = Driver::probe(&machine).expect("the NIC binds");
        let pd = driver.alloc_pd().expect("a domain");
        let cq = driver.create_cq(log_sq + 1).expect("a completion queue");
        let spec = QpSpec { log_sq, ..QpSpec::rc(&driver, pd, &cq) };
        let (qp, peer) = Qp::pair(&driver, spec.clone(), spec).expect("queue pairs");
        let region = |va| {
            let buffer = machine.guest.contiguous(REGION);
            buffer.fill_pattern(va);
            let mr = driver.register(pd, &buffer, va, Access::ALL).expect("a key");
            (buffer, mr)
        };
        let (source, target) = (region(1 << 40), region(1 << 41));
        Self { driver, qp, _peer: peer, cq, source, target, owed: Cell::new(0) }
    }

    /// Fills the send queue once with writes of `size` bytes that go through the regions; the last of each `batch` is signaled.
    fn fill(&self, size: u64, batch: u64) {
        let blocks = 1u64 << self.qp.spec.log_sq;
        for block in 0..blocks {
            let at = block * size % REGION;
            let write = Wqe::write(self.target.1.va + at, self.target.1.key).sge(self.source.1.sge(at, size as u32));
            self.qp.write(&if block % batch == batch - 1 { write.signaled() } else { write });
        }
        self.qp.ring();
        self.owed.set((blocks / batch) as u32);
        self.collect(0);
    }

    /// Posts `ring` work requests again, which bring `completions`.
    fn post(&self, ring: u16, completions: u32) {
        self.qp.repeat(ring);
        self.owed.set(self.owed.get() + completions);
    }

    /// Waits until only `left` completions are to come.
    fn collect(&self, left: u32) {
        let begun = Instant::now();
        while self.owed.get() > left {
            let (now, good) = self.cq.drain();
            assert!(good, "a work request failed");
            assert!(begun.elapsed() < Duration::from_secs(20), "completions do not come");
            self.owed.set(self.owed.get() - now);
            if now == 0 {
                std::hint::spin_loop();
            }
        }
    }

    /// Work requests a second with `ring` of them a doorbell and `ahead` doorbells ahead.
    fn rate(&self, ring: u16, signaled_each: u32, ahead: u64) -> Rate {
        let completions = u32::from(ring) / signaled_each;
        let (begun, cpu) = (Instant::now(), engine_time());
        let mut posted = 0u64;
        while begun.elapsed() < MEASUREMENT {
            self.post(ring, completions);
            posted += u64::from(ring);
            self.collect(completions * ahead as u32);
        }
        self.collect(0);
        let cpu = (engine_time() - cpu).as_secs_f64();
        Rate { cpu: posted as f64 / cpu, wall: posted as f64 / begun.elapsed().as_secs_f64() }
    }
}

/// Bytes a second that plain copies of `size` bytes move through regions as large as the NIC's.
fn memcpy_bandwidth(size: usize, source: &[u8], target: &mut [u8]) -> Rate {
    let (begun, cpu) = (Instant::now(), cpu_time(0));
    let (mut at, mut bytes) = (0, 0u64);
    while begun.elapsed() < MEASUREMENT {
        for _ in 0..(REGION as usize / size).min(64) {
            target[at..at + size].copy_from_slice(black_box(&source[at..at + size]));
            black_box(&mut *target);
            at = (at + size) % REGION as usize;
            bytes += size as u64;
        }
    }
    let cpu = (cpu_time(0) - cpu).as_secs_f64();
    Rate { cpu: bytes as f64 / cpu, wall: bytes as f64 / begun.elapsed().as_secs_f64() }
}

/// The best of each kind.
fn best(figures: &[Rate]) -> Rate {
    let most = |of: fn(&Rate) -> f64| figures.iter().map(of).fold(0.0, f64::max);
    Rate { cpu: most(|rate| rate.cpu), wall: most(|rate| rate.wall) }
}

fn bandwidth(failures: &mut Vec<String>) {
    println!("WRITE, one engine       GiB/s of its core   memcpy   ratio    GiB/s on the wall   memcpy");
    for size in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let ring = (REGION / size / 4).clamp(2, 64);
        let (mut nic, mut memcpy) = (Vec::new(), Vec::new());
        for _ in 0..PLACES {
            let (source, mut target) = (vec![1u8; REGION as usize], vec![2u8; REGION as usize]);
            let lane = Lane::new(LOG_SQ);
            lane.fill(size, ring);
            for _ in 0..ROUNDS {
                memcpy.push(memcpy_bandwidth(size as usize, &source, &mut target));
                let rate = lane.rate(ring as u16, ring as u32, (AHEAD_BYTES / size).clamp(8, AHEAD) / ring);
                nic.push(Rate { cpu: rate.cpu * size as f64, wall: rate.wall * size as f64 });
            }
        }
        let (nic, memcpy) = (best(&nic), best(&memcpy));
        let ratio = nic.cpu / memcpy.cpu;
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let figures = (gib(nic.cpu), gib(memcpy.cpu), gib(nic.wall), gib(memcpy.wall));
        println!(
            "  {:>8} KiB {:>27.2} {:>8.2} {ratio:>7.2} {:>20.2} {:>8.2}",
            size >> 10,
            figures.0,
            figures.1,
            figures.2,
            figures.3
        );
        if size == BANDWIDTH_FLOOR.0 && ratio < BANDWIDTH_FLOOR.1 {
            failures.push(format!("{size}-byte writes reach {ratio:.2} of memcpy, the floor is {}", BANDWIDTH_FLOOR.1));
        }
    }
}

fn rates(failures: &mut Vec<String>) {
    println!("8-byte WRITEs, one engine      million/s of its core   on the wall");
    for (name, ring, signaled_each, ahead, floor) in [
        ("64 a doorbell, each with a CQE", 64, 1, AHEAD / 64, Some(RATE_FLOOR)),
        ("64 a doorbell, one CQE", 64, 64, AHEAD / 64, None),
        ("1 a doorbell, each with a CQE", 1, 1, AHEAD, None),
    ] {
        let mut rates = Vec::new();
        for _ in 0..PLACES {
            let lane = Lane::new(LOG_SQ);
            lane.fill(8, signaled_each);
            rates.extend((0..ROUNDS).map(|_| lane.rate(ring, signaled_each as u32, ahead)));
        }
        let rate = best(&rates);
        println!("  {name:<34} {:>16.2} {:>13.2}", rate.cpu / 1e6, rate.wall / 1e6);
        if floor.is_some_and(|floor| rate.cpu < floor) {
            failures.push(format!("{name}: {:.2} million/s, the floor is {:.0}", rate.cpu / 1e6, RATE_FLOOR / 1e6));
        }
    }
    idle();
}

/// Microseconds from a doorbell to its polled CQE: the best of many short turns.
fn ping(lane: &Lane) -> f64 {
    const PINGS: u32 = 200;
    let turn = || {
        let begun = Instant::now();
        for _ in 0..PINGS {
            lane.post(1, 1);
            lane.collect(0);
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(PINGS)
    };
    (0..ROUNDS * PLACES).map(|_| turn()).fold(f64::INFINITY, f64::min)
}

/// What a doorbell costs alone, and beside queue pairs that do nothing.
fn idle() {
    const IDLE: usize = 4096;
    let lane = Lane::with_memory(LOG_SQ, 512);
    lane.fill(8, 1);
    let alone = ping(&lane);
    let spec = QpSpec { log_sq: 1, log_rq: 0, ..lane.qp.spec.clone() };
    let connected = || {
        let qp = Qp::create(&lane.driver.context, spec.clone()).expect("a queue pair");
        qp.connect(qp.peer()).expect("it connects to itself");
        qp
    };
    let idle: Vec<Qp> = (0..IDLE).map(|_| connected()).collect();
    let beside = ping(&lane);
    println!(
        "  from doorbell to polled CQE: {alone:.1} us; beside {} idle queue pairs: {:.2} of that",
        idle.len(),
        beside / alone
    );
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut failures = Vec::new();
    rates(&mut failures);
    bandwidth(&mut failures);
    for failure in &failures {
        eprintln!("below its floor: {failure}");
    }
    let check = arguments.iter().any(|argument| argument == "--check");
    if check && !failures.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
