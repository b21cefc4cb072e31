// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps: one line each here, one file for each family.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rnic_agent::proto::{Failure, Op, Value};

use crate::serve::Context;

mod durable;
mod exec;
mod files;
mod gup;
pub mod kmsg;
mod laps;
mod memory;
mod mm;
mod page;
pub mod process;
pub mod system;
#[cfg(feature = "verbs")]
pub mod verbs;
#[cfg(not(feature = "verbs"))]
#[path = "no_verbs.rs"]
mod verbs;

pub use exec::status_code;

/// Longest failure text, characters.
const MAX_WHAT: usize = 300;

/// Result of a step.
pub type Outcome = Result<Value, Failure>;

/// A failure with an errno and a text.
pub fn failure(errno: i32, what: impl Display) -> Failure {
    Failure { errno, what: what.to_string().chars().take(MAX_WHAT).collect() }
}

/// Makes a [`Failure`] of an I/O error: "what: reason".
pub fn failed(what: impl Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| failure(error.raw_os_error().unwrap_or(0), format!("{what}: {error}"))
}

/// The result of a step that returns nothing.
pub fn unit(what: impl Display, result: io::Result<()>) -> Outcome {
    result.map(|()| Value::Unit).map_err(failed(what))
}

/// Runs `op`.
pub fn run(context: &Arc<Context>, op: Op) -> Outcome {
    match op {
        Op::Ping => Ok(Value::Unit),
        Op::Reset => Ok(Value::Num(context.objects.clear())),
        Op::Close { h } => {
            context.objects.remove(h).map(|_| Value::Unit).ok_or_else(|| failure(libc::EBADF, format!("no handle {h}")))
        }
        Op::Wait { job, limit_ms } => {
            Ok(Value::Job(context.objects.job(job)?.wait(Duration::from_millis(limit_ms.into()))))
        }
        Op::Interrupt { job } => {
            let sent = context.objects.job(job)?.interrupt().map_err(failed("sending a signal to a job"))?;
            Ok(Value::Num(sent.into()))
        }
        Op::JobState { job } => Ok(Value::Job(context.objects.job(job)?.wait(Duration::ZERO))),
        Op::Exec { argv, stdin, limit_s } => exec::run(&argv, stdin.as_bytes(), limit_s),
        Op::Mkfs { fs, dev, opts } => exec::mkfs(fs, &dev, &opts),
        Op::AckedWriter { path, plan, max_s, max_groups } => durable::write(context, &path, &plan, max_s, max_groups),
        Op::AckedCheck { path, plan, n } => durable::check(&path, &plan, n),
        Op::StoreLaps { h, m, off, after, count } => laps::stores(context, (h, m), off, after, count),
        Op::Mm(op) => mm::run(context, op),
        Op::Verbs(op) => verbs::run(context, op),
        Op::Process { user } => process::start(context, user),
        Op::In { p, op } => process::run(context, p, *op),
        Op::Kill { p } => process::kill(context, p),
        op => system_op(context, op),
    }
}

fn system_op(context: &Context, op: Op) -> Outcome {
    match op {
        Op::Mount { dev, dir, fs, opts, ro } => system::mount(&dev, &dir, &fs, &opts, ro),
        Op::Umount { dir } => unit(format!("umount {dir}"), crate::sys::umount(&dir, 0)),
        Op::Sysctl { key, value } => system::sysctl(&key, value.as_deref()),
        Op::ReadFile { path, max } => system::read_file(&path, max),
        Op::WriteSys { path, text } => system::write_sys(&path, &text),
        Op::Modprobe { name } => system::modprobe(&name).map(Value::Num),
        Op::Mkdir { path } => unit(format!("mkdir {path}"), std::fs::create_dir_all(&path)),
        Op::Unlink { path } => unit(format!("unlink {path}"), std::fs::remove_file(&path)),
        Op::SysInfo => Ok(Value::Sys(system::info(context))),
        Op::Taint => system::taint(),
        Op::DropCaches { what } => system::write_sys("/proc/sys/vm/drop_caches", &what.to_string()),
        Op::Sync => {
            crate::sys::sync();
            Ok(Value::Unit)
        }
        Op::ForgetDevices => unit("forgetting btrfs's devices", crate::sys::file::btrfs_forget()),
        Op::DmesgMark => kmsg::mark(context),
        Op::DmesgWords { words } => kmsg::keep(context, words),
        Op::DmesgSince { mark, level } => kmsg::since(context, mark, level),
        op => files::run(context, op),
    }
}
