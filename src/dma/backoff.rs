// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for another thread that will be done in a moment.

use std::time::Duration;

/// Looks between which the processor is only told to wait: some ten microseconds.
const SPINS: u32 = 512;
/// A nap. With the kernel's timer slack it takes about 70 us.
const NAP: Duration = Duration::from_micros(20);

/// How to wait between two looks: at first by spinning, then by naps. Never by sched_yield(2): under Linux's EEVDF each call is charged as
/// a whole time slice, so that a loop of them runs up a debt of minutes of processor time, which every other thread of the machine is
/// then served before or starves beside (seen on 6.18: pauses of 50 s, the kernel's own workers among the starved).
#[derive(Debug, Default)]
pub struct Backoff {
    looks: u32,
}

impl Backoff {
    /// Before the first look.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits a little, longer after many looks in vain.
    pub fn pause(&mut self) {
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            0..SPINS => std::hint::spin_loop(),
            _ => std::thread::sleep(NAP),
        }
    }

    /// The next look is a first one again.
    pub fn reset(&mut self) {
        self.looks = 0;
    }
}
