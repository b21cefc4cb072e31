// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lengths of every command: an input shorter than its layout is BAD_INPUT_LEN, room for less than its answer BAD_OUTPUT_LEN, and neither
//! has an effect. The lengths are those that stock drivers of 6.1, 6.12 and 7.3 send.

use std::sync::Arc;

use mlx5::command::table::COMMANDS;
use mlx5_spec::cmd::{OPCODES, Opcode, status};
use mlx5_spec::mkey::{self, mkc};
use mlx5_spec::reg::{access_in, access_out, id, op_mod};
use mlx5_spec::vport::{WHOLE_TABLE, query_gid_in, query_pkey_in};
use rnic_testdrive::Driver;
use rnic_testdrive::command::Input;

use crate::fields::carriers;
use crate::scene::machine;

/// Opcode, bytes of the layout of its input and of its output (contract 4, 6).
const LENGTHS: &[(Opcode, usize, usize)] = &[
    (Opcode::ENABLE_HCA, 0x10, 0xc),
    (Opcode::DISABLE_HCA, 0x10, 0xc),
    (Opcode::INIT_HCA, 0x20, 0x10),
    (Opcode::TEARDOWN_HCA, 0x10, 0x10),
    (Opcode::QUERY_ISSI, 0x10, 0x70),
    (Opcode::SET_ISSI, 0x10, 0x10),
    (Opcode::QUERY_PAGES, 0x10, 0x10),
    (Opcode::MANAGE_PAGES, 0x10, 0x10),
    (Opcode::QUERY_ADAPTER, 0x10, 0x110),
    (Opcode::QUERY_SPECIAL_CONTEXTS, 0x10, 0x20),
    (Opcode::NOP, 0x10, 0x10),
    (Opcode::QUERY_HCA_CAP, 0x10, 0x10),
    (Opcode::SET_HCA_CAP, 0x1010, 0x10),
    (Opcode::ACCESS_REG, 0x10, 0x10),
    (Opcode::QUERY_HCA_VPORT_CONTEXT, 0x10, 0x210),
    (Opcode::MODIFY_HCA_VPORT_CONTEXT, 0x210, 0x10),
    (Opcode::QUERY_HCA_VPORT_GID, 0x10, 0x10),
    (Opcode::QUERY_HCA_VPORT_PKEY, 0x10, 0x10),
    (Opcode::QUERY_VPORT_COUNTER, 0x20, 0x210),
    (Opcode::ALLOC_Q_COUNTER, 0x10, 0x10),
    (Opcode::DEALLOC_Q_COUNTER, 0x10, 0x10),
    (Opcode::QUERY_Q_COUNTER, 0x20, 0x100),
    (Opcode::ALLOC_MEMIC, 0x20, 0x10),
    (Opcode::DEALLOC_MEMIC, 0x20, 0x10),
    (Opcode::ATTACH_TO_MCG, 0x20, 0x10),
    (Opcode::DETACH_FROM_MCG, 0x20, 0x10),
    (Opcode::ALLOC_PD, 0x10, 0x10),
    (Opcode::DEALLOC_PD, 0x10, 0x10),
    (Opcode::ALLOC_UAR, 0x10, 0x10),
    (Opcode::DEALLOC_UAR, 0x10, 0x10),
    (Opcode::ALLOC_XRCD, 0x10, 0x10),
    (Opcode::DEALLOC_XRCD, 0x10, 0x10),
    (Opcode::CREATE_UCTX, 0x40, 0x10),
    (Opcode::DESTROY_UCTX, 0x10, 0x10),
    (Opcode::CREATE_UMEM, 0x30, 0x10),
    (Opcode::DESTROY_UMEM, 0x10, 0x10),
    (Opcode::CREATE_EQ, 0x110, 0x10),
    (Opcode::DESTROY_EQ, 0x10, 0x10),
    (Opcode::QUERY_EQ, 0x10, 0x110),
    (Opcode::CREATE_CQ, 0x110, 0x10),
    (Opcode::DESTROY_CQ, 0x10, 0x10),
    (Opcode::QUERY_CQ, 0x10, 0x110),
    (Opcode::MODIFY_CQ, 0x110, 0x10),
    (Opcode::CREATE_QP, 0x110, 0x10),
    (Opcode::DESTROY_QP, 0x10, 0x10),
    (Opcode::QUERY_QP, 0x10, 0x110),
    (Opcode::RST2INIT_QP, 0x110, 0x10),
    (Opcode::INIT2INIT_QP, 0x110, 0x10),
    (Opcode::INIT2RTR_QP, 0x110, 0x10),
    (Opcode::RTR2RTS_QP, 0x110, 0x10),
    (Opcode::RTS2RTS_QP, 0x110, 0x10),
    (Opcode::SQERR2RTS_QP, 0x110, 0x10),
    (Opcode::SQD_RTS_QP, 0x110, 0x10),
    (Opcode::TO_ERR_QP, 0x10, 0x10),
    (Opcode::TO_RST_QP, 0x10, 0x10),
    (Opcode::CREATE_DCT, 0x80, 0x10),
    (Opcode::DESTROY_DCT, 0x10, 0x10),
    (Opcode::DRAIN_DCT, 0x10, 0x10),
    (Opcode::QUERY_DCT, 0x10, 0x80),
    (Opcode::CREATE_RMP, 0x110, 0x10),
    (Opcode::DESTROY_RMP, 0x10, 0x10),
    (Opcode::MODIFY_RMP, 0x110, 0x10),
    (Opcode::QUERY_RMP, 0x10, 0x110),
    (Opcode::CREATE_XRC_SRQ, 0x110, 0x10),
    (Opcode::DESTROY_XRC_SRQ, 0x10, 0x10),
    (Opcode::ARM_XRC_SRQ, 0x10, 0x10),
    (Opcode::QUERY_XRC_SRQ, 0x10, 0x110),
    (Opcode::CREATE_SRQ, 0x110, 0x10),
    (Opcode::DESTROY_SRQ, 0x10, 0x10),
    (Opcode::ARM_RQ, 0x10, 0x10),
    (Opcode::QUERY_SRQ, 0x10, 0x110),
    (Opcode::CREATE_MKEY, 0x110, 0x10),
    (Opcode::DESTROY_MKEY, 0x10, 0x10),
    (Opcode::QUERY_MKEY, 0x10, 0x130),
    (Opcode::PAGE_FAULT_RESUME, 0x10, 0x10),
];

