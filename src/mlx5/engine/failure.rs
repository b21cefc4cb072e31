// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a message fails: the one table of who sees what (IBTA 9.9, contract 7.5, 7.7, 9.3), states, events, page faults, flushing.

use std::time::{Duration, Instant};

use super::completion::{Half, Place, failed, receive_owner};
use super::diagnosis::Diagnosis;
use super::receive::read_record;
use super::requester::{Cx, FaultEnd, Missing, Outcome, Park, Requester, Turn, send_record};
use super::transfer::Stop;
use super::wqe::{BLOCK, Kind, length};
use crate::eq::Event;
use crate::hca::Hca;
use crate::hooks::NicAction;
use crate::mkey::AccessError;
use crate::odp::{Fault, FaultKind, FaultState, RaiseError};
use crate::qp::{Qp, QpAttrs};
use crate::sync::lock;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::odp::wqe_fault_type;
use mlx5_spec::qp::{service_type, state};

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

/// Faults in a row without a byte moved after which an access is refused (contract 9.4, T8).
const MAX_FAULTS: u32 = 1000;
/// When to ask again when too many faults are live.
const BUSY: Duration = Duration::from_millis(1);

/// What an access that stopped means, given which end of the message is its source and which its target.
pub fn stopped(stop: Stop, source: FaultEnd, target: FaultEnd) -> Outcome {
    let (error, end) = match stop {
        Stop::Source(error) => (error, source),
        Stop::Target(error) => (error, target),
        Stop::NoSource => return Outcome::Failed(Failure::page_fault(source)),
        Stop::NoTarget => return Outcome::Failed(Failure::page_fault(target)),
        Stop::Late(late) => return Outcome::Late(late),
    };
    match error {
        AccessError::NotPresent { key, va } => Outcome::Missing(Missing { end, key, va }),
        AccessError::Denied { .. } => {
            log::debug!("access refused at {end:?}: {error}");
            Outcome::Failed(Failure::page_fault(end))
        }
    }
}

impl Requester {
    /// Completes the current WQE in error and takes the queue pairs out of service. Outside of any section.
    pub fn fail(&mut self, cx: &mut Cx<'_>, failure: Failure) {
        let reliable =
            !matches!(self.qp.service, service_type::UC | service_type::UD | service_type::QP0 | service_type::QP1);
        self.abandon(cx.hca);
        if let Some(at) = failure.responder {
            if reliable || at.own {
                self.fail_responder(cx, at);
            }
            if !reliable {
                return self.dropped(cx);
            }
        }
        let section = cx.hca.quiesce.enter(cx.engine);
        if !self.qp.in_force(&self.attrs) {
            // Whoever changed it decides what becomes of the WQE.
            return;
        }
        let told = failure.requester.zip(self.attrs.send_cq.as_ref()).is_some_and(|(why, cq)| {
            let place = Place { counter: self.next, owner: self.qp.user_index };
            failed(cx.hca, cq, &self.qp, place, Half::Requester(self.wqe.opcode), why).is_ok()
        });
        self.retire();
        drop(section);
        let (to, event) = match told {
            true => (if reliable { state::ERR } else { state::SQER }, None),
            // The CQ has told its own event (IBTA 11.6.3.1); the queue pair cannot go on whatever its service.
            false => (state::ERR, Some(event::WQ_CATAS_ERROR)),
        };
        end_service(cx.hca, &self.qp, &self.attrs, to, event);
    }

    /// An unreliable message that the responder does not take is lost, and nobody is told (IBTA 9.8.2.2).
    fn dropped(&mut self, cx: &mut Cx<'_>) {
        let section = cx.hca.quiesce.enter(cx.engine);
        if !self.qp.in_force(&self.attrs) {
            return;
        }
        let outcome = self.lost(cx, &section);
        drop(section);
        match outcome {
            Outcome::Finished => self.retire(),
            Outcome::Failed(failure) => self.fail(cx, failure),
            _ => {}
        }
    }

    fn fail_responder(&mut self, cx: &mut Cx<'_>, at: AtResponder) {
        let Some(peer) = &self.peer else { return };
        let mut event = at.event;
        let section = cx.hca.quiesce.enter(cx.engine);
        if peer.qp.in_force(&peer.attrs) {
            let mut responder = lock(&peer.qp.responder);
            responder.sync(&peer.attrs);
            if let Some((syndrome, (counter, srqn))) = at.cqe.zip(responder.held()) {
                let place = Place { counter, owner: receive_owner(cx.hca, &peer.qp, srqn) };
                let told = receive_cq(cx.hca, &peer.attrs, srqn).is_some_and(|cq| {
                    failed(cx.hca, &cq, &peer.qp, place, Half::Responder, Diagnosis::receive(syndrome)).is_ok()
                });
                if !told {
                    event = Some(event::WQ_CATAS_ERROR);
                }
                responder.completed(&peer.qp);
            }
        }
        drop(section);
        end_service(cx.hca, &peer.qp, &peer.attrs, state::ERR, event);
    }

