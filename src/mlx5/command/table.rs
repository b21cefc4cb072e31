// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every command that this device has: opcode, handler, least input and output, what the command log shows. Anything else is BAD_OP.

use super::request::{Reply, Request};
use super::{CommandError, caps, cq, dct, devx, eq, hca_cmds, mkey, odp, qp, qp_modify, regs, small, srq, vport};
use mlx5_spec::bits::Field;
use mlx5_spec::cmd::Opcode;
use mlx5_spec::{
    caps as caps_spec, cq as cq_spec, devx as devx_spec, eq as eq_spec, mkey as mkey_spec, odp as odp_spec,
    qp as qp_spec, reg as reg_spec, small as small_spec, srq as srq_spec, vport as vport_spec,
};

/// Executes a command.
pub type Handler = fn(&mut Request<'_>) -> Result<Reply, CommandError>;
/// Fields that the command log shows.
pub type Shows = &'static [(&'static str, Field)];

/// How far the driver is with bringing the device up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// ENABLE_HCA has not come, or DISABLE_HCA has.
    Off,
    /// INIT_HCA has not come, or TEARDOWN_HCA has: no objects yet.
    Enabled,
    /// Everything goes.
    Running,
}

/// One command.
pub struct Command {
    /// Its opcode.
    pub opcode: Opcode,
    /// From when on it is executed.
    pub from: Phase,
    /// Bytes of the shortest input: the command's layout without the lists behind it.
    pub input: usize,
    /// Bytes of the least room for an output: its layout without the lists behind it.
    pub output: usize,
    /// Its handler.
    pub run: Handler,
    /// Inputs for the log.
    pub takes: Shows,
    /// Outputs for the log.
    pub gives: Shows,
}

/// The command with this opcode.
pub fn find(opcode: Opcode) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.opcode == opcode)
}

/// Bytes of input and of room for an output that a command needs at least.
type Lengths = (usize, usize);

const fn command(opcode: Opcode, (input, output): Lengths, run: Handler, takes: Shows, gives: Shows) -> Command {
    Command { opcode, from: Phase::Running, input, output, run, takes, gives }
}

/// A command for the time before INIT_HCA too.
const fn early(opcode: Opcode, lengths: Lengths, run: Handler, takes: Shows, gives: Shows) -> Command {
    Command { from: Phase::Enabled, ..command(opcode, lengths, run, takes, gives) }
}

/// A command that says at most one dword or two, and is told as much.
const SHORT: Lengths = (16, 16);
/// ENABLE_HCA and DISABLE_HCA: drivers leave the last dword of the output out.
const SWITCH: Lengths = (16, 12);
/// A command with a page list.
const LISTED: Lengths = takes(0x110);
/// A QP transition.
const CONTEXT: Lengths = takes(qp_spec::modify_in::SIZE);

const VPORT_COUNTER: Lengths = (small_spec::query_vport_counter_in::SIZE, small_spec::query_vport_counter_out::SIZE);

const QUERY_Q_COUNTER: Lengths = (small_spec::query_q_counter_in::SIZE, small_spec::query_q_counter_out::SIZE);

/// A command that is told more.
const fn takes(input: usize) -> Lengths {
    (input, SHORT.1)
}

/// A query.
const fn gives(output: usize) -> Lengths {
    (SHORT.0, output)
}

