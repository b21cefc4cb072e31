// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the help texts of clap are documentation comments, and have brackets of their own"
)]

mod cli;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A minimal KVM machine monitor and a lab that puts device DMA against filesystem writeback on unmodified kernels.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a kernel in a small machine with a console.
    Run(Box<cli::run::RunArgs>),
    /// Give an order to a machine that runs: rnic run --control SOCKET.
    Ctl(cli::control::client::CtlArgs),
    /// Run scenarios on kernels and print verdicts with their evidence.
    Lab(Box<cli::lab::LabArgs>),
    /// Render a report of the lab again: as a table, KTAP, JUnit or HTML, or beside an older one.
    Report(cli::reports::RenderArgs),
    /// Say whether this host's KVM is an architectural one (exit status 0) or not (1).
    KvmProbe,
    /// Fill the image cache: kernels, root file systems, QEMU. A second run only looks.
    Prepare(cli::prepare::PrepareArgs),
    /// Print a shell's completions of this command line.
    Completions(cli::manual::CompletionsArgs),
    /// Print the manual page, or write those of all commands.
    Man(cli::manual::ManArgs),
}

fn main() -> ExitCode {
    cli::log::start();
    let result = match Args::parse().command {
        Command::Run(args) => cli::run::main(*args),
        Command::Ctl(args) => cli::control::client::main(&args),
        Command::Lab(args) => cli::lab::main(*args),
        Command::Report(args) => cli::reports::main(&args),
        Command::KvmProbe => cli::probe::main(),
        Command::Prepare(args) => cli::prepare::main(&args).map(|never| match never {}),
        Command::Completions(args) => cli::manual::completions(&args, Args::command()),
        Command::Man(args) => cli::manual::man(&args, Args::command()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rnic: {error}");
        ExitCode::FAILURE
    })
}
