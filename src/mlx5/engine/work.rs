// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The send WQE in hand, and what one step of it comes to. A step is a function from [`Work`] to [`Step`]: it moves data and writes CQEs,
//! and changes nothing here. Only the requester does, which alone decides what a [`Step`] means.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::failure::{AtResponder, Failure};
use super::psn::{self, Part};
use super::transfer::{Late, Mover, Route, Scratch};
use super::wqe::{Kind, MAX_SEND_WQE, Seg, SendWqe, umr_key};
use crate::hca::Hca;
use crate::hooks::{Told, WqeShape};
use crate::mkey::PageMissing;
use crate::qp::{Life, Qp, QpAttrs};
use dma::Section;
use mlx5_spec::qp::{service_type, state};

/// What a thread has at hand while it serves a queue pair.
pub struct Cx<'a> {
    /// The device.
    pub hca: &'a Arc<Hca>,
    /// Number of this engine.
    pub engine: usize,
    /// Reused lists.
    pub scratch: &'a mut Scratch,
}

impl Cx<'_> {
    /// Begins a section of the device and one of `there`, if that is another.
    pub fn enter<'s>(&'s self, there: &'s Arc<Hca>) -> (Section<'s>, Option<Section<'s>>) {
        let own = self.hca.quiesce.enter(self.engine);
        (own, (!Arc::ptr_eq(there, self.hca)).then(|| there.quiesce.visit(self.hca.index, self.engine)))
    }
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

/// What one step came to. All but the first four leave the section before they are acted upon.
pub enum Step {
    /// This many bytes more are in place.
    Moved(u64),
    /// The WQE is done and completed; this many bytes more are in place.
    Finished(u64),
    /// Look again: attributes have changed, or an effect outside of sections is there.
    Again,
    /// No WQE is posted.
    Idle,
    /// Another engine has the responder, and copies perhaps: nothing was done.
    Busy,
    /// An injection keeps a part that is translated.
    Late(Box<Late>),
    /// The lab holds it.
    Held(u64),
    /// A page is missing, at this end.
    Missing(FaultEnd, PageMissing),
    /// The responder has no receive WQE: RNR NAK.
    NotReady,
    /// Nobody answers.
    Silence,
    /// NAK "PSN sequence error".
    OutOfSequence,
    /// A key of the responder must be invalidated before the message completes.
    Invalidate(u32),
    /// It failed.
    Failed(Failure),
}

/// What a WQE does between sections, in one of its own: a UMR, the invalidation that comes with a SEND ([`Work::invalidated`]). Kept until
/// its completion is written, so that a change of the queue pair's attributes in between does not make it happen twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Not yet.
    Due,
    /// It is there.
    Done,
    /// It was refused, without a trace.
    Refused(Failure),
}

/// The queue pair at the other end, as last looked up.
#[derive(Clone)]
pub struct Peer {
    /// Its device, which checks, translates and quiesces.
    pub hca: Arc<Hca>,
    /// The queue pair.
    pub qp: Arc<Qp>,
    /// Its attributes; asked inside every section whether they are in force.
    pub attrs: Arc<QpAttrs>,
}

impl Peer {
    /// Begins a section of its device, on engine `cx.engine`'s thread, which is inside one of its own; none if the device is the same.
    pub fn visit(&self, cx: &Cx<'_>) -> Option<Section<'_>> {
        (!Arc::ptr_eq(&self.hca, cx.hca)).then(|| self.hca.quiesce.visit(cx.hca.index, cx.engine))
    }

    /// Whether it is as it was looked up.
    pub fn in_force(&self) -> bool {
        self.qp.in_force(&self.attrs)
    }
}

/// See the module's text.
pub struct Work {
    /// The queue pair.
    pub qp: Arc<Qp>,
    /// Its attributes as last seen.
    pub attrs: Arc<QpAttrs>,
    /// Block counter of the current or next WQE.
    pub index: u16,
    /// Packets sent since RST: the PSN of the WQE's first packet, counted from QPC.next_send_psn.
    pub sent: u32,
    /// The WQE.
    pub wqe: SendWqe,
    /// Its bytes.
    pub bytes: Box<[u8; MAX_SEND_WQE]>,
    /// Bytes of the message that are in place.
    pub done: u64,
    /// Where messages go; connected services.
    pub peer: Option<Peer>,
    /// What it does between sections.
    pub effect: Effect,
    /// The responder's life in which the key that the message names was invalidated. The next one has not seen it.
    pub invalidated: Option<Arc<Life>>,
    /// Injections have been asked about this WQE.
    pub planned: Cell<bool>,
    /// Who has had its message, of those that hear its multicast group: (device, QPN).
    pub heard: RefCell<Vec<(u8, u32)>>,
    /// Those of them whose receive WQE cannot be completed well: what they see of it, once the section has ended.
    pub broken: RefCell<Vec<(Peer, AtResponder)>>,
}

impl Work {
    /// Nothing in hand.
    pub fn new(qp: Arc<Qp>) -> Self {
        let attrs = qp.attrs();
        Self {
            qp,
            attrs,
            index: 0,
            sent: 0,
            wqe: SendWqe::default(),
            bytes: Box::new([0; MAX_SEND_WQE]),
            done: 0,
            peer: None,
            effect: Effect::Due,
            invalidated: None,
            planned: Cell::new(false),
            heard: RefCell::default(),
            broken: RefCell::default(),
        }
    }

