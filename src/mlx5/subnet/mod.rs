// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subnet's administration (SA): who is where, by which path, and who hears what is sent to a multicast group (IBTA 15, contract 11.3).
//! It stands behind QP1 of the LID that ports take for their subnet manager's. IPoIB joins its groups here, and rdma_cm asks for its paths.
//!
//! It is a function from a datagram and the ports to the datagrams that answer it; what moves them is the engines' matter.
//!
//! * `groups`: multicast groups and their members.
//! * `performance`: a port's counters, told over the subnet.
//! * `records`: what is told of ports, paths and services.
//! * `reply`: one record, or a table of them in segments (RMPP).

mod groups;
mod performance;
mod records;
mod reply;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;

use groups::Groups;
use mlx5_spec::mad::{MAD_SIZE, attribute, class, class_port_info, mad, method, rmpp_flags, rmpp_type, status};
pub use performance::{is_performance, performance};
use records::Services;
use reply::{Transfers, answer, table};

/// A management datagram.
pub type Mad = [u8; MAD_SIZE];
/// A GID, as on the wire.
pub type Gid = [u8; 16];

/// A port, as its subnet knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFacts {
    /// Its LID.
    pub lid: u16,
    /// Its GID 0.
    pub gid: Gid,
    /// Of its node.
    pub node_guid: u64,
    /// Its own.
    pub port_guid: u64,
    /// PCI device id of its node.
    pub device_id: u16,
    /// What its driver calls its node.
    pub description: [u8; 64],
    /// Its capability mask.
    pub cap_mask1: u32,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Subnet(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    groups: Groups,
    services: Services,
    transfers: Transfers,
}

/// Why a request is not granted: `spec::mad::status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused(u32);

/// What a request is answered with.
enum Told {
    /// This record.
    Record(Vec<u8>),
    /// These, of so many bytes each.
    Table(Vec<Vec<u8>>, usize),
}

/// Whether a datagram to QP1 of the subnet manager's LID is the administration's, and not for a program that listens there.
pub fn is_administration(bytes: &[u8]) -> bool {
    bytes.len() >= MAD_SIZE
        && mad::MGMT_CLASS.get(bytes) == class::SUBN_ADM
        && mad::METHOD.get(bytes) & method::RESPONSE == 0
}

impl Subnet {
    /// What comes back for `request` from the port that `asker` is one of. Any number of datagrams, at most a window of a table.
    pub fn handle(&self, ports: &[PortFacts], asker: &PortFacts, request: &Mad) -> Vec<Mad> {
        let mut state = self.0.lock();
        if mad::RMPP_FLAGS.get(request) & rmpp_flags::ACTIVE != 0 {
            // Requests have one segment; what else comes is about our own tables.
            return match mad::RMPP_TYPE.get(request) {
                rmpp_type::ACK => state.transfers.acknowledged(asker.lid, request),
                rmpp_type::STOP | rmpp_type::ABORT => state.transfers.ended(asker.lid, request),
                _ => Vec::new(),
            };
        }
        match state.told(ports, asker, request) {
            Ok(Told::Record(record)) => vec![answer(request, 0, &record)],
            Ok(Told::Table(records, size)) => {
                let segments = table(request, &records, size);
                state.transfers.begin(asker.lid, request, segments)
            }
            Err(Refused(status)) => vec![answer(request, status, &request[mad::DATA..])],
        }
    }

    /// Who hears what is sent to `group`: GIDs of ports that have joined it to receive. `None`: there is no such group.
    pub fn listeners(&self, group: &Gid) -> Option<Vec<Gid>> {
        self.0.lock().groups.listeners(group)
    }

    /// A port has gone: it is no member of anything any more.
    pub fn leave_all(&self, port: &Gid) {
        self.0.lock().groups.leave_all(port);
    }
}

