// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moving a piece of a message from guest page to guest page, inside one section: translate both ends, copy, tell the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileSlice};

use super::wqe::Seg;
use crate::dma::ledger::Seq;
use crate::dma::{DmaError, GuestRam};
use crate::mlx5::hca::Hca;
use crate::mlx5::mkey::{self, Access, AccessError, Mkey, Rights, Span};
use crate::mlx5::quiesce::Section;

/// Bytes that one section moves; a zap waits for no more than this.
pub const CHUNK: u64 = 64 << 10;

/// One end of a transfer.
#[derive(Clone, Copy)]
pub enum End<'a> {
    /// A gather or scatter list; `wqe` holds its inline parts.
    List {
        /// The list.
        segs: &'a [Seg],
        /// The WQE.
        wqe: &'a [u8],
        /// Protection domain and QPN that its keys must suit.
        pd: u32,
        /// See `pd`.
        qpn: u32,
        /// Local read or local write.
        rights: Rights,
    },
    /// A run of memory at the responder.
    Remote {
        /// What is accessed in all, from the first byte of the message.
        access: Access,
    },
}

/// A transfer stopped.
pub enum Stop {
    /// At the end that data comes from.
    Source(AccessError),
    /// At the end that data goes to.
    Target(AccessError),
    /// The source's translation leads outside guest RAM, or bus mastering is off.
    NoSource,
    /// The target's does.
    NoTarget,
    /// A planted fault keeps the piece for later.
    Late(Box<Late>),
}

/// What a planted fault says about a piece that is about to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Copy,
    /// Copy and say nothing.
    Hide,
    /// Copy when the translation has died.
    Late,
}

/// Where one end of a piece is in guest memory, and by which keys.
#[derive(Debug, Default, Clone)]
struct Side {
    spans: Vec<Span>,
    /// The key of the spans from this one on.
    keys: Vec<(usize, u32)>,
}

impl Side {
    fn clear(&mut self) {
        self.spans.clear();
        self.keys.clear();
    }

    /// Translates and appends.
    fn add(&mut self, hca: &Hca, section: &Section<'_>, access: &Access) -> Result<u64, AccessError> {
        self.keys.push((self.spans.len(), access.key));
        mkey::translate(hca, section, access, &mut self.spans)
    }

    /// The first `len` bytes: spans with their keys.
    fn told(&self, len: u64) -> impl Iterator<Item = (Span, u32)> {
        let mut left = len;
        let mut keys = self.keys.iter().peekable();
        let mut key = 0;
        self.spans.iter().enumerate().map_while(move |(at, span)| {
            while let Some((_, next)) = keys.next_if(|(from, _)| *from <= at) {
                key = *next;
            }
            let now = span.len.min(left);
            left -= now;
            (now > 0).then_some((Span { gpa: span.gpa, len: now }, key))
        })
    }
}

/// Lists that are reused from one transfer to the next.
#[derive(Default)]
pub struct Scratch {
    source: Side,
    target: Side,
}

/// Whose transfer it is.
#[derive(Debug, Clone, Copy)]
pub struct Mover {
    /// The requester's QPN.
    pub qpn: u32,
}

/// A piece whose copy a planted fault puts off: exactly what rule 3 forbids, for a negative control.
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
    pub fn copy(&self, hca: &Hca, mover: Mover) -> u64 {
        let copied = match &self.bytes {
            Some(bytes) => put_bytes(hca, bytes, &self.target.spans, self.len).is_ok(),
            None => copy_spans(hca, &self.source.spans, &self.target.spans, self.len).is_ok(),
        };
        if copied {
            record(hca, mover, (&self.source, &self.target), self.len, (self.begun, false));
        }
        self.len
    }
}

/// Either guest memory or inline bytes.
enum Found<'a> {
    Spans(u64),
    Bytes(&'a [u8]),
}

