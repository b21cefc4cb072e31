// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The few system calls of the front end that the standard library does not wrap: signals as a descriptor, and a terminal
//! that is always given back as it was found. `unsafe` is allowed in this file.
#![allow(unsafe_code, reason = "signals, the terminal and the heap have no safe interface")]

use parking_lot::Mutex;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use vmm_sys_util::signal::{self, block_signal, create_sigset};

/// Signals that end a run, readable from a descriptor instead of interrupting a thread. Make it before any thread starts:
/// threads inherit the blocked set.
pub struct Signals(OwnedFd);

/// The signals that end a run.
pub const ENDING_SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

impl Signals {
    /// Blocks the ending signals and opens a descriptor for them.
    pub fn new() -> io::Result<Self> {
        for number in ENDING_SIGNALS {
            match block_signal(number) {
                // By who called `block_ending_signals`.
                Ok(()) | Err(signal::Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(io::Error::other(format!("{error:?}"))),
            }
        }
        let set = create_sigset(&ENDING_SIGNALS).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // SAFETY: `set` is an initialised signal set that outlives the call; the result is checked.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal that arrived, if any.
    pub fn next(&self) -> Option<i32> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is writable and exactly `size` bytes long.
        let n = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        // SAFETY: a full-length read from a signalfd initialises the whole structure.
        (n == size as isize).then(|| unsafe { info.assume_init() }.ssi_signo as i32)
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Blocks the ending signals for the calling thread and those that it starts: whoever starts a thread before `Signals` are made would
/// otherwise have that one end the program.
pub fn block_ending_signals() -> io::Result<()> {
    Signals::new().map(drop)
}

/// Calls `act` on a thread of its own whenever an ending signal comes. Call it before any other thread starts.
pub fn on_ending_signal(mut act: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    let signals = Signals::new()?;
    let wait = move || {
        loop {
            while let Some(signal) = signals.next() {
                restore();
                act(signal);
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// Has the program of `command` get ending signals: it would inherit that they are blocked here.
pub fn unblock_signals(command: &mut Command) {
    let unblock = || {
        let set = create_sigset(&ENDING_SIGNALS).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        // SAFETY: `set` is an initialised signal set that outlives the call; the old one is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec the closure only makes calls that are safe in a signal handler, and takes no memory.
    unsafe { command.pre_exec(unblock) };
}

/// Sends a signal to a process. One that is gone is no error: it has ended as it was to.
pub fn send_signal(process: u32, signal: i32) {
    // SAFETY: no memory is passed.
    unsafe { libc::kill(process as libc::pid_t, signal) };
}

/// Whether a write to `fd` would go through now (or fail at once), waiting for it at most `limit_ms`. False when a signal comes.
pub fn writable(fd: RawFd, limit_ms: i32) -> bool {
    let mut wanted = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the pointer is to one pollfd of ours.
    unsafe { libc::poll(&raw mut wanted, 1, limit_ms) > 0 }
}

/// Gives freed heap back to the system. Reading module lists and kernels leaves megabytes of it that a machine never needs again.
pub fn give_back_heap() {
    // SAFETY: no preconditions; it may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The terminal's settings from before raw mode, for the panic hook as well, since a panic aborts without unwinding.
static FOUND: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Standard input in raw mode for as long as this value lives.
pub struct RawTerminal(());

impl RawTerminal {
    /// Switches the terminal on standard input to raw mode; `None` when standard input is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let mut found = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is valid for one termios; the call fails with ENOTTY when there is no terminal.
        if unsafe { libc::tcgetattr(0, found.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded and has filled the structure.
        let found = unsafe { found.assume_init() };
        let mut raw = found;
        // SAFETY: `raw` is an initialised termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Output keeps its newline translation: our own messages go there too.
        raw.c_oflag = found.c_oflag;
        // SAFETY: `raw` is an initialised termios.
        if unsafe { libc::tcsetattr(0, libc::TCSANOW, &raw) } != 0 {
            return Err(io::Error::last_os_error());
        }
        *FOUND.lock() = Some(found);
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        Ok(Some(Self(())))
    }
}

fn restore() {
    if let Some(found) = FOUND.lock().take() {
        // SAFETY: `found` came from tcgetattr.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &found) };
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Rows and columns of the terminal on standard output, if it is one.
pub fn window_size() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the pointer is valid for one winsize; zeroed is a valid winsize, so it is initialised either way.
    let (result, size) = unsafe { (libc::ioctl(1, libc::TIOCGWINSZ, size.as_mut_ptr()), size.assume_init()) };
    (result == 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}
