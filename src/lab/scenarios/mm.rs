// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! H05 and H25 to H31: memory management takes a registered page away, copies it, moves it or shares it. Who sees what the device writes, and what does the device see?

use rnic_agent::pattern::Content;
use rnic_agent::proto::{MmOp, Op};

use super::promise::expected_page;
use super::rdma::{error_completion, refused, row};
use super::{mm_copy, mm_move, mm_wait};
use crate::bench::{Bench, Completion, FILE_LEN, PAGE, PAGE_AT};
use crate::fact::FactId;
use crate::finding::{Finding, Stop};
use crate::plan::Fs::{self, Btrfs, Ext4, Xfs};
use crate::plan::Registration::{Odp, OdpRo, Pinned, PinnedRo};
use crate::plan::{Scenario, Writer};
use crate::verdict::Verdict;

const EXT4: &[Fs] = &[Ext4];
const ALL_FS: &[Fs] = &[Ext4, Xfs, Btrfs];

const H05: &str = "RDMA WRITE to a file of a frozen file system; thaw, fsync; then a power cut";
const H25: &str = "MADV_PAGEOUT of anonymous memory to a swap disk; RDMA READ and WRITE after it";
const H26: &str = "MADV_SOFT_OFFLINE and compaction of anonymous memory; RDMA WRITE and READ after each";
const H27: &str = "a huge page is split, collapsed and cut in half; RDMA WRITE after each";
const H28: &str = "two equal pages are merged by KSM; RDMA WRITE to one of them";
const H29: &str = "fork; RDMA WRITE, and stores by parent and child: who sees what?";
const H30: &str = "a private mapping of a file: RDMA WRITE, stores, and a write of the file";

const H31: &str = "RDMA WRITE into a page that is not there, and userfaultfd is asked for it";
const H31_PROTECT: &str = "RDMA WRITE into a page that userfaultfd has write-protected";

/// Every row of this family.
pub const TABLE: &[Scenario] = &[
    row("H05", "pinned", Writer::Nic(Pinned), ALL_FS, H05, mm_wait::frozen),
    row("H05", "odp", Writer::Nic(Odp), ALL_FS, H05, mm_wait::frozen),
    row("H25", "pinned", Writer::Nic(Pinned), EXT4, H25, mm_move::swap),
    row("H25", "odp", Writer::Nic(Odp), EXT4, H25, mm_move::swap),
    row("H26", "pinned", Writer::Nic(Pinned), EXT4, H26, mm_move::migrate),
    row("H26", "odp", Writer::Nic(Odp), EXT4, H26, mm_move::migrate),
    row("H27", "pinned", Writer::Nic(Pinned), EXT4, H27, mm_move::huge),
    row("H27", "odp", Writer::Nic(Odp), EXT4, H27, mm_move::huge),
    row("H28", "pinned", Writer::Nic(Pinned), EXT4, H28, mm_copy::merge),
    row("H28", "odp", Writer::Nic(Odp), EXT4, H28, mm_copy::merge),
    row("H29", "pinned", Writer::Nic(Pinned), EXT4, H29, mm_copy::fork),
    row("H29", "odp", Writer::Nic(Odp), EXT4, H29, mm_copy::fork),
    row("H30", "pinned", Writer::Nic(Pinned), EXT4, H30, mm_copy::private),
    row("H30", "pinned-ro", Writer::Nic(PinnedRo), EXT4, H30, mm_copy::private_ro),
    row("H30", "odp", Writer::Nic(Odp), EXT4, H30, mm_copy::private),
    row("H30", "odp-ro", Writer::Nic(OdpRo), EXT4, H30, mm_copy::private_ro),
    row("H31", "odp-missing", Writer::Nic(Odp), EXT4, H31, mm_wait::missing),
    row("H31", "odp-protect", Writer::Nic(Odp), EXT4, H31_PROTECT, mm_wait::protected),
    row("H31", "pinned-protect", Writer::Nic(Pinned), EXT4, H31_PROTECT, mm_wait::protected),
];

/// Why a story ends before its last step.
pub(super) enum End {
    /// It has found what it was to find.
    Found(Finding),
    /// It cannot go on.
    Stop(Stop),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        End::Stop(stop)
    }
}

