// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What injections make of the device as a whole: its health as the initialization segment tells it, whether it is there at all; and when its port goes down.
//!
//! They are asked about when a driver reads the health counter, which a bound one does every two or three seconds (contract 2), and before each
//! command. A reset, or a driver that begins anew, makes the device well again; one that is not there hears of neither, but of a power cycle.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::hca::Hca;
use super::hooks::{NicAction, WqeShape};
use super::later::Due;
use super::port::{self, Cause};
use dma::BusMaster;
use mlx5_spec::cmd::Opcode;

/// How long after a driver has seen a fatal error the device disables its interface.
const TO_DISABLE: Duration = Duration::from_millis(500);
/// How long a function-level reset takes at most (PCIe 6.0 §6.6.2): nothing is to be expected of the function before.
const FUNCTION_RESET: Duration = Duration::from_millis(100);

/// What the initialization segment tells of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Where the health counter stands; `None`: it goes on.
    pub counter: Option<u32>,
    /// `mlx5_spec::init::syndrome`; 0: healthy.
    pub syndrome: u8,
    /// It is beyond recovery and asks for a reset.
    pub fatal: bool,
}

#[derive(Debug, Default)]
struct State {
    told: Report,
    /// When it disables its interface: a fatal error that has been seen.
    disable: Option<Instant>,
    /// When it is there again.
    back: Option<Instant>,
    /// Bus mastering was on when it went.
    was_master: bool,
}

/// See the module.
#[derive(Default)]
pub struct Health {
    /// Anything of `state`, or `gone`.
    any: AtomicBool,
    gone: AtomicBool,
    fatal: AtomicBool,
    state: Mutex<State>,
    /// The switch of its DMA.
    master: OnceLock<Arc<BusMaster>>,
}

impl Health {
    /// Gives it the switch of its DMA, which it turns off when it goes.
    pub fn attach(&self, master: Arc<BusMaster>) {
        // A device has one.
        let _ = self.master.set(master);
    }

    /// Whether anything but its port is amiss: one load.
    pub fn ails(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// It is not there: registers read as all ones, and nothing that is written does anything.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It executes no command.
    pub fn is_mute(&self) -> bool {
        self.fatal.load(Ordering::Acquire) || self.is_gone()
    }

    /// What the initialization segment tells now.
    pub fn told(&self) -> Report {
        if self.ails() { self.state.lock().told } else { Report::default() }
    }

    /// A driver has read that the device asks for a reset.
    pub fn seen(&self) {
        if self.fatal.load(Ordering::Acquire) {
            self.state.lock().disable.get_or_insert(Instant::now() + TO_DISABLE);
        }
    }

    /// Whether it is time to disable the interface.
    pub fn disables(&self) -> bool {
        self.state.lock().disable.is_some_and(|at| at <= Instant::now())
    }

    /// Whether it is time to be there again.
    pub fn returns(&self) -> bool {
        self.is_gone() && self.state.lock().back.is_some_and(|at| at <= Instant::now())
    }

    /// A reset: all is well. Not one that is gone: see [`Health::back`].
    pub fn reset(&self) {
        self.fatal.store(false, Ordering::Release);
        let mut state = self.state.lock();
        (state.told, state.disable) = (Report::default(), None);
        self.any.store(self.is_gone(), Ordering::Release);
    }

    /// It has disabled its interface by itself. What it told stays until a reset, or until a driver begins anew: one that prints slowly reads it
    /// field by field for a second.
    pub fn give_up(&self, told: Report) {
        self.state.lock().told = told;
        self.any.store(true, Ordering::Release);
    }

    /// It is there again. Whether bus mastering was on.
    pub fn back(&self) -> bool {
        let mut state = self.state.lock();
        let was_master = std::mem::take(&mut state.was_master);
        state.back = None;
        self.gone.store(false, Ordering::Release);
        self.any.store(state.told != Report::default(), Ordering::Release);
        was_master
    }

    fn ail(&self, change: impl FnOnce(&mut Report)) {
        let mut state = self.state.lock();
        change(&mut state.told);
        self.fatal.store(state.told.fatal, Ordering::Release);
        self.any.store(true, Ordering::Release);
    }
}

/// Asks the injections how the device is: before `command` is executed, or, without one, when the health counter is read, which would
/// be `counter`. Not inside a section.
pub fn occasion(hca: &Hca, command: Option<Opcode>, counter: u32) {
    if !hca.injections.any() || hca.health.is_gone() {
        return;
    }
    let shape = WqeShape::health(command);
    let ails = |action| {
        matches!(action, NicAction::HealthStuck | NicAction::HealthError { .. } | NicAction::FatalError { .. })
    };
    match hca.injections.consult(&shape, ails) {
        Some(NicAction::HealthStuck) => hca.health.ail(|told| told.counter = told.counter.or(Some(counter))),
        Some(NicAction::HealthError { syndrome }) => hca.health.ail(|told| told.syndrome = syndrome),
        Some(NicAction::FatalError { syndrome }) => {
            hca.health.ail(|told| (told.syndrome, told.fatal) = (syndrome, true));
        }
        _ => {}
    }
    if let Some(NicAction::PortDown { ms }) =
        consult(hca, &shape, |action| matches!(action, NicAction::PortDown { .. }))
    {
        port_down(hca, Duration::from_millis(ms.into()));
    }
    if let Some(NicAction::AllOnes { ms }) = consult(hca, &shape, |action| matches!(action, NicAction::AllOnes { .. }))
    {
        go(hca, (ms != 0).then(|| Duration::from_millis(ms.into())));
    }
}

fn consult(hca: &Hca, shape: &WqeShape, mine: impl Fn(NicAction) -> bool) -> Option<NicAction> {
    hca.injections.consult(shape, mine)
}

/// The function is reset, by nobody that its driver knows of. Not inside a section. When this returns no DMA of an engine is in flight.
pub fn reset_function(hca: &Hca) {
    if !hca.health.is_gone() {
        go(hca, Some(FUNCTION_RESET));
    }
}

/// The device goes, for `time` or for ever. When it returns no DMA of an engine is in flight.
fn go(hca: &Hca, time: Option<Duration>) {
    let health = &hca.health;
    {
        let mut state = health.state.lock();
        state.back = time.map(|time| Instant::now() + time);
        state.was_master = hca.dma.is_enabled();
        health.gone.store(true, Ordering::Release);
        health.any.store(true, Ordering::Release);
    }
    if let Some(master) = health.master.get() {
        master.set(false);
    }
    hca.msix.set_control(0, false);
    hca.quiesce.wait();
}

fn port_down(hca: &Hca, time: Duration) {
    if port::set(hca, Cause::Injection, false) {
        log::debug!("nic{}: an injection takes its port down for {time:?}", hca.index);
        hca.later.put(time, Due::Port);
    }
}
