// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers, injections and evidence of the NIC.

use std::time::Duration;

use super::Bench;
use super::verbs::{COMPLETION_LIMIT, wqe};
use crate::fact::{FactId, What};
use crate::finding::Stop;
use mlx5::NicHandle;
use mlx5::hooks::NicRule;
use mlx5::hooks::{NicLedger, NicRecord};
use mlx5::levers::{NicLever, WqePoint};
use probe::ledger::Seq;
use probe::{LeverId, ReleaseWhy};

/// Longest gate at the NIC.
const GATE: Duration = Duration::from_secs(45);

/// A gate that a WQE waits at.
#[derive(Debug, Clone, Copy)]
pub struct Gate(Option<LeverId>);

impl Bench<'_> {
    /// The device, where it is ours.
    pub(super) fn handle(&self) -> Option<&NicHandle> {
        if self.nic_is_ours() { self.guest.nic() } else { None }
    }

    /// Holds the next RDMA WRITE before anything of it is translated. A device that is not ours has no gate: then the WRITE
    /// is to be posted when the gate would open.
    pub fn arm_gate(&mut self) -> Gate {
        let lever = NicLever::new(wqe::RDMA_WRITE, WqePoint::BeforeTranslation, GATE);
        Gate(self.handle().map(|nic| nic.arm(lever)))
    }

    /// Posts an RDMA WRITE of `tag` that waits at the gate. `None` where there is no gate.
    pub fn post_gated(&mut self, gate: Gate, tag: char) -> Result<Option<u32>, Stop> {
        self.prepare_write(tag)?;
        let Some(lever) = gate.0 else { return Ok(None) };
        let job = self.start_write(tag)?;
        let held = self.handle().map(|nic| nic.wait_held(lever, COMPLETION_LIMIT));
        match held {
            Some(Ok(_)) => Ok(Some(job)),
            _ => Err(Stop::Inconclusive("the gate at the NIC did not hold the RDMA WRITE".into())),
        }
    }

    /// Opens the gate (or posts the WRITE now); the job that waits for its completion.
    pub fn open_gate(&mut self, gate: Gate, job: Option<u32>, tag: char) -> Result<u32, Stop> {
        self.mark("gate opened");
        match (gate.0, job) {
            (Some(lever), Some(job)) => {
                let released = self.handle().map(|nic| nic.release(lever));
                match released {
                    Some(Ok(state)) if state.ended == Some(ReleaseWhy::Released) => Ok(job),
                    _ => Err(Stop::Inconclusive("the gate at the NIC let go before it was told to".into())),
                }
            }
            _ => self.start_write(tag),
        }
    }

    /// Adds an injection to the NIC for the rest of the row.
    pub fn inject(&mut self, rule: NicRule) -> Result<(), Stop> {
        let injected = self.handle().and_then(|nic| nic.injections().add(rule));
        let id = injected
            .ok_or_else(|| Stop::Failed("nothing can be injected: there is no NIC of ours, or no room".into()))?;
        self.injected.push(id);
        Ok(())
    }

    /// Whether every injection has acted.
    pub fn injections_fired(&self) -> bool {
        let Some(nic) = self.handle() else { return false };
        let fired = |id: &_| nic.injections().rule(*id).is_some_and(|rule| rule.fired > 0);
        !self.injected.is_empty() && self.injected.iter().all(fired)
    }

    /// How many objects of each kind the NIC has that belong to processes: queue pairs, CQs, SRQs, PDs. Keys are not
    /// among them, since the driver keeps freed ones for later. Empty where the NIC is not ours.
    pub fn nic_objects(&self) -> Vec<(&'static str, u64)> {
        let Some(nic) = self.handle() else { return Vec::new() };
        let all = nic.inspect();
        let count = |kind: &'static str| (kind, all[kind]["count"].as_u64().unwrap_or(u64::MAX));
        ["qps", "cqs", "srqs", "pds"].map(count).into()
    }

    /// Forgets injections and lets go what the NIC holds.
    pub(super) fn quiet_nic(&self) {
        if let Some(nic) = self.guest.nic() {
            nic.disarm_all();
            nic.injections().clear();
        }
    }

    /// Puts an event of the NIC on record.
    pub fn nic(&mut self, record: &NicRecord) -> FactId {
        self.fact(record.seq, What::nic(record))
    }

    /// What the NIC did since `since`, oldest first.
    pub fn nic_records(&self, since: Seq) -> Vec<NicRecord> {
        self.guest.ledger().nic(since)
    }
}
