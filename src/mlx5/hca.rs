// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device behind the registers: every object table over the [`Bus`], and the few operations that commands and engines share.

use parking_lot::Mutex;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::NicConfig;
use super::buffer::BufferMemory;
use super::bus::Bus;
use super::cq::Cq;
use super::device_memory::DeviceMemory;
use super::fabric::{self, Link, lid_of};
use super::host_memory::object;
use super::later;
use super::levers::NicLevers;
use super::limits::{
    LOG_MAX_CQ, LOG_MAX_MKEY, LOG_MAX_PD, LOG_MAX_QP, LOG_MAX_SRQ, LOG_MAX_UCTX, LOG_MAX_UMEM, LOG_MAX_XRCD,
    MAX_Q_COUNTERS,
};
use super::mkey::{Ghosts, Mkey};
use super::multicast::Multicast;
use super::odp::{Offered, PageFaults};
use super::port::Port;
use super::q_counters::QCounters;
use super::qp::{Qp, QpAttrs};
use super::srq::Srq;
use super::table::Table;
use super::uar::{Heat, UarDoorbells};
use super::umem::Umem;
use super::users::Users;
use dma::DmaTarget;
use mlx5_spec::cq::CQC_SIZE;
use mlx5_spec::qp::QPC_SIZE;
use mlx5_spec::srq::RMPC_SIZE;
use pci::msix::Msix;
use probe::ledger::Ledger;

/// The first UAR page: 0 to 15 of BAR0 hold the init segment (contract T2, D4).
pub const FIRST_UAR: u32 = 16;
/// The first mkey index: low ones stay reserved; index 1 variant 0 is the list terminator 0x100 (contract 8.1).
pub const FIRST_MKEY: u32 = 0x100;
/// The last number of a user context: 0 is the driver, the last of 16 bits what all share.
const MAX_UID: u32 = 0xfffe;
/// Host bytes beside a queue pair: its engine's requester with one WQE and its segments, a receive WQE with its segments, uses.
const ENGINE_SHARE: usize = 4096;
/// Host bytes beside a UAR page: its eventfd, where that is attached and who watches it.
const UAR_SHARE: usize = 1024;

/// Everything that registers, commands and engines share.
pub struct Hca {
    /// What objects use. The device reads as one: `hca.dma` is the bus's.
    pub bus: Arc<Bus>,
    /// Where peers are.
    pub link: Link,
    /// The port's own link.
    pub port: Port,
    /// Completion queues.
    pub cqs: Table<Cq>,
    /// Queue pairs.
    pub qps: Table<Qp>,
    /// RMP, XRC SRQ and SRQ.
    pub srqs: Table<Srq>,
    /// Memory keys, by index.
    pub mkeys: Table<Mkey>,
    /// Keys that work on though they are gone, if an injection says so.
    pub ghosts: Ghosts,
    /// The queues' page lists.
    pub queue_pages: BufferMemory,
    /// Protection domains: a number, and who uses it.
    pub pds: Table<Users>,
    /// XRC domains.
    pub xrcds: Table<Users>,
    /// Sets of Q counters.
    pub q_counters: Table<QCounters>,
    /// UAR pages.
    pub uars: Table<Users>,
    /// How often they are rung.
    pub heat: Heat,
    /// Their doorbells, once the function is whole.
    pub doorbells: OnceLock<Arc<UarDoorbells>>,
    /// User contexts, each with what belongs to it.
    pub user_contexts: Table<Users>,
    /// Pieces of guest memory that objects of user contexts lie in.
    pub umems: Table<Umem>,
    /// Memory of its own.
    pub device_memory: Arc<DeviceMemory>,
    /// Queue pairs that hear multicast groups.
    pub multicast: Multicast,
    /// QPNs of QP0 and QP1, once they exist (contract 6.3: packets to 0 and 1 go there).
    pub special: Mutex<[Option<u32>; 2]>,
    /// Page faults that the driver works on.
    pub page_faults: PageFaults,
    /// What may fault.
    pub paging: Offered,
    /// WQEs that the lab holds.
    pub levers: NicLevers,
}

