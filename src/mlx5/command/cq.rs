// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queue commands (contract 6.2). Moderation is accepted and has no effect; resizing is not offered.

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most, find, hold, take};
use crate::cq::{Cq, CqSpec};
use crate::limits::LOG_MAX_CQ_SIZE;
use mlx5_spec::cq::{
    CQC_SIZE, cqc, create_in, create_out, destroy_in, modify_in, modify_op_mod, modify_select, query_in, query_out,
};

/// CREATE_CQ.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::CQC, CQC_SIZE)?;
    request.refuse_umem(create_in::CQ_UMEM_VALID)?;
    request.refuse(fields::CQC, create_in::CQC)?;
    let entry = cqc::CQE_SZ.get(context);
    let mut uses = Vec::new();
    let uar = request.uar(cqc::UAR_PAGE.get(context), &mut uses)?;
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
    cq.kill();
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

/// MODIFY_CQ.
pub fn modify(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let cq = find(&request.hca.cqs, "CQ", request.get(modify_in::CQN))?;
    if request.op_mod() != modify_op_mod::MODIFY {
        return Err(CommandError::Param("resizing is not offered"));
    }
    let asked = request.part(modify_in::CQC, CQC_SIZE)?;
    let select = request.get(modify_in::FIELD_SELECT);
    if select & modify_select::OVERRUN != 0 {
        return Err(CommandError::Param("overrun handling is fixed at creation"));
    }
    let mut context = cq.context.lock();
    for (bit, field) in [
        (modify_select::PERIOD, cqc::CQ_PERIOD),
        (modify_select::MAX_COUNT, cqc::CQ_MAX_COUNT),
        (modify_select::PERIOD_MODE, cqc::CQ_PERIOD_MODE),
    ] {
        if select & bit != 0 {
            field.set(&mut context, field.get(asked));
        }
    }
    Ok(Reply::ok())
}
