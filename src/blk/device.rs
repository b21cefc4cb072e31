// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio-blk device (virtio 1.2 §5.2): features, configuration space, start and stop of its worker.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::{BlockError, Disk};
use super::handle::DiskHandle;
use super::hooks::{DiskInjections, Levers};
use super::request::{MAX_DISCARD_SEGMENTS, MAX_ZERO_SECTORS, MAX_ZERO_SEGMENTS};
use super::stats::Counters;
use super::worker::Worker;
use crate::hooks::DiskLedger;
use probe::ledger::Ledger;
use virtio::{ActivateError, Activation, VirtioDevice, VirtioInterrupt};

/// Feature bits (virtio 1.2 §5.2.3 and §6).
pub(super) mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Offset of `writeback` in struct virtio_blk_config (§5.2.4).
const WRITEBACK_OFFSET: u64 = 32;
/// Device type (§5).
const TYPE_BLOCK: u16 = 2;
/// Bytes of a serial number (§5.2.6, GET_ID).
pub(super) const SERIAL_BYTES: usize = 20;

/// How a disk is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub readonly: bool,
    /// Queues, 1 to 8.
    pub queues: u16,
    /// Descriptors a queue, a power of two from 4 to 1,024.
    pub queue_size: u16,
    /// Returned by GET_ID, at most 20 bytes.
    pub serial: String,
    /// Keeps the log of unflushed writes that power cuts are made from.
    pub track: bool,
}

impl DiskConfig {
    /// A writable disk with one queue of 256 and no log.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readonly: false, queues: 1, queue_size: 256, serial: String::new(), track: false }
    }

    fn check(&self) -> Result<(), BlockError> {
        if !(1..=8).contains(&self.queues) {
            return Err(BlockError::Queues(self.queues));
        }
        if !self.queue_size.is_power_of_two() || !(4..=1024).contains(&self.queue_size) {
            return Err(BlockError::QueueSize(self.queue_size));
        }
        if self.serial.len() > SERIAL_BYTES {
            return Err(BlockError::Serial(self.serial.clone()));
        }
        Ok(())
    }
}

/// What the device, its worker and its handles share.
///
/// Locks, in the order in which they may nest: `disk`, then the lever table or the ledger's own. The disk's lock is held
/// across a request's data and again across its completion; whoever else takes it (a power cut, a swap) sees the disk
/// between two steps of the worker, never within one.
pub(super) struct Shared {
    pub(super) index: u8,
    pub(super) config: DiskConfig,
    pub(super) disk: Mutex<Disk>,
    /// Sectors of 512 bytes.
    pub(super) capacity: AtomicU64,
    /// The cache mode, which is also the writeback field of the configuration space: when it is off, a write is on stable storage
    /// before it completes. On before negotiation and when the driver can flush; the driver changes it with CONFIG_WCE only.
    pub(super) writeback: AtomicBool,
    pub(super) levers: Levers,
    pub(super) injections: Arc<DiskInjections>,
    pub(super) counters: Counters,
    /// The worker has orders to look at, or is to stop.
    pub(super) wake: EventFd,
    pub(super) stop: AtomicBool,
    /// Names of requests, never used twice.
    pub(super) next_token: AtomicU64,
    /// Requests and power cuts are put on record here.
    pub(super) ledger: Arc<Ledger>,
    /// Set when a transport takes the device.
    pub(super) interrupt: OnceLock<Arc<dyn VirtioInterrupt>>,
}

impl Shared {
    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock()
    }

    /// Changes the capacity that the driver reads, and tells it so.
    pub(super) fn set_capacity(&self, sectors: u64) {
        let mut change = || self.capacity.store(sectors, Ordering::Release);
        match self.interrupt.get() {
            Some(interrupt) => interrupt.change_config(&mut change),
            None => change(),
        }
    }

    pub(super) fn wake(&self) {
        // EAGAIN means that the counter is full: the worker is awake.
        let _ = self.wake.write(1);
    }
}

/// The device, owned by its transport.
pub struct BlockDevice {
    shared: Arc<Shared>,
    queue_sizes: Vec<u16>,
    /// Agreed on at FEATURES_OK; none before.
    features: u64,
    worker: Option<JoinHandle<()>>,
}

