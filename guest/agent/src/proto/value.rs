// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What requests return.

use serde::{Deserialize, Serialize};

use super::{Failure, MrInfo, NicInfo, PairInfo, Timed, Wc};
use crate::acked::Report;
use crate::pattern::Content;

/// A result. [`Op`](super::Op) says which variant each request returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Done.
    #[serde(rename = "u")]
    Unit,
    /// A file, mapping or job.
    #[serde(rename = "h")]
    Handle(u32),
    /// A number.
    #[serde(rename = "n")]
    Num(u64),
    /// Text; bytes that are not UTF-8 are replaced.
    #[serde(rename = "t")]
    Text(String),
    /// A program's end.
    #[serde(rename = "x")]
    Exec(ExecOut),
    /// Bytes, identified.
    #[serde(rename = "c")]
    Content(Content),
    /// Extents of a file.
    #[serde(rename = "e")]
    Extents(Vec<Extent>),
    /// A file's size and blocks.
    #[serde(rename = "f")]
    Stat(Stat),
    /// A page.
    #[serde(rename = "p")]
    Page(Page),
    /// An address of a process.
    #[serde(rename = "at")]
    Place {
        /// The process.
        pid: u32,
        /// The address.
        addr: u64,
    },
    /// A job.
    #[serde(rename = "j")]
    Job(JobState),
    /// Kernel messages.
    #[serde(rename = "l")]
    Lines(Lines),
    /// The system.
    #[serde(rename = "s")]
    Sys(SysInfo),
    /// A durability check.
    #[serde(rename = "a")]
    Acked(Report),
    /// A NIC.
    #[serde(rename = "nic")]
    Nic(NicInfo),
    /// A memory region.
    #[serde(rename = "mr")]
    Mr(MrInfo),
    /// A pair of queue pairs.
    #[serde(rename = "qp")]
    Pair(PairInfo),
    /// A completion.
    #[serde(rename = "wc")]
    Wc(Wc),
    /// A measurement.
    #[serde(rename = "ns")]
    Timed(Timed),
    /// Measurements, turn by turn: nanoseconds of each of its parts.
    #[serde(rename = "ls")]
    Laps(Vec<[u64; 2]>),
}

/// How a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOut {
    /// Exit status; 128 + signal number when a signal ended it.
    #[serde(rename = "s")]
    pub status: i32,
    /// It was killed because its time was over.
    #[serde(rename = "k", default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Last 16 KiB of its standard output.
    #[serde(rename = "o", default, skip_serializing_if = "String::is_empty")]
    pub out: String,
    /// Last 16 KiB of its standard error.
    #[serde(rename = "e", default, skip_serializing_if = "String::is_empty")]
    pub err: String,
}

/// One extent of FS_IOC_FIEMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file, bytes.
    #[serde(rename = "o")]
    pub logical: u64,
    /// Offset on the device, bytes (on btrfs: btrfs-logical, not the device's).
    #[serde(rename = "p")]
    pub physical: u64,
    /// Length, bytes.
    #[serde(rename = "l")]
    pub len: u64,
    /// FIEMAP_EXTENT_* (0x1 last, 0x2 unknown, 0x4 delalloc, 0x800 unwritten, 0x2000 shared).
    #[serde(rename = "f")]
    pub flags: u32,
}

/// FIEMAP_EXTENT_SHARED.
pub const EXTENT_SHARED: u32 = 0x2000;
/// FIEMAP_EXTENT_UNWRITTEN.
pub const EXTENT_UNWRITTEN: u32 = 0x800;

/// fstat(2), the part of it that scenarios need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Size in bytes.
    pub size: u64,
    /// Inode number.
    pub ino: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
}

/// A page of the agent's address space (/proc/self/pagemap, /proc/kpageflags, /proc/kpagecount).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Pagemap bit 63. Without it all below but `swapped` is zero.
    #[serde(rename = "p", default)]
    pub present: bool,
    /// Pagemap bit 62.
    #[serde(rename = "s", default, skip_serializing_if = "std::ops::Not::not")]
    pub swapped: bool,
    /// Pagemap bit 61: file page or shared anonymous.
    #[serde(rename = "f", default, skip_serializing_if = "std::ops::Not::not")]
    pub file: bool,
    /// Pagemap bit 56: mapped exclusively.
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// Pagemap bit 55: soft-dirty.
    #[serde(rename = "d", default, skip_serializing_if = "std::ops::Not::not")]
    pub soft_dirty: bool,
    /// Page frame number; times 4096 it is the GPA.
    #[serde(rename = "n", default)]
    pub pfn: u64,
    /// /proc/kpageflags; see [`kpf`]. 0 of persistent memory behind the end of RAM, of which the kernel tells neither flags nor `mapcount`.
    #[serde(rename = "k", default)]
    pub flags: u64,
    /// /proc/kpagecount: times mapped.
    #[serde(rename = "m", default)]
    pub mapcount: u64,
    /// First page frame of the folio (`pfn` itself for a single page).
    #[serde(rename = "h", default)]
    pub folio_pfn: u64,
    /// Pages of the folio.
    #[serde(rename = "c", default)]
    pub folio_pages: u32,
}

