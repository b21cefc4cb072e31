// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How devices are recorded, matched and made to misbehave.
//!
//! [`ledger`] puts what each device did to which guest page into one order with everything else that happened. [`Rules`] make a
//! device misbehave on purpose, for negative controls: an oracle that is not seen to catch an injection proves nothing. They belong
//! to a device and act only there, never in an oracle. [`Holds`] keep what matches standing at a point, for a bounded time. What can be
//! matched, held and can go wrong is the device's to say. [`Patience`] bounds the waits of those who look on.

mod firing;
mod holds;
pub mod ledger;
mod patience;
mod ring;
mod rules;

pub use firing::{Firing, Firings, firings, firings_page};
pub use holds::{
    Caught, Holdable, Holds, Lever, LeverError, LeverId, LeverState, MAX_LEVERS, MAX_LIMIT, MAX_TIMES, Order,
    ReleaseReport, ReleaseWhy, Which,
};
pub use patience::Patience;
pub use ring::{Event, KEPT, Ring};
pub use rules::{Action, Chance, MAX_RULES, Match, Rule, RuleId, Rules, drawn};
