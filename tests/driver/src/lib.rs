// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of the NIC in the process of its test: it finds the function on a PCI bus, maps its BAR, talks through the command queue
//! and keeps its queues in guest memory, as mlx5_core and mlx5_ib do. There is no VM, so a test takes milliseconds and runs anywhere.
//!
//! Read it as documentation of how the device is driven; the layouts are [`mlx5_spec`]'s.
//!
//! * [`machine`]: guest memory, bus, interrupts, doorbells, one NIC. [`memory`] gives out pages, [`host`] stands in for KVM.
//! * [`command`]: the command queue, polled or by events. [`eq`]: event queues and interrupts.
//! * [`driver`]: probing and unloading, and what a driver has from then on ([`Driver`]).
//! * [`cq`], [`qp`], [`srq`], [`wqe`]: the data path. [`mkey`]: memory keys, registration and UMR. [`odp`]: page faults. [`devx`]: user contexts.
//! * [`hostile`]: programs of bytes that a malicious guest might run.
//!
//! Nothing here checks what a test asks for: a hostile guest would not either. Waits are bounded and end in [`Error::Timeout`].

pub mod command;
pub mod cq;
pub mod devx;
pub mod driver;
pub mod eq;
pub mod host;
pub mod hostile;
pub mod machine;
pub mod memory;
pub mod mkey;
pub mod odp;
pub mod qp;
pub mod srq;
pub mod wqe;

use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use thiserror::Error;

pub use cq::{Cq, Cqe};
pub use driver::{Driver, ProbeOptions};
pub use machine::{Machine, MachineConfig};
pub use memory::{Buffer, Guest};
pub use mkey::{Access, MkeySpec, Mr, UmrSpec};
pub use odp::{OdpMr, PageFault};
pub use qp::{Peer, Qp, QpSpec};
pub use srq::{Srq, XrcSpec};
pub use wqe::{Sge, Wqe};

/// How long anything may take before it counts as lost. Everything that is not lost takes milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What can go wrong while driving.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// The command was carried out and refused.
    #[error("{opcode} failed with status {status:#x}, syndrome {syndrome:#x}")]
    Command {
        /// Which.
        opcode: Opcode,
        /// `spec::cmd::status`.
        status: u8,
        /// The device's own word for it.
        syndrome: u32,
    },
    /// The command's message was malformed.
    #[error("{opcode} was not delivered: status {status:#x}")]
    Delivery {
        /// Which.
        opcode: Opcode,
        /// `spec::cmd::delivery`.
        status: u8,
    },
    /// Nothing happened for [`PATIENCE`].
    #[error("no {0} came")]
    Timeout(&'static str),
    /// The interrupt for something that did happen never came.
    #[error("{0} came without its interrupt")]
    LostInterrupt(&'static str),
    /// A work request ended in an error.
    #[error("completion in error: {0:?}")]
    Completion(Box<Cqe>),
    /// The device is not what a driver expects.
    #[error("the device is unusable: {0}")]
    Device(String),
}

impl Error {
    /// The status with which a command was refused, if that is what happened.
    pub fn status(&self) -> Option<u8> {
        match self {
            Self::Command { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;
