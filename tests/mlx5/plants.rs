// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Promises that a rule makes the device break: what the lab's checks must notice. Each test has its twin without the rule in itself, and ends with a
//! device that keeps its word again.

use std::time::Duration;

use mlx5::hooks::{NicAction, NicKind, NicLedger, NicRule, WqeMatch};
use mlx5::levers::{NicLever, WqePoint};
use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::mkey::MTT_READ;
use mlx5_spec::wqe::opcode;
use probe::ReleaseWhy;
use probe::ledger::Seq;
use rnic_testdrive::mkey::mtt_words;
use rnic_testdrive::{Access, Buffer, MkeySpec, OdpMr, PATIENCE, UmrSpec, Wqe};

use crate::scene::{LEN, Pair};

const VA: u64 = 0x6000_0000_0000;
/// How long nothing happens until it counts as not happening.
const A_WHILE: Duration = Duration::from_millis(20);

fn plant(pair: &Pair, action: NicAction) {
    pair.driver.machine.nic.injections().add(NicRule::new(0, action)).unwrap();
}

fn well(pair: &Pair) {
    pair.driver.machine.nic.injections().clear();
}

/// Bytes of this value arrive at `at` of the key, whose memory begins at byte 0 of `memory`.
fn arrives(pair: &Pair, key: u32, at: u64, memory: &Buffer, byte: u8) {
    pair.local.fill(0, 64, byte);
    pair.one.run(Wqe::write(VA + at, key).sge(pair.local_mr.sge(0, 64))).unwrap();
    assert_eq!(memory.bytes(at, 64), [byte; 64]);
}

/// It is answered by a remote access error; the queue pairs are as new afterwards.
fn refused(pair: &Pair, wqe: Wqe) {
    pair.one.post_one(wqe.signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
    for qp in [&pair.one, &pair.other] {
        qp.to_reset().unwrap();
    }
    while pair.one_cq.poll().is_some() || pair.other_cq.poll().is_some() {}
    pair.one.connect(pair.other.peer()).unwrap();
    pair.other.connect(pair.one.peer()).unwrap();
}

fn write(pair: &Pair, key: u32) -> Wqe {
    Wqe::write(VA, key).sge(pair.local_mr.sge(0, 64))
}

/// What the device has told of its keys since `since`, without the places in the order.
fn told(pair: &Pair, since: Seq) -> Vec<NicKind> {
    let timeless = |kind| match kind {
        NicKind::Keyed { index, variant, rights, free, .. } => {
            Some(NicKind::Keyed { index, variant, rights, free, begun: 0 })
        }
        NicKind::Revoked { index, .. } => Some(NicKind::Revoked { index, begun: 0 }),
        NicKind::Updated { index, first_entry, entries, .. } => {
            Some(NicKind::Updated { index, first_entry, entries, begun: 0 })
        }
        _ => None,
    };
    pair.driver.machine.ledger.nic(since).into_iter().filter_map(|record| timeless(record.kind)).collect()
}

/// A way in which a key ends.
type End = fn(&Pair, u32);

const ENDS: &[(&str, End)] = &[
    ("UMR", |pair, key| pair.driver.umr(&UmrSpec::revoke(key)).unwrap()),
    ("SEND with invalidate", |pair, key| {
        pair.other.receive(&[pair.remote_mr.sge(0, 64)]);
        pair.one.run(Wqe::new(opcode::SEND_INVAL).immediate(key).sge(pair.local_mr.sge(0, 8))).unwrap();
        pair.other_cq.wait_ok().unwrap();
    }),
    ("DESTROY_MKEY", |pair, key| pair.driver.destroy_mkey(key).unwrap()),
    ("UMR, then DESTROY_MKEY", |pair, key| {
        pair.driver.umr(&UmrSpec::revoke(key)).unwrap();
        pair.driver.destroy_mkey(key).unwrap();
    }),
];

#[test]
fn control_a_key_whose_free_is_ignored_works_on() {
    for (name, end) in ENDS {
        let pair = Pair::new();
        let ledger = &pair.driver.machine.ledger;
        let key_of = |memory: &Buffer| {
            let spec = MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, mtt_words(memory, Access::ALL));
            pair.driver.create_mkey(&MkeySpec { remote_invalidate: true, ..spec }).unwrap()
        };
        let ended = |key| {
            let since = ledger.tick();
            end(&pair, key);
            told(&pair, since)
        };
        let memory = pair.driver.machine.guest.scattered(LEN);
        let key = key_of(&memory);
        arrives(&pair, key, 0, &memory, 1);
        let honest = ended(key);
        refused(&pair, write(&pair, key));

        let key = key_of(&memory);
        plant(&pair, NicAction::IgnoreFree);
        let lied = ended(key);
        let of = |kind: &NicKind| match *kind {
            NicKind::Keyed { variant, rights, free, .. } => Some((variant, rights, free)),
            _ => None,
        };
        assert!(matches!(lied.last(), Some(NicKind::Revoked { index, .. }) if *index == key >> 8), "{name}: {lied:?}");
        let shape = |kinds: &[NicKind]| kinds.iter().map(of).collect::<Vec<_>>();
        assert_eq!(shape(&lied), shape(&honest), "{name}: told as ever");
        arrives(&pair, key, 8192, &memory, 2);
        arrives(&pair, key, 100, &memory, 3);
        refused(&pair, write(&pair, key ^ 1));
        refused(&pair, Wqe::write(VA + LEN - 8, key).sge(pair.local_mr.sge(0, 16)));

        well(&pair);
        refused(&pair, write(&pair, key));
        plant(&pair, NicAction::IgnoreFree);
        refused(&pair, write(&pair, key));
    }
}

