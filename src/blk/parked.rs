// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that an injection keeps back. They stand in a list and block nothing, as held ones do; unlike these they go on by themselves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::flight::Flight;
use super::injected::Wait;

/// How long a request waits at most for another to overtake it.
const OVERTAKING: Duration = Duration::from_millis(200);
/// At most so many are kept back: as many as the rings of a disk have room for. A guest can name one descriptor many times.
const MOST: usize = 8 * 1024;

/// When a request goes on, and its token.
type Due = (Instant, u64);

#[derive(Default)]
pub(super) struct Parked {
    flights: BTreeMap<Due, Flight>,
    /// The one that waits to be overtaken.
    slow: Option<Due>,
}

impl Parked {
    /// Whether one more can be kept back like this. One waits to be overtaken at a time: the next is who overtakes it.
    pub(super) fn has_room(&self, wait: Wait) -> bool {
        self.flights.len() < MOST && (wait != Wait::Overtaken || self.slow.is_none())
    }

    pub(super) fn keep(&mut self, flight: Flight, wait: Wait) {
        let time = match wait {
            Wait::Late(ms) => Duration::from_millis(ms.into()),
            Wait::Overtaken => OVERTAKING,
        };
        let due = (Instant::now() + time, flight.token);
        if wait == Wait::Overtaken {
            self.slow = Some(due);
        }
        self.flights.insert(due, flight);
    }

    /// Request `token` has completed: one that came before it and waits for that may go on.
    pub(super) fn passed_by(&mut self, token: u64) {
        if let Some(due) = self.slow.filter(|(_, slow)| *slow < token)
            && let Some(flight) = self.flights.remove(&due)
        {
            self.slow = None;
            self.flights.insert((Instant::now(), flight.token), flight);
        }
    }

    /// When the next one goes on.
    pub(super) fn next(&self) -> Option<Instant> {
        self.flights.first_key_value().map(|((at, _), _)| *at)
    }

    /// One that may go on at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Option<Flight> {
        let first = self.flights.first_entry().filter(|first| first.key().0 <= now)?;
        if self.slow == Some(*first.key()) {
            self.slow = None;
        }
        Some(first.remove())
    }

    /// Takes all of them out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Flight> + use<> {
        self.slow = None;
        std::mem::take(&mut self.flights).into_values()
    }
}
