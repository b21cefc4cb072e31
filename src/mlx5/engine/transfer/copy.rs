// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes themselves, into guest memory. The order is that of rule 4 and of hardware: a run is written upwards, and its last
//! aligned 8 bytes after all the others, as one store if they are whole. Programs poll the last byte of an RDMA WRITE.

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::{Route, Stop};
use crate::hca::Hca;
use crate::mkey::Span;
use dma::GuestRam;

/// Bytes that are written at once at the end of a run, if they are aligned.
const WORD: u64 = 8;

/// Where the bytes come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The host: inline data, results.
    Bytes(&'a [u8]),
    /// Guest memory.
    Spans(&'a [Span]),
}

/// What of a source is left.
struct Reader<'a> {
    /// Of the source.
    hca: &'a Hca,
    ram: &'a GuestRam,
    bytes: &'a [u8],
    spans: &'a [Span],
    /// The rest of the span before `spans`.
    now: Span,
}

impl<'a> Reader<'a> {
    fn new(hca: &'a Hca, ram: &'a GuestRam, source: Source<'a>) -> Self {
        let (bytes, spans): (&[u8], &[Span]) = match source {
            Source::Bytes(bytes) => (bytes, &[]),
            Source::Spans(spans) => (&[], spans),
        };
        Self { hca, ram, bytes, spans, now: Span { gpa: 0, len: 0 } }
    }

    /// Copies as many bytes as lie together at both ends, at least one.
    fn move_to(&mut self, to: &VolatileSlice<'_>) -> Result<usize, Stop> {
        if !self.bytes.is_empty() {
            let (now, later) = self.bytes.split_at(to.len().min(self.bytes.len()));
            to.copy_from(now);
            self.bytes = later;
            return Ok(now.len());
        }
        while self.now.len == 0 {
            let (first, rest) = self.spans.split_first().ok_or(Stop::NoSource)?;
            (self.now, self.spans) = (*first, rest);
        }
        let Span { gpa, len } = self.now;
        let len = len.min(to.len() as u64);
        let from = slice(self.ram, gpa, len).ok_or_else(|| refused(self.hca, gpa, len, Stop::NoSource))?;
        from.copy_to_volatile_slice(*to);
        self.now = Span { gpa: gpa + from.len() as u64, len: self.now.len - from.len() as u64 };
        Ok(from.len())
    }

    /// The next bytes, all of `into`.
    fn fill(&mut self, into: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            done += self.move_to(&VolatileSlice::from(rest))?;
        }
        Ok(())
    }
}

/// Writes the first `len` bytes of `source` to `target`.
pub(super) fn place(route: Route<'_>, source: Source<'_>, target: &[Span], len: u64) -> Result<(), Stop> {
    let ram = route.from.dma.ram().map_err(|_| Stop::NoSource)?;
    let mut source = Reader::new(route.from, ram, source);
    let target_ram = route.to.dma.ram().map_err(|_| Stop::NoTarget)?;
    let mut left = len;
    for span in target {
        let run = Span { gpa: span.gpa, len: span.len.min(left) };
        if run.len > 0 {
            place_run(&mut source, (route.to, target_ram), run)?;
        }
        left -= run.len;
    }
    if left == 0 { Ok(()) } else { Err(Stop::NoTarget) }
}

fn place_run(source: &mut Reader<'_>, there: (&Hca, &GuestRam), run: Span) -> Result<(), Stop> {
    // Runs are in order as well.
    fence(Ordering::Release);
    let last = run.gpa.wrapping_add(run.len - 1) % WORD + 1;
    let tail = last.min(run.len);
    let mut at = run.gpa;
    let mut left = run.len - tail;
    while left > 0 {
        let to = target(there, at, left)?;
        let moved = source.move_to(&to)? as u64;
        at += moved;
        left -= moved;
    }
    let mut word = [0; WORD as usize];
    let word = word.get_mut(..tail as usize).unwrap_or_default();
    source.fill(word)?;
    let to = target(there, at, tail)?;
    store_upwards(&to, at, word).ok_or(Stop::NoTarget)
}

