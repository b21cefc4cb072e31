// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects as commands see them: when they may be made, who keeps them, what they cost the host.

use std::sync::Arc;

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{OPCODES, Opcode, status};
use mlx5_spec::cq::{cqc, state as cq_states};
use mlx5_spec::eq::eqc;
use mlx5_spec::mkey::{
    create_in as mkey_in, create_out as mkey_out, destroy_in as mkey_destroy, mkc, query_out as query_mkey_out,
};
use mlx5_spec::qp::{
    QPC_SIZE, ads, create_in, create_out, destroy_in, modify_in, opt_param_mask, qpc, rq_type, service_type, state,
};
use mlx5_spec::small::init_hca_in;
use mlx5_spec::srq::{create_xrc_srq_in, create_xrc_srq_out, query_rmp_out, rmpc, wq, xrc_srqc};
use rnic_testdrive::command::{Bar, Commands, Input};
use rnic_testdrive::cq::{Cq, CqSpec};
use rnic_testdrive::driver::Driver;
use rnic_testdrive::eq::{EqSpec, EventQueue};
use rnic_testdrive::{Access, Error, Machine, MkeySpec, Qp, QpSpec, Srq, UmrSpec, Wqe};

use crate::scene::{Pair, machine};

fn refused<T>(outcome: Result<T, Error>) -> Option<u8> {
    outcome.err().and_then(|error| error.status())
}

/// Before ENABLE_HCA nothing but it, before INIT_HCA no object and no port; the same again on the way down.
#[test]
fn each_command_waits_for_its_time() {
    let machine = machine();
    machine.enable();
    let commands = Commands::new(&machine, Bar::map(&machine)).unwrap();
    // All zero but for the opcode: whether it is too early comes first.
    let early = |opcode: Opcode| {
        let outcome = commands.execute(&Input::new(opcode, 0x1010).finish(), 16);
        refused(outcome) == Some(status::BAD_SYS_STATE)
    };
    let setup = [
        Opcode::DISABLE_HCA,
        Opcode::INIT_HCA,
        Opcode::TEARDOWN_HCA,
        Opcode::QUERY_ISSI,
        Opcode::SET_ISSI,
        Opcode::QUERY_PAGES,
        Opcode::MANAGE_PAGES,
        Opcode::QUERY_ADAPTER,
        Opcode::QUERY_SPECIAL_CONTEXTS,
        Opcode::NOP,
        Opcode::QUERY_HCA_CAP,
        Opcode::SET_HCA_CAP,
        Opcode::ACCESS_REG,
    ];
    let offered = |opcode: &Opcode| {
        let outcome = commands.execute(&Input::new(*opcode, 0x1010).finish(), 16);
        refused(outcome) != Some(status::BAD_OP)
    };
    let all: Vec<Opcode> = OPCODES.iter().map(|(opcode, _)| *opcode).filter(offered).collect();
    // As long as the longest of them.
    let run = |opcode| commands.execute(&Input::new(opcode, init_hca_in::SIZE).finish(), 16).map(|_| ());
    // The look at all opcodes has switched on and off in some order.
    for round in ["at power-on", "after DISABLE_HCA"] {
        let _ = (run(Opcode::TEARDOWN_HCA), run(Opcode::DISABLE_HCA));
        for opcode in all.iter().filter(|opcode| **opcode != Opcode::ENABLE_HCA) {
            assert!(early(*opcode), "{opcode} {round}");
        }
        run(Opcode::ENABLE_HCA).unwrap();
        let on_the_way = [Opcode::ENABLE_HCA, Opcode::INIT_HCA, Opcode::DISABLE_HCA];
        for opcode in all.iter().filter(|opcode| !on_the_way.contains(opcode)) {
            assert_eq!(early(*opcode), !setup.contains(opcode), "{opcode} before INIT_HCA, {round}");
        }
        run(Opcode::INIT_HCA).unwrap();
        let ends = [Opcode::TEARDOWN_HCA, Opcode::DISABLE_HCA];
        assert!(all.iter().filter(|opcode| !ends.contains(opcode)).all(|opcode| !early(*opcode)), "{round}");
    }
}

