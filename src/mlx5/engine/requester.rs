// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending half of a queue pair, owned by one engine thread: which send WQE is next, how far it is, what it waits for.
//!
//! WQEs are executed strictly in order, each to its end, so a completion never overtakes another and every fence bit is kept.
//! Its state is this file's and its children's: `fetch` takes the next WQE, `wait` says what it waits for, `fail` and `flush` complete in
//! error, `fault` raises page faults. One step is elsewhere ([`super::work`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::diagnosis::Diagnosis;
use super::failure::{Failure, injected};
use super::receive::read_record;
use super::wire::Tally;
use super::work::{Cx, Effect, Peer, Step, Work, has_pkey, receives};
use super::wqe::Kind;
use crate::fabric;
use crate::hca::Hca;
use crate::hooks::{MomentKind, NicMoments};
use crate::levers::Gate;
use crate::mkey::umr::{self, UmrError};
use crate::q_counters::Count;
use crate::qp::{Qp, QpAttrs};
use dma::Backoff;
use mlx5_spec::cq::syndrome;
use mlx5_spec::qp::state;

mod fail;
mod fault;
mod fetch;
mod flush;
mod wait;

use wait::Wait;

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until a doorbell or a kick.
    Idle,
    /// More to do at once; others come first.
    Again,
    /// Look again at that time, or when kicked.
    Until(Instant),
    /// The queue pair does not exist any more.
    Gone,
}

/// See the module's text.
pub struct Requester {
    work: Work,
    /// The doorbell record as last read.
    posted: u16,
    /// `work` holds a WQE that is not done.
    active: bool,
    wait: Wait,
    /// A page fault that an RNR NAK answered: an injection.
    background: Option<(Arc<Hca>, u32)>,
    passed_gate: bool,
    rnr_left: u8,
    retries_left: u8,
    /// RNR NAKs and page faults since the last byte moved.
    rnr_naks: u32,
    faults: u32,
    /// When it was first seen in ERR.
    in_error: Option<Instant>,
    /// Looks at a responder that another engine has.
    busy: Backoff,
}

/// WQEs and bytes of one turn, so that a busy queue pair does not starve the others.
const TURN_WQES: u32 = 64;
const TURN_BYTES: u64 = 1 << 20;

impl Requester {
    /// For a queue pair that is new to the engine.
    pub fn new(qp: Arc<Qp>) -> Self {
        Self {
            work: Work::new(qp),
            posted: 0,
            active: false,
            wait: Wait::No,
            background: None,
            passed_gate: false,
            rnr_left: 0,
            retries_left: 0,
            rnr_naks: 0,
            faults: 0,
            in_error: None,
            busy: Backoff::new(),
        }
    }

    /// Its UAR page.
    pub fn uar(&self) -> u32 {
        self.work.qp.uar
    }

    /// Executes what is due, for a bounded while.
    pub fn turn(&mut self, cx: &mut Cx<'_>) -> Turn {
        let mut bytes = 0;
        let mut wqes = 0;
        let mut tally = Tally::default();
        let turn = loop {
            if !self.refresh(cx.hca) {
                break Turn::Gone;
            }
            match self.work.attrs.state {
                state::RTS => {}
                // A message that has begun is finished.
                state::SQD | state::SQ_DRAINING if self.active => {}
                state::ERR | state::SQER => break self.flush(cx),
                _ => break Turn::Idle,
            }
            if let Some(turn) = self.waits(cx) {
                break turn;
            }
            match self.step(cx) {
                Step::Moved(moved) => {
                    self.busy.reset();
                    self.tell_placed(cx.hca);
                    bytes += moved;
                    self.moved(moved);
                }
                Step::Finished(moved) => {
                    self.busy.reset();
                    self.tell_placed(cx.hca);
                    wqes += 1;
                    bytes += moved;
                    tally.add(cx.hca, &self.work);
                    self.fail_listeners(cx);
                    self.count_request();
                    self.retire();
                }
                Step::Idle => break Turn::Idle,
                Step::Busy => {
                    // Whoever has it may wait for this core.
                    self.busy.pause();
                    break Turn::Again;
                }
                other => self.act(cx, other),
            }
            if wqes >= TURN_WQES || bytes >= TURN_BYTES {
                break Turn::Again;
            }
        };
        cx.hca.counters.wqes.add(u64::from(wqes));
        cx.hca.counters.bytes.add(bytes);
        tally.tell(cx.hca);
        let Work { qp, attrs, .. } = &self.work;
        qp.wqes.fetch_add(u64::from(wqes), Ordering::Relaxed);
        attrs.life.progress.sq_done.store(u32::from(self.work.index), Ordering::Relaxed);
        attrs.life.progress.sq_packets.store(self.work.sent, Ordering::Relaxed);
        turn
    }

