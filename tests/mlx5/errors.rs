// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes wrong on purpose: syndromes at the requester, completions and states at the responder, events, flushes.

use std::sync::Arc;
use std::time::Duration;

use mlx5_spec::cq::{cqe, opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_qp_srq, event};
use mlx5_spec::mkey::access_mode;
use mlx5_spec::qp::{qpc, state};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::{Access, MkeySpec, PATIENCE, Sge, Wqe};

use crate::scene::{LEN, Pair};

/// One way of failing: what is posted, and what must come of it.
struct Case {
    name: &'static str,
    setup: fn(&Pair) -> Wqe,
    /// Requester's syndrome.
    requester: u32,
    /// Responder's completion in error, if its receive WQE is to blame.
    responder: Option<u32>,
    /// Whether the responder is in ERR afterwards.
    responder_fails: bool,
    /// Asynchronous event of the responder.
    event: Option<u32>,
}

fn write_to(pair: &Pair, va: u64, key: u32) -> Wqe {
    Wqe::write(va, key).sge(pair.local_mr.sge(0, 64))
}

fn with_key(pair: &Pair, change: impl Fn(&mut MkeySpec)) -> u32 {
    let list = rnic_testdrive::mkey::mtt_words(&pair.remote, Access::ALL);
    let mut spec = MkeySpec::mtt(pair.pd, Access::ALL, pair.remote_mr.va, LEN, list);
    change(&mut spec);
    pair.driver.create_mkey(&spec).unwrap()
}

const REMOTE_ACCESS: Case = Case {
    name: "",
    setup: |_| Wqe::nop(),
    requester: syndrome::REMOTE_ACCESS_ERR,
    responder: None,
    responder_fails: true,
    event: Some(event::WQ_ACCESS_ERROR),
};
const LOCAL: Case = Case { requester: syndrome::LOCAL_PROT_ERR, responder_fails: false, event: None, ..REMOTE_ACCESS };
const RECEIVE: Case = Case { requester: syndrome::REMOTE_OP_ERR, event: None, ..REMOTE_ACCESS };

