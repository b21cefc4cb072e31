// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Common configuration (virtio 1.2 §4.1.4.3): feature windows, queue set-up and the device status state machine.

use std::sync::Arc;

use super::notifier::{Notifier, status};
use pci::registers::{self, Field, WrongSize};

/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
pub const VERSION_1: u64 = 1 << 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    /// Ring (0 descriptors, 1 driver, 2 device) and the bit that this half of its address starts at.
    Ring(usize, u32),
}

const fn field(offset: u64, width: u64, register: Register) -> Field<Register> {
    Field { offset, width, register }
}

const MAP: &[Field<Register>] = &[
    field(0x00, 4, Register::DeviceFeatureSelect),
    field(0x04, 4, Register::DeviceFeature),
    field(0x08, 4, Register::DriverFeatureSelect),
    field(0x0c, 4, Register::DriverFeature),
    field(0x10, 2, Register::ConfigVector),
    field(0x12, 2, Register::NumQueues),
    field(0x14, 1, Register::DeviceStatus),
    field(0x15, 1, Register::ConfigGeneration),
    field(0x16, 2, Register::QueueSelect),
    field(0x18, 2, Register::QueueSize),
    field(0x1a, 2, Register::QueueVector),
    field(0x1c, 2, Register::QueueEnable),
    field(0x1e, 2, Register::QueueNotifyOffset),
    field(0x20, 4, Register::Ring(0, 0)),
    field(0x24, 4, Register::Ring(0, 32)),
    field(0x28, 4, Register::Ring(1, 0)),
    field(0x2c, 4, Register::Ring(1, 32)),
    field(0x30, 4, Register::Ring(2, 0)),
    field(0x34, 4, Register::Ring(2, 32)),
];

/// One queue as the driver has set it up.
#[derive(Debug, Clone)]
pub struct QueueSetup {
    /// The most entries it can have.
    pub max: u16,
    /// Entries: a power of two.
    pub size: u16,
    /// queue_enable was written 1.
    pub enabled: bool,
    /// Guest physical addresses: descriptor table, driver (available) ring, device (used) ring.
    pub rings: [u64; 3],
}

impl QueueSetup {
    fn new(max: u16) -> Self {
        Self { max, size: max, enabled: false, rings: [0; 3] }
    }
}

/// What a write asks the transport to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// 0 was written to device_status.
    Reset,
    /// Status bits were newly set.
    Forward {
        /// FEATURES_OK among them: negotiation is over.
        features_ok: bool,
        /// DRIVER_OK among them: start the device.
        driver_ok: bool,
    },
}

/// The registers of the common configuration region.
pub struct Common {
    offered: u64,
    device_window: u32,
    driver_window: u32,
    features: u64,
    /// The driver set a bit beyond the 64 that exist.
    features_beyond: bool,
    selected: u16,
    queues: Vec<QueueSetup>,
    notifier: Arc<Notifier>,
}

impl Common {
    /// Power-on state for a device that offers `offered` and has queues of at most `sizes` entries.
    pub fn new(offered: u64, sizes: &[u16], notifier: Arc<Notifier>) -> Self {
        Self {
            offered,
            device_window: 0,
            driver_window: 0,
            features: 0,
            features_beyond: false,
            selected: 0,
            queues: sizes.iter().copied().map(QueueSetup::new).collect(),
            notifier,
        }
    }

