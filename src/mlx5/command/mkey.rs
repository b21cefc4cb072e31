// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory key commands (contract 6.6, 8).

use super::CommandError;
use super::fields;
use super::request::{Reply, Request, at_most};
use crate::limits::LOG_MAX_KLM_LIST;
use crate::mkey::{self, MkeyError};
use crate::users::Use;
use mlx5_spec::mkey::{
    MKC_SIZE, MTT_SIZE, OCTWORD_SIZE, access_mode, create_in, create_out, destroy_in, mkc, query_in, query_out,
};
use std::borrow::Cow;

/// CREATE_MKEY.
pub fn create(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let context = request.part(create_in::MKC, MKC_SIZE)?;
    request.refuse(fields::MKC, create_in::MKC)?;
    if !mkc::FREE.is_set(context) {
        request.find(&request.hca.pds, "PD", mkc::PD.get(context))?;
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
    let mut uses = Vec::new();
    let list = translations(request, context, mode, &mut uses)?;
    // What is beyond the umem's end is not there.
    let pg_access = request.get(create_in::PG_ACCESS) != 0 || !uses.is_empty();
    let mkey =
        mkey::create_for(request.hca, request.owner(), context, &list, pg_access).map_err(|error| match error {
            MkeyError::BadParam(why) => CommandError::Param(why),
            MkeyError::NoRes(_) => CommandError::Exhausted("memory key"),
        })?;
    mkey.uses.replace(uses);
    Ok(Reply::new(create_out::SIZE).with(create_out::MKEY_INDEX, mkey.index))
}

/// The translation entries that a new key has: those behind the command, or the pages of a umem.
fn translations<'a>(
    request: &Request<'a>,
    context: &[u8],
    mode: u32,
    uses: &mut Vec<Use>,
) -> Result<Cow<'a, [u8]>, CommandError> {
    let octwords = request.get(create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE) as usize;
    let len = octwords.saturating_mul(OCTWORD_SIZE);
    if request.get(create_in::MKEY_UMEM_VALID) == 0 {
        let needed = (create_in::KLM_PAS_MTT as u64).saturating_add(len as u64);
        let short = CommandError::InputLength { len: request.input.len(), needed };
        return request.tail(create_in::KLM_PAS_MTT).get(..len).ok_or(short).map(Cow::Borrowed);
    }
    if mode != access_mode::MTT {
        return Err(CommandError::Param("only keys of pages lie in umems"));
    }
    let umem = request.hold(&request.hca.umems, "umem", request.get(create_in::MKEY_UMEM_ID), uses)?;
    let (at, log_page) = (request.get64(create_in::MKEY_UMEM_OFFSET), mkc::LOG_PAGE_SIZE.get(context));
    let list = umem.translations(at, log_page, len / MTT_SIZE);
    list.map(Cow::Owned).ok_or(CommandError::Param("the umem does not have the key's pages"))
}

/// DESTROY_MKEY: once this is answered no access through the key is in flight (contract 8.5).
pub fn destroy(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let index = request.get(destroy_in::MKEY_INDEX);
    request.find(&request.hca.mkeys, "memory key", index)?;
    if mkey::destroy(request.hca, index) {
        Ok(Reply::ok())
    } else {
        Err(CommandError::NoSuch { what: "memory key", number: index })
    }
}

/// QUERY_MKEY.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let mkey = request.find(&request.hca.mkeys, "memory key", request.get(query_in::MKEY_INDEX))?;
    let (context, first) = mkey.query();
    let reply = Reply::new(query_out::SIZE).with_bytes(query_out::MKC, &context);
    Ok(reply.with_bytes(query_out::TRANSLATIONS.start, &first))
}
