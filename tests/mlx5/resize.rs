// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues that change their size while they are in use, as libmlx5 has it.

use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{cqc, query_in, query_out};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Cq, Wqe};

use crate::scene::Pair;

fn log_size(pair: &Pair, cq: &Cq) -> u32 {
    let input = Input::new(Opcode::QUERY_CQ, query_in::SIZE).with(query_in::CQN, cq.cqn);
    cqc::LOG_CQ_SIZE.plus(query_out::CQC).get(&pair.driver.query(input, query_out::SIZE).unwrap())
}

/// Posts so many and waits until all have completed, of which none is looked at.
fn complete(pair: &Pair, count: u16) -> Vec<u16> {
    let indices: Vec<u16> = (0..count).map(|_| pair.one.post_one(Wqe::nop().signaled())).collect();
    let cqs = &pair.driver.machine.nic.hca().cqs;
    let done = || cqs.get(pair.one_cq.cqn).unwrap().indices();
    let before = done().1;
    pair.driver.until("the completions", || done().0.wrapping_sub(before) >= u32::from(count)).unwrap();
    indices
}

#[test]
fn a_queue_goes_on_in_another_buffer() {
    let pair = Pair::new();
    let first = log_size(&pair, &pair.one_cq);
    // Larger, smaller, as large again; each time with entries that wait in the old one, some of them beyond the first round.
    for size in [first + 2, 3, 3, first, 4] {
        for _ in 0..5 {
            pair.one.run(Wqe::nop()).unwrap();
        }
        let mut wanted = complete(&pair, 4);
        pair.one_cq.resize(size).unwrap();
        assert_eq!(log_size(&pair, &pair.one_cq), size);
        wanted.extend((0..2).map(|_| pair.one.post_one(Wqe::nop().signaled())));
        for index in wanted {
            assert_eq!(pair.one_cq.wait_ok().unwrap().wqe_counter(), index, "resized to {size}");
        }
    }
    pair.tear_down();
}

#[test]
fn a_queue_is_no_smaller_than_what_is_in_it() {
    let pair = Pair::new();
    let first = log_size(&pair, &pair.one_cq);
    let indices = complete(&pair, 4);
    let refused = |size| pair.one_cq.resize(size).unwrap_err().status();
    // The entry that tells of it is the fifth.
    assert_eq!(refused(2), Some(status::BAD_SIZE_OUTS_CQES));
    assert_eq!(log_size(&pair, &pair.one_cq), first);
    for index in indices {
        assert_eq!(pair.one_cq.wait_ok().unwrap().wqe_counter(), index);
    }
    pair.one_cq.resize(1).unwrap();
    pair.one.run(Wqe::nop()).unwrap();
    pair.tear_down();
}
