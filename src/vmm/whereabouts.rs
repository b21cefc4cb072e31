// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a vCPU is: what one wants to know of a guest that has fallen silent.

use std::fmt;

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_lapic_state};
use kvm_ioctls::VcpuFd;

/// Offsets of local APIC registers (Intel SDM 3A, table 11-1), each 16 bytes apart.
const IN_SERVICE: usize = 0x100;
const REQUESTED: usize = 0x200;
const TIMER: usize = 0x320;
const INTERRUPTS_ENABLED: u64 = 1 << 9;

/// A vCPU between two entries into the guest.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    rip: u64,
    rsp: u64,
    interrupts: bool,
    state: u32,
    in_service: Vec<u8>,
    requested: Vec<u8>,
    timer: u32,
}

impl Whereabouts {
    /// Reads them; `None` if KVM does not tell.
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        let regs = vcpu.get_regs().ok()?;
        let state = vcpu.get_mp_state().ok()?.mp_state;
        let lapic = vcpu.get_lapic().ok()?;
        Some(Self {
            rip: regs.rip,
            rsp: regs.rsp,
            interrupts: regs.rflags & INTERRUPTS_ENABLED != 0,
            state,
            in_service: vectors(&lapic, IN_SERVICE),
            requested: vectors(&lapic, REQUESTED),
            timer: dword(&lapic, TIMER),
        })
    }
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            KVM_MP_STATE_RUNNABLE => "running",
            KVM_MP_STATE_HALTED => "halted",
            KVM_MP_STATE_UNINITIALIZED => "never started",
            _ => "in another state",
        };
        let interrupts = if self.interrupts { "on" } else { "off" };
        write!(
            f,
            "{state} at {:#x} (stack {:#x}), interrupts {interrupts}, in service {:x?}, requested {:x?}, timer {:#x}",
            self.rip, self.rsp, self.in_service, self.requested, self.timer
        )
    }
}

fn dword(lapic: &kvm_lapic_state, offset: usize) -> u32 {
    let bytes = lapic.regs.get(offset..offset + 4).unwrap_or(&[0; 4]);
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte as u8))
}

/// Set bits of one of the 256-bit registers.
fn vectors(lapic: &kvm_lapic_state, offset: usize) -> Vec<u8> {
    let set = |vector: &u8| dword(lapic, offset + usize::from(vector / 32) * 16) >> (vector % 32) & 1 == 1;
    (0..=255).filter(set).collect()
}
