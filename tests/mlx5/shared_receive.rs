// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues.

use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{cqe, opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::qp::service_type;
use mlx5_spec::srq;
use rnic_testdrive::command::Input;
use rnic_testdrive::{PATIENCE, Qp, QpSpec, Srq, Wqe, XrcSpec};

use crate::scene::Pair;

/// A sender and a receiver that takes from a shared queue of 8 WQEs.
fn shared() -> (Pair, Srq, Qp, Qp) {
    let pair = Pair::new();
    let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
    let spec = QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq);
    let receiver = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let (sender, receiver) = Qp::pair(&pair.driver, spec, receiver).unwrap();
    (pair, srq, sender, receiver)
}

#[test]
fn messages_take_the_queues_entries_in_list_order() {
    let (pair, srq, sender, receiver) = shared();
    pair.local.fill_pattern(1);
    // Several times around, released out of order, so that the list is no longer 0, 1, 2...
    for round in 0..20u64 {
        let posted: Vec<_> = (0..3).filter_map(|i| srq.post(&[pair.remote_mr.sge(i * 4096, 1000)])).collect();
        assert_eq!(posted.len(), 3);
        for i in 0..3 {
            sender.run(Wqe::send().sge(pair.local_mr.sge((round + i) * 100, 700))).unwrap();
        }
        let got: Vec<_> = (0..3).map(|_| pair.other_cq.wait_ok().unwrap()).collect();
        assert_eq!(got.iter().map(|cqe| cqe.wqe_counter()).collect::<Vec<_>>(), posted);
        assert!(got.iter().all(|cqe| (cqe.qpn(), cqe.byte_count()) == (receiver.qpn, 700)));
        for i in 0..3 {
            pair.assert_copied((&pair.local, (round + i) * 100), (&pair.remote, i * 4096), 700);
        }
        for cqe in got.iter().rev() {
            srq.release(cqe.wqe_counter());
        }
    }
    for qp in [&sender, &receiver] {
        qp.destroy().unwrap();
    }
    srq.destroy().unwrap();
    pair.tear_down();
}

#[test]
fn an_empty_queue_makes_the_sender_wait() {
    let (pair, srq, sender, _receiver) = shared();
    sender.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(pair.one_cq.poll().is_none());
    srq.post(&[pair.remote_mr.all()]).unwrap();
    pair.one_cq.wait_ok().unwrap();
}

#[test]
fn the_limit_event_comes_once() {
    let (pair, srq, sender, _receiver) = shared();
    for _ in 0..6 {
        srq.post(&[pair.remote_mr.all()]).unwrap();
    }
    srq.set_limit(4).unwrap();
    let send = || sender.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    send();
    send();
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(pair.driver.async_eq.poll().is_none(), "four are left");
    send();
    let event = pair.driver.async_event(PATIENCE).unwrap();
    assert_eq!((event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes)), (event::SRQ_RQ_LIMIT, srq.srqn));
    send();
    std::thread::sleep(std::time::Duration::from_millis(10));
    assert!(pair.driver.async_eq.poll().is_none());
}

#[test]
fn a_failed_queue_pair_flushes_nothing_of_the_shared_queue_but_tells() {
    let (pair, srq, _sender, receiver) = shared();
    srq.post(&[pair.remote_mr.all()]).unwrap();
    receiver.to_error().unwrap();
    let event = pair.driver.async_event(PATIENCE).unwrap();
    assert_eq!((event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes)), (event::SRQ_LAST_WQE, receiver.qpn));
    assert!(pair.other_cq.poll().is_none());
}

#[test]
fn a_message_that_does_not_fit_fails_its_queue_pair_only() {
    let (pair, srq, sender, _receiver) = shared();
    let other = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let (second, _) = (Qp::pair(&pair.driver, QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq), other).unwrap(), ());
    srq.post(&[pair.remote_mr.sge(0, 4)]).unwrap();
    srq.post(&[pair.remote_mr.all()]).unwrap();
    sender.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_INVAL_REQ_ERR));
    assert_eq!(pair.other_cq.wait().unwrap().outcome(), (cqe_opcode::RESP_ERR, syndrome::LOCAL_LENGTH_ERR));
    second.0.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 8);
}

