// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a responder checks before it looks into a packet, service by service, and that nothing of one life of a queue pair is used in the
//! next (IBTA 9.6, 9.7.1, 9.7.5.1, 9.8.2.2).

use std::time::{Duration, Instant};

use mlx5_spec::caps::{CAP_SIZE, odp_caps, odp_transport};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::qp::{PRIMARY_PATH, QPC_SIZE, ads, opt_param_mask, qpc, service_type, state};
use rnic_testdrive::{Access, OdpMr, PATIENCE, Peer, Qp, QpSpec, Wqe};

use crate::scene::Pair;

const VA: u64 = 0x5000_0000_0000;

/// Reliable connections that give up soon: 4.096 us << 4, twice.
fn impatient() -> Pair {
    Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (4, 1))
}

fn write(pair: &Pair, len: u32) -> Wqe {
    Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, len)).signaled()
}

/// From RST to RTS again, with PSNs: what it sends from, what it expects.
pub fn reconnect(qp: &Qp, peer: Peer, send: u32, expect: u32) {
    qp.to_reset().unwrap();
    qp.to_init().unwrap();
    begin(qp, peer, send, expect);
}

fn begin(qp: &Qp, peer: Peer, send: u32, expect: u32) {
    let mut spec = qp.spec.clone();
    (spec.send_psn, spec.rcv_psn) = (send, expect);
    qp.to_rtr_as(&spec, peer).unwrap();
    qp.to_rts_as(&spec).unwrap();
}

/// What QUERY_QP says: the next packet to send, the next to come.
fn numbers(qp: &Qp) -> (u32, u32) {
    (qp.queried(qpc::NEXT_SEND_PSN).unwrap(), qp.queried(qpc::NEXT_RCV_PSN).unwrap())
}

#[test]
fn numbers_go_on_by_the_packets_of_each_message_and_wrap() {
    let pair = Pair::new();
    // Three packets before the numbers wrap.
    let first = 0xff_fffd;
    reconnect(&pair.one, pair.other.peer(), first, 0x10);
    reconnect(&pair.other, pair.one.peer(), 0x10, first);
    assert_eq!((numbers(&pair.one), numbers(&pair.other)), ((first, 0x10), (0x10, first)));
    let run = |wqe: Wqe, packets: u32, sum: &mut u32| {
        pair.one.run(wqe).unwrap();
        *sum += packets;
        let next = (first + *sum) & 0xff_ffff;
        pair.driver.until("the numbers", || numbers(&pair.one).0 == next).unwrap();
        assert_eq!((numbers(&pair.one), numbers(&pair.other)), ((next, 0x10), (0x10, next)));
    };
    let mut sum = 0;
    run(write(&pair, 1), 1, &mut sum);
    run(write(&pair, 4096), 1, &mut sum);
    run(write(&pair, 4097), 2, &mut sum);
    let read = |len| Wqe::read(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, len)).signaled();
    run(read(4096 * 3 + 1), 4, &mut sum);
    run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).signaled(), 1, &mut sum);
    let add = Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1).sge(pair.local_mr.sge(0, 8));
    run(add.signaled(), 1, &mut sum);
    pair.other.receive(&[pair.remote_mr.all()]);
    run(Wqe::send().sge(pair.local_mr.sge(0, 5000)).signaled(), 2, &mut sum);
    run(Wqe::nop().signaled(), 0, &mut sum);
    // 2RST begins anew.
    pair.other.to_reset().unwrap();
    assert_eq!(pair.other.queried(qpc::HW_RQ_COUNTER), Ok(0), "a counter of the life before");
}

type Request = fn(&Pair) -> Wqe;

