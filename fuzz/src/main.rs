// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fuzz targets on a stable toolchain; see README.md.

mod trail;
mod worker;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

/// Silence of a worker that counts as a hang.
const SILENCE: Duration = Duration::from_secs(60);

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Commands, command queue entries, registers.
    Commands,
    /// Work requests, receive lists, records.
    Wqes,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Wqes => "wqes",
        }
    }
}

/// Fuzzes the NIC in process, without a VM.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// What to fuzz.
    target: Target,
    /// How long.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where programs begin.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Corpus and crashes go to a folder of the target's name in here.
    #[arg(long, default_value = "target/fuzz")]
    folder: PathBuf,
    /// Runs the programs of a crash file once, in this process.
    #[arg(long)]
    replay: Option<PathBuf>,
    #[arg(long, hide = true)]
    worker: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (&arguments.replay, arguments.worker) {
        (Some(file), _) => worker::replay(arguments.target, file),
        (None, true) => worker::run(&arguments),
        (None, false) => supervise(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn place(&self) -> PathBuf {
        self.folder.join(self.target.name())
    }
}

/// Runs a worker and watches it.
fn supervise(arguments: &Arguments) -> Result<(), String> {
    let place = arguments.place();
    std::fs::create_dir_all(place.join("corpus")).map_err(|error| format!("{}: {error}", place.display()))?;
    let begun = Instant::now();
    let mut child = start(arguments)?;
    let (send, receive) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    let why = loop {
        match receive.recv_timeout(SILENCE) {
            Ok(line) => println!("{:>5} s  {line}", begun.elapsed().as_secs()),
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                break Some("hang".to_string());
            }
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    let status = child.wait().map_err(|error| error.to_string())?;
    match why {
        None if status.success() => Ok(()),
        why => Err(keep_crash(&place, &why.unwrap_or_else(|| status.to_string()))),
    }
}

fn start(arguments: &Arguments) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(arguments.target.name()).arg("--worker").arg("--folder").arg(&arguments.folder);
    command.arg("--seconds").arg(arguments.seconds.to_string()).arg("--seed").arg(arguments.seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())
}

/// Puts the worker's trail where the next run does not overwrite it.
fn keep_crash(place: &Path, why: &str) -> String {
    let mut number = 0;
    let to = loop {
        let to = place.join(format!("crash-{number}"));
        if !to.exists() {
            break to;
        }
        number += 1;
    };
    match std::fs::rename(place.join(trail::FILE), &to) {
        Ok(()) => format!("the worker failed ({why}); see it again with --replay {}", to.display()),
        Err(error) => format!("the worker failed ({why}), and its trail could not be kept: {error}"),
    }
}
