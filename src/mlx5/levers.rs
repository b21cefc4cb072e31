// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers: the lab holds a send WQE before anything of it is translated, for a bounded time.
//!
//! A held WQE is only a number in the table of holds: its engine parks the queue pair and owns no section, lock or translation meanwhile,
//! so that a zap of its memory goes through (rule 3). When it goes on, it is translated anew.

mod handle;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bus::Bus;
use super::hooks::{NicAction, NicInjections, WqeMatch, WqeShape};
use crate::hooks::{NicKind, NicLedger};
use parking_lot::Mutex;
use probe::ledger::Ledger;
use probe::{Holdable, Holds, Lever, LeverError, LeverId, LeverState, ReleaseWhy, Which};

/// Where a WQE can stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WqePoint {
    /// Before anything of it is translated.
    BeforeTranslation,
}

/// WQEs can be held. Who waits is the UAR page and the number of the queue pair to look at again.
#[derive(Debug)]
pub struct Wqes;

impl Holdable for Wqes {
    type Match = WqeMatch;
    type Point = WqePoint;
    type Waiter = (u32, u32);
}

/// Holds WQEs of a NIC.
pub type NicLever = Lever<WqeMatch, WqePoint>;
/// A NIC's lever as it stands. What is held is named by its token.
pub type NicLeverState = LeverState<WqePoint>;

/// What an engine is to do with a WQE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Go on.
    Pass,
    /// Park the queue pair until [`NicLevers::is_held`] says no, and then go on without asking again.
    Held(u64),
}

/// The levers of one device.
pub struct NicLevers {
    nic: u8,
    ledger: Arc<Ledger>,
    last_token: AtomicU64,
    holds: Holds<Wqes>,
    /// Holds that are none: the injection [`NicAction::LieAboutHold`]. No engine waits for them to look at their limit.
    lies: Mutex<Vec<u64>>,
}

impl NicLevers {
    /// The levers of the NIC `nic`, all of whose holds go on record in `ledger`.
    pub fn new(nic: u8, ledger: Arc<Ledger>) -> Self {
        Self { nic, ledger, last_token: AtomicU64::new(0), holds: Holds::default(), lies: Mutex::default() }
    }

    // ---- the lab's side ----

    /// Arms a lever.
    pub fn arm(&self, lever: NicLever) -> LeverId {
        self.holds.arm(lever)
    }

    /// Disarms, and lets the WQEs go that it holds.
    ///
    /// # Errors
    /// No such lever.
    pub fn release(&self, bus: &Bus, id: LeverId) -> Result<NicLeverState, LeverError> {
        self.expire_lies();
        self.holds.disarm(Some(id));
        self.end(bus, Which::Lever(id), ReleaseWhy::Released);
        self.state(id)
    }

    /// Disarms every lever and lets every WQE go.
    pub fn disarm_all(&self, bus: &Bus) {
        self.expire_lies();
        self.holds.disarm(None);
        self.end(bus, Which::All, ReleaseWhy::Released);
    }

    /// A lever as it stands.
    ///
    /// # Errors
    /// No such lever.
    pub fn state(&self, id: LeverId) -> Result<NicLeverState, LeverError> {
        self.expire_lies();
        self.holds.state(id)
    }

    /// Waits until it holds a WQE; the hold's token.
    ///
    /// # Errors
    /// It did not within `timeout` (at most 60 s), or cannot any more.
    pub fn wait_held(&self, id: LeverId, timeout: Duration) -> Result<u64, LeverError> {
        self.expire_lies();
        self.holds.wait_held(id, 1, timeout).map(|tokens| tokens[0])
    }

    // ---- the engines' side ----

    /// Whether no lever is armed or holds: then there is nothing to ask.
    pub fn idle(&self) -> bool {
        self.holds.idle()
    }

    /// Asks about a WQE, once, before anything of it is translated. The first armed lever that is due holds it. `waiter`: UAR page and
    /// number of the queue pair to look at again. One load and a branch while no lever is armed; it waits for
    /// nobody, and a section that is told `Held` ends at once. `injections` may make a lie of the hold.
    pub fn gate(&self, injections: &NicInjections, shape: &WqeShape, waiter: (u32, u32)) -> Gate {
        if self.idle() {
            return Gate::Pass;
        }
        self.expire_lies();
        let token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(caught) = self.holds.consult(token, token, waiter, shape) else { return Gate::Pass };
        // On record before the lab can see it.
        self.ledger.nic_push(self.nic, shape.qpn, NicKind::Gated { opcode: shape.opcode, token });
        let lie = injections.consult(shape, |action| action == NicAction::LieAboutHold).is_some();
        match self.holds.stand(caught, token, caught.point) {
            Ok(()) if lie => {
                self.lies.lock().push(token);
                Gate::Pass
            }
            Ok(()) => Gate::Held(token),
            Err(why) => {
                self.ungated(token, waiter, why);
                self.holds.over(caught, token, why);
                Gate::Pass
            }
        }
    }

    /// Whether the WQE must still stand. False as soon as its limit has passed.
    pub fn is_held(&self, token: u64) -> bool {
        let Some(deadline) = self.holds.deadline(token) else { return false };
        if Instant::now() < deadline {
            return true;
        }
        // Who asks is who waits.
        self.holds.end(Which::Token(token), ReleaseWhy::Expired, |token, waiter| {
            self.ungated(token, waiter, ReleaseWhy::Expired);
        });
        false
    }

    /// Ends the holds without a WQE whose limit has passed. Of more than the levers can hold there are none.
    fn expire_lies(&self) {
        self.lies.lock().retain(|token| self.is_held(*token));
    }

    /// The WQE is gone: 2ERR, 2RST or DESTROY_QP of its queue pair.
    pub fn cancel(&self, bus: &Bus, token: u64) {
        self.end(bus, Which::Token(token), ReleaseWhy::Reset);
    }

    /// A reset of the device: every hold is over. Levers that hold nothing stay armed.
    pub fn reset(&self, bus: &Bus) {
        self.end(bus, Which::All, ReleaseWhy::Reset);
    }

    fn end(&self, bus: &Bus, which: Which, why: ReleaseWhy) {
        let mut waiters = Vec::new();
        self.holds.end(which, why, |token, waiter| {
            self.ungated(token, waiter, why);
            waiters.push(waiter);
        });
        waiters.into_iter().for_each(|(uar, qpn)| bus.engines.kick(uar, qpn));
    }

    /// On record before its engine can go on.
    fn ungated(&self, token: u64, (_, qpn): (u32, u32), why: ReleaseWhy) {
        self.ledger.nic_push(self.nic, qpn, NicKind::Ungated { token, why });
    }
}
