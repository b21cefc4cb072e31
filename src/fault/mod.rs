// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that make a device misbehave on purpose (match -> action), for negative controls: an oracle that is not seen to
//! catch a planted fault proves nothing.
//!
//! A [`FaultPlan`] belongs to a device and acts only there, never in an oracle. A rule says which requests it looks at
//! ([`RequestMatch`]), which match it means (the n-th), and what the device does then ([`FaultAction`]).

mod matcher;
mod plan;

pub use matcher::{RequestMatch, RequestShape};
pub use plan::{FaultAction, FaultPlan, Rule, RuleId};
