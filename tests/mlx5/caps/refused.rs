// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is not offered: every field of the general capabilities that is zero, what a guest may try all the same, and how it is refused.

use std::sync::Arc;

use mlx5_spec::bits::Field;
use mlx5_spec::caps::{cap_mode, cap_type, cmd_hca_cap as cap};
use mlx5_spec::cmd::{Opcode, in_header, status};
use mlx5_spec::cq::{cqc, create_in as cq_in, modify_in as cq_modify, modify_op_mod, modify_select, syndrome};
use mlx5_spec::devx::create_uctx_in;
use mlx5_spec::mkey::{MKC_SIZE, access_mode, create_in as mkey_in, mkc, umr_flags, umr_mask};
use mlx5_spec::qp::{QPC_SIZE, create_in as qp_in, modify_in, opt_param_mask, pm_state, qpc, service_type};
use mlx5_spec::reg::{access_in, id, op_mod};
use mlx5_spec::small::{query_special_contexts_out, teardown_hca_in, teardown_profile};
use mlx5_spec::srq::{create_rmp_in, rmpc, wq};
use mlx5_spec::vport::query_context_in;
use mlx5_spec::wqe::opcode;
use rnic_testdrive::command::Input;
use rnic_testdrive::driver::query_caps;
use rnic_testdrive::{Access, Driver, Error, Machine, MachineConfig, MkeySpec, UmrSpec, Wqe};

use super::{GENERAL, assert_is_there, offered};
use crate::fields::carriers;
use crate::scene::{Pair, machine};

