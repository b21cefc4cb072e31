// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a handler gets and gives, and the checks that all of them share.

use std::sync::Arc;

use super::fields::{self, Row};
use super::{CommandError, DriverSettings};
use crate::buffer::{Geometry, GuestBuffer};
use crate::hca::Hca;
use crate::table::Table;
use crate::uar::UarDoorbells;
use crate::users::{Use, Used};
use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::cmd::{in_header, out_header};
use mlx5_spec::small::PAGE_SIZE;

/// Bytes of an output that has nothing to say.
const EMPTY: usize = 16;

/// A command being executed.
pub struct Request<'a> {
    /// The device.
    pub hca: &'a Hca,
    /// What the driver has set.
    pub settings: &'a mut DriverSettings,
    /// Doorbells of UAR pages.
    pub doorbells: &'a UarDoorbells,
    /// All of the input; at least as long as the table says.
    pub input: &'a [u8],
    /// Bytes of output that the driver has room for; at least as many as the table says.
    pub room: usize,
}

impl<'a> Request<'a> {
    /// A field of the input.
    pub fn get(&self, field: Field) -> u32 {
        field.get(self.input)
    }

    /// A 64-bit field of the input.
    pub fn get64(&self, field: Field64) -> u64 {
        field.get(self.input)
    }

    /// Refuses a command whose answer has `needed` bytes, which its arguments decide, if the driver has less room.
    pub fn room_for(&self, needed: usize) -> Result<(), CommandError> {
        let room = self.room;
        if needed > room { Err(CommandError::OutputLength { room, needed }) } else { Ok(()) }
    }

    /// The command's modifier.
    pub fn op_mod(&self) -> u32 {
        in_header::OP_MOD.get(self.input)
    }

    /// Refuses a context at byte `at` that asks for what is not offered.
    pub fn refuse(&self, table: &[Row], at: usize) -> Result<(), CommandError> {
        fields::refuse(table, self.input, at)
    }

    /// Refuses a command whose `flag` says that its buffer lies in a umem object.
    pub fn refuse_umem(&self, flag: Field) -> Result<(), CommandError> {
        if flag.is_set(self.input) { Err(CommandError::Param(fields::NO_UMEM)) } else { Ok(()) }
    }

    /// `len` bytes of the input at `at`.
    pub fn part(&self, at: usize, len: usize) -> Result<&'a [u8], CommandError> {
        let needed = at as u64 + len as u64;
        self.input.get(at..at + len).ok_or(CommandError::InputLength { len: self.input.len(), needed })
    }

    /// What follows the fixed part of the input, which ends at `at`.
    pub fn tail(&self, at: usize) -> &'a [u8] {
        self.input.get(at..).unwrap_or_default()
    }

    /// A queue buffer of `len` bytes over the page list that begins at `at`. All of it is guest RAM.
    pub fn buffer(
        &self,
        at: usize,
        log_page_size: u32,
        page_offset: u32,
        len: u64,
    ) -> Result<GuestBuffer, CommandError> {
        let geometry = Geometry::new(log_page_size, page_offset, len).ok_or(CommandError::Param("absurd buffer"))?;
        let needed = geometry.pages().saturating_mul(8).saturating_add(at as u64);
        let short = CommandError::InputLength { len: self.input.len(), needed };
        let buffer = GuestBuffer::new(geometry, self.tail(at)).ok_or(short)?;
        buffer.check(&self.hca.dma).map_err(|_| CommandError::Param("a page of the buffer is not guest RAM"))?;
        let admitted = self.hca.queue_pages.admit(buffer, ram_pages(self.hca));
        admitted.ok_or(CommandError::Exhausted("page of the guest that no queue has"))
    }

    /// A UAR page that the driver has allocated, for an object that will obey it. It is not held: libmlx5 gives a page back while
    /// completion queues of it live (contract 4.5), and without their page they have no doorbell.
    pub fn uar(&self, number: u32) -> Result<u32, CommandError> {
        find(&self.hca.uars, "UAR page", number).map(|_| number)
    }

    /// A protection domain, for an object that uses it.
    pub fn pd(&self, number: u32, uses: &mut Vec<Use>) -> Result<u32, CommandError> {
        hold(&self.hca.pds, "PD", number, uses).map(|_| number)
    }
}

/// Pages of guest RAM.
fn ram_pages(hca: &Hca) -> u64 {
    hca.dma.ram_bytes() / PAGE_SIZE
}

/// The object `number`, or BAD_RES.
pub fn find<T>(table: &Table<T>, what: &'static str, number: u32) -> Result<Arc<T>, CommandError> {
    table.get(number).ok_or(CommandError::NoSuch { what, number })
}

/// The object `number`, or BAD_RES; one more use of it.
pub fn hold<T: Used>(
    table: &Table<T>,
    what: &'static str,
    number: u32,
    uses: &mut Vec<Use>,
) -> Result<Arc<T>, CommandError> {
    let object = find(table, what, number)?;
    uses.push(object.users().add());
    Ok(object)
}

/// Takes the object `number` out of its table; BAD_RES if there is none, BAD_RES_STATE if others use it.
pub fn take<T: Used>(table: &Table<T>, what: &'static str, number: u32) -> Result<Arc<T>, CommandError> {
    let users = find(table, what, number)?.users().count();
    if users != 0 {
        return Err(CommandError::InUse { what, number, users });
    }
    table.remove(number).ok_or(CommandError::NoSuch { what, number })
}

/// Refuses with EXCEED_LIM what is beyond a capability.
pub fn at_most(value: u32, limit: u32, what: &'static str) -> Result<u32, CommandError> {
    if value > limit { Err(CommandError::Limit(what)) } else { Ok(value) }
}

/// An output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply(pub Vec<u8>);

impl Reply {
    /// Status OK and nothing else.
    pub fn ok() -> Self {
        Self::new(EMPTY)
    }

    /// Status OK, `size` bytes.
    pub fn new(size: usize) -> Self {
        Self(vec![0; size.max(EMPTY)])
    }

    /// The answer to a command that failed.
    pub fn failure(error: &CommandError) -> Self {
        Self::ok().with(out_header::STATUS, u32::from(error.status())).with(out_header::SYNDROME, error.syndrome())
    }

    /// The same with a field set.
    pub fn with(mut self, field: Field, value: u32) -> Self {
        field.set(&mut self.0, value);
        self
    }

    /// The same with a 64-bit field set.
    pub fn with64(mut self, field: Field64, value: u64) -> Self {
        field.set(&mut self.0, value);
        self
    }

    /// The same with bytes at `at`; what does not fit is cut off.
    pub fn with_bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        let room = self.0.get_mut(at..).unwrap_or_default();
        room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self
    }
}
