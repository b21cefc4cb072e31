// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command queue and the commands (contract 3, 4, 6).
//!
//! * [`queue`]: entries and mailboxes. `table`: every command, once. [`log`]: `--nic log=commands`.
//! * One file an object family: what its commands check and do.
//! * [`CommandUnit`]: what commands, resets and inspection share; [`Worker`]: the thread that executes commands, one after another.
//!
//! No command waits for the driver: slot 31 (MANAGE_PAGES) cannot be blocked by another, and 2RST, 2ERR and DESTROY wait for DMA in
//! flight at most, which is bounded ([`dma::Quiesce`]).

mod caps;
mod cq;
mod dct;
mod devx;
mod eq;
mod error;
pub mod fields;
mod hca_cmds;
pub mod log;
mod mkey;
mod odp;
mod qp;
mod qp_modify;
pub mod queue;
mod regs;
mod request;
mod small;
mod srq;
pub mod table;
mod vport;

use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::caps::Capabilities;
pub use self::error::CommandError;
pub use self::hca_cmds::IEEE_VENDOR_ID;
pub use self::qp::retire as retire_qp;
use self::queue::{Entry, Output, SLOTS, Undelivered};
use self::request::{Reply, Request};
use self::table::Phase;
pub use self::vport::{node_guid, port_gid};
use super::NicConfig;
use super::eq::Event;
use super::hca::Hca;
use super::health;
use super::hooks::inject::{self, CommandTime};
use super::hooks::{NicAction, WqeShape};
use super::init_segment::InitSegment;
use super::later;
use super::port::Identity;
use super::uar::UarDoorbells;
use mlx5_spec::cmd::{ENTRY_SIZE, Opcode, delivery, in_header};
use mlx5_spec::eq::{eqe_cmd, event};
use mlx5_spec::{cq as cq_spec, mkey as mkey_spec, qp as qp_spec};

/// epoll data of the wake eventfd; slots have their number.
const WAKE: u64 = u64::MAX;
/// epoll data of what wakes for things that injections put off.
const LATE: u64 = u64::MAX - 1;

/// What the device keeps of what the driver told it, objects apart. Only commands and resets touch it.
pub struct DriverSettings {
    /// Guest physical address of the command queue.
    pub queue: Option<u64>,
    /// SET_ISSI's.
    pub issi: u32,
    /// ENABLE_HCA came, and no DISABLE_HCA since.
    pub enabled: bool,
    /// INIT_HCA came, and no TEARDOWN_HCA since.
    pub initialized: bool,
    /// Capabilities as SET_HCA_CAP left them.
    pub caps: Capabilities,
    /// Counts queue pairs' lives; never goes back, so that no engine takes a new queue pair for an old one of the same number.
    incarnations: u64,
}

impl DriverSettings {
    fn new(config: &NicConfig, incarnations: u64) -> Self {
        Self { queue: None, issi: 0, enabled: false, initialized: false, caps: Capabilities::new(config), incarnations }
    }

    fn phase(&self) -> Phase {
        match (self.enabled, self.initialized) {
            (false, _) => Phase::Off,
            (true, false) => Phase::Enabled,
            (true, true) => Phase::Running,
        }
    }

    /// What the driver has to send first.
    fn missing(&self) -> Opcode {
        if self.enabled { Opcode::INIT_HCA } else { Opcode::ENABLE_HCA }
    }

    /// A number for a queue pair's new life.
    pub fn incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    /// Forgets everything that a driver has set.
    pub fn reset(&mut self, hca: &Hca) {
        *self = Self::new(&hca.config, self.incarnations);
        hca.paging.put(self.caps.paging());
        *hca.port.identity.lock() = Identity::default();
    }
}