impl State {
    fn told(&mut self, ports: &[PortFacts], asker: &PortFacts, request: &Mad) -> Result<Told, Refused> {
        let mask = mad::COMPONENT_MASK.get(request);
        let data = &request[mad::DATA..];
        let (what, how) = (mad::ATTRIBUTE_ID.get(request), mad::METHOD.get(request));
        if mad::BASE_VERSION.get(request) != 1 || mad::CLASS_VERSION.get(request) != 2 {
            return Err(Refused(status::BAD_VERSION));
        }
        let chosen = |records: Vec<Vec<u8>>, size: usize| match how {
            method::GET_TABLE => Ok(Told::Table(records, size)),
            _ => one(records).map(Told::Record),
        };
        let reads = matches!(how, method::GET | method::GET_TABLE);
        match (what, how) {
            (attribute::CLASS_PORT_INFO, method::GET) => Ok(Told::Record(class_port_info())),
            (attribute::PATH_RECORD, _) if reads => {
                chosen(records::paths(ports, &self.groups, (mask, data))?, mlx5_spec::mad::path_record::SIZE)
            }
            (attribute::NODE_RECORD, _) if reads => {
                chosen(records::nodes(ports, (mask, data)), mlx5_spec::mad::node_record::SIZE)
            }
            (attribute::PORT_INFO_RECORD, _) if reads => {
                chosen(records::port_infos(ports, (mask, data)), mlx5_spec::mad::port_info_record::SIZE)
            }
            (attribute::MC_MEMBER_RECORD, method::SET) => {
                self.groups.join(ports, asker, (mask, data)).map(Told::Record)
            }
            (attribute::MC_MEMBER_RECORD, method::DELETE) => self.groups.leave(asker, (mask, data)).map(Told::Record),
            (attribute::MC_MEMBER_RECORD, _) if reads => {
                chosen(self.groups.records((mask, data)), mlx5_spec::mad::mc_member_record::SIZE)
            }
            (attribute::SERVICE_RECORD, method::SET) => self.services.register(asker, data).map(Told::Record),
            (attribute::SERVICE_RECORD, method::DELETE) => self.services.withdraw((mask, data)).map(Told::Record),
            (attribute::SERVICE_RECORD, _) if reads => {
                chosen(self.services.records((mask, data)), mlx5_spec::mad::service_record::SIZE)
            }
            // Who subscribes is told so; there is nothing yet that a subnet without a manager of its own would report.
            (attribute::INFORM_INFO, method::SET) => Ok(Told::Record(data.to_vec())),
            (
                attribute::CLASS_PORT_INFO
                | attribute::PATH_RECORD
                | attribute::NODE_RECORD
                | attribute::PORT_INFO_RECORD
                | attribute::MC_MEMBER_RECORD
                | attribute::SERVICE_RECORD
                | attribute::INFORM_INFO,
                _,
            ) => Err(Refused(status::UNSUPPORTED_METHOD)),
            _ => Err(Refused(status::UNSUPPORTED_ATTRIBUTE)),
        }
    }
}

/// A Get has exactly one answer (IBTA 15.4.4).
fn one(mut records: Vec<Vec<u8>>) -> Result<Vec<u8>, Refused> {
    match (records.pop(), records.len()) {
        (Some(record), 0) => Ok(record),
        (None, _) => Err(Refused(status::NO_RECORDS)),
        _ => Err(Refused(status::TOO_MANY_RECORDS)),
    }
}

/// Members that only send may be full ones: IPoIB asks for that (bit 12 of the second mask).
const SEND_ONLY_FULL_MEMBERS: u32 = 1 << 12;
/// An answer comes within 4.096 us << this.
const RESPONSE_TIME: u32 = 18;

fn class_port_info() -> Vec<u8> {
    let mut record = vec![0; class_port_info::SIZE];
    class_port_info::BASE_VERSION.set(&mut record, 1);
    class_port_info::CLASS_VERSION.set(&mut record, 2);
    class_port_info::CAPABILITY_MASK2.set(&mut record, SEND_ONLY_FULL_MEMBERS);
    class_port_info::RESP_TIME_VALUE.set(&mut record, RESPONSE_TIME);
    record
}

/// A record's bytes at `range`, as a GID; records are as long as their layout.
fn gid_at(record: &[u8], range: std::ops::Range<usize>) -> Gid {
    record.get(range).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
}

fn put_gid(record: &mut [u8], range: std::ops::Range<usize>, gid: &Gid) {
    if let Some(bytes) = record.get_mut(range) {
        bytes.copy_from_slice(gid);
    }
}
