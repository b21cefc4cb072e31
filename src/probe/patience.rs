// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for somebody else, for a bounded time, on a host that may itself stand still.

use std::time::{Duration, Instant};

/// The most that counts of the time between two looks. Longer means that the waiter did not run.
const MOST: Duration = Duration::from_millis(100);
/// How long to wait between two looks.
const GLANCE: Duration = Duration::from_millis(50);

/// How long somebody is waited for, in time during which the waiter could look. A virtual machine that is saved or moved finds its clock
/// a minute ahead when it goes on (the monotonic one too), and whoever was waited for has stood still as well: that is nobody's failure.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    seen: Instant,
}

impl Patience {
    /// As much as `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { left: limit, seen: Instant::now() }
    }

    /// Whether it has come to its end. Ask after each look that found nothing.
    pub fn is_over(&mut self) -> bool {
        self.pass(Instant::now())
    }

    /// How long to wait before the next look, at most.
    pub fn glance(&self) -> Duration {
        self.left.min(GLANCE)
    }

    fn pass(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.seen).min(MOST);
        self.seen = now;
        self.left = self.left.saturating_sub(passed);
        self.left.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_stands_still_uses_up_little() {
        let mut patience = Patience::new(Duration::from_secs(1));
        let mut now = patience.seen;
        let mut after = |ms| {
            now += Duration::from_millis(ms);
            patience.pass(now)
        };
        assert!(!after(60_000));
        assert!(!(0..8).any(|_| after(100)));
        assert!(after(100), "what the waiter saw counts in full");
        assert!(Patience::new(Duration::ZERO).is_over());
    }
}
