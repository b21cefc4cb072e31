// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X: masks latch and replay, routes follow, and no race loses a message.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use super::MsiRouter;
use super::msix::{ENTRY_SIZE, Msix, MsixPlace};
use super::testing::FakeRouter;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const VECTORS: u16 = 70;

fn table() -> (Msix, Arc<FakeRouter>, u64) {
    let router = Arc::new(FakeRouter::default());
    let (place, size) = MsixPlace::own_bar(2, VECTORS);
    assert_eq!(size, 0x1000);
    (Msix::new(VECTORS, place, router.clone()), router, u64::from(place.pending))
}

fn set(msix: &Msix, vector: u16, dword: u64, value: u32) {
    msix.write(u64::from(vector) * ENTRY_SIZE + dword * 4, &value.to_le_bytes());
}

fn get<const N: usize>(msix: &Msix, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    msix.read(offset, &mut data);
    data
}

fn unmask(msix: &Msix, vector: u16) {
    set(msix, vector, 3, 0);
}

fn mask(msix: &Msix, vector: u16) {
    set(msix, vector, 3, 1);
}

#[test]
fn a_masked_vector_latches_and_replays_once() {
    let (msix, router, pending) = table();
    msix.set_control(ENABLE, true);
    msix.trigger(65);
    msix.trigger(65);
    assert!(router.take().is_empty());
    assert_eq!(u64::from_le_bytes(get(&msix, pending + 8)), 2);
    assert_eq!(u32::from_le_bytes(get(&msix, pending + 8)), 2);
    assert_eq!(u64::from_le_bytes(get(&msix, pending)), 0);
    unmask(&msix, 65);
    assert_eq!(router.take(), [65]);
    assert_eq!(u64::from_le_bytes(get(&msix, pending + 8)), 0);
    msix.trigger(65);
    assert_eq!(router.take(), [65]);
    mask(&msix, 65);
    msix.trigger(65);
    msix.clear_pending();
    unmask(&msix, 65);
    assert!(router.take().is_empty());
}

#[test]
fn the_function_mask_holds_every_vector() {
    let (msix, router, _) = table();
    msix.set_control(ENABLE | FUNCTION_MASK, true);
    unmask(&msix, 0);
    unmask(&msix, 1);
    msix.trigger(0);
    msix.trigger(1);
    msix.trigger(2);
    assert!(router.take().is_empty());
    assert!(router.routes.lock().is_empty(), "what cannot speak needs no route yet");
    msix.set_control(ENABLE, true);
    assert_eq!(router.take(), [0, 1]);
    unmask(&msix, 2);
    assert_eq!(router.take(), [2]);
}

#[test]
fn a_function_that_may_not_write_latches() {
    let (msix, router, pending) = table();
    msix.set_control(ENABLE, false);
    unmask(&msix, 0);
    msix.trigger(0);
    msix.trigger(0);
    assert!(router.take().is_empty());
    assert_eq!(u32::from_le_bytes(get(&msix, pending)), 1);
    msix.set_control(ENABLE, true);
    assert_eq!(router.take(), [0]);
    assert_eq!(u32::from_le_bytes(get(&msix, pending)), 0);
}

#[test]
fn disabled_or_absent_vectors_do_nothing() {
    let (msix, router, pending) = table();
    unmask(&msix, 0);
    msix.trigger(0);
    msix.set_control(ENABLE, true);
    msix.trigger(VECTORS);
    msix.trigger(0xffff);
    assert!(router.take().is_empty());
    assert_eq!(u64::from_le_bytes(get(&msix, pending)), 0);
    msix.trigger(0);
    assert_eq!(router.take(), [0]);
    msix.reset();
    msix.trigger(0);
    msix.set_control(ENABLE, true);
    msix.trigger(0);
    assert!(router.take().is_empty(), "masked again");
}

#[test]
fn routes_follow_address_and_data() {
    let (msix, router, _) = table();
    msix.write(0, &0x1_fee0_1003_u64.to_le_bytes());
    set(&msix, 0, 2, 0x41);
    unmask(&msix, 0);
    assert!(router.routes.lock().is_empty(), "MSI-X is off");
    msix.set_control(ENABLE, true);
    assert_eq!(*router.routes.lock(), [(0, 0x1_fee0_1000, 0x41)], "reserved address bits read as zero");
    mask(&msix, 0);
    set(&msix, 0, 2, 0x42);
    msix.trigger(0);
    assert_eq!(router.routes.lock().len(), 1);
    unmask(&msix, 0);
    assert_eq!(router.routes.lock()[1..], [(0, 0x1_fee0_1000, 0x42)]);
    assert_eq!(router.take(), [0], "sent after the new route");
    mask(&msix, 0);
    unmask(&msix, 0);
    assert_eq!(router.routes.lock().len(), 2, "an unchanged route is not told twice");
}

