// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one door to guest memory, and the ledger of who went through it.

pub mod ledger;
mod target;

pub use target::{BusMaster, DmaError, DmaTarget, GuestRam};
