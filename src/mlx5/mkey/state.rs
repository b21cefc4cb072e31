// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The context of a memory key (MKC), decoded for quick checks.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Rights;
use super::version::Version;
use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::mkey::{MKC_SIZE, access_mode, mkc, umr_mask};

/// MKC as the driver last set it, decoded (contract 6.6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MkeyState {
    /// MKC.free: no access.
    pub free: bool,
    /// DESTROY_MKEY has begun: no access, and no UMR revives it.
    pub dead: bool,
    /// UMR WQEs may change it.
    pub umr_en: bool,
    /// SEND with invalidate may set `free`.
    pub en_rinval: bool,
    /// Low byte of the key.
    pub variant: u8,
    /// `spec::mkey::access_mode`.
    pub mode: u8,
    /// log2 of the bytes that an MTT or KSM entry covers.
    pub log_page: u8,
    /// [`Rights`] that it gives.
    pub rights: Rights,
    /// Queue pair that may use it; `ANY_QPN`: any.
    pub qpn: u32,
    /// Protection domain.
    pub pd: u32,
    /// First address; of device memory, its offset in BAR0.
    pub start: u64,
    /// Bytes, unless `length64`.
    pub len: u64,
    /// The whole address space.
    pub length64: bool,
}

/// Which MKC bit gives which right.
const RIGHTS: [(Field, Rights); 5] = [
    (mkc::LR, Rights::LOCAL_READ),
    (mkc::LW, Rights::LOCAL_WRITE),
    (mkc::RR, Rights::REMOTE_READ),
    (mkc::RW, Rights::REMOTE_WRITE),
    (mkc::A, Rights::ATOMIC),
];

impl MkeyState {
    /// Decodes an MKC.
    pub fn decode(context: &[u8]) -> Self {
        let mode = mkc::ACCESS_MODE_4_2.get(context) << 2 | mkc::ACCESS_MODE_1_0.get(context);
        let given = RIGHTS.iter().filter(|(field, _)| field.is_set(context));
        Self {
            free: mkc::FREE.is_set(context),
            dead: false,
            umr_en: mkc::UMR_EN.is_set(context),
            en_rinval: mkc::EN_RINVAL.is_set(context),
            variant: mkc::MKEY_7_0.get(context) as u8,
            mode: mode as u8,
            log_page: mkc::LOG_PAGE_SIZE.get(context) as u8,
            rights: Rights(given.fold(0, |all, (_, right)| all | right.0)),
            qpn: mkc::QPN.get(context),
            pd: mkc::PD.get(context),
            start: mkc::START_ADDR.get(context),
            len: mkc::LEN.get(context),
            length64: mkc::LENGTH64.is_set(context),
        }
    }

    /// The first address that is used with it: a key of device memory counts from its own beginning.
    fn first(&self) -> u64 {
        if u32::from(self.mode) == access_mode::MEMIC { 0 } else { self.start }
    }

    /// Whether `len` bytes at `va` lie inside. By subtraction: no sum of guest values can wrap.
    pub fn contains(&self, va: u64, len: u64) -> bool {
        let Some(inside) = va.checked_sub(self.first()) else { return false };
        // The last byte must have an address.
        if len > 0 && len - 1 > u64::MAX - va {
            return false;
        }
        self.length64 || (inside <= self.len && len <= self.len - inside)
    }
}

/// A state that is read without a lock. Writers are serialized by whoever owns it.
#[derive(Default)]
pub(super) struct StateCell {
    version: Version,
    words: [AtomicU64; 4],
}

impl StateCell {
    pub(super) fn new(state: &MkeyState) -> Self {
        let cell = Self::default();
        cell.set(state);
        cell
    }

    /// The state, or `None` if it kept changing: ask under the writers' lock then.
    pub(super) fn get(&self) -> Option<MkeyState> {
        self.version.read(|| self.words()).map(MkeyState::unpack)
    }

    /// The state, while nobody can call `set`.
    pub(super) fn get_settled(&self) -> MkeyState {
        MkeyState::unpack(self.words())
    }

    pub(super) fn set(&self, state: &MkeyState) {
        self.version.change(|| {
            for (word, value) in self.words.iter().zip(state.pack()) {
                word.store(value, Ordering::Relaxed);
            }
        });
    }

    fn words(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|at: usize| self.words[at].load(Ordering::Relaxed))
    }
}

impl MkeyState {
    fn pack(&self) -> [u64; 4] {
        let flags = [self.free, self.dead, self.umr_en, self.en_rinval, self.length64];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        let small = [flags as u8, self.variant, self.mode, self.log_page, self.rights.0, 0, 0, 0];
        [u64::from_le_bytes(small), u64::from(self.qpn) << 32 | u64::from(self.pd), self.start, self.len]
    }

    fn unpack([small, numbers, start, len]: [u64; 4]) -> Self {
        let [flags, variant, mode, log_page, rights, ..] = small.to_le_bytes();
        let flag = |at: u8| flags >> at & 1 == 1;
        Self {
            free: flag(0),
            dead: flag(1),
            umr_en: flag(2),
            en_rinval: flag(3),
            variant,
            mode,
            log_page,
            rights: Rights(rights),
            qpn: (numbers >> 32) as u32,
            pd: numbers as u32,
            start,
            len,
            length64: flag(4),
        }
    }
}

/// A part of the MKC that a UMR replaces.
enum Part {
    Bits(Field),
    Long(Field64),
}

