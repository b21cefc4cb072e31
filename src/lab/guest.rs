// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest of the lab: a machine, its agent, and its two disks that can be exchanged.

use parking_lot::Mutex;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rnic_agent::client::{CallError, Client};
use rnic_agent::proto::{FsType, Hello, JobState, Op, Value};

use super::campaign::Setting;
use super::complaints;
use super::fact::Role;
use super::finding::Stop;
use super::machine::{Devices, MachineConfig};
use super::plan::DiskKind;
use blk::{DiskConfig, DiskHandle, PowerCut};
use image::KernelSource;
use mlx5::{NicConfig, NicHandle};
use pmem::{PmemConfig, PmemHandle};
use probe::ledger::{Ledger, Note, Seq};
use vmm::{Console, Echo, Outcome, Vm};

mod made;
mod silence;

pub use made::MadeDisks;
pub use silence::SPOKEN;
use silence::tail;

/// RAM of a lab guest.
const MEMORY: u64 = 512 << 20;
/// From the first instruction to the agent's word, under emulation on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(150);
/// A step that waits for nothing that the lab holds.
pub const STEP_LIMIT: Duration = Duration::from_secs(60);
/// How long an agent takes to say that it is there, while one of its steps does not return.
const PING_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the disks that are exchanged; sparse. xfs wants 300 MiB.
pub const DISK_SIZE: u64 = 512 << 20;
/// Bytes of the disk that O_DIRECT reads come from.
pub const SOURCE_SIZE: u64 = 16 << 20;
/// Bytes of persistent memory.
const PMEM_SIZE: u64 = 320 << 20;

/// Kernel command line of every lab guest. `panic=-1` turns a panic into a reset at once; the flusher is stopped by sysctl.
const CMDLINE: &str = "console=ttyS0 panic=-1 mitigations=off quiet loglevel=5 rnic.mode=agent";

/// What lab guests are made from.
#[derive(Clone)]
pub struct GuestParts {
    /// Kernel, modules and root file system.
    pub kernel: KernelSource,
    /// The initramfs that carries the agent, made once a run.
    pub initramfs: Arc<File>,
    /// Where disks are made.
    pub work: PathBuf,
    /// Copy the console to standard error as well.
    pub verbose: bool,
    /// vCPUs.
    pub cpus: u8,
    /// The NIC, if it is to have one.
    pub nic: Option<NicConfig>,
    /// Whether it has persistent memory.
    pub pmem: bool,
    /// What all rows run under.
    pub setting: Setting,
    /// Disks with a file system that this kernel's guests have made.
    pub made: MadeDisks,
}

/// A running guest.
pub struct Guest {
    vm: Vm,
    devices: Devices,
    agent: Client,
    console: Console,
    hello: Hello,
    work: PathBuf,
    role: Role,
    name: String,
    disks_made: u32,
    made: MadeDisks,
    /// The agent once failed to answer in time: it is not asked, and not waited for, again.
    silent: AtomicBool,
    /// It answers, and its kernel is broken: it takes no further row.
    broken: AtomicBool,
    /// Most for a step, milliseconds.
    limit_ms: AtomicU64,
    /// Mark of the kernel message up to which somebody has judged.
    heard: AtomicU64,
    /// Planted: nothing of what its kernel prints is heard.
    deaf: AtomicBool,
    /// Number of the lab's own line in its kernel's log.
    spoken: AtomicU64,
    /// RDMA devices that are set up.
    rdma: Mutex<Vec<Via>>,
    /// What has been built between the disk under test and a file system.
    stack: Mutex<Option<DiskKind>>,
    /// Until when steps of this row are waited for.
    deadline: Mutex<Option<Instant>>,
    setting: Setting,
}

/// RDMA devices that a guest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Our NIC.
    Nic,
    /// soft-RoCE on a network interface that leads nowhere.
    Rxe,
}