fn target<'a>((hca, ram): (&Hca, &'a GuestRam), gpa: u64, len: u64) -> Result<VolatileSlice<'a>, Stop> {
    slice(ram, gpa, len).ok_or_else(|| refused(hca, gpa, len, Stop::NoTarget))
}

/// Stores `bytes`, which lie within one aligned word at `gpa`, with the largest aligned stores there are. RAM is mapped by pages, so what is
/// aligned for the guest is so for the host.
fn store_upwards(to: &VolatileSlice<'_>, gpa: u64, bytes: &[u8]) -> Option<()> {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let log = (gpa + at as u64).trailing_zeros().min(rest.len().ilog2()).min(WORD.ilog2());
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

/// Appends the bytes of `spans`.
pub(super) fn fetch(hca: &Hca, spans: &[Span], into: &mut Vec<u8>) -> Result<(), Stop> {
    let ram = hca.dma.ram().map_err(|_| Stop::NoSource)?;
    let (at, len) = (into.len(), spans.iter().map(|span| span.len).sum::<u64>());
    into.resize(at + len as usize, 0);
    Reader::new(hca, ram, Source::Spans(spans)).fill(into.get_mut(at..).unwrap_or_default())
}

/// Guest memory of `span`'s first bytes; shorter than asked for at the end of a region.
pub(super) fn slice(ram: &GuestRam, gpa: u64, len: u64) -> Option<VolatileSlice<'_>> {
    let addr = GuestAddress(gpa);
    if let Ok(slice) = ram.get_slice(addr, len as usize) {
        return Some(slice);
    }
    ram.get_slices(addr, len as usize).next()?.ok()
}

/// Has the refusal counted and logged.
pub(super) fn refused(hca: &Hca, gpa: u64, len: u64, stop: Stop) -> Stop {
    let _ = hca.dma.check(gpa, len);
    stop
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    const TO: u64 = 0x20_0000;
    const FROM: u64 = 0x21_0000;

    #[test]
    fn runs_of_every_length_at_every_offset_arrive_whole() {
        let bench = Bench::new();
        let pattern: Vec<u8> = (0..64).map(|n| n as u8 + 1).collect();
        bench.write(FROM, &pattern);
        for (offset, len) in (0..9).flat_map(|offset| (1..35).map(move |len| (offset, len))) {
            let wanted = [vec![0; offset], pattern[..len].to_vec(), vec![0; 64 - offset - len]].concat();
            // At once from the host, and from two places of the guest to two that are cut elsewhere.
            let cut = len as u64 / 3;
            let spans =
                |base: u64, cut: u64| [Span { gpa: base, len: cut }, Span { gpa: base + cut, len: len as u64 - cut }];
            let to = TO + offset as u64;
            for (source, target) in [
                (Source::Bytes(&pattern), [Span { gpa: to, len: len as u64 }, Span { gpa: 0, len: 0 }]),
                (Source::Spans(&spans(FROM, cut)), spans(to, len as u64 - cut)),
            ] {
                bench.write(TO, &[0; 64]);
                assert!(place(Route::within(&bench.hca), source, &target, len as u64).is_ok());
                assert_eq!(bench.read(TO, 64), wanted, "{len} bytes at {offset}");
            }
        }
    }

    #[test]
    fn a_source_or_target_that_ends_early_is_noticed() {
        let bench = Bench::new();
        let span = |gpa, len| [Span { gpa, len }];
        let done = |source: Source<'_>, target: &[Span]| place(Route::within(&bench.hca), source, target, 20);
        assert!(matches!(done(Source::Bytes(&[1; 19]), &span(TO, 20)), Err(Stop::NoSource)));
        assert!(matches!(done(Source::Spans(&span(FROM, 19)), &span(TO, 20)), Err(Stop::NoSource)));
        assert!(matches!(done(Source::Bytes(&[1; 20]), &span(TO, 19)), Err(Stop::NoTarget)));
        assert!(matches!(done(Source::Bytes(&[1; 20]), &span(u64::MAX - 3, 20)), Err(Stop::NoTarget)));
    }
}
