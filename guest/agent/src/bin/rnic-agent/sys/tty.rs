// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Terminals.

use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// Makes a terminal transparent: 8 bits, no echo, no signals, no flow control. Fails when `fd` is no terminal or the port
/// behind it does not exist.
pub fn raw(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: termios is plain numbers, for which zero is a value; tcgetattr fills it.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: pointer to a termios of ours.
    check(unsafe { libc::tcgetattr(fd.as_raw_fd(), &raw mut settings) }.into())?;
    // SAFETY: as above.
    unsafe { libc::cfmakeraw(&raw mut settings) };
    settings.c_cflag |= libc::CLOCAL | libc::CREAD;
    settings.c_cflag &= !(libc::CRTSCTS | libc::CBAUD);
    settings.c_cflag |= libc::B115200;
    // SAFETY: as above.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const settings) }.into()).map(drop)
}

/// Waits until all output has left the port, which goes on if somebody has stopped it. An error (not a terminal) means that there is
/// nothing to wait for.
pub fn drain(fd: &impl AsRawFd) {
    // SAFETY: take an open descriptor and a number.
    unsafe {
        libc::tcflow(fd.as_raw_fd(), libc::TCOON);
        libc::tcdrain(fd.as_raw_fd());
    }
}

/// Tells a terminal its size in characters.
pub fn set_size(fd: &impl AsRawFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a winsize of ours.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}
