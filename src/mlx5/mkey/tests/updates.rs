// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys that UMRs and invalidations change, and what waits for DMA in flight.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::*;
use crate::bus::Counter;
use crate::mkey::umr::{self, UmrError};
use mlx5_spec::mkey::{umr_ctrl, umr_flags, umr_mask};
use mlx5_spec::wqe::{ctrl, data, opcode};

/// A UMR WQE in the making.
struct Umr {
    bytes: Vec<u8>,
}

impl Umr {
    fn new(key: u32, flags: u32, mask: u64, context: &[u8]) -> Self {
        let mut bytes = vec![0; 128];
        ctrl::OPCODE.set(&mut bytes, opcode::UMR);
        ctrl::UMR_MKEY.set(&mut bytes, key);
        umr_ctrl::FLAGS.plus(16).set(&mut bytes, flags);
        umr_ctrl::MKEY_MASK.set(&mut bytes[16..], mask);
        bytes[64..128].copy_from_slice(context);
        Self { bytes }
    }

    /// Only translations, at octword `offset`.
    fn zap(key: u32, offset: u64) -> Self {
        let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::TRANSLATION_OFFSET_EN;
        let mut umr = Self::new(key, flags, 0, &[0; MKC_SIZE]);
        umr_ctrl::XLT_OFFSET_15_0.plus(16).set(&mut umr.bytes, offset as u32 & 0xffff);
        umr_ctrl::XLT_OFFSET_47_16.plus(16).set(&mut umr.bytes, (offset >> 16) as u32);
        umr
    }

    fn inline(mut self, list: &[u64]) -> Self {
        let flags = umr_ctrl::FLAGS.plus(16).get(&self.bytes) | umr_flags::INLINE;
        umr_ctrl::FLAGS.plus(16).set(&mut self.bytes, flags);
        umr_ctrl::XLT_OCTOWORDS.plus(16).set(&mut self.bytes, list.len() as u32 / 2);
        self.bytes.extend(words(list));
        self
    }

    fn pointer(mut self, octwords: u32, lkey: u32, va: u64) -> Self {
        umr_ctrl::XLT_OCTOWORDS.plus(16).set(&mut self.bytes, octwords);
        let mut segment = vec![0; data::SIZE];
        data::BYTE_COUNT.set(&mut segment, octwords * 16);
        data::LKEY.set(&mut segment, lkey);
        data::ADDR.set(&mut segment, va);
        self.bytes.extend(segment);
        self
    }

    fn post(&self, hca: &Hca, (qp, attrs): &(Arc<Qp>, Arc<QpAttrs>)) -> Result<(), UmrError> {
        umr::execute(hca, 0, attrs, qp.qpn, &self.bytes)
    }
}

fn count(counter: &Counter) -> u64 {
    counter.get()
}

const FREE: [u8; MKC_SIZE] = {
    let mut bytes = [0; MKC_SIZE];
    bytes[0] = 0x40;
    bytes
};
const REGISTER: u64 = umr_mask::LEN
    | umr_mask::LOG_PAGE_SIZE
    | umr_mask::START_ADDR
    | umr_mask::PD
    | umr_mask::KEY
    | umr_mask::LR
    | umr_mask::LW
    | umr_mask::RR
    | umr_mask::RW
    | umr_mask::A
    | umr_mask::FREE;

