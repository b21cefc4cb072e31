// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How everything goes at once, and where doorbells are meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mlx5::{EnginePolicy, NicConfig};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::init::{CMDQ_ADDR_L_SZ, nic_interface};
use mlx5_spec::qp::state;
use mlx5_spec::small::{teardown_hca_in, teardown_hca_out, teardown_profile};
use mlx5_spec::uar;
use pci::config::{BAR0, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use rnic_testdrive::command::{Bar, Commands, Input};
use rnic_testdrive::{Driver, Machine, MachineConfig};

use crate::scene::{Pair, machine};

#[test]
fn a_function_reset_ends_lives_and_takes_doorbells_away() {
    let machine = machine();
    let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    let qp = machine.nic.hca().qps.get(pair.one.qpn).unwrap();
    let old = qp.attrs();
    machine.function_reset();
    assert_eq!(machine.nic.objects(), 0);
    assert!(machine.doorbells.is_empty());
    assert!(!qp.in_force(&old) && qp.attrs().state == state::RST);
    assert!(!machine.nic.hca().dma.is_enabled(), "bus mastering is off");
    // Numbers begin anew, lives do not.
    let fresh = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    assert_eq!(fresh.one.qpn, pair.one.qpn);
    assert_ne!(machine.nic.hca().qps.get(fresh.one.qpn).unwrap().attrs().incarnation, old.incarnation);
}

#[test]
fn a_teardown_leaves_nothing() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    pair.driver.commands.use_events(None);
    pair.driver.command(Input::new(Opcode::TEARDOWN_HCA, 16)).unwrap();
    assert_eq!(machine.nic.objects(), 0);
    assert!(machine.doorbells.len() <= 1, "of UAR pages: {:x?}", machine.doorbells.addresses());
}

/// force_teardown: one command, whatever there is; fast_teardown: an announcement, and then the interface (contract 4.6). So a driver's shutdown
/// destroys no object.
#[test]
fn a_shutdown_takes_everything_down_at_once() {
    for profile in [teardown_profile::FORCE_CLOSE, teardown_profile::PREPARE_FAST_TEARDOWN] {
        let pair = Pair::new();
        let machine = &pair.driver.machine;
        pair.driver.commands.use_events(None);
        let before = machine.nic.objects();
        let end = Input::new(Opcode::TEARDOWN_HCA, teardown_hca_in::SIZE).with(teardown_hca_in::PROFILE, profile);
        let answer = pair.driver.query(end, teardown_hca_out::SIZE).unwrap();
        assert_eq!(teardown_hca_out::STATE.get(&answer), 0, "it succeeded");
        if profile == teardown_profile::PREPARE_FAST_TEARDOWN {
            assert_eq!(machine.nic.objects(), before, "not yet");
            pair.driver.bar.write32(CMDQ_ADDR_L_SZ as u64, nic_interface::DISABLED << 8);
            assert_eq!(pair.driver.bar.read32(CMDQ_ADDR_L_SZ as u64) >> 8 & 7, nic_interface::DISABLED);
        }
        assert_eq!(machine.nic.objects(), 0);
        // Without a reset: a kernel that is begun by another one.
        Pair::on(Driver::probe(machine).unwrap(), |_| ()).tear_down();
    }
}

#[test]
fn send_doorbells_follow_bar0_and_the_pages_life() {
    // Where vCPUs run the engines no doorbell is an eventfd.
    let nic = NicConfig { engines: EnginePolicy::Threads(2), ..NicConfig::default() };
    let machine = Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }));
    let driver = Driver::probe(&machine).unwrap();
    let machine = &driver.machine;
    let before = machine.doorbells.len();
    let page = driver.alloc_uar().unwrap();
    let expected = |base: u64| [0x800, 0x900, 0xc00, 0xd00].map(|at| base + u64::from(page) * uar::PAGE_SIZE + at);
    let of_page = |base: u64| {
        let first = base + u64::from(page) * uar::PAGE_SIZE;
        let mut all = machine.doorbells.addresses();
        all.retain(|address| (first..first + uar::PAGE_SIZE).contains(address));
        all
    };
    let base = machine.bar(0);
    assert_eq!(of_page(base), expected(base));
    let moved = base + (1 << 30);
    machine.config_write32(BAR0, moved as u32);
    machine.config_write32(BAR0 + 4, (moved >> 32) as u32);
    assert_eq!((of_page(base), of_page(moved)), (vec![], expected(moved).to_vec()));
    machine.config_write16(COMMAND, COMMAND_BUS_MASTER);
    assert!(machine.doorbells.is_empty(), "the BAR does not decode");
    machine.config_write16(COMMAND, COMMAND_MEMORY | COMMAND_BUS_MASTER);
    assert_eq!(of_page(moved), expected(moved));
    machine.config_write32(BAR0, base as u32);
    machine.config_write32(BAR0 + 4, (base >> 32) as u32);
    driver.dealloc_uar(page).unwrap();
    assert_eq!(machine.doorbells.len(), before);
}

