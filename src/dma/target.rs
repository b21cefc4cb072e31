// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `DmaTarget`: requester id, guest memory and the bus-master switch in one value. A device that has none cannot touch memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thiserror::Error;
use vm_memory::AtomicAccess;

use crate::{Observer, Permit, Ram, Span};

/// Why a device was not let through the door. The device turns this into the status its specification names.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum DmaError {
    /// PCI command register bit 2 (Bus Master Enable, PCIe base 7.5.1.1.3) is clear.
    #[error("the guest has not enabled bus mastering for device {0:#06x}")]
    BusMasterOff(u16),
    /// Some byte of the range is not guest RAM, or the range wraps.
    #[error("device {requester:#06x} asked for {len} bytes at {addr:#x}, which is not all guest RAM")]
    OutsideRam {
        /// Bus, device and function of the requester.
        requester: u16,
        /// Guest physical address of the first byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A word that must be read or written at once is not aligned to its size.
    #[error("device {requester:#06x} asked for a word of {len} bytes at {addr:#x}, which is not aligned")]
    Misaligned {
        /// Bus, device and function of the requester.
        requester: u16,
        /// Guest physical address of the first byte.
        addr: u64,
        /// Size in bytes.
        len: u64,
    },
}

/// The Bus Master Enable bit of one function, shared between its configuration space and its engines.
#[derive(Debug, Default)]
pub struct BusMaster {
    enabled: AtomicBool,
    refused: AtomicU64,
}

impl BusMaster {
    /// Follows the command register.
    pub fn set(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Whether the function may start an access now.
    pub fn get(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Accesses refused since the device was made.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// A device's licence to reach guest memory. Clones share the switch and the counters.
///
/// Each access here looks at the switch by itself; [`DmaTarget::permit`] has one look for many.
#[derive(Clone)]
pub struct DmaTarget {
    requester: u16,
    ram: Arc<dyn Ram>,
    master: Arc<BusMaster>,
    observer: Option<Arc<dyn Observer>>,
}

impl DmaTarget {
    /// A target for the function `requester` (bus << 8 | device << 3 | function).
    pub fn new(requester: u16, ram: Arc<dyn Ram>, master: Arc<BusMaster>) -> Self {
        Self { requester, ram, master, observer: None }
    }

    /// The same, whose payload `observer` is told of.
    pub fn observed(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Bus, device and function.
    pub fn requester(&self) -> u16 {
        self.requester
    }

    /// Whether bus mastering is on.
    pub fn is_enabled(&self) -> bool {
        self.master.get()
    }

    /// Whether all of `len` bytes at `addr` are guest RAM, whatever the switch says: that is a question, and no access.
    pub fn is_ram(&self, addr: u64, len: u64) -> bool {
        let Some(end) = addr.checked_add(len) else { return false };
        let mut at = addr;
        while at < end {
            match self.ram.find(at, end - at) {
                Some(run) if !run.is_empty() => at += run.len() as u64,
                _ => return false,
            }
        }
        true
    }

    /// Bytes of guest RAM in all.
    pub fn ram_bytes(&self) -> u64 {
        self.ram.bytes()
    }

    /// Leave for one batch of accesses.
    ///
    /// # Errors
    /// Bus mastering is off.
    #[inline]
    pub fn permit(&self) -> Result<Permit<'_>, DmaError> {
        if self.master.get() {
            Ok(Permit { target: self })
        } else {
            self.refuse(DmaError::BusMasterOff(self.requester))
        }
    }

    /// See [`Permit::read`].
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM: nothing was copied.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), DmaError> {
        self.permit()?.read(addr, bytes)
    }

    /// See [`Permit::write`].
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM: nothing was copied.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), DmaError> {
        self.permit()?.write(addr, bytes)
    }

    /// See [`Permit::load`].
    ///
    /// # Errors
    /// Any [`DmaError`].
    pub fn load<T: AtomicAccess>(&self, addr: u64, order: Ordering) -> Result<T, DmaError> {
        self.permit()?.load(addr, order)
    }

    /// See [`Permit::store`].
    ///
    /// # Errors
    /// Any [`DmaError`].
    pub fn store<T: AtomicAccess>(&self, addr: u64, value: T, order: Ordering) -> Result<(), DmaError> {
        self.permit()?.store(addr, value, order)
    }

    /// See [`Permit::word`].
    ///
    /// # Errors
    /// Any [`DmaError`].
    pub fn word<T, E>(
        &self,
        addr: u64,
        with: impl FnOnce(&AtomicU64) -> Result<T, E>,
    ) -> Result<Result<T, E>, DmaError> {
        self.permit()?.word(addr, with)
    }

    /// See [`Permit::gather`].
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM: `into` is as it was.
    pub fn gather(&self, spans: &[Span], into: &mut Vec<u8>) -> Result<(), DmaError> {
        self.permit()?.gather(spans, into)
    }

    /// See [`Permit::check`].
    ///
    /// # Errors
    /// Bus mastering is off, or some byte is not RAM.
    pub fn check(&self, addr: u64, len: u64) -> Result<(), DmaError> {
        self.permit()?.check(addr, len)
    }

    #[inline]
    pub(crate) fn memory(&self) -> &dyn Ram {
        &*self.ram
    }

    /// Payload has been written.
    #[inline]
    pub(crate) fn wrote(&self, span: Span) {
        if let Some(observer) = &self.observer {
            observer.wrote(span);
        }
    }

    pub(crate) fn outside(&self, addr: u64, len: u64) -> DmaError {
        DmaError::OutsideRam { requester: self.requester, addr, len }
    }

    #[cold]
    pub(crate) fn refuse<T>(&self, error: DmaError) -> Result<T, DmaError> {
        // A hostile guest can ask a million times a second: log the first of each power of two.
        let count = self.master.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::info!("DMA refused ({count} so far): {error}");
        }
        Err(error)
    }
}
