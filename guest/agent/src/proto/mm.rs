// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What memory management does to memory under test: forks that share it, user-space page faults, parts that go.

use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// One step. Each variant names the [`Value`](super::Value) it returns; `Unit` where none is named. Offsets are in the mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MmOp {
    /// fork(2): a child that has this process's memory, copied on write, and does nothing but what the two steps below ask it for. Returns `Handle`;
    /// closing it ends the child.
    Fork {
        /// The mapping that it is asked about.
        m: u32,
    },
    /// The child's CPU loads of a page. Returns `Content`.
    ForkLoad {
        /// Child.
        c: u32,
        /// Offset, a multiple of 4096.
        #[serde(rename = "o")]
        off: u64,
    },
    /// The child's CPU stores of a page.
    ForkStore {
        /// Child.
        c: u32,
        /// Offset, a multiple of 4096.
        #[serde(rename = "o")]
        off: u64,
        /// What.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
    /// munmap(2) of a part of a mapping; its addresses stay reserved.
    UnmapPart {
        /// Mapping.
        m: u32,
        /// Offset, a multiple of 4096.
        #[serde(rename = "o")]
        off: u64,
        /// Length, a multiple of 4096.
        #[serde(rename = "l")]
        len: u64,
    },
    /// userfaultfd(2) of a page of anonymous memory. Returns `Handle`.
    Uffd {
        /// Mapping.
        m: u32,
        /// Offset, a multiple of 4096.
        #[serde(rename = "o")]
        off: u64,
        /// Write-protects the page, which is there; else its absence is told.
        #[serde(rename = "w", default, skip_serializing_if = "std::ops::Not::not")]
        protect: bool,
    },
    /// Waits for a page fault of a [`MmOp::Uffd`]. Returns `Num`: 1 when one came, 0 when none did in time.
    UffdWait {
        /// From [`MmOp::Uffd`].
        u: u32,
        /// Milliseconds.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Answers a page fault: with a page of `pattern` where it was absent, else by taking the protection away.
    UffdAnswer {
        /// From [`MmOp::Uffd`].
        u: u32,
        /// What the page is to have.
        #[serde(rename = "p")]
        pattern: Pattern,
    },
}
