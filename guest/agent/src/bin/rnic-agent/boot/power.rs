// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ending the guest. Only the init of a guest comes here.

use std::fs;
use std::time::{Duration, Instant};

use rnic_agent::proto::Op;

use super::note;
use crate::sys::{self, process};

/// Time that programs have to end after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);
/// File systems that hold nothing worth unmounting, or cannot be.
const VIRTUAL: [&str; 7] = ["proc", "sysfs", "devtmpfs", "devpts", "rootfs", "tmpfs", "overlay"];

/// Carries out `Poweroff`, `Reboot` or `Crash`.
pub fn end(op: &Op) {
    match op {
        Op::Reboot => stop(libc::RB_AUTOBOOT),
        Op::Crash => {
            let result = fs::write("/proc/sysrq-trigger", "c");
            note(format_args!("no panic came out of sysrq-trigger: {result:?}"));
        }
        _ => off(),
    }
}

/// Sync, end programs, unmount, power off.
pub fn off() -> ! {
    end_programs();
    sys::sync();
    unmount_all();
    stop(libc::RB_POWER_OFF);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

fn stop(command: i32) {
    if let Err(error) = sys::reboot(command) {
        note(format_args!("reboot(2) failed: {error}"));
    }
}

/// Everybody but us and PID 1.
fn end_programs() {
    let everybody = |signal| process::kill(-1, signal).is_ok();
    let start = Instant::now();
    let mut left = everybody(libc::SIGTERM);
    // Shells ignore SIGTERM but not SIGHUP.
    let _ = everybody(libc::SIGHUP);
    while left && start.elapsed() < GRACE {
        std::thread::sleep(Duration::from_millis(10));
        left = everybody(0);
    }
    let _ = everybody(libc::SIGKILL);
}

/// Unmounts disks, the last mounted first; what is busy becomes read-only.
fn unmount_all() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (Some(_), Some(dir), Some(fs_type)) = (words.next(), words.next(), words.next()) else { continue };
        if dir == "/" || VIRTUAL.contains(&fs_type) {
            continue;
        }
        let dir = dir.replace("\\040", " ");
        if sys::umount(&dir, 0).is_err() {
            // Nothing is left to try when this fails too; data were synced before.
            let _ = sys::mount("", &dir, "", libc::MS_REMOUNT | libc::MS_RDONLY, "");
        }
    }
}
