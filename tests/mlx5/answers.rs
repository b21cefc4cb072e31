// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a probe asks, and what it is told (contract 4.1, 4.2).

use std::sync::Arc;

use mlx5::{Model, NicConfig};
use mlx5_spec::caps::{self, atomic_caps, cap_mode, cap_type, cmd_hca_cap, odp_caps};
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::small::{query_adapter_out, query_issi_out, query_pages_out, set_issi_in};
use mlx5_spec::vport::{self, hca_vport_context, query_context_out, query_gid_out, query_pkey_out};
use mlx5_spec::{init, reg};
use rnic_testdrive::command::{Bar, Commands, Input};
use rnic_testdrive::driver::{query_caps, read_register, set_caps};
use rnic_testdrive::{Driver, Machine, MachineConfig, Result};

use crate::scene::machine;

fn machine_with(nic: NicConfig) -> Arc<Machine> {
    Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }))
}

/// A command queue, and the first of commands behind it: capabilities may be set now.
pub fn enabled(machine: &Arc<Machine>) -> Commands {
    machine.enable();
    let commands = Commands::new(machine, Bar::map(machine)).unwrap();
    run(&commands, Input::new(Opcode::ENABLE_HCA, 16)).unwrap();
    run(&commands, Input::new(Opcode::SET_ISSI, 16).with(set_issi_in::CURRENT_ISSI, 1)).unwrap();
    commands
}

fn run(commands: &Commands, input: Input) -> Result<Vec<u8>> {
    commands.execute(&input.finish(), 0x110)
}

#[test]
fn the_first_questions_of_a_probe() {
    let machine = machine();
    let commands = enabled(&machine);
    let issi = run(&commands, Input::new(Opcode::QUERY_ISSI, 16)).unwrap();
    assert_eq!((query_issi_out::SUPPORTED_ISSI_DW0.get(&issi), query_issi_out::CURRENT_ISSI.get(&issi)), (3, 1));
    let pages = run(&commands, Input::new(Opcode::QUERY_PAGES, 16).op_mod(1)).unwrap();
    assert_eq!(query_pages_out::NUM_PAGES.get(&pages), 0);
    let driver = Driver::probe(&machine).unwrap();
    let adapter = driver.query(Input::new(Opcode::QUERY_ADAPTER, 16), query_adapter_out::SIZE).unwrap();
    assert_eq!(query_adapter_out::IEEE_VENDOR_ID.get(&adapter), 0x2c9);
    assert_eq!(&adapter[query_adapter_out::VSD_CONTD_PSID], b"RNIC000000000001");
    assert!(driver.alloc_uar().unwrap() >= 16, "the first pages are the initialization segment's");
}

#[test]
fn capabilities_are_set_as_a_driver_sets_them_and_forgotten_at_a_restart() {
    let machine = machine();
    let commands = enabled(&machine);
    let general = |mode| query_caps(&commands, cap_type::GENERAL, mode).unwrap();
    let most = general(cap_mode::MAX);
    for (field, value) in [(cmd_hca_cap::BF, 0), (cmd_hca_cap::IB_VIRT, 1)] {
        assert_eq!(field.get(&most), value);
    }
    let mut wanted = most.clone();
    cmd_hca_cap::LOG_MAX_QP.set(&mut wanted, 12);
    // Not writable: ignored.
    cmd_hca_cap::BF.set(&mut wanted, 1);
    set_caps(&commands, cap_type::GENERAL, &wanted[..caps::CAP_SIZE]).unwrap();
    let current = general(cap_mode::CUR);
    assert_eq!((cmd_hca_cap::LOG_MAX_QP.get(&current), cmd_hca_cap::BF.get(&current)), (12, 0));
    cmd_hca_cap::LOG_MAX_QP.set(&mut wanted, 17);
    let refused = set_caps(&commands, cap_type::GENERAL, &wanted[..caps::CAP_SIZE]).unwrap_err();
    assert_eq!(refused.status(), Some(status::BAD_PARAM));

    let mode = atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE;
    let mut atomic = vec![0; caps::CAP_SIZE];
    mode.set(&mut atomic, 1);
    set_caps(&commands, cap_type::ATOMIC, &atomic).unwrap();
    let current = query_caps(&commands, cap_type::ATOMIC, cap_mode::CUR).unwrap();
    assert_eq!((mode.get(&current), atomic_caps::ATOMIC_OPERATIONS.get(&current)), (1, 3));

    let again = enabled(&machine);
    assert_eq!(mode.get(&query_caps(&again, cap_type::ATOMIC, cap_mode::CUR).unwrap()), 0);
    let current = query_caps(&again, cap_type::GENERAL, cap_mode::CUR).unwrap();
    assert!(current == most);
}

