// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pieces that a machine is put together from: the KVM machine and its vCPUs, which a reset replaces, and devices, which stay.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::error::VmmError;
use super::irq::{Interrupts, IoEvents};
use super::vm::VmConfig;
use super::{MAX_CPUS, acpi, boot, cpuid, layout, memory};
use blk::{BlockDevice, DiskConfig, DiskHandle};
use dma::GuestRam;
use mlx5::{Nic, NicConfig, NicHandle};
use pci::PciBus;
use probe::ledger::Ledger;
use virtio::VirtioPci;

/// What is in guest memory when the first vCPU starts, and how many vCPUs there are.
pub struct Image {
    /// Kernel: ELF vmlinux or bzImage.
    pub kernel: PathBuf,
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
    pub fn load(&self, vm: &VmFd, ram: &GuestRam, vmlinux: &[u8]) -> Result<Vec<VcpuFd>, VmmError> {
        let entry = boot::load_kernel(ram, &self.kernel, vmlinux)?;
        let initramfs = self.initramfs.as_ref().map(|file| boot::load_initramfs(ram, file)).transpose()?;
        let rsdp = acpi::write_tables(ram, self.cpus, self.window_64)?;
        boot::write_boot_params(ram, &self.cmdline, initramfs, rsdp)?;
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

/// A KVM machine with interrupt controllers and all of `ram`, without vCPUs.
pub fn create_vm(kvm: &Kvm, ram: &GuestRam) -> Result<Arc<VmFd>, VmmError> {
    let vm = kvm.create_vm().map_err(VmmError::kvm("creating the VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(VmmError::kvm("placing the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(VmmError::kvm("placing the task state segment"))?;
    vm.create_irq_chip().map_err(VmmError::kvm("creating the interrupt controllers"))?;
    memory::register(&vm, ram)?;
    Ok(Arc::new(vm))
}

/// Opens and locks the disks.
pub fn open_disks(configs: Vec<DiskConfig>, ledger: &Arc<Ledger>) -> Result<Vec<(BlockDevice, DiskHandle)>, VmmError> {
    let open = |(index, config)| BlockDevice::open(index as u8, config, ledger.clone());
    Ok(configs.into_iter().enumerate().map(open).collect::<Result<_, _>>()?)
}

/// What a function needs to be plugged in.
pub struct Socket<'a> {
    /// Where it goes.
    pub pci: &'a PciBus,
    /// What it may reach.
    pub ram: &'a Arc<GuestRam>,
    /// Who is told.
    pub ledger: &'a Arc<Ledger>,
    /// How it interrupts.
    pub interrupts: &'a Arc<Interrupts>,
}

impl Socket<'_> {
    /// The requester id that the next function will have. On a full bus there is none, and adding the function fails.
    fn requester(&self) -> u16 {
        self.pci.next_slot().map_or(0, PciBus::requester)
    }

    /// A disk in the next slot.
    pub fn plug_disk(&self, (device, handle): (BlockDevice, DiskHandle)) -> Result<DiskHandle, VmmError> {
        let vectors = VirtioPci::vectors(&device);
        let router = self.interrupts.function(vectors).map_err(VmmError::host("making interrupts for a disk"))?;
        let function = VirtioPci::new(Box::new(device), self.requester(), self.ram.clone(), router)?;
        self.pci.add(Arc::new(Mutex::new(function))).map_err(VmmError::Pci)?;
        Ok(handle)
    }

    /// The NIC in the next slot.
    pub fn plug_nic(&self, config: NicConfig, doorbells: Arc<IoEvents>) -> Result<NicHandle, VmmError> {
        let vectors = Nic::vectors(&config);
        let router = self.interrupts.function(vectors).map_err(VmmError::host("making interrupts for the NIC"))?;
        let (ram, ledger) = (self.ram.clone(), self.ledger.clone());
        let (function, handle) = Nic::new(0, config, self.requester(), ram, ledger, router, doorbells)?;
        self.pci.add(Arc::new(Mutex::new(function))).map_err(VmmError::Pci)?;
        Ok(handle)
    }
}
