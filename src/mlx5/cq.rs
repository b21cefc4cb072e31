// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues: the one place that publishes CQEs and decides about completion events (contract 6.2, 7.5, 7.6).

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use thiserror::Error;

use super::buffer::GuestBuffer;
use super::bus::Bus;
use super::eq::Event;
use super::users::{Used, Users, Uses};
use mlx5_spec::cq::{CQE_SIZE, cqc, cqe, cqe_sz, opcode, state as cq_state, status};
use mlx5_spec::eq::{eqe_comp, eqe_cq_err, event};
use mlx5_spec::uar::{arm_cmd, cq_arm};

mod late;

use late::{Injected, Late};

/// A CQE could not be written.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum CqError {
    /// The driver has not made room: the CQ is in error, the queue pair goes to ERR (contract 7.5).
    #[error("completion queue {0:#x} overran")]
    Overrun(u32),
    /// The CQ is destroyed, in error or not in guest RAM.
    #[error("completion queue {0:#x} takes no completions")]
    Dead(u32),
}

/// A completion queue keeps its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeError {
    /// Its entries and the one that tells of the change have no room in the one buffer or in the other.
    Full,
    /// It is in error, or its buffer is not in guest RAM.
    Broken,
}

/// A completion queue.
pub struct Cq {
    /// Its number.
    pub cqn: u32,
    /// UAR page whose doorbells it obeys.
    pub uar: u32,
    /// Event queue of its completion events.
    pub eqn: u32,
    /// Queue pairs and shared receive queues that complete into it.
    pub users: Users,
    /// Its event queue.
    pub uses: Uses,
    /// CQC as created, for QUERY_CQ.
    pub context: Mutex<Vec<u8>>,
    ignore_overrun: bool,
    record: u64,
    state: Mutex<State>,
}

/// Where the entries lie.
#[derive(Debug, Default)]
struct Ring {
    log_size: u32,
    /// log2 of the bytes between entries: 6, or 7 for the padded kinds.
    log_stride: u32,
    /// Byte of the 64-byte entry within its stride: 64 for 128-byte CQEs.
    offset: u64,
    /// The lower half is written too, as zeroes.
    padded: bool,
    buffer: GuestBuffer,
}

impl Ring {
    /// `entry` as in [`CqSpec::entry`].
    fn new(log_size: u32, entry: u32, buffer: GuestBuffer) -> Self {
        let (log_stride, offset) = if entry == 0 { (6, 0) } else { (7, CQE_SIZE as u64) };
        Self { log_size, log_stride, offset, padded: entry == cqe_sz::BYTES_128_PADDED, buffer }
    }

    fn size(&self) -> u32 {
        1 << self.log_size
    }

    /// Publishes entry `index`, with its owner bit.
    fn write(&self, bus: &Bus, index: u32, entry: &mut [u8; CQE_SIZE]) -> Result<(), dma::DmaError> {
        cqe::OWNER.set(entry, index >> self.log_size & 1);
        let slot = u64::from(index & (self.size() - 1)) << self.log_stride;
        if self.padded {
            self.buffer.write(&bus.dma, slot, &[0; CQE_SIZE])?;
        }
        self.buffer.publish(&bus.dma, slot + self.offset, entry)
    }
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    producer: u32,
    /// As last read from the doorbell record; wrapping like `producer`.
    consumer: u32,
    /// One more than the index of the newest entry that a solicited-only arm waits for, if there was any.
    solicited: Option<u32>,
    armed: Option<Arm>,
    /// Sequence number of the newest arm.
    sn: u32,
    /// That of the newest arm that has brought its event.
    fired_sn: Option<u32>,
    /// The newest arm as its record has it.
    arm_word: Option<u32>,
    dead: bool,
    error: bool,
    /// Entries that an injection puts off, and those behind them.
    late: VecDeque<Late>,
}

impl State {
    /// Entries that are not consumed, as last looked at. Those that were put off have their place already.
    fn used(&self) -> u32 {
        self.producer.wrapping_add(self.late.len() as u32).wrapping_sub(self.consumer)
    }

    /// The arm brings its event.
    fn disarm(&mut self) {
        self.armed = None;
        self.fired_sn = Some(self.sn);
    }
}

/// What an arm doorbell says (contract 7.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArmDoorbell {
    /// Consumer index, 24 bits.
    pub ci: u32,
    /// Sequence number, 2 bits: drivers count it on after each event.
    pub sn: u32,
    /// Only for the next solicited entry, or error.
    pub solicited_only: bool,
}

impl ArmDoorbell {
    /// As the first dword of the doorbell, and its record, have it.
    pub fn from_word(word: u32) -> Self {
        let bytes = word.to_be_bytes();
        let (ci, sn) = (cq_arm::CI.get(&bytes), cq_arm::CMD_SN.get(&bytes));
        Self { ci, sn, solicited_only: cq_arm::CMD.get(&bytes) == arm_cmd::SOLICITED }
    }

