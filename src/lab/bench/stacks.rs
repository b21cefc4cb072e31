// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks that lie between the virtio disk and the file system: built, taken down, and assembled again from what a power cut left.
//!
//! Every part of a stack lies on the one virtio disk, so that levers and power cuts of that disk cover all of it. Nothing is wiped and
//! nothing is synchronised: the disk is new, and zeroes agree with zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rnic_agent::pattern::{Content, Run, identify};
use rnic_agent::proto::Op;

use super::PAGE;
use super::ground::{PMEM, VIRTIO};
use crate::fact::Found;
use crate::finding::Stop;
use crate::guest::Guest;
use crate::plan::{DiskKind, Fs, Row};

/// Sectors of a leg of a mirror; ext4 and btrfs fit.
const MIRROR_LEG: u64 = 524_288;
/// Sectors of a leg of three.
const PARITY_LEG: u64 = 262_144;
/// Bytes of a chunk of raid5.
const CHUNK: u64 = 64 << 10;
/// Data legs of raid5.
const DATA_LEGS: u64 = 2;
const SECTOR: u64 = 512;

/// What a stack needs beside the shell: there is no udev in these guests.
const PRELUDE: &str = "set -e; export DM_DISABLE_UDEV=1 MDADM_NO_UDEV=1; ";

/// dm-integrity with tags of its own, without a journal. A block that nobody has written has no valid tag: mkfs discards them all, which
/// gives them one that always fits, and what it looks at before is written first. In bitmap mode a block whose bit is set gets a new tag
/// after a crash, so bits are cleared soon.
const INTEGRITY_D: &str = "dmsetup create stack --table '0 901120 integrity /dev/vdb 0 4 D 3 internal_hash:crc32c block_size:4096 allow_discards'";
const INTEGRITY_B: &str = "dmsetup create stack --table '0 901120 integrity /dev/vdb 0 4 B 4 internal_hash:crc32c block_size:4096 bitmap_flush_interval:200 allow_discards'";
const FIRST_BLOCKS: &str = "; dd if=/dev/zero of=/dev/mapper/stack bs=64k count=2 oflag=direct 2>/dev/null";
const RAID1: &str = "dmsetup create --concise 'leg0,,,rw,0 524288 linear /dev/vdb 0;leg1,,,rw,0 524288 linear /dev/vdb 524288'; \
    mdadm --build /dev/md0 --level=1 --raid-devices=2 --assume-clean /dev/mapper/leg0 /dev/mapper/leg1";
const RAID5: &str = "dmsetup create --concise 'leg0,,,rw,0 262144 linear /dev/vdb 0;leg1,,,rw,0 262144 linear /dev/vdb 262144;leg2,,,rw,0 262144 linear /dev/vdb 524288'; \
    yes | mdadm --create /dev/md0 --level=5 --raid-devices=3 --assume-clean --metadata=1.0 --bitmap=none --chunk=64 --run \
    /dev/mapper/leg0 /dev/mapper/leg1 /dev/mapper/leg2";
const SKIP_COPY: &str = "; echo 1 >/sys/block/md0/md/skip_copy";
/// A file system for the file that is the loop device's.
const LOOP_MAKE: &str = "mkfs.ext4 -q -F /dev/vdb; mkdir -p /mnt/base; mount -t ext4 -o commit=300 /dev/vdb /mnt/base; \
    fallocate -l 400M /mnt/base/image; losetup --direct-io=on /dev/loop0 /mnt/base/image";
const LOOP_AGAIN: &str =
    "mkdir -p /mnt/base; mount -t ext4 /dev/vdb /mnt/base; losetup --direct-io=on /dev/loop0 /mnt/base/image";

/// How a stack is built.
struct Stack {
    /// The block device that comes of it.
    dev: &'static str,
    /// Modules that it needs.
    modules: &'static [&'static str],
    /// Commands that make it on a new disk.
    make: String,
    /// Commands that assemble it from what a power cut left.
    again: String,
    /// Commands that take it down.
    down: &'static str,
}

/// `None`: the virtio disk itself, and persistent memory.
fn stack(kind: DiskKind) -> Option<Stack> {
    let same = |dev, modules, make: String, down| Stack { dev, modules, again: make.clone(), make, down };
    let tagged = |table: &str| Stack {
        dev: "/dev/mapper/stack",
        modules: &["dm_mod", "dm_integrity"],
        make: [table, FIRST_BLOCKS].concat(),
        again: table.into(),
        down: "dmsetup remove stack",
    };
    let md_down = "mdadm --stop /dev/md0; for leg in /dev/mapper/leg*; do dmsetup remove $leg; done";
    Some(match kind {
        DiskKind::Plain | DiskKind::Pmem => return None,
        DiskKind::Integrity => tagged(INTEGRITY_D),
        DiskKind::IntegrityBitmap => tagged(INTEGRITY_B),
        DiskKind::Raid1 => same("/dev/md0", &["dm_mod", "raid1"], RAID1.into(), md_down),
        DiskKind::Raid5 => same("/dev/md0", &["dm_mod", "raid456"], RAID5.into(), md_down),
        DiskKind::Raid5Skip => same("/dev/md0", &["dm_mod", "raid456"], [RAID5, SKIP_COPY].concat(), md_down),
        DiskKind::Loop => Stack {
            dev: "/dev/loop0",
            modules: &["loop"],
            make: LOOP_MAKE.into(),
            again: LOOP_AGAIN.into(),
            down: "losetup -d /dev/loop0; umount /mnt/base",
        },
    })
}

