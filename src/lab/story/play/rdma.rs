// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps of an RDMA device.

use rnic_agent::proto::{Op, PairInfo, Value, VerbsOp, Wr, WrKind, access};

use super::jobs::{Effect, Job};
use super::processes::of;
use super::{By, Play};
use crate::bench::{Bench, COMPLETION_LIMIT, Completion, PAGE, Plant};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::story::step::{OfFile, OfPage, Outcome, Register, Write};
use crate::verdict::Verdict;
use mlx5::hooks::{NicKind, NicRecord};

/// How long a work request is waited for at all: it may be begun before what it waits for.
const LONG_MS: u32 = 60_000;
/// Entries of each queue of another process.
const DEPTH: u32 = 16;

/// Which process, which page, and through which of the registrations that have a name.
type Target<'a> = (By<'a>, &'a str, Option<&'a str>);

/// Another process's RDMA device, and its pair of queue pairs.
pub(super) struct Device {
    pub(super) nic: u32,
    pub(super) pair: PairInfo,
}

impl Device {
    /// Opens the row's device once more; `within` is the process.
    pub(super) fn open(bench: &Bench<'_>, within: impl Fn(Op) -> Result<Value, Stop>) -> Result<Self, Stop> {
        let name = bench.device_name()?;
        let nic = within(Op::Verbs(VerbsOp::Open { name: Some(name) }))?.handle();
        let nic = nic.ok_or_else(|| Stop::Failed("the agent gave no device".into()))?;
        let pair = within(Op::Verbs(VerbsOp::Pair { nic, depth: DEPTH }))?.pair();
        let pair = pair.ok_or_else(|| Stop::Failed("the agent gave no pair".into()))?;
        Ok(Self { nic, pair })
    }
}

impl Play<'_, '_> {
    pub(super) fn register(
        &mut self,
        Register { file: name, process, kind, name: key }: &Register,
    ) -> Result<(), Stop> {
        let by = process.as_deref();
        let (m, len) = (self.opened(by, name)?.map, u64::from(self.file(name)?.pages) * PAGE);
        let (nic, access) = (self.device(by)?.0, kind.unwrap_or(self.bench.registration()).access());
        let op = self.within(by, Op::Verbs(VerbsOp::Reg { nic, m, off: 0, len, access }))?;
        match self.bench.register_by(op)? {
            Ok(mr) => {
                match key {
                    Some(key) => drop(self.keys.insert(key.clone(), mr)),
                    None => self.registered(by, name, Some(mr)),
                }
                Ok(())
            }
            Err(errno) => {
                self.is_there(by)?;
                let step = format!("ibv_reg_mr of file \"{name}\" with access flags {access:#x}");
                let fact = self.bench.now(What::Returned { step, errno: Some(errno) });
                Err(Stop::Found(Finding::new(Verdict::Refused, fact, []).told(Some(errno))))
            }
        }
    }

    pub(super) fn deregister(&mut self, OfFile { file: name, process }: &OfFile) -> Result<(), Stop> {
        let by = process.as_deref();
        let mr = self.opened(by, name)?.mr;
        let Some(mr) = mr else { return Err(Stop::Failed(format!("file {name} is not registered"))) };
        self.registered(by, name, None);
        self.bench.mark("ibv_dereg_mr");
        self.bench.guest.must(self.within(by, Op::Verbs(VerbsOp::Dereg { mr: mr.handle }))?).map(drop)
    }

    /// Registered anonymous memory of a process, pinned: its mapping and its region.
    fn anonymous(&self, by: By<'_>, len: u64) -> Result<(u32, u32), Stop> {
        if by.is_none() {
            return self.bench.anonymous_map(len).map(|(map, mr)| (map, mr.handle));
        }
        let m = self.bench.guest.handle(self.within(by, Op::AnonBuffer { len, huge: false })?)?;
        let access = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
        let nic = self.device(by)?.0;
        let op = self.within(by, Op::Verbs(VerbsOp::Reg { nic, m, off: 0, len, access }))?;
        let mr = self.bench.register_by(op)?;
        let mr = mr.map_err(|errno| Stop::Failed(format!("anonymous memory cannot be registered: errno {errno}")))?;
        Ok((m, mr.handle))
    }

