// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The durability writer: what was acknowledged must outlive whatever the host does to the VMM.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rnic_agent::acked::{AckedError, BLOCK, Plan, check_acked};
use rnic_agent::proto::{Event, Message, Value};

use super::{Failure, Outcome, failed, failure};
use crate::serve::Context;

fn refused(error: AckedError) -> Failure {
    let errno = match &error {
        AckedError::Plan { .. } => libc::EINVAL,
        AckedError::Io { source, .. } => source.raw_os_error().unwrap_or(0),
    };
    failure(errno, error)
}

/// Writes group after group, and reports each once fdatasync has returned.
pub fn write(context: &Context, path: &str, plan: &Plan, max_s: u32, max_groups: u64) -> Outcome {
    plan.check().map_err(refused)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create(!path.starts_with("/dev/"))
        .truncate(false)
        .open(path)
        .map_err(failed(path))?;
    let limit = Duration::from_secs(max_s.into());
    let (start, most) = (Instant::now(), if max_groups == 0 { u64::MAX } else { max_groups });
    let mut acked = 0;
    while acked < most && start.elapsed() < limit {
        for seq in acked * plan.group..(acked + 1) * plan.group {
            let at = plan.slot(seq) * BLOCK as u64;
            file.write_all_at(&plan.block(seq), at).map_err(failed(format!("{path}: block {seq}")))?;
        }
        file.sync_data().map_err(failed(format!("{path}: fdatasync")))?;
        acked += 1;
        context.port.send(&Message::Event(Event::Acked { n: acked }));
        // The next group may overwrite blocks of an old one, so the host must have heard of this one first.
        context.port.drain();
    }
    Ok(Value::Num(acked))
}

/// Checks what is there. Where a file ends early, there are zeroes.
pub fn check(path: &str, plan: &Plan, n: u64) -> Outcome {
    let file = File::open(path).map_err(failed(path))?;
    let read = |at: u64, block: &mut [u8]| match file.read_exact_at(block, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            block.fill(0);
            Ok(())
        }
        other => other,
    };
    check_acked(plan, n, read).map(Value::Acked).map_err(refused)
}