/// What a guest tries.
enum Try {
    /// A command with this opcode: BAD_OP.
    Command(u16),
    /// QUERY_HCA_CAP of this type: BAD_PARAM.
    Type(u32),
    /// ACCESS_REG of this register: BAD_PARAM.
    Register(u32),
    /// A command that is fine but for this field: BAD_PARAM.
    Value(Opcode, Field, u32),
    /// A send WQE with this opcode: local QP operation error.
    Wqe(u32),
    /// A UMR with this bit in its mask: the syndrome of a failed binding.
    Mask(u64),
    /// Something of its own, and the status that it must get.
    Own(fn(&Arc<Driver>) -> u8, u8),
    /// Nothing, and why.
    Nothing(&'static str),
}

use Try::{Command, Mask, Nothing, Own, Register, Type, Value};

/// Offset of the context in CREATE_QP.
const QPC: usize = qp_in::QPC;

/// Zero is a promise too.
const PROMISES: &[(&str, &str)] = &[
    ("GID_TABLE_SIZE", "tests/mlx5/lengths.rs::lists_behind_a_layout_count_too"),
    ("PKEY_TABLE_SIZE", "tests/mlx5/lengths.rs::lists_behind_a_layout_count_too"),
    ("PORT_TYPE", "tests/mlx5/answers.rs::registers_that_probes_read"),
    ("UMR_MODIFY_ENTITY_SIZE_DISABLED", "tests/mlx5/caps/refused.rs::what_is_not_disabled_works"),
    ("UMR_MODIFY_ATOMIC_DISABLED", "tests/mlx5/caps/refused.rs::what_is_not_disabled_works"),
    ("UMR_INDIRECT_MKEY_DISABLED", "tests/mlx5/audit.rs::b01_implicit_paging_works_on_the_present_walk"),
    ("CMDIF_CHECKSUM", "tests/mlx5/commands.rs::an_entry_that_is_not_signed_is_undelivered"),
];

/// A field of the general capabilities that is zero, and a try. Several rows where several things can be tried.
const TRIES: &[(&str, Try)] = &[
    ("PAGE_REQUEST_DISABLE", Nothing("an event queue for page requests is made and stays empty")),
    ("HCA_CAP_2", Type(cap_type::HCA_CAP_2)),
    ("HCA_CAP_2", Value(Opcode::CREATE_MKEY, mkc::LOG_PAGE_SIZE.plus(mkey_in::MKC), 32)),
    ("HCA_CAP_2", Mask(umr_mask::LOG_PAGE_SIZE_5)),
    ("VHCA_ID", Nothing("a number")),
    ("EVENT_CAP", Type(0x14)),
    ("ECE_SUPPORT", Value(Opcode::CREATE_QP, qp_in::ECE, 1)),
    ("ECE_SUPPORT", Value(Opcode::RST2INIT_QP, modify_in::ECE, 1)),
    ("SHAMPO_6_1", Type(0x1d)),
    ("RELAXED_ORDERING_WRITE_UMR", Mask(umr_mask::RELAXED_ORDERING_WRITE)),
    ("RELAXED_ORDERING_READ_UMR", Mask(umr_mask::RELAXED_ORDERING_READ)),
    ("RELAXED_ORDERING_WRITE", Value(Opcode::CREATE_MKEY, mkc::RELAXED_ORDERING_WRITE.plus(mkey_in::MKC), 1)),
    ("RELAXED_ORDERING_READ_PCI_ENABLED", Value(Opcode::CREATE_MKEY, mkc::RELAXED_ORDERING_READ.plus(mkey_in::MKC), 1)),
    ("TERMINATE_SCATTER_LIST_MKEY", Own(special_contexts, status::OK)),
    ("REPEATED_MKEY", Own(special_contexts, status::OK)),
    ("DUMP_FILL_MKEY", Own(special_contexts, status::OK)),
    ("DUMP_FILL_MKEY", Try::Wqe(opcode::DUMP)),
    ("LOG_MAX_MRW_SZ", Try::Wqe(opcode::BIND_MW)),
    ("RELEASE_ALL_PAGES", Nothing("the device has no pages to release")),
    ("CC_QUERY_ALLOWED", Command(0x824)),
    ("CC_MODIFY_ALLOWED", Command(0x825)),
    ("QCAM_REG", Register(id::QCAM)),
    ("DEBUG", Type(0xd)),
    ("VPORT_GROUP_MANAGER", Own(other_vport, status::BAD_PARAM)),
    ("VHCA_GROUP_MANAGER", Command(0xb0d)),
    ("ETH_VIRT", Command(0x754)),
    ("ETS", Register(0x4005)),
    ("NIC_FLOW_TABLE", Command(0x930)),
    ("ESWITCH_MANAGER", Command(0x752)),
    ("GENERAL_OBJ_TYPES", Own(|driver| key_of_mode(driver, access_mode::SW_ICM), status::BAD_PARAM)),
    ("MCAM_REG", Register(id::MCAM)),
    ("PCAM_REG", Register(id::PCAM)),
    ("PORT_MODULE_EVENT", Nothing("an event that never comes")),
    ("PPS", Register(0x9053)),
    ("TEMP_WARN_EVENT", Nothing("an event that never comes")),
    ("GENERAL_NOTIFICATION_EVENT", Nothing("an event that never comes")),
    ("FPGA", Command(0x960)),
    ("STAT_RATE_SUPPORT", Nothing("a rate that is asked for is no limit that anybody sees")),
    ("STRIDING_RQ", Value(Opcode::CREATE_RMP, wq::WQ_TYPE.plus(create_rmp_in::RMPC + rmpc::WQ), 2)),
    ("IPOIB_ENHANCED_OFFLOADS", Command(0x912)),
    ("IPOIB_ENHANCED_OFFLOADS", Try::Wqe(opcode::ENHANCED_MPSW)),
    ("IPOIB_BASIC_OFFLOADS", Try::Wqe(opcode::LSO)),
    ("SCTR_DATA_CQE", Value(Opcode::CREATE_QP, qpc::CS_REQ.plus(QPC), 0x11)),
    ("SHO", Command(Opcode::CREATE_PSV.0)),
    ("SHO", Value(Opcode::CREATE_MKEY, mkc::BSF_EN.plus(mkey_in::MKC), 1)),
    ("SHO", Mask(umr_mask::BSF_EN)),
    ("SHO", Mask(umr_mask::EN_SIGERR)),
    ("SHO", Try::Wqe(opcode::SET_PSV)),
    ("SHO", Try::Wqe(opcode::CHECK_PSV)),
    ("QOS", Command(0x782)),
    ("ETH_NET_OFFLOADS", Command(Opcode::CREATE_SQ.0)),
    ("ETH_NET_OFFLOADS", Command(0x900)),
    ("ETH_NET_OFFLOADS", Value(Opcode::CREATE_QP, qpc::ST.plus(QPC), service_type::RAW_ETH)),
    ("ROCE", Command(0x761)),
    ("CQ_MODERATION", Own(|driver| modify_cq(driver, modify_op_mod::MODIFY, modify_select::PERIOD), status::BAD_PARAM)),
    ("CQ_MODERATION", Own(|driver| modify_cq(driver, 0, modify_select::MAX_COUNT), status::BAD_PARAM)),
    ("CQ_MODERATION", Own(|driver| modify_cq(driver, 0, modify_select::PERIOD_MODE), status::BAD_PARAM)),
    ("CQ_MODERATION", Own(|driver| modify_cq(driver, 0, 0), status::OK)),
    ("CQ_MODERATION", Value(Opcode::CREATE_CQ, cqc::CQ_PERIOD.plus(cq_in::CQC), 1)),
    ("CQ_MODERATION", Value(Opcode::CREATE_CQ, cqc::CQ_MAX_COUNT.plus(cq_in::CQC), 1)),
    ("CD", Value(Opcode::CREATE_QP, qpc::CD_MASTER.plus(QPC), 1)),
    ("APM", Own(|driver| migrate(driver, opt_param_mask::ALT_ADDR_PATH, pm_state::MIGRATED), status::BAD_PARAM)),
    ("APM", Own(|driver| migrate(driver, opt_param_mask::PM_STATE, pm_state::ARMED), status::BAD_PARAM)),
    ("APM", Own(|driver| migrate(driver, opt_param_mask::PM_STATE, pm_state::MIGRATED), status::OK)),
    ("VECTOR_CALC", Type(0xb)),
    ("SET_DETH_SQPN", Value(Opcode::CREATE_QP, qpc::DETH_SQPN.plus(QPC), 1)),
    ("UAR_4K", Nothing("the pages are of 4 KiB all the same")),
    ("PORT_SELECTION_CAP", Type(cap_type::PORT_SELECTION)),
    ("BF", Nothing("what is written into a BlueFlame register is a doorbell or nothing")),
    ("DRIVER_VERSION", Command(Opcode::SET_DRIVER_VERSION.0)),
    ("MKEY_BY_NAME", Nothing("the index is the device's to choose")),
    ("LAG_MASTER", Command(0x840)),
    ("NUM_LAG_PORTS", Command(0x842)),
    ("SHAMPO", Type(0x1d)),
    ("LOG_MAX_TRANSPORT_DOMAIN", Command(Opcode::ALLOC_TRANSPORT_DOMAIN.0)),
    ("LOG_MAX_SQ", Command(Opcode::CREATE_SQ.0)),
    ("ROCE_RW_SUPPORTED", Command(0x760)),
    ("VHCA_STATE", Command(0xb0d)),
    ("GENERAL_OBJ_TYPES", Command(0xa00)),
    ("ATS", Value(Opcode::CREATE_MKEY, mkc::MA_TRANSLATION_MODE.plus(mkey_in::MKC), 1)),
    ("IPSEC_OFFLOAD", Command(0xa00)),
    ("MAX_NUM_EQS", Nothing("log_max_eq says how many there are")),
    ("TLS_TX", Type(0x11)),
    ("TLS_RX", Type(0x11)),
    ("LOG_UAR_PAGE_SZ", Nothing("SET_HCA_CAP refuses another: tests/mlx5/caps/limits.rs")),
    ("ADV_VIRTUALIZATION", Nothing("there is no function behind this one")),
    ("CQE_COMPRESSION_128", Value(Opcode::CREATE_CQ, cqc::CQE_COMP_EN.plus(cq_in::CQC), 1)),
    ("CQE_COMPRESSION", Value(Opcode::CREATE_CQ, cqc::CQE_COMP_EN.plus(cq_in::CQC), 1)),
    ("TAG_MATCHING", Command(Opcode::CREATE_XRQ.0)),
    ("TAG_MATCHING", Try::Wqe(opcode::TAG_MATCHING)),
    ("NUM_VHCA_PORTS", Command(0x755)),
    ("SW_OWNER_ID", Nothing("INIT_HCA's is for two functions of one owner to find each other")),
    ("MAX_NUM_SF", Command(0x111)),
    ("SF", Command(0x113)),
    (
        "UCTX_CAP",
        Own(
            |driver| said(driver, Input::new(Opcode::CREATE_UCTX, create_uctx_in::SIZE).with(create_uctx_in::CAP, 1)),
            status::BAD_PARAM,
        ),
    ),
];

fn said(driver: &Driver, input: Input) -> u8 {
    driver.commands.execute(&input.finish(), 0x210).err().map_or(status::OK, |error| error.status().unwrap())
}

fn special_contexts(driver: &Arc<Driver>) -> u8 {
    let input = Input::new(Opcode::QUERY_SPECIAL_CONTEXTS, 16);
    let answer = driver.query(input, query_special_contexts_out::SIZE).unwrap();
    for key in [
        query_special_contexts_out::DUMP_FILL_MKEY,
        query_special_contexts_out::RESD_LKEY,
        query_special_contexts_out::TERMINATE_SCATTER_LIST_MKEY,
        query_special_contexts_out::REPEATED_MKEY,
    ] {
        assert_eq!(key.get(&answer), 0, "no such key is told of");
    }
    status::OK
}

fn other_vport(driver: &Arc<Driver>) -> u8 {
    said(driver, Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16).with(query_context_in::OTHER_VPORT, 1))
}

