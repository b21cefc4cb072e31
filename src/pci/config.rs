// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A type-0 configuration space (PCIe base 6.0 §7.5.1) as a table: a value, a write mask and a write-one-to-clear mask for each byte.
//!
//! BAR sizing, partial and wide writes need no code of their own: the masks say it all.

use std::sync::Arc;

use thiserror::Error;

use super::capability::{
    Capability, ID_PCIE, ID_POWER, PCIE_DEVICE_CONTROL, PCIE_INITIATE_FLR, POWER_CONTROL, POWER_D0, POWER_D3HOT,
    POWER_STATE,
};
use dma::BusMaster;

/// Bytes of a PCI Express function's configuration space.
pub const CONFIG_SIZE: usize = 4096;

/// Offset of the command register.
pub const COMMAND: u16 = 0x04;
/// Command: memory BARs decode.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may start DMA.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Offset of BAR 0.
pub const BAR0: u16 = 0x10;

/// Writable command bits: memory, bus master, parity response, SERR#, INTx disable. There is no I/O space to enable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS: u16 = 0x06;
const STATUS_CAPABILITY_LIST: u8 = 1 << 4;
/// Error bits of the status register's upper byte; the guest clears them by writing one.
const STATUS_ERRORS_HIGH: u8 = 0xf9;
const CAPABILITY_POINTER: u16 = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
const END_OF_CAPABILITIES: usize = 0x100;
const INTERRUPT_LINE: u16 = 0x3c;
const BAR_64: u8 = 0b100;
const BAR_PREFETCHABLE: u8 = 0b1000;
const BAR_FLAGS: u64 = 0xf;

/// What a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// One 64-bit memory BAR. It takes two BAR registers, `index` and `index + 1`.
#[derive(Debug, Clone, Copy)]
pub struct BarSpec {
    /// 0 to 4.
    pub index: u8,
    /// Bytes: a power of two, 4096 at least.
    pub size: u64,
    /// Reads have no side effects and writes may be merged (PCIe base 7.5.1.2.1).
    pub prefetchable: bool,
}

/// The device's own description does not make a configuration space. A mistake in our code, never the guest's doing.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum ConfigError {
    /// BAR index or size is impossible, or two BARs overlap.
    #[error("BAR {index} cannot be {size:#x} bytes: give a free index from 0 to 4 and a power of two of 4096 or more")]
    Bar {
        /// BAR index.
        index: u8,
        /// Size in bytes.
        size: u64,
    },
    /// The capabilities do not fit below offset 0x100.
    #[error("capability {0:#04x} does not fit into configuration space; remove another one")]
    NoRoom(u8),
}

/// What a configuration write asks the function to do, beyond storing the value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct ConfigEffects {
    /// The guest set Initiate Function Level Reset.
    pub function_reset: bool,
}

/// Configuration space of one function. It owns the truth about memory decode, BAR bases and bus mastering.
pub struct ConfigSpace {
    value: Box<[u8; CONFIG_SIZE]>,
    initial: Box<[u8; CONFIG_SIZE]>,
    write: Box<[u8; CONFIG_SIZE]>,
    clear: Box<[u8; CONFIG_SIZE]>,
    bars: Vec<BarSpec>,
    /// Offset of the pointer that the next capability hangs from, and of the free byte it may take.
    link: usize,
    free: usize,
    pcie: Option<u16>,
    power: Option<u16>,
    master: Arc<BusMaster>,
}

