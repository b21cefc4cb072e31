// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a message takes a receive WQE, and when it must not: what decides comes before what is shared.

use std::time::Duration;

use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::qp::{qpc, service_type, state};
use mlx5_spec::wqe::{GRH_SIZE, opcode};
use rnic_testdrive::{Access, OdpMr, PATIENCE, Qp, QpSpec, Sge, Srq, Wqe};

use crate::scene::Pair;

const QKEY: u32 = 0x1111_1111;
const HEAD: u32 = GRH_SIZE as u32;
const QUIET: Duration = Duration::from_millis(10);

/// Two senders with a receiver each; both receivers take from one queue of which nothing is posted.
struct Shared {
    pair: Pair,
    srq: Srq,
    first: (Qp, Qp),
    second: (Qp, Qp),
    service: u32,
}

impl Shared {
    fn new(service: u32) -> Self {
        let pair = Pair::new();
        let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
        let make = || {
            let spec = |cq| QpSpec { service, qkey: QKEY, ..QpSpec::rc(&pair.driver, pair.pd, cq) };
            let receiver = QpSpec { srq: Some(srq.srqn), ..spec(&pair.other_cq) };
            Qp::pair(&pair.driver, spec(&pair.one_cq), receiver).unwrap()
        };
        let (first, second) = (make(), make());
        Self { pair, srq, first, second, service }
    }

    /// A SEND that reaches `to`.
    fn send(&self, to: &Qp) -> Wqe {
        if self.service == service_type::UD { Wqe::send().datagram(to.qpn, 1, QKEY) } else { Wqe::send() }
    }

    /// The one WQE that is posted is still there: the second pair's message gets it. Neither event nor completion has come before.
    fn the_wqe_is_left(&self, posted: u16) {
        std::thread::sleep(QUIET);
        assert!(self.pair.other_cq.poll().is_none());
        assert!(self.pair.driver.async_eq.poll().is_none(), "the limit of 1 is not reached while one is posted");
        self.second.0.run(self.send(&self.second.1).sge(self.pair.local_mr.sge(0, 8))).unwrap();
        let cqe = self.pair.other_cq.wait_ok().unwrap();
        assert_eq!((cqe.qpn(), cqe.wqe_counter()), (self.second.1.qpn, posted));
        let event = self.pair.driver.async_event(PATIENCE).unwrap();
        assert_eq!(event.event_type(), event::SRQ_RQ_LIMIT);
    }

    fn post_with_limit(&self, list: &[Sge]) -> u16 {
        let posted = self.srq.post(list).unwrap();
        self.srq.set_limit(1).unwrap();
        posted
    }
}

#[test]
fn a_sender_that_cannot_read_its_own_list_takes_nothing() {
    for service in [service_type::RC, service_type::UC, service_type::UD] {
        let shared = Shared::new(service);
        let (pair, (sender, receiver)) = (&shared.pair, &shared.first);
        let posted = shared.post_with_limit(&[pair.remote_mr.all()]);
        // The first part is good, the second is not: of a datagram the whole counts.
        let bad = Sge { key: pair.local_mr.key ^ 1, ..pair.local_mr.sge(0, 8) };
        let list = if service == service_type::UD { vec![pair.local_mr.sge(0, 8), bad] } else { vec![bad] };
        let wqe = list.into_iter().fold(shared.send(receiver), Wqe::sge);
        sender.post_one(wqe.signaled());
        assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_PROT_ERR));
        shared.the_wqe_is_left(posted);
    }
}