/// One of each object that others can use.
struct Scene {
    driver: Arc<Driver>,
    pd: u32,
    uar: u32,
    xrcd: u32,
    eq: Arc<EventQueue>,
    cq: Arc<Cq>,
    srq: Srq,
}

impl Scene {
    fn new(machine: &Arc<Machine>) -> Self {
        let driver = Driver::probe(machine).unwrap();
        let (pd, uar) = (driver.alloc_pd().unwrap(), driver.alloc_uar().unwrap());
        let xrcd = driver.alloc_number(Opcode::ALLOC_XRCD).unwrap();
        let spec = EqSpec { events: &[], vector: 3, log_size: 6, uar };
        let eq = EventQueue::create(machine, &driver.bar, &driver.commands, spec).unwrap();
        let cq = Cq::create(&driver.context, CqSpec { log_size: 6, uar, eqn: eq.eqn, ignore_overrun: false }).unwrap();
        let srq = Srq::create(&driver.context, pd, 4).unwrap();
        Self { driver, pd, uar, xrcd, eq, cq, srq }
    }

    fn queue_pair(&self) -> Qp {
        let spec = QpSpec { uar: self.uar, srq: Some(self.srq.srqn), ..QpSpec::rc(&self.driver, self.pd, &self.cq) };
        Qp::create(&self.driver.context, spec).unwrap()
    }

    fn xrc_srq(&self) -> u32 {
        let guest = &self.driver.machine.guest;
        let at = create_xrc_srq_in::XRC_SRQC;
        let mut input = Input::new(Opcode::CREATE_XRC_SRQ, create_xrc_srq_in::SIZE);
        for (field, value) in [
            (xrc_srqc::PD, self.pd),
            (xrc_srqc::CQN, self.cq.cqn),
            (xrc_srqc::XRCD, self.xrcd),
            (xrc_srqc::LOG_RQ_STRIDE, 1),
            (xrc_srqc::LOG_XRC_SRQ_SIZE, 4),
        ] {
            input = input.with(field.plus(at), value);
        }
        let input = input.list(&[guest.page()]);
        create_xrc_srq_out::XRC_SRQN.get(&self.driver.command(input).unwrap())
    }