impl<'a> End<'a> {
    /// Where the bytes from `at` on are: at least one and at most `want`, or why there is none.
    fn find(
        &self,
        hca: &Hca,
        section: &Section<'_>,
        at: u64,
        want: u64,
        side: &mut Side,
    ) -> Result<Found<'a>, AccessError> {
        side.clear();
        match *self {
            Self::Remote { access } => {
                let va = access.va.wrapping_add(at);
                let part = Access { va, len: want, ..access };
                side.add(hca, section, &part).map(Found::Spans)
            }
            Self::List { segs, wqe, pd, qpn, rights } => {
                let mut skip = at;
                let mut have = 0;
                for seg in segs {
                    if skip >= seg.bytes() {
                        skip -= seg.bytes();
                        continue;
                    }
                    match *seg {
                        Seg::Inline { .. } if have > 0 => break,
                        Seg::Inline { at, len } => {
                            let from = at.saturating_add(skip as usize);
                            let len = (len - skip).min(want) as usize;
                            let bytes = wqe.get(from..).and_then(|rest| rest.get(..len));
                            return Ok(Found::Bytes(bytes.unwrap_or_default()));
                        }
                        Seg::Key { lkey, va, len } => {
                            let part = (len - skip).min(want - have);
                            let access = Access { key: lkey, pd, qpn, va: va.wrapping_add(skip), len: part, rights };
                            match side.add(hca, section, &access) {
                                Ok(got) => {
                                    have += got;
                                    if got < part {
                                        break;
                                    }
                                }
                                // Told of when it is the first.
                                Err(_) if have > 0 => break,
                                Err(error) => return Err(error),
                            }
                        }
                    }
                    skip = 0;
                    if have >= want {
                        break;
                    }
                }
                Ok(Found::Spans(have))
            }
        }
    }
}

/// Where in both ends a transfer goes on, and how many bytes are left.
#[derive(Debug, Clone, Copy)]
pub struct At {
    /// Bytes before it at the source.
    pub source: u64,
    /// Bytes before it at the target.
    pub target: u64,
    /// Bytes to move at most; at least 1.
    pub want: u64,
}

/// Moves some bytes: at least one, at most `at.want` or [`CHUNK`]. `plan` is asked once both ends are translated.
pub fn transfer(
    hca: &Hca,
    section: &Section<'_>,
    (scratch, mover): (&mut Scratch, Mover),
    (from, to): (&End<'_>, &End<'_>),
    at: At,
    plan: impl FnOnce() -> Plan,
) -> Result<u64, Stop> {
    let want = at.want.min(CHUNK);
    let source = from.find(hca, section, at.source, want, &mut scratch.source).map_err(Stop::Source)?;
    let have = match source {
        Found::Spans(have) => have,
        Found::Bytes(bytes) => bytes.len() as u64,
    };
    if have == 0 {
        return Err(Stop::Source(AccessError::Denied { key: 0, why: "the list is shorter than the message" }));
    }
    let target = to.find(hca, section, at.target, have, &mut scratch.target).map_err(Stop::Target)?;
    let Found::Spans(room @ 1..) = target else {
        return Err(Stop::Target(AccessError::Denied { key: 0, why: "the list has no room" }));
    };
    let len = have.min(room);
    let begun = if hca.dma.ledger().watches_any() { hca.dma.ledger().tick() } else { 0 };
    let plan = plan();
    if plan == Plan::Late {
        return Err(Stop::Late(Box::new(keep(hca, source, scratch, len, begun))));
    }
    match source {
        Found::Bytes(bytes) => put_bytes(hca, bytes, &scratch.target.spans, len)?,
        Found::Spans(_) => copy_spans(hca, &scratch.source.spans, &scratch.target.spans, len)?,
    }
    record(hca, mover, (&scratch.source, &scratch.target), len, (begun, plan == Plan::Hide));
    Ok(len)
}

fn keep(hca: &Hca, source: Found<'_>, scratch: &Scratch, len: u64, begun: Seq) -> Late {
    let (bytes, from) = match source {
        Found::Bytes(bytes) => (Some(bytes.to_vec()), Side::default()),
        Found::Spans(_) => (None, scratch.source.clone()),
    };
    let key = scratch.target.keys.first().map_or(0, |(_, key)| *key);
    let mkey = hca.mkeys.get(key >> 8).map(|mkey| {
        let zaps = mkey.zaps.load(Ordering::Acquire);
        (mkey, zaps)
    });
    let deadline = Instant::now() + LATE_LIMIT;
    Late { bytes, source: from, target: scratch.target.clone(), len, begun, mkey, deadline }
}