/// As a driver registers on-demand memory (contract 9.1): a free key of the UMR's PD, then a UMR that enables it.
#[test]
fn a_key_is_registered_zapped_and_revoked_by_umr() {
    let hca = hca();
    let umr = queue_pair(&hca, service_type::REG_UMR, KERNEL_PD, true);
    let lkey = create(&hca, &with(context(access_mode::PA, KERNEL_PD, 0, 0, 0), mkc::LENGTH64, 1), &[], false).unwrap();
    let free = with(context(access_mode::MTT, KERNEL_PD, 0, 0, 0), mkc::FREE, 1);
    let key = create(&hca, &octwords(free, 600), &[], true).unwrap();
    // A list that is longer than one section reads, with entries up to 7 beyond the last page.
    let pages: Vec<u64> = (0..1200).map(|page| if page < 1030 { page << 12 | 3 } else { 0 }).collect();
    hca.dma.write(0x18_0000, &words(&pages)).unwrap();
    let target = with(context(access_mode::MTT, PD, 0x10_0000, 1030 << 12, 12), mkc::MKEY_7_0, 0x77);
    let enable = Umr::new(key.index << 8 | 0x5a, umr_flags::CHECK_IS_FREE, REGISTER, &target);
    let enable = enable.pointer(600, lkey.key(), 0x18_0000);
    enable.post(&hca, &umr).unwrap();
    let now = key.key();
    assert_eq!(now & 0xff, 0x77);
    assert_eq!(look(&hca, &access(now, 0x10_0000 + (1029 << 12), 4096)), Ok((4096, vec![(1029 << 12, 4096)])));
    assert!(matches!(enable.post(&hca, &umr), Err(UmrError::Refused { why: "it is not free", .. })));
    // Zap entries 8 to 15: by whatever variant.
    Umr::zap(key.index << 8, 4).inline(&[0; 8]).post(&hca, &umr).unwrap();
    let found = look(&hca, &access(now, 0x10_0000, 16 << 12));
    assert_eq!(found, Ok((8 << 12, vec![(0, 8 << 12)])));
    assert_eq!(
        look(&hca, &access(now, 0x10_8000, 1)),
        Err(AccessError::Missing(PageMissing { key: now, va: 0x10_8000 }))
    );
    // Revoke: free, and back to the UMR's PD.
    let revoked = with(FREE, mkc::PD, KERNEL_PD);
    let revoke = Umr::new(now, umr_flags::INLINE, umr_mask::PD | umr_mask::FREE, &revoked);
    revoke.post(&hca, &umr).unwrap();
    assert_eq!(why(&hca, &access(now, 0x10_0000, 1)), "it is free");
    assert!(matches!(Umr::zap(now, 0).inline(&[0; 2]).post(&hca, &umr), Err(UmrError::Free(_))));
    assert_eq!((key.zaps.load(Ordering::Relaxed), count(&hca.counters.umrs)), (3, 3));
    let (context, first) = key.query();
    assert_eq!((mkc::PD.get(&context), mkc::START_ADDR.get(&context)), (KERNEL_PD, 0x10_0000));
    assert_eq!(first[8..16], 0x1003u64.to_be_bytes());
    // The ledger has it in order.
    let kinds: Vec<_> = hca.ledger.nic(0).into_iter().map(|record| (record.seq, record.kind)).collect();
    let index = key.index;
    assert!(
        matches!(
            kinds[..],
            [
                // Of the keys that were made; the one of the list gives the same.
                (_, NicKind::Keyed { .. }),
                (_, NicKind::Keyed { .. }),
                (_, NicKind::Keyed { index: enabled, variant: 0x77, rights: Rights(0x1f), free: false, begun: same }),
                (_, NicKind::Updated { first_entry: 0, entries: 1200, begun: one, .. }),
                (_, NicKind::Updated { first_entry: 8, entries: 8, .. }),
                (told, NicKind::Keyed { index: freed, variant: 0x77, rights: Rights(0x1f), free: true, .. }),
                (seq, NicKind::Revoked { begun, .. })
            ] if same == one && begun < told && told < seq && [enabled, freed] == [index; 2]
        ),
        "{kinds:x?}"
    );
}

