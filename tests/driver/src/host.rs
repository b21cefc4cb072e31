// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What KVM would do for the device: deliver its interrupts, and turn doorbell writes into eventfd signals.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use pci::{Doorbell, DoorbellHost, Exposed, MsiRouter};
use probe::Patience;

/// Counts messages by the data value that the vector's table entry held when it was sent.
#[derive(Default)]
pub struct Interrupts {
    state: Mutex<InterruptState>,
    arrived: Condvar,
}

#[derive(Default)]
struct InterruptState {
    /// What each vector sends, as the device routed it.
    routes: HashMap<u16, (u64, u32)>,
    counts: HashMap<u32, u64>,
}

impl Interrupts {
    /// Messages with this data so far.
    pub fn count(&self, data: u32) -> u64 {
        self.state.lock().counts.get(&data).copied().unwrap_or(0)
    }

    /// Waits until more than `seen` messages with this data have come; `false` when the time is over.
    pub fn wait_beyond(&self, data: u32, seen: u64, timeout: Duration) -> bool {
        let mut patience = Patience::new(timeout);
        let mut state = self.state.lock();
        while state.counts.get(&data).copied().unwrap_or(0) <= seen {
            if patience.is_over() {
                return false;
            }
            self.arrived.wait_for(&mut state, patience.glance());
        }
        true
    }
}

impl MsiRouter for Interrupts {
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()> {
        self.state.lock().routes.insert(vector, (address, data));
        Ok(())
    }

    fn trigger(&self, vector: u16) {
        let mut state = self.state.lock();
        // A message of a vector that was never routed would be the device's mistake: it shows as data that nobody waits for.
        let data = state.routes.get(&vector).map_or(u32::MAX, |(_, data)| *data);
        *state.counts.entry(data).or_default() += 1;
        self.arrived.notify_all();
    }
}

/// Guest physical addresses whose writes are eventfd signals.
#[derive(Default)]
pub struct Doorbells {
    attached: RwLock<HashMap<u64, Doorbell>>,
    /// Pages of plain memory in place of registers, by address.
    exposed: RwLock<HashMap<u64, Arc<Page>>>,
    /// Writes that went there.
    pub silent: AtomicU64,
    /// Attaching fails, as when the host has no ioeventfds left: every doorbell is an exit then.
    pub refuse: AtomicBool,
}

impl Doorbells {
    /// Signals the doorbell at `address`, if a write of `data` there is one, or takes it where memory is in place of the register.
    pub fn ring(&self, address: u64, data: &[u8]) -> bool {
        let exposed = self.exposed.read();
        if let Some(page) = exposed.get(&(address & !(PAGE - 1))) {
            let at = (address % PAGE) as usize;
            page.0.lock()[at..at + data.len()].copy_from_slice(data);
            self.silent.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        drop(exposed);
        let attached = self.attached.read();
        let Some(doorbell) = attached.get(&address) else { return false };
        let mut value = [0; 8];
        value[..data.len().min(8)].copy_from_slice(&data[..data.len().min(8)]);
        let fits = (doorbell.len == 0 || doorbell.len as usize == data.len())
            && doorbell.value.is_none_or(|wanted| wanted == u64::from_le_bytes(value));
        fits && doorbell.event.write(1).is_ok()
    }

    /// Where they are attached, in order.
    pub fn addresses(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.attached.read().keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// How many are attached.
    pub fn len(&self) -> usize {
        self.attached.read().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const PAGE: u64 = 4096;

struct Page(Mutex<[u8; PAGE as usize]>);

impl Exposed for Page {
    fn load(&self, at: u64) -> [u8; 8] {
        let at = (at % PAGE) as usize;
        self.0.lock()[at..at + 8].try_into().unwrap_or_default()
    }
}

impl DoorbellHost for Doorbells {
    fn expose(&self, address: u64) -> io::Result<Arc<dyn Exposed>> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::other("this host has no memory slots"));
        }
        let page = Arc::new(Page(Mutex::new([0; PAGE as usize])));
        match self.exposed.write().insert(address, page.clone()) {
            None => Ok(page),
            Some(_) => panic!("{address:#x} exposed twice"),
        }
    }

    fn conceal(&self, address: u64) -> io::Result<()> {
        self.exposed.write().remove(&address).map(|_| ()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn attach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(io::Error::other("this host has no ioeventfds"));
        }
        let mut attached = self.attached.write();
        match attached.insert(address, doorbell.clone()) {
            None => Ok(()),
            // As KVM: EEXIST.
            Some(old) => {
                attached.insert(address, old);
                Err(io::Error::from(io::ErrorKind::AlreadyExists))
            }
        }
    }

    fn detach(&self, address: u64, _: &Doorbell) -> io::Result<()> {
        let mut attached = self.attached.write();
        attached.remove(&address).map(|_| ()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}
