// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What answers on I/O ports and in the MMIO hole: UARTs, PCI configuration, power and panic registers, BARs.

use std::sync::Arc;

use super::layout;
use super::outcome::{Ending, Outcome};
use super::serial::Uart;
use pci::PciBus;

/// Sleep type of S5 with the enable bit (ACPI 6.5 §4.8.3.7: SLP_TYP in bits 4:2, SLP_EN bit 5).
const SLEEP_S5: u8 = 5 << 2 | 1 << 5;
const SLEEP_MASK: u8 = 0x3c;
/// pvpanic events: bit 0 panicked, bit 1 crash kernel loaded.
const PVPANIC_EVENTS: u8 = 3;
const PVPANIC_PANICKED: u8 = 1;
/// 8042 command "pulse reset line", which Linux tries when ACPI reset fails.
const KBC_COMMAND: u16 = 0x64;
const KBC_RESET: u8 = 0xfe;

/// The machine around the vCPUs. Shared by their threads; every handler is quick.
pub struct Platform {
    /// Console.
    pub com1: Uart,
    /// Agent channel.
    pub com2: Uart,
    /// The PCI bus.
    pub pci: Arc<PciBus>,
    /// How the guest's life ends.
    pub ending: Arc<Ending>,
}

impl Platform {
    fn uart(&self, port: u16) -> Option<(&Uart, u8)> {
        [(&self.com1, layout::COM1.0), (&self.com2, layout::COM2.0)]
            .into_iter()
            .find(|(_, base)| (*base..*base + 8).contains(&port))
            .map(|(uart, base)| (uart, (port - base) as u8))
    }

    /// Devices and UARTs as after power-on; BARs keep their places.
    pub fn reset(&self) {
        self.pci.reset();
        [&self.com1, &self.com2].into_iter().for_each(Uart::reset);
    }

    /// `in` from `port`. Nothing there reads as ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((uart, offset)) = self.uart(port) {
            data[0] = uart.read(offset);
            return;
        }
        match port {
            0xcf8..=0xcff => drop(self.pci.port_read(port, data)),
            layout::PVPANIC => data[0] = PVPANIC_EVENTS,
            layout::SLEEP_CONTROL..=layout::RESET_REGISTER => data.fill(0),
            _ => {}
        }
    }

    /// `out` to `port`. Nothing there swallows it.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if let Some((uart, offset)) = self.uart(port) {
            return uart.write(offset, value);
        }
        match (port, value) {
            (layout::SLEEP_CONTROL, value) if value & SLEEP_MASK == SLEEP_S5 => self.ending.set(Outcome::PowerOff),
            (layout::RESET_REGISTER, layout::RESET_VALUE) | (KBC_COMMAND, KBC_RESET) => {
                self.ending.reset(Outcome::Reset)
            }
            (layout::PVPANIC, value) if value & PVPANIC_PANICKED != 0 => self.ending.panicked(),
            (0xcf8..=0xcff, _) => drop(self.pci.port_write(port, data)),
            _ => {}
        }
    }

    /// MMIO read outside RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match address.checked_sub(layout::ECAM.0) {
            Some(offset) if offset < layout::ECAM.1 => self.pci.ecam_read(offset, data),
            _ => drop(self.pci.mmio_read(address, data)),
        }
    }

    /// MMIO write outside RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        match address.checked_sub(layout::ECAM.0) {
            Some(offset) if offset < layout::ECAM.1 => self.pci.ecam_write(offset, data),
            _ => drop(self.pci.mmio_write(address, data)),
        }
    }
}
