// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab does with persistent memory while a guest uses it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::fallocate::{FallocateMode, fallocate};
use vmm_sys_util::seek_hole::SeekHole;

use super::medium::PmemError;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes that are copied at once.
const CHUNK: usize = 256 << 10;

/// A medium that a machine has.
#[derive(Debug)]
pub struct PmemHandle {
    file: File,
    size: u64,
    place: Arc<OnceLock<u64>>,
}

impl PmemHandle {
    pub(super) fn new(file: File, size: u64, place: Arc<OnceLock<u64>>) -> Self {
        Self { file, size, place }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The page of the medium that guest address `gpa` lies in: as a file system on it counts its blocks, if those are pages. `None`: it lies
    /// in no page of this medium.
    pub fn page_of(&self, gpa: u64) -> Option<u64> {
        let at = gpa.checked_sub(*self.place.get()?)?;
        (at < self.size).then_some(at / PAGE)
    }

    /// The guest address of a page of the medium.
    pub fn gpa_of(&self, page: u64) -> Option<u64> {
        let at = page.checked_mul(PAGE).filter(|at| *at < self.size)?;
        self.place.get()?.checked_add(at)
    }

    /// Writes to `to`, which must not be there, what the medium holds now. That is the *kind* image: a store that is still in a
    /// processor's cache would be lost in a real power cut, and a flush of such a cache is an instruction that no machine monitor sees. So nothing
    /// here can say which bytes a flush has covered, and no cruel image can be made. Whoever needs the medium of one instant stops the guest meanwhile.
    ///
    /// # Errors
    /// The image could not be written.
    pub fn image(&self, to: &Path) -> Result<(), PmemError> {
        let copy = || {
            // A file of another machine's (9p) does not show by read(2) what is written through a mapping, until it is synced.
            self.file.sync_data()?;
            let image = OpenOptions::new().write(true).create_new(true).open(to)?;
            image.set_len(self.size)?;
            copy_sparse(&mut self.file.try_clone()?, &image, self.size)
        };
        copy().map_err(|source| PmemError::Image { path: to.into(), source })
    }

    /// Zeroes all of it: a new medium, for a guest that does not use it at this moment.
    ///
    /// # Errors
    /// The file system of its file cannot.
    pub fn clear(&self) -> Result<(), PmemError> {
        fallocate(&self.file, FallocateMode::PunchHole, true, 0, self.size)
            .map_err(|error| PmemError::Clear(io::Error::from_raw_os_error(error.errno())))
    }
}

/// Copies the data of `size` bytes and leaves the holes. The position of `from` is used by nobody else.
fn copy_sparse(from: &mut File, to: &File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some(start) = from.seek_data(at)?.filter(|start| *start < size) {
        let end = from.seek_hole(start)?.unwrap_or(size).min(size);
        at = start;
        while at < end {
            let part = &mut buffer[..(end - at).min(CHUNK as u64) as usize];
            from.read_exact_at(part, at)?;
            if part.iter().any(|byte| *byte != 0) {
                to.write_all_at(part, at)?;
            }
            at += part.len() as u64;
        }
    }
    Ok(())
}
