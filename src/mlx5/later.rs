// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What injections put off: entries of completion and event queues, messages of MSI-X vectors, the port that comes up again.
//!
//! Entries wait in their own queue, under its lock, so that whoever destroys the queue, or a queue pair that completes into it, has them gone
//! (rule 3); here is only when which queue is to be looked at. The command thread looks, between two commands. While nothing is late nothing
//! is done but a load.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::eq::{About, Event};
use super::hca::Hca;
use super::health;
use super::port::{self, Cause};
use super::qp::Qp;
use mlx5_spec::eq::event;
use mlx5_spec::qp::state;

/// Things that are late at once, of one device. What is more is on time.
pub const MAX_LATE: usize = 8192;

/// The longest that a reset takes to begin.
const RESET_BEGINS: Duration = Duration::from_secs(2);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// CQEs in the completion queue with this number.
    Completions(u32),
    /// EQEs in the event queue with this number.
    Events(u32),
    /// A message of this MSI-X vector.
    Message(u16),
    /// The port comes up.
    Port,
    /// The function is reset.
    Reset,
}

/// See the module.
pub struct Later {
    any: AtomicBool,
    /// Entries and messages that are late.
    held: AtomicUsize,
    dues: Mutex<Vec<(Instant, Due)>>,
    wake: EventFd,
}

impl Later {
    /// Nothing is late.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new() -> std::io::Result<Self> {
        let (any, held, dues) = Default::default();
        Ok(Self { any, held, dues, wake: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Whether anything is late: one load.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Entries and messages that are late now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Room for one thing more that is late; false: there is none.
    pub fn take(&self) -> bool {
        let more = |held: usize| (held < MAX_LATE).then_some(held + 1);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// So many are not late any more.
    pub fn give(&self, count: usize) {
        // Ends at nought: a reset may have been faster.
        let less = |held: usize| Some(held.saturating_sub(count));
        let _ = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// `due` in `delay`; there is room for it ([`Later::take`]).
    pub fn put(&self, delay: Duration, due: Due) {
        self.dues.lock().push((Instant::now() + delay, due));
        self.any.store(true, Ordering::Release);
        // Only an eventfd that is full of wake-ups refuses one more.
        let _ = self.wake.write(1);
    }

    /// A message of `vector` in `delay`; at once if there is no room.
    pub fn message(&self, msix: &pci::msix::Msix, vector: u16, delay: Duration) {
        match self.take() {
            true => self.put(delay, Due::Message(vector)),
            false => msix.trigger(vector),
        }
    }

    /// What wakes the thread that looks.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// When the next is due.
    pub fn next(&self) -> Option<Instant> {
        if !self.any() {
            return None;
        }
        self.dues.lock().iter().map(|(at, _)| *at).min()
    }

    /// The queues are gone: nothing of them is late any more, and no message. The port is none of a driver's objects.
    pub fn clear(&self) {
        self.retain(|due| due == Due::Port);
        self.held.store(0, Ordering::Relaxed);
    }

    /// The port is up: a reset.
    pub fn forget_port(&self) {
        self.retain(|due| due != Due::Port);
    }

    fn retain(&self, stays: impl Fn(Due) -> bool) {
        let mut dues = self.dues.lock();
        dues.retain(|(_, due)| stays(*due));
        self.any.store(!dues.is_empty(), Ordering::Release);
    }

    fn take_due(&self, now: Instant) -> Vec<Due> {
        let mut dues = self.dues.lock();
        let mut due: Vec<_> = dues.extract_if(.., |(at, _)| *at <= now).collect();
        self.any.store(!dues.is_empty(), Ordering::Release);
        due.sort_by_key(|(at, _)| *at);
        due.into_iter().map(|(_, due)| due).collect()
    }
}

/// Does what is due. The caller holds commands off.
pub fn serve(hca: &Hca) {
    if !hca.later.any() {
        return;
    }
    let now = Instant::now();
    for due in hca.later.take_due(now) {
        match due {
            Due::Completions(cqn) => {
                if let Some(cq) = hca.cqs.get(cqn) {
                    cq.publish_late(hca, now);
                }
            }
            Due::Events(eqn) => {
                if let Some(eq) = hca.eqs.get(eqn) {
                    eq.publish_late(hca, now, |event| stands(hca, event));
                }
            }
            Due::Message(vector) => {
                hca.later.give(1);
                hca.msix.trigger(vector);
            }
            Due::Port => drop(port::set(hca, Cause::Injection, true)),
            Due::Reset => health::reset_function(hca),
        }
    }
}

/// Whether what a late event tells of is still so.
fn stands(hca: &Hca, event: &Event) -> bool {
    event.event_type() != event::PAGE_FAULT || hca.page_faults.is_waiting(event.token())
}

/// Has the function reset, and returns when that has begun: no DMA starts any more. It waits for the section that the caller is in, so the caller
/// has to leave it. A command that waits for that section itself is let through after a while: then the reset is late.
pub fn reset_now(hca: &Hca) {
    hca.later.put(Duration::ZERO, Due::Reset);
    let end = Instant::now() + RESET_BEGINS;
    while hca.dma.is_enabled() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A command has changed a queue pair: when it completes no CQE and no EQE of what was before is late. After 2RST and DESTROY_QP they never
/// come; else CQEs are written now.
pub fn settle_qp(hca: &Hca, qp: &Qp) {
    if !hca.later.any() {
        return;
    }
    let ended = qp.attrs().state == state::RST;
    for (_, cq) in hca.cqs.all() {
        match ended {
            true => cq.drop_late(hca, qp.qpn),
            false => cq.hasten(hca, qp.qpn),
        }
    }
    if ended {
        forget(hca, About::Qp(qp.qpn));
    }
}

/// An object is destroyed: no late event tells of it.
pub fn forget(hca: &Hca, about: About) {
    if hca.later.any() {
        hca.eqs.all().iter().for_each(|(_, eq)| eq.drop_late(hca, |event| event.about() == Some(about)));
    }
}
