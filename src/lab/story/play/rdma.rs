// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps of an RDMA device.

use rnic_agent::proto::{Op, VerbsOp, Wr, WrKind};

use super::Play;
use super::jobs::{Effect, Job};
use crate::bench::{Completion, PAGE, Plant};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::oracle;
use crate::story::step::{Outcome, Write};
use crate::verdict::Verdict;
use mlx5::hooks::NicKind;

/// How long a work request is waited for at all: it may be begun before what it waits for.
const LONG_MS: u32 = 60_000;

impl Play<'_, '_> {
    pub(super) fn register(&mut self, name: &str) -> Result<(), Stop> {
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

    pub(super) fn deregister(&mut self, name: &str) -> Result<(), Stop> {
        let mr = self.files.get_mut(name).and_then(|file| file.mr.take());
        let Some(mr) = mr else { return Err(Stop::Failed(format!("file {name} is not registered"))) };
        self.bench.mark("ibv_dereg_mr");
        self.bench.guest.must(Op::Verbs(VerbsOp::Dereg { mr: mr.handle })).map(drop)
    }

    /// A work request between the page and anonymous memory that has its bytes at the same offset; the anonymous mapping.
    fn wr(&mut self, kind: WrKind, page: &str, letter: Option<char>) -> Result<(Wr, u32), Stop> {
        let place = self.place(page)?;
        let (file, at) = (place.file.clone(), place.at);
        let spec = self.file(&file)?;
        let (len, mr) = (u64::from(spec.pages) * PAGE, spec.mr);
        let mr = mr.ok_or_else(|| Stop::Inconclusive(format!("file \"{file}\" is not registered")))?;
        let (map, local) = self.bench.anonymous_map(len)?;
        if let Some(letter) = letter {
            let pattern = self.pattern(page, letter)?;
            self.bench.guest.must(Op::Store { m: map, off: at, len: PAGE, pattern })?;
        }
        let (local, remote) = (local.handle, mr.handle);
        let wr = Wr { kind, end: 0, local, local_off: at, len: PAGE as u32, remote, remote_off: at, value: 0, swap: 0 };
        Ok((wr, map))
    }

    pub(super) fn rdma_write(&mut self, write: &Write) -> Result<(), Stop> {
        let letter = self.letter(write.tag);
        let (wr, _) = self.wr(WrKind::Write, &write.page, Some(letter))?;
        let what = format!("RDMA WRITE {letter} to {}", write.page);
        self.place(&write.page)?.model.begin(&what, PAGE as usize, letter);
        let since = self.bench.mark(&what);
        if write.background.is_none() {
            let completion = self.bench.finish_wr(wr, &what)?;
            return self.wrote_by_nic(&write.page, (&what, since), &completion, &write.allow);
        }
        let op = Op::Verbs(VerbsOp::Do { p: self.bench.pair_handle()?, wr, limit_ms: LONG_MS });
        let effect = Effect::Rdma { page: write.page.clone(), since };
        self.begin(op, write.background.as_ref(), Job { job: 0, by: None, what, allow: write.allow.clone(), effect })
    }

    /// An RDMA WRITE has completed, in one way or another.
    pub(super) fn wrote_by_nic(
        &mut self,
        page: &str,
        (what, since): (&str, u64),
        completion: &Completion,
        allow: &[Outcome],
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
        let at = self.landed_by_nic(page, since)?;
        self.written(page, what, None, at)?;
        self.written_before(page, at)?;
        self.paging(page)
    }

    /// When the NIC's bytes were there, by its own records. A device that is not ours has none.
    fn landed_by_nic(&mut self, page: &str, since: u64) -> Result<u64, Stop> {
        if !self.bench.nic_is_ours() {
            return Ok(self.bench.mark("RDMA WRITE completed"));
        }
        let records = self.bench.nic_records(since);
        let gpa = self.place(page)?.gpa;
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
    fn paging(&mut self, page: &str) -> Result<(), Stop> {
        if !self.bench.registration().is_odp() || !self.bench.nic_is_ours() {
            return Ok(());
        }
        let file = self.place(page)?.file.clone();
        let Some(mr) = self.file(&file)?.mr else { return Ok(()) };
        let paging = oracle::nic::paging(&self.bench.nic_records(self.bench.begun), mr.rkey);
        let fact = self.bench.now(paging);
        self.place(page)?.trail.push(fact);
        Ok(())
    }

    pub(super) fn rdma_read(&mut self, page: &str) -> Result<(), Stop> {
        let (wr, map) = self.wr(WrKind::Read, page, None)?;
        let since = self.bench.mark(&format!("RDMA READ of {page}"));
        let completion = self.bench.finish_wr(wr, &format!("RDMA READ of {page}"))?;
        if !completion.ok() {
            self.find(page, Finding::new(Verdict::ErrCqe, completion.fact, []));
            return Ok(());
        }
        // What it read: with a registration that has lost the page, another one than the mapping's.
        let records = self.bench.nic_records(since);
        if let Some(read) = records.iter().rev().find(|record| matches!(record.kind, NicKind::Read { .. })) {
            let fact = self.bench.nic(read);
            self.place(page)?.trail.push(fact);
            // Right bytes prove nothing there: a frame that was freed may have been given them.
            let now = self.page_info(None, page)?;
            if now.present && !oracle::nic::is_of(read, now.gpa()) {
                let folio = self.bench.now(What::folio("when it was read", &now, None));
                self.find(page, Finding::new(Verdict::Stale, fact, [folio]));
            }
        }
        let off = self.place(page)?.at;
        if self.bench.is_planted(Plant::OldBytes) {
            let pattern = self.pattern(page, 'A')?;
            self.bench.guest.must(Op::Store { m: map, off, len: PAGE, pattern })?;
        }
        let value = self.bench.guest.must(Op::Load { m: map, off, len: PAGE })?;
        self.seen("RDMA READ", page, value, Verdict::Stale)
    }
}
