// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one door to guest memory.

mod target;

pub use target::{BusMaster, DmaError, DmaTarget, GuestRam};
