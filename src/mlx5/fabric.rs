// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers behind a LID. A NIC does not know where its peer is: it asks the fabric, and the peer's own device checks, translates and
//! quiesces.
//!
//! Two NICs of one machine are one motion over two devices: an engine is inside a read section of each while it moves data. The order in
//! which it enters them does not matter, since a section waits for nobody; whoever takes a right away waits for the sections of its own
//! device, and those of foreign engines are among them ([`Quiesce::visit`](dma::Quiesce::visit)).

use parking_lot::RwLock;
use std::sync::{Arc, OnceLock, Weak};

use crate::command::{node_guid, port_gid};
use crate::hca::Hca;
use crate::subnet::{PortFacts, Subnet};

/// NICs that one local fabric joins.
pub const MAX_NICS: usize = dma::MAX_DEVICES;

/// A subnet.
pub trait Fabric: Send + Sync {
    /// The device whose port has this LID. Its engines and those of the asking device may move data of each other.
    fn port(&self, lid: u16) -> Option<Arc<Hca>>;

    /// All of them, in the order of their LIDs.
    fn ports(&self) -> Vec<Arc<Hca>>;

    /// Who administers it.
    fn subnet(&self) -> &Subnet;
}

/// The LID behind which the subnet's administration stands: NIC 0's, whose programs and administration tell their datagrams apart.
pub const SM_LID: u16 = 1;

/// The LID of NIC `index` of a machine: 1, 2, ... (contract 11.2).
pub fn lid_of(index: u8) -> u16 {
    u16::from(index) + 1
}

/// Joins the NICs of one machine.
#[derive(Default)]
pub struct LocalFabric {
    /// By LID, from 1 on.
    ports: RwLock<[Weak<Hca>; MAX_NICS]>,
    subnet: Subnet,
}

impl LocalFabric {
    /// Joins a NIC under the LID of its index. False: there are no more than [`MAX_NICS`], and it stays alone.
    pub fn join(self: &Arc<Self>, hca: &Arc<Hca>) -> bool {
        let mut ports = self.ports.write();
        let Some(port) = ports.get_mut(usize::from(hca.index)) else { return false };
        *port = Arc::downgrade(hca);
        hca.link.fabric.set(self.clone()).is_ok()
    }
}

impl Fabric for LocalFabric {
    fn port(&self, lid: u16) -> Option<Arc<Hca>> {
        self.ports.read().get(usize::from(lid.checked_sub(1)?))?.upgrade()
    }

    fn ports(&self) -> Vec<Arc<Hca>> {
        self.ports.read().iter().filter_map(Weak::upgrade).collect()
    }

    fn subnet(&self) -> &Subnet {
        &self.subnet
    }
}

/// A device's way into its fabric; until it has joined one it hears only itself.
#[derive(Default)]
pub struct Link {
    fabric: OnceLock<Arc<dyn Fabric>>,
    /// Of a port that is alone in its subnet.
    alone: Subnet,
}

impl Link {
    /// Who administers the subnet.
    pub fn subnet(&self) -> &Subnet {
        self.fabric.get().map_or(&self.alone, |fabric| fabric.subnet())
    }
}

/// The devices of the subnet whose ports are up, that of `hca` among them.
pub fn ports(hca: &Arc<Hca>) -> Vec<Arc<Hca>> {
    let all = hca.link.fabric.get().map_or_else(|| vec![hca.clone()], |fabric| fabric.ports());
    all.into_iter().filter(|there| there.port.is_up()).collect()
}

/// A port, as its subnet knows it.
pub fn facts(hca: &Hca) -> PortFacts {
    let identity = *hca.port.identity.lock();
    let node_guid = node_guid(hca.index);
    PortFacts {
        lid: hca.lid(),
        gid: port_gid(hca.index, 0),
        node_guid,
        port_guid: node_guid + 1,
        device_id: hca.config.model.device_id(),
        description: identity.node_desc,
        cap_mask1: identity.cap_mask1,
    }
}

/// The device behind `lid`, seen from `hca`; none while the port of one of them is down.
pub fn resolve(hca: &Arc<Hca>, lid: u16) -> Option<Arc<Hca>> {
    let there = if lid == hca.lid() { Some(hca.clone()) } else { hca.link.fabric.get()?.port(lid) };
    there.filter(|there| carries(hca, there))
}

/// Whether packets get from one device to another: both ports are up.
pub fn carries(hca: &Hca, there: &Hca) -> bool {
    hca.port.is_up() && there.port.is_up()
}

/// Has queue pair `qpn` behind `lid`, seen from `hca`, looked at again by its engine.
pub fn kick(hca: &Hca, lid: u16, qpn: u32) {
    let kick = |at: &Hca| {
        if let Some(qp) = at.qps.get(qpn) {
            at.engines.kick(qp.uar, qpn);
        }
    };
    match hca.link.fabric.get() {
        _ if lid == hca.lid() => kick(hca),
        Some(fabric) => fabric.port(lid).iter().for_each(|there| kick(there)),
        None => {}
    }
}
