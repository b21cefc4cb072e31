// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One step of a connected queue pair's message, requester's and responder's work in one go: inside one section, at most one piece of data.

use std::sync::Arc;
use std::time::Duration;

use super::completion::{Arrival, Place, receive_owner, received, sent};
use super::failure::{Failure, receive_cq, stopped};
use super::psn::Verdict;
use super::receive::NoWqe;
use super::transfer::{At, Atomic, CHUNK, End, Piece, Plan, Stop, atomic, transfer};
use super::work::{Cx, FaultEnd, Peer, Step, Work, has_pkey, receives};
use super::wqe::{Extra, Kind, Seg};
use crate::fabric;
use crate::hca::Hca;
use crate::hooks::NicAction;
use crate::later;
use crate::mkey::{self, Access, Rights};
use crate::q_counters::Count;
use crate::srq::{Srq, SrqKind};
use dma::Section;
use mlx5_spec::cq::{opcode, syndrome};
use mlx5_spec::qp::service_type;

/// Bytes of the longest message (cap log_max_msg).
const MAX_MESSAGE: u64 = 1 << crate::limits::LOG_MAX_MSG;

impl Work {
    /// Goes on with the current WQE, whose peer has been looked up. A UMR has had its effect.
    pub fn execute(&self, cx: &mut Cx<'_>, section: &Section<'_>) -> Step {
        match self.wqe.kind {
            Kind::Nop | Kind::Umr => return self.finish(cx.hca, 0, 0),
            _ if self.is_datagram() => return self.datagram(cx, section),
            _ if self.wqe.total > MAX_MESSAGE => return Step::Failed(Failure::local(syndrome::LOCAL_LENGTH_ERR)),
            _ => {}
        }
        let Some(peer) = &self.peer else {
            return if self.is_unreliable() { self.lost(cx, section) } else { Step::Silence };
        };
        if let Some(step) = self.arrives(cx, section, peer) {
            return step;
        }
        let step = match self.wqe.kind {
            Kind::Send => self.send(cx, section, peer),
            Kind::Write => self.write(cx, section, peer),
            Kind::Read => self.read(cx, section, peer),
            _ => self.atomic(cx, section, peer),
        };
        self.arrived(peer, &step);
        step
    }

    /// What the responder makes of the packet's number and length before it looks into it. `None`: go on.
    fn arrives(&self, cx: &Cx<'_>, section: &Section<'_>, peer: &Peer) -> Option<Step> {
        // Initiator and target agree on numbers message by message: none is lost here.
        if self.is_dynamic() {
            return None;
        }
        let (part, initial) = (self.part(), peer.attrs.next_rcv_psn);
        let was = peer.attrs.life.expected.get();
        let mut expected = was;
        let verdict = match self.wqe.kind {
            _ if self.is_unreliable() => expected.unreliable(initial, &part),
            Kind::Read => expected.read(initial, &part),
            _ => expected.request(initial, &part),
        };
        peer.attrs.life.expected.set(&was, &expected);
        if verdict != Verdict::Execute {
            let received = expected.received(part.mtu);
            log::debug!("QPN {:#x}: {part:x?} after {received} packets from {initial:#x}: {verdict:?}", self.qp.qpn);
        }
        // Packets but the last are as long as the path MTU, which both ends must agree on (IBTA 9.7.4.1.6).
        let misfit = self.wqe.total > u64::from(self.attrs.mtu.min(peer.attrs.mtu)) && self.attrs.mtu != peer.attrs.mtu;
        match verdict {
            Verdict::Ahead => peer.attrs.count(Count::OutOfSequence),
            Verdict::Acknowledge | Verdict::Drop if !self.is_unreliable() => peer.attrs.count(Count::DuplicateRequest),
            _ => {}
        }
        match verdict {
            Verdict::Execute if !misfit => None,
            _ if self.is_unreliable() => Some(self.lost(cx, section)),
            Verdict::Execute if self.wqe.kind == Kind::Read => {
                Some(Step::Failed(Failure::local(syndrome::BAD_RESP_ERR)))
            }
            Verdict::Execute | Verdict::OutOfOrder => Some(Step::Failed(Failure::INVALID_REQUEST)),
            // Nobody keeps the result of an atomic that was completed.
            Verdict::Acknowledge if !self.is_answered() => Some(self.finish(cx.hca, 0, 0)),
            Verdict::Acknowledge | Verdict::Drop => Some(Step::Silence),
            Verdict::Ahead => Some(Step::OutOfSequence),
        }
    }

