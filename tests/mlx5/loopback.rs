// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reliable connections inside the device: each opcode with its data checked.

use mlx5_spec::cq::opcode as cqe_opcode;
use mlx5_spec::wqe::opcode;
use rnic_testdrive::{Access, Qp, QpSpec, Sge, Wqe};

use crate::scene::{LEN, LOCAL_VA, Pair, REMOTE_VA};

#[test]
fn write_moves_every_size_from_any_place() {
    let pair = Pair::new();
    pair.local.fill_pattern(7);
    for (len, from, to) in
        [(1, 0, 0), (8, 4090, 3), (4096, 0, 4096), (4097, 1, 4095), (20_000, 4000, 100), (LEN as u32 - 4096, 17, 4000)]
    {
        pair.remote.fill(0, LEN, 0xee);
        let (va, key) = (pair.remote_mr.va + to, pair.remote_mr.key);
        pair.one.run(Wqe::write(va, key).sge(pair.local_mr.sge(from, len))).unwrap();
        let mut expected = vec![0xee; LEN as usize];
        expected[to as usize..to as usize + len as usize].copy_from_slice(&pair.local.bytes(from, len.into()));
        assert!(pair.remote.bytes(0, LEN) == expected, "{len} bytes from {from} to {to}");
    }
    pair.tear_down();
}

#[test]
fn write_gathers_and_read_scatters() {
    let pair = Pair::new();
    pair.local.fill_pattern(8);
    let list = [(100, 50), (9000, 1), (4090, 10), (20_000, 5000)];
    let mut wqe = Wqe::write(pair.remote_mr.va + 33, pair.remote_mr.key);
    let mut expected = Vec::new();
    for (at, len) in list {
        wqe = wqe.sge(pair.local_mr.sge(at, len));
        expected.extend(pair.local.bytes(at, len.into()));
    }
    pair.one.run(wqe).unwrap();
    assert!(pair.remote.bytes(33, 5061) == expected);

    pair.local.fill(0, LEN, 0);
    let mut wqe = Wqe::read(pair.remote_mr.va + 33, pair.remote_mr.key);
    for (at, len) in list {
        wqe = wqe.sge(pair.local_mr.sge(at, len));
    }
    pair.one.post_one(wqe.signaled());
    let cqe = pair.one_cq.wait_ok().unwrap();
    assert_eq!(cqe.byte_count(), 5061);
    let got: Vec<u8> = list.iter().flat_map(|(at, len)| pair.local.bytes(*at, (*len).into())).collect();
    assert!(got == expected);
    pair.tear_down();
}

#[test]
fn long_messages_come_back_whole() {
    const MIB: u64 = 1 << 20;
    let pair = Pair::new();
    let guest = &pair.driver.machine.guest;
    let region = |va| {
        let buffer = guest.scattered(MIB);
        let mr = pair.driver.register(pair.pd, &buffer, va, Access::ALL).unwrap();
        (buffer, mr)
    };
    let ((from, from_mr), (_, middle_mr), (back, back_mr)) = (region(LOCAL_VA), region(REMOTE_VA), region(LOCAL_VA));
    for (seed, (at, len)) in (1..).zip([(0, 4095), (7, 65_536), (4095, 65_537), (13, 300_000), (0, 1 << 20)]) {
        from.fill_pattern(seed);
        back.fill(0, MIB, 0);
        let half = len / 2;
        let write = Wqe::write(middle_mr.va + at, middle_mr.key).sge(from_mr.sge(0, len));
        let read = Wqe::read(middle_mr.va + at, middle_mr.key);
        let read = read.sge(back_mr.sge(0, half)).sge(back_mr.sge(half.into(), len - half));
        pair.one.post(&[write, read.signaled()]);
        assert_eq!(pair.one_cq.wait_ok().unwrap().byte_count(), len);
        pair.assert_copied((&from, 0), (&back, 0), len.into());
    }
}

#[test]
fn send_consumes_a_receive_and_tells_both_sides() {
    let pair = Pair::with(|spec| spec.user_index = 0x1234);
    pair.local.fill_pattern(9);
    let counter = pair.other.receive(&[pair.remote_mr.sge(10, 100), pair.remote_mr.sge(5000, 5000)]);
    let index = pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 3000)).signaled());
    let cqe = pair.other_cq.wait_ok().unwrap();
    assert_eq!((cqe.opcode(), cqe.byte_count(), cqe.qpn()), (cqe_opcode::RESP_SEND, 3000, pair.other.qpn));
    assert_eq!(cqe.wqe_counter(), counter);
    assert_eq!(mlx5_spec::cq::cqe::RQPN.get(&cqe.bytes), pair.one.qpn);
    assert_eq!(mlx5_spec::cq::cqe::SRQN_UIDX.get(&cqe.bytes), 0x1234);
    pair.assert_copied((&pair.local, 0), (&pair.remote, 10), 100);
    pair.assert_copied((&pair.local, 100), (&pair.remote, 5000), 2900);
    let cqe = pair.one_cq.wait_ok().unwrap();
    assert_eq!((cqe.opcode(), cqe.wqe_counter(), cqe.qpn()), (cqe_opcode::REQ, index, pair.one.qpn));
    assert_eq!(mlx5_spec::cq::cqe::SEND_OPCODE.get(&cqe.bytes), opcode::SEND);
    pair.tear_down();
}

