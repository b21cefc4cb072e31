// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one door to guest memory (rule 1): nothing of a device touches RAM but through here.
//!
//! * `ram`: what a memory is to the door.
//! * `target`: a device's licence, with its bus-master switch.
//! * `permit`: the accesses themselves, for one batch.
//! * `copy`: from guest memory to guest memory, in the order that programs rely on.
//! * `observer`: who is told of what is written for others.
//! * `own`: memory of a device's own behind the same door.
//! * `quiesce`: how a device waits until no access through a dead translation is in flight (rule 3).
//! * `backoff`: how a thread waits for another that will be done in a moment.
//! * `rings`: the door as the virtio-queue crate wants it.

mod backoff;
mod copy;
mod observer;
mod own;
mod permit;
mod quiesce;
mod ram;
mod rings;
mod target;
#[cfg(test)]
mod tests;

pub use backoff::Backoff;
pub use copy::{CopyError, CopyFault, Source, Span, copy};
pub use observer::{Direction, Observer};
pub use own::{OwnMemory, Reach};
pub use permit::Permit;
pub use quiesce::{MAX_DEVICES, MAX_ENGINES, Quiesce, Section};
pub use ram::{GuestRam, Ram};
pub use target::{BusMaster, DmaError, DmaTarget};
