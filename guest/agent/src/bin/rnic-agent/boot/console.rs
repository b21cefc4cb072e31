// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What runs on the console: a shell, or one command. When it ends, the guest powers off.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rnic_agent::proto::{Event, Message};

use super::cmdline::Options;
use super::{note, power};
use crate::serve::Context;
use crate::sys::{process, tty};

const CONSOLE: &str = "/dev/ttyS0";
/// Shells for people, best first: program, words before the shell's own, words that make it a login shell.
const SHELLS: [(&str, &[&str], &[&str]); 3] =
    [("/bin/bash", &[], &["--login"]), ("/bin/sh", &[], &["-l"]), ("/bin/busybox", &["sh"], &["-l"])];
const NO_SHELL: &str = "no shell in this guest: give it a root disk (virtio serial rnic-root), or use rnic.mode=agent";

/// An interactive login shell.
pub fn shell(options: &Options, context: &Context) {
    let present = SHELLS.iter().find(|(program, ..)| Path::new(program).exists());
    let command = present.map(|(program, first, login)| {
        let mut command = Command::new(program);
        command.args(*first).args(*login);
        command
    });
    finish(context, run(options, command));
}

/// One command of a shell.
pub fn exec(text: &str, options: &Options, context: &Context) {
    // The plain shell where there is one, since it starts faster.
    let present = SHELLS[1..].iter().chain(&SHELLS[..1]).find(|(program, ..)| Path::new(program).exists());
    let command = present.map(|(program, first, _)| {
        let mut command = Command::new(program);
        command.args(*first).arg("-c").arg(text);
        command
    });
    finish(context, run(options, command));
}

/// Reports the exit status and ends the guest.
fn finish(context: &Context, status: i32) {
    context.port.send(&Message::Event(Event::Exit { status }));
    context.port.drain();
    power::off()
}

/// Runs a command on the console; 127 when there is none, 126 when it cannot be run.
fn run(options: &Options, command: Option<Command>) -> i32 {
    let Some(mut command) = command else {
        note(NO_SHELL);
        return 127;
    };
    spawn(options, &mut command).unwrap_or_else(|error| {
        note(format_args!("{} on {CONSOLE}: {error}", command.get_program().to_string_lossy()));
        126
    })
}

fn spawn(options: &Options, command: &mut Command) -> io::Result<i32> {
    let console = File::options().read(true).write(true).open(CONSOLE)?;
    if let (Some(rows), Some(cols)) = (options.rows, options.cols) {
        tty::set_size(&console, rows, cols)?;
    }
    command.env("TERM", options.term.as_deref().unwrap_or("vt220"));
    command.current_dir(if Path::new("/root").is_dir() { "/root" } else { "/" });
    Ok(crate::ops::status_code(process::on_terminal(command, &console)?))
}
