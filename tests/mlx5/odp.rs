// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On-demand paging: fault, resume, translation, zap, fault again (contract 9).

use std::sync::Arc;
use std::time::Duration;

use mlx5::NicConfig;
use mlx5::hooks::{MomentKind, NicAction, NicMoments, NicRule, WqeMatch};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::event;
use mlx5_spec::odp::wqe_fault_type;
use mlx5_spec::qp::{qpc, service_type, state};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::odp::FaultService;
use rnic_testdrive::{
    Access, Driver, Machine, MachineConfig, MkeySpec, OdpMr, PATIENCE, PageFault, Qp, QpSpec, Sge, Srq, Wqe, XrcSpec,
};

use crate::scene::{LEN, Pair};

const VA: u64 = 0x5555_0000_0000;
const PAGES: u64 = 16;

struct Paged {
    pair: Pair,
    /// The memory behind `odp`, page for page.
    memory: rnic_testdrive::Buffer,
    odp: OdpMr,
}

impl Paged {
    fn new() -> Self {
        Self::on(Pair::new())
    }

    fn on(pair: Pair) -> Self {
        let memory = pair.driver.machine.guest.scattered(PAGES * 4096);
        let odp = OdpMr::register(&pair.driver, pair.pd, VA, PAGES * 4096, Access::ALL).unwrap();
        Self { pair, memory, odp }
    }

    fn map(&self, first: u64, count: u64) {
        let pages = &self.memory.pages[first as usize..(first + count) as usize];
        self.odp.map(&self.pair.driver, first, pages, true).unwrap();
    }

    fn fault(&self) -> PageFault {
        self.pair.driver.next_fault(PATIENCE).unwrap()
    }

    fn no_fault(&self) {
        assert!(self.pair.driver.next_fault(Duration::from_millis(10)).is_err());
    }

    fn resume(&self, fault: &PageFault) {
        self.pair.driver.resume(fault, false).unwrap();
    }

    fn sge(&self, at: u64, len: u32) -> Sge {
        self.odp.mr.sge(at, len)
    }
}

#[test]
fn the_cycle_of_an_incoming_write() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(1);
    let key = paged.odp.mr.key;
    pair.one.post_one(Wqe::write(VA + 100, key).sge(pair.local_mr.sge(0, 10_000)).signaled());
    let fault = paged.fault();
    let PageFault::Rdma { rkey, va, len, committed, write, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((rkey, va + u64::from(committed), len - committed, write), (key, VA + 100, 10_000, true));
    assert!(pair.one_cq.poll().is_none(), "waits for the driver");
    paged.map(0, 3);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&paged.memory, 100), 10_000);
    // Mapped: no further fault.
    pair.one.run(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 4096))).unwrap();
    paged.no_fault();
    // Gone: the page keeps what it has, and the next access faults again.
    paged.odp.zap(&pair.driver, 0, 1).unwrap();
    paged.memory.fill(0, 4096, 0xaa);
    pair.one.post_one(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 4096)).signaled());
    let fault = paged.fault();
    assert!(paged.memory.bytes(0, 4096).iter().all(|byte| *byte == 0xaa));
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&paged.memory, 0), 4096);
}

/// What the price of paging is made of; a page that is there costs none of it.
#[test]
fn each_part_of_the_cycle_has_its_time() {
    let paged = Paged::new();
    let (pair, key) = (&paged.pair, paged.odp.mr.key);
    let ledger = &pair.driver.machine.ledger;
    let since = ledger.tick();
    let write = Wqe::write(VA, key).sge(pair.local_mr.sge(0, 4096)).signaled();
    pair.one.post_one(write.clone());
    let fault = paged.fault();
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    let moments = ledger.moments(since);
    let kinds: Vec<_> = moments.iter().map(|moment| moment.kind).collect();
    let [
        MomentKind::Faulted { token },
        MomentKind::Updated { index, begun_ns },
        MomentKind::Answered { token: same },
        MomentKind::Placed,
    ] = kinds[..]
    else {
        panic!("{kinds:?}")
    };
    assert_eq!((token, index), (same, key >> 8));
    let times = [moments[0].at_ns, begun_ns, moments[1].at_ns, moments[2].at_ns, moments[3].at_ns];
    assert!(times.is_sorted(), "{times:?}");
    let since = ledger.tick();
    pair.one.run(write).unwrap();
    assert_eq!(ledger.moments(since), []);
}

