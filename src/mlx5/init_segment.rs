// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initialization segment, BAR0 from 0 to 0x200f (contract 2). All of it is big-endian dwords.

use super::command::queue::{LOG_SIZE, LOG_STRIDE};
use super::health::Report;
use mlx5_spec::init::{
    CMDIF_REV, CMDQ_ADDR_H, CMDQ_ADDR_L_SZ, COMMAND_DOORBELL, HEALTH_BUFFER, HEALTH_COUNTER, INTERNAL_TIMER,
    nic_interface, segment,
};

/// DriverSettings version that the driver prints: ConnectX-5's major number, and ours.
const VERSION: (u32, u32, u32) = (16, 35, 1);
/// Health buffer's hw_id: ConnectX-5.
const HW_ID: u32 = 0x20d;
/// Places in the dword 0x014.
const INTERFACE_SHIFT: u32 = 8;
const SIZE_SHIFT: u32 = 4;
const ADDRESS_LOW: u32 = 0xffff_f000;
const FW_VER: usize = HEALTH_BUFFER + 0x30;
const HW_ID_AT: usize = HEALTH_BUFFER + 0x34;
/// The dwords with RFR and severity, and with the syndrome.
const SEVERITY: usize = HEALTH_BUFFER + 0x38;
const SYNDROME: usize = HEALTH_BUFFER + 0x3c;
/// Places in them. The severity is a level of the kernel's log: critical, error.
const RESET_REQUESTED: u32 = 1 << 31;
const SEVERITY_VALID: u32 = 1 << 27;
const SEVERITY_SHIFT: u32 = 24;
const SYNDROME_SHIFT: u32 = 16;
const CRITICAL: u32 = 2;
const ERROR: u32 = 3;
/// The health counter counts tenths of a second in 24 bits and is never 0 (contract 2, T15).
const HEALTH_PERIOD: u64 = 100_000_000;

/// What a write asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The command queue is at this guest physical address: a driver begins anew.
    Queue(u64),
    /// Everything goes, and the interface is disabled until a driver begins anew.
    Disable,
    /// Execute these slots of the command queue, a bit each.
    Command(u32),
}

/// Registers of the segment.
///
/// The interface is disabled until a driver gives its command queue, and again after every reset. A driver that is bound meanwhile
/// learns from it in its next health poll (2 to 3 s) that its objects are gone; the health counter goes on, since the driver
/// waits for it to move before it loads again (contract 2, 12.3).
pub struct InitSegment {
    address_high: u32,
    address_low: u32,
    interface: u32,
    told: Report,
}

impl Default for InitSegment {
    fn default() -> Self {
        Self { address_high: 0, address_low: 0, interface: nic_interface::DISABLED, told: Report::default() }
    }
}

impl InitSegment {
    /// What injections have made of its health, from now on.
    pub fn tell(&mut self, told: Report) {
        self.told = told;
    }

    /// The health counter as it reads at `clock`, nanoseconds, while it moves.
    pub fn health_counter(clock: u64) -> u32 {
        (clock / HEALTH_PERIOD % 0xff_ffff) as u32 + 1
    }

    /// Whether a read of `len` bytes at `offset` takes part of the health counter.
    pub fn reads_counter(offset: u64, len: usize) -> bool {
        reads(offset, len, HEALTH_COUNTER)
    }

    /// Whether a read of `len` bytes at `offset` tells that the device asks for a reset.
    pub fn reads_severity(offset: u64, len: usize) -> bool {
        reads(offset, len, SEVERITY)
    }

    /// Reads any number of bytes. Reserved bytes of the segment read as zero, what lies beyond it as all ones. `clock`: the
    /// device clock, in nanoseconds.
    pub fn read(&self, clock: u64, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let Some(at) = usize::try_from(at).ok().filter(|at| *at < segment::SIZE) else { continue };
            *byte = self.dword(clock, at & !3).to_be_bytes()[at & 3];
        }
    }

    /// Writes dwords (8 bytes at once are two). Anything else is not understood: `None`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Order> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(4) {
            return None;
        }
        let mut order = None;
        for (dword, at) in data.chunks_exact(4).zip((offset..).step_by(4)) {
            let value = u32::from_be_bytes(dword.try_into().unwrap_or_default());
            order = self.write_dword(usize::try_from(at).ok()?, value).or(order);
        }
        order
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    fn dword(&self, clock: u64, at: usize) -> u32 {
        let (major, minor, sub) = VERSION;
        const TIMER_LOW: usize = INTERNAL_TIMER + 4;
        match at {
            0x000 => minor << 16 | major,
            0x004 => CMDIF_REV << 16 | sub,
            CMDQ_ADDR_H => self.address_high,
            // Size and stride must read the same before and after the driver's write.
            CMDQ_ADDR_L_SZ => {
                self.address_low | self.interface << INTERFACE_SHIFT | LOG_SIZE << SIZE_SHIFT | LOG_STRIDE
            }
            FW_VER => major << 16 | minor,
            HW_ID_AT => HW_ID,
            INTERNAL_TIMER => (clock >> 32) as u32,
            TIMER_LOW => clock as u32,
            HEALTH_COUNTER => self.told.counter.unwrap_or_else(|| Self::health_counter(clock)),
            SEVERITY if self.told.fatal => RESET_REQUESTED | SEVERITY_VALID | CRITICAL << SEVERITY_SHIFT,
            SEVERITY if self.told.syndrome != 0 => SEVERITY_VALID | ERROR << SEVERITY_SHIFT,
            SYNDROME => u32::from(self.told.syndrome) << SYNDROME_SHIFT,
            _ => 0,
        }
    }

    fn write_dword(&mut self, at: usize, value: u32) -> Option<Order> {
        match at {
            CMDQ_ADDR_H => {
                self.address_high = value;
                None
            }
            CMDQ_ADDR_L_SZ => Some(self.begin(value)),
            COMMAND_DOORBELL => Some(Order::Command(value)),
            _ => None,
        }
    }

    fn begin(&mut self, value: u32) -> Order {
        match value >> INTERFACE_SHIFT & 7 {
            nic_interface::FULL => {
                self.interface = nic_interface::FULL;
                self.address_low = value & ADDRESS_LOW;
                Order::Queue(u64::from(self.address_high) << 32 | u64::from(self.address_low))
            }
            // A driver's own reset (7) and a disable end alike: it waits to read 1 (contract 12.3).
            _ => {
                self.interface = nic_interface::DISABLED;
                Order::Disable
            }
        }
    }
}

