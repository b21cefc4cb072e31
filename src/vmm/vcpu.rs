// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! vCPU threads: run, answer exits, pause and stop when told.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::outcome::Outcome;
use super::platform::Platform;
use super::whereabouts::Whereabouts;

/// How long a vCPU gets to come out of KVM_RUN when somebody looks where it is.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// What is said of a vCPU that was not parked within it.
const AWAY: &str = "does not answer: it is in an exit of ours, or its host CPU runs nothing";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

struct State {
    wanted: Wanted,
    /// vCPUs that are inside the run loop, not parked and not ended.
    running: usize,
    /// Where each vCPU was when it was last parked.
    places: Vec<Option<Whereabouts>>,
}

/// The switch that all vCPU threads obey.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Parks the calling vCPU while the machine is paused. False when it shall end.
    fn pass(&self, id: usize, vcpu: &VcpuFd) -> bool {
        let mut state = self.lock();
        if state.wanted == Wanted::Run {
            return true;
        }
        if state.wanted == Wanted::Pause
            && let Some(place) = state.places.get_mut(id)
        {
            *place = Whereabouts::of(vcpu);
        }
        state.running -= 1;
        self.changed.notify_all();
        while state.wanted == Wanted::Pause {
            self.changed.wait(&mut state);
        }
        if state.wanted == Wanted::Stop {
            return false;
        }
        state.running += 1;
        true
    }
}

/// All vCPU threads of a machine.
pub struct Vcpus {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Vcpus {
    /// Starts a thread for each vCPU.
    pub fn start(vcpus: Vec<VcpuFd>, platform: &Arc<Platform>) -> io::Result<Self> {
        // The handler does nothing: the signal's only work is to make KVM_RUN return EINTR.
        register_signal_handler(SIGRTMIN(), on_kick).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        let gate = Arc::new(Gate {
            state: Mutex::new(State {
                wanted: Wanted::Run,
                running: vcpus.len(),
                places: vcpus.iter().map(|_| None).collect(),
            }),
            changed: Condvar::new(),
        });
        let mut threads = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (gate, platform) = (gate.clone(), platform.clone());
            let thread = std::thread::Builder::new().name(format!("vcpu{id}"));
            threads.push(thread.spawn(move || run(vcpu, id, &gate, &platform))?);
        }
        Ok(Self { gate, threads })
    }

    fn set(&self, wanted: Wanted) {
        self.set_within(wanted, Duration::MAX);
    }

    /// False when some vCPU had not answered within `limit`.
    fn set_within(&self, wanted: Wanted, limit: Duration) -> bool {
        let begun = Instant::now();
        let mut state = self.gate.lock();
        if state.wanted == Wanted::Stop {
            return true;
        }
        state.wanted = wanted;
        self.gate.changed.notify_all();
        // A kick can come just before KVM_RUN and be lost, so kick until everyone has answered.
        while wanted != Wanted::Run && state.running > 0 {
            if begun.elapsed() > limit {
                return false;
            }
            self.threads.iter().filter(|thread| !thread.is_finished()).for_each(kick);
            self.gate.changed.wait_for(&mut state, Duration::from_millis(2));
        }
        true
    }

    /// Stops all vCPUs where they are; returns when none executes guest code.
    pub fn pause(&self) {
        self.set(Wanted::Pause);
    }

    /// The same, within `limit`. False: one is in an exit of ours that lasts (output that nobody reads), and all go on.
    pub fn pause_within(&self, limit: Duration) -> bool {
        let stand = self.set_within(Wanted::Pause, limit);
        if !stand {
            self.set(Wanted::Run);
        }
        stand
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.set(Wanted::Run);
    }

    /// Where the vCPUs are, in words: they are parked for the moment that it takes to look, if they are not already. One that does not
    /// come to be parked is told of as that.
    pub fn places(&self) -> Vec<String> {
        if self.gate.lock().wanted != Wanted::Pause {
            self.gate.lock().places.iter_mut().for_each(|place| *place = None);
            self.set_within(Wanted::Pause, LOOK_LIMIT);
            let places = self.parked();
            self.set(Wanted::Run);
            return places;
        }
        self.parked()
    }

    /// Where they were when they were last parked.
    fn parked(&self) -> Vec<String> {
        let places = self.gate.lock().places.clone();
        let words = |place: Option<Whereabouts>| place.map_or(AWAY.into(), |place| place.to_string());
        places.into_iter().enumerate().map(|(id, place)| format!("vCPU {id} {}", words(place))).collect()
    }

    /// Ends all vCPU threads.
    pub fn stop(&mut self) {
        self.set(Wanted::Stop);
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop();
    }
}

fn kick(thread: &JoinHandle<()>) {
    // A thread that has ended meanwhile needs no kick.
    if let Err(error) = thread.kill(SIGRTMIN()) {
        log::debug!("a vCPU thread could not be kicked: {error}");
    }
}

fn run(mut vcpu: VcpuFd, id: usize, gate: &Gate, platform: &Platform) {
    while gate.pass(id, &vcpu) {
        match vcpu.run() {
            Ok(exit) => {
                if let Some(outcome) = answer(exit, id, platform) {
                    platform.ending.set(outcome);
                }
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => platform.ending.set(Outcome::Failed(format!("vCPU {id} cannot run: {error}"))),
        }
        if platform.ending.get().is_some() {
            park_until_stopped(gate);
            return;
        }
    }
}

/// After the end of the guest's life nothing runs any more; the thread waits to be joined.
fn park_until_stopped(gate: &Gate) {
    let mut state = gate.lock();
    state.running -= 1;
    gate.changed.notify_all();
    while state.wanted != Wanted::Stop {
        gate.changed.wait(&mut state);
    }
}

fn answer(exit: VcpuExit<'_>, id: usize, platform: &Platform) -> Option<Outcome> {
    match exit {
        VcpuExit::IoIn(port, data) => platform.port_read(port, data),
        VcpuExit::IoOut(port, data) => platform.port_write(port, data),
        VcpuExit::MmioRead(address, data) => platform.mmio_read(address, data),
        VcpuExit::MmioWrite(address, data) => platform.mmio_write(address, data),
        VcpuExit::Shutdown => platform.ending.reset(Outcome::TripleFault),
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        VcpuExit::InternalError => {
            return Some(Outcome::Failed(format!(
                "KVM gave up vCPU {id} (internal error): a KVM that does not run stock kernels needs an emulated host (--host emulated)"
            )));
        }
        other => {
            return Some(Outcome::Failed(format!("vCPU {id} stopped in a way this VMM does not handle: {other:?}")));
        }
    }
    None
}