const NUMBER: Field = small_spec::object::NUMBER;
const QPN: Field = qp_spec::modify_in::QPN;
const PD: Shows = &[("pd", NUMBER)];
const UAR: Shows = &[("uar", NUMBER)];
const XRCD: Shows = &[("xrcd", NUMBER)];
const Q_COUNTER: Shows = &[("counter_set_id", small_spec::q_counter::COUNTER_SET_ID)];
const QUERIED_Q_COUNTER: Shows = &[("counter_set_id", small_spec::query_q_counter_in::COUNTER_SET_ID)];
const SHOW_ALLOC_MEMIC: Shows = &[("bytes", small_spec::alloc_memic_in::MEMIC_SIZE)];
const UID: Shows = &[("uid", devx_spec::uctx::UID)];
const UMEM: Shows = &[("umem", devx_spec::umem::UMEM_ID)];
const SHOW_CREATE_UMEM: Shows = &[
    ("log_page_size", devx_spec::create_umem_in::LOG_PAGE_SIZE),
    ("offset", devx_spec::create_umem_in::PAGE_OFFSET),
    ("entries", devx_spec::create_umem_in::NUM_OF_MTT_LOW),
];
const MCG: Shows = &[("qpn", small_spec::mcg_in::QPN)];
const DCTN: Shows = &[("dctn", qp_spec::dct::DCTN)];
const SHOW_CREATE_DCT: Shows = &[
    ("pd", qp_spec::dctc::PD.plus(qp_spec::create_dct_in::DCTC)),
    ("cqn", qp_spec::dctc::CQN.plus(qp_spec::create_dct_in::DCTC)),
    ("srqn", qp_spec::dctc::SRQN_XRQN.plus(qp_spec::create_dct_in::DCTC)),
];
const EQN: Shows = &[("eqn", eq_spec::destroy_in::EQN)];
const CQN: Shows = &[("cqn", cq_spec::destroy_in::CQN)];
const SRQN: Shows = &[("srqn", srq_spec::destroy_xrc_srq_in::XRC_SRQN)];
const RMPN: Shows = &[("rmpn", srq_spec::destroy_rmp_in::RMPN)];
const MKEY: Shows = &[("mkey_index", mkey_spec::destroy_in::MKEY_INDEX)];
const THIS_QP: Shows = &[("qpn", QPN)];
const FUNCTION: Shows = &[("function", small_spec::query_pages_in::FUNCTION_ID)];
const GID: Shows = &[("index", vport_spec::query_gid_in::GID_INDEX)];
const REGISTER: Shows = &[("register", reg_spec::access_in::REGISTER_ID)];

