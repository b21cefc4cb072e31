// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic run`: a machine with a console.

use parking_lot::Mutex;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blk::DiskConfig;
use clap::Args;
use image::{self, KernelSource};
use lab::machine::MachineConfig;
use mlx5::NicConfig;
use pmem::PmemConfig;
use rnic_agent::frame::{self, Line};
use rnic_agent::proto::{Event, Hello, Message};
use serde::Deserialize;
use vmm::orders::orders;
use vmm::run::{AgentLine, Manner, Resident, Stdout, resident_kib, run};
use vmm::{Outcome, Prepared, Vm, window_size};

use super::control::ControlArgs;
use super::faults::{FaultArgs, Faults};
use super::host::{Errand, HostArgs, Way};
use super::parts::{Use, base64, own_initramfs};
use super::values::{Disk, Nic, Pmem, Reboot, Serial, Size, memory};

const DEFAULT_CPUS: u8 = 1;
const DEFAULT_MEMORY: u64 = 1 << 30;

/// Options of `rnic run`. Exit status: 0 the guest powered off, 10 it asked for a reset, 11 it panicked, 130 ctrl-c, 143 SIGTERM,
/// 1 it could not run. In the console ctrl-A x leaves the machine.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 power-off (or the status of --exec), 10 reset, 11 panic, 12 triple fault, 130 ctrl-c, 143 SIGTERM, 1 could not run.\n\
    In an interactive console ctrl-A x ends the machine."
)]
pub struct RunArgs {
    /// A kernel by name (6.1, 6.12, 7.3) or the path of a bzImage or vmlinux.
    #[arg(long)]
    kernel: Option<String>,
    /// The directory that holds lib/modules/VERSION for a kernel given by path.
    #[arg(long)]
    modules: Option<PathBuf>,
    /// An initramfs of your own; without it the guest gets our agent, a root file system and a shell.
    #[arg(long)]
    initramfs: Option<PathBuf>,
    /// More kernel command line (all of it when --initramfs is given).
    #[arg(long)]
    cmdline: Option<String>,
    /// vCPUs, 1 to 8 [default: 1].
    #[arg(long)]
    cpus: Option<u8>,
    /// Guest memory, for example size=2G [default: size=1G].
    #[arg(long, value_parser = memory)]
    memory: Option<Size>,
    /// A raw image or block device: path=FILE[,readonly=on][,queues=N][,serial=TEXT]. May be given several times.
    #[arg(long)]
    disk: Vec<Disk>,
    /// Persistent memory, /dev/pmem0 in the guest: size=SIZE (bytes of a temporary file) or path=FILE[,size=SIZE]. Up to 4 times.
    #[arg(long)]
    pmem: Vec<Pmem>,
    /// An RDMA NIC, by default with on-demand paging; may be given several times: [odp=on|off][,model=cx5vf|cx5][,log=commands][,engines=auto|inline|N][,doorbells=exit|hot].
    #[arg(long, num_args = 0..=1, default_missing_value = "", value_name = "OPTIONS")]
    nic: Vec<Nic>,
    /// What follows when the guest asks for a reset: exit (with status 10) or restart [default: exit].
    #[arg(long)]
    reboot: Option<Reboot>,
    /// The console: tty, null or file=PATH [default: tty].
    #[arg(long)]
    serial: Option<Serial>,
    /// A TOML file that says the same: kernel, modules, initramfs, cmdline, cpus, memory, reboot, serial, exec, faults, seed, require_fired, control, [[disk]], [[pmem]], [nic] or [[nic]].
    #[arg(long)]
    config: Option<PathBuf>,
    /// Run this shell command in the guest instead of a shell, then power off; its exit status becomes ours.
    #[arg(long)]
    exec: Option<String>,
    /// Print how long the start took and how much memory the machine monitor itself uses.
    #[arg(long)]
    timing: bool,
    #[command(flatten)]
    faults: FaultArgs,
    #[command(flatten)]
    control: ControlArgs,
    #[command(flatten)]
    host: HostArgs,
}

/// The file of `--config`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RunFile {
    kernel: Option<String>,
    modules: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    cmdline: Option<String>,
    cpus: Option<u8>,
    memory: Option<Size>,
    disk: Vec<Disk>,
    pmem: Vec<Pmem>,
    #[serde(deserialize_with = "one_or_many")]
    nic: Vec<Nic>,
    reboot: Option<Reboot>,
    serial: Option<Serial>,
    exec: Option<String>,
    faults: Option<PathBuf>,
    seed: Option<u64>,
    require_fired: bool,
    control: Option<PathBuf>,
}

/// `[nic]` for one NIC, `[[nic]]` for each of several.
fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Nic>, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::Array(tables) => tables.into_iter().map(Nic::deserialize).collect::<Result<_, _>>(),
        table => Nic::deserialize(table).map(|nic| vec![nic]),
    }
    .map_err(serde::de::Error::custom)
}