impl Page {
    /// Guest physical address of the page.
    pub fn gpa(&self) -> u64 {
        self.pfn.wrapping_mul(4096)
    }

    /// True when the bit (one of [`kpf`]) is set.
    pub fn has(&self, bit: u32) -> bool {
        self.flags.checked_shr(bit).unwrap_or(0) & 1 == 1
    }
}

/// Bit numbers in /proc/kpageflags (Documentation/admin-guide/mm/pagemap.rst; numbers of 32 and up from
/// include/linux/kernel-page-flags.h).
pub mod kpf {
    /// Locked.
    pub const LOCKED: u32 = 0;
    /// Referenced.
    pub const REFERENCED: u32 = 2;
    /// Up to date.
    pub const UPTODATE: u32 = 3;
    /// Dirty.
    pub const DIRTY: u32 = 4;
    /// On an LRU list.
    pub const LRU: u32 = 5;
    /// On the active list.
    pub const ACTIVE: u32 = 6;
    /// Under writeback.
    pub const WRITEBACK: u32 = 8;
    /// Being reclaimed.
    pub const RECLAIM: u32 = 9;
    /// Free.
    pub const BUDDY: u32 = 10;
    /// Mapped.
    pub const MMAP: u32 = 11;
    /// Anonymous.
    pub const ANON: u32 = 12;
    /// Head of a compound page.
    pub const COMPOUND_HEAD: u32 = 15;
    /// Tail of a compound page.
    pub const COMPOUND_TAIL: u32 = 16;
    /// hugetlb.
    pub const HUGE: u32 = 17;
    /// Unevictable.
    pub const UNEVICTABLE: u32 = 18;
    /// Hardware-poisoned (soft offline too).
    pub const HWPOISON: u32 = 19;
    /// No page frame.
    pub const NOPAGE: u32 = 20;
    /// Merged by KSM.
    pub const KSM: u32 = 21;
    /// Transparent huge page (6.12 and later: any large folio).
    pub const THP: u32 = 22;
    /// PG_private: the file system has data attached (buffers on ext4).
    pub const PRIVATE: u32 = 35;
}

/// A job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState {
    /// It has ended.
    #[serde(rename = "d")]
    pub done: bool,
    /// How long it took, microseconds, when it has ended.
    #[serde(rename = "us", default)]
    pub us: u64,
    /// When it ended, microseconds since boot: the same clock in every process of a guest.
    #[serde(rename = "t", default)]
    pub at_us: u64,
    /// What came out, when it has ended.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<Result<Value, Failure>>>,
}

/// Kernel messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// `<level>text`, oldest first.
    #[serde(rename = "l")]
    pub lines: Vec<String>,
    /// Messages that passed the filter but did not fit, or that the kernel overwrote before they were read.
    #[serde(rename = "d", default)]
    pub dropped: u64,
    /// Mark of the newest message seen: where to go on.
    #[serde(rename = "m")]
    pub mark: u64,
}

/// The system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysInfo {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`: carries Debian's package version.
    pub version: String,
    /// /proc/cmdline.
    pub cmdline: String,
    /// MemTotal, KiB.
    pub mem_total_kib: u64,
    /// MemAvailable, KiB.
    pub mem_available_kib: u64,
    /// Dirty + Writeback, KiB.
    pub dirty_kib: u64,
    /// Lines of the channel that the agent dropped as damaged.
    pub bad_lines: u64,
}

macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident -> $variant:ident($type:ty);)*) => {
        impl Value {
            $($(#[$doc])*
            pub fn $name(self) -> Option<$type> {
                match self {
                    Value::$variant(value) => Some(value),
                    _ => None,
                }
            })*
        }
    };
}

accessors! {
    /// The handle, if it is one.
    handle -> Handle(u32);
    /// The number, if it is one.
    num -> Num(u64);
    /// The text, if it is one.
    text -> Text(String);
    /// The program's end, if it is one.
    exec -> Exec(ExecOut);
    /// The content, if it is one.
    content -> Content(Content);
    /// The extents, if they are.
    extents -> Extents(Vec<Extent>);
    /// The file's size and blocks, if they are.
    stat -> Stat(Stat);
    /// The page, if it is one.
    page -> Page(Page);
    /// The job, if it is one.
    job -> Job(JobState);
    /// The messages, if they are.
    lines -> Lines(Lines);
    /// The system, if it is.
    sys -> Sys(SysInfo);
    /// The durability check, if it is one.
    acked -> Acked(Report);
    /// The NIC, if it is one.
    nic -> Nic(NicInfo);
    /// The memory region, if it is one.
    mr -> Mr(MrInfo);
    /// The pair, if it is one.
    pair -> Pair(PairInfo);
    /// The completion, if it is one.
    wc -> Wc(Wc);
    /// The measurement, if it is one.
    timed -> Timed(Timed);
    /// The measurements, if they are.
    laps -> Laps(Vec<[u64; 2]>);
}
