// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages that fail: which side sees which syndrome, states, events, flushing (contract 7.5, 7.8, 12.2).

use super::*;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{eqe_cq_err, eqe_qp_srq, event};
use mlx5_spec::wqe::opcode;

const REQ_ERR: u32 = cqe_opcode::REQ_ERR;
const RESP_ERR: u32 = cqe_opcode::RESP_ERR;

fn state_of(qp: &TestQp) -> u32 {
    qp.qp.attrs().state
}

/// Waits for the event `kind` about `qp`.
fn told(guest: &Guest, eq: &TestEq, kind: u32, qp: &TestQp) {
    let entry = guest.event(eq);
    assert_eq!((eqe::TYPE.get(&entry), eqe_qp_srq::QP_SRQ_N.get(&entry)), (kind, qp.qp.qpn));
}

/// Posts `wqe` from a new queue pair to another and tells what both see: syndromes at requester and responder (0: none), states, event.
fn clash(
    guest: &Guest,
    wqe: impl Fn(&TestQp) -> Wqe,
    recv: &[(u32, u64, u32)],
    prepare: impl Fn(&mut QpAttrs),
) -> (u32, u32, u32, u32, u32) {
    let eq = guest.eq(&[event::WQ_ACCESS_ERROR, event::WQ_INVAL_REQ_ERROR, event::WQ_CATAS_ERROR]);
    let (a, b) = guest.rc_pair();
    guest.hca.change_qp(&b.qp, prepare);
    guest.post_recv(&b, recv);
    guest.post(&a, &wqe(&a));
    let (opcode, syndrome, _) = guest.outcome(&a.send_cq);
    assert_eq!(opcode, REQ_ERR);
    soon("error state", || (state_of(&a) == state::ERR).then_some(()));
    let at_responder = match state_of(&b) {
        // Its own error, or what the flush says of a WQE that was not to blame.
        state::ERR => guest.outcome(&b.recv_cq).1,
        _ => 0,
    };
    let event = match guest.try_event(&eq) {
        Some(entry) => eqe::TYPE.get(&entry),
        None => 0,
    };
    assert!(guest.try_cqe(&a.send_cq).is_none() && guest.try_cqe(&b.send_cq).is_none());
    guest.hca.eqs.clear();
    (syndrome, at_responder, state_of(&a), state_of(&b), event)
}

