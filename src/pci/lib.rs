// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI Express as far as an endpoint needs it: configuration space, BARs, MSI-X, and a bus that routes to them.
//!
//! Nothing here knows of KVM: interrupts leave through [`MsiRouter`], doorbells are asked for through [`DoorbellHost`], and the host
//! of the devices (our VMM today, a vfio-user server later) implements both.

pub mod bus;
pub mod capability;
pub mod config;
mod host_bridge;
pub mod msix;
#[cfg(test)]
mod msix_tests;
mod placement;
pub mod rate_limit;
pub mod registers;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::io;
use std::sync::Arc;

use dma::Ram;
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

pub use bus::{PciBus, SharedDevice};

/// A device could not be put on the bus.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum PciError {
    /// All 32 slots are taken.
    #[error("the PCI bus is full: 31 devices is the most; remove one")]
    BusFull,
    /// No address space left.
    #[error("BAR {bar} of {size:#x} bytes does not fit into the PCI window; remove a device or widen the window")]
    WindowFull {
        /// BAR index.
        bar: u8,
        /// Size in bytes.
        size: u64,
    },
    /// The device describes an impossible configuration space.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
}

/// Where a function's MSI-X messages go. One value a function; `vector` counts from 0 within it.
pub trait MsiRouter: Send + Sync {
    /// From now on `vector` delivers `data` to `address` (PCIe base 6.1.4).
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()>;
    /// Delivers the vector's message once. Called from any thread; costs one eventfd write, no exit.
    fn trigger(&self, vector: u16);
}

/// A guest write that should arrive as an eventfd, without an exit.
#[derive(Clone)]
pub struct Doorbell {
    /// BAR index, 0 to 5.
    pub bar: u8,
    /// Byte offset inside the BAR.
    pub offset: u64,
    /// Write length to match in bytes, or 0 for any length.
    pub len: u32,
    /// Value to match, if any.
    pub value: Option<u64>,
    /// Signalled once a write.
    pub event: Arc<EventFd>,
}

/// Who can turn guest writes at an address into eventfd signals (KVM's ioeventfd).
pub trait DoorbellHost: Send + Sync {
    /// Starts signalling `doorbell.event` for writes at guest physical `address`.
    fn attach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()>;
    /// Undoes `attach`.
    fn detach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()>;
    /// Puts plain memory of 4 KiB, all zero, in place of the registers at `address`: guest writes there cost no exit, and nobody is told of them.
    ///
    /// # Errors
    /// The host has no such thing, or no more of it.
    fn expose(&self, address: u64) -> io::Result<Arc<dyn Exposed>> {
        let _ = address;
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Undoes `expose`: once it returns no guest write goes there any more.
    fn conceal(&self, address: u64) -> io::Result<()> {
        let _ = address;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Memory in place of registers ([`DoorbellHost::expose`]).
pub trait Exposed: Send + Sync {
    /// The eight bytes at `at`, which is a multiple of eight within the page.
    fn load(&self, at: u64) -> [u8; 8];
}

/// What a machine gives a device that is put into one of its slots.
pub struct Socket {
    /// Bus << 8 | device << 3 | function, as which the device does DMA.
    pub requester: u16,
    /// Guest memory.
    pub ram: Arc<dyn Ram>,
    /// Where its interrupts go: as many vectors as [`Plug::vectors`] asked for.
    pub router: Arc<dyn MsiRouter>,
    /// Who turns its doorbells into eventfds.
    pub doorbells: Arc<dyn DoorbellHost>,
    /// Processors of the machine.
    pub vcpus: usize,
}

/// Why a device could not be put into a machine. Never the guest's doing.
pub type PlugError = Box<dyn Error + Send + Sync>;

/// A device that waits to be put into a machine. A machine knows its devices by this only.
pub trait Plug: Send {
    /// MSI-X vectors that it will use.
    fn vectors(&self) -> u16;
    /// Makes the function for this socket. Its threads, if it has any, run from here on.
    ///
    /// # Errors
    /// The host gave no thread or eventfd, or the device is built impossibly.
    fn plug(self: Box<Self>, socket: Socket) -> Result<SharedDevice, PlugError>;
}

/// Registers of a function that any number of vCPUs may write at once.
pub trait DirectWrites: Send + Sync {
    /// Takes a guest write to a BAR. `false`: not one of these registers; it is for [`PciDevice::bar_write`].
    fn write(&self, bar: u8, offset: u64, data: &[u8]) -> bool;
}

/// One function on the bus. Offsets are bytes; slices are what the guest's one access covers (1, 2, 4 or 8 bytes).
pub trait PciDevice: Send {
    /// Reads configuration space (4096 bytes). Holes read as zero.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space. The bus asks for [`PciDevice::bars`] again afterwards.
    fn config_write(&mut self, offset: u16, data: &[u8]);
    /// The memory BARs that decode now (memory space enabled): (BAR index, base, size).
    fn bars(&self) -> Vec<(u8, u64, u64)>;
    /// Reads a BAR. Holes read as all ones.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes a BAR. A wrong access size is a logged no-op.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);
    /// Registers that are written without the function's lock, if it has such. Constant over the device's life.
    fn direct_writes(&self) -> Option<Arc<dyn DirectWrites>> {
        None
    }
    /// Doorbells wanted while the BARs decode. Constant over the device's life.
    fn doorbells(&self) -> Vec<Doorbell>;
    /// Function reset: registers to their initial values, engines stopped, every hold and wait cancelled.
    fn reset(&mut self);
}