impl RunArgs {
    /// Options win over the file; disks, persistent memory and NICs of both are attached, the file's first.
    fn over_file(mut self) -> Result<Self, super::Error> {
        let Some(path) = &self.config else { return Ok(self) };
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let file: RunFile = toml::from_str(&text).map_err(|e| format!("{}: {}", path.display(), e.message()))?;
        self.kernel = self.kernel.or(file.kernel);
        self.modules = self.modules.or(file.modules);
        self.initramfs = self.initramfs.or(file.initramfs);
        self.cmdline = self.cmdline.or(file.cmdline);
        self.cpus = self.cpus.or(file.cpus);
        self.memory = self.memory.or(file.memory);
        self.reboot = self.reboot.or(file.reboot);
        self.serial = self.serial.or(file.serial);
        self.exec = self.exec.or(file.exec);
        self.faults.faults = self.faults.faults.or(file.faults);
        self.faults.seed = self.faults.seed.or(file.seed);
        self.faults.require_fired |= file.require_fired;
        self.control.control = self.control.control.or(file.control);
        self.disk.splice(0..0, file.disk);
        self.pmem.splice(0..0, file.pmem);
        self.nic.splice(0..0, file.nic);
        Ok(self)
    }
}

/// Boots, stays, and turns the outcome into an exit status.
pub fn main(args: RunArgs) -> Result<ExitCode, super::Error> {
    let begun = Instant::now();
    let args = args.over_file()?;
    let Some(kernel) = &args.kernel else {
        return Err("no kernel given; use --kernel 6.1, 6.12, 7.3 or a path".into());
    };
    let kernel = image::resolve_kernel(kernel, args.modules.as_deref())?;
    let interactive = args.serial.as_ref().is_none_or(|serial| *serial == Serial::Tty) && args.exec.is_none();
    let status = Arc::new(Mutex::new(None));
    let timing = args.timing.then_some(begun);
    let exec = args.exec.is_some();
    let manner = Manner { interactive, restarts: args.reboot == Some(Reboot::Restart) };
    let faults = args.faults.read()?;
    let control = args.control.open()?;
    let (host, mut errand) = (args.host, errand(&args, &kernel));
    args.faults.pack(&mut errand, faults.as_ref());
    let (config, devices) = machine(args, &kernel, interactive, faults.clone())?.open()?;
    let machine = Prepared::new(config)?;
    if let Way::Emulated(why) = host.way()? {
        // The locks on the disks are this machine's: the emulated host's are seen by nobody else.
        let _devices = machine.into_devices();
        let _served = control.map(|control| control.forward(&mut errand)).transpose()?;
        return errand.run(&why);
    }
    let devices = Arc::new(devices);
    let injections = faults.as_ref().map_or(0, |faults| faults.plan.injections.len());
    let (remote, orders) = orders();
    let _served = control.map(|control| control.serve(&devices, remote, injections)).transpose()?;
    let outcome = run(machine, manner, Some(orders), agent_lines(timing, status.clone()))?;
    let unfired = faults.and_then(|faults| faults.report(&devices));
    let status = *status.lock();
    let status = match (&outcome, status) {
        (Outcome::PowerOff, Some(status)) if exec => status as u8,
        (Outcome::PowerOff, _) => outcome.exit_status(),
        _ => {
            eprintln!("rnic: {outcome}");
            outcome.exit_status()
        }
    };
    Ok(unfired.filter(|_| status == 0).unwrap_or(ExitCode::from(status)))
}

/// What this run touches on this machine.
fn errand(args: &RunArgs, kernel: &KernelSource) -> Errand {
    let of_kernel = [Some(&kernel.image), kernel.modules.as_ref(), kernel.root.as_ref(), args.initramfs.as_ref()];
    let disks = |readonly| args.disk.iter().filter(move |disk| disk.readonly == readonly).map(|disk| disk.path.clone());
    let media = args.pmem.iter().filter_map(|pmem| pmem.path.clone());
    // Temporary files of an emulated host lie in its memory.
    let temporary = args.pmem.iter().filter(|pmem| pmem.path.is_none()).filter_map(|pmem| pmem.size);
    let console = match &args.serial {
        Some(Serial::File(path)) => Some(path.clone()),
        _ => None,
    };
    Errand {
        reads: of_kernel.into_iter().flatten().cloned().chain(disks(true)).collect(),
        writes: disks(false).chain(media).chain(console).collect(),
        memory: args.memory.map_or(DEFAULT_MEMORY, |size| size.0) + temporary.map(|size| size.0).sum::<u64>(),
        ..Errand::default()
    }
}

