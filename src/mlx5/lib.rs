// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The NIC: a ConnectX-class (mlx5) RDMA device for unmodified drivers. Nothing here knows of KVM.
//!
//! * [`spec`]: wire layouts, opcodes, bit fields. Data only.
//! * [`nic`]: the PCI function: BARs, initialization segment, doorbells, resets.
//! * [`command`]: the command queue and a table of commands.
//! * [`bus`]: what every object uses. [`hca`]: object tables ([`table`]) over it: [`eq`], [`cq`], [`qp`], [`srq`], [`mkey`].
//! * [`engine`]: the data path. [`dma::Quiesce`] is how translations die without DMA in flight (rule 3).
//! * [`odp`]: page faults. [`hooks`] and [`levers`]: how the lab makes it misbehave and wait; [`later`]: what injections put off;
//!   [`health`]: what they make of the device as a whole.

pub mod buffer;
pub mod bus;
pub mod command;
pub mod cq;
pub mod device_memory;
pub mod engine;
pub mod eq;
pub mod fabric;
pub mod hca;
pub mod health;
pub mod hooks;
pub mod host_memory;
pub mod init_segment;
pub mod inspect;
pub mod later;
pub mod levers;
pub mod limits;
pub mod mkey;
pub mod multicast;
pub mod nic;
pub mod odp;
mod plug;
pub mod port;
pub mod q_counters;
pub mod qp;
#[cfg(test)]
mod queue_tests;
mod reset;
pub mod srq;
pub mod standstill;
pub mod subnet;
pub mod table;
#[cfg(test)]
mod testing;
pub mod uar;
pub mod umem;
pub mod users;

pub use command::log::TARGET as COMMAND_LOG;
pub use engine::EnginePolicy;
pub use mlx5_spec as spec;
pub use nic::{Nic, NicError, NicHandle};
pub use plug::{NicPlug, PluggedNic};

/// Bytes of BAR0.
pub const BAR0_SIZE: u64 = 32 << 20;
/// 4 KiB UAR pages, the first 16 being the initialization segment's. Behind them is device memory.
pub const UAR_PAGES: u32 = ((BAR0_SIZE - device_memory::SIZE) / 4096) as u32;
/// MSI-X vectors offered.
pub const VECTORS: u16 = 64;

/// Which device the NIC says it is (contract 1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Model {
    /// 15b3:1018, ConnectX-5 virtual function: the driver leaves physical-function chores alone.
    #[default]
    Cx5Vf,
    /// 15b3:1017, ConnectX-5 physical function.
    Cx5,
}

impl Model {
    /// Names on the command line, with device ids.
    pub const ALL: [(Model, &'static str, u16); 2] = [(Model::Cx5Vf, "cx5vf", 0x1018), (Model::Cx5, "cx5", 0x1017)];

    /// PCI device id.
    pub fn device_id(self) -> u16 {
        Self::ALL.iter().find(|(model, ..)| *model == self).map_or(0, |(.., id)| *id)
    }
}

/// How a NIC is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicConfig {
    /// Identity.
    pub model: Model,
    /// Offer on-demand paging.
    pub odp: bool,
    /// Log every command (target `rnic::mlx5::commands`, level info).
    pub log_commands: bool,
    /// Who runs the data path.
    pub engines: EnginePolicy,
    /// UAR pages that are rung in a stream become plain memory for a while: doorbells without an exit.
    pub hot_doorbells: bool,
}

impl Default for NicConfig {
    fn default() -> Self {
        Self {
            model: Model::default(),
            odp: true,
            log_commands: false,
            engines: EnginePolicy::default(),
            hot_doorbells: false,
        }
    }
}
