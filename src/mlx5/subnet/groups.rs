// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast groups: made by the first full member that joins, gone with the last, and told of (IBTA 15.2.5.17, o15-0.1 and following).
//! IPoIB's broadcast group is there from the beginning, as a subnet manager's configuration has it (RFC 4391, 9.1.2).

use std::collections::BTreeMap;

use super::{Gid, PortFacts, Refused, gid_at, put_gid};
use mlx5_spec::bits::Field;
use mlx5_spec::mad::{join_state, mc_member_record as record, selector, status};

/// The LID of the first group.
const FIRST_MLID: u16 = 0xc000;
/// Groups at most.
const MOST: usize = 1024;
/// IPoIB's broadcast group of the default partition.
const BROADCAST: Gid = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
/// Its Q_Key, by custom.
const IPOIB_QKEY: u32 = 0x0b1b;
/// The default partition, full member.
const PKEY: u32 = 0xffff;
/// 2048 bytes.
const MTU_2048: u32 = 4;
/// 4096 bytes: the ports' own.
pub(super) const MTU_4096: u32 = 5;
/// 10 Gb/s.
const RATE_10: u32 = 3;
/// 100 Gb/s: 4X EDR.
pub(super) const RATE_100: u32 = 16;
/// Packets live 4.096 us << this.
pub(super) const LIFE_TIME: u32 = 18;

/// Bits of the component mask, by the order of the record's parts.
mod part {
    pub const MGID: u64 = 1 << 0;
    pub const PORT_GID: u64 = 1 << 1;
    pub const Q_KEY: u64 = 1 << 2;
    pub const MLID: u64 = 1 << 3;
    pub const MTU_SELECTOR: u64 = 1 << 4;
    pub const MTU: u64 = 1 << 5;
    pub const TCLASS: u64 = 1 << 6;
    pub const P_KEY: u64 = 1 << 7;
    pub const RATE_SELECTOR: u64 = 1 << 8;
    pub const RATE: u64 = 1 << 9;
    pub const SL: u64 = 1 << 12;
    pub const FLOW_LABEL: u64 = 1 << 13;
    pub const SCOPE: u64 = 1 << 15;
    pub const JOIN_STATE: u64 = 1 << 16;
    /// What must be said where a group is made.
    pub const NEEDED: u64 = Q_KEY | TCLASS | P_KEY | SL | FLOW_LABEL;
}

#[derive(Debug)]
struct Group {
    mlid: u16,
    /// A record with all that does not depend on the member.
    record: [u8; record::SIZE],
    /// Join states by port.
    members: BTreeMap<Gid, u32>,
    /// It stays without members.
    stays: bool,
}

/// All of them, by their GID.
#[derive(Debug)]
pub(super) struct Groups(BTreeMap<Gid, Group>);

impl Default for Groups {
    fn default() -> Self {
        let mut record = [0; record::SIZE];
        put_gid(&mut record, record::MGID, &BROADCAST);
        for (field, value) in [
            (record::Q_KEY, IPOIB_QKEY),
            (record::MLID, FIRST_MLID.into()),
            (record::MTU_SELECTOR, selector::EXACTLY),
            (record::MTU, MTU_2048),
            (record::P_KEY, PKEY),
            (record::RATE_SELECTOR, selector::EXACTLY),
            (record::RATE, RATE_10),
            (record::LIFE_TIME_SELECTOR, selector::EXACTLY),
            (record::LIFE_TIME, LIFE_TIME),
            (record::SCOPE, 2),
        ] {
            field.set(&mut record, value);
        }
        let group = Group { mlid: FIRST_MLID, record, members: BTreeMap::new(), stays: true };
        Self([(BROADCAST, group)].into())
    }
}

