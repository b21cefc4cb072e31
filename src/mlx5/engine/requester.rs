// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending half of a queue pair, owned by one engine thread: which send WQE is next, how far it is, what it waits for.
//!
//! WQEs are executed strictly in order, each to its end, so a completion never overtakes another and every fence bit is kept.
//! A wait (page fault, lever, RNR or transport timer) is a value, [`Park`], and when it is over the piece is translated anew.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::diagnosis::Diagnosis;
use super::failure::Failure;
use super::receive::read_record;
use super::transfer::{Late, Scratch};
use super::wqe::{Kind, MAX_SEND_WQE, SendWqe};
use crate::hca::{Hca, PORT_LID};
use crate::hooks::WqeShape;
use crate::levers::Gate;
use crate::mkey::umr;
use crate::qp::{Qp, QpAttrs};
use mlx5_spec::cq::syndrome;
use mlx5_spec::qp::{dbr, state};

mod fetch;
mod wait;

pub use wait::Park;

/// What a thread has at hand while it serves a queue pair.
pub struct Cx<'a> {
    /// The device.
    pub hca: &'a Arc<Hca>,
    /// Number of this engine.
    pub engine: usize,
    /// Reused lists.
    pub scratch: &'a mut Scratch,
}

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

/// Which end of a message lacks a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultEnd {
    /// The send WQE's own list.
    Local,
    /// Memory that it names at the responder.
    Remote,
    /// The receive WQE's list.
    Receive,
}

/// A page that is missing: key and address of the first byte, as the requester named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Where.
    pub end: FaultEnd,
    /// Key.
    pub key: u32,
    /// Address.
    pub va: u64,
}

/// What one step of a WQE came to. All but the first three leave the section before they are acted upon.
pub enum Outcome {
    /// This many bytes more are in place.
    Moved(u64),
    /// The WQE is done and completed.
    Finished,
    /// The attributes have changed: look again.
    Stale,
    /// No WQE is posted.
    Idle,
    /// An injection keeps a piece that is translated.
    Late(Box<Late>),
    /// A lever holds it.
    Held(u64),
    /// A page is missing.
    Missing(Missing),
    /// The responder has no receive WQE.
    NotReady,
    /// Nobody answers.
    NoPeer,
    /// A key of the responder must be invalidated before the message completes.
    Invalidate(u32),
    /// It failed.
    Failed(Failure),
}

/// The queue pair at the other end, as last looked up.
pub struct Peer {
    /// The queue pair.
    pub qp: Arc<Qp>,
    /// Its attributes; asked inside every section whether they are in force.
    pub attrs: Arc<QpAttrs>,
}

/// See the module's text.
pub struct Requester {
    /// The queue pair.
    pub qp: Arc<Qp>,
    /// Its attributes as last seen.
    pub attrs: Arc<QpAttrs>,
    /// Block counter of the current or next WQE.
    pub next: u16,
    /// The doorbell record as last read.
    pub posted: u16,
    /// `wqe` and `bytes` hold a WQE that is not done.
    pub active: bool,
    /// The WQE.
    pub wqe: SendWqe,
    /// Its bytes.
    pub bytes: Box<[u8; MAX_SEND_WQE]>,
    /// Bytes of the message that are in place.
    pub done: u64,
    /// Where messages go; connected services.
    pub peer: Option<Peer>,
    /// When a timer is due that the engine has been told of.
    pub timer: Option<Instant>,
    /// What the WQE waits for.
    pub park: Park,
    /// A page fault that an RNR NAK answered: an injection.
    pub background: Option<u32>,
    /// Injections have been asked about this WQE.
    pub planned: Cell<bool>,
    passed_gate: bool,
    invalidated: bool,
    rnr_left: u8,
    retries_left: u8,
    /// Page faults since the last byte moved.
    pub faults: u32,
    /// When it was first seen in ERR.
    pub in_error: Option<Instant>,
}

