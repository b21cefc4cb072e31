// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Blocks that prove durability: numbered, checksummed, written in groups that are flushed one after another.
//!
//! Block number `seq` (0, 1, 2...) belongs to group `seq / group + 1` and lies at a slot that jumps about the area. When all slots were
//! written once, the next round overwrites them in the same order. What must be on disk after `n` acknowledged groups is
//! therefore known from the [`Plan`] alone: in each slot the newest block of groups 1..=n that belongs there, or a newer
//! one. [`check_acked`] looks at a raw image as well as at a device inside a guest.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pattern::{Pattern, fill};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"rnicACK1";
/// Groups beyond the acknowledged ones that may be half on disk: one flushed but not yet reported, one being written.
const IN_FLIGHT_GROUPS: u64 = 2;

/// Where blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Nonce of the run.
    #[serde(rename = "n")]
    pub nonce: u64,
    /// Slots of 4096 bytes, from the beginning of the device or file: 1 to 4,194,304.
    #[serde(rename = "b")]
    pub blocks: u64,
    /// Blocks a group: 1 to 256, at most `blocks`.
    #[serde(rename = "g")]
    pub group: u64,
}

/// The plan or the area cannot be used.
#[derive(Debug, Error)]
pub enum AckedError {
    /// Numbers out of range.
    #[error("a plan of {blocks} blocks in groups of {group} is out of range (1 to 4194304 blocks, groups of 1 to 256)")]
    Plan {
        /// As given.
        blocks: u64,
        /// As given.
        group: u64,
    },
    /// Reading or writing failed.
    #[error("slot {slot}: {source}")]
    Io {
        /// Slot.
        slot: u64,
        /// Cause.
        source: io::Error,
    },
}

impl Plan {
    /// Fails when the numbers are out of range.
    pub fn check(&self) -> Result<(), AckedError> {
        if (1..=1 << 22).contains(&self.blocks) && (1..=256.min(self.blocks)).contains(&self.group) {
            return Ok(());
        }
        Err(AckedError::Plan { blocks: self.blocks, group: self.group })
    }

    /// A step through the slots that visits each once a round: about the golden section of their number.
    fn stride(&self) -> u64 {
        let start = (self.blocks * 618 / 1000).max(1);
        (start..).find(|s| gcd(*s, self.blocks) == 1).unwrap_or(1)
    }

    /// Slot of block `seq`.
    pub fn slot(&self, seq: u64) -> u64 {
        (seq % self.blocks) * self.stride() % self.blocks
    }

