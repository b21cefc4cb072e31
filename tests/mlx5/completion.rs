// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion and event queues: arming and its races, overruns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mlx5::hooks::{NicAction, NicRule};
use mlx5_spec::cq::cqe;
use mlx5_spec::eq::{eqe_comp, eqe_cq_err, event};
use mlx5_spec::qp::{qpc, state};
use mlx5_spec::{init, uar};
use rnic_testdrive::cq::CqSpec;
use rnic_testdrive::driver::COMPLETION_VECTOR;
use rnic_testdrive::{Cq, Driver, PATIENCE, ProbeOptions, Qp, QpSpec, Wqe};

use crate::scene::{Pair, machine};

const QUIET: Duration = Duration::from_millis(15);

fn write(pair: &Pair) -> Wqe {
    Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))
}

/// CQN of the next completion event.
fn event_cqn(pair: &Pair) -> u32 {
    let event = pair.driver.comp_eq.wait(PATIENCE, "completion event").unwrap();
    assert_eq!(event.event_type(), event::COMP);
    eqe_comp::CQN.get(&event.bytes)
}

fn no_event(pair: &Pair) {
    std::thread::sleep(QUIET);
    assert_eq!(pair.driver.comp_eq.poll(), None);
}

#[test]
fn an_armed_queue_tells_once() {
    let pair = Pair::new();
    pair.one.run(write(&pair)).unwrap();
    no_event(&pair);
    pair.one_cq.arm(false);
    no_event(&pair);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(event_cqn(&pair), pair.one_cq.cqn);
    pair.one.run(write(&pair)).unwrap();
    no_event(&pair);
    pair.tear_down();
}

#[test]
fn a_late_arm_tells_at_once() {
    let pair = Pair::new();
    pair.one.post_one(write(&pair).signaled());
    pair.driver.until("completion", || pair.one_cq.has_entry()).unwrap();
    no_event(&pair);
    pair.one_cq.arm(false);
    assert_eq!(event_cqn(&pair), pair.one_cq.cqn);
    no_event(&pair);
    pair.one_cq.wait_ok().unwrap();
    pair.tear_down();
}

#[test]
fn a_solicited_arm_waits_for_solicited_or_failed_work() {
    let pair = Pair::new();
    for _ in 0..3 {
        pair.other.receive(&[pair.remote_mr.all()]);
    }
    pair.other_cq.arm(true);
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    no_event(&pair);
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 8)).solicited()).unwrap();
    assert_eq!(event_cqn(&pair), pair.other_cq.cqn);
    let solicited = [(); 2].map(|()| cqe::SE.get(&pair.other_cq.wait_ok().unwrap().bytes));
    assert_eq!(solicited, [0, 1]);
    pair.other_cq.arm(true);
    pair.other.to_error().unwrap();
    assert_eq!(event_cqn(&pair), pair.other_cq.cqn);
    assert!(pair.other_cq.wait().unwrap().is_error());
}

