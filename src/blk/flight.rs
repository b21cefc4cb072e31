// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request on its way: arrival, hold, data, completion, each told to the ledger.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use super::device::SERIAL_BYTES;
use super::disk::Disk;
use super::evidence::{Moment, start_of};
use super::file_io::{Segment, Zero};
use super::hooks::{Caught, DiskAction, Levers};
use super::injected::Injected;
use super::request::{Request, S_IOERR, S_OK, front};
use super::stats::add;
use super::worker::Worker;
use crate::hooks::{BlkOp, DiskLedger, Hold, HoldPoint, RequestRecord};
use dma::{DmaTarget, Permit};
use probe::Order;
use probe::ReleaseWhy;
use probe::ledger::{Ledger, SECTOR_SIZE, Seq};

pub(super) struct Flight {
    /// Names it within this activation.
    pub(super) token: u64,
    /// Position of its queue.
    pub(super) queue: usize,
    pub(super) request: Request,
    pub(super) data_done: bool,
    pub(super) status: u8,
    /// Bytes written to the guest, for the used ring.
    pub(super) used: u32,
    /// The lever that caught it.
    pub(super) caught: Option<Caught>,
    /// How the lever let it go.
    pub(super) released: Option<ReleaseWhy>,
    /// Its id in the ledger, unless it is hidden or the ledger is off.
    pub(super) record: Option<u64>,
    /// A flush covers what was completed at this time of the log's clock.
    flush_arrival: u64,
    /// Its data is on stable storage already.
    synced: bool,
    /// What goes wrong with it on purpose.
    pub(super) injected: Injected,
    /// Where it is to stand next.
    next_hold: Option<HoldPoint>,
    /// The lever lies about it.
    lie: bool,
}

/// A hold that exists only in words.
pub(super) struct Claim {
    token: u64,
    caught: Caught,
    record: Option<u64>,
}

impl Claim {
    pub(super) fn end(&self, ledger: &Ledger, levers: &Levers, why: ReleaseWhy) {
        let now = ledger.tick();
        if let Some(id) = self.record {
            ledger.amend(id, |r| r.end_hold(self.caught.lever.0, now, why));
        }
        levers.over(self.caught, self.token, why);
    }
}

impl Worker {
    /// A request came off a ring: count it, ask injections about it, put it on record.
    pub(super) fn arrive(&mut self, token: u64, queue: usize, request: Request) -> Flight {
        let shared = &self.shared;
        shared.counters.ops.count(request.op);
        self.note_refusal(&request);
        let capacity = shared.capacity.load(Ordering::Acquire);
        let injected =
            Injected::by(&shared.injections, &request, &shared.ledger, capacity, |wait| self.parked.has_room(wait));
        let record = if injected.hidden { None } else { shared.ledger.begin(start_of(shared.index, &request)) };
        let flush_arrival = self.shared.disk().arrives(request.op);
        let flight = Flight {
            token,
            queue,
            data_done: false,
            status: S_OK,
            used: 1,
            next_hold: None,
            caught: None,
            released: None,
            record,
            flush_arrival,
            injected,
            synced: false,
            lie: false,
            request,
        };
        self.hash_guest(&flight, Moment::Arrival);
        flight
    }

    /// Asks levers about a request that is about to be carried out. One that an injection kept back comes to them late: they would wait for it.
    pub(super) fn ask_levers(&self, flight: &mut Flight) {
        // A refused request is answered at once: there is nothing to hold.
        if flight.request.refusal.is_some() {
            return;
        }
        let (shared, shape) = (&self.shared, flight.request.shape(&self.shared.ledger));
        flight.caught = shared.levers.consult(flight.token, flight.record.unwrap_or(0), (), &shape);
        flight.next_hold = flight.caught.map(|caught| caught.point);
        let lies = |action| action == DiskAction::LieAboutHold;
        flight.lie = flight.caught.is_some() && shared.injections.consult(&shape, lies).is_some();
    }