#[test]
fn a_failed_route_keeps_the_message() {
    let (msix, router, pending) = table();
    router.broken.store(true, Ordering::Relaxed);
    msix.set_control(ENABLE, true);
    unmask(&msix, 3);
    msix.trigger(3);
    assert_eq!(u64::from_le_bytes(get(&msix, pending)), 8);
    router.broken.store(false, Ordering::Relaxed);
    unmask(&msix, 3);
    assert_eq!(router.take(), [3]);
}

#[test]
fn wrong_sizes_and_holes() {
    let (msix, _, pending) = table();
    set(&msix, 1, 2, 0x1234_5678);
    for (offset, len) in [(24, 1), (24, 2), (25, 4), (28, 8), (24, 3)] {
        msix.write(offset, &[0xff; 8][..len]);
        let mut data = [0; 8];
        msix.read(offset, &mut data[..len]);
        assert!(data[..len].iter().all(|byte| *byte == 0xff), "{len} bytes at {offset}");
    }
    assert_eq!(get(&msix, 24), [0x78, 0x56, 0x34, 0x12, 1, 0, 0, 0]);
    msix.write(pending, &[0xff; 8]);
    assert_eq!(get(&msix, pending), [0; 8], "pending bits are read-only");
    assert_eq!(get(&msix, pending + 16), [0xff; 8], "beyond the pending bits");
    assert_eq!(get(&msix, u64::from(VECTORS) * ENTRY_SIZE), [0xff; 4], "beyond the table");
    assert_eq!(get(&msix, u64::MAX - 7), [0xff; 8]);
    assert!(msix.covers(2, 0) && msix.covers(2, pending + 15) && !msix.covers(2, pending + 16) && !msix.covers(0, 0));
}

/// Sees, at each message, how many events had happened; a message while the guest knows the vector to be masked is an error.
#[derive(Default)]
struct Watcher {
    events: AtomicU64,
    seen: AtomicU64,
    masked: AtomicBool,
    strays: AtomicU64,
}

impl MsiRouter for Watcher {
    fn route(&self, _vector: u16, _address: u64, _data: u32) -> io::Result<()> {
        Ok(())
    }

    fn trigger(&self, _vector: u16) {
        if self.masked.load(Ordering::SeqCst) {
            self.strays.fetch_add(1, Ordering::SeqCst);
        }
        self.seen.fetch_max(self.events.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// Every event is followed by a message that the guest gets after it, however the guest masks and unmasks meanwhile.
fn race(close: impl Fn(&Msix), open: impl Fn(&Msix)) {
    const CYCLES: u32 = 30_000;
    let watcher = Arc::new(Watcher::default());
    let msix = Msix::new(4, MsixPlace::own_bar(2, 4).0, watcher.clone());
    msix.set_control(ENABLE, true);
    unmask(&msix, 0);
    let done = AtomicBool::new(false);
    let last = thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut event = 0;
            while !done.load(Ordering::SeqCst) {
                event += 1;
                watcher.events.store(event, Ordering::SeqCst);
                msix.trigger(0);
                let begun = Instant::now();
                while watcher.seen.load(Ordering::SeqCst) < event {
                    assert!(begun.elapsed() < Duration::from_secs(10), "event {event} was lost");
                    hint::spin_loop();
                }
            }
            event
        });
        for _ in 0..CYCLES {
            close(&msix);
            watcher.masked.store(true, Ordering::SeqCst);
            (0..50).for_each(|_| hint::spin_loop());
            watcher.masked.store(false, Ordering::SeqCst);
            open(&msix);
            (0..50).for_each(|_| hint::spin_loop());
        }
        // Unmasked for good: what is lost by now stays lost, and the producer says so.
        done.store(true, Ordering::SeqCst);
        producer.join().expect("an event was lost")
    });
    assert_eq!(watcher.seen.load(Ordering::SeqCst), last);
    assert!(last > 100, "only {last} events: this was no race");
    assert_eq!(watcher.strays.load(Ordering::SeqCst), 0, "messages left while the vector was masked");
}

#[test]
fn no_race_with_the_vector_mask_loses_a_message() {
    race(|msix| mask(msix, 0), |msix| unmask(msix, 0));
}

#[test]
fn no_race_with_the_function_mask_loses_a_message() {
    race(|msix| msix.set_control(ENABLE | FUNCTION_MASK, true), |msix| msix.set_control(ENABLE, true));
}