fn key_of_mode(driver: &Arc<Driver>, mode: u32) -> u8 {
    let spec = MkeySpec { mode, ..MkeySpec::physical(driver.pd, Access::ALL) };
    driver.create_mkey(&spec).err().map_or(status::OK, |error| error.status().unwrap())
}

fn modify_cq(driver: &Arc<Driver>, how: u32, select: u32) -> u8 {
    let cqn = driver.create_cq(4).unwrap().cqn;
    let input = Input::new(Opcode::MODIFY_CQ, cq_modify::SIZE).op_mod(how).with(cq_modify::CQN, cqn);
    said(driver, input.with(cq_modify::FIELD_SELECT, select))
}

fn migrate(driver: &Arc<Driver>, mask: u32, state: u32) -> u8 {
    let pair = Pair::on(driver.clone(), |_| ());
    let mut context = vec![0; QPC_SIZE];
    qpc::PM_STATE.set(&mut context, state);
    let changed = pair.one.modify(Opcode::RTS2RTS_QP, mask, &context);
    changed.err().map_or(status::OK, |error| error.status().unwrap())
}

/// The bad one is refused as said, the same without it is not.
fn value(driver: &Arc<Driver>, opcode: Opcode, field: Field, value: u32) {
    let (_, good, _) = carriers(driver).into_iter().find(|(known, ..)| *known == opcode).unwrap();
    let mut bad = good.clone();
    field.set(&mut bad, value);
    let run = |input: &[u8]| driver.commands.execute(input, 16).err().map(|error| error.status().unwrap());
    assert_eq!(run(&bad), Some(status::BAD_PARAM), "{opcode}: {field:?} = {value}");
    assert_eq!(run(&good), None, "{opcode}");
}