#[test]
fn who_sees_what() {
    let guest = Guest::new();
    let (from, to) = (guest.alloc(PAGE), guest.alloc(PAGE));
    let all = guest.all;
    let (err, rts) = (state::ERR, state::RTS);
    let flush = syndrome::WR_FLUSH_ERR;
    let recv = [(all, to, 64)];
    let write = |key, va| Wqe::new(opcode::RDMA_WRITE).remote(key, va).data(all, from, 8);
    let keep = |_: &mut QpAttrs| {};
    // The requester's own key, and an address that wraps.
    let bad = clash(&guest, |_| Wqe::new(opcode::SEND).data(all ^ 1, from, 8), &recv, keep);
    assert_eq!(bad, (syndrome::LOCAL_PROT_ERR, 0, err, rts, 0));
    let bad = clash(&guest, |_| Wqe::new(opcode::SEND).data(all, u64::MAX - 3, 8), &recv, keep);
    assert_eq!(bad, (syndrome::LOCAL_PROT_ERR, 0, err, rts, 0));
    // Lengths that a u32 sum would hide: the list of 2 * 2^31 + 8 bytes.
    let long = |_: &TestQp| Wqe::new(opcode::SEND).data(all, 0, 0).data(all, 0, 0).data(all, from, 8);
    assert_eq!(clash(&guest, long, &recv, keep), (syndrome::LOCAL_LENGTH_ERR, 0, err, rts, 0));
    // Opcode, and a WQE of another queue pair.
    assert_eq!(clash(&guest, |_| Wqe::new(opcode::LSO), &recv, keep), (syndrome::LOCAL_QP_OP_ERR, 0, err, rts, 0));
    let foreign = |qp: &TestQp| Wqe::new(opcode::NOP).with(ctrl::QPN, qp.qp.qpn + 1);
    assert_eq!(clash(&guest, foreign, &recv, keep), (syndrome::LOCAL_QP_OP_ERR, 0, err, rts, 0));
    // The responder's key, bounds, rights.
    let access = (syndrome::REMOTE_ACCESS_ERR, flush, err, err, event::WQ_ACCESS_ERROR);
    assert_eq!(clash(&guest, |_| write(0x100, to), &recv, keep), access);
    assert_eq!(clash(&guest, |_| write(all, RAM - 4), &recv, keep), access);
    assert_eq!(clash(&guest, |_| write(all, u64::MAX - 3), &recv, keep), access);
    // Its translation leads outside guest RAM.
    let outside = guest.paged(0, &[Some(RAM + PAGE)]).key();
    assert_eq!(clash(&guest, |_| write(outside, 0), &recv, keep), access);
    let invalid = (syndrome::REMOTE_INVAL_REQ_ERR, flush, err, err, event::WQ_INVAL_REQ_ERROR);
    assert_eq!(clash(&guest, |_| write(all, to), &recv, |attrs| attrs.remote_write = false), invalid);
    // A receive WQE that is too short, or whose key is bad.
    let long = |_: &TestQp| Wqe::new(opcode::SEND).data(all, from, 65);
    let short = clash(&guest, long, &recv, keep);
    assert_eq!(short, (syndrome::REMOTE_INVAL_REQ_ERR, syndrome::LOCAL_LENGTH_ERR, err, err, 0));
    let send = |_: &TestQp| Wqe::new(opcode::SEND).data(all, from, 8);
    let denied = clash(&guest, send, &[(all ^ 1, to, 64)], keep);
    assert_eq!(denied, (syndrome::REMOTE_OP_ERR, syndrome::LOCAL_PROT_ERR, err, err, 0));
    // A peer that does not know us, and one that is not ready: nobody answers.
    let gone = (syndrome::TRANSPORT_RETRY_EXC_ERR, 0, err, rts, 0);
    assert_eq!(clash(&guest, send, &recv, |attrs| attrs.remote_qpn = 1), gone);
    let reset = clash(&guest, send, &recv, |attrs| attrs.state = state::INIT);
    assert_eq!(reset, (syndrome::TRANSPORT_RETRY_EXC_ERR, 0, err, state::INIT, 0));
    // Nothing was written by any of them.
    assert_eq!(guest.read(to, 64), [0; 64]);
}

#[test]
fn rnr_retries_end() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    guest.hca.change_qp(&a.qp, |attrs| attrs.rnr_retry = 2);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"x"));
    assert_eq!(guest.outcome(&a.send_cq), (REQ_ERR, syndrome::RNR_RETRY_EXC_ERR, 0));
    assert_eq!((guest.hca.counters.rnr_naks.get(), state_of(&b)), (3, state::RTS));
}

#[test]
fn everything_posted_is_flushed_in_order() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    for _ in 0..3 {
        guest.post_recv(&a, &[]);
    }
    guest.put(&a, &Wqe::new(opcode::RDMA_WRITE).remote(0x100, 0).inline(b"bad"));
    guest.put(&a, &Wqe::new(opcode::SEND).with(ctrl::CE, 0).inline(&[0; 100]));
    guest.post(&a, &Wqe::new(opcode::NOP));
    assert_eq!(guest.outcome(&a.send_cq), (REQ_ERR, syndrome::REMOTE_ACCESS_ERR, 0));
    let flush = syndrome::WR_FLUSH_ERR;
    let second = guest.cqe(&a.send_cq);
    assert_eq!((outcome(&second), cqe::SEND_OPCODE.get(&second)), ((REQ_ERR, flush, 1), opcode::SEND));
    assert_eq!(cqe::SRQN_UIDX.get(&second), a.qp.user_index);
    assert_eq!(guest.outcome(&a.send_cq), (REQ_ERR, flush, 3));
    for index in 0..3 {
        assert_eq!(guest.outcome(&a.recv_cq), (RESP_ERR, flush, index));
    }
    // Posted later, without a doorbell and with one.
    std::thread::sleep(Duration::from_millis(5));
    guest.post_recv(&a, &[]);
    assert_eq!(guest.outcome(&a.recv_cq), (RESP_ERR, flush, 3));
    guest.post(&a, &Wqe::new(opcode::NOP));
    assert_eq!(guest.outcome(&a.send_cq), (REQ_ERR, flush, 4));
    // The other side went to ERR with it.
    assert_eq!(state_of(&b), state::ERR);
}

