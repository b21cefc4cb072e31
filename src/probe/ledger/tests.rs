// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

#[test]
fn sixty_four_pages_can_be_watched() {
    let ledger = Ledger::new();
    assert!(!ledger.watches_any());
    for page in 0..MAX_WATCHED as u64 {
        assert!(ledger.watch(page * PAGE_SIZE + 5));
    }
    assert!(ledger.watch(0), "watched already");
    assert!(!ledger.watch(1 << 30));
    assert!(ledger.watches(63 * PAGE_SIZE) && !ledger.watches(64 * PAGE_SIZE));
    ledger.unwatch_all();
    assert!(!ledger.watches(0));
}

#[test]
fn hashes_tell_half_old_from_half_new() {
    let (old, new) = (vec![0xaa_u8; 4096], vec![0x55_u8; 4096]);
    let mut torn = new.clone();
    torn[2048..].copy_from_slice(&old[2048..]);
    let (old, new, torn) = (PageHash::of(0, &old), PageHash::of(0, &new), PageHash::of(0, &torn));
    assert_eq!(torn.sectors[..4], new.sectors[..4]);
    assert_eq!(torn.sectors[4..], old.sectors[4..]);
    assert!(torn.whole != new.whole && torn.whole != old.whole);
    let part = PageHash::of(256, &[1; 1024]);
    assert_eq!(part.sectors.map(|s| s != 0), [false, true, false, false, false, false, false, false]);
    assert_ne!(PageHash::of(0, &[]).whole, 0);
    // One bit anywhere changes the hash.
    for bit in 0..4096 * 8 {
        let mut page = vec![0_u8; 4096];
        page[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(PageHash::of(0, &page).whole, PageHash::of(0, &vec![0; 4096]).whole);
    }
}

#[test]
fn absurd_ranges_end() {
    assert_eq!(pages(u64::MAX - 1, u64::MAX).collect::<Vec<_>>(), [(u64::MAX - 1, 1)]);
    assert_eq!(pages(0x1000, 0).count(), 0);
    assert_eq!(pages(0xfff, 0x1002).collect::<Vec<_>>(), [(0xfff, 1), (0x1000, 0x1000), (0x2000, 1)]);
}

#[test]
fn marks_are_in_order_bounded_and_cut_between_characters() {
    let ledger = Ledger::new();
    let first = ledger.stamp(Note::new("ä".repeat(600)));
    let second = ledger.stamp(Note::new("b"));
    let notes = ledger.notes(0);
    assert_eq!((notes.len(), notes[0].0, notes[0].1.text.len(), second > first), (2, first, 1024, true));
    assert_eq!(ledger.notes(second), [(second, Note::new("b"))]);
}

#[test]
fn each_kind_of_device_has_one_book() {
    #[derive(Default)]
    struct Mine(AtomicU64);
    #[derive(Default)]
    struct Theirs(AtomicU64);
    let ledger = Ledger::new();
    ledger.book::<Mine>().0.store(5, Ordering::Relaxed);
    assert_eq!(ledger.book::<Theirs>().0.load(Ordering::Relaxed), 0);
    assert_eq!(ledger.book::<Mine>().0.load(Ordering::Relaxed), 5);
}

#[test]
fn the_parts_of_a_range_that_are_watched() {
    let ledger = Ledger::new();
    ledger.watch(0x2000);
    ledger.watch(0x4000);
    let parts = |gpa, len| ledger.watched_parts(gpa, len).collect::<Vec<_>>();
    let any = |gpa, len| {
        assert_eq!(ledger.watches_any_of(gpa, len), !parts(gpa, len).is_empty());
        ledger.watches_any_of(gpa, len)
    };
    assert!(any(0, 0x8000) && any(0x2fff, 1) && any(0x1fff, 2) && any(0x4000, 1));
    assert!(!any(0x2000, 0) && !any(0x1000, 0x1000) && !any(0x3000, 0x1000) && !any(0x5000, 0x9000));
    assert!(!ledger.watches_any_of(0x5000, u64::MAX) && ledger.watches_any_of(0x4fff, u64::MAX));
    assert_eq!(parts(0x1ff0, 0x3000), [(0x2000, 0x1000), (0x4000, 0xff0)]);
    assert_eq!(parts(0x2ffe, 1), [(0x2ffe, 1)]);
    assert_eq!(parts(0x3000, 0x1000), []);
    ledger.set_on(false);
    assert_eq!(parts(0x2000, 1), []);
}
