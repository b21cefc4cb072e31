// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSI-X (PCIe base 6.0 §6.1.4 and §7.7.2): vector table, pending bits, masks.
//!
//! A vector that is triggered while masked latches in the pending bit array and is replayed once when it is unmasked. So does one that
//! is triggered while the function may not write memory: a message is a memory write (§7.5.1.1.3).
//! Each vector has its own lock, under which it is masked, unmasked, triggered and routed; the function-wide bits are stored first
//! and then every vector is visited under its lock, so that neither order of "trigger" and "unmask" loses a message, and no
//! message leaves once a mask write has completed.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::MsiRouter;
use super::capability::{Capability, ID_MSIX};
use super::rate_limit::RateLimit;

/// Message Control, relative to the capability (PCIe base 7.7.2.2).
pub const MESSAGE_CONTROL: u16 = 2;
/// Bytes of one table entry.
pub const ENTRY_SIZE: u64 = 16;
/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 2048;

const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// Not a bit of Message Control: the function may write memory, and a message is a memory write.
const MAY_WRITE: u16 = 1;
const VECTOR_MASKED: u32 = 1;

/// Where table and pending bits lie. Both in one BAR, offsets multiples of 8.
#[derive(Debug, Clone, Copy)]
pub struct MsixPlace {
    /// BAR index.
    pub bar: u8,
    /// Byte offset of the vector table.
    pub table: u32,
    /// Byte offset of the pending bit array.
    pub pending: u32,
}

impl MsixPlace {
    /// A BAR of its own for `vectors` vectors: the table first, pending bits behind it. Returns the BAR's size too.
    pub fn own_bar(bar: u8, vectors: u16) -> (Self, u64) {
        let table = (u32::from(vectors.clamp(1, MAX_VECTORS)) * ENTRY_SIZE as u32).next_power_of_two().max(2048);
        (Self { bar, table: 0, pending: table }, u64::from(table) * 2)
    }
}

struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    /// The message that the router knows.
    routed: Option<(u64, u32)>,
}

impl Vector {
    const INITIAL: Self = Self { address: 0, data: 0, masked: true, pending: false, routed: None };

    fn dword(&self, index: u64) -> u32 {
        match index {
            0 => self.address as u32,
            1 => (self.address >> 32) as u32,
            2 => self.data,
            _ => u32::from(self.masked),
        }
    }

    fn set_dword(&mut self, index: u64, value: u32) {
        match index {
            // The two lowest address bits are reserved: messages are dwords.
            0 => self.address = self.address & !0xffff_ffff | u64::from(value & !3),
            1 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & VECTOR_MASKED != 0,
        }
    }
}

/// The MSI-X state of one function. Shared between its registers and its engines.
pub struct Msix {
    vectors: Box<[Mutex<Vector>]>,
    control: AtomicU16,
    place: MsixPlace,
    router: Arc<dyn MsiRouter>,
    wrong_sizes: RateLimit,
    failures: RateLimit,
}