/// WQEs and bytes of one turn, so that a busy queue pair does not starve the others.
const TURN_WQES: u32 = 64;
const TURN_BYTES: u64 = 1 << 20;
impl Requester {
    /// For a queue pair that is new to the engine.
    pub fn new(qp: Arc<Qp>) -> Self {
        let attrs = qp.attrs();
        Self {
            qp,
            attrs,
            next: 0,
            posted: 0,
            active: false,
            wqe: SendWqe::default(),
            bytes: Box::new([0; MAX_SEND_WQE]),
            done: 0,
            peer: None,
            timer: None,
            park: Park::No,
            background: None,
            planned: Cell::new(false),
            passed_gate: false,
            invalidated: false,
            rnr_left: 0,
            retries_left: 0,
            faults: 0,
            in_error: None,
        }
    }

    /// Executes what is due, for a bounded while.
    pub fn turn(&mut self, cx: &mut Cx<'_>) -> Turn {
        let mut bytes = 0;
        let mut wqes = 0;
        let turn = loop {
            if !self.refresh(cx.hca) {
                break Turn::Gone;
            }
            match self.attrs.state {
                state::RTS => {}
                // A message that has begun is finished.
                state::SQD | state::SQ_DRAINING if self.active => {}
                state::ERR | state::SQER => break self.flush(cx),
                _ => break Turn::Idle,
            }
            if let Some(turn) = self.parked(cx) {
                break turn;
            }
            match self.step(cx) {
                Outcome::Moved(moved) => {
                    bytes += moved;
                    self.faults = 0;
                    self.done += moved;
                }
                Outcome::Finished => {
                    wqes += 1;
                    self.retire();
                }
                Outcome::Idle => break Turn::Idle,
                other => self.act(cx, other),
            }
            if wqes >= TURN_WQES || bytes >= TURN_BYTES {
                break Turn::Again;
            }
        };
        cx.hca.counters.wqes.add(u64::from(wqes));
        cx.hca.counters.bytes.add(bytes);
        self.qp.progress.wqes.fetch_add(u64::from(wqes), Ordering::Relaxed);
        self.qp.progress.sq_done.store(u32::from(self.next), Ordering::Relaxed);
        turn
    }

    /// Whether a look at its record alone shows new work. For polling.
    pub fn has_news(&self, hca: &Hca) -> bool {
        self.attrs.state == state::RTS
            && !self.active
            && self.qp.in_force(&self.attrs)
            && read_record(hca, send_record(&self.attrs)).is_some_and(|posted| posted != self.next)
    }

    /// Whether a doorbell may be for this queue pair.
    pub fn wants_turn(&self, hca: &Hca) -> bool {
        matches!(self.attrs.state, state::ERR | state::SQER) || !self.qp.in_force(&self.attrs) || self.has_news(hca)
    }

    /// Takes the attributes that are in force. False when the queue pair is destroyed.
    fn refresh(&mut self, hca: &Hca) -> bool {
        if self.qp.in_force(&self.attrs) {
            return true;
        }
        let attrs = self.qp.attrs();
        if attrs.incarnation != self.attrs.incarnation {
            self.abandon(hca);
            (self.next, self.posted, self.active) = (0, 0, false);
        }
        if attrs.state != state::ERR {
            self.in_error = None;
        }
        self.attrs = attrs;
        self.peer = None;
        hca.qps.get(self.qp.qpn).is_some_and(|qp| Arc::ptr_eq(&qp, &self.qp))
    }

