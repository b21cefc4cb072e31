// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers, planted faults and what the ledger is told.

use std::sync::atomic::Ordering;

use super::*;
use crate::fault_rules::{NicAction, NicRule};
use crate::levers::NicLever;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use mlx5_spec::wqe::opcode;
use probe::ledger::{NicKind, NicRecord};

fn kinds(guest: &Guest) -> Vec<NicKind> {
    guest.hca.ledger.nic(0).iter().map(|record: &NicRecord| record.kind).collect()
}

/// Zaps entry 0 as a UMR does, and tells when nothing is in flight through it.
fn zap(guest: &Guest, key: &Mkey) {
    key.entries[0].store(0, Ordering::Release);
    guest.hca.quiesce.wait();
    key.completed();
}

#[test]
fn a_held_wqe_is_translated_only_after_its_release() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let (old, new) = (guest.alloc(PAGE), guest.alloc(PAGE));
    let key = guest.paged(0, &[Some(old)]);
    let lever = guest.hca.levers.arm(NicLever::new(opcode::RDMA_WRITE as u8, SOON));
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(key.key(), 0).inline(b"moved"));
    guest.hca.levers.wait_held(lever, SOON).unwrap();
    // The other direction goes on, and the translation may change, meanwhile.
    guest.post(&b, &Wqe::new(opcode::NOP));
    assert_eq!(guest.outcome(&b.send_cq).1, 0);
    zap(&guest, &key);
    key.entries[0].store(new | 3, Ordering::Release);
    assert!(guest.try_cqe(&a.send_cq).is_none());
    guest.hca.levers.release(&guest.hca, lever).unwrap();
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert_eq!((guest.read(new, 5), guest.read(old, 5)), (b"moved".to_vec(), vec![0; 5]));
}

#[test]
fn a_held_wqe_of_a_queue_pair_that_ends_is_flushed_at_once() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    let lever = guest.hca.levers.arm(NicLever::new(opcode::RDMA_WRITE as u8, SOON));
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"never"));
    guest.hca.levers.wait_held(lever, SOON).unwrap();
    guest.set_state(&a, state::ERR);
    assert_eq!(guest.outcome(&a.send_cq).1, syndrome::WR_FLUSH_ERR);
    assert_eq!(guest.hca.levers.state(lever).unwrap().held, None);
    assert_eq!(guest.read(to, 5), [0; 5]);
}

#[test]
fn a_write_into_a_watched_page_is_on_record_with_its_key_and_before_its_completion() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let (from, to) = (guest.alloc(2 * PAGE), guest.alloc(2 * PAGE));
    let key = guest.paged(0, &[Some(to), Some(to + PAGE)]);
    let ledger = &guest.hca.ledger;
    ledger.watch(to + PAGE);
    ledger.watch(from);
    let write = Wqe::new(opcode::RDMA_WRITE).remote(key.key(), 4090).data(guest.all, from, 16);
    guest.post(&a, &write);
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    match kinds(&guest)[..] {
        [
            NicKind::Read { gpa, len: 16, key: lkey, begun },
            NicKind::Wrote { gpa: target, len: 10, key: rkey, begun: same },
            NicKind::Completed { wqe_index: 0, opcode: 8, status: 0 },
        ] => {
            assert_eq!((gpa, target, lkey, rkey, begun), (from, to + PAGE, guest.all, key.key(), same));
            assert!(begun < ledger.nic(0)[1].seq);
        }
        ref other => panic!("{other:?}"),
    }
    assert!(ledger.nic_totals()[0].agree());
    // A write that hides shows in the totals.
    guest.hca.faults.add(NicRule::new(1, NicAction::HideFromLedger)).unwrap();
    guest.post(&a, &write);
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert!(!ledger.nic_totals()[0].agree());
}

#[test]
fn late_dma_lands_on_the_old_page_after_the_zap_and_is_on_record() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    let key = guest.paged(0, &[Some(to)]);
    let ledger = &guest.hca.ledger;
    ledger.watch(to);
    guest.hca.faults.add(NicRule::new(1, NicAction::LateDma)).unwrap();
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(key.key(), 0).inline(b"stale"));
    std::thread::sleep(Duration::from_millis(30));
    assert!(guest.try_cqe(&a.send_cq).is_none());
    assert_eq!(guest.read(to, 5), [0; 5]);
    key.entries[0].store(0, Ordering::Release);
    guest.hca.quiesce.wait();
    let zapped = ledger.tick();
    key.completed();
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert_eq!(guest.read(to, 5), b"stale");
    let wrote = ledger.nic(0).into_iter().find(|record| matches!(record.kind, NicKind::Wrote { .. })).unwrap();
    assert!(wrote.seq > zapped);
    assert!(matches!(wrote.kind, NicKind::Wrote { begun, .. } if begun < zapped));
}

/// Rule 3 both ways: a translation that dies while a write stands between its translation and its copy.
fn zap_during_a_stall(no_guard: bool) -> bool {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let to = guest.alloc(PAGE);
    let key = guest.paged(0, &[Some(to)]);
    guest.hca.faults.add(NicRule::new(1, NicAction::StallInFlight { ms: 200 })).unwrap();
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(key.key(), 0).inline(b"in flight"));
    soon("stall", || (guest.hca.faults.rules()[0].fired == 1).then_some(()));
    key.entries[0].store(0, Ordering::Release);
    if !no_guard {
        guest.hca.quiesce.wait();
    }
    // The page is another's now.
    guest.write(to, &[0x55; 9]);
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    guest.read(to, 9) != [0x55; 9]
}

#[test]
fn what_is_in_flight_ends_before_the_wait_does() {
    assert!(!zap_during_a_stall(false), "the write came after the wait");
    assert!(zap_during_a_stall(true), "without the wait this must show");
}

#[test]
fn a_fault_can_be_answered_by_rnr() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let eq = guest.eq(&[event::PAGE_FAULT]);
    let to = guest.alloc(PAGE);
    let key = guest.paged(0, &[None]);
    guest.hca.faults.add(NicRule::new(0, NicAction::RnrOnFault)).unwrap();
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(key.key(), 0).inline(b"again"));
    let entry = guest.event(&eq);
    soon("RNR NAK", || (guest.hca.counters.rnr_naks.get() > 2).then_some(()));
    assert_eq!(guest.hca.page_faults.live().len(), 1);
    key.entries[0].store(to | 3, Ordering::Release);
    let token = mlx5_spec::eq::eqe_page_fault_rdma::TOKEN.get(&entry);
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert_eq!(guest.read(to, 5), b"again");
    // Other messages, or the end of the queue pair, leave nothing behind.
    guest.set_state(&a, state::ERR);
    soon("end of the fault", || guest.hca.page_faults.live().is_empty().then_some(()));
}
