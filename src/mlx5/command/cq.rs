// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queue commands (contract 6.2). Moderation is not offered.

use super::CommandError;
use super::fields;
use super::request::{QueuePlace, Reply, Request, at_most};
use crate::cq::{Cq, CqSpec, ResizeError};
use crate::eq::About;
use crate::later;
use crate::limits::LOG_MAX_CQ_SIZE;
use mlx5_spec::cq::{
    CQC_SIZE, cqc, create_in, create_out, destroy_in, modify_in, modify_op_mod, query_in, query_out, resize_select,
};

const PLACE: QueuePlace = QueuePlace {
    valid: create_in::CQ_UMEM_VALID,
    id: create_in::CQ_UMEM_ID,
    offset: create_in::CQ_UMEM_OFFSET,
    pas: create_in::PAS,
    written: true,
};

/// CREATE_CQ.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::CQC, CQC_SIZE)?;
    request.refuse(fields::CQC, create_in::CQC)?;
    let entry = cqc::CQE_SZ.get(context);
    let mut uses = Vec::new();
    let uar = request.uar(cqc::UAR_PAGE.get(context))?;
    let eqn = cqc::C_EQN.get(context);
    request.hold_any(&request.hca.eqs, "EQ", eqn, &mut uses)?;
    let log_size = at_most(cqc::LOG_CQ_SIZE.get(context), LOG_MAX_CQ_SIZE, "CQ size")?;
    let pages = (cqc::LOG_PAGE_SIZE.get(context), cqc::PAGE_OFFSET.get(context));
    let bytes = Cq::bytes(log_size, entry);
    let buffer = request.queue(&PLACE, pages, (bytes, bytes >> log_size), &mut uses)?;
    let umem = cqc::DBR_UMEM_VALID.is_set(context).then(|| cqc::DBR_UMEM_ID.get(context));
    let record = request.record(umem, cqc::DBR_ADDR.get(context), &mut uses)?;
    let spec = CqSpec {
        uar,
        eqn,
        log_size,
        entry,
        ignore_overrun: cqc::OI.is_set(context),
        record,
        buffer,
        context: context.to_vec(),
    };
    let cq = request.insert(&request.hca.cqs, "CQ", |cqn| Cq::new(cqn, spec))?;
    cq.uses.replace(uses);
    Ok(Reply::new(create_out::SIZE).with(create_out::CQN, cq.cqn))
}

/// DESTROY_CQ: no entry is written to it once this is answered.
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = request.take(&request.hca.cqs, "CQ", request.get(destroy_in::CQN))?;
    cq.kill(request.hca);
    later::forget(request.hca, About::Cq(cq.cqn));
    cq.uses.end();
    Ok(Reply::ok())
}

/// QUERY_CQ.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = request.find(&request.hca.cqs, "CQ", request.get(query_in::CQN))?;
    let mut context = cq.context.lock().clone();
    cq.query(request.hca, &mut context);
    Ok(Reply::new(query_out::SIZE).with_bytes(query_out::CQC, &context))
}

/// MODIFY_CQ: another size, or nothing.
pub fn modify(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = request.find(&request.hca.cqs, "CQ", request.get(modify_in::CQN))?;
    match (request.op_mod(), request.get(modify_in::FIELD_SELECT)) {
        (modify_op_mod::RESIZE, select) => resize(request, &cq, select),
        (modify_op_mod::MODIFY, 0) => Ok(Reply::ok()),
        (modify_op_mod::MODIFY, _) => Err(CommandError::Param(fields::MODERATION)),
        _ => Err(CommandError::Param("op_mod is 0 or 1")),
    }
}

/// What the command does not select stays, and so does the size of an entry.
fn resize(request: &mut Request<'_>, cq: &Cq, select: u32) -> Result<Reply, CommandError> {
    let asked = request.part(modify_in::CQC, CQC_SIZE)?;
    request.refuse_umem(modify_in::CQ_UMEM_VALID)?;
    let mut context = cq.context.lock();
    let mut next = context.clone();
    for (bit, field) in [
        (resize_select::LOG_SIZE, cqc::LOG_CQ_SIZE),
        (resize_select::PAGE_OFFSET, cqc::PAGE_OFFSET),
        (resize_select::PAGE_SIZE, cqc::LOG_PAGE_SIZE),
    ] {
        if select & bit != 0 {
            field.set(&mut next, field.get(asked));
        }
    }
    let entry = cqc::CQE_SZ.get(&next);
    if cqc::CQE_SZ.get(asked) != entry {
        return Err(CommandError::Param("entries keep their size"));
    }
    let log_size = at_most(cqc::LOG_CQ_SIZE.get(&next), LOG_MAX_CQ_SIZE, "CQ size")?;
    let (log_page, offset) = (cqc::LOG_PAGE_SIZE.get(&next), cqc::PAGE_OFFSET.get(&next));
    let buffer = request.buffer(modify_in::PAS, log_page, offset, Cq::bytes(log_size, entry))?;
    cq.resize(request.hca, log_size, entry, buffer).map_err(|error| match error {
        ResizeError::Full => CommandError::Outstanding,
        ResizeError::Broken => CommandError::Param("the queue is in error"),
    })?;
    *context = next;
    Ok(Reply::ok())
}