impl ConfigSpace {
    /// A function without BARs and capabilities. `master` follows Bus Master Enable and the power state.
    pub fn new(identity: Identity, master: Arc<BusMaster>) -> Self {
        let zero = || Box::new([0; CONFIG_SIZE]);
        let mut space = Self {
            value: zero(),
            initial: zero(),
            write: zero(),
            clear: zero(),
            bars: Vec::new(),
            link: usize::from(CAPABILITY_POINTER),
            free: FIRST_CAPABILITY,
            pcie: None,
            power: None,
            master,
        };
        space.define(0x00, &identity.vendor.to_le_bytes());
        space.define(0x02, &identity.device.to_le_bytes());
        space.define(0x08, &[identity.revision]);
        space.define(0x09, &identity.class.to_le_bytes()[..3]);
        space.define(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.define(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.clear[usize::from(STATUS) + 1] = STATUS_ERRORS_HIGH;
        // Cache line size and interrupt line are the guest's scratch bytes; interrupt pin stays 0: no INTx.
        space.allow(0x0c, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a 64-bit memory BAR.
    pub fn add_bar(&mut self, spec: BarSpec) -> Result<(), ConfigError> {
        let BarSpec { index, size, prefetchable } = spec;
        let free = self.bars.iter().all(|other| other.index.abs_diff(index) > 1);
        if index > 4 || !size.is_power_of_two() || size < 4096 || !free {
            return Err(ConfigError::Bar { index, size });
        }
        let at = BAR0 + 4 * u16::from(index);
        self.define(at, &[BAR_64 | if prefetchable { BAR_PREFETCHABLE } else { 0 }]);
        self.allow(at, &(!(size - 1) & !BAR_FLAGS).to_le_bytes());
        self.bars.push(spec);
        Ok(())
    }

    /// Appends a capability to the list and returns its offset.
    pub fn add_capability(&mut self, capability: &Capability) -> Result<u16, ConfigError> {
        let at = self.free;
        let end = at + capability.bytes.len();
        if end > END_OF_CAPABILITIES {
            return Err(ConfigError::NoRoom(capability.id));
        }
        self.value[at..end].copy_from_slice(&capability.bytes);
        self.write[at..end].copy_from_slice(&capability.write);
        self.clear[at..end].copy_from_slice(&capability.clear);
        self.value[at] = capability.id;
        self.value[at + 1] = 0;
        // `at` is below 0x100 by the check above.
        self.value[self.link] = at as u8;
        self.value[usize::from(STATUS)] |= STATUS_CAPABILITY_LIST;
        self.initial.copy_from_slice(&*self.value);
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        let offset = at as u16;
        match capability.id {
            ID_PCIE => self.pcie = Some(offset),
            ID_POWER => self.power = Some(offset),
            _ => {}
        }
        Ok(offset)
    }

    /// Reads any number of bytes; bytes beyond the end read as zero.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        let stored = self.value.iter().skip(usize::from(offset));
        data.iter_mut().zip(stored).for_each(|(to, from)| *to = *from);
    }

    /// Reads a 16-bit register.
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Reads a 32-bit register.
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A guest write of any size: read-only bits stay, write-one-to-clear bits are cleared, the rest is stored.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffects {
        let power = self.power_state();
        for (at, byte) in (usize::from(offset)..CONFIG_SIZE).zip(data) {
            let kept = self.value[at] & !self.write[at] & !(self.clear[at] & byte);
            self.value[at] = kept | byte & self.write[at];
        }
        // A state that is not offered changes nothing (PCIe base 7.5.2.2).
        if let Some(at) = self.power
            && !matches!(self.power_state(), POWER_D0 | POWER_D3HOT)
        {
            let control = &mut self.value[usize::from(at + POWER_CONTROL)];
            *control = *control & !POWER_STATE | power;
        }
        self.master.set(self.command() & COMMAND_BUS_MASTER != 0 && self.is_awake());
        ConfigEffects { function_reset: self.take_function_reset() }
    }

    /// Sets bytes from the device's side, whatever the masks say. [`ConfigSpace::reset`] undoes it.
    pub fn store(&mut self, offset: u16, data: &[u8]) {
        let slots = self.value.iter_mut().skip(usize::from(offset));
        slots.zip(data).for_each(|(to, from)| *to = *from);
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.read_u16(COMMAND)
    }

    /// The switch that is on while the function may begin accesses: bus mastering enabled, in D0.
    pub fn bus_master(&self) -> &Arc<BusMaster> {
        &self.master
    }

    /// Whether the function is in D0. In D3hot it answers in configuration space only, and begins no access (PCIe base 5.3.1.4.1).
    pub fn is_awake(&self) -> bool {
        self.power_state() == POWER_D0
    }

    /// BARs that decode now: (index, base, size). A BAR whose base is 0 has not been placed and decodes nothing.
    pub fn bars(&self) -> Vec<(u8, u64, u64)> {
        if self.command() & COMMAND_MEMORY == 0 || !self.is_awake() {
            return Vec::new();
        }
        let placed = |spec: &BarSpec| {
            let at = BAR0 + 4 * u16::from(spec.index);
            let low = u64::from(self.read_u32(at)) & !BAR_FLAGS;
            let base = u64::from(self.read_u32(at + 4)) << 32 | low;
            (base != 0).then_some((spec.index, base, spec.size))
        };
        self.bars.iter().filter_map(placed).collect()
    }

    /// Back to the values of power-on: bus mastering and decode off, BARs unplaced.
    pub fn reset(&mut self) {
        self.master.set(false);
        self.value.copy_from_slice(&*self.initial);
    }

    fn power_state(&self) -> u8 {
        self.power.map_or(POWER_D0, |at| self.value[usize::from(at + POWER_CONTROL)] & POWER_STATE)
    }

    fn take_function_reset(&mut self) -> bool {
        let Some(pcie) = self.pcie else { return false };
        let at = pcie + PCIE_DEVICE_CONTROL;
        let control = self.read_u16(at);
        self.store(at, &(control & !PCIE_INITIATE_FLR).to_le_bytes());
        control & PCIE_INITIATE_FLR != 0
    }

    fn define(&mut self, offset: u16, bytes: &[u8]) {
        self.store(offset, bytes);
        self.initial.copy_from_slice(&*self.value);
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        let slots = self.write.iter_mut().skip(usize::from(offset));
        slots.zip(mask).for_each(|(to, from)| *to = *from);
    }
}