/// What commands, resets and inspection share.
pub struct CommandUnit {
    hca: Arc<Hca>,
    doorbells: Arc<UarDoorbells>,
    /// One for each slot, rung by the command doorbell that is written with this slot's bit alone.
    events: Vec<Arc<EventFd>>,
    /// Wakes the worker for slots that are in `rung`, and to stop.
    wake: EventFd,
    /// Slots whose doorbell took an exit.
    rung: AtomicU32,
    /// Slots that an injection keeps waiting, with the time at which they are served. Changed between commands only.
    late: Mutex<Vec<(Instant, u32)>>,
    settings: Mutex<DriverSettings>,
    /// Threads that want the unit between two commands.
    waiting: AtomicUsize,
    stop: AtomicBool,
}

impl CommandUnit {
    /// Without a thread yet.
    pub fn new(hca: Arc<Hca>, doorbells: Arc<UarDoorbells>) -> io::Result<Arc<Self>> {
        let event = |_| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let events = (0..SLOTS).map(event).collect::<io::Result<_>>()?;
        let (wake, rung) = (EventFd::new(EFD_NONBLOCK)?, AtomicU32::new(0));
        let settings = DriverSettings::new(&hca.config, 0);
        hca.paging.put(settings.caps.paging());
        let (settings, late) = (Mutex::new(settings), Mutex::default());
        let (waiting, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Arc::new(Self { hca, doorbells, events, wake, rung, late, settings, waiting, stop }))
    }

    /// What the command doorbell signals when `value` is written to it: one slot each.
    ///
    /// A slot is executed when it is rung for, never because its entry is seen to be the device's: the driver hands an entry over
    /// before it rings, and still uses its own notes about it in between (7.3 takes its slot number from there).
    pub fn events(&self) -> impl Iterator<Item = (u32, &Arc<EventFd>)> {
        (0..SLOTS).map(|slot| 1 << slot).zip(&self.events)
    }

    /// The command doorbell took an exit: the bits of `slots`.
    pub fn ring(&self, slots: u32) {
        self.rung.fetch_or(slots, Ordering::AcqRel);
        // Only an eventfd that is full of rings refuses one more.
        let _ = self.wake.write(1);
    }

    /// The UAR pages' doorbells.
    pub fn doorbells(&self) -> &UarDoorbells {
        &self.doorbells
    }

