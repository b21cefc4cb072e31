// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other users of get_user_pages: vmsplice(2) and process_vm_writev(2); and memory files of every kind.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rnic_agent::proto::Memfd;

use super::check;
use super::mapping::{Mapping, PAGE};

/// Most bytes in a pipe: 16 pages.
pub const PIPE_BYTES: u64 = 16 * PAGE;

/// A descriptor that a call has just made, or its error.
pub fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A pipe whose bytes are pages of a mapping.
pub struct Pipe {
    read: File,
    _write: OwnedFd,
    len: usize,
}

impl Pipe {
    /// vmsplice(2) of `len` bytes of a mapping into a new pipe, without SPLICE_F_GIFT.
    pub fn of(mapping: &Mapping, off: u64, len: u64) -> io::Result<Self> {
        let addr = mapping.address(off, len)?;
        if len > PIPE_BYTES {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut ends = [0; 2];
        // SAFETY: the pointer is to two integers of ours.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
        let (read, write) = (owned(ends[0].into())?, owned(ends[1].into())?);
        let iovec = libc::iovec { iov_base: addr as *mut _, iov_len: len as usize };
        // SAFETY: one iovec of ours; the kernel only reads the range, to which no Rust reference exists.
        let taken = check(unsafe { libc::vmsplice(write.as_raw_fd(), &raw const iovec, 1, 0) } as i64)?;
        if taken != len {
            return Err(io::Error::from_raw_os_error(libc::EFAULT));
        }
        Ok(Self { read: File::from(read), _write: write, len: len as usize })
    }

    /// The bytes of its pages as they are now. There is one reader, and the pipe is then empty: who reads it again gets EPIPE.
    pub fn take(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.len];
        let ready = &mut [super::process::readable(Some(&self.read))];
        if super::process::poll(ready, 0)? == 0 {
            return Err(io::Error::from_raw_os_error(libc::EPIPE));
        }
        io::Read::read_exact(&mut &self.read, &mut bytes)?;
        Ok(bytes)
    }
}

/// process_vm_writev(2): `bytes` to address `addr` of process `pid`; bytes written.
pub fn write_to_process(pid: u32, addr: u64, bytes: &[u8]) -> io::Result<u64> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: addr as *mut _, iov_len: bytes.len() };
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: two iovecs of ours. The kernel reads `bytes`; what it writes is another process's memory, or a mapping of this one to
    // which no Rust reference exists.
    check(unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) } as i64)
}

/// memfd_create(2) or memfd_secret(2), `len` bytes long.
pub fn memory_file(kind: Memfd, len: u64) -> io::Result<File> {
    // SAFETY: a C string and a number.
    let memfd = |flags| i64::from(unsafe { libc::memfd_create(c"rnic-agent".as_ptr(), libc::MFD_CLOEXEC | flags) });
    let fd = match kind {
        Memfd::Plain => memfd(libc::MFD_ALLOW_SEALING),
        Memfd::Hugetlb => memfd(libc::MFD_HUGETLB),
        // SAFETY: takes a number.
        Memfd::Secret => unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) },
    };
    let file = File::from(owned(fd)?);
    file.set_len(len)?;
    Ok(file)
}
