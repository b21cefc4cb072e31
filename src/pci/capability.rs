// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bodies of the capabilities that our functions carry (PCIe base 6.0 §7.5.3, §7.7.2; PCI local bus 3.0 appendix H).

/// Capability id of power management (PCIe base 7.5.2.1).
pub const ID_POWER: u8 = 0x01;
/// Capability id of PCI Express (PCIe base 7.5.3.1).
pub const ID_PCIE: u8 = 0x10;
/// Capability id of MSI-X (PCIe base 7.7.2.1).
pub const ID_MSIX: u8 = 0x11;
/// Capability id of a vendor-specific capability (PCIe base 7.9.4).
pub const ID_VENDOR: u8 = 0x09;

/// Device Control, relative to the PCI Express capability (PCIe base 7.5.3.4).
pub const PCIE_DEVICE_CONTROL: u16 = 0x08;
/// Initiate Function Level Reset, in Device Control. Reads as zero.
pub const PCIE_INITIATE_FLR: u16 = 1 << 15;

/// Power Management Control/Status, relative to its capability (PCIe base 7.5.2.2).
pub const POWER_CONTROL: u16 = 0x04;
/// PowerState, in the low byte of Power Management Control/Status.
pub const POWER_STATE: u8 = 0b11;
/// PowerState of D0; that of D3hot has both bits set, D1 and D2 are not offered.
pub const POWER_D0: u8 = 0;
/// See [`POWER_D0`].
pub const POWER_D3HOT: u8 = 0b11;

/// What a function says it is in the PCI Express Capabilities register (PCIe base 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortType {
    /// An endpoint below a root port.
    Endpoint = 0,
    /// An endpoint on the root bus: it has no link, so link registers are zero.
    RootComplexIntegrated = 9,
}

/// One capability, ready to be chained by [`super::config::ConfigSpace::add_capability`].
#[derive(Debug, Clone)]
pub struct Capability {
    pub(super) id: u8,
    pub(super) bytes: Vec<u8>,
    pub(super) write: Vec<u8>,
    pub(super) clear: Vec<u8>,
}

impl Capability {
    /// A read-only capability of `len` bytes in all. Offsets below count from its first byte (the id), as in the specifications.
    pub fn new(id: u8, len: u8) -> Self {
        // Id and next pointer always exist; the rest is rounded up to whole dwords by the chain.
        let len = usize::from(len.max(2));
        Self { id, bytes: vec![0; len], write: vec![0; len], clear: vec![0; len] }
    }

    /// Sets bytes. Bytes beyond the capability's end are dropped.
    pub fn value(mut self, at: usize, bytes: &[u8]) -> Self {
        overlay(&mut self.bytes, at, bytes);
        self
    }

    /// Says which bits the guest may write.
    pub fn writable(mut self, at: usize, mask: &[u8]) -> Self {
        overlay(&mut self.write, at, mask);
        self
    }

    /// Says which bits the guest clears by writing one.
    pub fn write_one_to_clear(mut self, at: usize, mask: &[u8]) -> Self {
        overlay(&mut self.clear, at, mask);
        self
    }

    /// The power management capability, version 3 (PCIe base 7.5.2): D0 and D3hot, and no reset between them (No_Soft_Reset).
    pub fn power() -> Self {
        const VERSION: u16 = 3;
        const NO_SOFT_RESET: u8 = 1 << 3;
        let control = usize::from(POWER_CONTROL);
        Self::new(ID_POWER, 8)
            .value(2, &VERSION.to_le_bytes())
            .value(control, &[NO_SOFT_RESET])
            .writable(control, &[POWER_STATE])
    }

    /// The PCI Express capability, version 2 (PCIe base 7.5.3): function-level reset offered, maximum payload 128 bytes.
    pub fn pcie(port: PortType) -> Self {
        const ROLE_BASED_ERRORS: u32 = 1 << 15;
        const FLR_CAPABLE: u32 = 1 << 28;
        // Relaxed ordering and no-snoop on, maximum read request 512 bytes: the reset values of 7.5.3.4.
        const DEVICE_CONTROL_RESET: u16 = 0x2810;
        // Error reporting enables, relaxed ordering, payload, tags, no-snoop, read request, FLR.
        const DEVICE_CONTROL_WRITABLE: u16 = 0xf9ff;
        let capabilities = 2 | (port as u16) << 4;
        let control = usize::from(PCIE_DEVICE_CONTROL);
        Self::new(ID_PCIE, 0x3c)
            .value(0x02, &capabilities.to_le_bytes())
            .value(0x04, &(ROLE_BASED_ERRORS | FLR_CAPABLE).to_le_bytes())
            .value(control, &DEVICE_CONTROL_RESET.to_le_bytes())
            .writable(control, &DEVICE_CONTROL_WRITABLE.to_le_bytes())
            .write_one_to_clear(0x0a, &[0x0f])
            .link(port)
    }

    /// Link registers: an endpoint below a port reports 2.5 GT/s x1; on the root bus there is no link (PCIe base 7.5.3).
    fn link(self, port: PortType) -> Self {
        match port {
            PortType::RootComplexIntegrated => self,
            PortType::Endpoint => {
                self.value(0x0c, &0x11_u32.to_le_bytes()).value(0x12, &0x11_u16.to_le_bytes()).writable(0x10, &[0xc3])
            }
        }
    }
}

fn overlay(to: &mut [u8], at: usize, from: &[u8]) {
    for (slot, byte) in to.iter_mut().skip(at).zip(from) {
        *slot = *byte;
    }
}
