// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a descriptor chain to a checked request: everything is copied in once and then parsed (virtio 1.2 §5.2.6).

use std::ops::Range;

use thiserror::Error;
use virtio_queue::DescriptorChain;

use super::file_io::Segment;
use super::hooks::RequestShape;
use crate::hooks::{BlkOp, PageTouch};
use dma::{DmaError, DmaTarget};
use probe::ledger::{Ledger, PAGE_SIZE, SECTOR_SIZE};

/// VIRTIO_BLK_S_OK.
pub const S_OK: u8 = 0;
/// VIRTIO_BLK_S_IOERR.
pub const S_IOERR: u8 = 1;
/// VIRTIO_BLK_S_UNSUPP.
pub const S_UNSUPP: u8 = 2;

/// Bytes of virtio_blk_req before the data.
const HEADER: usize = 16;
/// Bytes of virtio_blk_discard_write_zeroes.
const ZERO_SEGMENT: usize = 16;
/// Bytes that GET_ID returns.
const ID_BYTES: u64 = 20;
/// Pages are put on record for requests up to this size.
const MAX_RECORDED: u64 = 4 << 20;

/// Sectors that one discard or write-zeroes segment may cover (64 MiB: they may have to be written out as zeroes).
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 17;
/// Segments of one discard.
pub(super) const MAX_DISCARD_SEGMENTS: u32 = 16;
/// Segments of one write-zeroes.
pub(super) const MAX_ZERO_SEGMENTS: u32 = 4;

/// The driver broke the ring or the request so badly that no status can be given: the device needs a reset.
#[derive(Debug, Error)]
pub(super) enum RingFault {
    #[error("the queue is not usable: {0}")]
    Queue(virtio_queue::Error),
    #[error("the descriptor chain at head {0} is empty, loops, leaves the table or is longer than the queue")]
    Chain(u16),
    #[error("the chain at head {0} has device-readable buffers after device-writable ones")]
    Order(u16),
    #[error("the chain at head {0} has no writable byte for the status")]
    NoStatus(u16),
    #[error("the rings or a status byte cannot be reached: {0}")]
    Memory(#[from] DmaError),
}

/// Why a well-framed request is refused, with the status that the guest sees.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    #[error("the header is shorter than 16 bytes")]
    ShortHeader,
    #[error("its type {0} is unknown or was not negotiated")]
    UnknownType(u32),
    #[error("a buffer is not guest memory")]
    Memory,
    #[error("{0} bytes of data do not fit the request type")]
    Length(u64),
    #[error("it reaches beyond the end of the disk")]
    BeyondEnd,
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("it has unknown or forbidden flags")]
    Flags,
}

impl Refusal {
    pub(super) fn status(self) -> u8 {
        match self {
            Self::UnknownType(_) | Self::Flags => S_UNSUPP,
            _ => S_IOERR,
        }
    }
}

/// What the device is able to do now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Sectors.
    pub(super) capacity: u64,
    pub(super) readonly: bool,
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
}

/// One sector range of a discard or write-zeroes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ZeroRange {
    pub(super) sectors: Range<u64>,
    pub(super) unmap: bool,
}

/// A framed request; `refusal` says whether it may be carried out.
#[derive(Debug)]
pub(super) struct Request {
    /// Head of its chain, for the used ring.
    pub(super) head: u16,
    pub(super) op: BlkOp,
    pub(super) lba: u64,
    /// Sectors covered, for matching and the record.
    pub(super) ranges: Vec<Range<u64>>,
    /// What to zero.
    pub(super) zero: Vec<ZeroRange>,
    /// Guest memory of the data, all of it RAM.
    pub(super) data: Vec<Segment>,
    /// Bytes of `data`.
    pub(super) len: u64,
    /// Where the status byte goes.
    pub(super) status_addr: u64,
    pub(super) refusal: Option<Refusal>,
}

impl Request {
    /// Parses a chain of at most `longest` descriptors (virtio 1.2 §2.7.5.3.1: the queue size).
    pub(super) fn parse(
        chain: DescriptorChain<&DmaTarget>,
        longest: u16,
        dma: &DmaTarget,
        limits: &Limits,
    ) -> Result<Self, RingFault> {
        let head = chain.head_index();
        let (mut readable, mut writable) = collect(chain, longest)?;
        let status_addr = take_last_byte(&mut writable).ok_or(RingFault::NoStatus(head))?;
        dma.check(status_addr, 1)?;
        let mut request = Self {
            head,
            op: BlkOp::Other,
            lba: 0,
            ranges: Vec::new(),
            zero: Vec::new(),
            data: Vec::new(),
            len: 0,
            status_addr,
            refusal: None,
        };
        request.refusal = request.fill(&mut readable, writable, dma, limits).err();
        if request.refusal.is_some() {
            // Nothing unchecked stays in a request.
            request.data.clear();
        }
        Ok(request)
    }