impl Msix {
    /// `vectors` vectors (1 to [`MAX_VECTORS`], clamped), all masked, MSI-X disabled.
    pub fn new(vectors: u16, place: MsixPlace, router: Arc<dyn MsiRouter>) -> Self {
        let count = vectors.clamp(1, MAX_VECTORS);
        Self {
            vectors: (0..count).map(|_| Mutex::new(Vector::INITIAL)).collect(),
            control: AtomicU16::new(0),
            place,
            router,
            wrong_sizes: RateLimit::default(),
            failures: RateLimit::default(),
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        // `new` made at most MAX_VECTORS.
        self.vectors.len() as u16
    }

    /// The capability that announces this table. Call [`Msix::set_control`] after each configuration write.
    pub fn capability(&self) -> Capability {
        let bar = u32::from(self.place.bar);
        Capability::new(ID_MSIX, 12)
            .value(2, &(self.vectors() - 1).to_le_bytes())
            .writable(2, &(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes())
            .value(4, &(self.place.table | bar).to_le_bytes())
            .value(8, &(self.place.pending | bar).to_le_bytes())
    }

    /// Delivers `vector`, or latches it while it is masked. Any thread. A vector beyond the table does nothing, as does any
    /// vector while MSI-X is disabled (PCIe base 6.1.4: the function would use INTx, which we do not have).
    pub fn trigger(&self, vector: u16) {
        let Some(mut state) = self.lock(vector) else { return };
        if self.control.load(Ordering::Acquire) & CONTROL_ENABLE != 0 {
            state.pending = true;
            self.settle(vector, &mut state);
        }
    }

    /// Follows Message Control, and whether the function may write memory. When it returns after a mask, or after bus mastering was
    /// switched off, no message is under way.
    pub fn set_control(&self, control: u16, may_write: bool) {
        let new = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK) | if may_write { MAY_WRITE } else { 0 };
        if self.control.swap(new, Ordering::AcqRel) != new {
            self.each(|index, vector| self.settle(index, vector));
        }
    }

    /// Whether the guest has enabled MSI-X.
    pub fn enabled(&self) -> bool {
        self.control.load(Ordering::Acquire) & CONTROL_ENABLE != 0
    }

    /// Forgets latched messages: the events behind them are void, as after a reset of the device's queues.
    pub fn clear_pending(&self) {
        self.each(|_, vector| vector.pending = false);
    }

    /// Power-on state: disabled, all masked, nothing pending.
    pub fn reset(&self) {
        self.control.store(0, Ordering::Release);
        self.each(|_, vector| *vector = Vector::INITIAL);
    }

    /// Whether this BAR offset belongs to the table or the pending bits.
    pub fn covers(&self, bar: u8, offset: u64) -> bool {
        bar == self.place.bar && (self.in_table(offset).is_some() || self.in_pending(offset).is_some())
    }

    /// Reads the BAR that holds the table. Holes and accesses that are not 4 or 8 aligned bytes read as all ones.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !self.right_size("read", offset, data.len()) {
            return;
        }
        for (dword, at) in data.chunks_exact_mut(4).zip((offset..).step_by(4)) {
            if let Some(value) = self.read_dword(at) {
                dword.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    /// Writes the BAR that holds the table. Holes and pending bits ignore writes; a wrong access size is a logged no-op.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if !self.right_size("write", offset, data.len()) {
            return;
        }
        let Some((vector, first)) = self.in_table(offset) else { return };
        let Some(mut state) = self.lock(vector) else { return };
        // An aligned access of 8 bytes never leaves the 16 bytes of its entry.
        for (dword, index) in data.chunks_exact(4).zip(first..) {
            state.set_dword(index, u32::from_le_bytes([dword[0], dword[1], dword[2], dword[3]]));
        }
        self.settle(vector, &mut state);
    }

    /// If the vector may speak now: tells the router what it says, and sends what is pending.
    fn settle(&self, index: u16, vector: &mut Vector) {
        let control = self.control.load(Ordering::Acquire);
        if control != CONTROL_ENABLE | MAY_WRITE || vector.masked {
            return;
        }
        let message = (vector.address, vector.data);
        if vector.routed != Some(message) {
            if let Err(error) = self.router.route(index, message.0, message.1) {
                vector.routed = None;
                // What is pending stays so, and is tried again at the next trigger or write.
                if let Some(count) = self.failures.next() {
                    log::error!("MSI-X vector {index} cannot be routed ({count} failures so far): {error}");
                }
                return;
            }
            vector.routed = Some(message);
        }
        if std::mem::take(&mut vector.pending) {
            self.router.trigger(index);
        }
    }

    fn read_dword(&self, offset: u64) -> Option<u32> {
        if let Some((vector, index)) = self.in_table(offset) {
            return self.lock(vector).map(|state| state.dword(index));
        }
        let first = self.in_pending(offset)?;
        let bit = |at: u16| u32::from(self.lock(first + at).is_some_and(|state| state.pending)) << at;
        Some((0..32).map(bit).fold(0, |all, bit| all | bit))
    }

    /// Vector and dword within its entry.
    fn in_table(&self, offset: u64) -> Option<(u16, u64)> {
        let at = offset.checked_sub(u64::from(self.place.table))?;
        let vector = u16::try_from(at / ENTRY_SIZE).ok().filter(|vector| *vector < self.vectors())?;
        Some((vector, at % ENTRY_SIZE / 4))
    }

    /// First vector of the pending dword. The array is whole qwords (PCIe base 7.7.2.7).
    fn in_pending(&self, offset: u64) -> Option<u16> {
        let at = offset.checked_sub(u64::from(self.place.pending))?;
        let qwords = u64::from(self.vectors().div_ceil(64));
        (at < qwords * 8).then(|| (at / 4 * 32) as u16)
    }

    fn lock(&self, vector: u16) -> Option<MutexGuard<'_, Vector>> {
        let state = self.vectors.get(usize::from(vector))?;
        Some(state.lock())
    }

    fn each(&self, mut visit: impl FnMut(u16, &mut Vector)) {
        for (index, vector) in (0..).zip(&self.vectors) {
            visit(index, &mut vector.lock());
        }
    }

    fn right_size(&self, what: &str, offset: u64, len: usize) -> bool {
        let right = matches!(len, 4 | 8) && offset.is_multiple_of(len as u64);
        if !right && let Some(count) = self.wrong_sizes.next() {
            log::warn!("MSI-X {what} of {len} bytes at {offset:#x} ignored ({count} so far): use 4 or 8 aligned bytes");
        }
        right
    }
}
