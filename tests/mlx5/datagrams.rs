// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Services other than reliable connections: datagrams, special queue pairs, unreliable connections.

use std::time::Duration;

use mlx5::{EnginePolicy, NicConfig};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{cqe, opcode as cqe_opcode, syndrome};
use mlx5_spec::qp::{QPC_SIZE, qpc, service_type, state};
use mlx5_spec::vport::query_gid_out;
use mlx5_spec::wqe::{GRH_SIZE, av, opcode};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Driver, Machine, MachineConfig, Qp, QpSpec, Sge, Wqe};

use crate::scene::Pair;

const QKEY: u32 = 0x1111_1111;
const HEAD: u64 = GRH_SIZE as u64;

fn service(service: u32) -> Pair {
    Pair::with(|spec| (spec.service, spec.qkey) = (service, QKEY))
}

fn quiet(pair: &Pair) {
    std::thread::sleep(Duration::from_millis(10));
    assert!(pair.other_cq.poll().is_none());
}

#[test]
fn a_datagram_arrives_behind_the_room_for_a_grh() {
    let pair = service(service_type::UD);
    pair.local.fill_pattern(1);
    pair.remote.fill(0, 4096, 0xee);
    pair.other.receive(&[pair.remote_mr.sge(0, 2048)]);
    pair.one.run(Wqe::send().datagram(pair.other.qpn, 1, QKEY).sge(pair.local_mr.sge(0, 1000))).unwrap();
    let got = pair.other_cq.wait_ok().unwrap();
    assert_eq!((got.opcode(), got.byte_count()), (cqe_opcode::RESP_SEND, 1040));
    assert_eq!((cqe::RQPN.get(&got.bytes), cqe::SLID.get(&got.bytes)), (pair.one.qpn, 1));
    pair.assert_copied((&pair.local, 0), (&pair.remote, HEAD), 1000);
    assert!(pair.remote.bytes(HEAD + 1000, 100).iter().all(|byte| *byte == 0xee));
    pair.tear_down();
}

#[test]
fn datagrams_that_nobody_takes_are_dropped_and_the_sender_goes_on() {
    let pair = service(service_type::UD);
    let send = |qpn, lid, qkey| Wqe::send().datagram(qpn, lid, qkey).sge(pair.local_mr.sge(0, 100));
    // No receive WQE; wrong Q_Key, queue pair, LID.
    pair.one.run(send(pair.other.qpn, 1, QKEY)).unwrap();
    pair.other.receive(&[pair.remote_mr.all()]);
    pair.one.run(send(pair.other.qpn, 1, QKEY ^ 1)).unwrap();
    pair.one.run(send(0x00ab_cdef, 1, QKEY)).unwrap();
    pair.one.run(send(pair.other.qpn, 9, QKEY)).unwrap();
    quiet(&pair);
    pair.one.run(send(pair.other.qpn, 1, QKEY)).unwrap();
    pair.other_cq.wait_ok().unwrap();
    pair.tear_down();
}

#[test]
fn a_datagram_has_an_mtu() {
    let pair = service(service_type::UD);
    pair.other.receive(&[pair.remote_mr.all()]);
    let send = |len| Wqe::send().datagram(pair.other.qpn, 1, QKEY).sge(pair.local_mr.sge(0, len));
    pair.one.run(send(4096)).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 4096 + HEAD as u32);
    pair.one.post_one(send(4097).signaled());
    let cqe = pair.one_cq.wait().unwrap();
    // As hardware says it, where IBTA has "local length" (contract 7.5).
    assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_QP_OP_ERR));
    assert_eq!((cqe::VENDOR_ERR_SYND.get(&cqe.bytes), cqe::HW_ERR_SYND.get(&cqe.bytes)), (0x68, 0x1f));
}

