// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each step does.

use rnic_agent::pattern::Pattern;
use rnic_agent::proto::{Advice as Madvice, FallocMode, Op, OpenFlags, Page, kpf};

use super::jobs::{Effect, Job};
use super::processes::of;
use super::{By, Play};
use crate::bench::{DIR, PAGE, Plant};
use crate::fact::What;
use crate::finding::Stop;
use crate::story::memory::Memory;
use crate::story::step::{Advice, Advise, DioWrite, Fsync, OfPage, Punch, Range, Step, Write, Writeback};

impl Play<'_, '_> {
    pub(super) fn step(&mut self, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Store(store) => self.store(store),
            Step::Load(load) => self.load(load),
            Step::Fsync(fsync) => self.fsync(fsync),
            Step::Writeback(writeback) => self.writeback(writeback),
            Step::DioRead(read) => self.dio_read(read),
            Step::Hold(hold) => self.hold(hold),
            Step::Deliver(name) => self.deliver(&name.name),
            Step::Finish(name) => self.finish(&name.name),
            Step::Wait(name) => self.wait(&name.name),
            Step::Interrupt(name) => self.interrupt(&name.name),
            Step::Advise(advise) => self.advise(advise),
            Step::Register(of) => self.register(of),
            Step::Deregister(of) => self.deregister(of),
            Step::RdmaWrite(write) => self.rdma_write(write),
            Step::RdmaRead(read) => self.rdma_read(read),
            Step::DioWrite(write) => self.dio_write(write),
            Step::Punch(punch) => self.punch(punch),
            Step::Truncate(truncate) => self.truncate(truncate),
            Step::Unmap(of) => self.unmap(&of.file),
            Step::MapAgain(of) => self.map_again(&of.file),
            Step::Move(of) => self.move_away(&of.file),
            Step::Seal(seal) => self.seal(seal),
            Step::Change(change) => self.change(change),
            Step::Fix(fix) => self.fix(fix),
            Step::Umem(umem) => self.umem(umem),
            Step::XdpReceive(packet) => self.xdp_receive(packet),
            Step::Unfix(name) | Step::CloseUmem(name) => self.unfix(&name.name),
            Step::Vmsplice(splice) => self.vmsplice(splice),
            Step::PipeRead(name) => self.pipe_read(&name.name),
            Step::VmWrite(write) => self.vm_write(write),
            Step::Kill(kill) => self.kill(&kill.process),
            Step::DropCaches(_) => self.bench.guest.must(Op::DropCaches { what: 3 }).map(drop),
            Step::Cut(_) => self.cut(),
        }
    }

    fn store(&mut self, store: &Write) -> Result<(), Stop> {
        let letter = self.letter(store.tag);
        let (by, pattern) = (store.process.clone(), self.pattern(&store.page, letter)?);
        let what = format!("store {letter} to {}{}", store.page, of(by.as_deref()));
        let (opened, off) = self.opened_at(by.as_deref(), &store.page)?;
        self.place(&store.page)?.model.begin(&what, PAGE as usize, letter);
        let op = Op::Store { m: opened.map, off, len: PAGE, pattern };
        self.bench.mark(&what);
        let (allow, effect) = (store.allow.clone(), Effect::Store(store.page.clone()));
        self.begin(
            op,
            store.background.as_ref(),
            Job { job: 0, by, what, allow, effect, figure: store.figure.clone() },
        )?;
        if store.background.is_some() { Ok(()) } else { self.locate(store.process.as_deref(), &store.page) }
    }

    fn load(&mut self, load: &OfPage) -> Result<(), Stop> {
        let by = load.process.as_deref();
        let (opened, off) = self.opened_at(by, &load.page)?;
        if self.bench.is_planted(Plant::ForeignBytes) {
            let pattern = Pattern::new(!self.bench.nonce(), 'F');
            let op = self.within(by, Op::Store { m: opened.map, off, len: PAGE, pattern })?;
            self.bench.guest.must(op)?;
        }
        let op = self.within(by, Op::Load { m: opened.map, off, len: PAGE })?;
        self.look(&format!("the mapping{}", of(by)), &load.page, op)
    }

    fn fsync(&mut self, fsync: &Fsync) -> Result<(), Stop> {
        let by = fsync.process.clone();
        let h = self.opened(by.as_deref(), &fsync.file)?.handle;
        let what = format!("fsync of {}{}", fsync.file, of(by.as_deref()));
        let effect = Effect::Fsync(self.promises(&fsync.file));
        self.bench.mark(&format!("{what} begin"));
        let job = Job { job: 0, by, what, allow: fsync.allow.clone(), effect, figure: fsync.figure.clone() };
        self.begin(Op::Fsync { h }, fsync.background.as_ref(), job)
    }

    /// sync_file_range(2): starts the page's write and does not wait for it.
    fn writeback(&mut self, writeback: &Writeback) -> Result<(), Stop> {
        let by = writeback.process.clone();
        let (opened, off) = self.opened_at(by.as_deref(), &writeback.page)?;
        let h = opened.handle;
        let op = Op::SyncFileRange { h, off, len: PAGE, wait_before: false, write: true, wait_after: false };
        let what = format!("sync_file_range of {}{}", writeback.page, of(by.as_deref()));
        self.bench.mark(&format!("{what} begin"));
        let allow = vec![crate::story::step::Outcome::Returns];
        let job = Job { job: 0, by, what, allow, effect: Effect::Writeback, figure: None };
        self.begin(op, Some(&writeback.background), job)
    }

    fn dio_write(&mut self, write: &DioWrite) -> Result<(), Stop> {
        if let Some(buffer) = &write.buffer {
            return self.dio_write_from(write, buffer);
        }
        let letter = self.letter(write.tag);
        let pattern = self.pattern(&write.page, letter)?;
        let by = write.process.clone();
        let before = self.page_info(by.as_deref(), &write.page)?;
        let (file, off) = (self.place(&write.page)?.file.clone(), self.place(&write.page)?.at);
        let flags = OpenFlags { write: true, direct: true, ..Default::default() };
        let open = self.within(by.as_deref(), Op::Open { path: format!("{DIR}/{file}"), flags })?;
        let h = self.bench.guest.handle(open)?;
        let what = format!("an O_DIRECT write of {letter} to {}{}", write.page, of(by.as_deref()));
        self.place(&write.page)?.model.begin(&what, PAGE as usize, letter);
        self.bench.mark(&format!("{what} begin"));
        let effect = Effect::Replace { page: write.page.clone(), wanted: write.replaces, before };
        let job = Job { job: 0, by, what, allow: write.allow.clone(), effect, figure: write.figure.clone() };
        self.begin(Op::Write { h, off, len: PAGE, pattern }, write.background.as_ref(), job)
    }

    fn punch(&mut self, punch: &Punch) -> Result<(), Stop> {
        let by = punch.process.clone();
        let before = self.page_info(by.as_deref(), &punch.page)?;
        let (opened, off) = self.opened_at(by.as_deref(), &punch.page)?;
        let h = opened.handle;
        let what = format!("a punch of {}{}", punch.page, of(by.as_deref()));
        self.place(&punch.page)?.model.begin(&what, PAGE as usize, '0');
        self.bench.mark(&format!("{what} begin"));
        let effect = Effect::Replace { page: punch.page.clone(), wanted: false, before };
        let job = Job { job: 0, by, what, allow: punch.allow.clone(), effect, figure: punch.figure.clone() };
        let unit = self.memory_of(&punch.page)?.unit();
        let op = Op::Fallocate { h, mode: FallocMode::PunchHole, off: off / unit * unit, len: unit };
        self.begin(op, punch.background.as_ref(), job)
    }

    /// Brings back a page that has left `old`, and not into that frame: a device that still used it would go unseen.
    fn move_from(&mut self, (by, page): (By<'_>, &str), old: u64) -> Result<(), Stop> {
        if self.memory_of(page)? == Memory::Hugetlb {
            self.bench.take_huge_page()?;
            return self.touch(by, page);
        }
        self.bench.take_frames()?;
        self.touch(by, page)?;
        let back = self.page_info(by, page)?;
        if back.present && back.gpa() == old { self.bench.retire_frame(&back) } else { Ok(()) }
    }

    /// Where the page is now: the kernel may have put another one in its place.
    pub(super) fn replaced(&mut self, (by, page): (By<'_>, &str), wanted: bool, before: &Page) -> Result<(), Stop> {
        // That the page has left the mapping is what shows. Without a pin its frame is free, and the next page may get it: then a device that still
        // used it would go unseen.
        let taken = !self.page_info(by, page)?.present;
        if taken {
            self.move_from((by, page), before.gpa())?;
        }
        self.touch(by, page)?;
        if by.is_some() {
            // It was taken from the agent's own page tables too.
            self.touch(None, page)?;
        }
        self.locate(by, page)?;
        let after = self.page_info(by, page)?;
        let facts = [
            self.bench.now(What::folio("before it", before, None)),
            self.bench.now(What::folio("after it", &Page { present: !taken, ..*before }, None)),
            self.bench.now(What::folio("touched again", &after, None)),
        ];
        self.place(page)?.trail.extend(facts);
        if wanted && !taken && after.gpa() == before.gpa() {
            let what = format!("page \"{page}\" was to leave the page cache and did not");
            return Err(Stop::Inconclusive(what));
        }
        Ok(())
    }

    fn advise(&mut self, advise: &Advise) -> Result<(), Stop> {
        let by = advise.process.as_deref();
        let before = self.page_info(by, &advise.page)?;
        let had = self.attached(before.folio_pfn)?;
        let (off, len) = self.range(advise, &before)?;
        let advice = match advise.advice {
            Advice::Pageout => Madvice::Pageout,
            Advice::Cold => Madvice::Cold,
            Advice::Dontneed => Madvice::Dontneed,
        };
        let first = self.bench.now(What::folio("before the advice", &before, Some(had)));
        self.bench.mark(&format!("{:?} of {off:#x}+{len:#x}", advise.advice));
        let m = self.opened_at(by, &advise.page)?.0.map;
        self.bench.guest.must(self.within(by, Op::Madvise { m, off, len, advice })?)?;
        let after = self.page_info(by, &advise.page)?;
        let has = self.attached(before.folio_pfn)?;
        let shown = if after.present { after } else { Page { present: false, ..before } };
        let second = self.bench.now(What::folio("after the advice", &shown, Some(has)));
        self.place(&advise.page)?.trail.extend([first, second]);
        let taken = !after.present || had && !has;
        if advise.advice == Advice::Dontneed && by.is_none() {
            self.dropped(&advise.page, (off, len))?;
        }
        if advise.takes && !taken {
            self.void = Some(before.folio_pages);
        }
        Ok(())
    }

    /// Bytes of the file that the advice covers.
    fn range(&mut self, advise: &Advise, page: &Page) -> Result<(u64, u64), Stop> {
        let at = self.place(&advise.page)?.at;
        let file = self.place(&advise.page)?.file.clone();
        let whole = u64::from(self.file(&file)?.pages) * PAGE;
        // Where the folio begins, in the file.
        let (inside, pages) = (page.pfn.saturating_sub(page.folio_pfn), u64::from(page.folio_pages.max(1)));
        let start = at.saturating_sub(inside * PAGE);
        let half = (pages / 2).max(1);
        let (off, len) = match advise.range {
            Range::Page => (at, PAGE),
            Range::Folio => (start, pages * PAGE),
            Range::HalfFolio => (start + inside / half * half * PAGE, half * PAGE),
            Range::File => (0, whole),
        };
        Ok((off, len.min(whole - off)))
    }

    /// Whether the folio whose first page frame is `pfn` has file system data (ext4: buffers) attached.
    fn attached(&mut self, pfn: u64) -> Result<bool, Stop> {
        let flags = self.bench.guest.must(Op::FrameFlags { pfn })?.num().unwrap_or(0);
        Ok(flags >> kpf::PRIVATE & 1 == 1)
    }
}
