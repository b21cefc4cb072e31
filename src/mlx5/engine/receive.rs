// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking receive WQEs: from a queue pair's own queue, in order, or from a shared one, along its linked list (contract 7.4).
//!
//! Posting has no doorbell: the record in guest memory is read whenever a WQE is needed and none is known of.

use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::transfer::End;
use super::wqe::{Head, MAX_RECV_WQE, Seg, parse_receive};
use crate::eq::Event;
use crate::hca::Hca;
use crate::mkey::Rights;
use crate::qp::{Qp, QpAttrs};
use crate::srq::{Srq, SrqState};
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::wqe::srq_next;

/// The receiving half of a queue pair in one of its lives: progress in its receive queue and the message that is arriving. Locked by the engine of the peer
/// whose message arrives, or by the queue pair's own engine when it flushes, and waited for outside of sections only; commands never take it.
#[derive(Debug, Default)]
pub struct Responder {
    /// Receive WQEs done since RST: the own queue's index of the next one.
    done: u16,
    /// The record's counter as last read.
    posted: u16,
    /// `wqe` is taken and not yet completed.
    held: bool,
    /// The last WQE event has been told (contract 12.2).
    told_last: bool,
    wqe: RecvWqe,
}

/// A receive WQE.
#[derive(Debug, Default)]
pub struct RecvWqe {
    /// Own queue: counter; shared: index. What `wqe_counter` of the CQE says.
    pub index: u16,
    /// Protection domain of its keys.
    pub pd: u32,
    /// SRQN, if it came from there.
    pub srqn: Option<u32>,
    /// Scatter list.
    pub segs: Vec<Seg>,
    /// Bytes of room.
    pub room: u64,
    /// As copied in.
    bytes: Vec<u8>,
}

impl RecvWqe {
    /// Where the message goes that arrives at queue pair `qpn`.
    pub fn list(&self, qpn: u32) -> End<'_> {
        End::List { segs: &self.segs, wqe: &[], pd: self.pd, qpn, rights: Rights::LOCAL_WRITE }
    }
}

/// Why there is no receive WQE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoWqe {
    /// None is posted: receiver not ready.
    NotReady,
    /// The queue cannot be read: not guest RAM, or a list that leads nowhere.
    Broken,
    /// The message before this one, which has not ended, took a WQE of another queue.
    Misplaced,
}

/// What an index of a queue in a doorbell record says; `None` if the record is not in guest RAM or not aligned. The driver has written the
/// WQEs that it counts before it, so they are read after it.
pub fn read_record(hca: &Hca, at: u64) -> Option<u16> {
    let value: u32 = hca.dma.load(at, Ordering::Acquire).ok()?;
    Some(u32::from_be(value) as u16)
}

/// The receive WQE for a message, read but not taken: whoever drops it leaves it to the next message of any queue pair.
pub struct Offer<'a> {
    responder: &'a mut Responder,
    /// The queue that it is of, which stays locked so that nobody else is offered it, and how many are posted there.
    shared: Option<(&'a Srq, MutexGuard<'a, SrqState>, u16)>,
}

impl<'a> Offer<'a> {
    /// The WQE.
    pub fn wqe(&self) -> &RecvWqe {
        &self.responder.wqe
    }

    /// Takes it: it is the message's until [`Responder::completed`].
    pub fn take(self, hca: &Hca) -> &'a RecvWqe {
        self.responder.held = true;
        if let Some((srq, mut state, posted)) = self.shared {
            state.next = srq_next::NEXT_WQE_INDEX.get(&self.responder.wqe.bytes) as u16;
            state.taken = state.taken.wrapping_add(1);
            let below = state.fires_at(posted - 1);
            drop(state);
            if below {
                hca.async_event(srq.limit_event());
            }
        }
        &self.responder.wqe
    }
}

