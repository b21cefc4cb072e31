// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lever is to hold, what it has done, and why it could not.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// No hold lasts longer: guests call a task hung after 120 s.
pub const MAX_LIMIT: Duration = Duration::from_secs(60);
/// At most so many at once are held by one lever.
pub const MAX_TIMES: u32 = 64;

/// What to hold, where, and for how long at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lever<M, P> {
    /// What it looks at.
    pub what: M,
    /// Holds from the n-th match on (1: the first).
    pub nth: u32,
    /// How many it may hold (at most [`MAX_TIMES`]).
    pub times: u32,
    /// Where.
    pub point: P,
    /// Whatever is held goes on by itself after this long (at most [`MAX_LIMIT`]), whatever happens.
    pub limit: Duration,
}

impl<M, P> Lever<M, P> {
    /// Holds the first match.
    pub fn new(what: impl Into<M>, point: P, limit: Duration) -> Self {
        Self { what: what.into(), nth: 1, times: 1, point, limit }
    }
}

/// Names an armed lever of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeverId(pub u64);

/// Why a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseWhy {
    /// The lab released the lever.
    Released,
    /// The lab stepped what was held on to its next hold.
    Stepped,
    /// The lever's limit passed.
    Expired,
    /// A reset of the device, or of what owned it: it was cancelled.
    Reset,
    /// The device failed and needs a reset: it was cancelled.
    Failed,
}

/// What a lever has done, told when it is released.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReleaseReport {
    /// Names of what this release let go.
    pub released: Vec<u64>,
    /// How many went on by themselves because the limit passed.
    pub expired: u32,
    /// How often its conditions were met, held or not.
    pub matched: u32,
}

/// A lever as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeverState<P> {
    /// Can still hold.
    pub armed: bool,
    /// Names of what is held now, each with its point.
    pub held: Vec<(u64, P)>,
    /// How many it has caught, over or not.
    pub caught: u32,
    /// Of these, gone on by themselves because the limit passed.
    pub expired: u32,
    /// Of these, cancelled by a reset or a device failure.
    pub cancelled: u32,
    /// How the last of them ended, once it has.
    pub ended: Option<ReleaseWhy>,
    /// How often its conditions were met.
    pub matched: u32,
}

/// A lever operation could not be done.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum LeverError {
    /// No such lever, or forgotten.
    #[error("lever {0} does not exist on this device; arm it first")]
    Unknown(u64),
    /// Nothing was held in time.
    #[error("lever {lever} held nothing within {waited:?} (its conditions were met {matched} times); check them")]
    Timeout {
        /// The lever.
        lever: u64,
        /// How long.
        waited: Duration,
        /// How often its conditions were met.
        matched: u32,
    },
    /// It holds nothing any more and will not again.
    #[error("lever {lever} holds nothing any more: {why:?}; arm a new one")]
    Over {
        /// The lever.
        lever: u64,
        /// How its last hold ended; `None`: it was disarmed before it held anything.
        why: Option<ReleaseWhy>,
    },
    /// A step back, or nothing to step.
    #[error("lever {0} holds nothing before that point; only what is can be stepped on")]
    NoStep(u64),
    /// The device did not carry out the order.
    #[error("the device did not act on lever {0} in time; what it waits for may be very slow")]
    Stuck(u64),
}
