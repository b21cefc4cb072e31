// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What handles name.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rnic_agent::proto::{Failure, JobState, Value};

use super::lock;
use crate::ops::process::Process;
#[cfg(feature = "verbs")]
use crate::ops::verbs::Pair;
use crate::sys;
use crate::sys::forked::Forked;
#[cfg(feature = "verbs")]
use crate::sys::guard::Guard;
use crate::sys::gup::Pipe;
use crate::sys::mapping::Mapping;
use crate::sys::process;
use crate::sys::uffd::Uffd;
use crate::sys::uring::Ring;
#[cfg(feature = "verbs")]
use crate::sys::verbs::{Mr, Nic};
use crate::sys::xdp::Umem;

/// Most handles at a time.
const MAX: usize = 4096;

/// How a job ended. Times are microseconds since boot.
struct Ended {
    result: Result<Value, Failure>,
    begun_us: u64,
    at_us: u64,
}

/// A step that runs in the background.
#[derive(Default)]
pub struct Job {
    result: Mutex<Option<Ended>>,
    /// The thread that runs it, while it does, and since when (microseconds since boot).
    thread: Mutex<Option<(i32, u64)>>,
    done: Condvar,
}

impl Job {
    /// Notes which thread runs it.
    pub fn begin(&self, thread: i32) {
        *lock(&self.thread) = Some((thread, sys::boot_us()));
    }

    /// Interrupts what it waits for; false: it has ended. The lock is held meanwhile, so that the signal goes to no later job of the thread.
    pub fn interrupt(&self) -> std::io::Result<bool> {
        let thread = lock(&self.thread);
        thread.map_or(Ok(false), |(id, _)| process::interrupt(id).map(|()| true))
    }

    /// Notes how it ended.
    pub fn finish(&self, result: Result<Value, Failure>) {
        let at_us = sys::boot_us();
        let begun_us = lock(&self.thread).take().map_or(at_us, |(_, begun)| begun);
        *lock(&self.result) = Some(Ended { result, begun_us, at_us });
        self.done.notify_all();
    }

    /// How it stands, after waiting at most `limit` for its end.
    pub fn wait(&self, limit: Duration) -> JobState {
        let start = Instant::now();
        let mut result = lock(&self.result);
        while result.is_none() {
            let Some(left) = limit.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) else { break };
            result = self.done.wait_timeout(result, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(Ended { result, begun_us, at_us }) = result.as_ref() else { return JobState::default() };
        JobState {
            done: true,
            us: at_us.saturating_sub(*begun_us),
            at_us: *at_us,
            result: Some(Box::new(result.clone())),
        }
    }
}

/// Anything with a handle.
#[derive(Clone)]
pub enum Object {
    /// Open file.
    File(Arc<File>),
    /// Mapping or anonymous buffer.
    Mapping(Arc<Mapping>),
    /// Background step.
    Job(Arc<Job>),
    /// Another process of this agent.
    Process(Arc<Process>),
    /// An io_uring with registered memory.
    Ring(Arc<Ring>),
    /// A pipe with pages of a mapping.
    Pipe(Arc<Pipe>),
    /// An AF_XDP socket.
    Umem(Arc<Umem>),
    /// A child that shares our memory.
    Forked(Arc<Forked>),
    /// A page whose faults we answer, and its offset.
    Uffd(Arc<(Uffd, u64)>),
    /// RDMA device.
    #[cfg(feature = "verbs")]
    Nic(Arc<Nic>),
    /// Memory region.
    #[cfg(feature = "verbs")]
    Mr(Arc<Mr>),
    /// Two connected queue pairs.
    #[cfg(feature = "verbs")]
    Pair(Arc<Pair>),
    /// Somebody who is asked before a file's blocks go.
    #[cfg(feature = "verbs")]
    Guard(Arc<Mutex<Guard>>),
}

#[derive(Default)]
struct Table {
    last: u32,
    map: HashMap<u32, Object>,
}

/// The handle table. Objects are dropped outside its lock: closing a file may wait for a disk.
#[derive(Default)]
pub struct Objects {
    table: Mutex<Table>,
}

fn bad_handle(handle: u32, what: &str) -> Failure {
    Failure { errno: libc::EBADF, what: format!("handle {handle} is no {what}") }
}

impl Objects {
    /// Gives an object a handle. Handles are not used twice.
    pub fn add(&self, object: Object) -> Result<u32, Failure> {
        let mut table = lock(&self.table);
        let handle = table.last.checked_add(1).filter(|_| table.map.len() < MAX);
        let Some(handle) = handle else {
            return Err(Failure { errno: libc::EMFILE, what: format!("{MAX} handles are in use: send Reset") });
        };
        table.last = handle;
        table.map.insert(handle, object);
        Ok(handle)
    }

    fn get(&self, handle: u32) -> Option<Object> {
        lock(&self.table).map.get(&handle).cloned()
    }

    /// Forgets a handle.
    pub fn remove(&self, handle: u32) -> Option<Object> {
        lock(&self.table).map.remove(&handle)
    }

    /// Forgets all; returns how many jobs still run.
    pub fn clear(&self) -> u64 {
        let objects = std::mem::take(&mut lock(&self.table).map);
        let running = |object: &&Object| matches!(object, Object::Job(job) if !job.wait(Duration::ZERO).done);
        objects.values().filter(running).count() as u64
    }
}

macro_rules! getters {
    ($($(#[$attribute:meta])* $name:ident -> $variant:ident($type:ty), $what:literal;)*) => {
        impl Objects {
            $($(#[$attribute])*
            pub fn $name(&self, handle: u32) -> Result<Arc<$type>, Failure> {
                match self.get(handle) {
                    Some(Object::$variant(object)) => Ok(object),
                    _ => Err(bad_handle(handle, $what)),
                }
            })*
        }
    };
}

getters! {
    /// The open file `handle`.
    file -> File(File), "open file";
    /// The mapping `handle`.
    mapping -> Mapping(Mapping), "mapping";
    /// The job `handle`.
    job -> Job(Job), "job";
    /// The other process `handle`.
    process -> Process(Process), "process";
    /// The io_uring `handle`.
    ring -> Ring(Ring), "io_uring with registered memory";
    /// The pipe `handle`.
    pipe -> Pipe(Pipe), "pipe";
    /// The AF_XDP socket `handle`.
    umem -> Umem(Umem), "AF_XDP socket";
    /// The child `handle`.
    forked -> Forked(Forked), "child";
    /// The page `handle` whose faults we answer, and its offset.
    uffd -> Uffd((Uffd, u64)), "userfaultfd";
    /// The RDMA device `handle`.
    #[cfg(feature = "verbs")]
    nic -> Nic(Nic), "RDMA device";
    /// The memory region `handle`.
    #[cfg(feature = "verbs")]
    mr -> Mr(Mr), "memory region";
    /// The pair of queue pairs `handle`.
    #[cfg(feature = "verbs")]
    pair -> Pair(Pair), "pair of queue pairs";
    #[cfg(feature = "verbs")]
    /// The guard `handle`.
    guard -> Guard(Mutex<Guard>), "guard of a file";
}
