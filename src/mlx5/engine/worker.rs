// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An engine thread: which queue pair is served next, and when to sleep.
//!
//! News come as kicks (something about a queue pair changed), rings (a doorbell of a UAR page that took an exit) and signalled
//! eventfds (a doorbell that did not). A ring says "look at the records of that page's queue pairs": one address serves them all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::requester::{Cx, Requester, Turn};
use super::transfer::Scratch;
use crate::mlx5::hca::Hca;
use crate::mlx5::sync::lock;

/// How long an engine that has had work looks at its last queue pairs' records before it sleeps. A wake-up through an eventfd costs
/// about as much.
const POLL: Duration = Duration::from_micros(30);
/// Queue pairs that are polled.
const HOT: usize = 8;
/// Epoll data of the engine's own descriptors; UAR indices are smaller.
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Events taken at once.
const EVENTS: usize = 32;

/// What others tell an engine.
#[derive(Default)]
struct Inbox {
    qpns: HashSet<u32>,
    uars: HashSet<u32>,
    stop: bool,
}

/// The door of an engine, for everyone.
pub struct Door {
    inbox: Mutex<Inbox>,
    /// The inbox is not empty.
    news: AtomicBool,
    /// The engine sleeps or is about to: it must be woken.
    asleep: AtomicBool,
    wake: EventFd,
    epoll: Epoll,
    /// Doorbells of UAR pages.
    watched: Mutex<HashMap<u32, Arc<EventFd>>>,
}

impl Door {
    /// An engine's door; nobody is behind it yet.
    pub fn new() -> std::io::Result<Self> {
        let door = Self {
            inbox: Mutex::default(),
            news: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
            epoll: Epoll::new()?,
            watched: Mutex::default(),
        };
        add(&door.epoll, &door.wake, WAKE)?;
        Ok(door)
    }

    /// Look at queue pair `qpn`.
    pub fn kick(&self, qpn: u32) {
        self.tell(|inbox| {
            inbox.qpns.insert(qpn);
        });
    }

    /// Look at the records of UAR page `uar`.
    pub fn ring(&self, uar: u32) {
        self.tell(|inbox| {
            inbox.uars.insert(uar);
        });
    }

    /// End.
    pub fn stop(&self) {
        self.tell(|inbox| inbox.stop = true);
    }

    fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        what(&mut lock(&self.inbox));
        self.news.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            // Fails only when the counter is full, and then the engine wakes as well.
            let _ = self.wake.write(1);
        }
    }

    /// `event` rings for `uar`.
    pub fn watch(&self, uar: u32, event: Arc<EventFd>) -> std::io::Result<()> {
        let mut watched = lock(&self.watched);
        if let Some(old) = watched.remove(&uar) {
            remove(&self.epoll, &old);
        }
        add(&self.epoll, &event, u64::from(uar))?;
        watched.insert(uar, event);
        drop(watched);
        // What was signalled before is looked at as well.
        self.ring(uar);
        Ok(())
    }

    /// Undoes [`Door::watch`].
    pub fn unwatch(&self, uar: u32) {
        if let Some(old) = lock(&self.watched).remove(&uar) {
            remove(&self.epoll, &old);
        }
    }
}

/// Edge-triggered: each signal is one event, and nobody has to read the counter.
fn add(epoll: &Epoll, fd: &impl std::os::fd::AsRawFd, data: u64) -> std::io::Result<()> {
    let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, data);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
}

fn remove(epoll: &Epoll, fd: &impl std::os::fd::AsRawFd) {
    if let Err(error) = epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default()) {
        log::warn!("a doorbell could not be unwatched: {error}");
    }
}

struct Slot {
    requester: Box<Requester>,
    queued: bool,
}

/// The thread's own side.
pub struct Worker {
    hca: Arc<Hca>,
    engine: usize,
    engines: usize,
    door: Arc<Door>,
    slots: HashMap<u32, Slot>,
    by_uar: HashMap<u32, Vec<u32>>,
    ready: VecDeque<u32>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    hot: VecDeque<u32>,
    scratch: Scratch,
    timer: TimerFd,
    /// When a page fault event is due that a planted fault keeps back.
    late_event: Option<Instant>,
}