    fn word(self) -> u32 {
        let mut bytes = [0; 4];
        cq_arm::CI.set(&mut bytes, self.ci);
        cq_arm::CMD_SN.set(&mut bytes, self.sn);
        cq_arm::CMD.set(&mut bytes, if self.solicited_only { arm_cmd::SOLICITED } else { 0 });
        u32::from_be_bytes(bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Any,
    Solicited,
}

/// Everything CREATE_CQ decides.
pub struct CqSpec {
    /// UAR page.
    pub uar: u32,
    /// Event queue.
    pub eqn: u32,
    /// log2 of the number of entries.
    pub log_size: u32,
    /// CQC.cqe_sz: 0: 64 bytes; 1 and 2: 128, the entry in the upper half, with 2 the lower one is zeroes. Consumers of either look there (rdma-core and mlx5_ib make no difference).
    pub entry: u32,
    /// CQC.oi.
    pub ignore_overrun: bool,
    /// Guest physical address of the doorbell record.
    pub record: u64,
    /// Entries.
    pub buffer: GuestBuffer,
    /// CQC as created.
    pub context: Vec<u8>,
}

impl Cq {
    /// An empty, unarmed queue.
    pub fn new(cqn: u32, spec: CqSpec) -> Self {
        let CqSpec { uar, eqn, log_size, entry, ignore_overrun, record, buffer, context } = spec;
        let context = Mutex::new(context);
        let state = Mutex::new(State { ring: Ring::new(log_size, entry, buffer), ..State::default() });
        let (users, uses) = (Users::default(), Uses::default());
        Self { cqn, uar, eqn, users, uses, context, ignore_overrun, record, state }
    }

    /// Bytes of a buffer for this geometry.
    pub fn bytes(log_size: u32, entry: u32) -> u64 {
        (if entry == 0 { 64 } else { 128 }) << log_size.min(32)
    }

    /// Publishes one entry; its owner bit and its timestamp are set here. `solicited`: its sender asked for an event, or it is an error.
    ///
    /// The caller is inside a section and has checked there that its queue pair is alive: after 2RST or DESTROY_QP no entry
    /// of the queue pair may appear (contract 6.4).
    pub fn push(&self, bus: &Bus, mut entry: [u8; CQE_SIZE], solicited: bool) -> Result<(), CqError> {
        let mut state = self.state.lock();
        if state.dead || state.error {
            return Err(CqError::Dead(self.cqn));
        }
        if !self.has_room(bus, &mut state) {
            state.error = true;
            drop(state);
            let overrun = Event::new(event::CQ_ERROR, 0).with(eqe_cq_err::CQN, self.cqn);
            bus.async_event(overrun.with(eqe_cq_err::SYNDROME, CQ_OVERRUN));
            return Err(CqError::Overrun(self.cqn));
        }
        // Under the lock, so that stamps ascend with the entries. In error CQEs the vendor's bytes have its place: full dumps of
        // hardware show no time.
        if !matches!(cqe::OPCODE.get(&entry), opcode::REQ_ERR | opcode::RESP_ERR) {
            cqe::TIMESTAMP.set(&mut entry, bus.device_clock());
        }
        let mut fire = false;
        if bus.injections.any() || !state.late.is_empty() {
            match self.injected(bus, &mut state, &entry, solicited) {
                Injected::Kept => return Ok(()),
                Injected::Write { fire: told } => fire = told,
            }
        }
        let written = self.append(bus, &mut state, entry, solicited);
        drop(state);
        if fire | written? {
            self.fire(bus);
        }
        Ok(())
    }

    /// Writes an entry, for which there is room. Whether the event that was asked for is due.
    fn append(
        &self,
        bus: &Bus,
        state: &mut State,
        mut entry: [u8; CQE_SIZE],
        solicited: bool,
    ) -> Result<bool, CqError> {
        state.ring.write(bus, state.producer, &mut entry).map_err(|_| CqError::Dead(self.cqn))?;
        state.producer = state.producer.wrapping_add(1);
        if solicited {
            state.solicited = Some(state.producer);
        }
        let fire = match state.armed {
            Some(Arm::Any) => true,
            Some(Arm::Solicited) => solicited,
            None => false,
        };
        if fire {
            state.disarm();
        }
        Ok(fire)
    }

    /// The arm doorbell. Fires at once when there is already an entry to tell of: a late arm must not lose the wake-up (contract T19).
    /// `strict`: an injection has it ignored if its number has brought an event already.
    pub fn arm(&self, bus: &Bus, doorbell: ArmDoorbell, strict: bool) {
        let ArmDoorbell { ci, sn, solicited_only } = doorbell;
        let mut state = self.state.lock();
        if state.dead || strict && state.fired_sn == Some(sn) {
            return;
        }
        state.sn = sn;
        state.arm_word = Some(doorbell.word());
        let newest = if solicited_only { state.solicited } else { Some(state.producer) };
        // Behind by less than half of the 24-bit space.
        let waiting = newest.is_some_and(|newest| matches!(newest.wrapping_sub(ci) & 0xff_ffff, 1..0x80_0000));
        match (waiting, solicited_only) {
            (true, _) => state.disarm(),
            // Asking for solicited entries too does not take back that any entry was asked for (IBTA 11.4.2.2).
            (false, true) => state.armed = state.armed.or(Some(Arm::Solicited)),
            (false, false) => state.armed = Some(Arm::Any),
        }
        if waiting {
            // Under the lock: whoever destroys the queue waits for it, and for nothing else of a doorbell.
            self.fire(bus);
        }
    }

    /// Its arm doorbell may have been written where it told nobody: looks at the record of it. An arm that came before and has brought its event may
    /// bring another, which drivers take for one that came late.
    pub fn look_at_arm(&self, bus: &Bus, strict: bool) {
        let Some(at) = self.record.checked_add(ARM_RECORD).filter(|at| at.is_multiple_of(4)) else { return };
        let Ok(word) = bus.dma.load::<u32>(at, Ordering::Acquire) else { return };
        let word = u32::from_be(word);
        if self.state.lock().arm_word != Some(word) {
            self.arm(bus, ArmDoorbell::from_word(word), strict);
        }
    }

    /// No entry is written after this returns.
    pub fn kill(&self, bus: &Bus) {
        let mut state = self.state.lock();
        state.dead = true;
        bus.later.give(std::mem::take(&mut state.late).len());
    }

    /// Entries written and, as last looked at, consumed; whether it is in error: for inspection.
    pub fn indices(&self) -> (u32, u32, bool) {
        let state = self.state.lock();
        (state.producer, state.consumer, state.error)
    }

    fn fire(&self, bus: &Bus) {
        if let Some(eq) = bus.eqs.get(self.eqn) {
            eq.push(bus, Event::new(event::COMP, 0).with(eqe_comp::CQN, self.cqn));
        }
    }

    /// Looks at the doorbell record only when the queue seems full.
    fn has_room(&self, bus: &Bus, state: &mut State) -> bool {
        let has_room = |state: &State| state.used() < state.ring.size();
        if self.ignore_overrun || has_room(state) {
            return true;
        }
        self.read_record(bus, state);
        has_room(state)
    }

    /// What the driver has consumed, as its record says; an index that is none leaves things as they were.
    fn read_record(&self, bus: &Bus, state: &mut State) {
        let record = if self.record.is_multiple_of(4) {
            bus.dma.load::<u32>(self.record, Ordering::Acquire)
        } else {
            // A driver that puts it askew gets what it asks for: bytes that need not be of one instant.
            let mut bytes = [0; 4];
            bus.dma.read(self.record, &mut bytes).map(|()| u32::from_ne_bytes(bytes))
        };
        let Ok(record) = record else { return };
        let step = u32::from_be(record).wrapping_sub(state.consumer) & 0xff_ffff;
        if step <= state.producer.wrapping_sub(state.consumer) {
            state.consumer = state.consumer.wrapping_add(step);
        }
    }

    /// QUERY_CQ: what of the context moves by itself.
    pub fn query(&self, bus: &Bus, context: &mut [u8]) {
        let mut state = self.state.lock();
        self.read_record(bus, &mut state);
        cqc::STATUS.set(context, if state.error { status::OVERFLOW } else { status::OK });
        let armed = match state.armed {
            Some(Arm::Any) => cq_state::ARMED,
            Some(Arm::Solicited) => cq_state::SOLICITED_ARMED,
            None => cq_state::FIRED,
        };
        cqc::ST.set(context, armed);
        cqc::PRODUCER_COUNTER.set(context, state.producer);
        cqc::CONSUMER_COUNTER.set(context, state.consumer);
    }

    /// Goes on in another buffer of 1 << `log_size` entries. The last entry in the old one says so, and brings no event: the driver takes
    /// those before it along, each one place further on, which leaves the place of this one to be the first of them.
    pub fn resize(&self, bus: &Bus, log_size: u32, entry: u32, buffer: GuestBuffer) -> Result<(), ResizeError> {
        let mut state = self.state.lock();
        if state.error {
            return Err(ResizeError::Broken);
        }
        if !self.ignore_overrun {
            self.read_record(bus, &mut state);
            if state.used() >= state.ring.size().min(1 << log_size) {
                return Err(ResizeError::Full);
            }
        }
        let mut notice = [0; CQE_SIZE];
        cqe::OPCODE.set(&mut notice, opcode::RESIZE_CQ);
        state.ring.write(bus, state.producer, &mut notice).map_err(|_| ResizeError::Broken)?;
        state.producer = state.producer.wrapping_add(1);
        state.ring = Ring::new(log_size, entry, buffer);
        Ok(())
    }
}

impl Used for Cq {
    fn users(&self) -> &Users {
        &self.users
    }
}

/// Offset of the arm within a doorbell record (`spec::cq::dbr::ARM`).
const ARM_RECORD: u64 = 4;

/// CQ error syndrome of an overrun (contract 7.5, uncertain).
const CQ_OVERRUN: u32 = 1;
