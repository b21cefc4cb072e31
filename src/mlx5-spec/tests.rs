// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Positions pinned as the drivers' own header has them (bit offset from the structure's start, number of bits), a few of
//! each family, so that neither a slip here nor one in the contract goes unseen. Bounds and overlaps are checked while
//! compiling (`layout`).

use super::bits::{Field, Field64};
use super::cmd::{OPCODES, Opcode};
use super::{caps, cmd, cq, eq, init, mkey, odp, qp, reg, small, srq, uar, vport, wqe};

/// Which bits a field really touches: the first, and how many; they must be contiguous.
fn touched(set: impl FnOnce(&mut [u8])) -> (usize, usize) {
    let mut bytes = vec![0; 0x2010];
    set(&mut bytes);
    let is_set = |bit: usize| bytes[bit / 8] & 0x80 >> (bit % 8) != 0;
    let bits: Vec<usize> = (0..bytes.len() * 8).filter(|&bit| is_set(bit)).collect();
    let (first, last) = (bits[0], bits[bits.len() - 1]);
    assert_eq!(last - first + 1, bits.len());
    (first, bits.len())
}

fn check(pins: &[(Field, usize, usize)]) {
    for &(field, first, count) in pins {
        assert_eq!(touched(|bytes| field.set(bytes, u32::MAX)), (first, count), "{field:x?}");
    }
}

fn check64(pins: &[(Field64, usize)]) {
    for &(field, first) in pins {
        assert_eq!(touched(|bytes| field.set(bytes, u64::MAX)), (first, 64), "{field:x?}");
    }
}

#[test]
fn capabilities() {
    check(&[
        (caps::cmd_hca_cap::LOG_MAX_QP, 0x9b, 5),
        (caps::cmd_hca_cap::IB_VIRT, 0x1a2, 1),
        (caps::cmd_hca_cap::CQE_VERSION, 0x1fc, 4),
        (caps::cmd_hca_cap::UMR_MODIFY_ENTITY_SIZE_DISABLED, 0x207, 1),
        (caps::cmd_hca_cap::PG, 0x227, 1),
        (caps::cmd_hca_cap::XRC, 0x23c, 1),
        (caps::cmd_hca_cap::LOG_BF_REG_SIZE, 0x26b, 5),
        (caps::odp_caps::RC_ODP_CAPS, 0x80, 32),
        (caps::odp_caps::MEM_PAGE_FAULT, 0x600, 1),
        (caps::atomic_caps::SUPPORTED_ATOMIC_REQ_8B_ENDIANNESS_MODE_1, 0x46, 1),
        (caps::atomic_caps::ATOMIC_OPERATIONS, 0x90, 16),
    ]);
    // What QUERY_HCA_CAP sends for "ODP, current" (contract 4.1).
    let mut query = [0; caps::query_in::SIZE];
    cmd::IN_OP_MOD.set(&mut query, 0x0005);
    assert_eq!(caps::query_in::CAP_TYPE.get(&query), caps::cap_type::ODP);
    assert_eq!(caps::query_in::CAP_MODE.get(&query), caps::cap_mode::CUR);
}

#[test]
fn initialization_segment() {
    check(&[
        (init::segment::LOG_CMDQ_STRIDE, 0xbc, 4),
        (init::segment::INITIALIZING, 0xfe0, 1),
        (init::segment::HEALTH_COUNTER, 0x8088, 24),
        (init::health::RFR, 0x1c0, 1),
        (init::health::SYND, 0x1e8, 8),
    ]);
    check64(&[(init::segment::IEEE1588_CLK, 0x2000 * 8)]);
    let outside = [init::CMDQ_ADDR_H, init::CMDQ_ADDR_L_SZ, init::COMMAND_DOORBELL, init::INITIALIZING];
    assert_eq!((init::segment::SIZE, outside), (0x2010, [0x10, 0x14, 0x18, 0x1fc]));
}

