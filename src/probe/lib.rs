// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How devices are recorded, matched and made to misbehave.
//!
//! [`ledger`] knows what each device did to which guest page, in one order with everything else that happened. The rest is
//! rules that make a device misbehave on purpose (match -> action), for negative controls: an oracle that is not seen to
//! catch a planted fault proves nothing.
//!
//! A [`FaultPlan`] belongs to a device and acts only there, never in an oracle. A rule says which requests it looks at
//! ([`RequestMatch`]), which match it means (the n-th), and what the device does then ([`FaultAction`]).

pub mod ledger;
mod matcher;
mod plan;

pub use matcher::{RequestMatch, RequestShape};
pub use plan::{FaultAction, FaultPlan, Rule, RuleId};
