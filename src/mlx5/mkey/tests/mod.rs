// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keys and translations on an HCA with 2 MiB of memory of its own and no VM.

mod updates;

use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::NicConfig;
use crate::device_memory::DeviceMemory;
use crate::hooks::{NicRule, WqeMatch};
use crate::host_memory::{MAX_HOST_MEMORY, object};
use crate::qp::{Qp, QpAttrs, QpSpec, QueueLayout};
use dma::{BusMaster, DmaTarget, GuestRam};
use mlx5_spec::bits::Field;
use mlx5_spec::mkey::{ANY_QPN, TERMINATOR_KEY};
use mlx5_spec::qp::{QPC_SIZE, qpc, service_type};
use mlx5_spec::wqe::ctrl;
use pci::MsiRouter;
use pci::msix::{Msix, MsixPlace};
use probe::ledger::Ledger;

const RAM: u64 = 2 << 20;
const PD: u32 = 0x11;
const KERNEL_PD: u32 = 0x12;

struct NoRouter;

impl MsiRouter for NoRouter {
    fn route(&self, _vector: u16, _address: u64, _data: u32) -> std::io::Result<()> {
        Ok(())
    }

    fn trigger(&self, _vector: u16) {}
}

/// An HCA with RAM from 0 to 2 MiB; bus mastering is on.
pub(crate) fn hca() -> Hca {
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
    let master = Arc::new(BusMaster::default());
    master.set(true);
    let own = Arc::new(DeviceMemory::new().unwrap());
    let dma = DmaTarget::new(8, ram, master);
    let (place, _) = MsixPlace::own_bar(2, 8);
    Hca::new(0, NicConfig::default(), (dma, own), Ledger::new(), Arc::new(Msix::new(8, place, Arc::new(NoRouter))))
        .unwrap()
}

/// An MKC with all rights for any queue pair.
fn context(mode: u32, pd: u32, start: u64, len: u64, log_page: u32) -> [u8; MKC_SIZE] {
    let mut bytes = [0; MKC_SIZE];
    mkc::ACCESS_MODE_1_0.set(&mut bytes, mode);
    for right in [mkc::LR, mkc::LW, mkc::RR, mkc::RW, mkc::A, mkc::UMR_EN] {
        right.set(&mut bytes, 1);
    }
    mkc::QPN.set(&mut bytes, ANY_QPN);
    mkc::MKEY_7_0.set(&mut bytes, 0x5a);
    mkc::PD.set(&mut bytes, pd);
    mkc::START_ADDR.set(&mut bytes, start);
    mkc::LEN.set(&mut bytes, len);
    mkc::LOG_PAGE_SIZE.set(&mut bytes, log_page);
    bytes
}

fn with(mut bytes: [u8; MKC_SIZE], field: Field, value: u32) -> [u8; MKC_SIZE] {
    field.set(&mut bytes, value);
    bytes
}

