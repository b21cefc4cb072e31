// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! O_DIRECT reads, and requests that are held. In a race nothing is.

use std::time::Duration;

use rnic_agent::proto::Value;

use super::processes::{of, read_state};
use super::stage::reads;
use super::{Play, Running};
use crate::bench::{Disk, PAGE, PROMPT};
use crate::fact::What;
use crate::finding::Stop;
use crate::oracle;
use crate::story::step::{DioRead, Hold, Point};
use blk::{BlkOp, HoldPoint, LeverId};

/// How long a held write waits before anything is let into its page: a file system may compute a checksum in a worker.
const CHECKSUM_TIME: Duration = Duration::from_millis(100);

/// An O_DIRECT read that has begun.
pub(super) struct Read {
    pub(super) job: u32,
    /// The process that reads.
    pub(super) by: Option<String>,
    /// The lever, and the request that it holds.
    pub(super) held: Option<(LeverId, u64)>,
    pub(super) page: String,
    pub(super) bytes: u32,
    /// Its own registration with an io_uring.
    pub(super) ring: Option<u32>,
}

impl Play<'_, '_> {
    pub(super) fn dio_read(&mut self, read: &DioRead) -> Result<(), Stop> {
        let by = read.process.as_deref();
        if by.is_some() {
            // Another process may have taken the page from this one's page tables.
            self.touch(by, &read.page)?;
        }
        self.locate(by, &read.page)?;
        let count = reads(self.story).count() as u64;
        let slot = reads(self.story).position(|other| other == read).unwrap_or_default() as u64;
        let slot = u64::from(self.round) * count + slot;
        let gpa = self.place(&read.page)?.gpa;
        let (opened, moff) = self.opened_at(by, &read.page)?;
        let from = (self.source_of(by)?, slot * PAGE);
        let Some(asked) = self.ask(read, from, (opened.map, moff))? else {
            self.running.insert(read.name.clone(), Running::Ended);
            return Ok(());
        };
        let race = self.story.race.is_some();
        let lever = (!race).then(|| self.bench.arm_at(Disk::Source, BlkOp::Read, HoldPoint::BeforeData, gpa));
        self.bench.mark(&format!("O_DIRECT read into {}{} begin", read.page, of(by)));
        let letter = self.letter(read.tag);
        if race {
            self.place(&read.page)?.model.begin(&read.name, read.bytes as usize, letter);
        }
        let job = self.start_read(by, asked.op)?;
        let held = match lever {
            Some(lever) => {
                let id = self.bench.wait_held(Disk::Source, lever)?;
                self.locate(by, &read.page)?;
                if self.place(&read.page)?.gpa != gpa {
                    return Err(Stop::Inconclusive("the page moved while the read was being submitted".into()));
                }
                self.place(&read.page)?.model.begin(&read.name, read.bytes as usize, letter);
                Some((lever, id))
            }
            None => None,
        };
        let (by, page, bytes) = (read.process.clone(), read.page.clone(), read.bytes);
        self.running.insert(read.name.clone(), Running::Read(Read { job, by, held, page, bytes, ring: asked.ring }));
        Ok(())
    }

    pub(super) fn hold(&mut self, hold: &Hold) -> Result<(), Stop> {
        let point = match hold.point {
            Point::BeforeData => HoldPoint::BeforeData,
            Point::BeforeComplete => HoldPoint::BeforeComplete,
        };
        // Where the kernel copies the buffer nobody knows the page that its write has.
        let any = hold.any || hold.buffer.is_some();
        let gpa = if any { None } else { Some(self.place(&hold.page)?.gpa) };
        let lever = self.bench.arm_nth(Disk::Fs, BlkOp::Write, point, gpa, hold.nth);
        let (page, buffer) = (hold.page.clone(), hold.buffer.clone());
        let hold_of = Running::Hold { lever, page, buffer, held: None, met: false };
        self.running.insert(hold.name.clone(), hold_of);
        Ok(())
    }

