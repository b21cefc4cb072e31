// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CPUID and MSRs of a vCPU: what KVM supports, minus what this machine does not model, plus a flat topology
//! (one package, one thread a core) that is the same on AMD and Intel.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::VmmError;

const ECX_VMX: u32 = 1 << 5;
const ECX_MONITOR: u32 = 1 << 3;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_SVM: u32 = 1 << 2;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_TOPOEXT: u32 = 1 << 22;

/// KVM's own feature leaf (Documentation/virt/kvm/x86/cpuid).
const KVM_FEATURES: u32 = 0x4000_0001;
/// Of the paravirtual features only the clock is offered (both versions, and its "stable" bit). Asynchronous page faults, steal time,
/// paravirtual spinlocks, IPIs and TLB flushes would make a guest's schedule depend on the host's, and this machine is for
/// looking at stock code paths.
const PARAVIRT_KEPT: u32 = 1 | 1 << 3 | 1 << 24;

/// What every vCPU of this machine starts from.
pub fn supported(kvm: &Kvm) -> Result<CpuId, VmmError> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmmError::kvm("reading CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                // Nested virtualisation and MONITOR are not offered: no guest of ours needs them, and a guest that
                // finds them spends time on them.
                entry.ecx &= !(ECX_VMX | ECX_MONITOR);
                entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC;
                entry.ecx = if deadline { entry.ecx | ECX_TSC_DEADLINE } else { entry.ecx & !ECX_TSC_DEADLINE };
            }
            KVM_FEATURES => entry.eax &= PARAVIRT_KEPT,
            // No performance counters: KVM's are not there under emulation and Linux then warns.
            0xa | 0x8000_0022 => clear(entry),
            0x8000_0001 => entry.ecx &= !AMD_ECX_SVM,
            0x8000_000a => clear(entry),
            _ => {}
        }
    }
    drop_orphans(cpuid.as_mut_slice());
    Ok(cpuid)
}

/// Features that build on AVX: (function, bit of ECX). Some hosts offer them without it, and Linux complains.
const AVX_CHILDREN: [(u32, u32); 4] = [(1, 12), (1, 29), (7, 9), (7, 10)];

fn drop_orphans(entries: &mut [kvm_cpuid_entry2]) {
    let avx = entries.iter().any(|entry| entry.function == 1 && entry.ecx >> 28 & 1 == 1);
    for (function, bit) in AVX_CHILDREN {
        let children = entries.iter_mut().filter(|entry| !avx && (entry.function, entry.index) == (function, 0));
        children.for_each(|entry| entry.ecx &= !(1 << bit));
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

/// Physical address bits of the CPU (CPUID 0x80000008), 36 where it does not say.
pub fn physical_bits(cpuid: &CpuId) -> u8 {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| (entry.eax & 0xff) as u8)
}

/// Specialises `base` for vCPU `id` of `count`.
pub fn for_vcpu(base: &CpuId, id: u8, count: u8) -> Result<CpuId, VmmError> {
    // "Auth", the first word of AMD's vendor name.
    let amd = base.as_slice().iter().any(|entry| entry.function == 0 && entry.ebx == 0x6874_7541);
    let topology = Topology { id: u32::from(id), count: u32::from(count), amd };
    let entries: Vec<_> = base.as_slice().iter().map(|entry| topology.apply(*entry)).collect();
    CpuId::from_entries(&entries).map_err(|_| VmmError::TooManyCpuidLeaves)
}

struct Topology {
    id: u32,
    count: u32,
    amd: bool,
}

impl Topology {
    /// Bits of an APIC id that number cores inside the one package.
    fn core_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    fn apply(&self, mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (self.id << 24) | (self.count << 16);
                entry.edx = if self.count > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
            }
            // Intel cache leaves: caches shared by one logical processor, `count` cores in the package.
            4 if entry.eax != 0 => entry.eax = (entry.eax & 0x3fff) | ((self.count - 1) << 26),
            0xb | 0x1f => self.extended_topology(&mut entry),
            0x8000_0001 => {
                entry.ecx &= !AMD_ECX_TOPOEXT;
                if self.amd && self.count > 1 {
                    // Several cores, not several threads of one (APM 3, E.4.2).
                    entry.ecx |= AMD_ECX_CMP_LEGACY;
                }
            }
            0x8000_0008 => entry.ecx = (self.core_bits() << 12) | (self.count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id, 0),
            _ => {}
        }
        entry
    }

    fn extended_topology(&self, entry: &mut kvm_cpuid_entry2) {
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        entry.edx = self.id;
        (entry.eax, entry.ebx, entry.ecx) = match entry.index {
            0 => (0, 1, SMT),
            1 => (self.core_bits(), self.count, CORE | 1),
            index => (0, 0, index & 0xff),
        };
    }
}

const MSR_IA32_TSC: u32 = 0x10;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// MSRs as a firmware would leave them.
pub fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), VmmError> {
    let values = [
        (MSR_IA32_TSC, 0),
        (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ];
    let entries = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| VmmError::TooManyCpuidLeaves)?;
    vcpu.set_msrs(&msrs).map_err(VmmError::kvm("setting MSRs"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_is_flat_and_distinct() {
        let leaf = |function, index| kvm_cpuid_entry2 { function, index, eax: 1, ..Default::default() };
        let base = CpuId::from_entries(&[leaf(1, 0), leaf(0xb, 0), leaf(0xb, 1), leaf(0x8000_001e, 0)]).unwrap();
        for id in 0..3 {
            let cpuid = for_vcpu(&base, id, 3).unwrap();
            let entries = cpuid.as_slice();
            assert_eq!(entries[0].ebx >> 24, u32::from(id));
            assert_eq!(entries[1].edx, u32::from(id));
            assert_eq!((entries[2].eax, entries[2].ebx), (2, 3));
            assert_eq!(entries[3].eax, u32::from(id));
        }
    }
}
