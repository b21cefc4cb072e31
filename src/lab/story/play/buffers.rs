// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers that O_DIRECT writes take their bytes from, and that somebody changes meanwhile.
//!
//! What such a write leaves on the disk nobody promises: its own bytes, the changed ones, or some of each. A later write covers it. Harm
//! is where checksum, mirror or parity disagrees with what is there.

use std::collections::BTreeMap;

use rnic_agent::proto::{MrInfo, Op, OpenFlags, VerbsOp, Wr, WrKind};

use super::jobs::{Effect, Job};
use super::{Play, Running};
use crate::bench::{DIR, PAGE};
use crate::fact::What;
use crate::finding::{Finding, Stop};
use crate::story::step::{Change, Changer, DioWrite, Step};
use crate::verdict::Verdict;
use blk::{BlkOp, DiskLedger, RequestRecord};

/// Anonymous memory as long as the page's file up to the page: bytes of a pattern say where they belong.
pub(super) struct Buffer {
    map: u32,
    /// Where the page's bytes are in it.
    off: u64,
    gpa: u64,
    mr: Option<MrInfo>,
    /// The write that takes its bytes from here at the moment.
    open: Option<String>,
    /// What was put into it meanwhile, as the page's model knows it.
    changes: Vec<String>,
}

impl Play<'_, '_> {
    /// Makes the story's buffers. One that RDMA changes is registered as the row's mode says, before anything is written from it.
    pub(super) fn make_buffers(&mut self) -> Result<(), Stop> {
        for (name, spec) in &self.story.buffers {
            let off = self.place(&spec.page)?.at;
            let len = off + PAGE;
            let map = self.bench.guest.handle(Op::AnonBuffer { len, huge: false })?;
            self.bench.guest.must(Op::Touch { m: map, off, write: true })?;
            let by_rdma = |step: &Step| matches!(step, Step::Change(change) if change.by == Changer::Rdma && change.buffer == *name);
            let mr = match self.story.steps.iter().any(|step| by_rdma(step.get_ref())) {
                true => Some(self.register_buffer(map, len)?),
                false => None,
            };
            let buffer = Buffer { map, off, gpa: 0, mr, open: None, changes: Vec::new() };
            self.buffers.insert(name.clone(), buffer);
            self.find_buffer(name)?;
        }
        Ok(())
    }

    fn register_buffer(&mut self, m: u32, len: u64) -> Result<MrInfo, Stop> {
        let (nic, access) = (self.device(None)?.0, self.bench.registration().access());
        let registered = self.bench.register_by(Op::Verbs(VerbsOp::Reg { nic, m, off: 0, len, access }))?;
        registered.map_err(|errno| {
            let step = format!("ibv_reg_mr of anonymous memory with access flags {access:#x}");
            let fact = self.bench.now(What::Returned { step, errno: Some(errno) });
            Stop::Found(Finding::new(Verdict::Refused, fact, []).told(Some(errno)))
        })
    }

    pub(super) fn buffer(&mut self, name: &str) -> Result<&mut Buffer, Stop> {
        self.buffers.get_mut(name).ok_or_else(|| Stop::Failed(format!("there is no buffer {name}")))
    }

    /// Where the buffer is now, watched; its address.
    pub(super) fn find_buffer(&mut self, name: &str) -> Result<u64, Stop> {
        let (m, off) = (self.buffer(name)?.map, self.buffer(name)?.off);
        let page = self.bench.guest.must(Op::PageInfo { m, off })?.page();
        let page = page.filter(|page| page.present);
        let page = page.ok_or_else(|| Stop::Inconclusive(format!("buffer \"{name}\" is not present")))?;
        self.bench.guest.ledger().watch(page.gpa());
        self.buffer(name)?.gpa = page.gpa();
        Ok(page.gpa())
    }

    /// An O_DIRECT write of the page from a buffer that stays writable.
    pub(super) fn dio_write_from(&mut self, write: &DioWrite, name: &str) -> Result<(), Stop> {
        let letter = self.letter(write.tag);
        let (page, pattern) = (write.page.as_str(), self.pattern(&write.page, letter)?);
        let (m, off) = (self.buffer(name)?.map, self.buffer(name)?.off);
        self.bench.guest.must(Op::Store { m, off, len: PAGE, pattern })?;
        self.find_buffer(name)?;
        let (file, at) = (self.place(page)?.file.clone(), self.place(page)?.at);
        let flags = OpenFlags { write: true, direct: true, ..Default::default() };
        let h = self.bench.guest.handle(Op::Open { path: format!("{DIR}/{file}"), flags })?;
        let what = format!("an O_DIRECT write of {letter} to {page} from {name}");
        self.place(page)?.model.begin(&what, PAGE as usize, letter);
        self.buffer(name)?.open = Some(what.clone());
        self.bench.mark(&format!("{what} begin"));
        let op = Op::DioWriteFrom { h, foff: at, m, moff: off, len: PAGE };
        // It is a job by itself.
        let job = self.bench.guest.handle(op)?;
        let effect = Effect::From { page: page.into(), buffer: name.into() };
        let (allow, figure) = (write.allow.clone(), write.figure.clone());
        let job = Job { job, by: None, what, allow, effect, figure };
        self.begun(write.background.as_ref(), job)
    }

