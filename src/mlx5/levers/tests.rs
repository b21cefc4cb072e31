// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;

use super::*;
use crate::hca::Hca;
use crate::mkey::tests::hca;

const WRITE: WqeShape = WqeShape { opcode: 8, qpn: 0x40, wqe_index: 3, key: 0x1_0001 };
const WAITER: (u32, u32) = (16, 0x40);
const SECOND: Duration = Duration::from_secs(1);

fn held(gate: Gate) -> u64 {
    match gate {
        Gate::Held(token) => token,
        Gate::Pass => panic!("not held"),
    }
}

fn kinds(hca: &Hca) -> Vec<NicKind> {
    hca.ledger.nic(0).into_iter().map(|record| record.kind).collect()
}

#[test]
fn the_nth_match_is_held_until_it_is_released() {
    let hca = hca();
    let levers = &hca.levers;
    assert_eq!(levers.gate(&WRITE, WAITER), Gate::Pass);
    let id = levers.arm(NicLever { nth: 2, ..NicLever::new(8, SECOND) });
    assert_eq!(levers.gate(&WqeShape { opcode: 0x10, ..WRITE }, WAITER), Gate::Pass);
    assert_eq!(levers.gate(&WRITE, WAITER), Gate::Pass);
    let token = held(levers.gate(&WRITE, WAITER));
    assert_eq!(levers.gate(&WRITE, WAITER), Gate::Pass, "it holds one");
    assert!(levers.is_held(token) && !levers.is_held(token + 1));
    assert_eq!(levers.wait_held(id, Duration::ZERO), Ok(token));
    assert!(levers.next_deadline().is_some());
    let state = levers.release(&hca, id).unwrap();
    assert_eq!(state, NicLeverState { armed: false, held: None, ended: Some(ReleaseWhy::Released), matched: 2 });
    assert!(!levers.is_held(token) && levers.next_deadline().is_none());
    let over = NicLeverError::Over { lever: id.0, why: Some(ReleaseWhy::Released) };
    assert_eq!(levers.wait_held(id, SECOND), Err(over));
    let why = ReleaseWhy::Released;
    assert_eq!(kinds(&hca), [NicKind::Gated { opcode: 8, token }, NicKind::Ungated { token, why }]);
    assert!(!levers.any.load(Ordering::Relaxed), "one branch again");
}

#[test]
fn conditions_are_opcode_queue_pair_and_key_index() {
    let hca = hca();
    let lever = NicLever { qpn: Some(0x40), key: Some(0x1_00ff), ..NicLever::new(8, SECOND) };
    hca.levers.arm(lever);
    for other in [WqeShape { qpn: 0x41, ..WRITE }, WqeShape { key: 0x2_0001, ..WRITE }] {
        assert_eq!(hca.levers.gate(&other, WAITER), Gate::Pass);
    }
    held(hca.levers.gate(&WRITE, WAITER));
}

#[test]
fn a_hold_ends_by_itself() {
    let hca = hca();
    let id = hca.levers.arm(NicLever::new(8, Duration::from_millis(20)));
    let token = held(hca.levers.gate(&WRITE, WAITER));
    let at = hca.levers.next_deadline().unwrap();
    assert_eq!(hca.levers.expire(&hca, at - Duration::from_millis(1)), Some(at));
    assert!(hca.levers.is_held(token));
    std::thread::sleep(Duration::from_millis(25));
    assert!(!hca.levers.is_held(token));
    assert_eq!(hca.levers.state(id).unwrap().ended, Some(ReleaseWhy::Expired));
    // Nobody can ask for more than a minute.
    let id = hca.levers.arm(NicLever::new(8, Duration::MAX));
    held(hca.levers.gate(&WRITE, WAITER));
    assert!(hca.levers.next_deadline().unwrap() <= Instant::now() + MAX_LIMIT);
    hca.levers.release(&hca, id).unwrap();
}

#[test]
fn the_lab_waits_for_a_hold_and_is_told_when_there_is_none() {
    let hca = Arc::new(hca());
    let id = hca.levers.arm(NicLever::new(8, SECOND));
    let waiter = std::thread::spawn({
        let hca = hca.clone();
        move || hca.levers.wait_held(id, Duration::from_secs(10))
    });
    std::thread::sleep(Duration::from_millis(20));
    let token = held(hca.levers.gate(&WRITE, WAITER));
    assert_eq!(waiter.join().unwrap(), Ok(token));
    let next = hca.levers.arm(NicLever { nth: 3, ..NicLever::new(8, SECOND) });
    hca.levers.gate(&WRITE, WAITER);
    let waited = Duration::from_millis(5);
    assert_eq!(hca.levers.wait_held(next, waited), Err(NicLeverError::Timeout { lever: next.0, waited, matched: 1 }));
    hca.levers.disarm_all(&hca);
    assert_eq!(hca.levers.wait_held(next, SECOND), Err(NicLeverError::Over { lever: next.0, why: None }));
    assert!(!hca.levers.is_held(token));
    assert_eq!(hca.levers.state(NicLeverId(99)), Err(NicLeverError::Unknown(99)));
}

#[test]
fn resets_cancel_holds_and_leave_levers_armed() {
    let hca = hca();
    let first = hca.levers.arm(NicLever::new(8, SECOND));
    let second = hca.levers.arm(NicLever::new(0x10, SECOND));
    let token = held(hca.levers.gate(&WRITE, WAITER));
    hca.levers.reset(&hca);
    assert!(!hca.levers.is_held(token));
    assert_eq!(hca.levers.state(first).unwrap().ended, Some(ReleaseWhy::Reset));
    assert!(hca.levers.state(second).unwrap().armed);
    let token = held(hca.levers.gate(&WqeShape { opcode: 0x10, ..WRITE }, WAITER));
    hca.levers.cancel(&hca, token);
    assert!(!hca.levers.is_held(token));
}

#[test]
fn the_table_is_bounded() {
    let hca = hca();
    let first = hca.levers.arm(NicLever::new(8, SECOND));
    held(hca.levers.gate(&WRITE, WAITER));
    for _ in 0..2 * MAX_LEVERS {
        hca.levers.arm(NicLever::new(9, SECOND));
    }
    assert_eq!(lock(&hca.levers.table).levers.len(), MAX_LEVERS);
    assert!(hca.levers.state(first).unwrap().held.is_some(), "one that holds is not forgotten");
}
