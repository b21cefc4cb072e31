// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rule 3: no DMA through a dead translation. Pages that a translation has lost are filled with a canary, which must
//! never change, and must never be read. Each test that finds nothing has a twin with an injection, which must find something.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5::hooks::{NicKind, NicLedger};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::odp::FaultService;
use rnic_testdrive::{Access, Buffer, Cq, Driver, Guest, Machine, MachineConfig, Mr, OdpMr, Qp, QpSpec, UmrSpec, Wqe};

use crate::scene::Pair;

const VA: u64 = 0x6000_0000_0000;
/// Pages of the region under stress, and bytes of one message.
const PAGES: u64 = 16;
const MESSAGE: u32 = 16 << 10;
/// What stays in a page that the device has lost, what traffic writes, what a page holds when it is mapped.
const CANARY: u8 = 0xc5;
const WRITTEN: u8 = 0x22;
const FRESH: u8 = 0x11;
/// How long a lost page is watched; longer than the injected stall.
const QUARANTINE: Duration = Duration::from_millis(12);
const STALL: NicAction = NicAction::StallInFlight { ms: 3 };

/// A region whose pages come from a pool when they are needed.
struct Paging {
    odp: OdpMr,
    state: Mutex<PagingState>,
}

struct PagingState {
    mapped: Vec<Option<u64>>,
    pool: Vec<u64>,
}

impl Paging {
    fn new(driver: &Driver, pd: u32) -> Self {
        let pool = driver.machine.guest.scattered(2048 * 4096).pages;
        let odp = OdpMr::register(driver, pd, VA, PAGES * 4096, Access::ALL).unwrap();
        Self { odp, state: Mutex::new(PagingState { mapped: vec![None; PAGES as usize], pool }) }
    }

    fn lock(&self) -> MutexGuard<'_, PagingState> {
        self.state.lock().unwrap()
    }

    /// Maps every page that is not mapped. `false` when the pool is empty.
    fn populate(&self, driver: &Driver) -> bool {
        let mut state = self.lock();
        for page in 0..PAGES as usize {
            if state.mapped[page].is_none() {
                let Some(gpa) = state.pool.pop() else { return false };
                driver.machine.guest.write(gpa, &[FRESH; 4096]);
                self.odp.map(driver, page as u64, &[gpa], true).unwrap();
                state.mapped[page] = Some(gpa);
            }
        }
        true
    }

    /// Takes a page from the device.
    fn zap(&self, driver: &Driver, page: u64) -> Option<u64> {
        let mut state = self.lock();
        let gpa = state.mapped[page as usize].take()?;
        self.odp.zap(driver, page, 1).unwrap();
        Some(gpa)
    }
}

/// What a stress run saw.
#[derive(Debug, Default)]
struct Seen {
    zaps: u64,
    transfers: u64,
    faults: u64,
    stale_writes: u64,
    stale_reads: u64,
}

impl Seen {
    /// Whether there were at least so many zaps, transfers and faults.
    fn reaches(&self, least: [u64; 3]) -> bool {
        [self.zaps, self.transfers, self.faults].iter().zip(least).all(|(seen, least)| *seen >= least)
    }
}

/// Is any byte of the page another than the canary?
fn disturbed(guest: &Guest, gpa: u64) -> bool {
    let mut bytes = [0; 4096];
    guest.read(gpa, &mut bytes);
    bytes.iter().any(|byte| *byte != CANARY)
}

/// One queue pair's traffic until `stop`: each message through `wqe`, then `check` on what it brought.
fn traffic(qp: &Qp, stop: &AtomicBool, count: &AtomicU64, wqe: impl Fn(u64) -> Wqe, mut check: impl FnMut()) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        qp.post_one(wqe(round).signaled());
        loop {
            match qp.spec.send_cq.wait_for(Duration::from_millis(50)) {
                Ok(cqe) => {
                    assert!(!cqe.is_error(), "{cqe:?}");
                    break;
                }
                Err(_) if stop.load(Ordering::Relaxed) => return,
                Err(_) => (),
            }
        }
        check();
        count.fetch_add(1, Ordering::Relaxed);
        round += 1;
    }
}

