// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory: RAM, one memfd mapped shared, and ranges of persistent memory, each a file mapped shared. All of it is handed to KVM as
//! memory slots, and devices reach all of it. `unsafe` lives here for the slot calls.
#![allow(unsafe_code, reason = "KVM is given addresses of guest memory")]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use pci::Exposed;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{VmmError, layout};
use dma::GuestRam;

/// A range of guest memory that is no RAM, and whose bytes are a file's.
#[derive(Debug)]
pub struct Persistent {
    /// The file; it is mapped shared.
    pub file: File,
    /// Bytes of it.
    pub size: u64,
    /// Whether it is to be on stable storage when the machine has ended.
    pub lasting: bool,
    /// Gets the range's first address.
    pub place: Arc<OnceLock<u64>>,
}

/// All memory of a guest.
pub struct Memory {
    /// What devices reach.
    pub all: Arc<GuestRam>,
    ram: u64,
    persistent: Vec<Persistent>,
}

impl Memory {
    /// Bytes of RAM.
    pub fn ram(&self) -> u64 {
        self.ram
    }

    /// Pieces of it: (first address, bytes, whether it is RAM).
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64, bool)> {
        let is_ram = |start: u64| self.persistent.iter().all(|range| range.place.get() != Some(&start));
        self.all.iter().map(move |region| {
            let start = region.start_addr().0;
            (start, region.len(), is_ram(start))
        })
    }

    /// The address behind the last byte.
    pub fn end(&self) -> u64 {
        self.all.last_addr().0 + 1
    }

    /// Zeroes RAM, and gives it back to the host. Persistent memory is what it was.
    pub fn clear(&self) -> Result<(), VmmError> {
        for (region, (.., is_ram)) in self.all.iter().zip(self.pieces()) {
            let Some(place) = region.file_offset().filter(|_| is_ram) else { continue };
            fallocate(place.file(), FallocateMode::PunchHole, true, place.start(), region.len())
                .map_err(|error| VmmError::Memory(std::io::Error::from_raw_os_error(error.errno())))?;
        }
        Ok(())
    }

    /// What was written to lasting ranges is on stable storage.
    pub fn sync(&self) {
        for range in self.persistent.iter().filter(|range| range.lasting) {
            // The machine has ended: there is nobody left whom an error could stop.
            if let Err(error) = range.file.sync_data() {
                log::error!("persistent memory could not be written to its file: {error}");
            }
        }
    }
}

/// Makes `size` bytes of zeroed guest RAM on a memfd, and maps persistent memory behind it. The size is checked against what the host can give
/// first, since a memfd alone would promise anything and the guest would die later.
pub fn allocate(size: u64, persistent: Vec<Persistent>) -> Result<Memory, VmmError> {
    let available = available_memory();
    if available.is_some_and(|available| size > available) {
        return Err(VmmError::NoMemory { wanted: size, available: available.unwrap_or(0) });
    }
    let file = memfd(size).map_err(VmmError::Memory)?;
    let mut offset = 0;
    let mut ranges = Vec::new();
    for (address, length) in layout::ram_ranges(size) {
        let piece = file.try_clone().map_err(VmmError::Memory)?;
        ranges.push((GuestAddress(address), length as usize, Some(FileOffset::new(piece, offset))));
        offset += length;
    }
    let places = layout::persistent_ranges(size, persistent.iter().map(|range| range.size));
    for (range, (address, length)) in persistent.iter().zip(places) {
        let file = range.file.try_clone().map_err(VmmError::Memory)?;
        ranges.push((GuestAddress(address), length as usize, Some(FileOffset::new(file, 0))));
        // A place is given once, by the one machine that the range is in.
        range.place.get_or_init(|| address);
    }
    let all = GuestRam::from_ranges_with_files(ranges).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
    Ok(Memory { all: Arc::new(all), ram: size, persistent })
}