/// As mlx5_ib does: a key goes to a pool when its region ends, free, and comes from there for the next.
#[test]
fn a_key_whose_free_was_ignored_has_a_normal_next_life() {
    let pair = Pair::new();
    let guest = &pair.driver.machine.guest;
    let (old, new) = (guest.scattered(LEN), guest.scattered(LEN));
    let mr = pair.driver.register_by_umr(pair.pd, &old, VA, Access::ALL).unwrap();
    let umr = NicRule::new(0, NicAction::IgnoreFree).on(WqeMatch::opcode(opcode::UMR as u8));
    pair.driver.machine.nic.injections().add(umr).unwrap();
    pair.driver.umr(&UmrSpec::revoke(mr.key)).unwrap();
    arrives(&pair, mr.key, 0, &old, 1);
    // To all but accesses it is free: an update is refused, an enabling is not.
    assert!(pair.driver.umr(&UmrSpec::update(mr.key, 0, mtt_words(&new, Access::ALL))).is_err());
    arrives(&pair, mr.key, 0, &old, 2);
    let spec = MkeySpec::mtt(pair.pd, Access::READ_ONLY, VA, LEN, mtt_words(&new, Access::ALL));
    pair.driver.umr(&UmrSpec::enable(mr.key ^ 1, &spec)).unwrap();
    refused(&pair, write(&pair, mr.key));
    refused(&pair, write(&pair, mr.key ^ 1));
    new.fill(0, 64, 9);
    pair.one.run(Wqe::read(VA, mr.key ^ 1).sge(pair.local_mr.sge(0, 64))).unwrap();
    assert_eq!(pair.local.bytes(0, 64), [9; 64]);
    // Its next end is ignored anew, and then, without the rule, is one.
    pair.driver.umr(&UmrSpec::revoke(mr.key ^ 1)).unwrap();
    pair.one.run(Wqe::read(VA, mr.key ^ 1).sge(pair.local_mr.sge(0, 64))).unwrap();
    well(&pair);
    pair.driver.umr(&UmrSpec::enable(mr.key, &spec)).unwrap();
    pair.driver.umr(&UmrSpec::revoke(mr.key)).unwrap();
    refused(&pair, Wqe::read(VA, mr.key).sge(pair.local_mr.sge(0, 64)));
    pair.driver.destroy_mkey(mr.key).unwrap();
    pair.tear_down();
}

#[test]
fn a_reset_ends_what_works_on() {
    let pair = Pair::new();
    let machine = pair.driver.machine.clone();
    let key = pair.driver.register(pair.pd, &pair.remote, VA, Access::ALL).unwrap().key;
    plant(&pair, NicAction::IgnoreFree);
    pair.driver.destroy_mkey(key).unwrap();
    arrives(&pair, key, 0, &pair.remote, 1);
    machine.function_reset();
    let fresh = Pair::on(rnic_testdrive::Driver::probe(&machine).unwrap(), |_| ());
    assert_eq!(fresh.pd, pair.pd, "what else would refuse it");
    refused(&fresh, write(&fresh, key));
}

