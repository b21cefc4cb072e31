// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transport state that the device's own threads reach: status, ISR, generation, and which vector is whose.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use parking_lot::Mutex;

use crate::VirtioInterrupt;
use pci::msix::Msix;

/// Device status bits (virtio 1.2 §2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 0x01;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 0x02;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 0x04;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 0x08;
    /// The device has failed until it is reset.
    pub const NEEDS_RESET: u8 = 0x40;
    /// The guest has given up.
    pub const FAILED: u8 = 0x80;
}

/// "No vector" in msix_config and queue_msix_vector (virtio 1.2 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Shared by the registers (under the device's lock) and the device's threads (under none).
pub struct Notifier {
    msix: Arc<Msix>,
    status: AtomicU8,
    /// config_generation. Held by whoever reads or changes configuration space, for one access or one store.
    generation: Mutex<u8>,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
}

impl Notifier {
    /// For `queues` queues, none with a vector.
    pub fn new(msix: Arc<Msix>, queues: u16) -> Self {
        Self {
            msix,
            status: AtomicU8::new(0),
            generation: Mutex::new(0),
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Sets status bits; they stay until [`Notifier::reset`].
    pub fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::AcqRel);
    }

    /// config_generation.
    pub fn generation(&self) -> u8 {
        *self.generation.lock()
    }

    /// Runs `read` while device configuration space does not change.
    pub fn steady_config(&self, read: impl FnOnce()) {
        let _steady = self.generation.lock();
        read();
    }

    /// ISR status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// msix_config.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Sets msix_config; a vector beyond the table becomes [`NO_VECTOR`].
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// queue_msix_vector of `queue`.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Sets queue_msix_vector; a vector beyond the table becomes [`NO_VECTOR`].
    pub fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    /// After the device was reset: status last, since a driver may wait for its zero.
    pub fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
        self.msix.clear_pending();
        self.status.store(0, Ordering::Release);
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// No notification leaves before DRIVER_OK (virtio 1.2 §2.1.2).
    fn driver_ready(&self) -> bool {
        self.status() & status::DRIVER_OK != 0
    }

    fn announce_config(&self) {
        if self.driver_ready() {
            self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            self.msix.trigger(self.config_vector());
        }
    }
}

impl VirtioInterrupt for Notifier {
    fn used(&self, queue: u16) {
        if !self.driver_ready() {
            return;
        }
        // With MSI-X on, the queue bit stays clear (virtio 1.2 §4.1.5.3).
        if !self.msix.enabled() {
            self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        }
        // NO_VECTOR is beyond every table, so it triggers nothing.
        self.msix.trigger(self.queue_vector(queue));
    }

    fn change_config(&self, change: &mut dyn FnMut()) {
        let mut generation = self.generation.lock();
        *generation = generation.wrapping_add(1);
        change();
        drop(generation);
        self.announce_config();
    }

    fn needs_reset(&self) {
        self.add_status(status::NEEDS_RESET);
        self.announce_config();
    }
}
