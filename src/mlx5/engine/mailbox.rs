// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mailbox of an engine: what others tell it, and what wakes its thread.
//!
//! News are queue pairs to look at (something about them changed, or their doorbell took an exit: it names its queue pair) and
//! signalled eventfds (a doorbell that took none: it names a UAR page, all of whose queue pairs are looked at).

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

/// Epoll data of the engine's own descriptors; UAR indices are smaller.
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Events taken at once.
const EVENTS: usize = 32;

/// What others tell an engine: queue pairs to look at, and to end.
#[derive(Default)]
pub(super) struct Inbox {
    pub(super) qpns: HashSet<u32>,
    /// UAR pages that are rung in a stream.
    pub(super) heat: HashSet<u32>,
    pub(super) stop: bool,
}

/// The mailbox of an engine, for everyone.
pub struct Mailbox {
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

impl Mailbox {
    /// An engine's mailbox; nobody is behind it yet.
    pub fn new() -> std::io::Result<Self> {
        let mailbox = Self {
            inbox: Mutex::default(),
            news: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
            epoll: Epoll::new()?,
            watched: Mutex::default(),
        };
        add(&mailbox.epoll, &mailbox.wake, WAKE)?;
        Ok(mailbox)
    }

    /// Look at queue pair `qpn`.
    pub fn kick(&self, qpn: u32) {
        self.note(qpn);
        self.wake_if_asleep();
    }

    /// The same, without a word to the thread.
    pub(super) fn note(&self, qpn: u32) {
        self.tell(|inbox| {
            inbox.qpns.insert(qpn);
        });
    }

    /// UAR page `uar` is rung in a stream: for the thread.
    pub(super) fn heat(&self, uar: u32) {
        self.tell(|inbox| {
            inbox.heat.insert(uar);
        });
        self.wake();
    }

    /// End.
    pub fn stop(&self) {
        self.tell(|inbox| inbox.stop = true);
        self.wake_if_asleep();
    }

    /// There is work for the thread.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the engine wakes as well.
        let _ = self.wake.write(1);
    }

    fn tell(&self, what: impl FnOnce(&mut Inbox)) {
        what(&mut self.inbox.lock());
        self.news.store(true, Ordering::SeqCst);
    }

    fn wake_if_asleep(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// `event` rings for `uar`.
    pub fn watch(&self, uar: u32, event: Arc<EventFd>) -> std::io::Result<()> {
        let mut watched = self.watched.lock();
        if let Some(old) = watched.remove(&uar) {
            remove(&self.epoll, &old);
        }
        add(&self.epoll, &event, u64::from(uar))?;
        watched.insert(uar, event);
        Ok(())
    }

    /// Undoes [`Mailbox::watch`].
    pub fn unwatch(&self, uar: u32) {
        if let Some(old) = self.watched.lock().remove(&uar) {
            remove(&self.epoll, &old);
        }
    }

    /// `timer` wakes the engine.
    pub(super) fn watch_timer(&self, timer: &TimerFd) -> std::io::Result<()> {
        add(&self.epoll, timer, TIMER)
    }

    /// Undoes [`Mailbox::watch_timer`].
    pub(super) fn unwatch_timer(&self, timer: &TimerFd) {
        remove(&self.epoll, timer);
    }

    /// Whether there is something to take.
    pub(super) fn has_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// What was told since the last time, if anything.
    pub(super) fn take_news(&self) -> Option<Inbox> {
        self.news.swap(false, Ordering::SeqCst).then(|| std::mem::take(&mut *self.inbox.lock()))
    }

    /// UAR pages whose eventfds were signalled, one call's worth of them.
    pub(super) fn take_doorbells(&self) -> impl Iterator<Item = u32> + use<> {
        self.wait(0)
    }

    /// Waits for news, a doorbell, or the timer. UAR pages as [`Mailbox::take_doorbells`].
    pub(super) fn sleep(&self) -> impl Iterator<Item = u32> + use<> {
        self.asleep.store(true, Ordering::SeqCst);
        // Whoever left a note without a word saw the engine in use, before this.
        fence(Ordering::SeqCst);
        let rung = self.wait(if self.news.load(Ordering::SeqCst) { 0 } else { -1 });
        self.asleep.store(false, Ordering::SeqCst);
        rung
    }

    /// `timeout` in ms, -1: for ever.
    fn wait(&self, timeout: i32) -> impl Iterator<Item = u32> + use<> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.epoll.wait(timeout, &mut events).unwrap_or(0);
        events.into_iter().take(count).filter_map(|event| u32::try_from(event.data()).ok())
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
