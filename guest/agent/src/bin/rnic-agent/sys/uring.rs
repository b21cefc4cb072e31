// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! io_uring by its system calls: a ring of one request at a time, and memory that is registered with it (linux/io_uring.h).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::check;
use super::mapping::Mapping;
use super::shared::Shared;
use crate::serve::lock;

const OFF_SQ_RING: i64 = 0;
const OFF_SQES: i64 = 0x1000_0000;
const FEAT_SINGLE_MMAP: u32 = 1;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_BUFFERS: u32 = 0;
const UNREGISTER_BUFFERS: u32 = 1;
const OP_READ_FIXED: u8 = 4;
const OP_READ: u8 = 22;

/// struct io_sqring_offsets; its last field is an address that nobody uses.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    reserved: [u32; 3],
}

/// struct io_cqring_offsets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    reserved: [u32; 3],
}

/// struct io_uring_params.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    sq_off: SqOffsets,
    cq_off: CqOffsets,
}

/// struct io_uring_sqe, as reads use it.
#[repr(C)]
#[derive(Default)]
struct Sqe {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    rw_flags: i32,
    user_data: u64,
    buf_index: u16,
    personality: u16,
    splice_fd_in: i32,
    reserved: [u64; 2],
}

/// struct io_uring_cqe.
#[repr(C)]
#[derive(Clone, Copy)]
struct Cqe {
    user_data: u64,
    res: i32,
    flags: u32,
}

/// Memory that is registered with a ring: IORING_REGISTER_BUFFERS, pinned until it is dropped.
struct Registered {
    mapping: Arc<Mapping>,
    off: u64,
    len: u64,
}

/// A ring.
pub struct Ring {
    fd: OwnedFd,
    rings: Shared,
    sqes: Shared,
    sq: SqOffsets,
    cq: CqOffsets,
    registered: Option<Registered>,
    turn: Mutex<()>,
}

impl Ring {
    /// io_uring_setup(2).
    pub fn new() -> io::Result<Self> {
        let mut params = Params::default();
        // SAFETY: a number and a pointer to an io_uring_params of ours; the new descriptor is owned at once.
        let fd = unsafe {
            let fd = check(libc::syscall(libc::SYS_io_uring_setup, 1u32, &raw mut params))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        if params.features & FEAT_SINGLE_MMAP == 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let sq_end = params.sq_off.array as usize + params.sq_entries as usize * size_of::<u32>();
        let cq_end = params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Cqe>();
        let rings = Shared::map(&fd, sq_end.max(cq_end), OFF_SQ_RING)?;
        let sqes = Shared::map(&fd, params.sq_entries as usize * size_of::<Sqe>(), OFF_SQES)?;
        let (sq, cq) = (params.sq_off, params.cq_off);
        Ok(Self { fd, rings, sqes, sq, cq, registered: None, turn: Mutex::new(()) })
    }

    /// A ring with `len` bytes of a mapping registered as its buffer 0.
    pub fn fixed(mapping: Arc<Mapping>, off: u64, len: u64) -> io::Result<Self> {
        let mut ring = Self::new()?;
        let addr = mapping.address(off, len)?;
        let iovec = libc::iovec { iov_base: addr as *mut _, iov_len: len as usize };
        let fd = ring.fd.as_raw_fd();
        // SAFETY: one iovec of ours; the range is reserved for the mapping, which the ring keeps, and no Rust reference to it exists.
        check(unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_BUFFERS, &raw const iovec, 1u32) })?;
        ring.registered = Some(Registered { mapping, off, len });
        Ok(ring)
    }

    /// IORING_OP_READ from `file` into a mapping; bytes read.
    pub fn read(&self, mapping: &Mapping, off: u64, (file, at): (&File, u64), len: u64) -> io::Result<u64> {
        self.submit(OP_READ, mapping.address(off, len)?, (file, at), len)
    }

    /// IORING_OP_READ_FIXED into the registered memory at offset `off` of its mapping; bytes read.
    pub fn read_fixed(&self, off: u64, from: (&File, u64), len: u64) -> io::Result<u64> {
        let inside = |one: &&Registered| off >= one.off && off - one.off <= one.len && len <= one.len - (off - one.off);
        let Some(registered) = self.registered.as_ref().filter(inside) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        self.submit(OP_READ_FIXED, registered.mapping.address(off, len)?, from, len)
    }

    /// One request, and its completion.
    fn submit(&self, opcode: u8, addr: usize, (file, off): (&File, u64), len: u64) -> io::Result<u64> {
        let _turn = lock(&self.turn);
        let len = u32::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let sqe = Sqe { opcode, fd: file.as_raw_fd(), off, addr: addr as u64, len, ..Sqe::default() };
        let (slot, array) = (self.sqes.at::<Sqe>(0)?, self.rings.word(self.sq.array)?);
        // SAFETY: the slot lies inside the mapping; the kernel reads it between enter and completion only, and it is this thread's turn.
        unsafe { slot.write_volatile(sqe) };
        // There is one slot, so every index is 0.
        array.store(0, Ordering::Relaxed);
        self.rings.word(self.sq.tail)?.fetch_add(1, Ordering::Release);
        self.enter(1)?;
        let (head, tail) = (self.rings.word(self.cq.head)?, self.rings.word(self.cq.tail)?);
        let mask = self.rings.word(self.cq.ring_mask)?.load(Ordering::Relaxed);
        let taken = head.load(Ordering::Relaxed);
        while tail.load(Ordering::Acquire) == taken {
            self.enter(0)?;
        }
        let cqe = self.rings.at::<Cqe>(self.cq.cqes as usize + (taken & mask) as usize * size_of::<Cqe>())?;
        // SAFETY: the entry lies inside the mapping; the kernel has written it before it moved the tail.
        let result = unsafe { cqe.read_volatile() }.res;
        head.store(taken.wrapping_add(1), Ordering::Release);
        u64::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
    }

    /// io_uring_enter(2): hands over `count` requests and waits for a completion.
    fn enter(&self, count: u32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let nothing = std::ptr::null::<libc::c_void>();
        // SAFETY: numbers, and no signal mask.
        let ret = unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, count, 1u32, ENTER_GETEVENTS, nothing, 0usize) };
        match check(ret) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.registered.is_some() {
            let (fd, nothing) = (self.fd.as_raw_fd(), std::ptr::null::<libc::c_void>());
            // SAFETY: numbers only. It waits until the memory is pinned no more, which closing the ring would not.
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, UNREGISTER_BUFFERS, nothing, 0u32) };
        }
    }
}
