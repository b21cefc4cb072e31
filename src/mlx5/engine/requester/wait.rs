// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a send WQE waits for, and what ends the wait. A wait is a value: it holds no section, lock or translation.
//!
//! Nothing is polled that can tell: a resumed page fault, room for another and a change of the responder kick the queue pair.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Cx, Requester, Turn};
use crate::engine::failure::Failure;
use crate::engine::transfer::Late;
use crate::engine::work::FaultEnd;
use crate::hca::Hca;
use crate::mkey::PageMissing;
use crate::odp::FaultState;
use crate::q_counters::Count;
use mlx5_spec::cq::syndrome;

/// What the current WQE waits for.
pub(super) enum Wait {
    /// Nothing.
    No,
    /// The lab.
    Held(u64),
    /// An injection: the death of a translation.
    Late(Box<Late>),
    /// A page.
    Page(PageWait),
    /// Room for one more live page fault.
    Room,
    /// The RNR NAK timer.
    Rnr(Instant),
    /// The acknowledge timeout.
    Ack(Instant),
}

/// A page fault that is waited for.
pub(super) struct PageWait {
    /// Whose driver brings the page.
    pub at: Arc<Hca>,
    /// The fault's token.
    pub token: u32,
    /// Which end lacks the page.
    pub end: FaultEnd,
    /// The page.
    pub page: PageMissing,
}

/// How often a hold is looked at: its limit ends it too.
const HOLD_GLANCE: Duration = Duration::from_millis(5);
/// How often a late piece looks whether its translation is dead.
const LATE_GLANCE: Duration = Duration::from_micros(200);
/// How often a requester without acknowledge timeout tries again.
const NO_TIMEOUT: Duration = Duration::from_millis(100);
/// What an RNR NAK timer may grow to while nothing is posted: receive queues have no doorbell, so that each try is a look at a record.
const RNR_CEILING: Duration = Duration::from_millis(1);

impl Requester {
    /// Nobody waits any more for what the current WQE waits for.
    pub fn abandon(&mut self, hca: &Hca) {
        match std::mem::replace(&mut self.wait, Wait::No) {
            Wait::Page(fault) => fault.at.page_faults.cancel(fault.token),
            Wait::Held(token) => hca.levers.cancel(hca, token),
            Wait::No | Wait::Late(_) | Wait::Room | Wait::Rnr(_) | Wait::Ack(_) => {}
        }
        self.forget_background();
    }

    /// An injected RNR NAK's page fault is nobody's any more.
    pub(super) fn forget_background(&mut self) {
        if let Some((at, token)) = self.background.take() {
            at.page_faults.cancel(token);
        }
    }

    /// `None`: go on.
    pub(super) fn waits(&mut self, cx: &mut Cx<'_>) -> Option<Turn> {
        let soon = |wait| Some(Turn::Until(Instant::now() + wait));
        match &self.wait {
            Wait::No => return None,
            Wait::Rnr(at) | Wait::Ack(at) if Instant::now() < *at => return Some(Turn::Until(*at)),
            Wait::Rnr(_) | Wait::Room => {}
            // Without a timeout silence never ends.
            Wait::Ack(_) if self.timeout_code() == 0 => {}
            Wait::Ack(_) => {
                self.wait = Wait::No;
                self.work.attrs.count(Count::AckTimeout);
                self.retry(cx);
                return Some(Turn::Again);
            }
            Wait::Held(token) if cx.hca.levers.is_held(*token) => return soon(HOLD_GLANCE),
            Wait::Held(_) => self.passed_gate = true,
            Wait::Late(late) if !late.is_due() => return soon(LATE_GLANCE),
            Wait::Late(late) => {
                // Memory is the same wherever the peer has gone.
                let there = self.work.peer.as_ref().map_or(cx.hca, |peer| &peer.hca);
                let moved = late.copy(self.work.route(cx.hca, there), self.work.mover());
                self.moved_late(moved);
            }
            Wait::Page(PageWait { at, token, end, page }) => {
                let (state, end, page) = (at.page_faults.poll(*token), *end, *page);
                return self.waits_for_page(cx, state, (end, page));
            }
        }
        self.wait = Wait::No;
        None
    }

    fn waits_for_page(
        &mut self,
        cx: &mut Cx<'_>,
        state: FaultState,
        (end, page): (FaultEnd, PageMissing),
    ) -> Option<Turn> {
        match state {
            FaultState::Waiting => {
                let peer_changed = self.work.peer.as_ref().is_some_and(|peer| !peer.in_force());
                if end == FaultEnd::Local || !peer_changed {
                    return Some(Turn::Idle);
                }
                // The responder may be gone, and with it the driver's answer.
                self.abandon(cx.hca);
            }
            FaultState::Resumed { error: false } => self.faults += 1,
            FaultState::Resumed { error: true } => {
                self.wait = Wait::No;
                log::debug!("QPN {:#x}: its driver cannot bring the page at {end:?}: {page}", self.work.qp.qpn);
                self.fail(cx, Failure::page_fault(end));
                return Some(Turn::Again);
            }
            FaultState::Unknown => {}
        }
        self.wait = Wait::No;
        None
    }

    /// The responder has them as well.
    fn moved_late(&mut self, bytes: u64) {
        if let Some(peer) = self.work.peer.as_ref().filter(|_| !self.work.is_answered()) {
            let was = peer.attrs.life.expected.get();
            peer.attrs.life.expected.set(&was, &was.moved(bytes));
        }
        self.moved(bytes);
    }

    /// An RNR NAK (IBTA 9.7.5.2.8): waits at least as long as the responder asks for, as often as the requester may.
    pub(super) fn not_ready(&mut self, cx: &mut Cx<'_>) {
        cx.hca.counters.rnr_naks.add(1);
        self.work.attrs.count(Count::RnrNak);
        if self.work.attrs.rnr_retry < 7 {
            match self.rnr_left.checked_sub(1) {
                Some(left) => self.rnr_left = left,
                None => return self.fail(cx, Failure::local(syndrome::RNR_RETRY_EXC_ERR)),
            }
        }
        let asked = rnr_delay(self.work.peer.as_ref().map_or(0, |peer| peer.attrs.min_rnr_nak));
        let grown = asked.saturating_mul(1 << self.rnr_naks.min(16)).min(RNR_CEILING);
        self.rnr_naks = self.rnr_naks.saturating_add(1);
        self.wait = Wait::Rnr(Instant::now() + asked.max(grown));
    }

    /// No acknowledgement comes: waits for it as long as IBTA 9.7.6.1.3 says.
    pub(super) fn unanswered(&mut self) {
        let delay = match self.timeout_code() {
            0 => NO_TIMEOUT,
            code => Duration::from_nanos(4096 << code),
        };
        self.wait = Wait::Ack(Instant::now() + delay);
    }

    fn timeout_code(&self) -> u32 {
        u32::from(self.work.attrs.ack_timeout & 31)
    }

    /// The timeout is over, or a NAK says that something is missing: once more, up to `retry_count` times after the first
    /// (IBTA 9.7.6.1.3).
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>) {
        match self.retries_left.checked_sub(1) {
            Some(left) => self.retries_left = left,
            None => self.fail(cx, Failure::local(syndrome::TRANSPORT_RETRY_EXC_ERR)),
        }
    }
}

/// RNR NAK timer by its code (IBTA table 45), in units of 10 us.
fn rnr_delay(code: u8) -> Duration {
    const UNITS: [u64; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072,
        4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    Duration::from_micros(UNITS.get(usize::from(code & 31)).copied().unwrap_or(1) * 10)
}
