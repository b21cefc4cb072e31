// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections do what they say, and the evidence shows it.

use std::time::{Duration, Instant};

use crate::hooks::DiskLedger;
use crate::testing::*;
use crate::*;
use probe::ReleaseWhy;
use virtio::VirtioDevice;

#[test]
fn a_lying_lever_claims_a_hold_that_the_stamps_deny() {
    for point in [HoldPoint::BeforeData, HoldPoint::BeforeComplete] {
        let mut driver = Driver::new(64, |_| {});
        let rule = driver.handle.injections().add(DiskRule::new(1, DiskAction::LieAboutHold).on(BlkOp::Write)).unwrap();
        let id = driver.handle.arm(Lever::new(BlkOp::Write, point, SOON));
        driver.put(DATA, &[1; 4096]);
        let ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
        let request = driver.handle.wait_held(id, SOON).unwrap();
        assert_eq!(driver.wait(ticket), S_OK);
        assert_eq!(driver.on_disk(0, 4096), [1; 4096]);
        let state = driver.handle.lever_state(id).unwrap();
        assert_eq!(state.held, [(request, point)]);
        // The lie can be seen before and after the release.
        let during = driver.ledger.request(request).unwrap();
        assert!(!during.kept(&during.holds[0]));
        assert_eq!(driver.handle.release(id).unwrap().released, [request]);
        let after = driver.ledger.request(request).unwrap();
        assert_eq!(after.holds[0].why, Some(ReleaseWhy::Released));
        assert!(after.completed < after.holds[0].to && !after.kept(&after.holds[0]));
        assert_eq!(driver.handle.injections().rule(rule).unwrap().fired, 1);
        // The next lever is honest.
        let id = driver.handle.arm(Lever::new(BlkOp::Write, point, SOON));
        let ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
        let request = driver.handle.wait_held(id, SOON).unwrap();
        driver.handle.release(id).unwrap();
        assert_eq!(driver.wait(ticket), S_OK);
        let record = driver.ledger.request(request).unwrap();
        assert!(record.kept(&record.holds[0]));
    }
}

