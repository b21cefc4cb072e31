// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections of what the device does with work requests and of what it tells: one action at a time, and that all else stays right.
//! Those of the device as a whole are in `health`, those of page faults in `odp`.

use std::time::{Duration, Instant};

use mlx5::hooks::{NicAction, NicKind, NicLedger, NicRule, WqeMatch};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{cqe, opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_comp, event};
use mlx5_spec::qp::{qpc, state};
use mlx5_spec::wqe::opcode;
use probe::RuleId;
use rnic_testdrive::driver::COMPLETION_VECTOR;
use rnic_testdrive::{Access, PATIENCE, Wqe};

use crate::scene::{LOCAL_VA, Pair};

/// What comes late comes no earlier than this, or never.
const LATE: Duration = Duration::from_millis(100);
const LATE_MS: u32 = 100;
/// So late that a busy machine sees it being late.
const HELD_MS: u32 = 1500;
/// Longer than that.
const OVER: Duration = Duration::from_millis(HELD_MS as u64 + 200);
/// After it what is to come has come.
const SETTLED: Duration = Duration::from_millis(200);

impl Pair {
    /// The `nth` match (0: each) fires.
    fn inject(&self, nth: u32, action: NicAction, what: WqeMatch) -> RuleId {
        self.driver.machine.nic.injections().add(NicRule::new(nth, action).on(what)).unwrap()
    }

    fn fired(&self, id: RuleId) -> u64 {
        self.driver.machine.nic.injections().rule(id).unwrap().fired
    }

    /// An RDMA WRITE of 8 bytes, the `n`-th of the memory.
    fn eight(&self, n: u64) -> Wqe {
        Wqe::write(self.remote_mr.va + 8 * n, self.remote_mr.key).sge(self.local_mr.sge(8 * n, 8)).signaled()
    }

    /// Waits until the bytes of [`Pair::eight`] are in place.
    fn placed(&self, n: u64) {
        let there = || self.remote.bytes(8 * n, 8) == self.local.bytes(8 * n, 8);
        self.driver.until("payload", there).unwrap();
    }

    fn late(&self) -> usize {
        self.driver.machine.nic.hca().later.held()
    }

    fn interrupts(&self) -> u64 {
        self.driver.machine.interrupts.count(COMPLETION_VECTOR.into())
    }
}

/// Bytes of hardware (vendor, hw_synd) where they are known, nought where they are not.
#[test]
fn a_work_request_fails_as_real_ones_do() {
    for (syndrome, vendor, hw) in [
        (syndrome::TRANSPORT_RETRY_EXC_ERR, 0x81, 0),
        (syndrome::REMOTE_ACCESS_ERR, 0x88, 0),
        (syndrome::LOCAL_PROT_ERR, 0x52, 0x93),
        (syndrome::RNR_RETRY_EXC_ERR, 0, 0),
    ] {
        let pair = Pair::new();
        pair.local.fill_pattern(1);
        let action = NicAction::WqeError { syndrome: syndrome as u8 };
        let rule = pair.inject(2, action, WqeMatch::opcode(opcode::RDMA_WRITE as u8));
        let posted = pair.one.post(&[pair.eight(0), pair.eight(1), pair.eight(2)]);
        let seen: Vec<_> = (0..3).map(|_| pair.one_cq.wait().unwrap()).collect();
        let outcomes: Vec<_> = seen.iter().map(|cqe| cqe.outcome()).collect();
        let error = cqe_opcode::REQ_ERR;
        assert_eq!(outcomes, [(cqe_opcode::REQ, 0), (error, syndrome), (error, syndrome::WR_FLUSH_ERR)]);
        assert_eq!(seen.iter().map(|cqe| cqe.wqe_counter()).collect::<Vec<_>>(), posted);
        let bytes = [cqe::VENDOR_ERR_SYND, cqe::HW_ERR_SYND].map(|field| field.get(&seen[1].bytes));
        assert_eq!(bytes, [vendor, hw], "syndrome {syndrome:#x}");
        let states = [&pair.one, &pair.other].map(|qp| qp.queried(qpc::STATE));
        assert_eq!(states, [Ok(state::ERR), Ok(state::RTS)], "the responder has done nothing wrong");
        assert_eq!((pair.remote.bytes(8, 16), pair.fired(rule)), (vec![0; 16], 1), "it does nothing");
    }
}

