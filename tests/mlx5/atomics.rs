// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Atomics as UCX's transport rc_mlx5 posts them: it builds WQEs itself, byte by byte. In finding 11 is what else it does.

use mlx5_spec::caps::{atomic_caps, atomic_operations, cap_mode, cap_type};
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use rnic_testdrive::driver::query_caps;
use rnic_testdrive::{Qp, Wqe};

use crate::scene::Pair;

/// Opcodes.
const CS: u8 = 0x11;
const FA: u8 = 0x12;
const MASKED_CS: u8 = 0x14;
const MASKED_FA: u8 = 0x15;
/// Opcode modifier of a masked atomic of 4 or 8 bytes: 8, and log2 of the bytes less 2.
const BYTES_4: u8 = 8;
const BYTES_8: u8 = 9;
/// What a slot of the queue holds from an earlier round. UCX writes no compare value for a fetch-and-add.
const STALE: [u8; 8] = [0xa5; 8];

/// Control, remote address, the operation's own bytes, and where the result goes.
fn wqe(pair: &Pair, index: u16, (opcode, modifier): (u8, u8), at: u64, operands: &[u8], result: u32) -> Vec<u8> {
    let segments = [
        &(pair.remote_mr.va + at).to_be_bytes()[..],
        &pair.remote_mr.key.to_be_bytes(),
        &[0; 4],
        operands,
        &result.to_be_bytes(),
        &pair.local_mr.key.to_be_bytes(),
        &pair.local_mr.va.to_be_bytes(),
    ]
    .concat();
    let [high, low] = index.to_be_bytes();
    let [_, number @ ..] = pair.one.qpn.to_be_bytes();
    let units = (segments.len() / 16 + 1) as u8;
    // fm_ce_se: a CQE, no fence.
    let control = [&[modifier, high, low, opcode], &number[..], &[units], &[0, 0, 0, 0x08], &[0; 4]].concat();
    [control, segments].concat()
}

/// Posts it in the place of NOPs of the same size.
fn post(qp: &Qp, bytes: impl Fn(u16) -> Vec<u8>) {
    let index = qp.posted();
    let bytes = bytes(index);
    qp.write(&Wqe::nop().segment(&vec![0; bytes.len() - 16]));
    assert_eq!(usize::from(qp.posted() - index), bytes.len().div_ceil(64));
    qp.scribble_sq(u64::from(index) * 64, &bytes);
    qp.ring();
}

#[test]
fn wqes_as_ucx_builds_them_for_what_is_offered() {
    let pair = Pair::new();
    let word = |at| u64::from_le_bytes(pair.remote.bytes(at, 8).try_into().unwrap());
    let run = |opcode, at, operands: [[u8; 8]; 2]| {
        post(&pair.one, |index| wqe(&pair, index, (opcode, 0), at, &operands.concat(), 8));
        pair.one_cq.wait_ok().unwrap();
        u64::from_le_bytes(pair.local.bytes(0, 8).try_into().unwrap())
    };
    // Its transport test: zeroes, then 2, which the other process finds in the first byte.
    for opcode in [FA, CS] {
        pair.remote.fill(0, 4096, 0);
        let second = |value: u64| if opcode == FA { STALE } else { value.to_be_bytes() };
        for _ in 0..3 {
            assert_eq!(run(opcode, 0, [0u64.to_be_bytes(), second(0)]), 0);
        }
        assert_eq!(run(opcode, 0, [2u64.to_be_bytes(), second(0)]), 0);
        assert_eq!((word(0), pair.remote.bytes(0, 1)), (2, vec![2]));
        // And wherever else an address says, in a whole page and nowhere beside it.
        for at in [8, 2040, 4088] {
            assert_eq!(run(opcode, at, [7u64.to_be_bytes(), second(0)]), 0);
            assert_eq!((word(at - 8), word(at)), (if at == 8 { 2 } else { 0 }, 7));
        }
    }
}

/// Masked atomics are for whom the capabilities name them: bits 2 and 3 of the operations.
#[test]
fn masked_atomics_are_neither_offered_nor_executed() {
    let ones = [0xff; 8];
    for (opcode, modifier, operands) in [
        (MASKED_FA, BYTES_4, [1u32, 0, 0, 0].map(u32::to_be_bytes).concat()),
        (MASKED_FA, BYTES_8, [1u64.to_be_bytes(), [0; 8]].concat()),
        (MASKED_CS, BYTES_4, [1u32, 0, u32::MAX, u32::MAX].map(u32::to_be_bytes).concat()),
        (MASKED_CS, BYTES_8, [1u64.to_be_bytes(), [0; 8], ones, ones].concat()),
    ] {
        let pair = Pair::new();
        let caps = query_caps(&pair.driver.commands, cap_type::ATOMIC, cap_mode::CUR).unwrap();
        let offered = atomic_operations::COMPARE_SWAP | atomic_operations::FETCH_ADD;
        assert_eq!(atomic_caps::ATOMIC_OPERATIONS.get(&caps), offered);
        let result = if modifier == BYTES_4 { 4 } else { 8 };
        post(&pair.one, |index| wqe(&pair, index, (opcode, modifier), 0, &operands, result));
        let outcome = pair.one_cq.wait().unwrap().outcome();
        assert_eq!(outcome, (cqe_opcode::REQ_ERR, syndrome::LOCAL_QP_OP_ERR), "{opcode:#x}");
        assert_eq!(pair.remote.bytes(0, 8), [0; 8]);
    }
}
