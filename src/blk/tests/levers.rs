// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers at each point, by each matcher, and everything that ends a hold.

use std::time::{Duration, Instant};

use crate::hooks::DiskLedger;
use crate::testing::*;
use crate::*;
use probe::ReleaseWhy;
use probe::ledger::PageHash;

const OLD: [u8; 4096] = [0xaa; 4096];
const NEW: [u8; 4096] = [0x55; 4096];

fn lever(op: BlkOp, point: HoldPoint) -> Lever {
    Lever::new(op, point, SOON)
}

#[test]
fn a_write_held_before_its_data_carries_what_memory_holds_on_release() {
    let mut driver = Driver::new(64, |_| {});
    driver.ledger.watch(DATA);
    driver.put(DATA, &OLD);
    let id = driver.handle.arm(lever(BlkOp::Write, HoldPoint::BeforeData));
    let ticket = driver.submit(0, OUT, 8, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(id, SOON).unwrap();
    let record = driver.ledger.request(request).unwrap();
    assert_eq!((record.data, record.holds.len(), record.holds[0].to), (None, 1, None));
    assert_eq!(driver.on_disk(8, 4096), [0; 4096]);
    // Somebody else's DMA lands in the upper half meanwhile.
    driver.put(DATA + 2048, &NEW[..2048]);
    assert_eq!(driver.poll(ticket), None);
    let report = driver.handle.release(id).unwrap();
    assert_eq!(report, ReleaseReport { released: vec![request], expired: 0, matched: 1 });
    assert_eq!(driver.wait(ticket), S_OK);
    assert_eq!(driver.on_disk(8, 4096), [&OLD[..2048], &NEW[..2048]].concat());
    let record = driver.ledger.request(request).unwrap();
    assert!(record.kept(&record.holds[0]) && record.holds[0].why == Some(ReleaseWhy::Released));
    assert!(record.data_begin > record.holds[0].to);
    let touch = &record.pages[0];
    assert_eq!(touch.at_arrival, Some(PageHash::of(0, &OLD)));
    let data = touch.at_data.unwrap();
    assert_eq!(data.sectors[..4], PageHash::of(0, &OLD).sectors[..4]);
    assert_eq!(data.sectors[4..], PageHash::of(0, &NEW).sectors[4..]);
    assert_eq!(touch.at_completion, touch.at_data);
}

#[test]
fn a_write_held_before_completion_has_its_data_on_disk() {
    let mut driver = Driver::new(64, |_| {});
    driver.ledger.watch(DATA);
    driver.put(DATA, &OLD);
    let id = driver.handle.arm(lever(BlkOp::Write, HoldPoint::BeforeComplete));
    let ticket = driver.submit(0, OUT, 8, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(id, SOON).unwrap();
    assert_eq!(driver.on_disk(8, 4096), OLD);
    driver.put(DATA, &NEW);
    assert_eq!(driver.poll(ticket), None);
    driver.handle.release(id).unwrap();
    assert_eq!(driver.wait(ticket), S_OK);
    assert_eq!(driver.on_disk(8, 4096), OLD);
    let touch = driver.ledger.request(request).unwrap().pages[0].clone();
    // The hash at data is of what moved, the one at completion of what memory held then.
    assert_eq!(touch.at_data, Some(PageHash::of(0, &OLD)));
    assert_eq!(touch.at_completion, Some(PageHash::of(0, &NEW)));
}

#[test]
fn a_read_can_be_held_stepped_to_its_data_and_released() {
    let mut driver = Driver::new(64, |_| {});
    driver.put(DATA, &NEW);
    driver.run(OUT, 8, &[(DATA, 4096)]);
    driver.put(DATA, &OLD);
    let id = driver.handle.arm(lever(BlkOp::Read, HoldPoint::BeforeData));
    let ticket = driver.submit(0, IN, 8, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(id, SOON).unwrap();
    assert_eq!(driver.get(DATA, 4096), OLD);
    assert_eq!(driver.handle.lever_state(id).unwrap().held, [(request, HoldPoint::BeforeData)]);
    driver.handle.step_to(id, HoldPoint::BeforeComplete).unwrap();
    assert_eq!(driver.get(DATA, 4096), NEW);
    assert_eq!(driver.handle.lever_state(id).unwrap().held, [(request, HoldPoint::BeforeComplete)]);
    // There already; and never back.
    driver.handle.step_to(id, HoldPoint::BeforeComplete).unwrap();
    assert_eq!(driver.handle.step_to(id, HoldPoint::BeforeData), Err(LeverError::NoStep(id.0)));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(driver.poll(ticket), None);
    assert_eq!(driver.handle.release(id).unwrap().released, [request]);
    assert_eq!(driver.wait(ticket), S_OK);
    let record = driver.ledger.request(request).unwrap();
    let whys: Vec<_> = record.holds.iter().map(|h| (h.point, h.why.unwrap())).collect();
    assert_eq!(whys, [(HoldPoint::BeforeData, ReleaseWhy::Stepped), (HoldPoint::BeforeComplete, ReleaseWhy::Released)]);
    assert!(record.holds.iter().all(|hold| record.kept(hold)));
    assert_eq!(driver.handle.step_to(id, HoldPoint::BeforeComplete), Err(LeverError::NoStep(id.0)));
}

#[test]
fn each_matcher_chooses_and_held_requests_block_nobody() {
    let mut driver = Driver::new(4096, |_| {});
    let base = lever(BlkOp::Write, HoldPoint::BeforeData);
    let on = |what: RequestMatch| Lever::new(what, HoldPoint::BeforeData, SOON);
    let page = DATA + 0x5000;
    let cases = [
        (on(RequestMatch { lba: Some(20..21), ..BlkOp::Write.into() }), 2),
        (on(RequestMatch { page: Some(page + 9), ..RequestMatch::default() }), 1),
        (Lever { nth: 3, ..base.clone() }, 2),
        (on(BlkOp::Flush.into()), 3),
        (Lever { point: HoldPoint::BeforeComplete, ..on(BlkOp::Flush.into()) }, 3),
        (on(RequestMatch { lba: Some(0..4096), ..BlkOp::Read.into() }), 4),
    ];
    for (lever, caught) in cases {
        let id = driver.handle.arm(lever.clone());
        let mut tickets = vec![
            driver.submit(0, OUT, 0, &[(DATA, 4096)]),
            driver.submit(0, OUT, 8, &[(page - 512, 1024)]),
            driver.submit(0, OUT, 16, &[(DATA, 4096)]),
            driver.submit(0, FLUSH, 0, &[]),
            driver.submit(0, IN, 0, &[(DATA + 0x9000, 512)]),
        ];
        let held = tickets.remove(caught);
        driver.handle.wait_held(id, SOON).unwrap();
        for ticket in tickets {
            assert_eq!(driver.wait(ticket), S_OK);
        }
        assert_eq!(driver.poll(held), None, "{lever:?}");
        assert_eq!(driver.handle.release(id).unwrap().released.len(), 1);
        assert_eq!(driver.wait(held), S_OK);
    }
}

#[test]
fn several_times_and_the_first_armed_wins() {
    let mut driver = Driver::new(4096, |_| {});
    let first = driver.handle.arm(Lever { times: 2, ..lever(BlkOp::Write, HoldPoint::BeforeData) });
    let second = driver.handle.arm(lever(BlkOp::Write, HoldPoint::BeforeData));
    let tickets: Vec<_> = (0..4).map(|n| driver.submit(0, OUT, n * 8, &[(DATA, 4096)])).collect();
    let held = driver.handle.wait_held_many(first, 2, SOON).unwrap();
    let third = driver.handle.wait_held(second, SOON).unwrap();
    assert_eq!(driver.wait(tickets[3]), S_OK);
    let ids: Vec<_> = driver.ledger.requests(0).iter().map(|r| r.id).collect();
    assert_eq!(([held[0], held[1], third], ids.len()), ([ids[0], ids[1], ids[2]], 4));
    assert_eq!(driver.handle.lever_state(second).unwrap().matched, 1);
    let reports = driver.handle.disarm_all();
    let released: Vec<_> = reports.iter().map(|(_, r)| r.as_ref().unwrap().released.len()).collect();
    assert_eq!(released, [2, 1]);
    for ticket in &tickets[..3] {
        assert_eq!(driver.wait(*ticket), S_OK);
    }
    // Disarmed: the next write is nobody's.
    assert_eq!(driver.write_page(0, 1), S_OK);
}

#[test]
fn a_limit_that_passes_lets_go_and_says_so() {
    let mut driver = Driver::new(64, |_| {});
    let limit = Duration::from_millis(300);
    let id = driver.handle.arm(Lever { limit, ..lever(BlkOp::Write, HoldPoint::BeforeData) });
    let start = Instant::now();
    let ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    let request = driver.handle.wait_held(id, SOON).unwrap();
    assert_eq!(driver.wait(ticket), S_OK);
    assert!(start.elapsed() >= limit);
    Driver::until("the expiry's note", || driver.handle.lever_state(id).unwrap().expired == 1);
    assert_eq!(
        driver.handle.wait_held(id, SOON),
        Err(LeverError::Over { lever: id.0, why: Some(ReleaseWhy::Expired) })
    );
    let record = driver.ledger.request(request).unwrap();
    assert_eq!(record.holds[0].why, Some(ReleaseWhy::Expired));
    assert!(record.kept(&record.holds[0]));
    let report = driver.handle.release(id).unwrap();
    assert_eq!((report.released.len(), report.expired, report.matched), (0, 1, 1));
}

#[test]
fn one_limit_covers_both_holds_of_a_stepped_request() {
    let limit = Duration::from_millis(1500);
    let before_step = Duration::from_millis(1000);
    // With a limit of its own the second hold lasts at least until then, whatever the host does; without one a host that stands still
    // makes it as long now and then.
    let shorter = |_| stepped_hold(limit, before_step) < before_step + limit;
    assert!((0..3).any(shorter));
}

/// How long a write is held that is stepped to its completion after `before_step`, with a limit of `limit`.
fn stepped_hold(limit: Duration, before_step: Duration) -> Duration {
    let mut driver = Driver::new(64, |_| {});
    let id = driver.handle.arm(Lever { limit, ..lever(BlkOp::Write, HoldPoint::BeforeData) });
    let start = Instant::now();
    let ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    driver.handle.wait_held(id, SOON).unwrap();
    std::thread::sleep(before_step);
    driver.handle.step_to(id, HoldPoint::BeforeComplete).unwrap();
    assert_eq!(driver.wait(ticket), S_OK);
    assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
    start.elapsed()
}

#[test]
fn waiting_in_vain_says_how_many_matched() {
    let mut driver = Driver::new(64, |_| {});
    let id = driver.handle.arm(Lever { nth: 3, ..lever(BlkOp::Write, HoldPoint::BeforeData) });
    driver.write_page(0, 1);
    driver.write_page(0, 2);
    let waited = Duration::from_millis(20);
    let error = driver.handle.wait_held(id, waited).unwrap_err();
    assert_eq!(error, LeverError::Timeout { lever: id.0, waited, matched: 2 });
    assert_eq!(driver.handle.wait_held(LeverId(99), waited), Err(LeverError::Unknown(99)));
    assert_eq!(driver.handle.release(LeverId(99)), Err(LeverError::Unknown(99)));
    let report = driver.handle.release(id).unwrap();
    assert_eq!(report, ReleaseReport { released: vec![], expired: 0, matched: 2 });
}

#[test]
fn many_levers_do_not_grow_without_bound_and_holders_are_not_forgotten() {
    let mut driver = Driver::new(64, |_| {});
    let holder = driver.handle.arm(lever(BlkOp::Write, HoldPoint::BeforeData));
    let ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    driver.handle.wait_held(holder, SOON).unwrap();
    let ids: Vec<_> = (0..1000).map(|_| driver.handle.arm(lever(BlkOp::Discard, HoldPoint::BeforeData))).collect();
    assert!(driver.handle.lever_state(ids[0]).is_err());
    assert!(driver.handle.lever_state(ids[999]).unwrap().armed);
    assert_eq!(driver.handle.release(holder).unwrap().released.len(), 1);
    assert_eq!(driver.wait(ticket), S_OK);
}

#[test]
fn refused_requests_are_answered_at_once() {
    let mut driver = Driver::new(64, |_| {});
    let id = driver.handle.arm(lever(BlkOp::Write, HoldPoint::BeforeData));
    assert_eq!(driver.run(OUT, 1 << 30, &[(DATA, 512)]), S_IOERR);
    assert_eq!(driver.handle.lever_state(id).unwrap().matched, 0);
    let record = driver.ledger.requests(0).remove(0);
    assert_eq!((record.status, record.data, record.stored), (Some(S_IOERR), None, None));
}

#[test]
fn a_read_that_lands_while_a_write_of_the_page_is_held_is_ordered_between_its_arrival_and_its_data() {
    // Hazard H12: the target of one request is the source of another.
    let mut driver = Driver::new(64, |_| {});
    driver.put(DATA, &NEW);
    driver.run(OUT, 32, &[(DATA, 4096)]);
    driver.put(DATA, &OLD);
    driver.ledger.watch(DATA);
    let read_lever = driver.handle.arm(lever(BlkOp::Read, HoldPoint::BeforeData));
    let write_lever = driver.handle.arm(Lever::new(
        RequestMatch { page: Some(DATA), ..BlkOp::Write.into() },
        HoldPoint::BeforeData,
        SOON,
    ));
    let read_ticket = driver.submit(0, IN, 32, &[(DATA, 4096)]);
    let read = driver.handle.wait_held(read_lever, SOON).unwrap();
    let write_ticket = driver.submit(0, OUT, 0, &[(DATA, 4096)]);
    let write = driver.handle.wait_held(write_lever, SOON).unwrap();
    assert_eq!(driver.handle.in_flight(), 2);
    driver.handle.step_to(read_lever, HoldPoint::BeforeComplete).unwrap();
    driver.handle.release(write_lever).unwrap();
    assert_eq!(driver.wait(write_ticket), S_OK);
    assert_eq!(driver.poll(read_ticket), None);
    assert_eq!(driver.on_disk(0, 4096), NEW);
    driver.handle.release(read_lever).unwrap();
    assert_eq!(driver.wait(read_ticket), S_OK);
    let (read, write) = (driver.ledger.request(read).unwrap(), driver.ledger.request(write).unwrap());
    assert!(write.arrived < read.data.unwrap() && read.data < write.data_begin && write.completed < read.completed);
    assert_ne!(write.pages[0].at_arrival, write.pages[0].at_data);
    assert_eq!(write.pages[0].at_data, read.pages[0].at_data);
    assert_eq!(driver.handle.in_flight(), 0);
}
