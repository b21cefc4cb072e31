// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images of a power cut against a model: random writes, discards, flushes, holds, resets.

use proptest::prelude::*;

use crate::testing::*;
use crate::*;
use virtio::VirtioDevice;

const PAGES: u64 = 8;
const SECTORS: u64 = PAGES * 8;

#[derive(Debug, Clone)]
enum Step {
    /// First page, pages, where to hold.
    Write(u64, u64, Option<HoldPoint>),
    Discard(u64, u64, Option<HoldPoint>),
    Flush(Option<HoldPoint>),
    /// Releases the n-th of the held.
    Release(usize),
    Reset,
}

fn hold() -> impl Strategy<Value = Option<HoldPoint>> {
    prop_oneof![3 => Just(None), 1 => Just(Some(HoldPoint::BeforeData)), 2 => Just(Some(HoldPoint::BeforeComplete))]
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..PAGES, 1..4_u64).prop_map(|(first, len)| (first, len.min(PAGES - first)));
    prop_oneof![
        8 => (range.clone(), hold()).prop_map(|((first, len), hold)| Step::Write(first, len, hold)),
        1 => (range, hold()).prop_map(|((first, len), hold)| Step::Discard(first, len, hold)),
        4 => hold().prop_map(Step::Flush),
        4 => (0..4_usize).prop_map(Step::Release),
        1 => Just(Step::Reset),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Pending,
    Done(u64),
    Gone(u64),
    Durable,
}

struct Change {
    pages: std::ops::Range<u64>,
    byte: u8,
    fate: Fate,
}

/// What the disk must hold, from the definition: the last surviving change of each page, in the order of storing.
#[derive(Default)]
struct Model {
    changes: Vec<Change>,
    clock: u64,
}

impl Model {
    fn store(&mut self, pages: std::ops::Range<u64>, byte: u8) -> usize {
        self.changes.push(Change { pages, byte, fate: Fate::Pending });
        self.changes.len() - 1
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn flushed(&mut self, arrival: u64) {
        for change in &mut self.changes {
            if matches!(change.fate, Fate::Done(at) | Fate::Gone(at) if at < arrival) {
                change.fate = Fate::Durable;
            }
        }
    }

    fn image(&self, cut: PowerCut) -> Vec<u8> {
        let mut image = vec![0; PAGES as usize];
        for change in &self.changes {
            let survives = match cut {
                PowerCut::Kind => matches!(change.fate, Fate::Done(_) | Fate::Durable),
                PowerCut::Cruel => change.fate == Fate::Durable,
                PowerCut::Drawn { .. } => continue,
            };
            if survives {
                image[change.pages.start as usize..change.pages.end as usize].fill(change.byte);
            }
        }
        image
    }

    /// What a page may have after a cut that is drawn: what is durable, or a later change.
    fn versions(&self, page: u64) -> Vec<u8> {
        let mut versions = vec![0];
        for change in self.changes.iter().filter(|change| change.pages.contains(&page)) {
            if change.fate == Fate::Durable {
                versions.clear();
            }
            versions.push(change.byte);
        }
        versions
    }
}

/// A request in the rings: what the model must do when it goes on.
struct Held {
    ticket: Ticket,
    lever: LeverId,
    what: What,
}

enum What {
    /// Not stored yet.
    Unstored(std::ops::Range<u64>, u8),
    Stored(usize),
    Flush(u64),
}

struct Run {
    driver: Driver,
    model: Model,
    held: Vec<Held>,
    byte: u8,
}

impl Run {
    fn change(&mut self, kind: u32, first: u64, len: u64, hold: Option<HoldPoint>) {
        self.byte = self.byte % 250 + 1;
        let slot = DATA + u64::from(self.byte) * 0x4000;
        let byte = if kind == OUT { self.byte } else { 0 };
        let data = if kind == OUT {
            self.driver.put(slot, &vec![byte; len as usize * 4096]);
            (slot, len as u32 * 4096)
        } else {
            let segment = [&(first * 8).to_le_bytes()[..], &(len as u32 * 8).to_le_bytes(), &[0; 4]].concat();
            self.driver.put(slot, &segment);
            (slot, 16)
        };
        let pages = first..first + len;
        let op = if kind == OUT { BlkOp::Write } else { BlkOp::Discard };
        let what = |model: &mut Model, point| match point {
            HoldPoint::BeforeData => What::Unstored(pages.clone(), byte),
            HoldPoint::BeforeComplete => What::Stored(model.store(pages.clone(), byte)),
        };
        self.submit(kind, first * 8, &[data], op, hold, what);
    }

    fn flush(&mut self, hold: Option<HoldPoint>) {
        let arrival = self.model.tick();
        self.submit(FLUSH, 0, &[], BlkOp::Flush, hold, |_, _| What::Flush(arrival));
    }

    fn submit(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[(u64, u32)],
        op: BlkOp,
        hold: Option<HoldPoint>,
        what: impl Fn(&mut Model, HoldPoint) -> What,
    ) {
        // The driver has eight slots.
        let hold = hold.filter(|_| self.held.len() < 6);
        let Some(point) = hold else {
            assert_eq!(self.driver.run(kind, sector, data), S_OK);
            let what = what(&mut self.model, HoldPoint::BeforeData);
            return self.complete(what);
        };
        let lever = self.driver.handle.arm(Lever::new(op, point, SOON));
        let ticket = self.driver.submit(0, kind, sector, data);
        self.driver.handle.wait_held(lever, SOON).unwrap();
        let what = what(&mut self.model, point);
        self.held.push(Held { ticket, lever, what });
    }

