// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two NICs of one machine and the fabric between them: traffic of every service, page faults and errors on either side, and rule 3 across
//! devices: who takes a right away on one NIC waits for the engines of the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mlx5::hooks::{NicAction, NicRule};
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use mlx5_spec::qp::{qpc, service_type, state};
use rnic_testdrive::{
    Access, Buffer, Cq, Driver, Machine, MachineConfig, Mr, OdpMr, PATIENCE, PageFault, Qp, QpSpec, Wqe,
};

const LEN: u64 = 64 << 10;
pub const VA: u64 = 0x7000_0000_0000;

/// One NIC's end: its driver, its queue pair, memory registered with it.
pub struct Side {
    pub driver: Arc<Driver>,
    pub pd: u32,
    pub cq: Arc<Cq>,
    pub qp: Qp,
    pub memory: Buffer,
    pub mr: Mr,
}

impl Side {
    fn new(machine: Machine, change: &impl Fn(&mut QpSpec)) -> Self {
        let driver = Driver::probe(&Arc::new(machine)).unwrap();
        let pd = driver.alloc_pd().unwrap();
        let cq = driver.create_cq(6).unwrap();
        let mut spec = QpSpec::rc(&driver, pd, &cq);
        change(&mut spec);
        let qp = Qp::create(&driver.context, spec).unwrap();
        let memory = driver.machine.guest.scattered(LEN);
        let mr = driver.register(pd, &memory, VA, Access::ALL).unwrap();
        Self { driver, pd, cq, qp, memory, mr }
    }
}

/// Two NICs, a queue pair of each, connected. Their objects have the same numbers, so that one device's cannot pass for the other's
/// unnoticed: the memory differs.
pub fn sides(change: impl Fn(&mut QpSpec)) -> [Side; 2] {
    let machines = Machine::with_nics(MachineConfig { ram_mib: 128, ..MachineConfig::default() }, 2);
    let sides: Vec<Side> = machines.into_iter().map(|machine| Side::new(machine, &change)).collect();
    let sides: [Side; 2] = sides.try_into().ok().unwrap();
    sides[0].qp.connect(sides[1].qp.peer()).unwrap();
    sides[1].qp.connect(sides[0].qp.peer()).unwrap();
    sides
}

/// Both directions.
fn both(sides: &[Side; 2]) -> [(&Side, &Side); 2] {
    [(&sides[0], &sides[1]), (&sides[1], &sides[0])]
}

#[test]
fn reliable_traffic_goes_both_ways() {
    let sides = sides(|_| ());
    for (seed, (a, b)) in (1..).zip(both(&sides)) {
        assert_eq!(a.mr.key, b.mr.key, "the same numbers on both");
        a.memory.fill_pattern(seed);
        b.memory.fill(0, LEN, 0);
        a.qp.run(Wqe::write(VA, b.mr.key).sge(a.mr.sge(100, 30_000))).unwrap();
        assert!(a.memory.bytes(100, 30_000) == b.memory.bytes(0, 30_000), "WRITE");
        a.qp.run(Wqe::read(VA, b.mr.key).sge(a.mr.sge(32_000, 20_000))).unwrap();
        assert!(a.memory.bytes(32_000, 20_000) == b.memory.bytes(0, 20_000), "READ");
        b.qp.receive(&[b.mr.sge(40_000, 5000)]);
        a.qp.run(Wqe::send().sge(a.mr.sge(0, 5000))).unwrap();
        let cqe = b.cq.wait_ok().unwrap();
        assert_eq!((cqe.qpn(), cqe.byte_count()), (b.qp.qpn, 5000));
        assert!(a.memory.bytes(0, 5000) == b.memory.bytes(40_000, 5000), "SEND");
        b.memory.write(0, &7u64.to_le_bytes());
        a.qp.run(Wqe::fetch_add(VA, b.mr.key, 5).sge(a.mr.sge(0, 8))).unwrap();
        assert_eq!(
            (a.memory.bytes(0, 8), b.memory.bytes(0, 8)),
            (7u64.to_le_bytes().to_vec(), 12u64.to_le_bytes().to_vec())
        );
    }
}

#[test]
fn unreliable_traffic_and_datagrams_go_both_ways() {
    for service in [service_type::UC, service_type::UD] {
        let sides = sides(|spec| spec.service = service);
        for (lid, (a, b)) in (1..).zip(both(&sides)) {
            a.memory.fill_pattern(lid);
            b.qp.receive(&[b.mr.sge(0, 4096)]);
            let wqe = match service {
                service_type::UD => Wqe::send().datagram(b.qp.qpn, 3 - lid as u16, b.qp.spec.qkey),
                _ => Wqe::send(),
            };
            a.qp.run(wqe.sge(a.mr.sge(0, 1000))).unwrap();
            let grh = if service == service_type::UD { 40 } else { 0 };
            assert_eq!(u64::from(b.cq.wait_ok().unwrap().byte_count()), 1000 + grh);
            assert!(a.memory.bytes(0, 1000) == b.memory.bytes(grh, 1000), "service {service}");
        }
    }
}

