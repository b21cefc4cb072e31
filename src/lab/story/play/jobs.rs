// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps that may have to wait, and what may come of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rnic_agent::proto::Op;

use super::{Play, Promise, Running};
use crate::bench::{PROMPT, errno_of};
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::story::step::Outcome;
use crate::verdict::Verdict;

/// What must come once nothing is held.
const AFTER: Duration = Duration::from_secs(30);
/// A step in the background that takes longer than this waits for what is held.
const WINDOW: Duration = Duration::from_secs(4);

/// A step that has begun.
pub(super) struct Job {
    pub(super) job: u32,
    /// The process that does it.
    pub(super) by: Option<String>,
    /// The step in words.
    pub(super) what: String,
    pub(super) allow: Vec<Outcome>,
    pub(super) effect: Effect,
    /// How long it took becomes a figure of this name.
    pub(super) figure: Option<String>,
}

/// A step that waits for what is held.
pub(super) struct Waiting {
    job: u32,
    /// The step in words.
    what: String,
    begun: Instant,
    /// The story allows it.
    allowed: bool,
}

/// What it does when it succeeds.
pub(super) enum Effect {
    /// A promise.
    Fsync(BTreeMap<String, Promise>),
    /// Nothing is promised.
    Writeback,
    /// The page is written; how, the others say.
    Store(String),
    /// By the kernel, which may put another page in its place.
    Replace { page: String, wanted: bool, before: rnic_agent::proto::Page },
    /// The page is written past the page cache, from a buffer that others may change.
    From { page: String, buffer: String },
    /// The file ends at a byte: pages from there on are gone.
    Truncate { file: String, from: u64 },
    /// It is the lab's own to say what comes of it.
    Nothing,
    /// By the NIC.
    Rdma { page: String, since: u64 },
}

impl Effect {
    /// Whether it makes writes of the disk while it lasts.
    pub(super) fn writes_disk(&self) -> bool {
        !matches!(self, Effect::Store(_) | Effect::Rdma { .. })
    }
}

impl Play<'_, '_> {
    /// Runs `op` in the job's process to its end, or beside the next steps.
    pub(super) fn begin(&mut self, op: Op, name: Option<&String>, mut job: Job) -> Result<(), Stop> {
        job.job = self.bench.spawn(self.within(job.by.as_deref(), op)?)?;
        self.begun(name, job)
    }

    /// A job has begun: waits for its end, or goes on beside it.
    pub(super) fn begun(&mut self, name: Option<&String>, job: Job) -> Result<(), Stop> {
        let Some(name) = name else { return self.end(job, PROMPT) };
        let running = self.beside(job)?;
        self.running.insert(name.clone(), running);
        self.await_holds()
    }

    /// Lets it run for as long as it takes to see whether it waits for what is held.
    fn beside(&mut self, job: Job) -> Result<Running, Stop> {
        let waits_by_itself = matches!(job.effect, Effect::Fsync(_) | Effect::Writeback | Effect::From { .. });
        if waits_by_itself || self.story.race.is_some() {
            return Ok(Running::Job(job));
        }
        let begun = Instant::now();
        if self.bench.wait_job(job.job, WINDOW)?.done {
            self.end(job, PROMPT)?;
            return Ok(Running::Ended);
        }
        let waited = self.bench.waited(&job.what, WINDOW);
        let allowed = job.allow.contains(&Outcome::Waits);
        self.put_waited(waited, allowed);
        self.waiting.push(Waiting { job: job.job, what: job.what.clone(), begun, allowed });
        Ok(Running::Job(job))
    }

    fn put_waited(&mut self, fact: FactId, allowed: bool) {
        let list = if allowed { &mut self.kept } else { &mut self.waited };
        list.push(fact);
    }

    /// Something that was held has gone on: how long have those waited who waited for it?
    pub(super) fn tell_waiting(&mut self) -> Result<(), Stop> {
        let released = Instant::now();
        for Waiting { job, what, begun, allowed } in std::mem::take(&mut self.waiting) {
            if !self.bench.wait_job(job, WINDOW)?.done {
                self.waiting.push(Waiting { job, what, begun, allowed });
                continue;
            }
            let (after, seconds) = (released.elapsed(), begun.elapsed().as_secs_f64());
            self.bench.figure(
                &format!("{what}: from the release of the disk's write on"),
                after.as_secs_f64() * 1e3,
                "ms",
            );
            let fact = self.bench.now(What::Waited { step: what, seconds, after_ms: after.as_secs_f64() * 1e3 });
            self.put_waited(fact, allowed);
        }
        Ok(())
    }

    /// Waits for a step in the background.
    pub(super) fn wait(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.remove(name) {
            Some(Running::Job(job)) => self.end(job, AFTER),
            Some(Running::Ended) => Ok(()),
            _ => Err(Stop::Failed(format!("{name} is no step in the background"))),
        }
    }

