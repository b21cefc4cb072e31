// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: put together from its configuration, started, paused, stopped.

use std::fs::File;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::GuestMemoryBackend;

use super::console::{LineSender, PanicWatcher};
use super::error::VmmError;
use super::irq::{Interrupts, IoEvents};
use super::outcome::{Ending, Outcome};
use super::platform::{Platform, lock};
use super::serial::{Output, Uart};
use super::vcpu::Vcpus;
use super::{MAX_CPUS, acpi, boot, cpuid, layout, memory, sys};
use crate::block::transport::VirtioPci;
use crate::block::{BlockDevice, DiskConfig, DiskHandle};
use crate::dma::GuestRam;
use crate::dma::ledger::Ledger;
use crate::pci::PciBus;

/// Lines of the agent channel that may wait for a reader.
const AGENT_LINES: usize = 4096;

/// What a machine is made of.
pub struct VmConfig {
    /// Kernel: ELF vmlinux or bzImage.
    pub kernel: PathBuf,
    /// Initramfs, if any.
    pub initramfs: Option<File>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// RAM in bytes, 64 MiB to 64 GiB, rounded down to whole MiB.
    pub memory: u64,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskConfig>,
    /// Where ttyS0 goes.
    pub console: Output,
}

/// A running machine. Dropping it stops it.
pub struct Vm {
    vcpus: Vcpus,
    platform: Arc<Platform>,
    disks: Vec<DiskHandle>,
    ledger: Arc<Ledger>,
    agent: Option<Receiver<Vec<u8>>>,
    started: Instant,
    // Order matters on drop: memory outlives the machine that maps it.
    _vm: Arc<VmFd>,
    _ram: Arc<GuestRam>,
}

impl Vm {
    /// Builds the machine and starts its vCPUs.
    pub fn boot(config: VmConfig) -> Result<Self, VmmError> {
        check(&config)?;
        // Everything that can be wrong with files is found out before memory is taken, and on machines without KVM too.
        let opened = open_disks(config.disks)?;
        let vmlinux = boot::read_kernel(&config.kernel)?;
        let ram = memory::allocate(config.memory & !0xf_ffff)?;
        let kvm = open_kvm()?;
        let vm = create_vm(&kvm, &ram)?;
        let base = cpuid::supported(&kvm)?;
        let window_64 = layout::pci_window_64(cpuid::physical_bits(&base));

        let host = VmmError::host;
        let ending = Arc::new(Ending::new().map_err(host("making an eventfd"))?);
        let interrupts = Interrupts::new(vm.clone()).map_err(host("routing interrupts"))?;
        let (agent_sender, agent) = sync_channel(AGENT_LINES);
        let console = Box::new(PanicWatcher::new(config.console, ending.clone()));
        let uart = |(_, gsi), output: Output| {
            let line = interrupts.line(gsi).map_err(host("wiring a UART"))?;
            Ok::<_, VmmError>(Mutex::new(Uart::new(line, output)))
        };
        let pci = Arc::new(PciBus::new(Arc::new(IoEvents(vm.clone())), range(layout::PCI_WINDOW_32), range(window_64)));
        let platform = Arc::new(Platform {
            com1: uart(layout::COM1, console)?,
            com2: uart(layout::COM2, Box::new(LineSender::new(agent_sender)))?,
            pci: pci.clone(),
            ending,
        });
        let ledger = Ledger::new(ram.last_addr().0 + 1);
        let disks = plug_disks(opened, &pci, &ram, &ledger, &interrupts)?;

        let entry = boot::load_kernel(&ram, &config.kernel, &vmlinux)?;
        drop(vmlinux);
        let initramfs = config.initramfs.as_ref().map(|file| boot::load_initramfs(&ram, file)).transpose()?;
        let rsdp = acpi::write_tables(&ram, config.cpus, window_64)?;
        boot::write_boot_params(&ram, &config.cmdline, initramfs, rsdp)?;
        let vcpus = make_vcpus(&vm, &base, config.cpus, &ram, entry)?;
        sys::give_back_heap();
        let started = Instant::now();
        let vcpus = Vcpus::start(vcpus, &platform).map_err(host("starting a vCPU thread"))?;
        Ok(Self { vcpus, platform, disks, ledger, agent: Some(agent), started, _vm: vm, _ram: ram })
    }

    /// The disks, in the order of the configuration.
    pub fn disks(&self) -> &[DiskHandle] {
        &self.disks
    }

    /// The ledger of all devices.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Lines that the guest writes to ttyS1; yours once.
    pub fn take_agent_lines(&mut self) -> Option<Receiver<Vec<u8>>> {
        self.agent.take()
    }

    /// A way to write to the guest's UARTs from any thread.
    pub fn input(&self) -> Input {
        Input(self.platform.clone())
    }

