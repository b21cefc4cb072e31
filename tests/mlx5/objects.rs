// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects as commands see them: when they may be made, who keeps them, what they cost the host.

use std::sync::Arc;

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{OPCODES, Opcode, status};
use mlx5_spec::mkey::{create_in as mkey_in, create_out as mkey_out, destroy_in as mkey_destroy};
use mlx5_spec::qp::{QPC_SIZE, create_in, create_out, destroy_in, modify_in, qpc, rq_type, service_type};
use mlx5_spec::srq::{create_xrc_srq_in, create_xrc_srq_out, xrc_srqc};
use rnic_testdrive::command::{Bar, Commands, Input};
use rnic_testdrive::cq::{Cq, CqSpec};
use rnic_testdrive::driver::Driver;
use rnic_testdrive::eq::{EqSpec, EventQueue};
use rnic_testdrive::{Access, Error, Machine, MkeySpec, Qp, QpSpec, Srq};

use crate::scene::machine;

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
    let run = |opcode| commands.execute(&Input::new(opcode, 16).finish(), 16).map(|_| ());
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
            ("UAR page", free(Opcode::DEALLOC_UAR, self.uar)),
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
    // RST2INIT takes these; a number of 0 for a completion queue leaves CREATE's.
    let qpn = scene.create(&[]).unwrap();
    for (what, changes) in [wrong[0], wrong[1], wrong[3], wrong[4]] {
        assert_eq!(refused(scene.first_step(qpn, changes)), Some(status::BAD_RES), "RST2INIT, {what}");
    }
    scene.first_step(qpn, &[(qpc::CQN_SND, 0), (qpc::CQN_RCV, 0)]).unwrap();
    // A UMR queue pair has its domain from RST2INIT on (contract T6), and not without.
    let umr =
        scene.create(&[(qpc::ST, service_type::REG_UMR), (qpc::PD, 0), (qpc::RQ_TYPE, rq_type::ZERO_SIZE)]).unwrap();
    assert_eq!(refused(scene.first_step(umr, &[(qpc::PD, 0)])), Some(status::BAD_RES));
    scene.first_step(umr, &[]).unwrap();
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
        let small = [hca.pds.capacity(), hca.uars.capacity(), hca.xrcds.capacity(), hca.tds.capacity()];
        (hca.memory.used(), hca.queue_pages.used(), tables, small)
    };
    let numbers = [
        (Opcode::ALLOC_PD, Opcode::DEALLOC_PD),
        (Opcode::ALLOC_UAR, Opcode::DEALLOC_UAR),
        (Opcode::ALLOC_XRCD, Opcode::DEALLOC_XRCD),
        (Opcode::ALLOC_TRANSPORT_DOMAIN, Opcode::DEALLOC_TRANSPORT_DOMAIN),
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