impl Groups {
    /// SubnAdmSet: a port joins, and so makes the group if there is none.
    pub(super) fn join(
        &mut self,
        ports: &[PortFacts],
        asker: &PortFacts,
        (mask, asked): (u64, &[u8]),
    ) -> Result<Vec<u8>, Refused> {
        let state = record::JOIN_STATE.get(asked);
        if mask & part::JOIN_STATE == 0 || mask & part::PORT_GID == 0 || state == 0 {
            return Err(Refused(status::INSUFFICIENT_COMPONENTS));
        }
        let port = gid_at(asked, record::PORT_GID);
        if !ports.iter().any(|known| known.gid == port) {
            return Err(Refused(status::INVALID_GID));
        }
        // One port joins for another with a proxy's right only, which nobody has.
        if port != asker.gid {
            return Err(Refused(status::REQUEST_DENIED));
        }
        let mut mgid = if mask & part::MGID != 0 { gid_at(asked, record::MGID) } else { Gid::default() };
        if !self.0.contains_key(&mgid) {
            mgid = self.make(mgid, mask, asked)?;
        }
        let group = self.0.get_mut(&mgid).ok_or(Refused(status::REQUEST_INVALID))?;
        if !suits(&group.record, mask, asked) {
            return Err(Refused(status::REQUEST_INVALID));
        }
        let states = group.members.entry(port).or_default();
        *states |= state;
        let states = *states;
        Ok(member(&group.record, &port, states))
    }

    /// The GID of the new group, which is ours to choose where none is named.
    fn make(&mut self, named: Gid, mask: u64, asked: &[u8]) -> Result<Gid, Refused> {
        let states = record::JOIN_STATE.get(asked);
        let full = states & (join_state::FULL_MEMBER | join_state::SEND_ONLY_FULL_MEMBER) != 0;
        // Only a full member makes a group (o15-0.1.3).
        if !full {
            return Err(Refused(status::REQUEST_INVALID));
        }
        if mask & part::NEEDED != part::NEEDED {
            return Err(Refused(status::INSUFFICIENT_COMPONENTS));
        }
        let used: Vec<u16> = self.0.values().map(|group| group.mlid).collect();
        let free = (FIRST_MLID..FIRST_MLID + MOST as u16).find(|mlid| !used.contains(mlid));
        let mlid = free.ok_or(Refused(status::NO_RESOURCES))?;
        let [high, low] = mlid.to_be_bytes();
        let mgid = match named {
            named if named == Gid::default() => [0xff, 0x12, 0xa0, 0x1b, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, high, low],
            named if named[0] == 0xff => named,
            _ => return Err(Refused(status::INVALID_GID)),
        };
        let mut made = [0; record::SIZE];
        made.iter_mut().zip(asked).for_each(|(to, from)| *to = *from);
        put_gid(&mut made, record::MGID, &mgid);
        put_gid(&mut made, record::PORT_GID, &Gid::default());
        // What is asked for of MTU and rate is a bound that ports of this subnet keep; where nothing is, the largest is meant.
        let chosen = |bits: u64, picked: Field, value: Field, most: u32| {
            let asked_for = mask & bits == bits && picked.get(asked) != selector::LARGEST;
            match (asked_for, picked.get(asked)) {
                (true, selector::EXACTLY) => Some(value.get(asked)).filter(|value| *value <= most),
                (true, selector::LESS) => value.get(asked).checked_sub(1).map(|below| below.min(most)),
                (true, _) => Some(most).filter(|most| *most > value.get(asked)),
                (false, _) => Some(most),
            }
        };
        let mtu = chosen(part::MTU_SELECTOR | part::MTU, record::MTU_SELECTOR, record::MTU, MTU_4096);
        let rate = chosen(part::RATE_SELECTOR | part::RATE, record::RATE_SELECTOR, record::RATE, RATE_100);
        let (mtu, rate) = mtu.zip(rate).ok_or(Refused(status::REQUEST_INVALID))?;
        for (field, value) in [
            (record::MLID, mlid.into()),
            (record::MTU_SELECTOR, selector::EXACTLY),
            (record::MTU, mtu),
            (record::RATE_SELECTOR, selector::EXACTLY),
            (record::RATE, rate),
            (record::LIFE_TIME_SELECTOR, selector::EXACTLY),
            (record::LIFE_TIME, LIFE_TIME),
            (record::SCOPE, u32::from(mgid[1] & 0xf)),
            (record::JOIN_STATE, 0),
        ] {
            field.set(&mut made, value);
        }
        self.0.insert(mgid, Group { mlid, record: made, members: BTreeMap::new(), stays: false });
        Ok(mgid)
    }

