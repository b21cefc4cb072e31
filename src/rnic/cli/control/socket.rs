// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Unix socket at a path of a person's choice: for this user alone from its first moment on, and nobody else's is taken away.

use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Bytes of a socket's path (unix(7): 108 with the zero behind it).
const MAX_PATH: usize = 107;
/// How long a program that listens gets to take a connection.
const TAKES: Duration = Duration::from_secs(2);

/// A socket that listens. It goes away with this value.
pub struct Listener {
    /// Whom connections come to.
    pub socket: UnixListener,
    path: PathBuf,
    /// Device and inode: what lies at the path later may be another's.
    identity: (u64, u64),
}

impl Listener {
    /// Makes a socket at `path`, which only this user may connect to. One that nobody listens at any more is replaced.
    ///
    /// # Errors
    /// Why not, as a sentence.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        check_length(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |error: io::Error| {
            format!("control socket {shown}: {error}: name a path in a folder that is there and can be written to")
        };
        let private = Private::within(folder).map_err(failed)?;
        let (socket, made) = private.listen().map_err(failed)?;
        // Somebody else may come and go in between.
        for _ in 0..3 {
            match fs::hard_link(&made, path) {
                Ok(()) => {
                    let identity = identity(&fs::symlink_metadata(&made).map_err(failed)?);
                    return Ok(Self { socket, path: path.into(), identity });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => private.take_stale(path)?,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(in_use(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|data| identity(&data) == self.identity) {
            // Nothing that could be done about it.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// A path that a socket can have.
pub fn check_length(path: &Path) -> Result<(), String> {
    let length = path.as_os_str().len();
    if length <= MAX_PATH {
        return Ok(());
    }
    Err(format!(
        "control socket {}: the path has {length} bytes and a socket's has at most {MAX_PATH}: choose a shorter one",
        path.display()
    ))
}

fn identity(data: &Metadata) -> (u64, u64) {
    (data.dev(), data.ino())
}

fn in_use(path: &Path) -> String {
    format!("control socket {} is in use by another program: choose another path", path.display())
}

/// Whether somebody listens at a path. Who does not take a connection within 2 s does listen.
fn is_alive(path: &Path) -> bool {
    let (sender, tried) = channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        // Whoever asked may have given it up.
        let _ = sender.send(UnixStream::connect(path).is_ok());
    });
    tried.recv_timeout(TAKES).unwrap_or(true)
}

/// A folder that only this user sees into, beside the place where a socket is to be.
struct Private {
    path: PathBuf,
}

impl Private {
    fn within(folder: &Path) -> io::Result<Self> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = LAST.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".rnic-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                // Of a process that was killed and had our number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 64 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A socket in it, with its path. Nobody can have connected to it yet.
    fn listen(&self) -> io::Result<(UnixListener, PathBuf)> {
        // By the folder's descriptor, whose path is short.
        let folder = File::open(&self.path)?;
        let socket = UnixListener::bind(format!("/proc/self/fd/{}/s", folder.as_raw_fd()))?;
        let path = self.path.join("s");
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok((socket, path))
    }

    /// Takes away what is at `path` if it is a socket that nobody listens at.
    fn take_stale(&self, path: &Path) -> Result<(), String> {
        let Ok(data) = fs::symlink_metadata(path) else { return Ok(()) };
        if !data.file_type().is_socket() {
            return Err(format!(
                "control socket {}: a file is there that is no socket: choose another path",
                path.display()
            ));
        }
        if is_alive(path) {
            return Err(in_use(path));
        }
        // Looked at again where nobody else can get at it.
        let old = self.path.join("old");
        if fs::rename(path, &old).is_err() {
            return Ok(());
        }
        if is_alive(&old) {
            drop(fs::hard_link(&old, path));
            return Err(in_use(path));
        }
        Ok(())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        (dir, path)
    }

    fn names(dir: &Path) -> Vec<std::ffi::OsString> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    fn refused(path: &Path, word: &str) {
        let said = Listener::bind(path).err().unwrap();
        assert!(said.contains(word) && said.contains(path.to_str().unwrap()) && !said.contains('\n'), "{said}");
    }

    #[test]
    fn a_socket_is_ours_alone_and_goes_away() {
        let (dir, path) = folder();
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["s"], "nothing else is left");
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn one_in_use_is_refused_and_a_stale_one_replaced() {
        let (dir, path) = folder();
        let first = Listener::bind(&path).unwrap();
        refused(&path, "in use by another program");
        UnixStream::connect(&path).unwrap();
        drop(first);
        // As after a SIGKILL.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists() && UnixStream::connect(&path).is_err());
        let second = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(names(dir.path()), ["s"]);
        // What has been put there meanwhile stays.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(second);
        assert!(path.exists());
        refused(&path, "no socket");
        assert_eq!(fs::read(&path).unwrap(), b"another's");
        assert_eq!(names(dir.path()), ["s"]);
    }

    #[test]
    fn places_that_cannot_be_are_said() {
        let (dir, _) = folder();
        refused(&dir.path().join("none/s"), "No such file");
        refused(&dir.path().join("x".repeat(120)), "at most 107");
        fs::write(dir.path().join("file"), "").unwrap();
        refused(&dir.path().join("file/s"), "Not a directory");
        // The longest that there can be works.
        let length = 107 - dir.path().as_os_str().len() - 1;
        let longest = dir.path().join("y".repeat(length));
        let listener = Listener::bind(&longest).unwrap();
        UnixStream::connect(&longest).unwrap();
        drop(listener);
    }
}
