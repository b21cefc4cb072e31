// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command queue in guest memory: entries and mailboxes, copied in once, and answers (contract 3.1, 3.2).

use std::sync::atomic::Ordering;

use dma::{DmaError, DmaTarget};
use mlx5_spec::cmd::{
    ENTRY_SIZE, INLINE_SIZE, MAILBOX_ALIGN, MAILBOX_DATA_SIZE, MAILBOX_SIZE, OUT_HEADER_SIZE, TYPE_PCI, delivery,
    entry, mailbox,
};

/// log2 of the entries.
pub const LOG_SIZE: u32 = 5;
/// log2 of the bytes of an entry.
pub const LOG_STRIDE: u32 = 6;
/// Entries.
pub const SLOTS: u32 = 1 << LOG_SIZE;
/// Longest input. Drivers send up to 256 KiB; the contract asks for 1 MiB at least (3.2).
pub const MAX_INPUT: usize = 2 << 20;
/// Longest output that any command has: QUERY_HCA_CAP's 0x1010.
const MAX_OUTPUT: usize = 0x1010;

const OWNED_BY_DEVICE: u8 = 1;

/// A message that cannot be taken as it is: its delivery status (`spec::cmd::delivery`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undelivered(pub u8);

/// One entry that the driver has handed over, copied.
pub struct Entry {
    at: u64,
    bytes: [u8; ENTRY_SIZE],
}

/// Where the answer goes.
pub struct Output {
    len: usize,
    blocks: Vec<u64>,
}

impl Output {
    /// Bytes that there is room for, as far as any command can use them.
    pub fn room(&self) -> usize {
        self.len
    }
}

impl Entry {
    /// The entry at `at` if it is the device's.
    ///
    /// Ownership is read first: an entry that the driver is just filling must not be seen half old with a new owner.
    pub fn look(dma: &DmaTarget, at: u64) -> Result<Option<Self>, DmaError> {
        let permit = dma.permit()?;
        permit.check(at, ENTRY_SIZE as u64)?;
        let owner: u8 = permit.load(at + entry::STATUS_OWN as u64, Ordering::Acquire)?;
        if owner & OWNED_BY_DEVICE == 0 {
            return Ok(None);
        }
        let mut bytes = [0; ENTRY_SIZE];
        permit.read(at, &mut bytes)?;
        Ok(entry::OWNERSHIP.is_set(&bytes).then_some(Self { at, bytes }))
    }

    /// Whether the signature is right.
    pub fn is_signed(&self) -> bool {
        self.bytes.iter().fold(0, |xor, byte| xor ^ byte) == 0xff
    }

    /// All of the input.
    pub fn input(&self, dma: &DmaTarget) -> Result<Vec<u8>, Undelivered> {
        if entry::TYPE.get(&self.bytes) != TYPE_PCI {
            return Err(Undelivered(delivery::BAD_DESCRIPTOR));
        }
        let len = entry::INPUT_LENGTH.get(&self.bytes) as usize;
        if !(OUT_HEADER_SIZE..=MAX_INPUT).contains(&len) {
            return Err(Undelivered(delivery::IN_LENGTH_ERR));
        }
        let inline = self.bytes.get(entry::INPUT_INLINE).unwrap_or_default();
        let mut input = inline.get(..len.min(INLINE_SIZE)).unwrap_or_default().to_vec();
        input.reserve_exact(len - input.len());
        let mut next = entry::INPUT_MAILBOX.get(&self.bytes);
        let token = entry::TOKEN.get(&self.bytes);
        // Ends: `input` grows in each round. The chain may be longer than the length (contract T5).
        while input.len() < len {
            let block = read_block(dma, next, delivery::BAD_IN_PTR_ALIGN)?;
            if mailbox::TOKEN.get(&block) != token {
                return Err(Undelivered(delivery::TOKEN_ERR));
            }
            let now = (len - input.len()).min(MAILBOX_DATA_SIZE);
            input.extend_from_slice(block.get(..now).unwrap_or_default());
            next = mailbox::NEXT.get(&block);
        }
        Ok(input)
    }

    /// The room for the answer.
    pub fn output(&self, dma: &DmaTarget) -> Result<Output, Undelivered> {
        let len = entry::OUTPUT_LENGTH.get(&self.bytes) as usize;
        if len < OUT_HEADER_SIZE {
            return Err(Undelivered(delivery::OUT_LENGTH_ERR));
        }
        let len = len.min(MAX_OUTPUT);
        let wanted = len.saturating_sub(INLINE_SIZE).div_ceil(MAILBOX_DATA_SIZE);
        let mut next = entry::OUTPUT_MAILBOX.get(&self.bytes);
        let mut blocks = Vec::with_capacity(wanted);
        while blocks.len() < wanted {
            blocks.push(next);
            next = mailbox::NEXT.get(&read_block(dma, next, delivery::BAD_OUT_PTR_ALIGN)?);
        }
        Ok(Output { len, blocks })
    }

    /// Writes the answer (cut to the room there is), then hands the entry back.
    pub fn answer(&self, dma: &DmaTarget, output: &Output, data: &[u8]) -> Result<(), DmaError> {
        let data = data.get(..output.len).unwrap_or(data);
        let (inline, rest) = data.split_at(data.len().min(INLINE_SIZE));
        dma.write(self.at + entry::OUTPUT_INLINE.start as u64, inline)?;
        for (block, part) in output.blocks.iter().zip(rest.chunks(MAILBOX_DATA_SIZE)) {
            dma.write(*block, part)?;
        }
        self.hand_back(dma, delivery::OK)
    }

    /// Hands the entry back: the last write, after everything else (rule 4).
    pub fn hand_back(&self, dma: &DmaTarget, delivery: u8) -> Result<(), DmaError> {
        dma.store(self.at + entry::STATUS_OWN as u64, delivery << 1, Ordering::Release)
    }
}

fn read_block(dma: &DmaTarget, at: u64, misplaced: u8) -> Result<[u8; MAILBOX_SIZE], Undelivered> {
    if at == 0 || !at.is_multiple_of(MAILBOX_ALIGN) {
        return Err(Undelivered(misplaced));
    }
    let mut block = [0; MAILBOX_SIZE];
    dma.read(at, &mut block).map_err(|_| Undelivered(misplaced))?;
    Ok(block)
}
