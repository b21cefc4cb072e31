// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port of the channel: a raw terminal, or any stream in tests.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Mutex;

use rnic_agent::frame::{self, EncodeError};
use rnic_agent::proto::{Failure, Message, Reply};

use super::lock;
use crate::sys::{process, tty};

/// A port; lines are written whole.
pub struct Port {
    input: Option<File>,
    output: Mutex<Option<File>>,
}

impl Port {
    /// Opens a serial port or pseudo-terminal. Fails when there is none behind the name.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        tty::raw(&file)?;
        Self::from_file(file)
    }

    /// Uses a stream that is open both ways.
    pub fn from_file(file: File) -> io::Result<Self> {
        Ok(Self { output: Mutex::new(Some(file.try_clone()?)), input: Some(file) })
    }

    /// A port to nowhere, for a guest without a second UART.
    pub fn none() -> Self {
        Self { input: None, output: Mutex::new(None) }
    }

    /// Waits for bytes. None when the stream has ended.
    pub fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut input = self.input.as_ref()?;
        loop {
            match input.read(buffer) {
                Ok(0) => return None,
                Ok(n) => return Some(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    process::poll(&mut [process::readable(Some(input))], -1).ok()?;
                }
                Err(_) => return None,
            }
        }
    }

    /// Sends one message. What is too long for a line becomes a failure of the same request; a dead port is ignored, since there
    /// is nobody left to tell.
    pub fn send(&self, message: &Message) {
        let line = match (frame::encode(message), message) {
            (Ok(line), _) => Ok(line),
            (Err(EncodeError::TooLong(len)), Message::Reply(reply)) => {
                let what = format!("the result has {len} bytes, more than a line of the channel holds");
                let failure = Failure { errno: libc::EMSGSIZE, what };
                frame::encode(&Message::Reply(Reply { id: reply.id, result: Err(failure) }))
            }
            (error, _) => error,
        };
        if let (Ok(line), Some(output)) = (line, lock(&self.output).as_mut()) {
            let _ = output.write_all(&line);
        }
    }

    /// Ends a line that something else may have begun on the port.
    pub fn start_line(&self) {
        if let Some(output) = lock(&self.output).as_mut() {
            let _ = output.write_all(b"\n");
        }
    }

    /// Waits until all has left the port.
    pub fn drain(&self) {
        if let Some(output) = lock(&self.output).as_ref() {
            tty::drain(output);
        }
    }
}
