// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory keys and UMR (contract 8).

use mlx5_spec::cq::{opcode as cqe_opcode, syndrome};
use mlx5_spec::mkey::{MKC_SIZE, REPEAT_BLOCK, access_mode, mkc, umr_flags, umr_mask};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::mkey::{mtt_words, octwords};
use rnic_testdrive::{Access, Error, MkeySpec, UmrSpec, Wqe};

use crate::scene::{LEN, Pair, REMOTE_VA};

const VA: u64 = 0x1234_5000_0000;

#[test]
fn registration_by_umr_works_as_by_command() {
    let pair = Pair::new();
    pair.local.fill_pattern(1);
    let memory = pair.driver.machine.guest.scattered(LEN);
    // Unaligned: the first entry covers the page of the first byte.
    let mr = pair.driver.register_by_umr(pair.pd, &memory, VA, Access::ALL).unwrap();
    pair.one.run(Wqe::write(VA + 5, mr.key).sge(pair.local_mr.sge(0, 20_000))).unwrap();
    pair.assert_copied((&pair.local, 0), (&memory, 5), 20_000);
    pair.driver.umr(&UmrSpec::revoke(mr.key)).unwrap();
    pair.one.post_one(Wqe::write(VA, mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().outcome(), (cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR));
    pair.driver.destroy_mkey(mr.key).unwrap();
    pair.tear_down();
}

#[test]
fn a_region_that_begins_inside_a_page() {
    let pair = Pair::new();
    pair.local.fill_pattern(2);
    let memory = pair.driver.machine.guest.scattered(3 * 4096);
    let start = VA + 100;
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, start, 2 * 4096, mtt_words(&memory, Access::ALL));
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.one.run(Wqe::write(start + 50, key).sge(pair.local_mr.sge(0, 8000))).unwrap();
    pair.assert_copied((&pair.local, 0), (&memory, 150), 8000);
    pair.one.post_one(Wqe::write(start + 200, key).sge(pair.local_mr.sge(0, 8000)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error(), "the last page has room, the key has not");
}

#[test]
fn large_pages() {
    let pair = Pair::new();
    pair.local.fill_pattern(3);
    let memory = pair.driver.machine.guest.contiguous(4 << 20);
    let base = memory.gpa(0).next_multiple_of(1 << 20);
    let list = vec![base | 3, (base + (2 << 20)) | 3];
    let spec = MkeySpec { log_page: 20, ..MkeySpec::mtt(pair.pd, Access::ALL, VA, 2 << 20, list) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    // Across the border of the two pages, which do not follow one another.
    pair.one.run(Wqe::write(VA + (1 << 20) - 100, key).sge(pair.local_mr.sge(0, 300))).unwrap();
    let mut got = [0; 300];
    pair.driver.machine.guest.read(base + (1 << 20) - 100, &mut got[..100]);
    pair.driver.machine.guest.read(base + (2 << 20), &mut got[100..]);
    assert!(got.as_slice() == pair.local.bytes(0, 300));
}

#[test]
fn indirect_keys_lead_to_their_children() {
    let pair = Pair::new();
    pair.local.fill_pattern(4);
    // KSM: entry i is 64 KiB of child i.
    let entry = |key: u32, va: u64| [u64::from(key), va];
    let list = [entry(pair.remote_mr.key, REMOTE_VA), entry(pair.local_mr.key, pair.local_mr.va)].concat();
    let ksm =
        MkeySpec { mode: access_mode::KSM, log_page: 16, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, 2 * LEN, list) };
    let key = pair.driver.create_mkey(&ksm).unwrap();
    pair.one.run(Wqe::write(777, key).sge(pair.local_mr.sge(1, 9000))).unwrap();
    pair.assert_copied((&pair.local, 1), (&pair.remote, 777), 9000);
    // KLM: pieces of any length.
    let klm = |len: u64, key: u32, va: u64| [len << 32 | u64::from(key), va];
    let list = [klm(100, pair.remote_mr.key, REMOTE_VA + 40_000), klm(5000, pair.remote_mr.key, REMOTE_VA + 50_000)];
    let spec = MkeySpec { mode: access_mode::KLM, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, 5100, list.concat()) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.one.run(Wqe::write(0, key).sge(pair.local_mr.sge(0, 5100))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 40_000), 100);
    pair.assert_copied((&pair.local, 100), (&pair.remote, 50_000), 5000);
}