/// Each kind of request at a responder that expects another number: ahead, behind, and by one.
#[test]
fn a_request_out_of_sequence_reaches_nothing() {
    for offset in [1, 0x7f_ffff, 0x80_0000, 0xff_ffff] {
        let kinds: [(&str, Request); 4] = [
            ("WRITE", |pair| write(pair, 8)),
            ("SEND", |pair| Wqe::send().sge(pair.local_mr.sge(0, 8))),
            ("READ", |pair| Wqe::read(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(64, 8))),
            ("FETCH_ADD", |pair| {
                Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1).sge(pair.local_mr.sge(64, 8))
            }),
        ];
        for (name, wqe) in kinds {
            let pair = impatient();
            pair.local.fill_pattern(1);
            let before = pair.local.bytes(64, 8);
            reconnect(&pair.one, pair.other.peer(), 0x100 + offset, 0);
            reconnect(&pair.other, pair.one.peer(), 0, 0x100);
            pair.other.receive(&[pair.remote_mr.all()]);
            pair.one.post_one(wqe(&pair).signaled());
            // A SEND or WRITE right before what is expected is a duplicate: acknowledged, and nothing else (IBTA 9.7.5.1.2).
            let duplicate = offset == 0xff_ffff && matches!(name, "SEND" | "WRITE");
            let cqe = pair.one_cq.wait().unwrap();
            match duplicate {
                true => assert!(!cqe.is_error(), "{name} {offset:#x}: {cqe:?}"),
                false => assert_eq!(cqe.syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR, "{name} {offset:#x}: {cqe:?}"),
            }
            assert_eq!(pair.remote.bytes(0, 8), [0; 8], "{name} {offset:#x}");
            assert_eq!(pair.local.bytes(64, 8), before, "{name} {offset:#x}");
            assert!(pair.other_cq.poll().is_none(), "{name} {offset:#x}");
            assert_eq!(pair.other.queried(qpc::STATE), Ok(state::RTS), "{name}: the responder has done nothing wrong");
        }
    }
}

/// A message that stands in its middle at a page fault of the responder, whose next life has the very number that is due: it has not had
/// the message's beginning (IBTA 9.7.4.1.1). With a number ahead of it nothing is heard at all.
#[test]
fn a_middle_is_refused_by_the_next_life() {
    for (expect, wanted) in [(1, syndrome::REMOTE_INVAL_REQ_ERR), (0, syndrome::TRANSPORT_RETRY_EXC_ERR)] {
        for send in [true, false] {
            // Patient enough for the responder's way back.
            let pair = Pair::new();
            let driver = &pair.driver;
            pair.local.fill(0, 8192, 0x77);
            let odp = OdpMr::register(driver, pair.pd, VA, 4 * 4096, Access::ALL).unwrap();
            let first = driver.machine.guest.scattered(4096);
            odp.map(driver, 0, &first.pages, true).unwrap();
            pair.other.receive(&[odp.mr.all()]);
            let list = pair.local_mr.sge(0, 8192);
            let wqe = if send { Wqe::send() } else { Wqe::write(VA, odp.mr.key) };
            pair.one.post_one(wqe.sge(list).signaled());
            let fault = driver.next_fault(PATIENCE).unwrap();
            assert!(first.bytes(0, 4096).iter().all(|byte| *byte == 0x77));
            pair.other.to_reset().unwrap();
            let fresh = driver.machine.guest.scattered(8192);
            let mr = driver.register(pair.pd, &fresh, 0x10_0000, Access::ALL).unwrap();
            pair.other.to_init().unwrap();
            pair.other.receive(&[mr.all()]);
            // A responder is one from RTR on, and may be in ERR before it could be taken to RTS.
            pair.other.to_rtr_as(&QpSpec { rcv_psn: expect, ..pair.other.spec.clone() }, pair.one.peer()).unwrap();
            let cqe = pair.one_cq.wait().unwrap();
            assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, wanted), "send {send}, expected {expect}");
            assert_eq!(fresh.bytes(0, 8192), vec![0; 8192]);
            // The fault's answer comes too late, and means nothing.
            driver.resume(&fault, false).unwrap();
            assert!(pair.other_cq.poll().is_none_or(|cqe| cqe.syndrome() == syndrome::WR_FLUSH_ERR));
        }
    }
}

/// The same with the requester's next life: its number is that of the middle, its message is another.
#[test]
fn a_first_in_the_middle_of_the_life_before_is_refused() {
    let pair = impatient();
    let driver = &pair.driver;
    pair.local.fill(0, 8192, 0x77);
    let odp = OdpMr::register(driver, pair.pd, VA, 4 * 4096, Access::ALL).unwrap();
    let first = driver.machine.guest.scattered(4096);
    odp.map(driver, 0, &first.pages, true).unwrap();
    pair.other.receive(&[odp.mr.all()]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8192)).signaled());
    driver.next_fault(PATIENCE).unwrap();
    reconnect(&pair.one, pair.other.peer(), 1, 0);
    pair.one.post_one(write(&pair, 8));
    let cqe = pair.one_cq.wait().unwrap();
    assert_eq!(cqe.outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_INVAL_REQ_ERR));
    assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
}

