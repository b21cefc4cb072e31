// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits: the last that is allowed works, one more is refused with its status.

use std::sync::Arc;
use std::time::Duration;

use mlx5::command::fields::Fate::Refused;
use mlx5_spec::bits::Field;
use mlx5_spec::caps::{
    CAP_SIZE, UNION_SIZE, atomic_caps, cap_mode, cap_type, cmd_hca_cap as cap, odp_caps, odp_transport, query_in,
    set_in,
};
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{self, cqc, syndrome};
use mlx5_spec::eq::{self, eqc};
use mlx5_spec::mkey::access_mode;
use mlx5_spec::qp::service_type;
use mlx5_spec::srq::{self, rmpc, wq, xrc_srqc};
use rnic_testdrive::command::Input;
use rnic_testdrive::driver::{query_caps, set_caps};
use rnic_testdrive::{Access, Driver, MkeySpec, OdpMr, PATIENCE, Qp, QpSpec, Sge, Srq, Wqe};

use crate::fields::carriers;
use crate::scene::{Pair, machine};

const VA: u64 = 0x5555_0000_0000;

fn status_of(driver: &Driver, input: &[u8]) -> u8 {
    driver.commands.execute(input, 0x1010).err().map_or(status::OK, |error| error.status().unwrap())
}

fn probe() -> Arc<Driver> {
    Driver::probe(&machine()).unwrap()
}

/// Sizes of queues (contract 6: EXCEED_LIM beyond a capability), all on pages of 1 MiB, which is always the same one.
pub fn sizes(driver: &Driver) {
    let rmp = srq::create_rmp_in::RMPC + rmpc::WQ;
    let queues: [(Opcode, Field, Field, Field, u64); 3] = [
        (
            Opcode::CREATE_CQ,
            cap::LOG_MAX_CQ_SZ,
            cqc::LOG_CQ_SIZE.plus(cq::create_in::CQC),
            cqc::LOG_PAGE_SIZE.plus(cq::create_in::CQC),
            64,
        ),
        (
            Opcode::CREATE_EQ,
            cap::LOG_MAX_EQ_SZ,
            eqc::LOG_EQ_SIZE.plus(eq::create_in::EQC),
            eqc::LOG_PAGE_SIZE.plus(eq::create_in::EQC),
            64,
        ),
        (Opcode::CREATE_RMP, cap::LOG_MAX_SRQ_SZ, wq::LOG_WQ_SZ.plus(rmp), wq::LOG_WQ_PG_SZ.plus(rmp), 64),
    ];
    let guest = &driver.machine.guest;
    let page = guest.contiguous(2 << 20).gpa(0).next_multiple_of(1 << 20);
    for (opcode, most, size, page_size, entry) in queues {
        let (_, good, _) = carriers(driver).into_iter().find(|(known, ..)| *known == opcode).unwrap();
        let log_most = driver.capability(most).unwrap();
        for (log, expected) in
            [(log_most, status::OK), (log_most + 1, status::EXCEED_LIM), (size.max(), status::EXCEED_LIM)]
        {
            let mut input = good.clone();
            size.set(&mut input, log);
            page_size.set(&mut input, 8);
            input.truncate(input.len() - 8);
            let pages = (entry << log.min(24)) / (1u64 << 20);
            input.extend((0..pages.max(1)).flat_map(|_| page.to_be_bytes()));
            assert_eq!(status_of(driver, &input), expected, "{opcode}: 2^{log}");
        }
    }
}

/// A driver may take less than is offered (contract 4.1, row 8): then less is the limit.
#[test]
fn queue_pairs_are_as_many_as_the_driver_has_set() {
    let driver = probe();
    let (pd, queue) = (driver.pd, driver.create_cq(4).unwrap());
    let create = || Qp::create(&driver.context, QpSpec::rc(&driver, pd, &queue));
    let set = |log: u32| {
        let mut general = query_caps(&driver.commands, cap_type::GENERAL, cap_mode::CUR).unwrap();
        cap::LOG_MAX_QP.set(&mut general, log);
        set_caps(&driver.commands, cap_type::GENERAL, &general).map_err(|error| error.status().unwrap())
    };
    let most = driver.capability(cap::LOG_MAX_QP).unwrap();
    set(2).unwrap();
    let mut made: Vec<Qp> = (0..4).map(|_| create().unwrap()).collect();
    assert_eq!(create().err().unwrap().status(), Some(status::NO_RES));
    made.pop().unwrap().destroy().unwrap();
    made.push(create().unwrap());
    assert_eq!(create().err().unwrap().status(), Some(status::NO_RES));
    // Less than there are: none is taken away.
    set(0).unwrap();
    assert_eq!(create().err().unwrap().status(), Some(status::NO_RES));
    assert_eq!(set(most + 1), Err(status::BAD_PARAM));
    set(most).unwrap();
    made.push(create().unwrap());
    assert!(made.iter().all(|qp| qp.query().is_ok()));
    set(2).unwrap();
    let driver = Driver::probe(&driver.machine).unwrap();
    assert_eq!(driver.capability(cap::LOG_MAX_QP).unwrap(), most, "a driver that begins anew");
}