/// The queue pair's error, and nothing else: no byte has moved.
fn wqe(driver: &Arc<Driver>, code: u32) {
    let pair = Pair::on(driver.clone(), |_| ());
    pair.local.fill_pattern(u64::from(code));
    let wqe = Wqe::new(code).remote(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 64));
    pair.one.post_one(wqe.signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::LOCAL_QP_OP_ERR, "opcode {code:#x}");
    assert!(pair.remote.bytes(0, 64).iter().all(|byte| *byte == 0), "opcode {code:#x}");
}

fn umr(driver: &Arc<Driver>, mask: u64) {
    let pair = Pair::on(driver.clone(), |_| ());
    let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::INLINE;
    let with = |mask| {
        let key = pair.remote_mr.key;
        // Rights would be taken away beside it.
        UmrSpec { key, flags, mask, context: vec![0; MKC_SIZE], first: 0, list: Vec::new() }
    };
    let Err(Error::Completion(cqe)) = driver.umr(&with(umr_mask::RW | mask)) else { panic!("mask {mask:#x} is taken") };
    assert_eq!(cqe.syndrome(), syndrome::MW_BIND_ERR, "mask {mask:#x}");
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    driver.umr(&with(umr_mask::RW)).unwrap();
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
}

fn command(driver: &Arc<Driver>, number: u16) {
    let mut input = vec![0; 0x110];
    in_header::OPCODE.set(&mut input, u32::from(number));
    let answer = driver.commands.execute(&input, 0x110).unwrap_err();
    assert_eq!(answer.status(), Some(status::BAD_OP), "{number:#x}");
}

