// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: BARs, their regions, and the vendor capabilities that announce them (virtio 1.2 §4.1.4).

use pci::capability::{Capability, ID_VENDOR};
use pci::config::Identity;

/// BAR of the four virtio regions.
pub const DEVICE_BAR: u8 = 0;
/// Bytes of [`DEVICE_BAR`].
pub const DEVICE_BAR_SIZE: u64 = 0x4000;
/// BAR of the MSI-X table.
pub const MSIX_BAR: u8 = 2;

/// A region of [`DEVICE_BAR`]: (first byte, bytes).
pub type Region = (u64, u64);
/// Common configuration, without the fields of features that are not offered.
pub const COMMON: Region = (0x0000, 0x38);
/// ISR status.
pub const ISR: Region = (0x1000, 1);
/// Device-specific configuration.
pub const DEVICE: Region = (0x2000, 0x1000);
/// Notifications: a dword for each queue.
pub const NOTIFY: Region = (0x3000, 0x1000);
/// Bytes between the notification addresses of two queues (virtio 1.2 §4.1.4.4).
pub const NOTIFY_STRIDE: u64 = 4;

/// Offsets in the configuration access capability (virtio 1.2 §4.1.4.9).
pub mod cfg_access {
    /// BAR to access, 1 byte.
    pub const BAR: u16 = 4;
    /// Offset in the BAR, 4 bytes.
    pub const OFFSET: u16 = 8;
    /// Access length, 4 bytes: 1, 2 or 4.
    pub const LENGTH: u16 = 12;
    /// The window, 4 bytes.
    pub const DATA: u16 = 16;
}

const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

const VENDOR: u16 = 0x1af4;
/// Device ids of modern devices start here (virtio 1.2 §4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;
/// Class codes by virtio device type: network, block.
const CLASSES: [(u16, u32); 2] = [(1, 0x02_0000), (2, 0x01_8000)];
/// Class code of any other type.
const UNASSIGNED: u32 = 0xff_0000;

/// Ids of a modern virtio device of `device_type` (virtio 1.2 §4.1.2.1).
pub fn identity(device_type: u16) -> Identity {
    let class = CLASSES.iter().find(|(of, _)| *of == device_type).map_or(UNASSIGNED, |(_, class)| *class);
    Identity {
        vendor: VENDOR,
        device: DEVICE_ID_BASE.wrapping_add(device_type),
        revision: 1,
        class,
        subsystem_vendor: VENDOR,
        // 0x40 or higher keeps legacy drivers away.
        subsystem: 0x40_u16.wrapping_add(device_type),
    }
}

/// Capabilities of the four regions, for `queues` queues.
pub fn regions(queues: u16) -> [Capability; 4] {
    let notify = (NOTIFY.0, u64::from(queues) * NOTIFY_STRIDE);
    [
        region(TYPE_COMMON, 16, COMMON),
        region(TYPE_NOTIFY, 20, notify).value(16, &(NOTIFY_STRIDE as u32).to_le_bytes()),
        region(TYPE_ISR, 16, ISR),
        region(TYPE_DEVICE, 16, DEVICE),
    ]
}

/// The capability through which a driver without mapped BARs reaches them. BAR, offset, length and data are the guest's to write.
pub fn cfg_access() -> Capability {
    region(TYPE_PCI, 20, (0, 0))
        .writable(usize::from(cfg_access::BAR), &[0xff])
        .writable(usize::from(cfg_access::OFFSET), &[0xff; 4])
        .writable(usize::from(cfg_access::LENGTH), &[0xff; 4])
        .writable(usize::from(cfg_access::DATA), &[0xff; 4])
}

fn region(kind: u8, cap_len: u8, (offset, length): Region) -> Capability {
    Capability::new(ID_VENDOR, cap_len)
        .value(2, &[cap_len, kind, DEVICE_BAR])
        .value(8, &(offset as u32).to_le_bytes())
        .value(12, &(length as u32).to_le_bytes())
}
