// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags and choices that an [`Op`](super::Op) takes.

use serde::{Deserialize, Serialize};

/// How to open. Read-only without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenFlags {
    /// O_RDWR.
    #[serde(rename = "w", skip_serializing_if = "std::ops::Not::not")]
    pub write: bool,
    /// O_CREAT, mode 0644.
    #[serde(rename = "c", skip_serializing_if = "std::ops::Not::not")]
    pub create: bool,
    /// O_TRUNC.
    #[serde(rename = "t", skip_serializing_if = "std::ops::Not::not")]
    pub truncate: bool,
    /// O_DIRECT.
    #[serde(rename = "d", skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
    /// O_SYNC.
    #[serde(rename = "s", skip_serializing_if = "std::ops::Not::not")]
    pub sync: bool,
}

/// File systems that [`Op::Mkfs`](super::Op::Mkfs) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FsType {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl FsType {
    /// "ext4", "xfs", "btrfs".
    pub fn name(self) -> &'static str {
        match self {
            FsType::Ext4 => "ext4",
            FsType::Xfs => "xfs",
            FsType::Btrfs => "btrfs",
        }
    }
}

/// Modes of fallocate(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallocMode {
    /// Mode 0: allocate, grow.
    Allocate,
    /// FALLOC_FL_KEEP_SIZE.
    KeepSize,
    /// FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE.
    PunchHole,
    /// FALLOC_FL_ZERO_RANGE.
    ZeroRange,
    /// FALLOC_FL_COLLAPSE_RANGE.
    CollapseRange,
    /// FALLOC_FL_INSERT_RANGE.
    InsertRange,
    /// FALLOC_FL_UNSHARE_RANGE.
    UnshareRange,
}

/// Advice for posix_fadvise(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fadvice {
    /// POSIX_FADV_NORMAL.
    Normal,
    /// POSIX_FADV_RANDOM: no readahead, so page faults and reads make single-page folios.
    Random,
    /// POSIX_FADV_SEQUENTIAL.
    Sequential,
    /// POSIX_FADV_WILLNEED.
    Willneed,
    /// POSIX_FADV_DONTNEED: drops clean, unmapped page-cache pages.
    Dontneed,
}

/// Advice for madvise(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// MADV_NORMAL.
    Normal,
    /// MADV_RANDOM: no readahead, so faults make single-page folios.
    Random,
    /// MADV_SEQUENTIAL.
    Sequential,
    /// MADV_WILLNEED.
    Willneed,
    /// MADV_DONTNEED.
    Dontneed,
    /// MADV_REMOVE.
    Remove,
    /// MADV_DONTFORK.
    Dontfork,
    /// MADV_HUGEPAGE.
    Hugepage,
    /// MADV_NOHUGEPAGE.
    Nohugepage,
    /// MADV_COLD.
    Cold,
    /// MADV_PAGEOUT.
    Pageout,
    /// MADV_POPULATE_READ.
    PopulateRead,
    /// MADV_POPULATE_WRITE.
    PopulateWrite,
    /// MADV_COLLAPSE (since 6.1).
    Collapse,
    /// MADV_SOFT_OFFLINE.
    SoftOffline,
    /// MADV_MERGEABLE.
    Mergeable,
}

/// Kinds of memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memfd {
    /// memfd_create(2).
    Plain,
    /// The same of huge pages: MFD_HUGETLB.
    Hugetlb,
    /// memfd_secret(2).
    Secret,
}

/// In which state a page of a file is stored to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreAfter {
    /// Dirty and mapped writable, by a store before.
    Store,
    /// Clean, by fsync(2).
    Fsync,
    /// Its write has begun, by sync_file_range(2) that does not wait.
    Begun,
}
