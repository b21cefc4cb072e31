// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;

use super::*;
use crate::buffer::{Geometry, GuestBuffer};
use crate::eq::{Eq, EqSpec};
use crate::hca::Hca;
use crate::hooks::{NicRule, WqeMatch};
use crate::mkey::tests::hca;
use mlx5_spec::eq::{EQE_SIZE, eqe};

/// Bytes of guest memory where the fault EQ lies: 16 pages from here, 1,024 entries.
const QUEUE: u64 = 0x1_0000;

const FAULT: Fault = Fault {
    kind: FaultKind::Rdma { r_key: 0x1_0002, rdma_va: 0x7fff_0000_1234, op_len: 0x2000, write: true },
    bytes_committed: 0x800,
    packet_length: 0,
    waiter: (16, 0x40),
    about: (0x1_0002, 0x7fff_0000_1a34, true),
};

fn fault_queue(hca: &Hca) -> Arc<Eq> {
    let geometry = Geometry::new(0, 0, 16 << 12).unwrap();
    let list: Vec<u8> = (0..16).flat_map(|page| (QUEUE + (page << 12)).to_be_bytes()).collect();
    let buffer = GuestBuffer::new(geometry, &list).unwrap();
    let mask = [1 << event::PAGE_FAULT, 0, 0, 0];
    let spec = EqSpec { vector: 0, uar: 16, mask, log_size: 10, buffer, context: Vec::new() };
    hca.insert_eq(spec).unwrap()
}

fn entry(hca: &Hca, index: u64) -> [u8; EQE_SIZE] {
    let mut bytes = [0; EQE_SIZE];
    hca.dma.read(QUEUE + index * EQE_SIZE as u64, &mut bytes).unwrap();
    bytes
}

#[test]
fn without_a_queue_or_the_capability_there_are_no_page_faults() {
    let mut hca = hca();
    assert_eq!(hca.page_faults.raise(&hca, &FAULT, &hca.engines), Err(RaiseError::NoQueue));
    fault_queue(&hca);
    assert!(hca.page_faults.raise(&hca, &FAULT, &hca.engines).is_ok());
    Arc::get_mut(&mut hca.bus).unwrap().config.odp = false;
    assert_eq!(hca.page_faults.raise(&hca, &FAULT, &hca.engines), Err(RaiseError::NoQueue));
}

/// Bytes by contract 9.2, not by the layouts that the code uses.
#[test]
fn events_are_laid_out_as_the_driver_reads_them() {
    let hca = hca();
    fault_queue(&hca);
    let token = hca.page_faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    let mut wanted = [0; EQE_SIZE];
    wanted[0x01] = 0x0c;
    wanted[0x03] = 1;
    wanted[0x20..0x24].copy_from_slice(&0x800u32.to_be_bytes());
    wanted[0x24..0x28].copy_from_slice(&0x1_0002u32.to_be_bytes());
    wanted[0x2b] = 1;
    wanted[0x2c..0x30].copy_from_slice(&0x2000u32.to_be_bytes());
    wanted[0x30..0x38].copy_from_slice(&0x7fff_0000_1234u64.to_be_bytes());
    wanted[0x38..0x3c].copy_from_slice(&(6 << 24 | token).to_be_bytes());
    assert_eq!(entry(&hca, 0), wanted);
    let kind = FaultKind::Wqe { wq_type: 3, number: 0x40, wqe_index: 0x1234 };
    let token = hca.page_faults.raise(&hca, &Fault { kind, packet_length: 0x1000, ..FAULT }, &hca.engines).unwrap();
    let mut wanted = [0; EQE_SIZE];
    wanted[0x01] = 0x0c;
    wanted[0x20..0x24].copy_from_slice(&0x800u32.to_be_bytes());
    wanted[0x26..0x28].copy_from_slice(&0x1234u16.to_be_bytes());
    wanted[0x2a..0x2c].copy_from_slice(&0x1000u16.to_be_bytes());
    wanted[0x2c..0x30].copy_from_slice(&token.to_be_bytes());
    wanted[0x38..0x3c].copy_from_slice(&(3 << 24 | 0x40u32).to_be_bytes());
    assert_eq!(entry(&hca, 1), wanted);
}

