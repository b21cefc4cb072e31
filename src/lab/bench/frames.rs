// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page frames of the guest: huge ones, and those that memory is kept from, so that a device that still uses an old one is seen.

use rnic_agent::pattern::Pattern;
use rnic_agent::proto::{Memfd, Op, Page};

use super::{Bench, PAGE, PAGE_AT, PROMPT};
use crate::finding::Stop;

/// Pages of a huge page.
const HUGE_PAGES: u32 = 512;
/// Bytes: more than a processor's list of free pages holds.
const FREE_FRAMES: u64 = 64 * PAGE;

impl Bench<'_> {
    /// Anonymous memory of huge pages (2 MiB each) with `pattern` in it. The row is not run where the kernel makes none.
    pub fn huge_memory(&self, len: u64, pattern: Pattern) -> Result<u32, Stop> {
        // Kernels with less than 512 MiB of memory begin with "never" (hugepage_init in mm/huge_memory.c).
        let path = "/sys/kernel/mm/transparent_hugepage/enabled".into();
        self.guest.must(Op::WriteSys { path, text: "madvise".into() })?;
        let map = self.guest.handle(Op::AnonBuffer { len, huge: true })?;
        self.guest.must(Op::Store { m: map, off: 0, len, pattern })?;
        let page = self.guest.must(Op::PageInfo { m: map, off: PAGE_AT })?.page();
        match page.is_some_and(|page| page.folio_pages >= HUGE_PAGES) {
            true => Ok(map),
            false => Err(Stop::NotRun("the kernel made no huge page".into())),
        }
    }

    /// Takes the page frames that the kernel gives out next, until the row's end; by two threads, since each processor has a list of its own.
    pub fn take_frames(&self) -> Result<(), Stop> {
        let mut jobs = Vec::new();
        for _ in 0..2 {
            let map = self.guest.handle(Op::AnonBuffer { len: FREE_FRAMES, huge: false })?;
            jobs.push(self.spawn(Op::Store { m: map, off: 0, len: FREE_FRAMES, pattern: self.pattern('Z') })?);
        }
        jobs.into_iter().try_for_each(|job| self.wait_job(job, PROMPT).map(drop))
    }

    /// Takes the huge page of hugetlbfs that the kernel gives out next, until the row's end.
    pub fn take_huge_page(&self) -> Result<(), Stop> {
        let len = u64::from(HUGE_PAGES) * PAGE;
        let h = self.guest.handle(Op::Memfd { kind: Memfd::Hugetlb, len })?;
        let m = self.guest.handle(Op::Mmap { h, off: 0, len, write: true, private: false })?;
        self.guest.must(Op::Store { m, off: 0, len, pattern: self.pattern('Z') }).map(drop)
    }

    /// Takes the frame that this page has, or had, out of use for good: what is in it goes elsewhere. A page of persistent memory stays: its place
    /// is its file's block, which no kernel offlines (EIO, mm/memory-failure.c).
    pub fn retire_frame(&self, page: &Page) -> Result<(), Stop> {
        if self.guest.pmem().is_ok_and(|pmem| pmem.page_of(page.gpa()).is_some()) {
            return Ok(());
        }
        let path = "/sys/devices/system/memory/soft_offline_page".into();
        self.guest.must(Op::WriteSys { path, text: format!("{:#x}", page.gpa()) }).map(drop)
    }
}