#[test]
fn immediate_data_arrives_unchanged() {
    let pair = Pair::new();
    pair.other.receive(&[pair.remote_mr.all()]);
    pair.other.receive(&[]);
    pair.one.run(Wqe::new(opcode::SEND_IMM).immediate(0x0102_0304).sge(pair.local_mr.sge(0, 4))).unwrap();
    let write = Wqe::new(opcode::RDMA_WRITE_IMM).remote(pair.remote_mr.va, pair.remote_mr.key);
    pair.one.run(write.immediate(0xa0b0_c0d0).sge(pair.local_mr.sge(0, 9))).unwrap();
    let send = pair.other_cq.wait_ok().unwrap();
    assert_eq!((send.opcode(), send.immediate(), send.byte_count()), (cqe_opcode::RESP_SEND_IMM, 0x0102_0304, 4));
    let write = pair.other_cq.wait_ok().unwrap();
    assert_eq!((write.opcode(), write.immediate(), write.byte_count()), (cqe_opcode::RESP_WR_IMM, 0xa0b0_c0d0, 9));
    pair.tear_down();
}

#[test]
fn empty_messages_are_messages() {
    let pair = Pair::new();
    pair.other.receive(&[]);
    pair.one.run(Wqe::send()).unwrap();
    assert_eq!(pair.other_cq.wait_ok().unwrap().byte_count(), 0);
    // No byte moves, so no key is looked at (IBTA 9.7.5.1.3 and 11.2: R_Key of an empty RDMA operation is not checked).
    pair.one.run(Wqe::write(0, 0)).unwrap();
    pair.one.run(Wqe::read(0, 0)).unwrap();
    pair.one.run(Wqe::nop()).unwrap();
    pair.tear_down();
}

#[test]
fn inline_data_of_every_length_also_across_the_end_of_the_queue() {
    let pair = Pair::with(|spec| spec.log_sq = 3);
    for len in [1usize, 3, 4, 12, 13, 28, 60, 100, 188, 200, 300, 64, 17] {
        for round in 0..8u8 {
            let payload: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(7) ^ round).collect();
            let to = 64 * u64::from(round);
            pair.one.run(Wqe::write(pair.remote_mr.va + to, pair.remote_mr.key).inline(&payload)).unwrap();
            assert!(pair.remote.bytes(to, len as u64) == payload, "{len} bytes, round {round}");
        }
    }
    // Several segments, mixed with memory.
    pair.local.fill_pattern(3);
    let wqe =
        Wqe::write(pair.remote_mr.va, pair.remote_mr.key).inline(b"abc").sge(pair.local_mr.sge(5, 6)).inline(b"de");
    pair.one.run(wqe).unwrap();
    assert_eq!(pair.remote.bytes(0, 11), [b"abc".as_slice(), &pair.local.bytes(5, 6), b"de"].concat());
    pair.tear_down();
}

#[test]
fn atomics_use_little_endian_memory_and_big_endian_operands() {
    let pair = Pair::new();
    let (va, key) = (pair.remote_mr.va + 64, pair.remote_mr.key);
    let start = 0x0102_0304_0506_0708u64;
    pair.remote.write(64, &start.to_le_bytes());
    pair.one.run(Wqe::fetch_add(va, key, 0x10).sge(pair.local_mr.sge(8, 8))).unwrap();
    assert_eq!(pair.local.bytes(8, 8), start.to_le_bytes());
    assert_eq!(pair.remote.bytes(64, 8), (start + 0x10).to_le_bytes());
    pair.one.run(Wqe::compare_swap(va, key, 1, 2).sge(pair.local_mr.sge(16, 8))).unwrap();
    assert_eq!(pair.local.bytes(16, 8), (start + 0x10).to_le_bytes());
    assert_eq!(pair.remote.bytes(64, 8), (start + 0x10).to_le_bytes(), "not equal, not swapped");
    pair.one.run(Wqe::compare_swap(va, key, start + 0x10, 99).sge(pair.local_mr.sge(16, 8))).unwrap();
    assert_eq!(pair.remote.bytes(64, 8), 99u64.to_le_bytes());
    pair.one.run(Wqe::fetch_add(va, key, u64::MAX).sge(pair.local_mr.sge(16, 8))).unwrap();
    assert_eq!(pair.remote.bytes(64, 8), 98u64.to_le_bytes(), "additions wrap");
    pair.tear_down();
}