    fn fill(
        &mut self,
        readable: &mut Vec<Segment>,
        writable: Vec<Segment>,
        dma: &DmaTarget,
        limits: &Limits,
    ) -> Result<(), Refusal> {
        let header: [u8; HEADER] = copy_in(dma, &take_front(readable, HEADER as u64).ok_or(Refusal::ShortHeader)?)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(std::array::from_fn(|n| header[8 + n]));
        // virtio 1.2 §5.2.6: the types.
        let (op, data) = match kind {
            0 => (BlkOp::Read, writable),
            1 => (BlkOp::Write, std::mem::take(readable)),
            4 => (BlkOp::Flush, Vec::new()),
            8 => (BlkOp::GetId, writable),
            11 => (BlkOp::Discard, std::mem::take(readable)),
            13 => (BlkOp::WriteZeroes, std::mem::take(readable)),
            _ => return Err(Refusal::UnknownType(kind)),
        };
        self.op = op;
        self.data = data;
        self.len = self.data.iter().map(|(_, len)| len).sum();
        match op {
            BlkOp::Read | BlkOp::Write => self.transfer(sector, dma, limits),
            BlkOp::GetId => {
                check_memory(dma, &self.data)?;
                if self.len < ID_BYTES { Err(Refusal::Length(self.len)) } else { Ok(()) }
            }
            BlkOp::Discard if limits.discard => self.zeroing(MAX_DISCARD_SEGMENTS, dma, limits),
            BlkOp::WriteZeroes if limits.write_zeroes => self.zeroing(MAX_ZERO_SEGMENTS, dma, limits),
            // A read-only disk never offers these, and must fail them (§5.2.6.2).
            BlkOp::Discard | BlkOp::WriteZeroes if limits.readonly => Err(Refusal::ReadOnly),
            BlkOp::Discard | BlkOp::WriteZeroes => Err(Refusal::UnknownType(kind)),
            BlkOp::Flush | BlkOp::Other => Ok(()),
        }
    }

    fn transfer(&mut self, sector: u64, dma: &DmaTarget, limits: &Limits) -> Result<(), Refusal> {
        self.lba = sector;
        if self.len == 0 || !self.len.is_multiple_of(SECTOR_SIZE) {
            return Err(Refusal::Length(self.len));
        }
        self.ranges.push(in_disk(sector, self.len / SECTOR_SIZE, limits)?);
        if self.op == BlkOp::Write && limits.readonly {
            return Err(Refusal::ReadOnly);
        }
        check_memory(dma, &self.data)
    }

    /// Discard and write-zeroes: their data is an array of ranges.
    fn zeroing(&mut self, most: u32, dma: &DmaTarget, limits: &Limits) -> Result<(), Refusal> {
        let data = std::mem::take(&mut self.data);
        let bytes = std::mem::take(&mut self.len);
        if bytes == 0 || !bytes.is_multiple_of(ZERO_SEGMENT as u64) || bytes > u64::from(most) * ZERO_SEGMENT as u64 {
            return Err(Refusal::Length(bytes));
        }
        let mut raw = vec![0; bytes as usize];
        copy_in_slice(dma, &data, &mut raw)?;
        for segment in raw.chunks_exact(ZERO_SEGMENT) {
            let sector = u64::from_le_bytes(std::array::from_fn(|n| segment[n]));
            let sectors = u32::from_le_bytes(std::array::from_fn(|n| segment[8 + n]));
            let flags = u32::from_le_bytes(std::array::from_fn(|n| segment[12 + n]));
            // Bit 0 is unmap, allowed for write-zeroes only (§5.2.6.2).
            let allowed = u32::from(self.op == BlkOp::WriteZeroes);
            if flags & !allowed != 0 {
                return Err(Refusal::Flags);
            }
            if sectors > MAX_ZERO_SECTORS {
                return Err(Refusal::Length(u64::from(sectors) * SECTOR_SIZE));
            }
            let range = in_disk(sector, sectors.into(), limits)?;
            self.len += u64::from(sectors) * SECTOR_SIZE;
            self.ranges.push(range.clone());
            self.zero.push(ZeroRange { sectors: range, unmap: flags & 1 != 0 });
        }
        self.lba = self.ranges.first().map_or(0, |range| range.start);
        Ok(())
    }

    /// What matchers see.
    pub(super) fn shape<'a>(&'a self, ledger: &'a Ledger) -> RequestShape<'a> {
        RequestShape { op: self.op, lba: &self.ranges, memory: &self.data, ledger }
    }