/// Guest memory of `span`'s first bytes; shorter than asked for at the end of a region.
fn slice(ram: &GuestRam, gpa: u64, len: u64) -> Option<VolatileSlice<'_>> {
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

fn put_bytes(hca: &Hca, bytes: &[u8], target: &[Span], len: u64) -> Result<(), Stop> {
    let mut left = bytes.get(..len as usize).unwrap_or_default();
    for span in target {
        let (now, later) = left.split_at((span.len as usize).min(left.len()));
        put(hca, span.gpa, now).map_err(|_| Stop::NoTarget)?;
        left = later;
    }
    Ok(())
}

fn copy_spans(hca: &Hca, source: &[Span], target: &[Span], len: u64) -> Result<(), Stop> {
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
fn refused(hca: &Hca, gpa: u64, len: u64, stop: Stop) -> Stop {
    let _ = hca.dma.check(gpa, len);
    stop
}

/// Tells the ledger of a piece that has been copied. While no page is watched one sequence number serves all its pages.
fn record(hca: &Hca, mover: Mover, (source, target): (&Side, &Side), len: u64, (begun, hidden): (Seq, bool)) {
    let ledger = hca.dma.ledger();
    if ledger.watches_any() {
        for (span, key) in source.told(len) {
            ledger.nic_read(hca.index, mover.qpn, (span.gpa, span.len), key, begun);
        }
        for (span, key) in target.told(len) {
            hca.payload.wrote(ledger, span.gpa, span.len);
            if !hidden {
                ledger.nic_wrote(hca.index, mover.qpn, (span.gpa, span.len), key, begun);
            }
        }
        return;
    }
    let seq = ledger.tick();
    let mut left = len;
    for span in &source.spans {
        ledger.device_read(span.gpa, span.len.min(left), seq);
        left = left.saturating_sub(span.len);
    }
    left = len;
    for span in &target.spans {
        ledger.device_wrote(span.gpa, span.len.min(left), seq);
        left = left.saturating_sub(span.len);
    }
}

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
/// the result has its place. Words are little-endian, as the host's (contract 10.3).
pub fn atomic(
    hca: &Hca,
    section: &Section<'_>,
    (scratch, mover): (&mut Scratch, Mover),
    (word, result): (&Access, &End<'_>),
    operation: Atomic,
) -> Result<(), Stop> {
    let room = match result.find(hca, section, 0, 8, &mut scratch.source).map_err(Stop::Source)? {
        Found::Spans(room) => room,
        Found::Bytes(_) => 0,
    };
    // The local list is complete or faults at its first missing byte.
    if room < 8 {
        result.find(hca, section, room, 8 - room, &mut Side::default()).map_err(Stop::Source)?;
        return Err(Stop::Source(AccessError::Denied { key: 0, why: "no room for the result of an atomic" }));
    }
    scratch.target.clear();
    scratch.target.add(hca, section, word).map_err(Stop::Target)?;
    let span = match scratch.target.spans.as_slice() {
        [span] if span.len == 8 => *span,
        _ => return Err(Stop::NoTarget),
    };
    let ram = hca.dma.ram().map_err(|_| Stop::NoTarget)?;
    let cell = slice(ram, span.gpa, 8).ok_or_else(|| refused(hca, span.gpa, 8, Stop::NoTarget))?;
    let cell = cell.get_atomic_ref::<AtomicU64>(0).map_err(|_| refused(hca, span.gpa, 8, Stop::NoTarget))?;
    for place in &scratch.source.spans {
        hca.dma.check(place.gpa, place.len).map_err(|_| Stop::NoSource)?;
    }
    let begun = if hca.dma.ledger().watches_any() { hca.dma.ledger().tick() } else { 0 };
    // The host is little-endian, as KVM's is that this runs on.
    let old = match operation {
        Atomic::FetchAdd(add) => cell.fetch_add(add, Ordering::SeqCst),
        Atomic::CompareSwap { swap, compare } => {
            cell.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|seen| seen)
        }
    };
    put_bytes(hca, &old.to_le_bytes(), &scratch.source.spans, 8)?;
    // Both are written: the word, and the place of the result.
    let nothing = Side::default();
    record(hca, mover, (&nothing, &scratch.target), 8, (begun, false));
    record(hca, mover, (&nothing, &scratch.source), 8, (begun, false));
    Ok(())
}
