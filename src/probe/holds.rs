// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holds: levers stop what matches at a chosen point until the lab lets it go or a limit passes.
//!
//! The table is shared by the device, which asks it about each occasion and parks what it names, and the lab, which arms, waits and
//! releases. What is held is only a number here: it owns no lock, no section and no guest pointer.
//!
//! A hold ends in one of two ways. A device with a worker takes [`Holds::orders`] and says when each is carried out
//! ([`Holds::over`]); a release then waits for that. A device that looks at a parked number again by itself ends it on the spot
//! ([`Holds::end`]) and is told whom to wake.

mod describe;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::{Match, Patience};
pub use describe::{Lever, LeverError, LeverId, LeverState, MAX_LIMIT, MAX_TIMES, ReleaseReport, ReleaseWhy};

/// Levers remembered by a device, spent ones included.
pub const MAX_LEVERS: usize = 256;
/// How long a release waits for the device to carry it out.
const SETTLE: Duration = Duration::from_secs(10);

/// What a device can hold.
pub trait Holdable {
    /// How it is found.
    type Match: Match;
    /// Where it can stand.
    type Point: Copy + PartialEq;
    /// Whom to wake when its hold is over.
    type Waiter: Copy;
}

/// What the device is to do with something that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Go on to the next point, then hold again.
    Step,
    /// Go on to the end.
    Go(ReleaseWhy),
}

/// A lever caught something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught<P> {
    /// The lever.
    pub lever: LeverId,
    /// Where it is to stand.
    pub point: P,
}

/// Which holds are to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Every one.
    All,
    /// Those of a lever.
    Lever(LeverId),
    /// The one with this name of the device's.
    Token(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Caught, on its way to the point.
    Coming,
    Held,
    /// The lab wants this; the device has not seen it.
    Ordered(Order),
    /// The device is at it.
    Moving,
    Over(ReleaseWhy),
}

struct Catch<H: Holdable> {
    /// The device's name for it, and the one that the lab is told.
    token: u64,
    told: u64,
    point: H::Point,
    waiter: H::Waiter,
    phase: Phase,
    deadline: Option<Instant>,
}

impl<H: Holdable> Catch<H> {
    fn ended(&self) -> Option<ReleaseWhy> {
        match self.phase {
            Phase::Over(why) => Some(why),
            _ => None,
        }
    }
}

struct Armed<H: Holdable> {
    id: LeverId,
    lever: Lever<H::Match, H::Point>,
    disarmed: bool,
    matched: u32,
    catches: Vec<Catch<H>>,
}

impl<H: Holdable> Armed<H> {
    /// Catches nothing any more.
    fn spent(&self) -> bool {
        self.disarmed || self.catches.len() >= self.lever.times as usize
    }

    /// Spent, and holds nothing.
    fn over(&self) -> bool {
        self.spent() && self.catches.iter().all(|catch| catch.ended().is_some())
    }

    fn held(&self) -> impl Iterator<Item = &Catch<H>> {
        self.catches.iter().filter(|catch| catch.phase == Phase::Held)
    }

    fn count(&self, want: impl Fn(ReleaseWhy) -> bool) -> u32 {
        // At most MAX_TIMES.
        self.catches.iter().filter_map(Catch::ended).filter(|why| want(*why)).count() as u32
    }

    fn catch(&mut self, token: u64) -> Option<&mut Catch<H>> {
        self.catches.iter_mut().find(|catch| catch.token == token)
    }
}

struct Table<H: Holdable> {
    last_id: u64,
    levers: VecDeque<Armed<H>>,
}

impl<H: Holdable> Table<H> {
    fn find(&mut self, id: LeverId) -> Result<&mut Armed<H>, LeverError> {
        self.levers.iter_mut().find(|armed| armed.id == id).ok_or(LeverError::Unknown(id.0))
    }
}

/// All levers of one device.
pub struct Holds<H: Holdable> {
    /// Some lever is armed or holds.
    any: AtomicBool,
    table: Mutex<Table<H>>,
    changed: Condvar,
}

impl<H: Holdable> Default for Holds<H> {
    fn default() -> Self {
        let table = Mutex::new(Table { last_id: 0, levers: VecDeque::new() });
        Self { any: AtomicBool::new(false), table, changed: Condvar::new() }
    }
}

impl<H: Holdable> Holds<H> {
    // ---- the lab's side ----

    /// Arms a lever. [`MAX_LEVERS`] are remembered; one that is over is forgotten first, one that holds never.
    pub fn arm(&self, lever: Lever<H::Match, H::Point>) -> LeverId {
        let lever = Lever { limit: lever.limit.min(MAX_LIMIT), times: lever.times.clamp(1, MAX_TIMES), ..lever };
        let mut table = self.table.lock();
        if table.levers.len() >= MAX_LEVERS {
            let victim = table.levers.iter().position(Armed::over);
            let victim = victim.or_else(|| table.levers.iter().position(|armed| armed.catches.is_empty()));
            victim.and_then(|at| table.levers.remove(at));
        }
        table.last_id += 1;
        let id = LeverId(table.last_id);
        table.levers.push_back(Armed { id, lever, disarmed: false, matched: 0, catches: Vec::new() });
        self.any.store(true, Ordering::Release);
        id
    }