    fn note_refusal(&self, request: &Request) {
        let Some(refusal) = request.refusal else { return };
        let count = add(&self.shared.counters.refused, 1);
        if count.is_power_of_two() {
            let index = self.shared.index;
            log::warn!("disk {index}: {:?} request refused ({count} so far): {refusal}", request.op);
        }
    }

    /// Whether the request is to stand at `point` now. If so, that is on record when this returns.
    pub(super) fn stands(&mut self, flight: &mut Flight, point: HoldPoint) -> bool {
        let Some(caught) = flight.caught.filter(|_| flight.next_hold == Some(point)) else { return false };
        flight.next_hold = None;
        let ledger = &self.shared.ledger;
        if let Some(id) = flight.record {
            let hold = Hold { point, lever: caught.lever.0, from: ledger.tick(), to: None, why: None };
            ledger.amend(id, |r| r.holds.push(hold));
        }
        add(&self.shared.counters.holds, 1);
        if let Err(why) = self.shared.levers.stand(caught, flight.token, point) {
            flight.leave_hold(ledger, Order::Go(why), why);
            return false;
        }
        if flight.lie {
            self.claims.push(Claim { token: flight.token, caught, record: flight.record });
            flight.caught = None;
            return false;
        }
        true
    }

    /// Carries out an order on a hold that is only claimed. False: the token is not such a hold.
    pub(super) fn settle_claim(&mut self, token: u64, order: Order) -> bool {
        let Some(at) = self.claims.iter().position(|claim| claim.token == token) else { return false };
        let ledger = &self.shared.ledger;
        match order {
            Order::Go(why) => self.claims.remove(at).end(ledger, &self.shared.levers, why),
            Order::Step => {
                // The lie goes on: "it now stands before completion".
                let claim = &self.claims[at];
                let now = ledger.tick();
                let lever = claim.caught.lever.0;
                let hold = Hold { point: HoldPoint::BeforeComplete, lever, from: now, to: None, why: None };
                if let Some(id) = claim.record {
                    ledger.amend(id, |r| {
                        r.end_hold(lever, now, ReleaseWhy::Stepped);
                        r.holds.push(hold);
                    });
                }
                if let Err(why) = self.shared.levers.stand(claim.caught, token, HoldPoint::BeforeComplete) {
                    self.claims.remove(at).end(ledger, &self.shared.levers, why);
                }
            }
        }
        true
    }

    /// The data moves, or the request finds out why it cannot.
    pub(super) fn move_data(&mut self, flight: &mut Flight) {
        flight.data_done = true;
        if let Some(refusal) = flight.request.refusal {
            flight.status = refusal.status();
            return;
        }
        if let Some(status) = flight.injected.status {
            flight.status = status;
            return;
        }
        let dma = self.dma.clone();
        // Bus mastering may have been switched off during a hold; then nothing moves.
        let Ok(door) = dma.permit() else {
            flight.status = S_IOERR;
            return;
        };
        let ledger = &self.shared.ledger;
        let begin = ledger.tick();
        let result = self.execute(flight, door);
        let end = ledger.tick();
        if let Err(error) = &result {
            let count = add(&self.shared.counters.errors, 1);
            if count.is_power_of_two() {
                let op = flight.request.op;
                log::error!("disk {}: {op:?} failed ({count} so far): {error}", self.shared.index);
            }
            flight.status = S_IOERR;
        }
        if flight.injected.fails {
            flight.status = S_IOERR;
        }
        self.stamp_data(flight, ledger, begin, end, result.is_ok());
    }

