// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong before a guest runs, each as one sentence with the remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use pci::{PciError, PlugError};

/// A machine could not be put together.
#[derive(Debug, Error)]
pub enum VmmError {
    /// No KVM device.
    #[error("/dev/kvm does not exist on this machine; give --host emulated, which brings one")]
    NoKvm,
    /// No right to the KVM device.
    #[error("no right to open /dev/kvm; run as root or add this user to the group kvm")]
    KvmDenied,
    /// KVM refused something.
    #[error("KVM failed while {doing}: {source}")]
    Kvm {
        /// What was being done.
        doing: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// The host cannot give the memory.
    #[error("the guest wants {} MiB of memory and the host has {} MiB free; give it less with --memory size=", .wanted >> 20, .available >> 20)]
    NoMemory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes the host has.
        available: u64,
    },
    /// Guest memory could not be made or written.
    #[error("guest memory: {0}")]
    Memory(#[source] io::Error),
    /// A size outside what the machine models.
    #[error("--memory size={} MiB is out of range; use 64 MiB to 64 GiB", .0 >> 20)]
    MemorySize(u64),
    /// Too many ranges of persistent memory.
    #[error("{0} times --pmem is too often; give it at most 4 times")]
    Persistent(usize),
    /// Memory would reach into the PCI window.
    #[error("the guest's memory ends at {} GiB and this host's processors leave room up to {} GiB; give less --memory or --pmem", .end.div_ceil(1 << 30), .room >> 30)]
    NoRoom {
        /// The address behind the last byte.
        end: u64,
        /// Where the window begins.
        room: u64,
    },
    /// A vCPU count outside what the machine models.
    #[error("--cpus {0} is out of range; use 1 to 8")]
    Cpus(u8),
    /// The kernel file is not usable.
    #[error("kernel {}: {what}", .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The initramfs could not be read.
    #[error("the initramfs could not be read: {0}")]
    Initramfs(#[source] io::Error),
    /// The initramfs does not fit below the hole, however much memory the guest has.
    #[error("the initramfs has {} MiB and a guest has room for {} MiB below 3 GiB; make it smaller", .size >> 20, .room >> 20)]
    InitramfsTooLarge {
        /// Bytes of the initramfs.
        size: u64,
        /// Bytes there is room for.
        room: u64,
    },
    /// Kernel, initramfs and what the kernel needs to start do not fit together.
    #[error(
        "the guest has {} MiB of memory; a kernel that ends at {} MiB, an initramfs of {} MiB and persistent memory of {} MiB (a 64th of it) need more; give it --memory size={}M",
        .memory >> 20, .kernel_end.div_ceil(1 << 20), .initramfs.div_ceil(1 << 20), .persistent >> 20, .needed >> 20
    )]
    TooSmall {
        /// Bytes of guest memory.
        memory: u64,
        /// Bytes that are needed, whole MiB.
        needed: u64,
        /// Address of the kernel's end.
        kernel_end: u64,
        /// Bytes of the initramfs.
        initramfs: u64,
        /// Bytes of persistent memory.
        persistent: u64,
    },
    /// The command line is too long or holds a zero.
    #[error(
        "the kernel command line has {len} characters (a zero among them counts as its end); at most {max} are possible"
    )]
    Cmdline {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A device could not be made.
    #[error(transparent)]
    Device(#[from] PlugError),
    /// PCI has no more room.
    #[error("the device does not fit on the PCI bus: {0}")]
    Pci(#[source] PciError),
    /// Too many CPUID leaves for one vCPU.
    #[error("this CPU reports more CPUID leaves than KVM takes")]
    TooManyCpuidLeaves,
    /// The ACPI tables outgrew their room.
    #[error("the ACPI tables do not fit below 1 MiB")]
    AcpiTooLarge,
    /// A host resource (thread, eventfd, file) could not be had.
    #[error("{doing}: {source}")]
    Host {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl VmmError {
    /// For `map_err` on KVM calls.
    pub(super) fn kvm(doing: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| VmmError::Kvm { doing, source }
    }

    /// For `map_err` on host calls.
    pub(super) fn host(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| VmmError::Host { doing, source }
    }
}
