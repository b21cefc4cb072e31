// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's thread: takes requests from the rings, carries them out, holds those that a lever caught.
//!
//! One thread serves all queues of a disk. Requests then have one order, which is what levers ("the n-th write") and power
//! cuts ("at one instant") are about, and disks in a lab are not short of throughput. Held requests are parked in a list
//! and block nothing else.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{Shared, feature};
use super::flight::{Claim, Flight};
use super::parked::Parked;
use super::request::{Limits, Request, RingFault};
use super::stats::add;
use crate::hooks::HoldPoint;
use dma::DmaTarget;
use probe::Order;
use probe::ReleaseWhy;
use virtio::{Activation, ActiveQueue, VirtioInterrupt};

/// epoll data of the wake eventfd; queues have their position.
const WAKE: u64 = u64::MAX;
/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2 §2.7.7).
const NO_INTERRUPT: u16 = 1;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) dma: DmaTarget,
    pub(super) features: u64,
    queues: Vec<ActiveQueue>,
    interrupt: Arc<dyn VirtioInterrupt>,
    epoll: Epoll,
    /// Parked by a lever.
    held: Vec<Flight>,
    /// Kept back by injections.
    pub(super) parked: Parked,
    /// Said to be held, by a lever that lies.
    pub(super) claims: Vec<Claim>,
    /// Queues with completions that the guest may have to be told of.
    dirty: Vec<bool>,
    failed: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, activation: Activation) -> std::io::Result<Self> {
        let Activation { dma, mut queues, interrupt, features } = activation;
        let epoll = Epoll::new()?;
        let watch = |fd, data| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data));
        watch(shared.wake.as_raw_fd(), WAKE)?;
        for (position, active) in queues.iter_mut().enumerate() {
            active.queue.set_event_idx(features & feature::EVENT_IDX != 0);
            watch(active.kick.as_raw_fd(), position as u64)?;
        }
        let dirty = vec![false; queues.len()];
        Ok(Self {
            shared,
            dma,
            features,
            queues,
            interrupt,
            epoll,
            held: Vec::new(),
            parked: Parked::default(),
            claims: Vec::new(),
            dirty,
            failed: false,
        })
    }

    pub(super) fn run(mut self) {
        let mut busy = vec![true; self.queues.len()];
        self.check_queues();
        loop {
            // Kicks from before the activation are not lost: every queue is looked at once.
            for (position, busy) in busy.iter_mut().enumerate() {
                *busy = *busy && self.serve(position);
            }
            self.carry_out_orders();
            self.let_parked_go();
            if self.shared.stop.load(Ordering::Acquire) {
                self.cancel(ReleaseWhy::Reset);
                return;
            }
            let timeout = if busy.contains(&true) { 0 } else { self.timeout_ms() };
            let mut events = [EpollEvent::default(); 16];
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(error) => {
                    self.fail(&format!("epoll: {error}"));
                    0
                }
            };
            for event in &events[..count] {
                if event.data() == WAKE {
                    let _ = self.shared.wake.read();
                } else if let Some(active) = self.queues.get(event.data() as usize) {
                    let _ = active.kick.read();
                    busy[event.data() as usize] = true;
                }
            }
        }
    }

    /// To the next expiry, rounded up so that it is due when epoll returns.
    fn timeout_ms(&self) -> i32 {
        let deadlines = [self.shared.levers.next_deadline(), self.parked.next()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return -1 };
        let left = deadline.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX)
    }

    fn check_queues(&mut self) {
        if self.dma.permit().is_err() || !self.queues.iter().all(|active| active.queue.is_valid(&self.dma)) {
            self.fail("a queue's rings are not in guest memory, or bus mastering is off");
        }
    }

    /// Takes at most one queue's worth of requests. True: there may be more.
    fn serve(&mut self, position: usize) -> bool {
        if self.failed {
            return false;
        }
        let more = self.serve_batch(position).unwrap_or_else(|fault| {
            self.fail(&fault.to_string());
            false
        });
        self.notify();
        more
    }

    fn serve_batch(&mut self, position: usize) -> Result<bool, RingFault> {
        // A clone, so that the borrow of the door does not freeze the worker.
        let dma = self.dma.clone();
        dma.permit()?;
        let size = self.queues[position].queue.size();
        let longest = self.queues[position].queue.max_size();
        self.queues[position].queue.disable_notification(&dma).map_err(RingFault::Queue)?;
        for _ in 0..size {
            let chain = self.queues[position].queue.iter(&dma).map_err(RingFault::Queue)?.next();
            let Some(chain) = chain else {
                return self.queues[position].queue.enable_notification(&dma).map_err(RingFault::Queue);
            };
            let request = Request::parse(chain, longest, &dma, &self.limits())?;
            self.accept(position, request)?;
        }
        Ok(true)
    }

    fn limits(&self) -> Limits {
        Limits {
            capacity: self.shared.capacity.load(Ordering::Acquire),
            readonly: self.shared.config.readonly,
            discard: self.features & feature::DISCARD != 0,
            write_zeroes: self.features & feature::WRITE_ZEROES != 0,
        }
    }

    fn accept(&mut self, position: usize, request: Request) -> Result<(), RingFault> {
        let token = self.shared.next_token.fetch_add(1, Ordering::Relaxed);
        let mut flight = self.arrive(token, position, request);
        match flight.injected.wait.take() {
            Some(wait) => {
                self.parked.keep(flight, wait);
                Ok(())
            }
            None => self.set_out(flight),
        }
    }

    /// Nothing keeps a request back any more.
    fn set_out(&mut self, mut flight: Flight) -> Result<(), RingFault> {
        self.ask_levers(&mut flight);
        self.advance(flight)
    }

    /// Takes a request as far as it gets: to its next hold or to its end.
    fn advance(&mut self, mut flight: Flight) -> Result<(), RingFault> {
        if !flight.data_done {
            if self.stands(&mut flight, HoldPoint::BeforeData) {
                self.held.push(flight);
                return Ok(());
            }
            self.move_data(&mut flight);
        }
        if self.stands(&mut flight, HoldPoint::BeforeComplete) {
            self.held.push(flight);
            return Ok(());
        }
        self.complete(flight)
    }

    fn complete(&mut self, flight: Flight) -> Result<(), RingFault> {
        let published = self.publish(&flight);
        let why = if published.is_ok() { flight.released } else { Some(ReleaseWhy::Failed) };
        if published.is_err() {
            let ledger = &self.shared.ledger;
            flight.mark_aborted(ledger, ledger.tick(), ReleaseWhy::Failed);
        }
        if let (Some(caught), Some(why)) = (flight.caught, why) {
            self.shared.levers.over(caught, flight.token, why);
        }
        published
    }

    fn publish(&mut self, flight: &Flight) -> Result<(), RingFault> {
        let dma = self.dma.clone();
        dma.permit()?;
        self.before_completion(flight);
        let shared = self.shared.clone();
        // Under the lock, so that a power cut sees the request either not completed, or completed and published.
        let mut disk = shared.disk();
        // Before the driver can see it: whoever has seen the completion finds it in the ledger.
        flight.record_completed(&shared.ledger);
        let head = flight.request.head;
        dma.write(flight.request.status_addr, &[flight.status])?;
        self.queues[flight.queue].queue.add_used(&dma, head, flight.used).map_err(RingFault::Queue)?;
        flight.mark_completed(&mut disk);
        drop(disk);
        self.dirty[flight.queue] = true;
        add(&self.shared.counters.completed, 1);
        self.parked.passed_by(flight.token);
        Ok(())
    }

    /// Tells the guest of completed requests, once a batch.
    fn notify(&mut self) {
        let dma = self.dma.clone();
        if dma.permit().is_err() {
            return;
        }
        for position in 0..self.queues.len() {
            if !std::mem::take(&mut self.dirty[position]) {
                continue;
            }
            let active = &mut self.queues[position];
            let wanted = match active.queue.needs_notification(&dma) {
                // Without EVENT_IDX the crate says yes always; the driver's flag is ours to look at.
                Ok(wanted) if active.queue.event_idx_enabled() => Ok(wanted),
                Ok(_) => dma
                    .load(active.queue.avail_ring(), Ordering::Acquire)
                    .map(|flags| u16::from_le(flags) & NO_INTERRUPT == 0)
                    .map_err(RingFault::Memory),
                Err(error) => Err(RingFault::Queue(error)),
            };
            match wanted {
                Ok(true) => {
                    add(&self.shared.counters.notifications, 1);
                    self.interrupt.used(active.index);
                }
                Ok(false) => {}
                Err(fault) => self.fail(&fault.to_string()),
            }
        }
    }

    fn carry_out_orders(&mut self) {
        for (token, order) in self.shared.levers.orders(Instant::now()) {
            if self.settle_claim(token, order) {
                continue;
            }
            let Some(at) = self.held.iter().position(|flight| flight.token == token) else { continue };
            let mut flight = self.held.remove(at);
            let why = match order {
                Order::Step => ReleaseWhy::Stepped,
                Order::Go(why) => why,
            };
            flight.leave_hold(&self.shared.ledger, order, why);
            if let Err(fault) = self.advance(flight) {
                self.fail(&fault.to_string());
            }
        }
        self.notify();
    }

    /// Requests go on that an injection kept back until now.
    fn let_parked_go(&mut self) {
        let mut any = false;
        while let Some(flight) = self.parked.due(Instant::now()) {
            any = true;
            if let Err(fault) = self.set_out(flight) {
                self.fail(&fault.to_string());
            }
        }
        if any {
            self.notify();
        }
    }

    /// The device needs a reset (virtio 1.2 §2.1.2). The worker stays to be told so.
    fn fail(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.failed, true) {
            let count = add(&self.shared.counters.failures, 1);
            if count.is_power_of_two() {
                log::warn!("disk {}: the device needs a reset ({count} so far): {cause}", self.shared.index);
            }
            self.cancel(ReleaseWhy::Failed);
            self.interrupt.needs_reset();
        }
    }

    /// Cancels everything under way; no guest memory is touched after this.
    fn cancel(&mut self, why: ReleaseWhy) {
        let ledger = self.shared.ledger.clone();
        let now = ledger.tick();
        let mut disk = self.shared.disk();
        for flight in self.held.drain(..).chain(self.parked.drain()) {
            add(&self.shared.counters.cancelled, 1);
            flight.mark_aborted(&ledger, now, why);
            if let Some(caught) = flight.caught {
                self.shared.levers.over(caught, flight.token, why);
            }
        }
        disk.in_flight = 0;
        if let Some(log) = &mut disk.log {
            log.abandon_stored();
        }
        drop(disk);
        for claim in self.claims.drain(..) {
            claim.end(&ledger, &self.shared.levers, why);
        }
    }
}
