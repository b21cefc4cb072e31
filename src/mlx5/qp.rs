// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs as registers, commands and engines see them. The command unit changes [`QpAttrs`] as a whole; engines take a copy and check inside
//! every section that it is still the one in force.

use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::buffer::GuestBuffer;
use super::cq::Cq;
use super::engine::{Responder, Sequence};
use super::q_counters::{Count, QCounters};
use super::srq::Srq;
use super::users::Uses;
use mlx5_spec::qp::state;

/// Where the work queues lie in the buffer (contract 7.2): RQ at 0, SQ behind it, each wrapping by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// log2 of the receive WQEs; `None`: no receive queue of its own.
    pub log_rq_size: Option<u32>,
    /// log2 of the bytes of a receive WQE.
    pub log_rq_stride: u32,
    /// QPC.wq_signature: a receive WQE begins with a segment for its signature. Nobody checks it, nor that of send WQEs.
    pub signed: bool,
    /// log2 of the 64-byte send blocks; `None`: no send queue.
    pub log_sq_size: Option<u32>,
    /// Byte offset of the send queue.
    pub sq_offset: u64,
}

/// What a queue pair is at one time. Never changed in place.
#[derive(Clone)]
pub struct QpAttrs {
    /// Counts changes; `Qp::generation` tells whether this copy is in force.
    pub generation: u64,
    /// Counts 2RST: when it changes, a new life begins.
    pub incarnation: u64,
    /// What there is from one RST to the next. An engine that still holds old attributes reaches only the old life.
    pub life: Arc<Life>,
    /// `spec::qp::state`.
    pub state: u32,
    /// Protection domain.
    pub pd: u32,
    /// Where send completions go.
    pub send_cq: Option<Arc<Cq>>,
    /// Where receive completions go.
    pub recv_cq: Option<Arc<Cq>>,
    /// Shared receive queue (rq_type 1; RMP or XRC SRQ).
    pub srq: Option<Arc<Srq>>,
    /// Peer's QPN.
    pub remote_qpn: u32,
    /// Peer's LID from the primary path.
    pub remote_lid: u16,
    /// Primary path has a GRH, whose destination GID this is.
    pub remote_gid: Option<[u8; 16]>,
    /// Path MTU in bytes.
    pub mtu: u32,
    /// PSN of the first packet that it sends after RST, 24 bits.
    pub next_send_psn: u32,
    /// PSN of the first packet that it expects after RST, 24 bits.
    pub next_rcv_psn: u32,
    /// QPC.rre, rwe, rae: what the peer may do.
    pub remote_read: bool,
    /// See `remote_read`.
    pub remote_write: bool,
    /// See `remote_read`.
    pub remote_atomic: bool,
    /// Transport retries, 0 to 7.
    pub retry_count: u8,
    /// RNR retries, 7: without end.
    pub rnr_retry: u8,
    /// Code of the RNR NAK timer that this side asks for (IBTA 9.7.5.2.8).
    pub min_rnr_nak: u8,
    /// Code of the acknowledge timeout: 4.096 us << code, 0: never (IBTA 9.7.6.1.3).
    pub ack_timeout: u8,
    /// Q_Key of UD and special QPs.
    pub qkey: u32,
    /// P_Key index.
    pub pkey_index: u16,
    /// XRC domain: a target serves the SRQs of its own.
    pub xrcd: u32,
    /// Of a DC target: the key that initiators must name.
    pub dc_key: u64,
    /// Does not hear what it sends to a group that it is attached to.
    pub deaf_to_itself: bool,
    /// Where what happens to it is counted.
    pub counters: Option<Arc<QCounters>>,
    /// Guest physical address of the doorbell record: first the receive counter, then the send counter.
    pub record: u64,
}

/// A queue pair.
pub struct Qp {
    /// Its number.
    pub qpn: u32,
    /// `spec::qp::service_type`: RC, UC, UD, QP0, QP1, REG_UMR...
    pub service: u32,
    /// Value for CQEs with cqe_version 1.
    pub user_index: u32,
    /// UAR page whose doorbells it obeys; decides its engine.
    pub uar: u32,
    /// Kernel QPs may fast-register and use the reserved lkey.
    pub layout: QueueLayout,
    /// Work queues.
    pub buffer: GuestBuffer,
    /// Its domains, completion queues and shared receive queue.
    pub uses: Uses,
    /// The umem that its work queues lie in, if one.
    pub lies_in: Uses,
    /// QPC as created and modified, for QUERY_QP. The command unit's.
    pub context: Mutex<Vec<u8>>,
    /// Send WQEs executed, for inspection.
    pub wqes: AtomicU64,
    generation: AtomicU64,
    attrs: RwLock<Arc<QpAttrs>>,
}

