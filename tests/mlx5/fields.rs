// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tables of `mlx5::command::fields`, walked: what becomes of every field of a context.

use std::path::Path;

use mlx5::command::fields::Fate::{Acted, Kept, Part, Refused, Reported};
use mlx5::command::fields::{ADS, CQC, DCTC, EQC, MKC, QPC, RMPC, Row, WQ, XRC_SRQC};
use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::cqc;
use mlx5_spec::eq::eqc;
use mlx5_spec::mkey::mkc;
use mlx5_spec::qp::{ads, dctc, qpc};
use mlx5_spec::srq::{rmpc, wq, xrc_srqc};
use mlx5_spec::{cmd, cq, eq, mkey, qp, srq};
use rnic_testdrive::{Driver, Qp, QpSpec, Srq};

use crate::scene::machine;

const TABLES: [(&str, &[&str], &[Row]); 9] = [
    ("QPC", qpc::FIELDS, QPC),
    ("ADS", ads::FIELDS, ADS),
    ("CQC", cqc::FIELDS, CQC),
    ("EQC", eqc::FIELDS, EQC),
    ("MKC", mkc::FIELDS, MKC),
    ("RMPC", rmpc::FIELDS, RMPC),
    ("WQ", wq::FIELDS, WQ),
    ("XRC_SRQC", xrc_srqc::FIELDS, XRC_SRQC),
    ("DCTC", dctc::FIELDS, DCTC),
];

#[test]
fn every_field_has_its_row() {
    for (name, fields, table) in TABLES {
        let rows: Vec<&str> = table.iter().map(|(field, _)| *field).collect();
        assert_eq!(rows, fields, "{name}");
    }
}

#[test]
fn what_is_acted_on_names_a_test_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (name, _, table) in TABLES {
        for (field, fate) in table {
            match fate {
                Acted(test) | Reported(test) => {
                    let (file, function) = test.split_once("::").unwrap();
                    let text = std::fs::read_to_string(root.join(file)).unwrap();
                    assert!(text.contains(&format!("\nfn {function}()")), "{name}.{field}: {test}");
                }
                Refused(_, least, why) => assert!(*least > 0 && !why.is_empty(), "{name}.{field}"),
                Kept(why) => assert!(!why.is_empty(), "{name}.{field}"),
                Part => {}
            }
        }
    }
}

