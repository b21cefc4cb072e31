// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serving the channel: requests in, replies and events out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rnic_agent::frame::{Line, Reader};
use rnic_agent::proto::{Failure, Hello, Message, Op, Reply, Request, VERSION, Value};

use crate::ops;
use crate::ops::kmsg::Kmsg;
use crate::sys;

pub mod objects;
pub mod pool;
pub mod port;

use objects::{Job, Object, Objects};
use pool::Pool;
use port::Port;

/// Locks; a panic elsewhere while it was locked is no reason to stop.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All that steps work with.
pub struct Context {
    /// The channel.
    pub port: Port,
    /// Handles.
    pub objects: Objects,
    /// Reader of the kernel log.
    pub kmsg: Mutex<Kmsg>,
    /// Damaged lines seen.
    pub bad_lines: AtomicU64,
    /// We are the init of a guest, so the machine is ours to end.
    pub guest: bool,
    pool: Pool,
}

impl Context {
    /// A context that serves `port`.
    pub fn new(port: Port, guest: bool) -> Arc<Self> {
        // Before there is a second thread.
        #[cfg(feature = "verbs")]
        sys::guard::block_signal();
        Arc::new(Self {
            port,
            objects: Objects::default(),
            kmsg: Mutex::default(),
            bad_lines: AtomicU64::new(0),
            guest,
            pool: Pool::new(),
        })
    }

    /// Sends the first message.
    pub fn hello(&self, boot_ms: u64) {
        let (release, _) = sys::uname();
        let hello = Hello { release, cpus: sys::cpus(), version: VERSION, boot_ms, ready_ms: sys::boot_ms() };
        self.port.send(&Message::Hello(hello));
    }

    /// Serves until the port ends.
    pub fn serve(self: &Arc<Self>) {
        let mut reader = Reader::new();
        let mut buffer = [0; 4096];
        while let Some(n) = self.port.receive(&mut buffer) {
            reader.push(&buffer[..n], |line| match line {
                Line::Message(request) => self.accept(request),
                Line::Bad { why, id } => {
                    self.bad_lines.fetch_add(1, Ordering::Relaxed);
                    if let Some(id) = id {
                        self.reply(id, Err(Failure { errno: libc::EBADMSG, what: why.to_string() }));
                    }
                }
            });
        }
    }

    fn reply(&self, id: u32, result: Result<Value, Failure>) {
        self.port.send(&Message::Reply(Reply { id, result }));
    }

    fn accept(self: &Arc<Self>, Request { id, bg, op }: Request) {
        let as_job = bg || op.is_job();
        let context = self.clone();
        let started = if as_job { self.start_job(id, op) } else { self.pool.run(move || context.answer(id, op)) };
        if let Err(busy) = started {
            self.reply(id, Err(Failure { errno: libc::EAGAIN, what: busy.to_string() }));
        }
    }

    fn start_job(self: &Arc<Self>, id: u32, op: Op) -> Result<(), pool::Busy> {
        let job = Arc::new(Job::default());
        let handle = match self.objects.add(Object::Job(job.clone())) {
            Ok(handle) => handle,
            Err(failure) => {
                self.reply(id, Err(failure));
                return Ok(());
            }
        };
        let context = self.clone();
        let started = self.pool.run(move || {
            job.begin(sys::process::thread());
            context.reply(id, Ok(Value::Handle(handle)));
            job.finish(context.run(op));
        });
        if started.is_err() {
            self.objects.remove(handle);
        }
        started
    }

    fn answer(self: &Arc<Self>, id: u32, op: Op) {
        if matches!(op, Op::Poweroff | Op::Reboot | Op::Crash) {
            let refused = (!self.guest).then(|| Failure {
                errno: libc::EPERM,
                what: "this agent is not the init of a guest and will not end the machine".into(),
            });
            let allowed = refused.is_none();
            self.reply(id, refused.map_or(Ok(Value::Unit), Err));
            if allowed {
                self.port.drain();
                crate::boot::power::end(&op);
            }
            return;
        }
        let result = self.run(op);
        self.reply(id, result);
    }

    /// Runs one step; a bug in it is a failed step, not the end of the guest.
    fn run(self: &Arc<Self>, op: Op) -> Result<Value, Failure> {
        catch_unwind(AssertUnwindSafe(|| ops::run(self, op)))
            .unwrap_or_else(|_| Err(Failure { errno: 0, what: "the agent has a bug: this step panicked".into() }))
    }
}
