// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks with a file system just made, kept: mkfs is the dearest step that rows have in common. The first row of a run that asks for a file
//! system makes it, in the guest under test with the kernel's own tools; the others begin with a copy.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rnic_agent::proto::FsType;

use super::DISK_SIZE;

/// What mkfs was told: the file system's name, further options.
type Told = (&'static str, Vec<String>);

/// Those of one kernel, whose guests share them.
#[derive(Clone, Default)]
pub struct MadeDisks(Arc<Mutex<BTreeMap<Told, Arc<File>>>>);

impl MadeDisks {
    /// The disk that mkfs leaves when told so.
    pub fn get(&self, fs: FsType, opts: &[String]) -> Option<Arc<File>> {
        self.0.lock().get(&(fs.name(), opts.to_vec())).cloned()
    }

    /// Keeps the image, whose name goes: nothing stays behind if we are killed.
    ///
    /// # Errors
    /// The image cannot be opened or its name not be removed.
    pub fn keep(&self, fs: FsType, opts: &[String], image: &Path) -> io::Result<()> {
        let file = File::open(image)?;
        std::fs::remove_file(image)?;
        self.0.lock().insert((fs.name(), opts.to_vec()), Arc::new(file));
        Ok(())
    }
}

/// Writes a copy of a kept disk over a new one.
///
/// # Errors
/// One of them cannot be read or written.
pub fn copy(made: &File, to: &Path) -> io::Result<()> {
    blk::copy_sparse(made, &File::options().write(true).open(to)?, DISK_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_copy_is_as_it_was_made_and_is_of_the_same_options_only() {
        let folder = tempfile::tempdir().unwrap();
        let (image, to) = (folder.path().join("image"), folder.path().join("to"));
        std::fs::write(&image, b"superblock").unwrap();
        let disks = MadeDisks::default();
        let opts = ["-b".to_owned(), "4096".to_owned()];
        disks.keep(FsType::Ext4, &opts, &image).unwrap();
        assert!(!image.exists());
        assert!(disks.get(FsType::Ext4, &[]).is_none() && disks.get(FsType::Xfs, &opts).is_none());
        let made = disks.clone().get(FsType::Ext4, &opts).unwrap();
        File::create_new(&to).unwrap().set_len(DISK_SIZE).unwrap();
        copy(&made, &to).unwrap();
        let (copied, mut bytes) = (File::open(&to).unwrap(), [0; 10]);
        copied.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, copied.metadata().unwrap().len()), (b"superblock", DISK_SIZE));
        // What a row does to its own is none of the next one's.
        File::options().write(true).open(&to).unwrap().write_all_at(b"x", 0).unwrap();
        copy(&made, &to).unwrap();
        copied.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"superblock");
    }
}
