// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;

/// Numbers are held, at A and then at B; a waiter is a number too.
struct Numbers;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    A,
    B,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Only(Option<u8>);

impl From<u8> for Only {
    fn from(number: u8) -> Self {
        Self(Some(number))
    }
}

impl Match for Only {
    type Shape<'a> = u8;

    fn matches(&self, shape: &u8) -> bool {
        self.0.is_none_or(|number| number == *shape)
    }
}

impl Holdable for Numbers {
    type Match = Only;
    type Point = At;
    type Waiter = u32;
}

const LONG: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_secs(60);

fn lever(number: u8) -> Lever<Only, At> {
    Lever::new(number, At::A, LONG)
}

/// Occasion `number` with this token (told as token + 100, waiter 7) comes and stands if it is caught.
fn comes(holds: &Holds<Numbers>, number: u8, token: u64) -> Option<Caught<At>> {
    let caught = holds.consult(token, token + 100, 7, &number)?;
    holds.stand(caught, token, caught.point).unwrap();
    Some(caught)
}

/// SPECIFICATION.md: no hold lasts longer than a minute, whatever is asked for.
#[test]
fn no_limit_is_longer_than_a_minute() {
    for (asked, gets) in [(Duration::MAX, MINUTE), (MINUTE + Duration::from_nanos(1), MINUTE), (LONG, LONG)] {
        let holds = Holds::<Numbers>::default();
        holds.arm(Lever { limit: asked, ..lever(1) });
        let before = Instant::now();
        comes(&holds, 1, 1).unwrap();
        let after = Instant::now();
        let deadline = holds.next_deadline().unwrap();
        assert!((before + gets..=after + gets).contains(&deadline), "{asked:?}");
        assert_eq!(holds.deadline(1), Some(deadline));
        assert_eq!(holds.orders(deadline - Duration::from_nanos(1)), []);
        assert_eq!(holds.orders(deadline), [(1, Order::Go(ReleaseWhy::Expired))]);
        assert_eq!(holds.orders(deadline), [], "once");
    }
}

#[test]
fn one_limit_covers_all_holds_of_one_thing() {
    let holds = Holds::<Numbers>::default();
    holds.arm(lever(1));
    let caught = comes(&holds, 1, 1).unwrap();
    let first = holds.next_deadline();
    holds.stand(caught, 1, At::B).unwrap();
    assert_eq!(holds.next_deadline(), first);
}

#[test]
fn catches_from_the_nth_match_on_so_often_and_states_it() {
    let holds = Holds::<Numbers>::default();
    assert!(holds.idle() && holds.consult(1, 1, 0, &1).is_none());
    let id = holds.arm(Lever { nth: 2, times: 2, ..lever(1) });
    assert!(comes(&holds, 2, 1).is_none() && comes(&holds, 1, 2).is_none());
    let first = comes(&holds, 1, 3).unwrap();
    comes(&holds, 1, 4).unwrap();
    assert!(comes(&holds, 1, 5).is_none(), "it holds two");
    assert_eq!(holds.wait_held(id, 2, Duration::ZERO), Ok(vec![103, 104]));
    holds.over(first, 3, ReleaseWhy::Failed);
    let state = holds.state(id).unwrap();
    assert_eq!((state.armed, state.held, state.caught, state.matched), (false, vec![(104, At::A)], 2, 3));
    assert_eq!((state.expired, state.cancelled, state.ended), (0, 1, None));
    assert_eq!(holds.holding(), 1);
    assert_eq!(holds.state(LeverId(9)), Err(LeverError::Unknown(9)));
}

#[test]
fn the_lab_waits_and_is_told_when_it_waits_for_nothing() {
    let holds = Holds::<Numbers>::default();
    let id = holds.arm(Lever { nth: 3, ..lever(1) });
    holds.consult(1, 1, 0, &1);
    let waited = Duration::from_millis(5);
    assert_eq!(holds.wait_held(id, 1, waited), Err(LeverError::Timeout { lever: id.0, waited, matched: 1 }));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| holds.wait_held(id, 1, LONG));
        holds.consult(2, 2, 0, &1);
        comes(&holds, 1, 3).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(vec![103]));
    });
    holds.end(Which::All, ReleaseWhy::Reset, |_, _| ());
    let over = |why| Err(LeverError::Over { lever: id.0, why });
    assert_eq!(holds.wait_held(id, 1, LONG), over(Some(ReleaseWhy::Reset)));
    let id = holds.arm(lever(1));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| holds.wait_held(id, 1, LONG));
        holds.disarm(Some(id));
        assert_eq!(waiter.join().unwrap(), Err(LeverError::Over { lever: id.0, why: None }));
    });
}

