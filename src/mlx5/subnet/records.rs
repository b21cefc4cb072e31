// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Paths, nodes, ports and services (IBTA 15.2.5). A subnet of ports that all reach each other in one step: a path is where its ends are.

use super::groups::{Groups, LIFE_TIME, MTU_4096, RATE_100, within};
use super::{Gid, PortFacts, Refused, gid_at, put_gid};
use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::mad::{
    mc_member_record, node_record, path_record as path, port_info_record as info, selector, service_record as service,
    status,
};

/// The default partition, full member.
const PKEY: u32 = 0xffff;
/// The first LID of multicast.
const MULTICAST: u32 = 0xc000;

/// Bits of PathRecord's component mask.
mod part {
    pub const DGID: u64 = 1 << 2;
    pub const SGID: u64 = 1 << 3;
    pub const DLID: u64 = 1 << 4;
    pub const SLID: u64 = 1 << 5;
    pub const P_KEY: u64 = 1 << 13;
    pub const MTU: u64 = 1 << 16 | 1 << 17;
    pub const RATE: u64 = 1 << 18 | 1 << 19;
}

/// The paths that are asked for. Whoever asks says where they begin (o15-0.2.1).
pub(super) fn paths(
    ports: &[PortFacts],
    groups: &Groups,
    (mask, asked): (u64, &[u8]),
) -> Result<Vec<Vec<u8>>, Refused> {
    if mask & (part::SGID | part::SLID) == 0 {
        return Err(Refused(status::INSUFFICIENT_COMPONENTS));
    }
    let is_end = |port: &PortFacts, gid: (u64, Gid), lid: (u64, u32)| {
        (mask & gid.0 == 0 || port.gid == gid.1) && (mask & lid.0 == 0 || u32::from(port.lid) == lid.1)
    };
    let to = (part::DGID, gid_at(asked, path::DGID));
    let from = (part::SGID, gid_at(asked, path::SGID));
    let sources = ports.iter().filter(|port| is_end(port, from, (part::SLID, path::SLID.get(asked))));
    let pkey = path::P_KEY.get(asked);
    if mask & part::P_KEY != 0 && pkey & 0x7fff != PKEY & 0x7fff {
        return Ok(Vec::new());
    }
    let fits = |mtu: u32, rate: u32| {
        (mask & part::MTU != part::MTU || within(path::MTU_SELECTOR.get(asked), path::MTU.get(asked), mtu))
            && (mask & part::RATE != part::RATE || within(path::RATE_SELECTOR.get(asked), path::RATE.get(asked), rate))
    };
    if mask & part::DGID != 0 && to.1[0] == 0xff {
        let Some(group) = groups.group(&to.1) else { return Ok(Vec::new()) };
        let get = |field: Field| field.get(group);
        let (mtu, rate) = (get(mc_member_record::MTU), get(mc_member_record::RATE));
        let told = sources.filter(|_| fits(mtu, rate)).map(|source| {
            let mut told = one(source, &to.1, get(mc_member_record::MLID), (mtu, rate));
            path::SL.set(&mut told, get(mc_member_record::SL));
            path::FLOW_LABEL.set(&mut told, get(mc_member_record::FLOW_LABEL));
            path::HOP_LIMIT.set(&mut told, get(mc_member_record::HOP_LIMIT));
            path::TCLASS.set(&mut told, get(mc_member_record::TCLASS));
            told
        });
        return Ok(told.collect());
    }
    if mask & part::DLID != 0 && path::DLID.get(asked) >= MULTICAST || !fits(MTU_4096, RATE_100) {
        return Ok(Vec::new());
    }
    let targets = |source: &PortFacts| {
        let source = source.clone();
        let ends = ports.iter().filter(move |port| is_end(port, to, (part::DLID, path::DLID.get(asked))));
        ends.map(move |end| one(&source, &end.gid, end.lid.into(), (MTU_4096, RATE_100)))
    };
    Ok(sources.flat_map(targets).collect())
}

