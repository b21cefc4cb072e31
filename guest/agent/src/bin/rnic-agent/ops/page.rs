// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page identity: pagemap, kpageflags, kpagecount (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rnic_agent::proto::{Page, kpf};

use crate::sys::mapping::{Mapping, PAGE};

/// Largest folio looked for, pages (1 GiB, a hugetlb page).
const MAX_FOLIO: u64 = 1 << 18;

fn word(file: &File, index: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    let at = index.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 == 1
}

/// Where the page at `off` of the mapping is now.
pub fn info(mapping: &Mapping, off: u64) -> io::Result<Page> {
    let address = mapping.address(off, 1)? as u64;
    at("/proc/self/pagemap", address)
}

/// Where the page at `address` of process `pid` is now. Page frame numbers are for root only.
pub fn info_of(pid: u32, address: u64) -> io::Result<Page> {
    at(&format!("/proc/{pid}/pagemap"), address)
}

fn at(pagemap: &str, address: u64) -> io::Result<Page> {
    let entry = word(&File::open(pagemap)?, address / PAGE)?;
    let mut page = Page {
        present: bit(entry, 63),
        swapped: bit(entry, 62),
        file: bit(entry, 61),
        exclusive: bit(entry, 56),
        soft_dirty: bit(entry, 55),
        ..Page::default()
    };
    let pfn = entry & ((1 << 55) - 1);
    if !page.present || pfn == 0 {
        return Ok(page);
    }
    let flags = File::open("/proc/kpageflags")?;
    page.pfn = pfn;
    page.flags = frame_word(&flags, pfn)?;
    page.mapcount = frame_word(&File::open("/proc/kpagecount")?, pfn)?;
    (page.folio_pfn, page.folio_pages) = folio(pfn, |pfn| frame_word(&flags, pfn))?;
    Ok(page)
}

/// Flags of a page frame that no mapping need point to.
pub fn frame_flags(pfn: u64) -> io::Result<u64> {
    frame_word(&File::open("/proc/kpageflags")?, pfn)
}

/// A page frame's word of /proc/kpageflags or kpagecount. Both end with the last frame of RAM: of a frame behind it (persistent memory that DAX
/// has mapped) the kernel tells nothing, and this is 0.
fn frame_word(file: &File, pfn: u64) -> io::Result<u64> {
    match word(file, pfn) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        other => other,
    }
}

/// (first page frame, number of pages) of the folio around `pfn`, found by its head and tail flags.
fn folio(pfn: u64, flags: impl Fn(u64) -> io::Result<u64>) -> io::Result<(u64, u32)> {
    let has = |pfn, number| flags(pfn).map(|flags| bit(flags, number));
    let mut head = pfn;
    while has(head, kpf::COMPOUND_TAIL)? && head > 0 && pfn - head < MAX_FOLIO {
        head -= 1;
    }
    if !has(head, kpf::COMPOUND_HEAD)? {
        return Ok((pfn, 1));
    }
    let mut pages = 1;
    // A frame that cannot be read ends the folio.
    while pages < MAX_FOLIO && has(head + pages, kpf::COMPOUND_TAIL).unwrap_or(false) {
        pages += 1;
    }
    Ok((head, pages as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: u64 = 1 << kpf::COMPOUND_HEAD;
    const TAIL: u64 = 1 << kpf::COMPOUND_TAIL;

    fn folio_in(flags: &[u64], pfn: u64) -> (u64, u32) {
        let read = |pfn| flags.get(pfn as usize).copied().ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
        folio(pfn, read).unwrap()
    }

    /// Persistent memory lies behind RAM; its frames have an address and no flags.
    #[test]
    fn a_frame_behind_the_last_one_has_no_flags() {
        let name = std::env::temp_dir().join(format!("frames-{}", std::process::id()));
        std::fs::write(&name, 5u64.to_le_bytes()).unwrap();
        let file = File::open(&name).unwrap();
        std::fs::remove_file(&name).unwrap();
        assert_eq!((frame_word(&file, 0).unwrap(), frame_word(&file, 1).unwrap()), (5, 0));
        assert!(frame_word(&file, u64::MAX).is_err());
    }

    #[test]
    fn folios_are_measured_from_any_page() {
        let flags = [0, HEAD, TAIL, TAIL, TAIL, HEAD, TAIL, 0];
        for (pfn, expected) in [(0, (0, 1)), (1, (1, 4)), (3, (1, 4)), (4, (1, 4)), (6, (5, 2)), (7, (7, 1))] {
            assert_eq!(folio_in(&flags, pfn), expected, "pfn {pfn}");
        }
        assert_eq!(folio_in(&[HEAD, TAIL], 0), (0, 2), "at the end of memory");
        assert_eq!(folio_in(&[TAIL, TAIL], 1), (1, 1), "tails without a head");
    }
}
