// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory under test: mappings that devices and other threads change behind our back. No Rust reference to them ever exists:
//! they are read and written by system calls on their address, which also turns SIGBUS into EFAULT.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rnic_agent::proto::Advice;

use super::check;
use super::file::{memfd, offset};

/// Page size of x86.
pub const PAGE: u64 = 4096;
const HUGE: usize = 2 << 20;
/// Largest mapping, bytes.
const MAX_LEN: u64 = 16 << 30;

/// A mapping or anonymous buffer. Its address range stays reserved until this is dropped.
#[derive(Debug)]
pub struct Mapping {
    /// The reserved range (more than the mapping when it had to be aligned).
    reserved: (usize, usize),
    addr: usize,
    len: u64,
    /// Offset in the file of its first byte; 0 for anonymous memory.
    file_offset: u64,
    live: AtomicBool,
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// mmap(2); returns the address.
fn mmap(addr: usize, len: usize, prot: i32, flags: i32, fd: i32, off: u64) -> io::Result<usize> {
    // SAFETY: without MAP_FIXED the kernel chooses free space; with it, callers pass ranges that a Mapping has reserved.
    let addr = unsafe { libc::mmap(addr as *mut _, len, prot, flags, fd, offset(off)?) };
    if addr == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(addr as usize) }
}

impl Mapping {
    /// Maps a file.
    pub fn file(file: &File, off: u64, len: u64, write: bool, private: bool) -> io::Result<Self> {
        let prot = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        let flags = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let size = Self::size(len)?;
        let addr = mmap(0, size, prot, flags, file.as_raw_fd(), off)?;
        Ok(Self { reserved: (addr, size), addr, len, file_offset: off, live: AtomicBool::new(true) })
    }

    /// Anonymous private memory; with `huge` aligned to 2 MiB and advised so.
    pub fn anonymous(len: u64, huge: bool) -> io::Result<Self> {
        let size = Self::size(len)?;
        let reserve = if huge { size + HUGE } else { size };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = mmap(0, reserve, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)?;
        let addr = if huge { base.next_multiple_of(HUGE) } else { base };
        let mapping = Self { reserved: (base, reserve), addr, len, file_offset: 0, live: AtomicBool::new(true) };
        let advice = if huge { Advice::Hugepage } else { Advice::Nohugepage };
        // Kernels without transparent huge pages refuse; PageInfo shows what came out.
        let _ = mapping.advise(0, len, advice);
        Ok(mapping)
    }

    fn size(len: u64) -> io::Result<usize> {
        if len == 0 || len > MAX_LEN {
            return Err(errno(libc::EINVAL));
        }
        Ok(len.next_multiple_of(PAGE) as usize)
    }

    /// Offset in the file of the mapping's first byte.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// The address of `off`, when `len` bytes from there are in the mapping.
    pub fn address(&self, off: u64, len: u64) -> io::Result<usize> {
        if !self.live.load(Ordering::Acquire) {
            return Err(errno(libc::EFAULT));
        }
        let inside = off <= self.len && len <= self.len - off;
        if inside { Ok(self.addr + off as usize) } else { Err(errno(libc::EINVAL)) }
    }

