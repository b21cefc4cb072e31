// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every object of the device uses, and nothing of the objects themselves: the door to guest memory, interrupts and event queues,
//! read sections, engines to wake, the ledger, injection rules, counters. Completion queues, keys, page faults and levers take this
//! and cannot reach each other through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::NicConfig;
use super::engine::Engines;
use super::eq::{Claims, Eq, EqSpec, Event};
use super::health::Health;
use super::hooks::NicInjections;
use super::host_memory::{HostMemory, object};
use super::later::Later;
use super::limits::LOG_MAX_EQ;
use super::table::Table;
use crate::hooks::{NicCounters, NicLedger};
use dma::{DmaTarget, Quiesce};
use mlx5_spec::eq::EQC_SIZE;
use pci::msix::Msix;
use pci::rate_limit::RateLimit;
use probe::ledger::Ledger;

/// A count that grows until it is taken.
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

    /// So far; it begins anew.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
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

/// See the module.
pub struct Bus {
    /// Index among the NICs of the machine.
    pub index: u8,
    /// Configuration.
    pub config: NicConfig,
    /// The door to guest memory.
    pub dma: DmaTarget,
    /// What happens is put on record here.
    pub ledger: Arc<Ledger>,
    /// When the device clock was 0.
    powered_on: Instant,
    /// Interrupts.
    pub msix: Arc<Msix>,
    /// Host memory that the guest makes the device take.
    pub memory: HostMemory,
    /// Event queues.
    pub eqs: Table<Eq>,
    /// Events that wait in full event queues.
    pub waiting_events: AtomicUsize,
    /// Which of them gets asynchronous events.
    pub claims: Claims,
    /// Read sections of the engines (rule 3).
    pub quiesce: Quiesce,
    /// Injection rules.
    pub injections: NicInjections,
    /// What they put off.
    pub later: Later,
    /// What they have made of the device as a whole.
    pub health: Health,
    /// Data path.
    pub engines: Arc<Engines>,
    /// Warnings that a guest can provoke.
    pub complaints: RateLimit,
    /// Counters.
    pub counters: Counters,
}

impl Bus {
    /// Without event queues; the engines are not started.
    ///
    /// # Errors
    /// An engine's eventfd cannot be made.
    pub fn new(
        index: u8,
        config: NicConfig,
        dma: DmaTarget,
        ledger: Arc<Ledger>,
        msix: Arc<Msix>,
    ) -> std::io::Result<Self> {
        let engines = Engines::new(config.engines.resolve(0))?;
        // The door counts beside what the engines tell the ledger.
        let payload = Arc::new(NicCounters::new(ledger.clone()));
        ledger.register_nic(index, &payload);
        let memory = HostMemory::default();
        Ok(Self {
            index,
            config,
            dma: dma.observed(payload),
            powered_on: Instant::now(),
            msix,
            eqs: Table::new(1, 255, 1 << LOG_MAX_EQ).charged(object::<Eq>(EQC_SIZE), &memory),
            memory,
            waiting_events: AtomicUsize::new(0),
            claims: Claims::default(),
            quiesce: Quiesce::new(index),
            injections: NicInjections::on_record(&ledger, format!("nic{index}")),
            later: Later::new()?,
            health: Health::default(),
            engines: Arc::new(engines),
            complaints: RateLimit::default(),
            counters: Counters::default(),
            ledger,
        })
    }

    /// The free-running clock of internal timer and timestamps, in ticks of device_frequency_khz: nanoseconds (contract 2).
    pub fn device_clock(&self) -> u64 {
        u64::try_from(self.powered_on.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A new event queue; `None`: there is no room for another.
    pub fn insert_eq(&self, spec: EqSpec) -> Option<Arc<Eq>> {
        let eq = self.eqs.insert(|eqn| Eq::new(eqn, spec))?;
        self.claims.follow(&self.eqs);
        Some(eq)
    }

    /// Delivers an asynchronous event to the EQ that claims its type; without one it is dropped, as hardware does.
    pub fn async_event(&self, event: Event) {
        if let Some(eq) = self.claims.claimant(event.event_type()).and_then(|eqn| self.eqs.get(eqn)) {
            eq.push(self, event);
        }
    }

    /// Whether some EQ claims `event_type`.
    pub fn claims_event(&self, event_type: u32) -> bool {
        self.claims.claimant(event_type).is_some()
    }
}
