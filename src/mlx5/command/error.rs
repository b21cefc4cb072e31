// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a command failed: a status and a fixed syndrome for the driver, a typed cause for the log (contract 3.3).

use thiserror::Error;

use mlx5_spec::cmd::{Opcode, status};

/// Syndromes of commands that we do not have: this | opcode. The driver prints it (contract 3.3).
const UNSUPPORTED: u32 = 0x00aa_0000;
/// All our other syndromes: this | status << 8 | a number for the cause.
const REFUSED: u32 = 0x00ab_0000;

/// A command was not executed, or had no effect.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CommandError {
    /// No such command here.
    #[error("{0} is not supported")]
    Unsupported(Opcode),
    /// The input ends before what it must hold.
    #[error("the input has {len} bytes, {needed} are needed")]
    InputLength {
        /// Bytes of the input.
        len: usize,
        /// Bytes that it must have at least.
        needed: u64,
    },
    /// The driver has no room for the answer.
    #[error("there is room for {room} bytes of output, {needed} are needed")]
    OutputLength {
        /// Bytes that the driver has room for.
        room: usize,
        /// Bytes of the shortest answer.
        needed: usize,
    },
    /// A field has a value that makes no sense or is not offered.
    #[error("{0}")]
    Param(&'static str),
    /// A number that names nothing.
    #[error("there is no {what} {number:#x}")]
    NoSuch {
        /// Kind of object.
        what: &'static str,
        /// Its number.
        number: u32,
    },
    /// Other objects use it.
    #[error("{what} {number:#x} is in use by {users} others")]
    InUse {
        /// Kind of object.
        what: &'static str,
        /// Its number.
        number: u32,
        /// How many use it.
        users: u32,
    },
    /// Too early: ENABLE_HCA or INIT_HCA has not come, or TEARDOWN_HCA has.
    #[error("{0} comes first")]
    Early(Opcode),
    /// The queue pair is not in a state from which this transition goes.
    #[error("queue pair {qpn:#x} is in state {state}")]
    QpState {
        /// Queue pair.
        qpn: u32,
        /// `spec::qp::state`.
        state: u32,
    },
    /// More than the capabilities say.
    #[error("{0} is beyond the limit")]
    Limit(&'static str),
    /// A completion queue would be smaller than what is in it.
    #[error("more completions are in the queue than would fit")]
    Outstanding,
    /// The number space or the memory for it is used up.
    #[error("no {0} is left")]
    Exhausted(&'static str),
    /// An index outside of its table.
    #[error("{what} index {index} does not exist")]
    Index {
        /// Which table.
        what: &'static str,
        /// The index.
        index: u32,
    },
    /// The lab's doing.
    #[error("injected status {0:#x}")]
    Injected(u8),
}

impl CommandError {
    /// Status for the driver.
    pub fn status(&self) -> u8 {
        match self {
            Self::Unsupported(_) => status::BAD_OP,
            Self::InputLength { .. } => status::BAD_INPUT_LEN,
            Self::OutputLength { .. } => status::BAD_OUTPUT_LEN,
            Self::Param(_) => status::BAD_PARAM,
            Self::NoSuch { .. } => status::BAD_RES,
            Self::InUse { .. } => status::BAD_RES_STATE,
            Self::Early(_) => status::BAD_SYS_STATE,
            Self::QpState { .. } => status::BAD_QP_STATE,
            Self::Limit(_) => status::EXCEED_LIM,
            Self::Outstanding => status::BAD_SIZE_OUTS_CQES,
            Self::Exhausted(_) => status::NO_RES,
            Self::Index { .. } => status::BAD_INDEX,
            Self::Injected(status) => *status,
        }
    }

    /// Syndrome for the driver, the same for the same kind of failure.
    pub fn syndrome(&self) -> u32 {
        match self {
            Self::Unsupported(opcode) => UNSUPPORTED | u32::from(opcode.0),
            Self::Injected(status) => REFUSED | u32::from(*status) << 8 | 0xff,
            other => REFUSED | u32::from(other.status()) << 8,
        }
    }
}