    /// The state between two commands: waits for the one in progress, and no command runs while the guard lives.
    pub fn between_commands(&self) -> MutexGuard<'_, DriverSettings> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let settings = self.settings.lock();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        settings
    }

    fn run(&self) -> io::Result<()> {
        let epoll = Epoll::new()?;
        let watch = |fd, slot| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, slot));
        for (slot, event) in (0..).zip(&self.events) {
            watch(event.as_raw_fd(), slot)?;
        }
        watch(self.wake.as_raw_fd(), WAKE)?;
        watch(self.hca.later.wake().as_raw_fd(), LATE)?;
        let mut ready = [EpollEvent::default(); SLOTS as usize + 2];
        while !self.stop.load(Ordering::Acquire) {
            let count = match epoll.wait(self.patience(), &mut ready) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                waited => waited?,
            };
            self.collect(ready[..count].iter().map(EpollEvent::data));
            self.serve_rung();
            self.serve_late();
        }
        Ok(())
    }

    /// Notes which slots were rung for. Under the lock, like everything that turns a ring into a command: a reset finds each ring
    /// either still in its eventfd or in `rung`.
    fn collect(&self, ready: impl Iterator<Item = u64>) {
        let _between = self.between_commands();
        for slot in ready {
            if slot == WAKE {
                let _ = self.wake.read();
            } else if slot == LATE {
                let _ = self.hca.later.wake().read();
            } else if let Some(event) = self.events.get(slot as usize) {
                let _ = event.read();
                self.rung.fetch_or(1 << slot, Ordering::AcqRel);
            }
        }
    }

    /// How long the worker may sleep, in milliseconds: until the next thing that is late; -1: for ever, or until the device goes on.
    fn patience(&self) -> i32 {
        if self.hca.engines.stand() {
            return -1;
        }
        let next = self.late.lock().iter().map(|(due, _)| *due).min();
        let left = next
            .into_iter()
            .chain(self.hca.later.next())
            .min()
            .map(|due| due.saturating_duration_since(Instant::now()).as_millis() + 1);
        left.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX))
    }

    /// Executes the commands whose delay is over, and sees to what else is late.
    fn serve_late(&self) {
        if self.hca.later.any() {
            let _between = self.between_commands();
            if self.hca.engines.stand() {
                return;
            }
            later::serve(&self.hca);
        }
        if self.late.lock().is_empty() {
            return;
        }
        let now = Instant::now();
        loop {
            let mut settings = self.between_commands();
            if self.hca.engines.stand() {
                return;
            }
            let due = {
                let mut late = self.late.lock();
                late.iter().position(|(due, _)| *due <= now).map(|at| late.remove(at).1)
            };
            let Some(slot) = due else { return };
            self.serve(&mut settings, slot, true);
        }
    }

    /// What was rung for belongs to a queue that is gone.
    pub fn forget_rings(&self, _between: &MutexGuard<'_, DriverSettings>) {
        for event in &self.events {
            let _ = event.read();
        }
        self.rung.store(0, Ordering::Release);
        self.late.lock().clear();
    }

    fn serve_rung(&self) {
        while !self.stop.load(Ordering::Acquire) {
            while self.waiting.load(Ordering::SeqCst) != 0 {
                std::thread::sleep(Duration::from_micros(20));
            }
            let mut settings = self.settings.lock();
            let slots = self.rung.load(Ordering::Acquire);
            if slots == 0 || self.hca.engines.stand() {
                return;
            }
            self.rung.fetch_and(!(slots & slots.wrapping_neg()), Ordering::AcqRel);
            self.serve(&mut settings, slots.trailing_zeros(), false);
        }
    }

    /// Executes what is in `slot`, if the driver has handed it over. `late`: it has waited for its time.
    fn serve(&self, settings: &mut DriverSettings, slot: u32, late: bool) {
        // The slot stays the device's.
        let Some(queue) = settings.queue.filter(|_| !self.hca.health.is_mute()) else { return };
        let Some(at) = queue.checked_add(u64::from(slot) * ENTRY_SIZE as u64) else { return };
        let Ok(Some(entry)) = Entry::look(&self.hca.dma, at) else { return };
        // Asked before: the completion of the CREATE_EQ that makes the command EQ is polled for, and must not be told twice.
        let notify = self.hca.claims_event(event::CMD);
        let answered = match take(&entry, &self.hca) {
            Ok((input, output)) => {
                if !late && self.is_put_off(slot, &input) {
                    return;
                }
                let clock = self.hca.device_clock();
                health::occasion(&self.hca, Some(opcode_of(&input)), InitSegment::health_counter(clock));
                if self.hca.health.is_mute() {
                    return;
                }
                let reply = self.execute(settings, &input, output.room());
                entry.answer(&self.hca.dma, &output, &reply)
            }
            Err(Undelivered(status)) => {
                if let Some(count) = self.hca.complaints.next() {
                    let index = self.hca.index;
                    ::log::warn!("nic{index}: command slot {slot}: delivery status {status:#x} (complaint {count})");
                }
                self.hca.counters.commands_failed.add(1);
                entry.hand_back(&self.hca.dma, status)
            }
        };
        if answered.is_err() {
            // It is the driver's memory that went away; the slot stays as it is until the next ring.
            return;
        }
        if notify {
            self.hca.async_event(Event::new(event::CMD, 0).with(eqe_cmd::VECTOR, 1 << slot));
        }
    }

    /// Whether an injection has the command wait, or lets it hang.
    fn is_put_off(&self, slot: u32, input: &[u8]) -> bool {
        let time = inject::command_time(&self.hca.injections, opcode_of(input));
        if let CommandTime::After(delay) = time {
            let mut late = self.late.lock();
            // A driver may ring for it again.
            if late.iter().all(|(_, other)| *other != slot) {
                late.push((Instant::now() + delay, slot));
            }
        }
        time != CommandTime::Now
    }

    /// Executes one command and gives its output, status and syndrome included. The driver has room for `room` bytes of it.
    fn execute(&self, settings: &mut DriverSettings, input: &[u8], room: usize) -> Vec<u8> {
        let began = Instant::now();
        let hca = &*self.hca;
        let opcode = opcode_of(input);
        let command = table::find(opcode);
        let injected = inject::command_status(&hca.injections, opcode);
        let result = match command {
            _ if injected.is_some_and(|status| status != 0) => {
                Err(CommandError::Injected(injected.unwrap_or_default()))
            }
            Some(command) if command.from > settings.phase() => Err(CommandError::Early(settings.missing())),
            Some(command) if input.len() < command.input => {
                Err(CommandError::InputLength { len: input.len(), needed: command.input as u64 })
            }
            Some(command) if room < command.output => Err(CommandError::OutputLength { room, needed: command.output }),
            Some(command) => {
                let uid = in_header::UID.get(input) as u16;
                let mut request = Request { hca, settings, doorbells: &self.doorbells, uid, input, room };
                devx::admit(&request, opcode).and_then(|()| (command.run)(&mut request))
            }
            None => Err(CommandError::Unsupported(opcode)),
        };
        hca.counters.commands.add(1);
        match &result {
            Ok(_) => reuse(hca, opcode, input),
            Err(_) => hca.counters.commands_failed.add(1),
        }
        let reply = match &result {
            Ok(reply) => reply.0.clone(),
            Err(error) => Reply::failure(error).0,
        };
        if hca.config.log_commands {
            log::line(hca.index, opcode, command, input, &result, began.elapsed());
        } else if let Err(error) = &result {
            ::log::debug!("nic{}: {opcode}: {error}", hca.index);
        }
        reply
    }
}

