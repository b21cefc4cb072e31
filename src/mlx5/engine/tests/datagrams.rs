// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UD, QP1, UC.

use super::*;
use mlx5_spec::cq::syndrome;
use mlx5_spec::wqe::{AV_SIZE, GRH_SIZE, av, opcode};

fn address(qpn: u32, qkey: u32) -> [u8; AV_SIZE] {
    let mut bytes = [0; AV_SIZE];
    let fields = [(av::QKEY, qkey), (av::DQPN, qpn), (av::EXTENDED, 1), (av::RLID, u32::from(PORT_LID)), (av::SL, 3)];
    for (field, value) in fields {
        field.set(&mut bytes, value);
    }
    bytes
}

#[test]
fn a_datagram_leaves_room_for_the_grh() {
    let guest = Guest::new();
    let (a, b) = (guest.qp(service_type::UD), guest.qp(service_type::UD));
    guest.set_state(&a, state::RTS);
    guest.set_state(&b, state::RTS);
    let to = guest.alloc(PAGE);
    guest.write(to, &[0xee; 64]);
    guest.post_recv(&b, &[(guest.all, to, 256)]);
    guest.post_recv(&b, &[(guest.all, to + 256, 256)]);
    let send =
        |seg: &[u8]| guest.post(&a, &Wqe::new(opcode::SEND_IMM).with(ctrl::IMM, 5).segment(seg).inline(b"datagram"));
    // A wrong Q_Key, nobody there: lost, and the sender never knows.
    send(&address(b.qp.qpn, 0x9999));
    send(&address(0x77_7777, 0x1234));
    send(&address(b.qp.qpn, 0x1234));
    for index in 0..3 {
        assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 2 * index));
    }
    let entry = guest.cqe(&b.recv_cq);
    assert_eq!(outcome(&entry), (cqe_opcode::RESP_SEND_IMM, 0, 0));
    let told = (cqe::BYTE_CNT.get(&entry), cqe::RQPN.get(&entry), cqe::SL.get(&entry), cqe::SLID.get(&entry));
    assert_eq!(told, (48, a.qp.qpn, 3, u32::from(PORT_LID)));
    assert_eq!(guest.read(to, 48), [&[0xee; GRH_SIZE][..], b"datagram"].concat());
    // With a GRH, which is written then.
    let mut global = address(b.qp.qpn, 0x1234);
    av::GRH.set(&mut global, 1);
    av::HOP_LIMIT.set(&mut global, 9);
    global[av::RGID].copy_from_slice(&[7; 16]);
    send(&global);
    let entry = guest.cqe(&b.recv_cq);
    assert_eq!((outcome(&entry).2, cqe::GRH.get(&entry)), (1, 1));
    let grh = guest.read(to + 256, GRH_SIZE);
    assert_eq!((grh[0] >> 4, grh[6], grh[7], &grh[24..]), (6, 0x1b, 9, &[7; 16][..]));
    assert_eq!(grh[8..24], crate::command::port_gid(0, 0));
    assert_eq!(guest.read(to + 256 + 40, 8), b"datagram");
}

#[test]
fn special_queue_pairs_are_reached_by_their_numbers() {
    let guest = Guest::new();
    let (gsi, ud) = (guest.qp(service_type::QP1), guest.qp(service_type::UD));
    let qkey = 0x8001_0000;
    for qp in [&gsi, &ud] {
        guest.hca.change_qp(&qp.qp, |attrs| {
            attrs.state = state::RTS;
            attrs.qkey = qkey;
        });
    }
    guest.hca.special.lock().unwrap()[1] = Some(gsi.qp.qpn);
    let to = guest.alloc(PAGE);
    guest.post_recv(&gsi, &[(guest.all, to, 512)]);
    guest.post_recv(&gsi, &[(guest.all, to, 512)]);
    guest.post(&ud, &Wqe::new(opcode::SEND).segment(&address(1, qkey)).inline(b"mad"));
    let entry = guest.cqe(&gsi.recv_cq);
    let told = (cqe::QPN.get(&entry), cqe::RQPN.get(&entry), cqe::IMM_INVAL_PKEY.get(&entry));
    assert_eq!(told, (gsi.qp.qpn, ud.qp.qpn, 0xffff));
    // To itself, as a source it is 1; by its own number it is not there.
    guest.post(&gsi, &Wqe::new(opcode::SEND).segment(&address(gsi.qp.qpn, qkey)).inline(b"mad"));
    guest.post(&gsi, &Wqe::new(opcode::SEND).segment(&address(1, qkey)).inline(b"mad"));
    assert_eq!(cqe::RQPN.get(&guest.cqe(&gsi.recv_cq)), 1);
    assert!(guest.try_cqe(&gsi.recv_cq).is_none());
}

#[test]
fn an_unreliable_sender_that_errs_goes_to_sqer_and_receives_on() {
    let guest = Guest::new();
    let (a, b) = (guest.qp(service_type::UC), guest.qp(service_type::UC));
    guest.connect(&a, &b);
    let to = guest.alloc(PAGE);
    // The responder refuses: lost.
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(0x100, to).inline(b"lost"));
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"lost"));
    assert_eq!((guest.outcome(&a.send_cq).1, guest.outcome(&a.send_cq).1), (0, 0));
    guest.put(&a, &Wqe::new(opcode::SEND).data(0x100, to, 4));
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"flushed"));
    assert_eq!(guest.outcome(&a.send_cq).1, syndrome::LOCAL_PROT_ERR);
    assert_eq!(guest.outcome(&a.send_cq).1, syndrome::WR_FLUSH_ERR);
    assert_eq!((a.qp.attrs().state, b.qp.attrs().state), (state::SQER, state::RTS));
    guest.post_recv(&a, &[(guest.all, to, 64)]);
    guest.post(&b, &Wqe::new(opcode::SEND).inline(b"still"));
    assert_eq!(guest.outcome(&a.recv_cq), (cqe_opcode::RESP_SEND, 0, 0));
    assert_eq!(guest.read(to, 5), b"still");
    // Back in service.
    guest.set_state(&a, state::RTS);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"again"));
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 4));
}