/// One by its address, the other from the first one's firing on; both by what the work requests access, not by their order.
#[test]
fn an_address_and_another_firing_choose_a_work_request() {
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    let injections = pair.driver.machine.nic.injections();
    let at = |n: u64| Some(pair.remote_mr.va + 8 * n..pair.remote_mr.va + 8 * n + 1);
    let begin = NicRule::new(0, NicAction::CompletionLate { ms: 1 });
    let begin = probe::Rule { name: "begin".into(), ..begin.on(WqeMatch::opcode(opcode::SEND as u8)) };
    let begin = injections.add(begin).unwrap();
    let action = NicAction::WqeError { syndrome: syndrome::LOCAL_PROT_ERR as u8 };
    let fails = NicRule::new(1, action).on(WqeMatch { address: at(2), ..WqeMatch::default() });
    let fails = injections.add(probe::Rule { after: Some("begin".into()), ..fails }).unwrap();
    pair.one.run(pair.eight(2)).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(4096, 64)]);
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.one.run(pair.eight(1)).unwrap();
    assert_eq!((pair.fired(begin), pair.fired(fails)), (1, 0));
    pair.one.post_one(pair.eight(2));
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_PROT_ERR));
    assert_eq!(injections.rule(fails).map(|rule| (rule.matched, rule.fired)), Some((1, 1)));
}

#[test]
fn a_datagrams_error_stops_its_send_queue_only() {
    let pair = Pair::with(|spec| spec.service = mlx5_spec::qp::service_type::UC);
    pair.inject(1, NicAction::WqeError { syndrome: syndrome::LOCAL_QP_OP_ERR as u8 }, WqeMatch::default());
    pair.one.post_one(pair.eight(0));
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_QP_OP_ERR));
    assert_eq!(pair.one.queried(qpc::STATE), Ok(state::SQER));
}

#[test]
fn a_completion_is_lost_and_its_payload_is_not() {
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    let rule = pair.inject(1, NicAction::CompletionLost, WqeMatch::opcode(opcode::RDMA_WRITE as u8));
    let posted = pair.one.post(&[pair.eight(0), pair.eight(1)]);
    assert_eq!(pair.one_cq.wait_ok().unwrap().wqe_counter(), posted[1]);
    pair.placed(0);
    assert_eq!(pair.fired(rule), 1);
    // A receive is none of that opcode.
    let of_receives =
        pair.inject(1, NicAction::CompletionLost, WqeMatch { qpn: Some(pair.other.qpn), ..WqeMatch::default() });
    pair.other.receive(&[pair.remote_mr.all()]);
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 8))).unwrap();
    assert_eq!((pair.other_cq.poll(), pair.fired(of_receives), pair.fired(rule)), (None, 1, 1));
    pair.tear_down();
}

#[test]
fn a_completion_is_late_and_none_of_its_queue_overtakes_it() {
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    pair.inject(1, NicAction::CompletionLate { ms: LATE_MS }, WqeMatch::default());
    let begun = Instant::now();
    let posted = pair.one.post(&[pair.eight(0), pair.eight(1)]);
    pair.placed(1);
    let seen = [pair.one_cq.wait_ok().unwrap().wqe_counter(), pair.one_cq.wait_ok().unwrap().wqe_counter()];
    assert_eq!(seen[..], posted);
    assert!(begun.elapsed() >= LATE, "{:?}", begun.elapsed());
    assert_eq!(pair.late(), 0);
    pair.tear_down();
}

/// An entry that was put off has its place: a queue that is full with it takes no other.
#[test]
fn late_completions_count_against_the_queue() {
    let pair = Pair::new();
    let cq = pair.driver.create_cq(0).unwrap();
    let spec = rnic_testdrive::QpSpec::rc(&pair.driver, pair.pd, &cq);
    let (one, _other) = rnic_testdrive::Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    pair.inject(1, NicAction::CompletionLate { ms: HELD_MS }, WqeMatch { qpn: Some(one.qpn), ..WqeMatch::default() });
    one.post(&[pair.eight(0), pair.eight(1)]);
    let overrun = pair.driver.async_event(PATIENCE).unwrap();
    assert_eq!(overrun.event_type(), event::CQ_ERROR);
}