    /// Raises a page fault and waits for it, or fails.
    pub fn raise(&mut self, cx: &mut Cx<'_>, missing: Missing) {
        let hca = cx.hca;
        let unreliable = self.qp.service == service_type::UC && missing.end != FaultEnd::Local;
        let Some(fault) = self.fault(missing).filter(|_| hca.config.odp && self.faults < MAX_FAULTS && !unreliable)
        else {
            return self.fail(cx, Failure::page_fault(missing.end));
        };
        if self.background.is_some_and(|token| hca.page_faults.poll(token) == FaultState::Waiting) {
            return self.not_ready(cx);
        }
        self.background = None;
        match hca.page_faults.raise(hca, &fault) {
            Ok(token) => {
                hca.counters.page_faults.add(1);
                if self.answers_rnr(hca, missing.end) {
                    self.background = Some(token);
                    return self.not_ready(cx);
                }
                self.park = Park::Fault(token, missing.end);
            }
            Err(RaiseError::Busy) => self.park = Park::Timer(Instant::now() + BUSY),
            Err(RaiseError::NoQueue) => self.fail(cx, Failure::page_fault(missing.end)),
        }
    }

    /// An injection: the responder's page fault is answered as most hardware does.
    fn answers_rnr(&self, hca: &Hca, end: FaultEnd) -> bool {
        end != FaultEnd::Local
            && hca.injections.consult(&self.shape(), |action| matches!(action, NicAction::RnrOnFault)).is_some()
    }

    fn fault(&self, missing: Missing) -> Option<Fault> {
        let reads = matches!(self.wqe.kind, Kind::Read | Kind::CompareSwap | Kind::FetchAdd);
        let total = self.wqe.total;
        let (kind, write) = match missing.end {
            FaultEnd::Local => {
                let wq_type = if reads {
                    wqe_fault_type::REQUESTER_READ_OR_ATOMIC
                } else {
                    wqe_fault_type::REQUESTER_SEND_OR_WRITE
                };
                (FaultKind::Wqe { wq_type: wq_type as u8, number: self.qp.qpn, wqe_index: self.next }, reads)
            }
            FaultEnd::Remote => {
                let write = self.wqe.kind != Kind::Read;
                let (rdma_va, r_key) = self.wqe.remote;
                (FaultKind::Rdma { r_key, rdma_va, op_len: u32::try_from(total).ok()?, write }, write)
            }
            FaultEnd::Receive => {
                let peer = self.peer.as_ref()?;
                let (wqe_index, srqn) = lock(&peer.qp.responder).held()?;
                let (wq_type, number) = match srqn {
                    Some(srqn) => (wqe_fault_type::SRQ, srqn),
                    None => (wqe_fault_type::RESPONDER, peer.qp.qpn),
                };
                (FaultKind::Wqe { wq_type: wq_type as u8, number, wqe_index }, true)
            }
        };
        let left = total.saturating_sub(self.done).min(u64::from(self.attrs.mtu.clamp(256, 4096)));
        Some(Fault {
            kind,
            bytes_committed: u32::try_from(self.done).ok()?,
            packet_length: left.max(1) as u16,
            waiter: (self.qp.uar, self.qp.qpn),
            about: (missing.key, missing.va, write),
        })
    }

    /// In ERR (both queues) or SQER (send queue): completes in error whatever is posted, in order, and goes on looking for what is posted
    /// later, since receive queues have no doorbell.
    pub fn flush(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.abandon(cx.hca);
        let both = self.attrs.state == state::ERR;
        for _ in 0..FLUSH_TURN {
            let section = cx.hca.quiesce.enter(cx.engine);
            if !self.qp.in_force(&self.attrs) {
                return Turn::Again;
            }
            let more = self.flush_send(cx.hca) | (both && self.flush_receive(cx.hca));
            drop(section);
            if !more {
                return self.flushed(cx.hca, both);
            }
        }
        Turn::Again
    }