    /// A context of a queue pair that is right in all it names, and how to say it with something else.
    fn context(&self, changes: &[(Field, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; QPC_SIZE];
        let right = [
            (qpc::ST, service_type::RC),
            (qpc::PM_STATE, 3),
            (qpc::PD, self.pd),
            (qpc::UAR_PAGE, self.uar),
            (qpc::CQN_SND, self.cq.cqn),
            (qpc::CQN_RCV, self.cq.cqn),
        ];
        right.iter().chain(changes).for_each(|(field, value)| field.set(&mut bytes, *value));
        bytes
    }

    fn create(&self, changes: &[(Field, u32)]) -> Result<u32, Error> {
        let input = Input::new(Opcode::CREATE_QP, create_in::SIZE).bytes(create_in::QPC, &self.context(changes));
        let answer = self.driver.command(input.list(&[self.driver.machine.guest.page()]))?;
        Ok(create_out::QPN.get(&answer))
    }

    fn first_step(&self, qpn: u32, changes: &[(Field, u32)]) -> Result<(), Error> {
        let input = Input::new(Opcode::RST2INIT_QP, modify_in::SIZE).with(modify_in::QPN, qpn);
        self.driver.command(input.bytes(modify_in::QPC, &self.context(changes))).map(|_| ())
    }

    fn destroy_qp(&self, qpn: u32) {
        self.driver.command(Input::new(Opcode::DESTROY_QP, 16).with(destroy_in::QPN, qpn)).unwrap();
    }

    /// What each destroying command says, by name.
    fn ends(&self) -> Vec<(&'static str, Option<u8>)> {
        let free = |opcode, number| refused(self.driver.free_number(opcode, number));
        vec![
            ("SRQ", free(Opcode::DESTROY_RMP, self.srq.srqn)),
            ("CQ", free(Opcode::DESTROY_CQ, self.cq.cqn)),
            ("EQ", free(Opcode::DESTROY_EQ, self.eq.eqn)),
            ("XRC domain", free(Opcode::DEALLOC_XRCD, self.xrcd)),
            ("PD", free(Opcode::DEALLOC_PD, self.pd)),
        ]
    }
}

#[test]
fn what_others_use_stays_and_what_nobody_uses_goes() {
    let scene = Scene::new(&machine());
    let qp = scene.queue_pair();
    let xrc = scene.xrc_srq();
    let target = [(qpc::ST, service_type::XRC), (qpc::RQ_TYPE, rq_type::SRQ), (qpc::NO_SQ, 1), (qpc::XRCD, scene.xrcd)];
    let target = scene.create(&target).unwrap();
    let busy = Some(status::BAD_RES_STATE);
    assert!(scene.ends().iter().all(|(_, said)| *said == busy), "{:?}", scene.ends());
    // The queue pair moves to another completion queue and domain: the old ones have a user less.
    let other = scene.driver.alloc_pd().unwrap();
    scene.first_step(target, &[(qpc::PD, other)]).unwrap();
    assert_eq!(refused(scene.driver.dealloc_pd(other)), busy);
    scene.destroy_qp(target);
    scene.driver.dealloc_pd(other).unwrap();
    scene.driver.free_number(Opcode::DESTROY_XRC_SRQ, xrc).unwrap();
    qp.destroy().unwrap();
    assert!(scene.ends().iter().all(|(_, said)| said.is_none()), "{:?}", scene.ends());
}

/// As libmlx5's user space does it on 6.1: the page is given back, and only then the program's last completion queue.
#[test]
fn a_uar_page_goes_while_its_queues_stay_without_a_doorbell() {
    let scene = Scene::new(&machine());
    let qp = scene.queue_pair();
    scene.driver.free_number(Opcode::DEALLOC_UAR, scene.uar).unwrap();
    assert_eq!(refused(scene.driver.free_number(Opcode::DEALLOC_UAR, scene.uar)), Some(status::BAD_RES));
    assert_eq!(refused(scene.create(&[])), Some(status::BAD_RES));
    // Its doorbell reaches nobody, and what was made on it still obeys commands.
    qp.ring();
    scene.first_step(qp.qpn, &[]).unwrap();
    assert_ne!(scene.driver.alloc_uar().unwrap(), scene.uar);
    qp.destroy().unwrap();
    assert!(scene.ends().iter().all(|(_, said)| said.is_none()), "{:?}", scene.ends());
}

/// What CREATE refuses to be named, a transition refuses too, and the other way round.
#[test]
fn every_command_looks_at_every_number_that_it_is_given() {
    let scene = Scene::new(&machine());
    let none = 0x99_9999;
    let xrc_srq = scene.xrc_srq();
    let shared = (qpc::RQ_TYPE, rq_type::SRQ);
    let target = [(qpc::ST, service_type::XRC), shared, (qpc::NO_SQ, 1)];
    let wrong: [(&str, &[(Field, u32)]); 9] = [
        ("no PD", &[(qpc::PD, 0)]),
        ("unknown PD", &[(qpc::PD, none)]),
        ("no send CQ", &[(qpc::CQN_SND, 0)]),
        ("unknown send CQ", &[(qpc::CQN_SND, none)]),
        ("unknown receive CQ", &[(qpc::CQN_RCV, none)]),
        ("no UAR page", &[(qpc::UAR_PAGE, 0)]),
        ("unknown SRQ", &[shared, (qpc::SRQN_RMPN_XRQN, none)]),
        ("an XRC SRQ", &[shared, (qpc::SRQN_RMPN_XRQN, xrc_srq)]),
        ("unknown XRC domain", &[target[0], target[1], target[2], (qpc::XRCD, none)]),
    ];
    for (what, changes) in wrong {
        assert_eq!(refused(scene.create(changes)), Some(status::BAD_RES), "CREATE_QP, {what}");
    }
    // RST2INIT takes these; a number of 0 for a domain or a completion queue leaves CREATE's.
    let qpn = scene.create(&[]).unwrap();
    for (what, changes) in [wrong[1], wrong[3], wrong[4]] {
        assert_eq!(refused(scene.first_step(qpn, changes)), Some(status::BAD_RES), "RST2INIT, {what}");
    }
    scene.first_step(qpn, &[(qpc::PD, 0), (qpc::CQN_SND, 0), (qpc::CQN_RCV, 0)]).unwrap();
    // A UMR queue pair has its domain from RST2INIT on (contract T6), and not without.
    let umr =
        scene.create(&[(qpc::ST, service_type::REG_UMR), (qpc::PD, 0), (qpc::RQ_TYPE, rq_type::ZERO_SIZE)]).unwrap();
    assert_eq!(refused(scene.first_step(umr, &[(qpc::PD, 0)])), Some(status::BAD_RES));
    scene.first_step(umr, &[]).unwrap();
}

/// What was set reads back, and what moves by itself is seen to move: queue pair, completion and event queue, shared receive queue, key.
#[test]
fn queries_show_what_was_set_and_what_has_moved() {
    let pair = Pair::new();
    let (driver, one) = (&pair.driver, &pair.one);
    let query = |opcode, number, size| {
        let input = Input::new(opcode, 16).with(mlx5_spec::small::object::NUMBER, number);
        driver.query(input, size).unwrap()
    };
    // A queue pair that is new, then step by step.
    let spec = QpSpec { retry_count: 5, rnr_retry: 4, min_rnr_nak: 3, ack_timeout: 12, ..pair.one.spec.clone() };
    let fresh = Qp::create(&driver.context, spec).unwrap();
    let seen = |fields: &[(Field, u32)]| {
        let context = fresh.query().unwrap();
        fields.iter().for_each(|(field, value)| assert_eq!(field.get(&context), *value, "{field:?}"));
    };
    seen(&[(qpc::STATE, state::RST), (qpc::ST, service_type::RC), (qpc::PD, pair.pd), (qpc::LOG_SQ_SIZE, 6)]);
    fresh.to_init().unwrap();
    seen(&[(qpc::STATE, state::INIT), (qpc::PD, pair.pd), (qpc::CQN_SND, pair.one_cq.cqn)]);
    fresh.to_rtr(fresh.peer()).unwrap();
    let path = |field: Field| field.plus(mlx5_spec::qp::PRIMARY_PATH);
    seen(&[(qpc::STATE, state::RTR), (qpc::REMOTE_QPN, fresh.qpn), (qpc::MIN_RNR_NAK, 3), (path(ads::RLID), 1)]);
    seen(&[(qpc::RRE, 1), (qpc::RWE, 1), (qpc::RAE, 1)]);
    fresh.to_rts().unwrap();
    seen(&[(qpc::STATE, state::RTS), (qpc::RETRY_COUNT, 5), (qpc::RNR_RETRY, 4), (path(ads::ACK_TIMEOUT), 12)]);
    // Each optional parameter of RTS2RTS, alone: the others stay.
    let options = [
        (opt_param_mask::RRE, qpc::RRE, 0),
        (opt_param_mask::RWE, qpc::RWE, 0),
        (opt_param_mask::RAE, qpc::RAE, 0),
        (opt_param_mask::RNR_TIMEOUT, qpc::MIN_RNR_NAK, 9),
        (opt_param_mask::PKEY_INDEX, path(ads::PKEY_INDEX), 7),
    ];
    for (at, (mask, field, value)) in options.iter().enumerate() {
        let mut context = vec![0; QPC_SIZE];
        field.set(&mut context, *value);
        fresh.modify(Opcode::RTS2RTS_QP, *mask, &context).unwrap();
        let set: Vec<(Field, u32)> = options[..=at].iter().map(|(_, field, value)| (*field, *value)).collect();
        seen(&set);
        seen(&[(qpc::STATE, state::RTS), (qpc::RETRY_COUNT, 5), (qpc::REMOTE_QPN, fresh.qpn)]);
    }
    fresh.to_error().unwrap();
    seen(&[(qpc::STATE, state::ERR)]);
    fresh.to_reset().unwrap();
    seen(&[(qpc::STATE, state::RST), (qpc::HW_SQ_WQEBB_COUNTER, 0)]);
    fresh.destroy().unwrap();

    // A message moves the counters of both halves and of both completion queues.
    let cq_state = |cqn| {
        let context =
            query(Opcode::QUERY_CQ, cqn, mlx5_spec::cq::query_out::SIZE)[mlx5_spec::cq::query_out::CQC..].to_vec();
        [cqc::ST, cqc::PRODUCER_COUNTER, cqc::CONSUMER_COUNTER].map(|field| field.get(&context))
    };
    let cqn = pair.other_cq.cqn;
    assert_eq!(cq_state(cqn), [cq_states::FIRED, 0, 0]);
    pair.other_cq.arm(true);
    assert_eq!(cq_state(cqn), [cq_states::SOLICITED_ARMED, 0, 0]);
    pair.other_cq.arm(false);
    assert_eq!(cq_state(cqn), [cq_states::ARMED, 0, 0]);
    let events = || query(Opcode::QUERY_EQ, driver.comp_eq.eqn, mlx5_spec::eq::query_out::SIZE);
    let produced = |answer: &[u8]| eqc::PRODUCER_COUNTER.plus(mlx5_spec::eq::query_out::EQC).get(answer);
    let before = produced(&events());
    pair.other.receive(&[pair.remote_mr.all()]);
    one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
    pair.one_cq.wait_ok().unwrap();
    driver.until("a completion", || pair.other_cq.has_entry()).unwrap();
    assert_eq!(cq_state(cqn), [cq_states::FIRED, 1, 0]);
    pair.other_cq.wait_ok().unwrap();
    assert_eq!(cq_state(cqn), [cq_states::FIRED, 1, 1]);
    assert_eq!(produced(&events()), before + 1);
    assert_eq!(
        (one.queried(qpc::HW_SQ_WQEBB_COUNTER).unwrap(), pair.other.queried(qpc::HW_RQ_COUNTER).unwrap()),
        (1, 1)
    );

    // A shared receive queue: its limit, what is posted and what is taken.
    let srq = Srq::create(&driver.context, pair.pd, 4).unwrap();
    let rmp = |srqn| {
        let answer = query(Opcode::QUERY_RMP, srqn, query_rmp_out::SIZE);
        [wq::LWM, wq::SW_COUNTER, wq::HW_COUNTER].map(|field| field.plus(query_rmp_out::RMPC + rmpc::WQ).get(&answer))
    };
    assert!((0..3).all(|_| srq.post(&[pair.remote_mr.all()]).is_some()));
    srq.set_limit(2).unwrap();
    assert_eq!(rmp(srq.srqn), [2, 3, 0]);
    let spec = QpSpec { srq: Some(srq.srqn), ..pair.other.spec.clone() };
    let (sender, receiver) = Qp::pair(driver, pair.one.spec.clone(), spec).unwrap();
    sender.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(rmp(srq.srqn), [2, 3, 1]);
    sender.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).signaled());
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(rmp(srq.srqn), [0, 3, 2], "the limit is reached: it fires once");
    drop((sender, receiver));

    // A key, after a work request has freed it, and after it is gone.
    let key = pair.remote_mr.key;
    let context = |key: u32| query(Opcode::QUERY_MKEY, key >> 8, query_mkey_out::SIZE)[query_mkey_out::MKC..].to_vec();
    assert!(!mkc::FREE.is_set(&context(key)));
    driver.umr(&UmrSpec::revoke(key)).unwrap();
    assert!(mkc::FREE.is_set(&context(key)) && mkc::PD.get(&context(key)) == pair.pd);
    driver.destroy_mkey(key).unwrap();
    let gone = Input::new(Opcode::QUERY_MKEY, 16).with(mlx5_spec::small::object::NUMBER, key >> 8);
    assert_eq!(refused(driver.query(gone, query_mkey_out::SIZE)), Some(status::BAD_RES));
}

