// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages that succeed.

use super::*;
use mlx5_spec::wqe::{atomic, opcode};

const OK_SEND: u32 = cqe_opcode::REQ;

#[test]
fn send_goes_from_page_to_page_in_order() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let (from, to) = (guest.alloc(0x4000), guest.alloc(0x4000));
    let bytes = pattern(0x3000, 1);
    guest.write(from, &bytes);
    guest.post_recv(&b, &[(guest.all, to, 0x1001), (guest.all, to + 0x2000, 0x1fff)]);
    guest.post_recv(&b, &[(guest.all, to + 0x4000 - 8, 8)]);
    guest.put(
        &a,
        &Wqe::new(opcode::SEND).with(ctrl::CE, 0).data(guest.all, from, 0x2000).data(guest.all, from + 0x2000, 0x800),
    );
    guest.post(&a, &Wqe::new(opcode::SEND_IMM).with(ctrl::IMM, 0xaabb_ccdd).inline(b"12345678"));
    let first = guest.cqe(&b.recv_cq);
    assert_eq!(outcome(&first), (cqe_opcode::RESP_SEND, 0, 0));
    assert_eq!((cqe::BYTE_CNT.get(&first), cqe::SRQN_UIDX.get(&first)), (0x2800, b.qp.user_index));
    assert_eq!((cqe::QPN.get(&first), cqe::RQPN.get(&first)), (b.qp.qpn, a.qp.qpn));
    let second = guest.cqe(&b.recv_cq);
    assert_eq!(outcome(&second), (cqe_opcode::RESP_SEND_IMM, 0, 1));
    assert_eq!((cqe::IMM_INVAL_PKEY.get(&second), cqe::BYTE_CNT.get(&second)), (0xaabb_ccdd, 8));
    // One completion for both.
    let sent = guest.cqe(&a.send_cq);
    assert_eq!((outcome(&sent), cqe::SEND_OPCODE.get(&sent)), ((OK_SEND, 0, 1), opcode::SEND_IMM));
    assert!(guest.try_cqe(&a.send_cq).is_none());
    assert_eq!(guest.read(to, 0x1001), bytes[..0x1001]);
    assert_eq!(guest.read(to + 0x2000, 0x17ff), bytes[0x1001..0x2800]);
    assert_eq!(guest.read(to + 0x4000 - 8, 8), b"12345678");
}

#[test]
fn write_and_read_of_many_sizes() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let size = 1 << 20;
    let (from, to, back) = (guest.alloc(size), guest.alloc(size), guest.alloc(size));
    // Pages in reverse order, so that every page is a span of its own.
    let pages: Vec<_> = (0..size / PAGE).rev().map(|page| Some(to + page * PAGE)).collect();
    let va = 0x7f00_0000_0000;
    let rkey = guest.paged(va, &pages).key();
    for (round, len) in [0, 1, 7, 8, 4095, 4096, 4097, 65536, 65537, 300_000, 1 << 20].into_iter().enumerate() {
        let at = if len == 1 << 20 { 0 } else { 13 * round as u64 };
        let bytes = pattern(len, round as u32);
        guest.write(from, &bytes);
        let mut write = Wqe::new(opcode::RDMA_WRITE).remote(rkey, va + at);
        let mut read = Wqe::new(opcode::RDMA_READ).remote(rkey, va + at);
        if len > 0 {
            write = write.data(guest.all, from, len as u32);
            read = read.data(guest.all, back, (len / 2) as u32).data(
                guest.all,
                back + len as u64 / 2,
                len.div_ceil(2) as u32,
            );
            if len == 1 {
                read = Wqe::new(opcode::RDMA_READ).remote(rkey, va + at).data(guest.all, back, 1);
            }
        }
        guest.put(&a, &write);
        guest.post(&a, &read);
        assert_eq!(guest.outcome(&a.send_cq).0, OK_SEND);
        let done = guest.cqe(&a.send_cq);
        assert_eq!((outcome(&done).1, cqe::BYTE_CNT.get(&done)), (0, len as u32));
        assert_eq!(guest.read(back, len), bytes, "{len} bytes");
    }
    // Its pages were really reversed.
    assert_eq!(guest.read(to + size - PAGE, 64), guest.read(from, 64));
    assert!(guest.try_cqe(&b.recv_cq).is_none());
}