    /// The responder's side of what a step brought. A READ was counted when it was asked for.
    fn arrived(&self, peer: &Peer, step: &Step) {
        if self.wqe.kind == Kind::Read || self.is_dynamic() {
            return;
        }
        let was = peer.attrs.life.expected.get();
        let now = match step {
            Step::Moved(bytes) => was.moved(*bytes),
            Step::Finished(_) => was.completed(self.packets()),
            _ => return,
        };
        peer.attrs.life.expected.set(&was, &now);
    }

    /// The current WQE succeeded, its last `moved` bytes in this section: its CQE, if it wants one, which tells of `told` bytes.
    pub fn finish(&self, hca: &Hca, moved: u64, told: u64) -> Step {
        if self.wqe.signaled {
            let Some(cq) = &self.attrs.send_cq else { return Step::Failed(Failure::MUTE) };
            let place = Place { counter: self.index, owner: self.qp.user_index };
            if sent(hca, cq, &self.qp, place, (self.wqe.opcode, told), self.wqe.own_event).is_err() {
                return Step::Failed(Failure::MUTE);
            }
        }
        Step::Finished(moved)
    }

    /// An unreliable message that nobody takes: its sender succeeds, unless its own list is bad.
    pub fn lost(&self, cx: &Cx<'_>, section: &Section<'_>) -> Step {
        for seg in &self.wqe.segs {
            let Seg::Key { lkey: key, va, len } = *seg else { continue };
            let access = Access { key, pd: self.attrs.pd, qpn: self.qp.qpn, va, len, rights: Rights::LOCAL_READ };
            if let Err(error) = mkey::check(cx.hca, section, &access) {
                log::debug!("QPN {:#x}: {error}", self.qp.qpn);
                return Step::Failed(Failure::local(syndrome::LOCAL_PROT_ERR));
            }
        }
        self.finish(cx.hca, 0, 0)
    }

