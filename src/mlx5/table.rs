// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A number space of objects: QPNs, CQNs, mkey indices and so on.
//!
//! Numbers are given out upwards and come around only at the end of the space, so that a number is not reused while a driver may
//! still have it in a table (contract T10).

use std::sync::{Arc, RwLock};

use super::sync::{read, write};

/// Objects by number. A lookup costs a read lock and an array access.
pub struct Table<T> {
    first: u32,
    space: u32,
    limit: usize,
    inner: RwLock<Inner<T>>,
}

struct Inner<T> {
    /// Number of `slots[0]` is `first`.
    slots: Vec<Option<Arc<T>>>,
    next: u32,
    live: usize,
}

impl<T> Table<T> {
    /// Numbers `first..first + space`, at most `limit` objects alive at once.
    pub fn new(first: u32, space: u32, limit: usize) -> Self {
        let inner = Inner { slots: Vec::new(), next: 0, live: 0 };
        Self { first, space: space.max(1), limit, inner: RwLock::new(inner) }
    }

    /// Makes an object under a fresh number; `None` when the space or the limit is exhausted.
    pub fn insert(&self, make: impl FnOnce(u32) -> T) -> Option<Arc<T>> {
        let mut inner = write(&self.inner);
        if inner.live >= self.limit.min(self.space as usize) {
            return None;
        }
        let mut at = inner.next;
        // Ends: fewer objects are alive than the space has numbers.
        while inner.slots.get(at as usize).is_some_and(Option::is_some) {
            at = (at + 1) % self.space;
        }
        let object = Arc::new(make(self.first + at));
        if inner.slots.len() <= at as usize {
            inner.slots.resize_with(at as usize + 1, || None);
        }
        inner.slots[at as usize] = Some(object.clone());
        inner.next = (at + 1) % self.space;
        inner.live += 1;
        Some(object)
    }

    /// The object with this number.
    pub fn get(&self, number: u32) -> Option<Arc<T>> {
        let at = number.checked_sub(self.first)? as usize;
        read(&self.inner).slots.get(at)?.clone()
    }

    /// What `look` finds in the object with this number, without counting a reference: for hot paths. No other lookup in this table
    /// within `look`.
    pub fn with<R>(&self, number: u32, look: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        let at = number.checked_sub(self.first)? as usize;
        read(&self.inner).slots.get(at)?.as_ref().map(look)
    }

    /// Takes the object out.
    pub fn remove(&self, number: u32) -> Option<Arc<T>> {
        let at = number.checked_sub(self.first)? as usize;
        let mut inner = write(&self.inner);
        let object = inner.slots.get_mut(at)?.take()?;
        inner.live -= 1;
        Some(object)
    }

    /// Takes all objects out and starts numbering anew: a reset.
    pub fn clear(&self) -> Vec<Arc<T>> {
        let mut inner = write(&self.inner);
        inner.next = 0;
        inner.live = 0;
        std::mem::take(&mut inner.slots).into_iter().flatten().collect()
    }

    /// All objects with their numbers, in order.
    pub fn all(&self) -> Vec<(u32, Arc<T>)> {
        let inner = read(&self.inner);
        let numbered = inner.slots.iter().zip(self.first..);
        numbered.filter_map(|(slot, number)| Some((number, slot.clone()?))).collect()
    }

    /// Objects alive.
    pub fn len(&self) -> usize {
        read(&self.inner).live
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_and_come_around_at_the_end() {
        let table = Table::new(0x40, 3, 3);
        let make = || table.insert(|number| number).map(|object| *object);
        assert_eq!((make(), make()), (Some(0x40), Some(0x41)));
        assert_eq!(table.remove(0x40).as_deref(), Some(&0x40));
        assert_eq!(table.remove(0x40), None);
        assert_eq!((make(), make(), make()), (Some(0x42), Some(0x40), None));
        assert_eq!(table.len(), 3);
        assert_eq!((table.get(0x3f), table.get(0x43), table.get(u32::MAX)), (None, None, None));
        assert_eq!(table.all().len(), 3);
        assert_eq!(table.clear().len(), 3);
        assert!(table.is_empty());
        assert_eq!(make(), Some(0x40));
    }
}
