// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pieces that a machine is put together from: the KVM machine and its vCPUs, which a reset replaces, and devices, which stay.

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::error::VmmError;
use super::irq::{Interrupts, IoEvents};
use super::memory::{self, Memory};
use super::placement::{Placement, place};
use super::vm::{Kernel, VmConfig};
use super::{MAX_CPUS, MAX_PERSISTENT, acpi, boot, cpuid, layout};
use dma::GuestRam;
use pci::{PciBus, Plug, Socket};

/// What is in guest memory when the first vCPU starts, and how many vCPUs there are.
pub struct Image {
    /// Kernel.
    pub kernel: Kernel,
    /// Initramfs, if any.
    pub initramfs: Option<File>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs.
    pub cpus: u8,
    /// What KVM supports, for each vCPU's CPUID.
    pub cpuid: CpuId,
    /// 64-bit PCI window: base and size.
    pub window_64: (u64, u64),
}

impl Image {
    /// Fills guest memory and makes the vCPUs, the first of them at the kernel's entry point.
    pub fn load(&self, vm: &VmFd, memory: &Memory, vmlinux: &[u8]) -> Result<Vec<VcpuFd>, VmmError> {
        // A kernel file may have changed since the machine was prepared: this is also what a restart runs.
        let ram = &memory.all;
        let Placement { initramfs } =
            place(&self.kernel.path, vmlinux, self.initramfs.as_ref(), &self.cmdline, memory.into())?;
        let entry = boot::load_kernel(ram, &self.kernel.path, vmlinux)?;
        if let (Some(file), Some(place)) = (&self.initramfs, initramfs) {
            boot::load_initramfs(ram, file, place)?;
        }
        let rsdp = acpi::write_tables(ram, self.cpus, self.window_64)?;
        boot::write_boot_params(memory, &self.cmdline, initramfs, rsdp)?;
        (0..self.cpus).map(|id| self.vcpu(vm, ram, id, entry)).collect()
    }

    fn vcpu(&self, vm: &VmFd, ram: &GuestRam, id: u8, entry: u64) -> Result<VcpuFd, VmmError> {
        let vcpu = vm.create_vcpu(u64::from(id)).map_err(VmmError::kvm("creating a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&self.cpuid, id, self.cpus)?).map_err(VmmError::kvm("setting CPUID"))?;
        cpuid::set_boot_msrs(&vcpu)?;
        if id == 0 {
            // The others wait for the boot processor's start-up IPI, which KVM handles.
            boot::set_boot_registers(&vcpu, ram, entry)?;
        }
        Ok(vcpu)
    }
}

/// Refuses what the machine does not model.
pub fn check(config: &VmConfig) -> Result<(), VmmError> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(VmmError::Cpus(config.cpus));
    }
    if !(64 << 20..=64 << 30).contains(&config.memory) {
        return Err(VmmError::MemorySize(config.memory));
    }
    if config.persistent.len() > MAX_PERSISTENT {
        return Err(VmmError::Persistent(config.persistent.len()));
    }
    Ok(())
}

/// /dev/kvm.
pub fn open_kvm() -> Result<Kvm, VmmError> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmmError::NoKvm,
        libc::EACCES | libc::EPERM => VmmError::KvmDenied,
        _ => VmmError::Kvm { doing: "opening /dev/kvm", source: error },
    })
}

/// A KVM machine with interrupt controllers and all of a guest's memory, without vCPUs.
pub fn create_vm(kvm: &Kvm, ram: &GuestRam) -> Result<Arc<VmFd>, VmmError> {
    let vm = kvm.create_vm().map_err(VmmError::kvm("creating the VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(VmmError::kvm("placing the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(VmmError::kvm("placing the task state segment"))?;
    vm.create_irq_chip().map_err(VmmError::kvm("creating the interrupt controllers"))?;
    memory::register(&vm, ram)?;
    Ok(Arc::new(vm))
}

/// Puts a device into the next slot.
pub fn plug(
    device: Box<dyn Plug>,
    pci: &PciBus,
    ram: &Arc<GuestRam>,
    interrupts: &Arc<Interrupts>,
    doorbells: &Arc<IoEvents>,
    vcpus: u8,
) -> Result<(), VmmError> {
    let router = interrupts.function(device.vectors()).map_err(VmmError::host("making interrupts for a device"))?;
    // On a full bus there is no slot, and adding the function fails.
    let requester = pci.next_slot().map_or(0, PciBus::requester);
    let socket = Socket { requester, ram: ram.clone(), router, doorbells: doorbells.clone(), vcpus: vcpus.into() };
    pci.add(device.plug(socket)?).map_err(VmmError::Pci)?;
    Ok(())
}