#[test]
fn general_management_datagrams_reach_the_special_queue_pair() {
    let pair = Pair::new();
    let spec =
        QpSpec { service: service_type::QP1, qkey: 0x8001_0000, ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let gsi = Qp::create(&pair.driver.context, spec).unwrap();
    gsi.connect(gsi.peer()).unwrap();
    pair.local.fill_pattern(2);
    gsi.receive(&[pair.remote_mr.sge(0, 1000)]);
    // To itself, under the number that the wire knows.
    gsi.post_one(Wqe::send().datagram(1, 1, 0x8001_0000).sge(pair.local_mr.sge(0, 256)).signaled());
    let (first, second) = (pair.other_cq.wait_ok().unwrap(), pair.other_cq.wait_ok().unwrap());
    let got = if first.opcode() == cqe_opcode::RESP_SEND { first } else { second };
    assert_eq!(got.opcode(), cqe_opcode::RESP_SEND);
    assert_eq!((cqe::RQPN.get(&got.bytes), got.immediate() & 0xffff), (1, 0xffff), "source QPN 1, P_Key's value");
    assert_eq!(got.qpn(), gsi.qpn);
    pair.assert_copied((&pair.local, 0), (&pair.remote, HEAD), 256);
}

#[test]
fn an_unreliable_connection_writes_and_sends() {
    let pair = service(service_type::UC);
    pair.local.fill_pattern(3);
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 5000))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 5000);
    // Without a receive WQE the message is lost, and nobody minds.
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(8192, 100)]);
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 100))).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 100);
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS));
    // READs are not for it.
    pair.one.post_one(Wqe::read(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
}

#[test]
fn a_global_route_arrives_in_the_room_for_it() {
    let pair = service(service_type::UD);
    pair.local.fill_pattern(4);
    pair.other.receive(&[pair.remote_mr.sge(0, 256)]);
    let mut to = [0; av::SIZE];
    for (field, value) in [
        (av::QKEY, QKEY),
        (av::DQPN, pair.other.qpn),
        (av::EXTENDED, 1),
        (av::RLID, 1),
        (av::SL, 3),
        (av::GRH, 1),
        (av::HOP_LIMIT, 9),
    ] {
        field.set(&mut to, value);
    }
    to[av::RGID].copy_from_slice(&[7; 16]);
    pair.one.run(Wqe::new(opcode::SEND_IMM).immediate(5).segment(&to).sge(pair.local_mr.sge(0, 100))).unwrap();
    let got = pair.other_cq.wait_ok().unwrap();
    assert_eq!((got.opcode(), got.immediate(), got.byte_count()), (cqe_opcode::RESP_SEND_IMM, 5, 140));
    assert_eq!((cqe::GRH.get(&got.bytes), cqe::SL.get(&got.bytes)), (1, 3));
    // Version, next header, hop limit, destination and source (IBTA 8.3).
    let grh = pair.remote.bytes(0, HEAD);
    assert_eq!((grh[0] >> 4, grh[6], grh[7], &grh[24..]), (6, 0x1b, 9, &[7; 16][..]));
    let gids = pair.driver.query(Input::new(Opcode::QUERY_HCA_VPORT_GID, 16), 0x20).unwrap();
    assert_eq!(grh[8..24], gids[query_gid_out::GIDS..][..16]);
    pair.assert_copied((&pair.local, 0), (&pair.remote, HEAD), 100);
}

#[test]
fn special_queue_pairs_are_reached_by_their_number_on_the_wire_only() {
    let qkey = 0x8001_0000;
    let pair = Pair::with(|spec| (spec.service, spec.qkey) = (service_type::UD, qkey));
    let spec = QpSpec { service: service_type::QP1, qkey, ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let gsi = Qp::create(&pair.driver.context, spec).unwrap();
    gsi.connect(gsi.peer()).unwrap();
    gsi.receive(&[pair.remote_mr.sge(0, 512)]);
    gsi.receive(&[pair.remote_mr.sge(0, 512)]);
    let send = |qpn| pair.one.run(Wqe::send().datagram(qpn, 1, qkey).sge(pair.local_mr.sge(0, 256))).unwrap();
    send(1);
    let got = pair.other_cq.wait_ok().unwrap();
    assert_eq!((got.qpn(), cqe::RQPN.get(&got.bytes)), (gsi.qpn, pair.one.qpn));
    send(gsi.qpn);
    quiet(&pair);
    gsi.to_reset().unwrap();
    gsi.destroy().unwrap();
    send(1);
    quiet(&pair);
}

#[test]
fn an_unreliable_sender_that_errs_goes_to_sqer_and_receives_on() {
    let pair = service(service_type::UC);
    let write = |key| Wqe::write(pair.remote_mr.va, key).sge(pair.local_mr.sge(0, 8));
    // The responder refuses: lost, and the sender never knows.
    pair.one.run(write(pair.remote_mr.key ^ 1)).unwrap();
    assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
    let bad = Sge { key: pair.local_mr.key ^ 1, ..pair.local_mr.sge(0, 8) };
    pair.one.post(&[Wqe::send().sge(bad).signaled(), write(pair.remote_mr.key).signaled()]);
    let failed = [pair.one_cq.wait().unwrap().syndrome(), pair.one_cq.wait().unwrap().syndrome()];
    assert_eq!(failed, [syndrome::LOCAL_PROT_ERR, syndrome::WR_FLUSH_ERR]);
    assert_eq!(pair.one.queried(qpc::STATE), Ok(state::SQER));
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS));
    pair.remote.fill_pattern(5);
    pair.one.receive(&[pair.local_mr.sge(4096, 64)]);
    pair.other.run(Wqe::send().sge(pair.remote_mr.sge(0, 64))).unwrap();
    assert_eq!(pair.one_cq.wait_ok().unwrap().opcode(), cqe_opcode::RESP_SEND);
    pair.assert_copied((&pair.remote, 0), (&pair.local, 4096), 64);
    // Back in service.
    pair.one.modify(Opcode::SQERR2RTS_QP, 0, &[0; QPC_SIZE]).unwrap();
    pair.local.fill_pattern(6);
    pair.one.run(write(pair.remote_mr.key)).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 8);
}

