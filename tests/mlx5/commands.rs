// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Malformed commands: an answer each, and the device goes on (contract 3).

use std::sync::Arc;
use std::time::Duration;

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{ENTRY_SIZE, MAILBOX_SIZE, OPCODES, Opcode, delivery, entry, mailbox, status};
use mlx5_spec::cq::{self, cqc};
use mlx5_spec::eq::{self, eqc};
use mlx5_spec::mkey;
use rnic_testdrive::command::{Input, sign};
use rnic_testdrive::{Access, Driver, Error, MkeySpec, Wqe};

use crate::scene::{Pair, machine};

/// Between the two halves of a machine's memory.
const HOLE: u64 = 1 << 31;

fn driver() -> Arc<Driver> {
    Driver::probe(&machine()).unwrap()
}

/// What becomes of a command whose entry `change` alters before the device hears of it; the device must go on.
fn altered(driver: &Driver, input: Input, change: impl FnOnce(&mut [u8; ENTRY_SIZE])) -> u8 {
    let pending = driver.commands.start(&input.finish(), 16);
    let mut bytes = driver.commands.entry(pending.slot());
    change(&mut bytes);
    driver.commands.write_entry(pending.slot(), &bytes);
    driver.commands.ring(&pending);
    let outcome = driver.commands.finish(pending);
    driver.command(Input::new(Opcode::NOP, 16)).unwrap();
    match outcome {
        Err(Error::Delivery { status, .. }) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lengths_that_cannot_be_are_undelivered() {
    let driver = driver();
    let cases: [(Field, u32, u8); 6] = [
        (entry::TYPE, 6, delivery::BAD_DESCRIPTOR),
        (entry::INPUT_LENGTH, 0, delivery::IN_LENGTH_ERR),
        (entry::INPUT_LENGTH, u32::MAX, delivery::IN_LENGTH_ERR),
        (entry::INPUT_LENGTH, 17, delivery::BAD_IN_PTR_ALIGN),
        (entry::OUTPUT_LENGTH, 7, delivery::OUT_LENGTH_ERR),
        (entry::OUTPUT_LENGTH, u32::MAX, delivery::BAD_OUT_PTR_ALIGN),
    ];
    for (field, value, expected) in cases {
        let got = altered(&driver, Input::new(Opcode::NOP, 16), |entry| {
            field.set(entry, value);
            sign(entry);
        });
        assert_eq!(got, expected, "{field:?} {value:#x}");
    }
}

#[test]
fn mailbox_chains_that_lead_nowhere_are_undelivered() {
    let driver = driver();
    let long = || Input::new(Opcode::QUERY_HCA_CAP, 0x1010);
    for at in [1, 512, 1023, HOLE, u64::MAX - 1023, u64::MAX] {
        let got = altered(&driver, long(), |entry| {
            entry::INPUT_MAILBOX.set(entry, at);
            sign(entry);
        });
        assert_eq!(got, delivery::BAD_IN_PTR_ALIGN, "{at:#x}");
    }
    // A second block that belongs to another command.
    let guest = &driver.machine.guest;
    let got = altered(&driver, long(), |entry| {
        let mut block = [0; MAILBOX_SIZE];
        guest.read(entry::INPUT_MAILBOX.get(entry), &mut block);
        let second = mailbox::NEXT.get(&block);
        guest.read(second, &mut block);
        let token = mailbox::TOKEN.get(&block);
        mailbox::TOKEN.set(&mut block, token ^ 1);
        guest.write(second, &block);
    });
    assert_eq!(got, delivery::TOKEN_ERR);
}

#[test]
fn an_entry_that_is_not_signed_is_undelivered() {
    let got = altered(&driver(), Input::new(Opcode::NOP, 16), |entry| entry[entry::OUTPUT_INLINE.start] ^= 1);
    assert_eq!(got, delivery::SIGNATURE_ERR);
}

/// A driver hands an entry over before it rings, and is not done with it in between.
#[test]
fn only_the_slot_that_is_rung_for_is_executed() {
    let driver = driver();
    let commands = &driver.commands;
    let nop = Input::new(Opcode::NOP, 16).finish();
    let (waiting, rung) = (commands.start(&nop, 16), commands.start(&nop, 16));
    let before = commands.entry(waiting.slot());
    commands.ring(&rung);
    commands.finish(rung).unwrap();
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(commands.entry(waiting.slot()), before);
    commands.ring(&waiting);
    commands.finish(waiting).unwrap();
}

#[test]
fn an_injected_status_is_what_the_driver_gets() {
    let driver = driver();
    let hca = driver.machine.nic.hca();
    let rule = NicRule::new(1, NicAction::CommandStatus { status: status::NO_RES });
    hca.injections.add(rule.on(WqeMatch::command(Opcode::ALLOC_PD))).unwrap();
    let before = hca.pds.len();
    driver.alloc_uar().unwrap();
    assert_eq!(driver.alloc_pd().unwrap_err().status(), Some(status::NO_RES));
    assert_eq!(hca.pds.len(), before);
    driver.alloc_pd().unwrap();
}

#[test]
fn a_command_that_is_late_or_hangs_holds_up_no_other() {
    let driver = driver();
    let (hca, commands) = (driver.machine.nic.hca(), &driver.commands);
    let nop = Input::new(Opcode::NOP, 16).finish();
    for action in [NicAction::CommandHang, NicAction::CommandDelay { ms: u32::MAX }] {
        hca.injections.add(NicRule::new(1, action).on(WqeMatch::command(Opcode::NOP))).unwrap();
        let first = commands.start(&nop, 16);
        let handed = commands.entry(first.slot());
        commands.ring(&first);
        // Executed in the order of their rings: the first has had its turn.
        driver.alloc_pd().unwrap();
        commands.execute(&nop, 16).unwrap();
        assert_eq!(commands.entry(first.slot()), handed, "{action:?}: the entry stays the device's");
        hca.injections.clear();
    }
}

#[test]
fn a_command_that_is_late_is_executed_once() {
    let driver = driver();
    let hca = driver.machine.nic.hca();
    let late = NicRule::new(1, NicAction::CommandDelay { ms: 1 }).on(WqeMatch::command(Opcode::ALLOC_PD));
    let id = hca.injections.add(late).unwrap();
    let before = hca.pds.len();
    driver.alloc_pd().unwrap();
    driver.alloc_pd().unwrap();
    assert_eq!(hca.pds.len(), before + 2);
    // Its second look, when the time had come, was no new occasion.
    assert_eq!(hca.injections.rule(id).map(|rule| (rule.matched, rule.fired)), Some((2, 1)));
    let told = probe::firings(&hca.ledger, 0);
    let shown: Vec<_> = told.iter().map(|one| (one.device.as_str(), one.occasion.as_str())).collect();
    assert_eq!(shown, [("nic0", "command ALLOC_PD")]);
}

#[test]
fn inputs_that_are_too_short_or_name_nothing_are_refused() {
    let driver = driver();
    let refused = |input: Input| driver.command(input).unwrap_err().status().unwrap();
    // Of every command, offered or not: each has at least one argument.
    for (opcode, _) in OPCODES {
        let said = driver.commands.execute(&Input::new(*opcode, 16).finish()[..12], 16).unwrap_err().status();
        assert!(matches!(said, Some(status::BAD_INPUT_LEN | status::BAD_OP)), "{opcode}: {said:x?}");
    }
    for opcode in [Opcode::CREATE_QP, Opcode::CREATE_EQ, Opcode::CREATE_CQ, Opcode::RST2INIT_QP] {
        assert_eq!(refused(Input::new(opcode, 64)), status::BAD_INPUT_LEN, "{opcode}");
    }
    let eq = |log_size, page| {
        let input = Input::new(Opcode::CREATE_EQ, eq::create_in::SIZE);
        let input = input.with(eqc::UAR_PAGE.plus(eq::create_in::EQC), driver.uar);
        refused(input.with(eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC), log_size).list(&[page]))
    };
    let page = driver.machine.guest.page();
    assert_eq!(eq(20, page), status::BAD_INPUT_LEN, "a page list shorter than the queue");
    assert_eq!(eq(23, page), status::EXCEED_LIM);
    assert_eq!(eq(6, HOLE), status::BAD_PARAM, "a page that is no memory");
    assert_eq!(eq(6, u64::MAX), status::BAD_PARAM);
    let eq = |uar, vector| {
        let input = Input::new(Opcode::CREATE_EQ, eq::create_in::SIZE);
        let input = input.with(eqc::UAR_PAGE.plus(eq::create_in::EQC), uar);
        refused(input.with(eqc::INTR.plus(eq::create_in::EQC), vector).list(&[page]))
    };
    assert_eq!(eq(0x1fff, 0), status::BAD_RES, "a UAR page");
    assert_eq!(eq(driver.uar, 64), status::BAD_PARAM, "a vector");
}

#[test]
fn a_megabyte_of_translations_arrives_whole() {
    let pair = Pair::new();
    let page = pair.driver.machine.guest.page();
    let count = 1u64 << 17;
    let mut list = vec![0; count as usize];
    list[count as usize - 1] = page | mkey::MTT_READ | mkey::MTT_WRITE;
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, 0, count * 4096, list);
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.local.fill(0, 16, 0x77);
    pair.one.run(Wqe::write(count * 4096 - 16, key).sge(pair.local_mr.sge(0, 16))).unwrap();
    let mut got = [0; 16];
    pair.driver.machine.guest.read(page + 4080, &mut got);
    assert_eq!(got, [0x77; 16]);
    // More announced than sent.
    let input = Input::new(Opcode::CREATE_MKEY, mkey::create_in::SIZE)
        .bytes(mkey::create_in::MKC, &spec.context())
        .with(mkey::create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, u32::MAX)
        .list(&[0; 64]);
    assert_eq!(pair.driver.command(input).unwrap_err().status(), Some(status::BAD_INPUT_LEN));
    pair.driver.destroy_mkey(key).unwrap();
    assert_eq!(pair.driver.destroy_mkey(key).unwrap_err().status(), Some(status::BAD_RES));
}