fn opcode_of(input: &[u8]) -> Opcode {
    Opcode(in_header::OPCODE.get(input) as u16)
}

/// An injection may have the number of what was just destroyed given out again at once.
fn reuse(hca: &Hca, opcode: Opcode, input: &[u8]) {
    type Rewind = fn(&Hca, u32);
    let (field, rewind): (_, Rewind) = match opcode {
        Opcode::DESTROY_QP => (qp_spec::destroy_in::QPN, |hca, number| hca.qps.rewind(number)),
        Opcode::DESTROY_CQ => (cq_spec::destroy_in::CQN, |hca, number| hca.cqs.rewind(number)),
        Opcode::DESTROY_MKEY => (mkey_spec::destroy_in::MKEY_INDEX, |hca, number| hca.mkeys.rewind(number)),
        _ => return,
    };
    let mine = |action| action == NicAction::NumberReuse;
    if hca.injections.consult(&WqeShape::queued(opcode), mine).is_some() {
        rewind(hca, field.get(input));
    }
}

fn take(entry: &Entry, hca: &Hca) -> Result<(Vec<u8>, Output), Undelivered> {
    if !entry.is_signed() {
        return Err(Undelivered(delivery::SIGNATURE_ERR));
    }
    Ok((entry.input(&hca.dma)?, entry.output(&hca.dma)?))
}

/// The thread that executes commands. Dropping it ends it, between two commands.
pub struct Worker {
    unit: Arc<CommandUnit>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(unit: &Arc<CommandUnit>) -> io::Result<Self> {
        let name = format!("nic{}-cmd", unit.hca.index);
        let run = unit.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Err(error) = run.run() {
                ::log::error!("nic{}: the command thread ended: {error}", run.hca.index);
            }
        })?;
        Ok(Self { unit: unit.clone(), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.unit.stop.store(true, Ordering::Release);
        self.unit.ring(0);
        if let Some(thread) = self.thread.take() {
            // A worker that panicked in a test build has said so already.
            let _ = thread.join();
        }
    }
}
