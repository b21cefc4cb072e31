// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verbs steps in an agent without libibverbs: the static program of the initramfs, or a root that lacks the library.

use rnic_agent::proto::VerbsOp;

use super::{Outcome, failure};
use crate::serve::Context;

/// Refuses.
pub fn run(_: &Context, _: VerbsOp) -> Outcome {
    Err(failure(
        libc::ENOSYS,
        "this agent has no libibverbs: the guest's root lacks it, or the agent was built without",
    ))
}