/// Engines meet at one receiver, which each has to itself for the time of a copy: the others look again, and lose nothing.
#[test]
fn datagrams_of_many_engines_arrive_in_order_at_one_receiver() {
    const LANES: u32 = 4;
    const EACH: u32 = 300;
    let nic = NicConfig { engines: EnginePolicy::Threads(LANES as u8), ..NicConfig::default() };
    let machine = Machine::new(MachineConfig { nic, ..MachineConfig::default() });
    let log_rq = (LANES * EACH).ilog2() + 1;
    let pair = Pair::on(Driver::probe(&std::sync::Arc::new(machine)).unwrap(), |spec| {
        (spec.service, spec.qkey) = (service_type::UD, QKEY);
    });
    let driver = &pair.driver;
    let recv_cq = driver.create_cq(log_rq).unwrap();
    let spec = QpSpec { service: service_type::UD, qkey: QKEY, ..QpSpec::rc(driver, pair.pd, &recv_cq) };
    let receiver = Qp::create(&driver.context, QpSpec { log_rq, ..spec.clone() }).unwrap();
    receiver.connect(receiver.peer()).unwrap();
    for _ in 0..LANES * EACH {
        receiver.receive(&[pair.remote_mr.sge(0, HEAD as u32 + 4096)]);
    }
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            let (pair, receiver, spec) = (&pair, &receiver, &spec);
            scope.spawn(move || {
                let cq = driver.create_cq(6).unwrap();
                let (send_cq, recv_cq) = (cq.clone(), cq);
                let spec = QpSpec { uar: driver.alloc_uar().unwrap(), send_cq, recv_cq, ..spec.clone() };
                let sender = Qp::create(&driver.context, spec).unwrap();
                sender.connect(sender.peer()).unwrap();
                for _ in 0..EACH {
                    let wqe = Wqe::send().datagram(receiver.qpn, 1, QKEY).sge(pair.local_mr.sge(0, 4096));
                    sender.run(wqe).unwrap();
                }
            });
        }
    });
    for at in 0..LANES * EACH {
        assert_eq!(u32::from(recv_cq.wait_ok().unwrap().wqe_counter()), at);
    }
}
