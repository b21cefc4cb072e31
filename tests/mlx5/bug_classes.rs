// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Classes of bugs that a comparable emulator has shipped, one test each.

use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::mkey::{MTT_READ, MTT_WRITE, TERMINATOR_KEY};
use mlx5_spec::{odp, qp, small, uar};
use rnic_testdrive::command::Input;
use rnic_testdrive::driver::CONTROL_VECTOR;
use rnic_testdrive::{Access, Driver, MkeySpec, Mr, Sge, Wqe};

use crate::scene::{LEN, Pair, machine};

/// What becomes of one write: the requester's completion.
fn write_outcome(pair: &Pair, va: u64, key: u32, sge: Sge) -> (u32, u32) {
    pair.one.post_one(Wqe::write(va, key).sge(sge).signaled());
    pair.one_cq.wait().unwrap().outcome()
}

const REMOTE_ACCESS: (u32, u32) = (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR);
const LOCAL_PROTECTION: (u32, u32) = (cqe_opcode::REQ_ERR, syndrome::LOCAL_PROT_ERR);

/// `addr + len` wraps past the end of the address space and looks small.
#[test]
fn address_plus_length_does_not_wrap() {
    for (va, len) in [(u64::MAX - 10, 4096), (u64::MAX, 1), (u64::MAX - 0xfff, 0x2000)] {
        let pair = Pair::new();
        let before = pair.remote.bytes(0, LEN);
        assert_eq!(write_outcome(&pair, va, pair.remote_mr.key, pair.local_mr.sge(0, len)), REMOTE_ACCESS, "{va:#x}");
        assert!(pair.remote.bytes(0, LEN) == before);
        let pair = Pair::new();
        let sge = Sge { key: pair.local_mr.key, va, len };
        assert_eq!(write_outcome(&pair, pair.remote_mr.va, pair.remote_mr.key, sge), LOCAL_PROTECTION, "{va:#x}");
        // A key for the whole address space: the bounds check passes nearly everything, translation must not wrap either.
        let pair = Pair::new();
        let all = pair.driver.create_mkey(&MkeySpec::physical(pair.pd, Access::ALL)).unwrap();
        let (opcode, _) = write_outcome(&pair, va, all, pair.local_mr.sge(0, len));
        assert_eq!(opcode, cqe_opcode::REQ_ERR, "{va:#x}");
    }
}

/// A key whose own range wraps.
#[test]
fn a_keys_range_does_not_wrap() {
    let pair = Pair::new();
    let list = vec![pair.remote.pages[0] | MTT_READ | MTT_WRITE; 2];
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, u64::MAX - 0xfff, 0x2000, list);
    // Refused, or good for what lies below the end; never for address 0.
    if let Ok(key) = pair.driver.create_mkey(&spec) {
        assert_eq!(write_outcome(&pair, 0, key, pair.local_mr.sge(0, 16)), REMOTE_ACCESS);
    }
}

/// The lengths of a list add up to little in 32 bits.
#[test]
fn sums_of_scatter_lengths_are_wide() {
    // 2 * (2^31 - 1) + 2 + 64 is 64 modulo 2^32.
    let huge = (1u32 << 31) - 1;
    let pair = Pair::new();
    let list = |mr: &Mr| [mr.sge(0, huge), mr.sge(0, huge), mr.sge(0, 2), mr.sge(0, 64)];
    let wqe = list(&pair.local_mr).into_iter().fold(Wqe::send(), Wqe::sge);
    pair.one.post_one(wqe.signaled());
    let cqe = pair.one_cq.wait().unwrap();
    assert!(cqe.is_error(), "{cqe:?}");
    assert!(matches!(cqe.syndrome(), syndrome::LOCAL_LENGTH_ERR | syndrome::LOCAL_PROT_ERR), "{cqe:?}");
    // As a receive list they have room for anything; each piece is checked by itself.
    let pair = Pair::new();
    pair.other.receive(&list(&pair.remote_mr));
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 128)).signaled());
    let (sent, received) = (pair.one_cq.wait().unwrap(), pair.other_cq.wait().unwrap());
    assert_eq!(sent.is_error(), received.is_error(), "{sent:?} {received:?}");
    // RDMA READ: too much for a message.
    let pair = Pair::new();
    let wqe = list(&pair.local_mr).into_iter().fold(Wqe::read(pair.remote_mr.va, pair.remote_mr.key), Wqe::sge);
    pair.one.post_one(wqe.signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
}

