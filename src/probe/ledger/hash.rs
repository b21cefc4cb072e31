// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Content hashes of watched pages, per 512-byte sector, so that "half old, half new" can be told from "all new".

use serde::Serialize;

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes in a sector, the unit of LBAs (virtio 1.2 §5.2).
pub const SECTOR_SIZE: u64 = 512;

const SECTORS: usize = (PAGE_SIZE / SECTOR_SIZE) as usize;

/// Hashes of the bytes of one page that a request touches. Not cryptographic: evidence against accidents, not forgers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PageHash {
    /// Of all touched bytes, in order. Never 0.
    pub whole: u64,
    /// Of each 512-byte sector of the page that is touched as a whole; 0 for the others.
    pub sectors: [u64; SECTORS],
}

impl PageHash {
    /// Hashes `bytes`, which start at `offset` in their page. Bytes beyond the page's end count only in `whole`.
    pub fn of(offset: u16, bytes: &[u8]) -> Self {
        let mut sectors = [0; SECTORS];
        for (index, slot) in sectors.iter_mut().enumerate() {
            let start = index * SECTOR_SIZE as usize;
            let from = start.checked_sub(offset.into());
            let sector = from.and_then(|from| bytes.get(from..from + SECTOR_SIZE as usize));
            *slot = sector.map_or(0, hash);
        }
        Self { whole: hash(bytes), sectors }
    }
}

/// FNV-1a over 64-bit words with a final mix; never 0, which means "no hash".
fn hash(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut state = 0xcbf2_9ce4_8422_2325_u64 ^ (bytes.len() as u64).wrapping_mul(PRIME);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = (state ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
        // Words are wide: without this, high bits of one word never reach the low bits.
        state ^= state >> 29;
    }
    state = (state ^ (state >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (state ^ (state >> 29)).max(1)
}