    fn execute(&self, flight: &mut Flight, door: Permit<'_>) -> std::io::Result<()> {
        let request = &flight.request;
        let mut disk = self.shared.disk();
        match request.op {
            BlkOp::Read => {
                let (data, lba, len) = flight.transfer();
                if len != 0 {
                    disk.read(door, &data, lba)?;
                }
                // The status byte counts where nothing is missing before it.
                let status = u32::from(len == request.len);
                add(&self.shared.counters.bytes_read, len);
                // The iterator over descriptors bounds a chain to 2^32 - 1 bytes, status included.
                flight.used = u32::try_from(len).unwrap_or(u32::MAX).saturating_add(status);
            }
            BlkOp::Write => {
                let (data, lba, len) = flight.transfer();
                if len != 0 {
                    disk.write(flight.token, door, &data, lba)?;
                }
                add(&self.shared.counters.bytes_written, len);
            }
            BlkOp::Discard | BlkOp::WriteZeroes => {
                for range in &request.zero {
                    let punch = range.unmap || request.op == BlkOp::Discard;
                    disk.zero(flight.token, &range.sectors, if punch { Zero::Punch } else { Zero::Keep })?;
                }
            }
            BlkOp::Flush => return disk.sync(),
            BlkOp::GetId => {
                flight.used = write_id(&self.dma, &request.data, &self.shared.config.serial)? + 1;
            }
            BlkOp::Other => {}
        }
        if request.op.changes_disk() && !self.shared.writeback.load(Ordering::Acquire) {
            disk.sync()?;
            flight.synced = true;
        }
        Ok(())
    }
}

impl Flight {
    /// The guest memory that a read or a write really moves, the sector of the medium where that is, and its bytes.
    fn transfer(&self) -> (Cow<'_, [Segment]>, u64, u64) {
        let request = &self.request;
        match &self.injected.medium {
            None => (Cow::Borrowed(&request.data), request.lba, request.len),
            Some(medium) => {
                let len = (medium.end - medium.start) * SECTOR_SIZE;
                (Cow::Owned(front(&request.data, len)), medium.start, len)
            }
        }
    }

    pub(super) fn amend(&self, ledger: &Ledger, change: impl FnOnce(&mut RequestRecord)) {
        if let Some(id) = self.record {
            ledger.amend(id, change);
        }
    }

    /// The hold is over; the request may go on once this returns.
    pub(super) fn leave_hold(&mut self, ledger: &Ledger, order: Order, why: ReleaseWhy) {
        let now = ledger.tick();
        if let Some(caught) = self.caught {
            self.amend(ledger, |r| r.end_hold(caught.lever.0, now, why));
        }
        match order {
            Order::Step => self.next_hold = Some(HoldPoint::BeforeComplete),
            Order::Go(why) => self.released = Some(why),
        }
    }

    /// What the completion will say, just before it is published. If it cannot be, [`Self::mark_aborted`] takes it back.
    pub(super) fn record_completed(&self, ledger: &Ledger) {
        let now = ledger.tick();
        self.amend(ledger, |r| {
            r.completed = Some(now);
            r.status = Some(self.status);
        });
    }

    /// Under the disk's lock, as the completion is published.
    pub(super) fn mark_completed(&self, disk: &mut Disk) {
        disk.in_flight = disk.in_flight.saturating_sub(1);
        let ok = self.status == S_OK;
        if let Some(log) = &mut disk.log {
            log.completed(self.token, ok && self.synced);
            // A flush that an injection answered has flushed nothing.
            if ok && self.request.op == BlkOp::Flush && self.injected.status.is_none() {
                log.flushed(self.flush_arrival);
            }
        }
    }

    pub(super) fn mark_aborted(&self, ledger: &Ledger, now: Seq, why: ReleaseWhy) {
        self.amend(ledger, |r| {
            r.aborted = Some(now);
            (r.completed, r.status) = (None, None);
            if let Some(caught) = self.caught {
                r.end_hold(caught.lever.0, now, why);
            }
        });
    }
}

/// GET_ID: the serial, padded with zeroes to 20 bytes (virtio 1.2 §5.2.6).
fn write_id(dma: &DmaTarget, segments: &[(u64, u64)], serial: &str) -> std::io::Result<u32> {
    let mut id = [0; SERIAL_BYTES];
    for (slot, byte) in id.iter_mut().zip(serial.bytes()) {
        *slot = byte;
    }
    let mut rest = &id[..];
    for &(addr, len) in segments {
        let (now, later) = rest.split_at(rest.len().min(usize::try_from(len).unwrap_or(usize::MAX)));
        dma.write(addr, now).map_err(std::io::Error::other)?;
        rest = later;
    }
    Ok(SERIAL_BYTES as u32)
}