#[test]
fn lists_that_do_not_fit_are_refused_whole_and_never_panic() {
    let hca = hca();
    let umr = queue_pair(&hca, service_type::REG_UMR, PD, true);
    let key = mtt(&hca, 0, 0x8000, &[3, 0x1003, 0x2003, 0x3003, 0x4003, 0x5003, 0x6003, 0x7003]);
    let all = create(&hca, &with(context(access_mode::PA, PD, 0, 0, 0), mkc::LENGTH64, 1), &[], false).unwrap().key();
    let result = |umr_wqe: Umr| umr_wqe.post(&hca, &umr).unwrap_err();
    // The table has 4 octwords: one of the list would fit, three would not.
    assert_eq!(result(Umr::zap(key.key(), 3).inline(&[0x9003; 8])), UmrError::Beyond(key.key()));
    assert_eq!(result(Umr::zap(key.key(), 0).pointer(5, all, 0)), UmrError::Beyond(key.key()));
    // A data segment of fewer bytes than the octwords announce.
    let mut brief = Umr::zap(key.key(), 0).pointer(4, all, 0);
    data::BYTE_COUNT.set(&mut brief.bytes[128..], 63);
    assert_eq!(result(brief), UmrError::CutShort);
    assert_eq!(key.entries[7].load(Ordering::Relaxed), 0x7003);
    assert_eq!(key.zaps.load(Ordering::Relaxed), 0);
    Umr::zap(key.key(), 3).inline(&[0x9003; 2]).post(&hca, &umr).unwrap();
    assert_eq!([5, 7].map(|at: usize| key.entries[at].load(Ordering::Relaxed)), [0x5003, 0x9003]);
    let beyond = result(Umr::zap(key.key(), 4).inline(&[0; 2]));
    assert!(matches!(beyond, UmrError::Beyond(_)));
    let beyond = result(Umr::zap(key.key(), u64::MAX >> 16).inline(&[0; 2]));
    assert_eq!(beyond.syndrome(), Some(6));
    let mut short = Umr::zap(key.key(), 0).inline(&[0; 4]);
    short.bytes.truncate(150);
    assert_eq!(result(short), UmrError::CutShort);
    assert_eq!(result(Umr::zap(key.key(), 0).pointer(4, all ^ 1, 0)).syndrome(), Some(4));
    assert!(matches!(result(Umr::zap(key.key(), 0).pointer(4, all, RAM - 8)), UmrError::Dma(_)));
    assert!(matches!(result(Umr::zap(key.key(), 0).pointer(4, all, u64::MAX - 8)), UmrError::List(_)));
    assert_eq!(result(Umr::zap(0x00de_ad00, 0)), UmrError::NoKey(0x00de_ad00));
    for len in 0..128 {
        let bytes = &Umr::zap(key.key(), 0).bytes[..len];
        assert_eq!(umr::execute(&hca, 0, &umr.1, umr.0.qpn, bytes), Err(UmrError::CutShort));
    }
    hca.dma.write(0, &[0; 8]).unwrap();
}

#[test]
fn other_queue_pairs_change_only_what_is_theirs() {
    let hca = hca();
    let (kernel, user) = (queue_pair(&hca, service_type::RC, PD, true), queue_pair(&hca, service_type::RC, PD, false));
    let stranger = queue_pair(&hca, service_type::RC, KERNEL_PD, true);
    let key = mtt(&hca, 0, 0x1000, &[0x1003, 0]);
    let refused = |result: Result<(), UmrError>| matches!(result, Err(UmrError::Refused { .. }));
    let update = Umr::zap(key.key(), 0).inline(&[0x2003, 0]);
    assert!(refused(update.post(&hca, &user)), "a process must not write page addresses");
    assert!(refused(update.post(&hca, &stranger)));
    update.post(&hca, &kernel).unwrap();
    let elsewhere = Umr::new(key.key(), 0, umr_mask::PD, &with([0; MKC_SIZE], mkc::PD, KERNEL_PD));
    assert!(refused(elsewhere.post(&hca, &kernel)));
    let enable = Umr::new(key.key(), 0, umr_mask::FREE, &[0; MKC_SIZE]);
    assert!(refused(enable.post(&hca, &user)));
    // Invalidation is a process's right; a key without umr_en is nobody's.
    Umr::new(key.key(), umr_flags::INLINE, umr_mask::FREE, &FREE).post(&hca, &user).unwrap();
    assert!(key.state().free);
    let fixed = create(&hca, &with(context(access_mode::KLM, PD, 0, 8, 0), mkc::UMR_EN, 0), &[], true).unwrap();
    assert!(refused(Umr::new(fixed.key(), 0, umr_mask::FREE, &FREE).post(&hca, &kernel)));
    // A window is bound by a process.
    let window = octwords(with(context(access_mode::KLM, PD, 0, 0, 0), mkc::FREE, 1), 4);
    let window = create(&hca, &window, &[], true).unwrap();
    let bind = with(context(access_mode::KLM, PD, 0, 8, 0), mkc::QPN, user.0.qpn);
    let flags = umr_flags::CHECK_IS_FREE | umr_flags::TRANSLATION_OFFSET_EN;
    let bind = Umr::new(window.key(), flags, REGISTER & !umr_mask::PD | umr_mask::QPN, &bind);
    let region = mtt(&hca, 0, 0x1000, &[0x4003, 0]);
    let list = [entry(8, region.key(), 0x10), [0; 2], [0; 2], [0; 2]].concat();
    bind.inline(&list).post(&hca, &user).unwrap();
    let through = Access { qpn: user.0.qpn, ..access(window.key(), 0, 8) };
    assert_eq!(look(&hca, &through), Ok((8, vec![(0x4010, 8)])));
    assert!(refused(Umr::new(window.key(), umr_flags::CHECK_QPN, umr_mask::FREE, &FREE).post(&hca, &kernel)));
    Umr::new(window.key(), umr_flags::CHECK_QPN, umr_mask::FREE, &FREE).post(&hca, &user).unwrap();
}