impl Worker {
    /// Engine `engine` of `engines`.
    pub fn new(hca: Arc<Hca>, engine: usize, engines: usize, door: Arc<Door>) -> std::io::Result<Self> {
        let timer = TimerFd::new()?;
        add(&door.epoll, &timer, TIMER)?;
        Ok(Self {
            hca,
            engine,
            engines,
            door,
            slots: HashMap::new(),
            by_uar: HashMap::new(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            hot: VecDeque::new(),
            scratch: Scratch::default(),
            timer,
            late_event: None,
        })
    }

    /// Until it is told to stop.
    pub fn run(mut self) {
        while self.take_news() {
            self.take_timers();
            if let Some(qpn) = self.ready.pop_front() {
                self.serve(qpn);
                self.take_doorbells(0);
            } else if !self.poll() {
                self.sleep();
            }
        }
        for slot in self.slots.values_mut() {
            slot.requester.abandon(&self.hca);
        }
        remove(&self.door.epoll, &self.timer);
    }

    /// False: stop.
    fn take_news(&mut self) -> bool {
        if !self.door.news.swap(false, Ordering::SeqCst) {
            return true;
        }
        let Inbox { qpns, uars, stop } = std::mem::take(&mut *lock(&self.door.inbox));
        for qpn in qpns {
            self.enqueue(qpn);
        }
        for uar in uars {
            self.look_at(uar);
        }
        !stop
    }

    fn take_timers(&mut self) {
        self.late_event = self.hca.page_faults.publish_late(&self.hca, Instant::now());
        if self.timers.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(Reverse((at, qpn))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(slot) = self.slots.get_mut(&qpn) {
                if slot.requester.timer == Some(at) {
                    slot.requester.timer = None;
                    self.enqueue(qpn);
                }
            }
        }
    }

    /// Rings of eventfds; waits for at most `timeout` ms, -1: for ever.
    fn take_doorbells(&mut self, timeout: i32) {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.door.epoll.wait(timeout, &mut events).unwrap_or(0);
        for event in events.iter().take(count) {
            if let Ok(uar) = u32::try_from(event.data()) {
                self.look_at(uar);
            }
        }
    }

    fn look_at(&mut self, uar: u32) {
        let Self { hca, slots, by_uar, ready, .. } = self;
        for qpn in by_uar.get(&uar).into_iter().flatten() {
            if let Some(slot) = slots.get_mut(qpn) {
                if !slot.queued && slot.requester.wants_turn(hca) {
                    slot.queued = true;
                    ready.push_back(*qpn);
                }
            }
        }
    }

    fn enqueue(&mut self, qpn: u32) {
        if !self.slots.contains_key(&qpn) {
            let Some(qp) = self.hca.qps.get(qpn).filter(|qp| qp.uar as usize % self.engines == self.engine) else {
                return;
            };
            self.by_uar.entry(qp.uar).or_default().push(qpn);
            self.slots.insert(qpn, Slot { requester: Box::new(Requester::new(qp)), queued: false });
        }
        if let Some(slot) = self.slots.get_mut(&qpn) {
            if !slot.queued {
                slot.queued = true;
                self.ready.push_back(qpn);
            }
        }
    }

    fn serve(&mut self, qpn: u32) {
        let Some(slot) = self.slots.get_mut(&qpn) else { return };
        slot.queued = false;
        let mut cx = Cx { hca: &self.hca, engine: self.engine, scratch: &mut self.scratch };
        match slot.requester.turn(&mut cx) {
            Turn::Idle => {}
            Turn::Again => {
                slot.queued = true;
                self.ready.push_back(qpn);
            }
            Turn::Until(at) => {
                if slot.requester.timer.is_none_or(|set| set > at) {
                    slot.requester.timer = Some(at);
                    self.timers.push(Reverse((at, qpn)));
                }
            }
            Turn::Gone => return self.forget(qpn),
        }
        if self.hot.front() != Some(&qpn) {
            self.hot.retain(|other| *other != qpn);
            self.hot.truncate(HOT - 1);
            self.hot.push_front(qpn);
        }
    }

    fn forget(&mut self, qpn: u32) {
        let Some(mut slot) = self.slots.remove(&qpn) else { return };
        slot.requester.abandon(&self.hca);
        let uar = slot.requester.qp.uar;
        if let Some(qpns) = self.by_uar.get_mut(&uar) {
            qpns.retain(|other| *other != qpn);
            if qpns.is_empty() {
                self.by_uar.remove(&uar);
            }
        }
        // Its number may already be another's.
        self.enqueue(qpn);
    }

    /// Looks at the records of the last queue pairs for a while. True: there is work.
    fn poll(&mut self) -> bool {
        if self.hot.is_empty() {
            return false;
        }
        let end = Instant::now() + POLL;
        loop {
            if self.door.news.load(Ordering::Relaxed) {
                return true;
            }
            let found = self
                .hot
                .iter()
                .copied()
                .find(|qpn| self.slots.get(qpn).is_some_and(|slot| slot.requester.has_news(&self.hca)));
            if let Some(qpn) = found {
                self.enqueue(qpn);
                return true;
            }
            if Instant::now() >= end {
                // Polled again after the next turn.
                self.hot.clear();
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn sleep(&mut self) {
        self.door.asleep.store(true, Ordering::SeqCst);
        if !self.door.news.load(Ordering::SeqCst) && self.set_timer() {
            self.take_doorbells(-1);
        }
        self.door.asleep.store(false, Ordering::SeqCst);
    }

    /// False: a timer is due.
    fn set_timer(&mut self) -> bool {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let Some(at) = timer.into_iter().chain(self.late_event).min() else { return true };
        let wait = at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return false;
        }
        match self.timer.reset(wait, None) {
            Ok(()) => true,
            Err(error) => {
                log::warn!("an engine's timer could not be set: {error}");
                std::thread::sleep(wait.min(Duration::from_millis(1)));
                false
            }
        }
    }
}
