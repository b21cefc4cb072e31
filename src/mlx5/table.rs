// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A number space of objects: QPNs, CQNs, mkey indices and so on.
//!
//! Numbers are given out upwards and come around only at the end of the space, so that a number is not reused while a driver may
//! still have it in a table (contract T10), and a doorbell that is late finds nobody. What the table costs depends on how many objects
//! were alive at once, not on how many have come and gone.

use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::host_memory::HostMemory;
use super::users::Use;

/// Slots of a table that has its first object.
const FEWEST: usize = 64;

/// Objects by number. A lookup costs a read lock and an array access; [`Table::with_recent`] mostly not even that.
pub struct Table<T> {
    first: u32,
    space: u32,
    limit: usize,
    /// What an object takes of which account.
    charge: Option<(u64, HostMemory)>,
    inner: RwLock<Inner<T>>,
    /// Counts removals, each before it is told.
    removals: Arc<AtomicU64>,
}

/// Whose an object is: the driver's own, or a user context's (`command::devx`).
#[derive(Debug, Default)]
pub struct Owner {
    /// Number of the user context; 0: the driver.
    pub uid: u16,
    /// The context has an object more.
    _held: Option<Use>,
}

impl Owner {
    /// A user context's.
    pub fn user(uid: u16, held: Option<Use>) -> Self {
        Self { uid, _held: held }
    }
}

struct Slot<T> {
    at: u32,
    owner: Owner,
    object: Arc<T>,
}

struct Inner<T> {
    /// Object n of the space lies in slot n modulo the length, which is a power of two and at least twice the number of objects.
    slots: Vec<Option<Slot<T>>>,
    next: u32,
    live: usize,
}

impl<T> Inner<T> {
    fn slot(&self, at: u32) -> usize {
        at as usize & self.slots.len().wrapping_sub(1)
    }

    fn get(&self, at: u32) -> Option<&Slot<T>> {
        self.slots.get(self.slot(at))?.as_ref().filter(|slot| slot.at == at)
    }

    /// Twice as many slots. Two numbers that differ modulo the old length differ modulo the new one.
    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(FEWEST);
        let mut slots: Vec<_> = std::iter::repeat_with(|| None).take(len).collect();
        for slot in std::mem::take(&mut self.slots).into_iter().flatten() {
            let place = slot.at as usize & (len - 1);
            slots[place] = Some(slot);
        }
        self.slots = slots;
    }
}

/// Objects that one engine has found last, so that it finds them again without a lock. It keeps them alive: whoever has nothing to do
/// drops it.
pub struct Recent<T> {
    /// Whose they are, and the removals when they were found: after another one none of it counts.
    of: Option<(Arc<AtomicU64>, u64)>,
    /// Object n is in place n modulo the length.
    objects: [Option<(u32, Arc<T>)>; RECENT],
}

/// Places of a [`Recent`].
const RECENT: usize = 4;

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { of: None, objects: [const { None }; RECENT] }
    }
}

impl<T> Recent<T> {
    /// Whether what it holds is in the table whose removals are `removals`.
    #[inline]
    fn suits(&self, removals: &Arc<AtomicU64>) -> bool {
        let now = removals.load(Ordering::Acquire);
        self.of.as_ref().is_some_and(|(of, then)| *then == now && Arc::ptr_eq(of, removals))
    }
}

impl<T> Table<T> {
    /// Numbers `first..first + space`, at most `limit` objects alive at once.
    pub fn new(first: u32, space: u32, limit: usize) -> Self {
        let inner = Inner { slots: Vec::new(), next: 0, live: 0 };
        let removals = Arc::default();
        Self { first, space: space.max(1), limit, charge: None, inner: RwLock::new(inner), removals }
    }

    /// The same; each object alive takes `bytes` of `memory`.
    pub fn charged(self, bytes: u64, memory: &HostMemory) -> Self {
        Self { charge: Some((bytes, memory.clone())), ..self }
    }

    /// Makes an object of the driver's under a fresh number; `None` when the space, the limit or the host memory for it is exhausted.
    pub fn insert(&self, make: impl FnOnce(u32) -> T) -> Option<Arc<T>> {
        self.insert_for(Owner::default(), make)
    }

