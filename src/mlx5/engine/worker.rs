// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An engine: which queue pair is served next, and when there is nothing to do.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::heat::HotPages;
use super::mailbox::{Inbox, Mailbox};
use super::requester::{Requester, Turn};
use super::transfer::Scratch;
use super::work::Cx;
use crate::hca::Hca;

/// How long an engine that has had work looks at its last queue pairs' records before it sleeps. A wake-up through an eventfd costs
/// about as much.
const POLL: Duration = Duration::from_micros(30);
/// Queue pairs that are polled.
const HOT: usize = 8;

pub(super) struct Slot {
    pub(super) requester: Box<Requester>,
    pub(super) queued: bool,
    /// When a timer is due that it has been given.
    timer: Option<Instant>,
}

/// What an engine needs after a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The turns were not enough.
    Again,
    /// Nothing before the next note, doorbell or timer.
    Idle,
    /// It has been told to end; it holds nothing any more.
    Stop,
}

/// An engine: the queue pairs that it knows, and which of them is due. Whoever holds its lock runs it.
pub(super) struct Engine {
    pub(super) number: usize,
    engines: usize,
    pub(super) slots: HashMap<u32, Slot>,
    /// For doorbells without data. Pages with many queue pairs have none.
    pub(super) by_uar: HashMap<u32, HashSet<u32>>,
    pub(super) ready: VecDeque<u32>,
    /// UAR pages that are plain memory.
    pub(super) heat: HotPages,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    hot: VecDeque<u32>,
    scratch: Scratch,
    timer: TimerFd,
    /// What the timer is set to.
    timer_at: Option<Instant>,
    /// When a page fault event is due that an injection keeps back.
    late_event: Option<Instant>,
    stopped: bool,
}

impl Engine {
    /// Engine `number` of `engines`, whose timer wakes those who sleep at `mailbox`.
    pub(super) fn new(number: usize, engines: usize, mailbox: &Mailbox) -> std::io::Result<Self> {
        let timer = TimerFd::new()?;
        mailbox.watch_timer(&timer)?;
        Ok(Self {
            number,
            engines,
            slots: HashMap::new(),
            by_uar: HashMap::new(),
            ready: VecDeque::new(),
            heat: HotPages::default(),
            timers: BinaryHeap::new(),
            hot: VecDeque::new(),
            scratch: Scratch::default(),
            timer,
            timer_at: None,
            late_event: None,
            stopped: false,
        })
    }

    pub(super) fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// Serves what is due, at most `turns` turns of queue pairs.
    pub(super) fn run(&mut self, hca: &Arc<Hca>, mailbox: &Mailbox, turns: u32) -> Next {
        for _ in 0..turns {
            if !self.take_news(hca, mailbox) {
                return Next::Stop;
            }
            if hca.engines.stand() {
                return Next::Again;
            }
            self.take_timers(hca);
            let Some(qpn) = self.ready.pop_front() else { return Next::Idle };
            self.serve(hca, qpn);
            // Inline there are no doorbells without an exit, and the thread's wake-up is not for us.
            if !hca.engines.is_inline() {
                mailbox.take_doorbells().for_each(|uar| self.look_at(hca, uar));
            }
            // Beside a queue pair that always has work.
            if self.is_hot() {
                self.look_at_hot_pages(hca);
            }
        }
        Next::Again
    }

    /// False: stop.
    fn take_news(&mut self, hca: &Arc<Hca>, mailbox: &Mailbox) -> bool {
        let Some(Inbox { qpns, heat, stop }) = mailbox.take_news() else { return !self.stopped };
        self.heat.wanted.extend(heat);
        if stop {
            self.stopped = true;
            self.slots.drain().for_each(|(_, mut slot)| slot.requester.abandon(hca));
        }
        if self.stopped {
            return false;
        }
        for qpn in qpns {
            self.enqueue(hca, qpn);
        }
        true
    }

