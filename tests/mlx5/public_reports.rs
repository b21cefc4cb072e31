// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases drawn from public bug reports on RDMA devices and drivers. Each asserts what IBTA, the manual pages or dumps of real ConnectX
//! devices say: a failure is a finding.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5::spec::cmd::Opcode;
use mlx5::spec::cq::{cqc, cqe, create_in as cq_create_in, opcode as cqe_opcode, syndrome};
use mlx5::spec::eq::{create_in as eq_create_in, eqc, eqe_comp, eqe_qp_srq, event};
use mlx5::spec::mkey::{MKC_SIZE, umr_ctrl, umr_flags, umr_mask};
use mlx5::spec::qp::{QPC_SIZE, create_in as qp_create_in, qpc, rq_type, service_type, state};
use mlx5::spec::srq::{create_rmp_in, rmp_state, rmpc, wq};
use mlx5::spec::wqe::{GRH_SIZE, opcode};
use rnic_testdrive::command::Input;
use rnic_testdrive::mkey::mtt_words;
use rnic_testdrive::{
    Access, Cqe, Driver, Error, Machine, MachineConfig, MkeySpec, OdpMr, PATIENCE, Qp, QpSpec, Sge, Srq, UmrSpec, Wqe,
};

use crate::scene::{LEN, Pair, machine};

const QUIET: Duration = Duration::from_millis(15);
const QKEY: u32 = 0x1111_1111;
const HEAD: u32 = GRH_SIZE as u32;
const VA: u64 = 0x5000_0000_0000;

/// (hw_synd, hw_type, vendor, syndrome, WQE opcode) and the SE bit.
fn bytes_of(cqe: &Cqe) -> ([u8; 5], u32) {
    let b = &cqe.bytes;
    ([b[0x34], b[0x35], b[0x36], b[0x37], b[0x38]], cqe::SE.get(b))
}

fn broken_umr(driver: &Driver) -> UmrSpec {
    // A key that is free, of an update that asks for one that is not.
    let spec =
        MkeySpec { free: true, octwords: Some(4), ..MkeySpec::mtt(driver.pd, Access::ALL, VA, 4096, Vec::new()) };
    UmrSpec::update(driver.create_mkey(&spec).unwrap(), 0, vec![3; 8])
}

fn completion(error: &Error) -> Cqe {
    match error {
        Error::Completion(cqe) => **cqe,
        other => panic!("{other}"),
    }
}

// ---------------------------------------------------------------- C01

type Provoke = fn() -> Cqe;

fn requester(change: fn(&mut QpSpec), wqe: fn(&Pair) -> Wqe) -> Cqe {
    let pair = Pair::with(change);
    pair.one.post_one(wqe(&pair).signaled());
    pair.one_cq.wait().unwrap()
}

/// Name, expected (hw_synd, hw_type, vendor, syndrome, opcode); `None` parts: no public dump says.
const C01: &[(&str, Provoke, [Option<u8>; 5])] = &[
    (
        "requester, remote access, WRITE",
        || requester(|_| (), |p| Wqe::write(p.remote_mr.va, p.remote_mr.key ^ 1).sge(p.local_mr.sge(0, 64))),
        [Some(0), Some(0), Some(0x88), Some(0x13), Some(0x08)],
    ),
    (
        "requester, remote access, READ",
        || requester(|_| (), |p| Wqe::read(p.remote_mr.va, p.remote_mr.key ^ 1).sge(p.local_mr.sge(0, 64))),
        [Some(0), Some(0), Some(0x88), Some(0x13), Some(0x10)],
    ),
    (
        "requester, remote operational, SEND",
        || {
            let pair = Pair::new();
            pair.other.receive(&[Sge { key: pair.remote_mr.key ^ 1, ..pair.remote_mr.sge(0, 64) }]);
            pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
            pair.one_cq.wait().unwrap()
        },
        [Some(0), Some(0), Some(0x89), Some(0x14), Some(0x0a)],
    ),
    (
        "responder, RECV, local protection",
        || {
            let pair = Pair::new();
            pair.other.receive(&[Sge { key: pair.remote_mr.key ^ 1, ..pair.remote_mr.sge(0, 64) }]);
            pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
            pair.other_cq.wait().unwrap()
        },
        [Some(0xa9), Some(0), Some(0x56), Some(0x04), Some(0)],
    ),
    (
        "requester, remote invalid request",
        || {
            requester(
                |s| s.remote_write = false,
                |p| Wqe::write(p.remote_mr.va, p.remote_mr.key).sge(p.local_mr.sge(0, 64)),
            )
        },
        [Some(0), Some(0), Some(0x8a), Some(0x12), Some(0x08)],
    ),
    (
        "requester, local protection, SEND",
        || {
            requester(
                |_| (),
                |p| {
                    p.other.receive(&[p.remote_mr.all()]);
                    Wqe::send().sge(Sge { key: p.local_mr.key ^ 1, ..p.local_mr.sge(0, 64) })
                },
            )
        },
        // 51, 52 or 53 by the cause.
        [None, Some(0), Some(0x52), Some(0x04), Some(0x0a)],
    ),
    (
        "requester, retry exceeded",
        || {
            let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (1, 1));
            pair.other.to_reset().unwrap();
            pair.one
                .post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
            pair.one_cq.wait().unwrap()
        },
        [Some(0), Some(0), Some(0x81), Some(0x15), Some(0x08)],
    ),
    (
        "requester, RNR retries exceeded",
        || requester(|s| s.rnr_retry = 0, |p| Wqe::send().sge(p.local_mr.sge(0, 8))),
        [Some(0), Some(0), None, Some(0x16), Some(0x0a)],
    ),
    (
        "flush",
        || {
            let pair = Pair::new();
            pair.one.to_error().unwrap();
            pair.one
                .post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
            pair.one_cq.wait().unwrap()
        },
        [None, None, Some(0xf9), Some(0x05), Some(0x08)],
    ),
    (
        "UMR on a free key",
        || {
            let driver = Driver::probe(&machine()).unwrap();
            completion(&driver.umr(&broken_umr(&driver)).unwrap_err())
        },
        [Some(0x08), Some(0), Some(0x78), Some(0x06), Some(0x25)],
    ),
    (
        "UMR beyond the key's table",
        || {
            let driver = Driver::probe(&machine()).unwrap();
            let spec = MkeySpec { octwords: Some(4), ..MkeySpec::mtt(driver.pd, Access::ALL, VA, 4096, vec![3; 8]) };
            let key = driver.create_mkey(&spec).unwrap();
            completion(&driver.umr(&UmrSpec::update(key, 8, vec![3; 8])).unwrap_err())
        },
        [Some(0x0f), Some(0), Some(0x78), Some(0x06), Some(0x25)],
    ),
];

