// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest RAM: one memfd, mapped shared, handed to KVM as memory slots. `unsafe` lives here for the slot calls.
#![allow(unsafe_code, reason = "KVM is given addresses of guest memory")]

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::{VmmError, layout};
use dma::GuestRam;

/// Makes `size` bytes of zeroed guest RAM on a memfd. The size is checked against what the host can give first, since a
/// memfd alone would promise anything and the guest would die later.
pub fn allocate(size: u64) -> Result<Arc<GuestRam>, VmmError> {
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
    let ram = GuestRam::from_ranges_with_files(ranges).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
    Ok(Arc::new(ram))
}

/// How much of it there is, in bytes.
pub fn size(ram: &GuestRam) -> u64 {
    ram.iter().map(|region| region.len()).sum()
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

/// Zeroes all of it, and gives it back to the host.
pub fn clear(ram: &GuestRam) -> Result<(), VmmError> {
    for region in ram.iter() {
        let Some(place) = region.file_offset() else { continue };
        fallocate(place.file(), FallocateMode::PunchHole, true, place.start(), region.len())
            .map_err(|error| VmmError::Memory(std::io::Error::from_raw_os_error(error.errno())))?;
    }
    Ok(())
}

/// Tells KVM about every piece of RAM.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), VmmError> {
    for (slot, region) in ram.iter().enumerate() {
        let host = ram.get_host_address(region.start_addr()).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a live mapping of exactly `memory_size` bytes, owned by `ram`, which the VM keeps for
        // as long as the VM descriptor exists; slots do not overlap because `layout::ram_ranges` does not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(VmmError::kvm("giving RAM to KVM"))?;
    }
    Ok(())
}

/// Bytes the host says it can give without swapping (MemAvailable), if it says.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn cleared_memory_reads_as_zeroes_on_both_sides_of_the_hole() {
        let ram = allocate(layout::RAM_HOLE + (4 << 20)).unwrap();
        for address in [0x1000, layout::RAM_HOLE - 8, layout::RAM_ABOVE_4G, layout::RAM_ABOVE_4G + (4 << 20) - 8] {
            ram.write_obj(u64::MAX, GuestAddress(address)).unwrap();
            clear(&ram).unwrap();
            assert_eq!(ram.read_obj::<u64>(GuestAddress(address)).unwrap(), 0, "{address:#x}");
        }
    }
}
