// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections do what they say, and the evidence shows it.

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
