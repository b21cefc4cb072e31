// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UAR pages: what a write to one means (contract 7.1), and the eventfds that spare send doorbells an exit.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::UAR_PAGES;
use super::cq::ArmDoorbell;
use super::engine::Engines;
use super::hca::{FIRST_UAR, Hca};
use super::hooks::{NicAction, WqeShape};
use mlx5_spec::uar::{CQ_ARM, EQ_ARM, EQ_UPDATE, PAGE_SIZE, SQ_DOORBELL, cq_arm, eq};
use mlx5_spec::wqe::ctrl;
use pci::rate_limit::RateLimit;
use pci::{DirectWrites, Doorbell, DoorbellHost, Exposed};

/// BAR with the UAR pages.
pub const BAR: u8 = 0;
/// Where drivers ring with log_bf_reg_size = 9: the two halves of the registers that kernels (0 and 2) and user space (0) use.
const RUNG_AT: [u64; 4] = [0x800, 0x900, 0xc00, 0xd00];

pub(super) fn arms_strictly(hca: &Hca) -> bool {
    let strict = |action| action == NicAction::StrictArm;
    hca.injections.any() && hca.injections.consult(&WqeShape::command(0), strict).is_some()
}

/// The UAR page of an offset in BAR0, and the offset within it.
pub fn page_of(offset: u64) -> Option<(u32, u64)> {
    let page = u32::try_from(offset / PAGE_SIZE).ok()?;
    (FIRST_UAR..UAR_PAGES).contains(&page).then_some((page, offset % PAGE_SIZE))
}

/// The UAR pages' registers. Any number of vCPUs write them at once, and none holds the function's lock meanwhile: one may run an engine.
pub struct UarRegisters {
    hca: Arc<Hca>,
    nonsense: RateLimit,
}

impl UarRegisters {
    /// Of this device.
    pub fn new(hca: Arc<Hca>) -> Self {
        Self { hca, nonsense: RateLimit::default() }
    }
}

impl DirectWrites for UarRegisters {
    fn write(&self, bar: u8, offset: u64, data: &[u8]) -> bool {
        if bar != BAR || offset < u64::from(FIRST_UAR) * PAGE_SIZE {
            return false;
        }
        // Whether it is time to be there again is asked at its other registers.
        if self.hca.health.is_gone() || self.hca.device_memory.write(offset, data) {
            return true;
        }
        let Some((page, inside)) = page_of(offset) else { return false };
        if !write(&self.hca, page, inside, data)
            && let Some(count) = self.nonsense.next()
        {
            let (index, len) = (self.hca.index, data.len());
            log::debug!("nic{index}: {len} bytes at {inside:#x} of UAR page {page} ignored ({count} so far)");
        }
        true
    }
}

/// A guest write to UAR page `uar`. `false`: it has no meaning. Queues obey the page that they were created with only: that
/// is what keeps processes apart.
fn write(hca: &Arc<Hca>, uar: u32, offset: u64, data: &[u8]) -> bool {
    if hca.uars.get(uar).is_none() {
        return false;
    }
    match (offset, data.len()) {
        (CQ_ARM, 8) => {
            let cq = hca.cqs.get(cq_arm::CQN.get(data)).filter(|cq| cq.uar == uar);
            let word = data.first_chunk().copied().map_or(0, u32::from_be_bytes);
            let doorbell = ArmDoorbell::from_word(word);
            cq.map(|cq| cq.arm(hca, doorbell, arms_strictly(hca))).is_some()
        }
        (EQ_ARM | EQ_UPDATE, 4) => {
            let queue = hca.eqs.get(eq::EQN.get(data)).filter(|eq| eq.uar == uar);
            queue.map(|queue| queue.update(hca, eq::CI.get(data), offset == EQ_ARM)).is_some()
        }
        (SQ_DOORBELL.., 8) if offset.is_multiple_of(8) => {
            // The WQE's first eight bytes: they name the queue pair.
            let qpn = ctrl::QPN.get(data);
            let own = hca.qps.with(qpn, |qp| qp.uar == uar) == Some(true);
            if own {
                if hca.config.hot_doorbells && hca.heat.rung(uar) {
                    hca.engines.heat(uar);
                }
                Engines::ring(hca, uar, qpn);
            }
            own
        }
        _ => false,
    }
}

/// A UAR page with more send queues than this has doorbells that take an exit: they name their queue pair, an eventfd names only the
/// page, all of whose doorbell records are then looked at.
const CROWD: u32 = 16;
/// With so few it has eventfds again.
const CROWD_OVER: u32 = 8;

