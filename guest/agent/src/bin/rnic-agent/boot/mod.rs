// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Being PID 1 of the guest: from the initramfs to a served channel.
//!
//! PID 1 mounts what a Linux needs, loads modules, finds the root disk and moves there; then it splits. The parent
//! reaps whatever dies; the child serves the channel and, where the command line says so, runs a shell or one command.
//!
//! PID 1 is a static program, since an initramfs has no libraries. Verbs need the root's own libibverbs, in the process that owns
//! the mappings under test. So the initramfs may carry a second build of the agent, dynamically linked, and the child
//! becomes that program when the root can run it.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use crate::serve::Context;
use crate::serve::port::Port;
use crate::sys::{self, process};

mod cmdline;
mod console;
pub mod power;
mod root;

use cmdline::{Mode, Options};

/// Heap kept ready: largest read or write step and a good deal more.
const HEAP: usize = 24 << 20;
/// The channel's port.
const PORT: &str = "/dev/ttyS1";
/// The agent that has verbs; in the module directory, since that is there after the change of root.
const VERBS_AGENT: &str = "/lib/modules/rnic-agent-verbs";
/// Where programs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One line in the kernel log.
pub fn note(text: impl std::fmt::Display) {
    if let Ok(mut kmsg) = File::options().write(true).open("/dev/kmsg") {
        let _ = kmsg.write_all(format!("<5>rnic-agent: {text}\n").as_bytes());
    }
}

/// Runs as PID 1. Never returns.
pub fn init() -> ! {
    let boot_ms = sys::boot_ms();
    root::prepare();
    let options = Options::read();
    root::enter(&options);
    settle();
    match process::fork() {
        Ok(Some(agent)) => reap(agent),
        Ok(None) => {
            if let Err(why) = become_verbs_agent(boot_ms) {
                note(format_args!("no verbs in this guest: {why}"));
            }
            serve(&options, boot_ms)
        }
        Err(error) => {
            note(format_args!("cannot fork ({error}), powering off"));
            power::off()
        }
    }
}

/// Host name, environment, loopback.
fn settle() {
    for (key, value) in [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")] {
        process::set_env(key, value);
    }
    if let Err(error) = sys::sethostname("rnic") {
        note(format_args!("host name not set: {error}"));
    }
    if let Err(error) = sys::loopback_up() {
        note(format_args!("loopback interface not up: {error}"));
    }
}

/// Collects the dead. When the agent is among them, there is nothing left to do.
fn reap(agent: i32) -> ! {
    loop {
        match process::wait_any() {
            Ok((pid, status)) if pid == agent => {
                note(format_args!("the agent ended (wait status {status:#x}), powering off"));
                power::off()
            }
            Ok(_) => {}
            // EINTR, or no child at all, which cannot be while the agent lives.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

/// Turns into the program that has verbs. Returns when there is none (Ok), or when the root cannot run it.
fn become_verbs_agent(boot_ms: u64) -> Result<(), String> {
    if !Path::new(VERBS_AGENT).exists() {
        return Ok(());
    }
    // Tried out first: a missing or too old library shows only after exec, when there is no way back.
    match Command::new(VERBS_AGENT).arg("--check").output() {
        Ok(output) if output.status.success() => {
            Err(Command::new(VERBS_AGENT).args(["--guest", &boot_ms.to_string()]).exec().to_string())
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// The agent proper once more, as another program. `boot_ms` as PID 1 took it.
pub fn again(boot_ms: &str) -> ExitCode {
    serve(&Options::read(), boot_ms.parse().unwrap_or_else(|_| sys::boot_ms()))
}

/// The agent proper.
fn serve(options: &Options, boot_ms: u64) -> ! {
    sys::steady_heap(HEAP);
    let port = Port::open(PORT);
    let mode = options.mode.clone().unwrap_or(if port.is_ok() { Mode::Agent } else { Mode::Shell });
    let port = port.unwrap_or_else(|error| {
        note(format_args!("{PORT} does not answer ({error}): no agent channel"));
        Port::none()
    });
    let context = Context::new(port, true);
    context.port.start_line();
    context.hello(boot_ms);
    match mode {
        Mode::Agent => context.serve(),
        Mode::Shell => beside(&context, |context| console::shell(options, context)),
        Mode::Exec(command) => beside(&context, move |context| console::exec(&command, options, context)),
    }
    note("the agent channel has ended, powering off");
    power::off()
}

/// Serves the channel on another thread while `work` runs on this one.
fn beside(context: &Arc<Context>, work: impl FnOnce(&Context)) {
    let server = context.clone();
    let started = std::thread::Builder::new().spawn(move || server.serve());
    if let Err(error) = started {
        note(format_args!("the agent channel is not served: {error}"));
    }
    work(context);
}