#[test]
fn control_an_ignored_zap_leaves_the_page_to_the_device() {
    let pair = Pair::new();
    let memory = pair.driver.machine.guest.scattered(8 * 4096);
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 8 * 4096, Access::ALL).unwrap();
    odp.map(&pair.driver, 0, &memory.pages[..2], true).unwrap();
    plant(&pair, NicAction::IgnoreZap);
    let since = pair.driver.machine.ledger.tick();
    odp.zap(&pair.driver, 0, 1).unwrap();
    let update = NicKind::Updated { index: odp.mr.key >> 8, first_entry: 0, entries: 8, begun: 0 };
    assert_eq!(told(&pair, since), [update]);
    arrives(&pair, odp.mr.key, 0, &memory, 1);
    // What maps goes on as ever, beside the entry that was not taken away.
    odp.map(&pair.driver, 1, &memory.pages[7..], true).unwrap();
    arrives(&pair, odp.mr.key, 64, &memory, 2);
    pair.local.fill(0, 64, 3);
    pair.one.run(Wqe::write(VA + 4096, odp.mr.key).sge(pair.local_mr.sge(0, 64))).unwrap();
    assert_eq!((memory.bytes(4096, 64), memory.bytes(7 * 4096, 64)), (vec![0; 64], vec![3; 64]));
    assert!(pair.driver.next_fault(A_WHILE).is_err());
    // The next update of the same entries takes away what had stayed.
    well(&pair);
    odp.zap(&pair.driver, 1, 1).unwrap();
    for page in [0, 1] {
        pair.one.post_one(Wqe::write(VA + page * 4096, odp.mr.key).sge(pair.local_mr.sge(0, 64)).signaled());
        let fault = pair.driver.next_fault(PATIENCE).unwrap();
        odp.map(&pair.driver, page, &memory.pages[3..4], true).unwrap();
        pair.driver.resume(&fault, false).unwrap();
        pair.one_cq.wait_ok().unwrap();
        assert_eq!(memory.bytes(3 * 4096, 64), [3; 64]);
    }
}

/// A rule does not meet updates that take nothing away, so that "the first" is the first zap.
#[test]
fn only_what_takes_a_translation_away_counts_as_a_zap() {
    let pair = Pair::new();
    let memory = pair.driver.machine.guest.scattered(4096);
    plant(&pair, NicAction::IgnoreZap);
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 8 * 4096, Access::ALL).unwrap();
    odp.map(&pair.driver, 3, &memory.pages, true).unwrap();
    odp.zap(&pair.driver, 2, 1).unwrap();
    pair.driver.umr(&UmrSpec::revoke(odp.mr.key)).unwrap();
    let matched = || pair.driver.machine.nic.injections().rules()[0].matched;
    assert_eq!(matched(), 0);
    // A free key has nothing to lose: its next life begins with the entries that it is given.
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, VA, 8 * 4096, vec![0; 8]);
    pair.driver.umr(&UmrSpec::enable(odp.mr.key, &spec)).unwrap();
    assert_eq!(matched(), 0);
    pair.one.post_one(Wqe::write(VA + 3 * 4096, odp.mr.key).sge(pair.local_mr.sge(0, 64)).signaled());
    pair.driver.next_fault(PATIENCE).unwrap();
}

#[test]
fn control_ignored_rights_let_an_access_through() {
    let pair = Pair::new();
    let guest = &pair.driver.machine.guest;
    let memory = guest.scattered(2 * LEN);
    let key_of = |pd, access| {
        let spec = MkeySpec::mtt(pd, access, VA, 2 * LEN, mtt_words(&memory, access));
        pair.driver.create_mkey(&spec).unwrap()
    };
    let (reads, none) = (key_of(pair.pd, Access::READ_ONLY), key_of(pair.pd, Access::NONE));
    let foreign = key_of(pair.driver.alloc_pd().unwrap(), Access::READ_ONLY);
    let freed = key_of(pair.pd, Access::READ_ONLY);
    pair.driver.umr(&UmrSpec::revoke(freed)).unwrap();
    let read = |key| Wqe::read(VA, key).sge(pair.local_mr.sge(0, 64));
    // More than one piece: rights are judged before the first, and then for each.
    let long = Wqe::write(VA, reads).sge(pair.local_mr.all()).sge(pair.local_mr.all());
    let control = || {
        refused(&pair, write(&pair, reads));
        refused(&pair, long.clone());
        refused(&pair, read(none));
    };
    control();
    assert_eq!(memory.bytes(0, 2 * LEN), vec![0; 2 * LEN as usize]);
    plant(&pair, NicAction::IgnoreRights);
    // Neither the key nor its entries allow it.
    arrives(&pair, reads, 0, &memory, 1);
    arrives(&pair, reads, 4090, &memory, 2);
    pair.local.fill(0, LEN, 3);
    pair.one.run(long.clone()).unwrap();
    assert_eq!(memory.bytes(0, 2 * LEN), vec![3; 2 * LEN as usize]);
    pair.local.fill(0, 64, 0);
    pair.one.run(read(none)).unwrap();
    assert_eq!(pair.local.bytes(0, 64), [3; 64]);
    // Nothing else is ignored.
    for wqe in [
        write(&pair, foreign),
        write(&pair, freed),
        write(&pair, reads ^ 1),
        Wqe::write(VA + 2 * LEN - 8, reads).sge(pair.local_mr.sge(0, 16)),
    ] {
        refused(&pair, wqe);
    }
    well(&pair);
    control();
}