/// Send doorbells of the allocated UAR pages as eventfds, one a page, wherever BAR0 is. Where the host gives none, where many queue
/// pairs share the page, and where vCPUs run the engines, the write takes an exit and reaches [`UarRegisters`].
pub struct UarDoorbells {
    host: Arc<dyn DoorbellHost>,
    failures: RateLimit,
    inner: Mutex<Inner>,
    /// Counts hot pages that others than their engine have made registers again.
    concealed: AtomicU64,
}

#[derive(Default)]
struct Inner {
    /// Where BAR0 decodes now.
    base: Option<u64>,
    pages: BTreeMap<u32, Page>,
}

#[derive(Default)]
struct Page {
    /// None where vCPUs run the engines.
    event: Option<Arc<EventFd>>,
    attached: Vec<(u64, Doorbell)>,
    /// Send queues that ring here.
    queues: u32,
    crowded: bool,
    /// Where it is plain memory, and that memory.
    hot: Option<(u64, Arc<dyn Exposed>)>,
    /// Not before this.
    barred: Option<Instant>,
}

/// Rings of a page by which it is told whether they come in a stream.
const STREAM: u32 = 64;
/// As many within this are one.
const STREAM_MS: u64 = 100;
/// How long a page is left alone on which something other than send doorbells was rung.
const BARRED: Duration = Duration::from_secs(2);

/// How often UAR pages are rung. A ring costs a count, and every so many a look at the clock.
pub struct Heat {
    began: Instant,
    pages: Box<[Warmth]>,
}

#[derive(Default)]
struct Warmth {
    rings: AtomicU32,
    /// When the last look at the clock was.
    since: AtomicU64,
}

impl Default for Heat {
    fn default() -> Self {
        let pages = std::iter::repeat_with(Warmth::default).take(UAR_PAGES as usize).collect();
        Self { began: Instant::now(), pages }
    }
}

impl Heat {
    /// One more ring of page `uar`. True: they come in a stream.
    pub fn rung(&self, uar: u32) -> bool {
        let Some(page) = self.pages.get(uar as usize) else { return false };
        if !(page.rings.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(STREAM) {
            return false;
        }
        let now = self.began.elapsed().as_millis() as u64;
        now.saturating_sub(page.since.swap(now, Ordering::Relaxed)) <= STREAM_MS
    }
}

impl UarDoorbells {
    /// None yet.
    pub fn new(host: Arc<dyn DoorbellHost>) -> Self {
        Self { host, failures: RateLimit::default(), inner: Mutex::default(), concealed: AtomicU64::new(0) }
    }

    /// ALLOC_UAR.
    pub fn open(&self, hca: &Hca, uar: u32) {
        let mut page = Page::default();
        if !hca.engines.is_inline() {
            let watched = EventFd::new(EFD_NONBLOCK).map(Arc::new).and_then(|event| {
                hca.engines.watch(uar, event.clone())?;
                Ok(event)
            });
            match watched {
                Ok(event) => page.event = Some(event),
                Err(error) => self.complain("make", uar, &error),
            }
        }
        let mut inner = self.inner.lock();
        if let Some(base) = inner.base {
            self.attach(base, uar, &mut page);
        }
        inner.pages.insert(uar, page);
    }

    /// A queue pair with a send queue came to page `uar`, or went.
    pub fn populate(&self, uar: u32, came: bool) {
        let mut inner = self.inner.lock();
        let base = inner.base;
        let Some(page) = inner.pages.get_mut(&uar) else { return };
        page.queues = if came { page.queues + 1 } else { page.queues.saturating_sub(1) };
        // Nothing that was rung is lost: it is in the eventfd, which stays watched, or took an exit.
        if page.queues > CROWD && !page.crowded {
            page.crowded = true;
            self.conceal(uar, page);
            self.detach(uar, page);
        } else if page.queues <= CROWD_OVER && page.crowded {
            page.crowded = false;
            if let Some(base) = base {
                self.attach(base, uar, page);
            }
        }
    }

    /// DEALLOC_UAR.
    pub fn close(&self, hca: &Hca, uar: u32) {
        let page = self.inner.lock().pages.remove(&uar);
        if let Some(mut page) = page {
            self.conceal(uar, &mut page);
            self.detach(uar, &mut page);
            hca.engines.unwatch(uar);
        }
    }

    /// All of them: a reset.
    pub fn clear(&self, hca: &Hca) {
        let pages = std::mem::take(&mut self.inner.lock().pages);
        for (uar, mut page) in pages {
            self.conceal(uar, &mut page);
            self.detach(uar, &mut page);
            hca.engines.unwatch(uar);
        }
    }

