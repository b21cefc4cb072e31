// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory key commands (contract 6.6, 8).

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most, find};
use crate::limits::LOG_MAX_KLM_LIST;
use crate::mkey::{self, MkeyError};
use mlx5_spec::mkey::{
    MKC_SIZE, OCTWORD_SIZE, access_mode, create_in, create_out, destroy_in, mkc, query_in, query_out,
};

/// CREATE_MKEY.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::MKC, MKC_SIZE)?;
    request.refuse_umem(create_in::MKEY_UMEM_VALID)?;
    request.refuse(fields::MKC, create_in::MKC)?;
    if !mkc::FREE.is_set(context) {
        find(&request.hca.pds, "PD", mkc::PD.get(context))?;
    }
    let mode = mkc::ACCESS_MODE_4_2.get(context) << 2 | mkc::ACCESS_MODE_1_0.get(context);
    // The sixth bit of the page size comes with hca_cap_2 (contract T21).
    if mkc::LOG_PAGE_SIZE.get(context) > mkc::LOG_PAGE_SIZE_4_0.max() {
        return Err(CommandError::Param("pages of 2^32 bytes and more are not offered"));
    }
    if mode == access_mode::MEMIC {
        let (start, len) = (mkc::START_ADDR.get(context), mkc::LEN.get(context));
        let there = request.hca.device_memory.seen_at(start, len).is_some();
        // Numbers that nothing has been allocated under name nothing.
        there.then_some(()).ok_or(CommandError::NoSuch { what: "device memory", number: start as u32 })?;
    }
    if mode == access_mode::KLM {
        at_most(mkc::TRANSLATIONS_OCTWORD_SIZE.get(context), 1 << LOG_MAX_KLM_LIST, "KLM list")?;
    }
    let octwords = request.get(create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE) as usize;
    let len = octwords.saturating_mul(OCTWORD_SIZE);
    let needed = (create_in::KLM_PAS_MTT as u64).saturating_add(len as u64);
    let short = CommandError::InputLength { len: request.input.len(), needed };
    let list = request.tail(create_in::KLM_PAS_MTT).get(..len).ok_or(short)?;
    let pg_access = request.get(create_in::PG_ACCESS) != 0;
    let mkey = mkey::create(request.hca, context, list, pg_access).map_err(|error| match error {
        MkeyError::BadParam(why) => CommandError::Param(why),
        MkeyError::NoRes(_) => CommandError::Exhausted("memory key"),
    })?;
    Ok(Reply::new(create_out::SIZE).with(create_out::MKEY_INDEX, mkey.index))
}

/// DESTROY_MKEY: once this is answered no access through the key is in flight (contract 8.5).
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let index = request.get(destroy_in::MKEY_INDEX);
    if mkey::destroy(request.hca, index) {
        Ok(Reply::ok())
    } else {
        Err(CommandError::NoSuch { what: "memory key", number: index })
    }
}

/// QUERY_MKEY.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let mkey = find(&request.hca.mkeys, "memory key", request.get(query_in::MKEY_INDEX))?;
    let (context, first) = mkey.query();
    let reply = Reply::new(query_out::SIZE).with_bytes(query_out::MKC, &context);
    Ok(reply.with_bytes(query_out::TRANSLATIONS.start, &first))
}
