// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies into guest memory. The order is that of rule 4 and of hardware: a span is written upwards, and its last aligned 8 bytes
//! after all the others, as one store if they are whole. Programs poll the last byte of an RDMA WRITE.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use vm_memory::{Bytes, VolatileSlice};

use crate::{DmaError, DmaTarget, Permit};

/// Bytes that are written at once at the end of a span, if they are aligned.
const WORD: u64 = 8;

/// A run of guest physical memory. Nobody has checked yet that it is RAM: whoever uses it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Guest physical address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// Where the bytes of a copy come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// The host: inline data, results.
    Bytes(&'a [u8]),
    /// Guest memory.
    Spans(&'a [Span]),
}

/// A copy ended early.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{why}")]
pub struct CopyError {
    /// Why.
    pub why: CopyFault,
    /// Bytes of the target, from its first on, of which some may have been written: the observer has been told of them.
    pub touched: u64,
}

/// Why a copy ended early.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum CopyFault {
    /// The source's door is closed.
    #[error("the source of a copy: {0}")]
    Source(DmaError),
    /// The source has fewer bytes than are wanted.
    #[error("the source of a copy is too short")]
    SourceShort,
    /// The target's door is closed.
    #[error("the target of a copy: {0}")]
    Target(DmaError),
    /// The target has room for fewer.
    #[error("the target of a copy is too short")]
    TargetShort,
}

impl CopyError {
    /// Whether it was the source's fault; else it was the target's.
    pub fn is_source(self) -> bool {
        matches!(self.why, CopyFault::Source(_) | CopyFault::SourceShort)
    }
}

/// Writes the first `len` bytes of `source`, which is of the device `from`, to the spans of `to`. Bus mastering of both is looked at once, before
/// the first byte, and that of `from` for the host's bytes too: it is the device that sends.
///
/// # Errors
/// [`CopyError`].
pub fn copy(
    (from, source): (&DmaTarget, Source<'_>),
    (to, target): (&DmaTarget, &[Span]),
    len: u64,
) -> Result<(), CopyError> {
    let mut touched = 0;
    fill((from, source), (to, target), len, &mut touched).map_err(|why| CopyError { why, touched })
}

fn fill(
    (from, source): (&DmaTarget, Source<'_>),
    (to, target): (&DmaTarget, &[Span]),
    len: u64,
    touched: &mut u64,
) -> Result<(), CopyFault> {
    let mut source = Reader::new(from.permit().map_err(CopyFault::Source)?, source);
    let permit = to.permit().map_err(CopyFault::Target)?;
    for span in target {
        let part = Span { addr: span.addr, len: span.len.min(len - *touched) };
        if part.len > 0 {
            let placed = place(&mut source, permit, part);
            to.wrote(part);
            *touched += part.len;
            placed?;
        }
    }
    if *touched == len { Ok(()) } else { Err(CopyFault::TargetShort) }
}

/// What is left of a span of memory, found run by run.
struct Runs<'a> {
    permit: Permit<'a>,
    /// What has not been looked for.
    span: Span,
    found: Option<VolatileSlice<'a>>,
}

impl<'a> Runs<'a> {
    fn new(permit: Permit<'a>, span: Span) -> Self {
        Self { permit, span, found: None }
    }

    fn is_done(&self) -> bool {
        self.span.len == 0 && self.found.is_none()
    }

    /// The next bytes that lie together: at least one and at most `most`, which is at least 1. The span is not done.
    #[inline]
    fn next(&mut self, most: usize) -> Result<VolatileSlice<'a>, DmaError> {
        let run = match self.found.take() {
            Some(run) => run,
            None => {
                let run = self.permit.run(self.span.addr, self.span.len)?;
                let len = run.len() as u64;
                self.span = Span { addr: self.span.addr + len, len: self.span.len.saturating_sub(len) };
                run
            }
        };
        match run.split_at(most) {
            Ok((now, later)) => {
                self.found = (!later.is_empty()).then_some(later);
                Ok(now)
            }
            Err(_) => Ok(run),
        }
    }
}

/// What of a source is left.
struct Reader<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
    /// The rest of the span before `spans`.
    now: Runs<'a>,
}

impl<'a> Reader<'a> {
    fn new(permit: Permit<'a>, source: Source<'a>) -> Self {
        let (bytes, spans): (&[u8], &[Span]) = match source {
            Source::Bytes(bytes) => (bytes, &[]),
            Source::Spans(spans) => (&[], spans),
        };
        Self { bytes, spans, now: Runs::new(permit, Span { addr: 0, len: 0 }) }
    }

    /// Copies as many bytes as lie together at both ends, at least one.
    #[inline]
    fn move_to(&mut self, to: &VolatileSlice<'_>) -> Result<usize, CopyFault> {
        if !self.bytes.is_empty() {
            let (now, later) = self.bytes.split_at(to.len().min(self.bytes.len()));
            to.copy_from(now);
            self.bytes = later;
            return Ok(now.len());
        }
        while self.now.is_done() {
            let (first, rest) = self.spans.split_first().ok_or(CopyFault::SourceShort)?;
            self.now = Runs::new(self.now.permit, *first);
            self.spans = rest;
        }
        let from = self.now.next(to.len()).map_err(CopyFault::Source)?;
        from.copy_to_volatile_slice(*to);
        Ok(from.len())
    }
}

/// Fills one span of the target.
fn place(source: &mut Reader<'_>, to: Permit<'_>, span: Span) -> Result<(), CopyFault> {
    // Spans are in order as well.
    fence(Ordering::Release);
    let last = span.addr.wrapping_add(span.len - 1) % WORD + 1;
    let tail = last.min(span.len);
    let mut runs = Runs::new(to, span);
    let mut left = span.len - tail;
    while left > 0 {
        let mut room = runs.next(left as usize).map_err(CopyFault::Target)?;
        left -= room.len() as u64;
        while !room.is_empty() {
            let moved = source.move_to(&room)?;
            room = room.offset(moved).map_err(|_| CopyFault::TargetShort)?;
        }
    }
    let mut word = [0; WORD as usize];
    let mut word = word.get_mut(..tail as usize).unwrap_or_default();
    let mut filled = 0;
    while filled < word.len() {
        filled += source.move_to(&VolatileSlice::from(word.get_mut(filled..).unwrap_or_default()))?;
    }
    let mut at = span.addr.wrapping_add(span.len - tail);
    while !word.is_empty() {
        let room = runs.next(word.len()).map_err(CopyFault::Target)?;
        let (now, later) = std::mem::take(&mut word).split_at_mut(room.len());
        store_upwards(&room, at, now).ok_or(CopyFault::TargetShort)?;
        at = at.wrapping_add(now.len() as u64);
        word = later;
    }
    Ok(())
}

/// Stores `bytes`, which lie within one aligned word at `addr`, with the largest aligned stores there are.
#[inline]
fn store_upwards(to: &VolatileSlice<'_>, addr: u64, bytes: &[u8]) -> Option<()> {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let log = (addr + at as u64).trailing_zeros().min(rest.len().ilog2()).min(WORD.ilog2());
        let stored = match log {
            3 => to.store(u64::from_ne_bytes(*rest.first_chunk()?), at, Ordering::Release),
            2 => to.store(u32::from_ne_bytes(*rest.first_chunk()?), at, Ordering::Release),
            1 => to.store(u16::from_ne_bytes(*rest.first_chunk()?), at, Ordering::Release),
            _ => to.store(*rest.first()?, at, Ordering::Release),
        };
        stored.ok()?;
        at += 1 << log;
    }
    Some(())
}
