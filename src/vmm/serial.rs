// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A 16550 (National Semiconductor PC16550D) whose transmitter is always ready and whose input never overflows: bytes wait outside until
//! the guest has made room in the FIFO.
//!
//! Input and output do not wait for each other: whoever reads the output may take all the time there is, and meanwhile input comes, is
//! announced and is read. An interrupt is pending as long as its cause lasts, whatever else the guest reads or writes in between.

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io::Write;

use vmm_sys_util::eventfd::EventFd;

/// Most input bytes that wait for the guest; more are refused, so that a guest that never reads costs nothing.
const WAITING_MAX: usize = 1 << 20;
/// Receiver FIFO, bytes; with the FIFO off there is one register.
const FIFO: usize = 16;

/// Registers by offset; the first two are the divisor while the latch bit is set.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification when read, FIFO control when written.
const IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// Interrupt enable: received data, transmitter empty; the line and modem status interrupts have no cause here.
const ENABLE_RECEIVED: u8 = 1;
const ENABLE_EMPTY: u8 = 2;
const ENABLE_ALL: u8 = 0x0f;
/// Identification, highest priority first: received data, transmitter empty, nothing.
const ID_RECEIVED: u8 = 4;
const ID_EMPTY: u8 = 2;
const ID_NONE: u8 = 1;
const ID_FIFO: u8 = 0xc0;
const FIFO_ENABLE: u8 = 1;
const DIVISOR_LATCH: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
const MODEM_OUTPUTS: u8 = 0x0f;
const DATA_READY: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Clear to send, data set ready, carrier detect.
const PEER_PRESENT: u8 = 0xb0;
/// 9600 baud.
const DIVISOR: u16 = 12;

/// Where a UART's output goes.
pub type Output = Box<dyn Write + Send>;

/// A UART with its waiting input.
pub struct Uart {
    registers: Mutex<Registers>,
    line: EventFd,
    /// Locked while a byte is written, and never together with the registers: a write may take long.
    output: Mutex<Output>,
}

#[derive(Default)]
struct Registers {
    divisor: [u8; 2],
    enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    received: VecDeque<u8>,
    /// The transmitter has become empty and nobody has been told: cleared by reading the identification and by writing data.
    empty: bool,
    /// The causes for which the line has been raised.
    raised: u8,
    /// Input that the FIFO has no room for yet.
    waiting: VecDeque<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Uart {
    /// A UART that raises `line` and writes to `output`.
    pub fn new(line: EventFd, output: Output) -> Self {
        Self { registers: Mutex::new(Registers::new()), line, output: Mutex::new(output) }
    }

    /// As after power-on, no input waiting.
    pub fn reset(&self) {
        *lock(&self.registers) = Registers::new();
    }

    /// Register read at `offset` 0..=7.
    pub fn read(&self, offset: u8) -> u8 {
        self.access(|registers| registers.read(offset))
    }

    /// Register write at `offset` 0..=7. Returns when a byte of output has been written.
    pub fn write(&self, offset: u8, value: u8) {
        let Some(byte) = self.access(|registers| registers.write(offset, value)) else { return };
        let mut output = lock(&self.output);
        if let Err(error) = output.write_all(&[byte]).and_then(|()| output.flush()) {
            log::debug!("serial output lost: {error}");
        }
        drop(output);
        self.access(|registers| registers.empty = true);
    }

    /// Bytes from outside for the guest; returns how many were taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        self.access(|registers| {
            let taken = bytes.len().min(WAITING_MAX - registers.waiting.len());
            registers.waiting.extend(&bytes[..taken]);
            taken
        })
    }

    /// Changes registers, moves input in, and raises the line for each cause that is new. The irqchip has an edge for each: one that the
    /// guest does not need is harmless, one that is missing is a guest that waits for ever.
    fn access<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = lock(&self.registers);
        let result = change(&mut registers);
        registers.receive();
        let causes = registers.causes();
        let new = causes & !std::mem::replace(&mut registers.raised, causes);
        if new != 0
            && let Err(error) = self.line.write(1)
        {
            log::debug!("serial interrupt lost: {error}");
        }
        result
    }
}

impl Registers {
    fn new() -> Self {
        Self { divisor: DIVISOR.to_le_bytes(), line_control: 3, modem_control: 8, ..Self::default() }
    }

    fn latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn looped(&self) -> bool {
        self.modem_control & LOOPBACK != 0
    }

    /// Nothing comes from outside while the guest probes the UART in loopback mode.
    fn receive(&mut self) {
        if self.looped() {
            return;
        }
        let depth = if self.fifo { FIFO } else { 1 };
        let room = depth.saturating_sub(self.received.len()).min(self.waiting.len());
        self.received.extend(self.waiting.drain(..room));
    }

    /// What asks for attention now, as bits of the interrupt enable register.
    fn causes(&self) -> u8 {
        let received = if self.received.is_empty() { 0 } else { ENABLE_RECEIVED };
        let empty = if self.empty { ENABLE_EMPTY } else { 0 };
        (received | empty) & self.enable
    }

