// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host memory that a guest makes the device take: one account for objects, page lists and translation tables, with an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes that all objects of one device take together. What would take more is refused with NO_RES.
pub const MAX_HOST_MEMORY: u64 = 512 << 20;

/// The account of one device.
#[derive(Debug, Clone, Default)]
pub struct HostMemory(Arc<AtomicU64>);

/// A share of it, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    memory: HostMemory,
    bytes: u64,
}

impl HostMemory {
    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// `bytes` more, until they are given back; false if that is too much.
    pub fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= MAX_HOST_MEMORY);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The same as a value; `None` if that is too much.
    pub fn lease(&self, bytes: u64) -> Option<Lease> {
        self.take(bytes).then(|| Lease { memory: self.clone(), bytes })
    }
}

/// Bytes that a `T` takes with its place in a table, and `beside` of what it points to. A table has at most four places an object alive.
pub const fn object<T>(beside: usize) -> u64 {
    const COUNTS: usize = 16;
    const PLACES: usize = 4 * 16;
    (size_of::<T>() + COUNTS + PLACES + beside) as u64
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.memory.give(self.bytes);
    }
}