#[test]
fn each_nic_has_its_own_place() {
    let machines = Machine::with_nics(MachineConfig::default(), 2);
    let place = |machine: &Machine| (machine.nic.hca().lid(), machine.bar(0));
    assert_eq!([machines[0].nic.hca().lid(), machines[1].nic.hca().lid()], [1, 2]);
    assert_ne!(place(&machines[0]).1, place(&machines[1]).1);
    let guids = [0, 1].map(mlx5::command::node_guid);
    assert_ne!(guids[0], guids[1]);
    assert!(guids.iter().all(|guid| guid >> 40 == 0x00_02c9), "{guids:x?}: not a vendor's");
}

/// Each end's page is asked of the driver that owns it.
#[test]
fn pages_are_brought_by_the_driver_that_owns_them() {
    for end in ["local", "remote", "receive"] {
        let sides = sides(|_| ());
        for (a, b) in both(&sides) {
            let owner = if end == "local" { a } else { b };
            let other = if end == "local" { b } else { a };
            let odp = OdpMr::register(&owner.driver, owner.pd, VA, 4 * 4096, Access::ALL).unwrap();
            let pages = owner.driver.machine.guest.scattered(2 * 4096);
            a.memory.fill(0, 8192, 0x3c);
            pages.fill(0, 8192, 0x3c);
            odp.map(&owner.driver, 0, &pages.pages[..1], true).unwrap();
            let wqe = match end {
                "local" => Wqe::write(VA, b.mr.key).sge(odp.mr.sge(0, 8192)),
                "remote" => Wqe::write(VA, odp.mr.key).sge(a.mr.sge(0, 8192)),
                _ => {
                    b.qp.receive(&[odp.mr.sge(0, 8192)]);
                    Wqe::send().sge(a.mr.sge(0, 8192))
                }
            };
            if end != "local" {
                pages.fill(0, 8192, 0);
            }
            a.qp.post_one(wqe.signaled());
            let fault = owner.driver.next_fault(PATIENCE).unwrap();
            match (end, &fault) {
                ("remote", PageFault::Rdma { rkey, committed: 4096, .. }) => assert_eq!(*rkey, odp.mr.key),
                ("local" | "receive", PageFault::Wqe { number, committed: 4096, .. }) => {
                    assert_eq!(*number, owner.qp.qpn);
                }
                _ => panic!("{end}: {fault:?}"),
            }
            assert!(a.cq.poll().is_none());
            odp.map(&owner.driver, 1, &pages.pages[1..], true).unwrap();
            // The other driver's answer is to nobody's question.
            other.driver.resume(&fault, true).unwrap();
            owner.driver.resume(&fault, false).unwrap();
            a.cq.wait_ok().unwrap();
            let came = if end == "local" { b.memory.bytes(0, 8192) } else { pages.bytes(0, 8192) };
            assert!(came.iter().all(|byte| *byte == 0x3c), "{end}");
            if end == "receive" {
                b.cq.wait_ok().unwrap();
            }
        }
    }
}

/// A responder whose NIC is reset while a page of it is waited for: its requester, on the other NIC, wakes up and finds nobody.
#[test]
fn a_reset_of_the_other_nic_ends_a_wait_for_its_page() {
    let sides = sides(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1));
    let [a, b] = &sides;
    let odp = OdpMr::register(&b.driver, b.pd, VA, 4096, Access::ALL).unwrap();
    a.qp.post_one(Wqe::write(VA, odp.mr.key).sge(a.mr.sge(0, 64)).signaled());
    b.driver.next_fault(PATIENCE).unwrap();
    b.driver.machine.function_reset();
    assert_eq!(a.cq.wait().unwrap().syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR);
}