#[test]
fn a_release_waits_until_the_worker_has_carried_it_out() {
    let holds = Holds::<Numbers>::default();
    let id = holds.arm(lever(1));
    let caught = comes(&holds, 1, 1).unwrap();
    std::thread::scope(|scope| {
        let (wake, woken) = std::sync::mpsc::channel();
        let holds = &holds;
        scope.spawn(move || {
            woken.recv().unwrap();
            assert_eq!(holds.orders(Instant::now()), [(1, Order::Step)]);
            holds.stand(caught, 1, At::B).unwrap();
            woken.recv().unwrap();
            assert_eq!(holds.orders(Instant::now()), [(1, Order::Go(ReleaseWhy::Released))]);
            holds.over(caught, 1, ReleaseWhy::Released);
        });
        holds.step(id, At::A, At::B, || wake.send(()).unwrap()).unwrap();
        assert_eq!(holds.state(id).unwrap().held, [(101, At::B)]);
        assert_eq!(holds.step(id, At::A, At::B, || panic!("it stands there")), Ok(()));
        assert_eq!(holds.step(id, At::A, At::A, || ()), Err(LeverError::NoStep(id.0)), "never back");
        let report = holds.release(id, || wake.send(()).unwrap()).unwrap();
        assert_eq!(report, ReleaseReport { released: vec![101], expired: 0, matched: 1 });
    });
    assert!(holds.idle(), "one load again");
}

#[test]
fn what_ends_before_it_stands_does_not_stand() {
    let holds = Holds::<Numbers>::default();
    holds.arm(lever(1));
    let caught = holds.consult(1, 1, 0, &1).unwrap();
    holds.end(Which::All, ReleaseWhy::Reset, |_, _| panic!("it was not held"));
    assert_eq!(holds.stand(caught, 1, At::A), Err(ReleaseWhy::Reset));
    let id = holds.arm(lever(1));
    let caught = holds.consult(2, 2, 0, &1).unwrap();
    holds.disarm(Some(id));
    assert_eq!(holds.stand(caught, 2, At::A), Err(ReleaseWhy::Released));
    holds.over(caught, 2, ReleaseWhy::Released);
    assert!(holds.idle());
}

#[test]
fn holds_end_on_the_spot_by_name_by_lever_or_all() {
    let holds = Holds::<Numbers>::default();
    let ids: Vec<_> = (1..=3).map(|n| holds.arm(lever(n))).collect();
    let idle = holds.arm(lever(9));
    for n in 1..=3 {
        comes(&holds, n, n.into()).unwrap();
    }
    let end = |which| {
        let mut ended = Vec::new();
        holds.end(which, ReleaseWhy::Released, |token, waiter| ended.push((token, waiter)));
        ended
    };
    assert_eq!(end(Which::Token(2)), [(2, 7)]);
    assert_eq!(holds.deadline(2), None);
    assert_eq!(end(Which::Lever(ids[0])), [(1, 7)]);
    assert_eq!(end(Which::All), [(3, 7)]);
    assert!(holds.state(idle).unwrap().armed, "it held nothing");
}

#[test]
fn the_table_is_bounded_and_what_holds_is_not_forgotten() {
    let holds = Holds::<Numbers>::default();
    let first = holds.arm(Lever { times: u32::MAX, ..lever(1) });
    let caught = (0..1000).filter(|token| comes(&holds, 1, *token).is_some()).count();
    assert_eq!(caught, MAX_TIMES as usize);
    for _ in 0..2 * MAX_LEVERS {
        holds.arm(lever(9));
    }
    assert_eq!(holds.ids().len(), MAX_LEVERS);
    assert_eq!(holds.state(first).unwrap().held.len(), MAX_TIMES as usize);
}
