// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reproducers of guest/repro, which need neither a lever nor a NIC: each builds with nothing but a C compiler, and shows on the kernel that
//! its report (docs/reports) names what the report says, as an ordinary user.

use std::path::Path;
use std::process::Command;

use crate::common::Done;
use crate::machine::{Disk, LIMIT, exec_after, value};

/// Functions of the scripts: `on FS` makes and mounts a file system, `as_user` is nobody, `try NAME COMMAND...` keeps the command's status. Statuses are
/// printed at the end, when the kernel may no longer write in their midst: an Oops shares the console with them.
const FUNCTIONS: &str = r#"
mkdir -p /run/m /run/t && tar xf /dev/vdb -C /run/t && PATH=$PATH:/run/t
on() {
    if mountpoint -q /run/m; then umount /run/m; fi
    wipefs -qa /dev/vdc
    case $1 in ext4) mkfs.ext4 -q -F /dev/vdc ;; *) "mkfs.$1" -q -f /dev/vdc ;; esac
    mount -t "$1" /dev/vdc /run/m && chmod 777 /run/m
}
as_user() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
keep() { echo "$1" >>/run/kept; }
try() { name=$1; shift; "$@"; keep "$name=$?"; }
trap 'dmesg -n 1; echo; cat /run/kept' EXIT
"#;

/// The programs, and the script that runs them, as a tar file on a disk.
fn disk(script: &str) -> Disk {
    let disk = Disk::new(0);
    let dir = disk.path.parent().unwrap().join("programs");
    std::fs::create_dir(&dir).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find_map(|dir| {
        let sources = dir.join("guest/repro");
        sources.is_dir().then_some(sources)
    });
    for entry in std::fs::read_dir(sources.expect("guest/repro")).unwrap() {
        let source = entry.unwrap().path();
        if source.extension().is_some_and(|ending| ending == "c") {
            let program = dir.join(source.file_stem().unwrap());
            run(Command::new("cc")
                .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"])
                .arg("-o")
                .arg(program)
                .arg(source));
        }
    }
    std::fs::write(dir.join("script"), format!("{FUNCTIONS}{script}\n")).unwrap();
    run(Command::new("tar").arg("cf").arg(&disk.path).arg("-C").arg(&dir).arg("."));
    disk
}

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn repro(kernel: &str, more: &[&str], script: &str) -> Done {
    let (programs, scratch) = (disk(script), Disk::new(512 << 20));
    let (one, two) = (programs.option(",readonly=on"), scratch.option(""));
    let options = [&["--cpus", "2", "--disk", &one, "--disk", &two], more].concat();
    let start = "mkdir -p /run/t && tar xf /dev/vdb -C /run/t && exec bash /run/t/script";
    exec_after(|| scratch.wipe(), LIMIT.saturating_mul(2), kernel, &options, start)
}

/// What `name` ended with.
fn status(done: &Done, name: &str) -> i32 {
    value(&done.out, &format!("{name}=")).parse().unwrap()
}

/// 0 is "shown", 1 "not shown". Each race has more rounds than it has been seen to need. btrfs comes last: a thread of its kernel dies there.
#[test]
fn each_shows_on_7_3_what_its_report_says() {
    let script = r#"
        on ext4
        try h04w_write as_user h04w /run/m read write 9
        try h04w_punch as_user h04w /run/m read punch 9
        try h03_pageout as_user h03 /run/m read pageout file 9
        try h03_cold as_user h03 /run/m read cold next 9
        on xfs
        try h04w_xfs h04w /run/m read write 9
        try h18 as_user h18 /run/m read 9
        try h03_xfs as_user h03 /run/m read pageout file 1
        dmesg | grep -E 'BUG:|Oops' | sed 's/^/early=/' >>/run/kept
        on btrfs
        try h12 as_user h12 /run/m 3
        try h04 as_user h04 /run/m vm 3
        try h18_btrfs as_user h18 /run/m vm 3
        try h03_btrfs as_user h03 /run/m vm pageout next 9
        dmesg | grep -q 'btrfs_data_dirty_folio'; keep "oops=$?"
    "#;
    let done = repro("7.3", &[], script);
    for name in ["h04w_write", "h04w_punch", "h03_pageout", "h03_cold", "h04w_xfs", "h18", "h03_btrfs", "oops"] {
        assert_eq!(status(&done, name), 0, "{name}: {}", done.out);
    }
    for name in ["h03_xfs", "h18_btrfs"] {
        assert_eq!(status(&done, name), 1, "{name}: {}", done.out);
    }
    // Races, of which a few rounds may show nothing; they must run.
    for name in ["h12", "h04"] {
        assert!(status(&done, name) < 2, "{name}: {}", done.out);
    }
    assert!(!done.out.contains("early="), "{}", done.out);
}

/// 6.12 makes no large folios on ext4, and the programs say so: nothing is shown there but what does not need them.
#[test]
fn without_large_folios_nothing_is_shown() {
    let script = r#"
        on ext4
        try h04w as_user h04w /run/m read write 1
        try h03 as_user h03 /run/m read pageout file 1
        on xfs
        try h18 as_user h18 /run/m read 9
    "#;
    let done = repro("6.12", &[], script);
    assert_eq!(["h04w", "h03", "h18"].map(|name| status(&done, name)), [1, 1, 0], "{}", done.out);
}

/// A punch that waits for a read is never woken on 6.1. A throttled disk makes the read last; who reads has no privilege.
#[test]
fn a_punch_on_6_1_waits_for_nobody() {
    let script = r#"
        mkfs.ext4 -q -F -b 4096 /dev/pmem0 && mkdir -p /run/d /run/cg && mount -o dax=always /dev/pmem0 /run/d && chmod 777 /run/d
        mount -t cgroup2 none /run/cg && echo +io >/run/cg/cgroup.subtree_control && mkdir /run/cg/slow
        echo "$(cat /sys/block/vdc/dev) rbps=1024" >/run/cg/slow/io.max && chmod 644 /dev/vdc
        in_cgroup() { sh -c 'echo $$ >/run/cg/slow/cgroup.procs; exec "$@"' - "$@"; }
        try h21 in_cgroup setpriv --reuid=65534 --regid=65534 --clear-groups h21 /run/d /dev/vdc
    "#;
    for (kernel, expected) in [("6.1", 0), ("6.12", 1)] {
        let done = repro(kernel, &["--pmem", "size=256M"], script);
        assert_eq!(status(&done, "h21"), expected, "{kernel}: {}", done.out);
    }
}
