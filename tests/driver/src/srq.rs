// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues, linked lists of WQEs: RMPs and those of XRC (contract 6.5, 7.4).

use parking_lot::Mutex;
use std::sync::Arc;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::srq::{
    XRC_SRQC_SIZE, create_rmp_in, create_rmp_out, create_xrc_srq_in, create_xrc_srq_out, destroy_rmp_in, modify_rmp_in,
    rmp_state, rmpc, wq, xrc_srqc,
};
use mlx5_spec::wqe::srq_next;

use crate::Result;
use crate::command::Input;
use crate::driver::Context;
use crate::memory::Buffer;
use crate::qp::scatter_list;
use crate::wqe::Sge;

/// log2 of a WQE's bytes: the next segment and three data segments.
const LOG_STRIDE: u32 = 6;

/// How a shared receive queue of XRC is made.
#[derive(Debug, Clone, Copy)]
pub struct XrcSpec {
    /// Protection domain of its lists, and of what its messages name.
    pub pd: u32,
    /// XRC domain.
    pub xrcd: u32,
    /// Completion queue of what it receives.
    pub cqn: u32,
    /// Value for CQEs.
    pub user_index: u32,
}

/// A shared receive queue.
pub struct Srq {
    /// Its number.
    pub srqn: u32,
    /// The WQEs, 64 bytes each.
    pub buffer: Buffer,
    context: Arc<Context>,
    log_size: u32,
    record: u64,
    /// DESTROY_RMP or DESTROY_XRC_SRQ; both name the queue at the same place.
    end: Opcode,
    state: Mutex<State>,
}

struct State {
    posted: u16,
    /// Next free WQE, and the one behind which freed ones are linked.
    head: u16,
    tail: u16,
}

impl Srq {
    /// CREATE_RMP with 2^`log_size` WQEs of three segments; all linked, none posted. One stays behind as the list's tail.
    pub fn create(context: &Arc<Context>, pd: u32, log_size: u32) -> Result<Self> {
        let (buffer, record) = memory(context, log_size);
        let at = create_rmp_in::RMPC;
        let wq_at = at + rmpc::WQ;
        let input = Input::new(Opcode::CREATE_RMP, create_rmp_in::SIZE)
            .with(rmpc::STATE.plus(at), rmp_state::RDY)
            .with(wq::PD.plus(wq_at), pd)
            .with(wq::LOG_WQ_STRIDE.plus(wq_at), LOG_STRIDE)
            .with(wq::LOG_WQ_SZ.plus(wq_at), log_size)
            .bytes(wq_at + wq::DBR_ADDR.0, &record.to_be_bytes())
            .list(&buffer.pages);
        let srqn = create_rmp_out::RMPN.get(&context.command(input)?);
        Ok(Self::linked(context, srqn, Opcode::DESTROY_RMP, log_size, buffer, record))
    }

    /// CREATE_XRC_SRQ, the same otherwise.
    pub fn create_xrc(context: &Arc<Context>, spec: XrcSpec, log_size: u32) -> Result<Self> {
        let (buffer, record) = memory(context, log_size);
        let mut c = vec![0; XRC_SRQC_SIZE];
        xrc_srqc::LOG_XRC_SRQ_SIZE.set(&mut c, log_size);
        // In units of 16 bytes.
        xrc_srqc::LOG_RQ_STRIDE.set(&mut c, LOG_STRIDE - 4);
        xrc_srqc::XRCD.set(&mut c, spec.xrcd);
        xrc_srqc::CQN.set(&mut c, spec.cqn);
        xrc_srqc::PD.set(&mut c, spec.pd);
        xrc_srqc::USER_INDEX.set(&mut c, spec.user_index);
        xrc_srqc::DBR_ADDR.set(&mut c, record);
        let input = Input::new(Opcode::CREATE_XRC_SRQ, create_xrc_srq_in::SIZE)
            .bytes(create_xrc_srq_in::XRC_SRQC, &c)
            .list(&buffer.pages);
        let srqn = create_xrc_srq_out::XRC_SRQN.get(&context.command(input)?);
        Ok(Self::linked(context, srqn, Opcode::DESTROY_XRC_SRQ, log_size, buffer, record))
    }

    fn linked(context: &Arc<Context>, srqn: u32, end: Opcode, log_size: u32, buffer: Buffer, record: u64) -> Self {
        let last = (1u16 << log_size) - 1;
        let state = Mutex::new(State { posted: 0, head: 0, tail: last });
        let srq = Self { srqn, buffer, context: context.clone(), log_size, record, end, state };
        for index in 0..=last {
            srq.link(index, (index + 1) & last);
        }
        srq
    }

    /// DESTROY_RMP or DESTROY_XRC_SRQ.
    pub fn destroy(&self) -> Result<()> {
        let input = Input::new(self.end, destroy_rmp_in::SIZE).with(destroy_rmp_in::RMPN, self.srqn);
        self.context.command(input).map(|_| ())
    }

    /// MODIFY_RMP: an event when fewer than `limit` WQEs are left.
    pub fn set_limit(&self, limit: u32) -> Result<()> {
        let wq_at = modify_rmp_in::RMPC + rmpc::WQ;
        let input = Input::new(Opcode::MODIFY_RMP, modify_rmp_in::SIZE)
            .with(modify_rmp_in::RMP_STATE, rmp_state::RDY)
            .with(modify_rmp_in::RMPN, self.srqn)
            .with(modify_rmp_in::BITMASK_LWM, 1)
            .with(wq::LWM.plus(wq_at), limit);
        self.context.command(input).map(|_| ())
    }

    /// Posts a WQE of up to three pieces; its index comes back in the CQE. `None`: the list has only its tail left.
    pub fn post(&self, list: &[Sge]) -> Option<u16> {
        let mut state = self.state.lock();
        let index = state.head;
        if index == state.tail {
            return None;
        }
        let at = self.at(index);
        self.buffer.write(at + srq_next::SIZE as u64, &scatter_list(list, (1 << LOG_STRIDE) - srq_next::SIZE));
        let mut next = [0; srq_next::SIZE];
        self.buffer.read(at, &mut next);
        state.head = srq_next::NEXT_WQE_INDEX.get(&next) as u16;
        state.posted = state.posted.wrapping_add(1);
        self.context.machine.guest.publish_u32(self.record, u32::from(state.posted));
        Some(index)
    }

    /// The WQE of a completion is free: it goes behind the tail.
    pub fn release(&self, index: u16) {
        let mut state = self.state.lock();
        self.link(state.tail, index);
        state.tail = index;
    }

    /// Writes a WQE's link as it pleases.
    pub fn link(&self, index: u16, next: u16) {
        let mut segment = [0; 4];
        srq_next::NEXT_WQE_INDEX.set(&mut segment, u32::from(next));
        self.buffer.write(self.at(index), &segment);
    }

    fn at(&self, index: u16) -> u64 {
        u64::from(index & ((1 << self.log_size) - 1)) << LOG_STRIDE
    }
}

/// WQEs and doorbell record.
fn memory(context: &Context, log_size: u32) -> (Buffer, u64) {
    let guest = &context.machine.guest;
    let record = guest.page();
    guest.write(record, &[0; 8]);
    (guest.scattered(1 << (log_size + LOG_STRIDE)), record)
}
