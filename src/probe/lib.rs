// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How devices are recorded, matched and made to misbehave.
//!
//! [`ledger`] knows what each device did to which guest page, in one order with everything else that happened. [`Rules`] make a
//! device misbehave on purpose, for negative controls: an oracle that is not seen to catch an injection proves nothing. They belong
//! to a device and act only there, never in an oracle. What can be matched and what can go wrong is the device's to say.

pub mod ledger;
mod rules;

pub use rules::{Action, Chance, MAX_RULES, Match, Rule, RuleId, Rules};
