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
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;

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

    /// No interrupts, no loopback, no input waiting.
    pub fn reset(&mut self) {
        // Line control first: its divisor latch bit changes what the other registers mean.
        for register in [LINE_CONTROL, INTERRUPT_ENABLE, MODEM_CONTROL] {
            self.write(register, 0);
        }
        self.waiting.clear();
        while self.serial.read(LINE_STATUS) & DATA_READY != 0 {
            self.serial.read(RECEIVER_BUFFER);
        }
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