    /// Whether its pages are put on record.
    pub(super) fn pages_known(&self) -> bool {
        self.len <= MAX_RECORDED || self.data.is_empty()
    }

    /// The guest pages of the data, in order, with the byte of the data where each begins.
    pub(super) fn touches(&self) -> Vec<(PageTouch, u64)> {
        let mut touches = Vec::new();
        if !self.pages_known() {
            return touches;
        }
        let mut at = 0;
        for &(addr, len) in &self.data {
            let mut done = 0;
            while done < len {
                let gpa = addr + done;
                let offset = gpa % PAGE_SIZE;
                let part = (PAGE_SIZE - offset).min(len - done);
                let touch = PageTouch {
                    gpa: gpa - offset,
                    // Both at most 4,096.
                    offset: offset as u16,
                    len: part as u16,
                    lba: self.lba.saturating_add(at / SECTOR_SIZE),
                    lba_offset: (at % SECTOR_SIZE) as u16,
                    at_arrival: None,
                    at_data: None,
                    at_completion: None,
                };
                touches.push((touch, at));
                done += part;
                at += part;
            }
        }
        touches
    }
}

/// The readable and then the writable buffers of a chain.
fn collect(chain: DescriptorChain<&DmaTarget>, longest: u16) -> Result<(Vec<Segment>, Vec<Segment>), RingFault> {
    let head = chain.head_index();
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut unfinished = true;
    let mut count = 0_u16;
    for descriptor in chain {
        count = count.saturating_add(1);
        if count > longest {
            return Err(RingFault::Chain(head));
        }
        unfinished = descriptor.has_next();
        let segment = (descriptor.addr().0, u64::from(descriptor.len()));
        if descriptor.is_write_only() {
            writable.push(segment);
        } else if writable.is_empty() {
            readable.push(segment);
        } else {
            return Err(RingFault::Order(head));
        }
    }
    // The iterator stops at whatever is wrong; an end that was not announced is such a stop.
    if unfinished { Err(RingFault::Chain(head)) } else { Ok((readable, writable)) }
}

/// Cuts the last byte off, skipping empty buffers; its address.
fn take_last_byte(segments: &mut Vec<Segment>) -> Option<u64> {
    while let Some((addr, len)) = segments.pop() {
        if let Some(rest) = len.checked_sub(1) {
            let at = addr.checked_add(rest)?;
            if rest > 0 {
                segments.push((addr, rest));
            }
            return Some(at);
        }
    }
    None
}

/// Cuts the first `len` bytes off, wherever the driver put the seams (§2.7.4: no assumptions on framing).
fn take_front(segments: &mut Vec<Segment>, mut len: u64) -> Option<Vec<Segment>> {
    let mut front = Vec::new();
    let mut used = 0;
    for segment in segments.iter_mut() {
        let part = segment.1.min(len);
        front.push((segment.0, part));
        segment.0 = segment.0.checked_add(part)?;
        segment.1 -= part;
        len -= part;
        used += usize::from(segment.1 == 0);
        if len == 0 {
            segments.drain(..used);
            return Some(front);
        }
    }
    None
}

/// The first `len` bytes of `segments`, or all of them.
pub(super) fn front(segments: &[Segment], mut len: u64) -> Vec<Segment> {
    let mut front = Vec::new();
    for &(addr, part) in segments {
        let part = part.min(len);
        if part != 0 {
            front.push((addr, part));
        }
        len -= part;
    }
    front
}

fn copy_in<const N: usize>(dma: &DmaTarget, segments: &[Segment]) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    copy_in_slice(dma, segments, &mut bytes)?;
    Ok(bytes)
}

fn copy_in_slice(dma: &DmaTarget, segments: &[Segment], mut into: &mut [u8]) -> Result<(), Refusal> {
    for &(addr, len) in segments {
        let (part, rest) = into.split_at_mut_checked(len as usize).ok_or(Refusal::Length(len))?;
        dma.read(addr, part).map_err(|_| Refusal::Memory)?;
        into = rest;
    }
    Ok(())
}

fn check_memory(dma: &DmaTarget, segments: &[Segment]) -> Result<(), Refusal> {
    segments.iter().try_for_each(|&(addr, len)| dma.check(addr, len).map_err(|_| Refusal::Memory))
}

/// The sector range, checked by subtraction so that nothing can wrap.
fn in_disk(sector: u64, sectors: u64, limits: &Limits) -> Result<Range<u64>, Refusal> {
    match limits.capacity.checked_sub(sector) {
        Some(left) if sectors <= left => Ok(sector..sector + sectors),
        _ => Err(Refusal::BeyondEnd),
    }
}
