// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Malformed commands: an answer each, and the device goes on.

use proptest::prelude::*;

use super::*;
use mlx5_spec::cmd::delivery;
use mlx5_spec::mkey;

fn alive(guest: &mut Guest) {
    guest.call(Opcode::ENABLE_HCA, 0, 0).ok();
    guest.call(Opcode::NOP, 0, 0).ok();
}

#[test]
fn an_unknown_opcode_gets_bad_op_and_a_syndrome_that_names_it() {
    let mut guest = Guest::new(NicConfig::default());
    for opcode in [0x0, 0x50d, 0x816 + 0x100, 0xffff] {
        let answer = guest.call(Opcode(opcode), 0, 0);
        assert_eq!(answer.status(), status::BAD_OP);
        assert_eq!(answer.get(out_header::SYNDROME), 0x00aa_0000 | u32::from(opcode));
    }
    assert_eq!(guest.handle.hca().counters.commands_failed.get(), 4);
}

#[test]
fn lengths_that_cannot_be_are_undelivered() {
    let mut guest = Guest::new(NicConfig::default());
    let good = guest.entry(&input(Opcode::NOP, 0, 16), 16);
    let with = |field: Field, value: u32| {
        let mut entry = good;
        field.set(&mut entry, value);
        sign(&mut entry);
        entry
    };
    for (entry, expected) in [
        (with(entry::TYPE, 6), delivery::BAD_DESCRIPTOR),
        (with(entry::INPUT_LENGTH, 0), delivery::IN_LENGTH_ERR),
        (with(entry::INPUT_LENGTH, u32::MAX), delivery::IN_LENGTH_ERR),
        (with(entry::INPUT_LENGTH, 17), delivery::BAD_IN_PTR_ALIGN),
        (with(entry::OUTPUT_LENGTH, 7), delivery::OUT_LENGTH_ERR),
        (with(entry::OUTPUT_LENGTH, u32::MAX), delivery::BAD_OUT_PTR_ALIGN),
    ] {
        assert_eq!(guest.submit(1, &entry).delivery, expected);
        alive(&mut guest);
    }
}

#[test]
fn mailbox_chains_that_lead_nowhere_are_undelivered() {
    let mut guest = Guest::new(NicConfig::default());
    let good = guest.entry(&input(Opcode::QUERY_HCA_CAP, 0, 0x1010), 16);
    for at in [1, 512, 1023, RAM, u64::MAX - 1023, u64::MAX] {
        let mut entry = good;
        entry::INPUT_MAILBOX.set(&mut entry, at);
        sign(&mut entry);
        assert_eq!(guest.submit(2, &entry).delivery, delivery::BAD_IN_PTR_ALIGN, "{at:#x}");
    }
    // A second block that belongs to another command.
    let second = GuestAddress(INPUT_BLOCKS + BLOCK_STEP);
    let mut block = [0; mailbox::SIZE];
    guest.ram.read_slice(&mut block, second).unwrap();
    mailbox::TOKEN.set(&mut block, TOKEN + 1);
    guest.ram.write_slice(&block, second).unwrap();
    assert_eq!(guest.submit(2, &good).delivery, delivery::TOKEN_ERR);
    alive(&mut guest);
}

#[test]
fn an_entry_that_is_not_signed_is_undelivered() {
    let mut guest = Guest::new(NicConfig::default());
    let mut entry = guest.entry(&input(Opcode::NOP, 0, 16), 16);
    entry[entry::OUTPUT_INLINE.start] ^= 1;
    assert_eq!(guest.submit(3, &entry).delivery, delivery::SIGNATURE_ERR);
    alive(&mut guest);
}

/// A driver hands an entry over before it rings, and is not done with it in between.
#[test]
fn only_the_slot_that_is_rung_for_is_executed() {
    let mut guest = Guest::new(NicConfig::default());
    let entry = guest.entry(&input(Opcode::NOP, 0, 16), 16);
    let waiting = GuestAddress(QUEUE + 9 * ENTRY_SIZE as u64);
    guest.ram.write_slice(&entry, waiting).unwrap();
    guest.submit(3, &entry).ok();
    std::thread::sleep(Duration::from_millis(10));
    let mut after = [0; ENTRY_SIZE];
    guest.ram.read_slice(&mut after, waiting).unwrap();
    assert_eq!(after, entry);
    guest.submit(9, &entry).ok();
    // All slots at once by one write, and by the eventfds that stand for one slot each.
    for slot in 0..32 {
        guest.ram.write_slice(&entry, GuestAddress(QUEUE + slot * ENTRY_SIZE as u64)).unwrap();
    }
    guest.nic.bar_write(0, COMMAND_DOORBELL as u64, &0xffff_0000u32.to_be_bytes());
    let bells = guest.nic.doorbells();
    assert_eq!((bells.len(), bells[9].value), (32, Some(0x0002_0000)));
    bells[..16].iter().for_each(|bell| bell.event.write(1).unwrap());
    let limit = Instant::now() + Duration::from_secs(10);
    for slot in 0..32 {
        while guest.ram.read_obj::<u8>(GuestAddress(QUEUE + slot * ENTRY_SIZE as u64 + 0x3f)).unwrap() != 0 {
            assert!(Instant::now() < limit, "slot {slot} is not answered");
            std::thread::yield_now();
        }
    }
}

#[test]
fn an_injected_status_is_what_the_driver_gets() {
    use crate::hooks::{NicAction, NicRule};

    let mut guest = Guest::new(NicConfig::default());
    let action = NicAction::CommandStatus { opcode: Opcode::ALLOC_PD.0, status: status::NO_RES };
    guest.handle.hca().injections.add(NicRule::new(1, action)).unwrap();
    assert_eq!(guest.call(Opcode::ALLOC_UAR, 0, 0).status(), status::OK);
    assert_eq!(guest.call(Opcode::ALLOC_PD, 0, 0).status(), status::NO_RES);
    assert!(guest.handle.hca().pds.is_empty());
    assert_eq!(guest.call(Opcode::ALLOC_PD, 0, 0).status(), status::OK);
}