/// Where the n-th message goes: all of the region in turns, not on page borders.
fn place(round: u64) -> u64 {
    round * 3001 % (PAGES * 4096 - u64::from(MESSAGE))
}

/// How long a stress run may take to see enough: a busy machine gives a tenth of what a quiet one does.
const STRESS_LIMIT: Duration = Duration::from_secs(60);

/// WRITE, READ, SEND and a gathering WRITE at full speed against zaps of single pages, for `time` and until there were as many
/// zaps, transfers and faults as `least` says.
fn zap_stress(rules: &[NicRule], time: Duration, least: [u64; 3]) -> Seen {
    let machine = std::sync::Arc::new(Machine::new(MachineConfig { ram_mib: 128, ..MachineConfig::default() }));
    let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    let driver = &pair.driver;
    let paging = std::sync::Arc::new(Paging::new(driver, pair.pd));
    let service = FaultService::start(driver, {
        let (driver, paging) = (driver.clone(), paging.clone());
        move |_| {
            paging.populate(&driver);
            true
        }
    })
    .unwrap();
    let second = driver.alloc_uar().unwrap();
    let lane = |uar| {
        let cq = driver.create_cq(6).unwrap();
        let spec = QpSpec { uar, ..QpSpec::rc(driver, pair.pd, &cq) };
        let receiver = QpSpec { recv_cq: driver.create_cq(6).unwrap(), ..spec.clone() };
        Qp::pair(driver, spec, receiver).unwrap()
    };
    // UMRs run on the engine of the driver's own page: DMA that they must wait for is on the other, but for one lane.
    let lanes = [lane(second), lane(second), lane(second), lane(driver.uar)];
    let region = |len: u32, byte| {
        let buffer = machine.guest.scattered(len.into());
        buffer.fill(0, len.into(), byte);
        let mr = driver.register(pair.pd, &buffer, 0, Access::ALL).unwrap();
        (buffer, mr)
    };
    let (_, source) = region(MESSAGE, WRITTEN);
    let (read_into, read_mr) = region(MESSAGE, 0);
    let (sink, sink_mr) = region(MESSAGE, 0);
    for rule in rules {
        machine.nic.hca().injections.add(rule.clone()).unwrap();
    }
    let key = paging.odp.mr.key;
    let (stop, count, stale_reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let count_canaries = |buffer: &Buffer| {
        if buffer.bytes(0, buffer.len).contains(&CANARY) {
            stale_reads.fetch_add(1, Ordering::Relaxed);
            buffer.fill(0, buffer.len, 0);
        }
    };
    let mut seen = Seen::default();
    std::thread::scope(|scope| {
        let (stop, count, paging) = (&stop, &count, &paging);
        let [write, read, send, gather] = &lanes;
        scope.spawn(move || {
            traffic(&write.0, stop, count, |n| Wqe::write(VA + place(n), key).sge(source.all()), || ());
        });
        scope.spawn(move || {
            let wqe = |n| Wqe::read(VA + place(n), key).sge(read_mr.all());
            traffic(&read.0, stop, count, wqe, || count_canaries(&read_into));
        });
        scope.spawn(move || {
            let wqe = |n| {
                send.1.receive(&[paging.odp.mr.sge(place(n), MESSAGE)]);
                Wqe::send().sge(source.all())
            };
            traffic(&send.0, stop, count, wqe, || while send.1.spec.recv_cq.poll().is_some() {});
        });
        scope.spawn(move || {
            let wqe = |n| Wqe::write(0, sink_mr.key).sge(paging.odp.mr.sge(place(n), MESSAGE));
            traffic(&gather.0, stop, count, wqe, || count_canaries(&sink));
        });
        let begun = Instant::now();
        let (mut lost, mut turn) = (std::collections::VecDeque::new(), 0);
        let guest = &machine.guest;
        let release = |seen: &mut Seen, gpa| {
            seen.stale_writes += u64::from(disturbed(guest, gpa));
            paging.lock().pool.push(gpa);
        };
        while begun.elapsed() < time || (!seen.reaches(least) && begun.elapsed() < STRESS_LIMIT) {
            turn += 1;
            match paging.zap(driver, turn * 7 % PAGES) {
                Some(gpa) => {
                    guest.write(gpa, &[CANARY; 4096]);
                    lost.push_back((Instant::now(), gpa));
                    seen.zaps += 1;
                }
                None => std::thread::sleep(Duration::from_micros(20)),
            }
            while lost.front().is_some_and(|(when, _): &(Instant, u64)| when.elapsed() > QUARANTINE) {
                lost.pop_front().into_iter().for_each(|(_, gpa)| release(&mut seen, gpa));
            }
            (seen.transfers, seen.faults) = (count.load(Ordering::Relaxed), service.served());
            if lost.len() > 1024 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        std::thread::sleep(QUARANTINE);
        lost.into_iter().for_each(|(_, gpa)| release(&mut seen, gpa));
        stop.store(true, Ordering::Relaxed);
    });
    seen.stale_reads = stale_reads.load(Ordering::Relaxed);
    assert!(seen.reaches(least), "too little happened: {seen:?}");
    seen
}

fn every(action: NicAction) -> NicRule {
    NicRule::new(0, action)
}

#[test]
fn zaps_under_traffic_leave_no_dma_behind() {
    let seen = zap_stress(&[], Duration::from_secs(3), [300, 300, 100]);
    assert_eq!((seen.stale_writes, seen.stale_reads), (0, 0), "{seen:?}");
}

#[test]
fn zaps_wait_for_what_is_in_flight() {
    let seen = zap_stress(&[every(STALL)], Duration::from_secs(2), [20, 20, 0]);
    assert_eq!((seen.stale_writes, seen.stale_reads), (0, 0), "{seen:?}");
}

/// On a busy machine the stalled DMA may be over before the canary is in place: what a run did not meet, another may.
#[test]
fn control_without_the_guard_zaps_leave_dma_behind() {
    let rules = [every(STALL), every(NicAction::NoGuard)];
    let mut runs = (0..5).map(|_| zap_stress(&rules, Duration::from_secs(2), [0; 3]));
    let caught = runs.any(|seen| seen.stale_writes > 0 && seen.stale_reads > 0);
    assert!(caught, "the missing guard was not caught in writes and reads");
}

/// A way in which the right to write into a target ends.
type End = fn(&Pair, &Mr);

const ENDS: &[(&str, End)] = &[
    ("2RST of the requester", |pair, _| pair.one.to_reset().unwrap()),
    ("2RST of the responder", |pair, _| pair.other.to_reset().unwrap()),
    ("2ERR of the requester", |pair, _| pair.one.to_error().unwrap()),
    ("2ERR of the responder", |pair, _| pair.other.to_error().unwrap()),
    ("DESTROY_QP of the requester", |pair, _| pair.one.destroy().unwrap()),
    ("DESTROY_QP of the responder", |pair, _| pair.other.destroy().unwrap()),
    ("DESTROY_MKEY", |pair, mr| pair.driver.destroy_mkey(mr.key).unwrap()),
    ("UMR revoke", |pair, mr| pair.driver.umr(&UmrSpec::revoke(mr.key)).unwrap()),
    ("UMR zap", |pair, mr| pair.driver.umr(&UmrSpec::update(mr.key, 0, vec![0; 8])).unwrap()),
    ("bus mastering off", |pair, _| pair.driver.machine.set_bus_master(false)),
    ("function level reset", |pair, _| pair.driver.machine.function_reset()),
    ("platform reset", |pair, _| pair.driver.machine.reset()),
];

/// Ends the right in the middle of traffic, at most `rounds` times, and says whether the canary changed in one of them.
fn outlives(end: End, rules: &[NicRule], rounds: u32) -> bool {
    (0..rounds).any(|round| {
        let driver = Driver::probe(&crate::scene::machine()).unwrap();
        // Another engine than that of UMRs, which would wait for their turn with or without a guard.
        let uar = driver.alloc_uar().unwrap();
        let pair = Pair::on(driver, |spec| spec.uar = uar);
        let target = pair.driver.machine.guest.scattered(u64::from(MESSAGE));
        // The UMR queue pair and the target, before any rule acts.
        let mr = pair.driver.register_by_umr(pair.pd, &target, VA, Access::ALL).unwrap();
        for rule in rules {
            pair.driver.machine.nic.hca().injections.add(rule.clone()).unwrap();
        }
        let write = Wqe::write(VA, mr.key).sge(pair.local_mr.sge(0, MESSAGE));
        pair.one.post(&vec![write; 60]);
        std::thread::sleep(Duration::from_micros(u64::from(round % 8) * 400 + 50));
        end(&pair, &mr);
        target.fill(0, target.len, CANARY);
        std::thread::sleep(Duration::from_millis(8));
        let stale = target.bytes(0, target.len).iter().any(|byte| *byte != CANARY);
        pair.driver.machine.nic.hca().injections.clear();
        stale
    })
}

fn stalled_writes() -> NicRule {
    every(STALL).on(WqeMatch::opcode(opcode::RDMA_WRITE as u8))
}

#[test]
fn every_end_of_a_translation_waits_for_dma() {
    for (name, end) in ENDS {
        assert!(!outlives(*end, &[stalled_writes()], 6), "{name}, with DMA in flight for long");
        assert!(!outlives(*end, &[], 6), "{name}, at full speed");
    }
}

#[test]
fn control_without_the_guard_dma_outlives_its_translation() {
    for (name, end) in ENDS.iter().filter(|(name, _)| name.starts_with("UMR") || *name == "DESTROY_MKEY") {
        let caught = outlives(*end, &[stalled_writes(), every(NicAction::NoGuard)], 100);
        assert!(caught, "{name}: the missing guard was not caught");
    }
}

#[test]
fn control_late_dma_reaches_a_page_that_was_zapped() {
    // On another engine than UMRs, which would be on record before it moves whatever their order.
    let driver = Driver::probe(&crate::scene::machine()).unwrap();
    let uar = driver.alloc_uar().unwrap();
    let pair = Pair::on(driver, |spec| spec.uar = uar);
    let memory = pair.driver.machine.guest.scattered(4096);
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 4096, Access::ALL).unwrap();
    odp.map(&pair.driver, 0, &memory.pages, true).unwrap();
    let ledger = pair.driver.machine.nic.hca().ledger.clone();
    assert!(ledger.watch(memory.pages[0]));
    // From the start: the late copy comes right behind the zap.
    memory.fill(0, 4096, CANARY);
    pair.local.fill(0, 4096, WRITTEN);
    let rule = NicRule::new(1, NicAction::LateDma).on(WqeMatch::opcode(opcode::RDMA_WRITE as u8));
    let id = pair.driver.machine.nic.hca().injections.add(rule).unwrap();
    pair.one.post_one(Wqe::write(VA, odp.mr.key).sge(pair.local_mr.sge(0, 4096)).signaled());
    let fired = || pair.driver.machine.nic.hca().injections.rule(id).is_some_and(|rule| rule.fired == 1);
    pair.driver.until("the rule to fire", fired).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(!disturbed(&pair.driver.machine.guest, memory.pages[0]), "early, not late");
    odp.zap(&pair.driver, 0, 1).unwrap();
    pair.driver.until("stale DMA", || disturbed(&pair.driver.machine.guest, memory.pages[0])).unwrap();
    pair.one_cq.wait_ok().unwrap();
    // The ledger shows it as late: begun before the zap, done after it.
    let records = ledger.nic(0);
    let zapped = records.iter().rfind(|record| matches!(record.kind, NicKind::Updated { .. })).unwrap();
    let (done, begun) = records
        .iter()
        .find_map(|record| match record.kind {
            NicKind::Wrote { begun, .. } => Some((record.seq, begun)),
            _ => None,
        })
        .unwrap();
    assert!(begun < zapped.seq && zapped.seq < done, "begun {begun}, zapped {}, done {done}", zapped.seq);
}

#[test]
fn control_an_ignored_write_bit_lets_a_write_through() {
    for injected in [false, true] {
        let pair = Pair::new();
        let memory = pair.driver.machine.guest.scattered(4096);
        let odp = OdpMr::register(&pair.driver, pair.pd, VA, 4096, Access::ALL).unwrap();
        odp.map(&pair.driver, 0, &memory.pages, false).unwrap();
        pair.local.fill(0, 4096, WRITTEN);
        if injected {
            pair.driver.machine.nic.hca().injections.add(every(NicAction::IgnoreMttWriteBit)).unwrap();
        }
        pair.one.post_one(Wqe::write(VA, odp.mr.key).sge(pair.local_mr.sge(0, 4096)).signaled());
        let completed = pair.one_cq.wait_for(Duration::from_millis(100)).is_ok();
        let written = memory.bytes(0, 4096).contains(&WRITTEN);
        assert_eq!((completed, written), (injected, injected));
    }
}

/// Destroying and making keys while several queue pairs use them.
#[test]
fn keys_come_and_go_under_traffic() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let current = Mutex::new(None::<Mr>);
    let (stop, transfers) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut keys = 0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (current, stop, transfers, pair) = (&current, &stop, &transfers, &pair);
            scope.spawn(move || {
                let cq: std::sync::Arc<Cq> = driver.create_cq(6).unwrap();
                let spec = QpSpec { uar: driver.alloc_uar().unwrap(), ..QpSpec::rc(driver, pair.pd, &cq) };
                let (one, other) = Qp::pair(driver, spec.clone(), spec).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let Some(mr) = *current.lock().unwrap() else { continue };
                    let write = Wqe::write(mr.va, mr.key).sge(pair.local_mr.sge(0, MESSAGE)).signaled();
                    one.post(&[write.clone(), write.clone(), write]);
                    let failed = (0..3).filter(|_| cq.wait().unwrap().is_error()).count();
                    transfers.fetch_add(3 - failed as u64, Ordering::Relaxed);
                    if failed > 0 {
                        for qp in [&one, &other] {
                            qp.to_reset().unwrap();
                        }
                        while cq.poll().is_some() {}
                        one.connect(other.peer()).unwrap();
                        other.connect(one.peer()).unwrap();
                    }
                }
            });
        }
        let begun = Instant::now();
        let enough = |keys| keys > 100 && transfers.load(Ordering::Relaxed) > 100;
        while begun.elapsed() < Duration::from_secs(2) || (!enough(keys) && begun.elapsed() < STRESS_LIMIT) {
            let target = driver.machine.guest.scattered(MESSAGE.into());
            let mr = driver.register(pair.pd, &target, VA, Access::ALL).unwrap();
            *current.lock().unwrap() = Some(mr);
            std::thread::sleep(Duration::from_micros(keys % 5 * 60));
            driver.destroy_mkey(mr.key).unwrap();
            target.fill(0, target.len, CANARY);
            std::thread::sleep(Duration::from_micros(500));
            assert!(target.bytes(0, target.len).iter().all(|byte| *byte == CANARY), "DMA after DESTROY_MKEY");
            driver.machine.guest.free(target);
            keys += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    let transfers = transfers.load(Ordering::Relaxed);
    assert!(keys > 100 && transfers > 100, "too little happened: {keys} keys, {transfers} transfers");
}
