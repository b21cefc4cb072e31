// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A message that failed: both sides are told in one section, then both leave service (IBTA 9.9).

use parking_lot::MutexGuard;
use std::sync::Arc;

use super::{Cx, Effect, Peer, Requester};
use crate::engine::completion::{Half, Place, failed, receive_owner};
use crate::engine::diagnosis::Diagnosis;
use crate::engine::failure::{AtResponder, Failure, leave_service, receive_cq, tell};
use crate::engine::receive::Responder;
use crate::engine::work::Step;
use crate::hca::Hca;
use crate::q_counters::Count;
use crate::qp::{Qp, QpAttrs};
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use mlx5_spec::qp::{service_type, state};

impl Requester {
    /// Completes the current WQE in error and takes the queue pairs out of service. Outside of any section.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, failure: Failure) {
        let unreliable = self.work.is_unreliable() || self.work.is_datagram();
        self.abandon(cx.hca);
        let peer = failure.responder.zip(self.work.peer.clone());
        // Before the section, which must not wait for whoever has it.
        let receiving = peer.as_ref().map(|(_, peer)| self.work.receiving(peer).clone());
        let responder = receiving.as_ref().map(|life| life.responder.lock());
        let section = cx.hca.quiesce.enter(cx.engine);
        let visit = peer.as_ref().and_then(|(_, peer)| peer.visit(cx));
        if !self.work.in_force() || peer.as_ref().is_some_and(|(_, peer)| !peer.in_force()) {
            // Whoever changed one of them decides what becomes of the WQE; what a responder refused, it is asked again.
            if failure.responder.is_some() {
                self.work.effect = Effect::Due;
            }
            return;
        }
        // A state is there before the CQE that tells of it, and the cause before anything is flushed: both halves may be one queue pair's.
        let mut ends = Vec::new();
        if let Some(((at, peer), responder)) = peer.as_ref().zip(responder).filter(|((at, _), _)| at.own || !unreliable)
        {
            ends.extend(fail_receive(peer, *at, responder));
            match failure.requester.map(|why| why.syndrome) {
                Some(syndrome::REMOTE_ACCESS_ERR) => peer.attrs.count(Count::Access),
                Some(syndrome::REMOTE_INVAL_REQ_ERR) => peer.attrs.count(Count::InvalidRequest),
                _ => {}
            }
        }
        let lost = (failure.responder.is_some() && unreliable).then(|| self.work.lost(cx, &section));
        let failure = match lost {
            // An unreliable message that the responder does not take is lost, and nobody is told (IBTA 9.8.2.2).
            Some(Step::Failed(failure)) => Some(failure),
            Some(_) => None,
            None => Some(failure),
        };
        if let Some(failure) = failure {
            ends.extend(self.fail_send(cx.hca, failure, unreliable));
        }
        self.retire();
        drop(visit);
        drop(section);
        ends.into_iter().for_each(|end| end.settle(cx));
    }

    /// Those who hear a multicast group and have no good place for what it says fail each for itself. Outside of any section.
    pub(super) fn fail_listeners(&mut self, cx: &Cx<'_>) {
        for (peer, at) in self.work.broken.take() {
            let responder = peer.attrs.life.responder.lock();
            let section = cx.hca.quiesce.enter(cx.engine);
            let visit = peer.visit(cx);
            let end = if peer.in_force() { fail_receive(&peer, at, responder) } else { None };
            drop(visit);
            drop(section);
            if let Some(end) = end {
                end.settle(cx);
            }
        }
    }

    /// The send WQE is completed in error and its queue pair leaves service, with an event of its own if it cannot be told (IBTA 11.6.3.1).
    fn fail_send(&self, hca: &Arc<Hca>, failure: Failure, unreliable: bool) -> Option<End> {
        let work = &self.work;
        let to = if unreliable { state::SQER } else { state::ERR };
        let mut left = leave_service(&work.qp, &work.attrs, to);
        let told = failure.requester.zip(work.attrs.send_cq.as_ref()).is_some_and(|(why, cq)| {
            let place = Place { counter: work.index, owner: work.qp.user_index };
            failed(hca, cq, &work.qp, place, Half::Requester(work.wqe.opcode), why).is_ok()
        });
        if !told {
            // It cannot go on whatever its service.
            left |= leave_service(&work.qp, &work.attrs, state::ERR);
        }
        let event = (!told).then_some(event::WQ_CATAS_ERROR);
        left.then(|| End { hca: hca.clone(), qp: work.qp.clone(), seen: work.attrs.clone(), event })
    }
}

/// A queue pair that has left service: what is left to do outside of the section.
struct End {
    hca: Arc<Hca>,
    qp: Arc<Qp>,
    /// What it was.
    seen: Arc<QpAttrs>,
    /// Asynchronous event about it.
    event: Option<u32>,
}

impl End {
    fn settle(self, cx: &Cx<'_>) {
        self.hca.settle_qp(&self.qp, &self.seen);
        if let Some(kind) = self.event {
            tell(cx, (&self.hca, &self.qp, &self.seen), kind);
        }
    }
}

/// The responder leaves service, and its receive WQE, if it has taken one, is completed in error; its own engine flushes nothing meanwhile.
fn fail_receive(
    Peer { hca, qp, attrs }: &Peer,
    at: AtResponder,
    mut responder: MutexGuard<'_, Responder>,
) -> Option<End> {
    // A DC target serves others, and goes on.
    let stays = qp.service == service_type::DCT;
    let mut event = at.event;
    let left = !stays && leave_service(qp, attrs, state::ERR);
    // Nobody flushes for it what its initiator leaves behind.
    let cqe = at.cqe.or(stays.then_some(syndrome::WR_FLUSH_ERR));
    if let Some((syndrome, (counter, srqn))) = cqe.zip(responder.held()) {
        let place = Place { counter, owner: receive_owner(hca, qp, srqn) };
        let told = receive_cq(hca, attrs, srqn)
            .is_some_and(|cq| failed(hca, &cq, qp, place, Half::Responder, Diagnosis::receive(syndrome)).is_ok());
        if !told {
            event = Some(event::WQ_CATAS_ERROR);
        }
        responder.completed(attrs);
    }
    drop(responder);
    left.then_some(End { hca: hca.clone(), qp: qp.clone(), seen: attrs.clone(), event })
}
