// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects: what they need, who keeps them alive, queue pairs through their states.

use super::*;
use mlx5_spec::qp::{ads, opt_param_mask, qpc, service_type, state};
use mlx5_spec::{srq, uar};

struct Basics {
    uar: u32,
    pd: u32,
    eqn: u32,
    cqn: u32,
}

fn basics(guest: &mut Guest) -> Basics {
    let uar = guest.alloc(Opcode::ALLOC_UAR);
    let pd = guest.alloc(Opcode::ALLOC_PD);
    let eqn = guest.create_eq(uar, 0, 0);
    let cqn = guest.create_cq(uar, eqn);
    Basics { uar, pd, eqn, cqn }
}

fn query_qp(guest: &mut Guest, qpn: u32) -> Vec<u8> {
    guest.call(Opcode::QUERY_QP, 0, qpn).ok().bytes[qp::query_out::QPC..][..qp::QPC_SIZE].to_vec()
}

#[test]
fn a_queue_pair_goes_through_its_states_and_back() {
    let mut guest = Guest::new(NicConfig::default());
    let have = basics(&mut guest);
    let qpn = guest.create_qp(service_type::RC, have.uar, have.pd, have.cqn);
    let refused = guest.modify_qp(Opcode::INIT2RTR_QP, qpn, 0, &[(qpc::MTU, 3)]);
    assert_eq!(refused.status(), status::BAD_QP_STATE);
    let rst2init = [(qpc::PD, have.pd), (qpc::CQN_SND, have.cqn), (qpc::RWE, 1)];
    guest.modify_qp(Opcode::RST2INIT_QP, qpn, 0, &rst2init).ok();
    let path = |field: Field| field.plus(qp::PRIMARY_PATH);
    let rtr = [(qpc::MTU, 3), (qpc::REMOTE_QPN, 0x77), (path(ads::RLID), 1), (qpc::RRE, 1), (qpc::MIN_RNR_NAK, 12)];
    assert_eq!(guest.modify_qp(Opcode::INIT2RTR_QP, qpn, 0, &rtr[1..]).status(), status::BAD_PARAM);
    guest.modify_qp(Opcode::INIT2RTR_QP, qpn, opt_param_mask::RRE, &rtr).ok();
    let rts = [(path(ads::ACK_TIMEOUT), 14), (qpc::RETRY_COUNT, 7), (qpc::RNR_RETRY, 6)];
    guest.modify_qp(Opcode::RTR2RTS_QP, qpn, 0, &rts).ok();
    let attrs = guest.handle.hca().qps.get(qpn).unwrap().attrs();
    assert_eq!((attrs.state, attrs.mtu, attrs.remote_qpn, attrs.remote_lid), (state::RTS, 1024, 0x77, 1));
    assert_eq!((attrs.remote_read, attrs.remote_write, attrs.remote_atomic), (true, true, false));
    assert_eq!((attrs.ack_timeout, attrs.retry_count, attrs.rnr_retry, attrs.min_rnr_nak), (14, 7, 6, 12));
    // CREATE's receive CQ holds though RST2INIT left it out.
    assert_eq!(attrs.recv_cq.as_ref().map(|cq| cq.cqn), Some(have.cqn));
    let context = query_qp(&mut guest, qpn);
    assert_eq!((qpc::STATE.get(&context), qpc::REMOTE_QPN.get(&context)), (state::RTS, 0x77));
    guest.modify_qp(Opcode::RTS2RTS_QP, qpn, opt_param_mask::RWE, &[]).ok();
    assert!(!guest.handle.hca().qps.get(qpn).unwrap().attrs().remote_write);
    guest.call(Opcode::TO_ERR_QP, 0, qpn).ok();
    assert_eq!(qpc::STATE.get(&query_qp(&mut guest, qpn)), state::ERR);
    let before = attrs.incarnation;
    guest.call(Opcode::TO_RST_QP, 0, qpn).ok();
    let attrs = guest.handle.hca().qps.get(qpn).unwrap().attrs();
    assert_eq!((attrs.state, attrs.incarnation != before), (state::RST, true));
    guest.call(Opcode::DESTROY_QP, 0, qpn).ok();
    assert_eq!(guest.call(Opcode::QUERY_QP, 0, qpn).status(), status::BAD_RES);
}

#[test]
fn what_others_use_is_not_destroyed() {
    let mut guest = Guest::new(NicConfig::default());
    let have = basics(&mut guest);
    let qpn = guest.create_qp(service_type::UD, have.uar, have.pd, have.cqn);
    for (opcode, number) in
        [(Opcode::DEALLOC_PD, have.pd), (Opcode::DESTROY_CQ, have.cqn), (Opcode::DESTROY_EQ, have.eqn)]
    {
        assert_eq!(guest.call(opcode, 0, number).status(), status::BAD_RES_STATE, "{opcode}");
    }
    guest.call(Opcode::DESTROY_QP, 0, qpn).ok();
    guest.call(Opcode::DESTROY_CQ, 0, have.cqn).ok();
    guest.call(Opcode::DESTROY_EQ, 0, have.eqn).ok();
    guest.call(Opcode::DEALLOC_PD, 0, have.pd).ok();
    guest.call(Opcode::DEALLOC_UAR, 0, have.uar).ok();
    assert_eq!(guest.handle.objects(), 0, "{}", guest.handle.inspect());
    assert_eq!(guest.call(Opcode::DEALLOC_PD, 0, have.pd).status(), status::BAD_RES);
}

