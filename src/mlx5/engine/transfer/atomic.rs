// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Atomic operations on a word of guest memory.

use std::sync::atomic::Ordering;

use super::{End, Found, Mover, Route, Scratch, Side, Stop, begin, place, record};
use crate::mkey::{Access, AccessError};
use dma::{Section, Source};

/// An atomic operation.
#[derive(Debug, Clone, Copy)]
pub enum Atomic {
    /// Puts `swap` if the word is `compare`.
    CompareSwap {
        /// New value.
        swap: u64,
        /// Expected value.
        compare: u64,
    },
    /// Adds.
    FetchAdd(u64),
}

/// Does `operation` on the 8 bytes `word` and puts the old value into `result`, both first translated: nothing happens to the word unless
/// the result has its place. The word is where the route leads to, the result where it comes from. Words are little-endian, as the host's (contract 10.3).
pub fn atomic(
    Route { from: here, to: there }: Route<'_>,
    section: &Section<'_>,
    (scratch, mover): (&mut Scratch, Mover),
    (word, result): (&Access, &End<'_>),
    operation: Atomic,
) -> Result<(), Stop> {
    let room = match result.find(here, section, 0, 8, &mut scratch.source).map_err(Stop::Source)? {
        Found::Spans(room) => room,
        Found::Bytes(_) => 0,
    };
    // The local list is complete or faults at its first missing byte.
    if room < 8 {
        result.find(here, section, room, 8 - room, &mut Side::default()).map_err(Stop::Source)?;
        return Err(Stop::Source(AccessError::Denied { key: 0, why: "no room for the result of an atomic" }));
    }
    scratch.target.clear();
    scratch.target.add(there, section, word).map_err(Stop::Target)?;
    let span = match scratch.target.spans.as_slice() {
        [span] if span.len == 8 => *span,
        _ => return Err(Stop::NoTarget),
    };
    // The word first, then the places of the result, and only then the operation.
    let done = there.dma.word(span.addr, |word| {
        for place in &scratch.source.spans {
            here.dma.check(place.addr, place.len).map_err(|_| Stop::NoSource)?;
        }
        let begun = begin(here);
        // The host is little-endian, as KVM's is that this runs on.
        let old = match operation {
            Atomic::FetchAdd(add) => word.fetch_add(add, Ordering::SeqCst),
            Atomic::CompareSwap { swap, compare } => {
                word.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|seen| seen)
            }
        };
        Ok((old, begun))
    });
    let (old, begun) = done.map_err(|_| Stop::NoTarget)??;
    let (touched, result) = place(Route::within(here), Source::Bytes(&old.to_le_bytes()), &scratch.source.spans, 8);
    // Both are written: the word, and the place of the result.
    let nothing = Side::default();
    record(Route::within(there), mover, (&nothing, &scratch.target), 8, (begun, false));
    record(Route::within(here), mover, (&nothing, &scratch.source), touched, (begun, false));
    result
}
