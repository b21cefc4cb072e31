// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User contexts: what their commands make is theirs, and they reach nothing else. Umems: what lies in them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlx5::command::table::COMMANDS;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{cqc, create_in as cq_in, syndrome};
use mlx5_spec::devx::{SHARED_UID, create_umem_in};
use mlx5_spec::mkey::{access_mode, create_in as mkey_in, create_out as mkey_out};
use mlx5_spec::qp::{QPC_SIZE, create_in as qp_in, create_out as qp_out, modify_in, qpc};
use mlx5_spec::small::{object, q_counter};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Access, Driver, Error, MkeySpec, Mr, Qp, QpSpec, Srq, Wqe};

use crate::scene::{LEN, LOCAL_VA, Pair, REMOTE_VA, machine};

fn refused<T>(result: Result<T, Error>) -> Option<u8> {
    result.err().and_then(|error| error.status())
}

/// A key of all pages of a umem, from byte `at` on.
fn register_umem(driver: &Driver, pd: u32, umem: u32, at: u64, (va, len): (u64, u64)) -> Result<Mr, Error> {
    let spec = MkeySpec::mtt(pd, Access::ALL, va, len, vec![0; len.div_ceil(4096) as usize]);
    let input = Input::new(Opcode::CREATE_MKEY, mkey_in::SIZE)
        .with(mkey_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, (spec.list.len() as u32).div_ceil(2))
        .with(mkey_in::MKEY_UMEM_VALID, 1)
        .with(mkey_in::MKEY_UMEM_ID, umem)
        .with64(mkey_in::MKEY_UMEM_OFFSET, at)
        .bytes(mkey_in::MKC, &spec.context());
    let index = mkey_out::MKEY_INDEX.get(&driver.command(input)?);
    Ok(Mr { key: index << 8 | u32::from(spec.variant), va, len })
}

#[test]
fn queues_and_records_of_a_user_context_lie_in_its_umems() {
    let driver = Driver::probe(&machine()).unwrap();
    let before = driver.machine.nic.objects();
    let uid = driver.create_uctx().unwrap();
    driver.commands.act_for(uid);
    driver.in_umems.store(true, Ordering::Relaxed);
    let pair = Pair::on(driver.clone(), |_| ());
    let umems = [
        driver.create_umem(&pair.local.pages, 0, true).unwrap(),
        driver.create_umem(&pair.remote.pages, 0, true).unwrap(),
    ];
    let local = register_umem(&driver, pair.pd, umems[0], 0, (LOCAL_VA, LEN)).unwrap();
    let remote = register_umem(&driver, pair.pd, umems[1], 4096, (REMOTE_VA, LEN - 4096)).unwrap();
    pair.local.fill_pattern(7);
    pair.other.receive(&[remote.sge(0, 300)]);
    pair.one.post_one(Wqe::send().sge(local.sge(100, 300)).signaled());
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 300);
    pair.assert_copied((&pair.local, 100), (&pair.remote, 4096), 300);
    pair.one.post_one(Wqe::write(remote.va + 8000, remote.key).sge(local.sge(0, 20_000)).signaled());
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 4096 + 8000), 20_000);
    // What something lies in stays, and so does who has something.
    assert_eq!(refused(driver.destroy_umem(umems[0])), Some(status::BAD_RES_STATE));
    let queues: Vec<u32> = driver.machine.nic.hca().umems.all().iter().map(|(id, _)| *id).collect();
    assert_eq!(queues.len(), 4 * 2 + 2);
    assert!(queues.iter().all(|umem| refused(driver.destroy_umem(*umem)) == Some(status::BAD_RES_STATE)));
    driver.commands.act_for(0);
    assert_eq!(refused(driver.destroy_uctx(uid)), Some(status::BAD_RES_STATE));
    driver.commands.act_for(uid);
    for key in [local.key, remote.key, pair.local_mr.key, pair.remote_mr.key] {
        driver.destroy_mkey(key).unwrap();
    }
    for qp in [&pair.one, &pair.other] {
        qp.to_reset().unwrap();
        qp.destroy().unwrap();
    }
    pair.one_cq.destroy().unwrap();
    pair.other_cq.destroy().unwrap();
    driver.dealloc_pd(pair.pd).unwrap();
    queues.iter().for_each(|umem| driver.destroy_umem(*umem).unwrap());
    driver.commands.act_for(0);
    driver.destroy_uctx(uid).unwrap();
    assert_eq!(driver.machine.nic.objects(), before);
}

/// Commands on an object by its number, which lies at the same place in all of them; what destroys comes last, users before what they use.
type Said = (Opcode, u32);

