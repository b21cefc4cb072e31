// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers: rules that hold a request open at a chosen point until the lab lets it go or a limit passes.
//!
//! The table is shared by the worker, which asks it about every request and parks those that it names, and the lab, which
//! arms, waits and releases. A held request is only a number here: it owns no lock, no guard and no guest pointer.

mod describe;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hooks::{RequestMatch, RequestShape};
use probe::Match;
use probe::ledger::{HoldPoint, ReleaseWhy};

pub use describe::{Lever, LeverError, LeverId, LeverState, MAX_LIMIT, MAX_TIMES, ReleaseReport};

/// Levers remembered, spent ones included.
const MAX_LEVERS: usize = 256;
/// How long a release waits for the worker to carry it out.
const SETTLE: Duration = Duration::from_secs(10);

/// What the worker is to do with a parked request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Move the data, then hold again.
    Step,
    /// Go on to the end.
    Go(ReleaseWhy),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Caught, on its way to the point.
    Coming,
    Held,
    /// The lab wants this; the worker has not seen it.
    Ordered(Order),
    /// The worker is at it.
    Moving,
    Over(ReleaseWhy),
}

struct Catch {
    token: u64,
    record: u64,
    point: HoldPoint,
    phase: Phase,
    deadline: Option<Instant>,
}

struct Armed {
    id: u64,
    lever: Lever,
    wants: RequestMatch,
    disarmed: bool,
    matched: u32,
    catches: Vec<Catch>,
}

impl Armed {
    fn spent(&self) -> bool {
        self.disarmed || self.catches.len() >= self.lever.times as usize
    }

    fn over(&self) -> bool {
        self.spent() && self.catches.iter().all(|c| matches!(c.phase, Phase::Over(_)))
    }

    fn ended(&self, want: impl Fn(ReleaseWhy) -> bool) -> u32 {
        self.catches.iter().filter(|c| matches!(c.phase, Phase::Over(why) if want(why))).count() as u32
    }
}

#[derive(Default)]
struct Table {
    last_id: u64,
    levers: VecDeque<Armed>,
}

/// All levers of one disk.
#[derive(Default)]
pub(super) struct Levers {
    any: AtomicBool,
    table: Mutex<Table>,
    changed: Condvar,
}

/// A lever caught a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caught {
    pub(super) lever: u64,
    pub(super) point: HoldPoint,
}

impl Levers {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the lab's side ----

    pub(super) fn arm(&self, mut lever: Lever) -> LeverId {
        lever.limit = lever.limit.min(MAX_LIMIT);
        lever.times = lever.times.clamp(1, MAX_TIMES);
        let wants = RequestMatch { op: lever.op, lba: lever.lba.clone(), page: lever.page };
        let mut table = self.lock();
        table.last_id += 1;
        let id = table.last_id;
        if table.levers.len() >= MAX_LEVERS {
            // Forget a spent one; if none is, the oldest that caught nothing. One that holds is never forgotten.
            let victim = table.levers.iter().position(Armed::over);
            let victim = victim.or_else(|| table.levers.iter().position(|l| l.catches.is_empty()));
            victim.and_then(|at| table.levers.remove(at));
        }
        table.levers.push_back(Armed { id, lever, wants, disarmed: false, matched: 0, catches: Vec::new() });
        self.any.store(true, Ordering::Release);
        LeverId(id)
    }

    pub(super) fn state(&self, id: LeverId) -> Result<LeverState, LeverError> {
        self.lock().find(id).map(|armed| LeverState {
            armed: !armed.spent(),
            held: armed.catches.iter().filter(|c| c.phase == Phase::Held).map(|c| (c.record, c.point)).collect(),
            caught: armed.catches.len() as u32,
            expired: armed.ended(|why| why == ReleaseWhy::Expired),
            cancelled: armed.ended(|why| matches!(why, ReleaseWhy::Reset | ReleaseWhy::Failed)),
            matched: armed.matched,
        })
    }