impl Responder {
    /// The WQE for the message that arrives: the one that is held, or the next.
    pub fn next<'a>(
        &'a mut self,
        hca: &Hca,
        qp: &Qp,
        attrs: &QpAttrs,
        srq: Option<&'a Arc<Srq>>,
    ) -> Result<Offer<'a>, NoWqe> {
        if self.held {
            let same = self.wqe.srqn == srq.map(|srq| srq.srqn);
            return if same { Ok(Offer { responder: self, shared: None }) } else { Err(NoWqe::Misplaced) };
        }
        let shared = match srq {
            Some(srq) => {
                let (state, posted) = read_shared(hca, srq, &mut self.wqe)?;
                Some((srq.as_ref(), state, posted))
            }
            None => {
                self.read_own(hca, qp, attrs)?;
                None
            }
        };
        Ok(Offer { responder: self, shared })
    }

    fn read_own(&mut self, hca: &Hca, qp: &Qp, attrs: &QpAttrs) -> Result<(), NoWqe> {
        let log_size = qp.layout.log_rq_size.ok_or(NoWqe::NotReady)?;
        if !self.any_posted(hca, attrs) {
            return Err(NoWqe::NotReady);
        }
        let slot = u64::from(self.done) & ((1 << log_size.min(16)) - 1);
        let stride = (1usize << qp.layout.log_rq_stride.min(11)).min(MAX_RECV_WQE);
        self.wqe.bytes.resize(stride, 0);
        qp.buffer.read(&hca.dma, slot * stride as u64, &mut self.wqe.bytes).map_err(|_| NoWqe::Broken)?;
        self.wqe.room = parse_receive(
            &self.wqe.bytes,
            if qp.layout.signed { Head::Signature } else { Head::None },
            &mut self.wqe.segs,
        );
        self.wqe.index = self.done;
        self.wqe.pd = attrs.pd;
        self.wqe.srqn = None;
        Ok(())
    }

    fn any_posted(&mut self, hca: &Hca, attrs: &QpAttrs) -> bool {
        if self.posted == self.done {
            self.posted = read_record(hca, attrs.record).unwrap_or(self.done);
        }
        self.posted != self.done
    }

    /// Index and SRQN of the WQE that is taken and not completed.
    pub fn held(&self) -> Option<(u16, Option<u32>)> {
        self.held.then_some((self.wqe.index, self.wqe.srqn))
    }

    /// The WQE that was taken is completed.
    pub fn completed(&mut self, attrs: &QpAttrs) {
        self.held = false;
        if self.wqe.srqn.is_none() {
            self.done = self.done.wrapping_add(1);
            attrs.life.progress.rq_done.store(u32::from(self.done), Ordering::Relaxed);
        }
    }

    /// For a queue pair in ERR: the next WQE to flush, as `wqe_counter` and SRQN. Of a shared queue only the one that was taken.
    pub fn to_flush(&mut self, hca: &Hca, qp: &Qp, attrs: &QpAttrs) -> Option<(u16, Option<u32>)> {
        if self.held {
            return self.held();
        }
        let log_size = qp.layout.log_rq_size.filter(|_| attrs.srq.is_none())?;
        if !self.any_posted(hca, attrs) {
            return None;
        }
        // A record beyond the queue is the guest's mistake: as many as the queue has.
        let size = 1u16.checked_shl(log_size).unwrap_or(u16::MAX);
        if self.posted.wrapping_sub(self.done) > size {
            self.done = self.posted.wrapping_sub(size);
        }
        self.wqe.srqn = None;
        Some((self.done, None))
    }

    /// Whether the event that the last WQE has been reached is due, once.
    pub fn last_reached(&mut self, attrs: &QpAttrs) -> bool {
        let due = attrs.srq.is_some() && !self.held && !self.told_last;
        self.told_last |= due;
        due
    }
}

/// Reads the next WQE of the list, and its link with it; how many are posted. The link of a posted WQE is good: the driver follows it itself when
/// it posts, and never posts the tail. Once the WQE is completed it may be the tail, whose link the driver writes when it frees another.
fn read_shared<'a>(hca: &Hca, srq: &'a Srq, wqe: &mut RecvWqe) -> Result<(MutexGuard<'a, SrqState>, u16), NoWqe> {
    let mut state = srq.state.lock();
    if state.dead {
        return Err(NoWqe::Broken);
    }
    let posted = read_record(hca, srq.record).ok_or(NoWqe::Broken)?.wrapping_sub(state.taken);
    if posted == 0 {
        return Err(NoWqe::NotReady);
    }
    if follow(hca, srq, &state, wqe).is_none() {
        state.dead = true;
        drop(state);
        let broken = Event::new(event::SRQ_CATAS_ERROR, 0);
        hca.async_event(broken.with(eqe_qp_srq::QP_SRQ_N, srq.srqn));
        return Err(NoWqe::Broken);
    }
    Ok((state, posted))
}

fn follow(hca: &Hca, srq: &Srq, state: &SrqState, wqe: &mut RecvWqe) -> Option<()> {
    let stride = (1usize << srq.log_stride.min(11)).min(MAX_RECV_WQE);
    let at = |index: u16| u64::from(index) * stride as u64;
    if u32::from(state.next) >= 1 << srq.log_size.min(16) {
        return None;
    }
    wqe.bytes.resize(stride, 0);
    srq.buffer.read(&hca.dma, at(state.next), &mut wqe.bytes).ok()?;
    wqe.room = parse_receive(&wqe.bytes, Head::Next, &mut wqe.segs);
    wqe.index = state.next;
    wqe.pd = srq.pd;
    wqe.srqn = Some(srq.srqn);
    Some(())
}
