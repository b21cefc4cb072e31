// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues as their consumer sees them (contract 6.2, 7.5, 7.6).

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;

use dma::Backoff;
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{
    CQE_SIZE, cqc, cqe, create_in, create_out, dbr, destroy_in, modify_in, modify_op_mod, opcode, resize_select,
    syndrome,
};
use mlx5_spec::uar;
use probe::Patience;

use crate::command::Input;
use crate::devx::Place;
use crate::driver::Context;
use crate::memory::Buffer;
use crate::{Error, PATIENCE, Result};

/// One completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cqe {
    /// As it lay in the queue.
    pub bytes: [u8; CQE_SIZE],
}

impl Cqe {
    /// `spec::cq::opcode`.
    pub fn opcode(&self) -> u32 {
        cqe::OPCODE.get(&self.bytes)
    }

    /// Whether it tells of an error.
    pub fn is_error(&self) -> bool {
        matches!(self.opcode(), opcode::REQ_ERR | opcode::RESP_ERR)
    }

    /// `spec::cq::syndrome`; only in errors.
    pub fn syndrome(&self) -> u32 {
        cqe::SYNDROME.get(&self.bytes)
    }

    /// Queue pair.
    pub fn qpn(&self) -> u32 {
        cqe::QPN.get(&self.bytes)
    }

    /// Block index, RQ counter or SRQ WQE index.
    pub fn wqe_counter(&self) -> u16 {
        cqe::WQE_COUNTER.get(&self.bytes) as u16
    }

    /// Bytes received or read.
    pub fn byte_count(&self) -> u32 {
        cqe::BYTE_CNT.get(&self.bytes)
    }

    /// Immediate, invalidated key or P_Key.
    pub fn immediate(&self) -> u32 {
        cqe::IMM_INVAL_PKEY.get(&self.bytes)
    }

    /// Opcode and, in errors, syndrome: what most tests compare.
    pub fn outcome(&self) -> (u32, u32) {
        (self.opcode(), if self.is_error() { self.syndrome() } else { 0 })
    }
}

impl std::fmt::Debug for Cqe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (qpn, counter, bytes) = (self.qpn(), self.wqe_counter(), self.byte_count());
        match self.is_error() {
            true => {
                let name = syndrome::name(self.syndrome()).unwrap_or("unknown syndrome");
                let side = opcode::name(self.opcode()).unwrap_or("?");
                write!(f, "CQE {side} {name} ({:#x}) QPN {qpn:#x} WQE {counter}", self.syndrome())
            }
            false => {
                let name = opcode::name(self.opcode()).unwrap_or("?");
                write!(f, "CQE {name} QPN {qpn:#x} WQE {counter} {bytes} bytes")
            }
        }
    }
}

/// How a completion queue is made.
#[derive(Debug, Clone, Copy)]
pub struct CqSpec {
    /// log2 of its entries.
    pub log_size: u32,
    /// UAR page.
    pub uar: u32,
    /// Event queue of its completion events.
    pub eqn: u32,
    /// CQC.oi.
    pub ignore_overrun: bool,
}

/// A completion queue.
pub struct Cq {
    /// Its number.
    pub cqn: u32,
    /// UAR page for arming.
    pub uar: u32,
    /// Guest physical address of the doorbell record.
    pub record: u64,
    context: Arc<Context>,
    state: Mutex<State>,
}

struct State {
    log_size: u32,
    buffer: Buffer,
    consumer: u32,
    arm_sn: u32,
}

impl Cq {
    /// CREATE_CQ.
    pub fn create(context: &Arc<Context>, spec: CqSpec) -> Result<Arc<Self>> {
        let guest = &context.machine.guest;
        let buffer = empty(context, spec.log_size);
        let record = guest.page();
        guest.write(record, &[0; dbr::SIZE]);
        let at = create_in::CQC;
        let input = Input::new(Opcode::CREATE_CQ, create_in::SIZE)
            .with(cqc::LOG_CQ_SIZE.plus(at), spec.log_size)
            .with(cqc::UAR_PAGE.plus(at), spec.uar)
            .with(cqc::C_EQN.plus(at), spec.eqn)
            .with(cqc::OI.plus(at), u32::from(spec.ignore_overrun))
            .bytes(at + cqc::DBR_ADDR.0, &record.to_be_bytes())
            .list(&buffer.pages);
        let place = Place {
            valid: create_in::CQ_UMEM_VALID,
            id: create_in::CQ_UMEM_ID,
            record_valid: cqc::DBR_UMEM_VALID.plus(at),
            record_id: cqc::DBR_UMEM_ID.plus(at),
            record: at + cqc::DBR_ADDR.0,
        };
        let input = context.place(input, &place, &buffer, record)?;
        let cqn = create_out::CQN.get(&context.command(input)?);
        let CqSpec { log_size, uar, .. } = spec;
        let context = context.clone();
        let state = Mutex::new(State { log_size, buffer, consumer: 0, arm_sn: 0 });
        Ok(Arc::new(Self { cqn, uar, context, record, state }))
    }

