// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PAGE_FAULT_RESUME (contract 9.3).

use super::CommandError;
use super::request::{Reply, Request};
use mlx5_spec::odp::resume_in;

/// Wakes who waits for the fault. A token that nobody waits for is none of the driver's doing: its queue pair may be gone.
pub fn resume(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let error = request.get(resume_in::ERROR) != 0;
    request.hca.page_faults.resume(request.hca, request.get(resume_in::TOKEN), error);
    Ok(Reply::ok())
}