    fn step(&mut self, cx: &mut Cx<'_>) -> Outcome {
        let hca = cx.hca;
        let mut section = hca.quiesce.enter(cx.engine);
        if !self.qp.in_force(&self.attrs) {
            return Outcome::Stale;
        }
        if !self.active {
            match self.fetch(hca) {
                Ok(true) => {}
                Ok(false) => return Outcome::Idle,
                Err(failure) => return Outcome::Failed(failure),
            }
        }
        if !self.passed_gate {
            if !hca.levers.idle() {
                drop(section);
                match hca.levers.gate(&self.shape(), (self.qp.uar, self.qp.qpn)) {
                    Gate::Pass => {}
                    Gate::Held(token) => return Outcome::Held(token),
                }
                section = hca.quiesce.enter(cx.engine);
                if !self.qp.in_force(&self.attrs) {
                    return Outcome::Stale;
                }
            }
            self.passed_gate = true;
        }
        if self.wqe.kind != Kind::Umr {
            return self.execute(cx, &section);
        }
        // A UMR waits for sections itself.
        drop(section);
        let wqe = self.bytes.get(..self.wqe.bytes).unwrap_or_default();
        match umr::execute(hca, cx.engine, &self.attrs, self.qp.qpn, wqe) {
            Ok(()) => {
                let _section = hca.quiesce.enter(cx.engine);
                if self.qp.in_force(&self.attrs) { self.finish(hca, 0) } else { Outcome::Stale }
            }
            Err(error) => {
                log::debug!("QPN {:#x}: UMR: {error}", self.qp.qpn);
                Diagnosis::umr(error).map_or(Outcome::Stale, |why| Outcome::Failed(Failure::diagnosed(why)))
            }
        }
    }

    /// What levers and fault rules match.
    pub fn shape(&self) -> WqeShape {
        let key = match (self.wqe.kind, self.wqe.segs.first()) {
            (Kind::Umr, _) => super::wqe::umr_key(&self.bytes[..]),
            (Kind::Write | Kind::Read | Kind::CompareSwap | Kind::FetchAdd, _) => self.wqe.remote.1,
            (_, Some(super::wqe::Seg::Key { lkey, .. })) => *lkey,
            _ => 0,
        };
        WqeShape { opcode: self.wqe.opcode as u8, qpn: self.qp.qpn, wqe_index: self.next, key }
    }

    /// Looks up the connected peer; false: nobody there answers (IBTA 9.7.5.1: such packets are dropped).
    pub fn find_peer(&mut self, hca: &Hca) -> bool {
        if !self.peer.as_ref().is_some_and(|peer| peer.qp.in_force(&peer.attrs)) {
            self.peer = match hca.qps.get(self.attrs.remote_qpn) {
                Some(qp) if self.attrs.remote_lid == PORT_LID && qp.service == self.qp.service => {
                    let attrs = qp.attrs();
                    Some(Peer { qp, attrs })
                }
                _ => None,
            };
        }
        self.peer.as_ref().is_some_and(|Peer { attrs, .. }| receives(attrs) && attrs.remote_qpn == self.qp.qpn)
    }

    /// Whether a key that the message invalidates has been.
    pub fn invalidated(&self) -> bool {
        self.invalidated
    }

    fn act(&mut self, cx: &mut Cx<'_>, outcome: Outcome) {
        match outcome {
            Outcome::Held(token) => self.park = Park::Gated(token),
            Outcome::Late(late) => self.park = Park::Late(late),
            Outcome::Missing(missing) => self.raise(cx, missing),
            Outcome::NotReady => self.not_ready(cx),
            Outcome::NoPeer => self.no_peer(cx),
            Outcome::Invalidate(key) => self.invalidate(cx, key),
            Outcome::Failed(failure) => self.fail(cx, failure),
            Outcome::Moved(_) | Outcome::Finished | Outcome::Stale | Outcome::Idle => {}
        }
    }

    fn invalidate(&mut self, cx: &mut Cx<'_>, key: u32) {
        let Some(peer) = &self.peer else { return };
        match umr::invalidate_remote(cx.hca, &peer.qp, &peer.attrs, key) {
            Ok(()) => self.invalidated = true,
            Err(error) => {
                log::debug!("QPN {:#x}: send with invalidate: {error}", peer.qp.qpn);
                self.fail(cx, Failure::operational(Some(syndrome::LOCAL_QP_OP_ERR), None));
            }
        }
    }
}

/// Guest physical address of the send counter.
pub fn send_record(attrs: &QpAttrs) -> u64 {
    let _ = dbr::SEND_COUNTER;
    attrs.record.wrapping_add(4)
}

/// Whether a queue pair in this state takes messages.
pub fn receives(attrs: &QpAttrs) -> bool {
    matches!(attrs.state, state::RTR | state::RTS | state::SQD | state::SQ_DRAINING | state::SQER)
}
