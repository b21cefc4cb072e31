// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's end of the agent channel.
//!
//! The owner of the port gives a way to send bytes and calls [`Client::feed`] with what comes in, from any thread. Any number of
//! threads may call; each waits for its own reply.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::frame::{self, EncodeError, Line, Reader};
use crate::proto::{Event, Failure, Hello, JobState, Message, Op, Reply, Request, VERSION, Value};

/// Events kept for [`Client::events`]; older ones go first.
const MAX_EVENTS: usize = 4096;
/// How long a wait sleeps at a time.
const LOOK: Duration = Duration::from_millis(50);
/// What such a sleep uses up of the wait's limit at most: a host that stood still, and the guest with it, is no guest that is late.
const LONGEST_LOOK: Duration = Duration::from_millis(100);

/// A call did not succeed.
#[derive(Debug, Error)]
pub enum CallError {
    /// The guest did it and failed, or refused.
    #[error("{0}")]
    Failed(Failure),
    /// No reply in time. The step may still be running.
    #[error("the guest agent did not answer within {0:?}")]
    Timeout(Duration),
    /// The guest has ended.
    #[error("the guest ended before its agent answered")]
    Closed,
    /// The reply is of another type than the caller expected.
    #[error("the guest agent answered with a value of another type")]
    Unexpected,
    /// The guest runs another version of the agent.
    #[error("the guest agent speaks version {0} of the protocol, not {VERSION}: rebuild rnic-agent")]
    Version(u32),
    /// Cannot be sent.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The port failed.
    #[error("the agent's port failed: {0}")]
    Send(#[from] io::Error),
}

impl CallError {
    /// The guest's errno, when the guest answered with a failure.
    pub fn errno(&self) -> Option<i32> {
        match self {
            CallError::Failed(failure) => Some(failure.errno),
            _ => None,
        }
    }
}

type Sender = Box<dyn FnMut(&[u8]) -> io::Result<()> + Send>;

/// The host's end. Clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    send: Mutex<Sender>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    reader: Reader,
    last_id: u32,
    /// Requests sent and not yet taken by their callers.
    pending: HashMap<u32, Option<Result<Value, Failure>>>,
    hello: Option<Hello>,
    events: VecDeque<Event>,
    acked: u64,
    closed: bool,
}

/// A request on its way: wait for its reply with [`Client::finish`].
#[derive(Debug, PartialEq, Eq)]
pub struct Pending(u32);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Client {
    /// A client that sends through `send` (which may block for a bounded time).
    pub fn new(send: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static) -> Self {
        let inner = Inner { send: Mutex::new(Box::new(send)), state: Mutex::default(), changed: Condvar::new() };
        Self { inner: Arc::new(inner) }
    }

    /// Takes bytes that came from the guest. Never blocks for long.
    pub fn feed(&self, bytes: &[u8]) {
        let mut state = lock(&self.inner.state);
        let mut reader = std::mem::take(&mut state.reader);
        let mut news = false;
        reader.push(bytes, |line| {
            if let Line::Message(message) = line {
                state.take(message);
                news = true;
            }
        });
        state.reader = reader;
        drop(state);
        if news {
            self.inner.changed.notify_all();
        }
    }

    /// The guest has ended: all waiting calls return [`CallError::Closed`].
    pub fn close(&self) {
        lock(&self.inner.state).closed = true;
        self.inner.changed.notify_all();
    }

    /// Waits for the agent's first message.
    pub fn wait_hello(&self, limit: Duration) -> Result<Hello, CallError> {
        let hello = self.wait_for(limit, |state| state.hello.clone())?;
        if hello.version == VERSION { Ok(hello) } else { Err(CallError::Version(hello.version)) }
    }

    /// Sends `op` and waits for its result.
    pub fn call(&self, op: Op, limit: Duration) -> Result<Value, CallError> {
        let pending = self.start(op)?;
        self.finish(pending, limit)
    }

    /// Sends `op` to run as a job; returns the job's handle when it has been started.
    pub fn spawn(&self, op: Op, limit: Duration) -> Result<u32, CallError> {
        let pending = self.send(op, true)?;
        self.finish(pending, limit)?.handle().ok_or(CallError::Unexpected)
    }

    /// Waits in the guest for a job, at most `limit`.
    pub fn wait_job(&self, job: u32, limit: Duration) -> Result<JobState, CallError> {
        let limit_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let slack = Duration::from_secs(30);
        self.call(Op::Wait { job, limit_ms }, limit.saturating_add(slack))?.job().ok_or(CallError::Unexpected)
    }

    /// Sends `op` without waiting.
    pub fn start(&self, op: Op) -> Result<Pending, CallError> {
        self.send(op, false)
    }

