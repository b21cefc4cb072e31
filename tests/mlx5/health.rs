// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections of the device as a whole: its health, its port, whether it is there (contract 2, 12).

use std::sync::Arc;
use std::time::Duration;

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome as cqe_syndrome};
use mlx5_spec::eq::{event, port_change};
use mlx5_spec::init::{CMDQ_ADDR_L_SZ, HEALTH_BUFFER, nic_interface, syndrome};
use mlx5_spec::vport::{hca_vport_context as vport, port_state, query_context_out};
use mlx5_spec::wqe::opcode as wqe;
use rnic_testdrive::command::Input;
use rnic_testdrive::driver::health_counter;
use rnic_testdrive::{Driver, Machine, PATIENCE, Wqe};

use crate::scene::{Pair, machine};

/// The health counter moves ten times a second.
const MOVES: Duration = Duration::from_millis(250);

fn inject(machine: &Machine, nth: u32, action: NicAction, what: WqeMatch) {
    machine.nic.injections().add(NicRule::new(nth, action).on(what)).unwrap();
}

/// The byte with RFR and severity, the syndrome: as drivers read them.
fn health(driver: &Driver) -> (u8, u8) {
    let byte = |at| {
        let mut byte = [0];
        driver.bar.read(HEALTH_BUFFER as u64 + at, &mut byte);
        byte[0]
    };
    (byte(0x38), byte(0x3d))
}

fn interface(driver: &Driver) -> u32 {
    driver.bar.read32(CMDQ_ADDR_L_SZ as u64) >> 8 & 7
}

fn nop(driver: &Driver) -> rnic_testdrive::command::Pending {
    let pending = driver.commands.start(&Input::new(Opcode::NOP, 16).finish(), 16);
    driver.commands.ring(&pending);
    pending
}

/// Its entry stays the device's. There is no sign of it that could be waited for.
fn assert_unanswered(driver: &Driver) {
    let pending = nop(driver);
    let before = driver.commands.entry(pending.slot());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(driver.commands.entry(pending.slot()), before);
}

#[test]
fn the_health_counter_stands_still_until_a_reset() {
    let machine = machine();
    let driver = Driver::probe(&machine).unwrap();
    let moves = |driver: &Driver| {
        let before = health_counter(&driver.bar);
        std::thread::sleep(MOVES);
        health_counter(&driver.bar) != before
    };
    assert!(moves(&driver));
    inject(&machine, 2, NicAction::HealthStuck, WqeMatch::default());
    // Commands are no readings.
    driver.alloc_pd().unwrap();
    driver.alloc_pd().unwrap();
    health_counter(&driver.bar);
    assert!(!moves(&driver));
    assert_eq!(health(&driver), (0, 0));
    driver.alloc_pd().unwrap();
    machine.function_reset();
    let driver = Driver::probe(&machine).unwrap();
    assert!(moves(&driver));
}

#[test]
fn the_health_buffer_tells_of_an_error_and_the_device_works_on() {
    let pair = Pair::new();
    let action = NicAction::HealthError { syndrome: syndrome::HIGH_TEMPERATURE as u8 };
    inject(&pair.driver.machine, 1, action, WqeMatch::command(Opcode::ALLOC_PD));
    health_counter(&pair.driver.bar);
    assert_eq!(health(&pair.driver), (0, 0), "of commands only");
    pair.driver.alloc_pd().unwrap();
    assert_eq!(health(&pair.driver), (0x08 | 3, 0x10), "severity valid: error; no reset is asked for");
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    assert_eq!(interface(&pair.driver), nic_interface::FULL);
    pair.driver.machine.reset();
    let driver = Driver::probe(&pair.driver.machine);
    assert_eq!(health(&driver.unwrap()), (0, 0));
}