/// The block device of a disk.
pub(super) fn device(kind: DiskKind) -> &'static str {
    match kind {
        DiskKind::Pmem => PMEM,
        kind => stack(kind).map_or(VIRTIO, |stack| stack.dev),
    }
}

/// What mkfs is told beside: whoever zeroes or discards a mirror under emulation waits for it.
pub(super) fn mkfs_options(row: Row) -> Vec<&'static str> {
    let slow = matches!(row.disk, DiskKind::Raid1 | DiskKind::Raid5 | DiskKind::Raid5Skip | DiskKind::Loop);
    match row.fs {
        Fs::Ext4 => {
            // For this size mkfs would choose blocks of 1 KiB. DAX wants blocks that are pages, and raid5 writes from the page itself only what
            // fills one of its own pages.
            let whole = matches!(row.disk, DiskKind::Pmem | DiskKind::Raid5 | DiskKind::Raid5Skip);
            let blocks: &[_] = if whole { &["-b", "4096"] } else { &[] };
            let lazy: &[_] = if slow { &["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"] } else { &[] };
            [blocks, lazy].concat()
        }
        Fs::Xfs | Fs::Btrfs if slow => vec!["-K"],
        _ => Vec::new(),
    }
}

/// Builds a stack on a new disk, or assembles it `again`.
pub(super) fn up(guest: &Guest, kind: DiskKind, again: bool) -> Result<(), Stop> {
    let Some(stack) = stack(kind) else { return Ok(()) };
    for module in stack.modules {
        guest.must(Op::Modprobe { name: (*module).into() })?;
    }
    guest.note_stack(Some(kind));
    shell(guest, if again { &stack.again } else { &stack.make }, "building")
}

/// Takes the guest's stack down, if it has one.
pub(super) fn down(guest: &Guest) -> Result<(), Stop> {
    let Some(stack) = guest.stack().and_then(stack) else { return Ok(()) };
    shell(guest, stack.down, "taking down")?;
    guest.note_stack(None);
    Ok(())
}

/// Takes away what a row that ended early has left; what cannot be taken away the next mkfs or mount runs into.
pub(super) fn clear(guest: &Guest) {
    if let Err(stop) = down(guest) {
        log::warn!("a disk of an earlier row is still there: {stop:?}");
        guest.note_stack(None);
    }
}

/// Whether the disk asks for stable writes; `None`: it does not say.
pub(super) fn stable_writes(guest: &Guest, kind: DiskKind) -> Option<bool> {
    let dev = device(kind).trim_start_matches("/dev/");
    // The one device mapper device of these guests is the stack.
    let dev = if dev.starts_with("mapper/") { "dm-0" } else { dev };
    let path = format!("/sys/block/{dev}/queue/stable_writes");
    let text = guest.call(Op::ReadFile { path, max: 16 }).ok()?;
    Some(text.text()?.trim() == "1")
}

fn shell(guest: &Guest, commands: &str, doing: &str) -> Result<(), Stop> {
    let argv = vec!["sh".into(), "-c".into(), format!("{PRELUDE}{commands}")];
    let told = guest.must(Op::Exec { argv, stdin: String::new(), limit_s: 50 })?.exec();
    match told.filter(|exec| exec.status != 0) {
        Some(exec) => Err(Stop::Failed(format!("{doing} the disk under test failed: {}", exec.err.trim()))),
        None => Ok(()),
    }
}

/// What the parts of a disk have of one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// Each leg of a mirror, and whether they are the same.
    Legs(Vec<Found>, bool),
    /// Whether the parity of the page's row of blocks is what the data say.
    Parity(bool),
}

impl Parts {
    /// Whether one can be had for another.
    pub fn agree(&self) -> bool {
        match self {
            Parts::Legs(_, same) => *same,
            Parts::Parity(right) => *right,
        }
    }
}

/// Whether a page is there twice in one way or another.
pub(super) fn keeps_twice(kind: DiskKind) -> bool {
    !places(kind, 0).is_empty()
}

/// Where the virtio disk may have the page that lies at byte `at` of the disk above: each leg of a mirror, or each block of its row, of
/// which one is the parity. Empty: this disk keeps nothing twice.
fn places(kind: DiskKind, at: u64) -> Vec<u64> {
    match kind {
        DiskKind::Raid1 => vec![at, MIRROR_LEG * SECTOR + at],
        DiskKind::Raid5 | DiskKind::Raid5Skip => {
            let row = at / CHUNK / DATA_LEGS * CHUNK + at % CHUNK;
            (0..=DATA_LEGS).map(|leg| leg * PARITY_LEG * SECTOR + row).collect()
        }
        _ => Vec::new(),
    }
}

