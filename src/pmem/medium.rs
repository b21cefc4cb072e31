// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file behind a range of persistent memory.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use thiserror::Error;

use super::handle::PmemHandle;
use super::lock::try_lock;

/// A size is a multiple of this: Linux makes page structures for 2 MiB at a time, and maps as much at once.
pub const UNIT: u64 = 2 << 20;
/// Largest medium.
pub const MAX_SIZE: u64 = 64 << 30;

/// What a medium is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PmemConfig {
    /// The file; without one the bytes are a temporary file's, which goes away with the machine.
    pub path: Option<PathBuf>,
    /// Bytes. A file that is there has a size of its own; one that is not is made with this.
    pub size: Option<u64>,
}

/// A medium could not be opened.
#[derive(Debug, Error)]
pub enum PmemError {
    /// Neither path nor size.
    #[error("persistent memory needs size=SIZE or path=FILE; give for example size=256M")]
    Nothing,
    /// No such file, and no size to make it with.
    #[error("pmem file {0} does not exist; give size= as well and it is made")]
    Missing(PathBuf),
    /// It exists but cannot be opened or made.
    #[error(
        "pmem file {path} cannot be opened for reading and writing ({source}); check its permissions, or use a copy"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("pmem {0} is no regular file; give the path of a file, which is mapped")]
    NotAFile(PathBuf),
    /// Not a whole number of units.
    #[error("pmem {what} has {size} bytes, which is not a multiple of 2 MiB; make it {} bytes", .size.next_multiple_of(UNIT).max(UNIT))]
    Unit {
        /// Which.
        what: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Too large.
    #[error("pmem {what} has {} GiB; at most 64 GiB are possible", .size >> 30)]
    TooLarge {
        /// Which.
        what: String,
        /// Its size in bytes.
        size: u64,
    },
    /// The file has a size, and another was asked for.
    #[error("pmem file {path} has {} MiB, not {} MiB; leave size= out, or change the file with truncate -s", .size >> 20, .wanted >> 20)]
    OtherSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// Locked by somebody else, or by this machine.
    #[error(
        "pmem file {0} is in use, by another process or twice by this machine; give each its own file, or use a copy"
    )]
    InUse(PathBuf),
    /// There is no room for a temporary file.
    #[error("no temporary file of {} MiB for pmem in {dir} ({source}); give path=FILE, or set TMPDIR to a folder with room", .size >> 20)]
    Temporary {
        /// The folder.
        dir: PathBuf,
        /// Bytes.
        size: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// An image could not be written.
    #[error(
        "the image {path} of persistent memory could not be written ({source}); check the space and permissions of its folder"
    )]
    Image {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The medium could not be cleared.
    #[error("persistent memory cannot be cleared: {0}")]
    Clear(#[source] io::Error),
}

/// An open, locked file of a good size. A machine maps it, shared, and writes into `place` where.
#[derive(Debug)]
pub struct Medium {
    /// The file.
    pub file: File,
    /// Bytes of it, a multiple of [`UNIT`].
    pub size: u64,
    /// Whether it outlives the machine, and so has to be on stable storage when that ends.
    pub lasting: bool,
    /// First guest address, once a machine has it.
    pub place: Arc<OnceLock<u64>>,
}

impl Medium {
    /// Opens, or makes, the file.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn open(config: &PmemConfig) -> Result<Self, PmemError> {
        if let Some(size) = config.size {
            let name = config.path.as_ref().map(|path| format!("file {}", path.display()));
            check(size, name.as_deref().unwrap_or("of size="))?;
        }
        let (file, size) = match (&config.path, config.size) {
            (Some(path), size) => named(path, size)?,
            (None, Some(size)) => (temporary(size)?, size),
            (None, None) => return Err(PmemError::Nothing),
        };
        Ok(Self { file, size, lasting: config.path.is_some(), place: Arc::default() })
    }

    /// What the lab does with it while a machine has it.
    ///
    /// # Errors
    /// The file's descriptor cannot be copied.
    pub fn handle(&self) -> io::Result<PmemHandle> {
        Ok(PmemHandle::new(self.file.try_clone()?, self.size, self.place.clone()))
    }
}

fn check(size: u64, what: &str) -> Result<(), PmemError> {
    if size > MAX_SIZE {
        return Err(PmemError::TooLarge { what: what.into(), size });
    }
    if size == 0 || !size.is_multiple_of(UNIT) {
        return Err(PmemError::Unit { what: what.into(), size });
    }
    Ok(())
}

/// A file of the user's, made if there is a size to make it with.
fn named(path: &Path, wanted: Option<u64>) -> Result<(File, u64), PmemError> {
    let open_error = |source: io::Error| match source.kind() {
        ErrorKind::NotFound if wanted.is_none() => PmemError::Missing(path.into()),
        _ => PmemError::Open { path: path.into(), source },
    };
    // Looked at before it is opened: a pipe that is opened may wait for its other end.
    match std::fs::metadata(path) {
        Ok(data) if !data.is_file() => return Err(PmemError::NotAFile(path.into())),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound && wanted.is_some() => {}
        Err(error) => return Err(open_error(error)),
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(wanted.is_some()).truncate(false).custom_flags(libc::O_CLOEXEC);
    let file = options.open(path).map_err(open_error)?;
    if !try_lock(&file).map_err(open_error)? {
        return Err(PmemError::InUse(path.into()));
    }
    let size = file.metadata().map_err(open_error)?.len();
    match wanted {
        Some(wanted) if size == 0 => {
            file.set_len(wanted).map_err(open_error)?;
            return Ok((file, wanted));
        }
        Some(wanted) if wanted != size => return Err(PmemError::OtherSize { path: path.into(), size, wanted }),
        _ => {}
    }
    check(size, &format!("file {}", path.display()))?;
    Ok((file, size))
}

/// A file without a name.
fn temporary(size: u64) -> Result<File, PmemError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let dir = std::env::temp_dir();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
    let path = dir.join(format!("rnic-pmem-{}-{number}-{nanos}", std::process::id()));
    let made = || {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        file.set_len(size)?;
        Ok(file)
    };
    made().map_err(|source| PmemError::Temporary { dir: dir.clone(), size, source })
}