/// Contract 12.3: the driver sees RFR with a syndrome, waits for a disabled interface, and loads again.
#[test]
fn a_fatal_error_ends_in_a_disabled_interface_from_which_a_driver_begins_anew() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    let action = NicAction::FatalError { syndrome: syndrome::UNRECOVERABLE_HW as u8 };
    inject(machine, 1, action, WqeMatch::default());
    health_counter(&pair.driver.bar);
    assert_unanswered(&pair.driver);
    assert_eq!(interface(&pair.driver), nic_interface::FULL, "as long as no driver has seen it");
    assert!(machine.nic.objects() > 0);
    assert_eq!(health(&pair.driver), (0x80 | 0x08 | 2, 8));
    pair.driver.until("disabled interface", || interface(&pair.driver) == nic_interface::DISABLED).unwrap();
    assert_eq!((machine.nic.objects(), health(&pair.driver)), (0, (0x80 | 0x08 | 2, 8)), "it still says why");
    assert_ne!(health_counter(&pair.driver.bar), 0);
    let driver = Driver::probe(machine).unwrap();
    assert_eq!(health(&driver), (0, 0));
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(interface(&driver), nic_interface::FULL, "it does not disable it once more");
    Pair::on(driver, |_| ()).tear_down();
}

/// Registers, configuration space, DMA, messages.
fn assert_gone(machine: &Machine, pair: &Pair, vectors: u64) {
    let mut entry = [0; 4];
    machine.mmio_read(vectors, &mut entry);
    let read =
        [pair.driver.bar.read32(HEALTH_BUFFER as u64 + 0x30), machine.config_read32(0), u32::from_le_bytes(entry)];
    assert_eq!(read, [u32::MAX; 3]);
    assert!(!machine.nic.hca().dma.is_enabled());
    machine.set_bus_master(true);
    assert!(!machine.nic.hca().dma.is_enabled(), "what is written does nothing");
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
    assert_unanswered(&pair.driver);
}

#[test]
fn a_device_that_is_pulled_out_is_back_after_its_time() {
    // Whoever brings it about: a reading of the health counter, a command.
    for command in [None, Some(Opcode::NOP)] {
        let pair = Pair::new();
        let machine = &pair.driver.machine;
        let vectors = machine.bar(2);
        pair.local.fill_pattern(1);
        let what = command.map_or(WqeMatch::default(), WqeMatch::command);
        inject(machine, 1, NicAction::AllOnes { ms: 1000 }, what);
        match command {
            None => assert_eq!(health_counter(&pair.driver.bar), u32::MAX),
            Some(_) => {
                nop(&pair.driver);
                pair.driver.until("its going", || !machine.nic.hca().dma.is_enabled()).unwrap();
            }
        }
        assert_gone(machine, &pair, vectors);
        pair.driver.until("its return", || machine.config_read32(0) != u32::MAX).unwrap();
        assert_eq!((interface(&pair.driver), machine.nic.objects()), (nic_interface::DISABLED, 0));
        assert!(machine.nic.hca().dma.is_enabled(), "configuration space is as it was");
        Pair::on(Driver::probe(machine).unwrap(), |_| ()).tear_down();
    }
}

/// Nothing of what is in flight lands once the reset has begun.
#[test]
fn a_function_that_is_reset_in_flight_is_back_without_what_it_had_been_told() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    pair.local.fill_pattern(1);
    inject(machine, 1, NicAction::FunctionReset, WqeMatch::opcode(wqe::RDMA_WRITE as u8));
    let write = |at| Wqe::write(pair.remote_mr.va + at, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled();
    pair.one.post(&[write(0), write(8)]);
    pair.driver.until("its reset", || !machine.nic.hca().dma.is_enabled()).unwrap();
    pair.driver.until("its return", || machine.config_read32(0) != u32::MAX).unwrap();
    assert_eq!((interface(&pair.driver), machine.nic.objects()), (nic_interface::DISABLED, 0));
    assert_eq!(pair.remote.bytes(0, 16), [0; 16], "in flight, and posted behind it");
    Pair::on(Driver::probe(machine).unwrap(), |_| ()).tear_down();
}

#[test]
fn a_device_that_is_gone_for_good_comes_back_with_a_power_cycle_only() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    let vectors = machine.bar(2);
    inject(machine, 1, NicAction::AllOnes { ms: 0 }, WqeMatch::default());
    health_counter(&pair.driver.bar);
    assert_gone(machine, &pair, vectors);
    machine.reset();
    assert!(!machine.nic.hca().dma.is_enabled());
    assert_ne!(machine.config_read32(0), u32::MAX);
    Pair::on(Driver::probe(machine).unwrap(), |_| ()).tear_down();
}

