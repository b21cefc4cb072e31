// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Moving a piece of a message from guest page to guest page, inside one section: translate both ends, copy, tell the ledger.
//!
//! * `atomic`: atomic operations.
//! * `late`: pieces that an injection lets move too late.

mod atomic;
mod late;

use super::wqe::Seg;
use crate::hca::Hca;
use crate::hooks::NicLedger;
use crate::mkey::{self, Access, AccessError, Keys, Rights, Span};
use dma::{Section, Source, copy};
use probe::ledger::Seq;

pub use atomic::{Atomic, atomic};
pub use late::Late;

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
    /// An injection keeps the piece for later.
    Late(Box<Late>),
}

impl Stop {
    /// Whether a page is missing that somebody may bring.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Source(AccessError::Missing(_)) | Self::Target(AccessError::Missing(_)))
    }
}

/// What an injection says about a piece that is about to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    Copy,
    /// Copy and say nothing.
    Hide,
    /// Copy when the translation has died.
    Late,
    /// Copy with one bit flipped.
    Corrupt,
}

/// Where one end of a piece is in guest memory, and by which keys.
#[derive(Default)]
struct Side {
    spans: Vec<Span>,
    /// The key of the spans from this one on.
    keys: Vec<(usize, u32)>,
    recent: Keys,
}

impl Side {
    fn clear(&mut self) {
        self.spans.clear();
        self.keys.clear();
    }

    /// What is found now, for later.
    fn kept(&self) -> Self {
        Self { spans: self.spans.clone(), keys: self.keys.clone(), recent: Keys::default() }
    }

    /// Translates and appends.
    fn add(&mut self, hca: &Hca, section: &Section<'_>, access: &Access) -> Result<u64, AccessError> {
        self.keys.push((self.spans.len(), access.key));
        mkey::translate(hca, section, access, &mut self.recent, &mut self.spans)
    }

    /// The first `len` bytes: spans with their keys.
    fn recorded(&self, len: u64) -> impl Iterator<Item = (Span, u32)> {
        let mut left = len;
        let mut keys = self.keys.iter().peekable();
        let mut key = 0;
        self.spans.iter().enumerate().map_while(move |(at, span)| {
            while let Some((_, next)) = keys.next_if(|(from, _)| *from <= at) {
                key = *next;
            }
            let now = span.len.min(left);
            left -= now;
            (now > 0).then_some((Span { addr: span.addr, len: now }, key))
        })
    }
}

/// Lists that are reused from one transfer to the next.
#[derive(Default)]
pub struct Scratch {
    source: Side,
    target: Side,
    /// A datagram's bytes: [`Scratch::packet`].
    packet: Vec<u8>,
}

impl Scratch {
    /// Room for a datagram; given back with [`Scratch::keep`].
    pub fn packet(&mut self) -> Vec<u8> {
        let mut packet = std::mem::take(&mut self.packet);
        packet.clear();
        packet
    }

    /// Lets go of the keys: their engine has nothing to do, and they may be destroyed meanwhile.
    pub fn rest(&mut self) {
        (self.source.recent, self.target.recent) = Default::default();
    }

    /// Keeps the room for the next one.
    pub fn keep(&mut self, packet: Vec<u8>) {
        self.packet = packet;
    }
}

/// Over which devices a piece goes: each end is translated, checked and recorded by its own.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// Where the bytes come from.
    pub from: &'a Hca,
    /// Where they go.
    pub to: &'a Hca,
}

impl<'a> Route<'a> {
    /// Inside one device.
    pub fn within(hca: &'a Hca) -> Self {
        Self { from: hca, to: hca }
    }
}

/// Whose transfer it is.
#[derive(Debug, Clone, Copy)]
pub struct Mover {
    /// The requester's QPN.
    pub qpn: u32,
}

/// Either guest memory or inline bytes.
enum Found<'a> {
    Spans(u64),
    Bytes(&'a [u8]),
}

impl Found<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Spans(len) => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
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
                let access = |lkey, va, len| Access { key: lkey, pd, qpn, va, len, rights };
                find_in_list(hca, section, (segs, wqe), (at, want), access, side)
            }
        }
    }
}

/// The same for a list: the bytes of one inline part, or of adjacent parts in memory as far as they are present.
fn find_in_list<'a>(
    hca: &Hca,
    section: &Section<'_>,
    (segs, wqe): (&[Seg], &'a [u8]),
    (at, want): (u64, u64),
    access: impl Fn(u32, u64, u64) -> Access,
    side: &mut Side,
) -> Result<Found<'a>, AccessError> {
    let (mut skip, mut have) = (at, 0);
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
                match side.add(hca, section, &access(lkey, va.wrapping_add(skip), part)) {
                    Ok(got) => {
                        have += got;
                        if got < part {
                            break;
                        }
                    }
                    // Reported only if no earlier segment was translated.
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

/// A piece of a message on its way, of at least one byte: first its source is translated ([`Piece::read`]), then its target
/// ([`Piece::aim`]), then it is copied ([`Piece::copy`]), all in one section. Whoever has something to decide, or to take for it, does so in between.
/// [`Scratch`] holds the translations, so that there is one piece at a time.
pub struct Piece<'a> {
    source: Found<'a>,
    len: u64,
}

impl<'a> Piece<'a> {
    /// The bytes of `from` at byte `at`: at most `want` or [`CHUNK`], and no more than are present.
    pub fn read(
        hca: &Hca,
        section: &Section<'_>,
        scratch: &mut Scratch,
        from: &End<'a>,
        (at, want): (u64, u64),
    ) -> Result<Self, Stop> {
        let source = from.find(hca, section, at, want.min(CHUNK), &mut scratch.source).map_err(Stop::Source)?;
        let len = source.len();
        if len == 0 {
            return Err(Stop::Source(AccessError::Denied { key: 0, why: "the list is shorter than the message" }));
        }
        Ok(Self { source, len })
    }