impl From<Finding> for End {
    fn from(finding: Finding) -> Self {
        End::Found(finding)
    }
}

/// What a story's steps return.
pub(super) type Told<T = ()> = Result<T, End>;

/// What a scenario returns.
pub(super) fn ended(told: Told<Finding>) -> Result<Finding, Stop> {
    match told {
        Ok(finding) | Err(End::Found(finding)) => Ok(finding),
        Err(End::Stop(stop)) => Err(stop),
    }
}

/// Anonymous memory is the memory under test; its page holds B.
pub(super) fn anonymous(bench: &mut Bench<'_>) -> Told {
    let map = bench.guest.handle(Op::AnonBuffer { len: FILE_LEN, huge: false })?;
    bench.use_memory(map);
    Ok(bench.store('B')?)
}

/// Registers the memory under test as the row says.
pub(super) fn register(bench: &mut Bench<'_>) -> Told {
    match bench.register()? {
        Ok(_) => Ok(()),
        Err(errno) => Err(refused(bench, errno).into()),
    }
}

/// What somebody saw must be `tag`; else it is `harm`.
pub(super) fn must_be(bench: &Bench<'_>, tag: char, (content, fact): (Content, FactId), harm: Verdict) -> Told<FactId> {
    match content == expected_page(bench, tag, PAGE) {
        true => Ok(fact),
        false => Err(Finding::new(harm, fact, []).into()),
    }
}

/// The mapping must show `tag`, else the device writes to a page that is no longer the process's.
pub(super) fn mapping_shows(bench: &mut Bench<'_>, tag: char) -> Told<FactId> {
    let seen = bench.load()?;
    must_be(bench, tag, seen, Verdict::Split)
}

/// RDMA READ must give `tag`, else it is of a page that is no longer the process's.
pub(super) fn read_gives(bench: &mut Bench<'_>, tag: char) -> Told<FactId> {
    let (completion, content, fact) = bench.rdma_read()?;
    succeeded(bench, &completion)?;
    must_be(bench, tag, (content, fact), Verdict::Stale)
}

/// RDMA WRITE of `tag`, which the mapping must show.
pub(super) fn write_shows(bench: &mut Bench<'_>, tag: char) -> Told<FactId> {
    let completion = bench.rdma_write(tag)?;
    succeeded(bench, &completion)?;
    mapping_shows(bench, tag)
}

/// An error that nobody asked for ends the row.
pub(super) fn succeeded(bench: &mut Bench<'_>, completion: &Completion) -> Told {
    if completion.ok() {
        return Ok(());
    }
    let (page, fact) = bench.load()?;
    Err(error_completion(completion, (&page, fact)).into())
}

/// CPU store of `tag` to the page under test by whoever `op` is.
pub(super) fn fork(bench: &mut Bench<'_>) -> Told<u32> {
    bench.mark("fork");
    Ok(bench.guest.handle(Op::Mm(MmOp::Fork { m: bench.map() }))?)
}

/// What the child of a fork sees.
pub(super) fn child_sees(bench: &mut Bench<'_>, c: u32) -> Told<(Content, FactId)> {
    let value = bench.guest.must(Op::Mm(MmOp::ForkLoad { c, off: PAGE_AT }))?;
    let content = value.content().ok_or_else(|| Stop::Failed("the agent gave no content".into()))?;
    let fact = bench.seen("the child", "memory", &Ok(content.clone()));
    Ok((content, fact))
}

/// Where the page is now, on record.
pub(super) fn whereabouts(bench: &mut Bench<'_>, after: &str) -> Told<(rnic_agent::proto::Page, FactId)> {
    let page = bench.page()?;
    let place = match (page.present, page.swapped) {
        (true, _) => format!("in page frame {:#x} of a folio of {}", page.pfn, page.folio_pages),
        (false, true) => "in swap".into(),
        (false, false) => "nowhere".into(),
    };
    let fact = bench.note(format!("after {after} the page is {place}"));
    if page.present {
        bench.locate()?;
    }
    Ok((page, fact))
}