#[test]
fn numbers_that_name_nothing_are_refused() {
    let mut guest = Guest::new(NicConfig::default());
    assert_eq!(guest.try_create_eq(16, 0, 0).status(), status::BAD_RES);
    let have = basics(&mut guest);
    assert_eq!(guest.try_create_eq(have.uar, 64, 0).status(), status::BAD_PARAM);
    for (field, wrong) in [
        (qpc::PD, 0x9999),
        (qpc::CQN_SND, 0x9999),
        (qpc::CQN_RCV, 0x9999),
        (qpc::UAR_PAGE, 0x1fff),
        (qpc::UAR_PAGE, 0),
        (qpc::ST, service_type::DCI),
    ] {
        let mut create = input(Opcode::CREATE_QP, 0, qp::create_in::SIZE);
        let at = qp::create_in::QPC;
        for (field, value) in [(qpc::PD, have.pd), (qpc::UAR_PAGE, have.uar), (qpc::CQN_SND, have.cqn), (field, wrong)]
        {
            field.plus(at).set(&mut create, value);
        }
        create.extend(guest.pages(1));
        assert_ne!(guest.run(&create, 16).status(), status::OK, "{field:?}");
    }
    assert!(guest.handle.hca().qps.is_empty());
}

#[test]
fn shared_receive_queues_have_one_number_space_and_their_own_commands() {
    let mut guest = Guest::new(NicConfig::default());
    let have = basics(&mut guest);
    let xrcd = guest.alloc(Opcode::ALLOC_XRCD);
    let mut create = input(Opcode::CREATE_RMP, 0, srq::create_rmp_in::SIZE);
    let queue = srq::create_rmp_in::RMPC + srq::rmpc::WQ;
    srq::wq::PD.plus(queue).set(&mut create, have.pd);
    srq::wq::LOG_WQ_STRIDE.plus(queue).set(&mut create, 5);
    srq::wq::LOG_WQ_SZ.plus(queue).set(&mut create, 4);
    create.extend(guest.pages(1));
    let rmpn = guest.run(&create, 16).ok().get(srq::create_rmp_out::RMPN);
    let mut create = input(Opcode::CREATE_XRC_SRQ, 0, srq::create_xrc_srq_in::SIZE);
    let at = srq::create_xrc_srq_in::XRC_SRQC;
    for (field, value) in [
        (srq::xrc_srqc::PD, have.pd),
        (srq::xrc_srqc::CQN, have.cqn),
        (srq::xrc_srqc::XRCD, xrcd),
        (srq::xrc_srqc::LOG_RQ_STRIDE, 1),
        (srq::xrc_srqc::LOG_XRC_SRQ_SIZE, 4),
    ] {
        field.plus(at).set(&mut create, value);
    }
    create.extend(guest.pages(1));
    let srqn = guest.run(&create, 16).ok().get(srq::create_xrc_srq_out::XRC_SRQN);
    assert_ne!(rmpn, srqn);
    assert_eq!(guest.call(Opcode::DESTROY_RMP, 0, srqn).status(), status::BAD_RES);
    assert_eq!(guest.call(Opcode::DEALLOC_XRCD, 0, xrcd).status(), status::BAD_RES_STATE);
    assert_eq!(guest.call(Opcode::DEALLOC_PD, 0, have.pd).status(), status::BAD_RES_STATE);

    let mut modify = input(Opcode::MODIFY_RMP, 0, srq::modify_rmp_in::SIZE);
    srq::modify_rmp_in::RMP_STATE.set(&mut modify, srq::rmp_state::RDY);
    srq::modify_rmp_in::RMPN.set(&mut modify, rmpn);
    srq::modify_rmp_in::BITMASK_LWM.set(&mut modify, 1);
    let lwm = srq::wq::LWM.plus(srq::modify_rmp_in::RMPC + srq::rmpc::WQ);
    lwm.set(&mut modify, 3);
    // Three are posted, by the record that its context names, so the limit is not passed yet.
    guest.ram.write_slice(&3u32.to_be_bytes(), GuestAddress(0)).unwrap();
    guest.run(&modify, 16).ok();
    let queried = guest.call(Opcode::QUERY_RMP, 0, rmpn).ok();
    assert_eq!(queried.get(srq::wq::LWM.plus(srq::query_rmp_out::RMPC + srq::rmpc::WQ)), 3);
    lwm.set(&mut modify, 17);
    assert_eq!(guest.run(&modify, 16).status(), status::BAD_PARAM);
    guest.call(Opcode::DESTROY_RMP, 0, rmpn).ok();
    guest.call(Opcode::DESTROY_XRC_SRQ, 0, srqn).ok();
    guest.call(Opcode::DEALLOC_XRCD, 0, xrcd).ok();
}

#[test]
fn a_queue_obeys_its_own_uar_page_only() {
    let mut guest = Guest::new(NicConfig::default());
    let have = basics(&mut guest);
    let other = guest.alloc(Opcode::ALLOC_UAR);
    let doorbell = u64::from(have.eqn << 24).to_be_bytes();
    let ring = |guest: &mut Guest, page: u32| {
        guest.nic.bar_write(0, u64::from(page) * 4096 + uar::EQ_ARM, &doorbell[4..]);
        guest.handle.hca().eqs.get(have.eqn).unwrap().indices().2
    };
    assert!(!ring(&mut guest, other));
    assert!(!ring(&mut guest, other + 1));
    assert!(ring(&mut guest, have.uar));
}

#[test]
fn special_queue_pairs_are_found_by_their_place() {
    let mut guest = Guest::new(NicConfig::default());
    let have = basics(&mut guest);
    let qp1 = guest.create_qp(service_type::QP1, have.uar, have.pd, have.cqn);
    assert_eq!(*guest.handle.hca().special.lock().unwrap(), [None, Some(qp1)]);
    guest.call(Opcode::DESTROY_QP, 0, qp1).ok();
    assert_eq!(*guest.handle.hca().special.lock().unwrap(), [None, None]);
}
