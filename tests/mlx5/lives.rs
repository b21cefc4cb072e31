// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rule 3 for what a message does outside of the section that moved its data: once a command has ended a queue pair's life, nothing that
//! its messages had still to do is done.
//!
//! The windows are made wide by WRITEs of another queue pair that stall one after the other: whatever waits for DMA in flight waits to the
//! end of the one that stalls now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5::{EnginePolicy, NicConfig};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::mkey::{mkc, query_in, query_out, umr_mask};
use mlx5_spec::qp::{qpc, state};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::command::Input;
use rnic_testdrive::mkey::mtt_words;
use rnic_testdrive::{Access, Driver, Machine, MachineConfig, MkeySpec, Qp, QpSpec, UmrSpec, Wqe};

use crate::scene::{LEN, Pair};

const VA: u64 = 0x1234_5000_0000;
const STALL_MS: u32 = 20;
/// WRITEs that stall: more than a test needs.
const STALLS: usize = 6;

/// A pair whose requester, the driver's UMRs and the stalled WRITEs have an engine each.
struct Slow {
    pair: Pair,
    staller: Qp,
    _to: Qp,
}

impl Slow {
    fn new() -> Self {
        let nic = NicConfig { engines: EnginePolicy::Threads(4), ..NicConfig::default() };
        let driver = Driver::probe(&Arc::new(Machine::new(MachineConfig { nic, ..MachineConfig::default() }))).unwrap();
        let pages = [driver.alloc_uar().unwrap(), driver.alloc_uar().unwrap()];
        let engines: BTreeSet<u32> = [driver.uar, pages[0], pages[1]].iter().map(|uar| uar % 4).collect();
        assert_eq!(engines.len(), 3);
        let pair = Pair::on(driver, |spec| spec.uar = pages[0]);
        let cq = pair.driver.create_cq(6).unwrap();
        let spec = QpSpec { uar: pages[1], ..QpSpec::rc(&pair.driver, pair.pd, &cq) };
        let (staller, to) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
        Self { pair, staller, _to: to }
    }

    /// Returns while the first of the WRITEs stalls.
    fn stall(&self) {
        let (driver, mr) = (&self.pair.driver, &self.pair.remote_mr);
        let injections = &driver.machine.nic.hca().injections;
        let what = WqeMatch { qpn: Some(self.staller.qpn), ..WqeMatch::default() };
        let rule = injections.add(NicRule::new(0, NicAction::StallInFlight { ms: STALL_MS }).on(what)).unwrap();
        let write = Wqe::write(mr.va + LEN / 2, mr.key).sge(self.pair.local_mr.sge(0, 8)).signaled();
        self.staller.post(&vec![write; STALLS]);
        driver.until("a stall", || injections.rule(rule).is_some_and(|rule| rule.fired > 0)).unwrap();
    }

    /// Until no WRITE stalls any more, and a little longer.
    fn rest(&self) {
        for _ in 0..STALLS {
            self.staller.spec.send_cq.wait_ok().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command that ends a queue pair's life.
type End = fn(&Pair);

fn is_free(driver: &Driver, key: u32) -> bool {
    let input = Input::new(Opcode::QUERY_MKEY, query_in::SIZE).with(query_in::MKEY_INDEX, key >> 8);
    mkc::FREE.is_set(&driver.query(input, query_out::SIZE).unwrap()[query_out::MKC..])
}

/// A UMR has the key to itself and waits for DMA in flight, twice, when the message comes to its invalidation. Whether the key is free once
/// `end` is complete, and later.
fn invalidation(end: End) -> (bool, bool) {
    let slow = Slow::new();
    let Slow { pair, .. } = &slow;
    let driver = &pair.driver;
    let list = mtt_words(&pair.remote, Access::ALL);
    let spec = MkeySpec { remote_invalidate: true, ..MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, list.clone()) };
    let key = driver.create_mkey(&spec).unwrap();
    // So that the driver has its UMR queue pair.
    driver.umr(&UmrSpec::update(key, 0, list.clone())).unwrap();
    let umrs = &driver.machine.nic.hca().counters.umrs;
    let before = umrs.get();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.local.fill(0, 8, 0x77);
    slow.stall();
    let at_the_end = std::thread::scope(|scope| {
        let moved = MkeySpec { start: VA + 4096, ..spec.clone() };
        let umr = UmrSpec { mask: umr_mask::START_ADDR, context: moved.context(), ..UmrSpec::update(key, 0, list) };
        scope.spawn(move || driver.umr(&umr).unwrap());
        driver.until("the UMR to have the key", || umrs.get() > before).unwrap();
        pair.one.post_one(Wqe::new(opcode::SEND_INVAL).immediate(key).sge(pair.local_mr.sge(0, 8)));
        driver.until("the message's data", || pair.remote.bytes(0, 8) == [0x77; 8]).unwrap();
        end(pair);
        is_free(driver, key)
    });
    slow.rest();
    (at_the_end, is_free(driver, key))
}

#[test]
fn a_message_of_a_life_that_is_over_invalidates_nothing() {
    let ends: [(&str, End); 6] = [
        ("2RST of the responder", |pair| pair.other.to_reset().unwrap()),
        ("2ERR of the responder", |pair| pair.other.to_error().unwrap()),
        ("DESTROY_QP of the responder", |pair| pair.other.destroy().unwrap()),
        ("2RST of the requester", |pair| pair.one.to_reset().unwrap()),
        ("2ERR of the requester", |pair| pair.one.to_error().unwrap()),
        ("DESTROY_QP of the requester", |pair| pair.one.destroy().unwrap()),
    ];
    for (name, end) in ends {
        let (at_the_end, later) = invalidation(end);
        assert_eq!(at_the_end, later, "{name} was complete before the key was taken away");
    }
    assert!(invalidation(|_| ()).1, "it waits for the key, no longer");
}

/// The responder goes through 2RST between the invalidation and the completion, and its driver enables the key again. For the next life
/// the message is a new one: if its completion says that the key is gone, it is. `None`: the old life saw it all.
fn invalidation_again() -> Option<bool> {
    let slow = Slow::new();
    let Slow { pair, .. } = &slow;
    let driver = &pair.driver;
    let list = mtt_words(&pair.remote, Access::ALL);
    let spec = MkeySpec { remote_invalidate: true, ..MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, list) };
    let key = driver.create_mkey(&spec).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    slow.stall();
    pair.one.post_one(Wqe::new(opcode::SEND_INVAL).immediate(key));
    driver.until("the invalidation", || is_free(driver, key)).unwrap();
    pair.other.to_reset().unwrap();
    slow.rest();
    if pair.other_cq.poll().is_some() {
        return None;
    }
    driver.umr(&UmrSpec::enable(key, &spec)).unwrap();
    pair.other.to_init().unwrap();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.other.to_rtr(pair.one.peer()).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().opcode(), cqe_opcode::RESP_SEND_INV);
    Some(is_free(driver, key))
}