    /// The WQE's list.
    pub fn list(&self, rights: Rights) -> End<'_> {
        End::List { segs: &self.wqe.segs, wqe: &self.bytes[..], pd: self.attrs.pd, qpn: self.qp.qpn, rights }
    }

    /// The DC target that the WQE names by LID, number and key.
    pub fn dc_target(&self, hca: &Arc<Hca>) -> Option<Peer> {
        let there = fabric::resolve(hca, self.wqe.av.dlid).filter(|_| has_pkey(&self.attrs))?;
        let qp = there.qps.get(self.wqe.av.dqpn).filter(|qp| qp.service == service_type::DCT)?;
        let attrs = qp.attrs();
        let answers = receives(&attrs) && has_pkey(&attrs) && attrs.dc_key == self.wqe.dc_key;
        answers.then_some(Peer { hca: there, qp, attrs })
    }

    /// `len` bytes of what the WQE names at the responder. The protection domain is the queue pair's or, with XRC, that of the SRQ in the
    /// message's header (IBTA annex A14): a target queue pair belongs to no user.
    fn target(&self, peer: &Peer, len: u64, rights: Rights) -> Result<Access, Failure> {
        let (va, key) = self.wqe.remote;
        let pd = match self.qp.service {
            service_type::XRC => self.named_queue(peer).ok_or(Failure::INVALID_REQUEST)?.pd,
            _ => peer.attrs.pd,
        };
        Ok(Access { key, pd, qpn: peer.qp.qpn, va, len, rights })
    }

    /// What the responder checks when a request arrives. A message without bytes names no memory (IBTA C9-88).
    fn admit(&self, section: &Section<'_>, peer: &Peer, rights: Rights, allowed: bool) -> Result<Access, Failure> {
        if !allowed {
            return Err(Failure::INVALID_REQUEST);
        }
        let access = self.target(peer, self.wqe.total, rights)?;
        // What is moved in one piece is checked as a whole when it is translated.
        if self.done > 0 || access.len <= CHUNK {
            return Ok(access);
        }
        mkey::check(&peer.hca, section, &access).map(|()| access).map_err(|error| {
            log::debug!("QPN {:#x}: refused to the peer: {error}", access.qpn);
            Failure::REMOTE_ACCESS
        })
    }

    fn at(&self) -> At {
        At { source: self.done, target: self.done, want: self.wqe.total - self.done }
    }

    fn write(&self, cx: &mut Cx<'_>, section: &Section<'_>, peer: &Peer) -> Step {
        let access = match self.admit(section, peer, Rights::REMOTE_WRITE, peer.attrs.remote_write) {
            Ok(access) => access,
            Err(failure) => return Step::Failed(failure),
        };
        if let Extra::Imm(word) = self.wqe.extra {
            // Known to be there before the first byte, so that an RNR NAK leaves nothing behind.
            let arrival = Arrival { opcode: opcode::RESP_WR_IMM, word, ..Arrival::default() };
            return self.deliver(cx, section, peer, arrival, Some(access));
        }
        if self.done == self.wqe.total {
            return self.finish(cx.hca, 0, 0);
        }
        let ends = (&self.list(Rights::LOCAL_READ), &End::Remote { access });
        match transfer(self.route(cx.hca, &peer.hca), section, (cx.scratch, self.mover()), ends, self.at(), || {
            self.plan(cx.hca)
        }) {
            Ok(moved) => self.moved(cx.hca, moved, 0),
            Err(stop) => stopped(stop, FaultEnd::Local, FaultEnd::Remote),
        }
    }

    fn read(&self, cx: &mut Cx<'_>, section: &Section<'_>, peer: &Peer) -> Step {
        let access = match self.admit(section, peer, Rights::REMOTE_READ, peer.attrs.remote_read) {
            Ok(access) => access,
            Err(failure) => return Step::Failed(failure),
        };
        if self.done == self.wqe.total {
            return self.finish(cx.hca, 0, self.done);
        }
        let ends = (&End::Remote { access }, &self.list(Rights::LOCAL_WRITE));
        match transfer(self.route(cx.hca, &peer.hca), section, (cx.scratch, self.mover()), ends, self.at(), || {
            self.plan(cx.hca)
        }) {
            Ok(moved) => self.moved(cx.hca, moved, self.wqe.total),
            Err(stop) => stopped(stop, FaultEnd::Remote, FaultEnd::Local),
        }
    }

    /// Done, or more to come. The bytes count either way.
    fn moved(&self, hca: &Hca, moved: u64, told: u64) -> Step {
        if self.done + moved < self.wqe.total {
            return Step::Moved(moved);
        }
        self.finish(hca, moved, told)
    }

    fn atomic(&self, cx: &mut Cx<'_>, section: &Section<'_>, peer: &Peer) -> Step {
        if !peer.attrs.remote_atomic || !self.wqe.remote.0.is_multiple_of(8) {
            return Step::Failed(Failure::INVALID_REQUEST);
        }
        let word = match self.target(peer, 8, Rights::ATOMIC) {
            Ok(word) => word,
            Err(failure) => return Step::Failed(failure),
        };
        if self.wqe.total < 8 {
            return Step::Failed(Failure::local(syndrome::LOCAL_LENGTH_ERR));
        }
        let (first, compare) = self.wqe.operands;
        let operation = match self.wqe.kind {
            Kind::CompareSwap => Atomic::CompareSwap { swap: first, compare },
            _ => Atomic::FetchAdd(first),
        };
        let ends = (&word, &self.list(Rights::LOCAL_WRITE));
        match atomic(self.route(cx.hca, &peer.hca), section, (cx.scratch, self.mover()), ends, operation) {
            Ok(()) => self.finish(cx.hca, 0, 8),
            Err(stop) => stopped(stop, FaultEnd::Local, FaultEnd::Remote),
        }
    }

    fn send(&self, cx: &mut Cx<'_>, section: &Section<'_>, peer: &Peer) -> Step {
        self.deliver(cx, section, peer, Arrival::send(self.wqe.extra), None)
    }

    /// A message that takes a receive WQE: SEND scatters into it, RDMA WRITE with immediate (`write`) only completes it.
    fn deliver(
        &self,
        cx: &mut Cx<'_>,
        section: &Section<'_>,
        peer: &Peer,
        arrival: Arrival,
        write: Option<Access>,
    ) -> Step {
        let total = self.wqe.total;
        // What its sender cannot read takes nothing from the responder.
        let part = match total - self.done {
            0 => None,
            left => {
                let from = self.list(Rights::LOCAL_READ);
                match Piece::read(cx.hca, section, cx.scratch, &from, (self.done, left)) {
                    Ok(part) => Some(part),
                    Err(stop) => return stopped(stop, FaultEnd::Local, FaultEnd::Receive),
                }
            }
        };
        let Ok(srq) = self.shared_queue(peer) else { return Step::Failed(Failure::INVALID_REQUEST) };
        let Some(mut responder) = self.receiving(peer).responder.try_lock() else { return Step::Busy };
        let offer = match responder.next(&peer.hca, &peer.qp, &peer.attrs, srq.as_ref()) {
            Ok(offer) => offer,
            Err(NoWqe::NotReady) => {
                peer.attrs.count(Count::OutOfBuffer);
                return if self.is_unreliable() { self.lost(cx, section) } else { Step::NotReady };
            }
            Err(NoWqe::Broken) => return Step::Failed(Failure::BROKEN_QUEUE),
            Err(NoWqe::Misplaced) => return Step::Failed(Failure::INVALID_REQUEST),
        };
        let (aimed, end) = match write {
            Some(access) => (self.aim(cx, (&peer.hca, section), part, &End::Remote { access }), FaultEnd::Remote),
            None if total > offer.wqe().room => {
                // A reliable message is answered, and its receive WQE tells of it too; another is as if it had never come.
                if self.is_unreliable() {
                    return self.lost(cx, section);
                }
                offer.take(&peer.hca);
                return Step::Failed(Failure::TOO_LONG);
            }
            None => (self.aim(cx, (&peer.hca, section), part, &offer.wqe().list(peer.qp.qpn)), FaultEnd::Receive),
        };
        let part = match aimed {
            Ok(part) => part,
            Err(stop) if end == FaultEnd::Remote => return stopped(stop, FaultEnd::Local, end),
            // Nobody waits for the page (contract 9.4).
            Err(stop) if stop.is_absence() && self.is_unreliable() => return self.lost(cx, section),
            Err(stop) => {
                offer.take(&peer.hca);
                return stopped(stop, FaultEnd::Local, end);
            }
        };
        let recv = offer.take(&peer.hca);
        let mut moved = 0;
        if let Some(part) = part {
            moved = match part.copy(self.route(cx.hca, &peer.hca), (cx.scratch, self.mover()), || self.plan(cx.hca)) {
                Ok(moved) => moved,
                Err(stop) => return stopped(stop, FaultEnd::Local, end),
            };
        }
        if self.done + moved < total {
            return Step::Moved(moved);
        }
        if let Extra::Inval(key) = self.wqe.extra
            && !self.has_invalidated(peer)
        {
            // Nothing is left to move when it comes back, but the section must end first.
            return if moved > 0 { Step::Moved(moved) } else { Step::Invalidate(key) };
        }
        let (counter, srqn) = (recv.index, recv.srqn);
        let place = Place { counter, owner: receive_owner(&peer.hca, &peer.qp, srqn) };
        let arrival = Arrival { bytes: total, solicited: self.wqe.solicited, source_qpn: self.qp.qpn, ..arrival };
        let told = match receive_cq(&peer.hca, &peer.attrs, srqn) {
            Some(cq) => received(&peer.hca, &cq, &peer.qp, place, &arrival).is_ok(),
            None => false,
        };
        if !told {
            return Step::Failed(Failure::NO_RECEIVE_CQE);
        }
        responder.completed(&peer.attrs);
        drop(responder);
        self.finish(cx.hca, moved, 0)
    }

    /// Finds where the next part of a message goes, if there is any left.
    fn aim<'a>(
        &self,
        cx: &mut Cx<'_>,
        (there, section): (&Hca, &Section<'_>),
        part: Option<Piece<'a>>,
        to: &End<'_>,
    ) -> Result<Option<Piece<'a>>, Stop> {
        let Some(mut part) = part else { return Ok(None) };
        part.aim(there, section, cx.scratch, to, self.done)?;
        Ok(Some(part))
    }

    /// The SRQ that the message takes a WQE from, if any: XRC messages name it.
    fn shared_queue(&self, peer: &Peer) -> Result<Option<Arc<Srq>>, ()> {
        match self.qp.service {
            service_type::XRC => self.named_queue(peer).map(Some).ok_or(()),
            _ => Ok(peer.attrs.srq.clone()),
        }
    }

    /// The SRQ that an XRC message names, if its target serves it.
    fn named_queue(&self, peer: &Peer) -> Option<Arc<Srq>> {
        peer.hca.srqs.get(self.wqe.srqn).filter(|srq| srq.kind == SrqKind::Xrc && srq.xrcd == peer.attrs.xrcd)
    }

    /// What an injection says about the piece that is translated now. Asked once a WQE.
    fn plan(&self, hca: &Hca) -> Plan {
        if !hca.injections.any() || self.planned.replace(true) {
            return Plan::Copy;
        }
        let mine = |action| {
            matches!(
                action,
                NicAction::LateDma
                    | NicAction::StallInFlight { .. }
                    | NicAction::HideFromLedger
                    | NicAction::PayloadCorrupted
                    | NicAction::FunctionReset
            )
        };
        match hca.injections.consult(&self.shape(), mine) {
            Some(NicAction::LateDma) => Plan::Late,
            Some(NicAction::HideFromLedger) => Plan::Hide,
            Some(NicAction::PayloadCorrupted) => Plan::Corrupt,
            Some(NicAction::FunctionReset) => {
                // Inside the section: the reset finds this in flight.
                later::reset_now(hca);
                Plan::Copy
            }
            Some(NicAction::StallInFlight { ms }) => {
                // Inside the section: that is the fault.
                std::thread::sleep(Duration::from_millis(u64::from(ms)));
                Plan::Copy
            }
            _ => Plan::Copy,
        }
    }
}
