// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pieces that move too late: the negative control of rule 3.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Found, Mover, Route, Scratch, Side, place, record};
use crate::hca::Hca;
use crate::mkey::Mkey;
use dma::Source;
use probe::ledger::Seq;

/// A piece whose copy an injection puts off: exactly what rule 3 forbids, for a negative control.
pub struct Late {
    bytes: Option<Vec<u8>>,
    source: Side,
    target: Side,
    len: u64,
    begun: Seq,
    /// The key that must die, with its count of deaths when the piece was translated.
    mkey: Option<(Arc<Mkey>, u64)>,
    deadline: Instant,
}

/// How long a late piece waits for its translation to die.
const LATE_LIMIT: Duration = Duration::from_secs(2);

impl Late {
    /// Whether its time has come: the target's key has been updated or revoked, completely, or the limit is over.
    pub fn is_due(&self) -> bool {
        let died = self.mkey.as_ref().is_some_and(|(mkey, zaps)| mkey.zaps.load(Ordering::Acquire) != *zaps);
        died || Instant::now() >= self.deadline
    }

    /// Copies to where the translation led. Bytes that are in place.
    pub fn copy(&self, route: Route<'_>, mover: Mover) -> u64 {
        let source = match &self.bytes {
            Some(bytes) => Source::Bytes(bytes),
            None => Source::Spans(&self.source.spans),
        };
        let (touched, _) = place(route, source, &self.target.spans, self.len);
        record(route, mover, (&self.source, &self.target), touched, (self.begun, false));
        self.len
    }
}

/// What [`Late::copy`] needs of a piece that is translated.
pub(super) fn keep(hca: &Hca, source: Found<'_>, scratch: &Scratch, len: u64, begun: Seq) -> Late {
    let (bytes, from) = match source {
        Found::Bytes(bytes) => (Some(bytes.to_vec()), Side::default()),
        Found::Spans(_) => (None, scratch.source.kept()),
    };
    let key = scratch.target.keys.first().map_or(0, |(_, key)| *key);
    let mkey = hca.mkeys.get(key >> 8).map(|mkey| {
        let zaps = mkey.zaps.load(Ordering::Acquire);
        (mkey, zaps)
    });
    let deadline = Instant::now() + LATE_LIMIT;
    Late { bytes, source: from, target: scratch.target.kept(), len, begun, mkey, deadline }
}
