// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A NIC that is told to stand moves nothing, begins no command, and forgets nothing.

use std::time::Duration;

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::vport::query_context_out;
use rnic_testdrive::Wqe;
use rnic_testdrive::command::Input;

use crate::scene::Pair;

const QUIET: Duration = Duration::from_millis(50);

#[test]
fn what_is_rung_for_waits_until_it_goes_on() {
    let pair = Pair::new();
    let nic = pair.driver.machine.nic.clone();
    pair.local.fill_pattern(1);
    for round in 0..20u64 {
        let at = round * 512;
        assert!(nic.pause());
        let before = nic.hca().counters.wqes.get();
        let write = Wqe::write(pair.remote_mr.va + at, pair.remote_mr.key).sge(pair.local_mr.sge(at, 512)).signaled();
        pair.one.post_one(write);
        std::thread::sleep(QUIET / 10);
        assert!(pair.one_cq.poll().is_none());
        assert_eq!(nic.hca().counters.wqes.get(), before);
        nic.resume();
        pair.one_cq.wait_ok().unwrap();
        pair.assert_copied((&pair.local, at), (&pair.remote, at), 512);
    }
    pair.tear_down();
}

#[test]
fn a_command_waits_too_and_so_does_one_that_is_late() {
    let pair = Pair::new();
    let nic = pair.driver.machine.nic.clone();
    let delay = NicRule::new(2, NicAction::CommandDelay { ms: 1 });
    nic.injections().add(delay.on(WqeMatch::command(Opcode::QUERY_HCA_VPORT_CONTEXT)));
    for _ in 0..2 {
        assert!(nic.pause());
        let (driver, before) = (pair.driver.clone(), nic.hca().counters.commands.get());
        let asks = move || driver.query(Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16), query_context_out::SIZE);
        let asks = std::thread::spawn(asks);
        std::thread::sleep(QUIET);
        assert!(!asks.is_finished());
        assert_eq!(nic.hca().counters.commands.get(), before);
        assert_eq!(nic.inspect()["paused"], true, "it can be looked at");
        nic.resume();
        asks.join().unwrap().unwrap();
    }
    pair.tear_down();
}

#[test]
fn a_late_command_is_not_executed_while_it_stands() {
    let pair = Pair::new();
    let nic = pair.driver.machine.nic.clone();
    let delay = NicRule::new(1, NicAction::CommandDelay { ms: 100 });
    nic.injections().add(delay.on(WqeMatch::command(Opcode::QUERY_HCA_VPORT_CONTEXT)));
    let driver = pair.driver.clone();
    let asks = move || driver.query(Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16), query_context_out::SIZE);
    let asks = std::thread::spawn(asks);
    while nic.injections().rules()[0].fired == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(nic.pause());
    let before = nic.hca().counters.commands.get();
    std::thread::sleep(Duration::from_millis(100) + QUIET);
    assert_eq!(nic.hca().counters.commands.get(), before, "its time has come meanwhile");
    nic.resume();
    asks.join().unwrap().unwrap();
    pair.tear_down();
}

#[test]
fn a_reset_and_the_end_wait_for_nothing_of_it() {
    let pair = Pair::new();
    let nic = pair.driver.machine.nic.clone();
    assert!(nic.pause() && nic.pause(), "twice is once");
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    pair.driver.machine.function_reset();
    assert_eq!(nic.objects(), 0);
    // Dropped while it stands.
    drop(pair);
}
