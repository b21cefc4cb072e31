// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queue commands (contract 6.2). Moderation and resizing are not offered.

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most, find, hold, take};
use crate::cq::{Cq, CqSpec};
use crate::eq::About;
use crate::later;
use crate::limits::LOG_MAX_CQ_SIZE;
use mlx5_spec::cq::{CQC_SIZE, cqc, create_in, create_out, destroy_in, modify_in, modify_op_mod, query_in, query_out};

/// CREATE_CQ.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::CQC, CQC_SIZE)?;
    request.refuse_umem(create_in::CQ_UMEM_VALID)?;
    request.refuse(fields::CQC, create_in::CQC)?;
    let entry = cqc::CQE_SZ.get(context);
    let mut uses = Vec::new();
    let uar = request.uar(cqc::UAR_PAGE.get(context))?;
    let eqn = cqc::C_EQN.get(context);
    hold(&request.hca.eqs, "EQ", eqn, &mut uses)?;
    let log_size = at_most(cqc::LOG_CQ_SIZE.get(context), LOG_MAX_CQ_SIZE, "CQ size")?;
    let (log_page, offset) = (cqc::LOG_PAGE_SIZE.get(context), cqc::PAGE_OFFSET.get(context));
    let buffer = request.buffer(create_in::PAS, log_page, offset, Cq::bytes(log_size, entry))?;
    let spec = CqSpec {
        uar,
        eqn,
        log_size,
        entry,
        ignore_overrun: cqc::OI.is_set(context),
        record: cqc::DBR_ADDR.get(context),
        buffer,
        context: context.to_vec(),
    };
    let cq = request.hca.cqs.insert(|cqn| Cq::new(cqn, spec)).ok_or(CommandError::Exhausted("CQ"))?;
    cq.uses.replace(uses);
    Ok(Reply::new(create_out::SIZE).with(create_out::CQN, cq.cqn))
}

/// DESTROY_CQ: no entry is written to it once this is answered.
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = take(&request.hca.cqs, "CQ", request.get(destroy_in::CQN))?;
    cq.kill(request.hca);
    later::forget(request.hca, About::Cq(cq.cqn));
    cq.uses.end();
    Ok(Reply::ok())
}

/// QUERY_CQ.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = find(&request.hca.cqs, "CQ", request.get(query_in::CQN))?;
    let mut context = cq.context.lock().clone();
    cq.query(request.hca, &mut context);
    Ok(Reply::new(query_out::SIZE).with_bytes(query_out::CQC, &context))
}

/// MODIFY_CQ: nothing of what it could change is offered.
pub fn modify(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    find(&request.hca.cqs, "CQ", request.get(modify_in::CQN))?;
    if request.op_mod() != modify_op_mod::MODIFY {
        return Err(CommandError::Param("resizing is not offered"));
    }
    match request.get(modify_in::FIELD_SELECT) {
        0 => Ok(Reply::ok()),
        _ => Err(CommandError::Param(fields::MODERATION)),
    }
}
