// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a send WQE waits for, and what ends the wait. A wait is a value: it holds no section, lock or translation.

use std::time::{Duration, Instant};

use super::{Cx, FaultEnd, Requester, Turn};
use crate::engine::failure::Failure;
use crate::engine::transfer::Late;
use crate::hca::Hca;
use crate::odp::FaultState;
use mlx5_spec::cq::syndrome;

/// What the current WQE waits for.
pub enum Park {
    /// Nothing.
    No,
    /// A lever.
    Gated(u64),
    /// An injection: the death of a translation.
    Late(Box<Late>),
    /// A page fault.
    Fault(u32, FaultEnd),
    /// RNR or transport timer, or room for another fault.
    Timer(Instant),
}

/// How often a wait that another command can end is looked at.
const GLANCE: Duration = Duration::from_millis(5);
/// How often a late piece looks whether its translation is dead.
const LATE_GLANCE: Duration = Duration::from_micros(200);
/// How often a requester without acknowledge timeout tries again.
const NO_TIMEOUT: Duration = Duration::from_millis(100);

impl Requester {
    /// Nobody waits any more for what the current WQE waits for.
    pub fn abandon(&mut self, hca: &Hca) {
        match std::mem::replace(&mut self.park, Park::No) {
            Park::Fault(token, _) => hca.page_faults.cancel(token),
            Park::Gated(token) => hca.levers.cancel(hca, token),
            Park::No | Park::Late(_) | Park::Timer(_) => {}
        }
        if let Some(token) = self.background.take() {
            hca.page_faults.cancel(token);
        }
    }

    /// `None`: go on.
    pub(super) fn parked(&mut self, cx: &mut Cx<'_>) -> Option<Turn> {
        let soon = |wait| Some(Turn::Until(Instant::now() + wait));
        match &self.park {
            Park::No => return None,
            Park::Timer(at) if Instant::now() < *at => return Some(Turn::Until(*at)),
            Park::Timer(_) => {}
            Park::Gated(token) if cx.hca.levers.is_held(*token) => return soon(GLANCE),
            Park::Gated(_) => self.passed_gate = true,
            Park::Late(late) if !late.is_due() => return soon(LATE_GLANCE),
            Park::Late(late) => self.done += late.copy(cx.hca, self.mover()),
            Park::Fault(token, end) => match cx.hca.page_faults.poll(*token) {
                FaultState::Waiting => {
                    let peer_changed = self.peer.as_ref().is_some_and(|peer| !peer.qp.in_force(&peer.attrs));
                    if *end == FaultEnd::Local || !peer_changed {
                        return soon(GLANCE);
                    }
                    // The responder may be gone, and with it the driver's answer.
                    self.abandon(cx.hca);
                }
                FaultState::Resumed { error: false } => self.faults += 1,
                FaultState::Resumed { error: true } => {
                    let failure = Failure::page_fault(*end);
                    self.park = Park::No;
                    self.fail(cx, failure);
                    return Some(Turn::Again);
                }
                FaultState::Unknown => {}
            },
        }
        self.park = Park::No;
        None
    }

    /// An RNR NAK (IBTA 9.7.5.2.8): waits as long as the responder asks for, as often as the requester may.
    pub fn not_ready(&mut self, cx: &mut Cx<'_>) {
        cx.hca.counters.rnr_naks.add(1);
        if self.attrs.rnr_retry < 7 {
            match self.rnr_left.checked_sub(1) {
                Some(left) => self.rnr_left = left,
                None => return self.fail(cx, Failure::local(syndrome::RNR_RETRY_EXC_ERR)),
            }
        }
        let code = self.peer.as_ref().map_or(0, |peer| peer.attrs.min_rnr_nak);
        self.park = Park::Timer(Instant::now() + rnr_delay(code));
    }

    /// No acknowledgement comes (IBTA 9.7.6.1.3).
    pub(super) fn no_peer(&mut self, cx: &mut Cx<'_>) {
        let code = u32::from(self.attrs.ack_timeout & 31);
        if code == 0 {
            self.park = Park::Timer(Instant::now() + NO_TIMEOUT);
            return;
        }
        let delay = Duration::from_nanos(4096 << code);
        match self.retries_left.checked_sub(1) {
            Some(left) => self.retries_left = left,
            None => {
                return self.fail(cx, Failure::local(syndrome::TRANSPORT_RETRY_EXC_ERR));
            }
        }
        self.park = Park::Timer(Instant::now() + delay);
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
