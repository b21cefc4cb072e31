// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User contexts and umems. A program with a user context sends commands through its driver, which puts the context's number into their header.
//! What they make is the context's, and they reach nothing else: every lookup asks whose an object is (`super::request`).

use super::CommandError;
use super::request::{Reply, Request, ram_pages};
use crate::buffer::{Geometry, GuestBuffer};
use crate::table::Owner;
use crate::umem::Umem;
use crate::users::Users;
use mlx5_spec::cmd::Opcode;
use mlx5_spec::devx::{MTT_WRITE, SHARED_UID, create_uctx_in, create_umem_in, uctx, umem};

/// Bytes of a translation entry.
const MTT: u64 = 8;

/// Commands that only the driver itself may send: what concerns everybody. Drivers let none of them through for a program either.
const DRIVERS_OWN: &[Opcode] = &[
    Opcode::ENABLE_HCA,
    Opcode::DISABLE_HCA,
    Opcode::INIT_HCA,
    Opcode::TEARDOWN_HCA,
    Opcode::SET_ISSI,
    Opcode::QUERY_PAGES,
    Opcode::MANAGE_PAGES,
    Opcode::SET_HCA_CAP,
    Opcode::ACCESS_REG,
    Opcode::MODIFY_HCA_VPORT_CONTEXT,
    Opcode::CREATE_EQ,
    Opcode::DESTROY_EQ,
    Opcode::PAGE_FAULT_RESUME,
    Opcode::ALLOC_MEMIC,
    Opcode::DEALLOC_MEMIC,
    Opcode::CREATE_UCTX,
    Opcode::DESTROY_UCTX,
];

/// Refuses a command of a user context that is not there, or that is the driver's own.
pub fn admit(request: &Request<'_>, opcode: Opcode) -> Result<(), CommandError> {
    let uid = request.uid;
    if uid == 0 || uid == SHARED_UID {
        return Ok(());
    }
    if request.hca.user_contexts.get(u32::from(uid)).is_none() {
        return Err(CommandError::NoSuch { what: "user context", number: u32::from(uid) });
    }
    if DRIVERS_OWN.contains(&opcode) {
        return Err(CommandError::Param("a user context may not send it"));
    }
    Ok(())
}

/// CREATE_UCTX.
pub fn create_context(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    if request.get(create_uctx_in::CAP) != 0 {
        return Err(CommandError::Param("no right is offered beyond a context's own objects (uctx_cap is 0)"));
    }
    let mut uid = 0;
    let made = request.hca.user_contexts.insert_for(Owner::default(), |number| {
        uid = number;
        Users::default()
    });
    made.ok_or(CommandError::Exhausted("user context"))?;
    Ok(Reply::new(uctx::SIZE).with(uctx::UID, uid))
}

/// DESTROY_UCTX: BAD_RES_STATE while it has objects. Drivers destroy a program's objects first, whatever became of the program.
pub fn destroy_context(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    request.take(&request.hca.user_contexts, "user context", request.get(uctx::UID)).map(|_| Reply::ok())
}

/// CREATE_UMEM.
pub fn create_umem(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    if request.get(create_umem_in::ATS) != 0 {
        return Err(CommandError::Param("address translation services are not offered"));
    }
    let pages = request.get64(create_umem_in::NUM_OF_MTT);
    let absurd = CommandError::Param("absurd umem");
    let (log_page_size, offset) =
        (request.get(create_umem_in::LOG_PAGE_SIZE), request.get(create_umem_in::PAGE_OFFSET));
    let geometry = Geometry::whole(log_page_size, offset, pages).ok_or(absurd)?;
    let list = request.tail(create_umem_in::MTT);
    let needed = pages.saturating_mul(MTT).saturating_add(create_umem_in::MTT as u64);
    let bytes = GuestBuffer::new(geometry, list);
    let bytes = bytes.ok_or(CommandError::InputLength { len: request.input.len(), needed })?;
    bytes.check(&request.hca.dma).map_err(|_| CommandError::Param("a page of the umem is not guest RAM"))?;
    let bytes = request.hca.queue_pages.admit(bytes, ram_pages(request.hca));
    let bytes = bytes.ok_or(CommandError::Exhausted("page of the guest for a umem"))?;
    let entries = list.chunks_exact(MTT as usize).take(pages as usize);
    let writable =
        entries.map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default())).all(|mtt| mtt & MTT_WRITE != 0);
    let mut id = 0;
    request.insert(&request.hca.umems, "umem", |number| {
        id = number;
        Umem { bytes, writable, users: Users::default() }
    })?;
    Ok(Reply::new(umem::SIZE).with(umem::UMEM_ID, id))
}

/// DESTROY_UMEM: BAD_RES_STATE while something lies in it.
pub fn destroy_umem(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    request.take(&request.hca.umems, "umem", request.get(umem::UMEM_ID)).map(|_| Reply::ok())
}
