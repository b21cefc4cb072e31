// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host bridge at 00:00.0. It has nothing but an identity: Linux wants to see one before it trusts CF8/CFC.

use std::sync::Arc;

use super::config::{ConfigSpace, Identity};
use super::{Doorbell, PciDevice};
use dma::BusMaster;

/// Red Hat's generic PCIe host bridge: no kernel has quirks for it.
const IDENTITY: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: 0x06_0000,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// A host bridge without BARs or capabilities.
pub struct HostBridge(ConfigSpace);

impl Default for HostBridge {
    fn default() -> Self {
        Self(ConfigSpace::new(IDENTITY, Arc::new(BusMaster::default())))
    }
}

impl PciDevice for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        // No PCI Express capability, so a write can have no effect but to store.
        let _ = self.0.write(offset, data);
    }

    fn bars(&self) -> Vec<(u8, u64, u64)> {
        Vec::new()
    }

    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }

    fn reset(&mut self) {
        self.0.reset();
    }
}