/// A WQE claims more segments than it can have.
#[test]
fn the_number_of_segments_is_bounded() {
    for claimed in [0, 1, 2, 62, 63] {
        for log_sq in [1, 3, 6] {
            let pair = Pair::with(|spec| spec.log_sq = log_sq);
            let wqe = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 16));
            pair.one.post_one(wqe.claiming(claimed).signaled());
            // An error, or what the claimed part says; at any rate the device goes on.
            let _ = pair.one_cq.wait_for(Duration::from_millis(200));
            let fresh = Pair::on(pair.driver.clone(), |_| ());
            fresh.one.run(Wqe::write(fresh.remote_mr.va, fresh.remote_mr.key).sge(fresh.local_mr.sge(0, 16))).unwrap();
        }
    }
}

/// An entry that is skipped must not shift those behind it.
#[test]
fn a_skipped_entry_does_not_shift_the_rest() {
    // An absent page in the middle of a translation list.
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    let bits = MTT_READ | MTT_WRITE;
    let list = vec![pair.remote.pages[0] | bits, 0, pair.remote.pages[2] | bits, pair.remote.pages[3] | bits];
    let key = pair.driver.create_mkey(&MkeySpec::mtt(pair.pd, Access::ALL, 0x10_0000, 4 * 4096, list)).unwrap();
    pair.one.run(Wqe::write(0x10_2000, key).sge(pair.local_mr.sge(0, 8192))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 2 * 4096), 8192);
    // A receive list that ends in the middle: what follows the terminator is not there.
    let pair = Pair::new();
    pair.local.fill_pattern(2);
    let end = Sge { key: TERMINATOR_KEY, va: 0, len: 0 };
    pair.other.receive(&[pair.remote_mr.sge(0, 16), end, pair.remote_mr.sge(4096, 16)]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 32)).signaled());
    assert_eq!(pair.other_cq.wait().unwrap().outcome(), (cqe_opcode::RESP_ERR, syndrome::LOCAL_LENGTH_ERR));
    assert!(pair.remote.bytes(4096, 16).iter().all(|byte| *byte == 0));
    // A receive WQE that is used up by an empty message does not give its memory to the next.
    let pair = Pair::new();
    pair.local.fill_pattern(3);
    pair.other.receive(&[pair.remote_mr.sge(0, 16)]);
    pair.other.receive(&[pair.remote_mr.sge(4096, 16)]);
    pair.one.run(Wqe::send()).unwrap();
    pair.one.run(Wqe::send().sge(pair.local_mr.sge(0, 16))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 4096), 16);
    assert!(pair.remote.bytes(0, 16).iter().all(|byte| *byte == 0));
}

/// A check failed half way, and yet somebody is told of success.
#[test]
fn no_success_after_a_failed_check() {
    // The second piece of the requester's list.
    let pair = Pair::new();
    pair.other.receive(&[pair.remote_mr.all()]);
    let bad = Sge { key: pair.local_mr.key ^ 0xff, va: pair.local_mr.va, len: 64 };
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 64)).sge(bad).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), LOCAL_PROTECTION);
    std::thread::sleep(Duration::from_millis(10));
    assert!(pair.one_cq.poll().is_none(), "one completion a WQE");
    assert!(pair.other_cq.poll().is_none_or(|cqe| cqe.is_error()), "the receiver has no whole message");
    // The second piece of the receiver's list.
    let pair = Pair::new();
    let bad = Sge { key: pair.remote_mr.key ^ 0xff, va: pair.remote_mr.va, len: 64 };
    pair.other.receive(&[pair.remote_mr.sge(0, 64), bad]);
    pair.one.post_one(Wqe::send().sge(pair.local_mr.sge(0, 100)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
    assert!(pair.other_cq.wait().unwrap().is_error());
    std::thread::sleep(Duration::from_millis(10));
    assert!(pair.one_cq.poll().is_none() && pair.other_cq.poll().is_none());
    // The end of a target, and work behind the failure.
    let pair = Pair::new();
    let last = pair.remote_mr.va + LEN - 8;
    let write = |va| Wqe::write(va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 16)).signaled();
    pair.one.post(&[write(last), write(pair.remote_mr.va), write(pair.remote_mr.va)]);
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), REMOTE_ACCESS);
    for _ in 0..2 {
        assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::WR_FLUSH_ERR));
    }
    assert!(pair.remote.bytes(0, 16).iter().all(|byte| *byte == 0), "nothing behind a failure is carried out");
    assert!(pair.remote.bytes(LEN - 8, 8).iter().all(|byte| *byte == 0), "checked before anything moves");
}

