// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab does with levers and injections.

use std::time::Duration;

use super::{NicLever, NicLeverState};
use crate::hooks::NicInjections;
use crate::nic::NicHandle;
use probe::{LeverError, LeverId};

impl NicHandle {
    /// Arms a lever.
    pub fn arm(&self, lever: NicLever) -> LeverId {
        self.hca().levers.arm(lever)
    }

    /// Disarms a lever and lets go what it holds.
    ///
    /// # Errors
    /// No such lever.
    pub fn release(&self, id: LeverId) -> Result<NicLeverState, LeverError> {
        self.hca().levers.release(self.hca(), id)
    }

    /// Waits until a lever holds a WQE.
    ///
    /// # Errors
    /// See [`NicLevers::wait_held`](super::NicLevers::wait_held).
    pub fn wait_held(&self, id: LeverId, timeout: Duration) -> Result<u64, LeverError> {
        self.hca().levers.wait_held(id, timeout)
    }

    /// A lever as it stands.
    ///
    /// # Errors
    /// No such lever.
    pub fn lever(&self, id: LeverId) -> Result<NicLeverState, LeverError> {
        self.hca().levers.state(id)
    }

    /// Disarms every lever and lets everything go.
    pub fn disarm_all(&self) {
        self.hca().levers.disarm_all(self.hca());
    }

    /// Its injections.
    pub fn injections(&self) -> &NicInjections {
        &self.hca().injections
    }
}