fn memfd(size: u64) -> std::io::Result<File> {
    // SAFETY: the name is a valid C string and the call has no other preconditions; the result is checked.
    let fd = unsafe { libc::memfd_create(c"rnic-guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Tells KVM about every piece of memory.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), VmmError> {
    put(vm, 0, ram)
}

/// Gives KVM the pieces of `ram` in slots from `first` on.
fn put(vm: &VmFd, first: u32, ram: &GuestRam) -> Result<(), VmmError> {
    for (slot, region) in ram.iter().enumerate() {
        let host = ram.get_host_address(region.start_addr()).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
        let slot = kvm_userspace_memory_region {
            slot: first + slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a live mapping of exactly `memory_size` bytes, owned by `ram`, which the VM keeps for
        // as long as the VM descriptor exists; slots do not overlap because what `layout` gives does not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(VmmError::kvm("giving memory to KVM"))?;
    }
    Ok(())
}

/// Pages of plain memory in place of device registers. Their slots come behind those of guest memory.
#[derive(Default)]
pub struct ExposedPages(Mutex<Vec<Option<ExposedPage>>>);

/// One of them, in the machine that it was put into: a reset may have put another in its place.
struct ExposedPage {
    address: u64,
    vm: Arc<VmFd>,
    _page: Arc<Page>,
}

/// The first of their slots.
const FIRST_EXPOSED: u32 = 256;
/// So many at once: each costs the host's kernel a slot to look through.
const MOST_EXPOSED: usize = 64;
const PAGE: u64 = 4096;

struct Page(GuestRam);

impl Exposed for Page {
    fn load(&self, at: u64) -> [u8; 8] {
        let start = self.0.iter().next().map_or(GuestAddress(0), |region| region.start_addr());
        self.0.load::<u64>(GuestAddress(start.0 + at % PAGE), Ordering::Acquire).unwrap_or_default().to_ne_bytes()
    }
}

impl ExposedPages {
    /// As [`pci::DoorbellHost::expose`].
    pub fn expose(&self, vm: Arc<VmFd>, address: u64) -> io::Result<Arc<dyn Exposed>> {
        let mut pages = self.0.lock();
        if pages.iter().flatten().any(|page| page.address == address) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let slot = pages.iter().position(Option::is_none).unwrap_or(pages.len());
        if slot >= MOST_EXPOSED {
            return Err(io::Error::other("no more pages can be exposed"));
        }
        let ram = GuestRam::from_ranges(&[(GuestAddress(address), PAGE as usize)]).map_err(io::Error::other)?;
        put(&vm, FIRST_EXPOSED + slot as u32, &ram).map_err(io::Error::other)?;
        let page = Arc::new(Page(ram));
        if slot == pages.len() {
            pages.push(None);
        }
        pages[slot] = Some(ExposedPage { address, vm, _page: page.clone() });
        Ok(page)
    }

    /// As [`pci::DoorbellHost::conceal`].
    pub fn conceal(&self, address: u64) -> io::Result<()> {
        let mut pages = self.0.lock();
        let found = pages.iter().enumerate().find_map(|(slot, page)| {
            let page = page.as_ref().filter(|page| page.address == address)?;
            Some((slot, page.vm.clone()))
        });
        let (slot, vm) = found.ok_or(io::ErrorKind::NotFound)?;
        let gone = kvm_userspace_memory_region {
            slot: FIRST_EXPOSED + slot as u32,
            guest_phys_addr: address,
            ..Default::default()
        };
        // If this fails the page stays: KVM may still refer to it.
        // SAFETY: a slot of no bytes is none; KVM refers to no memory by it.
        unsafe { vm.set_user_memory_region(gone) }.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        pages[slot] = None;
        Ok(())
    }
}

/// Bytes the host says it can give without swapping (MemAvailable), if it says.
pub fn available_memory() -> Option<u64> {
    available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_can_give_is_what_it_says() {
        assert_eq!(available("MemTotal:       24 kB\nMemAvailable:   23068672 kB\n"), Some(22 << 30));
        assert_eq!(available("MemTotal: 24 kB"), None);
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn cleared_memory_reads_as_zeroes_on_both_sides_of_the_hole() {
        let memory = allocate(layout::RAM_HOLE + (4 << 20), Vec::new()).unwrap();
        for address in [0x1000, layout::RAM_HOLE - 8, layout::RAM_ABOVE_4G, layout::RAM_ABOVE_4G + (4 << 20) - 8] {
            memory.all.write_obj(u64::MAX, GuestAddress(address)).unwrap();
            memory.clear().unwrap();
            assert_eq!(memory.all.read_obj::<u64>(GuestAddress(address)).unwrap(), 0, "{address:#x}");
        }
    }

    #[test]
    fn persistent_memory_is_its_file_and_survives_a_reset() {
        let file = memfd(4 << 20).unwrap();
        let place = Arc::<OnceLock<u64>>::default();
        let range = Persistent { file: file.try_clone().unwrap(), size: 4 << 20, lasting: true, place: place.clone() };
        let memory = allocate(64 << 20, vec![range]).unwrap();
        let start = *place.get().unwrap();
        assert_eq!(memory.pieces().collect::<Vec<_>>(), [(0, 64 << 20, true), (start, 4 << 20, false)]);
        assert_eq!((memory.ram(), memory.end()), (64 << 20, start + (4 << 20)));
        memory.all.write_obj(7u64, GuestAddress(0x1000)).unwrap();
        memory.all.write_obj(8u64, GuestAddress(start + 0x1000)).unwrap();
        memory.clear().unwrap();
        memory.sync();
        assert_eq!(memory.all.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
        let mut bytes = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0x1000).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), 8);
    }
}
