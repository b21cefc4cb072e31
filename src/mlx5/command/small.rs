// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects that are little more than a number: PD, UAR page, XRC domain, transport domain (contract 6.7).

use super::CommandError;
use super::request::{Reply, Request, find, refuse_if};
use crate::hca::Hca;
use crate::srq::SrqKind;
use crate::sync::lock;
use crate::table::Table;
use mlx5_spec::qp::{qpc, rq_type, service_type};
use mlx5_spec::small::object;

type Outcome = Result<Reply, CommandError>;

/// Tables keep objects, not their numbers: the number is told while it is made.
fn alloc(table: &Table<()>, what: &'static str) -> Result<u32, CommandError> {
    let mut number = 0;
    table.insert(|fresh| number = fresh).ok_or(CommandError::Exhausted(what))?;
    Ok(number)
}

fn numbered(number: u32) -> Reply {
    Reply::new(object::SIZE).with(object::NUMBER, number)
}

fn dealloc(table: &Table<()>, what: &'static str, number: u32) -> Outcome {
    table.remove(number).map(|_| Reply::ok()).ok_or(CommandError::NoSuch { what, number })
}

/// ALLOC_PD.
pub fn alloc_pd(request: &mut Request<'_>) -> Outcome {
    alloc(&request.hca.pds, "PD").map(numbered)
}

/// DEALLOC_PD. Memory keys do not hold it: UMRs move them from one to another.
pub fn dealloc_pd(request: &mut Request<'_>) -> Outcome {
    let (hca, pd) = (request.hca, request.get(object::NUMBER));
    find(&hca.pds, "PD", pd)?;
    refuse_if(hca.qps.all().iter().any(|(_, qp)| qp.attrs().pd == pd), "PD", pd, "a queue pair")?;
    refuse_if(hca.srqs.all().iter().any(|(_, srq)| srq.pd == pd), "PD", pd, "a shared receive queue")?;
    dealloc(&hca.pds, "PD", pd)
}

/// ALLOC_UAR: from now on its send doorbells wake an engine without an exit.
pub fn alloc_uar(request: &mut Request<'_>) -> Outcome {
    let uar = alloc(&request.hca.uars, "UAR page")?;
    request.doorbells.open(request.hca, uar);
    Ok(numbered(uar))
}

/// DEALLOC_UAR. Queues that still name the page get no doorbells any more.
pub fn dealloc_uar(request: &mut Request<'_>) -> Outcome {
    let uar = request.get(object::NUMBER);
    let reply = dealloc(&request.hca.uars, "UAR page", uar)?;
    request.doorbells.close(request.hca, uar);
    Ok(reply)
}

/// ALLOC_XRCD.
pub fn alloc_xrcd(request: &mut Request<'_>) -> Outcome {
    alloc(&request.hca.xrcds, "XRC domain").map(numbered)
}

/// DEALLOC_XRCD.
pub fn dealloc_xrcd(request: &mut Request<'_>) -> Outcome {
    let (hca, xrcd) = (request.hca, request.get(object::NUMBER));
    find(&hca.xrcds, "XRC domain", xrcd)?;
    let holds = hca.srqs.all().iter().any(|(_, srq)| srq.kind == SrqKind::Xrc && srq.xrcd == xrcd);
    refuse_if(holds, "XRC domain", xrcd, "a shared receive queue")?;
    refuse_if(targets(hca, xrcd), "XRC domain", xrcd, "a queue pair")?;
    dealloc(&hca.xrcds, "XRC domain", xrcd)
}

/// Whether an XRC queue pair receives for the domain. Other queue pairs name a dummy (contract 6.3).
fn targets(hca: &Hca, xrcd: u32) -> bool {
    hca.qps.all().iter().filter(|(_, qp)| qp.service == service_type::XRC).any(|(_, qp)| {
        let context = lock(&qp.context);
        qpc::RQ_TYPE.get(&context) == rq_type::SRQ && qpc::NO_SQ.is_set(&context) && qpc::XRCD.get(&context) == xrcd
    })
}

/// ALLOC_TRANSPORT_DOMAIN.
pub fn alloc_td(request: &mut Request<'_>) -> Outcome {
    alloc(&request.hca.tds, "transport domain").map(numbered)
}

/// DEALLOC_TRANSPORT_DOMAIN.
pub fn dealloc_td(request: &mut Request<'_>) -> Outcome {
    dealloc(&request.hca.tds, "transport domain", request.get(object::NUMBER))
}