#[test]
fn an_incoming_write_goes_on_where_it_stopped() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(2);
    paged.map(0, 2);
    pair.one.post_one(Wqe::write(VA + 96, paged.odp.mr.key).sge(pair.local_mr.sge(0, 12_000)).signaled());
    let fault = paged.fault();
    let PageFault::Rdma { va, committed, len, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((va, committed, len), (VA + 96, 8192 - 96, 12_000));
    paged.map(2, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&paged.memory, 96), 12_000);
}

#[test]
fn the_cycle_of_an_incoming_read() {
    let paged = Paged::new();
    let pair = &paged.pair;
    paged.memory.fill_pattern(3);
    pair.one.post_one(Wqe::read(VA + 5, paged.odp.mr.key).sge(pair.local_mr.sge(0, 9000)).signaled());
    let fault = paged.fault();
    assert!(matches!(fault, PageFault::Rdma { write: false, va, .. } if va == VA + 5), "{fault:?}");
    paged.map(0, 3);
    paged.resume(&fault);
    assert_eq!(pair.one_cq.wait_ok().unwrap().byte_count(), 9000);
    pair.assert_copied((&paged.memory, 5), (&pair.local, 0), 9000);
}

#[test]
fn the_cycle_of_a_gather_list() {
    let paged = Paged::new();
    let pair = &paged.pair;
    paged.memory.fill_pattern(4);
    pair.local.fill_pattern(5);
    pair.one.run(Wqe::nop()).unwrap();
    // 500 bytes are pinned: they count as committed once they are gathered.
    let wqe =
        Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 500)).sge(paged.sge(4000, 6000));
    let index = pair.one.post_one(wqe.signaled());
    let fault = paged.fault();
    let PageFault::Wqe { kind, number, index: at, committed, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((kind, number, at), (wqe_fault_type::REQUESTER_SEND_OR_WRITE, pair.one.qpn, index));
    assert!(committed <= 500, "{committed}");
    paged.map(0, 2);
    paged.resume(&fault);
    // The third page is missing still.
    let fault = paged.fault();
    let PageFault::Wqe { committed, .. } = fault else { panic!("{fault:?}") };
    assert_eq!(committed, 500 + 8192 - 4000);
    paged.map(2, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 500);
    pair.assert_copied((&paged.memory, 4000), (&pair.remote, 500), 6000);
}

#[test]
fn the_cycle_of_a_send() {
    let paged = Paged::new();
    let pair = &paged.pair;
    paged.memory.fill_pattern(6);
    pair.other.receive(&[pair.remote_mr.all()]);
    pair.one.post_one(Wqe::send().sge(paged.sge(0, 5000)).signaled());
    let fault = paged.fault();
    assert!(matches!(fault, PageFault::Wqe { kind: wqe_fault_type::REQUESTER_SEND_OR_WRITE, .. }), "{fault:?}");
    paged.map(0, 2);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 5000);
    pair.assert_copied((&paged.memory, 0), (&pair.remote, 0), 5000);
}

#[test]
fn the_cycle_of_a_read_response() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.remote.fill_pattern(7);
    pair.one.post_one(Wqe::read(pair.remote_mr.va, pair.remote_mr.key).sge(paged.sge(10, 5000)).signaled());
    let fault = paged.fault();
    assert!(matches!(fault, PageFault::Wqe { kind: wqe_fault_type::REQUESTER_READ_OR_ATOMIC, .. }), "{fault:?}");
    paged.map(0, 2);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.remote, 0), (&paged.memory, 10), 5000);
}