    /// `spec::qp::state`, as it knows it.
    pub fn state(&self) -> u32 {
        self.work.attrs.state
    }

    /// Whether a look at its record alone shows new work. For polling.
    pub fn has_news(&self, hca: &Hca) -> bool {
        let Work { attrs, index, .. } = &self.work;
        attrs.state == state::RTS
            && !self.active
            && self.work.in_force()
            && read_record(hca, send_record(attrs)).is_some_and(|posted| posted != *index)
    }

    /// Whether a doorbell may be for this queue pair.
    pub fn wants_turn(&self, hca: &Hca) -> bool {
        matches!(self.work.attrs.state, state::ERR | state::SQER) || !self.work.in_force() || self.has_news(hca)
    }

    /// Takes the attributes that are in force. False when the queue pair is destroyed.
    fn refresh(&mut self, hca: &Hca) -> bool {
        if self.work.in_force() {
            return true;
        }
        let attrs = self.work.qp.attrs();
        if attrs.incarnation != self.work.attrs.incarnation {
            self.abandon(hca);
            (self.work.index, self.work.sent, self.posted, self.active) = (0, 0, 0, false);
        }
        if attrs.state != state::ERR {
            self.in_error = None;
        }
        self.work.attrs = attrs;
        self.work.peer = None;
        hca.qps.get(self.work.qp.qpn).is_some_and(|qp| Arc::ptr_eq(&qp, &self.work.qp))
    }

    fn step(&mut self, cx: &mut Cx<'_>) -> Step {
        let hca = cx.hca;
        let mut section = hca.quiesce.enter(cx.engine);
        if !self.work.in_force() {
            return Step::Again;
        }
        if !self.active {
            match self.fetch(hca) {
                Ok(true) => {
                    if hca.injections.any()
                        && let Some(failure) = injected(hca, &self.work.shape())
                    {
                        self.work.effect = Effect::Refused(failure);
                    }
                }
                Ok(false) => return Step::Idle,
                // Of its WQE nothing else is known: whatever becomes of the attributes, it fails.
                Err(failure) => self.work.effect = Effect::Refused(failure),
            }
        }
        if let Effect::Refused(failure) = self.work.effect {
            return Step::Failed(failure);
        }
        if !self.passed_gate {
            if !hca.levers.idle() {
                drop(section);
                match hca.levers.gate(&hca.injections, &self.work.shape(), (self.uar(), self.work.qp.qpn)) {
                    Gate::Pass => {}
                    Gate::Held(token) => return Step::Held(token),
                }
                section = hca.quiesce.enter(cx.engine);
                if !self.work.in_force() {
                    return Step::Again;
                }
            }
            self.passed_gate = true;
        }
        if self.work.effect == Effect::Due && self.work.wqe.kind == Kind::Umr {
            // A UMR waits for sections itself.
            drop(section);
            self.umr(cx);
            return Step::Again;
        }
        match self.work.is_datagram() {
            true => self.work.peer = self.work.addressee(hca),
            false => self.find_peer(hca),
        }
        // Its device's section lasts as long as this step; what was looked up before it began is looked at again.
        let visited = self.work.peer.as_ref().filter(|peer| !Arc::ptr_eq(&peer.hca, hca)).cloned();
        let _visit = visited.as_ref().and_then(|peer| peer.visit(cx));
        if visited.as_ref().is_some_and(|peer| !peer.in_force()) {
            return Step::Again;
        }
        self.work.execute(cx, &section)
    }

    fn umr(&mut self, cx: &Cx<'_>) {
        let Work { qp, attrs, wqe, bytes, effect, .. } = &mut self.work;
        let wqe = bytes.get(..wqe.bytes).unwrap_or_default();
        match umr::execute(cx.hca, cx.engine, attrs, qp.qpn, wqe) {
            Ok(()) => *effect = Effect::Done,
            Err(error) => {
                log::debug!("QPN {:#x}: UMR: {error}", qp.qpn);
                // Without a syndrome the queue pair has left service, which decides.
                if let Some(why) = Diagnosis::umr(error) {
                    *effect = Effect::Refused(Failure::diagnosed(why));
                }
            }
        }
    }

