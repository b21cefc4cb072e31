// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device memory: a program maps it at BAR0, queue pairs reach it by keys that count from its beginning.

use std::sync::Arc;

use mlx5_spec::caps::{cap_mode, cap_type, cmd_hca_cap as cap, device_mem_cap, query_in, query_out};
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::mkey::access_mode;
use mlx5_spec::small::{alloc_memic_in, alloc_memic_out, dealloc_memic_in};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Access, Driver, MkeySpec, Mr, Wqe};

use crate::scene::Pair;

fn capability(driver: &Driver) -> Vec<u8> {
    let input = Input::new(Opcode::QUERY_HCA_CAP, query_in::SIZE)
        .with(query_in::CAP_TYPE, cap_type::DEVICE_MEMORY)
        .with(query_in::CAP_MODE, cap_mode::CUR);
    driver.query(input, query_out::SIZE).unwrap()[query_out::CAPABILITY..].to_vec()
}

/// The offset in BAR0 of `len` bytes, or the status.
fn allocate(driver: &Driver, page: u64, pages: u32, len: u32) -> Result<u64, u8> {
    let start = device_mem_cap::MEMIC_BAR_START_ADDR.get(&capability(driver));
    let input = Input::new(Opcode::ALLOC_MEMIC, alloc_memic_in::SIZE)
        .with64(alloc_memic_in::RANGE_START_ADDR, start + page * 4096)
        .with(alloc_memic_in::RANGE_SIZE, pages * 4096)
        .with(alloc_memic_in::MEMIC_SIZE, len);
    let told = driver.query(input, alloc_memic_out::SIZE).map_err(|error| error.status().unwrap())?;
    Ok(alloc_memic_out::MEMIC_START_ADDR.get(&told))
}

fn free(driver: &Driver, at: u64, len: u32) -> u8 {
    let input = Input::new(Opcode::DEALLOC_MEMIC, dealloc_memic_in::SIZE)
        .with64(dealloc_memic_in::MEMIC_START_ADDR, at)
        .with(dealloc_memic_in::MEMIC_SIZE, len);
    driver.command(input).err().map_or(status::OK, |error| error.status().unwrap())
}

fn key(driver: &Driver, pd: u32, at: u64, len: u64) -> Result<Mr, u8> {
    let spec =
        MkeySpec { mode: access_mode::MEMIC, log_page: 0, ..MkeySpec::mtt(pd, Access::ALL, at, len, Vec::new()) };
    let key = driver.create_mkey(&spec).map_err(|error| error.status().unwrap())?;
    Ok(Mr { key, va: 0, len })
}

fn outcome(pair: &Pair, wqe: Wqe) -> Result<(), (u32, u32)> {
    pair.one.post_one(wqe.signaled());
    let cqe = pair.one_cq.wait().unwrap();
    if cqe.outcome().0 == cqe_opcode::REQ_ERR { Err(cqe.outcome()) } else { Ok(()) }
}

#[test]
fn what_is_sent_there_is_read_through_the_bar() {
    let pair = Pair::new();
    let driver = &pair.driver;
    assert_eq!(driver.capability(cap::DEVICE_MEMORY).unwrap(), 1);
    assert!(device_mem_cap::MEMIC.is_set(&capability(driver)));
    let at = allocate(driver, 0, 2, 5000).unwrap();
    let memory = key(driver, pair.pd, at, 5000).unwrap();
    let bar = driver.machine.bar(0);
    let mut seen = vec![1; 5000];
    driver.machine.mmio_read(bar + at, &mut seen);
    assert_eq!(seen, vec![0; 5000], "it comes empty");
    // From guest memory into it, by its own addresses.
    pair.local.fill_pattern(5);
    outcome(&pair, Wqe::write(100, memory.key).sge(pair.local_mr.sge(7, 4900))).unwrap();
    driver.machine.mmio_read(bar + at, &mut seen);
    assert_eq!((&seen[..100], &seen[100..]), (&[0; 100][..], &pair.local.bytes(7, 4900)[..]));
    // What the program writes is read back out of it, as a local and as a remote source.
    driver.machine.mmio_write(bar + at + 4, &[0xa5; 8]);
    outcome(&pair, Wqe::read(0, memory.key).sge(pair.local_mr.sge(0, 16))).unwrap();
    assert_eq!(pair.local.bytes(4, 8), vec![0xa5; 8]);
    outcome(&pair, Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(memory.sge(4, 64))).unwrap();
    assert_eq!(pair.remote.bytes(0, 8), vec![0xa5; 8]);
    // An atomic.
    outcome(&pair, Wqe::fetch_add(8, memory.key, 1).sge(pair.local_mr.sge(64, 8))).unwrap();
    let mut word = [0; 8];
    driver.machine.mmio_read(bar + at + 8, &mut word);
    assert_eq!(word[..4], [0xa6, 0xa5, 0xa5, 0xa5]);
}