    /// A signal to the thread of a step that is to wait at this moment.
    pub(super) fn interrupt(&mut self, name: &str) -> Result<(), Stop> {
        let (job, what) = match self.running.get(name) {
            Some(Running::Job(job)) => (job.job, job.what.clone()),
            _ => return Err(Stop::Inconclusive(format!("\"{name}\" had ended before it was to be interrupted"))),
        };
        self.bench.mark(&format!("a signal to {what}"));
        match self.bench.guest.must(Op::Interrupt { job })?.num() {
            Some(0) => Err(Stop::Inconclusive(format!("{what} had ended before it was to be interrupted"))),
            _ => Ok(()),
        }
    }

    /// What came of it.
    fn end(&mut self, job: Job, limit: Duration) -> Result<(), Stop> {
        let (id, figure) = (job.job, job.figure.clone());
        self.end_of(job, limit)?;
        if let Some(name) = figure {
            let us = self.bench.wait_job(id, Duration::ZERO)?.us;
            self.bench.figure(&name, us as f64 / 1000.0, "ms");
        }
        Ok(())
    }

    fn end_of(&mut self, job: Job, limit: Duration) -> Result<(), Stop> {
        match &job.effect {
            Effect::Fsync(promises) => self.end_fsync(&job, promises, limit),
            Effect::Rdma { page, since } => {
                let Some(completion) = self.bench.wait_write(job.job, limit)? else {
                    return Err(self.bench.waits(&job.what, limit));
                };
                self.wrote_by_nic((page, *since), &job, &completion)
            }
            _ => {
                let state = self.bench.wait_job(job.job, limit)?;
                let Some(result) = errno_of(&state) else { return Err(self.bench.waits(&job.what, limit)) };
                self.returned(&job, result.err())
            }
        }
    }

    fn end_fsync(&mut self, job: &Job, promises: &BTreeMap<String, Promise>, limit: Duration) -> Result<(), Stop> {
        let allow = &job.allow;
        let fsync = self.bench.await_fsync(job.job, limit)?;
        if fsync.errno.is_some() {
            self.is_there(job.by.as_deref())?;
        }
        for name in promises.keys() {
            self.place(name)?.trail.push(fsync.fact);
        }
        match fsync.errno {
            None if !allow.contains(&Outcome::Returns) => Err(unexpected("fsync")),
            None => {
                for (name, promise) in promises {
                    self.place(name)?.model.fsync_returned(promise);
                }
                Ok(())
            }
            Some(errno) if allow.contains(&Outcome::Errno(errno)) => Ok(()),
            Some(_) => Err(self.fsync_failed(&fsync, promises)),
        }
    }

    /// A call has returned. An error that the story does not allow ends the row as REFUSED.
    fn returned(&mut self, job: &Job, errno: Option<i32>) -> Result<(), Stop> {
        let Job { by, what, allow, effect, .. } = job;
        if errno.is_some() {
            self.is_there(by.as_deref())?;
        }
        let at = self.bench.mark(&format!("{what} end"));
        let fact = self.bench.fact(at, What::Returned { step: what.clone(), errno });
        match errno {
            None if !allow.contains(&Outcome::Returns) => return Err(unexpected(what)),
            Some(errno) if !allow.contains(&Outcome::Errno(errno)) => {
                return Err(Stop::Found(Finding::new(Verdict::Refused, fact, []).told(Some(errno))));
            }
            _ => {}
        }
        match effect {
            Effect::Store(page) => self.written(page, what, errno, at)?,
            Effect::Replace { page, wanted, before } => {
                self.place(page)?.trail.push(fact);
                self.written(page, what, errno, at)?;
                self.replaced((by.as_deref(), page), *wanted && errno.is_none(), before)?;
                if errno.is_none() {
                    self.with_its_unit(page)?;
                }
            }
            Effect::From { page, buffer } => {
                self.place(page)?.trail.push(fact);
                self.written(page, what, errno, at)?;
                self.wrote_from(page, buffer)?;
            }
            Effect::Truncate { file, from } => self.truncated((file, *from), fact, errno)?,
            Effect::Nothing => self.kept.push(fact),
            Effect::Writeback | Effect::Fsync(_) | Effect::Rdma { .. } => {}
        }
        Ok(())
    }

    /// The write that the model knows as `what` has ended; at `at` its bytes were there.
    pub(super) fn written(&mut self, page: &str, what: &str, errno: Option<i32>, at: u64) -> Result<(), Stop> {
        let place = self.place(page)?;
        match errno {
            None => place.model.complete(what),
            Some(_) => place.model.fail(what),
        }
        place.since = at;
        if errno.is_none() {
            self.meet(page);
        }
        Ok(())
    }

    /// The page was written: while a write of it was held?
    pub(super) fn meet(&mut self, page: &str) {
        for running in self.running.values_mut() {
            if let Running::Hold { page: of, held: Some(_), met, .. } = running {
                *met |= of == page;
            }
        }
    }
}

pub(super) fn unexpected(what: &str) -> Stop {
    Stop::Inconclusive(format!("{what} returned, which the story does not allow"))
}
