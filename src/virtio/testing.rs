// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small virtio device, and a driver that finds everything the way a guest does: through configuration space.
#![allow(missing_docs, reason = "fields and methods say what they are by their names")]
#![allow(clippy::new_without_default, reason = "a rig is made for one test, not by a derive")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vm_memory::GuestAddress;

use super::VirtioPci;
use crate::{ActivateError, Activation, VirtioDevice, VirtioInterrupt};
use dma::GuestRam;
use pci::PciBus;
use pci::testing::{FakeHost, FakeRouter, config_u32, set_command, set_config_u32};

/// Bytes of guest RAM, from address 0.
pub const RAM: u64 = 1 << 20;
/// Slot of the device.
pub const SLOT: u8 = 1;
/// First byte of the 64-bit BAR window.
pub const WINDOW: u64 = 0x10_0000_0000;

/// What the fake device was told.
#[derive(Default)]
pub struct Told {
    /// From the beginning on.
    pub interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// Since FEATURES_OK.
    pub features: Option<u64>,
    pub activation: Option<Activation>,
    pub activations: usize,
    pub resets: usize,
    pub fail: bool,
}

/// Two queues (256 and 64 entries), features 0x15 and RING_PACKED, which the transport must hide; four bytes of configuration that
/// the driver writes, and at 8 a word of 8 bytes that only the device changes.
struct FakeDevice {
    told: Arc<Mutex<Told>>,
    config: [u8; 4],
    word: Arc<AtomicU64>,
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u16 {
        2
    }

    fn features(&self) -> u64 {
        0x15 | 1 << 29 | 1 << 32 | 1 << 34
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn attach(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        self.told.lock().interrupt = Some(interrupt);
    }

    fn features_ok(&mut self, features: u64) {
        self.told.lock().features = Some(features);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 16];
        space[..4].copy_from_slice(&self.config);
        space[8..].copy_from_slice(&self.word.load(Ordering::Relaxed).to_le_bytes());
        for (at, byte) in (offset..).zip(data) {
            *byte = space.get(at as usize).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.config.get_mut(at as usize).into_iter().for_each(|cell| *cell = *byte);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut told = self.told.lock();
        told.activations += 1;
        if told.fail || activation.queues.is_empty() {
            return Err(ActivateError::NoQueue);
        }
        told.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        let mut told = self.told.lock();
        told.resets += 1;
        (told.activation, told.features) = (None, None);
    }
}

/// The device on a bus, decoding and mastering, MSI-X enabled with all vectors unmasked.
pub struct Rig {
    pub bus: PciBus,
    pub host: Arc<FakeHost>,
    pub router: Arc<FakeRouter>,
    pub told: Arc<Mutex<Told>>,
    /// The device's own word of configuration space.
    pub word: Arc<AtomicU64>,
    /// BAR addresses of common configuration, notifications, ISR and device configuration, as the capabilities say.
    pub common: u64,
    pub notify: u64,
    pub isr: u64,
    pub device: u64,
    pub msix: u64,
    pub msix_at: u16,
    pub access_at: u16,
    pub power_at: u16,
}

impl Rig {
    pub fn new() -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let word = Arc::new(AtomicU64::new(0));
        let device = FakeDevice { told: told.clone(), config: [1, 2, 3, 4], word: word.clone() };
        Self { told, word, ..Self::with(Box::new(device)) }
    }