#[test]
fn c01_error_completions_are_those_of_hardware() {
    let mut bad = Vec::new();
    for (name, provoke, wanted) in C01 {
        let (got, se) = bytes_of(&provoke());
        let differs = wanted.iter().zip(got).any(|(wanted, got)| wanted.is_some_and(|wanted| wanted != got));
        println!("{name}: {got:02x?} SE {se}, hardware {wanted:02x?} SE 1{}", if differs { "  DIFFERS" } else { "" });
        if differs || se == 0 {
            bad.push(*name);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

// ---------------------------------------------------------------- C02

fn datagrams() -> Pair {
    Pair::with(|spec| (spec.service, spec.qkey) = (service_type::UD, QKEY))
}

#[test]
fn c02a_a_datagram_that_does_not_fit_leaves_the_receive_wqe() {
    let pair = datagrams();
    pair.local.fill_pattern(1);
    let posted = pair.other.receive(&[pair.remote_mr.sge(0, HEAD + 64)]);
    let send = |len| Wqe::send().datagram(pair.other.qpn, 1, QKEY).sge(pair.local_mr.sge(0, len));
    pair.one.run(send(65)).unwrap();
    std::thread::sleep(QUIET);
    assert!(pair.other_cq.poll().is_none(), "dropped");
    assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS));
    assert!(pair.remote.bytes(0, 4096).iter().all(|byte| *byte == 0), "nothing of it is in memory");
    pair.one.run(send(64)).unwrap();
    let cqe = pair.other_cq.wait_ok().unwrap();
    assert_eq!((cqe.wqe_counter(), cqe.byte_count()), (posted, HEAD + 64));
    pair.assert_copied((&pair.local, 0), (&pair.remote, u64::from(HEAD)), 64);
}

/// Sender, A and B; A and B take from one SRQ.
fn two_on_one_srq(service: u32) -> (Pair, Srq, Qp, Qp) {
    let pair = Pair::with(|spec| (spec.service, spec.qkey) = (service, QKEY));
    let srq = Srq::create(&pair.driver.context, pair.pd, 3).unwrap();
    let spec =
        || QpSpec { srq: Some(srq.srqn), service, qkey: QKEY, ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq) };
    let make = || Qp::create(&pair.driver.context, spec()).unwrap();
    let (a, b) = (make(), make());
    (pair, srq, a, b)
}

#[test]
fn c02b_a_dropped_datagram_takes_no_wqe_of_a_shared_queue() {
    let (pair, srq, a, b) = two_on_one_srq(service_type::UD);
    for qp in [&a, &b] {
        qp.connect(qp.peer()).unwrap();
    }
    srq.post(&[pair.remote_mr.sge(0, HEAD + 64)]).unwrap();
    let send = |qp: &Qp, len| Wqe::send().datagram(qp.qpn, 1, QKEY).sge(pair.local_mr.sge(0, len));
    pair.one.run(send(&a, 65)).unwrap();
    pair.one.run(send(&b, 64)).unwrap();
    let got = pair.other_cq.wait_for(Duration::from_millis(300));
    assert!(got.is_ok(), "the 65 bytes were dropped, the WQE is nobody's: B's 64 bytes must get it: {got:?}");
}

#[test]
fn c02c_a_dropped_datagram_does_not_reach_the_limit() {
    let (pair, srq, a, _b) = two_on_one_srq(service_type::UD);
    a.connect(a.peer()).unwrap();
    srq.post(&[pair.remote_mr.sge(0, HEAD + 64)]).unwrap();
    srq.set_limit(1).unwrap();
    pair.one.run(Wqe::send().datagram(a.qpn, 1, QKEY).sge(pair.local_mr.sge(0, 65))).unwrap();
    std::thread::sleep(QUIET);
    assert!(pair.driver.async_eq.poll().is_none(), "one WQE is still posted, the limit is 1");
}

#[test]
fn c02d_destroying_the_queue_pair_that_dropped_does_not_lose_the_wqe() {
    let (pair, srq, a, b) = two_on_one_srq(service_type::UD);
    for qp in [&a, &b] {
        qp.connect(qp.peer()).unwrap();
    }
    srq.post(&[pair.remote_mr.sge(0, HEAD + 64)]).unwrap();
    let send = |qp: &Qp, len| Wqe::send().datagram(qp.qpn, 1, QKEY).sge(pair.local_mr.sge(0, len));
    pair.one.run(send(&a, 65)).unwrap();
    a.to_reset().unwrap();
    a.destroy().unwrap();
    pair.one.run(send(&b, 64)).unwrap();
    let got = pair.other_cq.wait_for(Duration::from_millis(300));
    assert!(got.is_ok(), "the WQE is gone for good: {got:?}");
}

