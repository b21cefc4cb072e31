// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page contents that say who wrote them.
//!
//! Each aligned 16 bytes of a pattern are an invertible mix of (nonce, tag, 512-byte sector number of the file) keyed by
//! their place in the sector. So every 8 bytes differ from their neighbours and from the same place under another
//! tag, nonce or sector; and any two neighbouring 16-byte pairs name their writer with no candidate list. Data that landed in the
//! wrong place are recognised too, since the sector number is in them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Unit of identification, bytes.
pub const SECTOR: usize = 512;
/// Bytes of one mixed pair of words.
const PAIR: usize = 16;
/// Pairs in a sector.
const PAIRS: usize = SECTOR / PAIR;
/// The sector number takes the low 56 bits of the identity word, the tag the high 8.
const SECTOR_MASK: u64 = (1 << 56) - 1;
/// Most runs that a [`Content`] carries.
const MAX_RUNS: usize = 256;

/// What to write: the run's nonce and one ASCII letter naming the writer ("A" first content, "B" CPU store, "C" device...).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pattern {
    /// Nonce of the run, so that contents left over from an earlier run cannot pass.
    #[serde(rename = "n")]
    pub nonce: u64,
    /// The writer's letter. Characters outside printable ASCII are written as `?`.
    #[serde(rename = "t")]
    pub tag: char,
}

impl Pattern {
    /// A pattern.
    pub fn new(nonce: u64, tag: char) -> Self {
        Self { nonce, tag }
    }

    fn tag_byte(&self) -> u8 {
        u8::try_from(self.tag).ok().filter(u8::is_ascii_graphic).unwrap_or(b'?')
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Round keys of pair `index` of a sector.
fn keys(index: usize) -> [u64; 4] {
    let base = (index as u64).wrapping_mul(4).wrapping_add(1);
    [0, 1, 2, 3].map(|i| (base + i).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn encode_pair(nonce: u64, id: u64, index: usize) -> [u8; PAIR] {
    let [k0, k1, k2, k3] = keys(index);
    let (mut l, mut r) = (nonce, id);
    l ^= mix(r.wrapping_add(k0));
    r ^= mix(l.wrapping_add(k1));
    l ^= mix(r.wrapping_add(k2));
    r ^= mix(l.wrapping_add(k3));
    let mut out = [0; PAIR];
    out[..8].copy_from_slice(&l.to_le_bytes());
    out[8..].copy_from_slice(&r.to_le_bytes());
    out
}

fn decode_pair(pair: &[u8; PAIR], index: usize) -> (u64, u64) {
    let [k0, k1, k2, k3] = keys(index);
    let value = u128::from_le_bytes(*pair);
    let (mut l, mut r) = (value as u64, (value >> 64) as u64);
    r ^= mix(l.wrapping_add(k3));
    l ^= mix(r.wrapping_add(k2));
    r ^= mix(l.wrapping_add(k1));
    l ^= mix(r.wrapping_add(k0));
    (l, r)
}

/// Fills `out` with the content that `pattern` has at `file_offset` (bytes, any alignment).
pub fn fill(pattern: &Pattern, file_offset: u64, out: &mut [u8]) {
    let mut at = file_offset;
    let mut rest = out;
    while !rest.is_empty() {
        let skip = (at % PAIR as u64) as usize;
        let index = ((at % SECTOR as u64) as usize) / PAIR;
        let id = (u64::from(pattern.tag_byte()) << 56) | ((at / SECTOR as u64) & SECTOR_MASK);
        let pair = encode_pair(pattern.nonce, id, index);
        let n = (PAIR - skip).min(rest.len());
        let (head, tail) = rest.split_at_mut(n);
        head.copy_from_slice(&pair[skip..skip + n]);
        rest = tail;
        at = at.wrapping_add(n as u64);
    }
}

/// A stretch of sectors with one origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(char, u64, u64, u64)", into = "(char, u64, u64, u64)")]
pub enum Run {
    /// Written by `pattern`: `sectors` sectors whose own numbers (file offset / 512 at writing time) count up from `first`.
    Written {
        /// Who wrote them.
        pattern: Pattern,
        /// The number the first of them carries.
        first: u64,
        /// How many, 512 bytes each.
        sectors: u64,
    },
    /// All zero bytes.
    Zero {
        /// How many sectors.
        sectors: u64,
    },
    /// Sectors in which parts of patterns are mixed with one another, with zeroes or with other bytes: torn.
    Mixed {
        /// How many sectors.
        sectors: u64,
    },
    /// No pattern of ours.
    Unknown {
        /// How many sectors.
        sectors: u64,
    },
}

impl From<(char, u64, u64, u64)> for Run {
    fn from((kind, nonce, first, sectors): (char, u64, u64, u64)) -> Self {
        match kind {
            '0' => Run::Zero { sectors },
            '~' => Run::Mixed { sectors },
            '?' => Run::Unknown { sectors },
            tag => Run::Written { pattern: Pattern { nonce, tag }, first, sectors },
        }
    }
}

impl From<Run> for (char, u64, u64, u64) {
    fn from(run: Run) -> Self {
        match run {
            Run::Written { pattern, first, sectors } => (pattern.tag, pattern.nonce, first, sectors),
            Run::Zero { sectors } => ('0', 0, 0, sectors),
            Run::Mixed { sectors } => ('~', 0, 0, sectors),
            Run::Unknown { sectors } => ('?', 0, 0, sectors),
        }
    }
}

impl Run {
    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        match *self {
            Run::Written { sectors, .. }
            | Run::Zero { sectors }
            | Run::Mixed { sectors }
            | Run::Unknown { sectors } => sectors,
        }
    }

    /// The letter of the writer, `0` for zeroes, `~` for mixed, `?` for unknown.
    pub fn letter(&self) -> char {
        (*self).into_letter()
    }

    fn into_letter(self) -> char {
        <(char, u64, u64, u64)>::from(self).0
    }

    /// Appends `next` to `self` when it continues it.
    fn absorb(&mut self, next: &Run) -> bool {
        match (self, next) {
            (
                Run::Written { pattern, first, sectors },
                Run::Written { pattern: pattern2, first: first2, sectors: sectors2 },
            ) if pattern == pattern2 && first.wrapping_add(*sectors) == *first2 => *sectors += sectors2,
            (Run::Zero { sectors }, Run::Zero { sectors: more })
            | (Run::Mixed { sectors }, Run::Mixed { sectors: more })
            | (Run::Unknown { sectors }, Run::Unknown { sectors: more }) => *sectors += more,
            _ => return false,
        }
        true
    }
}

/// What a stretch of bytes holds: its origin by runs of sectors, and a checksum of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// CRC-32 (IEEE) of all bytes.
    #[serde(rename = "c")]
    pub crc32: u32,
    /// Bytes looked at.
    #[serde(rename = "l")]
    pub len: u64,
    /// Origins in order. At most 256; see `more`.
    #[serde(rename = "r")]
    pub runs: Vec<Run>,
    /// There were more runs than fit.
    #[serde(rename = "m", default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl Content {
    /// True when every byte is what `pattern` has at `file_offset` (a multiple of 512) and after. A Content with no bytes is not.
    pub fn is(&self, pattern: &Pattern, file_offset: u64) -> bool {
        let expected = Run::Written {
            pattern: Pattern { tag: char::from(pattern.tag_byte()), ..*pattern },
            first: file_offset / SECTOR as u64,
            sectors: self.len.div_ceil(SECTOR as u64),
        };
        !self.more && file_offset.is_multiple_of(SECTOR as u64) && self.runs == [expected]
    }

    /// True when all bytes are zero (and there are some).
    pub fn is_zero(&self) -> bool {
        !self.more && matches!(self.runs[..], [Run::Zero { .. }])
    }

    /// The letters that occur, in order of first appearance: "AB".
    pub fn letters(&self) -> String {
        let mut out = String::new();
        for run in &self.runs {
            if !out.contains(run.letter()) {
                out.push(run.letter());
            }
        }
        out
    }
}

/// `A*4 B*4`: letter and number of sectors of each run; `0` zeroes, `~` torn inside a sector, `?` not ours.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, run) in self.runs.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{}*{}", run.letter(), run.sectors())?;
        }
        if self.more { f.write_str(" ...") } else { Ok(()) }
    }
}

