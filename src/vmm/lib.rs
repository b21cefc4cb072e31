// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtual machine monitor: KVM, and the small machine around it.
//!
//! [`Vm::boot`] puts a [`VmConfig`] together and starts it; [`run`] is the front end of `rnic run`, with a terminal and signals;
//! the lab uses [`Vm`] directly. The machine: flat topology of 1 to 8 vCPUs, hardware-reduced ACPI, one PCIe bus by ECAM and by
//! CF8/CFC, MSI-X by irqfd, doorbells by ioeventfd, two 16550 UARTs (console and agent channel), pvpanic.
//!
//! `unsafe` is confined to `memory.rs` (memory slots) and `sys.rs` (signals, terminal, heap).

mod acpi;
mod assemble;
mod boot;
mod console;
mod cpuid;
mod error;
mod irq;
pub mod layout;
mod memory;
pub mod orders;
mod outcome;
mod placement;
mod platform;
pub mod probe;
pub mod run;
mod serial;
mod sys;
mod vcpu;
mod vm;
mod whereabouts;

pub use console::{Console, Echo};
pub use error::VmmError;
pub use memory::{Persistent, available_memory};
pub use outcome::Outcome;
pub use sys::{block_ending_signals, on_ending_signal, send_signal, unblock_signals, window_size};
pub use vm::{Kernel, Prepared, Vm, VmConfig};

/// Most vCPUs a machine can have.
pub const MAX_CPUS: u8 = 8;
/// Most ranges of persistent memory that a machine can have.
pub const MAX_PERSISTENT: usize = 4;
