// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory windows, bound and unbound as libmlx5 does.

use mlx5_spec::cq::syndrome;
use mlx5_spec::mkey::{access_mode, umr_flags, umr_mask};
use mlx5_spec::wqe::opcode;
use rnic_testdrive::{Access, Driver, MkeySpec, UmrSpec, Wqe};

use crate::scene::{Pair, machine};

/// The part of the responder's memory that a window is bound to.
const WINDOW: std::ops::Range<u64> = 100..300;

/// A window over a part of the responder's memory, bound by the responder's own queue pair as libmlx5 does: it may be written, by messages to
/// this queue pair only, until it is unbound or a SEND says so.
fn bound(pair: &Pair) -> u32 {
    let (start, len) = (pair.remote_mr.va + WINDOW.start, WINDOW.end - WINDOW.start);
    let spec = MkeySpec {
        mode: access_mode::KLM,
        free: true,
        octwords: Some(4),
        remote_invalidate: true,
        ..MkeySpec::mtt(pair.pd, Access::NONE, start, len, Vec::new())
    };
    let key = pair.driver.create_mkey(&spec).unwrap();
    let rights = Access { remote_write: true, ..Access::NONE };
    let bound = MkeySpec { free: false, qpn: pair.other.qpn, access: rights, variant: key as u8, ..spec };
    let bind = UmrSpec {
        key,
        flags: umr_flags::INLINE | umr_flags::TRANSLATION_OFFSET_EN | umr_flags::CHECK_IS_FREE,
        mask: umr_mask::FREE
            | umr_mask::KEY
            | umr_mask::QPN
            | umr_mask::LEN
            | umr_mask::START_ADDR
            | umr_mask::LW
            | umr_mask::RR
            | umr_mask::RW
            | umr_mask::A,
        context: bound.context(),
        first: 0,
        list: vec![len << 32 | u64::from(pair.remote_mr.key), start, 0, 0, 0, 0, 0, 0],
    };
    pair.other.run(bind.wqe(0, 0)).unwrap();
    key
}

#[test]
fn a_window_gives_what_it_is_bound_to_and_no_more() {
    let driver = Driver::probe(&machine()).unwrap();
    let scene = || {
        let pair = Pair::on(driver.clone(), |_| ());
        let key = bound(&pair);
        (pair, key)
    };
    let write = |pair: &Pair, key, at: u64, len| Wqe::write(pair.remote_mr.va + at, key).sge(pair.local_mr.sge(0, len));
    let refused = |pair: &Pair, wqe: Wqe| {
        pair.one.post_one(wqe.signaled());
        assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
    };
    let (pair, key) = scene();
    pair.local.fill_pattern(11);
    pair.one.run(write(&pair, key, WINDOW.start, 200)).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, WINDOW.start), 200);
    // One byte before, one behind; a READ; the variant of the window before.
    refused(&pair, write(&pair, key, WINDOW.start - 1, 8));
    let (pair, key) = scene();
    refused(&pair, write(&pair, key, WINDOW.start + 1, 200));
    let (pair, key) = scene();
    refused(&pair, Wqe::read(pair.remote_mr.va + WINDOW.start, key).sge(pair.local_mr.sge(0, 8)));
    let (pair, key) = scene();
    refused(&pair, write(&pair, key ^ 1, WINDOW.start, 8));
    // Another queue pair of the same domain.
    let (pair, (_owner, other)) = (scene().0, scene());
    refused(&pair, write(&pair, other, WINDOW.start, 8));
    // Unbound by its owner; by the peer.
    let (pair, key) = scene();
    let unbind = UmrSpec { flags: umr_flags::INLINE | umr_flags::CHECK_QPN, ..UmrSpec::revoke(key) };
    pair.other.run(unbind.wqe(0, 0)).unwrap();
    refused(&pair, write(&pair, key, WINDOW.start, 8));
    let (pair, key) = scene();
    pair.other.receive(&[pair.remote_mr.sge(0, 100)]);
    pair.one.run(Wqe::new(opcode::SEND_INVAL).immediate(key).sge(pair.local_mr.sge(0, 8))).unwrap();
    pair.other_cq.wait_ok().unwrap();
    refused(&pair, write(&pair, key, WINDOW.start, 8));
}
