// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other processes of this agent, each with handles of its own: what dies with a process can be tried.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rnic_agent::client::{CallError, Client};
use rnic_agent::proto::{Op, Value};

use super::{Outcome, failed, failure, page};
use crate::serve::objects::Object;
use crate::serve::{Context, lock};

/// A process that answers no hello by then has not started.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest step in another process.
const STEP_LIMIT: Duration = Duration::from_secs(300);
/// "nobody", user and group.
const NOBODY: u32 = 65534;

/// Another process of this agent. It is killed when nobody knows it any more.
pub struct Process {
    child: Mutex<Child>,
    client: Client,
    user: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

impl Process {
    fn start(user: bool) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["--port", "-"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        if user {
            // Supplementary groups go too, and with the user id every capability.
            command.gid(NOBODY).uid(NOBODY);
        }
        let child = command.spawn()?;
        let mut writer = ours.try_clone()?;
        let client = Client::new(move |bytes| std::io::Write::write_all(&mut writer, bytes));
        let feeder = client.clone();
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || feed(ours, &feeder))?;
        Ok(Self { child: Mutex::new(child), client, user })
    }

    fn call(&self, op: Op) -> Outcome {
        match self.client.call(op, STEP_LIMIT) {
            Err(CallError::Failed(failure)) => Err(failure),
            other => other.map_err(|error| failure(libc::EIO, error)),
        }
    }

    /// SIGKILL, and waits for the end: all that the kernel does when a process ends has then been done.
    fn kill(&self) -> std::io::Result<Duration> {
        let start = Instant::now();
        let mut child = lock(&self.child);
        child.kill()?;
        child.wait()?;
        Ok(start.elapsed())
    }
}

fn feed(mut stream: UnixStream, client: &Client) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        client.feed(&buffer[..n]);
    }
    client.close();
}

/// Starts one, of an ordinary user or of root.
pub fn start(context: &Context, user: bool) -> Outcome {
    let process = Process::start(user).map_err(failed("starting another agent"))?;
    process.client.wait_hello(START_LIMIT).map_err(|error| failure(libc::EIO, error))?;
    context.objects.add(Object::Process(Arc::new(process))).map(Value::Handle)
}

/// Runs a step in it.
pub fn run(context: &Context, process: u32, op: Op) -> Outcome {
    if matches!(op, Op::In { .. } | Op::Process { .. } | Op::Poweroff | Op::Reboot | Op::Crash) {
        return Err(failure(libc::EINVAL, "not in another process"));
    }
    let process = context.objects.process(process)?;
    match op {
        // An ordinary user is not told of page frame numbers.
        Op::PageInfo { m, off } if process.user => match process.call(Op::Whereabouts { m, off })? {
            Value::Place { pid, addr } => page::info_of(pid, addr).map(Value::Page).map_err(failed("page info")),
            other => Err(failure(libc::EIO, format!("{other:?} is no place"))),
        },
        op => process.call(op),
    }
}

/// Kills it.
pub fn kill(context: &Context, process: u32) -> Outcome {
    let taken = context.objects.process(process)?.kill().map_err(failed("killing a process"))?;
    Ok(Value::Num(u64::try_from(taken.as_millis()).unwrap_or(u64::MAX)))
}
