// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Being asked before somebody takes a file's blocks away: leases (fcntl(2), F_SETLEASE) and fanotify's pre-content events (fanotify(7)).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use super::process::{poll, readable};
use super::{check, cpath};

/// asm-generic/fcntl.h.
const F_SETSIG: i32 = 10;
/// linux/fanotify.h; since Linux 6.14.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
/// Bytes of struct fanotify_event_metadata.
const EVENT: usize = 24;
/// Bytes of struct signalfd_siginfo.
const SIGINFO: usize = 128;
/// Room for an event with what follows it: the range that it is about.
const ROOM: usize = 256;

/// Somebody who is asked.
#[derive(Debug)]
pub enum Guard {
    /// The holder of a write lease.
    Lease(Lease),
    /// A listener for pre-content events of one file.
    Watch(Watch),
}

impl Guard {
    /// Waits until somebody asks; false: nobody did in `limit_ms`.
    pub fn wait(&mut self, limit_ms: u32) -> io::Result<bool> {
        let limit_ms = limit_ms.try_into().unwrap_or(i32::MAX);
        match self {
            Guard::Lease(lease) => lease.wait(limit_ms),
            Guard::Watch(watch) => watch.wait(limit_ms),
        }
    }

    /// Lets them go on.
    pub fn allow(&mut self) -> io::Result<()> {
        match self {
            Guard::Lease(lease) => lease.set(libc::F_UNLCK),
            Guard::Watch(watch) => watch.allow(),
        }
    }
}

/// A write lease on an open file.
#[derive(Debug)]
pub struct Lease {
    file: Arc<File>,
    /// Readable once the lease is to be given up (signalfd(2)).
    broken: File,
}

impl Lease {
    /// Takes it. Nobody else may have the file open. [`block_signal`] must have been called while this process had one thread.
    pub fn take(file: Arc<File>) -> io::Result<Self> {
        let set = signals();
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: a set of ours; the new descriptor is owned at once.
        let broken = unsafe { File::from_raw_fd(check(libc::signalfd(-1, &raw const set, flags).into())? as i32) };
        // SAFETY: an open descriptor and a number.
        check(unsafe { libc::fcntl(file.as_raw_fd(), F_SETSIG, signal()) }.into())?;
        let lease = Self { file, broken };
        // What an earlier lease was told stays pending until it is read.
        while lease.told()? {}
        lease.set(libc::F_WRLCK)?;
        Ok(lease)
    }

    fn set(&self, kind: i32) -> io::Result<()> {
        // SAFETY: an open descriptor and a number.
        check(unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) }.into()).map(drop)
    }

    fn wait(&self, limit_ms: i32) -> io::Result<bool> {
        Ok(poll(&mut [readable(Some(&self.broken))], limit_ms)? != 0 && self.told()?)
    }

    /// Takes one signal, if there is one.
    fn told(&self) -> io::Result<bool> {
        match (&self.broken).read(&mut [0; SIGINFO]) {
            Ok(len) => Ok(len == SIGINFO),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The signal that a lease is broken with.
fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

fn signals() -> libc::sigset_t {
    // SAFETY: a set of signals is plain bytes, for which zero is a value; the calls write to it and cannot fail with such a signal.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        set
    }
}

/// Keeps the signal of a lease for its descriptor, in this thread and those that it starts; without, it would end the process.
pub fn block_signal() {
    let set = signals();
    // SAFETY: a set of ours; the call fails for no set and such a `how`.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// A listener for what is about to happen to a file's content.
#[derive(Debug)]
pub struct Watch {
    group: File,
    /// The descriptor of the event that waits for an answer.
    asked: Option<File>,
}

impl Watch {
    /// Listens at `file`. EINVAL: this kernel has no such events; EOPNOTSUPP: nor has this file system.
    pub fn listen(file: &File) -> io::Result<Self> {
        let flags = libc::FAN_CLASS_PRE_CONTENT | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
        let how = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: numbers; the new descriptor is owned at once.
        let group = unsafe { File::from_raw_fd(check(libc::fanotify_init(flags, how as libc::c_uint).into())? as i32) };
        let path = cpath(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let (fd, mark) = (group.as_raw_fd(), libc::FAN_MARK_ADD);
        // SAFETY: an open descriptor, and a C string that lives through the call.
        check(unsafe { libc::fanotify_mark(fd, mark, FAN_PRE_ACCESS, libc::AT_FDCWD, path.as_ptr()) }.into())?;
        Ok(Self { group, asked: None })
    }

    fn wait(&mut self, limit_ms: i32) -> io::Result<bool> {
        if poll(&mut [readable(Some(&self.group))], limit_ms)? == 0 {
            return Ok(false);
        }
        let mut event = [0; ROOM];
        let len = self.group.read(&mut event)?;
        let Some(fd) = event.get(16..20).filter(|_| len >= EVENT).and_then(|at| at.try_into().ok()) else {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        };
        // SAFETY: the kernel has made the descriptor for this event; it is owned at once.
        self.asked = Some(unsafe { File::from_raw_fd(i32::from_ne_bytes(fd)) });
        Ok(true)
    }

    fn allow(&mut self) -> io::Result<()> {
        let Some(file) = self.asked.take() else { return Ok(()) };
        // struct fanotify_response.
        let mut answer = [0; 8];
        answer[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        answer[4..].copy_from_slice(&libc::FAN_ALLOW.to_ne_bytes());
        self.group.write_all(&answer)
    }
}