#[test]
fn capabilities_are_set_within_what_is_offered_and_of_this_function_only() {
    let driver = probe();
    let set = |kind: u32, field: Field, value: u32| {
        let mut bytes = match kind {
            cap_type::GENERAL => query_caps(&driver.commands, kind, cap_mode::CUR).unwrap(),
            _ => vec![0; UNION_SIZE],
        };
        field.set(&mut bytes, value);
        set_caps(&driver.commands, kind, &bytes[..CAP_SIZE]).err().map(|error| error.status().unwrap())
    };
    for field in [cap::PKEY_TABLE_SIZE, cap::CMDIF_CHECKSUM, cap::LOG_UAR_PAGE_SZ] {
        let most = field.get(&query_caps(&driver.commands, cap_type::GENERAL, cap_mode::MAX).unwrap());
        assert_eq!(set(cap_type::GENERAL, field, most), None, "{field:?}");
        assert_eq!(set(cap_type::GENERAL, field, most + 1), Some(status::BAD_PARAM), "{field:?}");
    }
    let mode = atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE;
    assert_eq!([0, 1].map(|value| set(cap_type::ATOMIC, mode, value)), [None, None]);
    assert_eq!([2, 3].map(|value| set(cap_type::ATOMIC, mode, value)), [Some(status::BAD_PARAM); 2]);
    assert_eq!(set(cap_type::HCA_CAP_2, Field::dword(0), 0), Some(status::BAD_PARAM));
    let other = |opcode, size, field| status_of(&driver, &Input::new(opcode, size).with(field, 1).finish());
    assert_eq!(other(Opcode::SET_HCA_CAP, set_in::SIZE, set_in::OTHER_FUNCTION), status::BAD_PARAM);
    assert_eq!(other(Opcode::QUERY_HCA_CAP, query_in::SIZE, query_in::OTHER_FUNCTION), status::BAD_PARAM);
}

/// One less than what `mlx5::command::fields` refuses is taken.
#[test]
fn values_below_those_that_are_refused_are_taken() {
    let driver = probe();
    let promised = [
        ("LOG_SRA_MAX", cap::LOG_MAX_RA_REQ_QP),
        ("LOG_RRA_MAX", cap::LOG_MAX_RA_RES_QP),
        ("LOG_MSG_MAX", cap::LOG_MAX_MSG),
        ("VHCA_PORT_NUM", cap::NUM_PORTS),
    ];
    let mut seen = 0;
    for (opcode, good, tables) in carriers(&driver).into_iter().filter(|(opcode, ..)| *opcode != Opcode::RST2INIT_QP) {
        for (at, (name, fate)) in tables.iter().flat_map(|(at, table)| table.iter().map(move |row| (*at, row))) {
            let Refused(field, least, _) = fate else { continue };
            if let Some((_, most)) = promised.iter().find(|(of, _)| of == name) {
                assert_eq!(least - 1, driver.capability(*most).unwrap(), "{name}");
            }
            let mut last = good.clone();
            field.plus(at).set(&mut last, least - 1);
            assert_eq!(status_of(&driver, &last), status::OK, "{opcode}: {name} = {}", least - 1);
            seen += u32::from(*least > 1);
        }
    }
    assert!(seen > 4, "{seen}");
}

#[test]
fn lists_and_strides_end_where_they_say() {
    let driver = probe();
    let most = 1 << driver.capability(cap::LOG_MAX_KLM_LIST_SIZE).unwrap();
    let key = |mode, octwords| {
        let spec = MkeySpec { mode, log_page: 30, ..MkeySpec::mtt(driver.pd, Access::ALL, 0, 1 << 30, Vec::new()) };
        let made = driver.create_mkey(&MkeySpec { octwords: Some(octwords), ..spec });
        made.err().map(|error| error.status().unwrap())
    };
    assert_eq!(key(access_mode::KLM, most), None);
    assert_eq!(key(access_mode::KLM, most + 1), Some(status::EXCEED_LIM));
    // What drivers page on demand with has more entries of a fixed size.
    assert_eq!(key(access_mode::KSM, 2 * most), None);
    let rmp = srq::create_rmp_in::RMPC + rmpc::WQ;
    let xrc = srq::create_xrc_srq_in::XRC_SRQC;
    for (opcode, field, first) in [
        (Opcode::CREATE_RMP, wq::LOG_WQ_STRIDE.plus(rmp), 0),
        (Opcode::CREATE_XRC_SRQ, xrc_srqc::LOG_RQ_STRIDE.plus(xrc), 4),
    ] {
        let (_, good, _) = carriers(&driver).into_iter().find(|(known, ..)| *known == opcode).unwrap();
        for value in 0..=field.max() {
            let mut input = good.clone();
            field.set(&mut input, value);
            let within = (5..=9).contains(&(value + first));
            let expected = if within { status::OK } else { status::BAD_PARAM };
            assert_eq!(status_of(&driver, &input), expected, "{opcode}: a stride of 2^{}", value + first);
        }
    }
}

