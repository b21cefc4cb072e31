// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries that injections lose or put off. Those that are late wait here, in their order and under the queue's lock.

use std::time::{Duration, Instant};

use super::{Cq, State};
use crate::bus::Bus;
use crate::hooks::inject::{self, Fate};
use crate::later::Due;
use mlx5_spec::cq::{CQE_SIZE, cqe, opcode};

/// An entry that is put off.
#[derive(Debug)]
pub(super) struct Late {
    /// Not before that of the entry before it.
    at: Instant,
    entry: [u8; CQE_SIZE],
    solicited: bool,
}

/// What is to be done with an entry.
pub(super) enum Injected {
    /// Nothing: it never comes, or later.
    Kept,
    /// It is written now; whether an event is due already, of those before it.
    Write { fire: bool },
}

impl Cq {
    /// What injections make of an entry for which there is room. One that must not overtake others waits behind them.
    pub(super) fn injected(&self, bus: &Bus, state: &mut State, entry: &[u8; CQE_SIZE], solicited: bool) -> Injected {
        match fate(bus, entry) {
            Fate::Lost => Injected::Kept,
            Fate::Late(delay) if self.put_off(bus, state, (*entry, solicited), Some(delay)) => Injected::Kept,
            _ if state.late.is_empty() => Injected::Write { fire: false },
            _ if self.put_off(bus, state, (*entry, solicited), None) => Injected::Kept,
            // Too much is late: nothing of this queue is any more.
            _ => Injected::Write { fire: self.write_late(bus, state, |_| true) },
        }
    }

    /// Keeps an entry back for `delay`, or, without one, behind those that are. False: too much is late.
    fn put_off(
        &self,
        bus: &Bus,
        state: &mut State,
        (entry, solicited): ([u8; CQE_SIZE], bool),
        delay: Option<Duration>,
    ) -> bool {
        if !bus.later.take() {
            return false;
        }
        let now = Instant::now();
        let at = state.late.back().map_or(now, |last| last.at).max(now + delay.unwrap_or_default());
        state.late.push_back(Late { at, entry, solicited });
        if delay.is_some() {
            bus.later.put(at - now, Due::Completions(self.cqn));
        }
        true
    }

    /// Writes entries that were put off, from the first, as long as `due` says so. Whether an event is due.
    fn write_late(&self, bus: &Bus, state: &mut State, mut due: impl FnMut(&Late) -> bool) -> bool {
        let mut fire = false;
        while state.late.front().is_some_and(&mut due)
            && let Some(Late { entry, solicited, .. }) = state.late.pop_front()
        {
            bus.later.give(1);
            // What cannot be written is lost, as memory that is gone has it.
            fire |= self.append(bus, state, entry, solicited).unwrap_or_default();
        }
        fire
    }

    /// Writes what was put off until `now`. Not for use inside a section.
    pub fn publish_late(&self, bus: &Bus, now: Instant) {
        let fire = self.write_late(bus, &mut self.state.lock(), |late| late.at <= now);
        if fire {
            self.fire(bus);
        }
    }

    /// Queue pair `qpn` has changed: writes what was put off up to its last entry.
    pub fn hasten(&self, bus: &Bus, qpn: u32) {
        let mut state = self.state.lock();
        let last = state.late.iter().rposition(|late| cqe::QPN.get(&late.entry) == qpn);
        let (mut written, count) = (0, last.map_or(0, |at| at + 1));
        let fire = self.write_late(bus, &mut state, |_| {
            written += 1;
            written <= count
        });
        drop(state);
        if fire {
            self.fire(bus);
        }
    }

    /// Queue pair `qpn` has ended: none of its entries that were put off appears any more.
    pub fn drop_late(&self, bus: &Bus, qpn: u32) {
        let mut state = self.state.lock();
        let before = state.late.len();
        state.late.retain(|late| cqe::QPN.get(&late.entry) != qpn);
        bus.later.give(before - state.late.len());
    }
}

/// What an injection makes of an entry.
fn fate(bus: &Bus, entry: &[u8; CQE_SIZE]) -> Fate {
    let sent = match cqe::OPCODE.get(entry) {
        opcode::REQ | opcode::REQ_ERR => Some(cqe::SEND_OPCODE.get(entry) as u8),
        _ => None,
    };
    inject::completion(&bus.injections, cqe::QPN.get(entry), sent)
}
