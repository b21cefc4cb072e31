// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Threads for steps. Some are started in advance: starting one needs mmap, which a step that waits in a page fault may
//! hold up (on 6.1 such a fault sleeps with mmap_lock held).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use thiserror::Error;

use super::lock;

/// Threads started at once.
const READY: usize = 8;
/// Most threads, that is steps at a time.
const MAX: usize = 64;
const STACK: usize = 256 * 1024;

type Task = Box<dyn FnOnce() + Send>;

/// No thread is free.
#[derive(Debug, Error)]
#[error("{MAX} steps are running already")]
pub struct Busy;

#[derive(Default)]
struct State {
    queue: VecDeque<Task>,
    idle: usize,
    threads: usize,
}

/// The threads.
pub struct Pool {
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Pool {
    /// Starts the first threads.
    pub fn new() -> Self {
        let pool = Self { shared: Arc::default() };
        let mut state = lock(&pool.shared.0);
        for _ in 0..READY {
            pool.add_thread(&mut state);
        }
        drop(state);
        pool
    }

    /// Runs `task` at once on a thread of its own.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
        let mut state = lock(&self.shared.0);
        if state.queue.len() >= state.idle && !self.add_thread(&mut state) {
            return Err(Busy);
        }
        state.queue.push_back(Box::new(task));
        drop(state);
        self.shared.1.notify_one();
        Ok(())
    }

    fn add_thread(&self, state: &mut State) -> bool {
        let shared = self.shared.clone();
        let started =
            state.threads < MAX && std::thread::Builder::new().stack_size(STACK).spawn(move || work(&shared)).is_ok();
        if started {
            state.threads += 1;
            state.idle += 1;
        }
        started
    }
}

fn work(shared: &(Mutex<State>, Condvar)) {
    loop {
        let mut state = lock(&shared.0);
        let task = loop {
            if let Some(task) = state.queue.pop_front() {
                break task;
            }
            state = shared.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.idle -= 1;
        drop(state);
        task();
        lock(&shared.0).idle += 1;
    }
}
