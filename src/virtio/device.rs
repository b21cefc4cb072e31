// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a virtio device is to its transport, and the transport to its device.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use dma::DmaTarget;

/// Tells the guest about used buffers or a configuration change. Implemented by the transport over MSI-X.
pub trait VirtioInterrupt: Send + Sync {
    /// Used-buffer notification for queue `queue` (virtio 1.2 §2.3).
    fn used(&self, queue: u16);
    /// Runs `change`, which stores new values of configuration space, and tells the driver of it. No access of the driver comes
    /// between a new value and its new `config_generation`: whoever reads a wide field in parts sees one of them move (virtio 1.2
    /// §4.1.4.3.1). Works at any time after [`VirtioDevice::attach`]; the notification itself waits for DRIVER_OK. `change` must be
    /// short and may not access configuration space.
    fn change_config(&self, change: &mut dyn FnMut());
    /// Sets DEVICE_NEEDS_RESET and sends a configuration change (virtio 1.2 §2.1.2): the device has failed until reset.
    fn needs_reset(&self);
}

/// One queue as the driver configured it, with the eventfd that its doorbell signals.
pub struct ActiveQueue {
    /// Index of the queue.
    pub index: u16,
    /// Ring addresses and state.
    pub queue: Queue,
    /// Signalled by the guest's notification.
    pub kick: Arc<EventFd>,
}

/// All that a device needs to start when the driver sets DRIVER_OK.
pub struct Activation {
    /// The door to guest memory.
    pub dma: DmaTarget,
    /// Enabled queues.
    pub queues: Vec<ActiveQueue>,
    /// How to reach the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// Features both sides agreed on.
    pub features: u64,
}

/// The device could not start; the transport sets DEVICE_NEEDS_RESET.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver enabled no queue.
    #[error("the driver enabled no queue")]
    NoQueue,
    /// A worker thread or an eventfd could not be made.
    #[error("the device could not start: {0}")]
    Io(#[from] std::io::Error),
}

/// A virtio device type behind the transport.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2 §5): 2 for block.
    fn device_type(&self) -> u16;
    /// Device feature bits offered, transport bits (VERSION_1, EVENT_IDX, INDIRECT_DESC) included.
    fn features(&self) -> u64;
    /// Maximum size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// The transport presents itself, once, before anything else. `interrupt` outlives every reset.
    fn attach(&mut self, interrupt: Arc<dyn VirtioInterrupt>);
    /// FEATURES_OK was set: `features` are agreed on until the next reset. From here on configuration space follows them; before, it
    /// shows what the offered ones bring (virtio 1.2 §2.5.2).
    fn features_ok(&mut self, features: u64);
    /// Reads device configuration space; bytes beyond its end read as zero.
    fn config_read(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration space; read-only fields are ignored.
    fn config_write(&mut self, offset: u64, data: &[u8]);
    /// DRIVER_OK: start the engines. Called once between resets.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stop the engines and cancel every hold; returns when no access to guest memory is in flight.
    fn reset(&mut self);
}