/// A command that is fine, and where in it which tables hold.
pub type Carrier = (Opcode, Vec<u8>, Vec<(usize, &'static [Row])>);

/// All of them on one driver's objects.
pub fn carriers(driver: &Driver) -> Vec<Carrier> {
    let (uar, pd, eqn) = (driver.uar, driver.pd, driver.comp_eq.eqn);
    let xrcd = driver.alloc_number(Opcode::ALLOC_XRCD).unwrap();
    let queue = driver.create_cq(6).unwrap();
    let cqn = queue.cqn;
    let qpn = Qp::create(&driver.context, QpSpec::rc(driver, pd, &queue)).unwrap().qpn;
    let page = driver.machine.guest.page().to_be_bytes();
    let make = |opcode: Opcode, size: usize, fields: &[(Field, u32)], pages: &[u8]| {
        let mut bytes = vec![0; size];
        cmd::in_header::OPCODE.set(&mut bytes, u32::from(opcode.0));
        fields.iter().for_each(|(field, value)| field.set(&mut bytes, *value));
        bytes.extend(pages);
        bytes
    };
    let at = qp::create_in::QPC;
    let named = [(qpc::PD, pd), (qpc::UAR_PAGE, uar), (qpc::CQN_SND, cqn), (qpc::CQN_RCV, cqn)];
    let named = named.map(|(field, value)| (field.plus(at), value));
    let create_qp = make(Opcode::CREATE_QP, qp::create_in::SIZE, &named, &page);
    let mut step = make(Opcode::RST2INIT_QP, qp::modify_in::SIZE, &named, &[]);
    qp::modify_in::QPN.set(&mut step, qpn);
    let places = [(cqc::UAR_PAGE.plus(cq::create_in::CQC), uar), (cqc::C_EQN.plus(cq::create_in::CQC), eqn)];
    let create_cq = make(Opcode::CREATE_CQ, cq::create_in::SIZE, &places, &page);
    let place = [(eqc::UAR_PAGE.plus(eq::create_in::EQC), uar)];
    let create_eq = make(Opcode::CREATE_EQ, eq::create_in::SIZE, &place, &page);
    let create_mkey =
        make(Opcode::CREATE_MKEY, mkey::create_in::SIZE, &[(mkc::PD.plus(mkey::create_in::MKC), pd)], &[]);
    let rmp = srq::create_rmp_in::RMPC;
    let queue = [(wq::PD.plus(rmp + rmpc::WQ), pd), (wq::LOG_WQ_STRIDE.plus(rmp + rmpc::WQ), 6)];
    let create_rmp = make(Opcode::CREATE_RMP, srq::create_rmp_in::SIZE, &queue, &page);
    let at_srq = srq::create_xrc_srq_in::XRC_SRQC;
    let queue = [(xrc_srqc::PD, pd), (xrc_srqc::CQN, cqn), (xrc_srqc::XRCD, xrcd), (xrc_srqc::LOG_RQ_STRIDE, 2)];
    let queue = queue.map(|(field, value)| (field.plus(at_srq), value));
    let create_xrc = make(Opcode::CREATE_XRC_SRQ, srq::create_xrc_srq_in::SIZE, &queue, &page);
    let create_srq = make(Opcode::CREATE_SRQ, srq::create_xrc_srq_in::SIZE, &queue, &page);
    let at_dct = qp::create_dct_in::DCTC;
    let shared = Srq::create(&driver.context, pd, 4).unwrap();
    let target = [(dctc::PD, pd), (dctc::CQN, cqn), (dctc::SRQN_XRQN, shared.srqn), (dctc::MTU, 5)];
    let target = target.map(|(field, value)| (field.plus(at_dct), value));
    let create_dct = make(Opcode::CREATE_DCT, qp::create_dct_in::SIZE, &target, &[]);
    let path = at + qp::PRIMARY_PATH;
    vec![
        (Opcode::CREATE_DCT, create_dct, vec![(at_dct, DCTC)]),
        (Opcode::CREATE_QP, create_qp, vec![(at, QPC), (path, ADS)]),
        (Opcode::CREATE_CQ, create_cq, vec![(cq::create_in::CQC, CQC)]),
        (Opcode::CREATE_EQ, create_eq, vec![(eq::create_in::EQC, EQC)]),
        (Opcode::CREATE_MKEY, create_mkey, vec![(mkey::create_in::MKC, MKC)]),
        (Opcode::CREATE_RMP, create_rmp, vec![(rmp, RMPC), (rmp + rmpc::WQ, WQ)]),
        (Opcode::CREATE_XRC_SRQ, create_xrc, vec![(at_srq, XRC_SRQC)]),
        (Opcode::CREATE_SRQ, create_srq, vec![(at_srq, XRC_SRQC)]),
        (Opcode::RST2INIT_QP, step, vec![(at, QPC), (path, ADS)]),
    ]
}

#[test]
fn what_is_not_offered_is_refused_by_every_command_that_carries_it() {
    let driver = Driver::probe(&machine()).unwrap();
    let said = |input: &[u8]| match driver.commands.execute(input, 16) {
        Ok(_) => status::OK,
        Err(error) => error.status().unwrap(),
    };
    for (opcode, good, tables) in carriers(&driver) {
        for (at, table) in tables {
            for (name, fate) in table {
                let Refused(field, least, _) = fate else { continue };
                for value in [*least, field.max()] {
                    let mut bad = good.clone();
                    field.plus(at).set(&mut bad, value);
                    assert_eq!(said(&bad), status::BAD_PARAM, "{opcode}: {name} = {value}");
                }
            }
        }
        assert_eq!(said(&good), status::OK, "{opcode}");
    }
}

#[test]
fn umems_that_are_not_there_are_refused() {
    let driver = Driver::probe(&machine()).unwrap();
    let said = |input: &[u8]| match driver.commands.execute(input, 16) {
        Ok(_) => status::OK,
        Err(error) => error.status().unwrap(),
    };
    for (opcode, good, _) in carriers(&driver) {
        let (flag, refused) = match opcode {
            Opcode::CREATE_QP => (qp::create_in::WQ_UMEM_VALID, status::BAD_RES),
            Opcode::CREATE_CQ => (cq::create_in::CQ_UMEM_VALID, status::BAD_RES),
            // Only keys of pages do.
            Opcode::CREATE_MKEY => (mkey::create_in::MKEY_UMEM_VALID, status::BAD_PARAM),
            // Not offered for these.
            Opcode::CREATE_XRC_SRQ | Opcode::CREATE_SRQ => {
                (srq::create_xrc_srq_in::XRC_SRQ_UMEM_VALID, status::BAD_PARAM)
            }
            _ => continue,
        };
        let mut bad = good;
        flag.set(&mut bad, 1);
        assert_eq!(said(&bad), refused, "{opcode}");
    }
}

/// Where the fields of a table lie, and how they are asked for: CREATE and QUERY, where each has the context, layout, table.
type Echo = (Opcode, usize, Opcode, usize, &'static [(usize, usize)], &'static [&'static str], &'static [Row]);

const ECHOES: [Echo; 8] = [
    (
        Opcode::CREATE_DCT,
        qp::create_dct_in::DCTC,
        Opcode::QUERY_DCT,
        qp::query_dct_out::DCTC,
        dctc::SPANS,
        dctc::FIELDS,
        DCTC,
    ),
    (Opcode::CREATE_QP, qp::create_in::QPC, Opcode::QUERY_QP, qp::query_out::QPC, qpc::SPANS, qpc::FIELDS, QPC),
    (Opcode::CREATE_CQ, cq::create_in::CQC, Opcode::QUERY_CQ, cq::query_out::CQC, cqc::SPANS, cqc::FIELDS, CQC),
    (Opcode::CREATE_EQ, eq::create_in::EQC, Opcode::QUERY_EQ, eq::query_out::EQC, eqc::SPANS, eqc::FIELDS, EQC),
    (Opcode::CREATE_MKEY, mkey::create_in::MKC, Opcode::QUERY_MKEY, mkey::query_out::MKC, mkc::SPANS, mkc::FIELDS, MKC),
    (
        Opcode::CREATE_RMP,
        srq::create_rmp_in::RMPC + rmpc::WQ,
        Opcode::QUERY_RMP,
        srq::query_rmp_out::RMPC + rmpc::WQ,
        wq::SPANS,
        wq::FIELDS,
        WQ,
    ),
    (
        Opcode::CREATE_XRC_SRQ,
        srq::create_xrc_srq_in::XRC_SRQC,
        Opcode::QUERY_XRC_SRQ,
        srq::query_xrc_srq_out::XRC_SRQC,
        xrc_srqc::SPANS,
        xrc_srqc::FIELDS,
        XRC_SRQC,
    ),
    (
        Opcode::CREATE_SRQ,
        srq::create_xrc_srq_in::XRC_SRQC,
        Opcode::QUERY_SRQ,
        srq::query_xrc_srq_out::XRC_SRQC,
        xrc_srqc::SPANS,
        xrc_srqc::FIELDS,
        XRC_SRQC,
    ),
];

/// Each kept field alone, all ones: QUERY tells what was set, and nothing else has changed.
#[test]
fn what_is_kept_reads_back() {
    let driver = Driver::probe(&machine()).unwrap();
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    for (create, input_at, query, output_at, spans, fields, table) in ECHOES {
        let (_, good, _) = carriers(&driver).into_iter().find(|(opcode, ..)| *opcode == create).unwrap();
        let ask = |input: &[u8]| {
            let made = driver.commands.execute(input, 16).unwrap_or_else(|error| panic!("{create}: {error}"));
            let number = mlx5_spec::small::object::NUMBER.get(&made);
            let ask = rnic_testdrive::command::Input::new(query, 16).with(mlx5_spec::small::object::NUMBER, number);
            driver.query(ask, 0x130).unwrap()[output_at..].to_vec()
        };
        let plain = ask(&good);
        for ((name, fate), (from, to)) in table.iter().zip(spans) {
            assert!(fields.contains(name));
            if !matches!(fate, Kept(why) if !why.starts_with("the device's own")) {
                continue;
            }
            let mut input = good.clone();
            (*from..*to).for_each(|at| input[input_at + at / 8] |= 0x80 >> (at % 8));
            let told = ask(&input);
            for at in 0..told.len() * 8 {
                let expected = if (*from..*to).contains(&at) { 1 } else { bit(&plain, at) };
                assert_eq!(bit(&told, at), expected, "{create}: {name}, byte {:#x}", at / 8);
            }
        }
    }
}
