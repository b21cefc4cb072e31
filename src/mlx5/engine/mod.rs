// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data path: engines that execute send WQEs and place data (contract 7).
//!
//! * `wqe`: work requests, parsed. `receive`: how receive WQEs are taken.
//! * `requester`: one queue pair's sending half and what it waits for; `execute` and `datagram`: one step of a message;
//!   `transfer`: the copy; `wire`: what a message would be in packets; `completion`: CQEs; `diagnosis`: what they say of errors; `failure`: errors, page faults, flushing.
//! * `worker`: an engine, a value that is run for a bounded while; `heat`: doorbells that it finds without being told; `mailbox`: its mailbox.
//! * [`EnginePolicy`]: who runs it. Here: the threads, and the vCPU that rang a doorbell.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::hca::Hca;
use super::standstill::Standstill;

mod completion;
mod datagram;
mod diagnosis;
mod execute;
mod failure;
mod heat;
mod mailbox;
mod policy;
mod psn;
mod receive;
mod requester;
mod transfer;
mod wire;
mod work;
mod worker;
mod wqe;

use mailbox::Mailbox;
pub use policy::EnginePolicy;
pub use psn::Sequence;
pub use receive::{Responder, read_record};
use worker::{Engine, Next};
pub use wqe::MAX_SEND_WQE;

/// Turns that a thread gives its engine before it lets go of the lock.
const THREAD_TURNS: u32 = 256;
/// Turns that a vCPU gives an engine before it goes back into the guest: 256 WQEs or 4 MiB, half a millisecond or so.
const VCPU_TURNS: u32 = 4;
/// How often a vCPU looks again for what others have left in the mailbox meanwhile.
const VCPU_ROUNDS: u32 = 4;

/// An engine with its mailbox. Whoever holds the lock runs it.
struct Unit {
    mailbox: Mailbox,
    engine: Mutex<Engine>,
}