    /// The same for any owner.
    pub fn insert_for(&self, owner: Owner, make: impl FnOnce(u32) -> T) -> Option<Arc<T>> {
        let mut inner = self.inner.write();
        if inner.live >= self.limit.min(self.space as usize) {
            return None;
        }
        if self.charge.as_ref().is_some_and(|(bytes, memory)| !memory.take(*bytes)) {
            return None;
        }
        if inner.live * 2 >= inner.slots.len() {
            inner.grow();
        }
        // Ends: a slot is free, and one that no other number of the space needs. At most half of the slots are taken, so that over a round
        // of them a number is found at the second try.
        let mut at = inner.next;
        while inner.slots[inner.slot(at)].is_some() {
            at = (at + 1) % self.space;
        }
        let object = Arc::new(make(self.first + at));
        let slot = inner.slot(at);
        inner.slots[slot] = Some(Slot { at, owner, object: object.clone() });
        inner.next = (at + 1) % self.space;
        inner.live += 1;
        Some(object)
    }

    /// The object with this number.
    pub fn get(&self, number: u32) -> Option<Arc<T>> {
        self.with(number, Arc::clone)
    }

    /// What `look` finds in the object with this number, without counting a reference: for hot paths. No other lookup in this table
    /// within `look`.
    pub fn with<R>(&self, number: u32, look: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        let at = number.checked_sub(self.first)?;
        self.inner.read().get(at).map(|slot| look(&slot.object))
    }

    /// The object with this number, and the number of its owner.
    pub fn owned(&self, number: u32) -> Option<(u16, Arc<T>)> {
        let at = number.checked_sub(self.first)?;
        self.inner.read().get(at).map(|slot| (slot.owner.uid, slot.object.clone()))
    }

    /// As [`Table::with`]; `recent` remembers what was found. Whoever takes an object out and then waits for sections ([`dma::Quiesce`])
    /// may be sure that no section finds it here that begins later.
    #[inline]
    pub fn with_recent<R>(&self, recent: &mut Recent<T>, number: u32, look: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        if !recent.suits(&self.removals) {
            // Read before the look into the table: a removal in between makes it void at once.
            let removals = self.removals.load(Ordering::Acquire);
            *recent = Recent { of: Some((self.removals.clone(), removals)), ..Recent::default() };
        }
        let place = &mut recent.objects[number as usize % RECENT];
        if place.as_ref().is_none_or(|(of, _)| *of != number) {
            *place = Some((number, self.get(number)?));
        }
        place.as_ref().map(|(_, object)| look(object))
    }

    /// Takes the object out.
    pub fn remove(&self, number: u32) -> Option<Arc<T>> {
        let at = number.checked_sub(self.first)?;
        let mut inner = self.inner.write();
        inner.get(at)?;
        let slot = inner.slot(at);
        let Slot { object, .. } = inner.slots[slot].take()?;
        self.removals.fetch_add(1, Ordering::Release);
        inner.live -= 1;
        self.give(1);
        Some(object)
    }

    /// `number`, if it is free, is the next that is given out: an injection.
    pub fn rewind(&self, number: u32) {
        if let Some(at) = number.checked_sub(self.first).filter(|at| *at < self.space) {
            self.inner.write().next = at;
        }
    }

    /// Takes all objects out and starts numbering anew: a reset.
    pub fn clear(&self) -> Vec<Arc<T>> {
        let mut inner = self.inner.write();
        inner.next = 0;
        self.removals.fetch_add(1, Ordering::Release);
        self.give(std::mem::take(&mut inner.live));
        std::mem::take(&mut inner.slots).into_iter().flatten().map(|slot| slot.object).collect()
    }

