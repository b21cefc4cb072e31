// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the cases share: the command line, limits, disks, kernels of the image cache.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use image::{KernelEntry, Manifest};

use crate::common::{Done, Running, rnic};

/// From start to power-off with little work in between, under emulation, two guests at once on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(150);
/// From a signal or a key to the end of the process.
pub const END_LIMIT: Duration = Duration::from_secs(10);

/// `rnic run` with a kernel and further options.
pub fn rnic_run(kernel: &str, options: &[&str]) -> Command {
    let mut command = Command::new(rnic());
    command.args(["run", "--kernel", kernel]).args(options).stdin(Stdio::null());
    command
}

/// `rnic run`'s statuses when the guest kernel panicked and when a vCPU triple-faulted.
const PANIC: i32 = 11;
const TRIPLE_FAULT: i32 = 12;

/// Runs a shell script in a guest to its end. A triple fault, or a panic that the script did not ask for, is what happens under QEMU's
/// nested virtualisation now and then (docs/findings.md): said, and tried once more; twice in a row is a failure like any other.
pub fn exec(kernel: &str, options: &[&str], script: &str) -> Done {
    exec_within(LIMIT, kernel, options, script)
}

/// The same for a guest that boots several times.
pub fn exec_within(limit: Duration, kernel: &str, options: &[&str], script: &str) -> Done {
    exec_after(|| (), limit, kernel, options, script)
}

/// The same after `prepare`, which is done anew for a second attempt: for a script that leaves its mark on a disk.
pub fn exec_after(prepare: impl Fn(), limit: Duration, kernel: &str, options: &[&str], script: &str) -> Done {
    let run = || {
        prepare();
        Running::start(rnic_run(kernel, options).args(["--exec", script])).finish(limit)
    };
    let mut done = run();
    let what = match done.status.code() {
        Some(TRIPLE_FAULT) => Some("a vCPU triple-faulted"),
        Some(PANIC) if !script.contains("echo c >/proc/sysrq-trigger") => Some("the kernel panicked"),
        _ => None,
    };
    if let Some(what) = what {
        eprintln!("{kernel}: {what}; second attempt. It had printed: {}{}", done.out, done.err);
        done = run();
    }
    println!("{}{}", done.out, done.err);
    done
}

/// A sparse disk in a directory that goes away.
pub struct Disk {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        File::create(&path).unwrap().set_len(size).unwrap();
        Self { _dir: dir, path }
    }

    /// Zeroes all of it.
    pub fn wipe(&self) {
        let size = self.path.metadata().unwrap().len();
        File::create(&self.path).unwrap().set_len(size).unwrap();
    }

    /// The value of --disk.
    pub fn option(&self, more: &str) -> String {
        format!("path={}{more}", self.path.display())
    }
}

/// A kernel of the image cache and the cache's directory.
pub fn kernel(name: &str) -> (KernelEntry, PathBuf) {
    let manifest = Manifest::load().expect("run images/prepare first");
    (manifest.kernel(name).unwrap().clone(), manifest.dir)
}

/// The line that begins with `key`, without it.
pub fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.trim_end().strip_prefix(key));
    found.unwrap_or_else(|| panic!("no line begins with {key:?} in:\n{text}"))
}