/// The same for unreliable connections: IBTA 9.8.2.2.
#[test]
fn c02e_a_dropped_message_of_an_unreliable_connection_takes_no_wqe_of_a_shared_queue() {
    let (pair, srq, a, b) = two_on_one_srq(service_type::UC);
    let spec = || QpSpec { service: service_type::UC, ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
    let make = || Qp::create(&pair.driver.context, spec()).unwrap();
    let (to_a, to_b) = (make(), make());
    for (from, to) in [(&to_a, &a), (&to_b, &b)] {
        from.connect(to.peer()).unwrap();
        to.connect(from.peer()).unwrap();
    }
    srq.post(&[pair.remote_mr.sge(0, 64)]).unwrap();
    to_a.run(Wqe::send().sge(pair.local_mr.sge(0, 65))).unwrap();
    to_b.run(Wqe::send().sge(pair.local_mr.sge(0, 64))).unwrap();
    let got = pair.other_cq.wait_for(Duration::from_millis(300));
    assert!(got.as_ref().is_ok_and(|cqe| !cqe.is_error()), "{got:?}");
}

/// Which statuses: disputable (rxe calls it class J, "remote invalid request" at the responder); once each is not.
#[test]
fn c02f_a_send_with_invalidate_that_fails_tells_both_sides_once() {
    let pair = Pair::new();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.one.post_one(Wqe::new(opcode::SEND_INVAL).immediate(0x00ff_ff00).sge(pair.local_mr.sge(0, 8)).signaled());
    let (one, other) = (pair.one_cq.wait().unwrap(), pair.other_cq.wait().unwrap());
    println!("{one:?} {other:?}");
    assert!(one.is_error() && other.is_error());
    std::thread::sleep(QUIET);
    assert!(pair.one_cq.poll().is_none() && pair.other_cq.poll().is_none());
}

// ---------------------------------------------------------------- C03

#[test]
fn c03a_an_update_that_reaches_beyond_the_table_fails() {
    let driver = Driver::probe(&machine()).unwrap();
    let mut bad = Vec::new();
    // Table: words there are; first word and number of words of the update. Tables and lists are whole 64 bytes.
    for (table, first, count) in
        [(8u32, 0u64, 16usize), (8, 8, 8), (16, 8, 16), (16, 0, 24), (8, 0, 64), (8, 1 << 40, 8)]
    {
        let list = vec![3; table as usize];
        let spec = MkeySpec {
            octwords: Some(table / 2),
            ..MkeySpec::mtt(driver.pd, Access::ALL, VA, u64::from(table) * 4096, list)
        };
        let key = driver.create_mkey(&spec).unwrap();
        let outcome = driver.umr(&UmrSpec::update(key, first, vec![3; count]));
        let right = outcome.as_ref().is_err_and(|error| completion(error).syndrome() == syndrome::MW_BIND_ERR);
        println!("table of {table} words, update of {count} from {first}: {outcome:?}");
        if !right {
            bad.push((table, first, count));
        }
        driver.destroy_mkey(key).unwrap();
    }
    assert!(bad.is_empty(), "(table, first, count) that did not fail with 0x06: {bad:?}");
}

#[test]
fn c03b_rounding_to_64_bytes_is_legal() {
    let pair = Pair::new();
    // One page: one word; drivers say one octword and send 64 bytes.
    let page = pair.driver.machine.guest.page();
    let spec = MkeySpec { free: true, octwords: Some(1), ..MkeySpec::mtt(pair.pd, Access::ALL, VA, 4096, Vec::new()) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    let mut list = vec![0; 8];
    list[0] = page | 3;
    pair.driver.umr(&UmrSpec::enable(key, &MkeySpec { list, ..spec })).unwrap();
    pair.one.run(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 4096))).unwrap();
}

#[test]
fn c03c_an_update_of_a_destroyed_key_fails() {
    let driver = Driver::probe(&machine()).unwrap();
    let spec = MkeySpec::mtt(driver.pd, Access::ALL, VA, 8 * 4096, vec![3; 8]);
    let key = driver.create_mkey(&spec).unwrap();
    driver.destroy_mkey(key).unwrap();
    let cqe = completion(&driver.umr(&UmrSpec::update(key, 0, vec![3; 8])).unwrap_err());
    assert_eq!((cqe.outcome(), cqe.bytes[0x38]), ((cqe_opcode::REQ_ERR, syndrome::MW_BIND_ERR), 0x25));
    let cqe = completion(&driver.umr(&UmrSpec::revoke(key)).unwrap_err());
    assert_eq!(cqe.syndrome(), syndrome::MW_BIND_ERR);
}

/// The reported driver bug itself: an ODP region that begins inside a page gets a key one page short; the fault's update must fail.
#[test]
fn c03d_a_key_one_page_short_shows() {
    let driver = Driver::probe(&machine()).unwrap();
    driver.fault_eq().unwrap();
    // 16 pages by length, 17 touched.
    let spec = MkeySpec {
        free: true,
        octwords: Some(8),
        ..MkeySpec::mtt(driver.pd, Access::ALL, VA + 0x800, 16 * 4096, Vec::new())
    };
    let key = driver.create_mkey(&spec).unwrap();
    driver.umr(&UmrSpec::enable(key, &MkeySpec { list: vec![0; 16], ..spec })).unwrap();
    // What mlx5_ib sends for pages 8 to 16: 9 words, rounded up to 16.
    let outcome = driver.umr(&UmrSpec::update(key, 8, vec![3; 9]));
    assert!(outcome.is_err(), "17 pages in a table of 16: {outcome:?}");
}

// ---------------------------------------------------------------- C10

fn write(pair: &Pair) -> Wqe {
    Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))
}

fn events(pair: &Pair, wait: Duration) -> Vec<u32> {
    std::thread::sleep(wait);
    std::iter::from_fn(|| pair.driver.comp_eq.poll()).map(|event| eqe_comp::CQN.get(&event.bytes)).collect()
}

#[test]
fn c10a_a_record_without_a_doorbell_arms_nothing() {
    let pair = Pair::new();
    let guest = &pair.driver.machine.guest;
    for sn in 0..4u32 {
        // cmd_sn, ARM_NEXT and a plausible consumer index.
        guest.publish_u32(pair.one_cq.record + 4, (sn << 28) | (250 * sn));
        for _ in 0..250 {
            pair.one.run(write(&pair)).unwrap();
        }
    }
    assert_eq!(events(&pair, QUIET), Vec::<u32>::new());
}

#[test]
fn c10b_armed_twice_tells_once() {
    let pair = Pair::new();
    pair.one_cq.arm(false);
    pair.one_cq.arm(false);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(events(&pair, QUIET), [pair.one_cq.cqn]);
}

#[test]
fn c10c_an_arm_that_lags_behind_tells_at_once() {
    let pair = Pair::new();
    for _ in 0..5 {
        pair.one.run(write(&pair)).unwrap();
    }
    pair.one.post_one(write(&pair).signaled());
    pair.driver.until("completion", || pair.one_cq.has_entry()).unwrap();
    // producer 6, polled 5.
    pair.one_cq.arm_by_hand(0, 5, false);
    assert_eq!(events(&pair, QUIET), [pair.one_cq.cqn], "IBTA: requested before it was polled");
    // All polled, the consumer index in the doorbell is one behind.
    pair.one_cq.wait_ok().unwrap();
    pair.one_cq.arm_by_hand(1, 5, false);
    println!("lags behind what was polled: {:?} at once", events(&pair, QUIET));
    pair.one.run(write(&pair)).unwrap();
    println!("and with the next completion: {:?}", events(&pair, QUIET));
}

#[test]
fn c10d_the_same_sequence_number_twice() {
    let pair = Pair::new();
    pair.one_cq.arm_by_hand(0, 0, false);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(events(&pair, QUIET), [pair.one_cq.cqn]);
    pair.one_cq.arm_by_hand(0, 1, false);
    pair.one.run(write(&pair)).unwrap();
    println!(
        "armed again with the sequence number of before: {:?} (real devices are reported to stay silent)",
        events(&pair, QUIET)
    );
}

