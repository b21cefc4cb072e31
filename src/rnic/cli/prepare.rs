// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic prepare`: fills the image cache.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::places;

/// Options of `rnic prepare`.
#[derive(clap::Args)]
pub struct PrepareArgs {
    /// What to prepare (6.1, 6.12, 7.3, bookworm, trixie, qemu; everything by default), --update for newer packages, --help for more.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "WHAT")]
    words: Vec<OsString>,
}

/// Becomes images/prepare; comes back only when it cannot.
pub fn main(args: &PrepareArgs) -> Result<Infallible, super::Error> {
    let program = places::find(&places::PREPARE)?;
    let error = Command::new(&program).args(&args.words).exec();
    Err(format!("{} cannot be started: {error}", program.display()).into())
}
