// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Probe, unload, resets, interrupts.

use std::sync::Arc;
use std::time::Duration;

use mlx5::NicConfig;
use mlx5_spec::caps::{cap_mode, cap_type, cmd_hca_cap};
use mlx5_spec::cmd::{Opcode, status};
use rnic_testdrive::command::Input;
use rnic_testdrive::driver::{health_counter, query_caps};
use rnic_testdrive::{Driver, Machine, MachineConfig, ProbeOptions, Wqe};

use crate::scene::{Pair, machine};

/// Numbers of live objects, by table.
fn objects(machine: &Machine) -> Vec<usize> {
    let hca = machine.nic.hca();
    vec![
        hca.eqs.len(),
        hca.cqs.len(),
        hca.qps.len(),
        hca.srqs.len(),
        hca.mkeys.len(),
        hca.pds.len(),
        hca.xrcds.len(),
        hca.uars.len(),
    ]
}

#[test]
fn probe_and_unload_leave_nothing() {
    let machine = machine();
    for command_events in [true, false, true] {
        let options = ProbeOptions { command_events, ..ProbeOptions::default() };
        let driver = Driver::probe_with(&machine, options).unwrap();
        assert_eq!(objects(&machine), [4, 0, 0, 0, 1, 1, 0, 1]);
        assert_eq!(driver.commands.strays(), 0);
        let pair = Pair::on(driver, |_| ());
        pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
        pair.tear_down();
        assert_eq!(objects(&machine), [0; 8]);
        assert!(machine.doorbells.len() <= 1, "doorbells of UAR pages stay attached");
    }
}

#[test]
fn works_without_ioeventfds() {
    let machine = Arc::new(Machine::new(MachineConfig { ioeventfds: false, ..MachineConfig::default() }));
    let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    pair.local.fill_pattern(1);
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.all())).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), pair.local.len);
    pair.tear_down();
    assert_eq!(objects(&machine), [0; 8]);
}

#[test]
fn unknown_commands_are_refused_with_their_opcode() {
    let driver = Driver::probe(&machine()).unwrap();
    let error = driver.command(Input::new(Opcode(0xbbb), 16)).unwrap_err();
    assert_eq!(error.status(), Some(status::BAD_OP));
    assert!(error.to_string().contains("0xaa0bbb"), "{error}");
    assert_eq!(driver.command(Input::new(Opcode(0), 16)).unwrap_err().status(), Some(status::BAD_OP));
    driver.remove().unwrap();
}

#[test]
fn many_commands_in_flight_complete_once_each() {
    let driver = Driver::probe(&machine()).unwrap();
    let input = Input::new(Opcode::ALLOC_PD, 16).finish();
    let pending: Vec<_> = (0..31).map(|_| driver.commands.start(&input, 16)).collect();
    driver.commands.doorbell(u32::MAX >> 1);
    let mut pds: Vec<_> = pending.into_iter().map(|one| driver.commands.finish(one).unwrap()[8..12].to_vec()).collect();
    pds.sort();
    pds.dedup();
    assert_eq!(pds.len(), 31);
    assert_eq!(driver.commands.strays(), 0);
}

#[test]
fn odp_off_offers_no_paging() {
    let nic = NicConfig { odp: false, ..NicConfig::default() };
    let machine = Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }));
    let driver = Driver::probe(&machine).unwrap();
    assert_eq!(driver.capability(cmd_hca_cap::PG).unwrap(), 0);
    driver.remove().unwrap();
}

#[test]
fn capabilities_that_were_set_are_read_back() {
    let driver = Driver::probe(&crate::scene::machine()).unwrap();
    let atomic = query_caps(&driver.commands, cap_type::ATOMIC, cap_mode::CUR).unwrap();
    assert_eq!(mlx5_spec::caps::atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE.get(&atomic), 1);
    assert_eq!(driver.capability(cmd_hca_cap::PG).unwrap(), 1);
    assert_eq!(driver.capability(cmd_hca_cap::XRC).unwrap(), 1);
    assert_eq!(driver.capability(cmd_hca_cap::LOG_BF_REG_SIZE).unwrap(), 9);
}

#[test]
fn the_health_counter_moves() {
    let driver = Driver::probe(&machine()).unwrap();
    let before = health_counter(&driver.bar);
    driver.until("a new health counter", || health_counter(&driver.bar) != before).unwrap();
}

#[test]
fn a_new_probe_without_unload_starts_afresh() {
    let machine = machine();
    let first = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    // As after kexec: the old driver is gone, its objects are not (contract 12.3, 15.7).
    let second = Driver::probe(&machine).unwrap();
    assert_eq!(objects(&machine), [4, 0, 0, 0, 1, 1, 0, 1]);
    drop(first);
    Pair::on(second, |_| ()).tear_down();
    assert_eq!(objects(&machine), [0; 8]);
}

#[test]
fn resets_return_to_power_on() {
    type Reset = fn(&Machine);
    let resets: [(&str, Reset); 2] = [("function", Machine::function_reset), ("platform", Machine::reset)];
    for (name, reset) in resets {
        let machine = machine();
        let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
        reset(&machine);
        assert_eq!(objects(&machine), [0; 8], "{name}");
        // What the old driver still does is without effect.
        pair.remote.fill(0, pair.remote.len, 0xee);
        pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.all()).signaled());
        std::thread::sleep(Duration::from_millis(20));
        assert!(pair.one_cq.poll().is_none(), "{name}");
        assert!(pair.remote.bytes(0, pair.remote.len).iter().all(|byte| *byte == 0xee), "{name}");
        Pair::on(Driver::probe(&machine).unwrap(), |_| ()).tear_down();
        assert_eq!(objects(&machine), [0; 8], "{name}");
    }
}

#[test]
fn without_bus_mastering_nothing_moves() {
    let pair = Pair::new();
    let machine = pair.driver.machine.clone();
    machine.set_bus_master(false);
    pair.remote.fill(0, pair.remote.len, 0xee);
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.all()).signaled());
    std::thread::sleep(Duration::from_millis(20));
    assert!(pair.one_cq.poll().is_none());
    assert!(pair.remote.bytes(0, pair.remote.len).iter().all(|byte| *byte == 0xee));
    machine.set_bus_master(true);
    pair.one.ring();
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), pair.remote.len);
}
