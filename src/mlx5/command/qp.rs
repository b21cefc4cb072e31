// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CREATE_QP, DESTROY_QP, QUERY_QP (contract 6.3). The transitions are in [`super::qp_modify`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::CommandError;
use super::fields;
use super::request::{QueuePlace, Reply, Request, at_most};
use crate::buffer::GuestBuffer;
use crate::cq::Cq;
use crate::hca::Hca;
use crate::limits::{LOG_MAX_QP_SIZE, MAX_RECV_WQE};
use crate::q_counters::QCounters;
use crate::qp::{Qp, QpAttrs, QpSpec, QueueLayout};
use crate::srq::{Srq, SrqKind};
use crate::users::Use;
use mlx5_spec::bits::Field;
use mlx5_spec::caps::cmd_hca_cap;
use mlx5_spec::qp::{
    PRIMARY_PATH, QPC_SIZE, SQ_BLOCK_SIZE, ads, create_in, create_out, destroy_in, mtu, qpc, query_in, query_out,
    rq_type, service_type,
};

/// Services that can be created.
const SERVICES: [u32; 8] = [
    service_type::RC,
    service_type::UC,
    service_type::UD,
    service_type::XRC,
    service_type::DCI,
    service_type::QP0,
    service_type::QP1,
    service_type::REG_UMR,
];

/// CREATE_QP: a queue pair in RST.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::QPC, QPC_SIZE)?;
    refuse(request, create_in::QPC)?;
    refuse_ece(request, create_in::ECE)?;
    let service = qpc::ST.get(context);
    if !SERVICES.contains(&service) {
        return Err(CommandError::Param("service type is not offered"));
    }
    let layout = layout(context)?;
    // What the driver has set may be less than there is room for.
    if request.hca.qps.len() >> request.settings.caps.general(cmd_hca_cap::LOG_MAX_QP) != 0 {
        return Err(CommandError::Exhausted("queue pair"));
    }
    let uar = qpc::UAR_PAGE.get(context);
    let named = Named::find(request, context, true)?;
    let mut umem = Vec::new();
    let buffer = work_queues(request, context, &layout, &mut umem)?;
    let mut attrs = QpAttrs { incarnation: request.settings.incarnation(), ..QpAttrs::default() };
    load(&mut attrs, context, &named);
    let spec = QpSpec {
        service,
        user_index: qpc::USER_INDEX.get(context),
        uar,
        layout,
        buffer,
        context: context.to_vec(),
        attrs,
    };
    let qp = request.insert(&request.hca.qps, "queue pair", |qpn| Qp::new(qpn, spec))?;
    qp.uses.replace(named.uses);
    qp.lies_in.replace(umem);
    if qp.layout.log_sq_size.is_some() {
        request.doorbells.populate(uar, true);
    }
    if let Some(slot) = special_slot(service) {
        request.hca.special.lock()[slot] = Some(qp.qpn);
    }
    Ok(Reply::new(create_out::SIZE).with(create_out::QPN, qp.qpn))
}

/// What is not offered, in a context at byte `at`: the same at CREATE and in every transition.
pub fn refuse(request: &Request<'_>, at: usize) -> Result<(), CommandError> {
    request.refuse(fields::QPC, at)?;
    request.refuse(fields::ADS, at + PRIMARY_PATH)
}

/// Enhanced connection establishment: what a peer offers is agreed to only where it is offered.
pub fn refuse_ece(request: &Request<'_>, ece: Field) -> Result<(), CommandError> {
    if request.get(ece) != 0 { Err(CommandError::Param("ECE is not offered")) } else { Ok(()) }
}

/// QP0 and QP1 have ordinary QPNs; packets find them by their place here (contract 6.3).
fn special_slot(service: u32) -> Option<usize> {
    match service {
        service_type::QP0 => Some(0),
        service_type::QP1 => Some(1),
        _ => None,
    }
}

/// Where the queues lie (contract 7.2).
fn layout(context: &[u8]) -> Result<QueueLayout, CommandError> {
    let kind = qpc::RQ_TYPE.get(context);
    if ![rq_type::REGULAR, rq_type::SRQ, rq_type::ZERO_SIZE].contains(&kind) {
        return Err(CommandError::Param("receive queue type is not offered"));
    }
    let own_rq = kind == rq_type::REGULAR;
    let log_rq_size = at_most(qpc::LOG_RQ_SIZE.get(context), LOG_MAX_QP_SIZE, "RQ size")?;
    let log_sq_size = at_most(qpc::LOG_SQ_SIZE.get(context), LOG_MAX_QP_SIZE, "SQ size")?;
    let log_rq_stride = qpc::LOG_RQ_STRIDE.get(context) + 4;
    if own_rq && 1 << log_rq_stride > MAX_RECV_WQE {
        return Err(CommandError::Limit("receive WQE size"));
    }
    Ok(QueueLayout {
        log_rq_size: own_rq.then_some(log_rq_size),
        log_rq_stride,
        signed: qpc::WQ_SIGNATURE.is_set(context),
        log_sq_size: (!qpc::NO_SQ.is_set(context)).then_some(log_sq_size),
        sq_offset: if own_rq { 1 << (log_rq_size + log_rq_stride) } else { 0 },
    })
}