fn register(driver: &Arc<Driver>, number: u32) {
    let input = Input::new(Opcode::ACCESS_REG, access_in::SIZE + 0x100).op_mod(op_mod::READ);
    assert_eq!(said(driver, input.with(access_in::REGISTER_ID, number)), status::BAD_PARAM, "{number:#x}");
}

/// A field is in one of the three tables, by its value.
#[test]
fn every_field_is_offered_or_has_been_tried() {
    let driver = Driver::probe(&machine()).unwrap();
    let bytes = query_caps(&driver.commands, cap_type::GENERAL, cap_mode::MAX).unwrap();
    let found = offered(&bytes, cap::FIELDS, cap::SPANS);
    for field in cap::FIELDS {
        let rows = GENERAL.iter().filter(|(name, ..)| name == field).count();
        let tries = TRIES.iter().filter(|(name, _)| name == field).count();
        let promises = PROMISES.iter().filter(|(name, _)| name == field).count();
        assert_eq!(found.contains_key(*field), rows == 1, "{field}");
        assert_eq!(rows + promises + tries.min(1), 1, "{field}: {rows} rows, {promises} promises, {tries} tries");
    }
    let known = |name: &str| cap::FIELDS.contains(&name);
    PROMISES.iter().for_each(|(_, test)| assert_is_there(test));
    assert!(TRIES.iter().all(|(name, _)| known(name)) && PROMISES.iter().all(|(name, _)| known(name)));
}

