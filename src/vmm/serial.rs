// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A 16550 whose input never overflows: bytes wait outside until the guest has made room in the FIFO.

use std::collections::VecDeque;
use std::io::Write;

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

/// Most input bytes that wait for the guest; more are refused, so that a guest that never reads costs nothing.
const WAITING_MAX: usize = 1 << 20;
/// Receiver buffer register, the only one whose read makes room.
const RECEIVER_BUFFER: u8 = 0;

/// The UART's interrupt line.
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// Where a UART's output goes.
pub type Output = Box<dyn Write + Send>;

/// A UART with its waiting input.
pub struct Uart {
    serial: Serial<Line, NoEvents, Output>,
    waiting: VecDeque<u8>,
}

impl Uart {
    /// A UART that raises `line` and writes to `output`.
    pub fn new(line: EventFd, output: Output) -> Self {
        Self { serial: Serial::new(Line(line), output), waiting: VecDeque::new() }
    }

    /// Register read at `offset` 0..=7.
    pub fn read(&mut self, offset: u8) -> u8 {
        let value = self.serial.read(offset);
        if offset == RECEIVER_BUFFER {
            self.refill();
        }
        value
    }

    /// Register write at `offset` 0..=7.
    pub fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.serial.write(offset, value) {
            log::debug!("serial output lost: {error:?}");
        }
    }

    /// Bytes from outside for the guest; returns how many were taken.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(WAITING_MAX - self.waiting.len());
        self.waiting.extend(&bytes[..taken]);
        self.refill();
        taken
    }

    fn refill(&mut self) {
        let room = self.serial.fifo_capacity().min(self.waiting.len());
        if room == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().take(room).copied().collect();
        // Refused while the guest probes the UART in loopback mode: the bytes stay here for the next chance.
        match self.serial.enqueue_raw_bytes(&bytes) {
            Ok(taken) => drop(self.waiting.drain(..taken)),
            Err(error) => log::debug!("serial input waits: {error:?}"),
        }
    }
}