#[test]
fn paging_from_shared_receive_queues_is_on_when_asked_for() {
    let machine = machine();
    let commands = enabled(&machine);
    let rc = |mode| odp_caps::RC_ODP_CAPS.get(&query_caps(&commands, cap_type::ODP, mode).unwrap());
    assert_eq!((rc(cap_mode::CUR), rc(cap_mode::MAX)), (0xf800_0000, 0xfc00_0000));
    let mut wanted = vec![0; caps::CAP_SIZE];
    odp_caps::RC_ODP_CAPS.set(&mut wanted, u32::MAX);
    set_caps(&commands, cap_type::ODP, &wanted).unwrap();
    assert_eq!(rc(cap_mode::CUR), 0xfc00_0000);
}

#[test]
fn without_odp_its_capabilities_are_not_there() {
    let machine = machine_with(NicConfig { odp: false, ..NicConfig::default() });
    let commands = enabled(&machine);
    let refused = query_caps(&commands, cap_type::ODP, cap_mode::CUR).unwrap_err();
    assert_eq!(refused.status(), Some(status::BAD_PARAM));
}

#[test]
fn the_port_is_active_and_has_its_tables() {
    let driver = Driver::probe(&machine()).unwrap();
    let at = query_context_out::HCA_VPORT_CONTEXT;
    let context = || driver.query(Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16), query_context_out::SIZE).unwrap();
    let first = context();
    assert_eq!(hca_vport_context::VPORT_STATE.plus(at).get(&first), 4);
    assert_eq!(hca_vport_context::LID.plus(at).get(&first), 1);
    let cm = vport::cap_mask1::CM_SUP;
    assert_eq!(hca_vport_context::CAP_MASK1_FIELD_SELECT.plus(at).get(&first) & cm, cm);
    let modify = Input::new(Opcode::MODIFY_HCA_VPORT_CONTEXT, vport::modify_context_in::SIZE)
        .with(hca_vport_context::CAP_MASK1.plus(at), u32::MAX)
        .with(hca_vport_context::CAP_MASK1_FIELD_SELECT.plus(at), cm);
    driver.command(modify).unwrap();
    let mask = hca_vport_context::CAP_MASK1.plus(at).get(&context());
    assert_eq!(mask, cm | vport::cap_mask1::SYS_IMAGE_GUID);

    let gid = |index| {
        driver.query(Input::new(Opcode::QUERY_HCA_VPORT_GID, 16).with(vport::query_gid_in::GID_INDEX, index), 0x20)
    };
    let first = gid(0).unwrap();
    assert_eq!(query_gid_out::GIDS_NUM.get(&first), 1);
    assert_eq!(first[query_gid_out::GIDS..][..8], [0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gid(8).unwrap_err().status(), Some(status::BAD_INDEX));

    let pkey = |index, size| {
        let input = Input::new(Opcode::QUERY_HCA_VPORT_PKEY, 16).with(vport::query_pkey_in::PKEY_INDEX, index);
        vport::pkey::PKEY.plus(query_pkey_out::PKEYS).get(&driver.query(input, size).unwrap())
    };
    assert_eq!([pkey(0, 0x14), pkey(1, 0x14), pkey(127, 0x14)], [0xffff, 0, 0]);
    assert_eq!(pkey(vport::WHOLE_TABLE, 0x210), 0xffff);
}

