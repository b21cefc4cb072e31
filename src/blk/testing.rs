// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small virtio-blk driver over its own guest memory: what a guest would do, without a guest.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::feature;
use super::{BlockDevice, DiskConfig, DiskHandle};
use dma::{BusMaster, DmaTarget, GuestRam};
use probe::Patience;
use probe::ledger::Ledger;
use virtio::{Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};

/// Guest memory: 32 MiB, data from 16 MiB on.
pub const RAM_BYTES: u64 = 32 << 20;
pub const DATA: u64 = 16 << 20;
/// Area of each queue.
const QUEUE_AREA: u64 = 1 << 20;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
const HEADERS: u64 = 0x1_0000;
const TABLES: u64 = 0x2_0000;
/// Descriptors and table entries of one request.
const SLOT_DESCRIPTORS: u16 = 8;
const TABLE_BYTES: u64 = 0x1000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const SOON: Duration = Duration::from_secs(10);

/// Counts what the device tells the driver.
#[derive(Default)]
pub struct Irq {
    pub used: AtomicU64,
    pub config: AtomicU64,
    pub needs_reset: AtomicU64,
}

impl VirtioInterrupt for Irq {
    fn used(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }
    fn change_config(&self, change: &mut dyn FnMut()) {
        change();
        self.config.fetch_add(1, Ordering::SeqCst);
    }
    fn needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// One queue, the driver's side.
struct Ring {
    base: u64,
    size: u16,
    kick: Arc<EventFd>,
    avail: u16,
    used: u16,
    free: Vec<u16>,
    done: HashMap<u16, u32>,
}

/// A request that the driver has made available.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    pub queue: usize,
    pub head: u16,
}

/// Device and driver. The file lives in `dir`.
pub struct Driver {
    pub device: BlockDevice,
    pub handle: DiskHandle,
    pub ram: Arc<GuestRam>,
    pub ledger: Arc<Ledger>,
    pub master: Arc<BusMaster>,
    pub irq: Arc<Irq>,
    pub dir: TempDir,
    pub config: DiskConfig,
    /// Features to agree on.
    pub features: u64,
    /// All requests by way of indirect tables.
    pub indirect: bool,
    /// Bytes that the device says it wrote, of the request that was seen to complete last.
    pub used_len: u32,
    rings: Vec<Ring>,
}

impl Driver {
    /// A disk of `sectors` sectors, made active; `change` may alter its configuration.
    pub fn new(sectors: u64, change: impl FnOnce(&mut DiskConfig)) -> Self {
        let mut driver = Self::inactive(sectors, change);
        driver.activate();
        driver
    }

    pub fn inactive(sectors: u64, change: impl FnOnce(&mut DiskConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::File::create(&path).unwrap().set_len(sectors * 512).unwrap();
        let mut config = DiskConfig::new(path);
        config.queue_size = 64;
        change(&mut config);
        let ledger = Ledger::new();
        let (mut device, handle) = BlockDevice::open(0, config.clone(), ledger.clone()).unwrap();
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap());
        let master = Arc::new(BusMaster::default());
        master.set(true);
        let features = device.features();
        let irq = Arc::<Irq>::default();
        device.attach(irq.clone());
        let (indirect, used_len, rings) = (false, 0, Vec::new());
        Self { device, handle, ram, ledger, master, irq, dir, config, features, indirect, used_len, rings }
    }

    /// Sets up empty rings and starts the device, as after a reset.
    pub fn activate(&mut self) {
        self.set_up_rings();
        self.start();
    }

    pub fn set_up_rings(&mut self) {
        self.rings = (0..self.config.queues).map(|q| Ring::new(q, self.config.queue_size)).collect();
        for ring in &self.rings {
            self.ram.write_slice(&[0; 0x1_0000], GuestAddress(ring.base)).unwrap();
        }
    }

    /// DRIVER_OK.
    pub fn start(&mut self) {
        let queues = self.rings.iter().zip(0..).map(|(ring, index)| ring.activate(index)).collect();
        self.activate_with(queues).unwrap();
    }

