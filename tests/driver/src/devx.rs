// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User contexts and umems: what a program's own commands need.

use std::sync::atomic::Ordering;

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::Opcode;
use mlx5_spec::devx::{MTT_WRITE, create_uctx_in, create_umem_in, uctx, umem};

use crate::Result;
use crate::command::Input;
use crate::driver::Context;
use crate::memory::Buffer;

/// Where a command that makes a queue says that it lies in umems.
pub struct Place {
    /// The queue does.
    pub valid: Field,
    /// In which.
    pub id: Field,
    /// Its doorbell record does.
    pub record_valid: Field,
    /// In which.
    pub record_id: Field,
    /// Byte of the input that the doorbell record's address is at.
    pub record: usize,
}

impl Context {
    /// CREATE_UCTX.
    pub fn create_uctx(&self) -> Result<u16> {
        let told = self.command(Input::new(Opcode::CREATE_UCTX, create_uctx_in::SIZE))?;
        Ok(uctx::UID.get(&told) as u16)
    }

    /// DESTROY_UCTX.
    pub fn destroy_uctx(&self, uid: u16) -> Result<()> {
        self.command(Input::new(Opcode::DESTROY_UCTX, uctx::SIZE).with(uctx::UID, uid.into())).map(|_| ())
    }

    /// CREATE_UMEM: 4 KiB pages from byte `offset` of the first on.
    pub fn create_umem(&self, pages: &[u64], offset: u32, writable: bool) -> Result<u32> {
        let rights = 1 | if writable { MTT_WRITE } else { 0 };
        let list: Vec<u64> = pages.iter().map(|page| page | rights).collect();
        let input = Input::new(Opcode::CREATE_UMEM, create_umem_in::SIZE)
            .with(create_umem_in::PAGE_OFFSET, offset)
            .with64(create_umem_in::NUM_OF_MTT, pages.len() as u64)
            .list(&list);
        Ok(umem::UMEM_ID.get(&self.command(input)?))
    }

    /// DESTROY_UMEM.
    pub fn destroy_umem(&self, id: u32) -> Result<()> {
        self.command(Input::new(Opcode::DESTROY_UMEM, umem::SIZE).with(umem::UMEM_ID, id)).map(|_| ())
    }

    /// A command that makes a queue: as it is, or, if they are to lie in umems, with one for the queue and one for its doorbell record, of
    /// which only the eight bytes of the record belong to it.
    pub(crate) fn place(&self, input: Input, place: &Place, buffer: &Buffer, record: u64) -> Result<Input> {
        if !self.in_umems.load(Ordering::Relaxed) {
            return Ok(input);
        }
        let queue = self.create_umem(&buffer.pages, 0, true)?;
        let within = (record % 4096) as u32;
        let record = self.create_umem(&[record - u64::from(within)], within, true)?;
        let input = input.with(place.valid, 1).with(place.id, queue);
        Ok(input.with(place.record_valid, 1).with(place.record_id, record).bytes(place.record, &[0; 8]))
    }
}