fn machine(
    args: RunArgs,
    kernel: &KernelSource,
    interactive: bool,
    faults: Option<Faults>,
) -> Result<MachineConfig, super::Error> {
    let mut disks: Vec<DiskConfig> = Vec::new();
    let extra = args.cmdline.unwrap_or_default();
    let (initramfs, cmdline) = match &args.initramfs {
        Some(path) => {
            let file = File::open(path).map_err(|e| format!("initramfs {}: {e}; check --initramfs", path.display()))?;
            (file, extra)
        }
        None => {
            disks.extend(kernel.root.clone().map(|root| DiskConfig {
                readonly: true,
                serial: "rnic-root".into(),
                ..DiskConfig::new(root)
            }));
            let whose = Use { nic: !args.nic.is_empty(), pmem: !args.pmem.is_empty() };
            (own_initramfs(kernel, whose)?, own_cmdline(args.exec.as_deref(), &extra, interactive))
        }
    };
    disks.extend(args.disk.into_iter().map(DiskConfig::from));
    Ok(MachineConfig {
        kernel: kernel.image.clone(),
        initramfs: Some(initramfs),
        cmdline,
        cpus: args.cpus.unwrap_or(DEFAULT_CPUS),
        memory: args.memory.map_or(DEFAULT_MEMORY, |size| size.0),
        disks,
        pmems: args.pmem.into_iter().map(PmemConfig::from).collect(),
        nics: args.nic.into_iter().map(NicConfig::from).collect(),
        injections: faults.map(|faults| (faults.plan, faults.seed)),
        console: match args.serial.unwrap_or(Serial::Tty) {
            Serial::Tty => Box::new(Stdout),
            Serial::Null => Box::new(std::io::sink()),
            Serial::File(path) => {
                Box::new(File::create(&path).map_err(|e| format!("console file {}: {e}", path.display()))?)
            }
        },
    })
}

/// The command line for a guest of ours: quiet, a shell or one command.
fn own_cmdline(exec: Option<&str>, extra: &str, interactive: bool) -> String {
    let mut line = String::from("console=ttyS0 panic=-1 quiet loglevel=4");
    match exec {
        Some(command) => line += &format!(" rnic.exec={}", base64(command.as_bytes())),
        None => line += " rnic.mode=shell",
    }
    if let Some((rows, columns)) = interactive.then(window_size).flatten() {
        line += &format!(" rnic.rows={rows} rnic.cols={columns}");
    }
    if let Ok(term) = std::env::var("TERM") {
        line += &format!(" rnic.term={}", term.split_whitespace().next().unwrap_or("dumb"));
    }
    if !extra.is_empty() {
        line = line + " " + extra;
    }
    line
}

/// Looks for the agent's first word and for the exit status of `--exec`.
fn agent_lines(timing: Option<Instant>, status: Arc<Mutex<Option<i32>>>) -> AgentLine {
    Box::new(move |vm, line| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        match frame::decode::<Message>(line) {
            Line::Message(Message::Hello(hello)) => {
                if let Some(begun) = timing {
                    print_timing(begun, vm, &hello);
                }
            }
            Line::Message(Message::Event(Event::Exit { status: code })) => {
                *status.lock() = Some(code);
            }
            _ => {}
        }
    })
}

fn print_timing(begun: Instant, vm: &Vm, hello: &Hello) {
    let total = begun.elapsed();
    let vmm = vm.started().duration_since(begun);
    let agent = Duration::from_millis(hello.ready_ms.saturating_sub(hello.boot_ms));
    let kernel = total.saturating_sub(vmm).saturating_sub(agent);
    let ms = |duration: Duration| duration.as_millis();
    eprintln!("timing: VMM {} ms, kernel {} ms, agent {} ms, in all {} ms", ms(vmm), ms(kernel), ms(agent), ms(total));
    if let Some(Resident { guest, own, files }) = resident_kib() {
        let mib = |kib: u64| kib as f64 / 1024.0;
        eprintln!(
            "memory: {:.1} MiB resident beyond guest RAM, of that own {:.1} MiB; {:.1} MiB of guest RAM touched",
            mib(own + files),
            mib(own),
            mib(guest)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_the_same_as_the_options() {
        let file: RunFile = toml::from_str(
            "kernel = '6.1'\ncontrol = 'c.sock'\ncpus = 2\nmemory = '2G'\nserial = 'file=a.log'\nreboot = 'restart'\n[[disk]]\npath = 'a.img'\nreadonly = true\n\
             [[pmem]]\nsize = '256M'\n[[pmem]]\npath = 'b.img'\n\
             [nic]\nodp = false\nlog = 'commands'\n",
        )
        .unwrap();
        assert_eq!((file.cpus, file.memory), (Some(2), Some(Size(2 << 30))));
        assert_eq!(file.disk, vec!["path=a.img,readonly=on".parse().unwrap()]);
        assert_eq!(file.pmem, vec!["size=256M".parse().unwrap(), "path=b.img".parse().unwrap()]);
        assert_eq!((file.reboot, file.control), (Some(Reboot::Restart), Some("c.sock".into())));
        assert_eq!(file.nic, vec!["odp=off,log=commands".parse().unwrap()]);
        let two: RunFile = toml::from_str("[[nic]]\n[[nic]]\nmodel = 'cx5'\n").unwrap();
        assert_eq!(two.nic, vec!["".parse().unwrap(), "model=cx5".parse().unwrap()]);
        assert!(toml::from_str::<RunFile>("kernle = '6.1'").is_err());
    }
}
