// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DC: initiators that name a target in each message, and targets that any number of them reach.

use std::sync::Arc;

use mlx5_spec::caps::{cmd_hca_cap, odp_transport};
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{cqe, opcode as cqe_opcode, syndrome};
use mlx5_spec::eq::{eqe_qp_srq, event, queue_type};
use mlx5_spec::odp::wqe_fault_type;
use mlx5_spec::qp::{create_dct_in, dct, dctc, qpc, query_dct_out, service_type, state};
use mlx5_spec::wqe::{AV_SIZE, av, opcode, raddr};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Access, Cq, Driver, Mr, OdpMr, PATIENCE, PageFault, Qp, QpSpec, Srq, Wqe};

use crate::scene::Pair;

const KEY: u64 = 0x1122_3344_5566_7788;
const USER_INDEX: u32 = 0x123;
const VA: u64 = 0x5555_0000_0000;

/// A target with its shared queue, and an initiator. Memory and completion queues are a pair's, whose queue pairs rest.
struct Scene {
    pair: Pair,
    srq: Arc<Srq>,
    target: u32,
    one: Qp,
}

fn target(driver: &Driver, change: impl FnOnce(Input) -> Input) -> Result<u32, u8> {
    let input = Input::new(Opcode::CREATE_DCT, create_dct_in::SIZE);
    let reply = driver.query(change(input), dct::SIZE).map_err(|error| error.status().unwrap())?;
    Ok(dct::DCTN.get(&reply))
}

/// What it is made with.
fn described(pair: &Pair, srq: &Srq, input: Input) -> Input {
    let at = create_dct_in::DCTC;
    [
        (dctc::USER_INDEX, USER_INDEX),
        (dctc::CQN, pair.other_cq.cqn),
        (dctc::RRE, 1),
        (dctc::RWE, 1),
        (dctc::RAE, 1),
        (dctc::ATOMIC_MODE, 1),
        (dctc::MIN_RNR_NAK, 1),
        (dctc::SRQN_XRQN, srq.srqn),
        (dctc::PD, pair.pd),
        (dctc::MTU, 5),
        (dctc::PORT, 1),
    ]
    .into_iter()
    .fold(input, |input, (field, value)| input.with(field.plus(at), value))
    .bytes(at + dctc::DC_ACCESS_KEY.0, &KEY.to_be_bytes())
}