    /// Other bytes in a buffer. While a write takes its bytes from there nobody can say which of them it takes.
    pub(super) fn change(&mut self, change: &Change) -> Result<(), Stop> {
        let (name, letter) = (change.buffer.as_str(), self.letter(change.tag));
        let page = self.story.buffers.get(name).map(|spec| spec.page.clone()).unwrap_or_default();
        let who = if change.by == Changer::Rdma { "RDMA WRITE" } else { "store" };
        let what = format!("{who} {letter} to buffer {name}");
        if self.buffer(name)?.open.is_some() {
            self.place(&page)?.model.begin(&what, PAGE as usize, letter);
            self.buffer(name)?.changes.push(what.clone());
        }
        let (m, off, pattern) = (self.buffer(name)?.map, self.buffer(name)?.off, self.pattern(&page, letter)?);
        match change.by {
            Changer::Cpu => {
                self.bench.guest.must(Op::Store { m, off, len: PAGE, pattern })?;
                let at = self.bench.mark(&what);
                let fact = self.bench.fact(at, What::Returned { step: what, errno: None });
                self.place(&page)?.trail.push(fact);
            }
            Changer::Rdma => self.change_by_nic(name, &page, (letter, &what))?,
        }
        for running in self.running.values_mut() {
            if let Running::Hold { buffer: Some(of), held: Some(_), met, .. } = running {
                *met |= of == name;
            }
        }
        Ok(())
    }

    /// RDMA WRITE into a registered buffer.
    fn change_by_nic(&mut self, name: &str, page: &str, (letter, what): (char, &str)) -> Result<(), Stop> {
        let (off, mr) = (self.buffer(name)?.off, self.buffer(name)?.mr);
        let remote = mr.ok_or_else(|| Stop::Failed(format!("buffer {name} is not registered")))?.handle;
        let (m, local) = self.bench.anonymous_map(off + PAGE)?;
        let pattern = self.pattern(page, letter)?;
        self.bench.guest.must(Op::Store { m, off, len: PAGE, pattern })?;
        let (kind, local, len) = (WrKind::Write, local.handle, PAGE as u32);
        let wr = Wr { kind, end: 0, local, local_off: off, len, remote, remote_off: off, value: 0, swap: 0 };
        let since = self.bench.mark(what);
        let completion = self.finish_wr(None, wr, what)?;
        self.place(page)?.trail.push(completion.fact);
        if !completion.ok() {
            self.find(page, Finding::new(Verdict::ErrCqe, completion.fact, []));
            return Ok(());
        }
        let gpa = self.find_buffer(name)?;
        self.landed_at(page, gpa, since).map(drop)
    }

    /// The write from the buffer has returned: what was put into it meanwhile may be there instead.
    pub(super) fn wrote_from(&mut self, page: &str, name: &str) -> Result<(), Stop> {
        let changes = std::mem::take(&mut self.buffer(name)?.changes);
        self.buffer(name)?.open = None;
        changes.iter().try_for_each(|change| self.place(page).map(|place| place.model.abandon(change)))
    }

    /// A write that was held: whether it takes its bytes from the buffer. One that does not takes them from a copy that the kernel has
    /// made, if no other write does.
    pub(super) fn takes_from(&mut self, page: &str, name: &str, write: &RequestRecord) -> Result<bool, Stop> {
        let gpa = self.buffer(name)?.gpa;
        self.bench.gpa = gpa;
        let takes = |record: &RequestRecord| record.pages.iter().any(|touch| touch.gpa == gpa);
        if takes(write) {
            return Ok(true);
        }
        let begun = self.bench.begun;
        let others = self.bench.guest.ledger().touching(gpa, begun);
        if others.iter().any(|record| record.op == BlkOp::Write && record.data > Some(write.arrived)) {
            let why = format!("another write than the one that was held takes its bytes from buffer \"{name}\"");
            return Err(Stop::Inconclusive(why));
        }
        let fact = self.bench.fact(write.arrived, What::Copied { id: write.id, gpa });
        self.kept.push(fact);
        self.place(page)?.trail.push(fact);
        Ok(false)
    }
}

/// The story's buffers.
pub(super) type Buffers = BTreeMap<String, Buffer>;
