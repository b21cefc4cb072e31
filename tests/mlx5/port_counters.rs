// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Port counters: what QUERY_VPORT_COUNTER and PPCNT tell of the traffic, computed here from the headers that the IBTA gives a packet.

use mlx5_spec::cmd::Opcode;
use mlx5_spec::qp::service_type;
use mlx5_spec::reg::{access_in, access_out, ib_port_counters as counters, id, op_mod, ppcnt, ppcnt_grp};
use mlx5_spec::small::{query_vport_counter_in as vport_in, query_vport_counter_out as vport};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::command::Input;
use rnic_testdrive::{Driver, PATIENCE, Wqe};

use crate::scene::Pair;
use crate::two_nics::{VA, sides};
use probe::Patience;

/// LRH, BTH, ICRC.
const EACH: u64 = 8 + 12 + 4;
/// An acknowledgement.
const ACK: u64 = EACH + 4;

/// Packets and octets sent, received, and sent to itself.
type Seen = [(u64, u64); 3];

fn seen(driver: &Driver, clear: bool) -> Seen {
    let input = Input::new(Opcode::QUERY_VPORT_COUNTER, vport_in::SIZE).with(vport_in::CLEAR, clear.into());
    let reply = driver.query(input, vport::SIZE).unwrap();
    [
        (vport::TRANSMITTED_IB_UNICAST_PACKETS, vport::TRANSMITTED_IB_UNICAST_OCTETS),
        (vport::RECEIVED_IB_UNICAST_PACKETS, vport::RECEIVED_IB_UNICAST_OCTETS),
        (vport::LOCAL_LOOPBACK_PACKETS, vport::LOCAL_LOOPBACK_OCTETS),
    ]
    .map(|(packets, octets)| (packets.get(&reply), octets.get(&reply)))
}

/// The engine tells them when its turn has ended, after the completion.
fn comes_to(driver: &Driver, wanted: Seen) {
    let mut patience = Patience::new(PATIENCE);
    while seen(driver, false) != wanted {
        assert!(!patience.is_over(), "{:?}, not {wanted:?}", seen(driver, false));
        std::thread::yield_now();
    }
}

/// PPCNT: how often the link went down, words sent and received, packets sent and received.
fn register(driver: &Driver, group: u32, clear: bool) -> [u32; 5] {
    let at = access_in::REGISTER_DATA;
    let input = Input::new(Opcode::ACCESS_REG, access_in::SIZE + ppcnt::SIZE)
        .op_mod(op_mod::READ)
        .with(access_in::REGISTER_ID, id::PPCNT)
        .with(ppcnt::LOCAL_PORT.plus(at), 1)
        .with(ppcnt::GRP.plus(at), group)
        .with(ppcnt::CLR.plus(at), clear.into());
    let reply = driver.query(input, access_out::SIZE + ppcnt::SIZE).unwrap();
    let reply = &reply[access_out::REGISTER_DATA..];
    assert_eq!((ppcnt::LOCAL_PORT.get(reply), ppcnt::GRP.get(reply)), (1, group));
    [
        counters::LINK_DOWNED_COUNTER,
        counters::PORT_XMIT_DATA,
        counters::PORT_RCV_DATA,
        counters::PORT_XMIT_PKTS,
        counters::PORT_RCV_PKTS,
    ]
    .map(|field| field.plus(ppcnt::COUNTER_SET).get(reply))
}

#[test]
fn two_ports_count_the_same_from_both_ends() {
    let sides = sides(|_| ());
    let [a, b] = &sides;
    let none = [(0, 0); 3];
    assert_eq!((seen(&a.driver, false), seen(&b.driver, false)), (none, none));
    // At an MTU of 4096: eight packets, five, two, one.
    a.qp.run(Wqe::write(VA, b.mr.key).sge(a.mr.sge(0, 30_000))).unwrap();
    a.qp.run(Wqe::read(VA, b.mr.key).sge(a.mr.sge(0, 20_000))).unwrap();
    b.qp.receive(&[b.mr.sge(0, 5000)]);
    a.qp.run(Wqe::send().sge(a.mr.sge(0, 4999))).unwrap();
    a.qp.run(Wqe::fetch_add(VA, b.mr.key, 5).sge(a.mr.sge(0, 8))).unwrap();
    let there = 8 * EACH + 16 + 30_000 + EACH + 16 + 2 * EACH + 5000 + EACH + 28;
    let back = ACK + 5 * EACH + 2 * 4 + 20_000 + ACK + ACK + 8;
    comes_to(&a.driver, [(12, there), (8, back), (0, 0)]);
    comes_to(&b.driver, [(8, back), (12, there), (0, 0)]);
    let words = [0, there as u32 / 4, back as u32 / 4, 12, 8];
    assert_eq!(register(&a.driver, ppcnt_grp::IB_PORT_COUNTERS, false), words);
    // Each way of asking begins anew by itself.
    assert_eq!(seen(&a.driver, true), [(12, there), (8, back), (0, 0)]);
    assert_eq!(seen(&a.driver, false), none);
    assert_eq!(register(&a.driver, ppcnt_grp::IB_PORT_COUNTERS, true), words);
    assert_eq!(register(&a.driver, ppcnt_grp::IB_PORT_COUNTERS, false), [0; 5]);
    comes_to(&b.driver, [(8, back), (12, there), (0, 0)]);
    // Extended counters (0x21) are another group.
    assert_eq!(register(&b.driver, 0x21, false), [0; 5]);
}

#[test]
fn a_port_that_talks_to_itself_has_both_ends() {
    let pair = Pair::new();
    pair.other.receive(&[pair.remote_mr.all()]);
    let write = Wqe::new(opcode::RDMA_WRITE_IMM).remote(pair.remote_mr.va, pair.remote_mr.key).immediate(7);
    pair.one.run(write.sge(pair.local_mr.sge(0, 5))).unwrap();
    pair.one.run(Wqe::nop()).unwrap();
    let all = (2, EACH + 16 + 4 + 8 + ACK);
    comes_to(&pair.driver, [all; 3]);
    pair.tear_down();
}

#[test]
fn a_datagram_is_sent_whoever_takes_it() {
    let pair = Pair::with(|spec| spec.service = service_type::UD);
    let send = |qpn, lid| Wqe::send().datagram(qpn, lid, 0).sge(pair.local_mr.sge(0, 100));
    let each = EACH + 8 + 100;
    // Nobody has the LID.
    pair.one.run(send(pair.other.qpn, 9)).unwrap();
    comes_to(&pair.driver, [(1, each), (0, 0), (0, 0)]);
    // The port has the LID, and no such queue pair.
    pair.one.run(send(0x00ab_cdef, 1)).unwrap();
    comes_to(&pair.driver, [(2, 2 * each), (1, each), (1, each)]);
    // Nothing goes over a port that is down.
    pair.driver.machine.nic.set_port(false);
    pair.one.run(send(pair.other.qpn, 1)).unwrap();
    pair.driver.machine.nic.set_port(true);
    pair.one.run(send(pair.other.qpn, 1)).unwrap();
    comes_to(&pair.driver, [(3, 3 * each), (2, 2 * each), (2, 2 * each)]);
    assert_eq!(register(&pair.driver, ppcnt_grp::IB_PORT_COUNTERS, false)[0], 1);
    pair.tear_down();
}
