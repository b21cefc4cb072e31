// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On-demand paging: page faults that the driver works on (contract 9).
//!
//! A fault is a token and a state, nothing else: whoever waits owns no section, lock or pointer, and translates anew when the
//! driver has resumed it.

mod offered;
#[cfg(test)]
mod tests;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::bus::Bus;
use super::engine::Engines;
use super::eq::Event;
use super::hooks::{NicAction, WqeShape};
use crate::hooks::{MomentKind, NicKind, NicLedger, NicMoments};
use mlx5_spec::eq::{eqe_page_fault_rdma, eqe_page_fault_wqe, event, page_fault};
use mlx5_spec::odp::{MAX_TOKEN, rdma_fault_type};

pub use offered::Offered;

/// Faults alive at once, well below what the driver's fault EQ (4,096 entries) takes; more wait (contract 9.3).
pub const MAX_LIVE: usize = 1024;

/// Live page faults by token.
#[derive(Default)]
pub struct PageFaults {
    table: Mutex<Table>,
    /// Some event waits for its time: an injection.
    late: AtomicBool,
}

#[derive(Default)]
struct Table {
    /// Not reset with the device, so that a resume from before a reset meets no new fault.
    last: u32,
    live: HashMap<u32, Live>,
    /// Who waits for room, each once.
    waiting: BTreeMap<(usize, u32, u32), Waker>,
}

/// A fault whose event has been published, or is being kept back.
struct Live {
    state: FaultState,
    waker: Waker,
    /// An injected delay: when it is published, and what.
    late: Option<(Instant, Event)>,
    /// It is published right after the next one, if that comes first.
    behind_next: bool,
    fault: Fault,
}

/// A queue pair to look at again, perhaps of another device.
#[derive(Clone)]
struct Waker {
    engines: Arc<Engines>,
    /// UAR page and number.
    waiter: (u32, u32),
}

impl Waker {
    fn key(&self) -> (usize, u32, u32) {
        (Arc::as_ptr(&self.engines).addr(), self.waiter.0, self.waiter.1)
    }

    fn wake(&self) {
        self.engines.kick(self.waiter.0, self.waiter.1);
    }
}

/// Why no fault was raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RaiseError {
    /// Too many are live: the waiter is kicked when there is room.
    Busy,
    /// No EQ takes page faults, or the device does not page: a protection error.
    NoQueue,
}

/// A fault to raise (contract 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Whose access it is.
    pub kind: FaultKind,
    /// Bytes of the message already moved: exact.
    pub bytes_committed: u32,
    /// Length of the packet or message, at least 1.
    pub packet_length: u16,
    /// The queue pair to look at again after the resume: its UAR page, its number.
    pub waiter: (u32, u32),
    /// For the ledger: key and address of the first byte without translation, and whether it is written.
    pub about: (u32, u64, bool),
}

/// Layouts of 9.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Sub-type 0.
    Wqe {
        /// 0 SRQ, 1 requester send or write, 2 responder RQ, 3 requester read or atomic.
        wq_type: u8,
        /// QPN, or SRQN for type 0.
        number: u32,
        /// SQ: block counter; RQ and SRQ: WQE index.
        wqe_index: u16,
    },
    /// Sub-type 1.
    Rdma {
        /// Key as the requester named it.
        r_key: u32,
        /// Address of the operation's first byte.
        rdma_va: u64,
        /// Bytes of the operation.
        op_len: u32,
        /// Incoming write or atomic; else read.
        write: bool,
    },
}

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultState {
    /// The driver is at it.
    Waiting,
    /// Resumed; the token is void now.
    Resumed {
        /// The driver could not map it.
        error: bool,
    },
    /// Cancelled or never raised.
    Unknown,
}

/// What an injection does to the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Now,
    Never,
    At(Instant),
    BehindNext,
}

/// How long an event waits for the next one.
const BEHIND: Duration = Duration::from_millis(200);