    /// A lever as it stands.
    ///
    /// # Errors
    /// No such lever.
    pub fn state(&self, id: LeverId) -> Result<LeverState<H::Point>, LeverError> {
        self.table.lock().find(id).map(|armed| LeverState {
            armed: !armed.spent(),
            held: armed.held().map(|catch| (catch.told, catch.point)).collect(),
            caught: armed.catches.len() as u32,
            expired: armed.count(|why| why == ReleaseWhy::Expired),
            cancelled: armed.count(|why| matches!(why, ReleaseWhy::Reset | ReleaseWhy::Failed)),
            ended: armed.catches.last().and_then(Catch::ended),
            matched: armed.matched,
        })
    }

    /// Waits until at least `count` are held at once; their names.
    ///
    /// # Errors
    /// They were not within `timeout` (at most [`MAX_LIMIT`]), or cannot be any more.
    pub fn wait_held(&self, id: LeverId, count: usize, timeout: Duration) -> Result<Vec<u64>, LeverError> {
        let mut patience = Patience::new(timeout.min(MAX_LIMIT));
        let mut table = self.table.lock();
        loop {
            let armed = table.find(id)?;
            let held: Vec<u64> = armed.held().map(|catch| catch.told).collect();
            if held.len() >= count.max(1) {
                return Ok(held);
            }
            if armed.over() {
                return Err(LeverError::Over { lever: id.0, why: armed.catches.last().and_then(Catch::ended) });
            }
            let matched = armed.matched;
            if patience.is_over() {
                return Err(LeverError::Timeout { lever: id.0, waited: timeout, matched });
            }
            self.changed.wait_for(&mut table, patience.glance());
        }
    }

    /// Disarms and orders everything that the lever holds to go on, and waits until it has. `wake` must get the worker's attention.
    ///
    /// # Errors
    /// No such lever, or the device did not act.
    pub fn release(&self, id: LeverId, wake: impl FnOnce()) -> Result<ReleaseReport, LeverError> {
        let mut table = self.table.lock();
        let armed = table.find(id)?;
        armed.disarmed = true;
        let mut mine = Vec::new();
        for catch in armed.catches.iter_mut().filter(|catch| catch.ended().is_none()) {
            mine.push(catch.token);
            if catch.phase == Phase::Held {
                catch.phase = Phase::Ordered(Order::Go(ReleaseWhy::Released));
            }
        }
        self.settled(&table);
        drop(table);
        wake();
        let mut table = self.settle(id, Armed::over)?;
        let armed = table.find(id)?;
        let let_go = |catch: &&Catch<H>| mine.contains(&catch.token) && catch.ended() == Some(ReleaseWhy::Released);
        Ok(ReleaseReport {
            released: armed.catches.iter().filter(let_go).map(|catch| catch.told).collect(),
            expired: armed.count(|why| why == ReleaseWhy::Expired),
            matched: armed.matched,
        })
    }

    /// Lets everything that is held at `from` go on and hold again at `to`; returns when it does.
    ///
    /// # Errors
    /// No such lever, nothing to step, or the device did not act.
    pub fn step(&self, id: LeverId, from: H::Point, to: H::Point, wake: impl FnOnce()) -> Result<(), LeverError> {
        let mut table = self.table.lock();
        let armed = table.find(id)?;
        if armed.held().any(|catch| catch.point == to) {
            return Ok(());
        }
        let mut any = false;
        for catch in armed.catches.iter_mut().filter(|catch| catch.phase == Phase::Held && catch.point == from) {
            catch.phase = Phase::Ordered(Order::Step);
            any = true;
        }
        drop(table);
        if !any {
            return Err(LeverError::NoStep(id.0));
        }
        wake();
        let under_way = |catch: &Catch<H>| matches!(catch.phase, Phase::Ordered(_) | Phase::Moving);
        self.settle(id, |armed| !armed.catches.iter().any(under_way)).map(drop)
    }