    pub fn activate_with(&mut self, queues: Vec<ActiveQueue>) -> Result<(), virtio::ActivateError> {
        // As the transport does, at FEATURES_OK.
        self.device.features_ok(self.features);
        let dma = DmaTarget::new(8, self.ram.clone(), self.master.clone());
        self.device.activate(Activation { dma, queues, interrupt: self.irq.clone(), features: self.features })
    }

    pub fn image(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The file behind the disk, `len` bytes from sector `lba`.
    pub fn on_disk(&self, lba: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        std::fs::File::open(self.handle.path()).unwrap().read_exact_at(&mut bytes, lba * 512).unwrap();
        bytes
    }

    pub fn put(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub fn get(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    // ---- requests ----

    /// Makes a request available and kicks.
    pub fn submit(&mut self, queue: usize, kind: u32, sector: u64, data: &[(u64, u32)]) -> Ticket {
        let ticket = self.prepare(queue, kind, sector, data);
        self.publish(queue, &[ticket.head]);
        self.kick(queue);
        ticket
    }

    /// Writes the descriptors of a request.
    pub fn prepare(&mut self, queue: usize, kind: u32, sector: u64, data: &[(u64, u32)]) -> Ticket {
        let device_writes = matches!(kind, IN | GET_ID);
        let ring = &mut self.rings[queue];
        let slot = ring.free.pop().expect("the driver has a free slot");
        let (head, header) = (slot * SLOT_DESCRIPTORS, ring.header(slot));
        let mut raw = [0; 16];
        raw[..4].copy_from_slice(&kind.to_le_bytes());
        raw[8..].copy_from_slice(&sector.to_le_bytes());
        self.ram.write_slice(&raw, GuestAddress(header)).unwrap();
        self.ram.write_obj(0xee_u8, GuestAddress(header + 16)).unwrap();
        let mut chain = vec![(header, 16, 0)];
        chain.extend(data.iter().map(|&(gpa, len)| (gpa, len, if device_writes { WRITE } else { 0 })));
        chain.push((header + 16, 1, WRITE));
        if self.indirect || chain.len() > SLOT_DESCRIPTORS.into() {
            let table = self.rings[queue].base + TABLES + u64::from(slot) * TABLE_BYTES;
            assert!(chain.len() * 16 <= TABLE_BYTES as usize);
            self.write_chain(table, 0, &chain);
            self.descriptor(queue, head, table, chain.len() as u32 * 16, INDIRECT, 0);
        } else {
            self.write_chain(self.rings[queue].base, head, &chain);
        }
        Ticket { queue, head }
    }

    /// Writes linked descriptors from index `first` of the table at `table`.
    pub fn write_chain(&self, table: u64, first: u16, chain: &[(u64, u32, u16)]) {
        for (&(gpa, len, flags), at) in chain.iter().zip(first..) {
            let last = at - first + 1 == chain.len() as u16;
            let flags = if last { flags } else { flags | NEXT };
            self.raw_descriptor(table + u64::from(at) * 16, gpa, len, flags, at + 1);
        }
    }

    pub fn descriptor(&self, queue: usize, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        self.raw_descriptor(self.rings[queue].base + u64::from(index) * 16, gpa, len, flags, next);
    }

    fn raw_descriptor(&self, at: u64, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&gpa.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.ram.write_slice(&raw, GuestAddress(at)).unwrap();
    }

    /// Puts heads into the available ring.
    pub fn publish(&mut self, queue: usize, heads: &[u16]) {
        let ring = &mut self.rings[queue];
        for head in heads {
            let at = ring.base + AVAIL + 4 + u64::from(ring.avail % ring.size) * 2;
            self.ram.write_obj(head.to_le(), GuestAddress(at)).unwrap();
            ring.avail = ring.avail.wrapping_add(1);
        }
        let idx = GuestAddress(ring.base + AVAIL + 2);
        self.ram.store(ring.avail.to_le(), idx, Ordering::Release).unwrap();
    }

    /// Any number into the available ring's index.
    pub fn set_avail_idx(&self, queue: usize, idx: u16) {
        self.ram.write_obj(idx.to_le(), GuestAddress(self.rings[queue].base + AVAIL + 2)).unwrap();
    }

    /// After how many used buffers the device is to notify (EVENT_IDX).
    pub fn set_used_event(&self, queue: usize, event: u16) {
        let ring = &self.rings[queue];
        let at = ring.base + AVAIL + 4 + u64::from(ring.size) * 2;
        self.ram.write_obj(event.to_le(), GuestAddress(at)).unwrap();
    }

    pub fn ring_area(&self, queue: usize) -> u64 {
        self.rings[queue].base
    }

    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    /// Collects what the device used; the status of `ticket` if it is done.
    pub fn poll(&mut self, ticket: Ticket) -> Option<u8> {
        let ring = &mut self.rings[ticket.queue];
        let idx: u16 = self.ram.load(GuestAddress(ring.base + USED + 2), Ordering::Acquire).unwrap();
        while ring.used != u16::from_le(idx) {
            let at = ring.base + USED + 4 + u64::from(ring.used % ring.size) * 8;
            let element: [u8; 8] = self.ram.read_obj(GuestAddress(at)).unwrap();
            let head = u16::from_le_bytes([element[0], element[1]]);
            let len = u32::from_le_bytes(element[4..].try_into().unwrap());
            assert!(ring.done.insert(head, len).is_none(), "head {head} was used twice");
            ring.used = ring.used.wrapping_add(1);
        }
        self.used_len = ring.done.remove(&ticket.head)?;
        let slot = ticket.head / SLOT_DESCRIPTORS;
        ring.free.push(slot);
        Some(self.ram.read_obj(GuestAddress(ring.header(slot) + 16)).unwrap())
    }

    /// The status of a request that completes soon.
    pub fn wait(&mut self, ticket: Ticket) -> u8 {
        self.wait_for(ticket, SOON).expect("the request completes")
    }

    pub fn wait_for(&mut self, ticket: Ticket, timeout: Duration) -> Option<u8> {
        let mut patience = Patience::new(timeout);
        loop {
            if let Some(status) = self.poll(ticket) {
                return Some(status);
            }
            if patience.is_over() {
                return None;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn run(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> u8 {
        let ticket = self.submit(0, kind, sector, data);
        self.wait(ticket)
    }

    /// Writes 4 KiB of `byte` from its own page at sector `lba`.
    pub fn write_page(&mut self, lba: u64, byte: u8) -> u8 {
        self.put(DATA, &[byte; 4096]);
        self.run(OUT, lba, &[(DATA, 4096)])
    }

    /// Waits for something else than a completion.
    pub fn until(what: &str, mut done: impl FnMut() -> bool) {
        let mut patience = Patience::new(SOON);
        while !done() {
            assert!(!patience.is_over(), "{what} did not happen");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    pub fn failed(&self) -> bool {
        self.irq.needs_reset.load(Ordering::SeqCst) != 0
    }

    pub fn await_failure(&self) {
        Self::until("needs_reset", || self.failed());
    }

    /// Starts over after a failure, and shows that the device works.
    pub fn recover(&mut self) {
        self.device.reset();
        self.irq.needs_reset.store(0, Ordering::SeqCst);
        self.features = self.device.features() & !feature::EVENT_IDX;
        self.activate();
        assert_eq!(self.write_page(0, 0x5a), super::S_OK);
        assert_eq!(self.on_disk(0, 4096), [0x5a; 4096]);
    }
}

impl Ring {
    fn new(index: u16, size: u16) -> Self {
        Self {
            base: QUEUE_AREA * (u64::from(index) + 1),
            size,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            avail: 0,
            used: 0,
            free: (0..size / SLOT_DESCRIPTORS).rev().collect(),
            done: HashMap::new(),
        }
    }

    fn header(&self, slot: u16) -> u64 {
        self.base + HEADERS + u64::from(slot) * 32
    }

    pub fn activate(&self, index: u16) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some((self.base + AVAIL) as u32), Some(0));
        queue.set_used_ring_address(Some((self.base + USED) as u32), Some(0));
        queue.set_ready(true);
        ActiveQueue { index, queue, kick: self.kick.clone() }
    }
}