    /// When the first vCPU began to run.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// How the guest ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.platform.ending.get()
    }

    /// Whether the guest kernel panicked; it may still be printing.
    pub fn has_panicked(&self) -> bool {
        self.platform.ending.has_panicked()
    }

    /// Waits for the guest's end for at most `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.platform.ending.wait_until(Instant::now() + limit)
    }

    /// Stops all vCPUs where they are.
    pub fn pause(&self) {
        self.vcpus.pause();
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.vcpus.resume();
    }

    /// Ends the machine: the vCPUs first, then every hold and worker of the devices, then the acknowledged data is synced.
    pub fn stop(&mut self, outcome: Outcome) -> Outcome {
        self.platform.ending.set(outcome);
        self.vcpus.stop();
        self.platform.pci.reset();
        self.platform.ending.get().unwrap_or(Outcome::Stopped)
    }

    pub(super) fn ending(&self) -> &Arc<Ending> {
        &self.platform.ending
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop(Outcome::Stopped);
    }
}

/// The guest's UART inputs.
#[derive(Clone)]
pub struct Input(Arc<Platform>);

impl Input {
    /// Bytes for ttyS0; returns how many were taken.
    pub fn console(&self, bytes: &[u8]) -> usize {
        lock(&self.0.com1).input(bytes)
    }

    /// Bytes for ttyS1, the agent channel; returns how many were taken.
    pub fn agent(&self, bytes: &[u8]) -> usize {
        lock(&self.0.com2).input(bytes)
    }

    /// Whether the guest's life has ended.
    pub fn over(&self) -> bool {
        self.0.ending.get().is_some()
    }
}

fn range((base, size): (u64, u64)) -> std::ops::Range<u64> {
    base..base + size
}

fn check(config: &VmConfig) -> Result<(), VmmError> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(VmmError::Cpus(config.cpus));
    }
    if !(64 << 20..=64 << 30).contains(&config.memory) {
        return Err(VmmError::MemorySize(config.memory));
    }
    Ok(())
}

pub(super) fn open_kvm() -> Result<Kvm, VmmError> {
    Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmmError::NoKvm,
        libc::EACCES | libc::EPERM => VmmError::KvmDenied,
        _ => VmmError::Kvm { doing: "opening /dev/kvm", source: error },
    })
}

fn create_vm(kvm: &Kvm, ram: &GuestRam) -> Result<Arc<VmFd>, VmmError> {
    let vm = kvm.create_vm().map_err(VmmError::kvm("creating the VM"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(VmmError::kvm("placing the identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(VmmError::kvm("placing the task state segment"))?;
    vm.create_irq_chip().map_err(VmmError::kvm("creating the interrupt controllers"))?;
    memory::register(&vm, ram)?;
    Ok(Arc::new(vm))
}

fn open_disks(configs: Vec<DiskConfig>) -> Result<Vec<(BlockDevice, DiskHandle)>, VmmError> {
    let open = |(index, config)| BlockDevice::open(index as u8, config);
    Ok(configs.into_iter().enumerate().map(open).collect::<Result<_, _>>()?)
}

fn plug_disks(
    opened: Vec<(BlockDevice, DiskHandle)>,
    pci: &PciBus,
    ram: &Arc<GuestRam>,
    ledger: &Arc<Ledger>,
    interrupts: &Arc<Interrupts>,
) -> Result<Vec<DiskHandle>, VmmError> {
    let mut handles = Vec::new();
    for (device, handle) in opened {
        let requester = pci.next_slot().map_or(0, PciBus::requester);
        let vectors = VirtioPci::vectors(&device);
        let router = interrupts.function(vectors).map_err(VmmError::host("making interrupts for a disk"))?;
        let function = VirtioPci::new(Box::new(device), requester, ram.clone(), ledger.clone(), router)?;
        pci.add(Arc::new(Mutex::new(function))).map_err(VmmError::Pci)?;
        handles.push(handle);
    }
    Ok(handles)
}

fn make_vcpus(
    vm: &VmFd,
    base: &kvm_bindings::CpuId,
    count: u8,
    ram: &GuestRam,
    entry: u64,
) -> Result<Vec<kvm_ioctls::VcpuFd>, VmmError> {
    let mut vcpus = Vec::new();
    for id in 0..count {
        let vcpu = vm.create_vcpu(u64::from(id)).map_err(VmmError::kvm("creating a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(base, id, count)?).map_err(VmmError::kvm("setting CPUID"))?;
        cpuid::set_boot_msrs(&vcpu)?;
        if id == 0 {
            // The others wait for the boot processor's start-up IPI, which KVM handles.
            boot::set_boot_registers(&vcpu, ram, entry)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