fn initiator(pair: &Pair, change: impl FnOnce(&mut QpSpec)) -> Qp {
    let mut spec = QpSpec { service: service_type::DCI, log_rq: 0, ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
    change(&mut spec);
    let qp = Qp::create(&pair.driver.context, spec).unwrap();
    qp.connect(qp.peer()).unwrap();
    qp
}

impl Scene {
    fn new() -> Self {
        Self::with(|input| input)
    }

    fn with(change: impl FnOnce(Input) -> Input) -> Self {
        let pair = Pair::new();
        let srq = Arc::new(Srq::create(&pair.driver.context, pair.pd, 4).unwrap());
        let target = target(&pair.driver, |input| change(described(&pair, &srq, input))).unwrap();
        let one = initiator(&pair, |spec| (spec.ack_timeout, spec.retry_count, spec.rnr_retry) = (4, 1, 7));
        Self { pair, srq, target, one }
    }

    fn to(&self, opcode: u32) -> Wqe {
        message(opcode, self.target, 1, KEY)
    }

    fn remote(&self, wqe: Wqe) -> Wqe {
        wqe.remote(self.pair.remote_mr.va, self.pair.remote_mr.key)
    }

    /// What becomes of a message: its completion's opcode and syndrome.
    fn outcome(&self, wqe: Wqe) -> (u32, u32) {
        self.one.post_one(wqe.signaled());
        self.pair.one_cq.wait().unwrap().outcome()
    }
}

fn message(opcode: u32, target: u32, lid: u32, key: u64) -> Wqe {
    let mut bytes = [0; AV_SIZE];
    av::DC_KEY.set(&mut bytes, key);
    av::EXTENDED.set(&mut bytes, 1);
    av::DQPN.set(&mut bytes, target);
    av::RLID.set(&mut bytes, lid);
    Wqe::new(opcode).segment(&bytes)
}

const GOOD: (u32, u32) = (cqe_opcode::REQ, 0);

#[test]
fn messages_of_many_initiators_come_to_one_target() {
    let scene = Scene::new();
    let pair = &scene.pair;
    let initiators: Vec<Qp> = (0..4).map(|_| initiator(pair, |_| ())).collect();
    pair.local.fill_pattern(1);
    // Long ones, which arrive in pieces between each other, each in a receive WQE of its own.
    const LEN: u32 = 200_000;
    let memory = pair.driver.machine.guest.scattered(8 * u64::from(LEN).next_multiple_of(4096));
    let mr = pair.driver.register(pair.pd, &memory, VA, Access::ALL).unwrap();
    let source = pair.driver.machine.guest.scattered(u64::from(LEN).next_multiple_of(4096));
    source.fill_pattern(2);
    let source_mr = pair.driver.register(pair.pd, &source, VA << 1, Access::ALL).unwrap();
    for round in 0..10 {
        for at in 0..4u64 {
            scene.srq.post(&[mr.sge(at * u64::from(LEN), LEN)]).unwrap();
        }
        for qp in &initiators {
            qp.post_one(scene.to(opcode::SEND).sge(source_mr.sge(0, LEN)).signaled());
        }
        let mut from: Vec<u32> = (0..4)
            .map(|_| {
                assert_eq!(pair.one_cq.wait().unwrap().outcome(), GOOD, "round {round}");
                let got = pair.other_cq.wait_ok().unwrap();
                assert_eq!(
                    (got.byte_count(), got.qpn(), cqe::SRQN_UIDX.get(&got.bytes)),
                    (LEN, scene.target, USER_INDEX)
                );
                scene.srq.release(got.wqe_counter());
                cqe::RQPN.get(&got.bytes)
            })
            .collect();
        from.sort_unstable();
        assert_eq!(from, initiators.iter().map(|qp| qp.qpn).collect::<Vec<_>>());
        for at in 0..4 {
            assert!(memory.bytes(at * u64::from(LEN), LEN.into()) == source.bytes(0, LEN.into()), "round {round}");
        }
        memory.fill(0, 4 * u64::from(LEN), 0);
    }
}

#[test]
fn sixteen_reads_at_once() {
    let scene = Scene::new();
    let pair = &scene.pair;
    let reads = 1u64 << pair.driver.capability(cmd_hca_cap::LOG_MAX_RA_REQ_DC).unwrap();
    assert_eq!(reads, 1 << pair.driver.capability(cmd_hca_cap::LOG_MAX_RA_RES_DC).unwrap());
    pair.remote.fill_pattern(7);
    let (va, key) = (pair.remote_mr.va, pair.remote_mr.key);
    let to = |at: u64| scene.to(opcode::RDMA_READ).remote(va + at * 3000, key);
    let read = |at: u64| to(at).sge(pair.local_mr.sge(at * 3000, 3000));
    let mut wqes: Vec<Wqe> = (0..reads).map(read).collect();
    *wqes.last_mut().unwrap() = read(reads - 1).signaled();
    scene.one.post(&wqes);
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), GOOD);
    pair.assert_copied((&pair.remote, 0), (&pair.local, 0), reads * 3000);
}

#[test]
fn one_initiator_reaches_many_targets() {
    let scene = Scene::new();
    let pair = &scene.pair;
    let second = target(&pair.driver, |input| {
        described(pair, &scene.srq, input).with(dctc::USER_INDEX.plus(create_dct_in::DCTC), 0x456)
    })
    .unwrap();
    for _ in 0..6 {
        scene.srq.post(&[pair.remote_mr.sge(0, 4096)]).unwrap();
    }
    let wqes: Vec<Wqe> = (0..6)
        .map(|at| message(opcode::SEND, [scene.target, second][at % 2], 1, KEY).sge(pair.local_mr.sge(0, 100)))
        .collect();
    for wqe in wqes {
        scene.one.post_one(wqe.signaled());
    }
    let owners: Vec<u32> = (0..6)
        .map(|_| {
            assert_eq!(pair.one_cq.wait().unwrap().outcome(), GOOD);
            cqe::SRQN_UIDX.get(&pair.other_cq.wait_ok().unwrap().bytes)
        })
        .collect();
    assert_eq!(owners, [USER_INDEX, 0x456, USER_INDEX, 0x456, USER_INDEX, 0x456]);
}

