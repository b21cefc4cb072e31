// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The accesses of one batch.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use vm_memory::{AtomicAccess, Bytes, VolatileMemory, VolatileSlice};

use crate::{Direction, DmaError, DmaTarget, Span};

/// Leave to reach guest memory, given while bus mastering was on. The switch is not looked at again, so that it is for one batch of
/// accesses of one kind, a copy or a request, and never kept over a wait. What is refused is counted and logged at a limited rate.
///
/// Addresses are guest physical. Zero bytes are RAM everywhere.
#[derive(Clone, Copy)]
pub struct Permit<'a> {
    pub(crate) target: &'a DmaTarget,
}

impl<'a> Permit<'a> {
    /// The first run of host memory of `len` bytes at `addr`, never empty and with an end that is an address; `len` is at least 1.
    #[inline]
    pub(crate) fn run(self, addr: u64, len: u64) -> Result<VolatileSlice<'a>, DmaError> {
        match self.target.memory().find(addr, len) {
            Some(run) if !run.is_empty() && addr.checked_add(run.len() as u64).is_some() => Ok(run),
            _ => self.target.refuse(self.target.outside(addr, len)),
        }
    }

    /// All of `len` bytes as one run, if they are one.
    #[inline]
    fn whole(self, addr: u64, len: usize) -> Option<VolatileSlice<'a>> {
        self.target.memory().find(addr, len as u64).filter(|run| run.len() == len)
    }

    /// Checks that `len` bytes at `addr` are guest RAM.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`].
    pub fn check(self, addr: u64, len: u64) -> Result<(), DmaError> {
        if self.target.is_ram(addr, len) { Ok(()) } else { self.target.refuse(self.target.outside(addr, len)) }
    }

    /// Copies guest memory from `addr` on into `bytes`.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`]: nothing was copied.
    pub fn read(self, addr: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        if let Some(run) = self.whole(addr, bytes.len()) {
            run.copy_to(bytes);
            return Ok(());
        }
        self.check(addr, bytes.len() as u64)?;
        let (mut at, mut rest) = (addr, bytes);
        while !rest.is_empty() {
            let moved = self.run(at, rest.len() as u64)?.copy_to(rest);
            at += moved as u64;
            rest = rest.get_mut(moved..).unwrap_or_default();
        }
        Ok(())
    }

    /// Copies `bytes` to guest memory at `addr`.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`]: nothing was copied.
    pub fn write(self, addr: u64, bytes: &[u8]) -> Result<(), DmaError> {
        if let Some(run) = self.whole(addr, bytes.len()) {
            run.copy_from(bytes);
            return Ok(());
        }
        self.check(addr, bytes.len() as u64)?;
        let (mut at, mut rest) = (addr, bytes);
        while !rest.is_empty() {
            let run = self.run(at, rest.len() as u64)?;
            run.copy_from(rest);
            at += run.len() as u64;
            rest = rest.get(run.len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes `entry` to guest memory at `addr` so that whoever finds its last dword, which says whose it is, finds all of it (rule 4).
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`]: nothing was written.
    pub fn publish<const N: usize>(self, addr: u64, entry: &[u8; N]) -> Result<(), DmaError> {
        let (body, last) = entry.split_at(N.saturating_sub(4));
        if let Some(run) = self.whole(addr, N)
            && let Ok(end) = run.offset(body.len())
        {
            run.copy_from(body);
            fence(Ordering::Release);
            end.copy_from(last);
            return Ok(());
        }
        self.check(addr, N as u64)?;
        self.write(addr, body)?;
        fence(Ordering::Release);
        self.write(addr + body.len() as u64, last)
    }

    /// Reads an integer at once, in the host's byte order. `order` as for the standard library's atomics.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`] or [`DmaError::Misaligned`].
    pub fn load<T: AtomicAccess>(self, addr: u64, order: Ordering) -> Result<T, DmaError> {
        let cell = self.cell(addr, size_of::<T>())?;
        cell.load(0, order).or_else(|_| self.misaligned(addr, size_of::<T>()))
    }

    /// Writes an integer at once, in the host's byte order. `order` as for the standard library's atomics.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`] or [`DmaError::Misaligned`].
    pub fn store<T: AtomicAccess>(self, addr: u64, value: T, order: Ordering) -> Result<(), DmaError> {
        let cell = self.cell(addr, size_of::<T>())?;
        cell.store(value, 0, order).or_else(|_| self.misaligned(addr, size_of::<T>()))
    }

    /// What `with` makes of the 8 bytes at `addr`, in the host's byte order. It is called only if they can be reached, so that it may check
    /// what else has to be right before it changes them; with `Err` it has left them alone.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`] or [`DmaError::Misaligned`].
    pub fn word<T, E>(
        self,
        addr: u64,
        with: impl FnOnce(&AtomicU64) -> Result<T, E>,
    ) -> Result<Result<T, E>, DmaError> {
        let cell = self.cell(addr, size_of::<u64>())?;
        let Ok(word) = cell.get_atomic_ref::<AtomicU64>(0) else { return self.misaligned(addr, size_of::<u64>()) };
        let result = with(word);
        if result.is_ok() {
            self.target.wrote(Span { addr, len: size_of::<u64>() as u64 });
        }
        Ok(result)
    }

    /// Appends the bytes of `spans` to `into`. The caller has bounded them.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`]: `into` is as it was.
    pub fn gather(self, spans: &[Span], into: &mut Vec<u8>) -> Result<(), DmaError> {
        let before = into.len();
        let result = spans.iter().try_for_each(|span| {
            self.check(span.addr, span.len)?;
            let done = into.len();
            into.resize(done + span.len as usize, 0);
            self.read(span.addr, into.get_mut(done..).unwrap_or_default())
        });
        result.inspect_err(|_| into.truncate(before))
    }

    /// Hands `call` the host memory of `spans`, in order, as the buffers of a vectored system call: as many as there are runs, none of them
    /// empty. The pointers are good while `call` runs. The guest may change the memory meanwhile: as with real DMA, what counts is what the
    /// copy saw.
    ///
    /// # Errors
    /// [`DmaError::OutsideRam`]: `call` was not called.
    pub fn vectored<R>(
        self,
        direction: Direction,
        spans: impl IntoIterator<Item = Span> + Clone,
        call: impl FnOnce(&mut [libc::iovec]) -> R,
    ) -> Result<R, DmaError> {
        let mut guards = Vec::new();
        for Span { mut addr, mut len } in spans.clone() {
            self.check(addr, len)?;
            while len > 0 {
                let run = self.run(addr, len)?;
                guards.push(run.ptr_guard_mut());
                addr += run.len() as u64;
                len -= run.len() as u64;
            }
        }
        let buffer = |run: &vm_memory::volatile_memory::PtrGuardMut| libc::iovec {
            iov_base: run.as_ptr().cast(),
            iov_len: run.len(),
        };
        let mut buffers: Vec<libc::iovec> = guards.iter().map(buffer).collect();
        let result = call(&mut buffers);
        if direction == Direction::ToGuest {
            spans.into_iter().for_each(|span| self.target.wrote(span));
        }
        Ok(result)
    }

    /// A word of `size` bytes. Pages hold whole words, so that a word over the seam of two runs is misaligned.
    #[inline]
    fn cell(self, addr: u64, size: usize) -> Result<VolatileSlice<'a>, DmaError> {
        match self.whole(addr, size) {
            Some(cell) => Ok(cell),
            None => self.check(addr, size as u64).and_then(|()| self.misaligned(addr, size)),
        }
    }

    #[cold]
    fn misaligned<T>(self, addr: u64, size: usize) -> Result<T, DmaError> {
        let requester = self.target.requester();
        self.target.refuse(DmaError::Misaligned { requester, addr, len: size as u64 })
    }
}