const SHOW_CREATE_EQ: Shows = &[
    ("log_size", eq_spec::eqc::LOG_EQ_SIZE.plus(eq_spec::create_in::EQC)),
    ("vector", eq_spec::eqc::INTR.plus(eq_spec::create_in::EQC)),
    ("uar", eq_spec::eqc::UAR_PAGE.plus(eq_spec::create_in::EQC)),
    ("events", Field::dword(eq_spec::create_in::EVENT_BITMASK + 4)),
];
const SHOW_CREATE_CQ: Shows = &[
    ("log_size", cq_spec::cqc::LOG_CQ_SIZE.plus(cq_spec::create_in::CQC)),
    ("eqn", cq_spec::cqc::C_EQN.plus(cq_spec::create_in::CQC)),
    ("uar", cq_spec::cqc::UAR_PAGE.plus(cq_spec::create_in::CQC)),
];
const SHOW_CREATE_QP: Shows = &[
    ("st", qp_spec::qpc::ST.plus(qp_spec::create_in::QPC)),
    ("pd", qp_spec::qpc::PD.plus(qp_spec::create_in::QPC)),
    ("log_sq", qp_spec::qpc::LOG_SQ_SIZE.plus(qp_spec::create_in::QPC)),
    ("rq_type", qp_spec::qpc::RQ_TYPE.plus(qp_spec::create_in::QPC)),
    ("log_rq", qp_spec::qpc::LOG_RQ_SIZE.plus(qp_spec::create_in::QPC)),
    ("cqn_snd", qp_spec::qpc::CQN_SND.plus(qp_spec::create_in::QPC)),
    ("cqn_rcv", qp_spec::qpc::CQN_RCV.plus(qp_spec::create_in::QPC)),
    ("srqn", qp_spec::qpc::SRQN_RMPN_XRQN.plus(qp_spec::create_in::QPC)),
    ("uar", qp_spec::qpc::UAR_PAGE.plus(qp_spec::create_in::QPC)),
];
const SHOW_MODIFY_QP: Shows = &[
    ("qpn", QPN),
    ("mask", qp_spec::modify_in::OPT_PARAM_MASK),
    ("remote_qpn", qp_spec::qpc::REMOTE_QPN.plus(qp_spec::modify_in::QPC)),
    ("rlid", qp_spec::ads::RLID.plus(qp_spec::modify_in::QPC + qp_spec::PRIMARY_PATH)),
];
const SHOW_CREATE_MKEY: Shows = &[
    ("mode", mkey_spec::mkc::ACCESS_MODE_1_0.plus(mkey_spec::create_in::MKC)),
    ("free", mkey_spec::mkc::FREE.plus(mkey_spec::create_in::MKC)),
    ("variant", mkey_spec::mkc::MKEY_7_0.plus(mkey_spec::create_in::MKC)),
    ("pd", mkey_spec::mkc::PD.plus(mkey_spec::create_in::MKC)),
    ("octwords", mkey_spec::mkc::TRANSLATIONS_OCTWORD_SIZE.plus(mkey_spec::create_in::MKC)),
];
const SHOW_CREATE_RMP: Shows = &[
    ("log_size", srq_spec::wq::LOG_WQ_SZ.plus(srq_spec::create_rmp_in::RMPC + srq_spec::rmpc::WQ)),
    ("pd", srq_spec::wq::PD.plus(srq_spec::create_rmp_in::RMPC + srq_spec::rmpc::WQ)),
];
const SHOW_CREATE_XRC_SRQ: Shows = &[
    ("log_size", srq_spec::xrc_srqc::LOG_XRC_SRQ_SIZE.plus(srq_spec::create_xrc_srq_in::XRC_SRQC)),
    ("pd", srq_spec::xrc_srqc::PD.plus(srq_spec::create_xrc_srq_in::XRC_SRQC)),
    ("xrcd", srq_spec::xrc_srqc::XRCD.plus(srq_spec::create_xrc_srq_in::XRC_SRQC)),
];
const SHOW_RESUME: Shows = &[
    ("error", odp_spec::resume_in::ERROR),
    ("type", odp_spec::resume_in::PAGE_FAULT_TYPE),
    ("wq", odp_spec::resume_in::WQ_NUMBER),
    ("token", odp_spec::resume_in::TOKEN),
];

type O = Opcode;

