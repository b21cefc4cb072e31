// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that stands still: no engine takes a turn and no command begins, until it is let go. What is rung for meanwhile waits.
//!
//! The switch is looked at under the lock of what it stops. So whoever sets it and then has each of those locks once knows that
//! nothing goes on. Nothing is lost: doorbells are kept where they are kept while an engine is busy. Time goes on: a timer that has run
//! out meanwhile is due as soon as the device is let go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::nic::NicHandle;

/// How long an engine gets for the turn that it is at: an injection may stall it for 2 s.
const TURN: Duration = Duration::from_secs(5);

/// The switch.
#[derive(Default)]
pub struct Standstill {
    on: AtomicBool,
    /// The device comes to its end and does not stand any more.
    closed: Mutex<bool>,
    over: Condvar,
}

impl Standstill {
    /// Whether the device is to stand. One load.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// Begins. What goes on ends by itself, see the module.
    pub fn begin(&self) {
        let closed = self.closed.lock();
        self.on.store(!*closed, Ordering::SeqCst);
    }

    /// Lets the device go.
    pub fn end(&self) {
        let _closed = self.closed.lock();
        self.on.store(false, Ordering::SeqCst);
        self.over.notify_all();
    }

    /// The same for good: it will not stand again.
    pub fn close(&self) {
        *self.closed.lock() = true;
        self.end();
    }

    /// Returns when the device may go on.
    pub fn wait(&self) {
        let mut closed = self.closed.lock();
        while self.is_on() {
            self.over.wait(&mut closed);
        }
    }
}

impl NicHandle {
    /// Has the NIC stand still: when this returns true no engine is at a turn and no command is executed, and none begins before
    /// [`NicHandle::resume`]. A reset and the end of the device wait for nothing of that. False: an engine did not come to its turn's
    /// end within 5 s, and the NIC goes on. While it stands it can be looked at and its injections changed.
    pub fn pause(&self) -> bool {
        let stands = self.hca().engines.pause(TURN);
        if stands {
            drop(self.command_unit().between_commands());
        }
        stands
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.hca().engines.resume();
        // The command unit looks again at what was rung for.
        self.command_unit().ring(0);
    }
}
