// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes themselves: into guest memory, and from guest memory to guest memory.

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::Stop;
use crate::hca::Hca;
use crate::mkey::Span;
use dma::{DmaError, GuestRam};

/// Guest memory of `span`'s first bytes; shorter than asked for at the end of a region.
pub(super) fn slice(ram: &GuestRam, gpa: u64, len: u64) -> Option<VolatileSlice<'_>> {
    let addr = GuestAddress(gpa);
    if let Ok(slice) = ram.get_slice(addr, len as usize) {
        return Some(slice);
    }
    ram.get_slices(addr, len as usize).next()?.ok()
}

/// Writes `bytes` to guest memory at `gpa`.
fn put(hca: &Hca, gpa: u64, bytes: &[u8]) -> Result<(), DmaError> {
    let ram = hca.dma.ram()?;
    let mut left = bytes;
    let mut at = gpa;
    while !left.is_empty() {
        let Some(to) = slice(ram, at, left.len() as u64) else {
            hca.dma.check(at, left.len() as u64)?;
            return Err(DmaError::OutsideRam { requester: hca.dma.requester(), addr: at, len: left.len() as u64 });
        };
        to.copy_from(left);
        at += to.len() as u64;
        left = left.get(to.len()..).unwrap_or_default();
    }
    Ok(())
}

/// Writes the first `len` of `bytes` to `target`.
pub(super) fn put_bytes(hca: &Hca, bytes: &[u8], target: &[Span], len: u64) -> Result<(), Stop> {
    let mut left = bytes.get(..len as usize).unwrap_or_default();
    for span in target {
        let (now, later) = left.split_at((span.len as usize).min(left.len()));
        put(hca, span.gpa, now).map_err(|_| Stop::NoTarget)?;
        left = later;
    }
    Ok(())
}

/// Copies `len` bytes from guest memory to guest memory.
pub(super) fn copy_spans(hca: &Hca, source: &[Span], target: &[Span], len: u64) -> Result<(), Stop> {
    let ram = hca.dma.ram().map_err(|_| Stop::NoSource)?;
    let (mut sources, mut targets) = (source.iter().copied(), target.iter().copied());
    let (mut from, mut to) = (Span { gpa: 0, len: 0 }, Span { gpa: 0, len: 0 });
    let mut left = len;
    while left > 0 {
        if from.len == 0 {
            from = sources.next().ok_or(Stop::NoSource)?;
            continue;
        }
        if to.len == 0 {
            to = targets.next().ok_or(Stop::NoTarget)?;
            continue;
        }
        let part = left.min(from.len).min(to.len);
        let a = slice(ram, from.gpa, part).ok_or_else(|| refused(hca, from.gpa, part, Stop::NoSource))?;
        let b = slice(ram, to.gpa, part).ok_or_else(|| refused(hca, to.gpa, part, Stop::NoTarget))?;
        a.copy_to_volatile_slice(b);
        // Both are not empty; shorter than `part` at the end of a region.
        let moved = a.len().min(b.len()) as u64;
        for end in [&mut from, &mut to] {
            end.gpa += moved;
            end.len -= moved;
        }
        left -= moved;
    }
    Ok(())
}

/// Has the refusal counted and logged.
pub(super) fn refused(hca: &Hca, gpa: u64, len: u64, stop: Stop) -> Stop {
    let _ = hca.dma.check(gpa, len);
    stop
}