fn state(driver: &Arc<Driver>) -> u32 {
    let query = Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16);
    let answer = driver.query(query, query_context_out::SIZE).unwrap();
    vport::VPORT_STATE.plus(query_context_out::HCA_VPORT_CONTEXT).get(&answer)
}

#[test]
fn the_port_goes_down_and_up_with_its_events_and_nothing_is_answered_meanwhile() {
    // 4.096 us << 4, twice.
    let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1));
    let driver = &pair.driver;
    pair.local.fill_pattern(1);
    assert_eq!(state(driver), port_state::ACTIVE);
    inject(&driver.machine, 1, NicAction::PortDown { ms: 500 }, WqeMatch::default());
    health_counter(&driver.bar);
    assert_eq!(state(driver), port_state::DOWN);
    let change = |driver: &Driver| {
        let event = driver.async_event(PATIENCE).unwrap();
        (event.event_type(), event.sub_type(), event.bytes[0x28] >> 4)
    };
    assert_eq!(change(driver), (event::PORT_CHANGE, port_change::DOWN, 1));
    let write = || Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled();
    pair.one.post_one(write());
    let outcome = pair.one_cq.wait().unwrap().outcome();
    assert_eq!(outcome, (cqe_opcode::REQ_ERR, cqe_syndrome::TRANSPORT_RETRY_EXC_ERR));
    assert_eq!(change(driver), (event::PORT_CHANGE, port_change::ACTIVE, 1));
    assert_eq!(state(driver), port_state::ACTIVE);
    let fresh = Pair::on(driver.clone(), |_| ());
    fresh.one.run(Wqe::write(fresh.remote_mr.va, fresh.remote_mr.key).sge(fresh.local_mr.sge(0, 8))).unwrap();
}

/// It is the port's time, not that of a driver that goes meanwhile.
#[test]
fn the_port_comes_up_without_a_driver() {
    let machine = machine();
    let driver = Driver::probe(&machine).unwrap();
    inject(&machine, 1, NicAction::PortDown { ms: 20 }, WqeMatch::default());
    health_counter(&driver.bar);
    driver.commands.use_events(None);
    driver.command(Input::new(Opcode::TEARDOWN_HCA, 16)).unwrap();
    driver.until("port", || machine.nic.hca().port.is_up()).unwrap();
}

#[test]
fn a_reset_brings_the_port_up() {
    let machine = machine();
    let driver = Driver::probe(&machine).unwrap();
    inject(&machine, 1, NicAction::PortDown { ms: u32::MAX }, WqeMatch::default());
    health_counter(&driver.bar);
    assert_eq!(state(&driver), port_state::DOWN);
    machine.function_reset();
    assert_eq!(state(&Driver::probe(&machine).unwrap()), port_state::ACTIVE);
}

/// A cable that is pulled keeps the port down beyond an injection's time and beyond a reset, and the driver hears only of what changes.
#[test]
fn a_port_is_down_as_long_as_one_cause_lasts() {
    let machine = machine();
    let driver = Driver::probe(&machine).unwrap();
    let change = |driver: &Arc<Driver>| {
        let eqe = driver.async_event(PATIENCE).unwrap();
        (eqe.event_type(), eqe.sub_type())
    };
    assert!(machine.nic.set_port(false));
    assert_eq!(change(&driver), (event::PORT_CHANGE, port_change::DOWN));
    inject(&machine, 1, NicAction::PortDown { ms: 20 }, WqeMatch::default());
    health_counter(&driver.bar);
    driver.until("the injection's end", || machine.nic.hca().later.next().is_none()).unwrap();
    assert!(!machine.nic.port_is_up());
    assert!(machine.nic.set_port(true));
    assert_eq!(change(&driver), (event::PORT_CHANGE, port_change::ACTIVE));
    assert!(driver.async_eq.poll().is_none(), "no event for a cause that changed nothing");
    inject(&machine, 1, NicAction::PortDown { ms: u32::MAX }, WqeMatch::default());
    health_counter(&driver.bar);
    machine.nic.set_port(false);
    machine.function_reset();
    assert!(!machine.nic.port_is_up(), "a reset puts no cable back");
    assert!(machine.nic.set_port(true) && machine.nic.port_is_up());
}
