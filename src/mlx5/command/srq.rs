// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queue commands: RMP and XRC SRQ with ISSI 1, SRQ with ISSI 0. One number space (contract 6.5, D5).
//!
//! A basic SRQ's context is laid out like an XRC SRQ's.

use std::sync::Arc;

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most};
use crate::buffer::GuestBuffer;
use crate::engine::read_record;
use crate::eq::About;
use crate::hca::Hca;
use crate::later;
use crate::limits::{LOG_MAX_SRQ_SIZE, MAX_RECV_WQE};
use crate::srq::{Srq, SrqKind, SrqState};
use crate::users::{Use, Users, Uses};
use mlx5_spec::srq::{
    MIN_STRIDE, RMPC_SIZE, XRC_SRQC_SIZE, arm_xrc_srq_in, create_rmp_in, create_rmp_out, create_xrc_srq_in,
    create_xrc_srq_out, destroy_rmp_in, destroy_xrc_srq_in, modify_rmp_in, query_rmp_in, query_rmp_out,
    query_xrc_srq_in, query_xrc_srq_out, rmp_state, rmpc, wq, xrc_srqc,
};

type Outcome = Result<Reply, CommandError>;

/// What the three kinds of contexts say alike.
struct Geometry {
    log_size: u32,
    /// log2 of bytes.
    log_stride: u32,
    log_page: u32,
    page_offset: u32,
}

impl Geometry {
    fn buffer(&self, request: &Request<'_>, list: usize) -> Result<GuestBuffer, CommandError> {
        at_most(self.log_size, LOG_MAX_SRQ_SIZE, "SRQ size")?;
        if !(MIN_STRIDE as u64..=u64::from(MAX_RECV_WQE)).contains(&(1 << self.log_stride)) {
            return Err(CommandError::Param("an SRQ's WQE has 32 to 512 bytes"));
        }
        request.buffer(list, self.log_page, self.page_offset, 1 << (self.log_size + self.log_stride))
    }
}

fn insert(request: &Request<'_>, uses: Vec<Use>, make: impl FnOnce(u32) -> Srq) -> Result<u32, CommandError> {
    let srq = request.insert(&request.hca.srqs, "SRQ", make)?;
    srq.uses.replace(uses);
    Ok(srq.srqn)
}

/// CREATE_RMP.
pub fn create_rmp(request: &mut Request<'_>) -> Outcome {
    let context = request.part(create_rmp_in::RMPC, RMPC_SIZE)?;
    let queue = context.get(rmpc::WQ..).unwrap_or_default();
    request.refuse(fields::RMPC, create_rmp_in::RMPC)?;
    request.refuse(fields::WQ, create_rmp_in::RMPC + rmpc::WQ)?;
    let geometry = Geometry {
        log_size: wq::LOG_WQ_SZ.get(queue),
        log_stride: wq::LOG_WQ_STRIDE.get(queue),
        log_page: wq::LOG_WQ_PG_SZ.get(queue),
        page_offset: wq::PAGE_OFFSET.get(queue),
    };
    let mut uses = Vec::new();
    let pd = request.pd(wq::PD.get(queue), &mut uses)?;
    let buffer = geometry.buffer(request, create_rmp_in::PAS)?;
    let limit = wq::LWM.get(queue) as u16;
    let srqn = insert(request, uses, |srqn| Srq {
        srqn,
        kind: SrqKind::Rmp,
        pd,
        user_index: 0,
        xrcd: 0,
        cqn: 0,
        log_size: geometry.log_size,
        log_stride: geometry.log_stride,
        record: wq::DBR_ADDR.get(queue),
        buffer,
        users: Users::default(),
        uses: Uses::default(),
        context: context.to_vec().into(),
        state: SrqState { limit, ..SrqState::default() }.into(),
    })?;
    Ok(Reply::new(create_rmp_out::SIZE).with(create_rmp_out::RMPN, srqn))
}

/// CREATE_XRC_SRQ.
pub fn create_xrc(request: &mut Request<'_>) -> Outcome {
    let context = request.part(create_xrc_srq_in::XRC_SRQC, XRC_SRQC_SIZE)?;
    let mut uses = Vec::new();
    request.hold_any(&request.hca.xrcds, "XRC domain", xrc_srqc::XRCD.get(context), &mut uses)?;
    request.hold_any(&request.hca.cqs, "CQ", xrc_srqc::CQN.get(context), &mut uses)?;
    create_srq(request, SrqKind::Xrc, context, uses)
}

/// CREATE_SRQ.
pub fn create_basic(request: &mut Request<'_>) -> Outcome {
    let context = request.part(create_xrc_srq_in::XRC_SRQC, XRC_SRQC_SIZE)?;
    create_srq(request, SrqKind::Basic, context, Vec::new())
}