/// An entry of a list, a block that repeats, and an entry of such a block.
fn plain(pair: &Pair, len: u64, at: u64) -> [u64; 2] {
    [len << 32 | u64::from(pair.remote_mr.key), REMOTE_VA + at]
}

fn block(bytes: u64, times: u64, entries: u64) -> [u64; 2] {
    [bytes << 32 | u64::from(REPEAT_BLOCK), times << 32 | entries]
}

fn column(pair: &Pair, stride: u64, bytes: u64, at: u64) -> [u64; 2] {
    [stride << 48 | bytes << 32 | u64::from(pair.remote_mr.key), REMOTE_VA + at]
}

fn listed(pair: &Pair, list: &[[u64; 2]], len: u64) -> u32 {
    let spec = MkeySpec { mode: access_mode::KLM, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, len, list.concat()) };
    pair.driver.create_mkey(&spec).unwrap()
}

/// Two columns of a table of rows, interleaved; a plain entry before them and one behind.
#[test]
fn a_block_of_a_list_repeats() {
    let pair = Pair::new();
    let list = [
        plain(&pair, 10, 50_000),
        block(12, 20, 2),
        column(&pair, 64, 8, 3),
        column(&pair, 100, 4, 30_000),
        plain(&pair, 30, 60_000),
    ];
    let strided = listed(&pair, &list, 280);
    pair.remote.fill_pattern(9);
    let byte = |at: u64| match at {
        0..10 => 50_000 + at,
        10..250 => match ((at - 10) / 12, (at - 10) % 12) {
            (time, inside @ 0..8) => 3 + time * 64 + inside,
            (time, inside) => 30_000 + time * 100 + inside - 8,
        },
        _ => 60_000 + at - 250,
    };
    for (from, len) in [(0, 280), (9, 2), (17, 30), (249, 2), (250, 30), (21, 1), (22, 228), (100, 100)] {
        pair.one.run(Wqe::read(from, strided).sge(pair.local_mr.sge(0, len as u32))).unwrap();
        let expected: Vec<u8> = (from..from + len).map(|at| pair.remote.bytes(byte(at), 1)[0]).collect();
        assert!(pair.local.bytes(0, len) == expected, "{len} bytes at {from}");
    }
}

#[test]
fn a_block_that_does_not_add_up_is_refused_when_used() {
    type List = fn(&Pair) -> [[u64; 2]; 3];
    let lists: [List; 7] = [
        |pair| [block(13, 2, 2), column(pair, 64, 8, 3), column(pair, 64, 4, 3)],
        |pair| [block(11, 2, 2), column(pair, 64, 8, 3), column(pair, 64, 4, 3)],
        |pair| [block(12, 20, 0), plain(pair, 0, 0), plain(pair, 0, 0)],
        |pair| [block(12, 20, 0xffff), column(pair, 64, 0, 3), column(pair, 64, 0, 3)],
        |pair| [block(12, 20, 2), block(12, 20, 2), column(pair, 64, 12, 3)],
        |pair| [block(0, u64::from(u32::MAX), 2), column(pair, 64, 0, 3), column(pair, 64, 0, 3)],
        |pair| [block(u64::from(u32::MAX), u64::from(u32::MAX), 2), column(pair, 0xffff, 8, 3), column(pair, 1, 4, 3)],
    ];
    for list in lists {
        let pair = Pair::new();
        let list = list(&pair);
        let key = listed(&pair, &list, 24);
        pair.one.post_one(Wqe::read(5, key).sge(pair.local_mr.sge(0, 19)).signaled());
        assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR, "{list:x?}");
    }
}