#[test]
fn every_command_with_too_short_an_input_is_refused() {
    let mut guest = Guest::new(NicConfig::default());
    for opcode in [Opcode::CREATE_QP, Opcode::CREATE_EQ, Opcode::SET_HCA_CAP, Opcode::RST2INIT_QP] {
        assert_eq!(guest.run(&input(opcode, 0, 64), 16).status(), status::BAD_INPUT_LEN, "{opcode}");
    }
    // A page list shorter than the queue needs.
    let page = guest.alloc(Opcode::ALLOC_UAR);
    let mut create = input(Opcode::CREATE_EQ, 0, eq::create_in::SIZE + 8);
    eq::eqc::UAR_PAGE.plus(eq::create_in::EQC).set(&mut create, page);
    eq::eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC).set(&mut create, 20);
    assert_eq!(guest.run(&create, 16).status(), status::BAD_INPUT_LEN);
    eq::eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC).set(&mut create, 23);
    assert_eq!(guest.run(&create, 16).status(), status::EXCEED_LIM);
    // A page beyond the end of RAM.
    eq::eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC).set(&mut create, 6);
    create[eq::create_in::PAS..].copy_from_slice(&RAM.to_be_bytes());
    assert_eq!(guest.run(&create, 16).status(), status::BAD_PARAM);
    create[eq::create_in::PAS..].copy_from_slice(&u64::MAX.to_be_bytes());
    assert_eq!(guest.run(&create, 16).status(), status::BAD_PARAM);
    assert_eq!(guest.handle.hca().eqs.len(), 0);
}

#[test]
fn a_megabyte_of_translations_arrives_whole() {
    let mut guest = Guest::new(NicConfig::default());
    let octwords = (1usize << 20) / 16;
    let mut create = input(Opcode::CREATE_MKEY, 0, mkey::create_in::SIZE);
    let at = mkey::create_in::MKC;
    mkey::mkc::FREE.plus(at).set(&mut create, 1);
    mkey::mkc::ACCESS_MODE_1_0.plus(at).set(&mut create, mkey::access_mode::MTT);
    mkey::mkc::LOG_PAGE_SIZE_4_0.plus(at).set(&mut create, 12);
    mkey::mkc::TRANSLATIONS_OCTWORD_SIZE.plus(at).set(&mut create, octwords as u32);
    mkey::create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE.set(&mut create, octwords as u32);
    create.extend((0..octwords as u64 * 2).flat_map(|entry| (entry << 12).to_be_bytes()));
    let index = guest.run(&create, 16).ok().get(mkey::create_out::MKEY_INDEX);
    let key = guest.handle.hca().mkeys.get(index).unwrap();
    let last = key.entries.last().unwrap().load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(last & mkey::MTT_ADDRESS, (octwords as u64 * 2 - 1) << 12);
    // More announced than sent.
    mkey::create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE.set(&mut create, u32::MAX);
    assert_eq!(guest.run(&create, 16).status(), status::BAD_INPUT_LEN);
    guest.call(Opcode::DESTROY_MKEY, 0, index).ok();
    assert_eq!(guest.call(Opcode::DESTROY_MKEY, 0, index).status(), status::BAD_RES);
}

/// One page given to many queues: the host remembers no more entries than the guest has pages.
#[test]
fn page_lists_do_not_grow_beyond_the_guest() {
    let mut guest = Guest::new(NicConfig::default());
    let uar = guest.alloc(Opcode::ALLOC_UAR);
    let eqn = guest.create_eq(uar, 0, 0);
    let before = guest.handle.hca().queue_pages.used();
    let mut create = input(Opcode::CREATE_CQ, 0, cq::create_in::SIZE);
    let at = cq::create_in::CQC;
    for (field, value) in [(cq::cqc::LOG_CQ_SIZE, 17), (cq::cqc::UAR_PAGE, uar), (cq::cqc::C_EQN, eqn)] {
        field.plus(at).set(&mut create, value);
    }
    create.extend((0..2048).flat_map(|_| PAGES.to_be_bytes()));
    let mut made = Vec::new();
    let refused = loop {
        let answer = guest.run(&create, 16);
        if answer.status() != status::OK {
            break answer;
        }
        made.push(answer.get(cq::create_out::CQN));
        assert!(made.len() < 100);
    };
    assert_eq!((refused.status(), made.len()), (status::NO_RES, 3));
    for cqn in made {
        guest.call(Opcode::DESTROY_CQ, 0, cqn).ok();
    }
    assert_eq!(guest.handle.hca().queue_pages.used(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any bytes after a known opcode: an answer, and the next command works.
    #[test]
    fn any_input_is_answered(
        commands in proptest::collection::vec((0usize..60, any::<u16>(), proptest::collection::vec(any::<u8>(), 8..0x140)), 1..40),
    ) {
        let mut guest = Guest::new(NicConfig::default());
        let known: Vec<Opcode> = mlx5_spec::cmd::OPCODES.iter().map(|(opcode, _)| *opcode).collect();
        for (index, op_mod, mut bytes) in commands {
            let opcode = known[index % known.len()];
            in_header::OPCODE.set(&mut bytes, u32::from(opcode.0));
            in_header::OP_MOD.set(&mut bytes, u32::from(op_mod));
            let answer = guest.run(&bytes, 0x210);
            prop_assert_eq!(answer.delivery, 0);
        }
        alive(&mut guest);
    }
}