#[test]
fn a_resume_is_told_once_and_unknown_ones_are_ignored() {
    let hca = hca();
    fault_queue(&hca);
    let faults = &hca.page_faults;
    let token = faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    let (key, va, write) = FAULT.about;
    assert_eq!(faults.poll(token), FaultState::Waiting);
    assert_eq!(faults.live(), [(token, 16, 0x40)]);
    faults.resume(&hca, token + 1, false);
    faults.resume(&hca, token, true);
    faults.resume(&hca, token, false);
    assert_eq!(faults.poll(token), FaultState::Resumed { error: true });
    assert_eq!(faults.poll(token), FaultState::Unknown);
    faults.resume(&hca, token, false);
    let kinds: Vec<_> = hca.ledger.nic(0).into_iter().map(|record| (record.qpn, record.kind)).collect();
    let fault = NicKind::Fault { key, va, write, token };
    assert_eq!(kinds, [(0x40, fault), (0x40, NicKind::Resumed { token, error: true })]);
    let cancelled = faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    assert_ne!(cancelled, token);
    faults.cancel(cancelled);
    faults.resume(&hca, cancelled, false);
    assert_eq!(faults.poll(cancelled), FaultState::Unknown);
}

#[test]
fn tokens_are_24_bits_never_zero_and_capped() {
    let hca = hca();
    fault_queue(&hca);
    let faults = &hca.page_faults;
    faults.table.lock().last = MAX_TOKEN - 1;
    let tokens: Vec<u32> = (0..MAX_LIVE).map(|_| faults.raise(&hca, &FAULT, &hca.engines).unwrap()).collect();
    assert_eq!(tokens[..3], [MAX_TOKEN, 1, 2]);
    assert_eq!(faults.raise(&hca, &FAULT, &hca.engines), Err(RaiseError::Busy));
    // Around once more: tokens that are alive are not given out.
    faults.table.lock().last = MAX_TOKEN - 1;
    faults.cancel(5);
    assert_eq!(faults.raise(&hca, &FAULT, &hca.engines), Ok(5));
    faults.clear();
    assert!(faults.live().is_empty());
    assert_eq!(faults.raise(&hca, &FAULT, &hca.engines), Ok(6), "numbers go on after a reset");
}

#[test]
fn injections_drop_or_delay_the_event() {
    let hca = hca();
    let queue = fault_queue(&hca);
    let published = || queue.indices().0;
    let drops = hca.injections.add(NicRule::new(1, NicAction::DropFaultEvent).on(WqeMatch::key(0x1_00ff))).unwrap();
    hca.injections.add(NicRule::new(2, NicAction::DelayFaultEvent { ms: 10 }));
    let lost = hca.page_faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    assert_eq!((published(), hca.page_faults.poll(lost)), (0, FaultState::Waiting));
    assert_eq!(hca.injections.rule(drops).unwrap().fired, 1);
    let now = Instant::now();
    assert_eq!(hca.page_faults.publish_late(&hca, now), None);
    let late = hca.page_faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    let due = hca.page_faults.publish_late(&hca, now).unwrap();
    assert_eq!(published(), 0);
    assert_eq!(hca.page_faults.publish_late(&hca, due), None);
    assert_eq!(published(), 1);
    assert_eq!(u32::from_be_bytes(entry(&hca, 0)[0x38..0x3c].try_into().unwrap()) & MAX_TOKEN, late);
    assert_eq!(eqe::TYPE.get(&entry(&hca, 0)), event::PAGE_FAULT);
    hca.page_faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    assert_eq!(published(), 2);
    // A cancelled fault's event is not published.
    hca.injections.clear();
    hca.injections.add(NicRule::new(1, NicAction::DelayFaultEvent { ms: 10 }));
    let gone = hca.page_faults.raise(&hca, &FAULT, &hca.engines).unwrap();
    hca.page_faults.cancel(gone);
    assert_eq!(hca.page_faults.publish_late(&hca, Instant::now() + Duration::from_secs(9)), None);
    assert_eq!(published(), 2);
}
