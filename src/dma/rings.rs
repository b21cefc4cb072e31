// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The door as the virtio-queue crate wants it: rings and descriptor tables are walked over a `&DmaTarget`.

use std::io;
use std::iter::FusedIterator;

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions, VolatileSlice,
};

use crate::{DmaError, DmaTarget, Permit};

impl GuestMemory for DmaTarget {
    /// Named because one must be; nobody gets it ([`GuestMemory::physical_memory`] is `None`).
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    /// A question and no access, so that it does not look at the switch.
    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.is_ram(addr.0, count as u64)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, ()>> {
        let permit = self.permit().map_err(refused)?;
        Ok(Slices { permit, addr: addr.0, left: count as u64 })
    }
}

/// The runs of a range, up to the first byte that is not RAM.
struct Slices<'a> {
    permit: Permit<'a>,
    addr: u64,
    left: u64,
}

impl<'a> Iterator for Slices<'a> {
    type Item = GuestMemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        match self.permit.run(self.addr, self.left) {
            Ok(run) => {
                self.addr += run.len() as u64;
                self.left -= run.len() as u64;
                Some(Ok(run))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(refused(error)))
            }
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

fn refused(error: DmaError) -> GuestMemoryError {
    GuestMemoryError::IOError(io::Error::other(error))
}
