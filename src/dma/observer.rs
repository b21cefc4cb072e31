// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who is told of payload, by the door itself: a caller that forgets its own record is found out.

use crate::Span;

/// Is told what a target writes into guest memory of what it carries for others: copies, results of atomics, data of a disk. Rings, queue
/// entries and doorbell records, which a device writes for itself, are not told. Called once a span, on the thread that wrote and without any
/// lock of the door: it must cost next to nothing while it wants nothing.
pub trait Observer: Send + Sync {
    /// `span` has been written; all of it or, if the access failed in it, perhaps a part.
    fn wrote(&self, span: Span);
}

/// Which way the bytes of a vectored system call go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into guest memory.
    ToGuest,
    /// Out of it.
    FromGuest,
}