    fn take_timers(&mut self, hca: &Arc<Hca>) {
        self.late_event = hca.page_faults.publish_late(hca, Instant::now());
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
                self.enqueue(hca, qpn);
            }
        }
    }

    /// Looks at the doorbell records of the queue pairs on UAR page `uar`.
    pub(super) fn look_at(&mut self, hca: &Hca, uar: u32) {
        if hca.config.hot_doorbells && hca.heat.rung(uar) {
            self.heat.wanted.insert(uar);
        }
        self.look_at_records(hca, uar);
    }

    /// True: there is work.
    pub(super) fn look_at_records(&mut self, hca: &Hca, uar: u32) -> bool {
        let Self { number, slots, by_uar, ready, .. } = self;
        let mut found = false;
        let _section = hca.quiesce.enter(*number);
        for qpn in by_uar.get(&uar).into_iter().flatten() {
            if let Some(slot) = slots.get_mut(qpn)
                && !slot.queued
                && slot.requester.wants_turn(hca)
            {
                slot.queued = true;
                ready.push_back(*qpn);
                found = true;
            }
        }
        found
    }

    fn enqueue(&mut self, hca: &Hca, qpn: u32) {
        if !self.slots.contains_key(&qpn) {
            let Some(qp) = hca.qps.get(qpn).filter(|qp| qp.uar as usize % self.engines == self.number) else {
                return;
            };
            self.by_uar.entry(qp.uar).or_default().insert(qpn);
            self.slots.insert(qpn, Slot { requester: Box::new(Requester::new(qp)), queued: false, timer: None });
        }
        if let Some(slot) = self.slots.get_mut(&qpn)
            && !slot.queued
        {
            slot.queued = true;
            self.ready.push_back(qpn);
        }
    }

    fn serve(&mut self, hca: &Arc<Hca>, qpn: u32) {
        let Some(slot) = self.slots.get_mut(&qpn) else { return };
        slot.queued = false;
        let mut cx = Cx { hca, engine: self.number, scratch: &mut self.scratch };
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
            Turn::Gone => return self.forget(hca, qpn),
        }
        if self.hot.front() != Some(&qpn) {
            self.hot.retain(|other| *other != qpn);
            self.hot.truncate(HOT - 1);
            self.hot.push_front(qpn);
        }
    }

    fn forget(&mut self, hca: &Hca, qpn: u32) {
        let Some(mut slot) = self.slots.remove(&qpn) else { return };
        slot.requester.abandon(hca);
        let uar = slot.requester.uar();
        if let Some(qpns) = self.by_uar.get_mut(&uar) {
            qpns.remove(&qpn);
            if qpns.is_empty() {
                self.by_uar.remove(&uar);
            }
        }
        // Its number may already be another's.
        self.enqueue(hca, qpn);
    }

    /// Looks at the records of the last queue pairs for a while. True: there is work.
    pub(super) fn poll(&mut self, hca: &Hca, mailbox: &Mailbox) -> bool {
        if self.hot.is_empty() {
            return false;
        }
        let end = Instant::now() + POLL;
        loop {
            if mailbox.has_news() {
                return true;
            }
            if let Some(qpn) = self.rung_hot(hca) {
                self.enqueue(hca, qpn);
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

    fn rung_hot(&self, hca: &Hca) -> Option<u32> {
        let has_news = |qpn: &u32| self.slots.get(qpn).is_some_and(|slot| slot.requester.has_news(hca));
        let _section = hca.quiesce.enter(self.number);
        self.hot.iter().copied().find(has_news)
    }

    /// Before the sleep: holds no more than it must, and sees to it that the next timer wakes the thread. False: a timer is due.
    pub(super) fn rest(&mut self) -> bool {
        self.scratch.rest();
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let Some(at) = timer.into_iter().chain(self.late_event).min() else { return true };
        let wait = at.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return false;
        }
        if self.timer_at == Some(at) {
            return true;
        }
        match self.timer.reset(wait, None) {
            Ok(()) => {
                self.timer_at = Some(at);
                true
            }
            Err(error) => {
                log::warn!("an engine's timer could not be set: {error}");
                std::thread::sleep(wait.min(Duration::from_millis(1)));
                false
            }
        }
    }
}
