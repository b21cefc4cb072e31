// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the VMM and the lab do with a disk while a guest uses it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::device::Shared;
use super::disk::{BlockError, Disk};
use super::hooks::{DiskInjections, Lever, LeverState};
use super::power_cut::{self, FrozenImage};
use super::stats::DiskStats;
use super::undo::PowerCut;
use crate::hooks::HoldPoint;
use probe::ledger::Note;
use probe::{LeverError, LeverId, ReleaseReport};

/// A disk's levers, power cuts, counters and injections. Clones are the same disk. No method may be called from the
/// device's own worker; all may block for as long as one request's data takes to move.
#[derive(Clone)]
pub struct DiskHandle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskHandle").field("index", &self.index()).field("path", &self.path()).finish()
    }
}

impl DiskHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The index that the ledger knows the disk by.
    pub fn index(&self) -> u8 {
        self.shared.index
    }

    /// The file behind the disk now.
    pub fn path(&self) -> PathBuf {
        self.shared.disk().path.clone()
    }

    /// Sectors of 512 bytes.
    pub fn capacity(&self) -> u64 {
        self.shared.capacity.load(Ordering::Acquire)
    }

    /// Requests taken from the rings and not completed, held ones included.
    pub fn in_flight(&self) -> usize {
        self.shared.disk().in_flight
    }

    // ---- levers ----

    /// Arms a lever. Levers look at a request when it arrives: one that has arrived already is not caught. To one that an injection keeps back
    /// they look when it goes on.
    pub fn arm(&self, lever: Lever) -> LeverId {
        self.shared.levers.arm(lever)
    }

    /// Lets everything go that the lever holds, and disarms it. Returns once these requests have completed.
    pub fn release(&self, id: LeverId) -> Result<ReleaseReport, LeverError> {
        self.shared.levers.release(id, || self.shared.wake())
    }

    /// What the lever holds and has done.
    pub fn lever_state(&self, id: LeverId) -> Result<LeverState, LeverError> {
        self.shared.levers.state(id)
    }

    /// Waits (at most 60 s) until the lever holds a request; its ledger id (0: not on record).
    pub fn wait_held(&self, id: LeverId, timeout: Duration) -> Result<u64, LeverError> {
        self.wait_held_many(id, 1, timeout).map(|ids| ids.first().copied().unwrap_or(0))
    }

    /// Waits until the lever holds `count` requests at once; their ledger ids.
    pub fn wait_held_many(&self, id: LeverId, count: usize, timeout: Duration) -> Result<Vec<u64>, LeverError> {
        self.shared.levers.wait_held(id, count, timeout)
    }

    /// Lets what is held before its data move the data, and hold again before completion; returns when it does. The
    /// lever's limit counts from the first hold.
    pub fn step_to(&self, id: LeverId, point: HoldPoint) -> Result<(), LeverError> {
        self.shared.levers.step(id, HoldPoint::BeforeData, point, || self.shared.wake())
    }

    /// Releases and disarms every lever; what each had done.
    pub fn disarm_all(&self) -> Vec<(LeverId, Result<ReleaseReport, LeverError>)> {
        self.shared.levers.ids().into_iter().map(|id| (id, self.release(id))).collect()
    }

    // ---- power cuts ----

    /// Writes to `to` the disk as a power cut at this instant would leave it. The disk goes on; held requests stay held.
    pub fn freeze(&self, cut: PowerCut, to: &Path) -> Result<FrozenImage, BlockError> {
        let disk = self.shared.disk();
        let note = Note::new(format!("power cut ({cut:?}) of disk {}", self.shared.index));
        let at = self.shared.ledger.stamp(note);
        power_cut::freeze(&disk, cut, to, at)
    }

    /// Requests whose changes a cruel power cut at this instant would take back; 0: each power cut leaves the same.
    pub fn unflushed(&self) -> usize {
        self.shared.disk().log.as_ref().map_or(0, |log| log.unflushed())
    }

    /// Replaces the file behind the disk, while no request is in flight or held. The guest is told of the new capacity;
    /// the log of unflushed writes starts anew.
    pub fn swap(&self, path: &Path) -> Result<(), BlockError> {
        let config = &self.shared.config;
        let mut disk = self.shared.disk();
        let requests = disk.in_flight.max(self.shared.levers.holding());
        if requests != 0 {
            return Err(BlockError::Busy { path: disk.path.clone(), requests });
        }
        *disk = Disk::open(path, config.readonly, config.track)?;
        let capacity = disk.capacity;
        drop(disk);
        self.shared.ledger.stamp(Note::new(format!("disk {} swapped", self.shared.index)));
        self.shared.set_capacity(capacity);
        Ok(())
    }

    // ---- numbers and injections ----

    /// The disk's own counters.
    pub fn stats(&self) -> DiskStats {
        self.shared.counters.stats()
    }

    /// The rules that make this disk misbehave on purpose.
    pub fn injections(&self) -> &Arc<DiskInjections> {
        &self.shared.injections
    }
}
