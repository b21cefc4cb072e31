// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Peers that are not ready, or not there (IBTA 9.7.5.2.8, 9.7.6.1.3).

use std::time::{Duration, Instant};

use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::qp::{qpc, state};
use rnic_testdrive::{Peer, Qp, QpSpec, Wqe};

use crate::scene::Pair;

#[test]
fn a_send_waits_for_its_receive() {
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 500)).signaled());
    std::thread::sleep(Duration::from_millis(20));
    assert!(pair.one_cq.poll().is_none());
    pair.other.receive(&[pair.remote_mr.all()]);
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 500);
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 500);
    pair.tear_down();
}

#[test]
fn a_wait_for_a_receive_does_not_hold_up_others() {
    let pair = Pair::new();
    let spec = QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq);
    let (one, _other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    for _ in 0..50 {
        one.run(write.clone()).unwrap();
    }
}

#[test]
fn receives_that_never_come_end_in_an_error() {
    let pair = Pair::with(|spec| spec.rnr_retry = 2);
    let index = pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    let cqe = pair.one_cq.wait().unwrap();
    assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::RNR_RETRY_EXC_ERR));
    assert_eq!(cqe.wqe_counter(), index);
    let naks = pair.driver.machine.nic.hca().counters.rnr_naks.get();
    assert_eq!(naks, 3, "the first attempt and two more");
    assert_eq!(pair.one.queried(qpc::STATE), Ok(state::ERR));
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS), "the receiver has done nothing wrong");
}

#[test]
fn the_receivers_timer_is_honoured() {
    // Code 20 is 10.24 ms (IBTA table 45); two retries.
    let pair = Pair::with(|spec| (spec.rnr_retry, spec.min_rnr_nak) = (2, 20));
    let begun = Instant::now();
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::RNR_RETRY_EXC_ERR);
    assert!(begun.elapsed() >= Duration::from_millis(20), "{:?}", begun.elapsed());
}

#[test]
fn a_peer_that_does_not_answer_ends_in_an_error() {
    for peer in [Peer { qpn: 0xabcdef, lid: 1 }, Peer { qpn: 0x40, lid: 77 }] {
        let pair = Pair::new();
        // 4.096 us << 4, twice.
        let spec = QpSpec { ack_timeout: 4, retry_count: 1, ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
        let qp = Qp::create(&pair.driver.context, spec).unwrap();
        qp.connect(peer).unwrap();
        qp.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
        let cqe = pair.one_cq.wait().unwrap();
        assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::TRANSPORT_RETRY_EXC_ERR), "{peer:?}");
    }
}

#[test]
fn a_peer_that_was_reset_does_not_answer() {
    let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1));
    pair.other.to_reset().unwrap();
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR);
}

#[test]
fn a_peer_that_is_connected_to_another_does_not_answer() {
    let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1));
    let spec = QpSpec { ack_timeout: 4, retry_count: 1, ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
    let intruder = Qp::create(&pair.driver.context, spec).unwrap();
    intruder.connect(pair.other.peer()).unwrap();
    pair.local.fill_pattern(1);
    intruder.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR);
    assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS));
}
