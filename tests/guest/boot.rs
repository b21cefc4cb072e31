// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Stock kernels with one and two vCPUs: the devices are seen and bound, data written come back, power-off works.

use crate::machine::{Disk, exec, kernel, value};

const DISK: u64 = 64 << 20;

/// Looks at the machine, writes and verifies through two I/O engines at once with discards before and between, and looks for complaints.
const SCRIPT: &str = r#"
complain() { echo "FAILED: $*"; exit 1; }
echo "release=$(uname -r)"
echo "cpus=$(nproc)"
echo "disk=$(lsblk -b -d -n -o SIZE /dev/vdb | tr -d ' ')"
echo "queues=$(ls /sys/block/vdb/mq | wc -l)"
echo "functions=$(lspci -n -d 1af4: | wc -l) msix=$(lspci -v -d 1af4: 2>/dev/null | grep -c 'MSI-X: Enable+') bound=$(lspci -v -d 1af4: 2>/dev/null | grep -c 'driver in use: virtio-pci')"
dd if=/dev/urandom of=/dev/vdb bs=1M count=4 oflag=direct status=none || complain "writing"
blkdiscard -o 0 -l 2M /dev/vdb || complain "discarding"
cmp -n 2097152 /dev/vdb /dev/zero || complain "discarded sectors are not zero"
blkdiscard -z -o 2M -l 2M /dev/vdb || complain "writing zeroes"
cmp -n 4194304 /dev/vdb /dev/zero || complain "zeroed sectors are not zero"
fio --output-format=terse --filename=/dev/vdb --size=6M --verify=crc32c --verify_fatal=1 --do_verify=1 --direct=1 --rw=randrw \
  --name=libaio --ioengine=libaio --iodepth=8 --bsrange=4k-64k \
  --name=psync --ioengine=psync --offset=32M --bs=16k --fdatasync=4 >/dev/null || complain "fio"
echo "fio=verified"
grep virtio /proc/interrupts
dmesg -l emerg,alert,crit,err,warn | sed 's/^/complaint: /'
"#;

/// Warnings about the processor's weaknesses, clocks (a slow host's among them) and power management, not about our devices.
const HARMLESS: [&str; 11] = [
    "Spectre",
    "spectre",
    "RETBleed",
    "MDS CPU bug",
    "SRSO",
    "Speculative Return Stack",
    "TSC",
    "clocksource",
    "amd_pstate",
    "hrtimer: interrupt took",
    "rnic-agent:",
];

fn boots(name: &str, cpus: u8, queues: u16) {
    let (entry, _) = kernel(name);
    boots_from(name, &[], &entry.release, cpus, queues);
}

fn boots_from(kernel: &str, options: &[&str], release: &str, cpus: u8, queues: u16) {
    let disk = Disk::new(DISK);
    let (cpus_option, disk_option) = (cpus.to_string(), disk.option(&format!(",queues={queues}")));
    let mut all = vec!["--cpus", &cpus_option, "--disk", &disk_option];
    all.extend(options);
    let done = exec(kernel, &all, SCRIPT);
    assert_eq!(done.code(), 0, "{kernel}");
    let out = &done.out;
    assert_eq!(value(out, "release="), release);
    assert_eq!(value(out, "cpus="), cpus_option);
    assert_eq!(value(out, "disk="), DISK.to_string());
    // The root disk and ours; blk-mq takes at most one queue a CPU.
    assert_eq!(value(out, "queues="), queues.min(cpus.into()).to_string());
    assert_eq!(value(out, "functions="), "2 msix=2 bound=2");
    assert_eq!(value(out, "fio="), "verified");
    let complaints = out.lines().filter_map(|line| line.strip_prefix("complaint: "));
    let ours: Vec<_> = complaints.filter(|line| !HARMLESS.iter().any(|word| line.contains(word))).collect();
    assert!(ours.is_empty(), "{kernel} complains: {ours:#?}");
    // The bytes are in the file, not only in the guest's cache: fio has overwritten most of its two areas.
    let bytes = std::fs::read(&disk.path).unwrap();
    let written =
        |range: std::ops::Range<usize>| bytes[range].chunks(4096).filter(|b| b.iter().any(|b| *b != 0)).count();
    assert!(written(0..6 << 20) > 500 && written(32 << 20..38 << 20) > 500, "fio's data are not in the image");
}

#[test]
fn linux_6_1_with_one_cpu() {
    boots("6.1", 1, 1);
}

#[test]
fn linux_6_1_with_two_cpus() {
    boots("6.1", 2, 1);
}

#[test]
fn linux_6_12_with_one_cpu() {
    boots("6.12", 1, 1);
}

#[test]
fn linux_6_12_with_two_cpus_and_two_queues() {
    boots("6.12", 2, 2);
}

#[test]
fn linux_7_3_with_one_cpu() {
    boots("7.3", 1, 1);
}

#[test]
fn linux_7_3_with_two_cpus_and_two_queues() {
    boots("7.3", 2, 2);
}

/// A kernel of the user's own: a bzImage by its path, with a directory of modules. xz in 6.1, zstd in 7.3.
fn boots_bzimage(name: &str) {
    let (entry, cache) = kernel(name);
    let image = cache.join(&entry.bzimage);
    let modules = cache.join(&entry.modules);
    boots_from(image.to_str().unwrap(), &["--modules", modules.to_str().unwrap()], &entry.release, 1, 1);
}

#[test]
fn a_bzimage_of_ones_own_with_xz() {
    boots_bzimage("6.1");
}

#[test]
fn a_bzimage_of_ones_own_with_zstd() {
    boots_bzimage("7.3");
}