fn create_srq(request: &mut Request<'_>, kind: SrqKind, context: &[u8], mut uses: Vec<Use>) -> Outcome {
    request.refuse_umem(create_xrc_srq_in::XRC_SRQ_UMEM_VALID)?;
    request.refuse(fields::XRC_SRQC, create_xrc_srq_in::XRC_SRQC)?;
    let geometry = Geometry {
        log_size: xrc_srqc::LOG_XRC_SRQ_SIZE.get(context),
        // 16 << n bytes here.
        log_stride: xrc_srqc::LOG_RQ_STRIDE.get(context) + 4,
        log_page: xrc_srqc::LOG_PAGE_SIZE.get(context),
        page_offset: xrc_srqc::PAGE_OFFSET.get(context),
    };
    let pd = request.pd(xrc_srqc::PD.get(context), &mut uses)?;
    let buffer = geometry.buffer(request, create_xrc_srq_in::PAS)?;
    let limit = xrc_srqc::LWM.get(context) as u16;
    let srqn = insert(request, uses, |srqn| Srq {
        srqn,
        kind,
        pd,
        user_index: xrc_srqc::USER_INDEX.get(context),
        xrcd: xrc_srqc::XRCD.get(context),
        cqn: xrc_srqc::CQN.get(context),
        log_size: geometry.log_size,
        log_stride: geometry.log_stride,
        record: xrc_srqc::DBR_ADDR.get(context),
        buffer,
        users: Users::default(),
        uses: Uses::default(),
        context: context.to_vec().into(),
        state: SrqState { limit, ..SrqState::default() }.into(),
    })?;
    Ok(Reply::new(create_xrc_srq_out::SIZE).with(create_xrc_srq_out::XRC_SRQN, srqn))
}

fn of_kind(request: &Request<'_>, kind: SrqKind, number: u32) -> Result<Arc<Srq>, CommandError> {
    let srq = request.find(&request.hca.srqs, "SRQ", number)?;
    if srq.kind == kind { Ok(srq) } else { Err(CommandError::NoSuch { what: "SRQ of this kind", number }) }
}

fn destroy(request: &Request<'_>, kind: SrqKind, number: u32) -> Outcome {
    of_kind(request, kind, number)?;
    let hca = request.hca;
    let srq = request.take(&hca.srqs, "SRQ", number)?;
    srq.uses.end();
    srq.state.lock().dead = true;
    // XRC messages name their SRQ themselves: one may be under way.
    hca.quiesce.wait();
    later::forget(hca, About::Srq(number));
    Ok(Reply::ok())
}

/// DESTROY_RMP.
pub fn destroy_rmp(request: &mut Request<'_>) -> Outcome {
    destroy(request, SrqKind::Rmp, request.get(destroy_rmp_in::RMPN))
}

/// DESTROY_XRC_SRQ.
pub fn destroy_xrc(request: &mut Request<'_>) -> Outcome {
    destroy(request, SrqKind::Xrc, request.get(destroy_xrc_srq_in::XRC_SRQN))
}

/// DESTROY_SRQ.
pub fn destroy_basic(request: &mut Request<'_>) -> Outcome {
    destroy(request, SrqKind::Basic, request.get(destroy_xrc_srq_in::XRC_SRQN))
}

/// MODIFY_RMP: the limit.
pub fn modify_rmp(request: &mut Request<'_>) -> Outcome {
    let srq = of_kind(request, SrqKind::Rmp, request.get(modify_rmp_in::RMPN))?;
    if request.get(modify_rmp_in::RMP_STATE) != rmp_state::RDY {
        return Err(CommandError::Param("an RMP stays ready"));
    }
    if request.get(modify_rmp_in::BITMASK_LWM) != 0 {
        set_limit(request.hca, &srq, request.get(wq::LWM.plus(modify_rmp_in::RMPC + rmpc::WQ)))?;
    }
    Ok(Reply::ok())
}

/// ARM_XRC_SRQ and ARM_RQ.
pub fn arm(request: &mut Request<'_>) -> Outcome {
    let srq = request.find(&request.hca.srqs, "SRQ", request.get(arm_xrc_srq_in::XRC_SRQN))?;
    set_limit(request.hca, &srq, request.get(arm_xrc_srq_in::LWM))?;
    Ok(Reply::ok())
}

fn set_limit(hca: &Hca, srq: &Srq, limit: u32) -> Result<(), CommandError> {
    if limit > 1 << srq.log_size {
        return Err(CommandError::Param("the limit is beyond the SRQ's size"));
    }
    srq.arm(hca, limit as u16);
    Ok(())
}

/// QUERY_RMP.
pub fn query_rmp(request: &mut Request<'_>) -> Outcome {
    let srq = of_kind(request, SrqKind::Rmp, request.get(query_rmp_in::RMPN))?;
    let mut context = srq.context.lock().clone();
    rmpc::STATE.set(&mut context, rmp_state::RDY);
    let state = srq.state.lock();
    wq::LWM.plus(rmpc::WQ).set(&mut context, u32::from(state.limit));
    wq::HW_COUNTER.plus(rmpc::WQ).set(&mut context, u32::from(state.taken));
    if let Some(posted) = read_record(request.hca, srq.record) {
        wq::SW_COUNTER.plus(rmpc::WQ).set(&mut context, u32::from(posted));
    }
    Ok(Reply::new(query_rmp_out::SIZE).with_bytes(query_rmp_out::RMPC, &context))
}

/// QUERY_XRC_SRQ.
pub fn query_xrc(request: &mut Request<'_>) -> Outcome {
    query_srq(request, SrqKind::Xrc)
}

/// QUERY_SRQ.
pub fn query_basic(request: &mut Request<'_>) -> Outcome {
    query_srq(request, SrqKind::Basic)
}

fn query_srq(request: &mut Request<'_>, kind: SrqKind) -> Outcome {
    let srq = of_kind(request, kind, request.get(query_xrc_srq_in::XRC_SRQN))?;
    let mut context = srq.context.lock().clone();
    xrc_srqc::LWM.set(&mut context, u32::from(srq.state.lock().limit));
    Ok(Reply::new(query_xrc_srq_out::SIZE).with_bytes(query_xrc_srq_out::XRC_SRQC, &context))
}