fn octwords(bytes: [u8; MKC_SIZE], count: u32) -> [u8; MKC_SIZE] {
    with(bytes, mkc::TRANSLATIONS_OCTWORD_SIZE, count)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A KLM or KSM entry.
fn entry(bytes: u64, key: u32, va: u64) -> [u64; 2] {
    [bytes << 32 | u64::from(key), va]
}

/// A key of `pages` pages of 4 KiB at `start`, translations as given.
fn mtt(hca: &Hca, start: u64, len: u64, entries: &[u64]) -> Arc<Mkey> {
    let count = (entries.len() as u32).div_ceil(2).next_multiple_of(2);
    let mut list = words(entries);
    list.resize(list.len().next_multiple_of(16), 0);
    create(hca, &octwords(context(access_mode::MTT, PD, start, len, 12), count), &list, true).unwrap()
}

fn access(key: u32, va: u64, len: u64) -> Access {
    Access { key, pd: PD, qpn: 0x40, va, len, rights: Rights::REMOTE_WRITE }
}

fn look(hca: &Hca, access: &Access) -> Result<(u64, Vec<(u64, u64)>), AccessError> {
    let section = hca.quiesce.enter(0);
    let mut spans = Vec::new();
    let covered = translate(hca, &section, access, &mut Keys::default(), &mut spans)?;
    assert_eq!(spans.iter().map(|span| span.len).sum::<u64>(), covered);
    Ok((covered, spans.iter().map(|span| (span.addr, span.len)).collect()))
}

fn why(hca: &Hca, access: &Access) -> &'static str {
    match look(hca, access) {
        Err(AccessError::Denied { why, key }) if key == access.key => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn physical_keys_lead_where_they_say() {
    let hca = hca();
    let all = with(context(access_mode::PA, PD, 0, 0, 0), mkc::LENGTH64, 1);
    let key = create(&hca, &all, &[], false).unwrap().key();
    assert_eq!(look(&hca, &access(key, 0x1234, 0x5000)), Ok((0x5000, vec![(0x1234, 0x5000)])));
    assert_eq!(look(&hca, &access(key, 0, 0)), Ok((0, vec![])));
    // One section moves a bounded amount; the rest is asked for again.
    assert_eq!(look(&hca, &access(key, 0, 1 << 31)), Ok((256 << 10, vec![(0, 256 << 10)])));
    assert_eq!(why(&hca, &access(key, u64::MAX, 2)), "out of its bounds");
    assert!(look(&hca, &access(key, u64::MAX, 1)).is_ok());
}

#[test]
fn pages_are_found_by_the_first_address_and_merged() {
    let hca = hca();
    // Starts 0x800 into the first page.
    let key = mtt(&hca, 0x7000_0800, 0x3000, &[0x10_0003, 0x10_1003, 0x8003, 0x9003]).key();
    let at = |va, len| look(&hca, &access(key, va, len));
    assert_eq!(at(0x7000_0800, 8), Ok((8, vec![(0x10_0800, 8)])));
    assert_eq!(at(0x7000_0ff8, 16), Ok((16, vec![(0x10_0ff8, 16)])));
    assert_eq!(at(0x7000_0800, 0x3000), Ok((0x3000, vec![(0x10_0800, 0x1800), (0x8000, 0x1800)])));
    assert_eq!(at(0x7000_3800, 0), Ok((0, vec![])));
    for (va, len) in [(0x7000_07ff, 1), (0x7000_3800, 1), (0x7000_0800, 0x3001), (0x7000_0900, u64::MAX), (0, 0)] {
        assert_eq!(why(&hca, &access(key, va, len)), "out of its bounds", "{va:#x} {len:#x}");
    }
    // Spans that were there before stay, and are not merged with.
    let section = hca.quiesce.enter(0);
    let mut spans = vec![Span { addr: 0x10_0000, len: 0x800 }];
    translate(&hca, &section, &access(key, 0x7000_0800, 8), &mut Keys::default(), &mut spans).unwrap();
    assert_eq!(spans, [Span { addr: 0x10_0000, len: 0x800 }, Span { addr: 0x10_0800, len: 8 }]);
}

#[test]
fn absent_pages_end_the_walk_and_rights_are_per_page() {
    let hca = hca();
    let key = mtt(&hca, 0, 0x4000, &[0x1003, 0x2001, 0, 0x4003]).key();
    let reads = |va, len| look(&hca, &Access { rights: Rights::REMOTE_READ, ..access(key, va, len) });
    let writes = |va, len| look(&hca, &access(key, va, len));
    let absent = |va| Err(AccessError::Missing(PageMissing { key, va }));
    assert_eq!(reads(0, 0x4000), Ok((0x2000, vec![(0x1000, 0x2000)])));
    assert_eq!(writes(0, 0x4000), Ok((0x1000, vec![(0x1000, 0x1000)])));
    assert_eq!(writes(0x1010, 8), absent(0x1010));
    assert_eq!(reads(0x2fff, 2), absent(0x2fff));
    let atomic = Access { rights: Rights::ATOMIC, ..access(key, 0x1000, 8) };
    assert_eq!(look(&hca, &atomic), absent(0x1000));
    // The injection lets a page that may be read pass, and no page that is absent.
    let rule = hca.injections.add(NicRule::new(0, NicAction::IgnoreMttWriteBit).on(WqeMatch::key(key))).unwrap();
    assert_eq!(writes(0, 0x4000), Ok((0x2000, vec![(0x1000, 0x2000)])));
    assert_eq!(writes(0x2000, 1), absent(0x2000));
    assert_eq!(hca.injections.rule(rule).unwrap().fired, 1);
}

#[test]
fn lists_without_presence_bits_are_present() {
    let hca = hca();
    let mkc = octwords(context(access_mode::MTT, PD, 0, 0x1000, 12), 1);
    let key = create(&hca, &mkc, &words(&[0x6000, 0]), false).unwrap().key();
    assert_eq!(look(&hca, &access(key, 8, 8)), Ok((8, vec![(0x6008, 8)])));
    // The rest of the table, rounded up to 64 bytes, was never written.
    assert_eq!(hca.mkeys.get(key >> 8).unwrap().entries.len(), 8);
}

#[test]
fn every_check_of_a_key_is_made() {
    let hca = hca();
    let good = mtt(&hca, 0, 0x1000, &[0x1003, 0]);
    let ok = access(good.key(), 0, 8);
    assert!(look(&hca, &ok).is_ok());
    let section = hca.quiesce.enter(1);
    assert_eq!(check(&hca, &section, &ok), Ok(()));
    drop(section);
    assert_eq!(why(&hca, &Access { key: ok.key ^ 1, ..ok }), "wrong variant");
    assert_eq!(why(&hca, &Access { pd: KERNEL_PD, ..ok }), "it belongs to another protection domain");
    assert_eq!(why(&hca, &Access { key: TERMINATOR_KEY, ..ok }), "no such key");
    assert_eq!(why(&hca, &Access { key: NULL_MKEY, ..ok }), "no such key");
    assert_eq!(why(&hca, &Access { key: u32::MAX, ..ok }), "no such key");
    let made = |mkc: [u8; MKC_SIZE]| create(&hca, &octwords(mkc, 1), &words(&[0x1003, 0]), true).unwrap().key();
    let base = context(access_mode::MTT, PD, 0, 0x1000, 12);
    let bound = made(with(base, mkc::QPN, 0x41));
    assert_eq!(why(&hca, &access(bound, 0, 8)), "it is bound to another queue pair");
    assert!(look(&hca, &Access { qpn: 0x41, ..access(bound, 0, 8) }).is_ok());
    assert_eq!(why(&hca, &access(made(with(base, mkc::FREE, 1)), 0, 8)), "it is free");
    let rights = [
        (mkc::LR, Rights::LOCAL_READ),
        (mkc::LW, Rights::LOCAL_WRITE),
        (mkc::RR, Rights::REMOTE_READ),
        (mkc::RW, Rights::REMOTE_WRITE),
        (mkc::A, Rights::ATOMIC),
    ];
    for (field, right) in rights {
        let key = made(with(base, field, 0));
        for (_, other) in rights {
            let found = look(&hca, &Access { rights: other, ..access(key, 0, 8) });
            assert_eq!(found.is_err(), other == right, "{field:?} {other:?}");
        }
    }
    assert_eq!(why(&hca, &access(made(with(base, mkc::LOG_PAGE_SIZE, 0)), 0, 8)), "its page size is not supported");
    let mut long = base;
    mkc::LEN.set(&mut long, 1 << 40);
    assert_eq!(why(&hca, &access(made(long), 0, 1 << 20)), "its table is shorter than its length");
    assert!(destroy(&hca, good.index) && !destroy(&hca, good.index));
    assert_eq!(why(&hca, &ok), "no such key");
}

#[test]
fn contexts_that_cannot_be_are_refused() {
    let hca = hca();
    let base = context(access_mode::MTT, PD, 0, 0x1000, 12);
    let refused = |mkc: &[u8], list: &[u8]| create(&hca, mkc, list, true).err();
    let bad = |why| Some(MkeyError::BadParam(why));
    assert_eq!(refused(&[0; 63], &[]), bad("the context is cut short"));
    // SW_ICM.
    assert_eq!(
        refused(&with(context(0, PD, 0, 0x1000, 12), mkc::ACCESS_MODE_4_2, 1), &[]),
        bad("access mode is not offered")
    );
    assert_eq!(refused(&octwords(base, u32::MAX), &[]), bad("translation table is larger than 64 MiB"));
    assert_eq!(refused(&octwords(base, 4), &[0; 72]), bad("more translations than the table holds"));
    // Keys and tables have one limit; a destroyed key gives its share back.
    assert_eq!(hca.memory.used(), 0);
    let large = octwords(base, (MAX_TABLE / 16) as u32);
    let lease = hca.memory.lease(MAX_HOST_MEMORY - 64 - object::<Mkey>(0)).unwrap();
    assert_eq!(refused(&large, &[]), Some(MkeyError::NoRes(MAX_TABLE)));
    let small = create(&hca, &octwords(base, 4), &[], true).unwrap();
    assert_eq!(refused(&octwords(base, 4), &[]), Some(MkeyError::NoRes(64)));
    destroy(&hca, small.index);
    drop(small);
    drop(lease);
    assert_eq!((hca.memory.used(), hca.mkeys.len()), (0, 0));
}

#[test]
fn indirect_keys_lead_through_others_and_name_themselves_in_faults() {
    let hca = hca();
    let child = mtt(&hca, 0x4000_0000, 0x2000, &[0x1_0003, 0]).key();
    let table = [entry(0, NULL_MKEY, 0), entry(0, child, 0x4000_0000)].concat();
    let all = with(context(access_mode::KSM, PD, 0, 0, 30), mkc::LENGTH64, 1);
    let parent = create(&hca, &octwords(all, 4), &words(&table), true).unwrap().key();
    assert_eq!(look(&hca, &access(parent, 0x4000_0010, 16)), Ok((16, vec![(0x1_0010, 16)])));
    assert_eq!(look(&hca, &access(parent, 0x4000_0000, 0x2000)), Ok((0x1000, vec![(0x1_0000, 0x1000)])));
    let absent = |va| Err(AccessError::Missing(PageMissing { key: parent, va }));
    assert_eq!(look(&hca, &access(parent, 0x4000_1000, 16)), absent(0x4000_1000));
    assert_eq!(look(&hca, &access(parent, 0x3fff_fff0, 16)), absent(0x3fff_fff0));
    assert_eq!(look(&hca, &access(parent, 0x8000_0000, 16)), absent(0x8000_0000));
    // Beyond the child.
    assert_eq!(why(&hca, &access(parent, 0x4000_1ff8, 16)), "out of its bounds");
}

/// An entry of an indirect key has two words, and an access meets either both of the old one or both of the new one.
#[test]
fn indirect_entries_change_as_a_whole() {
    let hca = hca();
    let child = mtt(&hca, 0x4000_0000, 0x1000, &[0x1_0003, 0]).key();
    let all = with(context(access_mode::KSM, PD, 0, 0, 30), mkc::LENGTH64, 1);
    let parent = create(&hca, &octwords(all, 4), &[], true).unwrap();
    let (absent, present) = (words(&entry(0, NULL_MKEY, 0)), words(&entry(0, child, 0x4000_0000)));
    let asked = access(parent.key(), 0x4000_0010, 16);
    let mut seen = [0; 2];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..2_000_000 {
                parent.set_entries(2, if round % 2 == 0 { &present } else { &absent }, false);
            }
        });
        while !writer.is_finished() {
            match look(&hca, &asked) {
                Ok((16, spans)) if spans == [(0x1_0010, 16)] => seen[0] += 1,
                Err(AccessError::Missing(PageMissing { va: 0x4000_0010, .. })) => seen[1] += 1,
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(seen[0] + seen[1] > 0, "{seen:?}");
}

#[test]
fn memory_windows_concatenate_and_need_local_rights_beneath() {
    let hca = hca();
    let no_remote = with(with(context(access_mode::MTT, PD, 0, 0x2000, 12), mkc::RW, 0), mkc::RR, 0);
    let region = create(&hca, &octwords(no_remote, 4), &words(&[0x5003, 0x9003]), true).unwrap();
    let read_only = create(&hca, &octwords(with(no_remote, mkc::LW, 0), 4), &words(&[0x5003, 0x9003]), true).unwrap();
    let window = |list: &[[u64; 2]]| {
        let mkc = octwords(context(access_mode::KLM, PD, 0x100, 0x1000, 0), list.len() as u32);
        create(&hca, &mkc, &words(&list.concat()), true).unwrap().key()
    };
    let (whole, part) = (region.key(), read_only.key());
    let key = window(&[entry(0, 0, 0), entry(0x10, whole, 0x20), entry(0xff0, whole, 0x1008)]);
    let found = look(&hca, &access(key, 0x108, 0x18));
    assert_eq!(found, Ok((0x18, vec![(0x5028, 8), (0x9008, 0x10)])));
    assert_eq!(why(&hca, &access(window(&[entry(0x10, part, 0)]), 0x100, 8)), "it does not give this right");
    let readable = Access { rights: Rights::REMOTE_READ, ..access(window(&[entry(0x10, part, 0)]), 0x100, 8) };
    assert_eq!(look(&hca, &readable), Ok((8, vec![(0x5000, 8)])));
    let short = window(&[entry(0x10, whole, 0)]);
    assert_eq!(why(&hca, &access(short, 0x108, 16)), "its list is shorter than its length");
}

#[test]
fn indirection_is_bounded_in_depth_and_in_width() {
    let hca = hca();
    let mkc = |count| octwords(with(context(access_mode::KLM, PD, 0, 0, 0), mkc::LENGTH64, 1), count);
    // A key that leads to itself.
    let own = create(&hca, &mkc(1), &words(&entry(64, 0x100 << 8 | 0x5a, 0)), true).unwrap();
    assert_eq!(own.index, 0x100);
    assert_eq!(why(&hca, &access(own.key(), 0, 64)), "too many indirections");
    // Four indirections lead to memory, five do not.
    let mut key = mtt(&hca, 0, 0x1000, &[0x7003, 0]).key();
    for depth in 1..6 {
        key = create(&hca, &mkc(1), &words(&entry(64, key, 0)), true).unwrap().key();
        assert_eq!(look(&hca, &access(key, 8, 8)).is_ok(), depth <= 4, "{depth}");
    }
    // Millions of bytes, each in an entry of its own.
    let physical = with(context(access_mode::PA, PD, 0, 0, 0), mkc::LENGTH64, 1);
    let all = create(&hca, &physical, &[], false).unwrap().key();
    let tiny: Vec<u64> = (0..1 << 19).flat_map(|n| entry(1, all, n * 2)).collect();
    let wide = create(&hca, &mkc(1 << 19), &words(&tiny), true).unwrap().key();
    let (covered, spans) = look(&hca, &access(wide, 0, 1 << 19)).unwrap();
    assert!(covered == spans.len() as u64 && (100..4096).contains(&covered), "{covered}");
    assert_eq!(why(&hca, &access(wide, (1 << 19) - 1, 1)), "its list is too scattered");
    // The longest list that is offered can be walked to its end, through a second one as long.
    let longest: Vec<u64> = (0..1 << 16).flat_map(|n| entry(1, all, n * 2)).collect();
    let list = create(&hca, &mkc(1 << 16), &words(&longest), true).unwrap().key();
    let through: Vec<u64> = (0..1 << 16).flat_map(|n| entry(1, list, n)).collect();
    let upper = create(&hca, &mkc(1 << 16), &words(&through), true).unwrap().key();
    assert_eq!(look(&hca, &access(upper, (1 << 16) - 1, 1)), Ok((1, vec![((1 << 17) - 2, 1)])));
    let wrap = create(&hca, &mkc(1), &words(&entry(64, all, u64::MAX)), true).unwrap().key();
    assert_eq!(why(&hca, &access(wrap, 1, 8)), "an entry's address wraps");
}

/// A queue pair of the given service in protection domain `pd`; `fre`: the kernel's.
fn queue_pair(hca: &Hca, service: u32, pd: u32, fre: bool) -> (Arc<Qp>, Arc<QpAttrs>) {
    let mut context = vec![0; QPC_SIZE];
    qpc::FRE.set(&mut context, u32::from(fre));
    let spec = QpSpec {
        service,
        user_index: 0,
        uar: 16,
        layout: QueueLayout::default(),
        buffer: Default::default(),
        context,
        attrs: QpAttrs { pd, ..QpAttrs::default() },
    };
    let qp = hca.qps.insert(|qpn| Qp::new(qpn, spec)).unwrap();
    let attrs = qp.attrs();
    (qp, attrs)
}

proptest! {
    /// Whatever keys and accesses look like, what comes out lies in pages that the table names and is as long as it says.
    #[test]
    fn translations_stay_inside_their_table(
        start in prop_oneof![0u64..0x2_0000, Just(u64::MAX - 0x3000), any::<u64>()],
        len in prop_oneof![0u64..0x1_0000, Just(u64::MAX), any::<u64>()],
        length64: bool,
        log_page in 0u32..64,
        bits in proptest::collection::vec(0u64..4, 1..16),
        offset in prop_oneof![0u64..0x1_0000, any::<u64>()],
        wanted in prop_oneof![0u64..0x1_0000, any::<u64>()],
    ) {
        let hca = hca();
        let entries: Vec<u64> = bits.iter().enumerate().map(|(page, bits)| (page as u64 * 2) << log_page.clamp(12, 40) | bits).collect();
        let count = entries.len() as u32;
        let mkc = with(octwords(context(access_mode::MTT, PD, start, len, log_page), count), mkc::LENGTH64, length64.into());
        let mut list = words(&entries);
        list.resize(list.len().next_multiple_of(16), 0);
        let key = create(&hca, &mkc, &list, true).unwrap().key();
        let asked = access(key, start.wrapping_add(offset), wanted);
        if let Ok((covered, spans)) = look(&hca, &asked) {
            prop_assert!((12..=40).contains(&log_page) || wanted == 0);
            prop_assert!(covered <= wanted && (covered > 0 || wanted == 0));
            prop_assert!(length64 || (asked.va >= start && wanted <= len - (asked.va - start)));
            for (gpa, len) in spans {
                let page = gpa >> log_page;
                prop_assert!(page % 2 == 0 && page / 2 < u64::from(count), "{gpa:#x}");
                prop_assert!(bits[page as usize / 2] & 2 != 0);
                prop_assert!(len > 0 && (gpa & ((1 << log_page) - 1)) + len <= 1 << log_page);
            }
        }
    }

    /// Any bytes as a context, a list, a UMR: errors or not, nothing breaks and the table keeps its size.
    #[test]
    fn any_bytes_are_taken(
        mkc in proptest::collection::vec(any::<u8>(), MKC_SIZE),
        octwords in 0u32..64,
        list in proptest::collection::vec(any::<u8>(), 0..256),
        wqe in proptest::collection::vec(any::<u8>(), 0..400),
        va: u64,
        len: u64,
    ) {
        let hca = hca();
        let umr = queue_pair(&hca, service_type::REG_UMR, PD, true);
        let mut mkc = mkc;
        mkc::TRANSLATIONS_OCTWORD_SIZE.set(&mut mkc, octwords);
        mkc::ACCESS_MODE_4_2.set(&mut mkc, 0);
        let Ok(key) = create(&hca, &mkc, &list, false) else { return Ok(()) };
        let size = key.entries.len();
        let mut wqe = wqe;
        ctrl::UMR_MKEY.set(&mut wqe, key.index << 8);
        let _ = umr::execute(&hca, 0, &umr.1, umr.0.qpn, &wqe);
        prop_assert_eq!(size, key.entries.len());
        let state = key.state();
        for rights in [Rights::LOCAL_READ, Rights::REMOTE_WRITE] {
            let asked = Access { key: key.key(), pd: state.pd, qpn: state.qpn, va, len, rights };
            let _ = look(&hca, &asked);
            let _ = look(&hca, &Access { va: state.start, len: len % 0x1_0000, ..asked });
        }
    }
}

/// `cargo test --lib -- mkey::tests::timing --ignored --nocapture`: what a translation costs, at best.
#[test]
#[ignore = "prints times"]
fn timing() {
    let hca = hca();
    let pages: Vec<u64> = (0..1024).map(|page| (page * 2) << 12 | 3).collect();
    let key = mtt(&hca, 0, 0x40_0000, &pages).key();
    let mut spans = Vec::new();
    let best = |name: &str, mut work: Box<dyn FnMut() + '_>| {
        let batch = |_| {
            let begin = std::time::Instant::now();
            (0..10_000).for_each(|_| work());
            begin.elapsed() / 10_000
        };
        println!("{name}: {:?}", (0..100).map(batch).min().unwrap());
    };
    best("section", Box::new(|| drop(std::hint::black_box(hca.quiesce.enter(0)))));
    best("look-up", Box::new(|| drop(std::hint::black_box(hca.mkeys.get(key >> 8)))));
    let mut keys = Keys::default();
    for (va, len) in [(0x100, 8), (0, 4096), (0x800, 4096), (0, 65536)] {
        let one = || {
            let section = hca.quiesce.enter(0);
            spans.clear();
            translate(&hca, &section, std::hint::black_box(&access(key, va, len)), &mut keys, &mut spans).unwrap();
        };
        best(&format!("section and translation of {len} bytes at {va:#x}"), Box::new(one));
    }
}