#[test]
fn a_sender_that_waits_for_a_page_takes_nothing_meanwhile() {
    for service in [service_type::RC, service_type::UD] {
        let shared = Shared::new(service);
        let (pair, (sender, receiver)) = (&shared.pair, &shared.first);
        let driver = &pair.driver;
        let odp = OdpMr::register(driver, pair.pd, 0x5000_0000_0000, 4096, Access::ALL).unwrap();
        let posted = shared.post_with_limit(&[pair.remote_mr.all()]);
        sender.post_one(shared.send(receiver).sge(odp.mr.sge(0, 8)).signaled());
        let fault = driver.next_fault(PATIENCE).unwrap();
        shared.the_wqe_is_left(posted);
        shared.srq.post(&[pair.remote_mr.all()]).unwrap();
        odp.map(driver, 0, &[driver.machine.guest.page()], true).unwrap();
        driver.resume(&fault, false).unwrap();
        assert_eq!(pair.other_cq.wait_ok().unwrap().qpn(), receiver.qpn);
    }
}

#[test]
fn a_write_with_immediate_that_is_refused_takes_nothing() {
    for service in [service_type::RC, service_type::UC] {
        let shared = Shared::new(service);
        let (pair, (sender, receiver)) = (&shared.pair, &shared.first);
        let posted = shared.post_with_limit(&[pair.remote_mr.all()]);
        let wqe = Wqe::new(opcode::RDMA_WRITE_IMM).remote(pair.remote_mr.va, pair.remote_mr.key ^ 1).immediate(1);
        sender.post_one(wqe.sge(pair.local_mr.sge(0, 8)).signaled());
        let cqe = pair.one_cq.wait().unwrap();
        if service == service_type::RC {
            assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
            let event = pair.driver.async_event(PATIENCE).unwrap();
            assert_eq!(event.event_type(), event::WQ_ACCESS_ERROR);
            let event = pair.driver.async_event(PATIENCE).unwrap();
            assert_eq!(event.event_type(), event::SRQ_LAST_WQE);
        } else {
            assert!(!cqe.is_error(), "nobody answers an unreliable message: {cqe:?}");
            assert_eq!(receiver.queried(qpc::STATE), Ok(state::RTS));
        }
        shared.the_wqe_is_left(posted);
    }
}

#[test]
fn an_unreliable_message_that_meets_an_absent_page_takes_nothing() {
    for service in [service_type::UC, service_type::UD] {
        let shared = Shared::new(service);
        let (pair, (sender, receiver)) = (&shared.pair, &shared.first);
        let odp = OdpMr::register(&pair.driver, pair.pd, 0x5000_0000_0000, 8192, Access::ALL).unwrap();
        odp.map(&pair.driver, 0, &[pair.driver.machine.guest.page()], true).unwrap();
        // A datagram's room begins in a page that is there and ends in one that is not.
        let at = if service == service_type::UD { 4096 - u64::from(HEAD) } else { 4096 };
        let posted = shared.srq.post(&[odp.mr.sge(at, HEAD + 64)]).unwrap();
        sender.run(shared.send(receiver).sge(pair.local_mr.sge(0, 64))).unwrap();
        std::thread::sleep(QUIET);
        assert!(pair.other_cq.poll().is_none());
        assert_eq!(receiver.queried(qpc::STATE), Ok(state::RTS));
        odp.map(&pair.driver, 1, &[pair.driver.machine.guest.page()], true).unwrap();
        shared.second.0.run(shared.send(&shared.second.1).sge(pair.local_mr.sge(0, 64))).unwrap();
        assert_eq!(pair.other_cq.wait_ok().unwrap().wqe_counter(), posted);
    }
}

#[test]
fn an_unreliable_receiver_is_told_of_its_own_bad_list() {
    for service in [service_type::UC, service_type::UD] {
        let shared = Shared::new(service);
        let (pair, (sender, receiver)) = (&shared.pair, &shared.first);
        let posted = shared.srq.post(&[Sge { key: pair.remote_mr.key ^ 1, ..pair.remote_mr.all() }]).unwrap();
        sender.run(shared.send(receiver).sge(pair.local_mr.sge(0, 8))).unwrap();
        let cqe = pair.other_cq.wait().unwrap();
        assert_eq!(cqe.outcome(), (cqe_opcode::RESP_ERR, syndrome::LOCAL_PROT_ERR));
        assert_eq!((cqe.qpn(), cqe.wqe_counter()), (receiver.qpn, posted));
        pair.driver.until("the error state", || receiver.queried(qpc::STATE) == Ok(state::ERR)).unwrap();
        assert_eq!(sender.queried(qpc::STATE), Ok(state::RTS));
    }
}

