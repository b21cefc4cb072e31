// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the door needs of a memory. KVM's memory is one; the mappings of a vfio-user client can be another.

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice};

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
        // A guest has two or three regions: a look at each is quicker than a search.
        let inside = |region: &<Self as GuestMemoryBackend>::R| {
            addr.checked_sub(region.start_addr().0).filter(|at| *at < region.len())
        };
        let (region, at) = self.iter().find_map(|region| Some((region, inside(region)?)))?;
        let run = (region.len() - at).min(len);
        region.get_slice(MemoryRegionAddress(at), run as usize).ok()
    }

    fn bytes(&self) -> u64 {
        self.iter().map(GuestMemoryRegion::len).sum()
    }
}