fn one(source: &PortFacts, dgid: &Gid, dlid: u32, (mtu, rate): (u32, u32)) -> Vec<u8> {
    let mut told = vec![0; path::SIZE];
    put_gid(&mut told, path::DGID, dgid);
    put_gid(&mut told, path::SGID, &source.gid);
    for (field, value) in [
        (path::DLID, dlid),
        (path::SLID, source.lid.into()),
        (path::REVERSIBLE, 1),
        (path::NUMB_PATH, 1),
        (path::P_KEY, PKEY),
        (path::MTU_SELECTOR, selector::EXACTLY),
        (path::MTU, mtu),
        (path::RATE_SELECTOR, selector::EXACTLY),
        (path::RATE, rate),
        (path::LIFE_TIME_SELECTOR, selector::EXACTLY),
        (path::LIFE_TIME, LIFE_TIME),
    ] {
        field.set(&mut told, value);
    }
    told
}

/// NodeRecords, one a port.
pub(super) fn nodes(ports: &[PortFacts], (mask, asked): (u64, &[u8])) -> Vec<Vec<u8>> {
    /// LID, NodeType, NodeGUID, PortGUID by their order.
    const LID: u64 = 1 << 0;
    const NODE_TYPE: u64 = 1 << 4;
    const NODE_GUID: u64 = 1 << 7;
    const PORT_GUID: u64 = 1 << 8;
    let told = ports.iter().map(|port| {
        let mut told = vec![0; node_record::SIZE];
        for (field, value) in [
            (node_record::LID, port.lid.into()),
            (node_record::BASE_VERSION, 1),
            (node_record::CLASS_VERSION, 1),
            (node_record::NODE_TYPE, 1),
            (node_record::NUM_PORTS, 1),
            (node_record::PARTITION_CAP, 128),
            (node_record::DEVICE_ID, port.device_id.into()),
            (node_record::LOCAL_PORT_NUM, 1),
            (node_record::VENDOR_ID, crate::command::IEEE_VENDOR_ID),
        ] {
            field.set(&mut told, value);
        }
        node_record::SYSTEM_IMAGE_GUID.set(&mut told, port.node_guid);
        node_record::NODE_GUID.set(&mut told, port.node_guid);
        node_record::PORT_GUID.set(&mut told, port.port_guid);
        if let Some(text) = told.get_mut(node_record::NODE_DESCRIPTION) {
            text.copy_from_slice(&port.description);
        }
        told
    });
    let short = |bit: u64, field: Field, told: &[u8]| mask & bit == 0 || field.get(asked) == field.get(told);
    let long = |bit: u64, field: Field64, told: &[u8]| mask & bit == 0 || field.get(asked) == field.get(told);
    told.filter(|told| {
        short(LID, node_record::LID, told)
            && short(NODE_TYPE, node_record::NODE_TYPE, told)
            && long(NODE_GUID, node_record::NODE_GUID, told)
            && long(PORT_GUID, node_record::PORT_GUID, told)
    })
    .collect()
}

