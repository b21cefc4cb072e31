// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The disk behind the device: a raw file or a block device, locked, with the log that power cuts are made from.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::file_io::{self, Segment, Zero};
use super::undo::UndoLog;
use crate::hooks::BlkOp;
use dma::Permit;
use probe::ledger::SECTOR_SIZE;

/// A disk could not be opened, swapped or frozen.
#[derive(Debug, Error)]
pub enum BlockError {
    /// No such file.
    #[error("disk {0} does not exist; give the path of a raw image or a block device")]
    Missing(PathBuf),
    /// It exists but cannot be opened.
    #[error("disk {path} cannot be opened ({source}); check its permissions, or attach it read-only")]
    Open {
        /// The disk.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory, a pipe, a character device.
    #[error("disk {0} is neither a file nor a block device; give a raw image")]
    NotADisk(PathBuf),
    /// Zero bytes long.
    #[error("disk {0} is empty; give it a size first, with truncate -s 1G")]
    Empty(PathBuf),
    /// Not whole sectors.
    #[error("disk {path} is {size} bytes long, which is not a multiple of 512; pad it with truncate -s %512")]
    NotSectors {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Locked by somebody else.
    #[error("disk {0} is in use by another process; close it or use a copy")]
    InUse(PathBuf),
    /// The number of queues.
    #[error("a disk has 1 to 8 queues, not {0}")]
    Queues(u16),
    /// The queue size.
    #[error("the queue size of a disk is a power of two from 4 to 1024, not {0}")]
    QueueSize(u16),
    /// The serial number.
    #[error("disk serial {0:?} is longer than 20 bytes; shorten it")]
    Serial(String),
    /// Swap or freeze found requests under way.
    #[error("disk {path} has {requests} requests in flight or held; release its levers and let the guest settle first")]
    Busy {
        /// The disk.
        path: PathBuf,
        /// How many.
        requests: usize,
    },
    /// Freeze needs the log of unflushed writes.
    #[error("disk {0} keeps no log of unflushed writes; attach it with track to cut its power")]
    NotTracked(PathBuf),
    /// Freeze onto the disk itself.
    #[error("the image of a power cut cannot replace the disk {0} itself; give another path")]
    OntoItself(PathBuf),
    /// The image could not be written.
    #[error("the image {path} could not be written ({source}); check the space and permissions of its directory")]
    Image {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An eventfd could not be made.
    #[error("the disk's worker cannot be woken: {0}")]
    Wake(#[source] io::Error),
}

/// One open disk.
pub(super) struct Disk {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Sectors of 512 bytes.
    pub(super) capacity: u64,
    /// Log of writes that a power cut may lose, when tracked.
    pub(super) log: Option<UndoLog>,
    /// Requests taken from a ring and not completed.
    pub(super) in_flight: usize,
}

impl Disk {
    /// Opens and locks `path`: exclusively, or shared for read-only disks.
    pub(super) fn open(path: &Path, readonly: bool, track: bool) -> Result<Self, BlockError> {
        let open_error = |source: io::Error| match source.kind() {
            ErrorKind::NotFound => BlockError::Missing(path.into()),
            ErrorKind::ResourceBusy => BlockError::InUse(path.into()),
            _ => BlockError::Open { path: path.into(), source },
        };
        let kind = std::fs::metadata(path).map_err(open_error)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NotADisk(path.into()));
        }
        // O_EXCL on a block device refuses one that is mounted or otherwise claimed.
        let flags = if kind.is_block_device() && !readonly { libc::O_EXCL } else { 0 };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!readonly)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(path)
            .map_err(open_error)?;
        if !file_io::try_lock(&file, !readonly).map_err(open_error)? {
            return Err(BlockError::InUse(path.into()));
        }
        // The end is the size of files and block devices alike.
        let size = file.seek(SeekFrom::End(0)).map_err(open_error)?;
        if size == 0 {
            return Err(BlockError::Empty(path.into()));
        }
        if size % SECTOR_SIZE != 0 {
            return Err(BlockError::NotSectors { path: path.into(), size });
        }
        let log = track.then(UndoLog::default);
        Ok(Self { file, path: path.into(), capacity: size / SECTOR_SIZE, log, in_flight: 0 })
    }

    /// A request arrives; for a flush the time to give to [`UndoLog::flushed`].
    pub(super) fn arrives(&mut self, op: BlkOp) -> u64 {
        self.in_flight += 1;
        match (&mut self.log, op) {
            (Some(log), BlkOp::Flush) => log.flush_arrives(),
            _ => 0,
        }
    }

    /// Disk to guest, from sector `lba`.
    pub(super) fn read(&self, door: Permit<'_>, segments: &[Segment], lba: u64) -> io::Result<()> {
        let range = self.range(segments, lba)?;
        file_io::read_to_guest(&self.file, door, segments, range.start)
    }

    /// Guest to disk, at sector `lba`. `token` names the request in the log.
    pub(super) fn write(&mut self, token: u64, door: Permit<'_>, segments: &[Segment], lba: u64) -> io::Result<()> {
        let range = self.range(segments, lba)?;
        self.remember(token, range.clone())?;
        file_io::write_from_guest(&self.file, door, segments, range.start)
    }

    /// Makes sectors read as zeroes.
    pub(super) fn zero(&mut self, token: u64, sectors: &Range<u64>, how: Zero) -> io::Result<()> {
        let range = self.inside(bytes(sectors.start)?..bytes(sectors.end)?)?;
        self.remember(token, range.clone())?;
        file_io::zero(&self.file, range, how)
    }

    /// Everything written so far is on stable storage when this returns.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Bytes that a transfer covers.
    fn range(&self, segments: &[Segment], lba: u64) -> io::Result<Range<u64>> {
        let start = bytes(lba)?;
        let len = segments.iter().try_fold(0_u64, |sum, (_, len)| sum.checked_add(*len));
        let end = len.and_then(|len| start.checked_add(len)).ok_or(ErrorKind::InvalidInput)?;
        self.inside(start..end)
    }

    /// Requests are checked when they arrive; this catches one that arrived before a swap to a smaller disk.
    fn inside(&self, range: Range<u64>) -> io::Result<Range<u64>> {
        if range.end <= bytes(self.capacity)? { Ok(range) } else { Err(ErrorKind::InvalidInput.into()) }
    }

    fn remember(&mut self, token: u64, range: Range<u64>) -> io::Result<()> {
        match &mut self.log {
            Some(log) => log.before(&self.file, token, range),
            None => Ok(()),
        }
    }
}

fn bytes(lba: u64) -> io::Result<u64> {
    lba.checked_mul(SECTOR_SIZE).ok_or_else(|| ErrorKind::InvalidInput.into())
}
