// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Objects that are little more than a number: PD, UAR page, XRC domain (contract 6.7).

use super::CommandError;
use super::request::{Reply, Request, take};
use crate::table::Table;
use crate::users::Users;
use mlx5_spec::small::object;

type Outcome = Result<Reply, CommandError>;

/// Tables keep objects, not their numbers: the number is told while it is made.
fn alloc(table: &Table<Users>, what: &'static str) -> Result<u32, CommandError> {
    let mut number = 0;
    let made = table.insert(|fresh| {
        number = fresh;
        Users::default()
    });
    made.ok_or(CommandError::Exhausted(what))?;
    Ok(number)
}

fn numbered(number: u32) -> Reply {
    Reply::new(object::SIZE).with(object::NUMBER, number)
}

/// BAD_RES_STATE while others use it.
fn dealloc(request: &Request<'_>, table: &Table<Users>, what: &'static str) -> Outcome {
    take(table, what, request.get(object::NUMBER)).map(|_| Reply::ok())
}

/// ALLOC_PD.
pub fn alloc_pd(request: &mut Request<'_>) -> Outcome {
    alloc(&request.hca.pds, "PD").map(numbered)
}

/// DEALLOC_PD. Memory keys do not hold it: UMRs move them from one to another.
pub fn dealloc_pd(request: &mut Request<'_>) -> Outcome {
    dealloc(request, &request.hca.pds, "PD")
}

/// ALLOC_UAR: from now on its send doorbells wake an engine without an exit.
pub fn alloc_uar(request: &mut Request<'_>) -> Outcome {
    let uar = alloc(&request.hca.uars, "UAR page")?;
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
    alloc(&request.hca.xrcds, "XRC domain").map(numbered)
}

/// DEALLOC_XRCD.
pub fn dealloc_xrcd(request: &mut Request<'_>) -> Outcome {
    dealloc(request, &request.hca.xrcds, "XRC domain")
}