    /// The block `seq` as it is written.
    pub fn block(&self, seq: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        fill(&Pattern::new(self.nonce, 'K'), seq.wrapping_mul(BLOCK as u64), &mut block);
        let head = [u64::from_le_bytes(*MAGIC), self.nonce, seq, self.slot(seq)];
        for (word, at) in head.iter().zip((0..).step_by(8)) {
            block[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32fast::hash(&block[..BLOCK - 4]);
        block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// What is in `slot`, judged by its bytes.
    fn read(&self, slot: u64, block: &[u8]) -> Found {
        let word = |at: usize| block.get(at..at + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_le_bytes);
        if block.get(..8) != Some(MAGIC) || word(8) != self.nonce {
            return Found::Foreign;
        }
        let seq = word(16);
        let intact =
            block.get(..BLOCK - 4).is_some_and(|body| block[BLOCK - 4..] == crc32fast::hash(body).to_le_bytes());
        if intact && word(24) == slot && self.slot(seq) == slot { Found::Block(seq) } else { Found::Torn }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Block(u64),
    Torn,
    Foreign,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Acknowledged groups that were looked for.
    pub groups: u64,
    /// Slots that had to hold an acknowledged block.
    pub required: u64,
    /// Of these: slots with an older block or none.
    pub lost: u64,
    /// Of these: slots with a damaged block.
    pub torn: u64,
    /// Highest group seen on disk.
    pub newest_group: u64,
    /// The first bad slot, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad: Option<u64>,
}

impl Report {
    /// True when nothing acknowledged is missing.
    pub fn intact(&self) -> bool {
        self.lost == 0 && self.torn == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { groups, required, lost, torn, newest_group, .. } = self;
        write!(
            f,
            "{groups} groups acknowledged, {required} blocks required, {lost} lost, {torn} torn, newest group on disk {newest_group}"
        )
    }
}

/// Checks that all blocks of groups 1..=`n` are where the plan says. `read` fills its buffer of 4096 bytes from a byte
/// offset of the device, file or image.
pub fn check_acked(
    plan: &Plan,
    n: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Report, AckedError> {
    plan.check()?;
    let acked = n.saturating_mul(plan.group);
    let stride = plan.stride();
    let mut report = Report { groups: n, ..Default::default() };
    let mut block = vec![0; BLOCK];
    for place in 0..plan.blocks {
        let slot = place * stride % plan.blocks;
        read(slot * BLOCK as u64, &mut block).map_err(|source| AckedError::Io { slot, source })?;
        let found = plan.read(slot, &block);
        if let Found::Block(seq) = found {
            report.newest_group = report.newest_group.max(seq / plan.group + 1);
        }
        let Some(rounds) = acked.checked_sub(place + 1).map(|left| left / plan.blocks) else { continue };
        report.required += 1;
        let wanted = rounds * plan.blocks + place;
        // A slot that the group in flight overwrites may hold anything: its old block was not promised to outlive that.
        let next = wanted.saturating_add(plan.blocks);
        let overwritten = next < acked.saturating_add(IN_FLIGHT_GROUPS * plan.group);
        let bad = match found {
            Found::Block(seq) if seq >= wanted => continue,
            _ if overwritten => continue,
            Found::Torn => &mut report.torn,
            _ => &mut report.lost,
        };
        *bad += 1;
        report.first_bad.get_or_insert(slot);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An image after `groups` whole groups and `extra` blocks of the next.
    fn image(plan: &Plan, groups: u64, extra: u64) -> Vec<u8> {
        let mut image = vec![0; plan.blocks as usize * BLOCK];
        for seq in 0..groups * plan.group + extra {
            let at = plan.slot(seq) as usize * BLOCK;
            image[at..at + BLOCK].copy_from_slice(&plan.block(seq));
        }
        image
    }

    fn check(plan: &Plan, n: u64, image: &[u8]) -> Report {
        check_acked(plan, n, |at, block| {
            block.copy_from_slice(&image[at as usize..][..block.len()]);
            Ok(())
        })
        .unwrap()
    }

    const PLAN: Plan = Plan { nonce: 7, blocks: 64, group: 4 };

    #[test]
    fn a_lost_group_is_found() {
        for (n, on_disk) in [(10, 9), (16, 15), (20, 19), (40, 38)] {
            let report = check(&PLAN, n, &image(&PLAN, on_disk, 0));
            assert!(!report.intact() || n > 16, "{report}");
            assert_eq!(report.newest_group, on_disk);
        }
        // Past the first round the loss of the last group shows too, since only two *later* groups may overwrite.
        assert_eq!(check(&PLAN, 20, &image(&PLAN, 19, 0)).lost, 4);
    }

    #[test]
    fn a_torn_acknowledged_block_is_found_and_a_torn_one_in_flight_is_not() {
        let mut bytes = image(&PLAN, 20, 0);
        let at = |seq: u64| PLAN.slot(seq) as usize * BLOCK;
        bytes[at(20 * 4) + 100] ^= 1;
        assert!(check(&PLAN, 20, &bytes).intact(), "the slot that group 21 overwrites");
        bytes[at(79) + 100] ^= 1;
        let report = check(&PLAN, 20, &bytes);
        assert_eq!((report.torn, report.lost, report.first_bad), (1, 0, Some(PLAN.slot(79))));
    }

    #[test]
    fn another_run_does_not_pass() {
        let bytes = image(&Plan { nonce: 8, ..PLAN }, 16, 0);
        // 64 slots, 8 of which the two groups after the 16th may be overwriting.
        assert_eq!(check(&PLAN, 16, &bytes).lost, 56);
    }

    #[test]
    fn plans_out_of_range_are_refused() {
        for (blocks, group) in [(0, 1), (1, 0), (4, 5), (1 << 23, 1), (1000, 257)] {
            assert!(Plan { nonce: 0, blocks, group }.check().is_err());
        }
    }

    proptest! {
        #[test]
        fn slots_are_a_permutation(blocks in 1u64..500) {
            let plan = Plan { nonce: 0, blocks, group: 1 };
            let mut seen: Vec<u64> = (0..blocks).map(|seq| plan.slot(seq)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..blocks).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_was_acknowledged_is_found(blocks in 4u64..40, group in 1u64..4, groups in 0u64..60, ahead in 0u64..2, extra in 0u64..3) {
            let plan = Plan { nonce: 3, blocks, group };
            let bytes = image(&plan, groups + ahead, extra.min(group));
            prop_assert!(check(&plan, groups, &bytes).intact());
        }

        #[test]
        fn any_image_is_survived(bytes in proptest::collection::vec(any::<u8>(), 4 * BLOCK), n in any::<u64>()) {
            let plan = Plan { nonce: 3, blocks: 4, group: 2 };
            check(&plan, n, &bytes);
        }
    }
}
