// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DC targets: what any number of DC initiators send to. One has a queue pair's number and rights, receives from a shared queue, and never
//! sends.

use super::CommandError;
use super::fields;
use super::qp::remove;
use super::request::{Reply, Request};
use crate::buffer::GuestBuffer;
use crate::eq::Event;
use crate::qp::{Qp, QpAttrs, QpSpec, QueueLayout};
use crate::srq::SrqKind;
use mlx5_spec::eq::{eqe_qp_srq, event, queue_type};
use mlx5_spec::qp::{create_dct_in, dct, dctc, mtu, query_dct_out, service_type, state};
use std::sync::Arc;

/// CREATE_DCT: it takes messages at once.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_dct_in::DCTC, dctc::SIZE)?;
    request.refuse(fields::DCTC, create_dct_in::DCTC)?;
    let hca = request.hca;
    let mut uses = Vec::new();
    let pd = request.pd(dctc::PD.get(context), &mut uses)?;
    let recv_cq = request.hold_any(&hca.cqs, "CQ", dctc::CQN.get(context), &mut uses)?;
    let number = dctc::SRQN_XRQN.get(context);
    let srq = request.hold_any(&hca.srqs, "SRQ", number, &mut uses)?;
    if srq.kind == SrqKind::Xrc {
        return Err(CommandError::NoSuch { what: "SRQ of this kind", number });
    }
    let code = dctc::MTU.get(context);
    if !(mtu::BYTES_256..=mtu::BYTES_4096).contains(&code) {
        return Err(CommandError::Param("MTU code is 1 to 5"));
    }
    let counters = match dctc::COUNTER_SET_ID.get(context) {
        0 => None,
        id => Some(request.hold_any(&hca.q_counters, "set of Q counters", id, &mut uses)?),
    };
    let attrs = QpAttrs {
        incarnation: request.settings.incarnation(),
        state: state::RTR,
        pd,
        recv_cq: Some(recv_cq),
        srq: Some(srq),
        mtu: 128 << code,
        remote_read: dctc::RRE.is_set(context),
        remote_write: dctc::RWE.is_set(context),
        remote_atomic: dctc::RAE.is_set(context),
        min_rnr_nak: dctc::MIN_RNR_NAK.get(context) as u8,
        pkey_index: dctc::PKEY_INDEX.get(context) as u16,
        dc_key: dctc::DC_ACCESS_KEY.get(context),
        counters,
        ..QpAttrs::default()
    };
    let spec = QpSpec {
        service: service_type::DCT,
        user_index: dctc::USER_INDEX.get(context),
        uar: 0,
        layout: QueueLayout::default(),
        buffer: GuestBuffer::default(),
        context: context.to_vec(),
        attrs,
    };
    let target = request.insert(&hca.qps, "DC target", |dctn| Qp::new(dctn, spec))?;
    target.uses.replace(uses);
    Ok(Reply::new(dct::SIZE).with(dct::DCTN, target.qpn))
}

fn find(request: &Request<'_>, number: u32) -> Result<Arc<Qp>, CommandError> {
    let found = request.find(&request.hca.qps, "DC target", number)?;
    if found.service == service_type::DCT { Ok(found) } else { Err(CommandError::NoSuch { what: "DC target", number }) }
}

/// DRAIN_DCT: nothing new is taken from now on, and an event tells when nothing is left, which is at once.
pub fn drain(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let target = find(request, request.get(dct::DCTN))?;
    request.hca.change_qp(&target, |attrs| attrs.state = state::RST);
    let drained = Event::new(event::DCT_DRAINED, 0).with(eqe_qp_srq::TYPE, queue_type::DCT);
    request.hca.async_event(drained.with(eqe_qp_srq::QP_SRQ_N, target.qpn));
    Ok(Reply::ok())
}

/// DESTROY_DCT. Drivers drain it before.
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let target = find(request, request.get(dct::DCTN))?;
    remove(request.hca, &target);
    Ok(Reply::ok())
}

/// QUERY_DCT.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    /// ACTIVE and DRAINED.
    const STATES: [u32; 2] = [0, 2];
    let target = find(request, request.get(dct::DCTN))?;
    let mut context = target.context.lock().clone();
    dctc::STATE.set(&mut context, STATES[usize::from(target.attrs().state != state::RTR)]);
    Ok(Reply::new(query_dct_out::SIZE).with_bytes(query_dct_out::DCTC, &context))
}
