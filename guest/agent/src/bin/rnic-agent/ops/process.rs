// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Other processes of this agent, each with handles of its own: what dies with a process can be tried.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rnic_agent::client::{CallError, Client};
use rnic_agent::proto::{Op, Value};

use super::{Outcome, failed, failure};
use crate::serve::objects::Object;
use crate::serve::{Context, lock};

/// A process that answers no hello by then has not started.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest step in another process.
const STEP_LIMIT: Duration = Duration::from_secs(300);

/// Another process of this agent. It is killed when nobody knows it any more.
pub struct Process {
    child: Mutex<Child>,
    client: Client,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

impl Process {
    fn start() -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child =
            Command::new("/proc/self/exe").args(["--port", "-"]).stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        let mut writer = ours.try_clone()?;
        let client = Client::new(move |bytes| std::io::Write::write_all(&mut writer, bytes));
        let feeder = client.clone();
        std::thread::Builder::new().stack_size(64 << 10).spawn(move || feed(ours, &feeder))?;
        Ok(Self { child: Mutex::new(child), client })
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

/// Starts one.
pub fn start(context: &Context) -> Outcome {
    let process = Process::start().map_err(failed("starting another agent"))?;
    process.client.wait_hello(START_LIMIT).map_err(|error| failure(libc::EIO, error))?;
    context.objects.add(Object::Process(Arc::new(process))).map(Value::Handle)
}

/// Runs a step in it.
pub fn run(context: &Context, process: u32, op: Op) -> Outcome {
    if matches!(op, Op::In { .. } | Op::Process | Op::Poweroff | Op::Reboot | Op::Crash) {
        return Err(failure(libc::EINVAL, "not in another process"));
    }
    match context.objects.process(process)?.client.call(op, STEP_LIMIT) {
        Err(CallError::Failed(failure)) => Err(failure),
        other => other.map_err(|error| failure(libc::EIO, error)),
    }
}

/// Kills it.
pub fn kill(context: &Context, process: u32) -> Outcome {
    let taken = context.objects.process(process)?.kill().map_err(failed("killing a process"))?;
    Ok(Value::Num(u64::try_from(taken.as_millis()).unwrap_or(u64::MAX)))
}