const CASES: &[Case] = &[
    Case { name: "no such key", setup: |p| write_to(p, p.remote_mr.va, 0x00ff_ff00), ..REMOTE_ACCESS },
    Case { name: "terminator", setup: |p| write_to(p, p.remote_mr.va, 0x100), ..REMOTE_ACCESS },
    Case { name: "wrong variant", setup: |p| write_to(p, p.remote_mr.va, p.remote_mr.key ^ 1), ..REMOTE_ACCESS },
    Case { name: "before the start", setup: |p| write_to(p, p.remote_mr.va - 1, p.remote_mr.key), ..REMOTE_ACCESS },
    Case {
        name: "beyond the end",
        setup: |p| write_to(p, p.remote_mr.va + LEN - 63, p.remote_mr.key),
        ..REMOTE_ACCESS
    },
    Case { name: "free key", setup: |p| write_to(p, p.remote_mr.va, with_key(p, |k| k.free = true)), ..REMOTE_ACCESS },
    Case {
        name: "another domain's key",
        setup: |p| {
            let pd = p.driver.alloc_pd().unwrap();
            write_to(p, p.remote_mr.va, with_key(p, |k| k.pd = pd))
        },
        ..REMOTE_ACCESS
    },
    Case {
        name: "another queue pair's key",
        setup: |p| write_to(p, p.remote_mr.va, with_key(p, |k| k.qpn = p.one.qpn ^ 0x7f)),
        ..REMOTE_ACCESS
    },
    Case {
        name: "write without right",
        setup: |p| write_to(p, p.remote_mr.va, with_key(p, |k| k.access = Access::READ_ONLY)),
        ..REMOTE_ACCESS
    },
    Case {
        name: "read without right",
        setup: |p| {
            let key = with_key(p, |k| k.access = Access { remote_read: false, ..Access::ALL });
            Wqe::read(p.remote_mr.va, key).sge(p.local_mr.sge(0, 8))
        },
        ..REMOTE_ACCESS
    },
    Case {
        name: "atomic without right",
        setup: |p| {
            let key = with_key(p, |k| k.access = Access { atomic: false, ..Access::ALL });
            Wqe::fetch_add(p.remote_mr.va, key, 1).sge(p.local_mr.sge(0, 8))
        },
        ..REMOTE_ACCESS
    },
    Case {
        name: "pages beyond memory",
        setup: |p| {
            let key = with_key(p, |k| k.list = vec![0x7f_ffff_f000 | 3; 16]);
            write_to(p, p.remote_mr.va, key)
        },
        ..REMOTE_ACCESS
    },
    Case {
        name: "misaligned atomic",
        setup: |p| Wqe::fetch_add(p.remote_mr.va + 4, p.remote_mr.key, 1).sge(p.local_mr.sge(0, 8)),
        requester: syndrome::REMOTE_INVAL_REQ_ERR,
        event: Some(event::WQ_INVAL_REQ_ERROR),
        ..REMOTE_ACCESS
    },
    Case {
        name: "local key",
        setup: |p| {
            let sge = Sge { key: p.local_mr.key ^ 1, ..p.local_mr.sge(0, 8) };
            Wqe::write(p.remote_mr.va, p.remote_mr.key).sge(sge)
        },
        ..LOCAL
    },
    Case {
        name: "local bounds",
        setup: |p| Wqe::write(p.remote_mr.va, p.remote_mr.key).sge(p.local_mr.sge(LEN - 4, 8)),
        ..LOCAL
    },
    Case {
        name: "read into what may not be written",
        setup: |p| {
            let key = with_key(p, |k| k.access = Access::NONE);
            Wqe::read(p.remote_mr.va, p.remote_mr.key).sge(Sge { key, va: p.remote_mr.va, len: 8 })
        },
        ..LOCAL
    },
    Case {
        name: "unknown opcode",
        setup: |p| Wqe::new(0x3c).sge(p.local_mr.sge(0, 8)),
        requester: syndrome::LOCAL_QP_OP_ERR,
        ..LOCAL
    },
    Case {
        name: "an Ethernet opcode",
        setup: |_| Wqe::new(opcode::LSO),
        requester: syndrome::LOCAL_QP_OP_ERR,
        ..LOCAL
    },
    Case {
        name: "another queue pair's WQE",
        setup: |p| Wqe::nop().claiming_qpn(p.one.qpn + 1),
        requester: syndrome::LOCAL_QP_OP_ERR,
        ..LOCAL
    },
    Case {
        name: "lengths that are little in 32 bits",
        setup: |p| {
            // A length of 0 says 2^31 (contract 7.3).
            let whole = Sge { len: 0, ..p.local_mr.sge(0, 0) };
            Wqe::send().sge(whole).sge(whole).sge(p.local_mr.sge(0, 8))
        },
        requester: syndrome::LOCAL_LENGTH_ERR,
        ..LOCAL
    },
    Case {
        name: "receive WQE too short",
        setup: |p| {
            p.other.receive(&[p.remote_mr.sge(0, 63)]);
            Wqe::send().sge(p.local_mr.sge(0, 64))
        },
        requester: syndrome::REMOTE_INVAL_REQ_ERR,
        responder: Some(syndrome::LOCAL_LENGTH_ERR),
        ..RECEIVE
    },
    Case {
        name: "receive WQE with a bad key",
        setup: |p| {
            p.other.receive(&[Sge { key: p.remote_mr.key ^ 1, ..p.remote_mr.sge(0, 64) }]);
            Wqe::send().sge(p.local_mr.sge(0, 64))
        },
        responder: Some(syndrome::LOCAL_PROT_ERR),
        ..RECEIVE
    },
    Case {
        name: "receive WQE that may not be written",
        setup: |p| {
            let key = with_key(p, |k| k.access = Access::NONE);
            p.other.receive(&[Sge { key, ..p.remote_mr.sge(0, 64) }]);
            Wqe::send().sge(p.local_mr.sge(0, 64))
        },
        responder: Some(syndrome::LOCAL_PROT_ERR),
        ..RECEIVE
    },
];

/// The place of the result is looked at before the word is changed, and the word before that.
#[test]
fn an_atomic_without_a_place_for_its_result_leaves_the_word() {
    let pair = Pair::new();
    let nowhere = with_key(&pair, |k| k.list = vec![0x7f_ffff_f000 | 3; 16]);
    pair.remote.write(0, &7u64.to_le_bytes());
    let add = Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1);
    pair.one.run(add.sge(Sge { key: nowhere, va: pair.remote_mr.va, len: 8 })).unwrap_err();
    assert_eq!(pair.remote.bytes(0, 8), 7u64.to_le_bytes());
}