#[test]
fn after_reset_no_completion_comes_and_counters_start_anew() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    // Waits for a receive that never comes.
    guest.post_recv(&a, &[]);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"x"));
    soon("RNR NAK", || (guest.hca.counters.rnr_naks.get() > 0).then_some(()));
    guest.hca.change_qp(&a.qp, |attrs| {
        attrs.state = state::RST;
        attrs.incarnation += 1;
    });
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.try_cqe(&a.send_cq).is_none() && guest.try_cqe(&a.recv_cq).is_none());
    guest.set_word(a.record, 0);
    guest.set_word(a.record + 4, 0);
    a.sent.set(0);
    a.posted.set(0);
    guest.connect(&a, &b);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"anew"));
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 0));
    assert_eq!(guest.read(to, 4), b"anew");
}

#[test]
fn a_destroyed_queue_pair_is_forgotten() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    guest.post(&a, &Wqe::new(opcode::NOP));
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    let weak = Arc::downgrade(&a.qp);
    for qp in [&a, &b] {
        guest.hca.qps.remove(qp.qp.qpn);
        guest.hca.change_qp(&qp.qp, |attrs| attrs.state = state::RST);
    }
    drop(a);
    soon("end of the queue pair", || weak.upgrade().is_none().then_some(()));
}

#[test]
fn completion_queue_overrun_ends_the_queue_pair() {
    let guest = Guest::new();
    let eq = guest.eq(&[event::CQ_ERROR]);
    let a = guest.qp_with(service_type::RC, guest.cq(2, 0), guest.cq(2, 0), None);
    guest.connect(&a, &a);
    for _ in 0..6 {
        guest.put(&a, &Wqe::new(opcode::NOP));
    }
    guest.ring(&a);
    let entry = guest.event(&eq);
    assert_eq!((eqe::TYPE.get(&entry), eqe_cq_err::CQN.get(&entry)), (event::CQ_ERROR, a.send_cq.cq.cqn));
    soon("error state", || (state_of(&a) == state::ERR).then_some(()));
    for _ in 0..4 {
        assert_eq!(guest.outcome(&a.send_cq).1, 0);
    }
    assert!(guest.try_cqe(&a.send_cq).is_none());
}

#[test]
fn bus_mastering_off_moves_nothing() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    guest.master.set(false);
    guest.hca.quiesce.wait();
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"never"));
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.try_cqe(&a.send_cq).is_none());
    assert_eq!(guest.read(to, 5), [0; 5]);
    guest.master.set(true);
    guest.ring(&a);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 0));
}

#[test]
fn send_with_invalidate_frees_the_key() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    let key = guest.paged(0, &[Some(to)]).key();
    guest.post_recv(&b, &[(guest.all, to, 64)]);
    guest.post_recv(&b, &[]);
    let wqe = Wqe::new(opcode::SEND_INVAL).with(ctrl::INVAL_RKEY, key);
    guest.post(&a, &wqe.data(guest.all, to + 128, 8));
    let entry = guest.cqe(&b.recv_cq);
    assert_eq!(outcome(&entry), (cqe_opcode::RESP_SEND_INV, 0, 0));
    assert_eq!(cqe::IMM_INVAL_PKEY.get(&entry), key);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 0));
    let eq = guest.eq(&[event::WQ_ACCESS_ERROR]);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(key, 0).inline(b"late"));
    assert_eq!(guest.outcome(&a.send_cq), (REQ_ERR, syndrome::REMOTE_ACCESS_ERR, 1));
    told(&guest, &eq, event::WQ_ACCESS_ERROR, &b);
}