    /// Looks up the connected peer. None: nobody there answers (IBTA 9.7.5.1: such packets are dropped).
    fn find_peer(&mut self, hca: &Arc<Hca>) {
        if self.work.is_dynamic() {
            self.work.peer = self.work.dc_target(hca);
            return;
        }
        let Work { qp, attrs, peer, .. } = &mut self.work;
        if !peer.as_ref().is_some_and(Peer::in_force) {
            *peer = fabric::resolve(hca, attrs.remote_lid).and_then(|there| {
                let found = there.qps.get(attrs.remote_qpn).filter(|found| found.service == qp.service)?;
                let attrs = found.attrs();
                Some(Peer { hca: there, qp: found, attrs })
            });
        }
        let answered = |there: &Peer| fabric::carries(hca, &there.hca) && answers((hca, qp, attrs), &there.attrs);
        if !peer.as_ref().is_some_and(answered) {
            *peer = None;
        }
    }

    /// Payload is in place for which a page had to come.
    fn tell_placed(&self, hca: &Hca) {
        if self.faults > 0 {
            hca.ledger.moment(self.work.qp.qpn, MomentKind::Placed);
        }
    }

    /// The responder has had the current WQE's request.
    fn count_request(&self) {
        let Some(peer) = &self.work.peer else { return };
        match self.work.wqe.kind {
            Kind::Write => peer.attrs.count(Count::WriteRequests),
            Kind::Read => peer.attrs.count(Count::ReadRequests),
            Kind::CompareSwap | Kind::FetchAdd => peer.attrs.count(Count::AtomicRequests),
            Kind::Nop | Kind::Umr | Kind::Send => {}
        }
    }

    /// Bytes of the message are in place: everything that counts attempts begins anew (IBTA 9.7.6.1.3).
    fn moved(&mut self, bytes: u64) {
        self.work.done += bytes;
        self.begin_attempts();
    }

    fn begin_attempts(&mut self) {
        (self.rnr_naks, self.faults) = (0, 0);
        self.rnr_left = self.work.attrs.rnr_retry;
        self.retries_left = self.work.attrs.retry_count;
    }

    fn act(&mut self, cx: &mut Cx<'_>, step: Step) {
        match step {
            Step::Held(token) => self.wait = Wait::Held(token),
            Step::Late(late) => self.wait = Wait::Late(late),
            Step::Missing(end, page) => self.raise(cx, end, page),
            Step::NotReady => self.not_ready(cx),
            Step::Silence => self.unanswered(),
            Step::OutOfSequence => {
                self.work.attrs.count(Count::SequenceNak);
                self.retry(cx);
            }
            Step::Invalidate(key) => self.invalidate(cx, key),
            Step::Failed(failure) => self.fail(cx, failure),
            Step::Moved(_) | Step::Finished(_) | Step::Again | Step::Idle | Step::Busy => {}
        }
    }

    /// Takes a key of the responder away, unless one of the ends has changed since the data moved: then its message is looked at again.
    fn invalidate(&mut self, cx: &Cx<'_>, key: u32) {
        let Some(peer) = &self.work.peer else { return };
        let enter = || {
            let sections = cx.enter(&peer.hca);
            (self.work.in_force() && peer.in_force()).then_some(sections)
        };
        match umr::invalidate_remote(&peer.hca, (&peer.qp, &peer.attrs), key, enter) {
            Ok(()) => self.work.invalidated = Some(peer.attrs.life.clone()),
            Err(UmrError::Retired) => {}
            Err(error) => {
                log::debug!("QPN {:#x}: send with invalidate: {error}", peer.qp.qpn);
                let failure = Failure::operational(Some(syndrome::LOCAL_QP_OP_ERR), None);
                self.work.effect = Effect::Refused(failure);
            }
        }
    }
}

/// Guest physical address of the send counter: the record's second word (contract 7.1).
fn send_record(attrs: &QpAttrs) -> u64 {
    attrs.record.wrapping_add(4)
}

/// Whether a responder takes packets of a queue pair: connected to it and no other, both with a P_Key that is valid (IBTA 9.6.1.1, 9.6.1.5).
fn answers((hca, qp, attrs): (&Hca, &Qp, &QpAttrs), there: &QpAttrs) -> bool {
    let connected = there.remote_qpn == qp.qpn && there.remote_lid == hca.lid();
    receives(there) && connected && has_pkey(attrs) && has_pkey(there)
}
