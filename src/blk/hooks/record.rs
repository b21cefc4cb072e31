// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger knows of one block request.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use probe::ledger::{PageHash, Seq};
use probe::{Event, ReleaseWhy};

/// Kind of a block request (virtio 1.2 §5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlkOp {
    /// VIRTIO_BLK_T_IN: disk to guest memory.
    Read,
    /// VIRTIO_BLK_T_OUT: guest memory to disk.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// A type that the device does not know.
    Other,
}

impl BlkOp {
    /// Every kind, in the order of [`BlkOp::index`].
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::WriteZeroes, Self::GetId, Self::Other];

    /// Position in [`BlkOp::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether a success changes the disk's content.
    pub fn changes_disk(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::WriteZeroes)
    }
}

/// Where a lever can hold a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldPoint {
    /// Before any data moves. A write's guest pages have not been read. A read's guest pages have not been written,
    /// and the disk has not been read either: that happens on release.
    BeforeData,
    /// After the data moved (and reached the disk file, for writes), before the guest is told.
    BeforeComplete,
}

/// One hold of a request, as the device reports it. Whether the request really stood still shows in the record's
/// other stamps: see [`RequestRecord::kept`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// Where.
    pub point: HoldPoint,
    /// The lever's id.
    pub lever: u64,
    /// When it began.
    pub from: Seq,
    /// When it ended; `None` while it lasts.
    pub to: Option<Seq>,
    /// Why it ended.
    pub why: Option<ReleaseWhy>,
}

/// The part of a request that lies in one guest page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PageTouch {
    /// Base address of the page.
    pub gpa: u64,
    /// First byte touched, in the page.
    pub offset: u16,
    /// Bytes touched, 1 to 4,096.
    pub len: u16,
    /// Sector (512 bytes) of the disk where the first byte lives.
    pub lba: u64,
    /// Byte in that sector, when the guest's buffers split sectors.
    pub lba_offset: u16,
    /// Guest memory when the request arrived. Hashes exist for watched pages only.
    pub at_arrival: Option<PageHash>,
    /// The bytes that moved. For a write: what the disk file holds right after, which is what the device read (but for what an
    /// injection kept from moving: [`RequestRecord::medium`]).
    pub at_data: Option<PageHash>,
    /// Guest memory just before the guest was told.
    pub at_completion: Option<PageHash>,
}

/// What a device knows when a request arrives.
#[derive(Debug, Clone)]
pub struct RequestStart {
    /// Index of the disk.
    pub disk: u8,
    /// Kind.
    pub op: BlkOp,
    /// Sectors (512 bytes) covered; discards may have several ranges. Empty for flushes.
    pub ranges: Vec<Range<u64>>,
    /// First sector, as the guest gave it.
    pub lba: u64,
    /// Bytes of guest memory, or of disk for discards.
    pub len: u64,
    /// Guest pages, in the order of the data.
    pub pages: Vec<PageTouch>,
    /// Whether `pages` is all of them (requests of more than 4 MiB are recorded without).
    pub pages_known: bool,
}

/// One block request. Stamps stay `None` for steps that did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// From 1, per ledger.
    pub id: u64,
    /// Index of the disk.
    pub disk: u8,
    /// Kind.
    pub op: BlkOp,
    /// First sector (512 bytes).
    pub lba: u64,
    /// Bytes.
    pub len: u64,
    /// All sectors covered (one range, but for discards and write-zeroes of several).
    pub ranges: Vec<Range<u64>>,
    /// Guest pages, in the order of the data.
    pub pages: Vec<PageTouch>,
    /// False when the request was too large to keep its pages.
    pub pages_known: bool,
    /// The device saw it.
    pub arrived: Seq,
    /// Taken just before the data moved: the copy lies between this and `data`.
    pub data_begin: Option<Seq>,
    /// The data moved. Write: guest bytes were read; read: bytes were written to the guest. With status IOERR: perhaps
    /// only some of them.
    pub data: Option<Seq>,
    /// A write reached the disk file; a discard or a flush is done. `None` for a flush that flushed nothing.
    pub stored: Option<Seq>,
    /// The sectors of the medium that the data really went to or came from, where these are not `ranges`: a device that misbehaves. If they
    /// are fewer, the first bytes of the data did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub medium: Option<Range<u64>>,
    /// Taken just before the guest could see the completion.
    pub completed: Option<Seq>,
    /// Cancelled by a reset or a device failure: will never complete.
    pub aborted: Option<Seq>,
    /// The status byte given to the guest (virtio 1.2 §5.2.6: 0 OK, 1 IOERR, 2 UNSUPP).
    pub status: Option<u8>,
    /// Holds, oldest first.
    pub holds: Vec<Hold>,
}

impl Event for RequestRecord {
    fn ended(&self) -> Option<Seq> {
        self.completed.or(self.aborted)
    }

    fn weight(&self) -> usize {
        self.pages.len()
    }

    fn is_whole(&self) -> bool {
        self.pages_known
    }
}

impl RequestRecord {
    pub(super) fn new(id: u64, start: RequestStart, arrived: Seq) -> Self {
        Self {
            id,
            disk: start.disk,
            op: start.op,
            lba: start.lba,
            len: start.len,
            ranges: start.ranges,
            pages: start.pages,
            pages_known: start.pages_known,
            arrived,
            data_begin: None,
            data: None,
            stored: None,
            medium: None,
            completed: None,
            aborted: None,
            status: None,
            holds: Vec::new(),
        }
    }

    /// Whether `hold` really held: all that it claims to have held back either never happened, or carries a stamp from
    /// after its end. A lever that lies is caught here.
    pub fn kept(&self, hold: &Hold) -> bool {
        let after = |stamp: Option<Seq>| stamp.is_none_or(|at| hold.to.is_some_and(|to| at > to));
        let data = || [self.data_begin, self.data, self.stored].into_iter().all(after);
        (hold.point == HoldPoint::BeforeComplete || data()) && after(self.completed)
    }

    /// Ends the newest open hold of `lever`.
    pub fn end_hold(&mut self, lever: u64, to: Seq, why: ReleaseWhy) {
        if let Some(hold) = self.holds.iter_mut().rev().find(|h| h.lever == lever && h.to.is_none()) {
            hold.to = Some(to);
            hold.why = Some(why);
        }
    }
}