    fn settle(&self, id: LeverId, done: impl Fn(&Armed<H>) -> bool) -> Result<MutexGuard<'_, Table<H>>, LeverError> {
        let mut patience = Patience::new(SETTLE);
        let mut table = self.table.lock();
        while !done(table.find(id)?) {
            if patience.is_over() {
                return Err(LeverError::Stuck(id.0));
            }
            self.changed.wait_for(&mut table, patience.glance());
        }
        Ok(table)
    }

    /// All levers that are remembered.
    pub fn ids(&self) -> Vec<LeverId> {
        self.table.lock().levers.iter().map(|armed| armed.id).collect()
    }

    /// How many are held or said to be.
    pub fn holding(&self) -> usize {
        let open = |armed: &Armed<H>| armed.catches.iter().filter(|catch| catch.ended().is_none()).count();
        self.table.lock().levers.iter().map(open).sum()
    }

    // ---- the device's side ----

    /// Whether no lever is armed or holds: then there is nothing to ask. One load.
    pub fn idle(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Asks about an occasion, once. The first armed lever that is due catches it; the others do not see it then. `token` names it to
    /// the device, `told` to the lab.
    pub fn consult(
        &self,
        token: u64,
        told: u64,
        waiter: H::Waiter,
        shape: &<H::Match as Match>::Shape<'_>,
    ) -> Option<Caught<H::Point>> {
        if self.idle() {
            return None;
        }
        let mut table = self.table.lock();
        for armed in table.levers.iter_mut().filter(|armed| !armed.spent()) {
            if !armed.lever.what.matches(shape) {
                continue;
            }
            armed.matched = armed.matched.saturating_add(1);
            if armed.matched >= armed.lever.nth {
                let point = armed.lever.point;
                armed.catches.push(Catch { token, told, point, waiter, phase: Phase::Coming, deadline: None });
                return Some(Caught { lever: armed.id, point });
            }
        }
        None
    }

    /// It stands at `point`.
    ///
    /// # Errors
    /// It must not, because its hold ended before it began: why. The device says [`Holds::over`] once it is through.
    pub fn stand(&self, caught: Caught<H::Point>, token: u64, point: H::Point) -> Result<(), ReleaseWhy> {
        let mut table = self.table.lock();
        let Ok(armed) = table.find(caught.lever) else { return Err(ReleaseWhy::Released) };
        let (limit, disarmed) = (armed.lever.limit, armed.disarmed);
        let Some(catch) = armed.catch(token) else { return Err(ReleaseWhy::Released) };
        if let Some(why) = catch.ended() {
            return Err(why);
        }
        catch.point = point;
        catch.phase = if disarmed { Phase::Moving } else { Phase::Held };
        // One limit for all holds of one thing.
        catch.deadline.get_or_insert_with(|| Instant::now() + limit);
        self.changed.notify_all();
        if disarmed { Err(ReleaseWhy::Released) } else { Ok(()) }
    }

    /// The device is through with it.
    pub fn over(&self, caught: Caught<H::Point>, token: u64, why: ReleaseWhy) {
        let mut table = self.table.lock();
        if let Ok(armed) = table.find(caught.lever)
            && let Some(catch) = armed.catch(token)
        {
            catch.phase = Phase::Over(why);
        }
        self.settled(&table);
    }

    /// Orders to carry out now, expiries included.
    pub fn orders(&self, now: Instant) -> Vec<(u64, Order)> {
        let mut orders = Vec::new();
        if self.idle() {
            return orders;
        }
        for catch in self.table.lock().levers.iter_mut().flat_map(|armed| armed.catches.iter_mut()) {
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
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.idle() {
            return None;
        }
        self.table.lock().levers.iter().flat_map(Armed::held).filter_map(|catch| catch.deadline).min()
    }

    /// When the hold of `token` expires; `None` when it is not held.
    pub fn deadline(&self, token: u64) -> Option<Instant> {
        if self.idle() {
            return None;
        }
        let mut held = self.table.lock();
        held.levers.iter_mut().flat_map(|armed| armed.held()).find(|catch| catch.token == token)?.deadline
    }

    /// Disarms one lever, or all.
    pub fn disarm(&self, lever: Option<LeverId>) {
        let mut table = self.table.lock();
        let meant = |armed: &&mut Armed<H>| lever.is_none_or(|id| id == armed.id);
        table.levers.iter_mut().filter(meant).for_each(|armed| armed.disarmed = true);
        self.settled(&table);
    }

    /// Ends on the spot what `which` means, what is still coming included; `ended` hears of each that was held, under the table's lock,
    /// with whom to wake. Levers that hold nothing stay armed.
    pub fn end(&self, which: Which, why: ReleaseWhy, mut ended: impl FnMut(u64, H::Waiter)) {
        let mut table = self.table.lock();
        for armed in &mut table.levers {
            let id = armed.id;
            for catch in &mut armed.catches {
                let meant = match which {
                    Which::All => true,
                    Which::Lever(lever) => lever == id,
                    Which::Token(token) => token == catch.token,
                };
                if !meant || !matches!(catch.phase, Phase::Held | Phase::Coming) {
                    continue;
                }
                if catch.phase == Phase::Held {
                    ended(catch.token, catch.waiter);
                }
                catch.phase = Phase::Over(why);
            }
        }
        self.settled(&table);
    }

    /// After a change that may have been the last.
    fn settled(&self, table: &Table<H>) {
        self.any.store(table.levers.iter().any(|armed| !armed.over()), Ordering::Release);
        self.changed.notify_all();
    }
}