    /// Around any device with two queues of at least 64 entries; nothing writes into `told` and nothing reads `word`.
    pub fn with(device: Box<dyn VirtioDevice>) -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
        let (host, router) = (Arc::new(FakeHost::default()), Arc::new(FakeRouter::default()));
        let bus = PciBus::new(host.clone(), 0xc000_0000..0xd000_0000, WINDOW..WINDOW * 2);
        let function = VirtioPci::new(device, PciBus::requester(SLOT), ram, router.clone()).unwrap();
        bus.add(Arc::new(Mutex::new(function))).unwrap();
        let mut rig = Self {
            bus,
            host,
            router,
            told: Arc::default(),
            word: Arc::default(),
            common: 0,
            notify: 0,
            isr: 0,
            device: 0,
            msix: 0,
            msix_at: 0,
            access_at: 0,
            power_at: 0,
        };
        rig.discover();
        set_command(&rig.bus, SLOT, 6);
        set_config_u32(&rig.bus, SLOT, rig.msix_at, 1 << 31);
        for vector in 0..3 {
            rig.write(rig.msix + vector * 16 + 12, &0_u32.to_le_bytes());
        }
        rig
    }

    fn bar(&self, index: u8) -> u64 {
        let at = 0x10 + 4 * u16::from(index);
        u64::from(config_u32(&self.bus, SLOT, at + 4)) << 32 | u64::from(config_u32(&self.bus, SLOT, at) & !0xf)
    }

    /// Walks the capability list (virtio 1.2 §4.1.4).
    fn discover(&mut self) {
        let mut at = config_u32(&self.bus, SLOT, 0x34) as u16 & 0xff;
        while at != 0 {
            let head = config_u32(&self.bus, SLOT, at);
            let address =
                || self.bar(config_u32(&self.bus, SLOT, at + 4) as u8) + u64::from(config_u32(&self.bus, SLOT, at + 8));
            match (head as u8, head >> 24) {
                (9, 1) => self.common = address(),
                (9, 2) => self.notify = address(),
                (9, 3) => self.isr = address(),
                (9, 4) => self.device = address(),
                (9, 5) => self.access_at = at,
                (1, _) => self.power_at = at,
                (0x11, _) => (self.msix_at, self.msix) = (at, self.bar(config_u32(&self.bus, SLOT, at + 4) as u8 & 7)),
                _ => {}
            }
            at = head as u16 >> 8;
        }
    }

    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        assert!(self.bus.mmio_read(address, &mut data));
        data
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        assert!(self.bus.mmio_write(address, data));
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(self.common + 0x14)[0]
    }

    pub fn set_status(&self, status: u8) {
        self.write(self.common + 0x14, &[status]);
    }

    pub fn u16_at(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(self.common + offset))
    }

    pub fn set_u16(&self, offset: u64, value: u16) {
        self.write(self.common + offset, &value.to_le_bytes());
    }

    pub fn set_u32(&self, offset: u64, value: u32) {
        self.write(self.common + offset, &value.to_le_bytes());
    }

    pub fn offered(&self, window: u32) -> u32 {
        self.set_u32(0, window);
        u32::from_le_bytes(self.read(self.common + 4))
    }

    pub fn accept(&self, window: u32, bits: u32) {
        self.set_u32(8, window);
        self.set_u32(0xc, bits);
    }

    /// Up to and with FEATURES_OK.
    pub fn negotiate(&self) {
        self.set_status(1);
        self.set_status(3);
        self.accept(0, 0x5 | 1 << 29);
        self.accept(1, 1);
        self.set_status(0xb);
        assert_eq!(self.status(), 0xb);
    }

    /// Sets up and enables a queue of 64 entries with vector `queue + 1`.
    pub fn queue(&self, queue: u16, rings: [u64; 3]) {
        self.set_u16(0x16, queue);
        self.set_u16(0x18, 64);
        self.set_u16(0x1a, queue + 1);
        for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            // Two halves, as virtio 1.2 §4.1.3.1 has drivers do.
            self.set_u32(offset, address as u32);
            self.set_u32(offset + 4, (address >> 32) as u32);
        }
        self.set_u16(0x1c, 1);
    }

    /// All the way to DRIVER_OK with both queues.
    pub fn start(&self) {
        self.negotiate();
        self.set_u16(0x10, 0);
        self.queue(0, [0x1000, 0x2000, 0x3000]);
        self.queue(1, [0x4000, 0x5000, 0x6000]);
        self.set_status(0xf);
    }

    /// Doorbells attached now.
    pub fn doorbells(&self) -> usize {
        assert!(!self.host.broken.load(Ordering::Relaxed));
        self.host.attached.lock().len()
    }
}