    /// A work request between the page and anonymous memory that has its bytes at the same offset; the anonymous mapping.
    fn wr(&mut self, kind: WrKind, (by, page, key): Target<'_>, letter: Option<char>) -> Result<(Wr, u32), Stop> {
        let (file, (opened, at)) = (self.place(page)?.file.clone(), self.opened_at(by, page)?);
        let len = u64::from(self.file(&file)?.pages) * PAGE;
        let mr = key.map_or(opened.mr, |key| self.keys.get(key).copied());
        let mr = mr.ok_or_else(|| Stop::Inconclusive(format!("file \"{file}\"{} is not registered", of(by))))?;
        let (map, local) = self.anonymous(by, len)?;
        if let Some(letter) = letter {
            let pattern = self.pattern(page, letter)?;
            self.bench.guest.must(self.within(by, Op::Store { m: map, off: at, len: PAGE, pattern })?)?;
        }
        let remote = mr.handle;
        let wr = Wr { kind, end: 0, local, local_off: at, len: PAGE as u32, remote, remote_off: at, value: 0, swap: 0 };
        Ok((wr, map))
    }

    pub(super) fn rdma_write(&mut self, write: &Write) -> Result<(), Stop> {
        let letter = self.letter(write.tag);
        let (by, page) = (write.process.as_deref(), write.page.as_str());
        let (wr, _) = self.wr(WrKind::Write, (by, page, write.through.as_deref()), Some(letter))?;
        let what = format!("RDMA WRITE {letter} to {page}{}", of(by));
        self.place(page)?.model.begin(&what, PAGE as usize, letter);
        let since = self.bench.mark(&what);
        let effect = Effect::Rdma { page: page.into(), since };
        let job = Job {
            job: 0,
            by: write.process.clone(),
            what,
            allow: write.allow.clone(),
            effect,
            figure: write.figure.clone(),
        };
        if write.background.is_none() {
            let completion = self.finish_wr(by, wr, &job.what)?;
            return self.wrote_by_nic((page, since), &job, &completion);
        }
        let op = Op::Verbs(VerbsOp::Do { p: self.device(by)?.1, wr, limit_ms: LONG_MS });
        self.begin(op, write.background.as_ref(), job)
    }

    /// A work request of a process, and its completion.
    pub(super) fn finish_wr(&mut self, by: By<'_>, wr: Wr, what: &str) -> Result<Completion, Stop> {
        let (p, limit_ms) = (self.device(by)?.1, COMPLETION_LIMIT.as_millis() as u32);
        self.bench.finish_by(self.within(by, Op::Verbs(VerbsOp::Do { p, wr, limit_ms }))?, what)
    }

    /// An RDMA WRITE has completed, in one way or another.
    pub(super) fn wrote_by_nic(
        &mut self,
        (page, since): (&str, u64),
        Job { by, what, allow, .. }: &Job,
        completion: &Completion,
    ) -> Result<(), Stop> {
        self.place(page)?.trail.push(completion.fact);
        if !completion.ok() {
            self.written(page, what, Some(libc::EIO), since)?;
            match allow.contains(&Outcome::Status(completion.wc.status.clone())) {
                true => self.kept.push(completion.fact),
                false => self.find(page, Finding::new(Verdict::ErrCqe, completion.fact, [])),
            }
            return Ok(());
        }
        if !allow.contains(&Outcome::Returns) {
            return Err(Stop::Failed(format!("{what} succeeded, which the story does not allow")));
        }
        if self.is_gone(page)? {
            // It went where nobody else looks: the page that was there.
            self.find(page, Finding::new(Verdict::Split, completion.fact, []));
            return Ok(());
        }
        let at = self.landed_by_nic(by.as_deref(), page, since)?;
        self.written(page, what, None, at)?;
        self.written_before(page, at)?;
        self.paging(by.as_deref(), page)
    }

