// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine with our devices: disks and NICs that share one ledger, and persistent memory. `rnic run` and the lab's guests are made of it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use blk::{BlockDevice, DiskConfig, DiskHandle};
use image::vmlinux;
use inject::{Plan, Summary};
use mlx5::fabric::LocalFabric;
use mlx5::{NicConfig, NicHandle, NicPlug, PluggedNic};
use pci::Plug;
use pmem::{Medium, PmemConfig, PmemHandle};
use probe::ledger::Ledger;
use virtio::VirtioPlug;
use vmm::{Kernel, Persistent, VmConfig, VmmError};

/// What a machine is made of. See [`VmConfig`] for what is not said here.
pub struct MachineConfig {
    /// Kernel: ELF vmlinux or bzImage.
    pub kernel: PathBuf,
    /// Initramfs, if any.
    pub initramfs: Option<File>,
    /// Kernel command line.
    pub cmdline: String,
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// RAM in bytes.
    pub memory: u64,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskConfig>,
    /// Persistent memory, in the order of the guest's /dev/pmem0 and so on.
    pub pmems: Vec<PmemConfig>,
    /// NICs, in the slots after the disks.
    pub nics: Vec<NicConfig>,
    /// Where ttyS0 goes.
    pub console: Box<dyn std::io::Write + Send>,
    /// Injections that the devices have from the first on, and what is drawn by.
    pub injections: Option<(Plan, u64)>,
}

/// The devices of a machine, as the lab holds them.
pub struct Devices {
    /// Disks, in the order of the configuration.
    pub disks: Vec<DiskHandle>,
    /// Persistent memory, in the order of the configuration.
    pub pmems: Vec<PmemHandle>,
    /// What all of them did, in one order.
    pub ledger: Arc<Ledger>,
    nics: Vec<PluggedNic>,
}

impl Devices {
    /// NIC number `index`, once the machine has been made.
    pub fn nic(&self, index: usize) -> Option<&NicHandle> {
        self.nics.get(index)?.get()
    }

    /// What has become of a plan's injections.
    pub fn injected(&self, plan: &Plan) -> Summary {
        let mut summary = Summary::new(plan);
        self.disks.iter().for_each(|disk| summary.add(disk.injections()));
        self.nics.iter().filter_map(|nic| nic.get()).for_each(|nic| summary.add(nic.injections()));
        summary
    }
}

impl MachineConfig {
    /// Opens the disks and persistent memory, and gives what the machine is booted from.
    ///
    /// # Errors
    /// A disk, or a file of persistent memory, that is missing, damaged or in use; a plan of injections that names a device that is not there.
    pub fn open(self) -> Result<(VmConfig, Devices), VmmError> {
        let ledger = Ledger::new();
        if let Some((plan, _)) = &self.injections {
            plan.fits(self.nics.len(), self.disks.len()).map_err(|error| VmmError::Device(error.into()))?;
        }
        let mut devices: Vec<Box<dyn Plug>> = Vec::new();
        let (mut disks, mut nics) = (Vec::new(), Vec::new());
        for (index, config) in (0..).zip(self.disks) {
            let (device, handle) =
                BlockDevice::open(index, config, ledger.clone()).map_err(|error| VmmError::Device(error.into()))?;
            let rules = self.injections.as_ref().map(|(plan, seed)| plan.disk_rules(index, *seed));
            for rule in rules.into_iter().flatten() {
                handle.injections().add(rule);
            }
            devices.push(Box::new(VirtioPlug(Box::new(device))));
            disks.push(handle);
        }
        let (mut persistent, mut pmems) = (Vec::new(), Vec::new());
        for config in &self.pmems {
            let medium = Medium::open(config).map_err(|error| VmmError::Device(error.into()))?;
            pmems.push(medium.handle().map_err(|error| VmmError::Device(error.into()))?);
            let Medium { file, size, lasting, place } = medium;
            persistent.push(Persistent { file, size, lasting, place });
        }
        let fabric = Arc::<LocalFabric>::default();
        for (index, config) in (0..).zip(self.nics) {
            let rules = self.injections.as_ref().map(|(plan, seed)| plan.nic_rules(index, *seed));
            let plug = NicPlug::new(index, config, ledger.clone(), fabric.clone()).injecting(rules.unwrap_or_default());
            nics.push(plug.plugged());
            devices.push(Box::new(plug));
        }
        let config = VmConfig {
            kernel: Kernel { path: self.kernel, read: vmlinux::read },
            initramfs: self.initramfs,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory: self.memory,
            persistent,
            devices,
            console: self.console,
        };
        Ok((config, Devices { disks, pmems, ledger, nics }))
    }
}