#[test]
fn a_link_that_leads_nowhere_is_survived() {
    for next in [8, 0x7fff, 0xffff] {
        let (pair, srq, sender, _receiver) = shared();
        let first = srq.post(&[pair.remote_mr.all()]).unwrap();
        srq.post(&[pair.remote_mr.all()]).unwrap();
        srq.link(first, next);
        sender.post(&[Wqe::send().signaled(), Wqe::send().signaled()]);
        let _ = pair.one_cq.wait();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
        pair.one.post_one(write.signaled());
        pair.driver.until("completion of another queue pair", || pair.one_cq.poll().is_some()).unwrap();
    }
}

#[test]
fn xrc_messages_name_the_queue_that_they_land_in() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let [own, foreign] = [(); 2].map(|()| driver.alloc_number(Opcode::ALLOC_XRCD).unwrap());
    let queue = |xrcd| {
        let spec = XrcSpec { pd: pair.pd, xrcd, cqn: pair.other_cq.cqn, user_index: 0x77 };
        let srq = Srq::create_xrc(&driver.context, spec, 3).unwrap();
        srq.post(&[pair.remote_mr.sge(0, 64)]).unwrap();
        srq
    };
    let (first, second, elsewhere) = (queue(own), queue(own), queue(foreign));
    pair.local.fill_pattern(2);
    let send = |srq: &Srq| {
        let spec = QpSpec {
            service: service_type::XRC,
            srq: Some(first.srqn),
            xrcd: own,
            ..QpSpec::rc(driver, pair.pd, &pair.one_cq)
        };
        let (from, _to) = Qp::pair(driver, spec.clone(), QpSpec { log_sq: 0, ..spec }).unwrap();
        from.post_one(Wqe::send().xrc(srq.srqn).sge(pair.local_mr.sge(0, 64)).signaled());
        pair.one_cq.wait().unwrap().outcome()
    };
    for srq in [&first, &second] {
        assert_eq!(send(srq), (cqe_opcode::REQ, 0));
        let got = pair.other_cq.wait_ok().unwrap();
        assert_eq!((got.opcode(), cqe::SRQN_UIDX.get(&got.bytes)), (cqe_opcode::RESP_SEND, 0x77));
        pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 64);
    }
    // A queue of another domain.
    assert_eq!(send(&elsewhere), (cqe_opcode::REQ_ERR, syndrome::REMOTE_INVAL_REQ_ERR));
    assert!(pair.other_cq.poll().is_none());
}

#[test]
fn shared_receive_queues_have_one_number_space_and_their_own_commands() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let (pd, xrcd) = (driver.alloc_pd().unwrap(), driver.alloc_number(Opcode::ALLOC_XRCD).unwrap());
    let rmp = Srq::create(&driver.context, pd, 4).unwrap();
    let spec = XrcSpec { pd, xrcd, cqn: pair.one_cq.cqn, user_index: 0 };
    let xrc = Srq::create_xrc(&driver.context, spec, 4).unwrap();
    assert_ne!(rmp.srqn, xrc.srqn);
    let by_number = |opcode, number| driver.free_number(opcode, number).err().and_then(|error| error.status());
    assert_eq!(by_number(Opcode::DESTROY_RMP, xrc.srqn), Some(status::BAD_RES));
    assert_eq!(by_number(Opcode::DESTROY_XRC_SRQ, rmp.srqn), Some(status::BAD_RES));
    assert_eq!(by_number(Opcode::DEALLOC_XRCD, xrcd), Some(status::BAD_RES_STATE));
    assert_eq!(by_number(Opcode::DEALLOC_PD, pd), Some(status::BAD_RES_STATE));
    // Enough posted for the limit not to be passed at once.
    for _ in 0..3 {
        rmp.post(&[]).unwrap();
    }
    rmp.set_limit(3).unwrap();
    let query = Input::new(Opcode::QUERY_RMP, 16).with(srq::destroy_rmp_in::RMPN, rmp.srqn);
    let queried = driver.query(query, 0x110).unwrap();
    assert_eq!(srq::wq::LWM.plus(srq::query_rmp_out::RMPC + srq::rmpc::WQ).get(&queried), 3);
    assert_eq!(rmp.set_limit(17).unwrap_err().status(), Some(status::BAD_PARAM));
    rmp.destroy().unwrap();
    xrc.destroy().unwrap();
    driver.free_number(Opcode::DEALLOC_XRCD, xrcd).unwrap();
    driver.dealloc_pd(pd).unwrap();
}