/// An interrupt that is raised while its vector is masked.
#[test]
fn an_interrupt_is_not_lost_while_masked() {
    let driver = Driver::probe(&machine()).unwrap();
    let machine = &driver.machine;
    let vector = u32::from(CONTROL_VECTOR);
    driver.command_eq.arm();
    machine.set_vector(CONTROL_VECTOR, vector, true);
    let before = machine.interrupts.count(vector);
    let pending = driver.commands.start(&Input::new(Opcode::ALLOC_PD, 16).finish(), 16);
    driver.commands.ring(&pending);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.interrupts.count(vector), before, "masked vectors are silent");
    machine.set_vector(CONTROL_VECTOR, vector, false);
    assert_eq!(machine.interrupts.count(vector), before + 1, "what came while masked is told once");
    driver.commands.finish(pending).unwrap();
}

/// Numbers from the guest index tables before anybody has looked whether they may.
#[test]
fn every_index_is_checked_first() {
    let pair = Pair::new();
    let driver = &pair.driver;
    let numbers = [0, 1, 0x40, 0x7f, 0xffff, 0xff_ffff];
    let commands = [
        Opcode::DESTROY_EQ,
        Opcode::QUERY_EQ,
        Opcode::QUERY_CQ,
        Opcode::MODIFY_CQ,
        Opcode::QUERY_QP,
        Opcode::RTS2RTS_QP,
        Opcode::SQD_RTS_QP,
        Opcode::QUERY_MKEY,
        Opcode::QUERY_RMP,
        Opcode::QUERY_XRC_SRQ,
        Opcode::ARM_XRC_SRQ,
        Opcode::MODIFY_RMP,
        Opcode::DESTROY_RMP,
        Opcode::DESTROY_XRC_SRQ,
        Opcode::DEALLOC_XRCD,
        Opcode::QUERY_HCA_VPORT_GID,
        Opcode::QUERY_HCA_VPORT_PKEY,
    ];
    for opcode in commands {
        for number in numbers.into_iter().filter(|number| opcode != Opcode::DESTROY_EQ || *number > 8) {
            let input =
                Input::new(opcode, 0x110).with(small::object::NUMBER, number).with(odp::resume_in::TOKEN, number);
            // Whatever the answer is: one comes.
            let _ = driver.query(input, 0x300);
        }
    }
    for number in numbers {
        let mut arm = [0; 8];
        uar::cq_arm::CQN.set(&mut arm, number);
        driver.doorbell(driver.uar, uar::CQ_ARM, arm);
        let mut send = [0; 8];
        uar::sq::QPN.set(&mut send, number);
        uar::sq::WQE_INDEX.set(&mut send, 0xffff);
        driver.doorbell(driver.uar, uar::SQ_DOORBELL, send);
        let page = u64::from(driver.uar) * uar::PAGE_SIZE;
        driver.bar.write32(page + uar::EQ_UPDATE, number << 8 | 0xff);
    }
    // Records that say more than queues hold.
    let mut record = [0; qp::dbr::SIZE];
    qp::dbr::SEND_COUNTER.set(&mut record, 0xffff);
    qp::dbr::RECV_COUNTER.set(&mut record, 0xffff);
    let victim = Pair::on(driver.clone(), |_| ());
    driver.machine.guest.write(victim.one.record, &record);
    driver.doorbell(driver.uar, uar::SQ_DOORBELL, [0; 8]);
    std::thread::sleep(Duration::from_millis(20));
    pair.one.run(Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 16))).unwrap();
}
