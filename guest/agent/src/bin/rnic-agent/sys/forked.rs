// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A child of fork(2) that shares this process's memory, copied on write. The process has threads, so that the child makes system calls on numbers and
//! on memory that it had before, and nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::{Arc, Mutex};

use super::check;
use super::mapping::{Mapping, PAGE};
use super::process::{PollFd, poll, readable};

/// How long a child may take for one request.
const LIMIT_MS: i32 = 20_000;
/// Bytes of a request: what, and the page's address.
const REQUEST: usize = 9;
const LOAD: u8 = b'l';
const STORE: u8 = b's';

/// The child. It is killed when this is dropped.
#[derive(Debug)]
pub struct Forked {
    pid: i32,
    mapping: Arc<Mapping>,
    pipes: Mutex<(File, File)>,
}

fn pipe() -> io::Result<(File, File)> {
    let mut fds: [RawFd; 2] = [0; 2];
    // SAFETY: the pointer is to two integers of ours; the new descriptors are owned at once.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC).into())?;
        Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])))
    }
}

impl Forked {
    /// Forks.
    pub fn start(mapping: Arc<Mapping>) -> io::Result<Self> {
        let (requests, to) = pipe()?;
        let (from, answers) = pipe()?;
        let (input, output) = (requests.as_raw_fd(), answers.as_raw_fd());
        // SAFETY: the child runs `serve` only, which makes system calls and ends in one.
        let pid = check(unsafe { libc::fork() }.into())? as i32;
        if pid == 0 {
            serve(input, output);
        }
        Ok(Self { pid, mapping, pipes: Mutex::new((to, from)) })
    }

    /// What its page at `off` shows.
    pub fn load(&self, off: u64) -> io::Result<Vec<u8>> {
        self.ask(LOAD, off, &[], PAGE as usize)
    }

    /// Stores `page` at `off`, as the child.
    pub fn store(&self, off: u64, page: &[u8]) -> io::Result<()> {
        self.ask(STORE, off, page, 1).map(drop)
    }

    fn ask(&self, what: u8, off: u64, page: &[u8], answer: usize) -> io::Result<Vec<u8>> {
        let address = self.mapping.address(off, PAGE)? as u64;
        let mut pipes = crate::serve::lock(&self.pipes);
        let (to, from) = &mut *pipes;
        to.write_all(&[&[what], &address.to_le_bytes()[..], page].concat())?;
        let mut bytes = vec![0; answer];
        let mut done = 0;
        while done < answer {
            let mut slot: [PollFd; 1] = [readable(Some(from))];
            if poll(&mut slot, LIMIT_MS)? == 0 {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            match from.read(&mut bytes[done..])? {
                0 => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
                more => done += more,
            }
        }
        Ok(bytes)
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        // SAFETY: numbers, and a null pointer that waitpid accepts; the child is ours and has not been waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// The child's life: until its parent ends, or a request cannot be met.
fn serve(input: RawFd, output: RawFd) -> ! {
    let mut request = [0u8; REQUEST];
    // SAFETY: system calls on numbers; on `request`, which is ours; and on the page whose address the parent names, which is inside a reserved
    // range without Rust references, and for which the kernel reports EFAULT where nothing is mapped.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        while libc::read(input, request.as_mut_ptr().cast(), REQUEST) == REQUEST as isize {
            let [what, a, b, c, d, e, f, g, h] = request;
            let page = u64::from_le_bytes([a, b, c, d, e, f, g, h]) as usize;
            let whole = PAGE as isize;
            let met = match what {
                LOAD => libc::write(output, page as *const _, PAGE as usize) == whole,
                _ => {
                    libc::read(input, page as *mut _, PAGE as usize) == whole
                        && libc::write(output, request.as_ptr().cast(), 1) == 1
                }
            };
            if !met {
                break;
            }
        }
        libc::_exit(0)
    }
}