    fn flushed(&mut self, hca: &Hca, both: bool) -> Turn {
        if !both {
            return Turn::Idle;
        }
        if lock(&self.qp.responder).last_reached(&self.attrs) {
            hca.async_event(Event::new(event::SRQ_LAST_WQE, 0).with(eqe_qp_srq::QP_SRQ_N, self.qp.qpn));
        }
        let now = Instant::now();
        let since = now - *self.in_error.get_or_insert(now);
        let (_, again) = RELOOK.iter().find(|(until, _)| since < *until).unwrap_or(&RELOOK[RELOOK.len() - 1]);
        Turn::Until(now + *again)
    }

    /// One send WQE; false: none is left.
    fn flush_send(&mut self, hca: &Hca) -> bool {
        let Some(log_size) = self.qp.layout.log_sq_size else { return false };
        if !self.active {
            self.posted = read_record(hca, send_record(&self.attrs)).unwrap_or(self.next);
            let available = self.posted.wrapping_sub(self.next);
            if available == 0 {
                return false;
            }
            let blocks = 1u32 << log_size.min(16);
            if u32::from(available) > blocks {
                self.next = self.posted.wrapping_sub(blocks as u16);
            }
            self.control_of_next(hca, blocks, available);
        }
        if let Some(cq) = &self.attrs.send_cq {
            let place = Place { counter: self.next, owner: self.qp.user_index };
            let half = Half::Requester(self.wqe.opcode);
            let _ = failed(hca, cq, &self.qp, place, half, Diagnosis::send(syndrome::WR_FLUSH_ERR));
        }
        self.retire();
        true
    }

    /// Opcode and length of the next WQE, as far as they can be read.
    fn control_of_next(&mut self, hca: &Hca, blocks: u32, available: u16) {
        let slot = u64::from(self.next) & u64::from(blocks - 1);
        let mut control = [0; 16];
        let at = self.qp.layout.sq_offset.saturating_add(slot * BLOCK as u64);
        let _ = self.qp.buffer.read(&hca.dma, at, &mut control);
        self.wqe.opcode = super::wqe::opcode_of(&control);
        self.wqe.bytes = length(&control).unwrap_or(BLOCK).min(usize::from(available) * BLOCK);
        self.active = true;
    }

    /// One receive WQE; false: none is left.
    fn flush_receive(&mut self, hca: &Hca) -> bool {
        let mut responder = lock(&self.qp.responder);
        responder.sync(&self.attrs);
        let Some((counter, srqn)) = responder.to_flush(hca, &self.qp, &self.attrs) else { return false };
        if let Some(cq) = receive_cq(hca, &self.attrs, srqn) {
            let place = Place { counter, owner: receive_owner(hca, &self.qp, srqn) };
            let _ = failed(hca, &cq, &self.qp, place, Half::Responder, Diagnosis::receive(syndrome::WR_FLUSH_ERR));
        }
        responder.completed(&self.qp);
        true
    }
}

/// WQEs of each queue that one turn flushes.
const FLUSH_TURN: u32 = 256;
/// How long a queue pair has been in ERR, and how often its records are looked at then.
const RELOOK: [(Duration, Duration); 3] = [
    (Duration::from_secs(1), Duration::from_millis(1)),
    (Duration::from_secs(30), Duration::from_millis(20)),
    (Duration::MAX, Duration::from_millis(200)),
];

/// Where completions of messages to a queue pair go: XRC's to the SRQ's own.
pub fn receive_cq(hca: &Hca, attrs: &QpAttrs, srqn: Option<u32>) -> Option<std::sync::Arc<crate::cq::Cq>> {
    let xrc = srqn.and_then(|srqn| hca.srqs.get(srqn)).filter(|srq| srq.kind == crate::srq::SrqKind::Xrc);
    match xrc {
        Some(srq) => hca.cqs.get(srq.cqn),
        None => attrs.recv_cq.clone(),
    }
}

/// [`leave_service`], and tells `event` about the queue pair if that did it.
fn end_service(hca: &Hca, qp: &Qp, seen: &QpAttrs, to: u32, event: Option<u32>) {
    if leave_service(hca, qp, seen, to)
        && let Some(kind) = event
    {
        hca.async_event(Event::new(kind, 0).with(eqe_qp_srq::QP_SRQ_N, qp.qpn));
    }
}

/// Takes a queue pair to ERR or SQER unless it has left service or begun a new life since `seen`. Tells whether it did. Waits for sections:
/// only outside of one, and without any lock.
pub fn leave_service(hca: &Hca, qp: &Qp, seen: &QpAttrs, to: u32) -> bool {
    let mut changed = false;
    hca.change_qp(qp, |attrs| {
        if attrs.incarnation == seen.incarnation && !matches!(attrs.state, state::RST | state::ERR) {
            attrs.state = to;
            changed = true;
        }
    });
    changed
}
