// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An HCA over a little guest memory, for the unit tests of this room. Whole drivers live in tests/driver.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::NicConfig;
use super::buffer::{Geometry, GuestBuffer};
use super::device_memory::DeviceMemory;
use super::hca::Hca;
use dma::{BusMaster, DmaTarget, GuestRam, Reach};
use pci::msix::{Msix, MsixPlace};
use pci::testing::FakeRouter;
use probe::ledger::Ledger;

/// Guest memory of the tests.
pub const RAM: u64 = 16 << 20;

pub struct Bench {
    pub hca: Arc<Hca>,
    pub router: Arc<FakeRouter>,
    pub master: Arc<BusMaster>,
    pub ram: Arc<GuestRam>,
}

impl Bench {
    /// Bus mastering on, MSI-X enabled with all vectors open.
    pub fn new() -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
        let master = Arc::new(BusMaster::default());
        master.set(true);
        let router = Arc::new(FakeRouter::default());
        let (place, _) = MsixPlace::own_bar(2, 8);
        let msix = Arc::new(Msix::new(8, place, router.clone()));
        msix.set_control(1 << 15, true);
        for vector in 0..8u64 {
            msix.write(vector * 16, &[0xfee0_0000u64.to_le_bytes()].concat());
            msix.write(vector * 16 + 8, &[0; 8]);
        }
        let own = Arc::new(DeviceMemory::new().unwrap());
        let reach = Reach { guest: ram.clone(), own: own.bytes.clone() };
        let dma = DmaTarget::new(8, Arc::new(reach), master.clone());
        let hca = Arc::new(Hca::new(0, NicConfig::default(), (dma, own), Ledger::new(), msix).unwrap());
        Self { hca, router, master, ram }
    }

    /// A buffer of `len` bytes over these pages of 4 KiB.
    pub fn buffer(&self, pages: &[u64], len: u64) -> GuestBuffer {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_be_bytes()).collect();
        GuestBuffer::new(Geometry::new(0, 0, len).unwrap(), &list).unwrap()
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}
