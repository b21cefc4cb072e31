// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levers on the page under test, and steps that may have to wait for what they hold.

use std::time::Duration;

use rnic_agent::proto::{JobState, Op, Value};

use super::{Bench, Disk, Fsync, PAGE_AT};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::verdict::Verdict;
use blk::{BlkOp, DiskLedger, RequestRecord};
use blk::{HoldPoint, Lever, LeverId, RequestMatch};

/// Longest hold. Far below the guest's 120 s hung-task limit.
const HOLD: Duration = Duration::from_secs(45);
/// How long a step may take that should not wait for anything held.
pub const PROMPT: Duration = Duration::from_secs(20);

impl Bench<'_> {
    /// Holds the next request of kind `op` on `disk` that touches the page under test.
    pub fn arm(&mut self, disk: Disk, op: BlkOp, point: HoldPoint) -> LeverId {
        self.arm_at(disk, op, point, self.gpa)
    }

    /// The same for any page.
    pub fn arm_at(&mut self, disk: Disk, op: BlkOp, point: HoldPoint, gpa: u64) -> LeverId {
        self.arm_nth(disk, op, point, Some(gpa), 1)
    }

    /// Holds the request number `nth` from now on of kind `op`: of any page, where none is given.
    pub fn arm_nth(&mut self, disk: Disk, op: BlkOp, point: HoldPoint, page: Option<u64>, nth: u32) -> LeverId {
        let lever = Lever { nth, ..Lever::new(RequestMatch { page, ..op.into() }, point, HOLD) };
        let id = self.disk(disk).arm(lever);
        self.holds.push((disk, id));
        id
    }

    fn disk(&self, disk: Disk) -> &blk::DiskHandle {
        match disk {
            Disk::Fs => self.guest.fs_disk(),
            Disk::Source => self.guest.source_disk(),
        }
    }

    /// Waits until the lever holds a request; its ledger id.
    pub fn wait_held(&self, disk: Disk, lever: LeverId) -> Result<u64, Stop> {
        let held = self.disk(disk).wait_held(lever, PROMPT);
        held.map_err(|error| Stop::Inconclusive(format!("the lever on the {disk:?} disk did not fire: {error}")))
    }

    /// Lets a held request move its data and holds it again before it completes.
    pub fn deliver(&self, disk: Disk, lever: LeverId) -> Result<(), Stop> {
        let stepped = self.disk(disk).step_to(lever, HoldPoint::BeforeComplete);
        stepped.map(drop).map_err(|error| Stop::Inconclusive(error.to_string()))
    }

    /// Lets a held request go.
    pub fn release(&self, disk: Disk, lever: LeverId) -> Result<(), Stop> {
        let report = self.disk(disk).release(lever).map_err(|error| Stop::Inconclusive(error.to_string()))?;
        if report.expired > 0 || report.released.is_empty() {
            return Err(Stop::Inconclusive(format!("the lever on the {disk:?} disk let go before it was told to")));
        }
        Ok(())
    }

    /// The ledger's record of a request.
    pub fn record(&self, id: u64) -> Result<RequestRecord, Stop> {
        let record = self.guest.ledger().request(id);
        record.ok_or_else(|| Stop::Inconclusive(format!("request {id} is not in the ledger")))
    }

    // ---- steps that may wait ----

    /// Starts an O_DIRECT read of `len` bytes of the source's C into the page under test, held before its bytes are delivered.
    /// Returns (job, lever, ledger id).
    pub fn hold_read(&mut self, len: u64) -> Result<HeldRead, Stop> {
        self.locate()?;
        let lever = self.arm(Disk::Source, BlkOp::Read, HoldPoint::BeforeData);
        self.mark("dio read begin");
        let read = Op::DioReadInto { h: self.source, foff: PAGE_AT, m: self.map, moff: PAGE_AT, len };
        let job = self.guest.handle(read)?;
        let id = self.wait_held(Disk::Source, lever)?;
        // Pinning may have broken a copy-on-write page; the pinned page is the one that counts.
        let gpa = self.gpa;
        self.locate()?;
        if gpa != self.gpa {
            return Err(Stop::Inconclusive("the page moved while the read was being submitted".into()));
        }
        Ok(HeldRead { job, lever, id, len })
    }

    /// Ends a held read: completion, and the job's own result. The request is on record then.
    pub fn finish_read(&mut self, read: &HeldRead) -> Result<FactId, Stop> {
        self.release(Disk::Source, read.lever)?;
        let state = self.wait_job(read.job, PROMPT)?;
        match state.result.as_deref() {
            Some(Ok(Value::Num(n))) if *n == read.len => {
                let record = self.record(read.id)?;
                Ok(self.block(&record))
            }
            None => Err(self.waits("the O_DIRECT read", PROMPT)),
            other => Err(Stop::Inconclusive(format!("the O_DIRECT read did not end well: {other:?}"))),
        }
    }

    /// Runs `op` as a job.
    pub fn spawn(&self, op: Op) -> Result<u32, Stop> {
        self.guest.spawn(op)
    }

    /// Waits for a job.
    pub fn wait_job(&self, job: u32, limit: Duration) -> Result<JobState, Stop> {
        self.guest.wait_job(job, limit)
    }

    /// fsync of the file. One that does not return ends the row: BLOCKED while something is held, HUNG otherwise.
    pub fn fsync(&mut self) -> Result<Fsync, Stop> {
        self.fsync_of(self.file)
    }

    /// The same of any file.
    pub fn fsync_of(&mut self, h: u32) -> Result<Fsync, Stop> {
        self.mark("fsync begin");
        let job = self.spawn(Op::Fsync { h })?;
        self.await_fsync(job, PROMPT)
    }

    /// Waits for an fsync that runs as `job`.
    pub fn await_fsync(&mut self, job: u32, limit: Duration) -> Result<Fsync, Stop> {
        let state = self.wait_job(job, limit)?;
        let Some(result) = errno_of(&state) else { return Err(self.waits("fsync", limit)) };
        let errno = result.err();
        let at = self.mark(&errno.map_or("fsync returned 0".into(), |errno| format!("fsync returned errno {errno}")));
        let fact = self.fact(at, What::Returned { step: "fsync".into(), errno });
        Ok(Fsync { errno, fact })
    }

    /// A step has not returned for `so_long`. While something is held that is an answer: the kernel waits for the device.
    pub fn waits(&mut self, step: &str, so_long: Duration) -> Stop {
        match self.what_is_held() {
            None => self.guest.hung(step),
            Some(_) => {
                let fact = self.waited(step, so_long);
                Stop::Found(Finding::new(Verdict::Blocked, fact, []))
            }
        }
    }

    /// Puts on record that a step had not returned after `so_long`.
    pub fn waited(&mut self, step: &str, so_long: Duration) -> FactId {
        let held = self.what_is_held();
        self.now(What::Waits { step: step.into(), seconds: so_long.as_secs_f64(), held })
    }

    pub(super) fn what_is_held(&self) -> Option<String> {
        let holds = |&(disk, lever): &(Disk, LeverId)| {
            let held = self.disk(disk).lever_state(lever).ok()?.held;
            let record = self.guest.ledger().request(held.first()?.0)?;
            Some(crate::oracle::describe(&record))
        };
        self.holds.iter().find_map(holds)
    }

    /// Puts a disk's request on record.
    pub fn block(&mut self, record: &RequestRecord) -> FactId {
        self.fact(record.arrived, What::block(record, self.gpa))
    }

    /// Puts the page's later write on record, or that there is none since `since`.
    pub fn newer_write(&mut self, newer: Option<&RequestRecord>, since: probe::ledger::Seq) -> FactId {
        let gpa = self.gpa;
        match newer {
            Some(write) => self.block(write),
            None => self.now(What::NoBlock { op: "write".into(), gpa, since }),
        }
    }
}

/// An O_DIRECT read that waits at a lever.
#[derive(Debug, Clone, Copy)]
pub struct HeldRead {
    /// The agent's job.
    pub job: u32,
    /// The lever on the source disk.
    pub lever: LeverId,
    /// Ledger id of the request.
    pub id: u64,
    /// Bytes.
    pub len: u64,
}

/// The outcome of a job that returns nothing; `None` while it runs.
pub fn errno_of(state: &JobState) -> Option<Result<(), i32>> {
    match state.result.as_deref()? {
        Ok(_) => Some(Ok(())),
        Err(failure) => Some(Err(failure.errno)),
    }
}