/// The engines of a device. A queue pair belongs to engine `uar % count`.
pub struct Engines {
    units: Vec<Arc<Unit>>,
    /// Doorbells are served by the vCPU that rings them.
    inline: bool,
    /// They are to stand.
    standstill: Standstill,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engines {
    /// As many engines as `policy` says, not running.
    pub fn new(policy: EnginePolicy) -> std::io::Result<Self> {
        let count = policy.count();
        let unit = |number| {
            let mailbox = Mailbox::new()?;
            let engine = Mutex::new(Engine::new(number, count, &mailbox)?);
            Ok(Arc::new(Unit { mailbox, engine }))
        };
        let units = (0..count).map(unit).collect::<std::io::Result<_>>()?;
        Ok(Self {
            units,
            inline: policy == EnginePolicy::Inline,
            standstill: Standstill::default(),
            threads: Mutex::default(),
        })
    }

    /// Starts a thread for each. They hold the device until [`Engines::stop`].
    pub fn start(hca: &Arc<Hca>) -> std::io::Result<()> {
        let polls = !hca.engines.inline;
        for (number, unit) in hca.engines.units.iter().enumerate() {
            let (hca, unit) = (hca.clone(), unit.clone());
            let name = format!("nic{}-engine{number}", hca.index);
            let threads = &hca.clone().engines.threads;
            let thread = std::thread::Builder::new().name(name).spawn(move || unit.serve(&hca, polls))?;
            threads.lock().push(thread);
        }
        Ok(())
    }

    /// Stops and joins the threads. Every wait and hold is over.
    pub fn stop(&self) {
        self.standstill.close();
        for unit in &self.units {
            unit.mailbox.stop();
        }
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                log::error!("an engine thread had panicked");
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.units.len()
    }

    /// Has all of them stand, the device's commands with them; true when no engine is at a turn any more. See [`Standstill`].
    pub fn pause(&self, limit: Duration) -> bool {
        self.standstill.begin();
        let stand = self.units.iter().all(|unit| unit.engine.try_lock_for(limit).is_some());
        if !stand {
            self.standstill.end();
        }
        stand
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.standstill.end();
    }

    /// Whether the device is to stand.
    pub fn stand(&self) -> bool {
        self.standstill.is_on()
    }

    /// Whether doorbells are served by the vCPUs that ring them, and so had better take an exit.
    pub fn is_inline(&self) -> bool {
        self.inline
    }

    fn unit(&self, uar: u32) -> &Unit {
        &self.units[uar as usize % self.units.len()]
    }

    /// `event` is signalled by SQ doorbells of UAR page `uar`, from now on.
    pub fn watch(&self, uar: u32, event: Arc<EventFd>) -> std::io::Result<()> {
        self.unit(uar).mailbox.watch(uar, event)
    }

    /// Undoes `watch`.
    pub fn unwatch(&self, uar: u32) {
        self.unit(uar).mailbox.unwatch(uar);
    }

    /// UAR page `uar` is rung in a stream.
    pub fn heat(&self, uar: u32) {
        self.unit(uar).mailbox.heat(uar);
    }

    /// An SQ doorbell for queue pair `qpn` on UAR page `uar` that took an exit. The caller holds no lock.
    pub fn ring(hca: &Arc<Hca>, uar: u32, qpn: u32) {
        let unit = hca.engines.unit(uar);
        // An injection may stall the engine for seconds: not on a vCPU.
        if hca.engines.inline && !hca.injections.any() {
            unit.serve_doorbell(hca, qpn);
        } else {
            unit.mailbox.kick(qpn);
        }
    }

    /// Something about queue pair `qpn` changed: look at it again.
    pub fn kick(&self, uar: u32, qpn: u32) {
        self.unit(uar).mailbox.kick(qpn);
    }
}

impl Unit {
    /// The thread: until it is told to stop. `polls`: it looks for work a little longer before it sleeps.
    fn serve(&self, hca: &Arc<Hca>, polls: bool) {
        loop {
            let mut engine = self.enter(hca);
            engine.heat_up(hca);
            match engine.run(hca, &self.mailbox, THREAD_TURNS) {
                Next::Stop => return self.mailbox.unwatch_timer(engine.timer()),
                Next::Again => continue,
                Next::Idle if engine.is_hot() => {
                    let Some(nap) = engine.look_at_hot(hca, polls) else { continue };
                    drop(engine);
                    heat::nap(nap);
                    continue;
                }
                Next::Idle if polls && engine.poll(hca, &self.mailbox) => continue,
                Next::Idle if !engine.rest() => continue,
                Next::Idle => {}
            }
            drop(engine);
            let rung = self.mailbox.sleep();
            let mut engine = self.enter(hca);
            rung.for_each(|uar| engine.look_at(hca, uar));
        }
    }

    /// The engine for its thread, once the device does not stand.
    fn enter(&self, hca: &Hca) -> MutexGuard<'_, Engine> {
        loop {
            let engine = self.engine.lock();
            if !hca.engines.stand() {
                return engine;
            }
            drop(engine);
            hca.engines.standstill.wait();
        }
    }

    /// A vCPU has rung for `qpn`: it runs the engine before it goes back into the guest. What is more than its share is left to the
    /// thread. Whoever cannot have the engine leaves its note: the holder looks again after it has let go.
    fn serve_doorbell(&self, hca: &Arc<Hca>, qpn: u32) {
        self.mailbox.note(qpn);
        for _ in 0..VCPU_ROUNDS {
            // The note before the look at the lock; pairs with the fence below, and with the one before the thread's sleep.
            fence(Ordering::SeqCst);
            let Some(mut engine) = self.engine.try_lock() else { return };
            if hca.engines.stand() {
                break;
            }
            let left = match engine.run(hca, &self.mailbox, VCPU_TURNS) {
                Next::Stop => return,
                Next::Again => true,
                Next::Idle => !engine.rest(),
            };
            drop(engine);
            fence(Ordering::SeqCst);
            if left {
                break;
            }
            if !self.mailbox.has_news() {
                return;
            }
        }
        self.mailbox.wake();
    }
}
