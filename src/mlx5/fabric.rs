// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers behind a LID. A NIC does not know where its peer is: it asks the fabric, and the peer's own device checks, translates and
//! quiesces.
//!
//! Two NICs of one machine are one motion over two devices: an engine is inside a read section of each while it moves data. The order in
//! which it enters them does not matter, since a section waits for nobody; whoever takes a right away waits for the sections of its own
//! device, and those of foreign engines are among them ([`Quiesce::visit`](dma::Quiesce::visit)).

use parking_lot::RwLock;
use std::sync::{Arc, OnceLock, Weak};

use crate::hca::Hca;

/// NICs that one local fabric joins.
pub const MAX_NICS: usize = dma::MAX_DEVICES;

/// A subnet.
pub trait Fabric: Send + Sync {
    /// The device whose port has this LID. Its engines and those of the asking device may move data of each other.
    fn port(&self, lid: u16) -> Option<Arc<Hca>>;
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
}

impl LocalFabric {
    /// Joins a NIC under the LID of its index. False: there are no more than [`MAX_NICS`], and it stays alone.
    pub fn join(self: &Arc<Self>, hca: &Arc<Hca>) -> bool {
        let mut ports = self.ports.write();
        let Some(port) = ports.get_mut(usize::from(hca.index)) else { return false };
        *port = Arc::downgrade(hca);
        hca.link.0.set(self.clone()).is_ok()
    }
}

impl Fabric for LocalFabric {
    fn port(&self, lid: u16) -> Option<Arc<Hca>> {
        self.ports.read().get(usize::from(lid.checked_sub(1)?))?.upgrade()
    }
}

/// A device's way into its fabric; until it has joined one it hears only itself.
#[derive(Default)]
pub struct Link(OnceLock<Arc<dyn Fabric>>);

/// The device behind `lid`, seen from `hca`; none while the port of one of them is down.
pub fn resolve(hca: &Arc<Hca>, lid: u16) -> Option<Arc<Hca>> {
    let there = if lid == hca.lid() { Some(hca.clone()) } else { hca.link.0.get()?.port(lid) };
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
    match hca.link.0.get() {
        _ if lid == hca.lid() => kick(hca),
        Some(fabric) => fabric.port(lid).iter().for_each(|there| kick(there)),
        None => {}
    }
}
