// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each step does.

use std::collections::BTreeMap;
use std::time::Duration;

use rnic_agent::proto::{Advice as Madvice, FallocMode, Op, OpenFlags, Value, VerbsOp, Wr, WrKind};

use super::{Play, Promise, Running, reads};
use crate::bench::{DIR, Disk, PAGE, PROMPT, errno_of};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::story::{Advice, Advise, DioRead, Fsync, Hold, Point, Range, Step, Store, Story};
use crate::verdict::Verdict;
use blk::{BlkOp, HoldPoint};

/// What must come once nothing is held.
const AFTER: Duration = Duration::from_secs(30);

impl Play<'_, '_> {
    pub(super) fn step(&mut self, story: &Story, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Store(store) => self.store(store),
            Step::Load(load) => self.load(&load.page),
            Step::Fsync(fsync) => self.fsync(fsync),
            Step::DioRead(read) => self.dio_read(story, read),
            Step::Hold(hold) => self.hold(hold),
            Step::Deliver(name) => self.deliver(&name.name),
            Step::Finish(name) => self.finish(&name.name),
            Step::Wait(name) => self.wait(&name.name),
            Step::Advise(advise) => self.advise(advise),
            Step::Register(of) => self.register(&of.file),
            Step::Deregister(of) => self.deregister(&of.file),
            Step::RdmaWrite(store) => self.rdma_write(store),
            Step::RdmaRead(load) => self.rdma_read(&load.page),
            Step::DioWrite(store) => self.dio_write(store),
            Step::Punch(load) => self.punch(&load.page),
            Step::DropCaches(_) => self.bench.guest.must(Op::DropCaches { what: 3 }).map(drop),
            Step::Cut(_) => self.cut(),
        }
    }

    fn store(&mut self, store: &Store) -> Result<(), Stop> {
        let (map, pattern) = (self.map_of(&store.page)?, self.pattern(&store.page, store.tag)?);
        let off = self.place(&store.page)?.at;
        self.bench.mark(&format!("store {} to {}", store.tag, store.page));
        self.bench.guest.must(Op::Store { m: map, off, len: PAGE, pattern })?;
        self.place(&store.page)?.model.write(store.tag);
        self.locate(&store.page)
    }

    fn load(&mut self, page: &str) -> Result<(), Stop> {
        let (map, off) = (self.map_of(page)?, self.place(page)?.at);
        let value = self.bench.guest.must(Op::Load { m: map, off, len: PAGE })?;
        self.seen("the mapping", page, value, Verdict::Split)
    }

    /// A reader must see what was written last; `else` it is that.
    fn seen(&mut self, by: &str, page: &str, value: Value, or: Verdict) -> Result<(), Stop> {
        let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
        let image = self.image(page, &content);
        let place = self.place(page)?;
        let (file, at, right) = (place.file.clone(), place.at, place.model.may_show().contains(&image));
        let found = crate::fact::Found::of(&Ok(content));
        let fact = self.bench.now(What::Seen { by: by.into(), file, at, found });
        match right {
            true => self.kept.push(fact),
            false => self.bench.find(Finding::new(or, fact, [])),
        }
        Ok(())
    }

    fn fsync(&mut self, fsync: &Fsync) -> Result<(), Stop> {
        let handle = self.file(&fsync.file)?.handle;
        let of = self.places.iter().filter(|(_, place)| place.file == fsync.file);
        let promises: BTreeMap<_, _> = of.map(|(name, place)| (name.clone(), place.model.fsync_begins())).collect();
        self.bench.mark(&format!("fsync of {} begin", fsync.file));
        let job = self.bench.spawn(Op::Fsync { h: handle })?;
        let Some(name) = &fsync.background else { return self.await_fsync(job, &promises, PROMPT) };
        self.running.insert(name.clone(), Running::Fsync { job, promises });
        self.await_holds()
    }

    fn await_fsync(&mut self, job: u32, promises: &BTreeMap<String, Promise>, limit: Duration) -> Result<(), Stop> {
        let fsync = self.bench.await_fsync(job, limit)?;
        if fsync.ok() {
            for (name, promise) in promises {
                self.place(name)?.model.fsync_returned(promise);
            }
        }
        Ok(())
    }

    /// Every hold that is armed must have caught its request.
    fn await_holds(&mut self) -> Result<(), Stop> {
        for running in self.running.values_mut() {
            if let Running::Hold { lever, held: held @ None } = running {
                *held = Some(self.bench.wait_held(Disk::Fs, *lever)?);
            }
        }
        Ok(())
    }

    fn dio_read(&mut self, story: &Story, read: &DioRead) -> Result<(), Stop> {
        self.locate(&read.page)?;
        let slot = reads(story).position(|other| other == read).unwrap_or_default() as u64;
        let place = self.place(&read.page)?;
        let (gpa, moff) = (place.gpa, place.at);
        let map = self.map_of(&read.page)?;
        let lever = self.bench.arm_at(Disk::Source, BlkOp::Read, HoldPoint::BeforeData, gpa);
        self.bench.mark(&format!("O_DIRECT read into {} begin", read.page));
        let (h, len) = (self.bench.source_handle(), u64::from(read.bytes));
        let job = self.bench.guest.handle(Op::DioReadInto { h, foff: slot * PAGE, m: map, moff, len })?;
        let id = self.bench.wait_held(Disk::Source, lever)?;
        self.locate(&read.page)?;
        if self.place(&read.page)?.gpa != gpa {
            return Err(Stop::Inconclusive("the page moved while the read was being submitted".into()));
        }
        self.place(&read.page)?.model.begin(&read.name, read.bytes as usize, read.tag);
        let page = read.page.clone();
        self.running.insert(read.name.clone(), Running::Read { job, lever, id, page, bytes: read.bytes });
        Ok(())
    }

    fn hold(&mut self, hold: &Hold) -> Result<(), Stop> {
        let point = match hold.point {
            Point::BeforeData => HoldPoint::BeforeData,
            Point::BeforeComplete => HoldPoint::BeforeComplete,
        };
        let gpa = self.place(&hold.page)?.gpa;
        let lever = self.bench.arm_at(Disk::Fs, BlkOp::Write, point, gpa);
        self.running.insert(hold.name.clone(), Running::Hold { lever, held: None });
        Ok(())
    }

    fn deliver(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.get(name) {
            Some(Running::Read { lever, page, .. }) => {
                let page = page.clone();
                self.bench.deliver(Disk::Source, *lever)?;
                self.place(&page)?.model.land(name);
                Ok(())
            }
            Some(Running::Hold { lever, .. }) => self.bench.deliver(Disk::Fs, *lever),
            _ => Err(Stop::Failed(format!("{name} holds nothing"))),
        }
    }

    fn finish(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.remove(name) {
            Some(Running::Read { job, lever, id, page, bytes }) => {
                self.finish_read(name, (job, lever, id), &page, bytes)
            }
            Some(Running::Hold { lever, held }) => {
                self.bench.release(Disk::Fs, lever)?;
                self.overlap(held)
            }
            _ => Err(Stop::Failed(format!("{name} holds nothing"))),
        }
    }

    fn finish_read(
        &mut self,
        name: &str,
        (job, lever, id): (u32, blk::LeverId, u64),
        page: &str,
        bytes: u32,
    ) -> Result<(), Stop> {
        self.bench.release(Disk::Source, lever)?;
        let state = self.bench.wait_job(job, PROMPT)?;
        match state.result.as_deref() {
            Some(Ok(Value::Num(n))) if *n == u64::from(bytes) => self.place(page)?.model.complete(name),
            Some(Err(failure)) => {
                let step = format!("the O_DIRECT read \"{name}\"");
                self.bench.now(What::Returned { step, errno: Some(failure.errno) });
                self.place(page)?.model.fail(name);
            }
            None => return Err(self.bench.waits("the O_DIRECT read", PROMPT)),
            other => return Err(Stop::Inconclusive(format!("the O_DIRECT read did not end well: {other:?}"))),
        }
        self.bench.gpa = self.place(page)?.gpa;
        let record = self.bench.record(id)?;
        self.bench.block(&record);
        Ok(())
    }

    /// Whether a read landed while the write `held` was held.
    fn overlap(&mut self, held: Option<u64>) -> Result<(), Stop> {
        let Some(held) = held else { return Err(Stop::Inconclusive("the hold caught no request".into())) };
        let write = self.bench.record(held)?;
        let reads: Vec<u64> = self
            .running
            .values()
            .filter_map(|running| match running {
                Running::Read { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        for id in reads {
            let read = self.bench.record(id)?;
            if oracle::landed_before_data(&read, &write) {
                let fact = self.bench.block(&write);
                self.overlaps.push(fact);
            }
        }
        Ok(())
    }

    fn wait(&mut self, name: &str) -> Result<(), Stop> {
        match self.running.remove(name) {
            Some(Running::Fsync { job, promises, .. }) => self.await_fsync(job, &promises, AFTER),
            _ => Err(Stop::Failed(format!("{name} is no step in the background"))),
        }
    }

    /// A step that may have to wait for what is held.
    fn job(&mut self, op: Op, step: &str) -> Result<Option<i32>, Stop> {
        self.bench.mark(&format!("{step} begin"));
        let job = self.bench.spawn(op)?;
        let state = self.bench.wait_job(job, PROMPT)?;
        let Some(result) = errno_of(&state) else { return Err(self.bench.waits(step, PROMPT)) };
        let (at, errno) = (self.bench.mark(&format!("{step} end")), result.err());
        let fact = self.bench.fact(at, What::Returned { step: step.into(), errno });
        self.kept.push(fact);
        Ok(errno)
    }

    /// Where the page is now: the kernel may have put another one in its place.
    fn touch(&mut self, page: &str) -> Result<(), Stop> {
        let (map, off) = (self.map_of(page)?, self.place(page)?.at);
        self.bench.guest.must(Op::Touch { m: map, off, write: false })?;
        self.locate(page)
    }

    fn dio_write(&mut self, store: &Store) -> Result<(), Stop> {
        let pattern = self.pattern(&store.page, store.tag)?;
        let (file, off) = (self.place(&store.page)?.file.clone(), self.place(&store.page)?.at);
        let flags = OpenFlags { write: true, direct: true, ..Default::default() };
        let h = self.bench.guest.handle(Op::Open { path: format!("{DIR}/{file}"), flags })?;
        let step = format!("an O_DIRECT write of {} to {}", store.tag, store.page);
        if self.job(Op::Write { h, off, len: PAGE, pattern }, &step)?.is_none() {
            self.place(&store.page)?.model.write(store.tag);
        }
        self.touch(&store.page)
    }

    fn punch(&mut self, page: &str) -> Result<(), Stop> {
        let (file, off) = (self.place(page)?.file.clone(), self.place(page)?.at);
        let h = self.file(&file)?.handle;
        let op = Op::Fallocate { h, mode: FallocMode::PunchHole, off, len: PAGE };
        if self.job(op, &format!("a punch of {page}"))?.is_none() {
            self.place(page)?.model.write('0');
        }
        self.touch(page)
    }

    fn advise(&mut self, advise: &Advise) -> Result<(), Stop> {
        let before = self.page_info(&advise.page)?;
        let (map, at) = (self.map_of(&advise.page)?, self.place(&advise.page)?.at);
        let file = self.place(&advise.page)?.file.clone();
        let whole = u64::from(self.file(&file)?.pages) * PAGE;
        // Where the folio begins, in the file.
        let (inside, pages) = (before.pfn.saturating_sub(before.folio_pfn), u64::from(before.folio_pages.max(1)));
        let start = at.saturating_sub(inside * PAGE);
        let half = (pages / 2).max(1);
        let (off, len) = match advise.range {
            Range::Page => (at, PAGE),
            Range::Folio => (start, pages * PAGE),
            Range::HalfFolio => (start + inside / half * half * PAGE, half * PAGE),
            Range::File => (0, whole),
        };
        let advice = match advise.advice {
            Advice::Pageout => Madvice::Pageout,
            Advice::Cold => Madvice::Cold,
            Advice::Dontneed => Madvice::Dontneed,
        };
        self.bench.now(What::folio("before the advice", &before, None));
        self.bench.mark(&format!("{:?} of {off:#x}+{len:#x}", advise.advice));
        self.bench.guest.must(Op::Madvise { m: map, off, len: len.min(whole - off), advice })?;
        let after = self.page_info(&advise.page)?;
        let shown = rnic_agent::proto::Page { present: after.present, ..before };
        self.bench.now(What::folio("after the advice", &shown, None));
        Ok(())
    }

    // ---- RDMA ----

    fn register(&mut self, name: &str) -> Result<(), Stop> {
        let file = self.file(name)?;
        let (map, len) = (file.map, u64::from(file.pages) * PAGE);
        let access = self.bench.registration().access();
        match self.bench.register_map(map, len, access)? {
            Ok(mr) => {
                if let Some(file) = self.files.get_mut(name) {
                    file.mr = Some(mr);
                }
                Ok(())
            }
            Err(errno) => {
                let step = format!("ibv_reg_mr of file \"{name}\" with access flags {access:#x}");
                let fact = self.bench.now(What::Returned { step, errno: Some(errno) });
                Err(Stop::Found(Finding::new(Verdict::Refused, fact, []).told(Some(errno))))
            }
        }
    }

    fn deregister(&mut self, name: &str) -> Result<(), Stop> {
        let mr = self.files.get_mut(name).and_then(|file| file.mr.take());
        let Some(mr) = mr else { return Err(Stop::Failed(format!("file {name} is not registered"))) };
        self.bench.mark("ibv_dereg_mr");
        self.bench.guest.must(Op::Verbs(VerbsOp::Dereg { mr: mr.handle })).map(drop)
    }

    /// A work request between the page and anonymous memory that has its bytes at the same offset; the anonymous mapping.
    fn wr(&mut self, kind: WrKind, page: &str, tag: Option<char>) -> Result<(Wr, u32), Stop> {
        let place = self.place(page)?;
        let (file, at) = (place.file.clone(), place.at);
        let spec = self.file(&file)?;
        let (len, mr) = (u64::from(spec.pages) * PAGE, spec.mr);
        let mr = mr.ok_or_else(|| Stop::Inconclusive(format!("file \"{file}\" is not registered")))?;
        let (map, local) = self.bench.anonymous_map(len)?;
        if let Some(tag) = tag {
            let pattern = self.pattern(page, tag)?;
            self.bench.guest.must(Op::Store { m: map, off: at, len: PAGE, pattern })?;
        }
        let (local, remote) = (local.handle, mr.handle);
        let wr = Wr { kind, end: 0, local, local_off: at, len: PAGE as u32, remote, remote_off: at, value: 0, swap: 0 };
        Ok((wr, map))
    }

    fn rdma_write(&mut self, store: &Store) -> Result<(), Stop> {
        let (wr, _) = self.wr(WrKind::Write, &store.page, Some(store.tag))?;
        let name = format!("RDMA WRITE {} to {}", store.tag, store.page);
        self.place(&store.page)?.model.begin(&name, PAGE as usize, store.tag);
        let since = self.bench.mark(&name);
        let completion = self.bench.finish_wr(wr, &name)?;
        if !completion.ok() {
            self.place(&store.page)?.model.fail(&name);
            self.bench.find(Finding::new(Verdict::ErrCqe, completion.fact, []));
            return Ok(());
        }
        self.place(&store.page)?.model.complete(&name);
        self.kept.push(completion.fact);
        let records = self.bench.nic_records(since);
        for record in records.iter().filter(|record| matches!(record.kind, mlx5::hooks::NicKind::Wrote { .. })) {
            self.bench.nic(record);
        }
        Ok(())
    }

    fn rdma_read(&mut self, page: &str) -> Result<(), Stop> {
        let (wr, map) = self.wr(WrKind::Read, page, None)?;
        let completion = self.bench.finish_wr(wr, &format!("RDMA READ of {page}"))?;
        if !completion.ok() {
            self.bench.find(Finding::new(Verdict::ErrCqe, completion.fact, []));
            return Ok(());
        }
        let off = self.place(page)?.at;
        let value = self.bench.guest.must(Op::Load { m: map, off, len: PAGE })?;
        self.seen("RDMA READ", page, value, Verdict::Stale)
    }
}