#[test]
fn atomics_of_many_queue_pairs_lose_nothing() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let other_uar = driver.alloc_uar().unwrap();
    let lanes: Vec<_> = (0..4)
        .map(|lane| {
            let cq = driver.create_cq(6).unwrap();
            let uar = if lane % 2 == 0 { driver.uar } else { other_uar };
            let spec = QpSpec { uar, ..QpSpec::rc(driver, pair.pd, &cq) };
            let pair = Qp::pair(driver, spec.clone(), spec).unwrap();
            (pair.0, pair.1, cq)
        })
        .collect();
    const EACH: u64 = 200;
    std::thread::scope(|scope| {
        for (index, (one, ..)) in lanes.iter().enumerate() {
            let pair = &pair;
            scope.spawn(move || {
                for _ in 0..EACH {
                    let add = Wqe::fetch_add(pair.remote_mr.va, pair.remote_mr.key, 1);
                    one.run(add.sge(pair.local_mr.sge(64 * index as u64, 8))).unwrap();
                }
            });
        }
    });
    assert_eq!(pair.remote.bytes(0, 8), (4 * EACH).to_le_bytes());
}

#[test]
fn unsignaled_work_is_done_in_order_before_the_signaled() {
    let pair = Pair::new();
    pair.local.fill_pattern(11);
    for round in 0..40u64 {
        let wqes: Vec<_> = (0..8)
            .map(|i| {
                let to = pair.remote_mr.va + (i % 2) * 8;
                let wqe = Wqe::write(to, pair.remote_mr.key).sge(pair.local_mr.sge((round * 8 + i) * 8, 8));
                if i == 7 { wqe.signaled() } else { wqe }
            })
            .collect();
        let indices = pair.one.post(&wqes);
        assert_eq!(pair.one_cq.wait_ok().unwrap().wqe_counter(), indices[7]);
        pair.assert_copied((&pair.local, (round * 8 + 6) * 8), (&pair.remote, 0), 16);
    }
    assert!(pair.one_cq.poll().is_none());
    pair.tear_down();
}

#[test]
fn a_queue_pair_may_talk_to_itself() {
    let pair = Pair::new();
    let qp = Qp::create(&pair.driver.context, QpSpec::rc(&pair.driver, pair.pd, &pair.one_cq)).unwrap();
    qp.connect(qp.peer()).unwrap();
    pair.local.fill_pattern(12);
    qp.receive(&[pair.remote_mr.all()]);
    qp.post_one(Wqe::send().sge(pair.local_mr.sge(0, 5000)).signaled());
    let outcomes = [pair.one_cq.wait_ok().unwrap().opcode(), pair.one_cq.wait_ok().unwrap().opcode()];
    assert_eq!(outcomes, [cqe_opcode::RESP_SEND, cqe_opcode::REQ]);
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 5000);
    qp.destroy().unwrap();
    pair.tear_down();
}

#[test]
fn physical_addresses_work_through_the_drivers_key() {
    let pair = Pair::new();
    let memory = pair.driver.machine.guest.contiguous(16384);
    memory.fill_pattern(13);
    let cq = pair.driver.create_cq(4).unwrap();
    let spec = QpSpec::rc(&pair.driver, pair.driver.pd, &cq);
    let (one, _other) = Qp::pair(&pair.driver, spec.clone(), spec).unwrap();
    let key = pair.driver.dma_key;
    one.run(Wqe::write(memory.gpa(0) + 8192, key).sge(Sge { key, va: memory.gpa(0), len: 8192 })).unwrap();
    assert!(memory.bytes(0, 8192) == memory.bytes(8192, 8192));
}

#[test]
fn sixty_four_queue_pairs_at_once() {
    let pair = Pair::new();
    pair.local.fill_pattern(14);
    let driver = &pair.driver;
    let cq = driver.create_cq(10).unwrap();
    let uars = [driver.uar, driver.alloc_uar().unwrap(), driver.alloc_uar().unwrap()];
    let lanes: Vec<_> = (0..32)
        .map(|lane| {
            let spec = QpSpec { uar: uars[lane % 3], ..QpSpec::rc(driver, pair.pd, &cq) };
            Qp::pair(driver, spec.clone(), spec).unwrap()
        })
        .collect();
    for _ in 0..4 {
        for (index, (one, other)) in (0..).zip(&lanes) {
            other.receive(&[pair.remote_mr.sge(index * 1024, 512)]);
            let to = (pair.remote_mr.va + index * 1024 + 512, pair.remote_mr.key);
            let write = Wqe::write(to.0, to.1).sge(pair.local_mr.sge(index * 1024 + 512, 512));
            one.post(&[Wqe::send().sge(pair.local_mr.sge(index * 1024, 512)).signaled(), write.signaled()]);
        }
        for _ in 0..32 * 3 {
            cq.wait_ok().unwrap();
        }
    }
    assert!(cq.poll().is_none());
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 32 * 1024);
}