fn driver() -> Arc<Driver> {
    Driver::probe(&machine()).unwrap()
}

fn said(driver: &Driver, input: &[u8], room: usize) -> u8 {
    driver.commands.execute(input, room).err().map_or(status::OK, |error| error.status().unwrap())
}

/// What a command that was refused must not have changed.
fn state(driver: &Driver) -> (u64, u64, Vec<usize>) {
    let hca = driver.machine.nic.hca();
    let tables = [hca.cqs.len(), hca.qps.len(), hca.srqs.len(), hca.mkeys.len(), hca.pds.len(), hca.uars.len()];
    let all = [tables.as_slice(), &[hca.xrcds.len(), hca.eqs.len()]].concat();
    (hca.memory.used(), hca.queue_pages.used(), all)
}

#[test]
fn every_command_has_its_lengths() {
    let table: Vec<_> = COMMANDS.iter().map(|command| (command.opcode, command.input, command.output)).collect();
    for (opcode, input, output) in LENGTHS {
        assert!(table.contains(&(*opcode, *input, *output)), "{opcode}");
    }
    assert_eq!(table.len(), LENGTHS.len());
}

#[test]
fn inputs_shorter_than_their_layout_are_refused() {
    let driver = driver();
    let before = state(&driver);
    for (opcode, input, _) in LENGTHS {
        let whole = Input::new(*opcode, *input).finish();
        // What has no whole header is not delivered at all.
        for short in [12, 16, input / 2, input - 4, input - 1].into_iter().filter(|short| short < input) {
            assert_eq!(said(&driver, &whole[..short], 0x1010), status::BAD_INPUT_LEN, "{opcode}: {short} bytes");
        }
        assert_eq!(state(&driver), before, "{opcode}");
    }
    for (opcode, _) in OPCODES.iter().filter(|(opcode, _)| LENGTHS.iter().all(|(known, ..)| known != opcode)) {
        assert_eq!(said(&driver, &Input::new(*opcode, 16).finish()[..12], 16), status::BAD_OP, "{opcode}");
    }
}