#[test]
fn services_and_receive_queues_that_are_not_offered_are_refused() {
    let scene = Scene::new(&machine());
    let kind_of_rq = 2;
    for (field, value) in
        [(qpc::ST, service_type::DCT), (qpc::ST, service_type::RAW_ETH), (qpc::ST, 0xff), (qpc::RQ_TYPE, kind_of_rq)]
    {
        assert_eq!(refused(scene.create(&[(field, value)])), Some(status::BAD_PARAM), "{field:?} = {value}");
    }
}

/// Every table, churned: the device's own account is where it was, no table has grown, and no number came again.
#[test]
fn objects_that_come_and_go_leave_no_host_memory() {
    let machine = machine();
    let scene = Scene::new(&machine);
    let (driver, hca) = (&scene.driver, machine.nic.hca());
    let held = || {
        let tables =
            [hca.cqs.capacity(), hca.qps.capacity(), hca.srqs.capacity(), hca.mkeys.capacity(), hca.eqs.capacity()];
        let small = [hca.pds.capacity(), hca.uars.capacity(), hca.xrcds.capacity()];
        (hca.memory.used(), hca.queue_pages.used(), tables, small)
    };
    let numbers = [
        (Opcode::ALLOC_PD, Opcode::DEALLOC_PD),
        (Opcode::ALLOC_UAR, Opcode::DEALLOC_UAR),
        (Opcode::ALLOC_XRCD, Opcode::DEALLOC_XRCD),
    ];
    let page = [machine.guest.page()];
    let key = || {
        let spec = MkeySpec::mtt(driver.pd, Access::ALL, 0, 1 << 20, Vec::new());
        let input = Input::new(Opcode::CREATE_MKEY, mkey_in::SIZE);
        let context = MkeySpec { octwords: Some(128), ..spec }.context();
        let answer = driver.command(input.bytes(mkey_in::MKC, &context)).unwrap();
        mkey_out::MKEY_INDEX.get(&answer)
    };
    let round = || {
        let mut seen = Vec::new();
        for (alloc, free) in numbers {
            let number = driver.alloc_number(alloc).unwrap();
            driver.free_number(free, number).unwrap();
            seen.push(number);
        }
        let index = key();
        driver.command(Input::new(Opcode::DESTROY_MKEY, 16).with(mkey_destroy::MKEY_INDEX, index)).unwrap();
        let qpn = scene.create(&[]).unwrap();
        scene.destroy_qp(qpn);
        let srqn = scene.xrc_srq();
        driver.free_number(Opcode::DESTROY_XRC_SRQ, srqn).unwrap();
        let at = mlx5_spec::cq::create_in::CQC;
        let input = Input::new(Opcode::CREATE_CQ, mlx5_spec::cq::create_in::SIZE)
            .with(mlx5_spec::cq::cqc::UAR_PAGE.plus(at), scene.uar)
            .with(mlx5_spec::cq::cqc::C_EQN.plus(at), scene.eq.eqn);
        let cqn = mlx5_spec::cq::create_out::CQN.get(&driver.command(input.list(&page)).unwrap());
        driver.free_number(Opcode::DESTROY_CQ, cqn).unwrap();
        let at = mlx5_spec::eq::create_in::EQC;
        let input = Input::new(Opcode::CREATE_EQ, mlx5_spec::eq::create_in::SIZE)
            .with(mlx5_spec::eq::eqc::UAR_PAGE.plus(at), scene.uar);
        let eqn = mlx5_spec::eq::create_out::EQN.get(&driver.command(input.list(&page)).unwrap());
        driver.free_number(Opcode::DESTROY_EQ, eqn).unwrap();
        seen.extend([index, qpn, srqn, cqn]);
        seen
    };
    let mut last = round();
    let before = held();
    for _ in 0..300 {
        let now = round();
        assert!(now.iter().zip(&last).all(|(now, last)| now > last), "{last:?}, then {now:?}");
        last = now;
    }
    assert_eq!(held(), before);
    // While one lives it is counted, table and all.
    let index = key();
    assert!(hca.memory.used() >= before.0 + 2048);
    driver.command(Input::new(Opcode::DESTROY_MKEY, 16).with(mkey_destroy::MKEY_INDEX, index)).unwrap();
    assert_eq!(held(), before);
}