/// One of each object that a user context may have.
fn one_of_each(driver: &Arc<Driver>) -> Vec<Said> {
    let numbered = |opcode| driver.alloc_number(opcode).unwrap();
    let (pd, cq) = (driver.alloc_pd().unwrap(), driver.create_cq(4).unwrap());
    let qp = Qp::create(&driver.context, QpSpec::rc(driver, pd, &cq)).unwrap();
    let srq = Srq::create(&driver.context, pd, 4).unwrap();
    let key = driver.create_mkey(&MkeySpec::physical(pd, Access::ALL)).unwrap() >> 8;
    let umem = driver.create_umem(&[driver.machine.guest.page()], 0, true).unwrap();
    vec![
        (Opcode::TO_ERR_QP, qp.qpn),
        (Opcode::TO_RST_QP, qp.qpn),
        (Opcode::QUERY_QP, qp.qpn),
        (Opcode::QUERY_CQ, cq.cqn),
        (Opcode::QUERY_RMP, srq.srqn),
        (Opcode::QUERY_MKEY, key),
        (Opcode::DESTROY_QP, qp.qpn),
        (Opcode::DESTROY_CQ, cq.cqn),
        (Opcode::DESTROY_RMP, srq.srqn),
        (Opcode::DESTROY_MKEY, key),
        (Opcode::DESTROY_UMEM, umem),
        (Opcode::DEALLOC_PD, pd),
        (Opcode::DEALLOC_UAR, numbered(Opcode::ALLOC_UAR)),
        (Opcode::DEALLOC_XRCD, numbered(Opcode::ALLOC_XRCD)),
    ]
}

fn say(driver: &Driver, (opcode, number): Said) -> Option<u8> {
    refused(driver.query(Input::new(opcode, 16).with(object::NUMBER, number), 0x210))
}

#[test]
fn what_belongs_to_one_context_is_not_anothers() {
    let driver = Driver::probe(&machine()).unwrap();
    let before = driver.machine.nic.objects();
    let uids = [0, driver.create_uctx().unwrap(), driver.create_uctx().unwrap()];
    let objects = uids.map(|uid| {
        driver.commands.act_for(uid);
        one_of_each(&driver)
    });
    for uid in &uids[1..] {
        driver.commands.act_for(*uid);
        for (owner, theirs) in uids.iter().zip(&objects).filter(|(owner, _)| *owner != uid) {
            for said in theirs {
                assert_eq!(say(&driver, *said), Some(status::BAD_RES), "{uid} on {owner}'s {said:x?}");
            }
        }
    }
    // Nor may what it makes name another's. The driver reaches everything.
    let named = |pd: u32, cqn: u32| {
        let mut context = vec![0; QPC_SIZE];
        qpc::PD.set(&mut context, pd);
        qpc::CQN_SND.set(&mut context, cqn);
        qpc::CQN_RCV.set(&mut context, cqn);
        qpc::UAR_PAGE.set(&mut context, driver.uar);
        let input = Input::new(Opcode::CREATE_QP, qp_in::SIZE).bytes(qp_in::QPC, &context);
        driver.command(input.list(&[driver.machine.guest.page()])).map(|told| qp_out::QPN.get(&told))
    };
    let number = |of: usize, wanted: Opcode| objects[of].iter().find(|(opcode, _)| *opcode == wanted).unwrap().1;
    let (pd, cq) = (|of| number(of, Opcode::DEALLOC_PD), |of| number(of, Opcode::DESTROY_CQ));
    driver.commands.act_for(uids[1]);
    assert_eq!(refused(named(pd(2), cq(1))), Some(status::BAD_RES));
    assert_eq!(refused(named(pd(0), cq(1))), Some(status::BAD_RES));
    assert_eq!(refused(named(pd(1), cq(2))), Some(status::BAD_RES));
    let made = [named(pd(1), cq(1)).unwrap(), named(pd(1), cq(0)).unwrap()];
    driver.commands.act_for(0);
    let mixed = named(pd(1), cq(2)).unwrap();
    for qpn in made.into_iter().chain([mixed]) {
        assert_eq!(say(&driver, (Opcode::DESTROY_QP, qpn)), None);
    }
    for said in objects.iter().flatten() {
        assert_eq!(say(&driver, *said), None, "{said:x?}");
    }
    uids[1..].iter().for_each(|uid| driver.destroy_uctx(*uid).unwrap());
    assert_eq!(driver.machine.nic.objects(), before);
}