#[test]
fn event_queues() {
    check(&[
        (eq::eqc::LOG_EQ_SIZE, 0x63, 5),
        (eq::eqc::INTR, 0xb4, 12),
        (eq::eqe::TYPE, 8, 8),
        (eq::eqe::SUB_TYPE, 0x18, 8),
        (eq::eqe::OWNER, 0x1ff, 1),
        (eq::eqe_comp::CQN, 0x38 * 8 + 8, 24),
        (eq::eqe_qp_srq::TYPE, 0x34 * 8, 8),
        (eq::eqe_cq_err::SYNDROME, 0x2b * 8, 8),
        (eq::eqe_port::PORT_NUM, 0x28 * 8, 4),
        (eq::eqe_page_req::FUNC_ID, 0x22 * 8, 16),
        (eq::eqe_page_fault_wqe::WQE_INDEX, 0x26 * 8, 16),
        (eq::eqe_page_fault_wqe::PACKET_LENGTH, 0x2a * 8, 16),
        (eq::eqe_page_fault_rdma::RDMA_OP_LEN, 0x2c * 8, 32),
        (eq::eqe_page_fault_rdma::TOKEN, 0x38 * 8 + 8, 24),
        (eq::eqe_page_fault_memory::TOKEN_47_32, 0x26 * 8, 16),
    ]);
    check64(&[(eq::create_in::EVENT_BITMASK_0, 0x2c0), (eq::eqe_page_fault_rdma::RDMA_VA, 0x30 * 8)]);
    assert_eq!(eq::event::name(eq::event::PAGE_FAULT), Some("PAGE_FAULT"));
}

#[test]
fn completion_queues() {
    check(&[
        (cq::cqc::CQE_SZ, 0x8, 3),
        (cq::cqc::C_EQN, 0xa0, 32),
        (cq::modify_in::FIELD_SELECT, 0x60, 32),
        (cq::cqe::SLID, 0x16 * 8, 16),
        (cq::cqe::SRQN_UIDX, 0x21 * 8, 24),
        (cq::cqe::VENDOR_ERR_SYND, 0x36 * 8, 8),
        (cq::cqe::SYNDROME, 0x37 * 8, 8),
        (cq::cqe::WQE_COUNTER, 0x3c * 8, 16),
        (cq::cqe::OPCODE, 0x3f * 8, 4),
        (cq::cqe::OWNER, 0x3f * 8 + 7, 1),
    ]);
    check64(&[(cq::cqc::DBR_ADDR, 0x1c0)]);
}

#[test]
fn queue_pairs() {
    check(&[
        (qp::qpc::LOG_SQ_SIZE, 0x51, 4),
        (qp::qpc::RNR_RETRY, 0x390, 3),
        (qp::qpc::RRE, 0x490, 1),
        (qp::qpc::PAGE_OFFSET, 0x494, 6),
        (qp::qpc::SRQN_RMPN_XRQN, 0x568, 24),
        (qp::ads::RLID, 0x30, 16),
        (qp::ads::ACK_TIMEOUT, 0x40, 5),
        (qp::ads::SL, 0x124, 4),
        (qp::create_in::OPT_PARAM_MASK, 0x80, 32),
        // The secondary path's P_Key index within CREATE_QP: 0xc0 + 0x220 + 0x10.
        (qp::ads::PKEY_INDEX.plus(qp::SECONDARY_PATH).plus(qp::create_in::QPC), 0x2f0, 16),
    ]);
    check64(&[(qp::qpc::DBR_ADDR, 0x500)]);
    assert_eq!((qp::ads::RGID, qp::create_in::PAS, qp::QPC_SIZE, qp::ADS_SIZE), (0x10..0x20, 0x110, 232, 44));
}

#[test]
fn shared_receive_queues() {
    check(&[
        (srq::wq::LOG_WQ_STRIDE, 0x10c, 4),
        (srq::rmpc::STATE, 0x8, 4),
        (srq::xrc_srqc::LOG_PAGE_SIZE, 0x82, 6),
        (srq::modify_rmp_in::BITMASK_LWM, 0xbf, 1),
        // The watermark within CREATE_RMP: 0x100 + 0x180 + 0x30.
        (srq::wq::LWM.plus(srq::rmpc::WQ).plus(srq::create_rmp_in::RMPC), 0x2b0, 16),
    ]);
    assert_eq!(srq::create_rmp_in::RMPC + srq::rmpc::WQ + srq::wq::PAS, srq::create_rmp_in::PAS);
}

#[test]
fn memory_keys() {
    check(&[
        (mkey::mkc::FREE, 0x1, 1),
        (mkey::mkc::EN_RINVAL, 0x67, 1),
        (mkey::mkc::TRANSLATIONS_OCTWORD_SIZE, 0x1a0, 32),
        (mkey::mkc::LOG_PAGE_SIZE, 0x1da, 6),
        (mkey::create_in::PG_ACCESS, 0x60, 1),
        (mkey::create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, 0x300, 32),
        (mkey::umr_ctrl::FLAGS, 0, 8),
        (mkey::umr_ctrl::XLT_OFFSET_15_0, 0x30, 16),
        (mkey::umr_ctrl::XLT_OFFSET_47_16, 0x80, 32),
    ]);
    check64(&[(mkey::umr_ctrl::MKEY_MASK, 0x40), (mkey::mkc::START_ADDR, 0x80), (mkey::mkc::LEN, 0xc0)]);
    assert_eq!(mkey::umr_mask::RELAXED_ORDERING_READ, 0x8000_0000_0000);
}