/// All of them.
pub const COMMANDS: &[Command] = &[
    // The device as a whole (contract 4.1).
    Command { from: Phase::Off, ..command(O::ENABLE_HCA, SWITCH, hca_cmds::enable, FUNCTION, &[]) },
    early(O::DISABLE_HCA, SWITCH, hca_cmds::disable, FUNCTION, &[]),
    early(O::INIT_HCA, takes(small_spec::init_hca_in::SIZE), hca_cmds::init, &[], &[]),
    early(O::TEARDOWN_HCA, SHORT, hca_cmds::teardown, &[("profile", small_spec::teardown_hca_in::PROFILE)], &[]),
    early(O::QUERY_ISSI, gives(small_spec::query_issi_out::SIZE), hca_cmds::query_issi, &[], &[]),
    early(O::SET_ISSI, SHORT, hca_cmds::set_issi, &[("issi", small_spec::set_issi_in::CURRENT_ISSI)], &[]),
    early(O::QUERY_PAGES, SHORT, hca_cmds::query_pages, FUNCTION, &[]),
    early(
        O::MANAGE_PAGES,
        SHORT,
        hca_cmds::manage_pages,
        &[("entries", small_spec::manage_pages_in::INPUT_NUM_ENTRIES)],
        &[],
    ),
    early(O::QUERY_ADAPTER, gives(small_spec::query_adapter_out::SIZE), hca_cmds::query_adapter, &[], &[]),
    early(
        O::QUERY_SPECIAL_CONTEXTS,
        gives(small_spec::query_special_contexts_out::SIZE),
        hca_cmds::query_special_contexts,
        &[],
        &[],
    ),
    early(O::NOP, SHORT, hca_cmds::nop, &[], &[]),
    early(O::QUERY_HCA_CAP, SHORT, caps::query, &[], &[]),
    early(O::SET_HCA_CAP, takes(caps_spec::set_in::SIZE), caps::set, &[], &[]),
    early(O::ACCESS_REG, SHORT, regs::access, REGISTER, &[]),
    // The port (contract 4.4).
    command(O::QUERY_HCA_VPORT_CONTEXT, gives(vport_spec::query_context_out::SIZE), vport::query_context, &[], &[]),
    command(O::MODIFY_HCA_VPORT_CONTEXT, takes(vport_spec::modify_context_in::SIZE), vport::modify_context, &[], &[]),
    command(O::QUERY_HCA_VPORT_GID, SHORT, vport::query_gid, GID, &[]),
    command(O::QUERY_HCA_VPORT_PKEY, SHORT, vport::query_pkey, GID, &[]),
    command(O::QUERY_VPORT_COUNTER, VPORT_COUNTER, vport::query_counter, &[], &[]),
    // Small objects (contract 6.7).
    command(O::ALLOC_PD, SHORT, small::alloc_pd, &[], PD),
    command(O::DEALLOC_PD, SHORT, small::dealloc_pd, PD, &[]),
    command(O::ALLOC_UAR, SHORT, small::alloc_uar, &[], UAR),
    command(O::DEALLOC_UAR, SHORT, small::dealloc_uar, UAR, &[]),
    command(O::ALLOC_XRCD, SHORT, small::alloc_xrcd, &[], XRCD),
    command(O::DEALLOC_XRCD, SHORT, small::dealloc_xrcd, XRCD, &[]),
    command(O::ALLOC_Q_COUNTER, SHORT, small::alloc_q_counter, &[], Q_COUNTER),
    command(O::DEALLOC_Q_COUNTER, SHORT, small::dealloc_q_counter, Q_COUNTER, &[]),
    command(O::QUERY_Q_COUNTER, QUERY_Q_COUNTER, small::query_q_counter, QUERIED_Q_COUNTER, &[]),
    command(O::ATTACH_TO_MCG, takes(small_spec::mcg_in::SIZE), small::attach, MCG, &[]),
    command(O::DETACH_FROM_MCG, takes(small_spec::mcg_in::SIZE), small::detach, MCG, &[]),
    command(O::ALLOC_MEMIC, takes(small_spec::alloc_memic_in::SIZE), small::alloc_memic, SHOW_ALLOC_MEMIC, &[]),
    command(O::DEALLOC_MEMIC, takes(small_spec::dealloc_memic_in::SIZE), small::dealloc_memic, &[], &[]),
    // Event and completion queues (contract 6.1, 6.2).
    command(O::CREATE_EQ, LISTED, eq::create, SHOW_CREATE_EQ, EQN),
    command(O::DESTROY_EQ, SHORT, eq::destroy, EQN, &[]),
    command(O::QUERY_EQ, gives(eq_spec::query_out::SIZE), eq::query, EQN, &[]),
    command(O::CREATE_CQ, LISTED, cq::create, SHOW_CREATE_CQ, CQN),
    command(O::DESTROY_CQ, SHORT, cq::destroy, CQN, &[]),
    command(O::QUERY_CQ, gives(cq_spec::query_out::SIZE), cq::query, CQN, &[]),
    command(O::MODIFY_CQ, takes(cq_spec::modify_in::SIZE), cq::modify, CQN, &[]),
    // Queue pairs (contract 6.3, 6.4).
    command(O::CREATE_QP, LISTED, qp::create, SHOW_CREATE_QP, THIS_QP),
    command(O::DESTROY_QP, SHORT, qp::destroy, THIS_QP, &[]),
    command(O::QUERY_QP, gives(qp_spec::query_out::SIZE), qp::query, THIS_QP, &[]),
    command(O::RST2INIT_QP, CONTEXT, qp_modify::transition, THIS_QP, &[]),
    command(O::INIT2INIT_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::INIT2RTR_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::RTR2RTS_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::RTS2RTS_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::SQERR2RTS_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::SQD_RTS_QP, CONTEXT, qp_modify::transition, SHOW_MODIFY_QP, &[]),
    command(O::TO_ERR_QP, SHORT, qp_modify::to_error, THIS_QP, &[]),
    command(O::TO_RST_QP, SHORT, qp_modify::to_reset, THIS_QP, &[]),
    // DC targets.
    command(O::CREATE_DCT, takes(qp_spec::create_dct_in::SIZE), dct::create, SHOW_CREATE_DCT, DCTN),
    command(O::DESTROY_DCT, SHORT, dct::destroy, DCTN, &[]),
    command(O::DRAIN_DCT, SHORT, dct::drain, DCTN, &[]),
    command(O::QUERY_DCT, gives(qp_spec::query_dct_out::SIZE), dct::query, DCTN, &[]),
    // Shared receive queues (contract 6.5).
    command(O::CREATE_RMP, LISTED, srq::create_rmp, SHOW_CREATE_RMP, RMPN),
    command(O::DESTROY_RMP, SHORT, srq::destroy_rmp, RMPN, &[]),
    command(O::MODIFY_RMP, takes(srq_spec::modify_rmp_in::SIZE), srq::modify_rmp, RMPN, &[]),
    command(O::QUERY_RMP, gives(srq_spec::query_rmp_out::SIZE), srq::query_rmp, RMPN, &[]),
    command(O::CREATE_XRC_SRQ, LISTED, srq::create_xrc, SHOW_CREATE_XRC_SRQ, SRQN),
    command(O::DESTROY_XRC_SRQ, SHORT, srq::destroy_xrc, SRQN, &[]),
    command(O::ARM_XRC_SRQ, SHORT, srq::arm, SRQN, &[]),
    command(O::QUERY_XRC_SRQ, gives(srq_spec::query_xrc_srq_out::SIZE), srq::query_xrc, SRQN, &[]),
    command(O::CREATE_SRQ, LISTED, srq::create_basic, SHOW_CREATE_XRC_SRQ, SRQN),
    command(O::DESTROY_SRQ, SHORT, srq::destroy_basic, SRQN, &[]),
    command(O::ARM_RQ, SHORT, srq::arm, SRQN, &[]),
    command(O::QUERY_SRQ, gives(srq_spec::query_xrc_srq_out::SIZE), srq::query_basic, SRQN, &[]),
    // Memory keys and paging (contract 6.6, 9.3).
    command(O::CREATE_MKEY, LISTED, mkey::create, SHOW_CREATE_MKEY, MKEY),
    command(O::DESTROY_MKEY, SHORT, mkey::destroy, MKEY, &[]),
    command(O::QUERY_MKEY, gives(mkey_spec::query_out::SIZE), mkey::query, MKEY, &[]),
    // User contexts.
    command(O::CREATE_UCTX, takes(devx_spec::create_uctx_in::SIZE), devx::create_context, &[], UID),
    command(O::DESTROY_UCTX, SHORT, devx::destroy_context, UID, &[]),
    command(O::CREATE_UMEM, takes(devx_spec::create_umem_in::SIZE), devx::create_umem, SHOW_CREATE_UMEM, UMEM),
    command(O::DESTROY_UMEM, SHORT, devx::destroy_umem, UMEM, &[]),
    command(O::PAGE_FAULT_RESUME, SHORT, odp::resume, SHOW_RESUME, &[]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_there_once_and_has_a_name() {
        for (at, command) in COMMANDS.iter().enumerate() {
            assert!(command.opcode.name().is_some(), "{}", command.opcode);
            assert!(COMMANDS[..at].iter().all(|other| other.opcode != command.opcode), "{} twice", command.opcode);
            assert!(command.input >= SHORT.0 && command.output >= SWITCH.1);
        }
        assert!(find(Opcode(0xbad)).is_none());
    }
}