    /// All objects with their numbers, in order. Costs as much as the most objects that were alive at once: for resets and inspection.
    pub fn all(&self) -> Vec<(u32, Arc<T>)> {
        let inner = self.inner.read();
        let live = inner.slots.iter().flatten();
        let mut all: Vec<_> = live.map(|slot| (self.first + slot.at, slot.object.clone())).collect();
        drop(inner);
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    fn give(&self, objects: usize) {
        if let Some((bytes, memory)) = &self.charge {
            memory.give(bytes * objects as u64);
        }
    }

    /// Most objects alive at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes of host memory that each takes of the device's account.
    pub fn charge(&self) -> u64 {
        self.charge.as_ref().map_or(0, |(bytes, _)| *bytes)
    }

    /// Objects alive.
    pub fn len(&self) -> usize {
        self.inner.read().live
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places for objects that the table has memory for: at most four times the most objects that were alive at once, or 64.
    pub fn capacity(&self) -> usize {
        self.inner.read().slots.len()
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

    /// Beside a few that stay, each in the way of every round: a number comes again only after all others of the space, the table does
    /// not grow, and an old number finds nobody.
    #[test]
    fn what_comes_and_goes_leaves_neither_memory_nor_a_number_to_be_mistaken() {
        let space = 0x1_0000;
        let table = Table::new(0x10, space, 1 << 12);
        let make = || *table.insert(|number| number).unwrap();
        let stays: Vec<u32> = (0..20).map(|_| make()).collect();
        let mut given = std::collections::HashSet::new();
        let mut last = 0;
        for _ in 0..space / 2 {
            let number = make();
            assert!(given.insert(number) && number > last, "{number:#x}");
            assert_eq!(table.remove(number).as_deref(), Some(&number));
            assert_eq!(table.get(last), None);
            last = number;
        }
        assert_eq!((table.capacity(), table.len()), (FEWEST, stays.len()));
        assert!(stays.iter().all(|number| table.get(*number).as_deref() == Some(number)));
    }

    /// Found again without the table's lock, and never once it has been taken out, whichever way, nor under another table.
    #[test]
    fn what_was_found_last_is_found_until_anything_is_taken_out() {
        let (table, other) = (Table::new(0, 64, 64), Table::new(0, 64, 64));
        let mut recent = Recent::default();
        let fill = |table: &Table<u32>, base| (0..8).for_each(|_| drop(table.insert(|number| base + number)));
        fill(&table, 100);
        fill(&other, 200);
        let mut look = |table: &Table<u32>, number| table.with_recent(&mut recent, number, |object| **object);
        assert_eq!(
            (look(&table, 1), look(&table, 5), look(&table, 1), look(&table, 9)),
            (Some(101), Some(105), Some(101), None)
        );
        {
            let _nobody_reads = table.inner.write();
            assert_eq!(look(&table, 1), Some(101));
        }
        assert_eq!((look(&other, 1), look(&table, 1)), (Some(201), Some(101)));
        table.remove(1);
        assert_eq!((look(&table, 1), look(&table, 2)), (None, Some(102)));
        table.clear();
        fill(&table, 300);
        assert_eq!(look(&table, 2), Some(302));
    }

    #[test]
    fn an_object_has_its_owner_as_long_as_it_is_there() {
        let (table, users) = (Table::new(1, 64, 64), crate::users::Users::default());
        let mine = table.insert_for(Owner::user(7, Some(users.add())), |number| number).unwrap();
        let drivers = table.insert(|number| number).unwrap();
        assert_eq!((table.owned(*mine), table.owned(*drivers)), (Some((7, mine.clone())), Some((0, drivers))));
        (0..64).for_each(|_| drop(table.insert(|number| number)));
        assert_eq!((table.owned(*mine).unwrap().0, users.count()), (7, 1));
        table.remove(*mine);
        assert_eq!((table.owned(*mine), users.count()), (None, 0));
    }

    #[test]
    fn as_many_live_as_the_limit_says() {
        let table = Table::new(1, 0xff_0000, 3000);
        let made: Vec<u32> = (0..3000).map(|_| *table.insert(|number| number).unwrap()).collect();
        assert!(table.insert(|number| number).is_none());
        assert!(table.capacity() <= 4 * 3000);
        assert!(made.iter().all(|number| table.get(*number).as_deref() == Some(number)));
        assert_eq!(table.all().iter().map(|(number, _)| *number).collect::<Vec<_>>(), made);
        // All but a few go: those few are still there, and new ones find place between them.
        made.iter().filter(|number| **number % 100 != 0).for_each(|number| drop(table.remove(*number)));
        (0..2000).for_each(|_| drop(table.insert(|number| number).unwrap()));
        assert!(made.iter().filter(|number| **number % 100 == 0).all(|number| table.get(*number).is_some()));
    }
}
