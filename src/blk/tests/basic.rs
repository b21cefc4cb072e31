// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What works: transfers, flush, discard, configuration, several queues, notifications, swap and lock.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::device::feature;
use crate::hooks::{BlkOp, DiskLedger, OpCounts};
use crate::testing::*;
use crate::*;
use probe::ledger::Ledger;
use virtio::VirtioDevice;

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n / 512 * 7 + n) as u8 ^ seed).collect()
}

#[test]
fn round_trip_in_many_segments_direct_and_indirect() {
    let mut driver = Driver::new(2048, |_| {});
    for indirect in [false, true] {
        driver.indirect = indirect;
        let content = pattern(5 * 512, 1 + u8::from(indirect));
        driver.put(DATA, &content);
        // Split where no sector ends, over a page boundary.
        let out = [(DATA, 100), (DATA + 100, 1000), (DATA + 1100, 1460)];
        assert_eq!(driver.run(OUT, 3, &out), S_OK);
        assert_eq!(driver.on_disk(3, content.len()), content);
        let back = DATA + 0x10_0000 - 700;
        assert_eq!(driver.run(IN, 3, &[(back, 700), (back + 700, 1860)]), S_OK);
        assert_eq!(driver.get(back, content.len()), content);
    }
    let segments: Vec<_> = (0..60).map(|n| (DATA + n * 0x2000, 512)).collect();
    for (gpa, _) in &segments {
        driver.put(*gpa, &pattern(512, (*gpa >> 13) as u8));
    }
    assert_eq!(driver.run(OUT, 100, &segments), S_OK);
    assert_eq!(driver.on_disk(100 + 59, 512), pattern(512, (segments[59].0 >> 13) as u8));
    let stats = driver.handle.stats();
    assert_eq!((stats.requests.write, stats.requests.read, stats.completed), (3, 2, 5));
    assert!(driver.ledger.totals()[0].agree());
}

#[test]
fn the_used_length_is_what_the_device_wrote() {
    let mut driver = Driver::new(64, |_| {});
    driver.run(IN, 0, &[(DATA, 1024)]);
    let element = driver.get(driver.ring_area(0) + 0xa000 + 4 + 4, 4);
    assert_eq!(u32::from_le_bytes(element.try_into().unwrap()), 1025);
}

#[test]
fn serial_is_returned_and_padded() {
    let mut driver = Driver::new(64, |c| c.serial = "nonce-17".into());
    driver.put(DATA, &[0xff; 32]);
    assert_eq!(driver.run(GET_ID, 0, &[(DATA, 5), (DATA + 5, 15)]), S_OK);
    assert_eq!(driver.get(DATA, 21), b"nonce-17\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(driver.run(GET_ID, 0, &[(DATA, 19)]), S_IOERR);
}

#[test]
fn refusals_have_the_status_that_the_specification_names() {
    let mut driver = Driver::new(64, |_| {});
    let page = [(DATA, 4096)];
    for (what, kind, sector, data, status) in [
        ("unknown type", 99, 0, &page[..], S_UNSUPP),
        ("not whole sectors", OUT, 0, &[(DATA, 511)], S_IOERR),
        ("no data", OUT, 0, &[], S_IOERR),
        ("beyond the end", OUT, 57, &page, S_IOERR),
        ("far beyond the end", IN, 1 << 40, &page, S_IOERR),
        ("a sector that wraps", IN, u64::MAX, &page, S_IOERR),
        ("not guest memory", OUT, 0, &[(RAM_BYTES - 512, 1024)], S_IOERR),
        ("an address that wraps", IN, 0, &[(u64::MAX - 100, 512)], S_IOERR),
        ("a discard of half a segment", DISCARD, 0, &[(DATA, 8)], S_IOERR),
    ] {
        assert_eq!(driver.run(kind, sector, data), status, "{what}");
    }
    // The last page of the disk is fine, and nothing above has failed the device.
    assert_eq!(driver.run(OUT, 56, &page), S_OK);
    assert!(!driver.failed());
    assert_eq!(driver.handle.stats().refused, 9);
    assert_eq!(driver.master.refused(), 2);
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let mut driver = Driver::new(64, |c| c.readonly = true);
    assert_eq!(driver.device.features() & (feature::RO | feature::DISCARD), feature::RO);
    driver.put(DATA, &[1; 512]);
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        assert_eq!(driver.run(kind, 0, &[(DATA, 512)]), S_IOERR);
    }
    assert_eq!(driver.run(IN, 0, &[(DATA, 512)]), S_OK);
    assert_eq!(driver.get(DATA, 512), [0; 512]);
}

