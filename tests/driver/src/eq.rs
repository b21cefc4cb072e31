// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queues as their consumer sees them (contract 6.1, 7.7).

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::eq::{EQE_SIZE, create_in, create_out, destroy_in, eqc, eqe};
use mlx5_spec::uar;
use probe::Patience;

use crate::command::{Bar, Commands, Input};
use crate::machine::Machine;
use crate::memory::Buffer;
use crate::{Error, Result};

/// One event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Eqe {
    /// As it lay in the queue.
    pub bytes: [u8; EQE_SIZE],
}

impl Eqe {
    /// `spec::eq::event`.
    pub fn event_type(&self) -> u32 {
        eqe::TYPE.get(&self.bytes)
    }

    /// Sub-type.
    pub fn sub_type(&self) -> u32 {
        eqe::SUB_TYPE.get(&self.bytes)
    }
}

impl std::fmt::Debug for Eqe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EQE {:#x}.{} {:02x?}", self.event_type(), self.sub_type(), &self.bytes[eqe::DATA])
    }
}

/// An event queue.
pub struct EventQueue {
    /// Its number.
    pub eqn: u32,
    /// What its interrupt's message says.
    pub vector: u32,
    machine: Arc<Machine>,
    bar: Bar,
    uar: u32,
    log_size: u32,
    buffer: Buffer,
    consumer: Mutex<u32>,
}

/// What an event queue is for.
#[derive(Debug, Clone, Copy)]
pub struct EqSpec<'a> {
    /// Event types.
    pub events: &'a [u32],
    /// MSI-X vector.
    pub vector: u16,
    /// log2 of its entries.
    pub log_size: u32,
    /// UAR page.
    pub uar: u32,
}

impl EventQueue {
    /// Creates a queue and arms it.
    pub fn create(machine: &Arc<Machine>, bar: &Bar, commands: &Commands, spec: EqSpec<'_>) -> Result<Arc<Self>> {
        let buffer = machine.guest.scattered((EQE_SIZE as u64) << spec.log_size);
        for entry in 0..1u64 << spec.log_size {
            // Entries begin with the owner bit of the round before the first.
            buffer.write(entry * EQE_SIZE as u64 + eqe::OWNER_BYTE as u64, &[1]);
        }
        let at = create_in::EQC;
        let mut input = Input::new(Opcode::CREATE_EQ, create_in::SIZE)
            .with(eqc::LOG_EQ_SIZE.plus(at), spec.log_size)
            .with(eqc::UAR_PAGE.plus(at), spec.uar)
            .with(eqc::INTR.plus(at), u32::from(spec.vector));
        for event in spec.events {
            let byte = create_in::EVENT_BITMASK + (event / 64 * 8 + 7 - event % 64 / 8) as usize;
            let mut bytes = input.finish();
            bytes[byte] |= 1 << (event % 8);
            input = Input::new(Opcode::CREATE_EQ, bytes.len()).bytes(0, &bytes);
        }
        let output = commands.execute(&input.list(&buffer.pages).finish(), create_out::SIZE)?;
        let eq = Self {
            eqn: create_out::EQN.get(&output),
            vector: u32::from(spec.vector),
            machine: machine.clone(),
            bar: bar.clone(),
            uar: spec.uar,
            log_size: spec.log_size,
            buffer,
            consumer: Mutex::new(0),
        };
        eq.arm();
        Ok(Arc::new(eq))
    }

    /// DESTROY_EQ.
    pub fn destroy(&self, commands: &Commands) -> Result<()> {
        let input = Input::new(Opcode::DESTROY_EQ, destroy_in::SIZE).with(destroy_in::EQN, self.eqn);
        commands.execute(&input.finish(), 16).map(|_| ())
    }

    /// The next event, if there is one; the device learns that its entry is free.
    pub fn poll(&self) -> Option<Eqe> {
        let mut consumer = self.consumer.lock();
        let at = u64::from(*consumer & ((1 << self.log_size) - 1)) * EQE_SIZE as u64;
        let owner = self.machine.guest.observe_u8(self.buffer.gpa(at + eqe::OWNER_BYTE as u64)) & 1;
        if u32::from(owner) != *consumer >> self.log_size & 1 {
            return None;
        }
        let mut bytes = [0; EQE_SIZE];
        self.buffer.read(at, &mut bytes);
        *consumer = consumer.wrapping_add(1);
        self.doorbell(uar::EQ_UPDATE, *consumer);
        Some(Eqe { bytes })
    }

    /// Asks for an interrupt for what comes next, or has come already.
    pub fn arm(&self) {
        let consumer = *self.consumer.lock();
        self.doorbell(uar::EQ_ARM, consumer);
    }

    /// The next event, by interrupt.
    ///
    /// # Errors
    /// None came, or one came without its interrupt: [`Error::LostInterrupt`].
    pub fn wait(&self, timeout: Duration, what: &'static str) -> Result<Eqe> {
        let mut patience = Patience::new(timeout);
        loop {
            let seen = self.machine.interrupts.count(self.vector);
            if let Some(event) = self.poll() {
                return Ok(event);
            }
            self.arm();
            while !self.machine.interrupts.wait_beyond(self.vector, seen, patience.glance()) {
                if patience.is_over() {
                    return Err(self.poll().map_or(Error::Timeout(what), |_| Error::LostInterrupt(what)));
                }
            }
        }
    }

    fn doorbell(&self, at: u64, consumer: u32) {
        let mut bytes = [0; 4];
        uar::eq::EQN.set(&mut bytes, self.eqn);
        uar::eq::CI.set(&mut bytes, consumer);
        self.bar.write(u64::from(self.uar) * uar::PAGE_SIZE + at, &bytes);
    }
}
