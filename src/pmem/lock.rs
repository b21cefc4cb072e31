// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lock on a medium's file. The only `unsafe` of this crate.
#![allow(unsafe_code, reason = "flock(2) has no safe call in the oldest Rust that builds this")]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;

/// Takes the exclusive advisory lock of the file for as long as it, or a clone of it, is open. False: somebody else has it.
pub(super) fn try_lock(file: &File) -> Result<bool> {
    loop {
        // SAFETY: takes no pointers.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) => return Ok(false),
            _ => return Err(error),
        }
    }
}