#[test]
fn work_requests_and_doorbells() {
    check(&[
        (wqe::ctrl::WQE_INDEX, 8, 16),
        (wqe::ctrl::DS, 0x3a, 6),
        (wqe::ctrl::FM_CE_SE, 0x0b * 8, 8),
        (wqe::av::DQPN, 0x48, 24),
        (wqe::av::SL, 0x64, 4),
        (wqe::av::MLID, 0x69, 7),
        (wqe::av::TCLASS, 0x1a * 8, 8),
        (wqe::av::SRC_ADDR_INDEX, 0x1c * 8 + 4, 8),
        (wqe::data::BYTE_COUNT, 1, 31),
        (wqe::srq_next::NEXT_WQE_INDEX, 16, 16),
        (uar::cq_arm::CMD_SN, 2, 2),
        (uar::cq_arm::CMD, 7, 1),
        (uar::eq::CI, 8, 24),
    ]);
    // The bytes that drivers put at fm_ce_se: completion wanted, solicited, fence.
    for (byte, field, value) in [
        (0x08, wqe::ctrl::CE, wqe::ce::CQE_ALWAYS),
        (0x0c, wqe::ctrl::CE, wqe::ce::CQE_AND_EQE),
        (0x02, wqe::ctrl::SOLICITED, 1),
        (0x80, wqe::ctrl::FENCE, wqe::fence::SMALL_AND_FENCE),
    ] {
        let mut ctrl = [0; wqe::ctrl::SIZE];
        wqe::ctrl::FM_CE_SE.set(&mut ctrl, byte);
        assert_eq!(field.get(&ctrl), value);
    }
    assert_eq!((wqe::AV_SIZE, mkey::UMR_CTRL_SIZE, wqe::masked_atomic::SIZE), (48, 48, 32));
}

#[test]
fn registers_ports_and_small_objects() {
    check(&[
        (odp::resume_in::PAGE_FAULT_TYPE, 0x45, 3),
        (odp::resume_in::TOKEN, 0x68, 24),
        (reg::ptys::IB_PROTO_OPER, 0x150, 16),
        (reg::pmtu::OPER_MTU, 0x60, 16),
        (reg::pvlc::VL_HW_CAP, 0x3c, 4),
        (vport::hca_vport_context::VPORT_STATE, 0x11c, 4),
        (vport::hca_vport_context::LMC, 0x318, 3),
        (vport::query_gid_out::GIDS_NUM, 0x60, 16),
        (small::query_issi_out::SUPPORTED_ISSI_DW0, 0x360, 32),
        (small::query_adapter_out::IEEE_VENDOR_ID, 0x148, 24),
        (small::query_special_contexts_out::NULL_MKEY, 0x80, 32),
        (small::query_q_counter_out::OUT_OF_BUFFER, 0x180, 32),
    ]);
    check64(&[
        (vport::hca_vport_context::NODE_GUID, 0x1c0),
        (small::query_vport_counter_out::RECEIVED_IB_UNICAST_PACKETS, 0x180),
    ]);
}

#[test]
fn command_entries() {
    check(&[
        (cmd::entry::INPUT_LENGTH, 0x20, 32),
        (cmd::entry::DELIVERY_STATUS, 0x3f * 8, 7),
        (cmd::entry::OWNERSHIP, 0x3f * 8 + 7, 1),
        (cmd::mailbox::BLOCK_NUMBER, 0x238 * 8, 32),
        (cmd::mailbox::TOKEN, 0x23d * 8, 8),
        (cmd::mailbox::SIGNATURE, 0x23f * 8, 8),
    ]);
    check64(&[(cmd::entry::OUTPUT_MAILBOX, 0x180), (cmd::mailbox::NEXT, 0x230 * 8)]);
    assert_eq!((cmd::ENTRY_SIZE, cmd::MAILBOX_SIZE, cmd::entry::STATUS_OWN), (64, 576, 0x3f));
}

#[test]
fn opcodes_known_and_unknown() {
    assert_eq!(Opcode::CREATE_MKEY.to_string(), "CREATE_MKEY");
    assert_eq!((Opcode::TO_RST_QP.0, Opcode::TO_RST_QP.name()), (0x50a, Some("2RST_QP")));
    assert_eq!((Opcode(0xbeef).name(), Opcode(0xbeef).to_string()), (None, "0xbeef".into()));
    for number in [0x104, 0x10a, 0x200, 0x204, 0x301, 0x502, 0x50e, 0x705, 0x762, 0x765, 0x805, 0x90e] {
        assert!(OPCODES.iter().any(|(opcode, _)| opcode.0 == number), "{number:#x}");
    }
}