#[test]
fn c10e_an_error_is_solicited() {
    let pair = Pair::new();
    pair.one_cq.arm(true);
    pair.one.run(write(&pair)).unwrap();
    assert_eq!(events(&pair, QUIET), Vec::<u32>::new());
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key ^ 1).sge(pair.local_mr.sge(0, 8)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
    assert_eq!(events(&pair, QUIET), [pair.one_cq.cqn]);
}

/// Unsignaled work that fails completes all the same, and wakes.
#[test]
fn c10f_an_unsignaled_error_is_told() {
    let pair = Pair::new();
    pair.one_cq.arm(true);
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key ^ 1).sge(pair.local_mr.sge(0, 8)));
    assert!(pair.one_cq.wait().unwrap().is_error());
    assert_eq!(events(&pair, QUIET), [pair.one_cq.cqn]);
}

// ---------------------------------------------------------------- C11

#[test]
fn c11_the_umr_queue_pair_recovers() {
    let driver = Driver::probe(&machine()).unwrap();
    let cq = driver.create_cq(6).unwrap();
    let spec = QpSpec { service: service_type::REG_UMR, log_rq: 0, log_sq: 8, ..QpSpec::rc(&driver, driver.pd, &cq) };
    let qp = Qp::create(&driver.context, spec).unwrap();
    let page = driver.machine.guest.page();
    let good_key = driver.create_mkey(&MkeySpec::mtt(driver.pd, Access::ALL, VA, 8 * 4096, vec![3; 8])).unwrap();
    for round in 0..200u64 {
        qp.connect(qp.peer()).unwrap();
        let broken = broken_umr(&driver);
        let good = UmrSpec::update(good_key, 0, vec![page | 3; 8]);
        driver.machine.guest.write(page, &[0; 64]);
        let mut wqes = vec![broken.wqe(driver.dma_key, page).signaled()];
        wqes.extend((0..8).map(|_| good.wqe(driver.dma_key, page).signaled()));
        let mut posted = qp.post(&wqes);
        std::thread::sleep(Duration::from_micros(round % 10 * 20));
        // The barrier.
        posted.push(qp.post_one(good.wqe(driver.dma_key, page).signaled()));
        let got: Vec<_> = posted.iter().map(|_| cq.wait().unwrap()).collect();
        assert_eq!(got.iter().map(|cqe| cqe.wqe_counter()).collect::<Vec<_>>(), posted);
        assert_eq!(got[0].syndrome(), syndrome::MW_BIND_ERR);
        assert!(got[1..].iter().all(|cqe| cqe.outcome() == (cqe_opcode::REQ_ERR, syndrome::WR_FLUSH_ERR)), "{got:?}");
        assert!(got.iter().all(|cqe| cqe.bytes[0x38] == 0x25), "WQE opcode in the completions");
        qp.to_reset().unwrap();
        if round % 2 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
        assert!(cq.poll().is_none(), "round {round}: a completion of the old life");
        qp.connect(qp.peer()).unwrap();
        qp.run(good.wqe(driver.dma_key, page)).unwrap();
        qp.to_reset().unwrap();
    }
}

/// Without the barrier: 2RST at any moment. Nothing may come afterwards.
#[test]
fn c11b_no_completion_of_the_old_life_after_2rst() {
    let driver = Driver::probe(&machine()).unwrap();
    let cq = driver.create_cq(8).unwrap();
    let spec = QpSpec { service: service_type::REG_UMR, log_rq: 0, log_sq: 8, ..QpSpec::rc(&driver, driver.pd, &cq) };
    let qp = Qp::create(&driver.context, spec).unwrap();
    let page = driver.machine.guest.page();
    let good_key = driver.create_mkey(&MkeySpec::mtt(driver.pd, Access::ALL, VA, 8 * 4096, vec![3; 8])).unwrap();
    let good = UmrSpec::update(good_key, 0, vec![page | 3; 8]);
    for round in 0..300u64 {
        qp.connect(qp.peer()).unwrap();
        let mut wqes = vec![broken_umr(&driver).wqe(driver.dma_key, page).signaled()];
        wqes.extend((0..8).map(|_| good.wqe(driver.dma_key, page).signaled()));
        qp.post(&wqes);
        let spin = Instant::now();
        while spin.elapsed() < Duration::from_micros(round % 60 * 3) {}
        qp.to_reset().unwrap();
        while cq.poll().is_some() {}
        std::thread::sleep(Duration::from_micros(200));
        assert!(cq.poll().is_none(), "round {round}");
        qp.connect(qp.peer()).unwrap();
        qp.run(good.wqe(driver.dma_key, page)).unwrap();
        qp.to_reset().unwrap();
    }
}

// ---------------------------------------------------------------- C22