#[test]
fn no_wake_up_is_lost_in_a_race_with_arming() {
    let pair = Pair::new();
    let rounds = 3000;
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                while round - seen.load(Ordering::Relaxed) >= 32 {
                    std::thread::sleep(Duration::from_micros(20));
                }
                pair.one.post_one(write(&pair).signaled());
                // Sometimes faster than the consumer, sometimes slower.
                std::thread::sleep(Duration::from_micros(round % 7 * 5));
            }
        });
        while seen.load(Ordering::Relaxed) < rounds {
            pair.one_cq.arm(false);
            assert_eq!(event_cqn(&pair), pair.one_cq.cqn);
            while let Some(cqe) = pair.one_cq.poll() {
                assert!(!cqe.is_error(), "{cqe:?}");
                seen.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    pair.tear_down();
}

/// Some devices ignore an arm whose number has already brought an event. A driver that counts on never notices, one that does not waits for ever.
#[test]
fn a_strict_device_ignores_the_number_of_an_arm_that_is_over() {
    let pair = Pair::new();
    pair.driver.machine.nic.injections().add(NicRule::new(0, NicAction::StrictArm)).unwrap();
    let arm = |sn, ci| pair.one_cq.arm_by_hand(sn, ci, false);
    let silent = || pair.driver.comp_eq.wait(QUIET, "completion event").is_err();
    // Armed twice before anything has come: the number is still good.
    arm(0, 0);
    arm(0, 0);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(event_cqn(&pair), pair.one_cq.cqn);
    // Its event has come, and neither a new entry nor one that is already there brings another.
    arm(0, 1);
    pair.one.run(write(&pair)).unwrap();
    assert!(silent());
    arm(0, 1);
    assert!(silent());
    // The next number does, at once.
    arm(1, 1);
    assert_eq!(event_cqn(&pair), pair.one_cq.cqn);
    pair.driver.machine.nic.injections().clear();
    arm(1, 2);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(event_cqn(&pair), pair.one_cq.cqn, "without the injection any arm will do");
}

#[test]
fn a_full_event_queue_holds_events_back() {
    let options = ProbeOptions { log_comp_eq: 2, ..ProbeOptions::default() };
    let pair = Pair::on(Driver::probe_with(&machine(), options).unwrap(), |_| ());
    let lanes: Vec<_> = (0..20)
        .map(|_| {
            let cq = pair.driver.create_cq(2).unwrap();
            let spec = QpSpec::rc(&pair.driver, pair.pd, &cq);
            let (one, other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
            cq.arm(false);
            (cq, one, other)
        })
        .collect();
    for (cq, one, _) in &lanes {
        one.post_one(write(&pair).signaled());
        pair.driver.until("completion", || cq.has_entry()).unwrap();
    }
    std::thread::sleep(QUIET);
    let mut told: Vec<_> = lanes.iter().map(|_| event_cqn(&pair)).collect();
    told.sort_unstable();
    let mut cqns: Vec<_> = lanes.iter().map(|(cq, ..)| cq.cqn).collect();
    cqns.sort_unstable();
    assert_eq!(told, cqns);
}

#[test]
fn an_overrun_completion_queue_fails_its_queue_pairs() {
    let pair = Pair::new();
    let cq = pair.driver.create_cq(2).unwrap();
    let spec = QpSpec::rc(&pair.driver, pair.pd, &cq);
    let (one, _other) = Qp::pair(&pair.driver, spec.clone(), QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq)).unwrap();
    one.post(&vec![write(&pair).signaled(); 5]);
    let event = pair.driver.async_event(PATIENCE).unwrap();
    assert_eq!((event.event_type(), eqe_cq_err::CQN.get(&event.bytes)), (event::CQ_ERROR, cq.cqn));
    pair.driver.until("state ERR", || one.queried(qpc::STATE) == Ok(state::ERR)).unwrap();
    // Nothing was overwritten.
    for _ in 0..4 {
        assert!(!cq.wait().unwrap().is_error());
    }
    assert!(cq.poll().is_none());
}

#[test]
fn a_queue_that_ignores_overruns_goes_on() {
    let pair = Pair::new();
    let spec = CqSpec { log_size: 2, uar: pair.driver.uar, eqn: pair.driver.comp_eq.eqn, ignore_overrun: true };
    let cq = Cq::create(&pair.driver.context, spec).unwrap();
    let spec = QpSpec::rc(&pair.driver, pair.pd, &cq);
    let (one, _other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    one.post(&vec![write(&pair).signaled(); 11]);
    std::thread::sleep(QUIET);
    assert_eq!(one.queried(qpc::STATE), Ok(state::RTS));
    assert!(pair.driver.async_eq.poll().is_none());
}

#[test]
fn a_queue_obeys_only_its_own_uar_page() {
    let pair = Pair::new();
    let foreign = pair.driver.alloc_uar().unwrap();
    let mut arm = [0; 8];
    mlx5_spec::uar::cq_arm::CQN.set(&mut arm, pair.one_cq.cqn);
    pair.driver.doorbell(foreign, mlx5_spec::uar::CQ_ARM, arm);
    pair.one.run(write(&pair)).unwrap();
    no_event(&pair);
}

#[test]
fn an_event_queue_obeys_its_own_uar_page_only() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let interrupts = || driver.machine.interrupts.count(COMPLETION_VECTOR.into());
    let event = || {
        pair.one_cq.arm(false);
        pair.one.run(write(&pair)).unwrap();
    };
    // The first event takes the arm that the queue was made with.
    event();
    driver.comp_eq.wait(PATIENCE, "completion event").unwrap();
    let before = interrupts();
    event();
    driver.until("completion event", || driver.comp_eq.poll().is_some()).unwrap();
    event();
    let foreign = driver.alloc_uar().unwrap();
    let mut arm = [0; 4];
    uar::eq::EQN.set(&mut arm, driver.comp_eq.eqn);
    uar::eq::CI.set(&mut arm, 2);
    for page in [foreign, foreign + 1] {
        driver.bar.write(u64::from(page) * uar::PAGE_SIZE + uar::EQ_ARM, &arm);
    }
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(interrupts(), before);
    driver.bar.write(u64::from(driver.uar) * uar::PAGE_SIZE + uar::EQ_ARM, &arm);
    assert!(driver.machine.interrupts.wait_beyond(COMPLETION_VECTOR.into(), before, PATIENCE));
}

/// Drivers turn a completion's timestamp into time by the internal timer: it must be the same clock (contract 2, 7.5).
#[test]
fn timestamps_are_those_of_the_internal_timer() {
    let pair = Pair::new();
    let timer = || {
        // High, low, high, as drivers read it.
        let half = |at: usize| u64::from(pair.driver.bar.read32(init::INTERNAL_TIMER as u64 + at as u64));
        loop {
            let (high, low, again) = (half(0), half(4), half(0));
            if high == again {
                return high << 32 | low;
            }
        }
    };
    let stamp = |cqe: rnic_testdrive::Cqe| cqe::TIMESTAMP.get(&cqe.bytes);
    let mut last = timer();
    for _ in 0..4 {
        pair.other.receive(&[pair.remote_mr.sge(0, 64)]);
        pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
        // The receiver is told before the sender.
        for stamp in [stamp(pair.other_cq.wait_ok().unwrap()), stamp(pair.one_cq.wait_ok().unwrap())] {
            assert!(stamp >= last, "{stamp} after {last}");
            last = stamp;
        }
        let now = timer();
        assert!(now >= last, "{now} after {last}");
        last = now;
    }
}