/// Which mask bit stands for which parts (contract 8.3).
const PARTS: [(u64, &[Part]); 14] = [
    (umr_mask::LEN, &[Part::Long(mkc::LEN), Part::Bits(mkc::LENGTH64)]),
    (umr_mask::LOG_PAGE_SIZE, &[Part::Bits(mkc::LOG_PAGE_SIZE_4_0)]),
    (umr_mask::START_ADDR, &[Part::Long(mkc::START_ADDR)]),
    (umr_mask::PD, &[Part::Bits(mkc::PD)]),
    (umr_mask::EN_RINVAL, &[Part::Bits(mkc::EN_RINVAL)]),
    (umr_mask::KEY, &[Part::Bits(mkc::MKEY_7_0)]),
    (umr_mask::QPN, &[Part::Bits(mkc::QPN)]),
    (umr_mask::LR, &[Part::Bits(mkc::LR)]),
    (umr_mask::LW, &[Part::Bits(mkc::LW)]),
    (umr_mask::RR, &[Part::Bits(mkc::RR)]),
    (umr_mask::RW, &[Part::Bits(mkc::RW)]),
    (umr_mask::A, &[Part::Bits(mkc::A)]),
    (umr_mask::SMALL_FENCE, &[Part::Bits(mkc::SMALL_FENCE_ON_RDMA_READ_RESPONSE)]),
    (umr_mask::FREE, &[Part::Bits(mkc::FREE)]),
];

/// Whether every bit of `mask` names a part; others belong to features that are not offered.
pub(super) fn is_offered(mask: u64) -> bool {
    mask & !PARTS.iter().fold(0, |all, (bit, _)| all | bit) == 0
}

/// Copies the parts of the MKC `from` that `mask` names into `into`.
pub(super) fn apply_mask(into: &mut [u8; MKC_SIZE], from: &[u8], mask: u64) {
    for part in PARTS.iter().filter(|(bit, _)| mask & bit != 0).flat_map(|(_, parts)| parts.iter()) {
        match part {
            Part::Bits(field) => field.set(into, field.get(from)),
            Part::Long(field) => field.set(into, field.get(from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_changes_its_own_parts_only() {
        for (bit, _) in &PARTS {
            let (mut zeroes, mut ones) = ([0; MKC_SIZE], [0xff; MKC_SIZE]);
            apply_mask(&mut zeroes, &[0xff; MKC_SIZE], *bit);
            apply_mask(&mut ones, &[0; MKC_SIZE], *bit);
            assert_ne!(zeroes, [0; MKC_SIZE], "{bit:#x}");
            let inverse: Vec<u8> = ones.iter().map(|byte| !byte).collect();
            assert_eq!(zeroes[..], inverse[..], "{bit:#x}");
            for (other, _) in PARTS.iter().filter(|(other, _)| other != bit) {
                let mut both = zeroes;
                apply_mask(&mut both, &[0; MKC_SIZE], *other);
                assert_eq!(both, zeroes, "{bit:#x} and {other:#x} share bits");
            }
        }
        let mut none = [0; MKC_SIZE];
        apply_mask(&mut none, &[0xff; MKC_SIZE], 0);
        assert_eq!(none, [0; MKC_SIZE]);
    }

    #[test]
    fn a_state_survives_its_cell() {
        for seed in 0..64u8 {
            let context: [u8; MKC_SIZE] =
                std::array::from_fn(|at| (at as u8).wrapping_mul(31).wrapping_add(seed.wrapping_mul(7)));
            let state = MkeyState { dead: seed % 2 == 0, ..MkeyState::decode(&context) };
            let cell = StateCell::new(&state);
            assert_eq!((cell.get(), cell.get_settled()), (Some(state), state));
        }
    }

    #[test]
    fn a_state_that_changes_is_not_told() {
        let state = MkeyState { pd: 7, ..MkeyState::default() };
        let cell = StateCell::new(&state);
        cell.version.change(|| assert_eq!(cell.get(), None));
        assert_eq!(cell.version.read(|| cell.set(&state)), None, "a change that does not count");
        assert_eq!(cell.get(), Some(state));
    }

    #[test]
    fn bounds_never_wrap() {
        let key = MkeyState { start: 0x1000, len: 0x1000, ..MkeyState::default() };
        for (va, len, inside) in [
            (0x1000, 0x1000, true),
            (0x1000, 0x1001, false),
            (0x1fff, 1, true),
            (0x2000, 0, true),
            (0x2000, 1, false),
            (0x2001, 0, false),
            (0xfff, 1, false),
            (0x1800, u64::MAX, false),
            (0x1800, u64::MAX - 0x17ff, false),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(key.contains(va, len), inside, "{va:#x} {len:#x}");
        }
        let all = MkeyState { length64: true, ..MkeyState::default() };
        assert!(all.contains(u64::MAX, 1) && all.contains(0, u64::MAX) && all.contains(u64::MAX, 0));
        assert!(!all.contains(u64::MAX, 2) && all.contains(1, u64::MAX));
        assert!(!all.contains(2, u64::MAX));
        // A key that claims to reach beyond the address space still gives no address beyond it.
        let absurd = MkeyState { start: u64::MAX - 1, len: u64::MAX, ..MkeyState::default() };
        assert!(absurd.contains(u64::MAX - 1, 2) && !absurd.contains(u64::MAX - 1, 3));
    }
}
