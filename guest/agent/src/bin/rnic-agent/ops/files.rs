// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps on open files.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use rnic_agent::pattern::{Identifier, Pattern, SECTOR, fill};
use rnic_agent::proto::{Op, OpenFlags, Stat, Value};

use super::{Outcome, failed, failure, memory, unit};
use crate::serve::Context;
use crate::serve::objects::Object;
use crate::sys::file as sys;

/// Most bytes of one read or write step.
const MAX_TRANSFER: u64 = 1 << 30;
/// Bytes of one system call: large enough that one step of 1 MiB is one call, which decides the folio size.
const CHUNK: u64 = 4 << 20;

/// Runs a step on files, or passes it on.
pub fn run(context: &Context, op: Op) -> Outcome {
    let file = |h: u32| context.objects.file(h);
    match op {
        Op::Open { path, flags } => open(context, &path, flags),
        Op::Write { h, off, len, pattern } => write(&*file(h)?, off, len, &pattern),
        Op::Read { h, off, len } => read(&*file(h)?, off, len),
        Op::Fsync { h } => unit("fsync", file(h)?.sync_all()),
        Op::Fdatasync { h } => unit("fdatasync", file(h)?.sync_data()),
        Op::SyncFileRange { h, off, len, wait_before, write, wait_after } => {
            let flags = [
                (wait_before, libc::SYNC_FILE_RANGE_WAIT_BEFORE),
                (write, libc::SYNC_FILE_RANGE_WRITE),
                (wait_after, libc::SYNC_FILE_RANGE_WAIT_AFTER),
            ];
            let flags = flags.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag);
            unit("sync_file_range", sys::sync_file_range(&*file(h)?, off, len, flags))
        }
        Op::SyncFs { h } => unit("syncfs", sys::syncfs(&*file(h)?)),
        Op::Fallocate { h, mode, off, len } => unit("fallocate", sys::fallocate(&*file(h)?, mode, off, len)),
        Op::Ftruncate { h, len } => unit("ftruncate", file(h)?.set_len(len)),
        Op::Ficlone { src, dst } => unit("FICLONE", sys::ficlone(&*file(src)?, &*file(dst)?)),
        Op::Fiemap { h, sync } => sys::fiemap(&*file(h)?, sync).map(Value::Extents).map_err(failed("FIEMAP")),
        Op::Stat { h } => stat(&*file(h)?),
        Op::Fadvise { h, off, len, advice } => unit("posix_fadvise", sys::fadvise(&*file(h)?, off, len, advice)),
        op => memory::run(context, op),
    }
}

fn open(context: &Context, path: &str, flags: OpenFlags) -> Outcome {
    let custom = [(flags.direct, libc::O_DIRECT), (flags.sync, libc::O_SYNC)];
    let file = File::options()
        .read(true)
        .write(flags.write)
        .create(flags.create)
        .truncate(flags.truncate)
        .mode(0o644)
        .custom_flags(custom.iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag))
        .open(path)
        .map_err(failed(format!("open {path}")))?;
    context.objects.add(Object::File(Arc::new(file))).map(Value::Handle)
}

fn stat(file: &File) -> Outcome {
    let meta = file.metadata().map_err(failed("fstat"))?;
    Ok(Value::Stat(Stat { size: meta.len(), ino: meta.ino(), blocks: meta.blocks() }))
}

/// A buffer aligned to a page, as O_DIRECT wants it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: u64) -> Self {
        let len = len as usize;
        let bytes = vec![0; len + 4096];
        let start = bytes.as_ptr().align_offset(4096).min(4096);
        Self { bytes, start, len }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

fn check_range(off: u64, len: u64, most: u64) -> Result<(), super::Failure> {
    if len > most || off.checked_add(len).is_none() {
        return Err(failure(libc::EINVAL, format!("{len} bytes at {off} are out of range")));
    }
    Ok(())
}

fn write(file: &File, off: u64, len: u64, pattern: &Pattern) -> Outcome {
    check_range(off, len, MAX_TRANSFER)?;
    let mut buffer = Aligned::new(len.min(CHUNK));
    let mut done = 0;
    while done < len {
        let n = (len - done).min(CHUNK) as usize;
        let bytes = &mut buffer.slice()[..n];
        fill(pattern, off + done, bytes);
        file.write_all_at(bytes, off + done).map_err(failed(format!("pwrite at {}", off + done)))?;
        done += n as u64;
    }
    Ok(Value::Num(done))
}

fn read(file: &File, off: u64, len: u64) -> Outcome {
    check_range(off, len, MAX_TRANSFER)?;
    if !off.is_multiple_of(SECTOR as u64) {
        return Err(failure(libc::EINVAL, format!("offset {off} is not a multiple of 512")));
    }
    let mut buffer = Aligned::new(len.min(CHUNK));
    let mut identifier = Identifier::default();
    let mut done = 0;
    while done < len {
        let want = (len - done).min(CHUNK) as usize;
        let bytes = &mut buffer.slice()[..want];
        let n = file.read_at(bytes, off + done).map_err(failed(format!("pread at {}", off + done)))?;
        identifier.push(&bytes[..n]);
        done += n as u64;
        if n == 0 || n % SECTOR != 0 {
            break;
        }
    }
    Ok(Value::Content(identifier.finish()))
}
