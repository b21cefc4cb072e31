// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pseudo-terminal and its settings. `unsafe` is allowed in this file.
#![allow(unsafe_code, reason = "a pseudo terminal has no safe interface")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The two ends.
pub struct Pty {
    /// The end of the person: what is written here is typed.
    pub person: File,
    /// The end of the programs.
    pub terminal: OwnedFd,
}

/// All that `stty` shows, comparable: input, output, control and local modes, control characters.
pub type Settings = (u32, u32, u32, u32, Vec<u8>);

impl Pty {
    pub fn new() -> Self {
        let (mut person, mut terminal) = (-1, -1);
        let size = libc::winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the pointers are to integers and a winsize of ours; name and termios may be null.
        let result = unsafe {
            libc::openpty(
                &mut person,
                &mut terminal,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &raw const size as *mut _,
            )
        };
        assert_eq!(result, 0, "openpty: {}", std::io::Error::last_os_error());
        // SAFETY: openpty has just returned both descriptors and nobody else owns them.
        unsafe { Self { person: File::from_raw_fd(person), terminal: OwnedFd::from_raw_fd(terminal) } }
    }

    /// How the terminal is set.
    pub fn settings(&self) -> Settings {
        let mut found = std::mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is valid for one termios, which tcgetattr fills when it succeeds.
        let found = unsafe {
            assert_eq!(libc::tcgetattr(self.terminal.as_raw_fd(), found.as_mut_ptr()), 0);
            found.assume_init()
        };
        (found.c_iflag, found.c_oflag, found.c_cflag, found.c_lflag, found.c_cc.to_vec())
    }
}
