// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! rnic: a minimal KVM VMM and a lab that puts device DMA against filesystem writeback on unmodified guest kernels.
//!
//! The rooms, lowest first. Imports go down this list, never up.
//!
//! * [`dma`]: the one door to guest memory for every device ([`dma::DmaTarget`]), and the ledger, which knows what each
//!   device did to which guest page, in one order with everything else that happened.
//! * [`fault`]: rules that make a device misbehave on purpose, for negative controls.
//! * [`pci`]: configuration space, BARs, MSI-X and the bus. Knows nothing of KVM.
//! * [`block`]: virtio-blk over virtio-pci, with levers that hold a request open and images of a power cut.
//! * [`image`]: named kernels and root file systems, and the initramfs that carries the agent.
//! * [`mlx5`]: the NIC: command queue, objects, memory keys, data path, page faults. Knows nothing of KVM.
//! * [`vmm`]: KVM. Memory, boot, vCPUs, interrupts, ACPI, serial ports.
//! * [`lab`]: scenarios, oracles, verdicts, reports.

pub mod block;
pub mod dma;
pub mod fault;
pub mod image;
pub mod lab;
pub mod mlx5;
pub mod pci;
pub mod vmm;
