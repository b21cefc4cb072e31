// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a message fails: the one table of who sees what (IBTA 9.9, contract 7.5, 7.7, 9.3), states, events.

use std::sync::Arc;

use super::diagnosis::Diagnosis;
use super::transfer::Stop;
use super::work::{Cx, FaultEnd, Step};
use crate::eq::Event;
use crate::hca::Hca;
use crate::hooks::{NicAction, WqeShape};
use crate::mkey::AccessError;
use crate::qp::{Qp, QpAttrs};
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::qp::state;

/// What both sides see of a failed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// What the send WQE's CQE says; `None`: its CQ takes none.
    pub requester: Option<Diagnosis>,
    /// The responder's share, which goes to ERR then.
    pub responder: Option<AtResponder>,
}

/// What the responder sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AtResponder {
    /// Syndrome of the receive WQE that was taken.
    pub cqe: Option<u32>,
    /// Asynchronous event about the queue pair.
    pub event: Option<u32>,
    /// The fault is its own and not the request's: it fails too if the service is unreliable, whose bad requests are dropped (IBTA 9.8.2.2).
    pub own: bool,
}

impl Failure {
    /// The requester's alone.
    pub const fn local(syndrome: u32) -> Self {
        Self::diagnosed(Diagnosis::send(syndrome))
    }

    /// The requester's alone, with more than a syndrome to tell.
    pub const fn diagnosed(why: Diagnosis) -> Self {
        Self { requester: Some(why), responder: None }
    }

    /// NAK "remote access": the responder's memory is not the requester's to touch.
    pub const REMOTE_ACCESS: Self = Self::nak(syndrome::REMOTE_ACCESS_ERR, None, Some(event::WQ_ACCESS_ERROR));
    /// NAK "invalid request": not an operation that the responder takes.
    pub const INVALID_REQUEST: Self = Self::nak(syndrome::REMOTE_INVAL_REQ_ERR, None, Some(event::WQ_INVAL_REQ_ERROR));
    /// The message is longer than the receive WQE.
    pub const TOO_LONG: Self = Self::nak(syndrome::REMOTE_INVAL_REQ_ERR, Some(syndrome::LOCAL_LENGTH_ERR), None);
    /// The receive WQE's list is not the responder's to write.
    pub const RECEIVE: Self = Self::operational(Some(syndrome::LOCAL_PROT_ERR), None);
    /// The responder cannot tell of the message: its CQ is full or gone.
    pub const NO_RECEIVE_CQE: Self = Self::operational(None, Some(event::WQ_CATAS_ERROR));
    /// The responder's receive queue cannot be read.
    pub const BROKEN_QUEUE: Self = Self::operational(None, Some(event::WQ_CATAS_ERROR));

    const fn nak(requester: u32, cqe: Option<u32>, event: Option<u32>) -> Self {
        let responder = Some(AtResponder { cqe, event, own: false });
        Self { requester: Some(Diagnosis::send(requester)), responder }
    }

    /// NAK "remote operational": the request is good, the responder is not.
    pub const fn operational(cqe: Option<u32>, event: Option<u32>) -> Self {
        let responder = Some(AtResponder { cqe, event, own: true });
        Self { requester: Some(Diagnosis::send(syndrome::REMOTE_OP_ERR)), responder }
    }

    /// A page that the driver could not bring, an access that is not allowed or that leads outside guest RAM, by where it was
    /// (contract 8.1).
    pub const fn page_fault(end: FaultEnd) -> Self {
        match end {
            FaultEnd::Local => Self::local(syndrome::LOCAL_PROT_ERR),
            FaultEnd::Remote => Self::REMOTE_ACCESS,
            FaultEnd::Receive => Self::RECEIVE,
        }
    }

    /// The requester's CQ takes no CQE.
    pub const MUTE: Self = Self { requester: None, responder: None };
}

/// What an access that stopped means, given which end of the message is its source and which its target.
pub fn stopped(stop: Stop, source: FaultEnd, target: FaultEnd) -> Step {
    let (error, end) = match stop {
        Stop::Source(error) => (error, source),
        Stop::Target(error) => (error, target),
        Stop::NoSource => return Step::Failed(Failure::page_fault(source)),
        Stop::NoTarget => return Step::Failed(Failure::page_fault(target)),
        Stop::Late(late) => return Step::Late(late),
    };
    match error {
        AccessError::Missing(page) => Step::Missing(end, page),
        AccessError::Denied { .. } => {
            log::debug!("access refused at {end:?}: {error}");
            Step::Failed(Failure::page_fault(end))
        }
    }
}

/// How a send WQE fails by an injection, before it does anything: its own queue pair fails, and no other.
pub fn injected(hca: &Hca, shape: &WqeShape) -> Option<Failure> {
    match hca.injections.consult(shape, |action| matches!(action, NicAction::WqeError { .. })) {
        Some(NicAction::WqeError { syndrome }) => Some(Failure::local(syndrome.into())),
        _ => None,
    }
}

/// Where completions of messages to a queue pair go: XRC's to the SRQ's own.
pub fn receive_cq(hca: &Hca, attrs: &QpAttrs, srqn: Option<u32>) -> Option<Arc<crate::cq::Cq>> {
    let xrc = srqn.and_then(|srqn| hca.srqs.get(srqn)).filter(|srq| srq.kind == crate::srq::SrqKind::Xrc);
    match xrc {
        Some(srq) => hca.cqs.get(srq.cqn),
        None => attrs.recv_cq.clone(),
    }
}

/// An asynchronous event about a queue pair whose attributes were `seen`. Not inside a section: it has one of its own, so that no event
/// comes when a command that ended this life of the queue pair is complete.
pub fn tell(cx: &Cx<'_>, (hca, qp, seen): (&Arc<Hca>, &Qp, &QpAttrs), kind: u32) {
    let _sections = cx.enter(hca);
    if qp.attrs().incarnation == seen.incarnation {
        hca.async_event(Event::new(kind, 0).with(eqe_qp_srq::QP_SRQ_N, qp.qpn));
    }
}

/// Takes a queue pair to ERR or SQER unless it has left service or begun a new life since `seen`. Tells whether it did; then
/// [`Hca::settle_qp`] is due when the section has ended.
pub fn leave_service(qp: &Qp, seen: &QpAttrs, to: u32) -> bool {
    let mut changed = false;
    qp.replace(|attrs| {
        if attrs.incarnation == seen.incarnation && !matches!(attrs.state, state::RST | state::ERR) {
            attrs.state = to;
            changed = true;
        }
    });
    changed
}