/// What `image` has of the page that lies at byte `at` of the disk above. `None`: this disk keeps nothing twice.
pub(super) fn parts(kind: DiskKind, image: &Path, at: u64) -> io::Result<Option<Parts>> {
    let file = File::open(image)?;
    let read = places(kind, at).into_iter().map(|at| block(&file, at)).collect::<io::Result<Vec<_>>>()?;
    Ok(match kind {
        DiskKind::Raid1 => {
            let found = |bytes: &[u8; PAGE as usize]| Found::of(&Ok::<Content, i32>(identify(bytes)));
            // Bytes that nobody of the lab has written all have one name.
            Some(Parts::Legs(read.iter().map(found).collect(), read.windows(2).all(|two| two[0] == two[1])))
        }
        DiskKind::Raid5 | DiskKind::Raid5Skip => {
            // Whichever leg has the parity: all of a row together are zero.
            let mut sum = [0; PAGE as usize];
            read.iter().for_each(|bytes| sum.iter_mut().zip(bytes).for_each(|(sum, byte)| *sum ^= byte));
            Some(Parts::Parity(sum.iter().all(|byte| *byte == 0)))
        }
        _ => None,
    })
}

/// Of those places, the ones at which `image` has a page that was written to byte `file_at` of a file.
pub(super) fn copies(kind: DiskKind, image: &File, at: u64, file_at: u64) -> io::Result<Vec<u64>> {
    let mut copies = Vec::new();
    for place in places(kind, at) {
        let content = identify(&block(image, place)?);
        // One that is torn has other runs beside its own.
        let own = file_at / SECTOR..(file_at + PAGE) / SECTOR;
        if content.runs.iter().any(|run| matches!(run, Run::Written { first, .. } if own.contains(first))) {
            copies.push(place);
        }
    }
    Ok(copies)
}

fn block(file: &File, at: u64) -> io::Result<[u8; PAGE as usize]> {
    let mut bytes = [0; PAGE as usize];
    file.read_exact_at(&mut bytes, at).map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rnic_agent::pattern::{Pattern, fill};
    use std::io::Write;

    /// An image of which `parts` are given: (byte, value of a page).
    fn image(parts: &[(u64, u8)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512 << 20).unwrap();
        for (at, byte) in parts {
            file.as_file().write_all_at(&[*byte; PAGE as usize], *at).unwrap();
        }
        file.as_file().flush().unwrap();
        file
    }

    fn agree(kind: DiskKind, at: u64, written: &[(u64, u8)]) -> bool {
        parts(kind, image(written).path(), at).unwrap().unwrap().agree()
    }

    #[test]
    fn a_mirror_whose_legs_differ_does_not_agree() {
        let leg = MIRROR_LEG * SECTOR;
        assert!(agree(DiskKind::Raid1, 8192, &[(8192, 7), (leg + 8192, 7)]));
        assert!(!agree(DiskKind::Raid1, 8192, &[(8192, 7), (leg + 8192, 8)]));
        // Another page's business.
        assert!(agree(DiskKind::Raid1, 8192, &[(4096, 7)]));
    }

    #[test]
    fn parity_is_of_the_row_that_the_page_is_in() {
        let leg = PARITY_LEG * SECTOR;
        // Byte 3 chunks and a page: row 1, second data leg.
        let (at, row) = (3 * CHUNK + PAGE, CHUNK + PAGE);
        assert!(agree(DiskKind::Raid5, at, &[(row, 1), (leg + row, 2), (2 * leg + row, 3)]));
        assert!(!agree(DiskKind::Raid5Skip, at, &[(row, 1), (leg + row, 2), (2 * leg + row, 4)]));
        assert!(agree(DiskKind::Raid5, at, &[(row - PAGE, 1)]));
    }

    #[test]
    fn a_copy_is_found_on_the_leg_that_has_it() {
        let (at, row, file_at) = (3 * CHUNK + PAGE, CHUNK + PAGE, 100 * PAGE);
        let image = image(&[(row, 1), (2 * PARITY_LEG * SECTOR + row, 3)]);
        let mut page = [0; PAGE as usize];
        fill(&Pattern::new(7, 'B'), file_at, &mut page);
        let second = PARITY_LEG * SECTOR + row;
        image.as_file().write_all_at(&page, second).unwrap();
        let found = |kind, file_at| copies(kind, image.as_file(), at, file_at).unwrap();
        assert_eq!(found(DiskKind::Raid5, file_at), vec![second]);
        // Of another page of that file, which happens to lie there.
        assert!(found(DiskKind::Raid5, file_at + PAGE).is_empty());
        assert!(found(DiskKind::Plain, file_at).is_empty());
    }

    #[test]
    fn only_what_is_kept_twice_has_parts() {
        assert_eq!(parts(DiskKind::Plain, image(&[]).path(), 0).unwrap(), None);
        assert_eq!(parts(DiskKind::Integrity, image(&[]).path(), 0).unwrap(), None);
    }
}