#[test]
fn outputs_with_less_room_than_the_answer_are_refused() {
    let driver = driver();
    let before = state(&driver);
    for (opcode, input, output) in LENGTHS {
        let whole = Input::new(*opcode, *input).finish();
        // Status and syndrome have room, or it is not delivered.
        for room in [8, 12, output / 2, output - 4, output - 1].into_iter().filter(|room| (8..*output).contains(room)) {
            assert_eq!(said(&driver, &whole, room), status::BAD_OUTPUT_LEN, "{opcode}: room for {room} bytes");
        }
        assert_eq!(state(&driver), before, "{opcode}");
    }
}

/// With nothing but zeros behind the opcode many are refused, but none for its length.
#[test]
fn lengths_of_drivers_are_taken() {
    for (opcode, input, output) in LENGTHS.iter().filter(|(opcode, ..)| *opcode != Opcode::ACCESS_REG) {
        // A driver each: some of them end its life.
        let driver = driver();
        driver.commands.use_events(None);
        let answer = said(&driver, &Input::new(*opcode, *input).finish(), *output);
        let listed = [Opcode::QUERY_HCA_VPORT_GID, Opcode::QUERY_HCA_VPORT_PKEY].contains(opcode);
        assert_eq!(answer == status::BAD_OUTPUT_LEN, listed, "{opcode}: status {answer:#x}");
        assert_ne!(answer, status::BAD_INPUT_LEN, "{opcode}");
    }
}

#[test]
fn lists_behind_a_layout_count_too() {
    let driver = driver();
    for (opcode, good, _) in carriers(&driver).into_iter().filter(|(opcode, ..)| *opcode != Opcode::RST2INIT_QP) {
        let mut good = good;
        if opcode == Opcode::CREATE_MKEY {
            mkc::TRANSLATIONS_OCTWORD_SIZE.plus(mkey::create_in::MKC).set(&mut good, 4);
            mkc::ACCESS_MODE_1_0.plus(mkey::create_in::MKC).set(&mut good, mkey::access_mode::MTT);
            mkey::create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE.set(&mut good, 1);
            good.extend([0; 16]);
        }
        let before = state(&driver);
        assert_eq!(said(&driver, &good[..good.len() - 8], 16), status::BAD_INPUT_LEN, "{opcode}");
        assert_eq!(state(&driver), before, "{opcode}");
        assert_eq!(said(&driver, &good, 16), status::OK, "{opcode}");
    }
    let table = |opcode, field: mlx5_spec::bits::Field, index, room| {
        said(&driver, &Input::new(opcode, 16).with(field, index).finish(), room)
    };
    for (opcode, field, entry, entries) in [
        (Opcode::QUERY_HCA_VPORT_GID, query_gid_in::GID_INDEX, 16, 8),
        (Opcode::QUERY_HCA_VPORT_PKEY, query_pkey_in::PKEY_INDEX, 4, 128),
    ] {
        for (index, count) in [(0, 1), (entries - 1, 1), (WHOLE_TABLE, entries as usize)] {
            let size = 16 + entry * count;
            assert_eq!(table(opcode, field, index, size), status::OK, "{opcode} {index}");
            assert_eq!(table(opcode, field, index, size - 4), status::BAD_OUTPUT_LEN, "{opcode} {index}");
        }
    }
}

#[test]
fn registers_have_their_own_lengths() {
    let driver = driver();
    let sizes = [
        (id::PTYS, 64),
        (id::PMTU, 16),
        (id::PVLC, 16),
        (id::NODE_DESC, 64),
        (id::HOST_ENDIANNESS, 16),
        (id::PPCNT, 256),
    ];
    for (register, size) in sizes {
        let access = |how, bytes: usize, room| {
            let input = Input::new(Opcode::ACCESS_REG, access_in::SIZE + bytes).op_mod(how);
            let input = input.with(access_in::REGISTER_ID, register).bytes(access_in::REGISTER_DATA, &vec![7; bytes]);
            driver.commands.execute(&input.finish(), access_out::SIZE + room)
        };
        let before = access(op_mod::READ, size, size).unwrap();
        for how in [op_mod::READ, op_mod::WRITE] {
            let refused = |bytes, room| access(how, bytes, room).unwrap_err().status();
            for short in [0, size - 4] {
                assert_eq!(refused(short, size), Some(status::BAD_INPUT_LEN), "{register:#x} {how}");
                assert_eq!(refused(size, short), Some(status::BAD_OUTPUT_LEN), "{register:#x} {how}");
            }
        }
        assert!(access(op_mod::READ, size, size).unwrap() == before, "{register:#x}: a write that was refused");
        access(op_mod::WRITE, size, size).unwrap();
    }
}