#[test]
fn errors_are_told_on_both_sides() {
    for direction in [0, 1] {
        let sides = sides(|_| ());
        let (a, b) = both(&sides)[direction];
        a.qp.post_one(Wqe::write(VA, b.mr.key ^ 1).sge(a.mr.sge(0, 8)).signaled());
        assert_eq!(a.cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
        assert_eq!((a.qp.queried(qpc::STATE), b.qp.queried(qpc::STATE)), (Ok(state::ERR), Ok(state::ERR)));
        let told = b.driver.async_eq.wait(PATIENCE, "event of the responder").unwrap();
        assert_eq!(told.event_type(), event::WQ_ACCESS_ERROR);
        assert!(a.driver.async_eq.poll().is_none(), "the requester's driver has its completion");
        let sides = self::sides(|_| ());
        let (a, b) = both(&sides)[direction];
        b.qp.receive(&[b.mr.sge(0, 16)]);
        a.qp.post_one(Wqe::send().sge(a.mr.sge(0, 64)).signaled());
        assert_eq!(a.cq.wait().unwrap().syndrome(), syndrome::REMOTE_INVAL_REQ_ERR);
        assert_eq!(b.cq.wait().unwrap().syndrome(), syndrome::LOCAL_LENGTH_ERR);
    }
}

const PAGES: u64 = 16;
const MESSAGE: u32 = 16 << 10;
const CANARY: u8 = 0xc5;
const WRITTEN: u8 = 0x22;
/// Longer than the injected stall.
const QUARANTINE: Duration = Duration::from_millis(12);
const STALL: NicAction = NicAction::StallInFlight { ms: 3 };

/// Each NIC writes at full speed into a region of the other's, whose driver takes its pages away. Returns zaps, messages, and pages that
/// changed after they were lost.
fn stress(stalled: bool, guarded: bool, time: Duration, least: u64) -> (u64, u64, u64) {
    let sides = sides(|_| ());
    let mappings: Vec<(OdpMr, std::sync::Mutex<Vec<u64>>)> = sides
        .iter()
        .map(|side| {
            let odp = OdpMr::register(&side.driver, side.pd, VA, PAGES * 4096, Access::ALL).unwrap();
            (odp, std::sync::Mutex::new(side.driver.machine.guest.scattered(1024 * 4096).pages))
        })
        .collect();
    for side in &sides {
        side.memory.fill(0, LEN, WRITTEN);
        let injections = &side.driver.machine.nic.hca().injections;
        if stalled {
            injections.add(NicRule::new(0, STALL)).unwrap();
        }
        if !guarded {
            injections.add(NicRule::new(0, NicAction::NoGuard)).unwrap();
        }
    }
    let (stop, zaps, messages, stale) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    let enough = || zaps.load(Ordering::Relaxed).min(messages.load(Ordering::Relaxed)) >= least;
    std::thread::scope(|scope| {
        for (from, to) in [(0usize, 1usize), (1, 0)] {
            let (a, b) = (&sides[from], &sides[to]);
            let (odp, pool) = &mappings[to];
            let (stop, zaps, messages, stale) = (&stop, &zaps, &messages, &stale);
            scope.spawn(move || {
                let mut round = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let at = round * 3001 % (PAGES * 4096 - u64::from(MESSAGE));
                    a.qp.post_one(Wqe::write(VA + at, odp.mr.key).sge(a.mr.sge(0, MESSAGE)).signaled());
                    while let Err(error) =
                        a.cq.wait_for(Duration::from_millis(50)).map(|cqe| assert!(!cqe.is_error(), "{cqe:?}"))
                    {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        drop(error);
                    }
                    messages.fetch_add(1, Ordering::Relaxed);
                    round += 1;
                }
            });
            scope.spawn(move || {
                let (guest, driver) = (&b.driver.machine.guest, &b.driver);
                let mut mapped: Vec<u64> = Vec::new();
                let mut lost = std::collections::VecDeque::new();
                let release = |gpa: u64| {
                    let mut bytes = [0; 4096];
                    guest.read(gpa, &mut bytes);
                    stale.fetch_add(u64::from(bytes.iter().any(|byte| *byte != CANARY)), Ordering::Relaxed);
                    pool.lock().unwrap().push(gpa);
                };
                let fresh = || pool.lock().unwrap().pop();
                for page in 0..PAGES {
                    let gpa = fresh().unwrap();
                    odp.map(driver, page, &[gpa], true).unwrap();
                    mapped.push(gpa);
                }
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let page = turn * 7 % PAGES;
                    odp.zap(driver, page, 1).unwrap();
                    guest.write(mapped[page as usize], &[CANARY; 4096]);
                    lost.push_back((Instant::now(), mapped[page as usize]));
                    zaps.fetch_add(1, Ordering::Relaxed);
                    while lost.front().is_some_and(|(when, _): &(Instant, u64)| when.elapsed() > QUARANTINE)
                        || lost.len() > 900
                    {
                        let (when, gpa) = lost.pop_front().unwrap();
                        std::thread::sleep(QUARANTINE.saturating_sub(when.elapsed()));
                        release(gpa);
                    }
                    let gpa = fresh().unwrap();
                    odp.map(driver, page, &[gpa], true).unwrap();
                    mapped[page as usize] = gpa;
                    // Whoever met the gap goes on.
                    while let Ok(fault) = driver.next_fault(Duration::ZERO) {
                        driver.resume(&fault, false).unwrap();
                    }
                }
                std::thread::sleep(QUARANTINE);
                lost.into_iter().for_each(|(_, gpa)| release(gpa));
            });
        }
        while begun.elapsed() < time || (!enough() && begun.elapsed() < Duration::from_secs(60)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(enough(), "too little happened: {zaps:?} zaps, {messages:?} messages");
    (zaps.into_inner(), messages.into_inner(), stale.into_inner())
}

#[test]
fn zaps_on_one_nic_wait_for_the_engines_of_the_other() {
    let (.., stale) = stress(false, true, Duration::from_secs(2), 200);
    assert_eq!(stale, 0, "at full speed");
    let (.., stale) = stress(true, true, Duration::from_secs(2), 20);
    assert_eq!(stale, 0, "with DMA in flight for long");
}

#[test]
fn control_without_the_guard_the_other_nic_writes_into_a_lost_page() {
    let caught = (0..5).any(|_| stress(true, false, Duration::from_secs(2), 0).2 > 0);
    assert!(caught, "the missing guard was not caught");
}
