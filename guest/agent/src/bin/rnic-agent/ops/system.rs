// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Steps on the system: mounts, sysctls, modules, facts.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rnic_agent::modules::Modules;
use rnic_agent::proto::{SysInfo, Value};

use super::{Failure, Outcome, failed, failure, unit};
use crate::serve::Context;
use crate::sys;

/// Most bytes of a file that a reply carries.
const MAX_READ: u64 = 48 * 1024;

/// mount(2), after loading the file system's module and making the mount point.
pub fn mount(dev: &str, dir: &str, fs_type: &str, opts: &str, ro: bool) -> Outcome {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.split_whitespace().any(|word| word == fs_type) {
        modprobe(fs_type)?;
    }
    fs::create_dir_all(dir).map_err(failed(format!("mkdir {dir}")))?;
    let flags = if ro { libc::MS_RDONLY } else { 0 };
    unit(format!("mount {fs_type} {dev} on {dir} ({opts})"), sys::mount(dev, dir, fs_type, flags, opts))
}

/// The directory of the running kernel's modules.
pub fn module_dir() -> PathBuf {
    Path::new("/lib/modules").join(sys::uname().0)
}

/// Loads a module and what it needs; returns how many were new.
pub fn modprobe(name: &str) -> Result<u64, Failure> {
    modprobe_from(&module_dir(), name)
}

/// The same from this directory. Without one there is nothing to load: the kernel has the module built in, or whoever needs it will say so.
fn modprobe_from(dir: &Path, name: &str) -> Result<u64, Failure> {
    let text = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let dep = match fs::read_to_string(dir.join("modules.dep")) {
        Err(error) if error.kind() == ErrorKind::NotFound && !dir.exists() => return Ok(0),
        dep => dep.map_err(failed(dir.join("modules.dep").display()))?,
    };
    let modules = Modules::parse(&dep, &text("modules.softdep"), &text("modules.alias"), &text("modules.builtin"));
    let order = modules.load_order(name).map_err(|error| failure(libc::ENOENT, error))?;
    let mut loaded = 0;
    let mut last = Ok(());
    for path in order {
        // A soft dependency may fail (no such CPU feature); what counts is the module itself, which is last.
        last = load(&dir.join(path)).map(|new| loaded += u64::from(new));
    }
    last.map(|()| loaded)
}

/// Loads one module file; false when it was there already.
pub fn load(path: &Path) -> Result<bool, Failure> {
    let file = File::open(path).map_err(failed(path.display()))?;
    match sys::finit_module(&file) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(failed(path.display())(error)),
    }
}

/// Sets and reads a sysctl.
pub fn sysctl(key: &str, value: Option<&str>) -> Outcome {
    let path = format!("/proc/sys/{}", if key.contains('/') { key.to_owned() } else { key.replace('.', "/") });
    if let Some(value) = value {
        write_sys(&path, value)?;
    }
    let text = fs::read_to_string(&path).map_err(failed(&path))?;
    Ok(Value::Text(text.trim_end().to_owned()))
}

/// The beginning of a file.
pub fn read_file(path: &str, max: u32) -> Outcome {
    let file = File::open(path).map_err(failed(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_READ.min(max.into())).read_to_end(&mut bytes).map_err(failed(path))?;
    Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

/// One write(2) into an existing file.
pub fn write_sys(path: &str, text: &str) -> Outcome {
    let mut file = File::options().write(true).open(path).map_err(failed(path))?;
    unit(path, file.write(text.as_bytes()).map(drop))
}

/// /proc/sys/kernel/tainted.
pub fn taint() -> Outcome {
    let path = "/proc/sys/kernel/tainted";
    let text = fs::read_to_string(path).map_err(failed(path))?;
    text.trim().parse().map(Value::Num).map_err(|_| failure(0, format!("{path} is not a number: {text}")))
}

/// Facts about the system. What cannot be read is empty or 0.
pub fn info(context: &Context) -> SysInfo {
    let (release, version) = sys::uname();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    SysInfo {
        release,
        version,
        cmdline: fs::read_to_string("/proc/cmdline").unwrap_or_default().trim_end().to_owned(),
        mem_total_kib: kib("MemTotal"),
        mem_available_kib: kib("MemAvailable"),
        dirty_kib: kib("Dirty").saturating_add(kib("Writeback")),
        bad_lines: context.bad_lines.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_modules_has_them_built_in_and_one_with_modules_lacks_what_it_does_not_list() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("6.12.0");
        let errno = || modprobe_from(&dir, "ib_uverbs").map_err(|failure| failure.errno);
        assert_eq!(errno(), Ok(0));
        fs::create_dir(&dir).unwrap();
        let no_list = errno();
        fs::write(dir.join("modules.dep"), "kernel/lib/crc16.ko:\n").unwrap();
        let not_listed = errno();
        assert_eq!([no_list, not_listed], [Err(libc::ENOENT); 2]);
    }
}