/// Sets up soft-RoCE. Whole pages fit into one packet of this MTU. A netdev of this name may come with its module.
const RXE_UP: &str = "ip link show dummy0 >/dev/null 2>&1 || ip link add dummy0 type dummy; \
    ip link set dummy0 mtu 4500 up && ip addr add 192.0.2.1/24 dev dummy0 && rdma link add rxe0 type rxe netdev dummy0";

/// They make a block device of persistent memory.
const PMEM_MODULES: [&str; 2] = ["nd_e820", "nd_pmem"];

/// Guests booted so far: a guest that replaces another has disks of its own while the other still holds its locks.
static BOOTED: AtomicU32 = AtomicU32::new(0);

/// Index of the disk under test.
pub const FS_DISK: usize = 1;
/// Index of the disk that O_DIRECT reads come from.
const SOURCE_DISK: usize = 2;

impl Guest {
    /// Boots a guest; `name` is for messages and the names of its files.
    pub fn boot(parts: &GuestParts, role: Role, name: &str) -> Result<Self, Stop> {
        let failed = |error: &dyn std::fmt::Display| Stop::Failed(error.to_string());
        let console = Console::default();
        if parts.verbose {
            console.echo(Echo::Stderr);
        }
        let root = parts
            .kernel
            .root
            .clone()
            .ok_or_else(|| Stop::Failed("there is no root image for this kernel; run `rnic prepare`".into()))?;
        let work = parts.work.clone();
        let name = format!("{name}-{}", BOOTED.fetch_add(1, Ordering::Relaxed));
        let fs = make_disk(&work, &format!("{name}-fs-0"), DISK_SIZE, &[]).map_err(|e| failed(&e))?;
        let source = make_disk(&work, &format!("{name}-src-0"), SOURCE_SIZE, &[]).map_err(|e| failed(&e))?;
        let unneeded = [fs.clone(), source.clone()];
        let disks = vec![
            DiskConfig { readonly: true, serial: "rnic-root".into(), ..DiskConfig::new(root) },
            DiskConfig { track: true, serial: "rnic-fs".into(), ..DiskConfig::new(fs) },
            DiskConfig { serial: "rnic-src".into(), ..DiskConfig::new(source) },
        ];
        let config = MachineConfig {
            kernel: parts.kernel.image.clone(),
            initramfs: Some(parts.initramfs.try_clone().map_err(|e| failed(&e))?),
            cmdline: cmdline(&parts.setting),
            cpus: parts.cpus,
            // The witness only mounts.
            memory: parts.setting.memory.filter(|_| role == Role::Test).unwrap_or(MEMORY),
            disks,
            pmems: parts.pmem.then_some(PmemConfig { path: None, size: Some(PMEM_SIZE) }).into_iter().collect(),
            nics: parts.nic.clone().into_iter().collect(),
            console: Box::new(console.clone()),
            injections: None,
        };
        let booted =
            config.open().and_then(|(config, devices)| Ok((Vm::boot(config)?, devices))).map_err(|e| failed(&e));
        // The disks hold their files open: nothing stays behind if we are killed.
        for path in unneeded {
            std::fs::remove_file(path).map_err(|e| failed(&e))?;
        }
        let (mut vm, devices) = booted?;
        let agent = connect(&mut vm);
        let hello = agent.wait_hello(BOOT_LIMIT).map_err(|error| {
            // A machine that stands still is looked at twice: where it is both times is where it hangs.
            let places = || format!("{error}; {}", [vm.whereabouts(), vm.whereabouts()].concat().join("; "));
            let why = vm.outcome().map_or_else(places, |outcome| outcome.to_string());
            Stop::Failed(format!("the {name} guest did not come up: {why}; its console ends: {}", tail(&console)))
        })?;
        let guest = Self {
            vm,
            devices,
            agent,
            console,
            hello,
            work,
            role,
            name,
            disks_made: 0,
            made: parts.made.clone(),
            silent: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            limit_ms: AtomicU64::new(STEP_LIMIT.as_millis() as u64),
            heard: AtomicU64::new(0),
            deaf: AtomicBool::new(false),
            spoken: AtomicU64::new(0),
            rdma: Mutex::default(),
            stack: Mutex::default(),
            deadline: Mutex::default(),
            setting: parts.setting.clone(),
        };
        // What a boot prints is no row's.
        guest.must(complaints::words())?;
        guest.heard.store(guest.must(Op::DmesgMark)?.num().unwrap_or(0), Ordering::Relaxed);
        Ok(guest)
    }

