// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the initramfs to the root disk: mounts, modules, overlay, change of root.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cmdline::Options;
use super::note;
use crate::ops::system::{load, module_dir};
use crate::sys;

/// Modules to load at boot, one path below the module directory a line, in order. Made by the host.
const BOOT_MODULES: &str = "/etc/rnic-modules";
/// The root disk's virtio serial.
const ROOT_SERIAL: &str = "rnic-root";
/// How long to wait for disks that are there but not ready.
const DISK_WAIT: Duration = Duration::from_secs(10);
/// The agent as the kernel's module loader; in the module directory, since that is there before and after the change of root.
const MODPROBE: &str = "/lib/modules/rnic-modprobe";

/// (source, directory, type, options)
const EARLY: [(&str, &str, &str, &str); 7] = [
    ("devtmpfs", "/dev", "devtmpfs", ""),
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("tmpfs", "/run", "tmpfs", "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
];
/// Mounts that move to the new root with all that is mounted inside them.
const MOVED: [&str; 5] = ["dev", "proc", "sys", "run", "tmp"];

fn attempt(what: &str, result: io::Result<()>) -> bool {
    if let Err(error) = &result {
        note(format_args!("{what}: {error}"));
    }
    result.is_ok()
}

/// Mounts what every program expects and loads the boot modules.
pub fn prepare() {
    for (source, dir, fs_type, options) in EARLY {
        // The directories exist in our own initramfs; EBUSY says that the kernel has mounted devtmpfs itself.
        let _ = fs::create_dir_all(dir);
        let result = sys::mount(source, dir, fs_type, 0, options);
        if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EBUSY)) {
            attempt(dir, result);
        }
    }
    // Tracing and debugging aids, where the kernel has them.
    let _ = sys::mount("debugfs", "/sys/kernel/debug", "debugfs", 0, "");
    if fs::hard_link("/init", MODPROBE).is_ok() {
        attempt("kernel.modprobe", fs::write("/proc/sys/kernel/modprobe", MODPROBE));
    }
    let dir = module_dir();
    for path in fs::read_to_string(BOOT_MODULES).unwrap_or_default().lines().filter(|line| !line.is_empty()) {
        if let Err(failure) = load(&dir.join(path)) {
            note(failure);
        }
    }
}

/// Changes to the root disk, if there is one.
pub fn enter(options: &Options) {
    if options.no_root {
        return;
    }
    let Some(disk) = find_root() else {
        note(format_args!("no disk with serial {ROOT_SERIAL}, staying in the initramfs"));
        return;
    };
    if let Err(failure) = switch(&disk) {
        note(failure);
    }
}

/// virtio-blk devices (device 2, virtio 1.2 §5.2) whose driver has not made a disk yet.
fn disks_pending() -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten();
    devices.map(|entry| entry.path()).any(|path| {
        let is_disk = fs::read_to_string(path.join("device")).is_ok_and(|id| id.trim() == "0x0002");
        is_disk && !path.join("block").exists()
    })
}

fn find_root() -> Option<PathBuf> {
    let start = Instant::now();
    loop {
        let disks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        for disk in disks {
            let serial = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
            if serial.trim_end_matches(['\0', '\n', ' ']) == ROOT_SERIAL {
                return Some(Path::new("/dev").join(disk.file_name()));
            }
        }
        if !disks_pending() || start.elapsed() > DISK_WAIT {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn step(what: &str, result: io::Result<()>) -> Result<(), String> {
    result.map_err(|error| format!("root disk: {what}: {error}"))
}

/// Lower: the disk, read-only. Upper: memory. Then all mounts move, and so do we.
fn switch(disk: &Path) -> Result<(), String> {
    let disk = disk.display().to_string();
    let make = |dir: &str| step(dir, fs::create_dir_all(dir));
    make("/run/rnic/lower")?;
    make("/run/rnic/memory")?;
    make("/newroot")?;
    step(&disk, sys::mount(&disk, "/run/rnic/lower", "ext4", libc::MS_RDONLY, "noload"))?;
    step("tmpfs", sys::mount("tmpfs", "/run/rnic/memory", "tmpfs", 0, "mode=0755"))?;
    make("/run/rnic/memory/upper")?;
    make("/run/rnic/memory/work")?;
    let layers = "lowerdir=/run/rnic/lower,upperdir=/run/rnic/memory/upper,workdir=/run/rnic/memory/work";
    step("overlay", sys::mount("overlay", "/newroot", "overlay", 0, layers))?;
    bind_modules();
    power_commands();
    for name in MOVED {
        let target = format!("/newroot/{name}");
        make(&target)?;
        step(name, sys::mount(&format!("/{name}"), &target, "", libc::MS_MOVE, ""))?;
    }
    step("chdir", std::env::set_current_dir("/newroot"))?;
    step("move", sys::mount(".", "/", "", libc::MS_MOVE, ""))?;
    step("chroot", std::os::unix::fs::chroot("."))?;
    step("chdir", std::env::set_current_dir("/"))
}

/// `poweroff` and `reboot` for people: the root has no init system to bring them. Disks are synced and remounted read-only first.
fn power_commands() {
    let dir = "/newroot/usr/local/sbin";
    if !attempt(dir, fs::create_dir_all(dir)) {
        return;
    }
    for (name, key) in [("poweroff", 'o'), ("halt", 'o'), ("reboot", 'b')] {
        let path = format!("{dir}/{name}");
        let script =
            format!("#!/bin/sh\nsync\necho u > /proc/sysrq-trigger\necho {key} > /proc/sysrq-trigger\nsleep 30\n");
        let executable = fs::Permissions::from_mode(0o755);
        attempt(&path, fs::write(&path, script).and_then(|()| fs::set_permissions(&path, executable)));
    }
}

/// The modules in the initramfs belong to the running kernel; the root disk has none.
fn bind_modules() {
    if !Path::new("/lib/modules").is_dir() {
        return;
    }
    // /lib is a link to usr/lib on a merged root.
    let merged = "/newroot/usr/lib/modules";
    let target = if Path::new("/newroot/usr/lib").is_dir() { merged } else { "/newroot/lib/modules" };
    let made = attempt(target, fs::create_dir_all(target));
    if made {
        attempt(target, sys::mount("/lib/modules", target, "", libc::MS_BIND, ""));
    }
}