    /// Waits until at least `count` requests are held at once; their ledger ids.
    pub(super) fn wait_held(&self, id: LeverId, count: usize, timeout: Duration) -> Result<Vec<u64>, LeverError> {
        let end = Instant::now() + timeout.min(MAX_LIMIT);
        let mut table = self.lock();
        loop {
            let armed = table.find(id)?;
            let held: Vec<u64> = armed.catches.iter().filter(|c| c.phase == Phase::Held).map(|c| c.record).collect();
            if held.len() >= count.max(1) {
                return Ok(held);
            }
            if let (true, Some(Phase::Over(why))) = (armed.over(), armed.catches.last().map(|c| c.phase)) {
                return Err(LeverError::Over { lever: id.0, why });
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LeverError::Timeout { lever: id.0, waited: timeout, matched: armed.matched });
            }
            table = self.wait(table, left);
        }
    }

    /// Disarms and orders everything that the lever holds to go on. `wake` must get the worker's attention.
    pub(super) fn release(&self, id: LeverId, wake: impl FnOnce()) -> Result<ReleaseReport, LeverError> {
        let mut table = self.lock();
        let armed = table.find_mut(id)?;
        armed.disarmed = true;
        let mut mine = Vec::new();
        for catch in armed.catches.iter_mut().filter(|c| !matches!(c.phase, Phase::Over(_))) {
            mine.push(catch.token);
            if catch.phase == Phase::Held {
                catch.phase = Phase::Ordered(Order::Go(ReleaseWhy::Released));
            }
        }
        drop(table);
        wake();
        self.settle(id, Armed::over)?;
        let table = self.lock();
        let armed = table.find(id)?;
        let let_go = |c: &&Catch| mine.contains(&c.token) && c.phase == Phase::Over(ReleaseWhy::Released);
        Ok(ReleaseReport {
            released: armed.catches.iter().filter(let_go).map(|c| c.record).collect(),
            expired: armed.ended(|why| why == ReleaseWhy::Expired),
            matched: armed.matched,
        })
    }

    /// Lets every request that is held before its data move the data, and hold again before completion.
    pub(super) fn step(&self, id: LeverId, to: HoldPoint, wake: impl FnOnce()) -> Result<(), LeverError> {
        let mut table = self.lock();
        let armed = table.find_mut(id)?;
        if armed.catches.iter().any(|c| c.phase == Phase::Held && c.point == to) {
            return Ok(());
        }
        let mut any = false;
        for catch in armed.catches.iter_mut().filter(|c| c.phase == Phase::Held && c.point == HoldPoint::BeforeData) {
            catch.phase = Phase::Ordered(Order::Step);
            any = true;
        }
        if !any || to != HoldPoint::BeforeComplete {
            return Err(LeverError::NoStep(id.0));
        }
        drop(table);
        wake();
        self.settle(id, |armed| !armed.catches.iter().any(|c| matches!(c.phase, Phase::Ordered(_) | Phase::Moving)))
    }

    fn settle(&self, id: LeverId, done: impl Fn(&Armed) -> bool) -> Result<(), LeverError> {
        let end = Instant::now() + SETTLE;
        let mut table = self.lock();
        loop {
            if done(table.find(id)?) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LeverError::Stuck(id.0));
            }
            table = self.wait(table, left);
        }
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>, left: Duration) -> MutexGuard<'a, Table> {
        self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn ids(&self) -> Vec<LeverId> {
        self.lock().levers.iter().map(|l| LeverId(l.id)).collect()
    }

    /// Requests that are held or said to be.
    pub(super) fn holding(&self) -> usize {
        let over = |c: &&Catch| !matches!(c.phase, Phase::Over(_));
        self.lock().levers.iter().map(|l| l.catches.iter().filter(over).count()).sum()
    }

    // ---- the worker's side ----

    /// Asks about a request that arrived. The first armed lever that is due catches it; the others do not see it then.
    pub(super) fn consult(&self, token: u64, record: u64, request: &RequestShape<'_>) -> Option<Caught> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut table = self.lock();
        for armed in table.levers.iter_mut().filter(|l| !l.spent()) {
            if !armed.wants.matches(request) {
                continue;
            }
            armed.matched = armed.matched.saturating_add(1);
            if armed.matched >= armed.lever.nth {
                let point = armed.lever.point;
                armed.catches.push(Catch { token, record, point, phase: Phase::Coming, deadline: None });
                return Some(Caught { lever: armed.id, point });
            }
        }
        None
    }

    /// The request stands at `point`. False: it must not, because the lever was released meanwhile.
    pub(super) fn held(&self, caught: Caught, token: u64, point: HoldPoint) -> bool {
        let mut table = self.lock();
        let Ok(armed) = table.find_mut(LeverId(caught.lever)) else { return false };
        let (limit, disarmed) = (armed.lever.limit, armed.disarmed);
        let Some(catch) = armed.catches.iter_mut().find(|c| c.token == token) else { return false };
        catch.point = point;
        catch.phase = if disarmed { Phase::Moving } else { Phase::Held };
        // One limit for all holds of a request.
        catch.deadline.get_or_insert_with(|| Instant::now() + limit);
        self.changed.notify_all();
        !disarmed
    }

    /// The request is through with its lever.
    pub(super) fn over(&self, caught: Caught, token: u64, why: ReleaseWhy) {
        if let Ok(armed) = self.lock().find_mut(LeverId(caught.lever)) {
            for catch in armed.catches.iter_mut().filter(|c| c.token == token) {
                catch.phase = Phase::Over(why);
            }
        }
        self.changed.notify_all();
    }

    /// Orders to carry out now, expiries included.
    pub(super) fn orders(&self, now: Instant) -> Vec<(u64, Order)> {
        let mut orders = Vec::new();
        if !self.any.load(Ordering::Acquire) {
            return orders;
        }
        for catch in self.lock().levers.iter_mut().flat_map(|l| l.catches.iter_mut()) {
            let order = match catch.phase {
                Phase::Ordered(order) => order,
                Phase::Held if catch.deadline.is_some_and(|at| at <= now) => Order::Go(ReleaseWhy::Expired),
                _ => continue,
            };
            catch.phase = Phase::Moving;
            orders.push((catch.token, order));
        }
        orders
    }

    /// When the next hold expires.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let table = self.lock();
        let held = table.levers.iter().flat_map(|l| l.catches.iter()).filter(|c| c.phase == Phase::Held);
        held.filter_map(|c| c.deadline).min()
    }
}

impl Table {
    fn find(&self, id: LeverId) -> Result<&Armed, LeverError> {
        self.levers.iter().find(|l| l.id == id.0).ok_or(LeverError::Unknown(id.0))
    }

    fn find_mut(&mut self, id: LeverId) -> Result<&mut Armed, LeverError> {
        self.levers.iter_mut().find(|l| l.id == id.0).ok_or(LeverError::Unknown(id.0))
    }
}
