// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Persistent memory: a range of guest addresses that is no RAM, and whose bytes are a file's. The machine maps the file and says where
//! (`vmm`); the guest makes /dev/pmem0 of it, and a file system there with `dax=always` has no page cache: a mapping of a file, and a device that
//! writes to it, reach the medium itself.
//!
//! * `medium`: the file, opened, locked and of a size that a guest can use.
//! * `handle`: what the lab does with it: which page of the medium a guest address is, a power cut, a fresh start.
//! * `lock`: the lock on the file.

mod handle;
mod lock;
mod medium;
#[cfg(test)]
mod tests;

pub use handle::{PAGE, PmemHandle};
pub use medium::{MAX_SIZE, Medium, PmemConfig, PmemError, UNIT};
