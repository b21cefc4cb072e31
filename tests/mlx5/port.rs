// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port's link: pulled and put back.

use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{eqe_port, event, port_change};
use mlx5_spec::vport::{hca_vport_context as context, physical_state, port_state, query_context_out};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Driver, Machine, MachineConfig, PATIENCE, Wqe};

use crate::scene::Pair;

fn states(driver: &Driver) -> (u32, u32, u32) {
    let input = Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16);
    let reply = driver.query(input, query_context_out::SIZE).unwrap();
    let at = query_context_out::HCA_VPORT_CONTEXT;
    let [vport, port, physical] = [context::VPORT_STATE, context::PORT_STATE, context::PORT_PHYSICAL_STATE];
    (vport.plus(at).get(&reply), port.plus(at).get(&reply), physical.plus(at).get(&reply))
}

fn told(driver: &Driver) -> (u32, u32, u32) {
    let eqe = driver.async_event(PATIENCE).unwrap();
    (eqe.event_type(), eqe.sub_type(), eqe_port::PORT_NUM.get(&eqe.bytes))
}

const UP: (u32, u32, u32) = (port_state::ACTIVE, port_state::ACTIVE, physical_state::LINK_UP);

#[test]
fn the_driver_hears_of_each_change_once() {
    let pair = Pair::new();
    let (driver, nic) = (&pair.driver, &pair.driver.machine.nic);
    assert!(nic.port_is_up() && !nic.set_port(true));
    assert_eq!(states(driver), UP);
    assert!(nic.set_port(false) && !nic.set_port(false));
    assert_eq!(told(driver), (event::PORT_CHANGE, port_change::DOWN, 1));
    assert_eq!(states(driver), (port_state::DOWN, port_state::DOWN, physical_state::POLLING));
    assert!(nic.set_port(true));
    assert_eq!(told(driver), (event::PORT_CHANGE, port_change::ACTIVE, 1));
    assert_eq!(states(driver), UP);
    std::thread::sleep(Duration::from_millis(10));
    assert!(driver.async_eq.poll().is_none());
    pair.tear_down();
}

#[test]
fn nothing_goes_over_a_port_that_is_down() {
    // 4.096 us << 4, twice.
    let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1));
    let write = || Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled();
    // The peer has been found before.
    pair.one.run(write()).unwrap();
    pair.driver.machine.nic.set_port(false);
    pair.one.post_one(write());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR);
    pair.driver.machine.nic.set_port(true);
    pair.tear_down();
}

#[test]
fn a_message_that_has_patience_arrives_when_the_port_comes_up() {
    // No timeout.
    let pair = Pair::with(|spec| spec.ack_timeout = 0);
    pair.local.fill_pattern(1);
    pair.driver.machine.nic.set_port(false);
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 512)).signaled());
    std::thread::sleep(Duration::from_millis(20));
    assert!(pair.one_cq.poll().is_none());
    pair.driver.machine.nic.set_port(true);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 512);
    pair.tear_down();
}

#[test]
fn a_peers_port_counts_as_well() {
    let machines = Machine::with_nics(MachineConfig::default(), 2);
    let nics: Vec<_> = machines.iter().map(|machine| machine.nic.clone()).collect();
    let reaches = |lid| mlx5::fabric::resolve(nics[0].hca(), lid).is_some();
    assert!(reaches(1) && reaches(2));
    nics[1].set_port(false);
    assert!(reaches(1) && !reaches(2));
    nics[1].set_port(true);
    nics[0].set_port(false);
    assert!(!reaches(1) && !reaches(2));
}
