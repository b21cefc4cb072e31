// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that std does not offer. All `unsafe` of the agent is in this directory.
#![allow(unsafe_code, reason = "the one place of system calls and of libibverbs")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub mod file;
pub mod forked;
#[cfg(feature = "verbs")]
pub mod guard;
pub mod gup;
pub mod mapping;
pub mod process;
pub mod shared;
pub mod tty;
pub mod uffd;
pub mod uring;
#[cfg(feature = "verbs")]
pub mod verbs;
pub mod xdp;

/// Turns the C convention (-1 and errno) into a result.
pub fn check(value: i64) -> io::Result<u64> {
    u64::try_from(value).map_err(|_| io::Error::last_os_error())
}

fn cstr(text: impl AsRef<[u8]>) -> io::Result<CString> {
    CString::new(text.as_ref()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn cpath(path: impl AsRef<Path>) -> io::Result<CString> {
    cstr(path.as_ref().as_os_str().as_bytes())
}

/// mount(2).
pub fn mount(source: &str, target: impl AsRef<Path>, fs: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, target, fs, data) = (cstr(source)?, cpath(target)?, cstr(fs)?, cstr(data)?);
    // SAFETY: four C strings that live through the call.
    let ret = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), fs.as_ptr(), flags as libc::c_ulong, data.as_ptr().cast())
    };
    check(ret.into()).map(drop)
}

/// umount2(2).
pub fn umount(target: impl AsRef<Path>, flags: i32) -> io::Result<()> {
    let target = cpath(target)?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::umount2(target.as_ptr(), flags) }.into()).map(drop)
}

/// finit_module(2) without parameters.
pub fn finit_module(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an open descriptor and an empty C string.
    let ret = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(ret).map(drop)
}

/// sync(2).
pub fn sync() {
    // SAFETY: takes nothing.
    unsafe { libc::sync() }
}

/// reboot(2) with one of the RB_ commands.
pub fn reboot(command: i32) -> io::Result<()> {
    // SAFETY: takes a number; callers are PID 1's family in a guest of ours.
    check(unsafe { libc::reboot(command) }.into()).map(drop)
}

/// sethostname(2).
pub fn sethostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// CLOCK_BOOTTIME in milliseconds.
pub fn boot_ms() -> u64 {
    boot_us() / 1000
}

/// CLOCK_BOOTTIME in microseconds.
pub fn boot_us() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}

/// (release, version) of uname(2).
pub fn uname() -> (String, String) {
    // SAFETY: utsname is plain bytes, for which zero is a value; uname fills it.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a utsname of ours.
    unsafe { libc::uname(&raw mut names) };
    let text = |field: &[libc::c_char]| {
        field.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect::<String>()
    };
    (text(&names.release), text(&names.version))
}

/// CPUs online.
pub fn cpus() -> u32 {
    // SAFETY: takes a number.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// Sets the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // SAFETY: takes numbers; the new descriptor is owned at once.
    let socket = unsafe {
        let fd = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into())?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    // SAFETY: ifreq is plain bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an ifreq of ours.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into()).map(drop)
}

/// Keeps the heap from asking the kernel for memory while a scenario runs: a step that waits in a page fault may hold mmap_lock, and
/// then brk, mmap and munmap of all other threads would wait with it.
pub fn steady_heap(bytes: usize) {
    let settings = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_MMAP_THRESHOLD, 32 << 20),
        (libc::M_TOP_PAD, i32::try_from(bytes).unwrap_or(i32::MAX)),
    ];
    for (what, value) in settings {
        // SAFETY: takes numbers.
        unsafe { libc::mallopt(what, value) };
    }
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4096)));
}
