// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queues: the one place that publishes EQEs and raises MSI-X for them (contract 6.1, 7.7).

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::time::{Duration, Instant};

use super::buffer::GuestBuffer;
use super::bus::Bus;
use super::hooks::inject::{self, Fate};
use super::later::Due;
use super::table::Table;
use super::users::{Used, Users};
use mlx5_spec::eq::{
    EQE_SIZE, eqe, eqe_comp, eqe_cq_err, eqe_page_fault_rdma, eqe_page_fault_wqe, eqe_qp_srq, event, page_fault,
};
use mlx5_spec::odp::MAX_TOKEN;

/// Events of one device that wait for room in full queues. Completions come at most once a CQ and arm, commands 32 at most, page faults
/// are capped: only a guest that provokes asynchronous events without reading them gets here.
const MAX_BACKLOG: usize = 131_072;

/// After how long a message comes that is sent twice.
const AGAIN: Duration = Duration::from_millis(1);
/// Events for which an idle queue keeps room.
const FEW: usize = 64;

/// What an EQE says: its type, sub-type and the 28 data bytes at 0x20.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    bytes: [u8; EQE_SIZE],
}

impl Event {
    /// An event without data.
    pub fn new(event_type: u32, sub_type: u32) -> Self {
        let mut bytes = [0; EQE_SIZE];
        eqe::TYPE.set(&mut bytes, event_type);
        eqe::SUB_TYPE.set(&mut bytes, sub_type);
        Self { bytes }
    }

    /// The same with a field of `spec::eq` set.
    pub fn with(mut self, field: mlx5_spec::bits::Field, value: u32) -> Self {
        field.set(&mut self.bytes, value);
        self
    }

    /// The same with a 64-bit field set.
    pub fn with64(mut self, field: mlx5_spec::bits::Field64, value: u64) -> Self {
        field.set(&mut self.bytes, value);
        self
    }

    /// Type (contract 7.7).
    pub fn event_type(&self) -> u32 {
        eqe::TYPE.get(&self.bytes)
    }

    /// Token of a page fault's event.
    pub fn token(&self) -> u32 {
        let token = match eqe::SUB_TYPE.get(&self.bytes) {
            page_fault::WQE => eqe_page_fault_wqe::TOKEN.get(&self.bytes),
            _ => eqe_page_fault_rdma::TOKEN.get(&self.bytes),
        };
        token & MAX_TOKEN
    }

    /// The object that it names, if it does.
    pub fn about(&self) -> Option<About> {
        let number = |field: mlx5_spec::bits::Field| field.get(&self.bytes);
        Some(match self.event_type() {
            event::COMP => About::Cq(number(eqe_comp::CQN)),
            event::CQ_ERROR => About::Cq(number(eqe_cq_err::CQN)),
            event::SRQ_CATAS_ERROR | event::SRQ_RQ_LIMIT => About::Srq(number(eqe_qp_srq::QP_SRQ_N)),
            event::COMM_EST
            | event::SQ_DRAINED
            | event::WQ_CATAS_ERROR
            | event::WQ_INVAL_REQ_ERROR
            | event::WQ_ACCESS_ERROR
            | event::SRQ_LAST_WQE => About::Qp(number(eqe_qp_srq::QP_SRQ_N)),
            _ => return None,
        })
    }
}

/// What an event names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A queue pair.
    Qp(u32),
    /// A completion queue.
    Cq(u32),
    /// A shared receive queue.
    Srq(u32),
}

/// An event queue.
pub struct Eq {
    /// Its number, 8 bits.
    pub eqn: u32,
    /// MSI-X vector.
    pub vector: u16,
    /// UAR page whose doorbells it obeys.
    pub uar: u32,
    /// Event types claimed: bit t%64 of word t/64.
    pub mask: [u64; 4],
    /// Completion queues that tell it.
    pub users: Users,
    /// EQC as created, for QUERY_EQ.
    pub context: Vec<u8>,
    log_size: u32,
    buffer: GuestBuffer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Entries written and consumed since creation; wrapping.
    producer: u32,
    consumer: u32,
    /// Type of the newest entry.
    newest: u32,
    armed: bool,
    dead: bool,
    backlog: VecDeque<Event>,
    /// Events that an injection puts off, in no order.
    late: Vec<(Instant, Event)>,
}

/// Event types that there can be: eight bits.
const EVENT_TYPES: usize = 256;

/// Which event queue gets the asynchronous events of a type: the first that claims it. EQNs are 1 to 255; 0: none does.
pub struct Claims([AtomicU8; EVENT_TYPES]);

impl Default for Claims {
    fn default() -> Self {
        Self([const { AtomicU8::new(0) }; EVENT_TYPES])
    }
}

impl Claims {
    /// The EQN that claims `event_type`. One load: it is asked for each command and each event.
    pub fn claimant(&self, event_type: u32) -> Option<u32> {
        let eqn = self.0.get(event_type as usize)?.load(Ordering::Acquire);
        (eqn != 0).then_some(u32::from(eqn))
    }

    /// An event queue came or went. The caller holds commands off.
    pub fn follow(&self, eqs: &Table<Eq>) {
        let eqs = eqs.all();
        for (event_type, claimant) in self.0.iter().enumerate() {
            let first = eqs.iter().find(|(_, eq)| eq.mask[event_type / 64] >> (event_type % 64) & 1 == 1);
            claimant.store(first.map_or(0, |(eqn, _)| *eqn as u8), Ordering::Release);
        }
    }
}

