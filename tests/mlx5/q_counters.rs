// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Q counters: sets of them, and what each counts.

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::qp::{modify_in, opt_param_mask, qpc};
use mlx5_spec::small::{q_counter, query_q_counter_in as query_in, query_q_counter_out as out};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Access, Driver, PATIENCE, QpSpec, Wqe};

use crate::scene::{Pair, machine};
use crate::sequence::reconnect;
use probe::Patience;

fn alloc(driver: &Driver) -> Result<u32, u8> {
    let input = Input::new(Opcode::ALLOC_Q_COUNTER, q_counter::SIZE);
    let reply = driver.query(input, q_counter::SIZE).map_err(|error| error.status().unwrap())?;
    Ok(q_counter::COUNTER_SET_ID.get(&reply))
}

fn dealloc(driver: &Driver, id: u32) -> u8 {
    let input = Input::new(Opcode::DEALLOC_Q_COUNTER, q_counter::SIZE).with(q_counter::COUNTER_SET_ID, id);
    driver.command(input).err().map_or(status::OK, |error| error.status().unwrap())
}

fn query(driver: &Driver, id: u32, more: &[(Field, u32)]) -> Result<Vec<u8>, u8> {
    let input = Input::new(Opcode::QUERY_Q_COUNTER, query_in::SIZE).with(query_in::COUNTER_SET_ID, id);
    let input = more.iter().fold(input, |input, (field, value)| input.with(*field, *value));
    driver.query(input, out::SIZE).map_err(|error| error.status().unwrap())
}

/// What is not zero, by name. The last turn of an engine may end after its completion.
fn comes_to(driver: &Driver, id: u32, wanted: &[(&str, u32)]) {
    let mut patience = Patience::new(PATIENCE);
    loop {
        let reply = query(driver, id, &[]).unwrap();
        let spans = out::FIELDS.iter().zip(out::SPANS);
        let told: Vec<(&str, u32)> = spans
            .map(|(name, (from, _))| (*name, u32::from_be_bytes(reply[from / 8..from / 8 + 4].try_into().unwrap())))
            .filter(|(_, count)| *count != 0)
            .collect();
        if told == wanted {
            return;
        }
        assert!(!patience.is_over(), "{told:?}, not {wanted:?}");
        std::thread::yield_now();
    }
}

/// A pair whose ends count apart: the requester's set and the responder's.
fn counted(change: impl Fn(&mut QpSpec)) -> (Pair, [u32; 2]) {
    let pair = Pair::with(change);
    let sets = [(); 2].map(|()| alloc(&pair.driver).unwrap());
    for (qp, id) in [(&pair.one, sets[0]), (&pair.other, sets[1])] {
        assert_eq!(put(&pair, qp.qpn, id), status::OK);
    }
    (pair, sets)
}

/// RTS2RTS with the mask bit of the counter set.
fn put(pair: &Pair, qpn: u32, id: u32) -> u8 {
    let input = Input::new(Opcode::RTS2RTS_QP, modify_in::SIZE)
        .with(modify_in::QPN, qpn)
        .with(modify_in::OPT_PARAM_MASK, opt_param_mask::COUNTER_SET_ID)
        .with(qpc::COUNTER_SET_ID.plus(modify_in::QPC), id);
    pair.driver.command(input).err().map_or(status::OK, |error| error.status().unwrap())
}