const PLACE: QueuePlace = QueuePlace {
    valid: create_in::WQ_UMEM_VALID,
    id: create_in::WQ_UMEM_ID,
    offset: create_in::WQ_UMEM_OFFSET,
    pas: create_in::PAS,
    written: false,
};

fn work_queues(
    request: &Request<'_>,
    context: &[u8],
    layout: &QueueLayout,
    uses: &mut Vec<Use>,
) -> Result<GuestBuffer, CommandError> {
    let sq_bytes = layout.log_sq_size.map_or(0, |log| (SQ_BLOCK_SIZE as u64) << log);
    let len = layout.sq_offset + sq_bytes;
    if len == 0 {
        // An XRC target: it has no queue of its own.
        return Ok(GuestBuffer::default());
    }
    let pages = (qpc::LOG_PAGE_SIZE.get(context), qpc::PAGE_OFFSET.get(context));
    request.queue(&PLACE, pages, (len, SQ_BLOCK_SIZE as u64), uses)
}

/// The objects that a context names.
pub struct Named {
    send_cq: Option<Arc<Cq>>,
    recv_cq: Option<Arc<Cq>>,
    srq: Option<Arc<Srq>>,
    counters: Option<Arc<QCounters>>,
    /// Guest physical address of the doorbell record.
    record: u64,
    /// All of them, domains and UAR page included.
    pub uses: Vec<Use>,
}

impl Named {
    /// Looks them up, the same for CREATE and for every transition. `new`: for CREATE, when a UMR queue pair has no PD yet
    /// (contract T6) and there must be a UAR page.
    ///
    /// A completion queue of 0 names nothing, which will do where no queue completes into it. Drivers name a dummy SRQ and XRC domain
    /// where there is none (contract 6.3), and XRC messages name their SRQ themselves.
    pub fn find(request: &Request<'_>, context: &[u8], new: bool) -> Result<Self, CommandError> {
        let hca = request.hca;
        let mut uses = Vec::new();
        let (service, pd) = (qpc::ST.get(context), qpc::PD.get(context));
        if pd != 0 || service != service_type::REG_UMR || !new {
            request.pd(pd, &mut uses)?;
        }
        let sends = !qpc::NO_SQ.is_set(context);
        if sends && new {
            request.uar(qpc::UAR_PAGE.get(context))?;
        }
        let from_shared = qpc::RQ_TYPE.get(context) == rq_type::SRQ;
        let receives = from_shared || qpc::RQ_TYPE.get(context) == rq_type::REGULAR;
        let mut cq = |number: u32, needed: bool| match number {
            0 if !needed => Ok(None),
            number => request.hold_any(&hca.cqs, "CQ", number, &mut uses).map(Some),
        };
        let send_cq = cq(qpc::CQN_SND.get(context), sends)?;
        let recv_cq = cq(qpc::CQN_RCV.get(context), receives && service != service_type::XRC)?;
        let mut srq = None;
        if from_shared && service != service_type::XRC {
            let number = qpc::SRQN_RMPN_XRQN.get(context);
            let found = request.hold_any(&hca.srqs, "SRQ", number, &mut uses)?;
            if found.kind == SrqKind::Xrc {
                return Err(CommandError::NoSuch { what: "SRQ of this kind", number });
            }
            srq = Some(found);
        }
        if from_shared && service == service_type::XRC && !sends {
            request.hold_any(&hca.xrcds, "XRC domain", qpc::XRCD.get(context), &mut uses)?;
        }
        let counters = match qpc::COUNTER_SET_ID.get(context) {
            0 => None,
            id => Some(request.hold_any(&hca.q_counters, "set of Q counters", id, &mut uses)?),
        };
        let umem = qpc::DBR_UMEM_VALID.is_set(context).then(|| qpc::DBR_UMEM_ID.get(context));
        let record = request.record(umem, qpc::DBR_ADDR.get(context), &mut uses)?;
        Ok(Self { send_cq, recv_cq, srq, counters, record, uses })
    }
}

