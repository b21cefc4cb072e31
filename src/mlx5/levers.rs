// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers: the lab holds a send WQE before anything of it is translated, for a bounded time.
//!
//! A held WQE is only a number here: its engine parks the queue pair and owns no section, lock or translation meanwhile, so that a zap
//! of its memory goes through (design rule 3). When it goes on, it is translated anew.

mod describe;
mod handle;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bus::Bus;
use super::hooks::WqeShape;
use super::sync::lock;
use probe::ledger::{Ledger, NicKind, ReleaseWhy};

pub use describe::{Gate, MAX_LIMIT, NicLever, NicLeverError, NicLeverId, NicLeverState};

/// Levers remembered, spent ones included.
const MAX_LEVERS: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Armed,
    Disarmed,
    Held { token: u64, waiter: (u32, u32), deadline: Instant },
    Over { why: ReleaseWhy },
}

struct Armed {
    id: u64,
    lever: NicLever,
    matched: u32,
    phase: Phase,
}

#[derive(Default)]
struct Table {
    last_id: u64,
    last_token: u64,
    levers: VecDeque<Armed>,
}

/// The levers of one device.
pub struct NicLevers {
    nic: u8,
    ledger: Arc<Ledger>,
    /// Some lever is armed or holds.
    any: AtomicBool,
    table: Mutex<Table>,
    changed: Condvar,
}

impl NicLevers {
    /// The levers of the NIC `nic`, all of whose holds go on record in `ledger`.
    pub fn new(nic: u8, ledger: Arc<Ledger>) -> Self {
        Self { nic, ledger, any: AtomicBool::new(false), table: Mutex::default(), changed: Condvar::new() }
    }

    // ---- the lab's side ----

    /// Arms a lever. At most 256 are remembered; one that is over is forgotten first.
    pub fn arm(&self, mut lever: NicLever) -> NicLeverId {
        lever.limit = lever.limit.min(MAX_LIMIT);
        lever.nth = lever.nth.max(1);
        let mut table = lock(&self.table);
        if table.levers.len() >= MAX_LEVERS {
            let over = |armed: &Armed| matches!(armed.phase, Phase::Over { .. } | Phase::Disarmed);
            let idle = |armed: &Armed| armed.phase == Phase::Armed;
            let victim = table.levers.iter().position(over).or_else(|| table.levers.iter().position(idle));
            // All of them hold a WQE each: as many queue pairs stand still, and each goes on by itself.
            victim.and_then(|at| table.levers.remove(at));
        }
        table.last_id += 1;
        let id = table.last_id;
        table.levers.push_back(Armed { id, lever, matched: 0, phase: Phase::Armed });
        self.any.store(true, Ordering::Release);
        NicLeverId(id)
    }

    /// Disarms, and lets the WQE go that it holds.
    ///
    /// # Errors
    /// No such lever.
    pub fn release(&self, bus: &Bus, id: NicLeverId) -> Result<NicLeverState, NicLeverError> {
        self.end(bus, ReleaseWhy::Released, |armed| armed.id == id.0, true);
        self.state(id)
    }

    /// Disarms every lever and lets every WQE go.
    pub fn disarm_all(&self, bus: &Bus) {
        self.end(bus, ReleaseWhy::Released, |_| true, true);
    }

    /// A lever as it stands.
    ///
    /// # Errors
    /// No such lever.
    pub fn state(&self, id: NicLeverId) -> Result<NicLeverState, NicLeverError> {
        let table = lock(&self.table);
        let armed = table.levers.iter().find(|armed| armed.id == id.0).ok_or(NicLeverError::Unknown(id.0))?;
        Ok(armed.state())
    }

