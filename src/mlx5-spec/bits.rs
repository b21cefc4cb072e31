// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fields of big-endian, bit-numbered structures, each declared once: byte offset of its dword and bits within it.
//!
//! A structure stays the bytes that the driver wrote, so unknown bits survive; handlers read and write it by [`Field`]s only.
//! Reads beyond the end of a short buffer give zero and writes there do nothing: lengths are checked once, where a message arrives.

/// Bits `high..=low` of the big-endian dword at byte `at` (bit 31 is the most significant), as in the contract's `B+0x14[7:4]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    at: usize,
    high: u8,
    low: u8,
}

impl Field {
    /// The whole dword at byte `at`.
    pub const fn dword(at: usize) -> Self {
        Self::new(at, 31, 0)
    }

    /// Bits `high..=low` of the dword at byte `at`.
    pub const fn new(at: usize, high: u8, low: u8) -> Self {
        assert!(at.is_multiple_of(4) && high < 32 && low <= high);
        Self { at, high, low }
    }

    /// One bit of the dword at byte `at`.
    pub const fn bit(at: usize, bit: u8) -> Self {
        Self::new(at, bit, bit)
    }

    /// The same field of a structure that starts `by` bytes further on.
    pub const fn plus(self, by: usize) -> Self {
        Self::new(self.at + by, self.high, self.low)
    }

    /// The largest value that fits.
    pub const fn max(self) -> u32 {
        u32::MAX >> (31 - (self.high - self.low))
    }

    /// The field's value in `bytes`.
    #[inline(always)]
    pub fn get(self, bytes: &[u8]) -> u32 {
        dword(bytes, self.at) >> self.low & self.max()
    }

    /// Whether any bit of the field is set.
    #[inline(always)]
    pub fn is_set(self, bytes: &[u8]) -> bool {
        self.get(bytes) != 0
    }

    /// Puts `value` into `bytes`; bits that do not fit are dropped, other bits stay.
    #[inline(always)]
    pub fn set(self, bytes: &mut [u8], value: u32) {
        let mask = self.max() << self.low;
        let kept = dword(bytes, self.at) & !mask;
        if let Some(to) = bytes.get_mut(self.at..self.at + 4) {
            to.copy_from_slice(&(kept | (value & self.max()) << self.low).to_be_bytes());
        }
    }
}

/// A 64-bit big-endian value at byte `.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field64(pub usize);

impl Field64 {
    /// The value in `bytes`.
    #[inline(always)]
    pub fn get(self, bytes: &[u8]) -> u64 {
        u64::from(dword(bytes, self.0)) << 32 | u64::from(dword(bytes, self.0 + 4))
    }

    /// Puts `value` into `bytes`.
    #[inline(always)]
    pub fn set(self, bytes: &mut [u8], value: u64) {
        if let Some(to) = bytes.get_mut(self.0..self.0 + 8) {
            to.copy_from_slice(&value.to_be_bytes());
        }
    }
}

#[inline(always)]
fn dword(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_touches_its_own_bits_only() {
        for (high, low) in [(31, 0), (31, 31), (0, 0), (15, 4), (23, 0), (31, 24)] {
            let field = Field::new(4, high, low);
            for background in [0x00, 0xff, 0xa5] {
                let mut bytes = [background; 12];
                field.set(&mut bytes, field.max() & 0x5a5a_5a5a);
                assert_eq!(field.get(&bytes), field.max() & 0x5a5a_5a5a);
                field.set(&mut bytes, u32::MAX);
                assert_eq!(field.get(&bytes), field.max());
                let mask = field.max() << low;
                let around = u32::from_be_bytes([background; 4]) & !mask;
                assert_eq!(dword(&bytes, 4) & !mask, around);
                assert_eq!((&bytes[..4], &bytes[8..]), (&[background; 4][..], &[background; 4][..]));
            }
        }
    }

    #[test]
    fn short_buffers_read_as_zero_and_ignore_writes() {
        let mut bytes = [0xff; 6];
        assert_eq!(Field::dword(4).get(&bytes), 0);
        Field::dword(4).set(&mut bytes, 1);
        Field64(0).set(&mut bytes, 1);
        assert_eq!((Field64(0).get(&bytes), bytes), (0xffff_ffff_0000_0000, [0xff; 6]));
        let mut bytes = [0; 8];
        Field64(0).set(&mut bytes, 0x0102_0304_0506_0708);
        assert_eq!((bytes, Field64(0).get(&bytes)), ([1, 2, 3, 4, 5, 6, 7, 8], 0x0102_0304_0506_0708));
    }
}
