// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue buffers in guest memory: the page list that CREATE_EQ, CREATE_CQ, CREATE_QP and the SRQ commands end with (contract 6, "Common").

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dma::{DmaError, DmaTarget, Permit};

/// The smallest page of a list; `log_page_size` counts from it.
const PAGE_4K: u64 = 4096;

/// A driver's queue buffer: pages that need not be contiguous (contract T23).
#[derive(Debug, Clone, Default)]
pub struct GuestBuffer {
    pages: Arc<[u64]>,
    log_page: u32,
    offset: u64,
    len: u64,
    /// Its share of the device's [`BufferMemory`].
    lease: Option<Arc<Lease>>,
}

/// Page list entries that all buffers of one device keep on the host. A driver gives every page to one queue only, so that more entries
/// than the guest has pages are no driver's: without that bound a guest could have the host remember one page billions of times.
#[derive(Debug, Default)]
pub struct BufferMemory(Arc<AtomicU64>);

#[derive(Debug)]
struct Lease {
    used: Arc<AtomicU64>,
    entries: u64,
}

impl BufferMemory {
    /// Entries in use.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts the buffer until it is dropped; `None` if there are more than `limit` entries with it.
    pub fn admit(&self, mut buffer: GuestBuffer, limit: u64) -> Option<GuestBuffer> {
        let entries = buffer.pages.len() as u64;
        let fits = |used: u64| used.checked_add(entries).filter(|sum| *sum <= limit);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        buffer.lease = Some(Arc::new(Lease { used: self.0.clone(), entries }));
        Some(buffer)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.used.fetch_sub(self.entries, Ordering::Relaxed);
    }
}

/// How many pages a list needs, and where the buffer begins in the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    log_page: u32,
    offset: u64,
    len: u64,
}

impl Geometry {
    /// Page size 4096 << `log_page_size`, buffer of `len` bytes that begins `page_offset` 64ths of a page into the first page.
    /// `None` if the sizes are absurd.
    pub fn new(log_page_size: u32, page_offset: u32, len: u64) -> Option<Self> {
        if log_page_size > 31 || page_offset >= 64 || len == 0 || len > 1 << 40 {
            return None;
        }
        let page = PAGE_4K << log_page_size;
        Some(Self { log_page: log_page_size + 12, offset: page / 64 * u64::from(page_offset), len })
    }

    /// All bytes of `pages` pages from byte `offset` of the first on.
    pub fn whole(log_page_size: u32, offset: u32, pages: u64) -> Option<Self> {
        let log_page = (log_page_size <= 31).then_some(log_page_size + 12)?;
        let bytes = pages.checked_mul(1 << log_page).filter(|bytes| *bytes <= 1 << 40)?;
        let offset = u64::from(offset);
        let len = bytes.checked_sub(offset).filter(|len| *len > 0 && offset < 1 << log_page)?;
        Some(Self { log_page, offset, len })
    }

    /// Entries of the page list.
    pub fn pages(&self) -> u64 {
        (self.offset + self.len).div_ceil(1 << self.log_page)
    }
}

impl GuestBuffer {
    /// A buffer over the big-endian page list `list`; `None` if the list is too short.
    pub fn new(geometry: Geometry, list: &[u8]) -> Option<Self> {
        let wanted = usize::try_from(geometry.pages()).ok()?;
        let bytes = list.get(..wanted.checked_mul(8)?)?;
        let mask = !(PAGE_4K - 1);
        let page = |entry: &[u8]| u64::from_be_bytes(entry.try_into().unwrap_or_default()) & mask;
        let Geometry { log_page, offset, len } = geometry;
        Some(Self { pages: bytes.chunks_exact(8).map(page).collect(), log_page, offset, len, lease: None })
    }

    /// `len` bytes of it at byte `at`, as a buffer over the same pages; `None` beyond the end.
    pub fn view(&self, at: u64, len: u64) -> Option<Self> {
        let within = len > 0 && at.checked_add(len)? <= self.len;
        within.then(|| Self { offset: self.offset + at, len, ..self.clone() })
    }

    /// The guest physical address of `len` bytes at byte `at`; `None` if they do not lie in one piece.
    pub fn address(&self, at: u64, len: u64) -> Option<u64> {
        let (mut address, mut reached) = (None, 0);
        // Pages that follow each other in memory are one piece.
        while reached < len {
            let (gpa, now) = self.piece(at.checked_add(reached)?, len - reached)?;
            let first = *address.get_or_insert(gpa);
            if gpa != first.checked_add(reached)? {
                return None;
            }
            reached += now;
        }
        address
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The guest physical pieces of `len` bytes at `at`; `None` beyond the end.
    fn piece(&self, at: u64, len: u64) -> Option<(u64, u64)> {
        if at >= self.len || len > self.len - at {
            return None;
        }
        let from_first = self.offset + at;
        let inside = from_first & ((1 << self.log_page) - 1);
        let page = self.pages.get(usize::try_from(from_first >> self.log_page).ok()?)?;
        Some((page.checked_add(inside)?, len.min((1 << self.log_page) - inside)))
    }

    /// Reads `data.len()` bytes at byte `at` of the buffer.
    ///
    /// # Errors
    /// Bus mastering is off, or a page is not guest RAM; a range beyond the buffer's end counts as such.
    pub fn read(&self, dma: &DmaTarget, at: u64, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        let mut data = data;
        self.each(dma, at, len as u64, |door, gpa, len| {
            let (now, later) = std::mem::take(&mut data).split_at_mut(len as usize);
            data = later;
            door.read(gpa, now)
        })
    }

    /// Writes `data` at byte `at` of the buffer. Errors as [`GuestBuffer::read`].
    pub fn write(&self, dma: &DmaTarget, at: u64, data: &[u8]) -> Result<(), DmaError> {
        let len = data.len();
        let mut data = data;
        self.each(dma, at, len as u64, |door, gpa, len| {
            let (now, later) = data.split_at(len as usize);
            data = later;
            door.write(gpa, now)
        })
    }

    /// Publishes an entry at byte `at`: its last dword, with the owner bit, after all else (rule 4). Errors as [`GuestBuffer::read`].
    ///
    /// Entries do not cross pages: they are as long as a power of two, and lie at a multiple of it.
    pub fn publish<const N: usize>(&self, dma: &DmaTarget, at: u64, entry: &[u8; N]) -> Result<(), DmaError> {
        let len = N as u64;
        match self.piece(at, len) {
            Some((gpa, whole)) if whole == len => dma.permit()?.publish(gpa, entry),
            _ => Err(DmaError::OutsideRam { requester: dma.requester(), addr: u64::MAX, len }),
        }
    }

    /// Whether all of it is guest RAM.
    ///
    /// # Errors
    /// As [`GuestBuffer::read`].
    pub fn check(&self, dma: &DmaTarget) -> Result<(), DmaError> {
        self.each(dma, 0, self.len, |door, gpa, len| door.check(gpa, len))
    }

    fn each(
        &self,
        dma: &DmaTarget,
        mut at: u64,
        mut left: u64,
        mut visit: impl FnMut(Permit<'_>, u64, u64) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let beyond = DmaError::OutsideRam { requester: dma.requester(), addr: u64::MAX, len: left };
        let door = dma.permit()?;
        while left > 0 {
            let (gpa, len) = self.piece(at, left).ok_or(beyond)?;
            visit(door, gpa, len)?;
            at += len;
            left -= len;
        }
        Ok(())
    }
}