/// Collects a [`Content`] from pieces. All pieces but the last must be a multiple of 512 bytes.
#[derive(Default)]
pub struct Identifier {
    crc: crc32fast::Hasher,
    content: Content,
}

impl Identifier {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.content.len = self.content.len.saturating_add(bytes.len() as u64);
        for sector in bytes.chunks(SECTOR) {
            let run = identify_sector(sector);
            if self.content.runs.last_mut().is_some_and(|last| !self.content.more && last.absorb(&run)) {
                continue;
            }
            if self.content.runs.len() < MAX_RUNS {
                self.content.runs.push(run);
            } else {
                self.content.more = true;
            }
        }
    }

    /// What was seen.
    pub fn finish(self) -> Content {
        Content { crc32: self.crc.finalize(), ..self.content }
    }
}

/// Says who wrote `bytes`, sector by sector. `bytes` must begin on a sector boundary of what was written; a last partial
/// sector of 32 bytes and more is identified by what is there.
pub fn identify(bytes: &[u8]) -> Content {
    let mut identifier = Identifier::default();
    identifier.push(bytes);
    identifier.finish()
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = &[u8; PAIR]> {
    bytes.chunks_exact(PAIR).filter_map(|pair| pair.first_chunk())
}

/// One sector (or the beginning of one).
fn identify_sector(bytes: &[u8]) -> Run {
    if bytes.iter().all(|b| *b == 0) {
        return Run::Zero { sectors: 1 };
    }
    let mut previous: Option<(u64, u64)> = None;
    let (mut uniform, mut familiar) = (true, 0);
    for (index, pair) in pairs(bytes).enumerate().take(PAIRS) {
        let identity = decode_pair(pair, index);
        let zero = pair.iter().all(|b| *b == 0);
        if previous == Some(identity) {
            familiar += 1;
        } else if previous.is_some() {
            uniform = false;
        }
        uniform &= !zero;
        previous = Some(identity);
    }
    match previous {
        Some((nonce, id)) if uniform && familiar > 0 && tail_matches(bytes, nonce, id) => {
            let tag = char::from((id >> 56) as u8);
            Run::Written { pattern: Pattern { nonce, tag }, first: id & SECTOR_MASK, sectors: 1 }
        }
        _ if familiar > 0 => Run::Mixed { sectors: 1 },
        _ => Run::Unknown { sectors: 1 },
    }
}

/// The bytes after the last whole pair are the beginning of the next pair.
fn tail_matches(bytes: &[u8], nonce: u64, id: u64) -> bool {
    let tail = bytes.chunks_exact(PAIR).remainder();
    tail.is_empty() || encode_pair(nonce, id, bytes.len() / PAIR)[..tail.len()] == *tail
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Pattern = Pattern { nonce: 0x1122_3344_5566_7788, tag: 'A' };
    const B: Pattern = Pattern { tag: 'B', ..A };

    fn page(pattern: &Pattern, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        fill(pattern, offset, &mut bytes);
        bytes
    }

    #[test]
    fn names_its_writer_place_and_run() {
        let content = identify(&page(&A, 5 * 4096));
        assert!(content.is(&A, 5 * 4096));
        assert!(!content.is(&A, 4096), "another page's data must not pass");
        assert!(!content.is(&B, 5 * 4096));
        assert!(!content.is(&Pattern { nonce: 1, ..A }, 5 * 4096), "another run's data must not pass");
        assert_eq!(content.to_string(), "A*8");
    }

    #[test]
    fn shows_torn_pages_by_sector_and_torn_sectors() {
        let mut bytes = page(&A, 0);
        fill(&B, 2048, &mut bytes[2048..]);
        assert_eq!(identify(&bytes).to_string(), "A*4 B*4");
        bytes[512..520].copy_from_slice(&page(&B, 0)[512..520]);
        assert_eq!(identify(&bytes).to_string(), "A*1 ~*1 A*2 B*4");
        bytes[..512].fill(0);
        assert_eq!(identify(&bytes).to_string(), "0*1 ~*1 A*2 B*4");
        assert_eq!(identify(&bytes).letters(), "0~AB");
        bytes[512..1024].fill(0x5a);
        assert_eq!(identify(&bytes).to_string(), "0*1 ?*1 A*2 B*4");
    }

    #[test]
    fn a_half_zero_sector_is_torn() {
        let mut bytes = page(&A, 0);
        bytes[256..512].fill(0);
        assert_eq!(identify(&bytes).to_string(), "~*1 A*7");
    }

    #[test]
    fn a_fixed_point_of_the_format() {
        // Images written by one build are judged by another: the format may not drift.
        assert_eq!(crc32fast::hash(&page(&A, 4096)), 0x0b7e_19b4);
    }

    #[test]
    fn every_word_differs() {
        let (a, b) = (page(&A, 0), page(&B, 0));
        let words = |p: &[u8]| p.chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect::<Vec<_>>();
        let (a, b) = (words(&a), words(&b));
        let distinct: std::collections::HashSet<_> = a.iter().chain(&b).collect();
        assert_eq!(distinct.len(), 1024);
    }

    proptest! {
        #[test]
        fn pieces_of_any_alignment_join(offset in 0u64..1 << 40, cuts in proptest::collection::vec(1usize..600, 1..12)) {
            let total: usize = cuts.iter().sum();
            let mut whole = vec![0; total];
            fill(&A, offset, &mut whole);
            let mut at = 0;
            for cut in cuts {
                let mut piece = vec![0; cut];
                fill(&A, offset + at as u64, &mut piece);
                prop_assert_eq!(&whole[at..at + cut], &piece[..]);
                at += cut;
            }
        }

        #[test]
        fn any_bytes_are_survived_and_counted(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let content = identify(&bytes);
            prop_assert_eq!(content.runs.iter().map(Run::sectors).sum::<u64>(), bytes.len().div_ceil(512) as u64);
            let json = serde_json::to_string(&content).unwrap();
            prop_assert_eq!(serde_json::from_str::<Content>(&json).unwrap(), content);
        }

        #[test]
        fn one_flipped_byte_shows(at in 0usize..4096, flip in 1u8..) {
            let mut bytes = page(&A, 8192);
            bytes[at] ^= flip;
            prop_assert!(!identify(&bytes).is(&A, 8192));
        }

        #[test]
        fn partial_last_sectors(len in 32usize..4096) {
            let bytes = page(&A, 0);
            let content = identify(&bytes[..len]);
            if len % 512 == 0 || len % 512 >= 32 {
                prop_assert!(content.is(&A, 0), "{}", content);
            }
        }
    }
}