    /// SubnAdmDelete: a port leaves, with the states that it names.
    pub(super) fn leave(&mut self, asker: &PortFacts, (mask, asked): (u64, &[u8])) -> Result<Vec<u8>, Refused> {
        let needed = part::MGID | part::PORT_GID | part::JOIN_STATE;
        if mask & needed != needed {
            return Err(Refused(status::INSUFFICIENT_COMPONENTS));
        }
        let (mgid, port) = (gid_at(asked, record::MGID), gid_at(asked, record::PORT_GID));
        if port != asker.gid {
            return Err(Refused(status::REQUEST_DENIED));
        }
        let group = self.0.get_mut(&mgid).ok_or(Refused(status::REQUEST_INVALID))?;
        let states = group.members.get_mut(&port).ok_or(Refused(status::REQUEST_INVALID))?;
        let left = *states & record::JOIN_STATE.get(asked);
        if left == 0 {
            return Err(Refused(status::REQUEST_INVALID));
        }
        *states &= !left;
        if *states == 0 {
            group.members.remove(&port);
        }
        let told = member(&group.record, &port, left);
        self.sweep();
        Ok(told)
    }

    /// A port is gone.
    pub(super) fn leave_all(&mut self, port: &Gid) {
        for group in self.0.values_mut() {
            group.members.remove(port);
        }
        self.sweep();
    }

    /// A group without a full member is none (o15-0.1.6).
    fn sweep(&mut self) {
        let full = join_state::FULL_MEMBER | join_state::SEND_ONLY_FULL_MEMBER;
        self.0.retain(|_, group| group.stays || group.members.values().any(|states| states & full != 0));
    }

    /// One record for each member, and one for a group that has none.
    pub(super) fn records(&self, (mask, asked): (u64, &[u8])) -> Vec<Vec<u8>> {
        let mut told = Vec::new();
        for (mgid, group) in &self.0 {
            let meant = (mask & part::MGID == 0 || gid_at(asked, record::MGID) == *mgid)
                && (mask & part::MLID == 0 || record::MLID.get(asked) == u32::from(group.mlid))
                && (mask & part::P_KEY == 0 || record::P_KEY.get(asked) == record::P_KEY.get(&group.record));
            if !meant {
                continue;
            }
            if group.members.is_empty() && mask & part::PORT_GID == 0 {
                told.push(group.record.to_vec());
            }
            let asked_port = gid_at(asked, record::PORT_GID);
            let members = group.members.iter().filter(|(port, _)| mask & part::PORT_GID == 0 || **port == asked_port);
            told.extend(members.map(|(port, states)| member(&group.record, port, *states)));
        }
        told
    }

    /// Ports that hear what is sent to a group.
    pub(super) fn listeners(&self, mgid: &Gid) -> Option<Vec<Gid>> {
        let hears = join_state::FULL_MEMBER | join_state::NON_MEMBER;
        let group = self.0.get(mgid)?;
        Some(group.members.iter().filter(|(_, states)| **states & hears != 0).map(|(port, _)| *port).collect())
    }

    /// The record of a group, for paths to it.
    pub(super) fn group(&self, mgid: &Gid) -> Option<&[u8; record::SIZE]> {
        self.0.get(mgid).map(|group| &group.record)
    }
}

fn member(of: &[u8; record::SIZE], port: &Gid, states: u32) -> Vec<u8> {
    let mut told = of.to_vec();
    put_gid(&mut told, record::PORT_GID, port);
    record::JOIN_STATE.set(&mut told, states);
    told
}

/// Whether a group has what a port asks for that joins it.
fn suits(group: &[u8], mask: u64, asked: &[u8]) -> bool {
    let same = [
        (part::Q_KEY, record::Q_KEY),
        (part::MLID, record::MLID),
        (part::TCLASS, record::TCLASS),
        (part::P_KEY, record::P_KEY),
        (part::SL, record::SL),
        (part::FLOW_LABEL, record::FLOW_LABEL),
        (part::SCOPE, record::SCOPE),
    ];
    let bounded = [
        (part::MTU_SELECTOR | part::MTU, record::MTU_SELECTOR, record::MTU),
        (part::RATE_SELECTOR | part::RATE, record::RATE_SELECTOR, record::RATE),
    ];
    same.iter().all(|(bit, field)| mask & bit == 0 || field.get(asked) == field.get(group))
        && bounded.iter().all(|(bits, picked, value)| {
            mask & bits != *bits || within(picked.get(asked), value.get(asked), value.get(group))
        })
}

/// Whether `have` is what a selector asks for. Rates are compared by their codes, which ascend up to those of this subnet.
pub(super) fn within(picked: u32, asked: u32, have: u32) -> bool {
    match picked {
        selector::GREATER => have > asked,
        selector::LESS => have < asked,
        selector::EXACTLY => have == asked,
        _ => true,
    }
}