    /// Waits until it holds a WQE; the hold's token.
    ///
    /// # Errors
    /// It did not within `timeout` (at most 60 s), or cannot any more.
    pub fn wait_held(&self, id: NicLeverId, timeout: Duration) -> Result<u64, NicLeverError> {
        let end = Instant::now() + timeout.min(MAX_LIMIT);
        let mut table = lock(&self.table);
        loop {
            let armed = table.levers.iter().find(|armed| armed.id == id.0).ok_or(NicLeverError::Unknown(id.0))?;
            match armed.phase {
                Phase::Held { token, .. } => return Ok(token),
                Phase::Over { why } => return Err(NicLeverError::Over { lever: id.0, why: Some(why) }),
                Phase::Disarmed => return Err(NicLeverError::Over { lever: id.0, why: None }),
                Phase::Armed => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NicLeverError::Timeout { lever: id.0, waited: timeout, matched: armed.matched });
            }
            table = self.wait(table, left);
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>, left: Duration) -> MutexGuard<'a, Table> {
        self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0
    }

    // ---- the engines' side ----

    /// Whether no lever is armed or holds: then there is nothing to ask.
    pub fn idle(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Asks about a WQE, once, before anything of it is translated. The first armed lever that is due holds it. `waiter`: UAR page and
    /// number of the queue pair to look at again. One load and a branch while no lever is armed; it waits for
    /// nobody, and a section that is told `Held` ends at once.
    pub fn gate(&self, shape: &WqeShape, waiter: (u32, u32)) -> Gate {
        if !self.any.load(Ordering::Acquire) {
            return Gate::Pass;
        }
        let mut table = lock(&self.table);
        let Table { last_token, levers, .. } = &mut *table;
        for armed in levers.iter_mut().filter(|armed| armed.phase == Phase::Armed) {
            if !armed.lever.matches(shape) {
                continue;
            }
            armed.matched = armed.matched.saturating_add(1);
            if armed.matched >= armed.lever.nth {
                *last_token += 1;
                let token = *last_token;
                self.ledger.nic_push(self.nic, shape.qpn, NicKind::Gated { opcode: shape.opcode, token });
                armed.phase = Phase::Held { token, waiter, deadline: Instant::now() + armed.lever.limit };
                self.changed.notify_all();
                return Gate::Held(token);
            }
        }
        Gate::Pass
    }

    /// Whether the WQE must still stand. False as soon as its limit has passed.
    pub fn is_held(&self, token: u64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let now = Instant::now();
        let mine = |phase: Phase| matches!(phase, Phase::Held { token: held, .. } if held == token);
        let mut table = lock(&self.table);
        let Some(armed) = table.levers.iter_mut().find(|armed| mine(armed.phase)) else { return false };
        if !matches!(armed.phase, Phase::Held { deadline, .. } if deadline <= now) {
            return true;
        }
        self.over(armed, ReleaseWhy::Expired);
        self.settle(&table);
        false
    }

    /// The WQE is gone: 2ERR, 2RST or DESTROY_QP of its queue pair.
    pub fn cancel(&self, bus: &Bus, token: u64) {
        let mine = |armed: &Armed| matches!(armed.phase, Phase::Held { token: held, .. } if held == token);
        self.end(bus, ReleaseWhy::Reset, mine, false);
    }

    /// A reset of the device: every hold is over. Levers that hold nothing stay armed.
    pub fn reset(&self, bus: &Bus) {
        self.end(bus, ReleaseWhy::Reset, |_| true, false);
    }

    /// Lets go whatever has been held for too long; its engines are kicked. Returns when to call again. An engine's timer does.
    pub fn expire(&self, bus: &Bus, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let due = |armed: &Armed| matches!(armed.phase, Phase::Held { deadline, .. } if deadline <= now);
        self.end(bus, ReleaseWhy::Expired, due, false);
        self.next_deadline()
    }

    /// When the next hold expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let deadline = |armed: &Armed| match armed.phase {
            Phase::Held { deadline, .. } => Some(deadline),
            _ => None,
        };
        lock(&self.table).levers.iter().filter_map(deadline).min()
    }

    /// Ends the holds of the levers that `which` names, and disarms those that hold nothing if `disarm`.
    fn end(&self, bus: &Bus, why: ReleaseWhy, which: impl Fn(&Armed) -> bool, disarm: bool) {
        let mut waiters = Vec::new();
        let mut table = lock(&self.table);
        for armed in table.levers.iter_mut().filter(|armed| which(armed)) {
            waiters.extend(self.over(armed, why));
            if disarm && armed.phase == Phase::Armed {
                armed.phase = Phase::Disarmed;
            }
        }
        self.settle(&table);
        drop(table);
        waiters.into_iter().for_each(|(uar, qpn)| bus.engines.kick(uar, qpn));
    }

    /// Ends a lever's hold if it holds; who waits for that.
    fn over(&self, armed: &mut Armed, why: ReleaseWhy) -> Option<(u32, u32)> {
        let Phase::Held { token, waiter, .. } = armed.phase else { return None };
        // On record before its engine can go on.
        self.ledger.nic_push(self.nic, waiter.1, NicKind::Ungated { token, why });
        armed.phase = Phase::Over { why };
        Some(waiter)
    }

    fn settle(&self, table: &Table) {
        let busy = table.levers.iter().any(|armed| matches!(armed.phase, Phase::Armed | Phase::Held { .. }));
        self.any.store(busy, Ordering::Release);
        self.changed.notify_all();
    }
}

impl Armed {
    fn state(&self) -> NicLeverState {
        let (held, ended) = match self.phase {
            Phase::Held { token, .. } => (Some(token), None),
            Phase::Over { why } => (None, Some(why)),
            Phase::Armed | Phase::Disarmed => (None, None),
        };
        NicLeverState { armed: self.phase == Phase::Armed, held, ended, matched: self.matched }
    }
}