/// An unreliable connection begins anew with each first packet, and drops a middle that has no beginning.
#[test]
fn unreliable_messages_need_no_number_but_their_beginning() {
    let pair = Pair::with(|spec| spec.service = service_type::UC);
    pair.local.fill(0, 16384, 0x55);
    reconnect(&pair.one, pair.other.peer(), 0x4711, 0);
    pair.one.run(write(&pair, 64)).unwrap();
    assert_eq!(pair.remote.bytes(0, 64), [0x55; 64]);
    assert_eq!(numbers(&pair.other).1, 0x4712);
    // The middle of a message, whose source is not there for a while. Paging is not offered to this service: no driver switches it on.
    let driver = &pair.driver;
    let mut paging = vec![0; CAP_SIZE];
    odp_caps::UC_ODP_CAPS.set(&mut paging, odp_transport::WRITE);
    driver.machine.nic.hca().paging.put(&paging);
    let odp = OdpMr::register(driver, pair.pd, VA, 2 * 4096, Access::ALL).unwrap();
    let memory = driver.machine.guest.scattered(8192);
    memory.fill(0, 8192, 0x66);
    odp.map(driver, 0, &memory.pages[..1], true).unwrap();
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(odp.mr.sge(0, 8192)).signaled());
    let fault = driver.next_fault(PATIENCE).unwrap();
    reconnect(&pair.other, pair.one.peer(), 0, 0x4713);
    odp.map(driver, 1, &memory.pages[1..], true).unwrap();
    driver.resume(&fault, false).unwrap();
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.remote.bytes(4096, 4096), vec![0; 4096], "a middle whose beginning the life before took");
    pair.one.run(write(&pair, 64)).unwrap();
}

/// Who drops what (IBTA 9.6, 10.9): the same table for the three services. `true`: the message arrives.
#[test]
fn the_same_checks_hold_for_every_service() {
    type Change = fn(&Pair);
    fn pkey(qp: &Qp) {
        let mut c = vec![0; QPC_SIZE];
        ads::PKEY_INDEX.plus(PRIMARY_PATH).set(&mut c, 5);
        qp.modify(Opcode::RTS2RTS_QP, opt_param_mask::PKEY_INDEX, &c).unwrap();
    }
    /// Connected anew with another of: MTU code, peer's QPN, peer's LID.
    fn other(pair: &Pair, mtu: u32, qpn: u32, lid: u32) {
        pair.other.to_reset().unwrap();
        pair.other.to_init().unwrap();
        pair.other.receive(&[pair.remote_mr.all()]);
        let spec = QpSpec { mtu, ..pair.other.spec.clone() };
        pair.other.to_rtr_as(&spec, Peer { qpn, lid }).unwrap();
        pair.other.to_rts_as(&spec).unwrap();
    }
    // Bits: RC, UC, UD.
    let table: [(&str, Change, [bool; 3]); 9] = [
        ("nothing", |_| (), [true; 3]),
        ("the sender's P_Key", |pair| pkey(&pair.one), [false; 3]),
        ("the receiver's P_Key", |pair| pkey(&pair.other), [false; 3]),
        ("the receiver in RST", |pair| pair.other.to_reset().unwrap(), [false; 3]),
        ("the receiver in ERR", |pair| pair.other.to_error().unwrap(), [false; 3]),
        (
            "the receiver in INIT",
            |pair| {
                pair.other.to_reset().unwrap();
                pair.other.to_init().unwrap();
            },
            [false; 3],
        ),
        ("another source QPN", |pair| other(pair, 5, pair.one.qpn ^ 1, 1), [false, false, true]),
        ("another source LID", |pair| other(pair, 5, pair.one.qpn, 9), [false, false, true]),
        ("another path MTU", |pair| other(pair, 1, pair.one.qpn, 1), [false, false, true]),
    ];
    for (name, change, arrives) in table {
        for (service, arrives) in [service_type::RC, service_type::UC, service_type::UD].into_iter().zip(arrives) {
            let pair = Pair::with(|spec| (spec.service, spec.ack_timeout, spec.retry_count) = (service, 4, 1));
            pair.local.fill(0, 1000, 0x31);
            pair.other.receive(&[pair.remote_mr.all()]);
            change(&pair);
            let wqe = match service {
                service_type::UD => Wqe::send().datagram(pair.other.qpn, 1, pair.other.spec.qkey),
                _ => Wqe::send(),
            };
            pair.one.post_one(wqe.sge(pair.local_mr.sge(0, 1000)).signaled());
            let cqe = pair.one_cq.wait().unwrap();
            // Who is unreliable learns nothing.
            assert_eq!(cqe.is_error(), service == service_type::RC && !arrives, "{name}, service {service}: {cqe:?}");
            let came = pair.remote.bytes(0, 1100).contains(&0x31);
            assert_eq!(came, arrives, "{name}, service {service}");
        }
    }
}

