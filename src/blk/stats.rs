// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk counts for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::hooks::{DiskCounters, OpCounts};

/// Counters of one disk since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiskStats {
    /// Requests taken from the rings, by kind.
    pub requests: OpCounts,
    /// Requests completed, with any status.
    pub completed: u64,
    /// Bytes moved to the guest.
    pub bytes_read: u64,
    /// Bytes moved from the guest.
    pub bytes_written: u64,
    /// Requests refused because the guest asked for something impossible.
    pub refused: u64,
    /// Requests that the disk file failed (status IOERR).
    pub errors: u64,
    /// Times that a request was held.
    pub holds: u64,
    /// Requests cancelled by a reset or a device failure.
    pub cancelled: u64,
    /// Used-buffer notifications sent.
    pub notifications: u64,
    /// Times that the device failed until reset because a ring was broken.
    pub failures: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) ops: Arc<DiskCounters>,
    pub(super) completed: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) holds: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) notifications: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Counters {
    pub(super) fn stats(&self) -> DiskStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            requests: self.ops.get(),
            completed: get(&self.completed),
            bytes_read: get(&self.bytes_read),
            bytes_written: get(&self.bytes_written),
            refused: get(&self.refused),
            errors: get(&self.errors),
            holds: get(&self.holds),
            cancelled: get(&self.cancelled),
            notifications: get(&self.notifications),
            failures: get(&self.failures),
        }
    }
}

/// Adds to a counter; the sum.
pub(super) fn add(counter: &AtomicU64, n: u64) -> u64 {
    counter.fetch_add(n, Ordering::Relaxed).wrapping_add(n)
}
