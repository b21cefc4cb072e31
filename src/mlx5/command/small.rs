// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects that are little more than a number: PD, UAR page, XRC domain, set of Q counters (contract 6.7).

use super::CommandError;
use super::qp::find_qp;
use super::request::{Reply, Request, at_most};
use crate::device_memory::{self, LOG_MOST_ALIGNMENT};
use crate::q_counters::QCounters;
use crate::table::Table;
use crate::users::Users;
use mlx5_spec::qp::service_type;
use mlx5_spec::small::{
    alloc_memic_in, alloc_memic_out, dealloc_memic_in, mcg_in, object, q_counter, query_q_counter_in,
    query_q_counter_out,
};

type Outcome = Result<Reply, CommandError>;

/// Tables keep objects, not their numbers: the number is told while it is made.
fn alloc<T: Default>(request: &Request<'_>, table: &Table<T>, what: &'static str) -> Result<u32, CommandError> {
    let mut number = 0;
    request.insert(table, what, |fresh| {
        number = fresh;
        T::default()
    })?;
    Ok(number)
}

fn numbered(number: u32) -> Reply {
    Reply::new(object::SIZE).with(object::NUMBER, number)
}

/// BAD_RES_STATE while others use it.
fn dealloc(request: &Request<'_>, table: &Table<Users>, what: &'static str) -> Outcome {
    request.take(table, what, request.get(object::NUMBER)).map(|_| Reply::ok())
}

/// ALLOC_PD.
pub fn alloc_pd(request: &mut Request<'_>) -> Outcome {
    alloc(request, &request.hca.pds, "PD").map(numbered)
}

/// DEALLOC_PD. Memory keys do not hold it: UMRs move them from one to another.
pub fn dealloc_pd(request: &mut Request<'_>) -> Outcome {
    dealloc(request, &request.hca.pds, "PD")
}

/// ALLOC_UAR: from now on its send doorbells wake an engine without an exit.
pub fn alloc_uar(request: &mut Request<'_>) -> Outcome {
    let uar = alloc(request, &request.hca.uars, "UAR page")?;
    request.doorbells.open(request.hca, uar);
    Ok(numbered(uar))
}

/// DEALLOC_UAR: the doorbells of the queues that obey the page are gone, the queues stay.
pub fn dealloc_uar(request: &mut Request<'_>) -> Outcome {
    let reply = dealloc(request, &request.hca.uars, "UAR page")?;
    request.doorbells.close(request.hca, request.get(object::NUMBER));
    Ok(reply)
}

/// ALLOC_XRCD.
pub fn alloc_xrcd(request: &mut Request<'_>) -> Outcome {
    alloc(request, &request.hca.xrcds, "XRC domain").map(numbered)
}

/// DEALLOC_XRCD.
pub fn dealloc_xrcd(request: &mut Request<'_>) -> Outcome {
    dealloc(request, &request.hca.xrcds, "XRC domain")
}

/// ALLOC_Q_COUNTER.
pub fn alloc_q_counter(request: &mut Request<'_>) -> Outcome {
    let id = alloc(request, &request.hca.q_counters, "set of Q counters")?;
    Ok(Reply::new(q_counter::SIZE).with(q_counter::COUNTER_SET_ID, id))
}

/// DEALLOC_Q_COUNTER.
pub fn dealloc_q_counter(request: &mut Request<'_>) -> Outcome {
    let id = request.get(q_counter::COUNTER_SET_ID);
    request.take::<QCounters>(&request.hca.q_counters, "set of Q counters", id).map(|_| Reply::ok())
}

/// QUERY_Q_COUNTER: one set of this vport's.
pub fn query_q_counter(request: &mut Request<'_>) -> Outcome {
    if request.get(query_q_counter_in::OTHER_VPORT) != 0 {
        return Err(CommandError::Param("there is no other vport"));
    }
    if request.get(query_q_counter_in::AGGREGATE) != 0 {
        return Err(CommandError::Param("sets are told one by one"));
    }
    let id = request.get(query_q_counter_in::COUNTER_SET_ID);
    let set = request.find(&request.hca.q_counters, "set of Q counters", id)?;
    let clear = request.get(query_q_counter_in::CLEAR) != 0;
    let reply = Reply::new(query_q_counter_out::SIZE);
    // They have 32 bits, and wrap.
    Ok(set.read(clear).fold(reply, |reply, (field, count)| reply.with(field, count as u32)))
}

/// The queue pair and the group that a command names.
fn multicast(request: &Request<'_>) -> Result<(u32, [u8; 16]), CommandError> {
    let qpn = request.get(mcg_in::QPN);
    let qp = find_qp(request, qpn)?;
    let gid = request.part(mcg_in::MULTICAST_GID.start, 16)?;
    if qp.service != service_type::UD {
        return Err(CommandError::Param("only datagrams go to groups"));
    }
    let gid: [u8; 16] = gid.try_into().unwrap_or_default();
    if gid[0] == 0xff { Ok((qpn, gid)) } else { Err(CommandError::Param("it is no multicast GID")) }
}

/// ALLOC_MEMIC. A range without room is EAGAIN for drivers, who try the next.
pub fn alloc_memic(request: &mut Request<'_>) -> Outcome {
    let range = (request.get64(alloc_memic_in::RANGE_START_ADDR), u64::from(request.get(alloc_memic_in::RANGE_SIZE)));
    let (len, log) = (request.get(alloc_memic_in::MEMIC_SIZE), request.get(alloc_memic_in::LOG_MEMIC_ADDR_ALIGNMENT));
    at_most(log, LOG_MOST_ALIGNMENT, "alignment")?;
    at_most(len, device_memory::SIZE as u32, "device memory")?;
    let at = request.hca.device_memory.allocate(range, u64::from(len), log);
    let at = at.ok_or(CommandError::Exhausted("device memory in this range"))?;
    Ok(Reply::new(alloc_memic_out::SIZE).with64(alloc_memic_out::MEMIC_START_ADDR, at))
}

/// DEALLOC_MEMIC.
pub fn dealloc_memic(request: &mut Request<'_>) -> Outcome {
    let at = request.get64(dealloc_memic_in::MEMIC_START_ADDR);
    let freed = request.hca.device_memory.free(at);
    // What has begun may still write there.
    request.hca.quiesce.wait();
    if freed { Ok(Reply::ok()) } else { Err(CommandError::NoSuch { what: "device memory", number: at as u32 }) }
}

/// ATTACH_TO_MCG.
pub fn attach(request: &mut Request<'_>) -> Outcome {
    let (qpn, group) = multicast(request)?;
    let attached = request.hca.multicast.attach(&group, qpn);
    if attached { Ok(Reply::ok()) } else { Err(CommandError::Exhausted("room in multicast groups")) }
}

/// DETACH_FROM_MCG.
pub fn detach(request: &mut Request<'_>) -> Outcome {
    let (qpn, group) = multicast(request)?;
    let detached = request.hca.multicast.detach(&group, qpn);
    if detached { Ok(Reply::ok()) } else { Err(CommandError::NoSuch { what: "attachment of queue pair", number: qpn }) }
}
