// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! In ERR (both queues) or SQER (send queue): whatever is posted completes in error, in order.

use std::time::{Duration, Instant};

use super::{Cx, Requester, Turn, Work, send_record};
use crate::engine::completion::{Half, Place, failed, receive_owner};
use crate::engine::diagnosis::Diagnosis;
use crate::engine::failure::{receive_cq, tell};
use crate::engine::receive::read_record;
use crate::engine::wqe::{BLOCK, Kind, length, opcode_of};
use crate::hca::Hca;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use mlx5_spec::qp::state;

/// WQEs of each queue that one turn flushes.
const FLUSH_TURN: u32 = 256;
/// How long a queue pair has been in ERR, and how often its records are looked at then.
const RELOOK: [(Duration, Duration); 3] = [
    (Duration::from_secs(1), Duration::from_millis(1)),
    (Duration::from_secs(30), Duration::from_millis(20)),
    (Duration::MAX, Duration::from_millis(200)),
];

impl Requester {
    /// Flushes, and goes on looking for what is posted later, since receive queues have no doorbell.
    pub(super) fn flush(&mut self, cx: &mut Cx<'_>) -> Turn {
        self.abandon(cx.hca);
        let both = self.work.attrs.state == state::ERR;
        for _ in 0..FLUSH_TURN {
            let section = cx.hca.quiesce.enter(cx.engine);
            if !self.work.in_force() {
                return Turn::Again;
            }
            let more = self.flush_send(cx.hca) | (both && self.flush_receive(cx.hca));
            drop(section);
            if !more {
                return self.flushed(cx, both);
            }
        }
        Turn::Again
    }

    fn flushed(&mut self, cx: &Cx<'_>, both: bool) -> Turn {
        if !both {
            return Turn::Idle;
        }
        let Work { qp, attrs, .. } = &self.work;
        if attrs.life.responder.try_lock().is_some_and(|mut responder| responder.last_reached(attrs)) {
            tell(cx, (cx.hca, qp, attrs), event::SRQ_LAST_WQE);
        }
        let now = Instant::now();
        let since = now - *self.in_error.get_or_insert(now);
        let (_, again) = RELOOK.iter().find(|(until, _)| since < *until).unwrap_or(&RELOOK[RELOOK.len() - 1]);
        Turn::Until(now + *again)
    }

    /// One send WQE; false: none is left.
    fn flush_send(&mut self, hca: &Hca) -> bool {
        let Some(log_size) = self.work.qp.layout.log_sq_size else { return false };
        if !self.active {
            let index = self.work.index;
            self.posted = read_record(hca, send_record(&self.work.attrs)).unwrap_or(index);
            let available = self.posted.wrapping_sub(index);
            if available == 0 {
                return false;
            }
            let blocks = 1u32 << log_size.min(16);
            if u32::from(available) > blocks {
                self.work.index = self.posted.wrapping_sub(blocks as u16);
            }
            self.control_of_next(hca, blocks, available);
        }
        let work = &self.work;
        if let Some(cq) = &work.attrs.send_cq {
            let place = Place { counter: work.index, owner: work.qp.user_index };
            let half = Half::Requester(work.wqe.opcode);
            let _ = failed(hca, cq, &work.qp, place, half, Diagnosis::send(syndrome::WR_FLUSH_ERR));
        }
        self.retire();
        true
    }

    /// Opcode and length of the next WQE, as far as they can be read.
    fn control_of_next(&mut self, hca: &Hca, blocks: u32, available: u16) {
        let work = &mut self.work;
        let slot = u64::from(work.index) & u64::from(blocks - 1);
        let mut control = [0; 16];
        let at = work.qp.layout.sq_offset.saturating_add(slot * BLOCK as u64);
        let _ = work.qp.buffer.read(&hca.dma, at, &mut control);
        // Of a kind that takes no packets: it is not sent.
        work.wqe.kind = Kind::Nop;
        work.wqe.opcode = opcode_of(&control);
        work.wqe.bytes = length(&control).unwrap_or(BLOCK).min(usize::from(available) * BLOCK);
        self.active = true;
    }

    /// One receive WQE; false: none is left, or a message that began before the error has the responder still. Then it is done at a later look.
    fn flush_receive(&mut self, hca: &Hca) -> bool {
        let (qp, attrs) = (&self.work.qp, &self.work.attrs);
        let Some(mut responder) = attrs.life.responder.try_lock() else { return false };
        let Some((counter, srqn)) = responder.to_flush(hca, qp, attrs) else { return false };
        if let Some(cq) = receive_cq(hca, attrs, srqn) {
            let place = Place { counter, owner: receive_owner(hca, qp, srqn) };
            let _ = failed(hca, &cq, qp, place, Half::Responder, Diagnosis::receive(syndrome::WR_FLUSH_ERR));
        }
        responder.completed(attrs);
        true
    }
}