#[test]
fn what_is_not_offered_is_refused() {
    let driver = Driver::probe(&machine()).unwrap();
    for (name, tried) in TRIES {
        println!("{name}");
        match tried {
            Command(number) => command(&driver, *number),
            Type(kind) => {
                let refused = query_caps(&driver.commands, *kind, cap_mode::MAX).unwrap_err();
                assert_eq!(refused.status(), Some(status::BAD_PARAM), "{name}");
            }
            Register(number) => register(&driver, *number),
            Value(opcode, field, bad) => value(&driver, *opcode, *field, *bad),
            Try::Wqe(code) => wqe(&driver, *code),
            Mask(mask) => umr(&driver, *mask),
            Own(run, expected) => assert_eq!(run(&driver), *expected, "{name}"),
            Nothing(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}

/// Whatever no table names, too: opcodes of commands and of WQEs, bits of a UMR's mask, services, access modes.
#[test]
fn what_nobody_knows_is_refused() {
    let machine = Machine::new(MachineConfig { ram_mib: 256, ..MachineConfig::default() });
    let driver = Driver::probe(&Arc::new(machine)).unwrap();
    let known: Vec<u16> = mlx5::command::table::COMMANDS.iter().map(|command| command.opcode.0).collect();
    for number in (0..=0xfff).chain([0x1000, 0x8000, 0xffff]).filter(|number| !known.contains(number)) {
        command(&driver, number);
    }
    let codes = [
        opcode::NOP,
        opcode::SEND_INVAL,
        opcode::RDMA_WRITE,
        opcode::RDMA_WRITE_IMM,
        opcode::SEND,
        opcode::SEND_IMM,
        opcode::RDMA_READ,
        opcode::ATOMIC_CS,
        opcode::ATOMIC_FA,
        opcode::UMR,
    ];
    for code in (0..=0xff).filter(|code| !codes.contains(code)) {
        wqe(&driver, code);
    }
    let masks = umr_mask::LEN
        | umr_mask::LOG_PAGE_SIZE
        | umr_mask::START_ADDR
        | umr_mask::PD
        | umr_mask::EN_RINVAL
        | umr_mask::KEY
        | umr_mask::QPN
        | umr_mask::LR
        | umr_mask::LW
        | umr_mask::RR
        | umr_mask::RW
        | umr_mask::A
        | umr_mask::SMALL_FENCE
        | umr_mask::FREE;
    for mask in (0..64).map(|bit| 1 << bit).filter(|mask| masks & mask == 0) {
        umr(&driver, mask);
    }
    let services = [
        service_type::RC,
        service_type::DCI,
        service_type::UC,
        service_type::UD,
        service_type::XRC,
        service_type::QP0,
        service_type::QP1,
        service_type::REG_UMR,
    ];
    for service in (0..=qpc::ST.max()).filter(|service| !services.contains(service)) {
        value(&driver, Opcode::CREATE_QP, qpc::ST.plus(QPC), service);
    }
    for mode in (access_mode::KSM + 1..32).filter(|mode| *mode != access_mode::MEMIC) {
        assert_eq!(key_of_mode(&driver, mode), status::BAD_PARAM, "mode {mode}");
    }
    for profile in teardown_profile::PREPARE_FAST_TEARDOWN + 1..=teardown_hca_in::PROFILE.max() {
        let input = Input::new(Opcode::TEARDOWN_HCA, 16).with(teardown_hca_in::PROFILE, profile);
        assert_eq!(said(&driver, input), status::BAD_PARAM, "{profile}");
    }
    driver.alloc_pd().expect("nothing was torn down");
}

/// umr_modify_entity_size_disabled and umr_modify_atomic_disabled are 0: a UMR changes the size of pages and the right to atomics.
#[test]
fn what_is_not_disabled_works() {
    let pair = Pair::new();
    let big = pair.driver.machine.guest.contiguous(4 << 20);
    let base = big.gpa(0).next_multiple_of(2 << 20);
    let spec = MkeySpec {
        access: Access { atomic: false, ..Access::ALL },
        ..MkeySpec::mtt(pair.pd, Access::ALL, 0, 1 << 20, vec![base | 3, 0])
    };
    let key = pair.driver.create_mkey(&spec).unwrap();
    let add = |va| Wqe::fetch_add(va, key, 1).sge(pair.local_mr.sge(0, 8)).signaled();
    pair.one.post_one(add(0));
    assert!(pair.one_cq.wait().unwrap().is_error());
    let mut context = vec![0; MKC_SIZE];
    mkc::LOG_PAGE_SIZE.set(&mut context, 21);
    mkc::A.set(&mut context, 1);
    let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::INLINE;
    let mask = umr_mask::LOG_PAGE_SIZE | umr_mask::A;
    pair.driver.umr(&UmrSpec { key, flags, mask, context, first: 0, list: Vec::new() }).unwrap();
    let pair = Pair::on(pair.driver.clone(), |spec| spec.pd = pair.pd);
    let own = pair
        .driver
        .create_mkey(&MkeySpec::mtt(pair.one.spec.pd, Access::ALL, 0, 4096, vec![pair.local.pages[0] | 3, 0]))
        .unwrap();
    let sge = rnic_testdrive::Sge { key: own, va: 0, len: 8 };
    let at = (1 << 20) - 8;
    pair.one.run(Wqe::fetch_add(at, key, 5).sge(sge)).unwrap();
    let mut word = [0; 8];
    pair.driver.machine.guest.read(base + at, &mut word);
    assert_eq!(u64::from_ne_bytes(word), 5, "beyond the first 4 KiB of the page");
}