#[test]
fn write_with_immediate_takes_a_receive() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    guest.post_recv(&b, &[]);
    let wqe = Wqe::new(opcode::RDMA_WRITE_IMM).with(ctrl::IMM, 7).with(ctrl::SOLICITED, 1);
    guest.post(&a, &wqe.remote(guest.all, to + 3).inline(b"hello"));
    let entry = guest.cqe(&b.recv_cq);
    assert_eq!(outcome(&entry), (cqe_opcode::RESP_WR_IMM, 0, 0));
    assert_eq!((cqe::IMM_INVAL_PKEY.get(&entry), cqe::BYTE_CNT.get(&entry), cqe::SE.get(&entry)), (7, 5, 1));
    assert_eq!(guest.outcome(&a.send_cq), (OK_SEND, 0, 0));
    assert_eq!(guest.read(to + 3, 5), b"hello");
}

#[test]
fn atomics_return_the_old_value() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let (word, result) = (guest.alloc(PAGE) + 16, guest.alloc(PAGE));
    guest.write(word, &40u64.to_le_bytes());
    let post = |code, first: u64, compare: u64| {
        let mut seg = [0; 16];
        atomic::SWAP_ADD.set(&mut seg, first);
        atomic::COMPARE.set(&mut seg, compare);
        guest.post(&a, &Wqe::new(code).remote(guest.all, word).segment(&seg).data(guest.all, result, 8));
        assert_eq!(guest.outcome(&a.send_cq).1, 0);
        let value = |at| u64::from_le_bytes(guest.read(at, 8).try_into().unwrap());
        (value(result), value(word))
    };
    assert_eq!(post(opcode::ATOMIC_FA, 2, 0), (40, 42));
    assert_eq!(post(opcode::ATOMIC_CS, 9, 41), (42, 42));
    assert_eq!(post(opcode::ATOMIC_CS, 9, 42), (42, 9));
}

#[test]
fn wqes_wrap_at_the_end_of_the_queue() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    // 5 blocks a WQE: every round of 64 blocks one of them wraps.
    for round in 0..40u32 {
        let bytes = pattern(270, round);
        guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(&bytes));
        assert_eq!(guest.outcome(&a.send_cq), (OK_SEND, 0, round * 5));
        assert_eq!(guest.read(to, 270), bytes, "round {round}");
    }
}

#[test]
fn a_queue_pair_talks_to_itself() {
    let guest = Guest::new();
    let a = guest.qp(service_type::RC);
    guest.connect(&a, &a);
    let to = guest.alloc(PAGE);
    guest.post_recv(&a, &[(guest.all, to, 16)]);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"me"));
    assert_eq!(guest.outcome(&a.recv_cq), (cqe_opcode::RESP_SEND, 0, 0));
    assert_eq!(guest.outcome(&a.send_cq), (OK_SEND, 0, 0));
    assert_eq!(guest.read(to, 2), b"me");
}

#[test]
fn a_send_waits_for_a_receive() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"late"));
    soon("RNR NAK", || (guest.hca.counters.rnr_naks.get() > 3).then_some(()));
    assert!(guest.try_cqe(&a.send_cq).is_none());
    guest.post_recv(&b, &[(guest.all, to, 16)]);
    assert_eq!(guest.outcome(&a.send_cq), (OK_SEND, 0, 0));
    assert_eq!(guest.read(to, 4), b"late");
}

#[test]
fn work_posted_before_rts_is_done_at_rts() {
    let guest = Guest::new();
    let (a, b) = (guest.qp(service_type::RC), guest.qp(service_type::RC));
    let to = guest.alloc(PAGE);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"early"));
    std::thread::sleep(Duration::from_millis(20));
    assert!(guest.try_cqe(&a.send_cq).is_none());
    guest.connect(&a, &b);
    assert_eq!(guest.outcome(&a.send_cq), (OK_SEND, 0, 0));
}