/// Everything CREATE_EQ decides.
pub struct EqSpec {
    /// MSI-X vector.
    pub vector: u16,
    /// UAR page.
    pub uar: u32,
    /// Event types.
    pub mask: [u64; 4],
    /// log2 of the number of entries.
    pub log_size: u32,
    /// Entries.
    pub buffer: GuestBuffer,
    /// EQC as created.
    pub context: Vec<u8>,
}

impl Eq {
    /// An unarmed, empty queue.
    pub fn new(eqn: u32, spec: EqSpec) -> Self {
        let EqSpec { vector, uar, mask, log_size, buffer, context } = spec;
        let users = Users::default();
        Self { eqn, vector, uar, mask, users, context, log_size, buffer, state: Mutex::default() }
    }

    /// Publishes an event, or keeps it until there is room. An armed queue raises its vector once.
    pub fn push(&self, bus: &Bus, event: Event) {
        let mut state = self.state.lock();
        if state.dead {
            return;
        }
        match inject::event(&bus.injections, event.event_type()) {
            Fate::Lost => return,
            Fate::Late(delay) if bus.later.take() => {
                state.late.push((Instant::now() + delay, event));
                return bus.later.put(delay, Due::Events(self.eqn));
            }
            _ => {}
        }
        self.accept(bus, &mut state, event);
    }

    fn accept(&self, bus: &Bus, state: &mut State, event: Event) {
        let room = |waiting: usize| (waiting < MAX_BACKLOG).then_some(waiting + 1);
        if bus.waiting_events.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            bus.counters.events_dropped.add(1);
            return;
        }
        state.backlog.push_back(event);
        self.drain(bus, state);
        self.notify(bus, state);
    }

    /// Publishes what was put off until `now` and still `stands`.
    pub fn publish_late(&self, bus: &Bus, now: Instant, stands: impl Fn(&Event) -> bool) {
        let mut state = self.state.lock();
        let due: Vec<_> = state.late.extract_if(.., |(at, _)| *at <= now).collect();
        bus.later.give(due.len());
        for (_, event) in due.into_iter().filter(|(_, event)| stands(event)) {
            self.accept(bus, &mut state, event);
        }
    }

    /// Those that are put off and that `gone` names never come.
    pub fn drop_late(&self, bus: &Bus, gone: impl Fn(&Event) -> bool) {
        let mut state = self.state.lock();
        let before = state.late.len();
        state.late.retain(|(_, event)| !gone(event));
        bus.later.give(before - state.late.len());
    }

    /// A doorbell: the driver has consumed up to `ci` (24 bits), and wants an interrupt for what comes next if `arm`.
    pub fn update(&self, bus: &Bus, ci: u32, arm: bool) {
        let mut state = self.state.lock();
        let step = ci.wrapping_sub(state.consumer) & 0xff_ffff;
        // An index that was never produced is the guest's mistake; what it skips is lost to it alone.
        if step <= state.producer.wrapping_sub(state.consumer) {
            state.consumer = state.consumer.wrapping_add(step);
        }
        state.armed |= arm;
        self.drain(bus, &mut state);
        self.notify(bus, &mut state);
    }

    /// No more entries or interrupts after this returns.
    pub fn kill(&self, bus: &Bus) {
        let mut state = self.state.lock();
        state.dead = true;
        bus.waiting_events.fetch_sub(state.backlog.len(), Ordering::Relaxed);
        state.backlog = VecDeque::new();
        bus.later.give(std::mem::take(&mut state.late).len());
    }

    /// Entries written and consumed, and whether it is armed: for inspection.
    pub fn indices(&self) -> (u32, u32, bool) {
        let state = self.state.lock();
        (state.producer, state.consumer, state.armed)
    }

    fn drain(&self, bus: &Bus, state: &mut State) {
        let size = 1u32 << self.log_size;
        while state.producer.wrapping_sub(state.consumer) < size {
            let Some(event) = state.backlog.pop_front() else {
                // A flood that is over leaves no memory behind.
                return state.backlog.shrink_to(FEW);
            };
            bus.waiting_events.fetch_sub(1, Ordering::Relaxed);
            let owner = state.producer >> self.log_size & 1;
            let at = u64::from(state.producer & (size - 1)) * EQE_SIZE as u64;
            let mut bytes = event.bytes;
            eqe::OWNER.set(&mut bytes, owner);
            let written = self.buffer.publish(&bus.dma, at, &bytes);
            if written.is_err() {
                bus.counters.events_dropped.add(1);
                return;
            }
            state.producer = state.producer.wrapping_add(1);
            state.newest = event.event_type();
        }
    }

    fn notify(&self, bus: &Bus, state: &mut State) {
        if state.armed && !state.dead && state.producer != state.consumer {
            state.armed = false;
            fence(Ordering::SeqCst);
            match inject::interrupt(&bus.injections, self.vector, state.newest) {
                Fate::Now => bus.msix.trigger(self.vector),
                Fate::Late(delay) => bus.later.message(&bus.msix, self.vector, delay),
                Fate::Twice => {
                    bus.msix.trigger(self.vector);
                    bus.later.message(&bus.msix, self.vector, AGAIN);
                }
                Fate::Lost => {}
            }
        }
    }
}

impl Used for Eq {
    fn users(&self) -> &Users {
        &self.users
    }
}
