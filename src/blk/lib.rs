// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-blk over virtio-pci (virtio 1.2, modern only), with levers and power-cut images.

mod device;
mod disk;
mod draw;
mod evidence;
mod file_io;
mod flight;
mod handle;
mod hooks;
mod injected;
mod parked;
mod power_cut;
mod request;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod undo;
mod worker;

pub use device::{BlockDevice, DiskConfig};
pub use disk::BlockError;
pub use handle::DiskHandle;
pub use hooks::{
    BlkOp, DiskAction, DiskCounters, DiskInjections, DiskLedger, DiskRule, DiskTotals, Hold, HoldPoint, Lever,
    LeverState, MAX_DELAY_MS, OpCounts, PageTouch, RequestMatch, RequestRecord, RequestShape, RequestStart, Requests,
};
pub use power_cut::{FrozenImage, copy_sparse};
pub use request::{S_IOERR, S_OK, S_UNSUPP};
pub use stats::DiskStats;
pub use undo::PowerCut;

pub use probe::{LeverError, LeverId, MAX_LIMIT, ReleaseReport};
