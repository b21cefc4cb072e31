// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running programs.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rnic_agent::proto::{ExecOut, FsType, Value};

use super::{Outcome, failed, failure};
use crate::sys::process;

/// Bytes kept of each output stream.
const TAIL: usize = 16 * 1024;
const DEFAULT_LIMIT_S: u32 = 60;

/// The shell's convention: 128 + signal.
pub fn status_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// mkfs.FS -f, quiet.
pub fn mkfs(fs: FsType, dev: &str, opts: &[String]) -> Outcome {
    let base: &[&str] = match fs {
        FsType::Ext4 => &["mkfs.ext4", "-q", "-F"],
        FsType::Xfs => &["mkfs.xfs", "-q", "-f"],
        FsType::Btrfs => &["mkfs.btrfs", "-q", "-f"],
    };
    let argv: Vec<String> =
        base.iter().map(ToString::to_string).chain(opts.iter().cloned()).chain([dev.into()]).collect();
    run(&argv, b"", DEFAULT_LIMIT_S)
}

/// Runs a program in a process group of its own and waits at most `limit_s` seconds (0: 60).
pub fn run(argv: &[String], stdin: &[u8], limit_s: u32) -> Outcome {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(failure(libc::EINVAL, "no program named"));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed(program))?;
    let limit = Duration::from_secs(if limit_s == 0 { DEFAULT_LIMIT_S } else { limit_s }.into());
    let mut watch = Watch::new(&mut child, stdin).map_err(failed(program))?;
    let timed_out = !watch.until_end(limit).map_err(failed(program))?;
    if timed_out {
        // The group may be gone already; then there is nothing to kill.
        let _ = process::kill(-(child.id() as i32), libc::SIGKILL);
        watch.until_end(Duration::from_secs(5)).map_err(failed(program))?;
    }
    let (out, err) = (watch.out.text(), watch.err.text());
    match child.try_wait().map_err(failed(program))? {
        Some(status) => Ok(Value::Exec(ExecOut { status: status_code(status), timed_out, out, err })),
        None => Err(failure(libc::ETIMEDOUT, format!("{program} does not die: it hangs in the kernel"))),
    }
}

/// One output stream of the program and its tail.
struct Stream<R> {
    pipe: Option<R>,
    tail: Vec<u8>,
}

impl<R: Read + AsRawFd> Stream<R> {
    fn new(pipe: Option<R>) -> io::Result<Self> {
        pipe.as_ref().map_or(Ok(()), process::nonblocking)?;
        Ok(Self { pipe, tail: Vec::new() })
    }

    /// Takes what is there.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(n) => self.keep(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.tail[self.tail.len().saturating_sub(TAIL)..]).into_owned()
    }
}

/// A running program's streams.
struct Watch<'a> {
    end: OwnedFd,
    input: Option<ChildStdin>,
    stdin: &'a [u8],
    out: Stream<std::process::ChildStdout>,
    err: Stream<std::process::ChildStderr>,
}

impl<'a> Watch<'a> {
    fn new(child: &mut Child, stdin: &'a [u8]) -> io::Result<Self> {
        let input = child.stdin.take().filter(|_| !stdin.is_empty());
        input.as_ref().map_or(Ok(()), process::nonblocking)?;
        Ok(Self {
            end: process::pidfd(child.id())?,
            input,
            stdin,
            out: Stream::new(child.stdout.take())?,
            err: Stream::new(child.stderr.take())?,
        })
    }

    /// Moves data until the program has ended (true) or the time is over (false). Grandchildren that keep a pipe open are not
    /// waited for.
    fn until_end(&mut self, limit: Duration) -> io::Result<bool> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let mut fds = [
                process::readable(Some(&self.end)),
                process::readable(self.out.pipe.as_ref()),
                process::readable(self.err.pipe.as_ref()),
                process::writable(self.input.as_ref()),
            ];
            process::poll(&mut fds, i32::try_from(left.as_millis()).unwrap_or(i32::MAX))?;
            self.feed();
            self.out.read();
            self.err.read();
            if fds[0].revents != 0 {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn feed(&mut self) {
        let Some(input) = &mut self.input else { return };
        match input.write(self.stdin) {
            Ok(n) => self.stdin = &self.stdin[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.stdin = &[],
        }
        if self.stdin.is_empty() {
            self.input = None;
        }
    }
}