    /// Every hold that is armed must have caught its request.
    pub(super) fn await_holds(&mut self) -> Result<(), Stop> {
        let mut caught = false;
        for running in self.running.values_mut() {
            if let Running::Hold { lever, held: held @ None, .. } = running {
                *held = Some(self.bench.wait_held(Disk::Fs, *lever)?);
                caught = true;
            }
        }
        if caught {
            std::thread::sleep(CHECKSUM_TIME);
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.get(name) {
            Some(Running::Read(Read { held: Some((lever, id)), page, .. })) => {
                let (lever, id, page) = (*lever, *id, page.clone());
                self.bench.deliver(Disk::Source, lever)?;
                self.place(&page)?.model.land(name);
                self.landed(&page, id)
            }
            Some(Running::Hold { lever, .. }) => self.bench.deliver(Disk::Fs, *lever),
            Some(Running::Ended) => Ok(()),
            _ => Err(Stop::Failed(format!("{name} holds nothing"))),
        }
    }

    /// Read `id` has moved its data: what had been written of the page before.
    fn landed(&mut self, page: &str, id: u64) -> Result<(), Stop> {
        let Some(landed) = self.bench.record(id)?.data else {
            return Err(Stop::Inconclusive("the read's data did not move".into()));
        };
        self.place(page)?.since = landed;
        self.written_before(page, landed)
    }

    /// The page's last write before `at`, on record.
    pub(super) fn written_before(&mut self, page: &str, at: u64) -> Result<(), Stop> {
        let gpa = self.aim(page)?;
        let written = oracle::last_write_before(self.bench.guest.ledger(), gpa, self.bench.begun, at);
        if let Some(written) = written {
            let fact = self.bench.block(&written);
            self.place(page)?.trail.push(fact);
        }
        Ok(())
    }

    pub(super) fn finish(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.remove(name) {
            Some(Running::Read(read)) => self.finish_read(name, &read),
            Some(Running::Hold { lever, page, buffer, held, met }) => {
                self.bench.release(Disk::Fs, lever)?;
                self.tell_waiting()?;
                self.overlap((&page, buffer.as_deref()), held, met)
            }
            Some(Running::Ended) => Ok(()),
            _ => Err(Stop::Failed(format!("{name} holds nothing"))),
        }
    }

    fn finish_read(&mut self, name: &str, Read { job, by, held, page, bytes, ring }: &Read) -> Result<(), Stop> {
        if let Some((lever, _)) = held {
            self.bench.release(Disk::Source, *lever)?;
        }
        let state = read_state(self.bench.wait_job(*job, PROMPT)?);
        match state.result.as_deref() {
            Some(Ok(Value::Num(n))) if *n == u64::from(*bytes) => self.place(page)?.model.complete(name),
            Some(Err(failure)) => {
                self.is_there(by.as_deref())?;
                let step = format!("the O_DIRECT read \"{name}\"");
                self.bench.now(What::Returned { step, errno: Some(failure.errno) });
                self.place(page)?.model.fail(name);
            }
            None => return Err(self.bench.waits("the O_DIRECT read", PROMPT)),
            other => return Err(Stop::Inconclusive(format!("the O_DIRECT read did not end well: {other:?}"))),
        }
        self.place(page)?.since = self.bench.mark("read complete");
        if let Some(ring) = ring {
            self.end_ring(by.as_deref(), *ring)?;
        }
        if let Some((_, id)) = held {
            self.aim(page)?;
            let record = self.bench.record(*id)?;
            let fact = self.bench.block(&record);
            self.place(page)?.trail.push(fact);
        }
        Ok(())
    }

    /// Whether the page was written while write `held` of it was held.
    fn overlap(&mut self, (page, buffer): (&str, Option<&str>), held: Option<u64>, met: bool) -> Result<(), Stop> {
        let Some(held) = held else { return Err(Stop::Inconclusive("the hold caught no request".into())) };
        let write = self.bench.record(held)?;
        let mut met = met;
        for running in self.running.values() {
            if let Running::Read(Read { held: Some((_, id)), page: of, .. }) = running {
                met |= of == page && oracle::landed_before_data(&self.bench.record(*id)?, &write);
            }
        }
        let gpa = self.aim(page)?;
        met &= match buffer {
            Some(buffer) => self.takes_from(page, buffer, &write)?,
            None => write.pages.iter().any(|touch| touch.gpa == gpa),
        };
        let fact = self.bench.block(&write);
        self.place(page)?.trail.push(fact);
        if met {
            self.overlaps.push(fact);
        }
        Ok(())
    }
}