fn zero_segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn discard_and_write_zeroes() {
    let mut driver = Driver::new(4096, |_| {});
    let full = vec![7; 64 * 512];
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        driver.put(DATA, &full);
        assert_eq!(driver.run(OUT, 0, &[(DATA, 64 * 512)]), S_OK);
        let ranges = [zero_segment(8, 8, flags), zero_segment(20, 3, flags)].concat();
        driver.put(DATA, &ranges);
        // The ranges may be cut anywhere.
        assert_eq!(driver.run(kind, 0, &[(DATA, 5), (DATA + 5, 27)]), S_OK);
        let disk = driver.on_disk(0, 64 * 512);
        for (sector, content) in disk.chunks(512).enumerate() {
            let zeroed = (8..16).contains(&sector) || (20..23).contains(&sector);
            assert_eq!(content, [if zeroed { 0 } else { 7 }; 512], "{kind} sector {sector}");
        }
    }
    for (kind, segment, status) in [
        (DISCARD, zero_segment(0, 1, 1), S_UNSUPP),
        (WRITE_ZEROES, zero_segment(0, 1, 2), S_UNSUPP),
        (DISCARD, zero_segment(4090, 7, 0), S_IOERR),
        (DISCARD, zero_segment(u64::MAX, 2, 0), S_IOERR),
        (WRITE_ZEROES, zero_segment(0, u32::MAX, 0), S_IOERR),
        (WRITE_ZEROES, zero_segment(0, 1, 0).repeat(5), S_IOERR),
    ] {
        driver.put(DATA, &segment);
        assert_eq!(driver.run(kind, 0, &[(DATA, segment.len() as u32)]), status);
    }
    driver.device.reset();
    driver.features &= !feature::DISCARD;
    driver.activate();
    driver.put(DATA, &zero_segment(0, 1, 0));
    assert_eq!(driver.run(DISCARD, 0, &[(DATA, 16)]), S_UNSUPP);
}

#[test]
fn flushes_and_every_step_are_in_order_in_the_ledger() {
    let mut driver = Driver::new(64, |_| {});
    driver.write_page(0, 1);
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    driver.run(IN, 0, &[(DATA + 4096, 4096)]);
    let records = driver.ledger.requests(0);
    assert_eq!(records.iter().map(|r| r.op).collect::<Vec<_>>(), [BlkOp::Write, BlkOp::Flush, BlkOp::Read]);
    let [write, flush, read] = &records[..] else { panic!() };
    let order = [write.arrived, write.data_begin.unwrap(), write.data.unwrap(), write.completed.unwrap()];
    assert!(order.is_sorted() && write.stored == write.data);
    // Durable before acknowledged: the sync is stamped before the completion.
    assert!(flush.stored.unwrap() < flush.completed.unwrap() && flush.arrived > write.completed.unwrap());
    assert_eq!(read.stored, None);
    assert_eq!((write.status, write.pages[0].gpa, write.pages[0].lba), (Some(S_OK), DATA, 0));
    assert!(read.data_begin.unwrap() < read.data.unwrap() && read.data.unwrap() < read.completed.unwrap());
}

#[test]
fn configuration_space() {
    let mut driver = Driver::inactive(2048, |c| c.queues = 3);
    let mut space = [0xff_u8; 64];
    driver.device.config_read(0, &mut space);
    assert_eq!(space[..8], 2048_u64.to_le_bytes());
    assert_eq!(space[12..16], 62_u32.to_le_bytes());
    assert_eq!(space[20..24], 512_u32.to_le_bytes());
    assert_eq!((space[32], space[34], space[60]), (1, 3, 0));
    driver.device.features_ok(driver.features);
    driver.device.config_write(32, &[0]);
    driver.device.config_write(0, &[9; 8]);
    driver.device.config_write(31, &[9; 4]);
    driver.device.config_read(32, &mut space[..1]);
    assert_eq!(space[0], 0);
    driver.device.config_read(u64::MAX, &mut space[..8]);
    assert_eq!(space[..8], [0; 8]);
    assert_eq!(driver.device.queue_sizes(), [64; 3]);
    assert_eq!(driver.device.device_type(), 2);
    assert!(matches!(driver.activate_with(Vec::new()), Err(virtio::ActivateError::NoQueue)));
}

