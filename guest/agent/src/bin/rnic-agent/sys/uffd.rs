// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! userfaultfd(2) of one page.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use super::check;
use super::mapping::{Mapping, PAGE};
use super::process::{poll, readable};

/// linux/userfaultfd.h.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of struct uffd_msg.
const MESSAGE: usize = 32;

/// A page whose faults this process answers.
#[derive(Debug)]
pub struct Uffd {
    file: File,
    /// Its address is the page's as long as this lives.
    _mapping: Arc<Mapping>,
    page: u64,
    protects: bool,
}

impl Uffd {
    /// For the page at `off`.
    pub fn open(mapping: Arc<Mapping>, off: u64, protects: bool) -> io::Result<Self> {
        let page = mapping.address(off, PAGE)? as u64;
        // SAFETY: numbers; the new descriptor is owned at once.
        let file = unsafe {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
            File::from_raw_fd(check(libc::syscall(libc::SYS_userfaultfd, flags))? as i32)
        };
        let uffd = Self { file, _mapping: mapping, page, protects };
        let features = if protects { FEATURE_PAGEFAULT_FLAG_WP } else { 0 };
        uffd.ioctl(UFFDIO_API, &mut [UFFD_API, features, 0])?;
        let mode = if protects { MODE_WP } else { MODE_MISSING };
        uffd.ioctl(UFFDIO_REGISTER, &mut [page, PAGE, mode, 0])?;
        if protects {
            uffd.ioctl(UFFDIO_WRITEPROTECT, &mut [page, PAGE, WRITEPROTECT_MODE_WP])?;
        }
        Ok(uffd)
    }

    fn ioctl(&self, request: libc::c_ulong, argument: &mut [u64]) -> io::Result<()> {
        // SAFETY: an open descriptor, and an array as long as the request says; it names the page and, for a copy, a buffer of one page.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument.as_mut_ptr()) }.into()).map(drop)
    }

    /// Whether a page fault comes within `limit_ms`.
    pub fn wait(&self, limit_ms: i32) -> io::Result<bool> {
        let mut slot = [readable(Some(&self.file))];
        if poll(&mut slot, limit_ms)? == 0 {
            return Ok(false);
        }
        let mut message = [0; MESSAGE];
        (&self.file).read_exact(&mut message)?;
        Ok(message[0] == EVENT_PAGEFAULT)
    }

    /// Brings the page, or lets it be written.
    pub fn answer(&self, bytes: &[u8]) -> io::Result<()> {
        if self.protects {
            return self.ioctl(UFFDIO_WRITEPROTECT, &mut [self.page, PAGE, 0]);
        }
        if bytes.len() as u64 != PAGE {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.ioctl(UFFDIO_COPY, &mut [self.page, bytes.as_ptr() as u64, PAGE, 0, 0])
    }
}
