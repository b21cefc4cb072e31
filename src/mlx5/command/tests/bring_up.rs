// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a stock driver's probe asks (contract 4.1, 4.2).

use super::*;
use crate::Model;
use mlx5_spec::eq::{eqe, eqe_cmd, event};
use mlx5_spec::small::{query_adapter_out, query_issi_out, query_pages_out};
use mlx5_spec::vport::{hca_vport_context, query_context_out, query_gid_out, query_pkey_out};
use mlx5_spec::{caps, reg, uar, vport};

fn query_caps(guest: &mut Guest, kind: u32, mode: u32) -> Vec<u8> {
    let answer = guest.run(&input(Opcode::QUERY_HCA_CAP, kind << 1 | mode, 16), caps::query_out::SIZE).ok();
    answer.bytes[caps::query_out::CAPABILITY..][..caps::CAP_SIZE].to_vec()
}

fn set_caps(guest: &mut Guest, kind: u32, caps: &[u8]) -> Answer {
    let mut input = input(Opcode::SET_HCA_CAP, kind << 1, caps::set_in::SIZE);
    input[caps::set_in::CAPABILITY..][..caps.len()].copy_from_slice(caps);
    guest.run(&input, 16)
}

#[test]
fn the_core_part_of_a_probe() {
    let mut guest = Guest::new(NicConfig::default());
    guest.call(Opcode::ENABLE_HCA, 0, 0).ok();
    assert_eq!(guest.call(Opcode::QUERY_ISSI, 0, 0).ok().get(query_issi_out::SUPPORTED_ISSI_DW0), 3);
    guest.call(Opcode::SET_ISSI, 0, 1).ok();
    assert_eq!(guest.call(Opcode::QUERY_ISSI, 0, 0).ok().get(query_issi_out::CURRENT_ISSI), 1);
    assert_eq!(guest.call(Opcode::QUERY_PAGES, 1, 0).ok().get(query_pages_out::NUM_PAGES), 0);
    guest.call(Opcode::MANAGE_PAGES, 1, 0).ok();
    guest.call(Opcode::INIT_HCA, 0, 0).ok();
    let adapter = guest.call(Opcode::QUERY_ADAPTER, 0, 0).ok();
    assert_eq!(adapter.get(query_adapter_out::IEEE_VENDOR_ID), 0x2c9);
    assert_eq!(&adapter.bytes[query_adapter_out::VSD_CONTD_PSID], b"RNIC000000000001");
    let page = guest.alloc(Opcode::ALLOC_UAR);
    assert!(page >= 16);
    assert_eq!(guest.call(Opcode::TEARDOWN_HCA, 0, 0).ok().bytes[12..16], [0; 4]);
    guest.call(Opcode::DISABLE_HCA, 0, 0).ok();
    assert_eq!(guest.handle.objects(), 0);
}

#[test]
fn capabilities_are_set_as_a_driver_sets_them_and_forgotten_at_a_restart() {
    let mut guest = Guest::new(NicConfig::default());
    let most = query_caps(&mut guest, caps::cap_type::GENERAL, caps::cap_mode::MAX);
    for (field, value) in [
        (caps::cmd_hca_cap::PG, 1),
        (caps::cmd_hca_cap::XRC, 1),
        (caps::cmd_hca_cap::LOG_BF_REG_SIZE, 9),
        (caps::cmd_hca_cap::BF, 0),
        (caps::cmd_hca_cap::IB_VIRT, 1),
    ] {
        assert_eq!(field.get(&most), value);
    }
    let mut wanted = most.clone();
    caps::cmd_hca_cap::LOG_MAX_QP.set(&mut wanted, 12);
    // Not writable: ignored.
    caps::cmd_hca_cap::BF.set(&mut wanted, 1);
    set_caps(&mut guest, caps::cap_type::GENERAL, &wanted).ok();
    let current = query_caps(&mut guest, caps::cap_type::GENERAL, caps::cap_mode::CUR);
    assert_eq!(caps::cmd_hca_cap::LOG_MAX_QP.get(&current), 12);
    assert_eq!(caps::cmd_hca_cap::BF.get(&current), 0);
    caps::cmd_hca_cap::LOG_MAX_QP.set(&mut wanted, 17);
    assert_eq!(set_caps(&mut guest, caps::cap_type::GENERAL, &wanted).status(), status::BAD_PARAM);

    let mode = caps::atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE;
    let mut atomic = vec![0; caps::CAP_SIZE];
    mode.set(&mut atomic, 1);
    set_caps(&mut guest, caps::cap_type::ATOMIC, &atomic).ok();
    let current = query_caps(&mut guest, caps::cap_type::ATOMIC, caps::cap_mode::CUR);
    assert_eq!((mode.get(&current), caps::atomic_caps::ATOMIC_OPERATIONS.get(&current)), (1, 3));

    guest.begin();
    guest.initialize();
    let current = query_caps(&mut guest, caps::cap_type::ATOMIC, caps::cap_mode::CUR);
    assert_eq!(mode.get(&current), 0);
    assert_eq!(query_caps(&mut guest, caps::cap_type::GENERAL, caps::cap_mode::CUR), most);
}

