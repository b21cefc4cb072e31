// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queue commands (contract 6.1).

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most};
use crate::VECTORS;
use crate::eq::EqSpec;
use crate::limits::LOG_MAX_EQ_SIZE;
use mlx5_spec::eq::{EQC_SIZE, EQE_SIZE, create_in, create_out, destroy_in, eqc, query_in, query_out, state};

/// CREATE_EQ: empty and unarmed.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::EQC, EQC_SIZE)?;
    request.refuse(fields::EQC, create_in::EQC)?;
    let vector = eqc::INTR.get(context) as u16;
    if vector >= VECTORS {
        return Err(CommandError::Param("MSI-X vector does not exist"));
    }
    let uar = request.uar(eqc::UAR_PAGE.get(context))?;
    let log_size = at_most(eqc::LOG_EQ_SIZE.get(context), LOG_MAX_EQ_SIZE, "EQ size")?;
    let (log_page, offset) = (eqc::LOG_PAGE_SIZE.get(context), eqc::PAGE_OFFSET.get(context));
    let buffer = request.buffer(create_in::PAS, log_page, offset, (EQE_SIZE as u64) << log_size)?;
    let words = [
        create_in::EVENT_BITMASK_0,
        create_in::EVENT_BITMASK_1,
        create_in::EVENT_BITMASK_2,
        create_in::EVENT_BITMASK_3,
    ];
    let mask = words.map(|word| request.get64(word));
    let spec = EqSpec { vector, uar, mask, log_size, buffer, context: context.to_vec() };
    let eq = request.hca.insert_eq(spec).ok_or(CommandError::Exhausted("EQ"))?;
    request.doorbells.disturb(uar);
    Ok(Reply::new(create_out::SIZE).with(create_out::EQN, eq.eqn))
}

/// DESTROY_EQ: nothing is written to it and its vector is not raised for it once this is answered.
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let eq = request.take(&request.hca.eqs, "EQ", request.get(destroy_in::EQN))?;
    request.hca.claims.follow(&request.hca.eqs);
    eq.kill(request.hca);
    Ok(Reply::ok())
}

/// QUERY_EQ.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let eq = request.find(&request.hca.eqs, "EQ", request.get(query_in::EQN))?;
    let (producer, consumer, armed) = eq.indices();
    let mut context = eq.context.clone();
    eqc::ST.set(&mut context, if armed { state::ARMED } else { state::FIRED });
    eqc::PRODUCER_COUNTER.set(&mut context, producer);
    eqc::CONSUMER_COUNTER.set(&mut context, consumer);
    let reply = Reply::new(query_out::SIZE).with_bytes(query_out::EQC, &context);
    Ok(reply.with64(query_out::EVENT_BITMASK, eq.mask[0]))
}
