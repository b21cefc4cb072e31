// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page is missing: which event its driver gets (contract 9.2), and what the WQE waits for.

use super::wait::PageWait;
use super::{Cx, Kind, Peer, Requester, Wait, Work};
use crate::engine::completion::{Half, Place, failed, receive_owner};
use crate::engine::diagnosis::Diagnosis;
use crate::engine::failure::{Failure, receive_cq};
use crate::engine::work::FaultEnd;
use crate::hca::Hca;
use crate::hooks::NicAction;
use crate::mkey::PageMissing;
use crate::odp::{Fault, FaultKind, FaultState, RaiseError};
use mlx5_spec::caps::odp_transport;
use mlx5_spec::odp::wqe_fault_type;

/// Faults in a row without a byte moved after which an access is refused (contract 9.4, T8).
const MAX_FAULTS: u32 = 1000;

impl Requester {
    /// Raises a page fault for what `end` lacks and waits for it, or fails.
    pub(super) fn raise(&mut self, cx: &mut Cx<'_>, end: FaultEnd, page: PageMissing) {
        let hca = match (&self.work.peer, end) {
            (_, FaultEnd::Local) => cx.hca.clone(),
            (Some(peer), _) => peer.hca.clone(),
            (None, _) => return,
        };
        let unreliable = self.work.is_unreliable() && end != FaultEnd::Local;
        let offered = |fault: &Fault| hca.paging.allows(self.work.qp.service, access(self.work.wqe.kind, fault));
        let may_wait = |fault: &Fault| self.faults < MAX_FAULTS && !unreliable && offered(fault);
        let Some(fault) = fault(&self.work, end, page).filter(may_wait) else {
            return self.fail(cx, Failure::page_fault(end));
        };
        if self.background.as_ref().is_some_and(|(at, token)| at.page_faults.poll(*token) == FaultState::Waiting) {
            return self.not_ready(cx);
        }
        self.background = None;
        let raised = {
            let _sections = cx.enter(&hca);
            // No event about a life that a command has ended meanwhile: nobody waits for this page any more.
            if !self.work.in_force() || (end != FaultEnd::Local && !self.work.peer.as_ref().is_some_and(Peer::in_force))
            {
                return;
            }
            hca.page_faults.raise(&hca, &fault, &cx.hca.engines)
        };
        match raised {
            Ok(token) => {
                hca.counters.page_faults.add(1);
                if (end == FaultEnd::Receive && self.aborts(cx)) || self.answers_rnr(&hca, end) {
                    self.background = Some((hca, token));
                    return self.not_ready(cx);
                }
                self.wait = Wait::Page(PageWait { at: hca, token, end, page });
            }
            Err(RaiseError::Busy) => self.wait = Wait::Room,
            Err(RaiseError::NoQueue) => self.fail(cx, Failure::page_fault(end)),
        }
    }

    /// An injection: the receive WQE of a shared queue is completed in error for the page fault's sake, and the next attempt takes another.
    /// Only while nothing of the message is in place, for the next attempt goes on where this one has ended.
    fn aborts(&self, cx: &Cx<'_>) -> bool {
        let Some(peer) = self.work.peer.as_ref().filter(|_| self.work.done == 0) else { return false };
        // Before the section, which must not wait for whoever has it.
        let mut responder = self.work.receiving(peer).responder.lock();
        let Some((counter, srqn @ Some(_))) = responder.held() else { return false };
        let mine = |action| matches!(action, NicAction::AbortOnFault);
        let _sections = cx.enter(&peer.hca);
        if !self.work.in_force() || !peer.in_force() || peer.hca.injections.consult(&self.work.shape(), mine).is_none()
        {
            return false;
        }
        let place = Place { counter, owner: receive_owner(&peer.hca, &peer.qp, srqn) };
        let told = receive_cq(&peer.hca, &peer.attrs, srqn)
            .is_some_and(|cq| failed(&peer.hca, &cq, &peer.qp, place, Half::Responder, Diagnosis::ABORTED).is_ok());
        if told {
            responder.completed(&peer.attrs);
        }
        told
    }

    /// An injection: the responder's page fault is answered as most hardware does.
    fn answers_rnr(&self, hca: &Hca, end: FaultEnd) -> bool {
        end != FaultEnd::Local
            && hca.injections.consult(&self.work.shape(), |action| matches!(action, NicAction::RnrOnFault)).is_some()
    }
}

/// Which capability lets `kind` of work wait for this fault (contract 5.4).
fn access(kind: Kind, fault: &Fault) -> u32 {
    let is = |wq_type: u32| matches!(fault.kind, FaultKind::Wqe { wq_type: found, .. } if u32::from(found) == wq_type);
    match kind {
        _ if is(wqe_fault_type::SRQ) => odp_transport::SRQ_RECEIVE,
        _ if is(wqe_fault_type::RESPONDER) => odp_transport::RECEIVE,
        Kind::Write => odp_transport::WRITE,
        Kind::Read => odp_transport::READ,
        Kind::CompareSwap | Kind::FetchAdd => odp_transport::ATOMIC,
        _ => odp_transport::SEND,
    }
}

fn fault(work: &Work, end: FaultEnd, page: PageMissing) -> Option<Fault> {
    let total = work.wqe.total;
    let (kind, write) = match end {
        FaultEnd::Local => {
            let reads = work.is_answered();
            let wq_type = match reads {
                true => wqe_fault_type::REQUESTER_READ_OR_ATOMIC,
                false => wqe_fault_type::REQUESTER_SEND_OR_WRITE,
            };
            (FaultKind::Wqe { wq_type: wq_type as u8, number: work.qp.qpn, wqe_index: work.index }, reads)
        }
        FaultEnd::Remote => {
            let write = work.wqe.kind != Kind::Read;
            let (rdma_va, r_key) = work.wqe.remote;
            (FaultKind::Rdma { r_key, rdma_va, op_len: u32::try_from(total).ok()?, write }, write)
        }
        FaultEnd::Receive => {
            let peer = work.peer.as_ref()?;
            let (wqe_index, srqn) = work.receiving(peer).responder.lock().held()?;
            let (wq_type, number) = match srqn {
                Some(srqn) => (wqe_fault_type::SRQ, srqn),
                None => (wqe_fault_type::RESPONDER, peer.qp.qpn),
            };
            (FaultKind::Wqe { wq_type: wq_type as u8, number, wqe_index }, true)
        }
    };
    let left = total.saturating_sub(work.done).min(u64::from(work.attrs.mtu.clamp(256, 4096)));
    Some(Fault {
        kind,
        bytes_committed: u32::try_from(work.done).ok()?,
        packet_length: left.max(1) as u16,
        waiter: (work.qp.uar, work.qp.qpn),
        about: (page.key, page.va, write),
    })
}