    /// MODIFY_CQ with op_mod RESIZE: goes on in a buffer of 1 << `log_size` entries. Takes along what is not consumed, as drivers do: up to
    /// the entry that tells of the change, each one place further on.
    pub fn resize(&self, log_size: u32) -> Result<()> {
        let mut state = self.lock();
        let buffer = empty(&self.context, log_size);
        let at = modify_in::CQC;
        let input = Input::new(Opcode::MODIFY_CQ, modify_in::SIZE)
            .op_mod(modify_op_mod::RESIZE)
            .with(modify_in::CQN, self.cqn)
            .with(modify_in::FIELD_SELECT, resize_select::LOG_SIZE)
            .with(cqc::LOG_CQ_SIZE.plus(at), log_size)
            .list(&buffer.pages);
        self.context.command(input)?;
        let mut next = State { log_size, buffer, consumer: state.consumer, arm_sn: state.arm_sn };
        loop {
            let Some(cqe) = self.peek(&state) else {
                return Err(Error::Timeout("the entry that tells of the new size"));
            };
            state.consumer = state.consumer.wrapping_add(1);
            if cqe.opcode() == opcode::RESIZE_CQ {
                break;
            }
            let mut bytes = cqe.bytes;
            cqe::OWNER.set(&mut bytes, state.consumer >> log_size & 1);
            next.buffer.write(at_index(log_size, state.consumer), &bytes);
        }
        next.consumer = next.consumer.wrapping_add(1);
        *state = next;
        Ok(())
    }

    /// DESTROY_CQ.
    pub fn destroy(&self) -> Result<()> {
        let input = Input::new(Opcode::DESTROY_CQ, destroy_in::SIZE).with(destroy_in::CQN, self.cqn);
        self.context.command(input).map(|_| ())
    }

    /// The next completion, if there is one; the device learns that its entry is free.
    pub fn poll(&self) -> Option<Cqe> {
        let mut state = self.lock();
        let cqe = self.peek(&state)?;
        state.consumer = state.consumer.wrapping_add(1);
        self.context.machine.guest.publish_u32(self.record, state.consumer & 0xff_ffff);
        Some(cqe)
    }

    /// Takes whatever has come without looking at it; how many, and whether all were good.
    pub fn drain(&self) -> (u32, bool) {
        let mut state = self.lock();
        let (mut count, mut good) = (0, true);
        while let Some(op_own) = self.op_own(&state) {
            good &= !matches!(u32::from(op_own >> 4), opcode::REQ_ERR | opcode::RESP_ERR);
            state.consumer = state.consumer.wrapping_add(1);
            count += 1;
        }
        if count > 0 {
            self.context.machine.guest.publish_u32(self.record, state.consumer & 0xff_ffff);
        }
        (count, good)
    }

    /// Whether there is a completion; it stays.
    pub fn has_entry(&self) -> bool {
        self.peek(&self.lock()).is_some()
    }

    /// The next completion, of whatever kind.
    pub fn wait(&self) -> Result<Cqe> {
        self.wait_for(PATIENCE)
    }

    /// The same, with a time.
    pub fn wait_for(&self, timeout: Duration) -> Result<Cqe> {
        let (mut backoff, mut patience) = (Backoff::new(), Patience::new(timeout));
        loop {
            if let Some(cqe) = self.poll() {
                return Ok(cqe);
            }
            if patience.is_over() {
                return Err(Error::Timeout("completion"));
            }
            backoff.pause();
        }
    }

    /// The next completion, which must be a good one.
    pub fn wait_ok(&self) -> Result<Cqe> {
        let cqe = self.wait()?;
        if cqe.is_error() { Err(Error::Completion(Box::new(cqe))) } else { Ok(cqe) }
    }

    /// Asks for an event for what comes next, or has come since the last poll.
    pub fn arm(&self, solicited_only: bool) {
        let mut state = self.lock();
        let (sn, ci) = (state.arm_sn, state.consumer);
        state.arm_sn += 1;
        self.arm_by_hand(sn, ci, solicited_only);
    }

    /// The same with a sequence number and a consumer index of one's own.
    pub fn arm_by_hand(&self, sn: u32, ci: u32, solicited_only: bool) {
        let mut bytes = [0; 8];
        uar::cq_arm::CMD_SN.set(&mut bytes, sn);
        uar::cq_arm::CMD.set(&mut bytes, u32::from(solicited_only));
        uar::cq_arm::CI.set(&mut bytes, ci);
        uar::cq_arm::CQN.set(&mut bytes, self.cqn);
        let record = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.context.machine.guest.publish_u32(self.record + 4, record);
        self.context.doorbell(self.uar, uar::CQ_ARM, bytes);
    }

    fn peek(&self, state: &State) -> Option<Cqe> {
        self.op_own(state)?;
        let mut bytes = [0; CQE_SIZE];
        state.buffer.read(at_index(state.log_size, state.consumer), &mut bytes);
        Some(Cqe { bytes })
    }

    /// The last byte of the next entry, if the entry is the driver's.
    fn op_own(&self, state: &State) -> Option<u8> {
        let at = state.buffer.gpa(at_index(state.log_size, state.consumer) + cqe::OP_OWN as u64);
        let op_own = self.context.machine.guest.observe_u8(at);
        let valid =
            op_own >> 4 != opcode::INVALID as u8 && u32::from(op_own & 1) == state.consumer >> state.log_size & 1;
        valid.then_some(op_own)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Where entry `index` lies.
fn at_index(log_size: u32, index: u32) -> u64 {
    u64::from(index & ((1 << log_size) - 1)) * CQE_SIZE as u64
}

/// A buffer of entries that are none.
fn empty(context: &Context, log_size: u32) -> Buffer {
    let buffer = context.machine.guest.scattered((CQE_SIZE as u64) << log_size);
    for entry in 0..1u64 << log_size {
        buffer.write(entry * CQE_SIZE as u64 + cqe::OP_OWN as u64, &[(opcode::INVALID << 4 | 1) as u8]);
    }
    buffer
}