    fn read(&mut self, offset: u8) -> u8 {
        match offset {
            DATA | INTERRUPT_ENABLE if self.latched() => self.divisor[usize::from(offset)],
            DATA => {
                let byte = self.received.pop_front().unwrap_or(0);
                // What follows is a cause of its own: a driver that reads just one byte an interrupt hears of the next.
                self.raised &= !ENABLE_RECEIVED;
                byte
            }
            INTERRUPT_ENABLE => self.enable,
            IDENTIFICATION => self.identify(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => TRANSMITTER_EMPTY | if self.received.is_empty() { 0 } else { DATA_READY },
            MODEM_STATUS if self.looped() => self.looped_status(),
            MODEM_STATUS => PEER_PRESENT,
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// The cause of highest priority. Told of an empty transmitter, the guest knows; received data are a cause until they are read.
    fn identify(&mut self) -> u8 {
        let causes = self.causes();
        let id = match causes {
            _ if causes & ENABLE_RECEIVED != 0 => ID_RECEIVED,
            _ if causes & ENABLE_EMPTY != 0 => {
                self.empty = false;
                ID_EMPTY
            }
            _ => ID_NONE,
        };
        id | if self.fifo { ID_FIFO } else { 0 }
    }

    /// Data terminal ready, request to send and the two outputs come back as the four inputs.
    fn looped_status(&self) -> u8 {
        let outputs = self.modem_control & MODEM_OUTPUTS;
        (outputs & 1) << 5 | (outputs & 2) << 3 | (outputs & 4) << 4 | (outputs & 8) << 4
    }

    /// Returns a byte that goes out.
    fn write(&mut self, offset: u8, value: u8) -> Option<u8> {
        match offset {
            DATA | INTERRUPT_ENABLE if self.latched() => self.divisor[usize::from(offset)] = value,
            DATA if self.looped() => {
                if self.received.len() < FIFO {
                    self.received.push_back(value);
                }
                self.empty = true;
            }
            DATA => {
                self.empty = false;
                return Some(value);
            }
            INTERRUPT_ENABLE => {
                let enabled = value & !self.enable;
                self.enable = value & ENABLE_ALL;
                // The transmitter is empty whenever that is asked.
                self.empty |= enabled & ENABLE_EMPTY != 0;
            }
            // Clearing the FIFO is not done: drivers do that at start, and what was typed ahead is not to be lost.
            IDENTIFICATION => self.fifo = value & FIFO_ENABLE != 0,
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & (MODEM_OUTPUTS | LOOPBACK),
            SCRATCH => self.scratch = value,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    struct Fixture {
        uart: Uart,
        line: EventFd,
    }

    impl Fixture {
        fn new(output: Output, fifo: bool) -> Self {
            let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            let uart = Uart::new(line.try_clone().unwrap(), output);
            uart.write(IDENTIFICATION, u8::from(fifo));
            Self { uart, line }
        }

        fn interrupted(&self) -> bool {
            self.line.read().is_ok()
        }

        /// One interrupt as Linux's driver handles it: at most `most` bytes are read, and the loop ends when nothing is pending.
        fn handle(&self, most: usize) -> Vec<u8> {
            let mut read = Vec::new();
            while self.uart.read(IDENTIFICATION) & ID_NONE == 0 {
                for _ in 0..most {
                    if self.uart.read(LINE_STATUS) & DATA_READY == 0 {
                        break;
                    }
                    read.push(self.uart.read(DATA));
                }
            }
            read
        }
    }

    #[test]
    fn input_is_read_to_its_end_whatever_the_driver_takes_at_once() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for fifo in [false, true] {
            for most in [1, 3, 16, 256] {
                let fixture = Fixture::new(Box::new(std::io::sink()), fifo);
                fixture.uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
                assert_eq!(fixture.uart.input(&bytes), bytes.len());
                assert!(fixture.interrupted());
                assert_eq!(fixture.handle(most), bytes, "FIFO {fifo}, {most} at once");
            }
        }
    }

    /// A console write masks the interrupts, waits for the transmitter for each byte, and unmasks them (Linux, 8250 console). Input
    /// that comes at any point of it, and an interrupt whose identification was read before, must be announced after it.
    #[test]
    fn output_does_not_starve_input() {
        for fifo in [false, true] {
            for at in 0..6 {
                let fixture = Fixture::new(Box::new(std::io::sink()), fifo);
                let uart = &fixture.uart;
                uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_EMPTY);
                fixture.handle(256);
                fixture.interrupted();
                let steps: [&dyn Fn(); 5] = [
                    &|| assert_ne!(uart.read(IDENTIFICATION), 0),
                    &|| uart.write(INTERRUPT_ENABLE, 0),
                    &|| assert_ne!(uart.read(LINE_STATUS), 0),
                    &|| uart.write(DATA, b'x'),
                    &|| uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_EMPTY),
                ];
                for (number, step) in steps.iter().enumerate() {
                    if number == at {
                        uart.input(b"typed");
                    }
                    step();
                }
                if at == steps.len() {
                    uart.input(b"typed");
                }
                assert!(fixture.interrupted(), "FIFO {fifo}, input before step {at}");
                assert_eq!(fixture.handle(256), b"typed", "FIFO {fifo}, input before step {at}");
            }
        }
    }

    #[test]
    fn both_causes_are_told_one_after_the_other() {
        let fixture = Fixture::new(Box::new(std::io::sink()), true);
        fixture.uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_EMPTY);
        fixture.uart.input(b"a");
        // Received data go first, and neither reading the identification nor anything but the data ends them.
        for _ in 0..2 {
            assert_eq!(fixture.uart.read(IDENTIFICATION), ID_RECEIVED | ID_FIFO);
        }
        assert_eq!(fixture.uart.read(DATA), b'a');
        assert_eq!(fixture.uart.read(IDENTIFICATION), ID_EMPTY | ID_FIFO);
        assert_eq!(fixture.uart.read(IDENTIFICATION), ID_NONE | ID_FIFO);
        // Each byte that comes or goes is a cause anew, for a driver that takes one an interrupt too.
        fixture.uart.input(b"bc");
        while fixture.interrupted() {}
        assert_eq!(fixture.uart.read(DATA), b'b');
        assert!(fixture.interrupted());
        assert_eq!(fixture.uart.read(DATA), b'c');
        while fixture.interrupted() {}
        fixture.uart.write(DATA, b'x');
        assert!(fixture.interrupted());
        assert_eq!(fixture.uart.read(IDENTIFICATION), ID_EMPTY | ID_FIFO);
    }

    /// Says that a write has begun, and waits until it may end.
    struct Slow(SyncSender<u8>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes[0]).unwrap();
            self.1.recv().unwrap();
            Ok(1)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Nobody reads the output: input is taken and announced, and the guest's other vCPU reads it.
    #[test]
    fn a_reader_that_does_not_read_holds_up_nothing_but_the_writer() {
        let (begun, begins) = sync_channel(1);
        let (go, goes) = sync_channel(1);
        let fixture = Arc::new(Fixture::new(Box::new(Slow(begun, goes)), true));
        fixture.uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        let vcpu = fixture.clone();
        let vcpu = std::thread::spawn(move || vcpu.uart.write(DATA, b'x'));
        assert_eq!(begins.recv().unwrap(), b'x');
        // With one lock for both this would never return.
        assert_eq!(fixture.uart.input(b"typed"), 5);
        assert!(fixture.interrupted());
        assert_eq!(fixture.handle(256), b"typed");
        go.send(()).unwrap();
        vcpu.join().unwrap();
    }

    #[test]
    fn input_during_loopback_comes_when_it_ends() {
        let fixture = Fixture::new(Box::new(std::io::sink()), true);
        fixture.uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        fixture.uart.write(MODEM_CONTROL, LOOPBACK | 0x0a);
        fixture.uart.input(b"typed");
        assert!(!fixture.interrupted());
        // The driver's probe: what it sends comes back, its outputs are its inputs.
        assert_eq!(fixture.uart.read(MODEM_STATUS), 0x90);
        fixture.uart.write(DATA, b'p');
        assert_eq!(fixture.handle(1), b"p");
        fixture.interrupted();
        fixture.uart.write(MODEM_CONTROL, 0x0b);
        assert!(fixture.interrupted());
        assert_eq!(fixture.handle(256), b"typed");
    }

    #[test]
    fn a_guest_that_never_reads_costs_a_bounded_amount() {
        let fixture = Fixture::new(Box::new(std::io::sink()), true);
        let much = vec![0; WAITING_MAX];
        let taken = fixture.uart.input(&much) + fixture.uart.input(&much);
        assert!(taken <= WAITING_MAX + FIFO, "{taken}");
        fixture.uart.reset();
        assert_eq!(fixture.uart.read(LINE_STATUS), TRANSMITTER_EMPTY);
        assert_eq!((fixture.uart.read(LINE_CONTROL), fixture.uart.read(INTERRUPT_ENABLE)), (3, 0));
    }

    #[test]
    fn the_divisor_lies_behind_its_latch() {
        let fixture = Fixture::new(Box::new(std::io::sink()), true);
        fixture.uart.input(b"a");
        fixture.uart.write(LINE_CONTROL, DIVISOR_LATCH | 3);
        fixture.uart.write(DATA, 1);
        fixture.uart.write(INTERRUPT_ENABLE, 0);
        assert_eq!((fixture.uart.read(DATA), fixture.uart.read(INTERRUPT_ENABLE)), (1, 0));
        fixture.uart.write(LINE_CONTROL, 3);
        fixture.uart.write(SCRATCH, 0x5a);
        assert_eq!((fixture.uart.read(SCRATCH), fixture.uart.read(DATA)), (0x5a, b'a'));
    }
}
