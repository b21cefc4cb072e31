// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What firmware does on a real machine: sizes every BAR by writing ones and places it in a window.

use std::ops::Range;

use super::config::BAR0;
use super::{PciDevice, PciError};

const BAR_REGISTERS: u16 = 6;
const BAR_IO: u32 = 1;
const BAR_TYPE: u32 = 0b110;
const BAR_TYPE_64: u32 = 0b100;

/// A range of guest physical addresses that BARs are given from, lowest first, never taken back.
#[derive(Debug)]
pub struct Window {
    next: u64,
    end: u64,
}

impl Window {
    /// All of `range` is free.
    pub fn new(range: Range<u64>) -> Self {
        Self { next: range.start, end: range.end }
    }

    /// `size` bytes (a power of two), naturally aligned.
    fn take(&mut self, size: u64) -> Option<u64> {
        let base = self.next.checked_next_multiple_of(size)?;
        let next = base.checked_add(size).filter(|next| *next <= self.end)?;
        self.next = next;
        Some(base)
    }
}

/// BAR registers and the values that firmware gave them, to be written again after a reset.
pub type Placement = Vec<(u16, u32)>;

/// Where BARs may go.
#[derive(Debug)]
pub struct Windows {
    /// Below 4 GiB: 32-bit BARs, and 64-bit ones when `high` is full.
    pub low: Window,
    /// Anywhere: 64-bit BARs.
    pub high: Window,
}

impl Windows {
    /// Sizes and places every memory BAR of `device`. Memory decode stays as it is (off, after power-on).
    pub fn place(&mut self, device: &mut dyn PciDevice) -> Result<Placement, PciError> {
        let mut placement = Placement::new();
        let mut register = 0;
        while register < BAR_REGISTERS {
            let at = BAR0 + 4 * register;
            let flags = read(device, at);
            let wide = flags & BAR_IO == 0 && flags & BAR_TYPE == BAR_TYPE_64 && register + 1 < BAR_REGISTERS;
            if let Some(size) = size_of(device, at, wide) {
                let base = self.take(size, wide).ok_or(PciError::WindowFull { bar: register as u8, size })?;
                placement.push((at, base as u32));
                if wide {
                    placement.push((at + 4, (base >> 32) as u32));
                }
            }
            register += if wide { 2 } else { 1 };
        }
        apply(device, &placement);
        Ok(placement)
    }

    fn take(&mut self, size: u64, wide: bool) -> Option<u64> {
        let high = if wide { self.high.take(size) } else { None };
        high.or_else(|| self.low.take(size))
    }
}

/// Writes a placement into the BAR registers.
pub fn apply(device: &mut dyn PciDevice, placement: &Placement) {
    for (at, value) in placement {
        device.config_write(*at, &value.to_le_bytes());
    }
}

/// Size of the memory BAR at `at`, found as PCIe base 7.5.1.2.1 says; none if there is no BAR or it is an I/O BAR.
fn size_of(device: &mut dyn PciDevice, at: u16, wide: bool) -> Option<u64> {
    let low = probe(device, at);
    let high = if wide { probe(device, at + 4) } else { u32::MAX };
    let io = low & BAR_IO != 0;
    let mask = u64::from(high) << 32 | u64::from(low & !0xf);
    // No writable bit: not a BAR.
    let absent = if wide { mask == 0 } else { low & !0xf == 0 };
    let size = (!mask).wrapping_add(1);
    (!io && !absent && size.is_power_of_two()).then_some(size)
}

fn probe(device: &mut dyn PciDevice, at: u16) -> u32 {
    let before = read(device, at);
    device.config_write(at, &u32::MAX.to_le_bytes());
    let mask = read(device, at);
    device.config_write(at, &before.to_le_bytes());
    mask
}

fn read(device: &mut dyn PciDevice, at: u16) -> u32 {
    let mut bytes = [0; 4];
    device.config_read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_give_aligned_ranges_until_they_are_full() {
        let mut window = Window::new(0x1000..0x9000);
        assert_eq!(window.take(0x1000), Some(0x1000));
        assert_eq!(window.take(0x4000), Some(0x4000));
        assert_eq!(window.take(0x4000), None);
        assert_eq!(window.take(0x1000), Some(0x8000));
        assert_eq!(window.take(0x1000), None);
        assert_eq!(Window::new(u64::MAX - 1..u64::MAX).take(1 << 63), None);
    }
}
