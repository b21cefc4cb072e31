// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue pair through its states (contract 6.3, 6.4).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{opcode, syndrome};
use mlx5_spec::qp::{PRIMARY_PATH, QPC_SIZE, ads, opt_param_mask, qpc, service_type, state};
use rnic_testdrive::{Error, Qp, QpSpec, Wqe};

use crate::scene::Pair;

/// The status with which something was refused.
fn refusal<T>(outcome: Result<T, Error>) -> Option<u8> {
    outcome.err().and_then(|error| error.status())
}

fn context(fields: &[(Field, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; QPC_SIZE];
    fields.iter().for_each(|(field, value)| field.set(&mut bytes, *value));
    bytes
}

#[test]
fn a_queue_pair_goes_through_its_states_and_back() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let qp = Qp::create(&driver.context, QpSpec::rc(driver, pair.pd, &pair.one_cq)).unwrap();
    let modify = |opcode, mask, fields: &[(Field, u32)]| qp.modify(opcode, mask, &context(fields));
    let attrs = || driver.machine.nic.hca().qps.get(qp.qpn).unwrap().attrs();
    assert_eq!(refusal(modify(Opcode::INIT2RTR_QP, 0, &[(qpc::MTU, 3)])), Some(status::BAD_QP_STATE));
    let init = [(qpc::PD, pair.pd), (qpc::CQN_SND, pair.one_cq.cqn), (qpc::RWE, 1)];
    modify(Opcode::RST2INIT_QP, 0, &init).unwrap();
    let path = |field: Field| field.plus(PRIMARY_PATH);
    let rtr = [(qpc::MTU, 3), (qpc::REMOTE_QPN, 0x77), (path(ads::RLID), 1), (qpc::RRE, 1), (qpc::MIN_RNR_NAK, 12)];
    assert_eq!(refusal(modify(Opcode::INIT2RTR_QP, 0, &rtr[1..])), Some(status::BAD_PARAM), "no MTU");
    modify(Opcode::INIT2RTR_QP, opt_param_mask::RRE, &rtr).unwrap();
    let rts = [(path(ads::ACK_TIMEOUT), 14), (qpc::RETRY_COUNT, 7), (qpc::RNR_RETRY, 6)];
    modify(Opcode::RTR2RTS_QP, 0, &rts).unwrap();
    let now = attrs();
    assert_eq!((now.state, now.mtu, now.remote_qpn, now.remote_lid), (state::RTS, 1024, 0x77, 1));
    assert_eq!((now.remote_read, now.remote_write, now.remote_atomic), (true, true, false));
    assert_eq!((now.ack_timeout, now.retry_count, now.rnr_retry, now.min_rnr_nak), (14, 7, 6, 12));
    // CREATE's receive CQ holds though RST2INIT left it out.
    assert_eq!(now.recv_cq.as_ref().map(|cq| cq.cqn), Some(pair.one_cq.cqn));
    assert_eq!((qp.queried(qpc::STATE), qp.queried(qpc::REMOTE_QPN)), (Ok(state::RTS), Ok(0x77)));
    modify(Opcode::RTS2RTS_QP, opt_param_mask::RWE, &[]).unwrap();
    assert!(!attrs().remote_write);
    qp.to_error().unwrap();
    assert_eq!(qp.queried(qpc::STATE), Ok(state::ERR));
    qp.to_reset().unwrap();
    let reset = attrs();
    assert_eq!((reset.state, reset.incarnation != now.incarnation), (state::RST, true));
    qp.destroy().unwrap();
    assert_eq!(refusal(qp.query()), Some(status::BAD_RES));
}

#[test]
fn a_service_that_is_not_offered_is_refused() {
    let pair = Pair::new();
    for service in [service_type::DCT, 0xff] {
        let spec = QpSpec { service, ..QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq) };
        assert!(Qp::create(&pair.driver.context, spec).is_err(), "{service:#x}");
    }
}

/// A broken WQE fails whatever MODIFY_QP does between its being read and its being completed. The device forgot the failure, and executed
/// what had not been parsed.
#[test]
fn a_broken_wqe_fails_under_changes_that_leave_the_queue_pair_in_service() {
    let pair = Pair::new();
    let stop = AtomicBool::new(false);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut context = vec![0; QPC_SIZE];
            qpc::MIN_RNR_NAK.set(&mut context, 1);
            while !stop.load(Ordering::Relaxed) {
                // Refused while the queue pair is not in RTS.
                pair.one.modify(Opcode::RTS2RTS_QP, opt_param_mask::RNR_TIMEOUT, &context).ok();
            }
        });
        let round = |round: u64| {
            // So that the next change is at another place of its way each time.
            let spin = Instant::now();
            while spin.elapsed() < Duration::from_micros(round % 100) {}
            pair.one.post_one(Wqe::nop());
            pair.one.post_one(Wqe::new(0x3c).signaled());
            let outcome = pair.one_cq.wait().map(|cqe| cqe.outcome());
            pair.one.to_reset().and_then(|()| pair.one.connect(pair.other.peer())).map(|()| outcome)
        };
        let outcomes = (0..6000).map(round).take_while(|outcome| matches!(outcome, Ok(Ok(_)))).collect();
        stop.store(true, Ordering::Relaxed);
        outcomes
    });
    assert_eq!(outcomes.len(), 6000, "a completion is missing");
    let wrong = outcomes.into_iter().flatten().flatten().find(|it| *it != (opcode::REQ_ERR, syndrome::LOCAL_QP_OP_ERR));
    assert_eq!(wrong, None);
}
