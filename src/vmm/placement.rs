// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the kernel and its initramfs go in guest RAM, and whether they can: worked out from the files' sizes, with each looking at
//! the others, before anything runs.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use super::memory::Memory;
use super::{VmmError, layout};

/// What a stock kernel needs beside its image and two copies of the initramfs (the archive and its unpacked files) before it runs
/// programs: page structures, slabs, page cache. Debian's 7.3 finds no shell with 25 MiB of it and comes up with 41; 6.1 panics with 11.
const WORKING: u64 = 40 << 20;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// The kernel keeps 64 bytes about each page of persistent memory, in RAM.
const PER_PERSISTENT: u64 = 64;

/// Sizes of a guest's memory, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// RAM.
    pub ram: u64,
    /// Persistent memory.
    pub persistent: u64,
}

impl From<&Memory> for Room {
    fn from(memory: &Memory) -> Self {
        let persistent = memory.pieces().filter(|(.., is_ram)| !is_ram).map(|(_, size, _)| size).sum();
        Self { ram: memory.ram(), persistent }
    }
}

/// Where the initramfs goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Address and size of the initramfs in bytes.
    pub initramfs: Option<(u64, u64)>,
}

/// Finds places in a guest's RAM for the kernel of `path`, whose ELF image is `elf`, its initramfs and its command line.
pub fn place(
    path: &Path,
    elf: &[u8],
    initramfs: Option<&File>,
    cmdline: &str,
    room: Room,
) -> Result<Placement, VmmError> {
    if cmdline.len() >= layout::CMDLINE_MAX || cmdline.contains('\0') {
        return Err(VmmError::Cmdline { len: cmdline.len(), max: layout::CMDLINE_MAX - 1 });
    }
    let kernel = load_range(elf).filter(|range| range.start >= layout::HIGH_RAM);
    let Some(kernel) = kernel else {
        let what = format!("cannot be loaded: a part of it would lie below {} MiB", layout::HIGH_RAM / MIB);
        return Err(VmmError::Kernel { path: path.into(), what });
    };
    let size = initramfs.map(|file| file.metadata().map_err(VmmError::Initramfs)).transpose()?.map(|data| data.len());
    arrange(&kernel, size, room).map(|address| Placement { initramfs: address.zip(size) })
}