/// As the engine of the message asks for it.
fn invalidate(hca: &Hca, (qp, attrs): &(Arc<Qp>, Arc<QpAttrs>), key: u32) -> Result<(), UmrError> {
    umr::invalidate_remote(hca, (qp, attrs), key, || {
        let section = hca.quiesce.enter(0);
        qp.in_force(attrs).then_some(section)
    })
}

#[test]
fn invalidations_want_the_right_key_and_permission() {
    let hca = hca();
    let qp = queue_pair(&hca, service_type::RC, PD, false);
    let key = mtt(&hca, 0, 0x1000, &[0x1003, 0]);
    assert!(invalidate(&hca, &qp, key.key()).is_err(), "en_rinval is not set");
    // The driver's LOCAL_INV is a UMR that only frees.
    Umr::new(key.key(), umr_flags::INLINE, umr_mask::FREE, &FREE).post(&hca, &qp).unwrap();
    assert_eq!(why(&hca, &access(key.key(), 0, 1)), "it is free");
    let open = octwords(with(context(access_mode::MTT, PD, 0, 0x1000, 12), mkc::EN_RINVAL, 1), 1);
    let open = create(&hca, &open, &[], true).unwrap();
    let foreign = queue_pair(&hca, service_type::RC, KERNEL_PD, false);
    assert!(invalidate(&hca, &foreign, open.key()).is_err());
    let other_variant = open.key() ^ 1;
    assert_eq!(invalidate(&hca, &qp, other_variant), Err(UmrError::NoKey(other_variant)));
    invalidate(&hca, &qp, open.key()).unwrap();
    assert_eq!(invalidate(&hca, &qp, open.key()), Err(UmrError::NoKey(open.key())));
    assert!(open.state().free && open.zaps.load(Ordering::Relaxed) == 1);
}

#[test]
fn a_queue_pair_that_changed_has_no_effect_any_more() {
    let hca = hca();
    let umr = queue_pair(&hca, service_type::REG_UMR, PD, true);
    let bytes = octwords(with(context(access_mode::MTT, PD, 0, 0x1000, 12), mkc::EN_RINVAL, 1), 1);
    let key = create(&hca, &bytes, &words(&[0x1003, 0]), true).unwrap();
    hca.change_qp(&umr.0, |attrs| attrs.incarnation += 1);
    assert_eq!(invalidate(&hca, &umr, key.key()), Err(UmrError::Retired));
    let revoke = Umr::new(key.key(), umr_flags::INLINE, umr_mask::FREE, &FREE);
    assert_eq!(revoke.post(&hca, &umr), Err(UmrError::Retired));
    assert_eq!(Umr::zap(key.key(), 0).inline(&[0; 2]).post(&hca, &umr), Err(UmrError::Retired));
    assert_eq!(UmrError::Retired.syndrome(), None);
    assert!(look(&hca, &access(key.key(), 0, 8)).is_ok());
}

#[test]
fn a_destroyed_key_is_not_revived_by_a_umr_in_flight() {
    let hca = hca();
    let key = mtt(&hca, 0, 0x1000, &[0x1003, 0]);
    destroy(&hca, key.index);
    key.set_context(&[0; MKC_SIZE], umr_mask::FREE);
    assert!(key.state().free && key.state().dead);
}

