// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies behind the mapping of a story's file.

use rnic_agent::proto::Memfd;
use serde::Deserialize;

/// What lies behind a mapping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// A file of the file system under test, mapped shared.
    #[default]
    File,
    /// The same, mapped private: stores to it are the process's own.
    Private,
    /// A file of a tmpfs, mapped shared.
    Tmpfs,
    /// A memory file (memfd_create(2)), mapped shared.
    Memfd,
    /// The same of huge pages of 2 MiB.
    Hugetlb,
    /// Anonymous private memory.
    Anon,
    /// The same with huge pages (MADV_HUGEPAGE).
    Thp,
}

impl Memory {
    /// A file of the file system under test is behind it.
    pub fn on_disk(self) -> bool {
        matches!(self, Self::File | Self::Private)
    }

    /// No file is behind it.
    pub fn anonymous(self) -> bool {
        matches!(self, Self::Anon | Self::Thp)
    }

    /// Other processes can open it by its name.
    pub fn named(self) -> bool {
        matches!(self, Self::File | Self::Tmpfs)
    }

    /// The kind of memory file, if it is one.
    pub fn memfd(self) -> Option<Memfd> {
        match self {
            Self::Memfd => Some(Memfd::Plain),
            Self::Hugetlb => Some(Memfd::Hugetlb),
            _ => None,
        }
    }

    /// Bytes that come and go together.
    pub fn unit(self) -> u64 {
        if self == Self::Hugetlb { 2 << 20 } else { 4096 }
    }
}