/// Whether `len` bytes at `offset` have a part of the dword at `at`.
fn reads(offset: u64, len: usize, at: usize) -> bool {
    let at = at as u64;
    offset < at + 4 && at.saturating_sub(offset) < len as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dword(segment: &InitSegment, at: usize) -> u32 {
        dword_at(segment, 0, at)
    }

    fn dword_at(segment: &InitSegment, clock: u64, at: usize) -> u32 {
        let mut bytes = [0; 4];
        segment.read(clock, at as u64, &mut bytes);
        u32::from_be_bytes(bytes)
    }

    /// What `mlx5_core` calls the NIC's state.
    fn interface(segment: &InitSegment) -> u32 {
        dword(segment, CMDQ_ADDR_L_SZ) >> 8 & 7
    }

    #[test]
    fn a_driver_finds_the_interface_it_knows() {
        let mut segment = InitSegment::default();
        assert_eq!(dword(&segment, 0x004) >> 16, 5);
        assert_eq!(dword(&segment, CMDQ_ADDR_L_SZ), 0x156);
        assert_eq!(dword(&segment, 0x1fc), 0);
        assert_eq!(segment.write(CMDQ_ADDR_H as u64, &1u32.to_be_bytes()), None);
        let order = segment.write(CMDQ_ADDR_L_SZ as u64, &0x2345_6000u32.to_be_bytes());
        assert_eq!(order, Some(Order::Queue(0x1_2345_6000)));
        assert_eq!(dword(&segment, CMDQ_ADDR_L_SZ), 0x2345_6056);
        assert_eq!(segment.write(COMMAND_DOORBELL as u64, &[0, 0, 0, 1]), Some(Order::Command(1)));
        assert_eq!(segment.write(COMMAND_DOORBELL as u64, &[1]), None);
    }

    #[test]
    fn the_interface_is_full_only_while_a_driver_has_its_queue() {
        let mut segment = InitSegment::default();
        assert_eq!(interface(&segment), nic_interface::DISABLED, "after power-on");
        let begin = |segment: &mut InitSegment| segment.write(CMDQ_ADDR_L_SZ as u64, &0x2345_6000u32.to_be_bytes());
        begin(&mut segment);
        assert_eq!(interface(&segment), nic_interface::FULL, "running");
        segment.reset();
        assert_eq!(dword(&segment, CMDQ_ADDR_L_SZ), 0x156, "after FLR under a bound driver");
        begin(&mut segment);
        assert_eq!(interface(&segment), nic_interface::FULL, "recovered");
        for asked in [nic_interface::SW_RESET, nic_interface::DISABLED, nic_interface::NO_DRAM] {
            let order = segment.write(CMDQ_ADDR_L_SZ as u64, &(0x2345_6000 | asked << 8).to_be_bytes());
            assert_eq!(
                (order, interface(&segment)),
                (Some(Order::Disable), nic_interface::DISABLED),
                "asked for {asked}"
            );
        }
    }

    #[test]
    fn health_bytes_say_healthy_and_the_counter_moves() {
        let segment = InitSegment::default();
        let mut byte = [0xff];
        for at in [0x238, 0x23d] {
            segment.read(0, at, &mut byte);
            assert_eq!(byte, [0]);
        }
        assert_ne!(dword(&segment, 0x230), u32::MAX);
        let counter = |clock| dword_at(&segment, clock, HEALTH_COUNTER);
        assert_eq!((counter(0), counter(HEALTH_PERIOD), counter(0xff_ffff * HEALTH_PERIOD)), (1, 2, 1), "never 0");
        let timer = |at| dword_at(&segment, 0x1_2345_6789, INTERNAL_TIMER + at);
        assert_eq!((timer(0), timer(4)), (1, 0x2345_6789));
        let parts: Vec<_> = [(0x100f, 1), (0x100f, 2), (0x1013, 1), (0x1014, 4), (0, 0x1011), (0x1010, 0)]
            .iter()
            .map(|(offset, len)| InitSegment::reads_counter(*offset, *len))
            .collect();
        assert_eq!(parts, [false, true, true, false, true, false]);
        let mut beyond = [0; 8];
        segment.read(0, 0x200c, &mut beyond);
        assert_eq!(beyond, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }
}
