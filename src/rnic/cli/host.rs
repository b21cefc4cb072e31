// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the KVM comes from. A command whose machine's KVM does not run stock kernels runs again, by itself, in an emulated host:
//! with the same words, streams, terminal, signals and exit status (images/with-kvm does that part).

use parking_lot::Mutex;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use vmm::probe::probe;
use vmm::{VmmError, on_ending_signal, send_signal, unblock_signals};

use super::{Error, places};

/// Set by with-kvm for what it runs, here or in the emulated host.
const INSIDE: &str = "RNIC_WITH_KVM_INSIDE";
/// with-kvm's own override, which counts here too: host or tcg.
const FORCED: &str = "RNIC_KVM";
/// with-kvm's exit status when the emulated host itself has died.
const DIED: i32 = 125;
/// Lives of the emulated host in which nothing gets on, after which it is given up.
const TRIES: u32 = 3;
/// Folders that are the emulated host's own.
const NOT_SEEN: [&str; 4] = ["/dev", "/proc", "/sys", "/run"];
/// What with-kvm gives an emulated host by itself, and what of that a guest cannot have, MiB.
const USUAL_MEMORY: u64 = 6144;
const HOST_MEMORY: u64 = 2048;

/// The port through which an emulated host's socket is reached in there ([`Errand::socket`]).
pub const PORT: &str = "/dev/vport0p5";

/// Whose KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// This machine's where a probe finds it fit, an emulated host otherwise.
    Auto,
    /// This machine's, whatever a probe would say.
    Kvm,
    /// An emulated host, about ten times slower.
    Emulated,
}

/// The option of every command that needs a KVM.
#[derive(Debug, Clone, Copy, Args)]
pub struct HostArgs {
    /// Where the KVM comes from.
    #[arg(long, value_enum, default_value = "auto")]
    host: Host,
}

/// Where a command goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// In this process.
    Here,
    /// In an emulated host, and why.
    Emulated(String),
}

impl HostArgs {
    /// Decides, and says so on standard error if it goes on here.
    pub fn way(&self) -> Result<Way, Error> {
        let inside = env::var_os(INSIDE).is_some_and(|value| !value.is_empty());
        let (way, word) = choose(self.host, inside, env::var(FORCED).ok().as_deref(), judge)?;
        if let Some(word) = word {
            eprintln!("rnic: {word}");
        }
        Ok(way)
    }
}

/// The way, and a line about it where a person has not asked for it and nobody else says it.
fn choose(
    host: Host,
    inside: bool,
    forced: Option<&str>,
    judge: impl FnOnce() -> Result<(), String>,
) -> Result<(Way, Option<String>), Error> {
    if inside {
        return Ok((Way::Here, None));
    }
    Ok(match (host, forced) {
        (Host::Kvm, _) => (Way::Here, None),
        (Host::Emulated, _) => (Way::Emulated("--host emulated".into()), None),
        (Host::Auto, Some("host")) => (Way::Here, Some(format!("using this machine's /dev/kvm ({FORCED}=host)"))),
        (Host::Auto, Some("tcg")) => (Way::Emulated(format!("{FORCED}=tcg")), None),
        (Host::Auto, Some(word)) if !word.is_empty() => {
            return Err(format!("{FORCED}={word} is neither host nor tcg: unset it or choose one of them").into());
        }
        (Host::Auto, _) => match judge() {
            Ok(()) => (Way::Here, Some("using this machine's /dev/kvm".into())),
            Err(why) => (Way::Emulated(why), None),
        },
    })
}

/// Whether this machine's KVM runs stock kernels, or why not.
fn judge() -> Result<(), String> {
    match probe() {
        Ok(Some(found)) if found.architectural() => Ok(()),
        Ok(Some(_)) => Err("this machine's KVM is not architectural".into()),
        Ok(None) => Err("this machine's KVM did not finish a probe in time".into()),
        Err(VmmError::NoKvm) => Err("this machine has no /dev/kvm".into()),
        Err(VmmError::KvmDenied) => Err("this user may not open /dev/kvm (root and the group kvm may)".into()),
        Err(error) => Err(format!("this machine's KVM does not work ({error})")),
    }
}

/// What a command needs of this machine when it runs in an emulated host.
#[derive(Debug, Default)]
pub struct Errand {
    /// Files and folders that it reads.
    pub reads: Vec<PathBuf>,
    /// Files that it makes or changes. All changes in their folders are kept, others are not.
    pub writes: Vec<PathBuf>,
    /// Memory of its guest in bytes.
    pub memory: u64,
    /// Options beside those of this process.
    pub options: Vec<OsString>,
    /// It is one of several: standard input and output are this process's alone.
    pub aside: bool,
    /// Where the emulated host is to listen for what is to come out of [`PORT`].
    pub socket: Option<PathBuf>,
    /// A file that grows as it gets on. With one the command is run again when the emulated host dies: as long as the file has
    /// grown, and three times without that.
    pub progress: Option<PathBuf>,
}