impl Deref for Hca {
    type Target = Bus;

    fn deref(&self) -> &Bus {
        &self.bus
    }
}

impl Hca {
    /// An HCA without objects; its engines are not started. `dma` reaches its own memory too ([`dma::Reach`]).
    pub fn new(
        index: u8,
        config: NicConfig,
        (dma, device_memory): (DmaTarget, Arc<DeviceMemory>),
        ledger: Arc<Ledger>,
        msix: Arc<Msix>,
    ) -> std::io::Result<Self> {
        let levers = NicLevers::new(index, ledger.clone());
        let bus = Arc::new(Bus::new(index, config, dma, ledger, msix)?);
        let memory = &bus.memory;
        let domains = |log_max: u32| Table::new(0x10, 0xff_0000, 1 << log_max).charged(object::<Users>(0), memory);
        let uars = Table::new(FIRST_UAR, super::UAR_PAGES - FIRST_UAR, super::UAR_PAGES as usize);
        let qp = object::<Qp>(QPC_SIZE + size_of::<QpAttrs>() + ENGINE_SHARE);
        Ok(Self {
            link: Link::default(),
            port: Port::default(),
            cqs: Table::new(0x80, 0xff_0000, 1 << LOG_MAX_CQ).charged(object::<Cq>(CQC_SIZE), memory),
            qps: Table::new(0x40, 0xff_0000, 1 << LOG_MAX_QP).charged(qp, memory),
            srqs: Table::new(0x20, 0xff_0000, 1 << LOG_MAX_SRQ).charged(object::<Srq>(RMPC_SIZE), memory),
            mkeys: Table::new(FIRST_MKEY, 0xff_0000, 1 << LOG_MAX_MKEY).charged(object::<Mkey>(0), memory),
            ghosts: Ghosts::default(),
            queue_pages: BufferMemory::default(),
            pds: domains(LOG_MAX_PD),
            xrcds: domains(LOG_MAX_XRCD),
            q_counters: Table::new(1, MAX_Q_COUNTERS, MAX_Q_COUNTERS as usize).charged(object::<QCounters>(0), memory),
            heat: Heat::default(),
            doorbells: OnceLock::new(),
            uars: uars.charged(object::<Users>(UAR_SHARE), memory),
            user_contexts: Table::new(1, MAX_UID, 1 << LOG_MAX_UCTX).charged(object::<Users>(0), memory),
            umems: Table::new(1, 0xff_0000, 1 << LOG_MAX_UMEM).charged(object::<Umem>(0), memory),
            device_memory,
            multicast: Multicast::default(),
            special: Mutex::default(),
            page_faults: PageFaults::default(),
            paging: Offered::default(),
            levers,
            bus,
        })
    }

    /// LID of the port (contract 11.2).
    pub fn lid(&self) -> u16 {
        lid_of(self.index)
    }

    /// Changes a queue pair. When it returns nothing that began under the old attributes is in flight: no DMA, no CQE. The
    /// queue pair's engine looks at it again, and that of the queue pair that it is connected to, which may wait for a page of this one.
    /// Not for use inside a section; an engine uses it only outside of one.
    pub fn change_qp(&self, qp: &Qp, change: impl FnOnce(&mut QpAttrs)) {
        let before = qp.attrs();
        qp.replace(change);
        self.settle_qp(qp, &before);
        later::settle_qp(self, qp);
    }

    /// The second half of a change, which must not be forgotten after `Qp::replace`: `before` is what was replaced.
    pub fn settle_qp(&self, qp: &Qp, before: &QpAttrs) {
        self.quiesce.wait();
        self.engines.kick(qp.uar, qp.qpn);
        fabric::kick(self, before.remote_lid, before.remote_qpn);
    }
}