#[test]
fn a_private_receive_wqe_waits_for_a_message_that_fits() {
    for (service, head) in [(service_type::UC, 0), (service_type::UD, HEAD)] {
        let pair = Pair::with(|spec| (spec.service, spec.qkey) = (service, QKEY));
        let posted = pair.other.receive(&[pair.remote_mr.sge(0, head + 64)]);
        let send = || if head > 0 { Wqe::send().datagram(pair.other.qpn, 1, QKEY) } else { Wqe::send() };
        pair.one.run(send().sge(pair.local_mr.sge(0, 65))).unwrap();
        pair.one.run(send().sge(pair.local_mr.sge(0, 64))).unwrap();
        let cqe = pair.other_cq.wait_ok().unwrap();
        assert_eq!((cqe.wqe_counter(), cqe.byte_count()), (posted, head + 64));
    }
}

#[test]
fn a_limit_that_is_passed_already_is_told_at_once() {
    let shared = Shared::new(service_type::RC);
    let (pair, srq) = (&shared.pair, &shared.srq);
    srq.post(&[pair.remote_mr.all()]).unwrap();
    srq.set_limit(2).unwrap();
    let event = pair.driver.async_event(PATIENCE).unwrap();
    assert_eq!((event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes)), (event::SRQ_RQ_LIMIT, srq.srqn));
    // Once: it is armed no more.
    shared.first.0.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    std::thread::sleep(QUIET);
    assert!(pair.driver.async_eq.poll().is_none());
}

/// `MLX5_QP_SIGNATURE=1`: the provider puts a segment before each receive list, and a byte into each send WQE.
#[test]
fn receive_wqes_with_a_signature_segment() {
    for (service, head) in [(service_type::RC, 0), (service_type::UC, 0), (service_type::UD, HEAD)] {
        let pair = Pair::with(|spec| (spec.service, spec.qkey, spec.signed) = (service, QKEY, true));
        pair.local.fill_pattern(1);
        let send = || if head > 0 { Wqe::send().datagram(pair.other.qpn, 1, QKEY) } else { Wqe::send() };
        // Around the queue, with lists of one piece and lists that fill the WQE.
        for turn in 0..40 {
            let three = [pair.remote_mr.sge(0, head), pair.remote_mr.sge(4096, 60), pair.remote_mr.sge(8192, 4)];
            let list = if turn % 2 == 0 {
                vec![pair.remote_mr.sge(4096 - u64::from(head), head + 64)]
            } else {
                three.to_vec()
            };
            let list: Vec<_> = list.into_iter().filter(|sge| sge.len > 0).collect();
            let posted = pair.other.receive(&list);
            pair.one.run(send().sge(pair.local_mr.sge(turn * 64, 64))).unwrap();
            let cqe = pair.other_cq.wait_ok().unwrap();
            assert_eq!((cqe.wqe_counter(), cqe.byte_count()), (posted, head + 64));
            pair.assert_copied((&pair.local, turn * 64), (&pair.remote, 4096), 60);
        }
    }
    // A shared queue has the signature in its links: its WQEs look the same.
    let pair = Pair::new();
    let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
    let spec = |cq| QpSpec { signed: true, ..QpSpec::rc(&pair.driver, pair.pd, cq) };
    let receiver = QpSpec { srq: Some(srq.srqn), ..spec(&pair.other_cq) };
    let (sender, _receiver) = Qp::pair(&pair.driver, spec(&pair.one_cq), receiver).unwrap();
    let posted = srq.post(&[pair.remote_mr.sge(0, 64)]).unwrap();
    sender.run(Wqe::send().sge(pair.local_mr.sge(0, 64))).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().wqe_counter(), posted);
}
