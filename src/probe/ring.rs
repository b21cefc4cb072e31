// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A bounded ring of events of one kind, in the order of the ledger. It says what it no longer has.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::ledger::{Ledger, Seq};

/// Events kept by a ring.
pub const KEPT: usize = 65_536;
/// Weight kept by a ring.
const KEPT_WEIGHT: usize = 1 << 19;

/// A device's own event.
pub trait Event: Clone {
    /// When it was over; `None` while it goes on.
    fn ended(&self) -> Option<Seq>;

    /// How much it keeps beside itself, in units of at most 300 bytes or so.
    fn weight(&self) -> usize {
        0
    }

    /// Whether everything of it is on record.
    fn is_whole(&self) -> bool {
        true
    }
}

struct Kept<E> {
    events: VecDeque<E>,
    weight: usize,
    pushed: u64,
    dropped: u64,
    /// The newest moment at which an event that is no longer kept, or is not whole, was alive.
    incomplete_until: Seq,
}

/// See the module's text. Events have consecutive ids, from 1.
pub struct Ring<E> {
    kept: Mutex<Kept<E>>,
}

impl<E> Default for Ring<E> {
    fn default() -> Self {
        let kept = Kept { events: VecDeque::new(), weight: 0, pushed: 0, dropped: 0, incomplete_until: 0 };
        Self { kept: Mutex::new(kept) }
    }
}

impl<E: Event> Ring<E> {
    /// Puts an event on record under the next number of `ledger`; `make` is given its id and that number. The number is taken inside the
    /// ring's lock, so that the ring is sorted.
    pub fn push(&self, ledger: &Ledger, make: impl FnOnce(u64, Seq) -> E) -> (u64, Seq) {
        let mut kept = self.kept.lock();
        let seq = ledger.tick();
        kept.pushed += 1;
        let event = make(kept.pushed, seq);
        kept.weight += event.weight();
        if !event.is_whole() {
            kept.incomplete_until = seq;
        }
        kept.events.push_back(event);
        while kept.events.len() > KEPT || (kept.weight > KEPT_WEIGHT && kept.events.len() > 1) {
            let Some(old) = kept.events.pop_front() else { break };
            kept.weight -= old.weight();
            kept.dropped += 1;
            kept.incomplete_until = kept.incomplete_until.max(old.ended().unwrap_or(seq));
        }
        (kept.pushed, seq)
    }

    /// Looks at or changes event `id`, unless it has been dropped. `change` must be short: it runs under the lock. It may not change the
    /// event's weight.
    pub fn with<T>(&self, id: u64, change: impl FnOnce(&mut E) -> T) -> Option<T> {
        let mut kept = self.kept.lock();
        let first = kept.pushed + 1 - kept.events.len() as u64;
        let index = usize::try_from(id.checked_sub(first)?).ok()?;
        kept.events.get_mut(index).map(change)
    }

    /// Of the events that were alive at `since` or came later (0: all that are kept) those that `want` names, in order.
    pub fn select(&self, since: Seq, want: impl Fn(&E) -> bool) -> Vec<E> {
        let alive = |event: &&E| event.ended().is_none_or(|end| end >= since);
        self.kept.lock().events.iter().filter(alive).filter(|event| want(event)).cloned().collect()
    }

    /// The oldest events that `want` names, at most `limit`: others are not copied, so that whoever looks does not keep the device waiting.
    pub fn page(&self, limit: usize, want: impl Fn(&E) -> bool) -> Vec<E> {
        self.kept.lock().events.iter().filter(|event| want(event)).take(limit).cloned().collect()
    }

    /// Whether an event with an id above `seen` that is still kept is wanted, and the newest id: `seen` of the next look, which is spared those
    /// that this one has looked at.
    pub fn any_since(&self, seen: u64, want: impl Fn(&E) -> bool) -> (bool, u64) {
        let kept = self.kept.lock();
        let new = usize::try_from(kept.pushed - seen).unwrap_or(usize::MAX);
        (kept.events.iter().rev().take(new).any(want), kept.pushed)
    }

    /// Events kept, and their weight.
    pub fn held(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.events.len(), kept.weight)
    }

    /// Events dropped because the ring was full.
    pub fn dropped(&self) -> u64 {
        self.kept.lock().dropped
    }

    /// Whether every event alive at `since` or later is still on record, and whole. An oracle that finds nothing may say "nothing" only
    /// when this holds.
    pub fn complete_since(&self, since: Seq) -> bool {
        let kept = self.kept.lock();
        (kept.dropped == 0 && kept.incomplete_until == 0) || kept.incomplete_until < since
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Note;

    #[test]
    fn a_page_has_the_oldest_that_are_wanted() {
        let (ledger, ring) = (Ledger::new(), Ring::<(Seq, Note)>::default());
        for number in 0..6 {
            ring.push(&ledger, |_, seq| (seq, Note::new(number.to_string())));
        }
        let page =
            |limit, since| ring.page(limit, |event| event.0 >= since).iter().map(|event| event.0).collect::<Vec<_>>();
        assert_eq!((page(2, 3), page(9, 5), page(0, 1)), (vec![3, 4], vec![5, 6], vec![]));
    }

    #[test]
    fn a_later_look_sees_what_is_new() {
        let (ledger, ring) = (Ledger::new(), Ring::<(Seq, Note)>::default());
        let any = |seen, text| ring.any_since(seen, |event| event.1.text == text);
        let push = |text: &str| ring.push(&ledger, |_, seq| (seq, Note::new(text)));
        assert_eq!(any(0, "a"), (false, 0));
        push("a");
        push("b");
        assert_eq!(
            (any(0, "a"), any(1, "a"), any(1, "b"), any(2, "b")),
            ((true, 2), (false, 2), (true, 2), (false, 2))
        );
        for _ in 0..KEPT {
            push("c");
        }
        assert_eq!((any(0, "b").0, any(0, "c").0), (false, true), "what is dropped is not seen");
    }
}