    fn complete(&mut self, what: What) {
        let index = match what {
            What::Unstored(pages, byte) => self.model.store(pages, byte),
            What::Stored(index) => index,
            What::Flush(arrival) => return self.model.flushed(arrival),
        };
        let now = self.model.tick();
        self.model.changes[index].fate = Fate::Done(now);
    }

    fn release(&mut self, nth: usize) {
        if nth < self.held.len() {
            let held = self.held.remove(nth);
            self.driver.handle.release(held.lever).unwrap();
            assert_eq!(self.driver.wait(held.ticket), S_OK);
            self.complete(held.what);
        }
    }

    fn reset(&mut self) {
        self.driver.device.reset();
        let now = self.model.tick();
        for held in self.held.drain(..) {
            if let What::Stored(index) = held.what {
                self.model.changes[index].fate = Fate::Gone(now);
            }
        }
        self.driver.activate();
    }

    fn compare(&self) {
        for cut in [PowerCut::Kind, PowerCut::Cruel] {
            let path = self.driver.image("cut.raw");
            let frozen = self.driver.handle.freeze(cut, &path).unwrap();
            assert!(frozen.exact);
            let image = std::fs::read(&path).unwrap();
            assert_eq!(image.len() as u64, SECTORS * 512);
            for (page, (content, byte)) in image.chunks(4096).zip(self.model.image(cut)).enumerate() {
                assert!(content.iter().all(|b| *b == byte), "{cut:?} page {page}: {} != {byte}", content[0]);
            }
        }
        let path = self.driver.image("drawn.raw");
        let nth = self.model.changes.len() as u32;
        self.driver.handle.freeze(PowerCut::Drawn { seed: 1, nth, tear: true }, &path).unwrap();
        for (sector, content) in std::fs::read(&path).unwrap().chunks(512).enumerate() {
            let allowed = self.model.versions(sector as u64 / 8);
            assert!(allowed.contains(&content[0]), "drawn, sector {sector}: {} not of {allowed:?}", content[0]);
            assert!(content.iter().all(|b| *b == content[0]));
        }
        let open = |change: &&Change| change.fate != Fate::Durable;
        assert_eq!(self.driver.handle.unflushed(), self.model.changes.iter().filter(open).count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn both_images_equal_the_model_and_a_drawn_one_lies_between(steps in prop::collection::vec(step(), 1..40)) {
        let driver = Driver::new(SECTORS, |c| c.track = true);
        let mut run = Run { driver, model: Model::default(), held: Vec::new(), byte: 0 };
        for step in steps {
            match step {
                Step::Write(first, len, hold) => run.change(OUT, first, len, hold),
                Step::Discard(first, len, hold) => run.change(DISCARD, first, len, hold),
                Step::Flush(hold) => run.flush(hold),
                Step::Release(nth) => run.release(nth),
                Step::Reset => run.reset(),
            }
            run.compare();
        }
    }
}

#[test]
fn a_flush_covers_only_what_was_completed_when_it_arrived() {
    let mut driver = Driver::new(SECTORS, |c| c.track = true);
    let flush = driver.handle.arm(Lever::new(BlkOp::Flush, HoldPoint::BeforeData, SOON));
    driver.write_page(0, 1);
    let ticket = driver.submit(0, FLUSH, 0, &[]);
    driver.handle.wait_held(flush, SOON).unwrap();
    driver.write_page(8, 2);
    driver.handle.release(flush).unwrap();
    assert_eq!(driver.wait(ticket), S_OK);
    let image = driver.image("cruel");
    let frozen = driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    let bytes = std::fs::read(&image).unwrap();
    assert_eq!((bytes[0], bytes[4096], frozen.undone), (1, 0, 1));
    // The moment is on record, and a later kind cut replaces the image.
    assert_eq!(driver.ledger.notes(frozen.at)[0].1.text, "power cut (Cruel) of disk 0");
    driver.handle.freeze(PowerCut::Kind, &image).unwrap();
    assert_eq!(std::fs::read(&image).unwrap()[4096], 2);
}

#[test]
fn images_are_sparse_and_nothing_half_written_stays() {
    use std::os::unix::fs::MetadataExt;
    let mut driver = Driver::new(1 << 20, |c| c.track = true);
    driver.write_page(1 << 19, 1);
    let image = driver.image("sparse");
    driver.handle.freeze(PowerCut::Kind, &image).unwrap();
    let meta = std::fs::metadata(&image).unwrap();
    assert_eq!(meta.len(), 512 << 20);
    assert!(meta.blocks() < 2048, "{} blocks", meta.blocks());
    let nowhere = driver.image("missing").join("image");
    assert!(matches!(driver.handle.freeze(PowerCut::Kind, &nowhere), Err(BlockError::Image { .. })));
    let itself = driver.handle.path();
    assert!(matches!(driver.handle.freeze(PowerCut::Kind, &itself), Err(BlockError::OntoItself(_))));
    // A directory in the way: the rename fails, and the temporary file goes.
    let taken = driver.image("taken");
    std::fs::create_dir(&taken).unwrap();
    assert!(driver.handle.freeze(PowerCut::Kind, &taken).is_err());
    let mut names: Vec<_> = std::fs::read_dir(driver.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["disk.raw", "sparse", "taken"]);
    let untracked = Driver::new(SECTORS, |_| {});
    let error = untracked.handle.freeze(PowerCut::Kind, &untracked.image("x")).unwrap_err();
    assert!(matches!(error, BlockError::NotTracked(_)));
}
