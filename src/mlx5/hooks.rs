// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab can match, make go wrong and find on record in the NIC (rule 7): its own shapes, conditions, actions and events.

mod events;
pub mod inject;
mod times;

use std::fmt;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::wqe;
use probe::Match;
use serde::{Deserialize, Serialize};

pub use crate::mkey::Rights;
pub use events::{NicCounters, NicKind, NicLedger, NicRecord, NicTotals};
pub use inject::{NicAction, NicInjections, NicRule};
pub use times::{MomentKind, NicMoment, NicMoments, clock_ns};

/// What rules and levers look at. Whatever is not known where it is asked about matches every rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WqeShape {
    /// `mlx5_spec::wqe::opcode`, or [`WqeShape::ANY_OPCODE`].
    pub opcode: u8,
    /// Queue pair; 0 for commands.
    pub qpn: u32,
    /// Index of the WQE's first block.
    pub wqe_index: u16,
    /// rkey of the target, or the first lkey, or a UMR's target.
    pub key: u32,
    /// Opcode of a command of the command queue ([`Opcode`]); 0: it is none.
    pub command: u16,
}

impl fmt::Display for WqeShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.command != 0 {
            return write!(f, "command {}", Opcode(self.command));
        }
        match (self.opcode, self.qpn) {
            (Self::ANY_OPCODE, 0) => write!(f, "the device")?,
            (Self::ANY_OPCODE, qpn) => write!(f, "an access by QP {qpn:#x}")?,
            (opcode, qpn) => {
                let index = self.wqe_index;
                match wqe::opcode::name(opcode.into()) {
                    Some(name) => write!(f, "{name} {index} of QP {qpn:#x}")?,
                    None => write!(f, "WQE {index} with opcode {opcode:#x} of QP {qpn:#x}")?,
                }
            }
        }
        if self.key != 0 { write!(f, ", key {:#x}", self.key) } else { Ok(()) }
    }
}

impl WqeShape {
    /// Not a WQE, or its opcode is not known here: any rule's opcode matches.
    pub const ANY_OPCODE: u8 = 0xff;

    /// A command about the key `key`, whichever it is.
    pub fn command(key: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn: 0, wqe_index: 0, key, command: 0 }
    }

    /// A command of the command queue before it is executed.
    pub fn queued(command: Opcode) -> Self {
        Self { command: command.0, ..Self::command(0) }
    }

    /// An access by queue pair `qpn` under `key`, of whatever WQE.
    pub fn access(key: u32, qpn: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn, wqe_index: 0, key, command: 0 }
    }
}

/// Which WQEs (or accesses, or commands) a rule or a lever means. All given conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WqeMatch {
    /// Only WQEs with this opcode.
    #[serde(default)]
    pub opcode: Option<u8>,
    /// Only this queue pair.
    #[serde(default)]
    pub qpn: Option<u32>,
    /// Only this key: its index counts, variants change with every registration.
    #[serde(default)]
    pub key: Option<u32>,
    /// Only commands of the command queue with this opcode ([`Opcode`]).
    #[serde(default)]
    pub command: Option<u16>,
}

impl WqeMatch {
    /// WQEs with this opcode (`mlx5_spec::wqe::opcode`).
    pub fn opcode(opcode: u8) -> Self {
        Self { opcode: Some(opcode), ..Self::default() }
    }

    /// Whatever goes by this key.
    pub fn key(key: u32) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// Commands with this opcode.
    pub fn command(command: Opcode) -> Self {
        Self { command: Some(command.0), ..Self::default() }
    }
}

impl From<u8> for WqeMatch {
    fn from(opcode: u8) -> Self {
        Self::opcode(opcode)
    }
}

impl Match for WqeMatch {
    type Shape<'a> = WqeShape;

    fn matches(&self, shape: &WqeShape) -> bool {
        let opcode = shape.opcode == WqeShape::ANY_OPCODE || self.opcode.is_none_or(|opcode| opcode == shape.opcode);
        let key = self.key.is_none_or(|key| key >> 8 == shape.key >> 8);
        let qpn = shape.qpn == 0 || self.qpn.is_none_or(|qpn| qpn == shape.qpn);
        let command = self.command.is_none_or(|command| command == shape.command);
        opcode && key && qpn && command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_opcode_queue_pair_and_key_index() {
        const WRITE: WqeShape = WqeShape { opcode: 8, qpn: 0x40, wqe_index: 0, key: 0x1_0001, command: 0 };
        let all = WqeMatch { opcode: Some(8), qpn: Some(0x40), key: Some(0x1_00ff), command: None };
        assert!(all.matches(&WRITE) && WqeMatch::default().matches(&WRITE));
        for other in
            [WqeShape { opcode: 0x10, ..WRITE }, WqeShape { qpn: 0x41, ..WRITE }, WqeShape { key: 0x2_0001, ..WRITE }]
        {
            assert!(!all.matches(&other), "{other:?}");
        }
        // What is not known matches; the key always is.
        assert!(all.matches(&WqeShape::access(0x1_0001, 0x40)) && all.matches(&WqeShape::command(0x1_0001)));
        assert!(!all.matches(&WqeShape::command(0x2_0001)));
    }
    #[test]
    fn a_command_is_meant_by_its_opcode_and_told_by_its_name() {
        let create = WqeShape::queued(Opcode::CREATE_QP);
        assert!(WqeMatch::command(Opcode::CREATE_QP).matches(&create) && WqeMatch::default().matches(&create));
        assert!(!WqeMatch::command(Opcode::CREATE_QP).matches(&WqeShape::queued(Opcode::CREATE_CQ)));
        let write = WqeShape { opcode: 8, qpn: 0x40, wqe_index: 3, key: 0x1_0001, command: 0 };
        assert!(!WqeMatch::command(Opcode::CREATE_QP).matches(&write));
        let told = [create.to_string(), write.to_string(), WqeShape::access(0x1_0001, 0x40).to_string()];
        assert_eq!(
            told,
            ["command CREATE_QP", "RDMA_WRITE 3 of QP 0x40, key 0x10001", "an access by QP 0x40, key 0x10001"]
        );
    }
}
