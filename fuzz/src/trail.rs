// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The programs since the machine was new, in a file that is complete before each of them begins.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Its name.
pub const FILE: &str = "trail";

/// A trail that is written.
pub struct Trail {
    file: File,
}

impl Trail {
    /// An empty one.
    pub fn create(place: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(place.join(FILE))? })
    }

    /// Appends a program.
    pub fn push(&mut self, program: &[u8]) -> io::Result<()> {
        let mut record = (program.len() as u32).to_le_bytes().to_vec();
        record.extend(program);
        self.file.write_all(&record)
    }

    /// What came before does not matter any more.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()
    }
}

/// The programs of a trail.
pub fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    let mut programs = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let len = (u32::from_le_bytes(*len) as usize).min(behind.len());
        programs.push(behind[..len].to_vec());
        rest = &behind[len..];
    }
    Ok(programs)
}