    /// Features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// All queues, by index.
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// Power-on state, but for what the device offers. The notifier is the caller's to reset.
    pub fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        *self = Self::new(self.offered, &sizes, Arc::clone(&self.notifier));
    }

    /// Reads at `offset` of the region, any size; holes read as all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        registers::read(MAP, offset, data, |register| self.get(register));
    }

    /// Writes whole registers at `offset`.
    ///
    /// # Errors
    /// [`WrongSize`] for part of a register; nothing happened.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Option<Step>, WrongSize> {
        let mut step = None;
        registers::write(MAP, offset, data, |register, value| step = step.or(self.set(register, value)))?;
        Ok(step)
    }

    fn get(&self, register: Register) -> u64 {
        let queue = self.queues.get(usize::from(self.selected));
        match register {
            Register::DeviceFeatureSelect => u64::from(self.device_window),
            Register::DeviceFeature => window(self.offered, self.device_window),
            Register::DriverFeatureSelect => u64::from(self.driver_window),
            Register::DriverFeature => window(self.features, self.driver_window),
            Register::ConfigVector => u64::from(self.notifier.config_vector()),
            Register::NumQueues => self.queues.len() as u64,
            Register::DeviceStatus => u64::from(self.notifier.status()),
            Register::ConfigGeneration => u64::from(self.notifier.generation()),
            Register::QueueSelect => u64::from(self.selected),
            // 0: no such queue.
            Register::QueueSize => queue.map_or(0, |queue| u64::from(queue.size)),
            Register::QueueVector => u64::from(self.notifier.queue_vector(self.selected)),
            Register::QueueEnable => queue.map_or(0, |queue| u64::from(queue.enabled)),
            Register::QueueNotifyOffset => queue.map_or(0, |_| u64::from(self.selected)),
            Register::Ring(ring, shift) => queue.map_or(0, |queue| queue.rings[ring] >> shift & 0xffff_ffff),
        }
    }

    /// The value fits the register's width, so the casts below lose nothing.
    fn set(&mut self, register: Register, value: u64) -> Option<Step> {
        match register {
            Register::DeviceFeatureSelect => self.device_window = value as u32,
            Register::DriverFeatureSelect => self.driver_window = value as u32,
            Register::DriverFeature => self.accept(value),
            Register::ConfigVector => self.notifier.set_config_vector(value as u16),
            Register::QueueSelect => self.selected = value as u16,
            Register::QueueVector => self.notifier.set_queue_vector(self.selected, value as u16),
            Register::DeviceStatus => return self.set_status(value as u8),
            Register::QueueSize | Register::QueueEnable | Register::Ring(..) => self.set_up_queue(register, value),
            Register::DeviceFeature
            | Register::NumQueues
            | Register::ConfigGeneration
            | Register::QueueNotifyOffset => {}
        }
        None
    }

    fn accept(&mut self, value: u64) {
        // Negotiation is over once FEATURES_OK is set (virtio 1.2 §3.1.1).
        if self.notifier.status() & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_window {
            0 => self.features = self.features & !0xffff_ffff | value,
            1 => self.features = self.features & 0xffff_ffff | value << 32,
            _ => self.features_beyond |= value != 0,
        }
    }

    /// Size, rings and enable of the selected queue. Enabled queues do not change, and none is enabled after DRIVER_OK.
    fn set_up_queue(&mut self, register: Register, value: u64) {
        let running = self.notifier.status() & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.selected)) else { return };
        if queue.enabled || running {
            return;
        }
        match register {
            Register::QueueSize => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max {
                    queue.size = size;
                }
            }
            Register::QueueEnable => queue.enabled = value == 1,
            Register::Ring(ring, shift) => {
                queue.rings[ring] = queue.rings[ring] & !(0xffff_ffff << shift) | value << shift;
            }
            _ => {}
        }
    }

    /// Bits can be set, in the order of virtio 1.2 §3.1.1, and only a reset clears them. What may not be set yet stays clear.
    fn set_status(&mut self, value: u8) -> Option<Step> {
        if value == 0 {
            return Some(Step::Reset);
        }
        let before = self.notifier.status();
        let mut after = before | value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let driver_known = after & status::DRIVER != 0 && after & status::ACKNOWLEDGE != 0;
        if value & status::FEATURES_OK != 0 && driver_known && self.features_acceptable() {
            after |= status::FEATURES_OK;
        }
        if value & status::DRIVER_OK != 0 && after & status::FEATURES_OK != 0 {
            after |= status::DRIVER_OK;
        }
        self.notifier.add_status(after);
        let new = |bit| after & !before & bit != 0;
        let (features_ok, driver_ok) = (new(status::FEATURES_OK), new(status::DRIVER_OK));
        (features_ok || driver_ok).then_some(Step::Forward { features_ok, driver_ok })
    }

    fn features_acceptable(&self) -> bool {
        self.features & VERSION_1 != 0 && self.features & !self.offered == 0 && !self.features_beyond
    }
}

/// 32 bits of a feature set; windows beyond the second are empty.
fn window(features: u64, select: u32) -> u64 {
    match select {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}