/// `retry_count` and `rnr_retry` are what follows the first try (IBTA 9.7.6.1.3, 9.7.5.2.8). Lower bounds only.
#[test]
fn retries_come_after_the_first_try() {
    for retries in [0, 3] {
        // 4.096 us << 10: 4.2 ms.
        let pair = Pair::with(|spec| (spec.ack_timeout, spec.retry_count) = (10, retries));
        pair.other.to_reset().unwrap();
        let begun = Instant::now();
        pair.one.post_one(write(&pair, 8));
        assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::TRANSPORT_RETRY_EXC_ERR);
        let least = Duration::from_nanos(4096 << 10) * (retries + 1);
        assert!(begun.elapsed() >= least, "{retries} retries: {:?}", begun.elapsed());
    }
    for retries in [0, 1, 3] {
        let pair = Pair::with(|spec| spec.rnr_retry = retries);
        pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
        assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::RNR_RETRY_EXC_ERR);
        let naks = pair.driver.machine.nic.hca().counters.rnr_naks.get();
        assert_eq!(naks, u64::from(retries) + 1);
    }
}

/// A WQE is done once although the attributes of both queue pairs change all the time: SEND with its receive, with invalidate, atomics.
#[test]
fn work_is_not_done_again_when_attributes_change() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let driver = rnic_testdrive::Driver::probe(&crate::scene::machine()).unwrap();
    let uar = driver.alloc_uar().unwrap();
    let pair = Pair::on(driver, |spec| spec.uar = uar);
    let stop = AtomicBool::new(false);
    const ROUNDS: u64 = 600;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut c = vec![0; QPC_SIZE];
            qpc::MIN_RNR_NAK.set(&mut c, 1);
            while !stop.load(Ordering::Relaxed) {
                for qp in [&pair.one, &pair.other] {
                    qp.modify(Opcode::RTS2RTS_QP, opt_param_mask::RNR_TIMEOUT, &c).unwrap();
                }
            }
        });
        for round in 0..ROUNDS {
            pair.one
                .run(Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1).sge(pair.local_mr.sge(0, 8)))
                .unwrap();
            let mut old = [0; 8];
            old.copy_from_slice(&pair.local.bytes(0, 8));
            assert_eq!(u64::from_le_bytes(old), round, "the word was added to twice");
            pair.other.receive(&[pair.remote_mr.sge(4096, 64)]);
            pair.one.run(Wqe::send().sge(pair.local_mr.sge(64, 64))).unwrap();
            let cqe = pair.other_cq.wait_ok().unwrap();
            assert_eq!(u64::from(cqe.wqe_counter()), round & 0xffff);
            assert!(pair.other_cq.poll().is_none(), "told twice");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A queue pair connected to itself: each half is told its cause before anything is flushed.
#[test]
fn both_halves_of_a_queue_pair_learn_why() {
    let pair = Pair::new();
    let cq = pair.driver.create_cq(6).unwrap();
    let spec = QpSpec { recv_cq: cq.clone(), ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
    let qp = Qp::create(&pair.driver.context, spec).unwrap();
    qp.connect(qp.peer()).unwrap();
    // Two receive WQEs, the first too short.
    qp.receive(&[pair.remote_mr.sge(0, 16)]);
    qp.receive(&[pair.remote_mr.sge(0, 4096)]);
    let send = Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled();
    qp.post(&[send.clone(), send]);
    let told = |cq: &rnic_testdrive::Cq| [(); 2].map(|()| cq.wait().unwrap().syndrome());
    assert_eq!(told(&pair.one_cq), [syndrome::REMOTE_INVAL_REQ_ERR, syndrome::WR_FLUSH_ERR]);
    assert_eq!(told(&cq), [syndrome::LOCAL_LENGTH_ERR, syndrome::WR_FLUSH_ERR]);
    assert_eq!(qp.queried(qpc::STATE), Ok(state::ERR));
}
