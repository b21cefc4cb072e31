// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images of the disk as a power cut would leave it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::disk::{BlockError, Disk};
use super::file_io::{self, CHUNK};
use super::undo::PowerCut;
use probe::ledger::{SECTOR_SIZE, Seq};

/// A disk after a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrozenImage {
    /// The image.
    pub path: PathBuf,
    /// The moment of the cut in the ledger's order (0: the disk has not met a ledger yet).
    pub at: Seq,
    /// False when the log of unflushed writes had overflowed: the image may then hold more than a cruel cut would leave.
    pub exact: bool,
    /// Requests whose data was taken back.
    pub undone: usize,
}

/// Writes the image to `to`, by way of a temporary name in the same directory. The caller holds the disk's lock, so that
/// no request moves meanwhile.
pub(super) fn freeze(disk: &Disk, cut: PowerCut, to: &Path, at: Seq) -> Result<FrozenImage, BlockError> {
    let log = disk.log.as_ref().ok_or_else(|| BlockError::NotTracked(disk.path.clone()))?;
    if is_same_file(&disk.file, to) {
        return Err(BlockError::OntoItself(disk.path.clone()));
    }
    let image_error = |source| BlockError::Image { path: to.into(), source };
    let partial = Partial::create(to).map_err(image_error)?;
    let undone = copy_sparse(&disk.file, &partial.file, disk.capacity * SECTOR_SIZE)
        .and_then(|()| log.undo_on(&partial.file, cut))
        .and_then(|undone| partial.publish(to).map(|()| undone))
        .map_err(image_error)?;
    Ok(FrozenImage { path: to.into(), at, exact: log.exact(), undone })
}

fn is_same_file(disk: &File, to: &Path) -> bool {
    match (disk.metadata(), std::fs::metadata(to)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// A file under a temporary name, gone unless published.
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    fn create(to: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = to.with_file_name(format!(".{name}.{}-{number}.partial", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path)?;
        Ok(Self { file, path })
    }

    fn publish(&self, to: &Path) -> io::Result<()> {
        std::fs::rename(&self.path, to)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a publish the name is gone, and so is nothing else.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Copies the data of the first `size` bytes (which `to` then has) and leaves the holes. What `to` had stays where `from` has none.
///
/// # Errors
/// One of the files cannot be read or written.
pub fn copy_sparse(from: &File, to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = file_io::next_data(from, at..size)? {
        at = data.start;
        while at < data.end {
            let part = &mut buffer[..(data.end - at).min(CHUNK as u64) as usize];
            from.read_exact_at(part, at)?;
            if part.iter().any(|byte| *byte != 0) {
                to.write_all_at(part, at)?;
            }
            at += part.len() as u64;
        }
    }
    Ok(())
}