/// PortInfoRecords.
pub(super) fn port_infos(ports: &[PortFacts], (mask, asked): (u64, &[u8])) -> Vec<Vec<u8>> {
    const ENDPORT_LID: u64 = 1 << 0;
    const PORT_NUM: u64 = 1 << 1;
    let told = ports.iter().map(|port| {
        let mut told = vec![0; info::SIZE];
        for (field, value) in [
            (info::ENDPORT_LID, port.lid.into()),
            (info::PORT_NUM, 1),
            (info::LID, port.lid.into()),
            (info::MASTER_SM_LID, crate::fabric::SM_LID.into()),
            (info::CAPABILITY_MASK, port.cap_mask1),
            (info::LOCAL_PORT_NUM, 1),
            // 1X and 4X; active: 4X.
            (info::LINK_WIDTH_ENABLED, 3),
            (info::LINK_WIDTH_SUPPORTED, 3),
            (info::LINK_WIDTH_ACTIVE, 2),
            // Up to 10 Gb/s a lane; what is beyond has another attribute.
            (info::LINK_SPEED_SUPPORTED, 7),
            (info::LINK_SPEED_ACTIVE, 4),
            (info::LINK_SPEED_ENABLED, 7),
            (info::PORT_STATE, 4),
            (info::PORT_PHYSICAL_STATE, 5),
            (info::LINK_DOWN_DEFAULT_STATE, 2),
            (info::NEIGHBOR_MTU, MTU_4096),
            (info::MTU_CAP, MTU_4096),
            (info::VL_CAP, 3),
            (info::OPERATIONAL_VLS, 3),
            (info::SUBNET_TIMEOUT, LIFE_TIME),
            (info::RESP_TIME_VALUE, LIFE_TIME),
        ] {
            field.set(&mut told, value);
        }
        info::GID_PREFIX.set(&mut told, u64::from_be_bytes(port.gid[..8].try_into().unwrap_or_default()));
        told
    });
    let is = |bit: u64, field: Field, told: &[u8]| mask & bit == 0 || field.get(asked) == field.get(told);
    told.filter(|told| is(ENDPORT_LID, info::ENDPORT_LID, told) && is(PORT_NUM, info::PORT_NUM, told)).collect()
}

/// Services that ports have registered. Leases are not counted: a service stays until its port withdraws it or is gone.
#[derive(Debug, Default)]
pub(super) struct Services(Vec<[u8; service::SIZE]>);

impl Services {
    /// At most so many.
    const MOST: usize = 256;

    pub(super) fn register(&mut self, asker: &PortFacts, asked: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut told = [0; service::SIZE];
        told.iter_mut().zip(asked).for_each(|(to, from)| *to = *from);
        if gid_at(&told, service::SERVICE_GID) == Gid::default() {
            put_gid(&mut told, service::SERVICE_GID, &asker.gid);
        }
        if gid_at(&told, service::SERVICE_GID) != asker.gid {
            return Err(Refused(status::REQUEST_DENIED));
        }
        match self.0.iter().position(|known| is_same(known, &told)) {
            Some(at) => self.0[at] = told,
            None if self.0.len() == Self::MOST => return Err(Refused(status::NO_RESOURCES)),
            None => self.0.push(told),
        }
        Ok(told.to_vec())
    }

    pub(super) fn withdraw(&mut self, wanted: (u64, &[u8])) -> Result<Vec<u8>, Refused> {
        let at = self.0.iter().position(|known| is_wanted(known, wanted)).ok_or(Refused(status::NO_RECORDS))?;
        Ok(self.0.remove(at).to_vec())
    }

    pub(super) fn records(&self, wanted: (u64, &[u8])) -> Vec<Vec<u8>> {
        self.0.iter().filter(|known| is_wanted(*known, wanted)).map(|known| known.to_vec()).collect()
    }
}

/// A service's identity: its id, its port, its partition (IBTA 15.2.5.14.1).
fn is_same(one: &[u8], other: &[u8]) -> bool {
    service::SERVICE_ID.get(one) == service::SERVICE_ID.get(other)
        && one.get(service::SERVICE_GID) == other.get(service::SERVICE_GID)
        && service::P_KEY.get(one) == service::P_KEY.get(other)
}

fn is_wanted(known: &[u8], (mask, asked): (u64, &[u8])) -> bool {
    let same =
        |bit: u64, range: std::ops::Range<usize>| mask & bit == 0 || known.get(range.clone()) == asked.get(range);
    same(1 << 0, 0..8)
        && same(1 << 1, service::SERVICE_GID)
        && (mask & 1 << 2 == 0 || service::P_KEY.get(known) == service::P_KEY.get(asked))
        && same(1 << 6, service::SERVICE_NAME)
}
