// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs under test: started, watched, signalled, and never waited for without a limit.
#![allow(dead_code)] // every test program uses a part of it

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program under test: the build that RNIC_BIN names (`make test` names the release build), or this profile's own.
pub fn rnic() -> PathBuf {
    std::env::var_os("RNIC_BIN").map_or_else(|| env!("CARGO_BIN_EXE_rnic").into(), PathBuf::from)
}

/// What a stream has brought so far, and the thread that reads it.
struct Stream {
    seen: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { seen, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn whole(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.text()
    }
}

/// A program that is running. Dropping it kills it.
pub struct Running {
    child: Child,
    out: Stream,
    err: Stream,
    name: String,
}

/// How a program ended.
#[derive(Debug)]
pub struct Done {
    /// The status, from `code()` or the signal in it.
    pub status: ExitStatus,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// The exit status; fails when a signal ended the program.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }
}

impl Running {
    /// Starts it; its standard input stays as `command` has it.
    pub fn start(command: &mut Command) -> Self {
        let name = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        let out = Stream::read(child.stdout.take().unwrap());
        let err = Stream::read(child.stderr.take().unwrap());
        Self { child, out, err, name }
    }

    /// Standard output so far.
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// Waits until standard output contains `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let start = Instant::now();
        while !self.out().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}) before {text:?}: {}{}",
                self.name,
                self.out(),
                self.err.text()
            );
            assert!(
                start.elapsed() < limit,
                "{}: no {text:?} in {limit:?}: {}{}",
                self.name,
                self.out(),
                self.err.text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails when it has ended.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "{} ended ({ended:?}): {}{}", self.name, self.out(), self.err.text());
    }

    /// Sends a signal by name ("TERM").
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// Waits for its end; one that takes longer than `limit` is killed and fails the test.
    pub fn finish(mut self, limit: Duration) -> Done {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > limit {
                self.child.kill().unwrap();
                panic!("{} did not end within {limit:?}: {}{}", self.name, self.out(), self.err.text());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Done { status, out: self.out.whole(), err: self.err.whole() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended long ago.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command, limit: Duration) -> Done {
    Running::start(command.stdin(Stdio::null())).finish(limit)
}