#[test]
fn every_operation_goes_to_a_target() {
    let scene = Scene::new();
    let pair = &scene.pair;
    pair.local.fill_pattern(3);
    assert_eq!(scene.outcome(scene.remote(scene.to(opcode::RDMA_WRITE)).sge(pair.local_mr.sge(0, 9000))), GOOD);
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 9000);
    assert_eq!(scene.outcome(scene.remote(scene.to(opcode::RDMA_READ)).sge(pair.local_mr.sge(16384, 9000))), GOOD);
    pair.assert_copied((&pair.remote, 0), (&pair.local, 16384), 9000);
    pair.remote.write(0, &7u64.to_le_bytes());
    let add = [5u64.to_be_bytes(), [0; 8]].concat();
    let wqe = scene.remote(scene.to(opcode::ATOMIC_FA)).segment(&add).sge(pair.local_mr.sge(0, 8));
    assert_eq!(scene.outcome(wqe), GOOD);
    assert_eq!(
        (pair.local.bytes(0, 8), pair.remote.bytes(0, 8)),
        (7u64.to_le_bytes().into(), 12u64.to_le_bytes().into())
    );
    scene.srq.post(&[pair.remote_mr.sge(4096, 64)]).unwrap();
    let wqe = scene.remote(scene.to(opcode::RDMA_WRITE_IMM)).immediate(77).sge(pair.local_mr.sge(8, 8));
    assert_eq!(scene.outcome(wqe), GOOD);
    let got = pair.other_cq.wait_ok().unwrap();
    assert_eq!((got.opcode(), got.immediate()), (cqe_opcode::RESP_WR_IMM, 77));
    assert_eq!(raddr::SIZE, 16);
}

#[test]
fn a_target_that_is_not_named_well_does_not_answer() {
    let silence = (cqe_opcode::REQ_ERR, syndrome::TRANSPORT_RETRY_EXC_ERR);
    for (target, lid, key) in [(0, 1, KEY ^ 1), (0, 9, KEY), (0x00ab_cdef, 1, KEY), (1, 1, KEY)] {
        let scene = Scene::new();
        // A queue pair is no target.
        let number = match target {
            0 => scene.target,
            1 => scene.pair.other.qpn,
            other => other,
        };
        let wqe = message(opcode::RDMA_WRITE, number, lid, key);
        assert_eq!(
            scene.outcome(scene.remote(wqe).sge(scene.pair.local_mr.sge(0, 8))),
            silence,
            "{number:#x} {lid} {key:#x}"
        );
        assert_eq!(scene.pair.remote.bytes(0, 8), [0; 8]);
    }
    // P_Key 5 is none.
    let scene = Scene::with(|input| input.with(dctc::PKEY_INDEX.plus(create_dct_in::DCTC), 5));
    assert_eq!(scene.outcome(scene.remote(scene.to(opcode::RDMA_WRITE)).sge(scene.pair.local_mr.sge(0, 8))), silence);
}

