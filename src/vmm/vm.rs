// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine: put together from its configuration, started, paused, stopped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;

use super::assemble::{Image, check, create_vm, open_kvm, plug};
use super::console::{LineSender, PanicWatcher};
use super::error::VmmError;
use super::irq::{Host, Interrupts, IoEvents};
use super::memory::{self, Memory, Persistent};
use super::outcome::{Ending, Outcome};
use super::placement::{Room, place};
use super::platform::Platform;
use super::serial::{Output, Uart};
use super::vcpu::Vcpus;
use super::{boot, cpuid, layout, sys};
use pci::{PciBus, Plug};
use vm_memory::{Bytes, GuestAddress};

/// Lines of the agent channel that may wait for a reader.
const AGENT_LINES: usize = 4096;

/// Where the kernel comes from. It is read again at each reset, so that no copy has to be kept meanwhile.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The file, for messages.
    pub path: PathBuf,
    /// Gives the ELF image in that file, or one sentence about what is wrong.
    pub read: fn(&Path) -> Result<Vec<u8>, String>,
}

/// What a machine is made of.
pub struct VmConfig {
    /// Kernel.
    pub kernel: Kernel,
    /// Initramfs, if any.
    pub initramfs: Option<File>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// RAM in bytes, 64 MiB to 64 GiB, rounded down to whole MiB.
    pub memory: u64,
    /// Persistent memory, at most [`MAX_PERSISTENT`](super::MAX_PERSISTENT) ranges.
    pub persistent: Vec<Persistent>,
    /// Devices, in the order of their PCI slots.
    pub devices: Vec<Box<dyn Plug>>,
    /// Where ttyS0 goes.
    pub console: Output,
}

/// A running machine. Dropping it stops it.
pub struct Vm {
    vcpus: Vcpus,
    platform: Arc<Platform>,
    agent: Option<Receiver<Vec<u8>>>,
    started: Instant,
    image: Image,
    interrupts: Arc<Interrupts>,
    // Order matters on drop: memory outlives the machine that maps it.
    vm: Arc<VmFd>,
    memory: Memory,
}

/// A machine whose kernel, sizes and places are known to be good, before any KVM is asked for.
pub struct Prepared {
    config: VmConfig,
    vmlinux: Vec<u8>,
    memory: Memory,
}

impl Prepared {
    /// Finds out everything that can be wrong with `config` itself.
    ///
    /// # Errors
    /// What cannot be had, as one sentence.
    pub fn new(mut config: VmConfig) -> Result<Self, VmmError> {
        check(&config)?;
        let vmlinux = boot::read_kernel(&config.kernel)?;
        let memory = config.memory & !0xf_ffff;
        let room = Room { ram: memory, persistent: config.persistent.iter().map(|range| range.size).sum() };
        place(&config.kernel.path, &vmlinux, config.initramfs.as_ref(), &config.cmdline, room)?;
        let memory = memory::allocate(memory, std::mem::take(&mut config.persistent))?;
        Ok(Self { config, vmlinux, memory })
    }

    /// Gives up the machine. Its devices stay as they are, a disk open and locked.
    pub fn into_devices(self) -> Vec<Box<dyn Plug>> {
        self.config.devices
    }
}

impl Vm {
    /// Builds the machine and starts its vCPUs.
    pub fn boot(config: VmConfig) -> Result<Self, VmmError> {
        Self::start(Prepared::new(config)?)
    }

    /// Builds a machine that is prepared and starts its vCPUs.
    pub fn start(Prepared { config, vmlinux, memory }: Prepared) -> Result<Self, VmmError> {
        let kvm = open_kvm()?;
        let vm = create_vm(&kvm, &memory.all)?;
        let cpuid = cpuid::supported(&kvm)?;
        let window_64 = layout::pci_window_64(cpuid::physical_bits(&cpuid));
        if memory.end() > window_64.0 {
            return Err(VmmError::NoRoom { end: memory.end(), room: window_64.0 });
        }

        let doing = VmmError::host;
        let host = Host::new(vm.clone());
        let ending = Arc::new(Ending::new().map_err(doing("making an eventfd"))?);
        let interrupts = Interrupts::new(host.clone()).map_err(doing("routing interrupts"))?;
        let (agent_sender, agent) = sync_channel(AGENT_LINES);
        let console = Box::new(PanicWatcher::new(config.console, ending.clone()));
        let uart = |(_, gsi), output: Output| {
            let line = interrupts.line(gsi).map_err(doing("wiring a UART"))?;
            Ok::<_, VmmError>(Uart::new(line, output))
        };
        let doorbells = Arc::new(IoEvents::new(host));
        let pci = Arc::new(PciBus::new(doorbells.clone(), range(layout::PCI_WINDOW_32), range(window_64)));
        let platform = Arc::new(Platform {
            com1: uart(layout::COM1, console)?,
            com2: uart(layout::COM2, Box::new(LineSender::new(agent_sender)))?,
            pci: pci.clone(),
            ending,
        });
        let VmConfig { kernel, initramfs, cmdline, cpus, devices, .. } = config;
        devices.into_iter().try_for_each(|device| plug(device, &pci, &memory.all, &interrupts, &doorbells, cpus))?;

        let image = Image { kernel, initramfs, cmdline, cpus, cpuid, window_64 };
        let vcpus = image.load(&vm, &memory, &vmlinux)?;
        drop(vmlinux);
        sys::give_back_heap();
        let started = Instant::now();
        let vcpus = Vcpus::start(vcpus, &platform).map_err(doing("starting a vCPU thread"))?;
        Ok(Self { vcpus, platform, agent: Some(agent), started, image, interrupts, vm, memory })
    }

