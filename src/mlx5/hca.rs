// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device behind the registers: every object table, and the few operations that both planes share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::NicConfig;
use super::buffer::BufferMemory;
use super::cq::Cq;
use super::engine::Engines;
use super::eq::{Eq, Event};
use super::fault_rules::NicFaults;
use super::levers::NicLevers;
use super::mkey::{Mkey, TableMemory};
use super::odp::PageFaults;
use super::qp::{Qp, QpAttrs};
use super::quiesce::Quiesce;
use super::srq::Srq;
use super::table::Table;
use dma::DmaTarget;
use pci::msix::Msix;
use pci::rationed::Rationed;
use probe::ledger::{Ledger, NicCounters};

/// The first UAR page: 0 to 15 of BAR0 hold the init segment (contract T2, D4).
pub const FIRST_UAR: u32 = 16;
/// The first mkey index: low ones stay reserved; index 1 variant 0 is the list terminator 0x100 (contract 8.1).
pub const FIRST_MKEY: u32 = 0x100;
/// LID of the port (contract 11.2).
pub const PORT_LID: u16 = 1;

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// So far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened, by kind.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commands executed.
    pub commands: Counter,
    /// Commands answered with a status other than OK.
    pub commands_failed: Counter,
    /// EQEs lost to a full backlog or a buffer outside RAM.
    pub events_dropped: Counter,
    /// Send WQEs executed.
    pub wqes: Counter,
    /// Payload bytes moved.
    pub bytes: Counter,
    /// Completions in error.
    pub error_cqes: Counter,
    /// Page faults raised.
    pub page_faults: Counter,
    /// RNR NAKs.
    pub rnr_naks: Counter,
    /// UMR WQEs executed.
    pub umrs: Counter,
}

/// Everything that registers, commands and engines share.
pub struct Hca {
    /// Index among the NICs of the machine.
    pub index: u8,
    /// Configuration.
    pub config: NicConfig,
    /// The door to guest memory.
    pub dma: DmaTarget,
    /// What happens is put on record here.
    pub ledger: Arc<Ledger>,
    /// Interrupts.
    pub msix: Arc<Msix>,
    /// Rule 3.
    pub quiesce: Quiesce,
    /// Event queues.
    pub eqs: Table<Eq>,
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
    /// Planted faults.
    pub faults: NicFaults,
    /// WQEs that the lab holds.
    pub levers: NicLevers,
    /// Data path threads.
    pub engines: Engines,
    /// Warnings that a guest can provoke.
    pub complaints: Rationed,
    /// Counters.
    pub counters: Counters,
    /// Payload writes into watched pages, counted where the copy is: beside what the ledger was told.
    pub payload: Arc<NicCounters>,
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
        let engines = usize::from(config.engines.clamp(1, 16));
        let levers = NicLevers::new(index, ledger.clone());
        let payload = Arc::new(NicCounters::default());
        ledger.register_nic(index, &payload);
        Ok(Self {
            index,
            config,
            dma,
            ledger,
            msix,
            quiesce: Quiesce::new(engines),
            eqs: Table::new(1, 255, 64),
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
            faults: NicFaults::default(),
            levers,
            engines: Engines::new(engines)?,
            complaints: Rationed::default(),
            counters: Counters::default(),
            payload,
        })
    }

    /// Delivers an asynchronous event to the EQ that claims its type; without one it is dropped, as hardware does.
    pub fn async_event(&self, event: Event) {
        if let Some(eq) = self.claimant(event.event_type()) {
            eq.push(self, event);
        }
    }

    /// Whether some EQ claims `event_type`.
    pub fn claims_event(&self, event_type: u32) -> bool {
        self.claimant(event_type).is_some()
    }

    fn claimant(&self, event_type: u32) -> Option<Arc<Eq>> {
        let claims =
            |eq: &Eq| eq.mask.get(event_type as usize / 64).is_some_and(|word| word >> (event_type % 64) & 1 == 1);
        self.eqs.all().into_iter().map(|(_, eq)| eq).find(|eq| claims(eq))
    }

    /// Changes a queue pair. When it returns nothing that began under the old attributes is in flight: no DMA, no CQE. The
    /// queue pair's engine looks at it again. Not for use inside a section; an engine uses it only outside of one.
    pub fn change_qp(&self, qp: &Qp, change: impl FnOnce(&mut QpAttrs)) {
        qp.replace(change);
        self.quiesce.wait();
        self.engines.kick(qp.uar, qp.qpn);
    }
}
