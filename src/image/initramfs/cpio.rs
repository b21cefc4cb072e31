// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The newc archive format (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";

/// Writes an archive member by member.
pub struct Archive<W> {
    out: W,
    bytes: u64,
    inode: u32,
    dirs: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, bytes: 0, inode: 0, dirs: BTreeSet::new() }
    }

    /// A directory with mode 0755, and its parents. Once is enough, more does no harm.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        let ends = name.match_indices('/').map(|(at, _)| at).chain([name.len()]);
        for end in ends.filter(|end| *end > 0) {
            if self.dirs.insert(name[..end].to_owned()) {
                self.member(&name[..end], DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// A file, and its parents.
    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.member(name, REGULAR | (mode & 0o7777), (0, 0), data)
    }

    /// A character device (major, minor).
    pub fn character_device(&mut self, name: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.member(name, CHARACTER | (mode & 0o7777), number, &[])
    }

    /// Ends the archive; returns its size in bytes.
    pub fn finish(mut self) -> io::Result<u64> {
        self.inode = 0;
        self.member(TRAILER, 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.bytes)
    }

    fn member(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len()).map_err(|_| io::Error::other(format!("{name} has more than 4 GiB")))?;
        self.inode += 1;
        let name_len = name.len() as u32 + 1;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_len, 0];
        let header: String = fields.iter().fold("070701".to_owned(), |text, field| text + &format!("{field:08x}"));
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(b"\0")?;
        self.pad()?;
        self.put(data)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let pad = (4 - self.bytes % 4) % 4;
        self.put(&[0; 3][..pad as usize])
    }
}