    /// When the NIC's bytes were there, by its own records. A device that is not ours has none; nor has a page that the access itself has
    /// brought in, whose frame nobody could watch before: then it is known by the completion.
    fn landed_by_nic(&mut self, by: By<'_>, page: &str, since: u64) -> Result<u64, Stop> {
        let gpa = self.place(page)?.gpa;
        let wrote = |record: &NicRecord| matches!(record.kind, NicKind::Wrote { .. });
        if self.bench.nic_is_ours() && !self.bench.nic_records(since).iter().any(wrote) {
            let now = self.page_info(by, page)?;
            if now.present && now.gpa() != gpa {
                self.locate(by, page)?;
                let folio = self.bench.now(What::folio("brought in by the access", &now, None));
                self.place(page)?.trail.push(folio);
                return Ok(self.bench.mark("RDMA WRITE completed"));
            }
        }
        self.landed_at(page, gpa, since)
    }

    /// The same of bytes of the page that are elsewhere.
    pub(super) fn landed_at(&mut self, page: &str, gpa: u64, since: u64) -> Result<u64, Stop> {
        if !self.bench.nic_is_ours() {
            return Ok(self.bench.mark("RDMA WRITE completed"));
        }
        let records = self.bench.nic_records(since);
        let elsewhere = || records.iter().rev().find(|record| matches!(record.kind, NicKind::Wrote { .. }));
        let Some(record) = oracle::nic::last_write(&records, gpa).or_else(elsewhere) else {
            let why = format!("the completion says success and the ledger has no NIC write of GPA {gpa:#x}");
            return Err(Stop::Inconclusive(why));
        };
        let (fact, at) = (self.bench.nic(record), record.seq);
        self.place(page)?.trail.push(fact);
        Ok(at)
    }

    /// What on-demand paging did so far.
    fn paging(&mut self, by: By<'_>, page: &str) -> Result<(), Stop> {
        if !self.bench.registration().is_odp() || !self.bench.nic_is_ours() {
            return Ok(());
        }
        let Some(mr) = self.opened_at(by, page)?.0.mr else { return Ok(()) };
        let paging = oracle::nic::paging(&self.bench.nic_records(self.bench.begun), mr.rkey);
        let fact = self.bench.now(paging);
        self.place(page)?.trail.push(fact);
        Ok(())
    }

    pub(super) fn rdma_read(&mut self, OfPage { page, process, through }: &OfPage) -> Result<(), Stop> {
        let by = process.as_deref();
        let (wr, map) = self.wr(WrKind::Read, (by, page, through.as_deref()), None)?;
        let what = format!("RDMA READ of {page}{}", of(by));
        let since = self.bench.mark(&what);
        let completion = self.finish_wr(by, wr, &what)?;
        if !completion.ok() {
            self.find(page, Finding::new(Verdict::ErrCqe, completion.fact, []));
            return Ok(());
        }
        if self.is_gone(page)? {
            self.find(page, Finding::new(Verdict::Stale, completion.fact, []));
            return Ok(());
        }
        // What it read: with a registration that has lost the page, another one than the mapping's.
        let records = self.bench.nic_records(since);
        if let Some(read) = records.iter().rev().find(|record| matches!(record.kind, NicKind::Read { .. })) {
            let fact = self.bench.nic(read);
            self.place(page)?.trail.push(fact);
            // Right bytes prove nothing there: a frame that was freed may have been given them.
            let now = self.page_info(by, page)?;
            if now.present && !oracle::nic::is_of(read, now.gpa()) {
                let folio = self.bench.now(What::folio("when it was read", &now, None));
                self.find(page, Finding::new(Verdict::Stale, fact, [folio]));
            }
        }
        let off = self.place(page)?.at;
        if self.bench.is_planted(Plant::OldBytes) {
            let pattern = self.pattern(page, 'A')?;
            self.bench.guest.must(self.within(by, Op::Store { m: map, off, len: PAGE, pattern })?)?;
        }
        let value = self.bench.guest.must(self.within(by, Op::Load { m: map, off, len: PAGE })?)?;
        self.seen(&format!("RDMA READ{}", of(by)), page, value, Verdict::Stale)
    }
}
