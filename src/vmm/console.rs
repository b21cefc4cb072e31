// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the guest's serial output goes: a terminal, a file, a buffer, lines for the agent's reader. One watcher sees a
//! panic go by, for kernels that panic before pvpanic's driver is loaded.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::outcome::Ending;

/// Newest bytes of console output that a buffer keeps.
const BUFFER_MAX: usize = 256 << 10;
/// Longest line of the agent channel; see the protocol's own limit.
const LINE_MAX: usize = 80 << 10;
/// How Linux begins the last message of its life.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Where console output is copied to as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Echo {
    /// Nowhere.
    #[default]
    Off,
    /// Standard error, for watching.
    Stderr,
    /// Standard output, for working in it.
    Stdout,
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    echo: Echo,
}

/// The newest console output of a guest, shared with whoever wants to read it.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Kept>>);

impl Console {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock()
    }

    /// Everything kept, as text.
    pub fn text(&self) -> String {
        let kept = self.lock();
        let (a, b) = kept.bytes.as_slices();
        String::from_utf8_lossy(&[a, b].concat()).into_owned()
    }

    /// Copies further output to `echo` as well.
    pub fn echo(&self, echo: Echo) {
        self.lock().echo = echo;
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.lock();
        kept.bytes.extend(bytes);
        let excess = kept.bytes.len().saturating_sub(BUFFER_MAX);
        kept.bytes.drain(..excess);
        // Nobody watching is no reason to stop the guest.
        match kept.echo {
            Echo::Off => {}
            Echo::Stderr => drop(io::stderr().write_all(bytes)),
            Echo::Stdout => drop(io::stdout().write_all(bytes).and_then(|()| io::stdout().flush())),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes output on and reports a panic message that goes by.
pub struct PanicWatcher<W> {
    inner: W,
    matched: usize,
    ending: Arc<Ending>,
}

impl<W: Write> PanicWatcher<W> {
    /// Watches what is written to `inner`.
    pub fn new(inner: W, ending: Arc<Ending>) -> Self {
        Self { inner, matched: 0, ending }
    }
}

impl<W: Write> Write for PanicWatcher<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            // The first letter occurs once more, as "K" does not: restarting at 0 or 1 is exact for this text.
            self.matched = match () {
                _ if *byte == PANIC[self.matched] => self.matched + 1,
                _ => usize::from(*byte == PANIC[0]),
            };
            if self.matched == PANIC.len() {
                self.matched = 0;
                self.ending.panicked();
            }
        }
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Cuts the agent channel's output into lines. A reader that does not keep up loses lines, the guest never waits.
pub struct LineSender {
    line: Vec<u8>,
    to: SyncSender<Vec<u8>>,
}

impl LineSender {
    /// Sends complete lines to `to`.
    pub fn new(to: SyncSender<Vec<u8>>) -> Self {
        Self { line: Vec::new(), to }
    }
}

impl Write for LineSender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE_MAX {
                let line = std::mem::take(&mut self.line);
                if self.to.try_send(line).is_err() {
                    log::debug!("a line of the agent channel had no reader");
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_pieces_is_seen() {
        let ending = Arc::new(Ending::new().unwrap());
        let mut watcher = PanicWatcher::new(Vec::new(), ending.clone());
        watcher.write_all(b"xKKernel panic - not").unwrap();
        assert!(!ending.has_panicked());
        watcher.write_all(b" syncing: test").unwrap();
        assert!(ending.has_panicked());
    }

    #[test]
    fn the_buffer_is_bounded() {
        let mut console = Console::default();
        console.write_all(&vec![b'x'; BUFFER_MAX * 2]).unwrap();
        assert_eq!(console.text().len(), BUFFER_MAX);
    }
}