#[test]
fn the_cycle_of_a_receive_list() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(8);
    let counter = pair.other.receive(&[pair.remote_mr.sge(0, 100), paged.sge(0, 8192)]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 6000)).signaled());
    let fault = paged.fault();
    let PageFault::Wqe { kind, number, index, committed, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((kind, number, index), (wqe_fault_type::RESPONDER, pair.other.qpn, counter));
    assert!(committed <= 100);
    paged.map(0, 2);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 6000);
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 100);
    pair.assert_copied((&pair.local, 100), (&paged.memory, 0), 5900);
}

#[test]
fn the_cycle_of_a_shared_receive_list() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(9);
    let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
    let receiver = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let (one, _other) = Qp::pair(&pair.driver, QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq), receiver).unwrap();
    let index = srq.post(&[paged.sge(0, 8192)]).unwrap();
    one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 6000)).signaled());
    let fault = paged.fault();
    let PageFault::Wqe { kind, number, index: at, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((kind, number, at), (wqe_fault_type::SRQ, srq.srqn, index));
    paged.map(0, 2);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().wqe_counter(), index);
    pair.assert_copied((&pair.local, 0), (&paged.memory, 0), 6000);
}

/// Each access that XRC offers, which meets an absent page, and the page fault that it must raise.
#[test]
fn the_cycles_of_xrc() {
    let paged = Paged::new();
    let (pair, driver) = (&paged.pair, &paged.pair.driver);
    let xrcd = driver.alloc_number(Opcode::ALLOC_XRCD).unwrap();
    let spec = XrcSpec { pd: pair.pd, xrcd, cqn: pair.other_cq.cqn, user_index: 0x77 };
    let srq = Srq::create_xrc(&driver.context, spec, 3).unwrap();
    let spec =
        QpSpec { service: service_type::XRC, srq: Some(srq.srqn), xrcd, ..QpSpec::rc(driver, pair.pd, &pair.one_cq) };
    let (from, _to) = Qp::pair(driver, spec.clone(), QpSpec { log_sq: 0, ..spec }).unwrap();
    let (there, key) = ((pair.remote_mr.va, pair.remote_mr.key), paged.odp.mr.key);
    let message = |code| Wqe::new(code).xrc(srq.srqn);
    let wqe_fault = |kind, number| move |fault: &PageFault| matches!(fault, PageFault::Wqe { kind: k, number: n, .. } if (*k, *n) == (kind, number));
    let rdma = |to_write| move |fault: &PageFault| matches!(fault, PageFault::Rdma { rkey, write, .. } if (*rkey, *write) == (key, to_write));
    let requester = wqe_fault(wqe_fault_type::REQUESTER_SEND_OR_WRITE, from.qpn);
    let answered = wqe_fault(wqe_fault_type::REQUESTER_READ_OR_ATOMIC, from.qpn);
    let shared = wqe_fault(wqe_fault_type::SRQ, srq.srqn);
    let run = |wqe: Wqe, is_meant: &dyn Fn(&PageFault) -> bool| {
        from.post_one(wqe.signaled());
        let fault = paged.fault();
        assert!(is_meant(&fault), "{fault:?}");
        paged.map(0, 1);
        paged.resume(&fault);
        pair.one_cq.wait_ok().unwrap();
        paged.odp.zap(driver, 0, 1).unwrap();
    };
    let (here, absent) = (pair.local_mr.sge(0, 64), paged.sge(0, 64));
    srq.post(&[pair.remote_mr.sge(0, 64)]).unwrap();
    run(message(opcode::SEND).sge(absent), &requester);
    pair.other_cq.wait_ok().unwrap();
    srq.post(&[absent]).unwrap();
    run(message(opcode::SEND).sge(here), &shared);
    pair.other_cq.wait_ok().unwrap();
    run(message(opcode::RDMA_WRITE).remote(there.0, there.1).sge(absent), &requester);
    run(message(opcode::RDMA_WRITE).remote(VA, key).sge(here), &rdma(true));
    run(message(opcode::RDMA_READ).remote(VA, key).sge(here), &rdma(false));
    run(message(opcode::RDMA_READ).remote(there.0, there.1).sge(absent), &answered);
    let add = |va, key| message(opcode::ATOMIC_FA).remote(va, key).segment(&[0; 16]);
    run(add(VA, key).sge(pair.local_mr.sge(0, 8)), &rdma(true));
    run(add(there.0, there.1).sge(paged.sge(0, 8)), &answered);
}