/// Rule 3: when a command that ends the queue pair's life completes, nothing of it comes any more. An error loses nothing.
#[test]
fn late_completions_end_with_their_queue_pair() {
    let put_off = |pair: &Pair| {
        pair.inject(1, NicAction::CompletionLate { ms: HELD_MS }, WqeMatch::default());
        pair.one.post(&[pair.eight(0), pair.eight(1)]);
        pair.driver.until("two late completions", || pair.late() == 2).unwrap();
    };
    type End = fn(&Pair);
    let ends: [(&str, End); 3] = [
        ("2RST", |pair| pair.one.to_reset().unwrap()),
        ("DESTROY_QP", |pair| pair.one.destroy().unwrap()),
        ("FLR", |pair| pair.driver.machine.function_reset()),
    ];
    for (name, end) in ends {
        let pair = Pair::new();
        put_off(&pair);
        end(&pair);
        assert_eq!(pair.late(), 0, "{name}");
        std::thread::sleep(OVER);
        assert!(!pair.one_cq.has_entry(), "{name}");
    }
    let pair = Pair::new();
    put_off(&pair);
    pair.one.to_error().unwrap();
    assert_eq!(pair.late(), 0);
    let seen = [pair.one_cq.poll().unwrap(), pair.one_cq.poll().unwrap()].map(|cqe| cqe.outcome());
    assert_eq!(seen, [(cqe_opcode::REQ, 0); 2], "written before the command completed");
}

/// What comes late to a queue whose memory is no longer the device's is not written.
#[test]
fn late_completions_find_bus_mastering_off() {
    let pair = Pair::new();
    pair.inject(1, NicAction::CompletionLate { ms: HELD_MS }, WqeMatch::default());
    pair.one.post_one(pair.eight(0));
    pair.driver.until("late completion", || pair.late() == 1).unwrap();
    pair.driver.machine.set_bus_master(false);
    pair.driver.until("its time", || pair.late() == 0).unwrap();
    pair.driver.machine.set_bus_master(true);
    std::thread::sleep(OVER);
    assert!(!pair.one_cq.has_entry());
}

fn completions() -> WqeMatch {
    WqeMatch { event: Some(event::COMP as u8), ..WqeMatch::default() }
}

#[test]
fn an_event_is_lost() {
    let pair = Pair::new();
    let rule = pair.inject(1, NicAction::EventLost, completions());
    pair.one_cq.arm(false);
    pair.one.post_one(pair.eight(0));
    pair.driver.until("completion", || pair.one_cq.has_entry()).unwrap();
    assert!(pair.driver.comp_eq.wait(SETTLED, "event").is_err());
    // Events of commands are others.
    assert_eq!(pair.fired(rule), 1);
    pair.one_cq.wait_ok().unwrap();
    pair.one_cq.arm(false);
    pair.one.post_one(pair.eight(1));
    pair.driver.comp_eq.wait(PATIENCE, "event").unwrap();
}

#[test]
fn an_event_is_late_and_goes_with_its_object() {
    let pair = Pair::new();
    pair.inject(1, NicAction::EventLate { ms: LATE_MS }, completions());
    let begun = Instant::now();
    pair.one_cq.arm(false);
    pair.one.run(pair.eight(0)).unwrap();
    let came = pair.driver.comp_eq.wait(PATIENCE, "event").unwrap();
    assert_eq!(eqe_comp::CQN.get(&came.bytes), pair.one_cq.cqn);
    assert!(begun.elapsed() >= LATE, "{:?}", begun.elapsed());
    // Another completion queue, which is destroyed meanwhile.
    pair.inject(1, NicAction::EventLate { ms: HELD_MS }, completions());
    let cq = pair.driver.create_cq(2).unwrap();
    let spec = rnic_testdrive::QpSpec::rc(&pair.driver, pair.pd, &cq);
    let (one, other) = rnic_testdrive::Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    cq.arm(false);
    one.run(pair.eight(0)).unwrap();
    pair.driver.until("late event", || pair.late() == 1).unwrap();
    one.destroy().unwrap();
    other.destroy().unwrap();
    cq.destroy().unwrap();
    assert_eq!(pair.late(), 0);
    assert!(pair.driver.comp_eq.wait(OVER, "event").is_err());
    pair.tear_down();
}

fn of_completions() -> WqeMatch {
    WqeMatch { vector: Some(COMPLETION_VECTOR), event: Some(event::COMP as u8), ..WqeMatch::default() }
}

impl Pair {
    /// A completion with its event, whose interrupt `action` has to do with; the interrupts before it.
    fn interrupted(&self, action: NicAction) -> u64 {
        // The completion queue's event queue is armed and empty.
        while self.driver.comp_eq.poll().is_some() {}
        self.driver.comp_eq.arm();
        let before = self.interrupts();
        // The same vector for another event, which comes before it in the table.
        let other = self.inject(1, action, WqeMatch { event: Some(event::CMD as u8), ..of_completions() });
        let rule = self.inject(1, action, of_completions());
        self.one_cq.arm(false);
        self.one.run(self.eight(0)).unwrap();
        self.driver.until("firing", || self.fired(rule) == 1).unwrap();
        assert_eq!(self.fired(other), 0);
        before
    }
}

