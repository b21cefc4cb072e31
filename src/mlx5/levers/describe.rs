// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lever is to hold, what it has done, and why it could not.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hooks::WqeShape;
use probe::ledger::ReleaseWhy;

/// No hold lasts longer: guests call a task hung after 120 s.
pub const MAX_LIMIT: Duration = Duration::from_secs(60);

/// Which WQE to hold, and for how long at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicLever {
    /// Only this opcode (`mlx5_spec::wqe::opcode`).
    pub opcode: Option<u8>,
    /// Only this queue pair.
    pub qpn: Option<u32>,
    /// Only this key: rkey of the target, or first lkey, or a UMR's target. Its index counts, not its variant.
    pub key: Option<u32>,
    /// Holds the n-th match (1: the first), and only that one.
    pub nth: u32,
    /// The WQE goes on by itself after this long (at most 60 s), whatever happens.
    pub limit: Duration,
}

impl NicLever {
    /// Holds the first WQE with this opcode.
    pub fn new(opcode: u8, limit: Duration) -> Self {
        Self { opcode: Some(opcode), qpn: None, key: None, nth: 1, limit }
    }

    pub(super) fn matches(&self, shape: &WqeShape) -> bool {
        self.opcode.is_none_or(|opcode| opcode == shape.opcode)
            && self.qpn.is_none_or(|qpn| qpn == shape.qpn)
            && self.key.is_none_or(|key| key >> 8 == shape.key >> 8)
    }
}

/// Names an armed lever of one NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NicLeverId(pub u64);

/// What an engine is to do with a WQE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Go on.
    Pass,
    /// Park the queue pair until [`NicLevers::is_held`](super::NicLevers::is_held) says no, and then go on without asking again.
    Held(u64),
}

/// A lever as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NicLeverState {
    /// Can still hold a WQE.
    pub armed: bool,
    /// Token of the WQE that is held now.
    pub held: Option<u64>,
    /// How the hold ended, if there was one.
    pub ended: Option<ReleaseWhy>,
    /// WQEs that its conditions met.
    pub matched: u32,
}

/// A lever operation could not be done.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum NicLeverError {
    /// No such lever, or forgotten.
    #[error("lever {0} does not exist on this NIC; arm it first")]
    Unknown(u64),
    /// Nothing was held in time.
    #[error("lever {lever} held no WQE within {waited:?} ({matched} matched); check its conditions")]
    Timeout {
        /// The lever.
        lever: u64,
        /// How long.
        waited: Duration,
        /// WQEs that its conditions met.
        matched: u32,
    },
    /// It holds nothing any more and will not again.
    #[error("lever {lever} holds nothing any more: {why:?}; arm a new one")]
    Over {
        /// The lever.
        lever: u64,
        /// How the hold ended; `None`: it was disarmed before it held anything.
        why: Option<ReleaseWhy>,
    },
}