#[test]
fn all_queues_are_served() {
    let mut driver = Driver::new(4096, |c| c.queues = 4);
    for round in 0..40_u64 {
        let mut tickets = Vec::new();
        for queue in 0..4 {
            let gpa = DATA + 4096 * queue;
            driver.put(gpa, &[(round * 4 + queue) as u8; 4096]);
            tickets.push(driver.submit(queue as usize, OUT, (round * 4 + queue) * 8, &[(gpa, 4096)]));
        }
        for ticket in tickets {
            assert_eq!(driver.wait(ticket), S_OK);
        }
    }
    for n in 0..160_u64 {
        assert_eq!(driver.on_disk(n * 8, 4096), [n as u8; 4096]);
    }
    let counts = OpCounts { write: 160, ..OpCounts::default() };
    assert_eq!(driver.ledger.totals()[0].device, counts);
    assert_eq!(driver.ledger.totals()[0].recorded, counts);
}

#[test]
fn what_was_made_available_before_the_start_is_served_without_a_kick() {
    let mut driver = Driver::inactive(64, |_| {});
    driver.set_up_rings();
    let ticket = driver.prepare(0, FLUSH, 0, &[]);
    driver.publish(0, &[ticket.head]);
    driver.start();
    assert_eq!(driver.wait(ticket), S_OK);
}