#[test]
fn without_bus_mastering_no_command_is_taken() {
    let driver = Driver::probe(&machine()).unwrap();
    let commands = &driver.commands;
    driver.machine.set_bus_master(false);
    let pending = commands.start(&Input::new(Opcode::NOP, 16).finish(), 16);
    let before = commands.entry(pending.slot());
    commands.ring(&pending);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(commands.entry(pending.slot()), before);
    driver.machine.set_bus_master(true);
    commands.ring(&pending);
    commands.finish(pending).unwrap();
}

#[test]
fn a_disabled_interface_stays_so_until_a_driver_begins() {
    let pair = Pair::new();
    let machine = &pair.driver.machine;
    let bar = &pair.driver.bar;
    let interface = || bar.read32(CMDQ_ADDR_L_SZ as u64) >> 8 & 7;
    bar.write32(CMDQ_ADDR_L_SZ as u64, 0x700);
    assert_eq!((interface(), machine.nic.objects()), (1, 0));
    Commands::new(machine, Bar::map(machine)).unwrap();
    assert_eq!(interface(), 0);
    Pair::on(Driver::probe(machine).unwrap(), |_| ()).tear_down();
}

#[test]
fn inspection_shows_what_there_is() {
    let pair = Pair::new();
    let seen = pair.driver.machine.nic.inspect();
    assert_eq!(seen["objects"], pair.driver.machine.nic.objects());
    let listed = seen["qps"]["list"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!((&listed[0]["service"], &listed[0]["state"]), (&"RC".into(), &"RTS".into()));
    assert_eq!(seen["uars"]["list"][0], pair.driver.uar);
    let eventfds = if seen["engines_inline"] == true { 0 } else { 4 };
    assert_eq!(seen["doorbell_eventfds"], eventfds, "of the driver's UAR page");
}

/// Rule 3: whoever takes a right away waits for the section in which an engine may still use it.
#[test]
fn what_takes_rights_away_waits_for_what_is_in_flight() {
    type Act = fn(&Pair);
    let acts: [(&str, Act); 7] = [
        ("bus mastering off", |pair| pair.driver.machine.set_bus_master(false)),
        ("FLR", |pair| pair.driver.machine.function_reset()),
        ("platform reset", |pair| pair.driver.machine.reset()),
        ("a driver begins anew", |pair| {
            let machine = &pair.driver.machine;
            drop(Commands::new(machine, Bar::map(machine)).unwrap());
        }),
        ("2RST", |pair| pair.one.to_reset().unwrap()),
        ("2ERR", |pair| pair.one.to_error().unwrap()),
        ("DESTROY_QP", |pair| pair.one.destroy().unwrap()),
    ];
    let mut hasty = Vec::new();
    for (name, act) in acts {
        let nic = NicConfig { engines: EnginePolicy::Threads(1), ..NicConfig::default() };
        let machine = Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }));
        let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
        // In the place of an engine that there is not: one that there is would end the section by its own next one.
        let section = machine.nic.hca().quiesce.enter(dma::MAX_ENGINES - 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                act(&pair);
                done.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(30));
            if done.load(Ordering::SeqCst) {
                hasty.push(name);
            }
            drop(section);
        });
    }
    assert!(hasty.is_empty(), "did not wait: {hasty:?}");
}
