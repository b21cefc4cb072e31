// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processes: forking PID 1, reaping, signals, waiting for a program's end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use super::{check, tty};

/// Sets an environment variable. Call while the process has one thread.
pub fn set_env(key: &str, value: &str) {
    // SAFETY: PID 1 has one thread when it settles its environment, so nobody reads it meanwhile.
    unsafe { std::env::set_var(key, value) }
}

/// Splits PID 1 in two. Returns the child's pid to the parent and None to the child.
///
/// Call while the process has one thread.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the process has one thread, so the child may go on with anything.
    let pid = check(unsafe { libc::fork() }.into())? as i32;
    Ok((pid != 0).then_some(pid))
}

/// Waits for any child; returns its pid and raw wait status.
pub fn wait_any() -> io::Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to an integer of ours.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, 0) }.into())?;
    Ok((pid as i32, status))
}

/// kill(2). `pid` below -1 is a process group, -1 is everybody but us and PID 1.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// The calling thread's id.
pub fn thread() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::gettid() }
}

/// Interrupts the system call that thread `id` of this process waits in, if it can be interrupted: a signal whose handler does
/// nothing, and after which nothing is begun again.
pub fn interrupt(id: i32) -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: sigaction is plain bytes, for which zero is a value: an empty mask, and no SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the pointer is to a sigaction of ours, and its handler does nothing.
    check(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }.into())?;
    // SAFETY: takes numbers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGUSR1) }).map(drop)
}

/// A descriptor that becomes readable when process `pid` ends.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; the new descriptor is owned at once.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// What to wait for on a descriptor (-1: nothing), and what came.
pub type PollFd = libc::pollfd;

/// A slot of [`poll`] for reading.
pub fn readable(fd: Option<&impl AsRawFd>) -> PollFd {
    PollFd { fd: fd.map_or(-1, AsRawFd::as_raw_fd), events: libc::POLLIN, revents: 0 }
}

/// A slot of [`poll`] for writing.
pub fn writable(fd: Option<&impl AsRawFd>) -> PollFd {
    PollFd { fd: fd.map_or(-1, AsRawFd::as_raw_fd), events: libc::POLLOUT, revents: 0 }
}

/// poll(2). EINTR counts as nothing.
pub fn poll(fds: &mut [PollFd], timeout_ms: i32) -> io::Result<u64> {
    // SAFETY: pointer and length of one slice.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) }.into()) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

/// Makes reads and writes of `fd` return EAGAIN instead of waiting.
pub fn nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an open descriptor and numbers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }.into())?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags as i32 | libc::O_NONBLOCK) }.into()).map(drop)
}

/// Runs `command` in the foreground of `terminal` to its end, and until the terminal has sent what it wrote. Call once: this
/// process becomes leader of a session of which `terminal` is the controlling terminal.
///
/// The command is no leader itself. Linux hangs a terminal up when the leader of its session ends, and throws away what the port
/// has not sent by then (`tty_ldisc_hangup`): the last lines of the command.
pub fn on_terminal(command: &mut Command, terminal: &File) -> io::Result<ExitStatus> {
    lead(terminal)?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal.try_clone()?);
    // A group of its own: `kill 0` in a script is not for us.
    command.process_group(0);
    // SAFETY: between fork and exec only system calls are made; they take numbers and sets of our own.
    unsafe { command.pre_exec(|| in_background(|| check(libc::tcsetpgrp(0, libc::getpid()).into())).map(drop)) };
    let child = command.spawn()?;
    let status = wait(child.id() as i32)?;
    in_background(|| tty::drain(terminal));
    Ok(status)
}

fn lead(terminal: &File) -> io::Result<()> {
    // SAFETY: take an open descriptor and numbers.
    unsafe {
        check(libc::setsid().into())?;
        check(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0).into()).map(drop)
    }
}

/// Does what the kernel stops a process for that is not in its terminal's foreground.
fn in_background<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are ours, and plain bytes for which zero is a value.
    unsafe {
        let (mut blocked, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigaddset(&raw mut blocked, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before);
        let done = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        done
    }
}

/// Waits for the end of a child. One that its terminal stopped goes on: here is no shell that could bring it back.
fn wait(pid: i32) -> io::Result<ExitStatus> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is to an integer of ours.
        match check(unsafe { libc::waitpid(pid, &raw mut status, libc::WUNTRACED) }.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) if libc::WIFSTOPPED(status) => {
                if libc::WSTOPSIG(status) != libc::SIGSTOP {
                    kill(-pid, libc::SIGCONT)?;
                }
            }
            Ok(_) => return Ok(ExitStatus::from_raw(status)),
        }
    }
}