#[test]
fn event_idx_gives_one_notification_a_batch() {
    for event_idx in [true, false] {
        let mut driver = Driver::inactive(4096, |_| {});
        if !event_idx {
            driver.features &= !feature::EVENT_IDX;
        }
        driver.activate();
        let heads: Vec<Ticket> = (0..6).map(|n| driver.prepare(0, IN, n, &[(DATA, 512)])).collect();
        // "Tell me after the sixth."
        driver.set_used_event(0, 5);
        driver.publish(0, &heads.iter().map(|t| t.head).collect::<Vec<_>>());
        driver.kick(0);
        for ticket in heads {
            driver.wait(ticket);
        }
        Driver::until("a notification", || driver.irq.used.load(Ordering::SeqCst) == 1);
        // Far ahead: no notification. Without EVENT_IDX the flag says the same.
        driver.set_used_event(0, 1000);
        driver.put(driver.ring_area(0) + 0x8000, &[1, 0]);
        driver.run(IN, 0, &[(DATA, 512)]);
        driver.device.reset();
        assert_eq!(driver.irq.used.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn write_through_is_stored_before_completion_and_survives_the_cruel_cut() {
    let mut driver = Driver::new(64, |c| c.track = true);
    driver.device.config_write(32, &[0]);
    driver.write_page(0, 3);
    let image = driver.image("cruel");
    let frozen = driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    assert_eq!((frozen.undone, frozen.exact), (0, true));
    assert_eq!(std::fs::read(&image).unwrap()[..4096], [3; 4096]);
    driver.device.reset();
    driver.activate();
    // After the reset it is write-back again.
    driver.write_page(0, 4);
    driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    assert_eq!(std::fs::read(&image).unwrap()[..4096], [3; 4096]);
    driver.device.reset();
    driver.features &= !(feature::FLUSH | feature::CONFIG_WCE);
    driver.activate();
    // A driver that cannot flush gets write-through.
    driver.write_page(8, 5);
    driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    assert_eq!(std::fs::read(&image).unwrap()[4096..8192], [5; 4096]);
}

#[test]
fn swap_gives_a_fresh_disk_when_nothing_is_in_flight() {
    let mut driver = Driver::new(64, |c| c.track = true);
    driver.write_page(0, 1);
    let next = driver.image("next.raw");
    std::fs::write(&next, vec![9; 128 * 512]).unwrap();
    let lever = driver.handle.arm(Lever::new(BlkOp::Write, HoldPoint::BeforeData, SOON));
    let held = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    driver.handle.wait_held(lever, SOON).unwrap();
    assert!(matches!(driver.handle.swap(&next), Err(BlockError::Busy { requests: 1, .. })));
    driver.handle.release(lever).unwrap();
    assert_eq!(driver.wait(held), S_OK);
    driver.handle.swap(&next).unwrap();
    assert_eq!(driver.irq.config.load(Ordering::SeqCst), 1);
    assert_eq!((driver.handle.capacity(), driver.handle.path()), (128, next.clone()));
    assert_eq!(driver.run(IN, 120, &[(DATA, 4096)]), S_OK);
    assert_eq!(driver.get(DATA, 4096), [9; 4096]);
    // The old file is free again, the new one is not.
    let old = driver.config.clone();
    drop(BlockDevice::open(1, old, driver.ledger.clone()).unwrap());
    let new = DiskConfig { path: next, ..driver.config.clone() };
    assert!(matches!(BlockDevice::open(1, new, driver.ledger.clone()), Err(BlockError::InUse(_))));
    let frozen = driver.handle.freeze(PowerCut::Cruel, &driver.image("cut")).unwrap();
    assert_eq!(frozen.undone, 0);
    assert!(driver.handle.swap(&driver.image("missing")).is_err());
    assert_eq!(driver.run(IN, 0, &[(DATA, 4096)]), S_OK);
}

#[test]
fn opening_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, len: usize| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().write_all_at(&vec![1; len], 0).unwrap();
        path
    };
    let open = |change: &dyn Fn(&mut DiskConfig)| {
        let mut config = DiskConfig::new(dir.path().join("good"));
        change(&mut config);
        BlockDevice::open(0, config, Ledger::new()).map(|_| ()).map_err(|e| e.to_string())
    };
    file("good", 512);
    assert_eq!(open(&|_| {}), Ok(()));
    let (empty, odd) = (file("empty", 0), file("odd", 700));
    for (change, says) in [
        (&(|c: &mut DiskConfig| c.path = dir.path().join("none")) as &dyn Fn(&mut DiskConfig), "does not exist"),
        (&|c| c.path = dir.path().into(), "neither a file nor"),
        (&|c| c.path = "/dev/null".into(), "neither a file nor"),
        (&|c| c.path = empty.clone(), "is empty"),
        (&|c| c.path = odd.clone(), "not a multiple of 512"),
        (&|c| c.queues = 9, "1 to 8 queues"),
        (&|c| c.queue_size = 3, "power of two"),
        (&|c| c.serial = "x".repeat(21), "longer than 20"),
    ] {
        let error = open(change).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    // Readers share; a writer does not.
    let readonly = DiskConfig { readonly: true, ..DiskConfig::new(dir.path().join("good")) };
    let first = BlockDevice::open(0, readonly.clone(), Ledger::new()).unwrap();
    let second = BlockDevice::open(1, readonly, Ledger::new()).unwrap();
    assert!(open(&|_| {}).unwrap_err().contains("in use by another process"));
    drop((first, second));
    assert_eq!(open(&|_| {}), Ok(()));
}

#[test]
fn a_disk_error_is_an_ioerr_and_the_device_goes_on() {
    let mut driver = Driver::new(64, |_| {});
    // The file shrinks under the device: reads hit its end.
    std::fs::OpenOptions::new().write(true).open(driver.handle.path()).unwrap().set_len(512).unwrap();
    assert_eq!(driver.run(IN, 0, &[(DATA, 4096)]), S_IOERR);
    assert_eq!(driver.run(IN, 0, &[(DATA, 512)]), S_OK);
    assert_eq!((driver.handle.stats().errors, driver.failed()), (1, false));
}

#[test]
fn reset_is_quick_and_leaves_no_access_in_flight() {
    let mut driver = Driver::new(4096, |_| {});
    for round in 0..20_u8 {
        let lever = driver.handle.arm(Lever::new(BlkOp::Read, HoldPoint::BeforeComplete, SOON));
        let _ = driver.submit(0, IN, 0, &[(DATA, 4096)]);
        driver.handle.wait_held(lever, SOON).unwrap();
        driver.device.reset();
        let before = driver.get(0, RAM_BYTES as usize);
        std::thread::sleep(Duration::from_millis(1));
        assert!(before == driver.get(0, RAM_BYTES as usize), "round {round}");
        let report = driver.handle.release(lever).unwrap();
        assert!(report.released.is_empty());
        assert_eq!(driver.handle.lever_state(lever).unwrap().cancelled, 1);
        driver.activate();
        assert_eq!(driver.write_page(0, round), S_OK);
    }
    assert_eq!(driver.handle.stats().cancelled, 20);
    assert_eq!(driver.ledger.requests(0).iter().filter(|r| r.aborted.is_some()).count(), 20);
}