    /// Bytes that are at hand already: at least one.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { source: Found::Bytes(bytes), len: bytes.len() as u64 }
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the piece goes: to byte `at` of `to`. It may become shorter, not empty.
    pub fn aim(
        &mut self,
        hca: &Hca,
        section: &Section<'_>,
        scratch: &mut Scratch,
        to: &End<'_>,
        at: u64,
    ) -> Result<(), Stop> {
        let target = to.find(hca, section, at, self.len, &mut scratch.target).map_err(Stop::Target)?;
        let Found::Spans(room @ 1..) = target else {
            return Err(Stop::Target(AccessError::Denied { key: 0, why: "the list has no room" }));
        };
        self.len = self.len.min(room);
        Ok(())
    }

    /// Copies the piece, unless `plan`, which is asked now, says otherwise. Bytes that are in place.
    pub fn copy(
        self,
        route: Route<'_>,
        (scratch, mover): (&mut Scratch, Mover),
        plan: impl FnOnce() -> Plan,
    ) -> Result<u64, Stop> {
        let Self { source, len } = self;
        let begun = begin(route.from);
        let plan = plan();
        if plan == Plan::Late {
            return Err(Stop::Late(Box::new(late::keep(route.to, source, scratch, len, begun))));
        }
        let corrupted = match plan {
            Plan::Corrupt => Some(corrupt(route.from, &source, &scratch.source.spans)?),
            _ => None,
        };
        let from = match (&corrupted, source) {
            (Some(bytes), _) => Source::Bytes(bytes),
            (None, Found::Bytes(bytes)) => Source::Bytes(bytes),
            (None, Found::Spans(_)) => Source::Spans(&scratch.source.spans),
        };
        let (touched, result) = place(route, from, &scratch.target.spans, len);
        record(route, mover, (&scratch.source, &scratch.target), touched, (begun, plan == Plan::Hide));
        result.map(|()| len)
    }
}

/// Moves some bytes: at least one, at most `at.want` or [`CHUNK`]. `plan` is asked once both ends are translated.
pub fn transfer(
    route: Route<'_>,
    section: &Section<'_>,
    (scratch, mover): (&mut Scratch, Mover),
    (from, to): (&End<'_>, &End<'_>),
    at: At,
    plan: impl FnOnce() -> Plan,
) -> Result<u64, Stop> {
    let mut piece = Piece::read(route.from, section, scratch, from, (at.source, at.want))?;
    piece.aim(route.to, section, scratch, to, at.target)?;
    piece.copy(route, (scratch, mover), plan)
}

/// Reads all `len` bytes of `from`, at most [`CHUNK`], and appends them to `into`; on error `into` holds a part of them.
pub fn gather(
    hca: &Hca,
    section: &Section<'_>,
    (scratch, mover): (&mut Scratch, Mover),
    (from, len): (&End<'_>, u64),
    into: &mut Vec<u8>,
) -> Result<(), Stop> {
    let mut done = 0;
    while done < len {
        let piece = Piece::read(hca, section, scratch, from, (done, len - done))?;
        let begun = begin(hca);
        match piece.source {
            Found::Bytes(bytes) => into.extend_from_slice(bytes),
            Found::Spans(_) => hca.dma.gather(&scratch.source.spans, into).map_err(|_| Stop::NoSource)?,
        }
        scratch.target.clear();
        record(Route::within(hca), mover, (&scratch.source, &scratch.target), piece.len, (begun, false));
        done += piece.len;
    }
    Ok(())
}

/// The bytes of a piece, of which the first has its lowest bit flipped.
fn corrupt(hca: &Hca, source: &Found<'_>, spans: &[Span]) -> Result<Vec<u8>, Stop> {
    let mut bytes = Vec::new();
    match source {
        Found::Bytes(inline) => bytes.extend_from_slice(inline),
        Found::Spans(_) => hca.dma.gather(spans, &mut bytes).map_err(|_| Stop::NoSource)?,
    }
    if let Some(first) = bytes.first_mut() {
        *first ^= 1;
    }
    Ok(bytes)
}

/// Writes the first `len` bytes of `source` to the spans of `target`. How many bytes have to be put on record, also if it ends early.
fn place(route: Route<'_>, source: Source<'_>, target: &[Span], len: u64) -> (u64, Result<(), Stop>) {
    let Route { from, to } = route;
    match copy((&from.dma, source), (&to.dma, target), len) {
        Ok(()) => (len, Ok(())),
        Err(error) if error.is_source() => (error.touched, Err(Stop::NoSource)),
        Err(error) => (error.touched, Err(Stop::NoTarget)),
    }
}

/// The time from which on a copy may have happened, for the ledger.
fn begin(hca: &Hca) -> Seq {
    if hca.ledger.watches_any() { hca.ledger.tick() } else { 0 }
}

/// Puts a piece that has been copied on record, for its watched pages.
fn record(route: Route<'_>, mover: Mover, (source, target): (&Side, &Side), len: u64, (begun, hidden): (Seq, bool)) {
    let Route { from, to } = route;
    let ledger = &from.ledger;
    if !ledger.watches_any() {
        return;
    }
    for (span, key) in source.recorded(len) {
        ledger.nic_read(from.index, mover.qpn, (span.addr, span.len), key, begun);
    }
    for (span, key) in target.recorded(len) {
        if !hidden {
            ledger.nic_wrote(to.index, mover.qpn, (span.addr, span.len), key, begun);
        }
    }
}
