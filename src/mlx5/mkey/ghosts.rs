// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys that go on working though the device has said that they are gone: what the injection [`NicAction::IgnoreFree`] leaves behind.
//!
//! The key itself is what it should be, free or out of its table, so that the driver finds nothing amiss and may make it anew. Only an access
//! that would be refused for that looks here: whoever has no such rule pays one load in the refusal.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Mkey, MkeyState};
use crate::hca::Hca;
use crate::hooks::{NicAction, WqeShape};

/// At most so many; then the oldest goes. Their tables stay on the device's account of host memory.
const MOST: usize = 64;

struct Ghost {
    mkey: Arc<Mkey>,
    /// What it allowed when it was freed.
    state: MkeyState,
    /// How often the rules had been cleared: once more, and it works no longer.
    clears: u64,
}

/// The ghosts of one device.
#[derive(Default)]
pub struct Ghosts {
    any: AtomicBool,
    table: Mutex<VecDeque<Ghost>>,
}

impl Ghosts {
    /// A key is about to be freed or destroyed, which its unit covers: `shape` says by what. It becomes a ghost if the injection says
    /// so, and otherwise no ghost of it is left; what is in flight through that the caller's fence waits for.
    pub(super) fn freed(&self, hca: &Hca, shape: &WqeShape, mkey: &Arc<Mkey>) {
        // Before the rule is asked: if it is cleared meanwhile, so is this.
        let clears = hca.injections.clears();
        let ignored = hca.injections.consult(shape, |action| action == NicAction::IgnoreFree).is_some();
        let state = mkey.state();
        if !ignored {
            self.lay(mkey.index);
        } else if !state.free {
            self.keep(Ghost { mkey: mkey.clone(), state, clears });
        }
    }

    fn keep(&self, ghost: Ghost) {
        let mut table = self.table.lock();
        table.retain(|other| other.mkey.index != ghost.mkey.index && other.clears == ghost.clears);
        if table.len() >= MOST {
            table.pop_front();
        }
        table.push_back(ghost);
        self.any.store(true, Ordering::Release);
    }

    /// The key is made anew, or is gone in truth. True: it was a ghost.
    pub(super) fn lay(&self, index: u32) -> bool {
        self.remove(|ghost| ghost.mkey.index == index)
    }

    /// Forgets those whose rules have been cleared.
    pub(super) fn sweep(&self, hca: &Hca) {
        let clears = hca.injections.clears();
        self.remove(|ghost| ghost.clears != clears);
    }

    /// A reset: forgets all.
    pub fn clear(&self) {
        self.remove(|_| true);
    }

    fn remove(&self, which: impl Fn(&Ghost) -> bool) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut table = self.table.lock();
        let before = table.len();
        table.retain(|ghost| !which(ghost));
        self.any.store(!table.is_empty(), Ordering::Release);
        table.len() < before
    }

    /// The ghost of a key and what it allows.
    #[cold]
    pub(super) fn find(&self, hca: &Hca, index: u32) -> Option<(Arc<Mkey>, MkeyState)> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let clears = hca.injections.clears();
        let table = self.table.lock();
        let ghost = table.iter().find(|ghost| ghost.mkey.index == index && ghost.clears == clears)?;
        Some((ghost.mkey.clone(), ghost.state))
    }
}
