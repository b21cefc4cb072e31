// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who uses an object: a count, so that whether it may be destroyed costs one look and not a look at every other object.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How many objects use this one.
#[derive(Debug, Default)]
pub struct Users(Arc<AtomicU32>);

impl Users {
    /// One more, until the returned value is dropped.
    pub fn add(&self) -> Use {
        self.0.fetch_add(1, Ordering::Relaxed);
        Use(self.0.clone())
    }

    /// Now.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One object's use of another.
#[derive(Debug)]
pub struct Use(Arc<AtomicU32>);

impl Drop for Use {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An object that others may use.
pub trait Used {
    /// Who does.
    fn users(&self) -> &Users;
}

impl Used for Users {
    fn users(&self) -> &Users {
        self
    }
}

/// What an object uses, as its last command said. It ends with DESTROY, however long an engine still has a reference to the object.
#[derive(Debug, Default)]
pub struct Uses(Mutex<Vec<Use>>);

impl Uses {
    /// These from now on, and no others.
    pub fn replace(&self, uses: Vec<Use>) {
        // The new ones count before the old ones do not: one that stays is never seen without a user.
        drop(std::mem::replace(&mut *self.0.lock(), uses));
    }

    /// None any more.
    pub fn end(&self) {
        self.replace(Vec::new());
    }
}