/// Another change of the key comes between the reading of a list and its effect, in each way that takes the right away: what was read is
/// judged by what the key is then.
#[test]
fn a_right_that_was_taken_away_does_not_come_back_by_what_was_judged_before() {
    type Way = fn(&Mkey);
    let ways: [(&str, Way); 3] = [
        ("revoked into another domain", |key| {
            key.set_context(&with(FREE, mkc::PD, KERNEL_PD), umr_mask::FREE | umr_mask::PD)
        }),
        ("moved to another domain", |key| key.set_context(&with(FREE, mkc::PD, KERNEL_PD), umr_mask::PD)),
        ("destroyed", |key| key.revoke()),
    ];
    for (way, take_away) in ways {
        let hca = Arc::new(hca());
        let owner = queue_pair(&hca, service_type::RC, PD, true);
        let lkey =
            create(&hca, &with(context(access_mode::PA, PD, 0, 0, 0), mkc::LENGTH64, 1), &[], false).unwrap().key();
        let key = mtt(&hca, 0, 0x8000, &[3; 8]);
        let unit = key.unit();
        let done = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (hca, key, done) = (hca.clone(), key.key(), done.clone());
            move || {
                let enable = Umr::new(key, 0, umr_mask::FREE | umr_mask::PD, &with([0; MKC_SIZE], mkc::PD, PD));
                let outcome = enable.pointer(4, lkey, 0x10_0000).post(&hca, &owner);
                done.store(true, Ordering::SeqCst);
                outcome
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!done.load(Ordering::SeqCst), "{way}: an update does not wait for the one before");
        take_away(&key);
        drop(unit);
        assert!(thread.join().unwrap().is_err(), "{way}");
        let said = why(&hca, &access(key.key(), 0, 8));
        assert!(["it is free", "it belongs to another protection domain"].contains(&said), "{way}: {said}");
        assert!(key.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == 3), "{way}");
    }
}

/// A key in use gets another page size together with other entries: nothing is reached with one of the two.
#[test]
fn a_live_key_never_mixes_old_entries_with_a_new_page_size() {
    let hca = Arc::new(hca());
    let umr = queue_pair(&hca, service_type::REG_UMR, PD, true);
    let key =
        mtt(&hca, 0, 0x8000, &[0x10_0003, 0x10_1003, 0x10_2003, 0x10_3003, 0x10_4003, 0x10_5003, 0x10_6003, 0x10_7003]);
    let through = access(key.key(), 0x2000, 8);
    // An engine is at it.
    let section = hca.quiesce.enter(1);
    let thread = std::thread::spawn({
        let (hca, key) = (hca.clone(), key.key());
        move || {
            let larger = context(access_mode::MTT, PD, 0, 0x8000, 13);
            let update = Umr::new(key, 0, umr_mask::LOG_PAGE_SIZE, &larger);
            update.inline(&[0x18_0003, 0x18_2003, 0x18_4003, 0x18_6003]).post(&hca, &umr)
        }
    });
    let begun = std::time::Instant::now();
    while !key.state().free {
        assert!(begun.elapsed() < Duration::from_secs(30), "it goes on while somebody uses the old entries");
        std::thread::sleep(std::time::Duration::from_micros(20));
    }
    let mut spans = Vec::new();
    assert!(matches!(
        translate(&hca, &section, &through, &mut Keys::default(), &mut spans),
        Err(AccessError::Denied { why: "it is free", .. })
    ));
    assert_eq!(key.entries[1].load(Ordering::Relaxed), 0x10_1003);
    drop(section);
    thread.join().unwrap().unwrap();
    assert_eq!(look(&hca, &through), Ok((8, vec![(0x18_2000, 8)])));
    assert!(!key.state().free && !mkc::FREE.is_set(&key.query().0));
}