#[test]
fn c22_drain_flush_and_last_wqe() {
    for own_queue in [false, true] {
        let pair = Pair::new();
        let driver = &pair.driver;
        let srq = Srq::create(&driver.context, pair.pd, 6).unwrap();
        let posted = (0..40).filter_map(|_| srq.post(&[pair.remote_mr.sge(0, 4096)])).count();
        assert_eq!(posted, 40);
        let (send_cq, recv_cq) = (driver.create_cq(12).unwrap(), driver.create_cq(12).unwrap());
        let peers_cq = driver.create_cq(12).unwrap();
        let lanes: Vec<(Qp, Qp)> = (0..8)
            .map(|_| {
                let spec = QpSpec {
                    srq: (!own_queue).then_some(srq.srqn),
                    send_cq: send_cq.clone(),
                    recv_cq: recv_cq.clone(),
                    log_rq: 6,
                    ..QpSpec::rc(driver, pair.pd, &send_cq)
                };
                let peer = QpSpec { log_rq: 6, ..QpSpec::rc(driver, pair.pd, &peers_cq) };
                Qp::pair(driver, spec, peer).unwrap()
            })
            .collect();
        // Traffic both ways: three messages in, sends that are done, and then sends that wait for receives that never come.
        let mut received = HashMap::new();
        let mut outstanding_receives: HashMap<u32, Vec<u16>> = HashMap::new();
        for (qp, peer) in &lanes {
            for _ in 0..3 {
                if own_queue {
                    qp.receive(&[pair.remote_mr.sge(0, 4096)]);
                }
                peer.post_one(Wqe::send().sge(pair.local_mr.sge(0, 512)).signaled());
            }
            if own_queue {
                let more = (0..4).map(|_| qp.receive(&[pair.remote_mr.sge(0, 4096)])).collect();
                outstanding_receives.insert(qp.qpn, more);
            }
        }
        for _ in 0..24 {
            assert!(!peers_cq.wait().unwrap().is_error());
            let cqe = recv_cq.wait_ok().unwrap();
            *received.entry(cqe.qpn()).or_insert(0) += 1;
            if !own_queue {
                srq.release(cqe.wqe_counter());
            }
        }
        let mut outstanding: HashMap<u32, Vec<u16>> = HashMap::new();
        for (qp, _) in &lanes {
            let wqes: Vec<_> = (0..5)
                .map(|n| {
                    if n % 2 == 0 {
                        Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled()
                    } else {
                        Wqe::send().sge(pair.local_mr.sge(0, 64))
                    }
                })
                .collect();
            outstanding.insert(qp.qpn, qp.post(&wqes));
        }
        for (qp, _) in &lanes {
            qp.to_error().unwrap();
            // The beacon.
            let beacon = qp.post_one(Wqe::nop().signaled());
            outstanding.get_mut(&qp.qpn).unwrap().push(beacon);
            if own_queue {
                let late = qp.receive(&[pair.remote_mr.sge(0, 64)]);
                outstanding_receives.get_mut(&qp.qpn).unwrap().push(late);
            }
        }
        let mut sent: HashMap<u32, Vec<u16>> = HashMap::new();
        for _ in 0..8 * 6 {
            let cqe = send_cq.wait().unwrap();
            assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::WR_FLUSH_ERR));
            sent.entry(cqe.qpn()).or_default().push(cqe.wqe_counter());
        }
        assert_eq!(sent, outstanding);
        let mut flushed: HashMap<u32, Vec<u16>> = HashMap::new();
        if own_queue {
            for _ in 0..8 * 5 {
                let cqe = recv_cq.wait().unwrap();
                assert_eq!(cqe.outcome(), (cqe_opcode::RESP_ERR, syndrome::WR_FLUSH_ERR));
                flushed.entry(cqe.qpn()).or_default().push(cqe.wqe_counter());
            }
            assert_eq!(flushed, outstanding_receives);
        }
        std::thread::sleep(QUIET);
        assert!(send_cq.poll().is_none() && recv_cq.poll().is_none());
        // One event of the last WQE for each.
        let mut last: Vec<u32> = std::iter::from_fn(|| driver.async_eq.poll())
            .map(|event| {
                assert_eq!(event.event_type(), event::SRQ_LAST_WQE, "{event:?}");
                eqe_qp_srq::QP_SRQ_N.get(&event.bytes)
            })
            .collect();
        last.sort_unstable();
        let mut wanted: Vec<u32> = if own_queue { Vec::new() } else { lanes.iter().map(|(qp, _)| qp.qpn).collect() };
        wanted.sort_unstable();
        assert_eq!(last, wanted);
        // Destroyed at once after one more post: no completion with its number.
        for (qp, _) in &lanes {
            qp.post_one(Wqe::nop().signaled());
            qp.destroy().unwrap();
            while send_cq.poll().is_some() {}
            std::thread::sleep(Duration::from_millis(2));
            assert!(send_cq.poll().is_none());
        }
        // The others may still use the shared queue's rest.
        if !own_queue {
            let spec = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(driver, pair.pd, &recv_cq) };
            let (_to, from) = Qp::pair(driver, spec, QpSpec::rc(driver, pair.pd, &pair.one_cq)).unwrap();
            for _ in 0..16 {
                from.run(Wqe::send().sge(pair.local_mr.sge(0, 64))).unwrap();
                recv_cq.wait_ok().unwrap();
            }
        }
    }
}

// ---------------------------------------------------------------- C25

