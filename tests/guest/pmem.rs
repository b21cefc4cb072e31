// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Persistent memory: stock kernels make /dev/pmem0 of it, file systems on it are DAX, and its bytes are the file's.

use crate::machine::{Disk, LIMIT, exec, exec_within, value};

/// mkfs.xfs makes nothing smaller than 300 MiB.
const SIZES: [u64; 2] = [34 << 20, 320 << 20];
/// What is written through mappings, and never synced by anybody.
const BYTES: [u8; 2] = [0x5a, 0xa7];

/// Makes a file system on each, maps a file of it with MAP_SYNC, which only DAX can do, and stores; then a disk's data come into a mapping.
const FIRST: &str = r#"
complain() { echo "FAILED: $*"; exit 1; }
echo "sizes=$(cat /sys/block/pmem0/size) $(cat /sys/block/pmem1/size)"
mkfs.ext4 -q -b 4096 /dev/pmem0 || complain "mkfs.ext4"
mkfs.xfs -q /dev/pmem1 || complain "mkfs.xfs"
n=0
for byte in 0x5a 0xa7; do
  mkdir -p /mnt/$n && mount -o dax=always /dev/pmem$n /mnt/$n || complain "mount of pmem$n"
  xfs_io -f -c "truncate 64k" -c "mmap -S -rw 0 64k" -c "mwrite -S $byte 4k 4k" /mnt/$n/file || complain "MAP_SYNC on pmem$n"
  echo "attributes$n=$(xfs_io -r -c 'statx -r' /mnt/$n/file | sed -n 's/^stat.attributes = //p')"
  truncate -s 128k /mnt/$n/dma
  fio --output-format=terse --name=dma --filename=/dev/vdb --rw=read --bs=64k --size=64k --direct=1 --ioengine=psync \
    --iomem=mmapshared:/mnt/$n/dma >/dev/null || complain "reading into a mapping on pmem$n"
  cmp -n 65536 /dev/vdb /mnt/$n/dma || complain "what the disk wrote into pmem$n"
  n=1
done
# What no file system made of it: no page of it is RAM.
echo "ram=$(grep -c 'System RAM' /proc/iomem) legacy=$(grep -c 'Persistent Memory (legacy)' /proc/iomem)"
dmesg | grep -e 'Call Trace' -e 'BUG:' | sed 's/^/complaint: /'
"#;

/// The same media in another guest.
const NEXT: &str = r#"
n=0
for type in ext4 xfs; do
  mkdir -p /mnt/$n && mount -t $type -o dax=always /dev/pmem$n /mnt/$n || { echo "FAILED: mount of pmem$n"; exit 1; }
  echo "file$n=$(od -A n -t x1 -j 4096 -N 4096 -v /mnt/$n/file | tr -d ' \n' | fold -w 2 | sort | uniq -c | xargs)"
  cmp -n 65536 /dev/vdb /mnt/$n/dma && echo "dma$n=same"
  n=1
done
"#;

fn is_dax(kernel: &str) {
    let media = SIZES.map(Disk::new);
    let disk = Disk::new(1 << 20);
    std::fs::write(&disk.path, (0..1u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).unwrap();
    let values = media.each_ref().map(|medium| medium.option(""));
    let disk = disk.option(",readonly=on");
    let options = ["--pmem", &values[0], "--pmem", &values[1], "--disk", &disk];
    let done = exec(kernel, &options, FIRST);
    assert_eq!(done.code(), 0, "{kernel}");
    assert_eq!(value(&done.out, "sizes="), SIZES.map(|size| (size / 512).to_string()).join(" "));
    for name in ["attributes0=", "attributes1="] {
        let attributes = u64::from_str_radix(value(&done.out, name).trim_start_matches("0x"), 16).unwrap();
        assert_ne!(attributes & 0x20_0000, 0, "{kernel}: no STATX_ATTR_DAX in {attributes:#x}");
    }
    assert!(value(&done.out, "ram=").ends_with("legacy=2"), "{}", done.out);
    assert!(!done.out.contains("complaint: "), "{kernel}");
    for (medium, byte) in media.iter().zip(BYTES) {
        let bytes = std::fs::read(&medium.path).unwrap();
        let pages = bytes.chunks(4096).filter(|page| page.iter().all(|b| *b == byte)).count();
        assert_eq!(pages, 1, "{kernel}: pages of {byte:#x} in the host's file");
    }
    let done = exec(kernel, &options, NEXT);
    assert_eq!(done.code(), 0, "{kernel}");
    for (number, byte) in BYTES.iter().enumerate() {
        assert_eq!(value(&done.out, &format!("file{number}=")), format!("4096 {byte:02x}"), "{kernel}");
        assert_eq!(value(&done.out, &format!("dma{number}=")), "same", "{kernel}");
    }
}

#[test]
fn linux_6_1_has_dax() {
    is_dax("6.1");
}

#[test]
fn linux_6_12_has_dax() {
    is_dax("6.12");
}

#[test]
fn linux_7_3_has_dax() {
    is_dax("7.3");
}

/// A reset zeroes RAM and leaves this as it is; a temporary file lasts as long as the machine.
#[test]
fn what_was_stored_survives_a_reset() {
    let script = "if [ \"$(head -c 5 /dev/pmem0)\" = again ]; then echo found=$(lsblk -b -d -n -o SIZE /dev/pmem0); exit 7; fi; \
        echo again | dd of=/dev/pmem0 bs=4096 conv=sync oflag=direct status=none; echo b >/proc/sysrq-trigger; sleep 60";
    let done = exec_within(2 * LIMIT, "6.1", &["--pmem", "size=16M", "--reboot", "restart"], script);
    assert_eq!(done.code(), 7, "{done:?}");
    assert_eq!(value(&done.out, "found="), (16u64 << 20).to_string());
}