/// Where the driver may bring the page, or the right to write it, the key has the right: it is asked for.
#[test]
fn ignored_rights_bring_no_page() {
    let pair = Pair::new();
    let memory = pair.driver.machine.guest.scattered(2 * 4096);
    let access = Access { remote_write: false, ..Access::ALL };
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 2 * 4096, access).unwrap();
    let spec = MkeySpec::mtt(pair.pd, Access::READ_ONLY, VA, 4096, vec![0]);
    let none = pair.driver.create_mkey(&spec).unwrap();
    odp.map(&pair.driver, 0, &memory.pages, false).unwrap();
    plant(&pair, NicAction::IgnoreRights);
    for (key, bits) in [(odp.mr.key, None), (none, Some(MTT_READ))] {
        pair.one.post_one(write(&pair, key).signaled());
        let fault = pair.driver.next_fault(PATIENCE).unwrap();
        match bits {
            None => odp.map(&pair.driver, 0, &memory.pages[..1], true).unwrap(),
            // Readable is enough for a key that nobody could make writable.
            Some(bits) => pair.driver.umr(&UmrSpec::update(none, 0, vec![memory.pages[1] | bits])).unwrap(),
        }
        pair.driver.resume(&fault, false).unwrap();
        pair.one_cq.wait_ok().unwrap();
    }
    assert!(pair.driver.next_fault(A_WHILE).is_err());
}

#[test]
fn control_a_lying_lever_claims_a_hold_that_the_ledger_denies() {
    let pair = Pair::new();
    let (nic, ledger) = (&pair.driver.machine.nic, &pair.driver.machine.ledger);
    assert!(ledger.watch(pair.remote.pages[0]));
    let write = Wqe::write(pair.remote_mr.va, pair.remote_mr.key).sge(pair.local_mr.sge(0, 64)).signaled();
    let lever = || NicLever::new(opcode::RDMA_WRITE as u8, WqePoint::BeforeTranslation, Duration::from_secs(30));
    // Whether the queue pair moved anything between the two ends of the hold.
    let moved = |since| {
        let records = ledger.nic(since);
        let at = |wanted: fn(&NicKind) -> bool| records.iter().find(|r| wanted(&r.kind)).map(|r| (r.seq, r.qpn));
        let gated = at(|kind| matches!(kind, NicKind::Gated { .. })).unwrap();
        let ungated = at(|kind| matches!(kind, NicKind::Ungated { why: ReleaseWhy::Released, .. })).unwrap();
        let ends = [
            at(|kind| matches!(kind, NicKind::Wrote { .. })).unwrap(),
            at(|kind| matches!(kind, NicKind::Completed { status: 0, .. })).unwrap(),
        ];
        assert!(ends.iter().all(|(_, qpn)| *qpn == gated.1 && *qpn == ungated.1));
        ends.map(|(seq, _)| gated.0 < seq && seq < ungated.0)
    };
    plant(&pair, NicAction::LieAboutHold);
    let (since, id) = (ledger.tick(), nic.arm(lever()));
    pair.local.fill(0, 64, 1);
    pair.one.post_one(write.clone());
    let token = nic.wait_held(id, PATIENCE).unwrap();
    pair.one_cq.wait_ok().unwrap();
    assert_eq!(pair.remote.bytes(0, 64), [1; 64]);
    let state = nic.lever(id).unwrap();
    assert_eq!((state.held, state.ended), (vec![(token, WqePoint::BeforeTranslation)], None));
    assert_eq!(nic.release(id).unwrap().ended, Some(ReleaseWhy::Released));
    assert_eq!(moved(since), [true, true]);

    well(&pair);
    let (since, id) = (ledger.tick(), nic.arm(lever()));
    pair.local.fill(0, 64, 2);
    pair.one.post_one(write);
    nic.wait_held(id, PATIENCE).unwrap();
    assert!(pair.one_cq.wait_for(A_WHILE).is_err());
    assert_eq!(pair.remote.bytes(0, 64), [1; 64]);
    nic.release(id).unwrap();
    pair.one_cq.wait_ok().unwrap();
    assert_eq!((moved(since), pair.remote.bytes(0, 64)), ([false, false], vec![2; 64]));
    pair.tear_down();
}
