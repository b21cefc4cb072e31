// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Broken and malicious rings: the device fails until reset or refuses the request; it never panics or hangs.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use crate::testing::*;
use crate::*;
use virtio::VirtioDevice;

/// The worker answers orders: it is alive and not lost in a loop.
fn assert_alive(driver: &mut Driver) {
    let start = Instant::now();
    driver.device.reset();
    assert!(start.elapsed() < Duration::from_secs(5), "reset took {:?}", start.elapsed());
    driver.recover();
}

fn fails(what: &str, attack: impl FnOnce(&mut Driver)) {
    let mut driver = Driver::new(64, |_| {});
    assert_eq!(driver.write_page(0, 1), S_OK);
    attack(&mut driver);
    driver.kick(0);
    Driver::until(what, || driver.failed());
    // Failed means deaf: a good request gets no answer any more.
    let before = driver.handle.stats().completed;
    let good = driver.prepare(0, FLUSH, 0, &[]);
    driver.publish(0, &[good.head]);
    driver.kick(0);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!((driver.handle.stats().completed, driver.handle.stats().failures), (before, 1), "{what}");
    assert_alive(&mut driver);
}

/// Publishes head 0 with the given chain of (address, length, flags).
fn chain(driver: &mut Driver, chain: &[(u64, u32, u16)]) {
    let table = driver.ring_area(0);
    driver.write_chain(table, 0, chain);
    driver.publish(0, &[0]);
}

/// A good header for a read of sector 0 at DATA - 64.
fn header(driver: &Driver) -> (u64, u32, u16) {
    driver.put(DATA - 64, &[0; 16]);
    (DATA - 64, 16, 0)
}

#[test]
fn an_available_index_far_ahead() {
    fails("idx", |driver| driver.set_avail_idx(0, 500));
}

#[test]
fn a_head_beyond_the_table() {
    fails("head", |driver| driver.publish(0, &[64]));
    fails("head", |driver| driver.publish(0, &[u16::MAX]));
}

#[test]
fn a_loop_of_descriptors() {
    fails("loop", |driver| {
        driver.descriptor(0, 0, DATA, 16, NEXT, 1);
        driver.descriptor(0, 1, DATA, 16, NEXT, 0);
        driver.publish(0, &[0]);
    });
    fails("a loop of one", |driver| {
        driver.descriptor(0, 0, DATA, 512, NEXT | WRITE, 0);
        driver.publish(0, &[0]);
    });
}

#[test]
fn a_next_beyond_the_table() {
    fails("next", |driver| {
        driver.descriptor(0, 0, DATA, 16, NEXT, 64);
        driver.publish(0, &[0]);
    });
}

#[test]
fn bad_indirect_tables() {
    // Not whole descriptors, empty, huge, outside RAM, wrapping.
    for (gpa, len) in [(DATA, 17), (DATA, 0), (DATA, 0xffff_fff0), (RAM_BYTES, 32), (u64::MAX - 8, 32)] {
        fails("table", |driver| {
            driver.descriptor(0, 0, gpa, len, INDIRECT, 0);
            driver.publish(0, &[0]);
        });
    }
    fails("an indirect table in an indirect table", |driver| {
        driver.write_chain(DATA, 0, &[(DATA, 32, INDIRECT), (DATA, 16, 0)]);
        driver.descriptor(0, 0, DATA, 32, INDIRECT, 0);
        driver.publish(0, &[0]);
    });
    fails("an indirect chain longer than the queue", |driver| {
        let mut table: Vec<_> = (0..64).map(|_| (DATA - 64, 16, 0)).collect();
        table.push((DATA - 64, 1, WRITE));
        driver.write_chain(DATA, 0, &table);
        driver.descriptor(0, 0, DATA, 65 * 16, INDIRECT, 0);
        driver.publish(0, &[0]);
    });
    fails("an indirect loop", |driver| {
        driver.write_chain(DATA, 0, &[(DATA, 16, NEXT)]);
        driver.descriptor(0, 0, DATA, 0x8_0000, INDIRECT, 0);
        driver.ram.write_obj(0_u16, GuestAddress(DATA + 14)).unwrap();
        driver.publish(0, &[0]);
    });
}

