// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lever is to hold, what it has done, and why it could not.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use probe::ledger::{BlkOp, HoldPoint, ReleaseWhy};

/// No hold lasts longer: guests call a task hung after 120 s.
pub const MAX_LIMIT: Duration = Duration::from_secs(60);
/// Requests that one lever may hold.
pub const MAX_TIMES: u32 = 64;

/// Which request to hold, where, and for how long at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lever {
    /// Only this kind.
    pub op: Option<BlkOp>,
    /// Only requests that cover a sector (512 bytes) of this range.
    pub lba: Option<Range<u64>>,
    /// Only requests with data in the guest page that holds this address.
    pub page: Option<u64>,
    /// Hold from the n-th match on (1: the first).
    pub nth: u32,
    /// How many requests it may hold (at most 64).
    pub times: u32,
    /// Where.
    pub point: HoldPoint,
    /// A held request goes on by itself after this long (at most 60 s), whatever happens.
    pub limit: Duration,
}

impl Lever {
    /// Holds the first request of kind `op`.
    pub fn new(op: BlkOp, point: HoldPoint, limit: Duration) -> Self {
        Self { op: Some(op), lba: None, page: None, nth: 1, times: 1, point, limit }
    }
}

/// Names an armed lever of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeverId(pub u64);

/// What a lever has done, told when it is released.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReleaseReport {
    /// Ledger ids of the requests that this release let go (0: not on record).
    pub released: Vec<u64>,
    /// Requests that went on by themselves because the limit passed.
    pub expired: u32,
    /// Requests that the lever's conditions met, held or not.
    pub matched: u32,
}

/// A lever as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeverState {
    /// Can still hold requests.
    pub armed: bool,
    /// Ledger ids of the requests held now, with the point (0: not on record).
    pub held: Vec<(u64, HoldPoint)>,
    /// Requests that it has caught, over or not.
    pub caught: u32,
    /// Of these, gone on by themselves because the limit passed.
    pub expired: u32,
    /// Of these, cancelled by a reset or a device failure.
    pub cancelled: u32,
    /// Requests that its conditions met.
    pub matched: u32,
}

/// A lever operation could not be done.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum LeverError {
    /// No such lever, or forgotten.
    #[error("lever {0} does not exist on this disk; arm it first")]
    Unknown(u64),
    /// Nothing was held in time.
    #[error("lever {lever} held nothing within {waited:?} ({matched} requests matched); check its conditions")]
    Timeout {
        /// The lever.
        lever: u64,
        /// How long.
        waited: Duration,
        /// Requests that its conditions met.
        matched: u32,
    },
    /// What it held is gone and it cannot hold again.
    #[error("lever {lever} holds nothing any more: its last request ended as {why:?}; arm a new one")]
    Over {
        /// The lever.
        lever: u64,
        /// How the last hold ended.
        why: ReleaseWhy,
    },
    /// A step back, or nothing to step.
    #[error("lever {0} holds no request before its data; only such a request can be stepped on")]
    NoStep(u64),
    /// The worker did not carry out the order.
    #[error("the disk's worker did not act on lever {0} in time; its file may be very slow")]
    Stuck(u64),
}
