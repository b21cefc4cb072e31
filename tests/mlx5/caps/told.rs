// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device tells of itself and of its port: every value that is not zero has its row, as those of the capabilities have.
//! Contexts of objects are in tests/mlx5/fields.rs.

use std::ops::Range;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::reg::{access_in, access_out, id, op_mod, pmtu, ppcnt, ptys, pvlc};
use mlx5_spec::small::{query_adapter_out, query_issi_out, query_pages_out, query_special_contexts_out};
use mlx5_spec::small::{query_vport_counter_in, query_vport_counter_out};
use mlx5_spec::vport::{hca_vport_context, query_context_out, query_gid_out};
use rnic_testdrive::Driver;
use rnic_testdrive::command::Input;

use super::offered;
use crate::scene::machine;

/// A field, its value (none where another test reads it) and what drivers make of it.
type Row = (&'static str, Option<u64>, &'static str);

/// Names and places of a structure's fields.
type Layout = (&'static [&'static str], &'static [(usize, usize)]);

/// Query, bytes of its input and its output, which of these are the structure, its layout, its rows.
type Question = (Opcode, usize, usize, Range<usize>, Layout, &'static [Row]);

const QUESTIONS: &[Question] = &[
    (
        Opcode::QUERY_ISSI,
        16,
        query_issi_out::SIZE,
        0..query_issi_out::SIZE,
        (query_issi_out::FIELDS, query_issi_out::SPANS),
        &[
            ("CURRENT_ISSI", Some(1), "what the driver has set"),
            ("SUPPORTED_ISSI_DW0", Some(0b11), "0 and 1 (contract D5)"),
        ],
    ),
    (
        Opcode::QUERY_PAGES,
        16,
        query_pages_out::SIZE,
        0..query_pages_out::SIZE,
        (query_pages_out::FIELDS, query_pages_out::SPANS),
        &[],
    ),
    (
        Opcode::QUERY_ADAPTER,
        16,
        query_adapter_out::SIZE,
        0..query_adapter_out::SIZE,
        (query_adapter_out::FIELDS, query_adapter_out::SPANS),
        &[
            ("IEEE_VENDOR_ID", Some(0x2c9), "vendor_id in ibv_devinfo, and the first half of the GUIDs"),
            ("VSD_CONTD_PSID", None, "board_id in ibv_devinfo: tests/mlx5/answers.rs"),
        ],
    ),
    (
        Opcode::QUERY_SPECIAL_CONTEXTS,
        16,
        query_special_contexts_out::SIZE,
        0..query_special_contexts_out::SIZE,
        (query_special_contexts_out::FIELDS, query_special_contexts_out::SPANS),
        &[(
            "NULL_MKEY",
            Some(0x200),
            "what absent entries name: tests/mlx5/audit.rs::b01_implicit_paging_works_on_the_present_walk",
        )],
    ),
    (
        Opcode::QUERY_HCA_VPORT_CONTEXT,
        16,
        query_context_out::SIZE,
        query_context_out::HCA_VPORT_CONTEXT..query_context_out::SIZE,
        (hca_vport_context::FIELDS, hca_vport_context::SPANS),
        &[
            ("PORT_PHYSICAL_STATE", Some(5), "link up"),
            ("PORT_STATE", Some(4), "active"),
            ("VPORT_STATE", Some(4), "active: what ibv_devinfo shows"),
            ("SYSTEM_IMAGE_GUID", Some(0x0002_c903_0049_4300), "the node's"),
            ("PORT_GUID", Some(0x0002_c903_0049_4301), "the second half of GID 0"),
            ("NODE_GUID", Some(0x0002_c903_0049_4300), "sysfs node_guid"),
            ("CAP_MASK1", Some(1 << 11), "a system image GUID"),
            ("CAP_MASK1_FIELD_SELECT", Some(1 << 1 | 1 << 16 | 1 << 19), "what ib_umad, ib_cm and ib_srpt set"),
            ("LID", Some(1), "of the first NIC"),
            ("SM_LID", Some(1), "where the subnet's manager would be"),
            ("SUBNET_TIMEOUT", Some(18), "1 s for an answer of the subnet"),
        ],
    ),
    (
        Opcode::QUERY_HCA_VPORT_GID,
        16,
        query_gid_out::SIZE + 16,
        0..query_gid_out::SIZE,
        (query_gid_out::FIELDS, query_gid_out::SPANS),
        &[("GIDS_NUM", Some(1), "what was asked for; the GID itself: tests/mlx5/answers.rs")],
    ),
    (
        Opcode::QUERY_VPORT_COUNTER,
        query_vport_counter_in::SIZE,
        query_vport_counter_out::SIZE,
        0..query_vport_counter_out::SIZE,
        (query_vport_counter_out::FIELDS, query_vport_counter_out::SPANS),
        // Traffic is not counted.
        &[],
    ),
];

/// Register, bytes of it, its layout, its rows.
const REGISTERS: &[(u32, usize, Layout, &[Row])] = &[
    (
        id::PTYS,
        ptys::SIZE,
        (ptys::FIELDS, ptys::SPANS),
        &[
            ("IB_LINK_WIDTH_CAPABILITY", Some(0b101), "1X and 4X"),
            ("IB_PROTO_CAPABILITY", Some(0b11_1111), "SDR to EDR"),
            ("IB_LINK_WIDTH_ADMIN", Some(0b101), "1X and 4X"),
            ("IB_PROTO_ADMIN", Some(0b11_1111), "SDR to EDR"),
            ("IB_LINK_WIDTH_OPER", Some(4), "4X"),
            ("IB_PROTO_OPER", Some(32), "EDR"),
        ],
    ),
    (
        id::PMTU,
        pmtu::SIZE,
        (pmtu::FIELDS, pmtu::SPANS),
        &[
            ("MAX_MTU", Some(4096), "what a queue pair may ask for"),
            ("ADMIN_MTU", Some(4096), "set"),
            ("OPER_MTU", Some(4096), "in force: tests/mlx5/datagrams.rs sends so much and no more"),
        ],
    ),
    (
        id::PVLC,
        pvlc::SIZE,
        (pvlc::FIELDS, pvlc::SPANS),
        &[("VL_HW_CAP", Some(4), "data lanes"), ("VL_ADMIN", Some(4), "all"), ("VL_OPERATIONAL", Some(4), "all")],
    ),
    (id::PPCNT, ppcnt::SIZE, (ppcnt::FIELDS, ppcnt::SPANS), &[]),
];

fn compare(what: &str, bytes: &[u8], (fields, spans): Layout, rows: &[Row]) {
    let mut found = offered(bytes, fields, spans);
    for (name, value, why) in rows {
        assert!(!why.is_empty(), "{what}.{name}");
        let told = found.remove(*name);
        assert!(told.is_some(), "{what}.{name} is zero");
        assert!(value.is_none_or(|value| told == Some(value)), "{what}.{name} = {told:x?}");
    }
    assert!(found.is_empty(), "{what}: without a row: {found:x?}");
}

#[test]
fn everything_that_is_told_has_its_row() {
    let driver = Driver::probe(&machine()).unwrap();
    for (opcode, input, output, structure, layout, rows) in QUESTIONS {
        let answer = driver.query(Input::new(*opcode, *input), *output).unwrap();
        compare(&opcode.to_string(), &answer[structure.clone()], *layout, rows);
    }
    for (register, size, layout, rows) in REGISTERS {
        let input = Input::new(Opcode::ACCESS_REG, access_in::SIZE + size).op_mod(op_mod::READ);
        let answer = driver.query(input.with(access_in::REGISTER_ID, *register), access_out::SIZE + size).unwrap();
        compare(&format!("register {register:#x}"), &answer[access_out::REGISTER_DATA..], *layout, rows);
    }
}
