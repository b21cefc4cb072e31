// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device behind the registers: every object table over the [`Bus`], and the few operations that commands and engines share.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use super::NicConfig;
use super::buffer::BufferMemory;
use super::bus::Bus;
use super::cq::Cq;
use super::levers::NicLevers;
use super::mkey::{Mkey, TableMemory};
use super::odp::PageFaults;
use super::qp::{Qp, QpAttrs};
use super::srq::Srq;
use super::table::Table;
use dma::DmaTarget;
use pci::msix::Msix;
use probe::ledger::Ledger;

/// The first UAR page: 0 to 15 of BAR0 hold the init segment (contract T2, D4).
pub const FIRST_UAR: u32 = 16;
/// The first mkey index: low ones stay reserved; index 1 variant 0 is the list terminator 0x100 (contract 8.1).
pub const FIRST_MKEY: u32 = 0x100;
/// LID of the port (contract 11.2).
pub const PORT_LID: u16 = 1;

/// Everything that registers, commands and engines share.
pub struct Hca {
    /// What objects use. The device reads as one: `hca.dma` is the bus's.
    pub bus: Arc<Bus>,
    /// Completion queues.
    pub cqs: Table<Cq>,
    /// Queue pairs.
    pub qps: Table<Qp>,
    /// RMP, XRC SRQ and SRQ.
    pub srqs: Table<Srq>,
    /// Memory keys, by index.
    pub mkeys: Table<Mkey>,
    /// Host memory of their translation tables.
    pub mkey_tables: TableMemory,
    /// Host memory of the queues' page lists.
    pub queue_pages: BufferMemory,
    /// Protection domains: only their numbers.
    pub pds: Table<()>,
    /// XRC domains.
    pub xrcds: Table<()>,
    /// Transport domains.
    pub tds: Table<()>,
    /// UAR pages.
    pub uars: Table<()>,
    /// QPNs of QP0 and QP1, once they exist (contract 6.3: packets to 0 and 1 go there).
    pub special: Mutex<[Option<u32>; 2]>,
    /// Page faults that the driver works on.
    pub page_faults: PageFaults,
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
    /// An HCA without objects; its engines are not started.
    pub fn new(
        index: u8,
        config: NicConfig,
        dma: DmaTarget,
        ledger: Arc<Ledger>,
        msix: Arc<Msix>,
    ) -> std::io::Result<Self> {
        let levers = NicLevers::new(index, ledger.clone());
        Ok(Self {
            bus: Arc::new(Bus::new(index, config, dma, ledger, msix)?),
            cqs: Table::new(0x80, 0xff_0000, 1 << 16),
            qps: Table::new(0x40, 0xff_0000, 1 << 16),
            srqs: Table::new(0x20, 0xff_0000, 1 << 16),
            mkeys: Table::new(FIRST_MKEY, 0xff_0000, 1 << 20),
            mkey_tables: TableMemory::default(),
            queue_pages: BufferMemory::default(),
            pds: Table::new(0x10, 0xff_0000, 1 << 16),
            xrcds: Table::new(0x10, 0xff_0000, 1 << 16),
            tds: Table::new(0x10, 0xff_0000, 1 << 16),
            uars: Table::new(FIRST_UAR, super::UAR_PAGES - FIRST_UAR, super::UAR_PAGES as usize),
            special: Mutex::default(),
            page_faults: PageFaults::default(),
            levers,
        })
    }

    /// Changes a queue pair. When it returns nothing that began under the old attributes is in flight: no DMA, no CQE. The
    /// queue pair's engine looks at it again. Not for use inside a section; an engine uses it only outside of one.
    pub fn change_qp(&self, qp: &Qp, change: impl FnOnce(&mut QpAttrs)) {
        qp.replace(change);
        self.quiesce.wait();
        self.engines.kick(qp.uar, qp.qpn);
    }
}