impl Errand {
    /// Memory of its emulated host, bytes.
    pub fn room(&self) -> u64 {
        (((self.memory >> 20) + HOST_MEMORY) << 20).max(USUAL_MEMORY << 20)
    }

    /// The words for with-kvm before the command's.
    fn arguments(&self, why: &str) -> Result<Vec<OsString>, Error> {
        let mut words: Vec<OsString> = vec!["--emulated".into(), format!("rnic: {why}").into()];
        words.extend(["--end-with".into(), std::process::id().to_string().into()]);
        self.reads.iter().try_for_each(|path| seen(path).map(drop))?;
        for path in &self.writes {
            words.extend(["--writable".into(), folder(path)?.into()]);
        }
        if let Some(socket) = &self.socket {
            words.extend(["--socket".into(), socket.into()]);
        }
        if self.room() > USUAL_MEMORY << 20 {
            words.extend(["--memory".into(), (self.room() >> 20).to_string().into()]);
        }
        words.push("--".into());
        Ok(words)
    }

    /// Runs this process's command again in an emulated host.
    pub fn run(&self, why: &str) -> Result<ExitCode, Error> {
        Hosts::watched()?.run(self, why).map(ExitCode::from)
    }
}

/// The emulated hosts that this process has started. They get the signals that are to end it.
#[derive(Clone, Default)]
pub struct Hosts(Arc<Mutex<Started>>);

#[derive(Default)]
struct Started {
    /// Processes of with-kvm.
    processes: Vec<u32>,
    /// The last signal that this process got.
    signal: Option<i32>,
}

impl Hosts {
    /// None yet. Once in a process, before any other thread starts.
    pub fn watched() -> Result<Self, Error> {
        let hosts = Self::default();
        let forward = hosts.clone();
        on_ending_signal(move |signal| forward.signal(signal))?;
        Ok(hosts)
    }

    /// Runs this process's command again in one, and again if it dies and its errand has got on. Its exit status, as a shell has it.
    pub fn run(&self, errand: &Errand, why: &str) -> Result<u8, Error> {
        let helper = places::find(&places::WITH_KVM)?;
        let mut command = Command::new(&helper);
        command
            .args(errand.arguments(why)?)
            .arg(env::current_exe()?)
            .args(env::args_os().skip(1))
            .args(&errand.options);
        if errand.aside {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        unblock_signals(&mut command);
        let mut tries = Tries::default();
        loop {
            let status = self.wait(&mut command).map_err(|e| format!("{} cannot be started: {e}", helper.display()))?;
            if status.code() != Some(DIED) || errand.progress.is_none() {
                return Ok(exit_code(status));
            }
            if let Some(signal) = self.signalled() {
                return Ok(128 + signal as u8);
            }
            let length = errand.progress.as_ref().and_then(|path| path.metadata().ok()).map_or(0, |data| data.len());
            let number = tries.another(length);
            eprintln!(
                "rnic: the emulated host died, not the program under test (try {number} of {TRIES} without progress)"
            );
            if number == TRIES {
                return Ok(exit_code(status));
            }
        }
    }

    /// The signal that has come to end this process.
    pub fn signalled(&self) -> Option<i32> {
        self.0.lock().signal
    }

    /// Starts `command` and waits for its end. A signal that has come before reaches it at once.
    fn wait(&self, command: &mut Command) -> std::io::Result<ExitStatus> {
        let mut process = {
            let mut started = self.0.lock();
            let process = command.spawn()?;
            started.processes.push(process.id());
            if let Some(signal) = started.signal {
                send_signal(process.id(), signal);
            }
            process
        };
        let status = process.wait();
        self.0.lock().processes.retain(|id| *id != process.id());
        status
    }

    fn signal(&self, signal: i32) {
        let mut started = self.0.lock();
        started.signal = Some(signal);
        started.processes.iter().for_each(|process| send_signal(*process, signal));
    }
}

/// Counts lives of the emulated host in which nothing got on.
#[derive(Debug, Default)]
struct Tries {
    without: u32,
    length: u64,
}

impl Tries {
    /// After a life that left the file of progress with `length` bytes: how many there have been without progress.
    fn another(&mut self, length: u64) -> u32 {
        self.without = if length > self.length { 1 } else { self.without + 1 };
        self.length = length;
        self.without
    }
}

/// As a shell has it.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let signal = || 128 + status.signal().unwrap_or(0);
    status.code().unwrap_or_else(signal) as u8
}