/// What a queue pair has from one RST to the next: nothing of it is seen by the next life.
#[derive(Default)]
pub struct Life {
    /// The receiving half, which the engines of its peers use: each keeps it for its message's part, the copy included, so that receive WQEs
    /// are completed in order. Nobody waits for it inside a section: who does not get it there looks again.
    pub responder: Mutex<Responder>,
    /// Packet sequence numbers of what arrives.
    pub expected: Sequence,
    /// How far it is, for QUERY_QP and inspection.
    pub progress: Progress,
}

/// Counters that engines leave for QUERY_QP and inspection.
#[derive(Debug, Default)]
pub struct Progress {
    /// Send WQEBBs executed.
    pub sq_done: AtomicU32,
    /// Packets sent: QPC.next_send_psn is so much further.
    pub sq_packets: AtomicU32,
    /// Receive WQEs consumed.
    pub rq_done: AtomicU32,
}

impl Qp {
    /// A queue pair in RST.
    pub fn new(qpn: u32, spec: QpSpec) -> Self {
        let QpSpec { service, user_index, uar, layout, buffer, context, attrs } = spec;
        Self {
            qpn,
            service,
            user_index,
            uar,
            layout,
            buffer,
            uses: Uses::default(),
            lies_in: Uses::default(),
            context: Mutex::new(context),
            wqes: AtomicU64::new(0),
            generation: AtomicU64::new(attrs.generation),
            attrs: RwLock::new(Arc::new(attrs)),
        }
    }

    /// What it is now.
    pub fn attrs(&self) -> Arc<QpAttrs> {
        self.attrs.read().clone()
    }

    /// Whether `attrs` is still in force. Ask inside a section, right before data or a completion moves.
    pub fn in_force(&self, attrs: &QpAttrs) -> bool {
        self.generation.load(Ordering::Acquire) == attrs.generation
    }

    /// Puts changed attributes in force. Use [`super::hca::Hca::change_qp`], which also waits for what is in flight.
    pub(super) fn replace(&self, change: impl FnOnce(&mut QpAttrs)) {
        let mut slot = self.attrs.write();
        let mut attrs = QpAttrs::clone(&slot);
        change(&mut attrs);
        if attrs.incarnation != slot.incarnation {
            attrs.life = Arc::default();
        }
        attrs.generation += 1;
        let generation = attrs.generation;
        *slot = Arc::new(attrs);
        self.generation.store(generation, Ordering::Release);
    }

    /// Whether it still executes what it began under `attrs`: in the same life, and not in error. Ask as [`Qp::in_force`].
    pub fn serves(&self, attrs: &QpAttrs) -> bool {
        let serves = |now: &QpAttrs| {
            let goes_on = matches!(now.state, state::RTS | state::SQD | state::SQ_DRAINING);
            goes_on && now.incarnation == attrs.incarnation
        };
        self.in_force(attrs) || serves(&self.attrs())
    }
}

/// Everything CREATE_QP decides.
pub struct QpSpec {
    /// QPC.st.
    pub service: u32,
    /// QPC.user_index.
    pub user_index: u32,
    /// QPC.uar_page.
    pub uar: u32,
    /// Work queues in the buffer.
    pub layout: QueueLayout,
    /// Work queues.
    pub buffer: GuestBuffer,
    /// QPC as created.
    pub context: Vec<u8>,
    /// RST, with what CREATE named.
    pub attrs: QpAttrs,
}

impl QpAttrs {
    /// Counts something that has happened to it.
    pub fn count(&self, what: Count) {
        if let Some(counters) = &self.counters {
            counters.add(what);
        }
    }
}

impl Default for QpAttrs {
    fn default() -> Self {
        Self {
            generation: 0,
            incarnation: 0,
            life: Arc::default(),
            state: state::RST,
            pd: 0,
            send_cq: None,
            recv_cq: None,
            srq: None,
            remote_qpn: 0,
            remote_lid: 0,
            remote_gid: None,
            mtu: 0,
            next_send_psn: 0,
            next_rcv_psn: 0,
            remote_read: false,
            remote_write: false,
            remote_atomic: false,
            retry_count: 0,
            rnr_retry: 0,
            min_rnr_nak: 0,
            ack_timeout: 0,
            qkey: 0,
            pkey_index: 0,
            xrcd: 0,
            dc_key: 0,
            deaf_to_itself: false,
            counters: None,
            record: 0,
        }
    }
}