/// Page lists that are too short or empty, and offsets that push the end out.
#[test]
fn c25a_page_lists_that_do_not_hold_the_queue_are_refused() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let guest = &driver.machine.guest;
    let record = guest.page();
    let pages: Vec<u64> = (0..8).map(|_| guest.page()).collect();
    // 256 CQEs: four pages.
    let cq = |pages: &[u64], offset: u32| {
        let at = cq_create_in::CQC;
        let input = Input::new(Opcode::CREATE_CQ, cq_create_in::SIZE)
            .with(cqc::LOG_CQ_SIZE.plus(at), 8)
            .with(cqc::PAGE_OFFSET.plus(at), offset)
            .with(cqc::UAR_PAGE.plus(at), driver.uar)
            .with(cqc::C_EQN.plus(at), driver.comp_eq.eqn)
            .bytes(at + cqc::DBR_ADDR.0, &record.to_be_bytes())
            .list(pages);
        driver.command(input).map(|_| ())
    };
    // 256 EQEs: four pages.
    let eq = |pages: &[u64], offset: u32| {
        let at = eq_create_in::EQC;
        let input = Input::new(Opcode::CREATE_EQ, eq_create_in::SIZE)
            .with(eqc::LOG_EQ_SIZE.plus(at), 8)
            .with(eqc::PAGE_OFFSET.plus(at), offset)
            .with(eqc::UAR_PAGE.plus(at), driver.uar)
            .with(eqc::INTR.plus(at), 3)
            .list(pages);
        driver.command(input).map(|_| ())
    };
    // RQ 64 x 64 bytes, SQ 192... 128 blocks: 4 KiB + 8 KiB, three pages; a fourth by the RQ's 128.
    let qp = |pages: &[u64], offset: u32| {
        let mut c = vec![0; QPC_SIZE];
        qpc::ST.set(&mut c, service_type::RC);
        qpc::PM_STATE.set(&mut c, 3);
        qpc::PD.set(&mut c, pair.pd);
        qpc::LOG_SQ_SIZE.set(&mut c, 7);
        qpc::LOG_RQ_SIZE.set(&mut c, 7);
        qpc::LOG_RQ_STRIDE.set(&mut c, 2);
        qpc::RQ_TYPE.set(&mut c, rq_type::REGULAR);
        qpc::PAGE_OFFSET.set(&mut c, offset);
        qpc::UAR_PAGE.set(&mut c, driver.uar);
        qpc::CQN_SND.set(&mut c, pair.one_cq.cqn);
        qpc::CQN_RCV.set(&mut c, pair.one_cq.cqn);
        qpc::DBR_ADDR.set(&mut c, record);
        driver
            .command(Input::new(Opcode::CREATE_QP, qp_create_in::SIZE).bytes(qp_create_in::QPC, &c).list(pages))
            .map(|_| ())
    };
    // 256 x 64 bytes: four pages.
    let rmp = |pages: &[u64], offset: u32| {
        let at = create_rmp_in::RMPC;
        let input = Input::new(Opcode::CREATE_RMP, create_rmp_in::SIZE)
            .with(rmpc::STATE.plus(at), rmp_state::RDY)
            .with(wq::PD.plus(at + rmpc::WQ), pair.pd)
            .with(wq::LOG_WQ_STRIDE.plus(at + rmpc::WQ), 6)
            .with(wq::LOG_WQ_SZ.plus(at + rmpc::WQ), 8)
            .with(wq::PAGE_OFFSET.plus(at + rmpc::WQ), offset)
            .bytes(at + rmpc::WQ + wq::DBR_ADDR.0, &record.to_be_bytes())
            .list(pages);
        driver.command(input).map(|_| ())
    };
    type Create<'a> = &'a dyn Fn(&[u64], u32) -> Result<(), Error>;
    let creates: [(&str, Create<'_>); 4] = [("CQ", &cq), ("EQ", &eq), ("QP", &qp), ("RMP", &rmp)];
    let mut bad = Vec::new();
    for (name, create) in creates {
        for (count, offset, good) in
            [(4, 0, true), (3, 0, false), (0, 0, false), (4, 1, false), (4, 63, false), (5, 63, true)]
        {
            let outcome = create(&pages[..count], offset);
            println!("{name}, {count} pages, offset {offset}/64: {outcome:?}");
            if outcome.is_ok() != good {
                bad.push((name, count, offset));
            }
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

/// pvrdma CVE-2023-1544 and rxe 0096ec584: a WQE that another thread rewrites while it is taken.
#[test]
fn c25b_receive_wqes_rewritten_under_the_device() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let guest = &driver.machine.guest;
    let srq = Srq::create(&driver.context, pair.pd, 4).unwrap();
    let spec = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(driver, pair.pd, &pair.other_cq) };
    let (_to, from) = Qp::pair(driver, spec, QpSpec::rc(driver, pair.pd, &pair.one_cq)).unwrap();
    pair.local.fill(0, LEN, 0x77);
    let target = guest.scattered(4096);
    let mr = driver.register(pair.pd, &target, VA, Access::ALL).unwrap();
    // Neighbours of the target, and memory that another domain has.
    let foreign = guest.scattered(LEN);
    let pd = driver.alloc_pd().unwrap();
    let foreign_mr = driver.register(pd, &foreign, VA, Access::ALL).unwrap();
    let stop = AtomicBool::new(false);
    let mut lanes = (from, 0u32, 0u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let variants = [
                [mr.sge(0, 1024).segment(), mr.sge(1024, 3072).segment()].concat(),
                [mr.sge(0, 4096).segment(), Sge { key: mr.key, va: VA + 4096, len: u32::MAX }.segment()].concat(),
                [foreign_mr.sge(0, 4096).segment(), foreign_mr.sge(0, 4096).segment()].concat(),
                [Sge { key: mr.key, va: VA, len: 0 }.segment(), Sge { key: mr.key, va: u64::MAX, len: 0 }.segment()]
                    .concat(),
            ];
            let mut turn = 0usize;
            while !stop.load(Ordering::Relaxed) {
                for index in 0..16u64 {
                    srq.buffer.write(index * 64 + 16, &variants[turn % variants.len()]);
                    turn += 1;
                }
            }
        });
        while lanes.1 < 2000 {
            let index = srq.post(&[mr.all()]).unwrap();
            lanes.0.post_one(Wqe::send().sge(pair.local_mr.sge(0, 4096)).signaled());
            let cqe = pair.one_cq.wait().unwrap();
            lanes.1 += 1;
            while let Some(cqe) = pair.other_cq.poll() {
                if !cqe.is_error() {
                    assert_eq!(cqe.byte_count(), 4096);
                }
            }
            srq.release(index);
            if cqe.is_error() {
                lanes.2 += 1;
                let spec = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(driver, pair.pd, &pair.other_cq) };
                let fresh = Qp::pair(driver, spec, QpSpec::rc(driver, pair.pd, &pair.one_cq)).unwrap();
                lanes.0.destroy().unwrap();
                lanes.0 = fresh.1;
                std::mem::forget(fresh.0);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{} messages, {} of them failed", lanes.1, lanes.2);
    assert!(foreign.bytes(0, LEN).iter().all(|byte| *byte == 0), "another domain's memory was written");
    assert!(pair.remote.bytes(0, LEN).iter().all(|byte| *byte == 0));
}

/// rxe da4a0b2b3: inline data from odd places; the key of a data segment means nothing; the WQE wraps at the queue's end.
#[test]
fn c25c_inline_sends_wrap_and_ignore_keys() {
    let pair = Pair::with(|spec| spec.log_sq = 4);
    let mut turn = 0u8;
    for length in [1usize, 2, 3, 11, 12, 13, 27, 28, 29, 59, 60, 61, 91, 92, 93, 187, 188, 189, 300, 512, 700, 924] {
        for _ in 0..17 {
            turn = turn.wrapping_add(1);
            let payload: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(7) ^ turn).collect();
            pair.remote.fill(0, 2048, 0xee);
            pair.one.run(Wqe::write(pair.remote_mr.va + 5, pair.remote_mr.key).inline(&payload)).unwrap();
            let got = pair.remote.bytes(0, 2048);
            assert!(got[5..5 + length] == payload[..], "{length} bytes");
            assert!(got[..5].iter().chain(&got[5 + length..]).all(|byte| *byte == 0xee), "{length} bytes");
        }
    }
    // Two inline segments, then one by key. Drivers make no such thing, devices take it.
    let wqe =
        Wqe::write(pair.remote_mr.va, pair.remote_mr.key).inline(b"abc").inline(b"defgh").sge(pair.local_mr.sge(0, 8));
    pair.local.fill(0, 8, b'z');
    pair.one.run(wqe).unwrap();
    assert_eq!(&pair.remote.bytes(0, 16), b"abcdefghzzzzzzzz");
}

/// rxe 6f64286f6: the longest message, and one byte more.
#[test]
fn c25d_the_longest_message() {
    let machine = std::sync::Arc::new(Machine::new(MachineConfig { ram_mib: 128, ..MachineConfig::default() }));
    let pair = Pair::on(Driver::probe(&machine).unwrap(), |_| ());
    let driver = &pair.driver;
    let chunk = machine.guest.contiguous(4 << 20);
    let base = chunk.gpa(0).next_multiple_of(2 << 20);
    let long = |va| {
        let list = vec![base | 3; 1025];
        let spec = MkeySpec { log_page: 21, ..MkeySpec::mtt(pair.pd, Access::ALL, va, 1025 << 21, list) };
        driver.create_mkey(&spec).unwrap()
    };
    let (source, target) = (long(VA), long(VA));
    let wqe = |len| Wqe::write(VA, target).sge(Sge { key: source, va: VA, len }).signaled();
    pair.one.post_one(wqe(1 << 30));
    let cqe = pair.one_cq.wait_for(Duration::from_secs(60)).unwrap();
    assert!(!cqe.is_error(), "{cqe:?}");
    pair.one.post_one(wqe((1 << 30) + 1));
    let cqe = pair.one_cq.wait_for(Duration::from_secs(60)).unwrap();
    assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_LENGTH_ERR));
    // READ and SEND the same.
    for read in [true, false] {
        let pair = Pair::on(driver.clone(), |_| ());
        let spec = |va| {
            let list = vec![base | 3; 1025];
            let spec = MkeySpec { log_page: 21, ..MkeySpec::mtt(pair.pd, Access::ALL, va, 1025 << 21, list) };
            driver.create_mkey(&spec).unwrap()
        };
        let key = spec(VA);
        pair.other.receive(&[Sge { key, va: VA, len: (1 << 30) + 1 }]);
        let sge = Sge { key, va: VA, len: (1 << 30) + 1 };
        let wqe = if read { Wqe::read(VA, key).sge(sge) } else { Wqe::send().sge(sge) };
        pair.one.post_one(wqe.signaled());
        let cqe = pair.one_cq.wait_for(Duration::from_secs(60)).unwrap();
        assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::LOCAL_LENGTH_ERR), "read {read}");
    }
}