#[test]
fn registers_that_probes_read() {
    let driver = Driver::probe(&machine()).unwrap();
    let read = |register, data: &[u8]| read_register(&driver.commands, register, data);
    let ptys = read(reg::id::PTYS, &[0; 64]).unwrap();
    assert_eq!((reg::ptys::IB_LINK_WIDTH_OPER.get(&ptys), reg::ptys::IB_PROTO_OPER.get(&ptys)), (4, 32));
    assert_eq!(reg::pmtu::OPER_MTU.get(&read(reg::id::PMTU, &[0; 16]).unwrap()), 4096);
    let lanes = reg::pvlc::VL_HW_CAP.get(&read(reg::id::PVLC, &[0; 16]).unwrap());
    assert!([1, 2, 4, 8, 15].contains(&lanes), "{lanes}");
    let mut text = [0; 64];
    text[..5].copy_from_slice(b"hello");
    let write = Input::new(Opcode::ACCESS_REG, reg::access_in::SIZE + text.len())
        .op_mod(reg::op_mod::WRITE)
        .with(reg::access_in::REGISTER_ID, reg::id::NODE_DESC)
        .bytes(reg::access_in::REGISTER_DATA, &text);
    driver.query(write, reg::access_out::SIZE + text.len()).unwrap();
    assert_eq!(read(reg::id::NODE_DESC, &[0; 64]).unwrap(), text);
    assert_eq!(read(reg::id::MCAM, &[0; 16]).unwrap_err().status(), Some(status::BAD_PARAM));
    assert_eq!(read(reg::id::PTYS, &[0; 8]).unwrap_err().status(), Some(status::BAD_INPUT_LEN));
}

#[test]
fn the_timer_and_the_queue_geometry_are_there() {
    let machine = machine();
    machine.enable();
    let bar = Bar::map(&machine);
    assert_eq!(bar.read32(init::CMDQ_ADDR_L_SZ as u64) & 0xfff, init::nic_interface::DISABLED << 8 | 0x56);
    let low = bar.read32(init::INTERNAL_TIMER as u64 + 4);
    assert_ne!(low, bar.read32(init::INTERNAL_TIMER as u64 + 4));
    assert_eq!(bar.read32(0x2010), u32::MAX, "beyond the segment");
}

#[test]
fn a_physical_function_has_a_gateway_whose_semaphore_can_be_taken() {
    const VENDOR_SPECIFIC: u8 = 9;
    assert_eq!(machine().capability(VENDOR_SPECIFIC), None);
    let machine = machine_with(NicConfig { model: Model::Cx5, ..NicConfig::default() });
    let gateway = machine.capability(VENDOR_SPECIFIC).unwrap();
    // Taken by writing what the counter says, given back by writing 0.
    let counter = machine.config_read32(gateway + 8);
    for value in [counter, 0] {
        machine.config_write32(gateway + 12, value);
        assert_eq!(machine.config_read32(gateway + 12), value);
    }
    machine.config_write16(gateway + 4, 7);
    assert_eq!(machine.config_read32(gateway + 4) >> 29, 0, "no space is supported");
}

/// Values that look arbitrary and are not: ib_srpt listens on the node GUID, and what begins with 0x02 asks ib_cm to assign a service id.
#[test]
fn guids_are_of_the_vendor_and_do_not_read_as_a_request() {
    let driver = Driver::probe(&machine()).unwrap();
    let adapter = driver.query(Input::new(Opcode::QUERY_ADAPTER, 16), query_adapter_out::SIZE).unwrap();
    let vendor = query_adapter_out::IEEE_VENDOR_ID.get(&adapter);
    let answer = driver.query(Input::new(Opcode::QUERY_HCA_VPORT_CONTEXT, 16), query_context_out::SIZE).unwrap();
    let context = &answer[query_context_out::HCA_VPORT_CONTEXT..];
    let guids = [hca_vport_context::NODE_GUID, hca_vport_context::PORT_GUID].map(|field| field.get(context));
    for guid in guids {
        assert_eq!(guid >> 40, u64::from(vendor), "{guid:#x}");
        assert_ne!(guid >> 56, 2, "{guid:#x}");
    }
    assert_eq!(guids[1], guids[0] + 1);
}
