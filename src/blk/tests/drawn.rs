// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drawn power cuts against what a disk may leave: the log alone, over a file of a few sectors.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use crate::PowerCut;
use crate::undo::UndoLog;

const SECTORS: usize = 12;
/// One byte a sector.
type Image = [u8; SECTORS];

#[derive(Debug, Clone)]
enum Step {
    /// First sector, sectors, whether it completes.
    Write(usize, usize, bool),
    Flush,
    /// A reset: what has not completed never will.
    Abandon,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SECTORS, 1..5_usize).prop_map(|(first, len)| (first, len.min(SECTORS - first)));
    prop_oneof![
        6 => (range, any::<bool>()).prop_map(|((first, len), completes)| Step::Write(first, len, completes)),
        1 => Just(Step::Flush),
        1 => Just(Step::Abandon),
    ]
}

struct Change {
    sectors: std::ops::Range<usize>,
    byte: u8,
    completed: bool,
    durable: bool,
}

/// A file, its log, and what was done to it.
struct Disk {
    file: File,
    log: UndoLog,
    changes: Vec<Change>,
}

impl Disk {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS as u64 * 512).unwrap();
        Self { file, log: UndoLog::with_cap(1 << 20), changes: Vec::new() }
    }

    fn write(&mut self, first: usize, len: usize, completes: bool) {
        let byte = self.changes.len() as u8 + 1;
        let (token, at) = (u64::from(byte), first as u64 * 512);
        self.log.before(&self.file, token, at..at + len as u64 * 512).unwrap();
        self.file.write_all_at(&vec![byte; len * 512], at).unwrap();
        if completes {
            self.log.completed(token, false);
        }
        self.changes.push(Change { sectors: first..first + len, byte, completed: completes, durable: false });
    }

    fn flush(&mut self) {
        let arrival = self.log.flush_arrives();
        self.log.flushed(arrival);
        for change in &mut self.changes {
            change.durable |= change.completed;
        }
    }

    fn abandon(&mut self) {
        self.log.abandon_stored();
        // A later flush writes it out like what has completed.
        self.changes.iter_mut().for_each(|change| change.completed = true);
    }

    fn play(steps: &[Step]) -> Self {
        let mut disk = Self::new();
        for step in steps {
            match *step {
                Step::Write(first, len, completes) => disk.write(first, len, completes),
                Step::Flush => disk.flush(),
                Step::Abandon => disk.abandon(),
            }
        }
        disk
    }

    fn image(&self, cut: PowerCut) -> Image {
        let image = tempfile::tempfile().unwrap();
        let mut bytes = vec![0; SECTORS * 512];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        image.write_all_at(&bytes, 0).unwrap();
        self.log.undo_on(&image, cut).unwrap();
        image.read_exact_at(&mut bytes, 0).unwrap();
        std::array::from_fn(|sector| {
            let sector = &bytes[sector * 512..][..512];
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
            sector[0]
        })
    }

    /// What is there if of the changes that no flush covers those survive that `survives` says, by their number among them.
    fn with(&self, survives: impl Fn(usize) -> bool) -> Image {
        let (mut image, mut open) = ([0; SECTORS], 0);
        for change in &self.changes {
            open += usize::from(!change.durable);
            if change.durable || survives(open - 1) {
                image[change.sectors.clone()].fill(change.byte);
            }
        }
        image
    }

    /// Every image that some subset of whole writes leaves.
    fn subsets(&self) -> BTreeSet<Image> {
        let open = self.changes.iter().filter(|change| !change.durable).count();
        (0..1_u32 << open).map(|set| self.with(|number| set >> number & 1 == 1)).collect()
    }

    /// What a sector may have: what is durable, or a later version.
    fn versions(&self, sector: usize) -> BTreeSet<u8> {
        let mut versions = BTreeSet::from([0]);
        for change in self.changes.iter().filter(|change| change.sectors.contains(&sector)) {
            if change.durable {
                versions.clear();
            }
            versions.insert(change.byte);
        }
        versions
    }
}

fn drawn(seed: u64, nth: u32, tear: bool) -> PowerCut {
    PowerCut::Drawn { seed, nth, tear }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_drawn_image_is_one_that_a_disk_may_leave(steps in prop::collection::vec(step(), 1..10), seed in any::<u64>()) {
        let disk = Disk::play(&steps);
        let subsets = disk.subsets();
        prop_assert_eq!(disk.log.unflushed(), disk.changes.iter().filter(|change| !change.durable).count());
        for nth in 0..8 {
            let whole = disk.image(drawn(seed, nth, false));
            prop_assert!(subsets.contains(&whole), "no subset of whole writes leaves {:?}", whole);
            let torn = disk.image(drawn(seed, nth, true));
            for (sector, byte) in torn.iter().enumerate() {
                prop_assert!(disk.versions(sector).contains(byte), "sector {} cannot have {}: {:?}", sector, byte, torn);
            }
            prop_assert_eq!(torn, disk.image(drawn(seed, nth, true)), "a seed draws the same again");
        }
    }
}

/// Flushed, then three writes: one over two others, and one that is still under way.
fn small() -> Disk {
    let mut disk = Disk::new();
    disk.write(0, SECTORS, true);
    disk.flush();
    disk.write(0, 2, true);
    disk.write(1, 2, true);
    disk.write(8, 1, false);
    disk
}

#[test]
fn over_the_numbers_of_a_seed_each_subset_comes() {
    let disk = small();
    let found: BTreeSet<_> = (0..200).map(|nth| disk.image(drawn(1, nth, false))).collect();
    assert_eq!(found.len(), 8);
    assert_eq!(found, disk.subsets());
    let others: BTreeSet<_> = (0..200).map(|seed| disk.image(drawn(seed, 0, false))).collect();
    assert_eq!(others, found);
    // The two cuts that are not drawn are among them, but for the write under way that neither keeps.
    assert!(found.contains(&disk.image(PowerCut::Kind)) && found.contains(&disk.image(PowerCut::Cruel)));
}

#[test]
fn where_writes_tear_each_sector_comes_by_itself() {
    let disk = small();
    let found: BTreeSet<_> = (0..2000).map(|nth| disk.image(drawn(1, nth, true))).collect();
    // Sectors 0, 2 and 8 with two versions each, sector 1 with three.
    assert_eq!(found.len(), 2 * 3 * 2 * 2);
    let torn = |image: &Image| image[0] == 2 && image[1] == 1;
    assert!(found.iter().any(torn), "half of the second write");
}

#[test]
fn what_is_flushed_is_always_there() {
    let mut disk = small();
    disk.log.completed(4, false);
    disk.changes[3].completed = true;
    disk.flush();
    let images: BTreeSet<_> = (0..50).map(|nth| disk.image(drawn(7, nth, true))).collect();
    assert_eq!(images, BTreeSet::from([disk.image(PowerCut::Cruel)]));
    assert_eq!(disk.log.unflushed(), 0);
}

#[test]
fn a_long_log_is_left_nearly_whole_and_nearly_empty_and_in_order_too() {
    let mut disk = Disk::new();
    for number in 0..SECTORS * 10 {
        disk.write(number % SECTORS, 1, true);
    }
    let images: Vec<_> = (0..100).map(|nth| disk.image(drawn(3, nth, false))).collect();
    let in_order = |image: &Image| (0..=SECTORS * 10).any(|end| disk.with(|number| number < end) == *image);
    assert!(images.iter().filter(|image| in_order(image)).count() >= 10);
    assert!(images.iter().any(|image| !in_order(image)));
}
