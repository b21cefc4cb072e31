// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues: RMP, XRC SRQ and SRQ, one number space (contract 6.5, 7.4). Taking WQEs from them is the engine's
//! ([`super::engine`]); the command unit makes, queries, limits and destroys them.

use parking_lot::Mutex;

use super::buffer::GuestBuffer;
use super::engine::read_record;
use super::eq::Event;
use super::hca::Hca;
use super::users::{Used, Users, Uses};
use mlx5_spec::eq::{eqe_qp_srq, event};

/// Which command family made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SrqKind {
    /// CREATE_RMP (ISSI 1, basic).
    Rmp,
    /// CREATE_XRC_SRQ.
    Xrc,
    /// CREATE_SRQ (ISSI 0).
    Basic,
}

/// A shared receive queue: a linked list of WQEs.
pub struct Srq {
    /// Its number.
    pub srqn: u32,
    /// Family.
    pub kind: SrqKind,
    /// Protection domain of its buffers.
    pub pd: u32,
    /// XRC: user_index for CQEs.
    pub user_index: u32,
    /// XRC: domain.
    pub xrcd: u32,
    /// XRC: completion queue.
    pub cqn: u32,
    /// log2 of the WQEs.
    pub log_size: u32,
    /// log2 of the bytes of a WQE.
    pub log_stride: u32,
    /// Guest physical address of the doorbell record: counter of posted WQEs mod 2^16.
    pub record: u64,
    /// WQEs.
    pub buffer: GuestBuffer,
    /// Queue pairs that receive from it. XRC messages name theirs themselves.
    pub users: Users,
    /// Its domains and, XRC, its completion queue.
    pub uses: Uses,
    /// Context as created, for queries.
    pub context: Mutex<Vec<u8>>,
    /// Where the engines are in the list.
    pub state: Mutex<SrqState>,
}

impl Used for Srq {
    fn users(&self) -> &Users {
        &self.users
    }
}

/// Progress in the list.
#[derive(Debug, Default)]
pub struct SrqState {
    /// Index of the WQE that is taken next: the link of the one taken last; the list begins at 0.
    pub next: u16,
    /// WQEs taken so far; wrapping 16 bits like the record.
    pub taken: u16,
    /// Limit event wanted when fewer WQEs than this are left; 0: none (contract 6.5).
    pub limit: u16,
    /// Destroyed, or its list cannot be followed: nothing is taken any more.
    pub dead: bool,
}

impl SrqState {
    /// Whether the limit event is due with `left` WQEs; it is then due no more (contract 6.5).
    pub fn fires_at(&mut self, left: u16) -> bool {
        let fires = left < self.limit;
        if fires {
            self.limit = 0;
        }
        fires
    }
}

impl Srq {
    /// Wants the limit event once when fewer WQEs than `limit` are left: at once if there are fewer already, for perhaps no message comes
    /// that would take one more. 0: never.
    pub fn arm(&self, hca: &Hca, limit: u16) {
        let mut state = self.state.lock();
        state.limit = limit;
        let left = read_record(hca, self.record).map(|posted| posted.wrapping_sub(state.taken));
        let below = left.is_some_and(|left| state.fires_at(left));
        drop(state);
        if below {
            hca.async_event(self.limit_event());
        }
    }

    /// What tells that the limit is reached.
    pub fn limit_event(&self) -> Event {
        Event::new(event::SRQ_RQ_LIMIT, 0).with(eqe_qp_srq::QP_SRQ_N, self.srqn)
    }
}
