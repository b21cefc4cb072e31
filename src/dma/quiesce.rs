// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rule 3: no DMA through a dead translation. An RCU-like scheme serves every way in which a translation dies: a [`Section`] is a
//! read-side critical section, [`Quiesce::wait`] is what RCU calls synchronize.
//!
//! An engine moves data only inside a section. Inside it looks up anew whatever gives it the right to; nothing of that is kept when the
//! section ends. Whoever takes a right away (a key, a queue, bus mastering, a reset) first publishes the change and then calls
//! [`Quiesce::wait`], which returns when every section that had begun before has ended. Sections that begin later see the change. So a
//! section costs two stores, and nobody can deadlock: a section never waits for anything, above all for no lock that a copy runs under.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use crate::Backoff;

/// Engines that a device may have.
pub const MAX_ENGINES: usize = 16;
/// Devices whose engines may meet in one: those of a fabric.
pub const MAX_DEVICES: usize = 8;

/// Keeps the counters of two engines out of one cache line.
#[repr(align(128))]
#[derive(Default)]
struct Slot(AtomicU64);

/// The sections in which engines use what is one device's: its own engines, and those of other devices of its fabric.
pub struct Quiesce {
    /// Odd while the engine is inside a section; by device, then engine.
    slots: Box<[Slot]>,
    /// The device whose this is.
    own: usize,
    /// Slots that have been used, and all before them.
    used: AtomicUsize,
}

/// Proof that its engine is inside a section. It must stay short: a device bounds what it moves in one.
pub struct Section<'a> {
    slot: &'a Slot,
}

impl Quiesce {
    /// For device `index` of its fabric; at most [`MAX_ENGINES`] engines, numbered from 0.
    pub fn new(index: u8) -> Self {
        let own = usize::from(index) % MAX_DEVICES;
        let slots = (0..MAX_DEVICES * MAX_ENGINES).map(|_| Slot::default()).collect();
        Self { slots, own, used: AtomicUsize::new((own + 1) * MAX_ENGINES) }
    }

    /// Begins a section. Only thread `engine` may do so, and sections do not nest.
    pub fn enter(&self, engine: usize) -> Section<'_> {
        self.begin(self.own, engine)
    }

    /// The same for an engine of another device, on its thread: it is inside a section of its own device as well.
    pub fn visit(&self, device: u8, engine: usize) -> Section<'_> {
        let device = usize::from(device) % MAX_DEVICES;
        if self.used.load(Ordering::Relaxed) < (device + 1) * MAX_ENGINES {
            // Before the announcement, for whoever waits.
            self.used.fetch_max((device + 1) * MAX_ENGINES, Ordering::SeqCst);
        }
        self.begin(device, engine)
    }

    fn begin(&self, device: usize, engine: usize) -> Section<'_> {
        let slot = &self.slots[device * MAX_ENGINES + engine % MAX_ENGINES];
        slot.0.store(slot.0.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
        // The announcement before any look at what may be taken away; pairs with the fence in `wait`.
        fence(Ordering::SeqCst);
        Section { slot }
    }

    /// Returns when every section that had begun has ended. What was published before is seen by all that begin later.
    /// Never call it inside a section.
    pub fn wait(&self) {
        fence(Ordering::SeqCst);
        let used = self.used.load(Ordering::SeqCst);
        let before: Vec<u64> = self.slots.iter().take(used).map(|slot| slot.0.load(Ordering::SeqCst)).collect();
        for (slot, before) in self.slots.iter().zip(before) {
            let mut backoff = Backoff::new();
            while before & 1 == 1 && slot.0.load(Ordering::Acquire) == before {
                backoff.pause();
            }
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // Odd to the next even number: the data moved before it is seen as ended.
        // A plain store will do: nobody but this thread writes the slot.
        self.slot.0.store(self.slot.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn waits_for_what_began_and_not_for_what_begins_later() {
        let quiesce = Arc::new(Quiesce::new(0));
        // Of another device's engine.
        let section = quiesce.visit(2, 1);
        let done = Arc::new(AtomicBool::new(false));
        let waiter = std::thread::spawn({
            let (quiesce, done) = (quiesce.clone(), done.clone());
            move || {
                quiesce.wait();
                done.store(true, Ordering::Release);
            }
        });
        std::thread::sleep(Duration::from_millis(30));
        assert!(!done.load(Ordering::Acquire));
        drop(section);
        // A section of the same engine that began later does not hold the waiter up.
        let _later = quiesce.visit(2, 1);
        waiter.join().unwrap();
        let idle = Quiesce::new(3);
        idle.wait();
    }
}