#[test]
fn a_target_refuses_what_it_forbids_and_goes_on() {
    let at = create_dct_in::DCTC;
    let refused = (cqe_opcode::REQ_ERR, syndrome::REMOTE_INVAL_REQ_ERR);
    for (right, code, more) in [
        (dctc::RWE, opcode::RDMA_WRITE, &[][..]),
        (dctc::RRE, opcode::RDMA_READ, &[]),
        (dctc::RAE, opcode::ATOMIC_FA, &[0; 16]),
    ] {
        let scene = Scene::with(|input| input.with(right.plus(at), 0));
        let wqe = scene.remote(scene.to(code)).segment(more).sge(scene.pair.local_mr.sge(0, 8));
        assert_eq!(scene.outcome(wqe), refused);
        assert_eq!(scene.one.queried(qpc::STATE), Ok(state::ERR), "its initiator ends");
        // Another initiator finds it as it was.
        let other = initiator(&scene.pair, |_| ());
        scene.srq.post(&[scene.pair.remote_mr.sge(0, 64)]).unwrap();
        other.post_one(scene.to(opcode::SEND).sge(scene.pair.local_mr.sge(0, 8)).signaled());
        assert_eq!(scene.pair.one_cq.wait().unwrap().outcome(), GOOD);
        scene.pair.other_cq.wait_ok().unwrap();
    }
    // A message that is too long has taken a receive WQE, which tells of it.
    let scene = Scene::new();
    scene.srq.post(&[scene.pair.remote_mr.sge(0, 4)]).unwrap();
    assert_eq!(scene.outcome(scene.to(opcode::SEND).sge(scene.pair.local_mr.sge(0, 8))), refused);
    assert_eq!(scene.pair.other_cq.wait().unwrap().outcome(), (cqe_opcode::RESP_ERR, syndrome::LOCAL_LENGTH_ERR));
    assert!(scene.pair.driver.async_event(std::time::Duration::from_millis(10)).is_err(), "no event about a target");
}

#[test]
fn who_finds_no_receive_wqe_waits_for_one() {
    let scene = Scene::new();
    scene.one.post_one(scene.to(opcode::SEND).sge(scene.pair.local_mr.sge(0, 8)).signaled());
    let naks = || scene.pair.driver.machine.nic.hca().counters.rnr_naks.get();
    scene.pair.driver.until("RNR NAKs", || naks() > 2).unwrap();
    scene.srq.post(&[scene.pair.remote_mr.sge(0, 64)]).unwrap();
    assert_eq!(scene.pair.one_cq.wait().unwrap().outcome(), GOOD);
    scene.pair.other_cq.wait_ok().unwrap();
}

fn by_number(driver: &Driver, opcode: Opcode, number: u32) -> u8 {
    let input = Input::new(opcode, dct::SIZE).with(dct::DCTN, number);
    driver.command(input).err().map_or(status::OK, |error| error.status().unwrap())
}

#[test]
fn a_target_is_drained_and_gone() {
    let scene = Scene::new();
    let driver = &scene.pair.driver;
    let state_of = || {
        let input = Input::new(Opcode::QUERY_DCT, dct::SIZE).with(dct::DCTN, scene.target);
        let told = driver.query(input, query_dct_out::SIZE).unwrap();
        let at = query_dct_out::DCTC;
        assert_eq!(dctc::USER_INDEX.plus(at).get(&told), USER_INDEX);
        dctc::STATE.plus(at).get(&told)
    };
    assert_eq!(state_of(), 0);
    // 1 to 5.
    for mtu in [0, 6] {
        let made = target(driver, |input| {
            described(&scene.pair, &scene.srq, input).with(dctc::MTU.plus(create_dct_in::DCTC), mtu)
        });
        assert_eq!(made, Err(status::BAD_PARAM));
    }
    assert_eq!(by_number(driver, Opcode::DRAIN_DCT, scene.target), status::OK);
    let told = driver.async_event(PATIENCE).unwrap();
    let (of, number) = (eqe_qp_srq::TYPE.get(&told.bytes), eqe_qp_srq::QP_SRQ_N.get(&told.bytes));
    assert_eq!((told.event_type(), of, number), (event::DCT_DRAINED, queue_type::DCT, scene.target));
    assert_eq!(state_of(), 2);
    let silence = (cqe_opcode::REQ_ERR, syndrome::TRANSPORT_RETRY_EXC_ERR);
    assert_eq!(scene.outcome(scene.remote(scene.to(opcode::RDMA_WRITE)).sge(scene.pair.local_mr.sge(0, 8))), silence);
    // What is a queue pair's is not its.
    for opcode in [Opcode::DESTROY_QP, Opcode::TO_ERR_QP, Opcode::TO_RST_QP, Opcode::QUERY_QP] {
        let input = Input::new(opcode, 16).with(mlx5_spec::qp::destroy_in::QPN, scene.target);
        let said = driver.query(input, 0x110).map(|_| ()).map_err(|error| error.status());
        assert_eq!(said, Err(Some(status::BAD_RES)), "{opcode}");
    }
    for opcode in [Opcode::DESTROY_DCT, Opcode::DRAIN_DCT, Opcode::QUERY_DCT] {
        let input = Input::new(opcode, dct::SIZE).with(dct::DCTN, scene.pair.one.qpn);
        let said = driver.query(input, query_dct_out::SIZE).map(|_| ()).map_err(|error| error.status());
        assert_eq!(said, Err(Some(status::BAD_RES)), "{opcode}");
    }
    // Its shared queue and its domain are in use until it is gone.
    assert_eq!(driver.dealloc_pd(scene.pair.pd).unwrap_err().status(), Some(status::BAD_RES_STATE));
    assert_eq!(scene.srq.destroy().unwrap_err().status(), Some(status::BAD_RES_STATE));
    assert_eq!(by_number(driver, Opcode::DESTROY_DCT, scene.target), status::OK);
    assert_eq!(by_number(driver, Opcode::DESTROY_DCT, scene.target), status::BAD_RES);
    scene.srq.destroy().unwrap();
}

