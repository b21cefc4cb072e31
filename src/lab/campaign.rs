// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows by the thousand (docs/campaigns.md).
//!
//! * [`Seeds`]: each row once for each of them. [`Shard`]: a part of a run, for one of several machines. [`merge()`] makes one report of
//!   what the parts wrote. [`replay()`] finds in a report the rows that are to run again.
//! * [`Setting`]: what all rows of a run run under, which its journal and its report carry.

mod merge;
mod replay;
mod score;
mod seeds;
mod setting;
mod shards;
mod whole;

pub use merge::{Merged, merge};
pub use replay::{Again, replay};
pub use seeds::Seeds;
pub use setting::{PlanText, Setting};
pub use shards::{Part, Shard};
pub use whole::{MOST_ROWS, Numbered, over_seeds, print_of};