impl BlockDevice {
    /// Opens and locks the disk. `index` names it in `ledger`.
    pub fn open(index: u8, config: DiskConfig, ledger: Arc<Ledger>) -> Result<(Self, DiskHandle), BlockError> {
        config.check()?;
        let disk = Disk::open(&config.path, config.readonly, config.track)?;
        let shared = Arc::new(Shared {
            index,
            capacity: AtomicU64::new(disk.capacity),
            disk: Mutex::new(disk),
            writeback: AtomicBool::new(true),
            levers: Levers::default(),
            injections: Arc::new(DiskInjections::on_record(&ledger, format!("disk{index}"))),
            counters: Counters::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BlockError::Wake)?,
            stop: AtomicBool::new(false),
            next_token: AtomicU64::new(1),
            ledger,
            interrupt: OnceLock::new(),
            config,
        });
        let queue_sizes = vec![shared.config.queue_size; shared.config.queues.into()];
        let handle = DiskHandle::new(shared.clone());
        Ok((Self { shared, queue_sizes, features: 0, worker: None }, handle))
    }

    /// struct virtio_blk_config up to write_zeroes_may_unmap and its padding (§5.2.4).
    fn config_space(&self) -> [u8; 60] {
        let config = &self.shared.config;
        let mut space = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.shared.capacity.load(Ordering::Acquire).to_le_bytes());
        // seg_max: header and status take two descriptors of a chain that is no longer than the queue.
        put(12, &u32::from(config.queue_size - 2).to_le_bytes());
        put(20, &512_u32.to_le_bytes()); // blk_size
        put(WRITEBACK_OFFSET as usize, &[u8::from(self.shared.writeback.load(Ordering::Acquire))]);
        put(34, &config.queues.to_le_bytes());
        if !config.readonly {
            put(36, &MAX_ZERO_SECTORS.to_le_bytes()); // max_discard_sectors
            put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
            put(44, &8_u32.to_le_bytes()); // discard_sector_alignment: a page of the host's file
            put(48, &MAX_ZERO_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
            put(52, &MAX_ZERO_SEGMENTS.to_le_bytes());
            put(56, &[1]); // write_zeroes_may_unmap
        }
        space
    }

    fn stop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if worker.join().is_err() {
            log::error!("disk {}: its worker had panicked", self.shared.index);
        }
        self.shared.stop.store(false, Ordering::Release);
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.stop();
    }
}

impl VirtioDevice for BlockDevice {
    fn device_type(&self) -> u16 {
        TYPE_BLOCK
    }

    fn features(&self) -> u64 {
        use feature::*;
        let common = VERSION_1 | EVENT_IDX | INDIRECT_DESC | SEG_MAX | BLK_SIZE | FLUSH | CONFIG_WCE | MQ;
        common | if self.shared.config.readonly { RO } else { DISCARD | WRITE_ZEROES }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn attach(&mut self, interrupt: Arc<dyn VirtioInterrupt>) {
        if self.shared.interrupt.set(interrupt).is_err() {
            log::error!("disk {}: it has a transport already", self.shared.index);
        }
    }

    fn features_ok(&mut self, features: u64) {
        self.features = features;
        // §5.2.5.2 with CONFIG_WCE; §5.2.6.2 without: a driver that cannot flush gets write-through.
        self.shared.writeback.store(features & feature::FLUSH != 0, Ordering::Release);
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = start.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        // Only `writeback` can be written, only with its feature, and only as the one byte that it is.
        if self.features & feature::CONFIG_WCE != 0
            && let (WRITEBACK_OFFSET, [value]) = (offset, data)
        {
            self.shared.writeback.store(*value != 0, Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::NoQueue);
        }
        self.stop();
        self.shared.ledger.register_disk(self.shared.index, &self.shared.counters.ops);
        let worker = Worker::new(self.shared.clone(), activation)?;
        let name = format!("blk{}", self.shared.index);
        self.worker = Some(std::thread::Builder::new().name(name).spawn(move || worker.run())?);
        Ok(())
    }

    fn reset(&mut self) {
        self.stop();
        // Nothing is negotiated: configuration space shows what is offered (virtio 1.2 §2.5.2).
        self.features = 0;
        self.shared.writeback.store(true, Ordering::Release);
    }
}