#[test]
fn a_set_counts_what_happens_to_its_queue_pairs() {
    let (pair, [one, other]) = counted(|_| ());
    let (va, key) = (pair.remote_mr.va, pair.remote_mr.key);
    for _ in 0..3 {
        pair.one.run(Wqe::write(va, key).sge(pair.local_mr.sge(0, 10_000))).unwrap();
    }
    for _ in 0..2 {
        pair.one.run(Wqe::read(va, key).sge(pair.local_mr.sge(0, 100))).unwrap();
    }
    pair.one.run(Wqe::fetch_add(va, key, 1).sge(pair.local_mr.sge(0, 8))).unwrap();
    let wanted = [("RX_WRITE_REQUESTS", 3), ("RX_READ_REQUESTS", 2), ("RX_ATOMIC_REQUESTS", 1)];
    comes_to(&pair.driver, other, &wanted);
    comes_to(&pair.driver, one, &[]);
    // They begin anew for who says so.
    query(&pair.driver, other, &[(query_in::CLEAR, 1)]).unwrap();
    comes_to(&pair.driver, other, &[]);
    // It is in use.
    assert_eq!(dealloc(&pair.driver, other), status::BAD_RES_STATE);
    for qp in [&pair.one, &pair.other] {
        qp.to_reset().unwrap();
        qp.destroy().unwrap();
    }
    let ends = [one, other, other].map(|id| dealloc(&pair.driver, id));
    assert_eq!(ends, [status::OK, status::OK, status::BAD_RES]);
}

#[test]
fn a_queue_pair_changes_its_set() {
    let (pair, [one, other]) = counted(|_| ());
    let write = || Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8));
    pair.one.run(write()).unwrap();
    comes_to(&pair.driver, other, &[("RX_WRITE_REQUESTS", 1)]);
    assert_eq!(put(&pair, pair.other.qpn, one), status::OK);
    pair.one.run(write()).unwrap();
    comes_to(&pair.driver, one, &[("RX_WRITE_REQUESTS", 1)]);
    comes_to(&pair.driver, other, &[("RX_WRITE_REQUESTS", 1)]);
    assert_eq!(dealloc(&pair.driver, other), status::OK, "nobody uses it any more");
    assert_eq!(put(&pair, pair.other.qpn, other), status::BAD_RES);
    // None at all.
    assert_eq!(put(&pair, pair.other.qpn, 0), status::OK);
    pair.one.run(write()).unwrap();
    comes_to(&pair.driver, one, &[("RX_WRITE_REQUESTS", 1)]);
    pair.tear_down();
}

#[test]
fn errors_count_by_their_kind_on_both_sides() {
    // Access to a key that is none; and what was posted behind it is flushed on both sides.
    let (pair, [one, other]) = counted(|_| ());
    pair.other.receive(&[pair.remote_mr.all()]);
    let bad = Wqe::write(pair.remote_mr.va, pair.remote_mr.key ^ 1).sge(pair.local_mr.sge(0, 8));
    pair.one.post(&[bad.signaled(), Wqe::nop().signaled(), Wqe::nop().signaled()]);
    for _ in 0..3 {
        assert!(pair.one_cq.wait().unwrap().is_error());
    }
    assert!(pair.other_cq.wait().unwrap().is_error());
    let wanted = [("REQ_CQE_ERROR", 3), ("REQ_REMOTE_ACCESS_ERRORS", 1), ("REQ_CQE_FLUSH_ERROR", 2)];
    comes_to(&pair.driver, one, &wanted);
    let wanted = [("RESP_CQE_ERROR", 1), ("RESP_REMOTE_ACCESS_ERRORS", 1), ("RESP_CQE_FLUSH_ERROR", 1)];
    comes_to(&pair.driver, other, &wanted);
    // A message that is longer than its receive WQE.
    let (pair, [one, other]) = counted(|_| ());
    pair.other.receive(&[pair.remote_mr.sge(0, 8)]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 9)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error() && pair.other_cq.wait().unwrap().is_error());
    comes_to(&pair.driver, one, &[("REQ_CQE_ERROR", 1), ("REQ_REMOTE_INVALID_REQUEST", 1)]);
    let wanted = [("RESP_LOCAL_LENGTH_ERROR", 1), ("RESP_CQE_ERROR", 1), ("RESP_REMOTE_INVALID_REQUEST", 1)];
    comes_to(&pair.driver, other, &wanted);
    // A list that is not its own.
    let (pair, [one, other]) = counted(|_| ());
    let foreign = pair.driver.alloc_pd().unwrap();
    let mr = pair.driver.register(foreign, &pair.local, pair.local_mr.va, Access::ALL).unwrap();
    pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(mr.sge(0, 8)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
    comes_to(&pair.driver, one, &[("REQ_LOCAL_PROTECTION", 1), ("REQ_CQE_ERROR", 1)]);
    comes_to(&pair.driver, other, &[]);
}

