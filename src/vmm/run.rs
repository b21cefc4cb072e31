// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine with a terminal: standard input to the console, signals to an orderly end, the outcome as an exit status.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
// event-manager wants this one.
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::error::VmmError;
use super::orders::Orders;
use super::outcome::{Ending, Outcome};
use super::sys::{self, RawTerminal, Signals};
use super::vm::{Input, Prepared, Vm};

/// Ctrl-A, then x: leave the VM, as in QEMU; a second ctrl-A is passed on.
const ESCAPE: u8 = 0x01;
/// How long a guest that panicked may go on printing before it is ended.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How often the agent's lines are looked at when nothing else happens, milliseconds.
const POLL_MS: i32 = 50;

/// Called with each line of the agent channel, on a thread of its own.
pub type AgentLine = Box<dyn FnMut(&Vm, &[u8]) + Send>;

/// How a machine is stayed with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// Standard input goes to the console.
    pub interactive: bool,
    /// A guest that asks for a reset gets one, instead of an end.
    pub restarts: bool,
}

/// Boots a machine and stays until the guest ends, a signal comes, the user leaves with ctrl-A x, or `orders` say so.
pub fn run(
    machine: Prepared,
    manner: Manner,
    orders: Option<Orders>,
    on_agent_line: AgentLine,
) -> Result<Outcome, VmmError> {
    // Before any thread starts, so that all inherit the blocked signals.
    let signals = Signals::new().map_err(VmmError::host("catching signals"))?;
    stay(Vm::start(machine)?, Some(signals), manner, orders, on_agent_line)
}

/// Joins a machine that is already running to this terminal, until it ends or the user leaves with ctrl-A x.
pub fn join(vm: Vm) -> Result<(), VmmError> {
    stay(vm, None, Manner { interactive: true, restarts: false }, None, Box::new(|_, _| ())).map(drop)
}

fn stay(
    mut vm: Vm,
    signals: Option<Signals>,
    manner: Manner,
    mut orders: Option<Orders>,
    mut on_agent_line: AgentLine,
) -> Result<Outcome, VmmError> {
    let host = VmmError::host;
    let interactive = manner.interactive;
    let terminal = if interactive { RawTerminal::enter().map_err(host("setting up the terminal"))? } else { None };
    let lines = vm.take_agent_lines();
    let mut events = EventManager::new().map_err(|e| host("watching events")(io::Error::other(format!("{e:?}"))))?;
    let ending = vm.ending().clone();
    let front = Front { signals, ending: ending.clone(), input: interactive.then(|| vm.input()), escaped: false };
    events.add_subscriber(Arc::new(Mutex::new(front)));
    let mut panicked: Option<Instant> = None;
    let outcome = loop {
        if let Err(error) = events.run_with_timeout(POLL_MS) {
            break Outcome::Failed(format!("the event loop failed: {error:?}"));
        }
        for line in lines.iter().flat_map(|lines| lines.try_iter()) {
            on_agent_line(&vm, &line);
        }
        if let Some(orders) = &mut orders {
            orders.carry_out(&vm);
        }
        match ending.get() {
            Some(Outcome::Reset) if manner.restarts => match vm.restart() {
                Ok(()) => panicked = None,
                Err(error) => break Outcome::Failed(format!("the reset failed: {error}")),
            },
            Some(outcome) => break outcome,
            None => {}
        }
        if ending.has_panicked() && panicked.get_or_insert_with(Instant::now).elapsed() > LAST_WORDS {
            break Outcome::Panic;
        }
    };
    LEAVING.store(true, Ordering::Release);
    let outcome = vm.stop(outcome);
    drop(terminal);
    Ok(outcome)
}

/// The descriptors that the front end listens to.
struct Front {
    signals: Option<Signals>,
    ending: Arc<Ending>,
    input: Option<Input>,
    escaped: bool,
}

impl Front {
    fn read_input(&mut self, ops: &mut EventOps) {
        let mut buffer = [0u8; 4096];
        let n = io::stdin().lock().read(&mut buffer).unwrap_or(0);
        if n == 0 {
            // End of input: the guest lives on without it.
            drop(ops.remove(Events::empty(&0)));
            return;
        }
        self.pass_on(&buffer[..n]);
    }

    /// Passes bytes to the console, looking for the escape.
    fn pass_on(&mut self, bytes: &[u8]) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            match (self.escaped, *byte) {
                (true, b'x') => self.ending.set(Outcome::Stopped),
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (_, byte) => out.push(byte),
            }
            self.escaped = false;
        }
        if let Some(input) = &self.input {
            input.console(&out);
        }
    }

    /// A regular file or /dev/null cannot be waited for: all of it is input at once.
    fn read_all(&mut self) {
        let mut all = Vec::new();
        let limited = io::stdin().lock().take(1 << 20).read_to_end(&mut all);
        if limited.is_ok() {
            self.pass_on(&all);
        }
    }
}

impl MutEventSubscriber for Front {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let signals = self.signals.as_ref().filter(|signals| signals.as_raw_fd() == events.fd());
        if let Some(signals) = signals {
            while let Some(signal) = signals.next() {
                self.ending.set(Outcome::Signal(signal));
            }
        } else if events.fd() == self.ending.event().as_raw_fd() {
            drop(self.ending.event().read());
        } else {
            self.read_input(ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        let ending = self.ending.clone();
        let signals = self.signals.as_ref().map_or(Ok(()), |signals| ops.add(Events::new(signals, EventSet::IN)));
        let watched = signals.and_then(|()| ops.add(Events::new(ending.event(), EventSet::IN)));
        if let Err(error) = watched {
            self.ending.set(Outcome::Failed(format!("cannot watch for signals: {error:?}")));
        }
        if self.input.is_some() && ops.add(Events::new(&io::stdin(), EventSet::IN)).is_err() {
            self.read_all();
        }
    }
}

/// Set when a run is being ended.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// A console that writes to standard output, unbuffered, and forgets what a closed one refuses. When nobody reads, the guest waits,
/// but not the end of the run: from then on such output is dropped.
pub struct Stdout;

impl io::Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        while !sys::writable(1, POLL_MS) {
            if LEAVING.load(Ordering::Acquire) {
                return Ok(bytes.len());
            }
        }
        let mut out = io::stdout().lock();
        // A reader that has gone away must not stop the guest.
        drop(out.write_all(bytes).and_then(|()| out.flush()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Resident memory of a process, in KiB (proc_pid_status(5)).
#[derive(Debug, Clone, Copy)]
pub struct Resident {
    /// Guest RAM and other shared memory.
    pub guest: u64,
    /// Heap, stacks, data: what one machine more takes.
    pub own: u64,
    /// Pages of the program and its libraries, which all that run it share.
    pub files: u64,
}

/// Of this process.
pub fn resident_kib() -> Option<Resident> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some(Resident { guest: field("RssShmem:")?, own: field("RssAnon:")?, files: field("RssFile:")? })
}
