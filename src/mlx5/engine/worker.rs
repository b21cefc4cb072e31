// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An engine thread: which queue pair is served next, and when to sleep.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::door::{Door, Inbox};
use super::requester::{Requester, Turn};
use super::transfer::Scratch;
use super::work::Cx;
use crate::hca::Hca;

/// How long an engine that has had work looks at its last queue pairs' records before it sleeps. A wake-up through an eventfd costs
/// about as much.
const POLL: Duration = Duration::from_micros(30);
/// Queue pairs that are polled.
const HOT: usize = 8;

struct Slot {
    requester: Box<Requester>,
    queued: bool,
    /// When a timer is due that it has been given.
    timer: Option<Instant>,
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
    /// When a page fault event is due that an injection keeps back.
    late_event: Option<Instant>,
}

impl Worker {
    /// Engine `engine` of `engines`.
    pub fn new(hca: Arc<Hca>, engine: usize, engines: usize, door: Arc<Door>) -> std::io::Result<Self> {
        let timer = TimerFd::new()?;
        door.watch_timer(&timer)?;
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
                self.take_doorbells();
            } else if !self.poll() {
                self.sleep();
            }
        }
        for slot in self.slots.values_mut() {
            slot.requester.abandon(&self.hca);
        }
        self.door.unwatch_timer(&self.timer);
    }

    /// False: stop.
    fn take_news(&mut self) -> bool {
        let Some(Inbox { qpns, uars, stop }) = self.door.take_news() else { return true };
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
            if let Some(slot) = self.slots.get_mut(&qpn)
                && slot.timer == Some(at)
            {
                slot.timer = None;
                self.enqueue(qpn);
            }
        }
    }

    fn take_doorbells(&mut self) {
        for uar in self.door.take_doorbells() {
            self.look_at(uar);
        }
    }

    fn look_at(&mut self, uar: u32) {
        let Self { hca, slots, by_uar, ready, .. } = self;
        for qpn in by_uar.get(&uar).into_iter().flatten() {
            if let Some(slot) = slots.get_mut(qpn)
                && !slot.queued
                && slot.requester.wants_turn(hca)
            {
                slot.queued = true;
                ready.push_back(*qpn);
            }
        }
    }

    fn enqueue(&mut self, qpn: u32) {
        if !self.slots.contains_key(&qpn) {
            let Some(qp) = self.hca.qps.get(qpn).filter(|qp| qp.uar as usize % self.engines == self.engine) else {
                return;
            };
            self.by_uar.entry(qp.uar).or_default().push(qpn);
            self.slots.insert(qpn, Slot { requester: Box::new(Requester::new(qp)), queued: false, timer: None });
        }
        if let Some(slot) = self.slots.get_mut(&qpn)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(qpn);
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
                if slot.timer.is_none_or(|set| set > at) {
                    slot.timer = Some(at);
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
        let uar = slot.requester.uar();
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
            if self.door.has_news() {
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
        if !self.set_timer() {
            return;
        }
        for uar in self.door.sleep() {
            self.look_at(uar);
        }
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
