// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that is taken away under whoever still reaches it: truncation, munmap, mremap, MADV_DONTNEED.

use rnic_agent::client::CallError;
use rnic_agent::proto::Op;

use super::Play;
use super::jobs::{Effect, Job};
use super::processes::of;
use crate::bench::PAGE;
use crate::fact::{FactId, What};
use crate::finding::{Finding, Stop};
use crate::story::memory::Memory;
use crate::story::step::{Punch, Seal};
use crate::verdict::Verdict;

impl Play<'_, '_> {
    /// What the page's file is.
    pub(super) fn memory_of(&mut self, page: &str) -> Result<Memory, Stop> {
        let file = self.place(page)?.file.clone();
        Ok(self.file(&file)?.memory)
    }

    /// Whether the mapping has the page no more.
    pub(super) fn is_gone(&mut self, page: &str) -> Result<bool, Stop> {
        Ok(self.place(page)?.gone)
    }

    /// A CPU load: what was written last must be there; where the page is gone nothing may be.
    pub(super) fn look(&mut self, by: &str, page: &str, load: Op) -> Result<(), Stop> {
        let gone = self.is_gone(page)?;
        match self.bench.guest.call(load) {
            Ok(value) if !gone => self.seen(by, page, value, Verdict::Split),
            Ok(_) => {
                let fact = self.bench.now(What::Returned { step: format!("a load by {by}"), errno: None });
                self.find(page, Finding::new(Verdict::Split, fact, []));
                Ok(())
            }
            Err(CallError::Failed(failure)) if gone && failure.errno == libc::EFAULT => {
                let errno = Some(failure.errno);
                let fact = self.bench.now(What::Returned { step: format!("a load by {by}"), errno });
                self.kept.push(fact);
                Ok(())
            }
            // A page that cannot be read shows nothing: it may be its checksum, and that is a power cut's to say.
            Err(error) => Err(self.bench.guest.stop_for("a load", &error)),
        }
    }

    pub(super) fn truncate(&mut self, truncate: &Punch) -> Result<(), Stop> {
        let by = truncate.process.clone();
        let (opened, from) = self.opened_at(by.as_deref(), &truncate.page)?;
        let file = self.place(&truncate.page)?.file.clone();
        let what = format!("a truncation of {file} at {}{}", truncate.page, of(by.as_deref()));
        self.bench.mark(&format!("{what} begin"));
        let effect = Effect::Truncate { file, from };
        let (allow, figure) = (truncate.allow.clone(), truncate.figure.clone());
        let op = Op::Ftruncate { h: opened.handle, len: from };
        self.begin(op, truncate.background.as_ref(), Job { job: 0, by, what, allow, effect, figure })
    }

    /// The file ends at `from` now.
    pub(super) fn truncated(
        &mut self,
        (file, from): (&str, u64),
        fact: FactId,
        errno: Option<i32>,
    ) -> Result<(), Stop> {
        self.kept.push(fact);
        for place in self.places.values_mut().filter(|place| place.file == file) {
            place.trail.push(fact);
            place.gone |= errno.is_none() && place.at >= from;
        }
        Ok(())
    }

    /// Pages that come and go with this one (a huge page's) have gone with it, and are zero.
    pub(super) fn with_its_unit(&mut self, page: &str) -> Result<(), Stop> {
        let unit = self.memory_of(page)?.unit();
        let (file, at) = (self.place(page)?.file.clone(), self.place(page)?.at);
        let others = |(name, place): (&String, &super::Place)| {
            (name != page && place.file == file && place.at / unit == at / unit && unit > PAGE).then(|| name.clone())
        };
        let others: Vec<_> = self.places.iter().filter_map(others).collect();
        others.into_iter().try_for_each(|name| self.zeroed(&name))
    }

    /// The page is a fresh one of zeroes.
    fn zeroed(&mut self, name: &str) -> Result<(), Stop> {
        let at = self.bench.mark(&format!("{name} is gone"));
        let place = self.place(name)?;
        place.model.write('0');
        place.since = at;
        let (opened, off) = self.opened_at(None, name)?;
        // A read of anonymous memory gets the kernel's own page of zeroes, which the first writer leaves for another.
        let write = self.memory_of(name)?.anonymous();
        self.bench.guest.must(Op::Touch { m: opened.map, off, write })?;
        self.locate(None, name)
    }

    /// MADV_DONTNEED has taken these bytes of the page's file: of anonymous memory what is there next is zero.
    pub(super) fn dropped(&mut self, page: &str, (off, len): (u64, u64)) -> Result<(), Stop> {
        if !self.memory_of(page)?.anonymous() {
            return Ok(());
        }
        let file = self.place(page)?.file.clone();
        let inside = |place: &super::Place| place.file == file && (off..off + len).contains(&place.at);
        let names: Vec<_> =
            self.places.iter().filter(|(_, place)| inside(place)).map(|(name, _)| name.clone()).collect();
        names.into_iter().try_for_each(|name| self.zeroed(&name))
    }

    fn pages_of(&self, file: &str) -> Vec<String> {
        self.places.iter().filter(|(_, place)| place.file == file).map(|(name, _)| name.clone()).collect()
    }

    /// munmap(2).
    pub(super) fn unmap(&mut self, file: &str) -> Result<(), Stop> {
        let (m, anonymous) = (self.file(file)?.opened.map, self.file(file)?.memory.anonymous());
        let at = self.bench.mark(&format!("munmap of {file}"));
        self.bench.guest.must(Op::Munmap { m })?;
        let fact = self.bench.fact(at, What::Returned { step: format!("munmap of {file}"), errno: None });
        for place in self.places.values_mut().filter(|place| place.file == file) {
            // What a file has is still there.
            place.gone = anonymous;
            place.trail.push(fact);
        }
        Ok(())
    }

    /// mmap(2) of fresh memory at the old address.
    pub(super) fn map_again(&mut self, file: &str) -> Result<(), Stop> {
        let m = self.file(file)?.opened.map;
        self.bench.mark(&format!("mmap where {file} was"));
        self.bench.guest.must(Op::MapAgain { m })?;
        for name in self.pages_of(file) {
            self.place(&name)?.gone = false;
            self.zeroed(&name)?;
        }
        Ok(())
    }

    /// mremap(2): the pages are at another address now.
    pub(super) fn move_away(&mut self, file: &str) -> Result<(), Stop> {
        let m = self.file(file)?.opened.map;
        self.bench.mark(&format!("mremap of {file}"));
        let map = self.bench.guest.handle(Op::MoveMapping { m })?;
        if let Some(file) = self.files.get_mut(file) {
            file.opened.map = map;
        }
        self.pages_of(file).into_iter().try_for_each(|name| self.locate(None, &name))
    }

    /// F_SEAL_WRITE.
    pub(super) fn seal(&mut self, Seal { file, allow }: &Seal) -> Result<(), Stop> {
        let (h, what) = (self.file(file)?.opened.handle, format!("F_SEAL_WRITE of {file}"));
        let job = Job { job: 0, by: None, what, allow: allow.clone(), effect: Effect::Nothing, figure: None };
        self.begin(Op::SealWrite { h }, None, job)
    }
}