#[test]
fn a_user_context_has_no_say_in_what_is_everybodys() {
    let driver = Driver::probe(&machine()).unwrap();
    let uid = driver.create_uctx().unwrap();
    let everybodys = [
        Opcode::ENABLE_HCA,
        Opcode::DISABLE_HCA,
        Opcode::INIT_HCA,
        Opcode::TEARDOWN_HCA,
        Opcode::SET_ISSI,
        Opcode::QUERY_PAGES,
        Opcode::MANAGE_PAGES,
        Opcode::SET_HCA_CAP,
        Opcode::ACCESS_REG,
        Opcode::MODIFY_HCA_VPORT_CONTEXT,
        Opcode::CREATE_EQ,
        Opcode::DESTROY_EQ,
        Opcode::PAGE_FAULT_RESUME,
        Opcode::ALLOC_MEMIC,
        Opcode::DEALLOC_MEMIC,
        Opcode::CREATE_UCTX,
        Opcode::DESTROY_UCTX,
    ];
    let say = |opcode| refused(driver.query(Input::new(opcode, 0x1010), 0x1010));
    driver.commands.act_for(uid);
    for opcode in everybodys {
        assert_eq!(say(opcode), Some(status::BAD_PARAM), "{opcode}");
    }
    // What only tells something, it may ask.
    for opcode in
        [Opcode::QUERY_HCA_CAP, Opcode::QUERY_HCA_VPORT_CONTEXT, Opcode::QUERY_ISSI, Opcode::QUERY_ADAPTER, Opcode::NOP]
    {
        assert_eq!(say(opcode), None, "{opcode}");
    }
    driver.commands.act_for(uid + 1);
    for command in COMMANDS {
        assert_eq!(say(command.opcode), Some(status::BAD_RES), "{}", command.opcode);
    }
    driver.commands.act_for(0);
    driver.destroy_uctx(uid).unwrap();
    assert_eq!(refused(driver.destroy_uctx(uid)), Some(status::BAD_RES));
    driver.remove().unwrap();
}

/// Drivers have counters that all contexts may name.
#[test]
fn what_is_shared_is_named_by_all_and_destroyed_by_the_driver() {
    let driver = Driver::probe(&machine()).unwrap();
    let uid = driver.create_uctx().unwrap();
    driver.commands.act_for(SHARED_UID);
    let id = q_counter::COUNTER_SET_ID.get(&driver.command(Input::new(Opcode::ALLOC_Q_COUNTER, 16)).unwrap());
    driver.commands.act_for(uid);
    let (pd, cq) = (driver.alloc_pd().unwrap(), driver.create_cq(4).unwrap());
    let qp = Qp::create(&driver.context, QpSpec::rc(&driver, pd, &cq)).unwrap();
    let mut context = vec![0; QPC_SIZE];
    qpc::PD.set(&mut context, pd);
    qpc::COUNTER_SET_ID.set(&mut context, id);
    let input = Input::new(Opcode::RST2INIT_QP, modify_in::SIZE).with(modify_in::QPN, qp.qpn);
    driver.command(input.bytes(modify_in::QPC, &context)).unwrap();
    let dealloc =
        || refused(driver.command(Input::new(Opcode::DEALLOC_Q_COUNTER, 16).with(q_counter::COUNTER_SET_ID, id)));
    assert_eq!(dealloc(), Some(status::BAD_RES));
    qp.destroy().unwrap();
    driver.commands.act_for(0);
    assert_eq!(dealloc(), None);
}

#[test]
fn umems_that_make_no_sense_are_refused() {
    let driver = Driver::probe(&machine()).unwrap();
    let page = driver.machine.guest.page();
    let create = |offset: u32, log_page: u32, pages: u64, list: &[u64]| {
        let input = Input::new(Opcode::CREATE_UMEM, create_umem_in::SIZE)
            .with(create_umem_in::PAGE_OFFSET, offset)
            .with(create_umem_in::LOG_PAGE_SIZE, log_page)
            .with64(create_umem_in::NUM_OF_MTT, pages);
        refused(driver.command(input.list(list)))
    };
    for (offset, log_page, pages) in [(4096, 0, 1), (u32::MAX, 0, 2), (0, 31, u64::MAX), (0, 0, 0), (0, 31, 1 << 20)] {
        assert_eq!(
            create(offset, log_page, pages, &[page | 3, page | 3]),
            Some(status::BAD_PARAM),
            "{offset} {log_page} {pages}"
        );
    }
    assert_eq!(create(0, 0, 2, &[page | 3]), Some(status::BAD_INPUT_LEN));
    assert_eq!(create(0, 0, 1 << 28, &[page | 3]), Some(status::BAD_INPUT_LEN));
    assert_eq!(create(0, 0, 1, &[1 << 60 | 3]), Some(status::BAD_PARAM));
    let ats = Input::new(Opcode::CREATE_UMEM, create_umem_in::SIZE).with(create_umem_in::ATS, 1);
    assert_eq!(
        refused(driver.command(ats.with64(create_umem_in::NUM_OF_MTT, 1).list(&[page | 3]))),
        Some(status::BAD_PARAM)
    );
    assert_eq!(create(4095, 0, 1, &[page | 3]), None);
}