#[test]
fn a_lie_can_be_stepped_and_reset() {
    let mut driver = Driver::new(64, |_| {});
    driver.handle.injections().add(DiskRule::new(0, DiskAction::LieAboutHold)).unwrap();
    let id = driver.handle.arm(Lever::new(BlkOp::Read, HoldPoint::BeforeData, SOON));
    let ticket = driver.submit(0, IN, 0, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(id, SOON).unwrap();
    assert_eq!(driver.wait(ticket), S_OK);
    driver.handle.step_to(id, HoldPoint::BeforeComplete).unwrap();
    driver.device.reset();
    let record = driver.ledger.request(request).unwrap();
    assert_eq!(record.holds.len(), 2);
    assert_eq!(record.holds[1].why, Some(ReleaseWhy::Reset));
    assert!(record.holds.iter().all(|hold| !record.kept(hold)));
}

#[test]
fn a_hidden_write_shows_in_the_device_counts_only() {
    let mut driver = Driver::new(64, |_| {});
    driver.handle.injections().add(DiskRule::new(2, DiskAction::HideFromLedger).on(BlkOp::Write)).unwrap();
    for byte in 1..=3 {
        driver.write_page(8 * u64::from(byte), byte);
    }
    assert_eq!(driver.on_disk(16, 4096), [2; 4096]);
    let lbas: Vec<_> = driver.ledger.requests(0).iter().map(|r| r.lba).collect();
    assert_eq!(lbas, [8, 24]);
    let totals = driver.ledger.totals()[0];
    assert_eq!((totals.device.write, totals.recorded.write), (3, 2));
    assert!(!totals.agree());
}

#[test]
fn a_forced_status_moves_no_data() {
    let mut driver = Driver::new(64, |c| c.track = true);
    driver.handle.injections().add(DiskRule::new(1, DiskAction::Status(S_IOERR)).on(BlkOp::Write)).unwrap();
    assert_eq!(driver.write_page(0, 7), S_IOERR);
    assert_eq!(driver.on_disk(0, 4096), [0; 4096]);
    assert_eq!(driver.write_page(0, 7), S_OK);
    // A flush that only says so makes nothing durable.
    driver.handle.injections().add(DiskRule::new(1, DiskAction::Status(S_OK)).on(BlkOp::Flush)).unwrap();
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    let image = driver.image("cut");
    assert_eq!(driver.handle.freeze(PowerCut::Cruel, &image).unwrap().undone, 1);
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    assert_eq!(driver.handle.freeze(PowerCut::Cruel, &image).unwrap().undone, 0);
}

/// A tracked disk with one rule.
fn with(rule: DiskRule) -> (Driver, probe::RuleId) {
    let driver = Driver::new(64, |c| c.track = true);
    let id = driver.handle.injections().add(rule).unwrap();
    (driver, id)
}

fn fired(driver: &Driver, rule: probe::RuleId) -> u64 {
    driver.handle.injections().rule(rule).unwrap().fired
}

/// The sectors of a power cut's image, each of which has one byte throughout.
fn cut(driver: &Driver, cut: PowerCut) -> Vec<u8> {
    let path = driver.image("cut");
    driver.handle.freeze(cut, &path).unwrap();
    let sectors = std::fs::read(path).unwrap();
    let one = |sector: &[u8]| if sector.iter().all(|byte| *byte == sector[0]) { sector[0] } else { u8::MAX };
    sectors.chunks(512).map(one).collect()
}

#[test]
fn of_a_torn_write_the_first_sectors_reach_the_medium() {
    for (sectors, fails) in [(3, false), (3, true), (0, false)] {
        let (mut driver, rule) = with(DiskRule::new(2, DiskAction::TornWrite { sectors, fails }));
        assert_eq!(driver.write_page(8, 1), S_OK);
        assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
        assert_eq!(driver.run(IN, 8, &[(DATA, 4096)]), S_OK);
        let split = usize::try_from(sectors).unwrap() * 512;
        // In two pieces, so that the cut lies within the second.
        driver.put(DATA, &[2; 4096]);
        let status = driver.run(OUT, 8, &[(DATA, 1024), (DATA + 1024, 3072)]);
        assert_eq!(status, if fails { S_IOERR } else { S_OK });
        assert_eq!(driver.on_disk(8, 4096), [vec![2; split], vec![1; 4096 - split]].concat());
        assert_eq!(fired(&driver, rule), 1);
        // What the ledger says is what the medium has.
        let record = driver.ledger.requests(0).pop().unwrap();
        assert_eq!((record.ranges[0].clone(), record.len), (8..16, 4096));
        assert_eq!(record.medium, Some(8..8 + u64::from(sectors)));
        assert_eq!(driver.handle.stats().bytes_written, 4096 + split as u64);
        // Power cuts take back what was stored, and that only.
        assert_eq!(cut(&driver, PowerCut::Kind)[8..16].iter().filter(|byte| **byte == 2).count(), split / 512);
        assert_eq!(cut(&driver, PowerCut::Cruel)[8..16], [1; 8]);
        // The next write is whole.
        assert_eq!(driver.write_page(8, 3), S_OK);
        assert_eq!(driver.on_disk(8, 4096), [3; 4096]);
        assert_eq!(driver.ledger.requests(0).pop().unwrap().medium, None);
    }
}

#[test]
fn a_write_that_is_no_longer_cannot_be_torn_and_is_no_match() {
    let (mut driver, rule) = with(DiskRule::new(1, DiskAction::TornWrite { sectors: 8, fails: true }));
    assert_eq!(driver.write_page(0, 1), S_OK);
    assert_eq!(driver.run(IN, 0, &[(DATA, 8192)]), S_OK);
    driver.put(DATA, &[2; 8192]);
    assert_eq!(driver.run(OUT, 0, &[(DATA, 8192)]), S_IOERR);
    let rule = driver.handle.injections().rule(rule).unwrap();
    assert_eq!((rule.matched, rule.fired), (1, 1));
    assert_eq!(driver.on_disk(0, 8192), [[2; 4096], [0; 4096]].concat());
}

#[test]
fn a_flush_that_is_lost_makes_nothing_durable() {
    let (mut driver, rule) = with(DiskRule::new(1, DiskAction::FlushLost));
    assert_eq!(driver.write_page(0, 1), S_OK);
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    assert_eq!((fired(&driver, rule), driver.handle.unflushed()), (1, 1));
    assert_eq!((cut(&driver, PowerCut::Cruel)[0], cut(&driver, PowerCut::Kind)[0]), (0, 1));
    let flush = driver.ledger.requests(0).pop().unwrap();
    assert_eq!((flush.op, flush.status, flush.stored), (BlkOp::Flush, Some(S_OK), None));
    // The next one covers what that one did not.
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    assert_eq!((cut(&driver, PowerCut::Cruel)[0], driver.handle.unflushed()), (1, 0));
    assert!(driver.ledger.requests(0).pop().unwrap().stored.is_some());
}

#[test]
fn a_request_that_is_late_delays_no_other_and_comes_at_its_time() {
    let time = Duration::from_millis(300);
    let (mut driver, rule) = with(DiskRule::new(1, DiskAction::Delay { ms: 300 }).on(BlkOp::Write));
    driver.put(DATA, &[1; 4096]);
    let begun = Instant::now();
    let late = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    assert_eq!(driver.run(IN, 0, &[(DATA + 4096, 4096)]), S_OK);
    assert_eq!(driver.write_page(8, 2), S_OK);
    assert_eq!((driver.wait(late), fired(&driver, rule)), (S_OK, 1));
    assert!(begun.elapsed() >= time);
    let [late, read, write]: [RequestRecord; 3] = driver.ledger.requests(0).try_into().unwrap();
    // It is carried out late, not only answered: it took what was in memory then.
    assert!(late.arrived < read.arrived && write.completed < late.data_begin);
    assert_eq!(driver.on_disk(0, 4096), [2; 4096]);
}

#[test]
fn a_long_delay_ends_with_a_reset_and_holds_nobody_up() {
    let (mut driver, _) = with(DiskRule::new(1, DiskAction::Delay { ms: u32::MAX }).on(BlkOp::Write));
    let bounded = driver.handle.injections().rules()[0].action;
    assert_eq!(bounded, DiskAction::Delay { ms: MAX_DELAY_MS });
    let lever = driver.handle.arm(Lever::new(BlkOp::Write, HoldPoint::BeforeData, SOON));
    let late = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    assert_eq!(driver.run(FLUSH, 0, &[]), S_OK);
    assert_eq!((driver.poll(late), driver.handle.in_flight()), (None, 1));
    // No lever waits for it, and no power cut.
    assert_eq!(driver.handle.release(lever).unwrap().matched, 0);
    assert_eq!(cut(&driver, PowerCut::Kind)[0], 0);
    let begun = Instant::now();
    driver.device.reset();
    assert!(begun.elapsed() < SOON);
    let record = driver.ledger.requests(0).remove(0);
    assert!(record.aborted.is_some() && record.data_begin.is_none());
    assert_eq!((driver.handle.stats().cancelled, driver.handle.in_flight()), (1, 0));
    driver.recover();
}

#[test]
fn a_lever_catches_a_late_request_when_it_is_carried_out() {
    let (mut driver, _) = with(DiskRule::new(1, DiskAction::Delay { ms: 50 }).on(BlkOp::Write));
    let lever = driver.handle.arm(Lever::new(BlkOp::Write, HoldPoint::BeforeData, SOON));
    driver.put(DATA, &[1; 4096]);
    let late = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(lever, SOON).unwrap();
    assert_eq!((driver.poll(late), driver.on_disk(0, 1)), (None, vec![0]));
    driver.handle.release(lever).unwrap();
    assert_eq!(driver.wait(late), S_OK);
    let record = driver.ledger.request(request).unwrap();
    assert!(record.kept(&record.holds[0]));
}

#[test]
fn a_request_that_is_reordered_comes_after_the_next() {
    let (mut driver, rule) = with(DiskRule::new(0, DiskAction::Reorder).on(BlkOp::Write));
    driver.put(DATA, &[1; 4096]);
    driver.put(DATA + 4096, &[2; 4096]);
    // Both are to one block: what came first stays.
    let first = driver.prepare(0, OUT, 0, &[(DATA, 4096)]);
    let second = driver.prepare(0, OUT, 0, &[(DATA + 4096, 4096)]);
    driver.publish(0, &[first.head, second.head]);
    driver.kick(0);
    assert_eq!((driver.wait(second), driver.wait(first)), (S_OK, S_OK));
    assert_eq!(driver.on_disk(0, 4096), [1; 4096]);
    let records = driver.ledger.requests(0);
    assert!(records[0].arrived < records[1].arrived && records[1].completed < records[0].data_begin);
    // The one that overtook was not to wait itself.
    let counted = driver.handle.injections().rule(rule).unwrap();
    assert_eq!((counted.matched, counted.fired), (1, 1));
    // Where no other comes it goes on by itself.
    let begun = Instant::now();
    assert_eq!(driver.write_page(8, 3), S_OK);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!((driver.on_disk(8, 4096), fired(&driver, rule)), (vec![3; 4096], 2));
}

#[test]
fn a_page_under_test_is_meant_wherever_it_is_written() {
    let what = RequestMatch { watched: true, ..BlkOp::Write.into() };
    let (mut driver, rule) = with(DiskRule::new(0, DiskAction::Status(S_IOERR)).on(what));
    assert_eq!(driver.write_page(0, 1), S_OK);
    driver.ledger.watch(DATA);
    assert_eq!((driver.write_page(8, 2), driver.write_page(32, 3)), (S_IOERR, S_IOERR));
    assert_eq!((driver.run(OUT, 8, &[(DATA + 4096, 4096)]), fired(&driver, rule)), (S_OK, 2));
    driver.ledger.unwatch_all();
    assert_eq!((driver.write_page(32, 4), fired(&driver, rule)), (S_OK, 2));
}

#[test]
fn a_short_read_brings_its_first_sectors_and_says_how_many() {
    let (mut driver, rule) = with(DiskRule::new(1, DiskAction::Short { sectors: 3 }));
    driver.write_page(0, 1);
    driver.put(DATA, &[9; 4096]);
    assert_eq!((driver.run(IN, 0, &[(DATA, 4096)]), driver.used_len), (S_OK, 3 * 512));
    assert_eq!(driver.get(DATA, 4096), [vec![1; 3 * 512], vec![9; 5 * 512]].concat());
    let record = driver.ledger.requests(0).pop().unwrap();
    assert_eq!((record.medium, fired(&driver, rule)), (Some(0..3), 1));
    assert_eq!(driver.handle.stats().bytes_read, 3 * 512);
    assert_eq!((driver.run(IN, 0, &[(DATA, 4096)]), driver.used_len), (S_OK, 4097));
    assert_eq!(driver.get(DATA, 4096), [1; 4096]);
}

#[test]
fn a_misdirected_request_is_carried_out_elsewhere() {
    let (mut driver, rule) = with(DiskRule::new(0, DiskAction::Misdirected { by: 8 }));
    driver.ledger.watch(DATA);
    assert_eq!(driver.write_page(16, 1), S_OK);
    assert_eq!((driver.on_disk(16, 4096), driver.on_disk(24, 4096)), (vec![0; 4096], vec![1; 4096]));
    let record = driver.ledger.requests(0).pop().unwrap();
    assert_eq!((record.lba, record.medium), (16, Some(24..32)));
    assert_eq!(record.pages[0].at_data, record.pages[0].at_arrival, "the bytes that moved, from where they went");
    driver.put(DATA, &[9; 4096]);
    assert_eq!((driver.run(IN, 16, &[(DATA, 4096)]), driver.used_len), (S_OK, 4097));
    assert_eq!(driver.get(DATA, 4096), [1; 4096]);
    // A power cut takes it back where it went.
    assert_eq!((cut(&driver, PowerCut::Kind)[24], cut(&driver, PowerCut::Cruel)[24]), (1, 0));
    // The last page has nothing behind it: that cannot go elsewhere, and is no match.
    assert_eq!((driver.write_page(56, 2), driver.on_disk(56, 4096)), (S_OK, vec![2; 4096]));
    assert_eq!(fired(&driver, rule), 2);
}

#[test]
fn what_is_refused_or_answered_at_once_is_no_match_of_what_moves_data() {
    let (mut driver, torn) = with(DiskRule::new(0, DiskAction::TornWrite { sectors: 1, fails: false }));
    let error = driver.handle.injections().add(DiskRule::new(1, DiskAction::Status(S_IOERR)).on(BlkOp::Write)).unwrap();
    // Beyond the end: refused before any injection is asked.
    assert_eq!(driver.run(OUT, 1 << 30, &[(DATA, 512)]), S_IOERR);
    assert_eq!((fired(&driver, torn), fired(&driver, error)), (0, 0));
    assert_eq!(driver.write_page(0, 1), S_IOERR);
    assert_eq!((fired(&driver, torn), fired(&driver, error)), (0, 1));
    assert_eq!(driver.on_disk(0, 4096), [0; 4096]);
    assert_eq!(driver.write_page(0, 1), S_OK);
    assert_eq!((fired(&driver, torn), driver.on_disk(0, 1024)), (1, [[1; 512], [0; 512]].concat()));
}

#[test]
fn what_is_kept_back_is_bounded_whatever_a_guest_names() {
    let (mut driver, rule) = with(DiskRule::new(0, DiskAction::Delay { ms: MAX_DELAY_MS }));
    driver.put(DATA, &[1; 4096]);
    let ticket = driver.prepare(0, OUT, 0, &[(DATA, 4096)]);
    // One chain, made available again and again although it is not done: as many as the rings of eight queues have room for are kept back.
    for batch in 1..=128 {
        driver.publish(0, &[ticket.head; 64]);
        driver.kick(0);
        Driver::until("the batch's arrival", || driver.handle.in_flight() == batch * 64);
    }
    assert_eq!(driver.poll(ticket), None);
    driver.publish(0, &[ticket.head]);
    driver.kick(0);
    assert_eq!((driver.wait(ticket), fired(&driver, rule)), (S_OK, 8192));
    driver.device.reset();
    assert_eq!((driver.handle.in_flight(), driver.handle.stats().cancelled), (0, 8192));
    driver.handle.injections().clear();
    driver.recover();
}