/// rxe 56edf0f36: start address inside a page that is larger than 4 KiB.
#[test]
fn c25e_start_addresses_inside_large_pages() {
    let pair = Pair::new();
    let guest = &pair.driver.machine.guest;
    let memory = guest.contiguous(1 << 20);
    let base = memory.gpa(0).next_multiple_of(0x4_0000);
    let (second, first) = (base + 0x1_0000, base + 0x2_0000);
    let iova = 0x18_f800u64;
    let spec =
        MkeySpec { log_page: 16, ..MkeySpec::mtt(pair.pd, Access::ALL, iova, 0x1_0000, vec![first | 3, second | 3]) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.local.fill(0, 16, 0xab);
    pair.one.run(Wqe::write(iova + 0x810, key).sge(pair.local_mr.sge(0, 1))).unwrap();
    let mut got = [0; 1];
    guest.read(second + 0x10, &mut got);
    assert_eq!(got, [0xab], "iova + 0x810 is 0x10 in the second page");
    pair.one.run(Wqe::write(iova, key).sge(pair.local_mr.sge(0, 1))).unwrap();
    guest.read(first + 0xf800, &mut got);
    assert_eq!(got, [0xab]);
    // 4 KiB pages.
    let pages = guest.scattered(2 * 4096);
    let iova = 0x18_1800u64;
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, iova, 0x1000, mtt_words(&pages, Access::ALL));
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.one.run(Wqe::write(iova + 0x810, key).sge(pair.local_mr.sge(0, 1))).unwrap();
    assert_eq!(pages.bytes(4096 + 0x10, 1), [0xab]);
    // Zero-based: iova 0 of memory that begins at 0x800.
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, 0x800, 0x1000, mtt_words(&pages, Access::ALL));
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.one.run(Wqe::write(0x800, key).sge(pair.local_mr.sge(0, 1))).unwrap();
    assert_eq!(pages.bytes(0x800, 1), [0xab]);
    pair.one.post_one(Wqe::write(0x7ff, key).sge(pair.local_mr.sge(0, 1)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
}

// ---------------------------------------------------------------- C31

const MIB: u64 = 1 << 20;

#[test]
fn c31a_a_fenced_send_carries_what_the_reads_brought() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let guest = &driver.machine.guest;
    let (source, middle, sink) = (guest.scattered(MIB), guest.scattered(MIB), guest.scattered(MIB));
    let register = |buffer, va| driver.register(pair.pd, buffer, va, Access::ALL).unwrap();
    let (source_mr, middle_mr, sink_mr) =
        (register(&source, VA), register(&middle, VA + MIB * 2), register(&sink, VA + MIB * 4));
    for seed in 0..20 {
        source.fill_pattern(seed);
        pair.other.receive(&[sink_mr.all()]);
        let mut wqes = vec![Wqe::read(VA, source_mr.key).sge(middle_mr.all())];
        if seed % 2 == 1 {
            let third = (MIB / 4) as u32;
            wqes = (0..4)
                .map(|n| Wqe::read(VA + n * MIB / 4, source_mr.key).sge(middle_mr.sge(n * MIB / 4, third)))
                .collect();
        }
        wqes.push(Wqe::send().sge(middle_mr.all()).fenced().signaled());
        pair.one.post(&wqes);
        pair.one_cq.wait_ok().unwrap();
        pair.other_cq.wait_ok().unwrap();
        assert!(sink.bytes(0, MIB) == source.bytes(0, MIB), "seed {seed}");
    }
    // An atomic's old value.
    source.write(0, &0x0123_4567_89ab_cdef_u64.to_ne_bytes());
    pair.other.receive(&[sink_mr.sge(0, 8)]);
    let add = Wqe::fetch_add(VA, source_mr.key, 1).sge(middle_mr.sge(0, 8));
    pair.one.post(&[add, Wqe::send().sge(middle_mr.sge(0, 8)).fenced().signaled()]);
    pair.one_cq.wait_ok().unwrap();
    pair.other_cq.wait_ok().unwrap();
    println!("atomic, then fenced send: {:02x?}", sink.bytes(0, 8));
    assert!(sink.bytes(0, 8) == middle.bytes(0, 8) && sink.bytes(0, 8) != vec![0; 8]);
}