#[test]
fn a_resume_without_mapping_faults_again() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    for _ in 0..5 {
        let fault = paged.fault();
        assert!(pair.one_cq.poll().is_none());
        paged.resume(&fault);
    }
    let fault = paged.fault();
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
}

#[test]
fn a_driver_that_never_maps_ends_in_an_error() {
    let paged = Paged::new();
    let pair = &paged.pair;
    let service = FaultService::start(&pair.driver, |_| true).unwrap();
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
    assert_eq!(service.served(), 1000, "faults without progress");
}

#[test]
fn a_read_only_page_is_faulted_in_for_writing() {
    let paged = Paged::new();
    let pair = &paged.pair;
    paged.odp.map(&pair.driver, 0, &paged.memory.pages[..1], false).unwrap();
    pair.one.run(Wqe::read(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.local.fill(0, 8, 0x77);
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    let fault = paged.fault();
    assert_eq!(paged.memory.bytes(0, 8), [0; 8]);
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(paged.memory.bytes(0, 8), [0x77; 8]);
}

#[test]
fn a_resume_with_error_ends_the_operation() {
    // The requester's own list.
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(paged.sge(0, 8)).signaled());
    pair.driver.resume(&paged.fault(), true).unwrap();
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_PROT_ERR));
    assert_eq!(pair.one.queried(qpc::STATE), Ok(state::ERR));
    // The target.
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    pair.driver.resume(&paged.fault(), true).unwrap();
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
    assert_eq!(pair.driver.async_event(PATIENCE).unwrap().event_type(), event::WQ_ACCESS_ERROR);
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::ERR));
    // The receive list.
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.other.receive(&[paged.sge(0, 64)]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    pair.driver.resume(&paged.fault(), true).unwrap();
    assert!(pair.one_cq.wait().unwrap().is_error());
    let cqe = pair.other_cq.wait().unwrap();
    assert_eq!(cqe.opcode(), cqe_opcode::RESP_ERR);
    assert!([syndrome::LOCAL_PROT_ERR, syndrome::LOCAL_ACCESS_ERR].contains(&cqe.syndrome()), "{cqe:?}");
}

#[test]
fn a_fault_is_not_raised_for_what_is_forbidden() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.one.post_one(Wqe::write(VA + PAGES * 4096 - 4, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
    paged.no_fault();
}

#[test]
fn others_work_while_one_waits_for_a_page() {
    let paged = Paged::new();
    let pair = &paged.pair;
    let spec = QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq);
    let (one, _other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    let fault = paged.fault();
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    for _ in 0..20 {
        one.run(write.clone()).unwrap();
    }
    // A zap of the same key does not wait for the fault either (contract 9.4).
    paged.odp.zap(&pair.driver, 0, PAGES).unwrap();
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
}

#[test]
fn a_reset_cancels_the_wait_and_a_late_resume_is_ignored() {
    let paged = Paged::new();
    let pair = &paged.pair;
    for end in [Qp::to_reset as fn(&Qp) -> _, Qp::to_error] {
        let spec = QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq);
        let (one, other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
        one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
        let fault = paged.fault();
        end(&one).unwrap();
        while pair.other_cq.poll().is_some() {}
        paged.map(0, 1);
        paged.resume(&fault);
        std::thread::sleep(Duration::from_millis(10));
        assert!(pair.other_cq.poll().is_none_or(|cqe| cqe.syndrome() == syndrome::WR_FLUSH_ERR));
        paged.odp.zap(&pair.driver, 0, 1).unwrap();
        one.to_reset().unwrap();
        other.to_reset().unwrap();
        one.destroy().unwrap();
        other.destroy().unwrap();
    }
    // An unknown token.
    paged.resume(&PageFault::Rdma { rkey: 0, va: 0, len: 0, committed: 0, write: true, token: 0xff_fffe });
}

#[test]
fn many_queue_pairs_fault_at_once() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(10);
    let cq = pair.driver.create_cq(8).unwrap();
    let spec = QpSpec::rc(&pair.driver, pair.pd, &cq);
    let lanes: Vec<_> = (0..PAGES).map(|_| Qp::pair(&pair.driver, spec.clone(), spec.clone()).unwrap()).collect();
    for (page, (one, _)) in (0..).zip(&lanes) {
        let write = Wqe::write(VA + page * 4096, paged.odp.mr.key).sge(pair.local_mr.sge(page * 4096, 4096));
        one.post_one(write.signaled());
    }
    let faults: Vec<_> = lanes.iter().map(|_| paged.fault()).collect();
    let mut tokens: Vec<_> = faults.iter().map(PageFault::token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), lanes.len(), "live tokens differ");
    paged.map(0, PAGES);
    for fault in faults.iter().rev() {
        paged.resume(fault);
    }
    for _ in &lanes {
        cq.wait_ok().unwrap();
    }
    pair.assert_copied((&pair.local, 0), (&paged.memory, 0), LEN);
}

