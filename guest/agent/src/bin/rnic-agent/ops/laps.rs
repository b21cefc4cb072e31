// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a store into a page of a file takes, lap by lap: by whether the page is dirty, clean, or being written.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rnic_agent::proto::{Failure, StoreAfter, Value};

use super::{Outcome, failed, failure};
use crate::serve::Context;
use crate::sys;
use crate::sys::mapping::PAGE;

/// Most laps of one step.
pub const MAX_LAPS: u32 = 1000;

/// Refuses what is none, or too much.
pub fn check_laps(count: u32) -> Result<(), Failure> {
    match (1..=MAX_LAPS).contains(&count) {
        true => Ok(()),
        false => Err(failure(libc::EINVAL, format!("{count} laps"))),
    }
}

/// [`Op::StoreLaps`](rnic_agent::proto::Op::StoreLaps).
pub fn stores(context: &Context, (h, m): (u32, u32), off: u64, after: StoreAfter, count: u32) -> Outcome {
    check_laps(count)?;
    let (file, mapping) = (context.objects.file(h)?, context.objects.mapping(m)?);
    // One read(2) from it into the mapping is the store: no SIGBUS, and nothing to set up in the time that counts.
    let byte = sys::file::memfd().map_err(failed("memfd"))?;
    byte.write_all_at(&[0], 0).map_err(failed("memfd"))?;
    let store = || mapping.read_from(off, &byte, 0, 1).map_err(failed("store"));
    let mut laps = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        if after == StoreAfter::Begun {
            // A write that is under way from the last lap would not begin again, and the page would stay writable.
            file.sync_all().map_err(failed("fsync"))?;
        }
        store()?;
        match after {
            StoreAfter::Store => {}
            StoreAfter::Fsync => file.sync_all().map_err(failed("fsync"))?,
            StoreAfter::Begun => sys::file::sync_file_range(&file, off, PAGE, libc::SYNC_FILE_RANGE_WRITE)
                .map_err(failed("sync_file_range"))?,
        }
        let ready = Instant::now();
        store()?;
        laps.push([nanos(ready - start), nanos(ready.elapsed())]);
    }
    Ok(Value::Laps(laps))
}

/// Nanoseconds of `time`.
pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