    /// Whether the attributes that it was judged by are in force.
    pub fn in_force(&self) -> bool {
        self.qp.in_force(&self.attrs)
    }

    /// Unreliable connection.
    pub fn is_unreliable(&self) -> bool {
        self.qp.service == service_type::UC
    }

    /// DC initiator: each message has its own target.
    pub fn is_dynamic(&self) -> bool {
        self.qp.service == service_type::DCI
    }

    /// Whose receiving half its messages go through. Of a DC target each initiator has its own, which is the one that it does not need
    /// for itself: messages of several initiators arrive in pieces between each other.
    pub fn receiving<'a>(&'a self, peer: &'a Peer) -> &'a Arc<Life> {
        if self.is_dynamic() { &self.attrs.life } else { &peer.attrs.life }
    }

    /// UD, QP0, QP1.
    pub fn is_datagram(&self) -> bool {
        matches!(self.qp.service, service_type::UD | service_type::QP0 | service_type::QP1)
    }

    /// RDMA READ and atomics: the data comes back.
    pub fn is_answered(&self) -> bool {
        matches!(self.wqe.kind, Kind::Read | Kind::CompareSwap | Kind::FetchAdd)
    }

    /// Packets that the WQE takes, in the PSNs of its queue pair (IBTA 9.7.1: a READ takes one for each response).
    pub fn packets(&self) -> u32 {
        match self.wqe.kind {
            Kind::Nop | Kind::Umr => 0,
            _ if self.is_datagram() => 1,
            Kind::CompareSwap | Kind::FetchAdd => 1,
            Kind::Send | Kind::Write | Kind::Read => psn::packets(self.wqe.total, self.attrs.mtu),
        }
    }

    /// Where in the sequence of packets it stands.
    pub fn part(&self) -> Part {
        let first = self.attrs.next_send_psn.wrapping_add(self.sent) & psn::MASK;
        Part { first, done: self.done, total: self.wqe.total, mtu: self.attrs.mtu }
    }

    /// What levers and fault rules match.
    pub fn shape(&self) -> WqeShape {
        let (key, at) = match (self.wqe.kind, self.wqe.segs.first()) {
            (Kind::Umr, _) => (umr_key(&self.bytes[..]), None),
            (Kind::Write | Kind::Read | Kind::CompareSwap | Kind::FetchAdd, _) => {
                let (va, key) = self.wqe.remote;
                (key, Some((va, self.wqe.total)))
            }
            (_, Some(Seg::Key { lkey, va, .. })) => (*lkey, Some((*va, self.wqe.total))),
            _ => (0, None),
        };
        let (opcode, qpn, wqe_index) = (self.wqe.opcode as u8, self.qp.qpn, self.index);
        WqeShape { opcode, qpn, wqe_index, key, command: 0, at, told: Told::Nothing }
    }

    /// From the requester to the responder, or the other way for an RDMA READ.
    pub fn route<'a>(&self, hca: &'a Hca, there: &'a Hca) -> Route<'a> {
        match self.wqe.kind {
            Kind::Read => Route { from: there, to: hca },
            _ => Route { from: hca, to: there },
        }
    }

    /// Whether the message has had its effect on a key of the responder.
    pub fn has_invalidated(&self, peer: &Peer) -> bool {
        self.invalidated.as_ref().is_some_and(|life| Arc::ptr_eq(life, &peer.attrs.life))
    }

    /// Who moves data, for the ledger.
    pub fn mover(&self) -> Mover {
        Mover { qpn: self.qp.qpn }
    }
}

/// Whether a queue pair in this state takes messages.
pub fn receives(attrs: &QpAttrs) -> bool {
    matches!(attrs.state, state::RTR | state::RTS | state::SQD | state::SQ_DRAINING | state::SQER)
}

/// The one valid P_Key of the port is at index 0, the others are 0, which matches nothing (IBTA 10.9.1.1, contract 11.2).
pub fn has_pkey(attrs: &QpAttrs) -> bool {
    attrs.pkey_index == 0
}