#[test]
fn shared_receive_queue_is_followed_along_its_links() {
    use mlx5_spec::eq::{eqe_qp_srq, event};
    let guest = Guest::new();
    let eq = guest.eq(&[event::SRQ_RQ_LIMIT, event::SRQ_LAST_WQE]);
    let srq = guest.srq();
    let make = || guest.qp_with(service_type::RC, guest.cq(LOG_CQ, 0), guest.cq(LOG_CQ, 0), Some(&srq));
    let (a, b) = (make(), make());
    guest.connect(&a, &b);
    let to = guest.alloc(PAGE);
    srq.srq.state.lock().unwrap().limit = 2;
    for at in 0..3 {
        guest.post_srq(&srq, &[(guest.all, to + at * 16, 16)]);
    }
    for (round, index) in [0, 1, 2].into_iter().enumerate() {
        guest.post(&a, &Wqe::new(opcode::SEND).inline(&[round as u8; 16]));
        assert_eq!(guest.outcome(&b.recv_cq), (cqe_opcode::RESP_SEND, 0, index));
        assert_eq!(guest.outcome(&a.send_cq).1, 0);
    }
    assert_eq!(guest.read(to + 32, 16), [2; 16]);
    let limit = guest.event(&eq);
    assert_eq!((eqe::TYPE.get(&limit), eqe_qp_srq::QP_SRQ_N.get(&limit)), (event::SRQ_RQ_LIMIT, srq.srq.srqn));
    // The driver frees slot 2 behind the tail, which changes its link; slot 3 was posted before and comes next all the same.
    guest.write(srq.base + 2 * RQ_STRIDE + 2, &9u16.to_be_bytes());
    guest.post_srq(&srq, &[(guest.all, to + 64, 16)]);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"three"));
    assert_eq!(guest.outcome(&b.recv_cq), (cqe_opcode::RESP_SEND, 0, 3));
    assert_eq!(guest.read(to + 64, 5), b"three");
    // Nothing of the shared queue is flushed, but the event tells.
    guest.set_state(&b, state::ERR);
    let last = guest.event(&eq);
    assert_eq!((eqe::TYPE.get(&last), eqe_qp_srq::QP_SRQ_N.get(&last)), (event::SRQ_LAST_WQE, b.qp.qpn));
    assert!(guest.try_cqe(&b.recv_cq).is_none() && guest.try_event(&eq).is_none());
}

#[test]
fn xrc_messages_name_the_queue_that_they_land_in() {
    use mlx5_spec::cq::syndrome;
    use mlx5_spec::wqe::xrc;
    let guest = Guest::new();
    let cq = guest.cq(LOG_CQ, 0);
    let mut queues = Vec::new();
    for xrcd in [5, 6] {
        queues.push(guest.srq_of(SrqKind::Xrc, xrcd, cq.cq.cqn, 0x77));
    }
    let to = guest.alloc(PAGE);
    let send = |srq: &TestSrq| {
        let (a, b) = (guest.qp(service_type::XRC), guest.qp(service_type::XRC));
        guest.hca.change_qp(&b.qp, |attrs| attrs.xrcd = 5);
        guest.connect(&a, &b);
        guest.post_srq(srq, &[(guest.all, to, 64)]);
        let mut seg = [0; 16];
        xrc::XRC_SRQN.set(&mut seg, srq.srq.srqn);
        guest.post(&a, &Wqe::new(opcode::SEND).segment(&seg).inline(b"xrc"));
        guest.outcome(&a.send_cq)
    };
    assert_eq!(send(&queues[0]), (OK_SEND, 0, 0));
    let entry = guest.cqe(&cq);
    assert_eq!((outcome(&entry), cqe::SRQN_UIDX.get(&entry)), ((cqe_opcode::RESP_SEND, 0, 0), 0x77));
    assert_eq!(guest.read(to, 3), b"xrc");
    // A queue of another domain.
    assert_eq!(send(&queues[1]).1, syndrome::REMOTE_INVAL_REQ_ERR);
    assert!(guest.try_cqe(&cq).is_none());
}