#[test]
fn an_invalidation_counts_for_the_life_that_saw_it() {
    let seen = (0..20).find_map(|_| invalidation_again());
    assert_eq!(seen, Some(true), "told of a key that lives");
}

/// A message that is being copied has its responder to itself. The responder's own engine, which has to flush, serves others meanwhile.
#[test]
fn nobody_waits_for_a_message_that_is_being_copied() {
    let slow = Slow::new();
    let (pair, driver) = (&slow.pair, &slow.pair.driver);
    let cq = driver.create_cq(6).unwrap();
    let spec = QpSpec::rc(driver, pair.pd, &cq);
    let sender = QpSpec { uar: pair.one.spec.uar, ..spec.clone() };
    let receiver = QpSpec { uar: slow.staller.spec.uar, recv_cq: pair.other_cq.clone(), ..spec };
    let (sender, receiver) = Qp::pair(driver, sender, receiver).unwrap();
    let posted = [0, 64].map(|at| receiver.receive(&[pair.remote_mr.sge(at, 64)]));
    let hca = driver.machine.nic.hca();
    let what = WqeMatch { qpn: Some(sender.qpn), ..WqeMatch::default() };
    let rule = hca.injections.add(NicRule::new(1, NicAction::StallInFlight { ms: 1000 }).on(what)).unwrap();
    sender.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
    driver.until("the stall", || hca.injections.rule(rule).is_some_and(|rule| rule.fired > 0)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| receiver.to_error().unwrap());
        let in_error = || hca.qps.get(receiver.qpn).is_some_and(|qp| qp.attrs().state == state::ERR);
        driver.until("the error state", in_error).unwrap();
        receiver.ring();
        std::thread::sleep(Duration::from_millis(10));
        slow.staller.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
        assert!(!cq.has_entry() && !pair.other_cq.has_entry(), "it waited for the message");
    });
    // What had begun is completed, and the rest is flushed behind it.
    let outcomes = posted.map(|_| pair.other_cq.wait().unwrap()).map(|cqe| (cqe.wqe_counter(), cqe.outcome()));
    let flushed = (cqe_opcode::RESP_ERR, syndrome::WR_FLUSH_ERR);
    assert_eq!(outcomes, [(posted[0], (cqe_opcode::RESP_SEND, 0)), (posted[1], flushed)]);
}

/// The engine that failed a message waits for DMA in flight, first on the responder's behalf and then on the requester's, before it tells
/// of each.
#[test]
fn an_event_about_a_queue_pair_does_not_outlive_it() {
    let slow = Slow::new();
    let Slow { pair, .. } = &slow;
    let driver = &pair.driver;
    // Its CQ takes no more: the failure is told by an event.
    let full = driver.create_cq(1).unwrap();
    let spec = QpSpec { uar: pair.one.spec.uar, ..QpSpec::rc(driver, pair.pd, &full) };
    let (one, other) = Qp::pair(driver, spec.clone(), QpSpec { recv_cq: pair.other_cq.clone(), ..spec }).unwrap();
    let write = |key: u32| Wqe::write(pair.remote_mr.va, key).sge(pair.local_mr.sge(0, 8)).signaled();
    one.post(&[write(pair.remote_mr.key), write(pair.remote_mr.key)]);
    driver.until("two completions", || one.queried(qpc::HW_SQ_WQEBB_COUNTER) == Ok(2)).unwrap();
    slow.stall();
    one.post_one(write(pair.remote_mr.key ^ 1));
    driver.until("the error state", || one.queried(qpc::STATE) == Ok(state::ERR)).unwrap();
    one.destroy().unwrap();
    let told = || {
        let events = std::iter::from_fn(|| driver.async_eq.poll());
        events.map(|event| (event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes))).collect::<Vec<_>>()
    };
    let before = told();
    slow.rest();
    let after = told();
    let lives = (event::WQ_ACCESS_ERROR, other.qpn);
    assert!(before.contains(&lives) || after.contains(&lives), "the responder lives: {before:x?}, {after:x?}");
    assert!(after.iter().all(|(_, number)| *number != one.qpn), "the requester does not: {before:x?}, {after:x?}");
}
