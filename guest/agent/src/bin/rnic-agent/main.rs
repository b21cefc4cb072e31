// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent of a guest: its PID 1, and the end of the channel that runs what the host asks for.
//!
//! * as PID 1: see [`boot`];
//! * `rnic-agent --port PATH`: serves a terminal, as an ordinary process; `--port -` serves standard input, which must be open
//!   both ways (a socket);
//! * `rnic-agent -q -- NAME`: loads a module, as the kernel calls its module loader;
//! * `rnic-agent --guest MS`: the agent proper of a guest, started by PID 1 as the program that has verbs (see [`boot::again`]);
//!   `rnic-agent --check`: does nothing, well.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

mod boot;
mod ops;
mod serve;
mod sys;

use serve::Context;
use serve::port::Port;

const USAGE: &str = "usage: rnic-agent --port PATH|-   (as PID 1 of a guest: without arguments)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--port", path] => serve(path),
        ["-q", "--", name] => modprobe(name),
        ["--check"] => ExitCode::SUCCESS,
        ["--guest", boot_ms] => boot::again(boot_ms),
        // The kernel passes words of its command line that it does not know to PID 1.
        _ if std::process::id() == 1 => boot::init(),
        _ => complain(USAGE),
    }
}

fn complain(text: impl std::fmt::Display) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}

fn serve(path: &str) -> ExitCode {
    let port = match path {
        "-" => std::io::stdin().as_fd().try_clone_to_owned().and_then(|fd| Port::from_file(File::from(fd))),
        path => Port::open(path),
    };
    match port {
        Ok(port) => {
            let context = Context::new(port, false);
            context.hello(sys::boot_ms());
            context.serve();
            ExitCode::SUCCESS
        }
        Err(error) => complain(format_args!("rnic-agent cannot use {path} as its port: {error}")),
    }
}

fn modprobe(name: &str) -> ExitCode {
    match ops::system::modprobe(name) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => complain(failure),
    }
}
