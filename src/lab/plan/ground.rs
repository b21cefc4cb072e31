// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a row's files lie on: a file system, and the disk below it.

use rnic_agent::proto::FsType;
use serde::Deserialize;

/// The file system under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fs {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
    /// btrfs.
    Btrfs,
    /// The block device itself: the one file of a story is the disk.
    Raw,
    /// None: memory that no disk is behind.
    None,
}

impl Fs {
    /// Each with its name.
    pub const ALL: [Self; 5] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Raw, Self::None];

    /// As stories, the command line and reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            fs => fs.made().map_or("none", FsType::name),
        }
    }

    /// What mkfs is asked for.
    pub fn made(self) -> Option<FsType> {
        match self {
            Self::Ext4 => Some(FsType::Ext4),
            Self::Xfs => Some(FsType::Xfs),
            Self::Btrfs => Some(FsType::Btrfs),
            Self::Raw | Self::None => None,
        }
    }
}

/// The disk below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// The virtio disk itself.
    #[default]
    Plain,
    /// Persistent memory: a file system with `dax=always`, so that its files have no page cache.
    Pmem,
    /// dm-integrity with tags of its own and without a journal (mode D).
    Integrity,
    /// The same with a bitmap (mode B): blocks that were being written when the power went get new tags.
    IntegrityBitmap,
    /// md raid1, two legs.
    Raid1,
    /// md raid5, three legs: data go through its stripe cache.
    Raid5,
    /// The same with skip_copy=1: parity is computed from the pages themselves.
    Raid5Skip,
    /// A loop device with direct I/O over a file on ext4.
    Loop,
}

impl DiskKind {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::Pmem,
        Self::Integrity,
        Self::IntegrityBitmap,
        Self::Raid1,
        Self::Raid5,
        Self::Raid5Skip,
        Self::Loop,
    ];

    /// As stories, the command line and reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Pmem => "pmem",
            Self::Integrity => "integrity",
            Self::IntegrityBitmap => "integrity-bitmap",
            Self::Raid1 => "raid1",
            Self::Raid5 => "raid5",
            Self::Raid5Skip => "raid5-skip",
            Self::Loop => "loop",
        }
    }
}