/// Each access that DC offers, which meets an absent page, and the page fault that it must raise.
#[test]
fn the_cycles_of_dc() {
    let scene = Scene::new();
    let (pair, driver) = (&scene.pair, &scene.pair.driver);
    let memory = driver.machine.guest.scattered(4096);
    let odp = OdpMr::register(driver, pair.pd, VA, 4096, Access::ALL).unwrap();
    let (there, key) = ((pair.remote_mr.va, pair.remote_mr.key), odp.mr.key);
    let run = |wqe: Wqe, is_meant: &dyn Fn(&PageFault) -> bool| {
        scene.one.post_one(wqe.signaled());
        let fault = driver.next_fault(PATIENCE).unwrap();
        assert!(is_meant(&fault), "{fault:?}");
        odp.map(driver, 0, &memory.pages, true).unwrap();
        driver.resume(&fault, false).unwrap();
        assert_eq!(pair.one_cq.wait().unwrap().outcome(), GOOD);
        odp.zap(driver, 0, 1).unwrap();
    };
    let of = |wanted: u32, number: u32| move |fault: &PageFault| matches!(fault, PageFault::Wqe { kind, number: found, .. } if (*kind, *found) == (wanted, number));
    let requester = of(wqe_fault_type::REQUESTER_SEND_OR_WRITE, scene.one.qpn);
    let answered = of(wqe_fault_type::REQUESTER_READ_OR_ATOMIC, scene.one.qpn);
    let shared = of(wqe_fault_type::SRQ, scene.srq.srqn);
    let rdma = |wanted: bool| move |fault: &PageFault| matches!(fault, PageFault::Rdma { rkey, write, .. } if (*rkey, *write) == (key, wanted));
    let here = |mr: &Mr, len| mr.sge(0, len);
    scene.srq.post(&[pair.remote_mr.sge(0, 64)]).unwrap();
    run(scene.to(opcode::SEND).sge(here(&odp.mr, 64)), &requester);
    scene.srq.post(&[here(&odp.mr, 64)]).unwrap();
    run(scene.to(opcode::SEND).sge(here(&pair.local_mr, 64)), &shared);
    run(scene.to(opcode::RDMA_WRITE).remote(VA, key).sge(here(&pair.local_mr, 64)), &rdma(true));
    run(scene.to(opcode::RDMA_READ).remote(VA, key).sge(here(&pair.local_mr, 64)), &rdma(false));
    run(scene.to(opcode::RDMA_READ).remote(there.0, there.1).sge(here(&odp.mr, 64)), &answered);
    run(scene.to(opcode::ATOMIC_FA).remote(VA, key).segment(&[0; 16]).sge(here(&pair.local_mr, 8)), &rdma(true));
    assert_eq!(odp_transport::name(odp_transport::SRQ_RECEIVE), Some("SRQ_RECEIVE"));
    let _: &Arc<Cq> = &pair.one_cq;
}
