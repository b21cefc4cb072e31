// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The TOML file, and the figures of --timing.

use crate::common::Running;
use crate::machine::{Disk, LIMIT, exec, rnic_run, value};

/// Most memory that one machine more may take beside its guest's.
const OWN_MEMORY_MIB: f64 = 2.0;
/// With the pages of the program and its libraries, which are shared, and of which the kernel maps sixteen where one is touched.
const MEMORY_MIB: f64 = 7.5;

const LOOK: &str = "nproc; cat /proc/cmdline | tr ' ' '\\n' | grep ^marker; grep MemTotal /proc/meminfo; lsblk -b -d -n -o NAME,SIZE,RO; cat /sys/block/vd?/serial";

#[test]
fn the_file_says_the_same_as_the_options() {
    let (disk, readonly) = (Disk::new(8 << 20), Disk::new(4 << 20));
    let (one, two) = (disk.option(",queues=2,serial=first"), readonly.option(",readonly=on"));
    let by_options = exec(
        "6.1",
        &[
            "--cpus",
            "2",
            "--memory",
            "size=768M",
            "--cmdline",
            "marker=1",
            "--disk",
            &one,
            "--disk",
            &two,
            "--pmem",
            "size=24M",
        ],
        LOOK,
    );
    let text = format!(
        "kernel = '6.1'\ncpus = 2\nmemory = '768M'\ncmdline = 'marker=1'\nexec = \"\"\"{}\"\"\"\n\
         [[disk]]\npath = '{}'\nqueues = 2\nserial = 'first'\n[[disk]]\npath = '{}'\nreadonly = true\n[[pmem]]\nsize = '24M'\n",
        LOOK.replace('\\', "\\\\"),
        disk.path.display(),
        readonly.path.display()
    );
    let file = disk.path.with_file_name("machine.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new(crate::common::rnic());
    command.args(["run", "--config"]).arg(&file).stdin(std::process::Stdio::null());
    let by_file = Running::start(&mut command).finish(LIMIT);
    assert_eq!((by_options.code(), by_file.code()), (0, 0), "{by_options:?}\n{by_file:?}");
    // The last line is the kernel's own, with a time.
    let seen = |text: &str| text.lines().filter(|line| !line.contains("reboot:")).collect::<Vec<_>>().join("\n");
    assert_eq!(seen(&by_options.out), seen(&by_file.out));
    for word in ["2", "marker=1", "8388608", "first", "4194304", "25165824"] {
        assert!(by_file.out.contains(word), "{word} is not in {}", by_file.out);
    }
}

/// The milliseconds or MiB behind `name` in a line of figures.
fn figure(line: &str, name: &str) -> f64 {
    let at = line.find(name).unwrap_or_else(|| panic!("no {name} in {line}")) + name.len();
    line[at..].split_whitespace().next().unwrap().trim_end_matches(',').parse().unwrap()
}

#[test]
fn timing_adds_up_and_little_memory_is_taken() {
    let disk = Disk::new(1 << 20);
    let mut command = rnic_run("6.1", &["--timing", "--disk", &disk.option("")]);
    let done = Running::start(command.args(["--exec", "true"])).finish(LIMIT);
    assert_eq!(done.code(), 0, "{done:?}");
    let line = value(&done.err, "timing:");
    let parts = ["VMM ", "kernel ", "agent "].map(|name| figure(line, name));
    let total = figure(line, "in all ");
    assert!(parts.iter().all(|part| *part > 0.0), "{line}");
    assert!((parts.iter().sum::<f64>() - total).abs() < 5.0, "{line}");
    let memory = value(&done.err, "memory:");
    println!("{}", done.err);
    let (all, own) = (figure(memory, " "), figure(memory, "own "));
    assert!(own > 0.2 && own <= OWN_MEMORY_MIB && own < all && all <= MEMORY_MIB, "{memory}");
}
