// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bus mastering, power states and resets as registers and interrupts show them.

use std::time::Duration;

use mlx5_spec::init::{CMDQ_ADDR_L_SZ, nic_interface};
use rnic_testdrive::driver::{COMPLETION_VECTOR, health_counter};
use rnic_testdrive::{Driver, Machine, PATIENCE, Wqe};

use crate::scene::{Pair, machine};

fn write(pair: &Pair) -> Wqe {
    Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))
}

/// A completion event lies in its queue, whose interrupt nobody has asked for yet.
fn with_an_event() -> Pair {
    let pair = Pair::new();
    pair.one_cq.arm(false);
    pair.one.run(write(&pair)).unwrap();
    // The event was published before its completion was polled or soon after: an unarmed queue shows it all the same.
    let hca = pair.driver.machine.nic.hca().clone();
    let eq = hca.eqs.get(pair.driver.comp_eq.eqn).unwrap();
    pair.driver.until("event", || eq.indices().0 > eq.indices().1 || !eq.indices().2).unwrap();
    pair
}

fn interrupts(machine: &Machine) -> u64 {
    machine.interrupts.count(u32::from(COMPLETION_VECTOR))
}

/// What takes the right to write memory away (false), and gives it back.
type Silence = fn(&Machine, bool);
const SILENCES: [(&str, Silence); 2] = [
    ("bus mastering", |machine, on| machine.set_bus_master(on)),
    ("D3hot", |machine, on| machine.set_power_state(if on { 0 } else { 3 })),
];

#[test]
fn a_message_waits_until_the_function_may_write_memory() {
    for (name, silence) in SILENCES {
        let pair = with_an_event();
        let machine = &pair.driver.machine;
        let before = interrupts(machine);
        silence(machine, false);
        // By its own way into the device: in D3hot no BAR answers.
        machine.nic.hca().msix.trigger(COMPLETION_VECTOR);
        machine.nic.hca().msix.trigger(COMPLETION_VECTOR);
        assert_eq!(interrupts(machine), before, "{name}: an MSI-X message is a memory write");
        silence(machine, true);
        assert_eq!(interrupts(machine), before + 1, "{name}: what was latched comes once");
    }
}

#[test]
fn what_was_posted_meanwhile_is_executed_when_the_function_comes_back() {
    for (name, silence) in SILENCES {
        let pair = Pair::new();
        let machine = pair.driver.machine.clone();
        silence(&machine, false);
        pair.one.post_one(write(&pair).signaled());
        std::thread::sleep(Duration::from_millis(5));
        assert!(!pair.one_cq.has_entry(), "{name}: a completion was written");
        silence(&machine, true);
        pair.one_cq.wait_for(PATIENCE).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn in_d3hot_only_configuration_space_answers() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    let bar = machine.bar(0);
    let read = || {
        let mut bytes = [0; 4];
        machine.mmio_read(bar + CMDQ_ADDR_L_SZ as u64, &mut bytes);
        u32::from_be_bytes(bytes)
    };
    let running = read();
    machine.set_power_state(3);
    assert_eq!(read(), u32::MAX, "the driver's health poll takes that for a lost device");
    assert!(machine.doorbells.is_empty(), "a doorbell is still an eventfd");
    assert_eq!(machine.config_read16(0), 0x15b3);
    machine.set_power_state(1);
    assert_eq!(read(), u32::MAX, "D1 is not offered: nothing changes");
    machine.set_power_state(0);
    assert_eq!(read(), running, "no soft reset");
    pair.one.run(write(&pair)).unwrap();
}

/// The driver's health poll reads nic_interface and the health counter every 2 s (contract 2).
#[test]
fn a_bound_driver_sees_a_function_reset_in_the_segment() {
    let machine = machine();
    let driver = Driver::probe(&machine).unwrap();
    let interface = || driver.bar.read32(CMDQ_ADDR_L_SZ as u64) >> 8 & 7;
    assert_eq!(interface(), nic_interface::FULL);
    machine.function_reset();
    machine.enable();
    assert_eq!(interface(), nic_interface::DISABLED);
    // It waits for the counter to move before it loads again (contract 12.3).
    let before = health_counter(&driver.bar);
    driver.until("tick of the health counter", || health_counter(&driver.bar) != before).unwrap();
    let again = Driver::probe(&machine).unwrap();
    assert_eq!(interface(), nic_interface::FULL);
    again.remove().unwrap();
}