/// Work of `pair` that meets an absent page of the region of `key`, and that says so by a completion of `pair.one`.
fn meet(pair: &Pair, access: u32, absent: Sge) {
    let (there, here) = (pair.local_mr.sge(0, 8), absent);
    let wqe = match access {
        odp_transport::SEND => Wqe::send().sge(here),
        odp_transport::RECEIVE | odp_transport::SRQ_RECEIVE => Wqe::send().sge(there),
        odp_transport::WRITE => Wqe::write(absent.va, absent.key).sge(there),
        odp_transport::READ => Wqe::read(absent.va, absent.key).sge(there),
        _ => Wqe::fetch_add(absent.va, absent.key, 1).sge(there),
    };
    match access {
        odp_transport::RECEIVE => drop(pair.other.receive(&[absent])),
        odp_transport::SEND => drop(pair.other.receive(&[pair.remote_mr.sge(0, 8)])),
        _ => {}
    }
    pair.one.post_one(wqe.signaled());
}

const PAGING: [u32; 6] = [
    odp_transport::SEND,
    odp_transport::RECEIVE,
    odp_transport::WRITE,
    odp_transport::READ,
    odp_transport::ATOMIC,
    odp_transport::SRQ_RECEIVE,
];

/// Each bit alone is switched off by SET_HCA_CAP: that access ends in error and raises no fault, all others do.
#[test]
fn pages_are_waited_for_where_the_driver_has_it_on() {
    let driver = probe();
    let absent = OdpMr::register(&driver, driver.pd, VA, 4096, Access::ALL).unwrap();
    for off in PAGING {
        let mut paging = query_caps(&driver.commands, cap_type::ODP, cap_mode::MAX).unwrap();
        odp_caps::RC_ODP_CAPS.set(&mut paging, !off);
        set_caps(&driver.commands, cap_type::ODP, &paging).unwrap();
        for access in PAGING {
            let srq = (access == odp_transport::SRQ_RECEIVE).then(|| {
                let srq = Srq::create(&driver.context, driver.pd, 3).unwrap();
                srq.post(&[absent.mr.sge(0, 8)]).unwrap();
                srq
            });
            let pair = Pair::on(driver.clone(), |spec| {
                (spec.pd, spec.srq) = (driver.pd, srq.as_ref().map(|srq| srq.srqn));
            });
            let own = driver.register(driver.pd, &pair.local, crate::scene::LOCAL_VA, Access::ALL).unwrap();
            let other = driver.register(driver.pd, &pair.remote, crate::scene::REMOTE_VA, Access::ALL).unwrap();
            let pair = Pair { local_mr: own, remote_mr: other, ..pair };
            meet(&pair, access, absent.mr.sge(0, 8));
            if access == off {
                assert!(pair.one_cq.wait().unwrap().is_error(), "{access:#x}");
                assert!(driver.next_fault(Duration::from_millis(1)).is_err(), "{access:#x}");
            } else {
                let fault = driver.next_fault(PATIENCE).unwrap();
                driver.resume(&fault, true).unwrap();
                assert!(pair.one_cq.wait().unwrap().is_error(), "{access:#x}");
            }
        }
    }
}

/// Services whose words are zero: an absent page is a protection error, whoever brings up the key.
#[test]
fn services_that_are_not_offered_paging_do_not_wait() {
    let driver = probe();
    for service in [service_type::UC, service_type::QP1] {
        let pair = Pair::on(driver.clone(), |spec| spec.service = service);
        let absent = OdpMr::register(&driver, pair.pd, VA, 4096, Access::ALL).unwrap();
        let send = if service == service_type::UC { Wqe::send() } else { Wqe::send().datagram(1, 1, 0x8001_0000) };
        pair.one.post_one(send.sge(absent.mr.sge(0, 8)).signaled());
        assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::LOCAL_PROT_ERR, "{service}");
        assert!(driver.next_fault(Duration::from_millis(1)).is_err(), "{service}");
    }
}