#[test]
fn who_has_no_receive_wqe_is_out_of_buffers() {
    let (pair, [one, other]) = counted(|spec| spec.rnr_retry = 2);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 8)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
    // The first attempt and two more.
    comes_to(&pair.driver, other, &[("OUT_OF_BUFFER", 3)]);
    let wanted = [("RNR_NAK_RETRY_ERR", 3), ("REQ_RNR_RETRIES_EXCEEDED", 1), ("REQ_CQE_ERROR", 1)];
    comes_to(&pair.driver, one, &wanted);
}

#[test]
fn what_is_out_of_sequence_counts_on_both_sides() {
    const PSN: u32 = 0x100;
    let impatient = |spec: &mut QpSpec| (spec.ack_timeout, spec.retry_count) = (4, 1);
    let gives_up = |pair: &Pair| {
        pair.one.post_one(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
        assert!(pair.one_cq.wait().unwrap().is_error());
    };
    // It expects an earlier packet, and says so; a later one, and drops what comes: the first attempt and one more.
    for (expects, heard, answered) in [
        (PSN - 1, ("OUT_OF_SEQUENCE", 2), ("PACKET_SEQ_ERR", 2)),
        (PSN + 2, ("DUPLICATE_REQUEST", 2), ("LOCAL_ACK_TIMEOUT_ERR", 2)),
    ] {
        let (pair, [one, other]) = counted(impatient);
        reconnect(&pair.one, pair.other.peer(), PSN, PSN);
        reconnect(&pair.other, pair.one.peer(), PSN, expects);
        for (qp, id) in [(&pair.one, one), (&pair.other, other)] {
            assert_eq!(put(&pair, qp.qpn, id), status::OK);
        }
        gives_up(&pair);
        comes_to(&pair.driver, other, &[heard]);
        comes_to(&pair.driver, one, &[answered, ("REQ_CQE_ERROR", 1), ("REQ_TRANSPORT_RETRIES_EXCEEDED", 1)]);
    }
    // Nobody hears of it.
    let (pair, [one, other]) = counted(impatient);
    pair.driver.machine.nic.set_port(false);
    gives_up(&pair);
    let wanted = [("LOCAL_ACK_TIMEOUT_ERR", 2), ("REQ_CQE_ERROR", 1), ("REQ_TRANSPORT_RETRIES_EXCEEDED", 1)];
    comes_to(&pair.driver, one, &wanted);
    comes_to(&pair.driver, other, &[]);
}

#[test]
fn there_are_as_many_sets_as_offered() {
    let driver = Driver::probe(&machine()).unwrap();
    let most = driver.capability(mlx5_spec::caps::cmd_hca_cap::MAX_QP_CNT).unwrap();
    let ids: Vec<u32> = (0..most).map(|_| alloc(&driver).unwrap()).collect();
    assert!(ids.iter().all(|id| (1..=most).contains(id)));
    assert_eq!(alloc(&driver), Err(status::NO_RES));
    for more in [[(query_in::OTHER_VPORT, 1)], [(query_in::AGGREGATE, 1)]] {
        assert_eq!(query(&driver, ids[0], &more).err(), Some(status::BAD_PARAM));
    }
    assert!(ids.iter().all(|id| dealloc(&driver, *id) == status::OK));
    assert_eq!(query(&driver, ids[0], &[]).err(), Some(status::BAD_RES));
}
