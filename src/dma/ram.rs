// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the door needs of a memory. KVM's memory is one; the mappings of a vfio-user client can be another.

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

/// Guest RAM as every device sees it: shared, mapped once, never moved while the guest lives.
pub type GuestRam = GuestMemoryMmap<()>;

/// A guest's memory, as host memory.
pub trait Ram: Send + Sync {
    /// Host memory of the bytes from `addr` (guest physical) on: at least one, at most `len`, and fewer where what lies together in the host
    /// ends. It is mapped by pages, so that what is aligned for the guest is so for the host. `None`: there is no RAM at `addr`. `len` is at least 1.
    fn find(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>>;

    /// Bytes of RAM in all.
    fn bytes(&self) -> u64;
}

impl Ram for GuestRam {
    fn find(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let (region, at) = self.to_region_addr(GuestAddress(addr))?;
        let run = (region.len() - at.raw_value()).min(len);
        region.get_slice(at, run as usize).ok()
    }

    fn bytes(&self) -> u64 {
        self.iter().map(GuestMemoryRegion::len).sum()
    }
}