/// One page given to many queues: the host remembers no more entries than the guest has pages.
#[test]
fn page_lists_do_not_grow_beyond_the_guest() {
    let driver = driver();
    let (page, record) = (driver.machine.guest.page(), driver.machine.guest.page());
    let before = driver.machine.nic.hca().queue_pages.used();
    let create = || {
        let at = cq::create_in::CQC;
        let input = Input::new(Opcode::CREATE_CQ, cq::create_in::SIZE)
            .with(cqc::LOG_CQ_SIZE.plus(at), 17)
            .with(cqc::UAR_PAGE.plus(at), driver.uar)
            .with(cqc::C_EQN.plus(at), driver.comp_eq.eqn)
            .bytes(at + cqc::DBR_ADDR.0, &record.to_be_bytes())
            .list(&[page; 2048]);
        driver.command(input).map(|output| cq::create_out::CQN.get(&output))
    };
    let mut made = Vec::new();
    let refused = loop {
        match create() {
            Ok(cqn) => made.push(cqn),
            Err(refused) => break refused,
        }
        assert!(made.len() < 100);
    };
    // 64 MiB are 8 lists of 2048 pages, and the driver has queues of its own.
    assert_eq!((refused.status(), made.len()), (Some(status::NO_RES), 7));
    for cqn in made {
        driver.command(Input::new(Opcode::DESTROY_CQ, 16).with(cq::destroy_in::CQN, cqn)).unwrap();
    }
    assert_eq!(driver.machine.nic.hca().queue_pages.used(), before);
}