/// The queue of a completion queue at a byte of a umem, with its record at a byte of the same.
fn create_cq(driver: &Driver, umem: u32, at: u64, log_size: u32, record: u64) -> Result<(), Error> {
    let input = Input::new(Opcode::CREATE_CQ, cq_in::SIZE)
        .with(cq_in::CQ_UMEM_VALID, 1)
        .with(cq_in::CQ_UMEM_ID, umem)
        .with64(cq_in::CQ_UMEM_OFFSET, at)
        .with(cqc::LOG_CQ_SIZE.plus(cq_in::CQC), log_size)
        .with(cqc::UAR_PAGE.plus(cq_in::CQC), driver.uar)
        .with(cqc::C_EQN.plus(cq_in::CQC), driver.comp_eq.eqn)
        .with(cqc::DBR_UMEM_VALID.plus(cq_in::CQC), 1)
        .with(cqc::DBR_UMEM_ID.plus(cq_in::CQC), umem)
        .bytes(cq_in::CQC + cqc::DBR_ADDR.0, &record.to_be_bytes());
    driver.command(input).map(|_| ())
}

#[test]
fn a_queue_that_does_not_fit_into_its_umem_is_refused() {
    let driver = Driver::probe(&machine()).unwrap();
    let pages = driver.machine.guest.scattered(3 * 4096).pages;
    let umem = driver.create_umem(&pages, 64, true).unwrap();
    let last = 3 * 4096 - 64 - 8;
    create_cq(&driver, umem, 0, 7, last).unwrap();
    create_cq(&driver, umem, last + 8 - 64, 0, 0).unwrap();
    for (at, log_size, record) in [
        (0, 8, 0),
        (4096, 7, 0),
        (32, 0, 0),
        (u64::MAX, 0, 0),
        (0, 7, last + 1),
        (0, 7, last + 8),
        (0, 7, 4),
        (0, 7, u64::MAX),
    ] {
        assert_eq!(
            refused(create_cq(&driver, umem, at, log_size, record)),
            Some(status::BAD_PARAM),
            "{at:#x} {log_size} {record:#x}"
        );
    }
    let read_only = driver.create_umem(&pages, 0, false).unwrap();
    assert_eq!(refused(create_cq(&driver, read_only, 0, 7, 8192)), Some(status::BAD_PARAM));
    assert_eq!(refused(create_cq(&driver, 0x77_7777, 0, 7, 0)), Some(status::BAD_RES));
}

#[test]
fn a_key_has_the_rights_and_the_bounds_of_its_umem() {
    let pair = Pair::new();
    let driver = &pair.driver;
    pair.local.fill_pattern(3);
    let read_only = driver.create_umem(&pair.remote.pages, 0, false).unwrap();
    let key = register_umem(driver, pair.pd, read_only, 0, (REMOTE_VA, LEN)).unwrap();
    pair.one.run(Wqe::read(REMOTE_VA, key.key).sge(pair.local_mr.sge(0, 100))).unwrap();
    pair.one.post_one(Wqe::write(REMOTE_VA, key.key).sge(pair.local_mr.sge(0, 100)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
    let pages = pair.remote.pages.len() as u64;
    for (at, len) in [(0, (pages + 2) * 4096), (pages * 4096 + 1, 4096), (100, 4096), (u64::MAX, 4096)] {
        assert_eq!(
            refused(register_umem(driver, pair.pd, read_only, at, (0, len)).map(|_| ())),
            Some(status::BAD_PARAM),
            "{at:#x}"
        );
    }
    let list = MkeySpec { mode: access_mode::KLM, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, 4096, vec![0; 2]) };
    let input = Input::new(Opcode::CREATE_MKEY, mkey_in::SIZE)
        .with(mkey_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, 1)
        .with(mkey_in::MKEY_UMEM_VALID, 1)
        .with(mkey_in::MKEY_UMEM_ID, read_only)
        .bytes(mkey_in::MKC, &list.context());
    assert_eq!(refused(driver.command(input)), Some(status::BAD_PARAM));
}