    /// Waits for the result of a request that was started. After a timeout the reply is discarded when it comes.
    pub fn finish(&self, pending: Pending, limit: Duration) -> Result<Value, CallError> {
        let outcome = self.wait_for(limit, |state| match state.pending.get(&pending.0) {
            Some(Some(_)) => state.pending.remove(&pending.0).flatten(),
            _ => None,
        });
        match outcome {
            Ok(result) => result.map_err(CallError::Failed),
            Err(error) => {
                lock(&self.inner.state).pending.remove(&pending.0);
                Err(error)
            }
        }
    }

    /// Takes all events that came in.
    pub fn events(&self) -> Vec<Event> {
        lock(&self.inner.state).events.drain(..).collect()
    }

    /// Highest group that an acked writer reported.
    pub fn acked(&self) -> u64 {
        lock(&self.inner.state).acked
    }

    /// Lines from the guest that were damaged.
    pub fn bad_lines(&self) -> u64 {
        lock(&self.inner.state).reader.bad()
    }

    fn send(&self, op: Op, bg: bool) -> Result<Pending, CallError> {
        let mut state = lock(&self.inner.state);
        if state.closed {
            return Err(CallError::Closed);
        }
        state.last_id = state.last_id.wrapping_add(1);
        let id = state.last_id;
        let line = frame::encode(&Request { id, bg, op })?;
        state.pending.insert(id, None);
        drop(state);
        let sent = lock(&self.inner.send)(&line);
        if let Err(error) = sent {
            lock(&self.inner.state).pending.remove(&id);
            return Err(error.into());
        }
        Ok(Pending(id))
    }

    fn wait_for<T>(&self, limit: Duration, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T, CallError> {
        let (mut left, mut seen) = (limit, Instant::now());
        let mut state = lock(&self.inner.state);
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if state.closed {
                return Err(CallError::Closed);
            }
            let now = Instant::now();
            left = left.saturating_sub(now.duration_since(seen).min(LONGEST_LOOK));
            seen = now;
            if left.is_zero() {
                return Err(CallError::Timeout(limit));
            }
            state = match self.inner.changed.wait_timeout(state, left.min(LOOK)) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl State {
    fn take(&mut self, message: Message) {
        match message {
            Message::Hello(hello) => self.hello = Some(hello),
            Message::Reply(Reply { id, result }) => {
                // Replies to nobody (a caller whose time was over, a hostile guest) are not kept.
                if let Some(slot) = self.pending.get_mut(&id) {
                    *slot = Some(result);
                }
            }
            Message::Event(event) => {
                if let Event::Acked { n } = event {
                    self.acked = self.acked.max(n);
                }
                if self.events.len() >= MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[test]
    fn replies_reach_their_callers_in_any_order() {
        let client = Client::new(|_| Ok(()));
        let (first, second) = (client.start(Op::Ping).unwrap(), client.start(Op::Taint).unwrap());
        for (id, value) in [(2, Value::Num(2)), (1, Value::Unit), (99, Value::Unit)] {
            client.feed(&frame::encode(&Message::Reply(Reply { id, result: Ok(value) })).unwrap());
        }
        assert_eq!(client.finish(first, SOON).unwrap(), Value::Unit);
        assert_eq!(client.finish(second, SOON).unwrap(), Value::Num(2));
        assert!(lock(&client.inner.state).pending.is_empty());
    }

    #[test]
    fn silence_and_the_end_of_the_guest_are_told_apart() {
        let client = Client::new(|_| Ok(()));
        assert!(matches!(client.call(Op::Ping, SOON), Err(CallError::Timeout(_))));
        let pending = client.start(Op::Ping).unwrap();
        client.close();
        assert!(matches!(client.finish(pending, SOON), Err(CallError::Closed)));
        assert!(matches!(client.call(Op::Ping, SOON), Err(CallError::Closed)));
    }

    #[test]
    fn a_flood_of_events_is_bounded() {
        let client = Client::new(|_| Ok(()));
        for n in 0..MAX_EVENTS as u64 + 10 {
            client.feed(&frame::encode(&Message::Event(Event::Acked { n })).unwrap());
        }
        assert_eq!(client.events().len(), MAX_EVENTS);
        assert_eq!(client.acked(), MAX_EVENTS as u64 + 9);
    }

    #[test]
    fn another_version_is_refused() {
        let client = Client::new(|_| Ok(()));
        let hello = Hello { release: "x".into(), cpus: 1, version: VERSION + 1, boot_ms: 0, ready_ms: 0 };
        client.feed(&frame::encode(&Message::Hello(hello)).unwrap());
        assert!(matches!(client.wait_hello(SOON), Err(CallError::Version(_))));
    }
}