#[test]
fn paging_from_shared_receive_queues_is_on_when_asked_for() {
    let mut guest = Guest::new(NicConfig::default());
    let rc = caps::odp_caps::RC_ODP_CAPS;
    let mut odp = query_caps(&mut guest, caps::cap_type::ODP, caps::cap_mode::CUR);
    assert_eq!(rc.get(&odp), 0xf800_0000);
    assert_eq!(rc.get(&query_caps(&mut guest, caps::cap_type::ODP, caps::cap_mode::MAX)), 0xfc00_0000);
    rc.set(&mut odp, u32::MAX);
    set_caps(&mut guest, caps::cap_type::ODP, &odp).ok();
    assert_eq!(rc.get(&query_caps(&mut guest, caps::cap_type::ODP, caps::cap_mode::CUR)), 0xfc00_0000);
}

#[test]
fn without_odp_nothing_of_it_is_offered() {
    let mut guest = Guest::new(NicConfig { odp: false, ..NicConfig::default() });
    let general = query_caps(&mut guest, caps::cap_type::GENERAL, caps::cap_mode::CUR);
    assert_eq!(caps::cmd_hca_cap::PG.get(&general), 0);
    let odp = guest.run(&input(Opcode::QUERY_HCA_CAP, caps::cap_type::ODP << 1, 16), caps::query_out::SIZE);
    assert_eq!(odp.status(), status::BAD_PARAM);
}

#[test]
fn the_port_is_active_and_has_its_tables() {
    let mut guest = Guest::new(NicConfig::default());
    let at = query_context_out::HCA_VPORT_CONTEXT;
    let context = guest.run(&input(Opcode::QUERY_HCA_VPORT_CONTEXT, 0, 16), query_context_out::SIZE).ok();
    assert_eq!(context.get(hca_vport_context::VPORT_STATE.plus(at)), 4);
    assert_eq!(context.get(hca_vport_context::LID.plus(at)), 1);
    let cm = vport::cap_mask1::CM_SUP;
    assert_eq!(context.get(hca_vport_context::CAP_MASK1_FIELD_SELECT.plus(at)) & cm, cm);
    let mut modify = input(Opcode::MODIFY_HCA_VPORT_CONTEXT, 0, vport::modify_context_in::SIZE);
    hca_vport_context::CAP_MASK1.plus(at).set(&mut modify, u32::MAX);
    hca_vport_context::CAP_MASK1_FIELD_SELECT.plus(at).set(&mut modify, cm);
    guest.run(&modify, 16).ok();
    let context = guest.run(&input(Opcode::QUERY_HCA_VPORT_CONTEXT, 0, 16), query_context_out::SIZE).ok();
    let mask = context.get(hca_vport_context::CAP_MASK1.plus(at));
    assert_eq!(mask, cm | vport::cap_mask1::SYS_IMAGE_GUID);

    let mut query = input(Opcode::QUERY_HCA_VPORT_GID, 0, 16);
    vport::query_gid_in::GID_INDEX.set(&mut query, 0);
    let gid = guest.run(&query, 0x20).ok();
    assert_eq!(gid.get(query_gid_out::GIDS_NUM), 1);
    assert_eq!(gid.bytes[query_gid_out::GIDS..][..8], [0xfe, 0x80, 0, 0, 0, 0, 0, 0]);
    vport::query_gid_in::GID_INDEX.set(&mut query, 8);
    assert_eq!(guest.run(&query, 0x20).status(), status::BAD_INDEX);

    let mut query = input(Opcode::QUERY_HCA_VPORT_PKEY, 0, 16);
    for (index, expected) in [(0, 0xffff), (1, 0), (127, 0)] {
        vport::query_pkey_in::PKEY_INDEX.set(&mut query, index);
        assert_eq!(guest.run(&query, 0x14).ok().get(vport::pkey::PKEY.plus(query_pkey_out::PKEYS)), expected);
    }
    vport::query_pkey_in::PKEY_INDEX.set(&mut query, vport::WHOLE_TABLE);
    assert_eq!(guest.run(&query, 0x210).ok().get(vport::pkey::PKEY.plus(query_pkey_out::PKEYS)), 0xffff);
}

fn access_register(guest: &mut Guest, register: u32, mode: u32, data: &[u8]) -> Answer {
    let mut input = input(Opcode::ACCESS_REG, mode, reg::access_in::SIZE);
    reg::access_in::REGISTER_ID.set(&mut input, register);
    input.extend(data);
    guest.run(&input, reg::access_out::SIZE + data.len())
}