/// Decodes a whole context; state, generation and incarnation stay.
pub fn load(attrs: &mut QpAttrs, context: &[u8], named: &Named) {
    let path = |field: Field| field.plus(PRIMARY_PATH).get(context);
    attrs.pd = qpc::PD.get(context);
    attrs.send_cq = named.send_cq.clone();
    attrs.recv_cq = named.recv_cq.clone();
    attrs.srq = named.srq.clone();
    attrs.remote_qpn = qpc::REMOTE_QPN.get(context);
    attrs.remote_lid = path(ads::RLID) as u16;
    attrs.remote_gid = (path(ads::GRH) != 0).then(|| {
        let gid = context.get(PRIMARY_PATH + ads::RGID.start..PRIMARY_PATH + ads::RGID.end);
        gid.and_then(|gid| gid.try_into().ok()).unwrap_or_default()
    });
    attrs.mtu = match qpc::MTU.get(context) {
        code @ mtu::BYTES_256..=mtu::BYTES_4096 => 128 << code,
        _ => 4096,
    };
    attrs.next_send_psn = qpc::NEXT_SEND_PSN.get(context);
    attrs.next_rcv_psn = qpc::NEXT_RCV_PSN.get(context);
    attrs.remote_read = qpc::RRE.is_set(context);
    attrs.remote_write = qpc::RWE.is_set(context);
    attrs.remote_atomic = qpc::RAE.is_set(context);
    attrs.retry_count = qpc::RETRY_COUNT.get(context) as u8;
    attrs.rnr_retry = qpc::RNR_RETRY.get(context) as u8;
    attrs.min_rnr_nak = qpc::MIN_RNR_NAK.get(context) as u8;
    attrs.ack_timeout = path(ads::ACK_TIMEOUT) as u8;
    attrs.qkey = qpc::Q_KEY.get(context);
    attrs.pkey_index = path(ads::PKEY_INDEX) as u16;
    attrs.record = named.record;
    attrs.xrcd = qpc::XRCD.get(context);
    attrs.deaf_to_itself = qpc::BLOCK_LB_MC.is_set(context);
    attrs.counters = named.counters.clone();
}

/// DESTROY_QP: from any state. Once it is answered there is no access and no CQE of the queue pair any more.
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let (hca, qpn) = (request.hca, request.get(destroy_in::QPN));
    let qp = find_qp(request, qpn)?;
    remove(hca, &qp);
    hca.multicast.forget(qpn);
    if qp.layout.log_sq_size.is_some() {
        request.doorbells.populate(qp.uar, false);
    }
    for slot in hca.special.lock().iter_mut().filter(|slot| **slot == Some(qpn)) {
        *slot = None;
    }
    Ok(Reply::ok())
}

/// Takes a queue pair, or a DC target, out of its table and out of service.
pub fn remove(hca: &Hca, qp: &Qp) {
    hca.qps.remove(qp.qpn);
    hca.change_qp(qp, retire);
    qp.uses.end();
    qp.lies_in.end();
}

/// The queue pair `qpn`, which is no DC target: those share its number space and have commands of their own.
pub fn find_qp(request: &Request<'_>, qpn: u32) -> Result<Arc<Qp>, CommandError> {
    let (what, qp) = ("queue pair", request.find(&request.hca.qps, "queue pair", qpn)?);
    if qp.service == service_type::DCT { Err(CommandError::NoSuch { what, number: qpn }) } else { Ok(qp) }
}

/// Into RST, for good: nothing that it named is held any longer. No living queue pair has this incarnation.
pub fn retire(attrs: &mut QpAttrs) {
    let generation = attrs.generation;
    *attrs = QpAttrs { generation, incarnation: u64::MAX, ..QpAttrs::default() };
}

/// QUERY_QP.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let qp = find_qp(request, request.get(query_in::QPN))?;
    let mut context = qp.context.lock().clone();
    let attrs = qp.attrs();
    qpc::STATE.set(&mut context, attrs.state);
    let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    let progress = &attrs.life.progress;
    qpc::HW_SQ_WQEBB_COUNTER.set(&mut context, count(&progress.sq_done));
    qpc::HW_RQ_COUNTER.set(&mut context, count(&progress.rq_done));
    let psn = |first: u32, packets| first.wrapping_add(packets) & 0xff_ffff;
    let sent = count(&progress.sq_packets);
    qpc::NEXT_SEND_PSN.set(&mut context, psn(attrs.next_send_psn, sent));
    // Messages are acknowledged one by one: all that were sent are.
    qpc::LAST_ACKED_PSN.set(&mut context, psn(attrs.next_send_psn, sent.wrapping_sub(1)));
    qpc::NEXT_RCV_PSN.set(&mut context, psn(attrs.next_rcv_psn, attrs.life.expected.get().received(attrs.mtu)));
    Ok(Reply::new(query_out::SIZE).with_bytes(query_out::QPC, &context))
}