#[test]
fn no_status_byte() {
    fails("nothing writable", |driver| {
        let header = header(driver);
        chain(driver, &[header]);
    });
    fails("nothing but empty writable buffers", |driver| {
        let header = header(driver);
        chain(driver, &[header, (DATA, 0, WRITE), (DATA, 0, WRITE)]);
    });
    fails("outside RAM", |driver| {
        let header = header(driver);
        chain(driver, &[header, (RAM_BYTES, 1, WRITE)]);
    });
    fails("at the end of all addresses", |driver| {
        let header = header(driver);
        chain(driver, &[header, (u64::MAX, 2, WRITE)]);
    });
}

#[test]
fn readable_after_writable() {
    fails("order", |driver| {
        let header = header(driver);
        chain(driver, &[header, (DATA, 512, WRITE), (DATA, 512, 0), (DATA, 1, WRITE)]);
    });
}

#[test]
fn more_than_four_gigabytes_in_one_chain() {
    fails("total length", |driver| {
        let header = header(driver);
        chain(driver, &[header, (DATA, u32::MAX, WRITE), (DATA, u32::MAX, WRITE), (DATA, 1, WRITE)]);
    });
}

#[test]
fn bus_mastering_switched_off() {
    let mut driver = Driver::new(64, |_| {});
    driver.master.set(false);
    driver.submit(0, FLUSH, 0, &[]);
    driver.await_failure();
    driver.master.set(true);
    assert_alive(&mut driver);
}

#[test]
fn bus_mastering_switched_off_under_a_held_read() {
    let mut driver = Driver::new(64, |_| {});
    let lever = driver.handle.arm(Lever::new(BlkOp::Read, HoldPoint::BeforeData, SOON));
    driver.put(DATA, &[7; 4096]);
    driver.submit(0, IN, 0, &[(DATA, 4096)]);
    driver.handle.wait_held(lever, SOON).unwrap();
    driver.master.set(false);
    driver.handle.release(lever).unwrap();
    driver.await_failure();
    assert_eq!(driver.get(DATA, 4096), [7; 4096]);
    assert_eq!(driver.handle.lever_state(lever).unwrap().cancelled, 1);
    driver.master.set(true);
    assert_alive(&mut driver);
}

#[test]
fn rings_outside_memory() {
    use virtio_queue::QueueT;
    let mut driver = Driver::inactive(64, |_| {});
    driver.activate();
    driver.device.reset();
    let mut queue = virtio_queue::Queue::new(64).unwrap();
    queue.set_desc_table_address(Some(RAM_BYTES as u32), Some(0));
    queue.set_avail_ring_address(Some(0xffff_fff0), Some(0xffff_ffff));
    queue.set_ready(true);
    let kick = std::sync::Arc::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
    driver.activate_with(vec![virtio::ActiveQueue { index: 0, queue, kick }]).unwrap();
    driver.await_failure();
    assert_alive(&mut driver);
}

#[test]
fn a_failure_cancels_what_is_held() {
    let mut driver = Driver::new(64, |c| c.track = true);
    let lever = driver.handle.arm(Lever::new(BlkOp::Write, HoldPoint::BeforeComplete, SOON));
    driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(lever, SOON).unwrap();
    driver.set_avail_idx(0, 999);
    driver.kick(0);
    driver.await_failure();
    let state = driver.handle.lever_state(lever).unwrap();
    assert_eq!((state.cancelled, state.held.len()), (1, 0));
    assert!(driver.ledger.request(request).unwrap().aborted.is_some());
    // Nothing is in flight any more: what stops this swap is the lock of the file itself.
    assert!(matches!(driver.handle.swap(&driver.handle.path()), Err(BlockError::InUse(_))));
    assert_alive(&mut driver);
}