#[test]
fn registers_that_probes_read() {
    let mut guest = Guest::new(NicConfig::default());
    let at = reg::access_out::REGISTER_DATA;
    let read = reg::op_mod::READ;
    let ptys = access_register(&mut guest, reg::id::PTYS, read, &[0; 64]).ok();
    assert_eq!(
        (ptys.get(reg::ptys::IB_LINK_WIDTH_OPER.plus(at)), ptys.get(reg::ptys::IB_PROTO_OPER.plus(at))),
        (4, 32)
    );
    let pmtu = access_register(&mut guest, reg::id::PMTU, read, &[0; 16]).ok();
    assert_eq!(pmtu.get(reg::pmtu::OPER_MTU.plus(at)), 4096);
    let pvlc = access_register(&mut guest, reg::id::PVLC, read, &[0; 16]).ok();
    assert!([1, 2, 4, 8, 15].contains(&pvlc.get(reg::pvlc::VL_HW_CAP.plus(at))));
    let mut text = [0; 64];
    text[..5].copy_from_slice(b"hello");
    access_register(&mut guest, reg::id::NODE_DESC, reg::op_mod::WRITE, &text).ok();
    assert_eq!(access_register(&mut guest, reg::id::NODE_DESC, read, &[0; 64]).ok().bytes[at..], text);
    assert_eq!(access_register(&mut guest, reg::id::MCAM, read, &[0; 16]).status(), status::BAD_PARAM);
    assert_eq!(access_register(&mut guest, reg::id::PTYS, read, &[0; 8]).status(), status::BAD_INPUT_LEN);
}

#[test]
fn commands_complete_by_events_once_there_is_a_command_eq() {
    let mut guest = Guest::new(NicConfig::default());
    let page = guest.alloc(Opcode::ALLOC_UAR);
    let first = guest.next_page;
    let eqn = guest.create_eq(page, 1, 1 << event::CMD);
    let arm = |guest: &mut Guest, ci: u32| {
        let mut doorbell = [0; 4];
        uar::eq::EQN.set(&mut doorbell, eqn);
        uar::eq::CI.set(&mut doorbell, ci);
        guest.nic.bar_write(0, u64::from(page) * 4096 + uar::EQ_ARM, &doorbell);
    };
    arm(&mut guest, 0);
    // The CREATE_EQ itself was polled for: it must not be told again.
    assert!(guest.router.take().is_empty());
    let entry = guest.entry(&input(Opcode::NOP, 0, 16), 16);
    guest.submit(5, &entry).ok();
    // The event follows the answer.
    let limit = Instant::now() + Duration::from_secs(5);
    while guest.router.sent.lock().unwrap().is_empty() {
        assert!(Instant::now() < limit, "no interrupt");
        std::thread::yield_now();
    }
    assert_eq!(guest.router.take(), [1]);
    let mut bytes = [0; eq::EQE_SIZE];
    guest.ram.read_slice(&mut bytes, GuestAddress(first)).unwrap();
    assert_eq!((eqe::TYPE.get(&bytes), eqe_cmd::VECTOR.get(&bytes)), (event::CMD, 1 << 5));
    arm(&mut guest, 1);
    guest.call(Opcode::DESTROY_EQ, 0, eqn).ok();
    assert!(guest.router.take().is_empty());
}

#[test]
fn the_timer_and_the_queue_geometry_are_there() {
    let mut guest = Guest::new(NicConfig::default());
    assert_eq!(guest.read_dword(CMDQ_ADDR_L_SZ as u64) & 0xfff, 0x056);
    let low = guest.read_dword(0x1004);
    assert_ne!(low, guest.read_dword(0x1004));
    assert_eq!(guest.read_dword(0x2010), u32::MAX);
}

#[test]
fn a_physical_function_has_a_gateway_whose_semaphore_can_be_taken() {
    let find = |model| {
        let mut guest = Guest::new(NicConfig { model, ..NicConfig::default() });
        let mut at = [0x34];
        while at[0] != 0 {
            let mut id = [0; 2];
            let here = u16::from(at[0]);
            guest.nic.config_read(if here == 0x34 { here } else { here + 1 }, &mut at);
            guest.nic.config_read(u16::from(at[0]), &mut id);
            if id[0] == 0x09 {
                return Some((guest, u16::from(at[0])));
            }
        }
        None
    };
    assert!(find(Model::Cx5Vf).is_none());
    let (mut guest, gateway) = find(Model::Cx5).unwrap();
    let mut counter = [0; 4];
    guest.nic.config_read(gateway + 8, &mut counter);
    for value in [counter, [0; 4]] {
        guest.nic.config_write(gateway + 12, &value);
        let mut semaphore = [0xff; 4];
        guest.nic.config_read(gateway + 12, &mut semaphore);
        assert_eq!(semaphore, value);
    }
    guest.nic.config_write(gateway + 4, &0x0007_u16.to_le_bytes());
    let mut control = [0; 4];
    guest.nic.config_read(gateway + 4, &mut control);
    assert_eq!(u32::from_le_bytes(control) >> 29, 0);
}