/// The true path of a file or of the folder that it is to be made in; refused where the emulated host has files of its own.
fn seen(path: &Path) -> Result<PathBuf, Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let real =
        path.canonicalize().or_else(|_| parent.canonicalize()).map_err(|e| format!("{}: {e}", path.display()))?;
    if NOT_SEEN.iter().any(|place| real.starts_with(place)) {
        return Err(format!(
            "{} is not to be seen in the emulated host, which has its own {}: use a file elsewhere",
            path.display(),
            NOT_SEEN.join(", ")
        )
        .into());
    }
    Ok(real)
}

/// The true folder of a file that is there or to be made.
fn folder(path: &Path) -> Result<PathBuf, Error> {
    let real = seen(path)?;
    let folder = if real.is_dir() { Some(real.as_path()) } else { real.parent() };
    match folder.filter(|folder| folder.parent().is_some()) {
        Some(folder) => Ok(folder.into()),
        None => Err(format!("the emulated host cannot write into /: put {} into a folder", path.display()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way() {
        let fit = || Ok(());
        let unfit = || Err("because".to_owned());
        let never = || panic!("nobody asked for a probe");
        let way = |host, inside, forced, judge: fn() -> Result<(), String>| choose(host, inside, forced, judge);
        let emulated = |why: &str| Way::Emulated(why.into());
        let auto = way(Host::Auto, false, None, fit).unwrap();
        assert_eq!(auto.0, Way::Here);
        assert!(auto.1.unwrap().contains("/dev/kvm"));
        assert_eq!(way(Host::Auto, false, None, unfit).unwrap(), (emulated("because"), None));
        assert_eq!(way(Host::Kvm, false, Some("tcg"), never).unwrap(), (Way::Here, None));
        assert_eq!(way(Host::Emulated, false, Some("host"), never).unwrap().0, emulated("--host emulated"));
        // In there it does not go in once more.
        for host in [Host::Auto, Host::Kvm, Host::Emulated] {
            assert_eq!(way(host, true, Some("tcg"), never).unwrap(), (Way::Here, None));
        }
        assert_eq!(way(Host::Auto, false, Some("host"), never).unwrap().0, Way::Here);
        assert_eq!(way(Host::Auto, false, Some("tcg"), never).unwrap().0, emulated("RNIC_KVM=tcg"));
        assert!(way(Host::Auto, false, Some("xen"), never).unwrap_err().to_string().contains("neither host nor tcg"));
        assert_eq!(way(Host::Auto, false, Some(""), unfit).unwrap().0, emulated("because"));
    }

    #[test]
    fn tries_without_progress_are_counted() {
        let mut tries = Tries::default();
        let lives = [0, 0, 10, 10, 20, 20, 20].map(|length| tries.another(length));
        assert_eq!(lives, [1, 2, 1, 2, 1, 2, 3]);
    }

    #[test]
    fn folders_of_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("disks")).unwrap();
        std::fs::write(real.join("disks/a.img"), "").unwrap();
        std::os::unix::fs::symlink("disks/a.img", real.join("link")).unwrap();
        assert_eq!(folder(&real.join("link")).unwrap(), real.join("disks"), "where the file truly lies");
        assert_eq!(folder(&real.join("new.json")).unwrap(), real, "a file that is to be made");
        for (path, word) in [("/dev/null", "not to be seen"), ("/proc/self/new", "not to be seen"), ("/new", "into /")]
        {
            assert!(folder(Path::new(path)).unwrap_err().to_string().contains(word), "{path}");
        }
        let errand = Errand { writes: vec![real.join("link")], memory: 8 << 30, ..Errand::default() };
        let words = errand.arguments("because").unwrap();
        let has = |pair: [&str; 2]| words.windows(2).any(|words| words[0] == pair[0] && words[1] == pair[1]);
        assert!(has(["--writable", real.join("disks").to_str().unwrap()]) && has(["--memory", "10240"]), "{words:?}");
        let plain = Errand::default().arguments("").unwrap();
        assert!(!plain.contains(&"--memory".into()) && !plain.contains(&"--socket".into()));
        let with_socket = Errand { socket: Some("/tmp/s".into()), ..Errand::default() }.arguments("").unwrap();
        assert!(with_socket.windows(2).any(|words| words == ["--socket", "/tmp/s"]));
    }
}
