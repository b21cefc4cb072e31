// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two independent counts of block requests: what the device counted, and what was put on record. They must agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::record::BlkOp;

/// Requests by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct OpCounts {
    /// VIRTIO_BLK_T_IN.
    pub read: u64,
    /// VIRTIO_BLK_T_OUT.
    pub write: u64,
    /// VIRTIO_BLK_T_FLUSH.
    pub flush: u64,
    /// VIRTIO_BLK_T_DISCARD.
    pub discard: u64,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    pub write_zeroes: u64,
    /// VIRTIO_BLK_T_GET_ID.
    pub get_id: u64,
    /// Types that the device does not know.
    pub other: u64,
}

impl From<[u64; 7]> for OpCounts {
    /// In the order of [`BlkOp::ALL`].
    fn from([read, write, flush, discard, write_zeroes, get_id, other]: [u64; 7]) -> Self {
        Self { read, write, flush, discard, write_zeroes, get_id, other }
    }
}

/// Requests by kind, counted by a device as it takes them from its rings.
#[derive(Debug, Default)]
pub struct DiskCounters {
    ops: [AtomicU64; 7],
}

impl DiskCounters {
    /// Counts one.
    pub fn count(&self, op: BlkOp) {
        self.ops[op.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts since the device was made.
    pub fn get(&self) -> OpCounts {
        self.raw().into()
    }

    fn raw(&self) -> [u64; 7] {
        std::array::from_fn(|index| self.ops[index].load(Ordering::Relaxed))
    }
}

/// Both counts of one disk since it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskTotals {
    /// Index of the disk.
    pub disk: u8,
    /// Counted by the device.
    pub device: OpCounts,
    /// Put on record.
    pub recorded: OpCounts,
}

impl DiskTotals {
    /// Whether the ledger saw all that the device did. Look while the disk is quiet.
    pub fn agree(&self) -> bool {
        self.device == self.recorded
    }
}

pub(super) struct DiskEntry {
    disk: u8,
    counters: Arc<DiskCounters>,
    /// The device's counts when it was registered.
    base: [u64; 7],
    recorded: [u64; 7],
}

impl DiskEntry {
    pub(super) fn totals(&self) -> DiskTotals {
        let now = self.counters.raw();
        let device: [u64; 7] = std::array::from_fn(|index| now[index].saturating_sub(self.base[index]));
        DiskTotals { disk: self.disk, device: device.into(), recorded: self.recorded.into() }
    }
}

pub(super) fn register(disks: &mut Vec<DiskEntry>, disk: u8, counters: &Arc<DiskCounters>) {
    if disks.iter().any(|entry| entry.disk == disk && Arc::ptr_eq(&entry.counters, counters)) {
        // The same device after a reset: counts go on.
        return;
    }
    disks.retain(|entry| entry.disk != disk);
    disks.push(DiskEntry { disk, counters: counters.clone(), base: counters.raw(), recorded: [0; 7] });
}

pub(super) fn recorded(disks: &mut [DiskEntry], disk: u8, op: BlkOp) {
    if let Some(entry) = disks.iter_mut().find(|entry| entry.disk == disk) {
        entry.recorded[op.index()] += 1;
    }
}