impl PageFaults {
    /// Publishes the EQE and returns the token, which lives until [`PageFaults::poll`] has told of the resume or it is cancelled.
    /// Inside the section in which the queue pairs of the message are known to be as they were when the page was missed.
    ///
    /// # Errors
    /// See [`RaiseError`]. `engines` are those of the queue pair that waits.
    pub fn raise(&self, bus: &Bus, fault: &Fault, engines: &Arc<Engines>) -> Result<u32, RaiseError> {
        if !bus.config.odp || !bus.claims_event(event::PAGE_FAULT) {
            return Err(RaiseError::NoQueue);
        }
        let delivery = delivery(bus, fault);
        let mut table = self.table.lock();
        let Some(token) = table.free_token() else {
            let waker = Waker { engines: engines.clone(), waiter: fault.waiter };
            table.waiting.insert(waker.key(), waker);
            return Err(RaiseError::Busy);
        };
        let waker = Waker { engines: engines.clone(), waiter: fault.waiter };
        // While one is held, the next is the one that it waits for.
        let behind_next = delivery == Delivery::BehindNext && !table.live.values().any(|live| live.behind_next);
        let late = match delivery {
            Delivery::At(when) => Some((when, fault.event(token))),
            Delivery::BehindNext if behind_next => Some((Instant::now() + BEHIND, fault.event(token))),
            _ => None,
        };
        let now = late.is_none() && delivery != Delivery::Never;
        self.late.fetch_or(late.is_some(), Ordering::Release);
        let live = Live { state: FaultState::Waiting, waker, late, behind_next, fault: *fault };
        table.live.insert(token, live);
        drop(table);
        let (key, va, write) = fault.about;
        // On record before the driver can act on it.
        bus.ledger.nic_push(bus.index, fault.waiter.1, NicKind::Fault { key, va, write, token });
        bus.ledger.moment(fault.waiter.1, MomentKind::Faulted { token });
        if now {
            self.publish(bus, fault.event(token));
        }
        Ok(token)
    }

    /// Publishes an event, and then what waits for the next one.
    fn publish(&self, bus: &Bus, event: Event) {
        bus.async_event(event);
        if self.late.load(Ordering::Acquire) {
            let mut table = self.table.lock();
            let held = |live: &mut Live| std::mem::take(&mut live.behind_next).then(|| live.late.take()).flatten();
            let held: Vec<_> = table.live.values_mut().filter_map(held).collect();
            drop(table);
            held.into_iter().for_each(|(_, event)| bus.async_event(event));
        }
    }

    /// Whether the driver has yet to resume it.
    pub fn is_waiting(&self, token: u32) -> bool {
        self.table.lock().live.get(&token).is_some_and(|live| live.state == FaultState::Waiting)
    }

    /// What became of it. `Resumed` is told once.
    pub fn poll(&self, token: u32) -> FaultState {
        let table = self.table.lock();
        match table.live.get(&token).map(|live| live.state) {
            None => FaultState::Unknown,
            Some(FaultState::Waiting) => FaultState::Waiting,
            Some(over) => {
                self.forget(table, token);
                over
            }
        }
    }

    /// Nobody waits for it any more; a later resume is ignored.
    pub fn cancel(&self, token: u32) {
        self.forget(self.table.lock(), token);
    }

