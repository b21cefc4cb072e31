// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic completions` and `rnic man`: what a shell and a reader need, made from the definition that the command line is read with.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

/// Options of `rnic completions`.
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// For this shell.
    shell: Shell,
}

/// Options of `rnic man`.
#[derive(clap::Args)]
pub struct ManArgs {
    /// Write the pages of all commands into this folder, instead of the first one to standard output.
    dir: Option<PathBuf>,
}

/// Prints a script for the shell.
pub fn completions(args: &CompletionsArgs, mut program: Command) -> Result<ExitCode, super::Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "rnic", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the page of the program, or writes all.
pub fn man(args: &ManArgs, program: Command) -> Result<ExitCode, super::Error> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(program).render(&mut page)?;
        std::io::stdout().write_all(&page)?;
        return Ok(ExitCode::SUCCESS);
    };
    pages(dir, program).map_err(|e| format!("manual pages cannot be written to {}: {e}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn pages(dir: &Path, program: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    // `help` is no command that one looks up.
    clap_mangen::generate_to(program.disable_help_subcommand(true), dir)
}