#[test]
fn an_interrupt_is_lost_and_its_event_is_not() {
    let pair = Pair::new();
    let before = pair.interrupted(NicAction::InterruptLost);
    std::thread::sleep(SETTLED);
    assert_eq!(pair.interrupts(), before);
    assert!(pair.driver.comp_eq.poll().is_some());
    pair.tear_down();
}

#[test]
fn an_interrupt_is_late() {
    let pair = Pair::new();
    let begun = Instant::now();
    let before = pair.interrupted(NicAction::InterruptLate { ms: LATE_MS });
    assert!(pair.driver.machine.interrupts.wait_beyond(COMPLETION_VECTOR.into(), before, PATIENCE));
    assert!(begun.elapsed() >= LATE, "{:?}", begun.elapsed());
    // A reset takes back what is late.
    let before = pair.interrupted(NicAction::InterruptLate { ms: HELD_MS });
    pair.driver.machine.function_reset();
    std::thread::sleep(OVER);
    assert_eq!((pair.interrupts(), pair.late()), (before, 0));
}

#[test]
fn an_interrupt_comes_twice() {
    let pair = Pair::new();
    let before = pair.interrupted(NicAction::InterruptTwice);
    pair.driver.until("two interrupts", || pair.interrupts() == before + 2).unwrap();
    std::thread::sleep(SETTLED);
    assert_eq!(pair.interrupts(), before + 2);
    assert!(pair.driver.comp_eq.poll().is_some() && pair.driver.comp_eq.poll().is_none(), "one event");
    pair.tear_down();
}

#[test]
fn one_bit_of_a_payload_flips_and_nobody_is_told() {
    let pair = Pair::new();
    pair.local.fill_pattern(7);
    let ledger = &pair.driver.machine.ledger;
    assert!(ledger.watch(pair.remote.gpa(100) & !0xfff));
    let rule = pair.inject(1, NicAction::PayloadCorrupted, WqeMatch::key(pair.remote_mr.key));
    let since = ledger.tick();
    let write = Wqe::write(pair.remote_mr.va + 100, pair.remote_mr.key).sge(pair.local_mr.sge(0, 5000));
    pair.one.run(write.clone()).unwrap();
    let flipped = |from: &[u8], to: &[u8]| from.iter().zip(to).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    let (sent, found) = (pair.local.bytes(0, 5000), pair.remote.bytes(100, 5000));
    assert_eq!((flipped(&sent, &found), pair.fired(rule)), (1, 1));
    assert!(ledger.nic(since).iter().any(|record| matches!(record.kind, NicKind::Wrote { .. })));
    assert!(ledger.nic_totals()[0].agree());
    // The same once more, and from within the WQE.
    pair.one.run(write).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 100), 5000);
    pair.inject(1, NicAction::PayloadCorrupted, WqeMatch::default());
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).inline(&[0xaa; 16])).unwrap();
    assert_eq!(flipped(&[0xaa; 16], &pair.remote.bytes(0, 16)), 1);
    pair.tear_down();
}

#[test]
fn numbers_are_given_out_again_at_once() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let key = |destroyed: Option<u32>| {
        destroyed.into_iter().for_each(|key| driver.destroy_mkey(key).unwrap());
        driver.register(pair.pd, &pair.local, LOCAL_VA, Access::ALL).unwrap().key
    };
    let first = key(None);
    assert_ne!(key(Some(first)) >> 8, first >> 8, "as long as nothing is injected");
    pair.inject(0, NicAction::NumberReuse, WqeMatch::command(Opcode::DESTROY_MKEY));
    let second = key(None);
    assert_eq!(key(Some(second)) >> 8, second >> 8);
    let cq = driver.create_cq(2).unwrap();
    cq.destroy().unwrap();
    let other = driver.create_cq(2).unwrap();
    assert_ne!(other.cqn, cq.cqn, "of keys only");
    driver.machine.nic.injections().clear();
    pair.inject(0, NicAction::NumberReuse, WqeMatch::default());
    other.destroy().unwrap();
    let again = driver.create_cq(2).unwrap();
    assert_eq!(again.cqn, other.cqn);
    let spec = rnic_testdrive::QpSpec::rc(driver, pair.pd, &again);
    let (one, two) = rnic_testdrive::Qp::pair(driver, spec.clone(), spec.clone()).unwrap();
    one.destroy().unwrap();
    let third = rnic_testdrive::Qp::create(&driver.context, spec).unwrap();
    assert_eq!(third.qpn, one.qpn);
    // The one that is in the way is passed over.
    third.destroy().unwrap();
    assert_ne!(two.qpn, third.qpn);
}
