// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory and who owns which of its pages.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Guest memory. Clones share it.
#[derive(Clone)]
pub struct Guest {
    ram: Arc<GuestRam>,
    pages: Arc<Mutex<Pages>>,
}

/// Pages that nobody owns.
struct Pages {
    /// Runs never given out: first page and number of pages.
    runs: Vec<(u64, u64)>,
    /// Single pages, neighbours far apart.
    single: Vec<u64>,
}

impl Guest {
    /// All of `ram` is free, apart from page 0.
    pub fn new(ram: Arc<GuestRam>) -> Self {
        let pages = Pages::all(&ram);
        Self { ram, pages: Arc::new(Mutex::new(pages)) }
    }

    /// The memory itself.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Zeroed memory in pages that do not follow one another, as a driver's queues lie (contract T23).
    pub fn scattered(&self, bytes: u64) -> Buffer {
        let pages = (0..bytes.div_ceil(PAGE).max(1)).map(|_| self.page()).collect();
        self.buffer(pages, bytes)
    }

    /// Zeroed memory in one piece. The last region is used first: addresses of more than 32 bits.
    pub fn contiguous(&self, bytes: u64) -> Buffer {
        let count = bytes.div_ceil(PAGE).max(1);
        let first = self.lock().take(count).expect("guest memory is used up: make the test's machine larger");
        self.buffer((0..count).map(|page| first + page * PAGE).collect(), bytes)
    }

    /// One page.
    pub fn page(&self) -> u64 {
        let mut pages = self.lock();
        if pages.single.is_empty() {
            let first = pages.take(64).expect("guest memory is used up: make the test's machine larger");
            // 37 and 64 have no common factor, so that each page comes once.
            pages.single.extend((0..64).map(|i| first + i * 37 % 64 * PAGE));
        }
        pages.single.pop().unwrap_or_default()
    }

    /// Gives a buffer's pages back. The device must not know of them any more.
    pub fn free(&self, buffer: Buffer) {
        self.lock().single.extend(buffer.pages);
    }

    /// Takes everything back: a new kernel owns nothing yet.
    pub fn reclaim(&self) {
        *self.lock() = Pages::all(&self.ram);
    }

    fn buffer(&self, pages: Vec<u64>, bytes: u64) -> Buffer {
        let buffer = Buffer { guest: self.clone(), pages, len: bytes };
        buffer.fill(0, bytes, 0);
        buffer
    }

    /// Reads guest memory.
    pub fn read(&self, gpa: u64, data: &mut [u8]) {
        self.ram.read_slice(data, GuestAddress(gpa)).expect("a test reads guest memory only");
    }

    /// Writes guest memory.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(gpa)).expect("a test writes guest memory only");
    }

    /// Publishes a big-endian dword: what was written before is visible to whoever sees it.
    pub fn publish_u32(&self, gpa: u64, value: u32) {
        self.ram.store(value.to_be(), GuestAddress(gpa), Ordering::Release).expect("records lie in guest memory");
    }

    /// Reads one byte; what is read afterwards is as new.
    pub fn observe_u8(&self, gpa: u64) -> u8 {
        self.ram.load(GuestAddress(gpa), Ordering::Acquire).expect("queues lie in guest memory")
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock()
    }
}

impl Pages {
    fn all(ram: &GuestRam) -> Self {
        let mut runs: Vec<_> = ram.iter().map(|region| (region.start_addr().0, region.len() / PAGE)).collect();
        if let Some(first) = runs.first_mut() {
            *first = (first.0 + PAGE, first.1 - 1);
        }
        Self { runs, single: Vec::new() }
    }

    fn take(&mut self, count: u64) -> Option<u64> {
        let run = self.runs.iter_mut().rev().find(|run| run.1 >= count)?;
        let first = run.0;
        *run = (first + count * PAGE, run.1 - count);
        Some(first)
    }
}

/// Memory of the guest in pages of 4 KiB.
pub struct Buffer {
    guest: Guest,
    /// Guest physical addresses of its pages.
    pub pages: Vec<u64>,
    /// Bytes.
    pub len: u64,
}

impl Buffer {
    /// Guest physical address of byte `at`.
    pub fn gpa(&self, at: u64) -> u64 {
        self.pages[(at / PAGE) as usize] + at % PAGE
    }

    /// Reads bytes from `at` on.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        self.each(at, data.len() as u64, |guest, gpa, range| guest.read(gpa, &mut data[range]));
    }

    /// `len` bytes from `at` on.
    pub fn bytes(&self, at: u64, len: u64) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.read(at, &mut data);
        data
    }

    /// Writes bytes from `at` on.
    pub fn write(&self, at: u64, data: &[u8]) {
        self.each(at, data.len() as u64, |guest, gpa, range| guest.write(gpa, &data[range]));
    }

    /// Sets `len` bytes from `at` on.
    pub fn fill(&self, at: u64, len: u64, byte: u8) {
        let page = [byte; PAGE as usize];
        self.each(at, len, |guest, gpa, range| guest.write(gpa, &page[..range.len()]));
    }

    /// Fills it with bytes that tell where they belong: another seed or place gives other bytes.
    pub fn fill_pattern(&self, seed: u64) {
        self.write(0, &pattern(seed, self.len));
    }

    fn each(&self, at: u64, len: u64, mut visit: impl FnMut(&Guest, u64, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let now = (PAGE - (at + done) % PAGE).min(len - done);
            visit(&self.guest, self.gpa(at + done), done as usize..(done + now) as usize);
            done += now;
        }
    }
}

/// `len` bytes that depend on `seed` and place (SplitMix64's finalizer).
pub fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let word = |at: u64| {
        let mut z = (seed << 32 ^ at).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(word).take(len as usize).collect()
}
