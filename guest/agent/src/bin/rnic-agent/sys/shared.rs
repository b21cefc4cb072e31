// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings that the kernel shares with a program: of io_uring, of AF_XDP.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;

/// Memory that the kernel shares through a descriptor.
pub struct Shared {
    addr: usize,
    len: usize,
}

impl Shared {
    /// Maps `len` bytes at offset `at` of `fd`.
    pub fn map(fd: &OwnedFd, len: usize, at: i64) -> io::Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: without MAP_FIXED the kernel chooses free space.
        let addr = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), at) };
        if addr == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { addr: addr as usize, len }) }
    }

    /// A pointer to a `T` at byte `at`; an error where it would not lie inside.
    pub fn at<T>(&self, at: usize) -> io::Result<*mut T> {
        let fits =
            at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len) && at.is_multiple_of(align_of::<T>());
        if fits { Ok((self.addr + at) as *mut T) } else { Err(io::Error::from_raw_os_error(libc::EPROTO)) }
    }

    /// The word at byte `at`.
    pub fn word(&self, at: u32) -> io::Result<&AtomicU32> {
        let word = self.at::<AtomicU32>(at as usize)?;
        // SAFETY: it lies inside this mapping, which lives as long as `self`, and is aligned; both ends use it as an atomic.
        Ok(unsafe { &*word })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value, and nothing else knows it any more.
        unsafe { libc::munmap(self.addr as *mut _, self.len) };
    }
}