    /// Its place is another's, who has waited for one.
    fn forget(&self, mut table: MutexGuard<'_, Table>, token: u32) {
        let next = table.live.remove(&token).and_then(|_| table.waiting.pop_first());
        drop(table);
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    /// PAGE_FAULT_RESUME: wakes the waiter. An unknown token is ignored, and so is a second resume. With an injection the page fault does
    /// not end, and its event comes again.
    pub fn resume(&self, bus: &Bus, token: u32, error: bool) {
        let mut table = self.table.lock();
        let Some(live) = table.live.get_mut(&token).filter(|live| live.state == FaultState::Waiting) else { return };
        // On record before the waiter can act on it.
        bus.ledger.nic_push(bus.index, live.waker.waiter.1, NicKind::Resumed { token, error });
        bus.ledger.moment(live.waker.waiter.1, MomentKind::Answered { token });
        let (fault, qpn) = (live.fault, live.waker.waiter.1);
        let fails = |action| action == NicAction::ResumeFailing;
        let (key, va, write) = fault.about;
        if bus.injections.consult(&WqeShape::access(key, qpn).at(va, 1), fails).is_some() {
            drop(table);
            bus.ledger.nic_push(bus.index, qpn, NicKind::Fault { key, va, write, token });
            bus.ledger.moment(qpn, MomentKind::Faulted { token });
            return self.publish(bus, fault.event(token));
        }
        live.state = FaultState::Resumed { error };
        let waker = live.waker.clone();
        drop(table);
        waker.wake();
    }

    /// Cancels all: a reset.
    pub fn clear(&self) {
        let mut table = self.table.lock();
        table.live.clear();
        table.waiting.clear();
        self.late.store(false, Ordering::Release);
    }

    /// Faults alive, for inspection: token, UAR page and number of the queue pair that waits.
    pub fn live(&self) -> Vec<(u32, u32, u32)> {
        let table = self.table.lock();
        let mut live: Vec<_> =
            table.live.iter().map(|(token, live)| (*token, live.waker.waiter.0, live.waker.waiter.1)).collect();
        live.sort_unstable();
        live
    }

    /// Publishes what an injection kept back until now; when the next is due. An engine's timer calls it. One load when there is none.
    pub fn publish_late(&self, bus: &Bus, now: Instant) -> Option<Instant> {
        if !self.late.load(Ordering::Acquire) {
            return None;
        }
        let mut due = Vec::new();
        let mut table = self.table.lock();
        for live in table.live.values_mut() {
            if let Some((_, event)) = live.late.take_if(|(when, _)| *when <= now) {
                live.behind_next = false;
                due.push(event);
            }
        }
        let next = table.live.values().filter_map(|live| live.late.map(|(when, _)| when)).min();
        self.late.store(next.is_some(), Ordering::Release);
        drop(table);
        due.into_iter().for_each(|event| self.publish(bus, event));
        next
    }
}

impl Table {
    fn free_token(&mut self) -> Option<u32> {
        if self.live.len() >= MAX_LIVE {
            return None;
        }
        // Ends: fewer are alive than there are tokens. 0 is never one.
        loop {
            self.last = self.last % MAX_TOKEN + 1;
            if !self.live.contains_key(&self.last) {
                return Some(self.last);
            }
        }
    }
}

impl Fault {
    fn event(&self, token: u32) -> Event {
        let packet_length = u32::from(self.packet_length.max(1));
        let new = |sub_type| Event::new(event::PAGE_FAULT, sub_type);
        match self.kind {
            FaultKind::Wqe { wq_type, number, wqe_index } => new(page_fault::WQE)
                .with(eqe_page_fault_wqe::BYTES_COMMITTED, self.bytes_committed)
                .with(eqe_page_fault_wqe::WQE_INDEX, u32::from(wqe_index))
                .with(eqe_page_fault_wqe::PACKET_LENGTH, packet_length)
                .with(eqe_page_fault_wqe::TOKEN, token)
                .with(eqe_page_fault_wqe::TYPE, u32::from(wq_type))
                .with(eqe_page_fault_wqe::WQ_NUMBER, number),
            FaultKind::Rdma { r_key, rdma_va, op_len, write } => new(page_fault::RDMA)
                .with(eqe_page_fault_rdma::BYTES_COMMITTED, self.bytes_committed)
                .with(eqe_page_fault_rdma::R_KEY, r_key)
                .with(eqe_page_fault_rdma::PACKET_LENGTH, packet_length)
                .with(eqe_page_fault_rdma::RDMA_OP_LEN, op_len)
                .with64(eqe_page_fault_rdma::RDMA_VA, rdma_va)
                .with(eqe_page_fault_rdma::TYPE, if write { rdma_fault_type::WRITE } else { rdma_fault_type::READ })
                .with(eqe_page_fault_rdma::TOKEN, token),
        }
    }
}

fn delivery(bus: &Bus, fault: &Fault) -> Delivery {
    let shape = WqeShape::access(fault.about.0, fault.waiter.1).at(fault.about.1, 1);
    let mine = |action| {
        matches!(action, NicAction::DropFaultEvent | NicAction::DelayFaultEvent { .. } | NicAction::FaultEventReordered)
    };
    match bus.injections.consult(&shape, mine) {
        Some(NicAction::DropFaultEvent) => Delivery::Never,
        Some(NicAction::FaultEventReordered) => Delivery::BehindNext,
        Some(NicAction::DelayFaultEvent { ms }) => Delivery::At(Instant::now() + Duration::from_millis(ms.into())),
        _ => Delivery::Now,
    }
}