#[test]
fn an_atomic_faults_before_it_acts() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.remote.write(0, &5u64.to_le_bytes());
    pair.one.post_one(Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1).sge(paged.sge(0, 8)).signaled());
    let fault = paged.fault();
    assert!(matches!(fault, PageFault::Wqe { kind: wqe_fault_type::REQUESTER_READ_OR_ATOMIC, committed: 0, .. }));
    assert_eq!(pair.remote.bytes(0, 8), 5u64.to_le_bytes());
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(
        (pair.remote.bytes(0, 8), paged.memory.bytes(0, 8)),
        (6u64.to_le_bytes().into(), 5u64.to_le_bytes().into())
    );
}

#[test]
fn a_responder_that_ends_ends_the_wait_as_well() {
    let paged = Paged::on(Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1)));
    let pair = &paged.pair;
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    paged.fault();
    pair.other.to_error().unwrap();
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::TRANSPORT_RETRY_EXC_ERR));
}

#[test]
fn without_paging_an_absent_page_is_a_protection_error() {
    let nic = NicConfig { odp: false, ..NicConfig::default() };
    let machine = Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }));
    let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    let key = pair.driver.create_mkey(&MkeySpec::mtt(pair.pd, Access::ALL, VA, 8 * 4096, vec![0; 8])).unwrap();
    pair.one.post_one(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
}

#[test]
fn a_fault_can_be_answered_by_rnr() {
    let paged = Paged::new();
    let pair = &paged.pair;
    let hca = pair.driver.machine.nic.hca();
    hca.injections.add(NicRule::new(0, NicAction::RnrOnFault)).unwrap();
    pair.local.fill_pattern(11);
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    let fault = paged.fault();
    pair.driver.until("RNR NAK", || hca.counters.rnr_naks.get() > 2).unwrap();
    paged.no_fault();
    paged.map(0, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&paged.memory, 0), 8);
    // The end of the queue pair leaves nothing of the fault behind.
    pair.one.to_error().unwrap();
    pair.driver.until("end of the fault", || hca.page_faults.live().is_empty()).unwrap();
}