#[test]
fn a_key_that_leads_to_itself_is_refused_when_used() {
    let pair = Pair::new();
    let spec =
        MkeySpec { mode: access_mode::KSM, log_page: 16, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, LEN, vec![0, 0]) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    let mut list = vec![u64::from(key), 0];
    list.resize(8, 0);
    pair.driver.umr(&UmrSpec::update(key, 0, list)).unwrap();
    pair.one.post_one(Wqe::write(0, key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert!(pair.one_cq.wait().unwrap().is_error());
}

#[test]
fn umr_checks_what_its_flags_say() {
    let pair = Pair::new();
    let list = mtt_words(&pair.remote, Access::ALL);
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, list.clone());
    let octwords = Some(octwords(list.len() as u64));
    let free = pair.driver.create_mkey(&MkeySpec { free: true, octwords, list: Vec::new(), ..spec.clone() }).unwrap();
    // An update of a free key, and an enabling of one that is not free.
    assert!(matches!(pair.driver.umr(&UmrSpec::update(free, 0, list)), Err(Error::Completion(_))));
    pair.driver.umr(&UmrSpec::enable(free, &spec)).unwrap();
    assert!(matches!(pair.driver.umr(&UmrSpec::enable(free, &spec)), Err(Error::Completion(_))));
    assert!(matches!(pair.driver.umr(&UmrSpec::revoke(0x00ab_cd00)), Err(Error::Completion(_))), "no such key");
    // The queue pair recovered each time; the key still works.
    pair.one.run(Wqe::write(VA, free).sge(pair.local_mr.sge(0, 8))).unwrap();
}

#[test]
fn umr_changes_only_what_its_mask_says() {
    let pair = Pair::new();
    let mr = pair.driver.register_by_umr(pair.pd, &pair.remote, VA, Access::ALL).unwrap();
    let mut context = vec![0; MKC_SIZE];
    mkc::RR.set(&mut context, 1);
    let mask = umr_mask::RW | umr_mask::RR;
    let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::INLINE;
    pair.driver.umr(&UmrSpec { key: mr.key, flags, mask, context, first: 0, list: Vec::new() }).unwrap();
    pair.one.run(Wqe::read(VA, mr.key).sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.one.post_one(Wqe::write(VA, mr.key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR, "the right to write is gone");
}

#[test]
fn an_update_replaces_the_entries_it_names() {
    let pair = Pair::new();
    pair.local.fill_pattern(5);
    let mr = pair.driver.register_by_umr(pair.pd, &pair.remote, VA, Access::ALL).unwrap();
    let fresh = pair.driver.machine.guest.scattered(8 * 4096);
    pair.driver.umr(&UmrSpec::update(mr.key, 8, mtt_words(&fresh, Access::ALL))).unwrap();
    pair.one.run(Wqe::write(VA, mr.key).sge(pair.local_mr.all())).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 8 * 4096);
    pair.assert_copied((&pair.local, 8 * 4096), (&fresh, 0), 8 * 4096);
    assert!(pair.remote.bytes(8 * 4096, 8 * 4096).iter().all(|byte| *byte == 0));
}

#[test]
fn an_update_beyond_the_table_harms_nobody() {
    let pair = Pair::new();
    let mr = pair.driver.register_by_umr(pair.pd, &pair.remote, VA, Access::ALL).unwrap();
    for first in [16, 1 << 20, 1 << 40] {
        let _ = pair.driver.umr(&UmrSpec::update(mr.key, first, vec![u64::MAX; 64]));
    }
    pair.one.run(Wqe::write(VA, mr.key).sge(pair.local_mr.all())).unwrap();
    pair.driver.destroy_mkey(mr.key).unwrap();
    pair.tear_down();
}

#[test]
fn a_send_with_invalidate_frees_the_key() {
    let pair = Pair::new();
    let list = mtt_words(&pair.remote, Access::ALL);
    let spec =
        MkeySpec { remote_invalidate: true, qpn: pair.other.qpn, ..MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, list) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.one.run(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.one.run(Wqe::new(opcode::SEND_INVAL).immediate(key).sge(pair.local_mr.sge(0, 8))).unwrap();
    let cqe = pair.other_cq.wait_ok().unwrap();
    assert_eq!((cqe.opcode(), cqe.immediate()), (cqe_opcode::RESP_SEND_INV, key));
    pair.one.post_one(Wqe::write(VA, key).sge(pair.local_mr.sge(0, 8)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
}

#[test]
fn absurd_keys_are_refused_or_harmless() {
    let pair = Pair::new();
    let base = MkeySpec::mtt(pair.pd, Access::ALL, VA, LEN, vec![0; 16]);
    for spec in [
        MkeySpec { octwords: Some(u32::MAX), ..base.clone() },
        MkeySpec { len: u64::MAX, start: u64::MAX, ..base.clone() },
        MkeySpec { log_page: 0, ..base.clone() },
        MkeySpec { log_page: 63, ..base.clone() },
        MkeySpec { len: 1 << 50, ..base.clone() },
        MkeySpec { mode: access_mode::KLM, ..base.clone() },
        MkeySpec { mode: 0x1f, ..base.clone() },
    ] {
        if let Ok(key) = pair.driver.create_mkey(&spec) {
            let fresh = Pair::on(pair.driver.clone(), |_| ());
            fresh.one.post_one(Wqe::write(VA + LEN - 4, key).sge(fresh.local_mr.sge(0, 8)).signaled());
            let _ = fresh.one_cq.wait().unwrap();
        }
    }
}