#[test]
fn keys_and_allocations_keep_to_their_bounds() {
    let pair = Pair::new();
    let (driver, pd) = (&pair.driver, pair.pd);
    let at = allocate(driver, 1, 1, 4096).unwrap();
    assert_eq!(allocate(driver, 1, 1, 64), Err(status::NO_RES), "the range is full");
    let beside = allocate(driver, 2, 1, 64).unwrap();
    assert_eq!(allocate(driver, 0, 1000, 1 << 30), Err(status::EXCEED_LIM));
    // In steps of 64 bytes, aligned to 4096 if asked.
    let aligned = |log| {
        let start = device_mem_cap::MEMIC_BAR_START_ADDR.get(&capability(driver)) + 4 * 4096;
        let input = Input::new(Opcode::ALLOC_MEMIC, alloc_memic_in::SIZE)
            .with64(alloc_memic_in::RANGE_START_ADDR, start)
            .with(alloc_memic_in::RANGE_SIZE, 2 * 4096)
            .with(alloc_memic_in::MEMIC_SIZE, 1)
            .with(alloc_memic_in::LOG_MEMIC_ADDR_ALIGNMENT, log);
        let told = driver.query(input, alloc_memic_out::SIZE).map_err(|error| error.status().unwrap())?;
        Ok(alloc_memic_out::MEMIC_START_ADDR.get(&told) - start)
    };
    assert_eq!([0, 0, 6, 7].map(aligned), [Ok(0), Ok(64), Ok(4096), Err(status::EXCEED_LIM)]);
    for (start, len) in [(at, 4097), (at - 1, 1), (0, 64), (beside, 65), (u64::MAX, 1), (at, u64::MAX)] {
        assert_eq!(key(driver, pd, start, len).err(), Some(status::BAD_RES), "{start:#x} {len:#x}");
    }
    let memory = key(driver, pd, at + 64, 128).unwrap();
    let denied = Err((cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
    assert_eq!(outcome(&pair, Wqe::write(121, memory.key).sge(pair.local_mr.sge(0, 8))), denied);
    // Freed: the key leads nowhere, and not to who comes next.
    let pair = Pair::on(driver.clone(), |_| ());
    let memory = key(driver, pair.pd, at, 4096).unwrap();
    outcome(&pair, Wqe::write(0, memory.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    assert_eq!((free(driver, at, 4096), free(driver, at, 4096)), (status::OK, status::BAD_RES));
    assert_eq!(outcome(&pair, Wqe::write(0, memory.key).sge(pair.local_mr.sge(0, 8))), denied);
}

#[test]
fn a_reset_frees_it() {
    let machine = crate::scene::machine();
    let driver = Driver::probe(&machine).unwrap();
    let all = device_mem_cap::MEMIC_BAR_SIZE.get(&capability(&driver)) / 4096;
    allocate(&driver, 0, all, all * 4096).unwrap();
    assert_eq!(allocate(&driver, 0, all, 64), Err(status::NO_RES));
    drop(driver);
    machine.function_reset();
    let driver: Arc<Driver> = Driver::probe(&machine).unwrap();
    allocate(&driver, 0, all, all * 4096).unwrap();
}
