// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger hears of the data path.

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5::hooks::{NicKind, NicLedger};
use mlx5_spec::mkey::{MTT_READ, MTT_WRITE};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::{Access, MkeySpec, Wqe};

use crate::scene::Pair;

const VA: u64 = 0x1234_5000_0000;

#[test]
fn a_write_into_a_watched_page_is_on_record_with_its_key_and_before_its_completion() {
    let pair = Pair::new();
    let (driver, ledger) = (&pair.driver, &pair.driver.machine.ledger);
    let memory = driver.machine.guest.scattered(2 * 4096);
    let list = memory.pages.iter().map(|page| page | MTT_READ | MTT_WRITE).collect();
    let key = driver.create_mkey(&MkeySpec::mtt(pair.pd, Access::ALL, VA, 2 * 4096, list)).unwrap();
    let source = pair.local.pages[0];
    assert!(ledger.watch(memory.pages[1]) && ledger.watch(source));
    // The first page's 6 bytes are nobody's business, the second's 10 are.
    let from = pair.local.gpa(100);
    assert_eq!(from & !0xfff, source);
    let write = Wqe::write(VA + 4090, key).sge(pair.local_mr.sge(100, 16));
    pair.one.run(write.clone()).unwrap();
    let records = ledger.nic(0);
    let kinds: Vec<_> = records.iter().map(|record| record.kind).collect();
    match kinds[..] {
        [
            NicKind::Read { gpa, len: 16, key: lkey, begun },
            NicKind::Wrote { gpa: target, len: 10, key: rkey, begun: same },
            NicKind::Completed { wqe_index: 0, opcode: 8, status: 0 },
        ] => {
            assert_eq!((gpa, target, lkey, rkey, begun), (from, memory.pages[1], pair.local_mr.key, key, same));
            assert!(begun < records[1].seq);
        }
        ref other => panic!("{other:?}"),
    }
    assert!(ledger.nic_totals()[0].agree());
    // A write that hides shows in the totals.
    let rule = NicRule::new(1, NicAction::HideFromLedger).on(WqeMatch::opcode(opcode::RDMA_WRITE as u8));
    driver.machine.nic.hca().injections.add(rule).unwrap();
    pair.one.run(write).unwrap();
    assert!(!ledger.nic_totals()[0].agree());
}

/// What a WRITE left behind before it found that the rest of its target is no memory is on record too.
#[test]
fn a_write_that_ends_early_is_on_record_as_far_as_it_may_have_come() {
    let pair = Pair::new();
    let (driver, ledger) = (&pair.driver, &pair.driver.machine.ledger);
    let memory = driver.machine.guest.scattered(4096);
    let list = [memory.pages[0], 1 << 40].map(|page| page | MTT_READ | MTT_WRITE).to_vec();
    let key = driver.create_mkey(&MkeySpec::mtt(pair.pd, Access::ALL, VA, 2 * 4096, list)).unwrap();
    assert!(ledger.watch(memory.pages[0]));
    let cqe = pair.one.run(Wqe::write(VA + 4090, key).sge(pair.local_mr.sge(0, 16))).unwrap_err();
    let wrote = |kind: NicKind| match kind {
        NicKind::Wrote { gpa, len, .. } => Some((gpa, len)),
        _ => None,
    };
    let records: Vec<_> = ledger.nic(0).iter().filter_map(|record| wrote(record.kind)).collect();
    assert_eq!(records, [(memory.pages[0] + 4090, 6)], "{cqe:?}");
    assert!(ledger.nic_totals()[0].agree());
}
