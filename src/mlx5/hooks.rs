// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab can match, make go wrong and find on record in the NIC (rule 7): its own shapes, conditions, actions and events.

mod events;
pub mod inject;
mod times;

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
}

impl WqeShape {
    /// Not a WQE, or its opcode is not known here: any rule's opcode matches.
    pub const ANY_OPCODE: u8 = 0xff;

    /// A command about the key `key`.
    pub fn command(key: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn: 0, wqe_index: 0, key }
    }

    /// An access by queue pair `qpn` under `key`, of whatever WQE.
    pub fn access(key: u32, qpn: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn, wqe_index: 0, key }
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
        opcode && key && qpn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_opcode_queue_pair_and_key_index() {
        const WRITE: WqeShape = WqeShape { opcode: 8, qpn: 0x40, wqe_index: 0, key: 0x1_0001 };
        let all = WqeMatch { opcode: Some(8), qpn: Some(0x40), key: Some(0x1_00ff) };
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
}
