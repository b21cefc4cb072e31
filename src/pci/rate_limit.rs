// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Logs that a guest cannot flood: a counter that lets the first of each power of two through.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts a kind of event and says which ones are worth a line in the log.
#[derive(Debug, Default)]
pub struct RateLimit(AtomicU64);

impl RateLimit {
    /// Counts one event. `Some(count so far)` for the 1st, 2nd, 4th, 8th, ... one.
    pub fn next(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count.is_power_of_two().then_some(count)
    }

    /// Events counted since the start.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_powers_of_two_through() {
        let counter = RateLimit::default();
        let passed: Vec<u64> = (0..20).filter_map(|_| counter.next()).collect();
        assert_eq!(passed, [1, 2, 4, 8, 16]);
        assert_eq!(counter.count(), 20);
    }
}
