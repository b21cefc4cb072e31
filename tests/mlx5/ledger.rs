// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger hears of the data path.

use mlx5::hooks::{NicAction, NicRule, WqeMatch};
use mlx5::hooks::{NicKind, NicLedger, Rights};
use mlx5_spec::mkey::{MKC_SIZE, MTT_READ, MTT_WRITE, umr_flags, umr_mask};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::mkey::{mtt_words, octwords};
use rnic_testdrive::{Access, MkeySpec, UmrSpec, Wqe};

use crate::scene::{LEN, Pair};

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
    let since = ledger.tick();
    // The first page's 6 bytes are nobody's business, the second's 10 are.
    let from = pair.local.gpa(100);
    assert_eq!(from & !0xfff, source);
    let write = Wqe::write(VA + 4090, key).sge(pair.local_mr.sge(100, 16));
    pair.one.run(write.clone()).unwrap();
    let records = ledger.nic(since);
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

/// What a key allows can be told from the ledger at any time, and since when: no copy must be taken at the device's word.
#[test]
fn what_a_key_allows_is_on_record_whenever_it_changes() {
    let pair = Pair::new();
    let (driver, ledger) = (&pair.driver, &pair.driver.machine.ledger);
    let list = mtt_words(&pair.remote, Access::ALL);
    let spec = MkeySpec {
        remote_invalidate: true,
        octwords: Some(octwords(list.len() as u64)),
        ..MkeySpec::mtt(pair.pd, Access::READ_ONLY, VA, LEN, list)
    };
    let since = ledger.tick();
    let key = driver.create_mkey(&MkeySpec { free: true, list: Vec::new(), ..spec.clone() }).unwrap();
    driver.umr(&UmrSpec::enable(key ^ 3, &MkeySpec { access: Access::ALL, ..spec })).unwrap();
    // Translations alone change nothing of it; rights do.
    driver.umr(&UmrSpec::update(key, 0, mtt_words(&pair.local, Access::ALL)[..8].to_vec())).unwrap();
    let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::INLINE;
    let (mask, context) = (umr_mask::RW | umr_mask::A, vec![0; MKC_SIZE]);
    driver.umr(&UmrSpec { key, flags, mask, context, first: 0, list: Vec::new() }).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.one.run(Wqe::new(opcode::SEND_INVAL).immediate(key ^ 3).sge(pair.local_mr.sge(0, 8))).unwrap();
    driver.destroy_mkey(key).unwrap();

    let index = key >> 8;
    let (old, new) = (0x5a, 0x5a ^ 3);
    let [some, all, fewer] = [1 | 4, 0x1f, 1 | 2 | 4].map(Rights);
    let mut last = since;
    let records = ledger.nic(since).into_iter().map(|record| {
        let begun = match record.kind {
            NicKind::Keyed { begun, .. } | NicKind::Updated { begun, .. } | NicKind::Revoked { begun, .. } => begun,
            other => panic!("{other:?}"),
        };
        assert!(since < begun && begun < record.seq && last < record.seq);
        last = record.seq;
        record.kind
    });
    let records: Vec<_> = records.collect();
    let keyed = |kind: &NicKind| match *kind {
        NicKind::Keyed { index: of, variant, rights, free, .. } if of == index => Some((variant, rights, free)),
        _ => None,
    };
    let told: Vec<_> = records.iter().map(keyed).collect();
    let wanted = [
        Some((old, some, true)),
        Some((new, all, false)),
        None,
        None,
        Some((new, fewer, false)),
        None,
        Some((new, fewer, true)),
        None,
        None,
    ];
    assert_eq!(told, wanted, "{records:?}");
    // A change is followed by what it does to those in flight, and began when that did.
    for pair in records.windows(2) {
        if let (
            NicKind::Keyed { begun, .. },
            NicKind::Updated { begun: same, .. } | NicKind::Revoked { begun: same, .. },
        ) = (pair[0], pair[1])
        {
            assert_eq!(begun, same);
        }
    }
    let ends = records.iter().filter(|kind| matches!(kind, NicKind::Revoked { index: of, .. } if *of == index));
    assert_eq!(ends.count(), 2, "freed, destroyed");
}