/// Two page faults of two queue pairs; the first's event waits for the second's, and not for the time of its own.
#[test]
fn a_page_faults_event_can_come_after_the_next_one() {
    let paged = Paged::new();
    let pair = &paged.pair;
    let spec = QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq);
    let (second, _responder) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    let hca = pair.driver.machine.nic.hca();
    let rule = hca.injections.add(NicRule::new(1, NicAction::FaultEventReordered)).unwrap();
    let write = |page: u64| Wqe::write(VA + page * 4096, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled();
    let address = |fault: PageFault| match fault {
        PageFault::Rdma { va, .. } => va,
        other => panic!("{other:?}"),
    };
    pair.one.post_one(write(1));
    pair.driver.until("firing", || hca.injections.rule(rule).unwrap().fired == 1).unwrap();
    pair.driver.until("page fault", || hca.page_faults.live().len() == 1).unwrap();
    second.post_one(write(2));
    let faults = [paged.fault(), paged.fault()];
    assert_eq!(faults.map(address), [VA + 2 * 4096, VA + 4096]);
    paged.map(0, 3);
    faults.iter().for_each(|fault| paged.resume(fault));
    for _ in 0..2 {
        pair.one_cq.wait_ok().unwrap();
    }
    // Without a next one it comes too, after 200 ms; each of many is held only while no other is.
    hca.injections.clear();
    let meant = |address| WqeMatch { address: Some(address), ..WqeMatch::default() };
    let add = |address| hca.injections.add(NicRule::new(0, NicAction::FaultEventReordered).on(meant(address))).unwrap();
    // The one for another page comes first, and would decide.
    let (other, rule) = (add(VA + 5 * 4096..VA + 6 * 4096), add(VA + 4 * 4096..VA + 5 * 4096));
    pair.one.post_one(write(4));
    let fault = paged.fault();
    paged.map(4, 1);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!([rule, other].map(|id| hca.injections.rule(id).unwrap().fired), [1, 0], "by the address of the fault");
}

/// The driver's command succeeds, and the page fault is there again until a resume does not fail.
#[test]
fn a_resume_can_fail_and_the_page_fault_comes_again() {
    let paged = Paged::new();
    let pair = &paged.pair;
    let hca = pair.driver.machine.nic.hca();
    let id = hca.injections.add(NicRule::new(1, NicAction::ResumeFailing)).unwrap();
    pair.local.fill_pattern(3);
    pair.one.post_one(Wqe::write(VA, paged.odp.mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    let fault = paged.fault();
    paged.map(0, 1);
    paged.resume(&fault);
    assert_eq!(paged.fault(), fault, "the page is there, and it is reported all the same");
    assert_eq!(hca.injections.rule(id).unwrap().fired, 1);
    assert!(pair.one_cq.poll().is_none());
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    paged.no_fault();
    pair.assert_copied((&pair.local, 0), (&paged.memory, 0), 8);
}

/// Contract 10.3: the library posts the WQE again and tells nobody; the sender tries again and takes the next.
#[test]
fn a_page_fault_can_abort_the_shared_receive_that_meets_it() {
    let paged = Paged::new();
    let pair = &paged.pair;
    pair.local.fill_pattern(9);
    let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
    let receiver = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let (one, other) = Qp::pair(&pair.driver, QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq), receiver).unwrap();
    let hca = pair.driver.machine.nic.hca();
    hca.injections.add(NicRule::new(1, NicAction::AbortOnFault)).unwrap();
    let posted = [0, 1].map(|page| srq.post(&[paged.sge(page * 8192, 8192)]).unwrap());
    one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 6000)).signaled());
    let aborted = pair.other_cq.wait().unwrap();
    assert_eq!(aborted.outcome(), (cqe_opcode::RESP_ERR, syndrome::REMOTE_ABORTED_ERR));
    let vendor = mlx5_spec::cq::cqe::VENDOR_ERR_SYND.get(&aborted.bytes);
    assert_eq!((aborted.wqe_counter(), vendor), (posted[0], 0x93));
    // The driver hears of the page fault as ever.
    let fault = paged.fault();
    assert!(
        matches!(fault, PageFault::Wqe { kind: wqe_fault_type::SRQ, index, .. } if index == posted[0]),
        "{fault:?}"
    );
    assert!(srq.post(&[paged.sge(0, 8192)]).is_some());
    paged.map(0, 4);
    paged.resume(&fault);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().wqe_counter(), posted[1]);
    pair.assert_copied((&pair.local, 0), (&paged.memory, 8192), 6000);
    assert_eq!([&one, &other].map(|qp| qp.queried(qpc::STATE)), [Ok(state::RTS), Ok(state::RTS)]);
}
