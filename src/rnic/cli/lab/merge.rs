// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic lab merge`: one report of those that the shards of a run wrote.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use lab::campaign::{Merged, merge};

use super::super::Error;
use super::super::reports::{place, read, write_whole};
use super::judge_plan;

/// Options of `rnic lab merge`.
#[derive(Args)]
pub struct MergeArgs {
    /// Write the report to this file, complete or not at all, instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Exit status 1 if an injection of the plan fired in no row of any shard.
    #[arg(long)]
    require_fired: bool,
    /// Reports of the shards, in any order.
    #[arg(required = true, value_name = "REPORT")]
    reports: Vec<PathBuf>,
}

/// Merges.
pub(super) fn main(args: &MergeArgs) -> Result<ExitCode, Error> {
    if let Some(path) = &args.output {
        place("--output", path)?;
    }
    let named = |path: &PathBuf| Ok((path.display().to_string(), read(path)?));
    let reports = args.reports.iter().map(named).collect::<Result<_, Error>>()?;
    let merged = merge(reports)?;
    let Merged { report, missing } = &merged;
    let text = serde_json::to_string_pretty(report)?;
    match &args.output {
        Some(path) => write_whole(&[("--output", path, text)])?,
        None => println!("{text}"),
    }
    eprintln!("{}", report.summary());
    missing.iter().for_each(|line| eprintln!("rnic: {line}"));
    let mut status = merged.exit_status();
    if let Some(plan) = &report.setting.plan {
        let (table, idle) = judge_plan(&plan.plan()?, report);
        eprintln!("{table}");
        if let Some(idle) = idle.filter(|_| args.require_fired) {
            eprintln!("rnic: {idle}");
            status = 1;
        }
    } else if args.require_fired {
        return Err("--require-fired is of a plan, and these shards ran without one: leave it out".into());
    }
    Ok(ExitCode::from(status))
}