/// Rule 3: what takes a translation away returns only after the section that uses it; the injection breaks just that.
#[test]
fn zaps_and_destructions_wait_for_dma_in_flight() {
    for guard in [true, false] {
        for way in ["zap", "revoke", "invalidate", "destroy"] {
            let hca = Arc::new(hca());
            let umr = queue_pair(&hca, service_type::REG_UMR, PD, true);
            let bytes = octwords(with(context(access_mode::MTT, PD, 0, 0x1000, 12), mkc::EN_RINVAL, 1), 1);
            let key = create(&hca, &bytes, &words(&[0x1003, 0]), true).unwrap();
            let rule = hca.injections.add(NicRule::new(0, NicAction::NoGuard).on(WqeMatch::key(key.key()))).unwrap();
            if guard {
                hca.injections.clear();
            }
            // Another engine is between translation and copy.
            let section = hca.quiesce.enter(1);
            let mut spans = Vec::new();
            translate(&hca, &section, &access(key.key(), 0, 8), &mut Keys::default(), &mut spans).unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let thread = std::thread::spawn({
                let (hca, key, done) = (hca.clone(), key.clone(), done.clone());
                move || {
                    match way {
                        "zap" => Umr::zap(key.key(), 0).inline(&[0; 2]).post(&hca, &umr).unwrap(),
                        "revoke" => Umr::new(key.key(), 0, umr_mask::FREE, &FREE).post(&hca, &umr).unwrap(),
                        "invalidate" => invalidate(&hca, &umr, key.key()).unwrap(),
                        _ => assert!(destroy(&hca, key.index)),
                    }
                    done.store(true, Ordering::SeqCst);
                }
            });
            // Without the guard it comes to its end, however busy the host is; with it nothing can be waited for, so a while must do.
            let begun = std::time::Instant::now();
            let patience = if guard { Duration::from_millis(20) } else { Duration::from_secs(30) };
            while !done.load(Ordering::SeqCst) && begun.elapsed() < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
            let early = done.load(Ordering::SeqCst);
            assert_eq!(early, !guard, "{way}");
            assert_eq!(key.zaps.load(Ordering::Relaxed), u64::from(early), "{way}");
            let copied = hca.ledger.tick();
            drop(section);
            thread.join().unwrap();
            let record = *hca.ledger.nic(0).last().unwrap();
            assert_eq!(record.seq > copied, guard, "{way}: {record:?}");
            assert_eq!(hca.injections.rule(rule).map(|rule| rule.fired), (!guard).then_some(1), "{way}");
        }
    }
}

/// Keys whose end an injection ignores: of bounded number, each gone when its number is given out anew, none after the rules.
#[test]
fn ghosts_are_bounded_and_make_room_for_the_living() {
    let hca = hca();
    let ignore = || hca.injections.add(NicRule::new(0, NicAction::IgnoreFree)).unwrap();
    let ghost = |page: u64| {
        let key = mtt(&hca, 0, 4096, &[page << 12 | 3, 0]).key();
        assert!(destroy(&hca, key >> 8) && !destroy(&hca, key >> 8));
        key
    };
    let seen = |key| look(&hca, &access(key, 0, 8));
    ignore();
    let keys: Vec<u32> = (0..65).map(|page| ghost(page + 1)).collect();
    assert_eq!(why(&hca, &access(keys[0], 0, 8)), "no such key");
    for (page, key) in (2..).zip(&keys[1..]) {
        assert_eq!(seen(*key), Ok((8, vec![(page << 12, 8)])), "{key:#x}");
        let section = hca.quiesce.enter(0);
        assert_eq!(check(&hca, &section, &access(*key, 0, 4096)), Ok(()));
    }
    assert!(matches!(seen(keys[1] ^ 1), Err(AccessError::Denied { why: "wrong variant", .. })));
    // Indirect keys find them too.
    let list = words(&entry(8, keys[64], 0));
    let parent = create(&hca, &octwords(context(access_mode::KLM, PD, 0, 8, 0), 1), &list, true).unwrap().key();
    assert_eq!(seen(parent), Ok((8, vec![(65 << 12, 8)])));
    // The numbers begin anew: the first that is made again is a key like others, dead when it is destroyed without the rule.
    hca.mkeys.clear();
    let again = (0..2).map(|_| mtt(&hca, 0, 4096, &[0x9003, 0]).key()).last().unwrap();
    assert_eq!((again, seen(again)), (keys[1], Ok((8, vec![(0x9000, 8)]))));
    // What was asked before the rules were cleared is as void as what stood then, and no rule brings it back.
    hca.injections.clear();
    assert!(destroy(&hca, again >> 8));
    ignore();
    assert_eq!((why(&hca, &access(again, 0, 8)), why(&hca, &access(keys[9], 0, 8))), ("no such key", "no such key"));
    ghost(1);
    hca.ghosts.clear();
    assert_eq!(why(&hca, &access(keys[64], 0, 8)), "no such key");
    drop(hca.mkeys.clear());
    assert_eq!(hca.memory.used(), 0, "their tables have been given back");
}
