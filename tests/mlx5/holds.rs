// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers: a work request is held before anything of it is translated, so that a zap does not wait for the hold (rule 3).

use std::time::{Duration, Instant};

use mlx5::levers::{NicLever, WqePoint};
use mlx5_spec::cq::syndrome;
use mlx5_spec::wqe::opcode;
use probe::ReleaseWhy;
use rnic_testdrive::{Access, OdpMr, PATIENCE, Wqe};

use crate::scene::Pair;

const VA: u64 = 0x5555_0000_0000;
const LONG: Duration = Duration::from_secs(30);

/// Holds the first RDMA WRITE.
fn writes(limit: Duration) -> NicLever {
    NicLever::new(opcode::RDMA_WRITE as u8, WqePoint::BeforeTranslation, limit)
}

#[test]
fn a_held_write_translates_anew_when_it_is_released() {
    let pair = Pair::new();
    let nic = &pair.driver.machine.nic;
    let memory = pair.driver.machine.guest.scattered(2 * 4096);
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 4096, Access::ALL).unwrap();
    odp.map(&pair.driver, 0, &memory.pages[..1], true).unwrap();
    pair.local.fill(0, 4096, 0x77);
    let lever = nic.arm(writes(LONG));
    pair.one.post_one(Wqe::write(VA, odp.mr.key).sge(pair.local_mr.sge(0, 4096)).signaled());
    nic.wait_held(lever, PATIENCE).unwrap();
    // The page goes elsewhere while the write is held; neither zap nor map waits for it.
    odp.zap(&pair.driver, 0, 1).unwrap();
    odp.map(&pair.driver, 0, &memory.pages[1..], true).unwrap();
    assert_eq!(nic.hca().levers.state(lever).unwrap().held.len(), 1, "the zap waited for the hold");
    assert!(pair.one_cq.poll().is_none());
    nic.release(lever).unwrap();
    pair.one_cq.wait_ok().unwrap();
    assert!(memory.bytes(0, 4096).iter().all(|byte| *byte == 0), "written where it was first mapped");
    assert!(memory.bytes(4096, 4096).iter().all(|byte| *byte == 0x77));
    pair.driver.destroy_mkey(odp.mr.key).unwrap();
}

#[test]
fn others_go_on_and_the_nth_is_held() {
    let pair = Pair::new();
    let nic = &pair.driver.machine.nic;
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    let lever = nic.arm(NicLever { nth: 3, ..writes(LONG) });
    pair.one.post(&vec![write.clone().signaled(); 4]);
    nic.wait_held(lever, PATIENCE).unwrap();
    pair.one_cq.wait_ok().unwrap();
    pair.one_cq.wait_ok().unwrap();
    assert!(pair.one_cq.poll().is_none(), "in order: the fourth waits behind the third");
    pair.other.run(write).unwrap();
    nic.release(lever).unwrap();
    pair.one_cq.wait_ok().unwrap();
    pair.one_cq.wait_ok().unwrap();
    pair.tear_down();
}

#[test]
fn a_hold_ends_by_itself() {
    let pair = Pair::new();
    let limit = Duration::from_millis(50);
    pair.driver.machine.nic.arm(writes(limit));
    let begun = Instant::now();
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    pair.tear_down();
}

#[test]
fn an_error_state_flushes_what_is_held() {
    let pair = Pair::new();
    let nic = &pair.driver.machine.nic;
    let lever = nic.arm(writes(LONG));
    pair.local.fill(0, 8, 0x77);
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    nic.wait_held(lever, PATIENCE).unwrap();
    pair.one.to_error().unwrap();
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::WR_FLUSH_ERR);
    assert_eq!(nic.hca().levers.state(lever).unwrap().held, []);
    assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
}

#[test]
fn resets_end_holds() {
    let pair = Pair::new();
    let nic = pair.driver.machine.nic.clone();
    let lever = nic.arm(writes(LONG));
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    pair.one.post_one(write.clone().signaled());
    nic.wait_held(lever, PATIENCE).unwrap();
    pair.one.to_reset().unwrap();
    let ended = || nic.hca().levers.state(lever).unwrap().ended;
    pair.driver.until("the end of the hold", || ended().is_some()).unwrap();
    assert_eq!(ended(), Some(ReleaseWhy::Reset));
    pair.one.connect(pair.other.peer()).unwrap();
    pair.other.to_reset().unwrap();
    pair.other.connect(pair.one.peer()).unwrap();
    pair.one.run(write.clone()).unwrap();
    let lever = nic.arm(writes(LONG));
    pair.one.post_one(write.signaled());
    nic.wait_held(lever, PATIENCE).unwrap();
    pair.driver.machine.function_reset();
    assert_eq!(nic.hca().levers.state(lever).unwrap().ended, Some(ReleaseWhy::Reset));
    Pair::on(rnic_testdrive::Driver::probe(&pair.driver.machine).unwrap(), |_| ()).tear_down();
}