/// The physical addresses that an ELF kernel is loaded to, from its first to its last: `PT_LOAD` segments of the program headers. None
/// when it has none, or one that no address space holds.
fn load_range(elf: &[u8]) -> Option<Range<u64>> {
    const PT_LOAD: u64 = 1;
    let field = |at: u64, size: u64| {
        let bytes = elf.get(usize::try_from(at).ok()?..usize::try_from(at.checked_add(size)?).ok()?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (table, entry, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
    let mut range: Option<Range<u64>> = None;
    for index in 0..count {
        let header = table.checked_add(index * entry)?;
        if field(header, 4)? == PT_LOAD {
            let (start, size) = (field(header.checked_add(24)?, 8)?, field(header.checked_add(40)?, 8)?);
            let end = start.checked_add(size)?;
            range = Some(range.map_or(start..end, |range| range.start.min(start)..range.end.max(end)));
        }
    }
    range
}

/// The address of an initramfs of `size` bytes: the top of the RAM below the hole, above the kernel.
fn arrange(kernel: &Range<u64>, size: Option<u64>, room: Room) -> Result<Option<u64>, VmmError> {
    let Room { ram: memory, persistent } = room;
    let (_, low) = layout::ram_ranges(memory)[0];
    let archive = size.unwrap_or(0);
    let room = layout::RAM_HOLE.saturating_sub(kernel.end.next_multiple_of(PAGE));
    if archive > room {
        return Err(VmmError::InitramfsTooLarge { size: archive, room });
    }
    // An archive is unpacked to at least its own size before it is freed; the RAM below the kernel is of use for that.
    let running = (kernel.end - kernel.start)
        .saturating_add(2 * archive)
        .saturating_add(WORKING + persistent / (PAGE / PER_PERSISTENT));
    let needed = running.max(kernel.end.saturating_add(archive)).next_multiple_of(MIB);
    if needed > memory {
        return Err(VmmError::TooSmall { memory, needed, kernel_end: kernel.end, initramfs: archive, persistent });
    }
    Ok(size.map(|size| (low - size) & !(PAGE - 1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arrange(kernel: &Range<u64>, size: Option<u64>, ram: u64) -> Result<Option<u64>, VmmError> {
        super::arrange(kernel, size, Room { ram, persistent: 0 })
    }

    const KERNEL: Range<u64> = 16 * MIB..74 * MIB;

    /// An ELF header with program headers only, of `PT_LOAD` segments: (physical address, size in memory).
    fn elf_with_segments(segments: &[(u64, u64)]) -> Vec<u8> {
        const HEADER: usize = 64;
        const ENTRY: usize = 56;
        let mut bytes = vec![0; HEADER + segments.len() * ENTRY];
        bytes[32] = HEADER as u8;
        (bytes[54], bytes[56]) = (ENTRY as u8, segments.len() as u8);
        for (header, (address, size)) in bytes[HEADER..].chunks_mut(ENTRY).zip(segments) {
            header[0] = 1;
            header[24..32].copy_from_slice(&address.to_le_bytes());
            header[40..48].copy_from_slice(&size.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_small_machine_is_told_what_it_needs() {
        let needed = 58 + 2 * 36 + 40;
        assert_eq!(arrange(&KERNEL, Some(36 * MIB), needed * MIB).unwrap(), Some((needed - 36) * MIB));
        let error = arrange(&KERNEL, Some(36 * MIB), (needed - 1) * MIB).unwrap_err().to_string();
        assert!(error.contains("169 MiB") && error.contains("--memory size=170M"), "{error}");
        // Without an initramfs too: 64 MiB do not even hold the kernel.
        let error = arrange(&KERNEL, None, 64 * MIB).unwrap_err().to_string();
        assert!(error.contains("--memory size=98M"), "{error}");
        assert_eq!(arrange(&KERNEL, None, 98 * MIB).unwrap(), None);
        // A kernel high up leaves room below it, but none above.
        let high = 150 * MIB..160 * MIB;
        assert!(arrange(&high, Some(36 * MIB), 195 * MIB).unwrap_err().to_string().contains("size=196M"));
    }

    /// Linux makes a page structure for each page of persistent memory: 64 GiB of it do not go with 512 MiB of RAM.
    #[test]
    fn persistent_memory_takes_ram() {
        let room = |persistent| Room { ram: 512 * MIB, persistent };
        assert_eq!(super::arrange(&KERNEL, None, room(16 << 30)).unwrap(), None);
        let error = super::arrange(&KERNEL, None, room(64 << 30)).unwrap_err().to_string();
        assert!(error.contains("persistent memory of 65536 MiB") && error.contains("size=1122M"), "{error}");
    }

    /// More memory above the hole does not make room below it.
    #[test]
    fn the_hole_bounds_the_initramfs() {
        let most = layout::RAM_HOLE - KERNEL.end;
        assert_eq!(arrange(&KERNEL, Some(most), 64 << 30).unwrap(), Some(KERNEL.end));
        let error = arrange(&KERNEL, Some(most + 1), 64 << 30).unwrap_err().to_string();
        assert!(error.contains("initramfs"), "{error}");
    }

    #[test]
    fn a_kernel_over_the_boot_data_is_refused() {
        let room = Room { ram: 1 << 30, persistent: 0 };
        let place = |elf: &[u8], cmdline: &str| place(Path::new("vmlinux"), elf, None, cmdline, room);
        assert!(place(&elf_with_segments(&[(0x100_0000, 0x1000)]), "").is_ok());
        for segments in [&[(0x8000, 0x1000)][..], &[(0x100_0000, 0x1000), (0x2_0000, 1)], &[(u64::MAX - 8, 16)], &[]] {
            let error = place(&elf_with_segments(segments), "").unwrap_err().to_string();
            assert!(error.contains("cannot be loaded"), "{segments:?}: {error}");
        }
        let elf = elf_with_segments(&[(0x100_0000, 0x1000)]);
        assert!(place(&elf, &"x".repeat(layout::CMDLINE_MAX - 1)).is_ok());
        for line in ["x".repeat(layout::CMDLINE_MAX), "a\0b".into()] {
            assert!(place(&elf, &line).unwrap_err().to_string().contains("command line"));
        }
    }

    proptest! {
        /// What is placed lies in RAM and touches nothing else.
        #[test]
        fn placed_pieces_are_disjoint(
            start in layout::HIGH_RAM..layout::RAM_HOLE, length in 0..1u64 << 32, size in 0..1u64 << 33, memory in 64 * MIB..64 << 30,
        ) {
            let kernel = start..start + length;
            if let Ok(address) = arrange(&kernel, Some(size), memory) {
                let address = address.unwrap();
                prop_assert!(address >= kernel.end && address % PAGE == 0);
                prop_assert!(address + size <= memory.min(layout::RAM_HOLE));
            }
        }
    }
}