#[test]
fn odd_but_answerable_requests_get_a_status() {
    let mut driver = Driver::new(64, |_| {});
    for chain_of in [
        // Header short, missing, or outside RAM.
        vec![(DATA - 64, 15, 0), (DATA, 1, WRITE)],
        vec![(DATA, 1, WRITE)],
        vec![(RAM_BYTES - 8, 16, 0), (DATA, 1, WRITE)],
        vec![(u64::MAX - 3, 16, 0), (DATA, 1, WRITE)],
        // Data that is not RAM, or too long for the disk.
        vec![(DATA - 64, 16, 0), (RAM_BYTES - 256, 512, WRITE), (DATA, 1, WRITE)],
        vec![(DATA - 64, 16, 0), (0, u32::MAX - 511 - 16, WRITE), (DATA, 1, WRITE)],
    ] {
        driver.put(DATA - 64, &[0; 16]);
        driver.put(DATA, &[0xee]);
        chain(&mut driver, &chain_of);
        driver.kick(0);
        Driver::until("a status", || driver.get(DATA, 1) != [0xee]);
        assert_eq!((driver.get(DATA, 1), driver.failed()), (vec![S_IOERR], false), "{chain_of:?}");
    }
    // A header in sixteen pieces, with empty buffers between, is fine.
    let mut pieces: Vec<_> = (0..16).map(|n| (DATA - 64 + n, 1, 0)).collect();
    pieces.insert(3, (0, 0, 0));
    pieces.extend([(DATA + 4096, 512, WRITE), (DATA, 1, WRITE), (DATA, 0, WRITE)]);
    driver.put(DATA, &[0xee]);
    chain(&mut driver, &pieces);
    driver.kick(0);
    Driver::until("a status", || driver.get(DATA, 1) == [S_OK]);
}

/// Bytes that mean something more often than random ones do.
fn scribble() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let at =
        prop_oneof![4 => 0..0x400_u64, 1 => 0x8000..0x8100_u64, 1 => 0xa000..0xa300_u64, 2 => 0x1_0000..0x1_0100_u64];
    let address = prop_oneof![0..RAM_BYTES, Just(DATA), Just(0x10_0000 + 0x1_0000), Just(RAM_BYTES - 1), any::<u64>(),];
    let len_flags_next = (
        prop_oneof![Just(16_u64), Just(1), Just(512), 0..0x2000_u64, any::<u32>().prop_map(u64::from)],
        0..8_u64,
        0..70_u64,
    )
        .prop_map(|(len, flags, next)| len | flags << 32 | next << 48);
    prop::collection::vec(
        (at.prop_map(|at| at & !7), prop_oneof![address, len_flags_next, 0..14_u64, any::<u64>()]),
        1..200,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn scribbled_rings_never_hang_or_kill(words in scribble(), heads in prop::collection::vec(0..70_u16, 1..60), idx in any::<Option<u16>>(), hold in any::<bool>()) {
        let mut driver = Driver::new(2048, |c| c.track = true);
        for n in 0..7 {
            let ticket = driver.prepare(0, [IN, OUT, FLUSH, GET_ID][n % 4], n as u64, &[(DATA + n as u64 * 4096, 4096)]);
            prop_assert!(ticket.head < 64);
        }
        if hold {
            driver.handle.arm(Lever { times: 3, ..Lever::new(RequestMatch::default(), HoldPoint::BeforeData, Duration::from_millis(20)) });
        }
        let base = driver.ring_area(0);
        for (at, word) in words {
            driver.ram.write_slice(&word.to_le_bytes(), GuestAddress(base + at)).unwrap();
        }
        for part in heads.chunks(8) {
            driver.publish(0, part);
            driver.kick(0);
        }
        if let Some(idx) = idx {
            driver.set_avail_idx(0, idx);
            driver.kick(0);
        }
        // Bounded time: the worker gets to its orders whatever the rings say.
        let start = Instant::now();
        let reports = driver.handle.disarm_all();
        prop_assert!(reports.iter().all(|(_, report)| report.is_ok()));
        driver.device.reset();
        prop_assert!(start.elapsed() < Duration::from_secs(5));
        let stats = driver.handle.stats();
        let all: u64 = driver.ledger.requests(0).len() as u64;
        prop_assert!(stats.completed + stats.cancelled <= all);
        prop_assert!(driver.ledger.totals()[0].agree());
        driver.recover();
    }
}
