// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A seqlock: several words that change as one, read without a lock.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// A number that goes up by two with each change and is odd during one. It never comes back to an earlier value, so words
/// between two equal readings belong together even if they changed and changed back meanwhile. Whoever owns it keeps writers
/// apart. The words are atomics of any ordering.
#[derive(Default)]
pub(super) struct Version(AtomicU64);

impl Version {
    /// What `copy` gives of one version, or `None` if the version kept changing: copy under the writers' lock then.
    pub(super) fn read<T>(&self, copy: impl Fn() -> T) -> Option<T> {
        for _ in 0..64 {
            let before = self.0.load(Ordering::Acquire);
            let copied = copy();
            fence(Ordering::Acquire);
            if before & 1 == 0 && self.0.load(Ordering::Relaxed) == before {
                return Some(copied);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Runs `store`, which changes the words.
    pub(super) fn change(&self, store: impl FnOnce()) {
        let version = self.0.load(Ordering::Relaxed) | 1;
        self.0.store(version, Ordering::Relaxed);
        fence(Ordering::Release);
        store();
        self.0.store(version + 1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Pair {
        version: Version,
        words: [AtomicU64; 2],
    }

    impl Pair {
        fn get(&self) -> Option<[u64; 2]> {
            self.version.read(|| [0, 1].map(|at: usize| self.words[at].load(Ordering::Relaxed)))
        }

        fn set(&self, value: u64) {
            self.version.change(|| self.words.iter().for_each(|word| word.store(value, Ordering::Relaxed)));
        }
    }

    #[test]
    fn a_writer_that_stands_still_in_the_middle_does_not_hold_readers_up() {
        let pair = Pair::default();
        pair.set(7);
        assert_eq!(pair.get(), Some([7; 2]));
        pair.version.0.fetch_add(1, Ordering::Relaxed);
        assert_eq!(pair.get(), None);
    }

    /// The first word reads the same before and after, and the second is from between.
    #[test]
    fn a_change_there_and_back_is_seen() {
        let pair = Pair::default();
        pair.set(7);
        let reads = AtomicU64::new(0);
        let seen = pair.version.read(|| {
            let one = pair.words[0].load(Ordering::Relaxed);
            if reads.fetch_add(1, Ordering::Relaxed) == 0 {
                pair.set(8);
            }
            let other = pair.words[1].load(Ordering::Relaxed);
            if reads.load(Ordering::Relaxed) == 1 {
                pair.set(7);
            }
            [one, other, pair.words[0].load(Ordering::Relaxed)]
        });
        assert_eq!((seen, reads.into_inner()), (Some([7; 3]), 2));
    }
}