    /// munmap(2) in effect: the mapping goes, but an inaccessible one keeps the addresses from being used for something else
    /// while a step still knows them.
    pub fn unmap(&self) -> io::Result<()> {
        if !self.live.swap(false, Ordering::AcqRel) {
            return Err(errno(libc::EINVAL));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        mmap(self.reserved.0, self.reserved.1, libc::PROT_NONE, flags, -1, 0).map(drop)
    }

    /// Fresh anonymous memory where the mapping was before [`unmap`](Self::unmap).
    pub fn map_again(&self) -> io::Result<()> {
        if self.live.load(Ordering::Acquire) {
            return Err(errno(libc::EBUSY));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        mmap(self.addr, Self::size(self.len)?, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)?;
        self.live.store(true, Ordering::Release);
        Ok(())
    }

    /// mremap(2) to another address: the mapping there. This one is as after [`unmap`](Self::unmap).
    pub fn move_away(&self) -> io::Result<Self> {
        if !self.live.swap(false, Ordering::AcqRel) {
            return Err(errno(libc::EINVAL));
        }
        let size = Self::size(self.len)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let to = mmap(0, size, libc::PROT_NONE, flags, -1, 0)?;
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are reserved, one by `self` and one just above, and no Rust reference into them exists.
        let moved = unsafe { libc::mremap(self.addr as *mut _, size, size, how, to as *mut libc::c_void) };
        if moved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Nobody else is to get the addresses while a step still knows them.
        mmap(self.addr, size, libc::PROT_NONE, flags | libc::MAP_FIXED, -1, 0)?;
        Ok(Self {
            reserved: (to, size),
            addr: to,
            len: self.len,
            file_offset: self.file_offset,
            live: AtomicBool::new(true),
        })
    }

    /// The same for a part.
    pub fn unmap_part(&self, off: u64, len: u64) -> io::Result<()> {
        let addr = self.address(off, len)?;
        if len == 0 || !(addr as u64 | len).is_multiple_of(PAGE) {
            return Err(errno(libc::EINVAL));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        mmap(addr, len as usize, libc::PROT_NONE, flags, -1, 0).map(drop)
    }

    /// msync(2), MS_SYNC.
    pub fn sync(&self, off: u64, len: u64) -> io::Result<()> {
        let addr = self.address(off, len)?;
        // SAFETY: a range of this mapping; msync changes no memory.
        check(unsafe { libc::msync(addr as *mut _, len as usize, libc::MS_SYNC) }.into()).map(drop)
    }

    /// madvise(2).
    pub fn advise(&self, off: u64, len: u64, advice: Advice) -> io::Result<()> {
        let addr = self.address(off, len)?;
        // SAFETY: a range of this mapping, to which no Rust reference exists, so its contents may change or go.
        check(unsafe { libc::madvise(addr as *mut _, len as usize, madv(advice)) }.into()).map(drop)
    }

    /// CPU stores of `bytes` (by the kernel's copy to user memory, through this process's page tables).
    pub fn store(&self, off: u64, bytes: &[u8]) -> io::Result<()> {
        let addr = self.address(off, bytes.len() as u64)?;
        let bounce = memfd()?;
        bounce.write_all_at(bytes, 0)?;
        transfer(&bounce, addr, bytes.len(), Direction::ToMemory)
    }

    /// CPU loads into `bytes`.
    pub fn load(&self, off: u64, bytes: &mut [u8]) -> io::Result<()> {
        let addr = self.address(off, bytes.len() as u64)?;
        let bounce = memfd()?;
        transfer(&bounce, addr, bytes.len(), Direction::FromMemory)?;
        bounce.read_exact_at(bytes, 0)
    }

    /// One pread(2) from `file` into the mapping; returns the bytes read.
    pub fn read_from(&self, off: u64, file: &File, file_off: u64, len: u64) -> io::Result<u64> {
        let addr = self.address(off, len)?;
        // SAFETY: the range is reserved for this mapping while `self` lives, and no Rust reference to it exists.
        check(unsafe { libc::pread(file.as_raw_fd(), addr as *mut _, len as usize, offset(file_off)?) } as i64)
    }

    /// One pwrite(2) to `file` from the mapping; returns the bytes written.
    pub fn write_to(&self, off: u64, file: &File, file_off: u64, len: u64) -> io::Result<u64> {
        let addr = self.address(off, len)?;
        // SAFETY: as above; the kernel only reads.
        check(unsafe { libc::pwrite(file.as_raw_fd(), addr as *const _, len as usize, offset(file_off)?) } as i64)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was reserved by this mapping, and nothing else knows it any more.
        unsafe { libc::munmap(self.reserved.0 as *mut _, self.reserved.1) };
    }
}

enum Direction {
    ToMemory,
    FromMemory,
}

/// Copies between the beginning of `bounce` and memory at `addr`, all of `len` bytes.
fn transfer(bounce: &File, addr: usize, len: usize, direction: Direction) -> io::Result<()> {
    let fd = bounce.as_raw_fd();
    let mut done = 0;
    while done < len {
        let (at, left, off) = (addr + done, len - done, done as i64);
        // SAFETY: `addr..addr + len` is inside a reserved range (see `Mapping::address`) without Rust references.
        let n = match direction {
            // SAFETY: as above; the kernel writes at most `left` bytes there.
            Direction::ToMemory => unsafe { libc::pread(fd, at as *mut _, left, off) },
            // SAFETY: as above; the kernel only reads.
            Direction::FromMemory => unsafe { libc::pwrite(fd, at as *const _, left, off) },
        };
        match check(n as i64)? {
            0 => return Err(errno(libc::EFAULT)),
            n => done += n as usize,
        }
    }
    Ok(())
}

/// Values of linux/mman.h that libc lacks for this target are spelt out.
fn madv(advice: Advice) -> i32 {
    match advice {
        Advice::Normal => libc::MADV_NORMAL,
        Advice::Random => libc::MADV_RANDOM,
        Advice::Sequential => libc::MADV_SEQUENTIAL,
        Advice::Willneed => libc::MADV_WILLNEED,
        Advice::Dontneed => libc::MADV_DONTNEED,
        Advice::Remove => libc::MADV_REMOVE,
        Advice::Dontfork => libc::MADV_DONTFORK,
        Advice::Hugepage => libc::MADV_HUGEPAGE,
        Advice::Nohugepage => libc::MADV_NOHUGEPAGE,
        Advice::Cold => libc::MADV_COLD,
        Advice::Pageout => libc::MADV_PAGEOUT,
        Advice::PopulateRead => libc::MADV_POPULATE_READ,
        Advice::PopulateWrite => libc::MADV_POPULATE_WRITE,
        Advice::Collapse => 25,
        Advice::SoftOffline => libc::MADV_SOFT_OFFLINE,
        Advice::Mergeable => libc::MADV_MERGEABLE,
    }
}
