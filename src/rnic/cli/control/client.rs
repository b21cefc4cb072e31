// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic ctl`: gives one order and prints its answer.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::protocol::{Line, Lines, MAX_ANSWER, MAX_LINE, PROTOCOL, Request};
use super::socket::check_length;
use crate::cli::Error;

/// How long a server gets for its greeting, and for an answer: a machine in an emulated host may still be starting.
const PATIENCE: Duration = Duration::from_secs(90);

/// Options of `rnic ctl`.
#[derive(Debug, Args)]
#[command(after_help = "The answer is JSON on standard output: on several lines for a terminal, else on one.\n\
    Exit status: 0 carried out, 1 not (standard error says why), 2 wrong usage.")]
pub struct CtlArgs {
    /// The socket that `rnic run --control` was given.
    socket: PathBuf,
    #[command(subcommand)]
    order: CtlOrder,
}

#[derive(Debug, Subcommand)]
enum CtlOrder {
    /// Ask whether anybody answers.
    Ping,
    /// Stop the vCPUs and the NICs where they are.
    Pause,
    /// Let them go on.
    Resume,
    /// Show the machine, all objects of its NICs, its disks.
    Inspect,
    /// Show what happened, by sequence number.
    Ledger(Page),
    /// Show what NICs and disks count.
    Counters,
    /// Show, pull or put back the link of a NIC's port.
    Port {
        /// The NIC, from 0.
        nic: u8,
        /// What it is to be.
        state: Option<PortState>,
    },
    /// Injections: devices that misbehave.
    #[command(subcommand)]
    Fault(FaultOrder),
    /// End the machine at once, as if its plug were pulled.
    PowerOff,
}

#[derive(Debug, Args)]
struct Page {
    /// From this sequence number on [default: 0].
    #[arg(long)]
    since: Option<u64>,
    /// At most so many events, up to 1000 [default: 100].
    #[arg(long)]
    limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PortState {
    Up,
    Down,
}

#[derive(Debug, Subcommand)]
enum FaultOrder {
    /// Show what is armed, how often each matched and fired, and firings.
    List(Page),
    /// Arm the injections of a plan (docs/faults.md).
    Arm {
        /// The plan; - for standard input.
        file: PathBuf,
        /// What its probabilities are drawn by [default: from the clock].
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Disarm injections.
    Disarm {
        /// Those with this name.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        name: Option<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

impl Page {
    fn args(&self) -> Value {
        json!({"since": self.since, "limit": self.limit})
    }
}

impl CtlOrder {
    /// Its name and keys; those without a value are not sent.
    fn request(&self) -> Result<Request, Error> {
        let (order, args) = match self {
            Self::Ping => ("ping", json!({})),
            Self::Pause => ("pause", json!({})),
            Self::Resume => ("resume", json!({})),
            Self::Inspect => ("inspect", json!({})),
            Self::Ledger(page) => ("ledger", page.args()),
            Self::Counters => ("counters", json!({})),
            Self::Port { nic, state } => {
                let state = state.map(|state| if matches!(state, PortState::Up) { "up" } else { "down" });
                ("port", json!({"nic": nic, "state": state}))
            }
            Self::Fault(FaultOrder::List(page)) => ("fault-list", page.args()),
            Self::Fault(FaultOrder::Arm { file, seed }) => {
                ("fault-arm", json!({"plan": read_plan(file)?, "file": file.display().to_string(), "seed": seed}))
            }
            Self::Fault(FaultOrder::Disarm { name, all }) => {
                ("fault-disarm", json!({"name": name, "all": all.then_some(true)}))
            }
            Self::PowerOff => ("power-off", json!({})),
        };
        let args: Map<String, Value> = args
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok(Request { id: json!(1), order: order.into(), args })
    }
}

fn read_plan(file: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = match file == Path::new("-") {
        true => io::stdin().lock().take(MAX_LINE as u64).read_to_string(&mut text),
        false => std::fs::File::open(file).and_then(|file| file.take(MAX_LINE as u64).read_to_string(&mut text)),
    };
    read.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text)
}

/// Gives the order and prints the answer.
pub fn main(args: &CtlArgs) -> Result<ExitCode, Error> {
    let request = args.order.request()?;
    let answer = ask(&args.socket, &request, PATIENCE)?;
    let text = match io::stdout().is_terminal() {
        true => format!("{answer:#}\n"),
        false => format!("{answer}\n"),
    };
    // A reader that has seen enough is no error.
    drop(io::stdout().lock().write_all(text.as_bytes()));
    Ok(ExitCode::SUCCESS)
}

/// Gives `request` to whoever listens at `socket`.
fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Value, Error> {
    check_length(socket)?;
    let line = request.line(&request.id);
    if line.len() > MAX_LINE {
        return Err(format!(
            "the order has {} bytes and may have {MAX_LINE}: arm fewer injections at a time",
            line.len()
        )
        .into());
    }
    let shown = socket.display();
    let no_machine =
        |error: io::Error| format!("control socket {shown}: {error}: is a machine running with --control?");
    let stream = UnixStream::connect(socket).map_err(no_machine)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let ended =
        |what: &str| -> Error { format!("control socket {shown}: the machine has ended before {what} came").into() };
    let mut lines = Lines::new(&stream, MAX_ANSWER);
    let mut hear = |what: &str| -> Result<Value, Error> {
        let text = match lines.next() {
            Ok(Line::Whole(text)) => text,
            Ok(Line::TooLong) => return Err(format!("control socket {shown}: {what} is too long").into()),
            Ok(Line::End | Line::Cut) => return Err(ended(what)),
            // It went without having read what it was told.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ended(what)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(
                    format!("control socket {shown}: {what} did not come within {} s", patience.as_secs()).into()
                );
            }
            Err(error) => return Err(format!("control socket {shown}: {error}").into()),
        };
        let value = serde_json::from_slice::<Value>(&text).ok().filter(Value::is_object);
        let value = value.ok_or_else(|| format!("control socket {shown}: {what} is no JSON object"))?;
        match value["error"].as_str() {
            Some(why) => Err(why.into()),
            None => Ok(value),
        }
    };
    let greeting = hear("the greeting")?;
    match greeting["protocol"].as_u64() {
        Some(PROTOCOL) => {}
        Some(other) => {
            return Err(format!("control socket {shown} speaks protocol {other} and this program {PROTOCOL}: use the rnic that runs the machine").into());
        }
        None => return Err(format!("control socket {shown} is not of rnic: it gives another greeting").into()),
    }
    // What the server has said before it closed says more than a broken pipe.
    drop((&stream).write_all(&line));
    let mut answer = hear("the answer")?;
    match answer.get_mut("ok") {
        Some(value) => Ok(value.take()),
        None => Err(format!("control socket {shown}: the answer has neither \"ok\" nor \"error\"").into()),
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
