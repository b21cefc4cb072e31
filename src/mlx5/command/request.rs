// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a handler gets and gives, and the checks that all of them share.

use std::sync::Arc;

use super::fields::{self, Row};
use super::{CommandError, DriverSettings};
use crate::buffer::{Geometry, GuestBuffer};
use crate::hca::Hca;
use crate::table::{Owner, Table};
use crate::uar::UarDoorbells;
use crate::users::{Use, Used};
use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::cmd::{in_header, out_header};
use mlx5_spec::devx::SHARED_UID;
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
    /// The user context that it is for; 0: the driver itself.
    pub uid: u16,
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

    /// Makes an object, which belongs to the command's user context; NO_RES if none is left.
    pub fn insert<T>(
        &self,
        table: &Table<T>,
        what: &'static str,
        make: impl FnOnce(u32) -> T,
    ) -> Result<Arc<T>, CommandError> {
        table.insert_for(self.owner(), make).ok_or(CommandError::Exhausted(what))
    }

    /// Whose an object is that the command makes.
    pub fn owner(&self) -> Owner {
        let context = self.hca.user_contexts.get(u32::from(self.uid));
        Owner::user(self.uid, context.map(|context| context.add()))
    }

    /// The object `number`, or BAD_RES: a user context has only its own.
    pub fn find<T>(&self, table: &Table<T>, what: &'static str, number: u32) -> Result<Arc<T>, CommandError> {
        self.look(table, what, number, |owner| owner == self.uid)
    }

    fn look<T>(
        &self,
        table: &Table<T>,
        what: &'static str,
        number: u32,
        may: impl FnOnce(u16) -> bool,
    ) -> Result<Arc<T>, CommandError> {
        let found = table.owned(number).filter(|(owner, _)| self.uid == 0 || may(*owner));
        found.map(|(_, object)| object).ok_or(CommandError::NoSuch { what, number })
    }

    /// One more use of the object `number`, which is the user context's own, or BAD_RES.
    pub fn hold<T: Used>(
        &self,
        table: &Table<T>,
        what: &'static str,
        number: u32,
        uses: &mut Vec<Use>,
    ) -> Result<Arc<T>, CommandError> {
        let object = self.find(table, what, number)?;
        uses.push(object.users().add());
        Ok(object)
    }

    /// The object `number`, or BAD_RES: a user context's own, or the driver's, to be named by one of the context's. Drivers have such objects
    /// name event queues, counters, and what stands in for a completion queue, a shared receive queue or an XRC domain that is not there.
    pub fn find_any<T>(&self, table: &Table<T>, what: &'static str, number: u32) -> Result<Arc<T>, CommandError> {
        self.look(table, what, number, |owner| [self.uid, 0, SHARED_UID].contains(&owner))
    }

    /// One more use of the object `number`, as [`Request::find_any`] finds it.
    pub fn hold_any<T: Used>(
        &self,
        table: &Table<T>,
        what: &'static str,
        number: u32,
        uses: &mut Vec<Use>,
    ) -> Result<Arc<T>, CommandError> {
        let object = self.find_any(table, what, number)?;
        uses.push(object.users().add());
        Ok(object)
    }

    /// Takes the object `number` out of its table; BAD_RES if there is none of the user context's, BAD_RES_STATE if others use it.
    pub fn take<T: Used>(&self, table: &Table<T>, what: &'static str, number: u32) -> Result<Arc<T>, CommandError> {
        let users = self.find(table, what, number)?.users().count();
        if users != 0 {
            return Err(CommandError::InUse { what, number, users });
        }
        table.remove(number).ok_or(CommandError::NoSuch { what, number })
    }

    /// A queue of `geometry`'s length, with entries at multiples of `entry` bytes: in a umem if the command says so, else over the page list at
    /// its end. All of it is guest RAM.
    pub fn queue(
        &self,
        place: &QueuePlace,
        (log_page_size, page_offset): (u32, u32),
        (len, entry): (u64, u64),
        uses: &mut Vec<Use>,
    ) -> Result<GuestBuffer, CommandError> {
        if !place.valid.is_set(self.input) {
            return self.buffer(place.pas, log_page_size, page_offset, len);
        }
        let umem = self.hold(&self.hca.umems, "umem", self.get(place.id), uses)?;
        if place.written && !umem.writable {
            return Err(CommandError::Param("the device may not write the umem"));
        }
        let queue = umem.queue(self.get64(place.offset), len, entry);
        queue.ok_or(CommandError::Param("the queue does not lie in the umem, or its entries cross pages"))
    }

    /// Guest physical address of a doorbell record: `address`, or so far into the umem `id`, if there is one.
    pub fn record(&self, umem: Option<u32>, address: u64, uses: &mut Vec<Use>) -> Result<u64, CommandError> {
        let Some(id) = umem else { return Ok(address) };
        let umem = self.hold(&self.hca.umems, "umem", id, uses)?;
        umem.record(address).ok_or(CommandError::Param("the doorbell record does not lie in the umem"))
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
        self.find_any(&self.hca.uars, "UAR page", number).map(|_| number)
    }

    /// A protection domain, for an object that uses it.
    pub fn pd(&self, number: u32, uses: &mut Vec<Use>) -> Result<u32, CommandError> {
        self.hold(&self.hca.pds, "PD", number, uses).map(|_| number)
    }
}

/// Pages of guest RAM.
pub fn ram_pages(hca: &Hca) -> u64 {
    hca.dma.ram_bytes() / PAGE_SIZE
}

/// Where a command says that its queue lies.
pub struct QueuePlace {
    /// It lies in a umem.
    pub valid: Field,
    /// The umem.
    pub id: Field,
    /// Byte of the umem.
    pub offset: Field64,
    /// Where the page list begins that there is otherwise.
    pub pas: usize,
    /// The device writes there.
    pub written: bool,
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