    /// BAR0 decodes at `base` from now on, or not at all.
    pub fn moved(&self, base: Option<u64>) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if inner.base == base {
            return;
        }
        inner.base = base;
        for (uar, page) in &mut inner.pages {
            self.conceal(*uar, page);
            self.detach(*uar, page);
            if let Some(base) = base.filter(|_| !page.crowded) {
                self.attach(base, *uar, page);
            }
        }
    }

    /// Eventfds attached now: for inspection.
    pub fn attached(&self) -> usize {
        self.inner.lock().pages.values().map(|page| page.attached.len()).sum()
    }

    /// Makes page `uar` plain memory. `None`: it is not the time, or not the page for it.
    pub(super) fn heat(&self, hca: &Hca, uar: u32) -> Option<Arc<dyn Exposed>> {
        let mut inner = self.inner.lock();
        // Event queues are told of what was taken by registers alone: there is no record to look at. Asked under the lock: one that comes now finds
        // the page hot (`disturb`).
        if hca.eqs.all().iter().any(|(_, eq)| eq.uar == uar) {
            return None;
        }
        let base = inner.base?;
        let page = inner.pages.get_mut(&uar).filter(|page| page.hot.is_none() && !page.crowded)?;
        if page.barred.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let address = base.checked_add(u64::from(uar) * PAGE_SIZE)?;
        match self.host.expose(address) {
            Ok(memory) => {
                page.hot = Some((address, memory.clone()));
                Some(memory)
            }
            Err(error) => {
                // A host that has no such thing is not asked for each stream.
                page.barred = Some(Instant::now() + BARRED);
                log::debug!("UAR page {uar} stays registers: {error}");
                None
            }
        }
    }

    /// Page `uar` is registers again; `bar`: for a while at least. What was written until then is in its memory and in records.
    pub(super) fn cool(&self, uar: u32, bar: bool) {
        let mut inner = self.inner.lock();
        let Some(page) = inner.pages.get_mut(&uar) else { return };
        self.conceal(uar, page);
        if bar {
            page.barred = Some(Instant::now() + BARRED);
        }
    }

    /// An event queue has come that rings there; it is in its table.
    pub fn disturb(&self, uar: u32) {
        self.cool(uar, false);
    }

    /// See the field.
    pub(super) fn concealed(&self) -> u64 {
        self.concealed.load(Ordering::Acquire)
    }

    /// Whether page `uar` is plain memory.
    pub(super) fn is_hot(&self, uar: u32) -> bool {
        self.inner.lock().pages.get(&uar).is_some_and(|page| page.hot.is_some())
    }

    /// Pages that are plain memory now: for inspection.
    pub fn hot(&self) -> usize {
        self.inner.lock().pages.values().filter(|page| page.hot.is_some()).count()
    }

    fn conceal(&self, uar: u32, page: &mut Page) {
        let Some((address, _)) = page.hot.take() else { return };
        if let Err(error) = self.host.conceal(address) {
            self.complain("take back", uar, &error);
        }
        self.concealed.fetch_add(1, Ordering::Release);
    }

    fn attach(&self, base: u64, uar: u32, page: &mut Page) {
        let Some(event) = page.event.clone() else { return };
        for at in RUNG_AT {
            let offset = u64::from(uar) * PAGE_SIZE + at;
            let doorbell = Doorbell { bar: BAR, offset, len: 8, value: None, event: event.clone() };
            let Some(address) = base.checked_add(offset) else { continue };
            match self.host.attach(address, &doorbell) {
                Ok(()) => page.attached.push((address, doorbell)),
                Err(error) => self.complain("attach", uar, &error),
            }
        }
    }

    fn detach(&self, uar: u32, page: &mut Page) {
        for (address, doorbell) in page.attached.drain(..) {
            if let Err(error) = self.host.detach(address, &doorbell) {
                self.complain("detach", uar, &error);
            }
        }
    }

    fn complain(&self, what: &str, uar: u32, error: &std::io::Error) {
        if let Some(count) = self.failures.next() {
            log::warn!("cannot {what} the doorbell of UAR page {uar} ({count} failures so far): {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pages_are_not_uar_pages() {
        assert_eq!(page_of(0), None);
        assert_eq!(page_of(u64::from(FIRST_UAR) * PAGE_SIZE - 1), None);
        assert_eq!(page_of(u64::from(FIRST_UAR) * PAGE_SIZE + 0x840), Some((FIRST_UAR, 0x840)));
        assert_eq!(page_of(u64::MAX), None);
    }
}