    /// What a reset button does: every device is reset and keeps its place, RAM is zeroed, the kernel starts anew. For a guest
    /// that has ended by asking for a reset. An error leaves a machine that can only be stopped.
    pub fn restart(&mut self) -> Result<(), VmmError> {
        let vmlinux = boot::read_kernel(&self.image.kernel)?;
        self.vcpus.stop();
        self.platform.reset();
        self.memory.clear()?;
        // KVM gives no way to reset vCPUs and interrupt controllers as a whole, and a new machine is cheap.
        self.vm = create_vm(&open_kvm()?, &self.memory.all)?;
        self.interrupts.move_to(self.vm.clone()).map_err(VmmError::host("routing interrupts anew"))?;
        let vcpus = self.image.load(&self.vm, &self.memory, &vmlinux)?;
        drop(vmlinux);
        sys::give_back_heap();
        self.platform.ending.begin_again();
        self.vcpus = Vcpus::start(vcpus, &self.platform).map_err(VmmError::host("starting a vCPU thread"))?;
        Ok(())
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

    /// Where its vCPUs are, in words: the machine stops for the moment that the question takes.
    pub fn whereabouts(&self) -> Vec<String> {
        self.vcpus.places()
    }

    /// Writes `bytes` into guest memory behind the guest's back, as no device does: for plants, which break a guest on purpose. False: not
    /// all of them lie in memory.
    pub fn plant(&self, gpa: u64, bytes: &[u8]) -> bool {
        self.memory.all.write_slice(bytes, GuestAddress(gpa)).is_ok()
    }

    /// Stops all vCPUs where they are.
    pub fn pause(&self) {
        self.vcpus.pause();
    }

    /// The same for a guest that lives, within `limit`.
    ///
    /// # Errors
    /// The guest has just ended, or a vCPU does not come to stand: the machine goes on.
    pub fn pause_within(&self, limit: Duration) -> Result<(), &'static str> {
        // A vCPU that has ended its guest's life stands, too, and is not to be let go by a resume.
        let over = || self.outcome().is_some();
        if over() {
            return Err("the guest has just ended");
        }
        if !self.vcpus.pause_within(limit) {
            return Err("a vCPU does not come to stand: it waits in an exit of ours, as for output that nobody reads");
        }
        if over() {
            self.vcpus.resume();
            return Err("the guest has just ended");
        }
        Ok(())
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.vcpus.resume();
    }

    /// Ends the machine: the vCPUs first, then every hold and worker of the devices, then the acknowledged data is synced, and persistent memory.
    pub fn stop(&mut self, outcome: Outcome) -> Outcome {
        self.platform.ending.set(outcome);
        self.vcpus.stop();
        self.platform.pci.reset();
        self.memory.sync();
        self.platform.ending.get().unwrap_or(Outcome::Stopped)
    }

    /// The guest's life ends as `outcome`, if it has not ended; whoever stays with the machine then stops it.
    pub(super) fn end(&self, outcome: Outcome) {
        self.platform.ending.set(outcome);
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
        self.0.com1.input(bytes)
    }

    /// Bytes for ttyS1, the agent channel; returns how many were taken.
    pub fn agent(&self, bytes: &[u8]) -> usize {
        self.0.com2.input(bytes)
    }

    /// Whether the guest's life has ended.
    pub fn over(&self) -> bool {
        self.0.ending.get().is_some()
    }
}

fn range((base, size): (u64, u64)) -> std::ops::Range<u64> {
    base..base + size
}
