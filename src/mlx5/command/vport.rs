// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port: ACTIVE while its link is up, one LID, GID 0 and P_Key 0 (contract 4.4, 11.2).

use super::CommandError;
use super::hca_cmds::IEEE_VENDOR_ID;
use super::request::{Reply, Request};
use crate::fabric::lid_of;
use crate::port::Reader;
use mlx5_spec::small::{query_vport_counter_in, query_vport_counter_out};
use mlx5_spec::vport::{
    GID_SIZE, PKEY_SIZE, WHOLE_TABLE, cap_mask1, hca_vport_context as context, modify_context_in, pkey,
    query_context_in, query_context_out, query_gid_in, query_gid_out, query_pkey_in, query_pkey_out,
};

/// What MODIFY_HCA_VPORT_CONTEXT may change: ib_umad, ib_cm and ib_srpt each set one (contract 11.1).
const CHANGEABLE_CAP_MASK1: u32 = cap_mask1::SM | cap_mask1::CM_SUP | cap_mask1::DEVICE_MGMT;
/// GIDs of the port: what gid_table_size says.
const GIDS: u32 = 8;
/// P_Keys of the port: what pkey_table_size says.
const PKEYS: u32 = 128;
/// The default P_Key, full member.
const DEFAULT_PKEY: u32 = 0xffff;
/// Subnet prefix of GID 0.
const LINK_LOCAL: u64 = 0xfe80 << 48;
/// Node GUID of NIC 0: an EUI-64 of the vendor's OUI. One that began with 0x02 would read as a request to assign a service id, which
/// ib_cm refuses to listen on.
const FIRST_GUID: u64 = (IEEE_VENDOR_ID as u64) << 40 | 0x03_0049_4300;
/// Timeout of the subnet, 4.096 us << this (contract 11.2).
const SUBNET_TIMEOUT: u32 = 18;

/// Node GUID of NIC `index`; the port's is one more.
pub fn node_guid(index: u8) -> u64 {
    FIRST_GUID + u64::from(index) * 0x10
}

/// Only this function's own port 1 is there; port 0 means it (contract 4.4).
fn check_port(request: &Request<'_>) -> Result<(), CommandError> {
    if request.get(query_context_in::OTHER_VPORT) != 0 || request.get(query_context_in::PORT_NUM) > 1 {
        return Err(CommandError::Param("only this function's own port 1 exists"));
    }
    Ok(())
}

/// QUERY_HCA_VPORT_CONTEXT.
pub fn query_context(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    check_port(request)?;
    let guid = node_guid(request.hca.index);
    let mut bytes = [0; context::SIZE];
    let (state, physical) = request.hca.port.states();
    let fields = [
        (context::PORT_PHYSICAL_STATE, physical),
        (context::PORT_STATE, state),
        (context::VPORT_STATE, state),
        (context::CAP_MASK1, request.hca.port.identity.lock().cap_mask1),
        // Bit 16 must be changeable, or ib_cm stays away from the port (contract T13).
        (context::CAP_MASK1_FIELD_SELECT, CHANGEABLE_CAP_MASK1),
        (context::LID, u32::from(request.hca.lid())),
        (context::SM_LID, u32::from(lid_of(0))),
        (context::SUBNET_TIMEOUT, SUBNET_TIMEOUT),
    ];
    fields.iter().for_each(|(field, value)| field.set(&mut bytes, *value));
    context::SYSTEM_IMAGE_GUID.set(&mut bytes, guid);
    context::NODE_GUID.set(&mut bytes, guid);
    context::PORT_GUID.set(&mut bytes, guid + 1);
    Ok(Reply::new(query_context_out::SIZE).with_bytes(query_context_out::HCA_VPORT_CONTEXT, &bytes))
}

/// MODIFY_HCA_VPORT_CONTEXT: capability mask bits, under their select mask.
pub fn modify_context(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    check_port(request)?;
    let at = modify_context_in::HCA_VPORT_CONTEXT;
    let select = request.get(context::CAP_MASK1_FIELD_SELECT.plus(at)) & CHANGEABLE_CAP_MASK1;
    let value = request.get(context::CAP_MASK1.plus(at));
    let mask = &mut request.hca.port.identity.lock().cap_mask1;
    *mask = *mask & !select | value & select;
    Ok(Reply::ok())
}

/// The indices that a GID or P_Key query asks for.
fn wanted(index: u32, count: u32, what: &'static str) -> Result<std::ops::Range<u32>, CommandError> {
    match index {
        WHOLE_TABLE => Ok(0..count),
        index if index < count => Ok(index..index + 1),
        index => Err(CommandError::Index { what, index }),
    }
}

/// GID `index` of the port of NIC `nic`: the link-local one of its GUID at 0, nothing elsewhere (contract 11.2).
pub fn port_gid(nic: u8, index: u32) -> [u8; 16] {
    let guid = node_guid(nic) + 1;
    let gid = if index == 0 { u128::from(LINK_LOCAL) << 64 | u128::from(guid) } else { 0 };
    gid.to_be_bytes()
}

/// QUERY_HCA_VPORT_GID.
pub fn query_gid(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    check_port(request)?;
    let range = wanted(request.get(query_gid_in::GID_INDEX), GIDS, "GID")?;
    let size = query_gid_out::GIDS + range.len() * GID_SIZE;
    request.room_for(size)?;
    let gids: Vec<u8> = range.clone().flat_map(|index| port_gid(request.hca.index, index)).collect();
    Ok(Reply::new(size).with(query_gid_out::GIDS_NUM, range.len() as u32).with_bytes(query_gid_out::GIDS, &gids))
}

/// QUERY_HCA_VPORT_PKEY.
pub fn query_pkey(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    check_port(request)?;
    let range = wanted(request.get(query_pkey_in::PKEY_INDEX), PKEYS, "P_Key")?;
    let size = query_pkey_out::PKEYS + range.len() * PKEY_SIZE;
    request.room_for(size)?;
    let mut reply = Reply::new(size);
    if range.start == 0 {
        reply = reply.with(pkey::PKEY.plus(query_pkey_out::PKEYS), DEFAULT_PKEY);
    }
    Ok(reply)
}

/// QUERY_VPORT_COUNTER: what goes over the port is the vport's. Nothing fails, and what goes to a multicast group counts as unicast.
pub fn query_counter(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    use query_vport_counter_out as out;
    check_port(request)?;
    let clear = request.get(query_vport_counter_in::CLEAR) != 0;
    let seen = request.hca.port.traffic.seen_by(Reader::Vport, clear);
    let mut reply = Reply::new(out::SIZE);
    for (flow, packets, octets) in [
        (seen.received, out::RECEIVED_IB_UNICAST_PACKETS, out::RECEIVED_IB_UNICAST_OCTETS),
        (seen.sent, out::TRANSMITTED_IB_UNICAST_PACKETS, out::TRANSMITTED_IB_UNICAST_OCTETS),
        (seen.loopback, out::LOCAL_LOOPBACK_PACKETS, out::LOCAL_LOOPBACK_OCTETS),
    ] {
        reply = reply.with64(packets, flow.packets).with64(octets, flow.octets);
    }
    Ok(reply)
}
