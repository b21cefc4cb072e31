// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::hca::Hca;
use crate::hooks::{NicRule, Told};
use crate::mkey::tests::hca;

const WRITE: WqeShape =
    WqeShape { opcode: 8, qpn: 0x40, wqe_index: 3, key: 0x1_0001, command: 0, at: None, told: Told::Nothing };
const WAITER: (u32, u32) = (16, 0x40);
const SECOND: Duration = Duration::from_secs(1);

fn held(gate: Gate) -> u64 {
    match gate {
        Gate::Held(token) => token,
        Gate::Pass => panic!("not held"),
    }
}

fn lever(opcode: u8, limit: Duration) -> NicLever {
    NicLever::new(opcode, WqePoint::BeforeTranslation, limit)
}

fn kinds(hca: &Hca) -> Vec<NicKind> {
    hca.ledger.nic(0).into_iter().map(|record| record.kind).collect()
}

#[test]
fn the_nth_match_is_held_until_it_is_released_and_both_are_on_record() {
    let hca = hca();
    let levers = &hca.levers;
    assert_eq!(levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass);
    let id = levers.arm(NicLever { nth: 2, ..lever(8, SECOND) });
    assert_eq!(levers.gate(&hca.injections, &WqeShape { opcode: 0x10, ..WRITE }, WAITER), Gate::Pass);
    assert_eq!(levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass);
    let token = held(levers.gate(&hca.injections, &WRITE, WAITER));
    assert_eq!(levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass, "it holds one");
    assert!(levers.is_held(token) && !levers.is_held(token + 1));
    assert_eq!(levers.wait_held(id, Duration::ZERO), Ok(token));
    assert_eq!(levers.state(id).unwrap().held, [(token, WqePoint::BeforeTranslation)]);
    let state = levers.release(&hca, id).unwrap();
    assert_eq!((state.armed, state.held, state.ended, state.matched), (false, vec![], Some(ReleaseWhy::Released), 2));
    assert!(!levers.is_held(token) && levers.idle(), "one branch again");
    let why = ReleaseWhy::Released;
    assert_eq!(kinds(&hca), [NicKind::Gated { opcode: 8, token }, NicKind::Ungated { token, why }]);
}

#[test]
fn a_hold_ends_by_itself() {
    let hca = hca();
    let id = hca.levers.arm(lever(8, Duration::ZERO));
    let token = held(hca.levers.gate(&hca.injections, &WRITE, WAITER));
    assert!(!hca.levers.is_held(token));
    assert_eq!(hca.levers.state(id).unwrap().ended, Some(ReleaseWhy::Expired));
    let why = ReleaseWhy::Expired;
    assert_eq!(kinds(&hca), [NicKind::Gated { opcode: 8, token }, NicKind::Ungated { token, why }]);
}

#[test]
fn resets_cancel_holds_and_leave_levers_armed() {
    let hca = hca();
    let first = hca.levers.arm(lever(8, SECOND));
    let second = hca.levers.arm(lever(0x10, SECOND));
    let token = held(hca.levers.gate(&hca.injections, &WRITE, WAITER));
    hca.levers.reset(&hca);
    assert!(!hca.levers.is_held(token));
    assert_eq!(hca.levers.state(first).unwrap().ended, Some(ReleaseWhy::Reset));
    assert!(hca.levers.state(second).unwrap().armed);
    let token = held(hca.levers.gate(&hca.injections, &WqeShape { opcode: 0x10, ..WRITE }, WAITER));
    hca.levers.cancel(&hca, token);
    assert!(!hca.levers.is_held(token));
    hca.levers.arm(lever(8, SECOND));
    hca.levers.disarm_all(&hca);
    assert_eq!(hca.levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass);
}

#[test]
fn a_lie_is_a_hold_for_all_but_the_wqe() {
    let hca = hca();
    let levers = &hca.levers;
    let rule = hca.injections.add(NicRule::new(1, NicAction::LieAboutHold)).unwrap();
    let pass = |opcode| assert_eq!(levers.gate(&hca.injections, &WqeShape { opcode, ..WRITE }, WAITER), Gate::Pass);
    pass(8);
    assert_eq!(hca.injections.rule(rule).unwrap().matched, 0, "no lever, no lie");
    let id = levers.arm(lever(8, SECOND));
    pass(0x10);
    pass(8);
    let token = levers.wait_held(id, Duration::ZERO).unwrap();
    assert_eq!(levers.state(id).unwrap().held, [(token, WqePoint::BeforeTranslation)]);
    assert!(!levers.idle());
    let state = levers.release(&hca, id).unwrap();
    assert_eq!((state.armed, state.held, state.ended), (false, vec![], Some(ReleaseWhy::Released)));
    let why = ReleaseWhy::Released;
    assert_eq!(kinds(&hca), [NicKind::Gated { opcode: 8, token }, NicKind::Ungated { token, why }]);
    // The next one is honest: the rule was for one.
    levers.arm(lever(8, SECOND));
    held(levers.gate(&hca.injections, &WRITE, WAITER));
    assert_eq!(hca.injections.rule(rule).unwrap().fired, 1);
}

#[test]
fn a_lie_ends_at_its_limit_and_with_a_reset_as_holds_do() {
    let hca = hca();
    let levers = &hca.levers;
    hca.injections.add(NicRule::new(0, NicAction::LieAboutHold)).unwrap();
    let id = levers.arm(lever(8, Duration::ZERO));
    assert_eq!(levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass);
    assert_eq!(levers.state(id).unwrap().ended, Some(ReleaseWhy::Expired));
    assert!(levers.idle() && levers.lies.lock().is_empty());
    let id = levers.arm(lever(8, SECOND));
    assert_eq!(levers.gate(&hca.injections, &WRITE, WAITER), Gate::Pass);
    levers.reset(&hca);
    assert_eq!(levers.state(id).unwrap().ended, Some(ReleaseWhy::Reset));
    assert!(levers.lies.lock().is_empty());
}