#[test]
fn each_error_has_its_syndrome_states_and_event() {
    let mut differences = Vec::new();
    for case in CASES {
        let pair = Pair::new();
        let wqe = (case.setup)(&pair);
        pair.one.post_one(wqe.signaled());
        let cqe = pair.one_cq.wait().unwrap();
        let mut expect = |what: &str, good: bool, got: String| {
            if !good {
                differences.push(format!("{}: {what}: {got}", case.name));
            }
        };
        expect("requester", cqe.outcome() == (cqe_opcode::REQ_ERR, case.requester), format!("{cqe:?}"));
        if let Some(wanted) = case.responder {
            let cqe = pair.other_cq.wait().unwrap();
            expect("responder", cqe.outcome() == (cqe_opcode::RESP_ERR, wanted), format!("{cqe:?}"));
        }
        let wanted = if case.responder_fails { state::ERR } else { state::RTS };
        let settled = pair.driver.until("state", || pair.other.queried(qpc::STATE) == Ok(wanted));
        expect("responder's state", settled.is_ok(), format!("{:?}", pair.other.queried(qpc::STATE)));
        let state = pair.one.queried(qpc::STATE);
        expect("requester's state", state == Ok(state::ERR), format!("{state:?}"));
        let event = pair.driver.async_event(if case.event.is_some() { PATIENCE } else { Duration::from_millis(5) });
        let told = event.as_ref().ok().map(|event| (event.event_type(), eqe_qp_srq::QP_SRQ_N.get(&event.bytes)));
        expect("event", told == case.event.map(|kind| (kind, pair.other.qpn)), format!("{event:?}"));
        expect("one completion", pair.one_cq.poll().is_none(), String::new());
        let clean = pair.remote.bytes(0, LEN).iter().all(|byte| *byte == 0);
        expect("memory", clean, "something was written".into());
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

#[test]
fn a_queue_pair_that_forbids_an_operation_refuses_it() {
    type Forbid = fn(&mut rnic_testdrive::QpSpec);
    type Ask = fn(&Pair) -> Wqe;
    let cases: [(Forbid, Ask); 3] = [
        (|s| s.remote_write = false, |p| write_to(p, p.remote_mr.va, p.remote_mr.key)),
        (|s| s.remote_read = false, |p| Wqe::read(p.remote_mr.va, p.remote_mr.key).sge(p.local_mr.sge(0, 8))),
        (|s| s.remote_atomic = false, |p| Wqe::fetch_add(p.remote_mr.va, p.remote_mr.key, 1).sge(p.local_mr.sge(0, 8))),
    ];
    for (forbid, wqe) in cases {
        let pair = Pair::with(forbid);
        pair.one.post_one(wqe(&pair).signaled());
        let cqe = pair.one_cq.wait().unwrap();
        let refused = [syndrome::REMOTE_INVAL_REQ_ERR, syndrome::REMOTE_ACCESS_ERR].contains(&cqe.syndrome());
        assert!(cqe.is_error() && refused, "{cqe:?}");
        assert!(pair.remote.bytes(0, 64).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_flush_tells_of_every_work_request_in_order() {
    let pair = Pair::new();
    // Without a receive WQE the first send waits, and the others behind it.
    let sends: Vec<_> = (0..5).map(|_| Wqe::send().sge(pair.local_mr.sge(0, 8))).collect();
    let sent = pair.one.post(&sends);
    std::thread::sleep(Duration::from_millis(5));
    let received: Vec<_> = (0..3).map(|_| pair.one.receive(&[pair.local_mr.sge(0, 64)])).collect();
    pair.one.to_error().unwrap();
    let flushed: Vec<_> = (0..8).map(|_| pair.one_cq.wait().unwrap()).collect();
    assert!(flushed.iter().all(|cqe| cqe.syndrome() == syndrome::WR_FLUSH_ERR), "{flushed:?}");
    let of =
        |opcode| flushed.iter().filter(|cqe| cqe.opcode() == opcode).map(|cqe| cqe.wqe_counter()).collect::<Vec<_>>();
    assert_eq!(of(cqe_opcode::REQ_ERR), sent);
    assert_eq!(of(cqe_opcode::RESP_ERR), received);
    // What is posted later is flushed when it is seen.
    let late = pair.one.post_one(Wqe::nop());
    let cqe = pair.one_cq.wait().unwrap();
    assert_eq!((cqe.outcome(), cqe.wqe_counter()), ((cqe_opcode::REQ_ERR, syndrome::WR_FLUSH_ERR), late));
    let late = pair.one.receive(&[pair.local_mr.sge(0, 64)]);
    let cqe = pair.one_cq.wait().unwrap();
    assert_eq!((cqe.outcome(), cqe.wqe_counter()), ((cqe_opcode::RESP_ERR, syndrome::WR_FLUSH_ERR), late));
    assert!(pair.one_cq.poll().is_none());
    pair.tear_down();
}

#[test]
fn what_lies_behind_a_failure_is_flushed_with_its_opcode() {
    let pair = Pair::with(|spec| spec.user_index = 0x4321);
    let received = pair.one.receive(&[]);
    let bad = Wqe::write(pair.remote_mr.va, pair.remote_mr.key ^ 1).sge(pair.local_mr.sge(0, 8)).signaled();
    // The second is unsignaled and has two blocks.
    let sent = pair.one.post(&[bad, Wqe::send().inline(&[0; 100]), Wqe::nop().signaled()]);
    let got: Vec<_> = (0..4).map(|_| pair.one_cq.wait().unwrap()).collect();
    let of = |side| got.iter().filter(move |cqe| cqe.opcode() == side);
    let requests: Vec<_> = of(cqe_opcode::REQ_ERR).map(|cqe| (cqe.wqe_counter(), cqe.syndrome())).collect();
    let (access, flush) = (syndrome::REMOTE_ACCESS_ERR, syndrome::WR_FLUSH_ERR);
    assert_eq!(requests, [(sent[0], access), (sent[1], flush), (sent[2], flush)]);
    let receives: Vec<_> = of(cqe_opcode::RESP_ERR).map(|cqe| (cqe.wqe_counter(), cqe.syndrome())).collect();
    assert_eq!(receives, [(received, flush)]);
    let opcodes: Vec<_> = of(cqe_opcode::REQ_ERR).map(|cqe| cqe::SEND_OPCODE.get(&cqe.bytes)).collect();
    assert_eq!(opcodes, [opcode::RDMA_WRITE, opcode::SEND, opcode::NOP]);
    assert!(got.iter().all(|cqe| cqe::SRQN_UIDX.get(&cqe.bytes) == 0x4321));
}

#[test]
fn a_reset_ends_a_wait_for_a_receive() {
    let pair = Pair::new();
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    let naks = || pair.driver.machine.nic.hca().counters.rnr_naks.get();
    pair.driver.until("RNR NAK", || naks() > 0).unwrap();
    pair.one.to_reset().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert!(pair.one_cq.poll().is_none());
    pair.one.connect(pair.other.peer()).unwrap();
    pair.other.to_reset().unwrap();
    pair.other.connect(pair.one.peer()).unwrap();
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
}

#[test]
fn a_destroyed_queue_pair_is_forgotten() {
    let pair = Pair::new();
    pair.one.run(Wqe::nop()).unwrap();
    let weak = Arc::downgrade(&pair.driver.machine.nic.hca().qps.get(pair.one.qpn).unwrap());
    for qp in [&pair.one, &pair.other] {
        qp.to_reset().unwrap();
        qp.destroy().unwrap();
    }
    pair.driver.until("end of the queue pair", || weak.upgrade().is_none()).unwrap();
}

#[test]
fn a_reset_leaves_no_completion_and_the_queue_pair_works_again() {
    let pair = Pair::new();
    for round in 0..100u32 {
        let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 2048));
        pair.one.post(&vec![write.clone().signaled(); 32]);
        std::thread::sleep(Duration::from_micros(u64::from(round % 5 * 10)));
        pair.one.to_reset().unwrap();
        while pair.one_cq.poll().is_some() {}
        std::thread::sleep(Duration::from_micros(200));
        assert!(pair.one_cq.poll().is_none(), "a completion after 2RST");
        pair.one.connect(pair.other.peer()).unwrap();
        pair.other.to_reset().unwrap();
        pair.other.connect(pair.one.peer()).unwrap();
        pair.one.run(write).unwrap();
    }
    pair.tear_down();
}

#[test]
fn doorbells_before_rts_are_remembered() {
    let pair = Pair::new();
    pair.one.to_reset().unwrap();
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    pair.one.to_init().unwrap();
    pair.one.post_one(write.signaled());
    pair.one.to_rtr(pair.other.peer()).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert!(pair.one_cq.poll().is_none());
    pair.one.to_rts().unwrap();
    pair.one_cq.wait_ok().unwrap();
}

#[test]
fn a_key_of_a_mode_that_is_not_offered_is_refused() {
    let pair = Pair::new();
    let spec = MkeySpec { mode: access_mode::SW_ICM, ..MkeySpec::physical(pair.pd, Access::ALL) };
    assert!(pair.driver.create_mkey(&spec).is_err());
}
