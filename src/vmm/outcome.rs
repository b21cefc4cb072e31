// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a guest's life ended, decided once, and told apart to the last.

use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why the guest stopped. Each has an exit status of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU shut down (SDM 3A 6.15, "triple fault"): a reset without words, by a kernel at its end or a host at fault.
    TripleFault,
    /// The guest kernel panicked.
    Panic,
    /// A signal to the VMM ended it.
    Signal(i32),
    /// The program that owns the VM stopped it.
    Stopped,
    /// KVM or the VMM could not go on.
    Failed(String),
}

impl Outcome {
    /// Exit status of `rnic run`.
    pub fn exit_status(&self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Stopped => 0,
            Outcome::Failed(_) => 1,
            Outcome::Reset => 10,
            Outcome::Panic => 11,
            Outcome::TripleFault => 12,
            // As a shell reports it: 130 for ctrl-c, 143 for SIGTERM.
            Outcome::Signal(signal) => 128u8.wrapping_add(*signal as u8),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::PowerOff => write!(f, "the guest powered off"),
            Outcome::Reset => write!(f, "the guest asked for a reset"),
            Outcome::Panic => write!(f, "the guest kernel panicked"),
            Outcome::TripleFault => write!(f, "a vCPU triple-faulted without a word from the guest kernel"),
            Outcome::Signal(libc::SIGINT) => write!(f, "interrupted (ctrl-c)"),
            Outcome::Signal(libc::SIGTERM) => write!(f, "terminated by SIGTERM"),
            Outcome::Signal(signal) => write!(f, "ended by signal {signal}"),
            Outcome::Stopped => write!(f, "stopped"),
            Outcome::Failed(what) => write!(f, "{what}"),
        }
    }
}

/// The one place where an outcome is set and waited for. The first one counts, except that a panic turns a reset that
/// follows it (`panic=-1`) into a panic.
pub struct Ending {
    outcome: Mutex<Option<Outcome>>,
    changed: Condvar,
    panicked: AtomicBool,
    event: EventFd,
}

impl Ending {
    /// Nothing has ended yet.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            outcome: Mutex::new(None),
            changed: Condvar::new(),
            panicked: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock()
    }

    /// Ends the guest's life as `outcome`, if it has not ended.
    pub fn set(&self, outcome: Outcome) {
        let mut slot = self.lock();
        if slot.is_none() {
            *slot = Some(outcome);
            self.changed.notify_all();
            // A full eventfd is as readable as a written one.
            drop(self.event.write(1));
        }
    }

    /// The guest kernel said that it panicked. It may still print; the end comes with the reset or a moment later.
    pub fn panicked(&self) {
        self.panicked.store(true, Ordering::Release);
        drop(self.event.write(1));
    }

    /// Whether a panic was reported.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// The guest asked for a reset, or reset itself as `how` says.
    pub fn reset(&self, how: Outcome) {
        self.set(if self.has_panicked() { Outcome::Panic } else { how });
    }

    /// The guest starts anew after a reset.
    pub fn begin_again(&self) {
        *self.lock() = None;
        self.panicked.store(false, Ordering::Release);
    }

    /// The outcome so far.
    pub fn get(&self) -> Option<Outcome> {
        self.lock().clone()
    }

    /// Becomes readable when something ended or panicked.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Waits for an outcome, at most until `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Option<Outcome> {
        let mut slot = self.lock();
        self.changed.wait_while_until(&mut slot, |outcome| outcome.is_none(), deadline);
        slot.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_outcome_counts_and_a_panic_explains_a_reset() {
        let ending = Ending::new().unwrap();
        ending.panicked();
        ending.reset(Outcome::Reset);
        ending.set(Outcome::PowerOff);
        assert_eq!(ending.get(), Some(Outcome::Panic));
        ending.begin_again();
        ending.reset(Outcome::Reset);
        assert_eq!(ending.get(), Some(Outcome::Reset), "a new life knows nothing of an old panic");
    }

    #[test]
    fn every_outcome_has_its_own_status() {
        let all = [
            Outcome::PowerOff,
            Outcome::Failed(String::new()),
            Outcome::Reset,
            Outcome::Panic,
            Outcome::TripleFault,
            Outcome::Signal(libc::SIGINT),
            Outcome::Signal(libc::SIGTERM),
        ];
        let mut statuses: Vec<_> = all.iter().map(Outcome::exit_status).collect();
        statuses.sort_unstable();
        statuses.dedup();
        assert_eq!(statuses.len(), all.len());
    }
}