#[test]
fn c31b_a_fenced_send_waits_for_a_read_that_waits_for_a_page() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let guest = &driver.machine.guest;
    for side in ["the target's page", "the source's page"] {
        let (plain, sink) = (guest.scattered(4 * 4096), guest.scattered(4 * 4096));
        let odp = OdpMr::register(driver, pair.pd, VA, 4 * 4096, Access::ALL).unwrap();
        let plain_mr = driver.register(pair.pd, &plain, VA, Access::ALL).unwrap();
        let sink_mr = driver.register(pair.pd, &sink, VA + MIB, Access::ALL).unwrap();
        let pages: Vec<u64> = (0..4).map(|_| guest.page()).collect();
        for page in &pages {
            guest.write(*page, &[0x11; 4096]);
        }
        plain.fill(0, 4 * 4096, 0x22);
        pair.other.receive(&[sink_mr.all()]);
        let (read, send, byte) = if side.starts_with("the target") {
            (Wqe::read(VA, plain_mr.key).sge(odp.mr.all()), Wqe::send().sge(odp.mr.all()), 0x22)
        } else {
            (Wqe::read(VA, odp.mr.key).sge(plain_mr.all()), Wqe::send().sge(plain_mr.all()), 0x11)
        };
        pair.one.post(&[read.signaled(), send.fenced().signaled()]);
        let mut mapped = 0;
        let mut done = 0;
        while done < 2 {
            if let Ok(fault) = driver.next_fault(Duration::from_millis(20)) {
                // Slow, and one page at a time.
                std::thread::sleep(Duration::from_millis(5));
                assert!(pair.other_cq.poll().is_none(), "{side}: the send has overtaken");
                if mapped < 4 {
                    odp.map(driver, mapped, &pages[mapped as usize..][..1], true).unwrap();
                    mapped += 1;
                }
                driver.resume(&fault, false).unwrap();
            }
            while let Some(cqe) = pair.one_cq.poll() {
                assert!(!cqe.is_error(), "{side}: {cqe:?}");
                done += 1;
            }
        }
        pair.other_cq.wait_ok().unwrap();
        assert!(sink.bytes(0, 4 * 4096).iter().all(|got| *got == byte), "{side}");
    }
}

#[test]
fn c31c_a_fenced_send_waits_for_a_read_that_stands_in_flight() {
    let pair = Pair::new();
    let rule = NicRule::new(0, NicAction::StallInFlight { ms: 20 }).on(WqeMatch::opcode(opcode::RDMA_READ as u8));
    pair.driver.machine.nic.injections().add(rule).unwrap();
    for seed in 0..10 {
        pair.remote.fill_pattern(seed);
        pair.local.fill(0, LEN, 0);
        let sink = pair.driver.machine.guest.scattered(4096);
        let sink_mr = pair.driver.register(pair.pd, &sink, VA, Access::ALL).unwrap();
        pair.other.receive(&[sink_mr.all()]);
        let read = Wqe::read(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 4096));
        pair.one.post(&[read, Wqe::send().sge(pair.local_mr.sge(0, 4096)).fenced().signaled()]);
        pair.one_cq.wait_ok().unwrap();
        pair.other_cq.wait_ok().unwrap();
        assert!(sink.bytes(0, 4096) == pair.remote.bytes(0, 4096));
    }
}

// ---------------------------------------------------------------- beside the list

/// C03's kind: another length that is cut silently. What a device says is not documented: printed only.
#[test]
fn s1_a_umr_whose_pointer_is_shorter_than_its_octword_count() {
    let driver = Driver::probe(&machine()).unwrap();
    let page = driver.machine.guest.page();
    driver.machine.guest.write(page, &[0xff; 256]);
    let cq = driver.create_cq(6).unwrap();
    let spec = QpSpec { service: service_type::REG_UMR, log_rq: 0, ..QpSpec::rc(&driver, driver.pd, &cq) };
    let qp = Qp::create(&driver.context, spec).unwrap();
    qp.connect(qp.peer()).unwrap();
    let key = driver.create_mkey(&MkeySpec::mtt(driver.pd, Access::ALL, VA, 32 * 4096, vec![3; 32])).unwrap();
    let mut control = vec![0; umr_ctrl::SIZE];
    umr_ctrl::FLAGS.set(&mut control, umr_flags::CHECK_IS_NOT_FREE);
    umr_ctrl::XLT_OCTOWORDS.set(&mut control, 16);
    let wqe = Wqe::new(opcode::UMR).immediate(key).segment(&control).segment(&[0; MKC_SIZE]);
    qp.post_one(wqe.sge(Sge { key: driver.dma_key, va: page, len: 64 }).signaled());
    println!("16 octwords announced, 64 bytes given: {:?}", cq.wait().unwrap());
    let _ = (umr_mask::FREE, PATIENCE);
}

/// A completion queue that overruns: IBTA 11.6.3.1, 11.6.3.2 and the manual page of ibv_get_async_event: CQ_ERR for the queue, and then the queue pair that
/// wanted to complete into it goes to ERR with QP_FATAL.
#[test]
fn s2_an_overrun_ends_the_queue_pairs_of_every_service() {
    let mut bad = Vec::new();
    for (name, service, receives) in [
        ("RC requester", service_type::RC, false),
        ("RC responder", service_type::RC, true),
        ("UC responder", service_type::UC, true),
        ("UD requester", service_type::UD, false),
        ("UD responder", service_type::UD, true),
    ] {
        let pair = Pair::new();
        let small = pair.driver.create_cq(2).unwrap();
        let one = QpSpec {
            service,
            qkey: QKEY,
            send_cq: if receives { pair.one_cq.clone() } else { small.clone() },
            ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq)
        };
        let other = QpSpec {
            service,
            qkey: QKEY,
            recv_cq: if receives { small.clone() } else { pair.other_cq.clone() },
            ..QpSpec::rc(&pair.driver, pair.pd, &pair.other_cq)
        };
        let (one, other) = Qp::pair(&pair.driver, one, other).unwrap();
        for _ in 0..8 {
            other.receive(&[pair.remote_mr.sge(0, 256)]);
        }
        let send = || {
            let wqe = Wqe::send();
            let wqe = if service == service_type::UD { wqe.datagram(other.qpn, 1, QKEY) } else { wqe };
            wqe.sge(pair.local_mr.sge(0, 8)).signaled()
        };
        for _ in 0..6 {
            one.post_one(send());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(QUIET);
        let told: Vec<_> = std::iter::from_fn(|| pair.driver.async_eq.poll())
            .map(|event| (event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes)))
            .collect();
        let victim = if receives { &other } else { &one };
        let now = victim.queried(qpc::STATE).unwrap();
        println!(
            "{name}: events {told:x?}, victim {:#x} in state {now} (ERR is {}, SQER {})",
            victim.qpn,
            state::ERR,
            state::SQER
        );
        if !matches!(now, state::ERR | state::SQER) || !told.contains(&(event::WQ_CATAS_ERROR, victim.qpn)) {
            bad.push(name);
        }
    }
    assert!(bad.is_empty(), "not in ERR, or without a fatal event: {bad:?}");
}
