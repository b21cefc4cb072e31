// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot doorbells: a UAR page that is rung in a stream becomes plain memory, and its engine looks at the doorbell records of its queue pairs, which it
//! reads anyway. So a doorbell costs no exit. A page that nothing comes from for a while is registers again.
//!
//! The page is registers again, too, as soon as something other than a send doorbell is written there (the arm of a completion queue, which has a record to
//! go by), and when anything is wrong: a queue pair in error, an injection, a lever. Whatever was written until the host has taken the page away is
//! found by a last look at the records.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::worker::Engine;
use crate::hca::Hca;
use crate::uar::arms_strictly;
use mlx5_spec::qp::state;
use mlx5_spec::uar::CQ_ARM;
use pci::Exposed;

/// A hot page that brings nothing for so long is registers again.
const COOL: Duration = Duration::from_millis(30);
/// How long an engine with a core of its own looks at hot pages without a pause.
const SPIN: Duration = Duration::from_micros(200);
/// What is left to a vCPU on the same core between two looks.
const NAP: Duration = Duration::from_micros(50);

/// The hot pages of an engine.
#[derive(Default)]
pub(super) struct HotPages {
    /// Rung in a stream, not hot yet.
    pub(super) wanted: HashSet<u32>,
    pages: Vec<HotPage>,
    /// `UarDoorbells::concealed` when it was last looked at.
    concealed: u64,
}

struct HotPage {
    uar: u32,
    memory: Arc<dyn Exposed>,
    /// When it last brought something.
    busy: Instant,
}

/// Between two looks.
pub(super) fn nap(time: Duration) {
    if time.is_zero() {
        std::hint::spin_loop();
    } else {
        std::thread::sleep(time);
    }
}

impl Engine {
    /// Whether any page is.
    pub(super) fn is_hot(&self) -> bool {
        !self.heat.pages.is_empty()
    }

    /// Makes pages hot that are rung in a stream. On the engine's thread: it takes the host a while.
    pub(super) fn heat_up(&mut self, hca: &Hca) {
        if self.heat.wanted.is_empty() {
            return;
        }
        let wanted = std::mem::take(&mut self.heat.wanted);
        let Some(doorbells) = hca.doorbells.get().filter(|_| is_usual(hca)) else { return };
        for uar in wanted {
            if self.heat.pages.iter().any(|page| page.uar == uar) || self.has_errors(uar) {
                continue;
            }
            if let Some(memory) = doorbells.heat(hca, uar) {
                self.heat.pages.push(HotPage { uar, memory, busy: Instant::now() });
            }
        }
    }

    /// Looks at all hot pages. `None`: there is work, or they are no longer hot; else how long to wait before the next look.
    pub(super) fn look_at_hot(&mut self, hca: &Hca, polls: bool) -> Option<Duration> {
        if self.look_at_hot_pages(hca) || !self.is_hot() {
            return None;
        }
        let busy = self.heat.pages.iter().map(|page| page.busy).max()?;
        Some(if polls && busy.elapsed() < SPIN { Duration::ZERO } else { NAP })
    }

    /// True: there is work.
    pub(super) fn look_at_hot_pages(&mut self, hca: &Hca) -> bool {
        let Some(doorbells) = hca.doorbells.get() else { return false };
        let concealed = doorbells.concealed();
        let others = std::mem::replace(&mut self.heat.concealed, concealed) != concealed;
        let usual = is_usual(hca);
        let mut found = false;
        let mut pages = std::mem::take(&mut self.heat.pages);
        pages.retain_mut(|page| {
            if self.look_at_records(hca, page.uar) {
                (page.busy, found) = (Instant::now(), true);
            }
            let armed = page.memory.load(CQ_ARM) != [0; 8];
            let over = armed || !usual || self.has_errors(page.uar) || page.busy.elapsed() > COOL;
            if over {
                doorbells.cool(page.uar, armed);
            }
            // Others make pages registers too, and leave the last look to their engine.
            let ends = over || others && !doorbells.is_hot(page.uar);
            if ends {
                found |= self.look_a_last_time(hca, page);
            }
            !ends
        });
        self.heat.pages = pages;
        found
    }

    /// The page is registers again: what was written before.
    fn look_a_last_time(&mut self, hca: &Hca, page: &HotPage) -> bool {
        if page.memory.load(CQ_ARM) != [0; 8] {
            let strict = arms_strictly(hca);
            for (_, cq) in hca.cqs.all().iter().filter(|(_, cq)| cq.uar == page.uar) {
                cq.look_at_arm(hca, strict);
            }
        }
        self.look_at_records(hca, page.uar)
    }

    /// Whether a queue pair of the page is in error: each of its doorbells is served then, whatever its record says.
    fn has_errors(&self, uar: u32) -> bool {
        let slots = self.by_uar.get(&uar).into_iter().flatten().filter_map(|qpn| self.slots.get(qpn));
        slots.into_iter().any(|slot| matches!(slot.requester.state(), state::ERR | state::SQER))
    }
}

/// Nobody makes anything of how doorbells come.
fn is_usual(hca: &Hca) -> bool {
    !hca.injections.any() && hca.levers.idle() && !hca.health.ails()
}
