// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data path: engine threads that execute send WQEs and place data (contract 7).
//!
//! * `wqe`: work requests, parsed. `receive`: how receive WQEs are taken.
//! * `requester`: one queue pair's sending half and what it waits for; `execute` and `datagram`: one step of a message;
//!   `transfer`: the copy; `completion`: CQEs; `diagnosis`: what they say of errors; `failure`: errors, page faults, flushing.
//! * `worker`: the thread; `door`: what others tell it.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::EventFd;

use super::hca::Hca;
use super::sync::lock;

mod completion;
mod datagram;
mod diagnosis;
mod door;
mod execute;
mod failure;
mod psn;
mod receive;
mod requester;
mod transfer;
mod work;
mod worker;
mod wqe;

use door::Door;
pub use receive::{Responder, read_record};
use worker::Worker;
pub use wqe::MAX_SEND_WQE;

/// Handles to the engine threads. A queue pair belongs to engine `uar % count`.
pub struct Engines {
    doors: Vec<Arc<Door>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engines {
    /// `count` engines, not running.
    pub fn new(count: usize) -> std::io::Result<Self> {
        let doors = (0..count.max(1)).map(|_| Door::new().map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self { doors, threads: Mutex::default() })
    }

    /// Starts the threads. They hold the device until [`Engines::stop`].
    pub fn start(hca: &Arc<Hca>) -> std::io::Result<()> {
        let count = hca.engines.doors.len();
        for (engine, door) in hca.engines.doors.iter().enumerate() {
            let worker = Worker::new(hca.clone(), engine, count, door.clone())?;
            let name = format!("nic{}-engine{engine}", hca.index);
            let thread = std::thread::Builder::new().name(name).spawn(move || worker.run())?;
            lock(&hca.engines.threads).push(thread);
        }
        Ok(())
    }

    /// Stops and joins the threads. Every wait and hold is over.
    pub fn stop(&self) {
        for door in &self.doors {
            door.stop();
        }
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                log::error!("an engine thread had panicked");
            }
        }
    }

    fn door(&self, uar: u32) -> &Door {
        &self.doors[uar as usize % self.doors.len()]
    }

    /// `event` is signalled by SQ doorbells of UAR page `uar`, from now on.
    pub fn watch(&self, uar: u32, event: Arc<EventFd>) -> std::io::Result<()> {
        self.door(uar).watch(uar, event)
    }

    /// Undoes `watch`.
    pub fn unwatch(&self, uar: u32) {
        self.door(uar).unwatch(uar);
    }

    /// An SQ doorbell of UAR page `uar` that took an exit.
    pub fn ring(&self, uar: u32) {
        self.door(uar).ring(uar);
    }

    /// Something about queue pair `qpn` changed: look at it again.
    pub fn kick(&self, uar: u32, qpn: u32) {
        self.door(uar).kick(qpn);
    }
}
