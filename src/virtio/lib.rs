// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio over PCI, modern interface only (virtio 1.2 §4.1). [`VirtioPci`] makes a PCI function of any [`VirtioDevice`].
//!
//! Not implemented: INTx (the ISR register reads as the specification says, no line is raised), the transitional interface,
//! VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_RESET, VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_SR_IOV and packed rings: never offered.

mod common;
mod device;
mod layout;
mod notifier;
mod plug;
#[cfg(test)]
mod public_reports;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod transport;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
pub use plug::VirtioPlug;
pub use transport::{TransportError, VirtioPci};