    /// The agent's first message.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The ledger of this guest's devices.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.devices.ledger
    }

    /// The disk under test.
    pub fn fs_disk(&self) -> &DiskHandle {
        &self.devices.disks[FS_DISK]
    }

    /// The disk that O_DIRECT reads come from.
    pub fn source_disk(&self) -> &DiskHandle {
        &self.devices.disks[SOURCE_DISK]
    }

    /// All its disks: the root disk, the one under test, the source.
    pub fn disks(&self) -> &[DiskHandle] {
        &self.devices.disks
    }

    /// What all rows run under.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Our NIC, if this guest has one.
    pub fn nic(&self) -> Option<&NicHandle> {
        self.devices.nic(0)
    }

    /// Its persistent memory.
    ///
    /// # Errors
    /// It has none.
    pub fn pmem(&self) -> Result<&PmemHandle, Stop> {
        self.devices.pmems.first().ok_or_else(|| Stop::Failed("this guest has no persistent memory".into()))
    }

    /// Empties its persistent memory, and sees to it that there is a block device of it. Nothing of it is mounted.
    pub fn fresh_pmem(&self) -> Result<(), Stop> {
        for name in PMEM_MODULES {
            self.must(Op::Modprobe { name: name.into() })?;
        }
        self.pmem()?.clear().map_err(|error| Stop::Failed(error.to_string()))
    }

    /// Writes to `image` what its persistent memory holds at this moment, at which its processors stand still; the moment in the ledger's order.
    pub fn freeze_pmem(&self, image: &Path) -> Result<Seq, Stop> {
        self.vm.pause();
        let at = self.ledger().stamp(Note::new("power cut (Kind) of persistent memory"));
        let frozen = self.pmem().and_then(|pmem| pmem.image(image).map_err(|error| Stop::Failed(error.to_string())));
        self.vm.resume();
        frozen.map(|()| at)
    }

    /// The name of an RDMA device, set up when it is first asked for.
    pub fn rdma_device(&self, via: Via) -> Result<&'static str, Stop> {
        let name = match via {
            Via::Nic => "mlx5_0",
            Via::Rxe => "rxe0",
        };
        let mut ready = self.rdma.lock();
        if ready.contains(&via) {
            return Ok(name);
        }
        if via == Via::Nic && self.nic().is_none() {
            return Err(Stop::Failed("this guest has no NIC".into()));
        }
        let modprobe = |name: &str| Op::Modprobe { name: name.into() };
        self.must(modprobe("ib_uverbs"))?;
        match via {
            Via::Nic => drop(self.must(modprobe("mlx5_ib"))?),
            Via::Rxe => {
                // Only 6.1 has and needs it.
                drop(self.call(modprobe("crc32_generic")));
                self.must(modprobe("dummy"))?;
                self.must(modprobe("rdma_rxe"))?;
                let argv = vec!["sh".into(), "-c".into(), RXE_UP.into()];
                let ended = self.must(Op::Exec { argv, stdin: String::new(), limit_s: 20 })?.exec();
                if let Some(exec) = ended.filter(|exec| exec.status != 0) {
                    return Err(Stop::Failed(format!("soft-RoCE cannot be set up: {}", exec.err.trim())));
                }
            }
        }
        ready.push(via);
        Ok(name)
    }

    /// What has been built between its disk under test and a file system, and not been taken down.
    pub fn stack(&self) -> Option<DiskKind> {
        *self.stack.lock()
    }

    /// It has been built, or taken down.
    pub fn note_stack(&self, stack: Option<DiskKind>) {
        *self.stack.lock() = stack;
    }

    /// Waits for a job, at most `limit`.
    pub fn wait_job(&self, job: u32, limit: Duration) -> Result<JobState, Stop> {
        let limit = limit.min(self.time_left());
        let waited = self.ask(|agent| agent.wait_job(job, limit));
        waited.map_err(|error| self.stop_for("waiting for a job", &error))
    }

    /// Runs `op` as a job; its handle.
    pub fn spawn(&self, op: Op) -> Result<u32, Stop> {
        self.ask(|agent| agent.spawn(op, self.limit())).map_err(|error| self.stop_for("starting a job", &error))
    }

    fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms.load(Ordering::Relaxed)).min(self.time_left())
    }

    /// No step is waited for beyond `deadline`, and none begins after it; `None`: each has the usual time.
    pub fn end_steps_at(&self, deadline: Option<Instant>) {
        *self.deadline.lock() = deadline;
    }

    /// Whether its row has had its time.
    pub fn out_of_time(&self) -> bool {
        self.time_left().is_zero()
    }

    fn time_left(&self) -> Duration {
        self.deadline.lock().map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Steps are waited for no longer than `limit` from now on: for a guest that is broken on purpose.
    pub fn limit_steps(&self, limit: Duration) {
        self.limit_ms.store(limit.as_millis() as u64, Ordering::Relaxed);
    }

    /// Writes into its memory behind its back; false: there is none.
    pub fn plant(&self, gpa: u64, bytes: &[u8]) -> bool {
        self.vm.plant(gpa, bytes)
    }

    /// Stops its processors.
    pub fn pause(&self) {
        self.vm.pause();
    }

    /// Gives the machine away, its console echoed to standard output.
    pub fn into_vm(self) -> Vm {
        self.console.echo(Echo::Stdout);
        self.vm
    }

    /// Whether it can take another row.
    pub fn alive(&self) -> bool {
        let lost = self.silent.load(Ordering::Relaxed) || self.broken.load(Ordering::Relaxed);
        self.vm.outcome().is_none() && !self.vm.has_panicked() && !lost
    }

    /// Its kernel hangs or has lost a thread: it still answers, and takes no further row.
    pub fn give_up(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// Asks the agent, unless it has fallen silent; notes when it does.
    fn ask<T>(&self, question: impl FnOnce(&Client) -> Result<T, CallError>) -> Result<T, CallError> {
        if self.silent.load(Ordering::Relaxed) {
            return Err(CallError::Closed);
        }
        if self.out_of_time() {
            return Err(CallError::Timeout(Duration::ZERO));
        }
        let answer = question(&self.agent);
        // A step that hangs is one thing, an agent that says nothing another.
        if matches!(answer, Err(CallError::Timeout(_))) && self.agent.call(Op::Ping, PING_LIMIT).is_err() {
            self.silent.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// One step, with the usual limit.
    pub fn call(&self, op: Op) -> Result<Value, CallError> {
        let (name, begun) = (log::log_enabled!(log::Level::Debug).then(|| op_name(&op)), Instant::now());
        let answer = self.ask(|agent| agent.call(op, self.limit()));
        if let Some(name) = name {
            log::debug!("{}: {:.0} ms for {name}", self.name, begun.elapsed().as_secs_f64() * 1e3);
        }
        answer
    }

    /// One step whose failure ends the row.
    pub fn must(&self, op: Op) -> Result<Value, Stop> {
        let name = op_name(&op);
        self.call(op).map_err(|error| self.stop_for(&name, &error))
    }

    /// One step that gives a handle.
    pub fn handle(&self, op: Op) -> Result<u32, Stop> {
        let name = op_name(&op);
        self.must(op)?.handle().ok_or_else(|| Stop::Failed(format!("{name}: the agent gave no handle")))
    }

    /// A new disk under test, and a source disk whose first bytes are `source`. The first is empty, or as the given mkfs would leave it if
    /// this run has done that before ([`Guest::keep_made`]): then the answer is true.
    pub fn fresh_disks(&mut self, source: &[u8], mkfs: Option<(FsType, &[String])>) -> Result<bool, Stop> {
        self.disks_made += 1;
        let fs = self.make(&format!("fs-{}", self.disks_made), DISK_SIZE, &[])?;
        let made = mkfs.and_then(|(fs, opts)| self.made.get(fs, opts));
        if let Some(made) = &made {
            made::copy(made, &fs).map_err(|error| self.no_disk(&error))?;
        }
        let source = self.make(&format!("src-{}", self.disks_made), SOURCE_SIZE, source)?;
        self.swap(FS_DISK, &fs)?;
        self.swap(SOURCE_DISK, &source)?;
        Ok(made.is_some())
    }

    /// Keeps the disk under test, on which this mkfs has just ended, for rows to come.
    pub fn keep_made(&self, fs: FsType, opts: &[String]) -> Result<(), Stop> {
        let image = self.work.join(format!("{}-made-{}", self.name, self.disks_made));
        self.fs_disk().freeze(PowerCut::Kind, &image).map_err(|error| Stop::Failed(error.to_string()))?;
        self.made.keep(fs, opts, &image).map_err(|error| self.no_disk(&error))
    }

    fn no_disk(&self, error: &std::io::Error) -> Stop {
        Stop::Failed(format!("making a disk in {}: {error}", self.work.display()))
    }

    /// Puts an image into the disk under test's place.
    pub fn insert(&mut self, image: &Path) -> Result<(), Stop> {
        self.swap(FS_DISK, image)
    }

    fn make(&self, name: &str, size: u64, head: &[u8]) -> Result<PathBuf, Stop> {
        make_disk(&self.work, &format!("{}-{name}", self.name), size, head).map_err(|error| self.no_disk(&error))
    }

    fn swap(&self, disk: usize, image: &Path) -> Result<(), Stop> {
        self.devices.disks[disk].swap(image).map_err(|error| Stop::Failed(error.to_string()))?;
        // The disk holds its file open: no name is needed any more, and nothing stays behind if we are killed.
        std::fs::remove_file(image).map_err(|error| Stop::Failed(format!("removing {}: {error}", image.display())))
    }

    /// Ends the guest.
    pub fn stop(mut self) {
        self.agent.close();
        self.vm.stop(Outcome::Stopped);
    }
}

/// The kernel command line, with what the user has to add.
fn cmdline(setting: &Setting) -> String {
    setting.cmdline.as_ref().map_or_else(|| CMDLINE.into(), |more| format!("{CMDLINE} {more}"))
}

fn connect(vm: &mut Vm) -> Client {
    let input = vm.input();
    let agent = Client::new(move |bytes| {
        if input.agent(bytes) == bytes.len() { Ok(()) } else { Err(std::io::ErrorKind::WouldBlock.into()) }
    });
    if let Some(lines) = vm.take_agent_lines() {
        let (client, life) = (agent.clone(), vm.input());
        std::thread::spawn(move || {
            loop {
                match lines.recv_timeout(Duration::from_millis(100)) {
                    Ok(line) => client.feed(&line),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) if !life.over() => {}
                    Err(_) => return client.close(),
                }
            }
        });
    }
    agent
}

fn make_disk(work: &Path, name: &str, size: u64, head: &[u8]) -> std::io::Result<PathBuf> {
    let path = work.join(name);
    let mut file = File::create_new(&path)?;
    file.set_len(size)?;
    file.write_all(head)?;
    Ok(path)
}

fn op_name(op: &Op) -> String {
    let text = format!("{op:?}");
    text.chars().take(120).collect()
}
