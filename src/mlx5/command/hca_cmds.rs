// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of the device as a whole: bring-up, pages (none wanted: contract D7), adapter, special contexts.

use super::CommandError;
use super::request::{Reply, Request};
use crate::mkey::NULL_MKEY;
use crate::reset;
use mlx5_spec::small::{
    manage_pages_op_mod, query_adapter_out, query_issi_out, query_pages_out, query_special_contexts_out, set_issi_in,
    teardown_hca_in, teardown_hca_out, teardown_profile,
};

/// ISSI 0 and 1 (contract D5).
const SUPPORTED_ISSI: u32 = 0b11;
/// IEEE id that drivers show as the vendor (contract 4.1, row 14).
pub const IEEE_VENDOR_ID: u32 = 0x00_02c9;
/// Board id, 16 bytes.
const BOARD_ID: &[u8; 16] = b"RNIC000000000001";

type Outcome = Result<Reply, CommandError>;

/// ENABLE_HCA.
pub fn enable(request: &mut Request<'_>) -> Outcome {
    request.settings.enabled = true;
    Ok(Reply::ok())
}

/// DISABLE_HCA.
pub fn disable(request: &mut Request<'_>) -> Outcome {
    close(request, "DISABLE_HCA");
    request.settings.enabled = false;
    Ok(Reply::ok())
}

/// INIT_HCA. The driver's ids serve features that are not offered.
pub fn init(request: &mut Request<'_>) -> Outcome {
    request.settings.initialized = true;
    Ok(Reply::ok())
}

/// TEARDOWN_HCA. Closed in whatever way, what is left goes; by force nobody expects that the driver has destroyed it. Prepared for a fast teardown, it
/// stays until the driver disables the interface (contract 4.6).
pub fn teardown(request: &mut Request<'_>) -> Outcome {
    match request.get(teardown_hca_in::PROFILE) {
        teardown_profile::GRACEFUL_CLOSE => close(request, "TEARDOWN_HCA"),
        teardown_profile::FORCE_CLOSE => drop_everything(request),
        teardown_profile::PREPARE_FAST_TEARDOWN => {}
        _ => return Err(CommandError::Param("teardown profile is 0, 1 or 2")),
    }
    Ok(Reply::new(teardown_hca_out::SIZE).with(teardown_hca_out::STATE, 0))
}

/// The driver frees all of its memory after this: what it forgot must not reach it any more.
fn close(request: &mut Request<'_>, why: &str) {
    let left = reset::objects(request.hca);
    if left != 0
        && let Some(count) = request.hca.complaints.next()
    {
        let index = request.hca.index;
        log::warn!("nic{index}: {why} with {left} objects that the driver has not destroyed (complaint {count})");
    }
    drop_everything(request);
}

fn drop_everything(request: &mut Request<'_>) {
    reset::drop_objects(request.hca, request.doorbells);
    request.settings.initialized = false;
}

/// QUERY_ISSI.
pub fn query_issi(request: &mut Request<'_>) -> Outcome {
    let reply = Reply::new(query_issi_out::SIZE).with(query_issi_out::CURRENT_ISSI, request.settings.issi);
    Ok(reply.with(query_issi_out::SUPPORTED_ISSI_DW0, SUPPORTED_ISSI))
}

/// SET_ISSI.
pub fn set_issi(request: &mut Request<'_>) -> Outcome {
    let issi = request.get(set_issi_in::CURRENT_ISSI);
    if issi > 1 {
        return Err(CommandError::Param("ISSI is 0 or 1"));
    }
    request.settings.issi = issi;
    Ok(Reply::ok())
}

/// QUERY_PAGES: none for any purpose.
pub fn query_pages(_: &mut Request<'_>) -> Outcome {
    Ok(Reply::new(query_pages_out::SIZE).with(query_pages_out::NUM_PAGES, 0))
}

/// MANAGE_PAGES: 6.1 gives zero pages (contract T14); none are wanted, so none can be returned.
pub fn manage_pages(request: &mut Request<'_>) -> Outcome {
    let known = [manage_pages_op_mod::CANT_GIVE, manage_pages_op_mod::GIVE, manage_pages_op_mod::TAKE];
    if known.contains(&request.op_mod()) { Ok(Reply::ok()) } else { Err(CommandError::Param("op_mod is 0, 1 or 2")) }
}

/// QUERY_ADAPTER.
pub fn query_adapter(_: &mut Request<'_>) -> Outcome {
    let reply = Reply::new(query_adapter_out::SIZE).with(query_adapter_out::IEEE_VENDOR_ID, IEEE_VENDOR_ID);
    Ok(reply.with_bytes(query_adapter_out::VSD_CONTD_PSID.start, BOARD_ID))
}

/// QUERY_SPECIAL_CONTEXTS: of these keys only that of absent entries is offered. The terminator of old, 0x100, needs no capability (contract 8.6).
pub fn query_special_contexts(_: &mut Request<'_>) -> Outcome {
    Ok(Reply::new(query_special_contexts_out::SIZE).with(query_special_contexts_out::NULL_MKEY, NULL_MKEY))
}

/// NOP.
pub fn nop(_: &mut Request<'_>) -> Outcome {
    Ok(Reply::ok())
}
