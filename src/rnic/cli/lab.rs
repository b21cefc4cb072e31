// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic lab`: scenarios, verdicts, evidence.
//!
//! * `options`: the command line. `rows`: what it asks for. `files`: what is written. `screen`: what a person sees. `merge`: `rnic lab merge`.
//! * `beside`: jobs with an emulated host each.

mod beside;
mod files;
mod merge;
mod options;
mod rows;
mod screen;

use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

use image::KernelSource;
use inject::{Plan, Summary, join};
use lab::campaign::{Numbered, Setting, Shard};
use lab::controls;
use lab::journal::Journal;
use lab::report::{Report, RowResult, print_list};
use lab::runner::{self, KernelPlan, LabConfig, News};

use super::faults::idle;
use super::host::{Errand, Hosts, Way};
use super::parts::{Use, own_initramfs};
use beside::Beside;
use files::{Kept, WorkDir, open_journal};
pub use options::LabArgs;
use options::LabCommand;
use rows::Asked;
use screen::Screen;

/// Memory of a guest of the lab, bytes.
const GUEST_MEMORY: u64 = 512 << 20;

/// Runs the lab.
pub fn main(args: LabArgs) -> Result<ExitCode, super::Error> {
    if let Some(LabCommand::Merge(args)) = &args.command {
        return merge::main(args);
    }
    if args.list {
        match args.select.selftest {
            true => controls::print_list(&mut std::io::stdout())?,
            false => print_list(&mut std::io::stdout(), args.verbose)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    args.check()?;
    let asked = Asked::of(&args)?;
    asked.notes.iter().for_each(|note| eprintln!("rnic: {note}"));
    if asked.is_empty() {
        eprintln!(
            "rnic: every row of the report came out well: nothing is to run again (--replay-all runs all of them)"
        );
        return Ok(ExitCode::SUCCESS);
    }
    if args.campaign.dry_run {
        let (kernels, shard) = asked.deal(&args, asked.seed.unwrap_or_else(clock_seed))?;
        return print_rows(&args, &kernels, shard.as_ref());
    }
    let older = args.reports.check()?;
    // Whatever can be wrong with the rows is found out before a journal is made.
    asked.deal(&args, asked.seed.unwrap_or(0))?;
    let (journal, seed, done) = match &args.journal {
        Some(path) => {
            let Kept { journal, seed, done } = open_journal(path, asked.seed, &asked.setting, clock_seed)?;
            (Some(journal), seed, done)
        }
        None => (None, asked.seed.unwrap_or_else(clock_seed), Vec::new()),
    };
    let (kernels, shard) = asked.deal(&args, seed)?;
    let kernels = kernels
        .into_iter()
        .map(|(kernel, rows)| {
            let initramfs = Arc::new(own_initramfs(&kernel, Use::default())?);
            Ok(KernelPlan { kernel, initramfs, rows })
        })
        .collect::<Result<Vec<_>, super::Error>>()?;
    if let Way::Emulated(why) = args.host.way()? {
        return elsewhere(&args, &kernels, (journal, seed, done.len()), &asked.setting, &why);
    }
    here(&args, asked, (kernels, shard), (journal, seed, done), older.as_ref())
}

/// Rows that would run, one a line.
fn print_rows(
    args: &LabArgs,
    kernels: &[(KernelSource, Vec<Numbered>)],
    shard: Option<&Shard>,
) -> Result<ExitCode, super::Error> {
    say_shard(args, shard, |line| eprintln!("{line}"))?;
    let mut out = std::io::stdout().lock();
    for (kernel, rows) in kernels {
        for (number, row) in rows {
            let seed = row.seed.or(args.campaign.seed).map_or_else(String::new, |seed| format!(" seed {seed}"));
            writeln!(out, "{number} {} {row}{seed}", kernel.name)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Which part of a run this is, and who said so.
fn say_shard(args: &LabArgs, shard: Option<&Shard>, say: impl FnOnce(&str)) -> Result<(), super::Error> {
    if let (Some(which), Some(Shard { part, rows, .. })) = (args.campaign.shard, shard) {
        let by = which.part()?.1.map_or_else(String::new, |said| format!(" ({said})"));
        say(&format!("shard {part}{by}: {} of {rows} rows", part.count(*rows)));
    }
    Ok(())
}

/// Runs the rows in this process.
fn here(
    args: &LabArgs,
    asked: Asked,
    (kernels, shard): (Vec<KernelPlan>, Option<Shard>),
    (mut journal, seed, done): (Option<Journal>, u64, Vec<RowResult>),
    older: Option<&Report>,
) -> Result<ExitCode, super::Error> {
    let work = WorkDir::new("lab")?;
    let left = work.0.clone();
    vmm::on_ending_signal(move |signal| {
        // Guests end with the process; their disks have no names any more, the directory has.
        drop(std::fs::remove_dir_all(&left));
        std::process::exit(128 + signal);
    })?;
    let total = kernels.iter().map(|plan| plan.rows.len()).sum();
    let mut screen = Screen::new(args.json, total)?;
    screen.line(&format!("rnic {} on {}; seed {seed}", env!("CARGO_PKG_VERSION"), runner::host_line()));
    for plan in &kernels {
        screen.line(&format!("kernel {}: {}", plan.kernel.name, version(&plan.kernel)));
    }
    if let Some(plan) = &asked.plan {
        screen.line(&format!("injections of {} ({})", plan.path.display(), plan.title));
    }
    say_shard(args, shard.as_ref(), |line| screen.line(line))?;
    screen.head()?;
    if !done.is_empty() {
        screen.line(&format!("going on: {} rows have ended before", done.len()));
    }
    let Asked { setting, plan, .. } = asked;
    let is_shard = shard.is_some();
    let config = LabConfig {
        kernels,
        done,
        jobs: args.jobs.map_or(1, NonZeroUsize::get),
        seed,
        setting,
        plan: plan.clone(),
        shard,
        work: work.0.clone(),
        verbose: args.verbose,
    };
    let (report, kept) = runner::run(config, args.keep, |news| {
        if let (News::Row(row), Some(journal)) = (news, &mut journal)
            && let Err(error) = journal.add(row)
        {
            log::warn!("the journal cannot be written: {error}; a run that goes on will run this row again");
        }
        screen.news(news);
    });
    screen.end(&report, args.select.thread);
    if args.part.is_some() {
        // The run's report is whose job this is.
        return Ok(ExitCode::from(report.exit_status()));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    args.reports.write(&report)?;
    args.reports.compare(&mut screen.out(), older, &report)?;
    let mut status = report.exit_status();
    if let Some(plan) = &plan {
        let (table, idle) = judge_plan(plan, &report);
        screen.line(&table);
        match idle.filter(|_| args.campaign.require_fired) {
            Some(idle) if is_shard => {
                eprintln!("rnic: {idle}; `rnic lab merge --require-fired` judges all shards together")
            }
            Some(idle) => {
                eprintln!("rnic: {idle}");
                status = 1;
            }
            None => {}
        }
    }
    if let Some(guest) = kept {
        lab::console::attach(guest)?;
    }
    Ok(ExitCode::from(status))
}

/// What became of a plan over all rows, as a table; and a sentence about injections that fired in none.
fn judge_plan(plan: &Plan, report: &Report) -> (String, Option<String>) {
    let mut summary = Summary::new(plan);
    report.rows.iter().for_each(|row| join(&mut summary.injections, &row.injections));
    (summary.to_string(), idle(&summary))
}

/// Runs this command in an emulated host, which now and then dies: with a journal and one seed it is gone on with in the next one. Several jobs
/// have a host each before that.
fn elsewhere(
    args: &LabArgs,
    kernels: &[KernelPlan],
    (journal, seed, done): (Option<Journal>, u64, usize),
    setting: &Setting,
    why: &str,
) -> Result<ExitCode, super::Error> {
    let mut errand = errand(args, kernels, seed)?;
    let mut own = None;
    let (path, mut journal) = match args.journal.clone().zip(journal) {
        Some(given) => given,
        None => {
            let path = own.insert(WorkDir::new("journal")?).0.join("rows");
            let Kept { journal, .. } = open_journal(&path, Some(seed), setting, clock_seed)?;
            errand.options.extend(["--journal".into(), path.clone().into()]);
            (path, journal)
        }
    };
    let hosts = Hosts::watched()?;
    let rows = kernels.iter().map(|plan| plan.rows.len()).sum::<usize>().saturating_sub(done);
    let jobs = match args.jobs {
        // A guest that stays has a terminal, and only one job can have that.
        _ if args.keep => 1,
        Some(jobs) => jobs.get().min(rows),
        None => beside::usual(rows, errand.room()),
    };
    if jobs > 1 {
        let mut screen = Screen::new(args.json, rows)?;
        screen.line(&format!("{jobs} jobs, each in an emulated host of its own; seed {seed}"));
        screen.head()?;
        let mut beside = Beside { jobs, errand: &errand, journal: (&mut journal, &path), why };
        for (part, status) in beside.run(&hosts, &mut screen)? {
            eprintln!("rnic: job {part} ended early (exit status {status}); what is left goes on in another host");
        }
        screen.clear();
        if let Some(signal) = hosts.signalled() {
            return Ok(ExitCode::from(128 + signal as u8));
        }
    }
    errand.options.extend(["--jobs".into(), "1".into()]);
    errand.writes.extend(args.reports.files());
    errand.writes.push(path.clone());
    errand.progress = Some(path);
    hosts.run(&errand, why).map(ExitCode::from)
}

/// What rows need of this machine, and what an emulated host has to be told beside this command's own words.
fn errand(args: &LabArgs, kernels: &[KernelPlan], seed: u64) -> Result<Errand, super::Error> {
    let mut errand = Errand { memory: memory(args), ..Errand::default() };
    for KernelPlan { kernel, .. } in kernels {
        errand.reads.extend(
            [Some(&kernel.image), kernel.modules.as_ref(), kernel.root.as_ref()].into_iter().flatten().cloned(),
        );
    }
    let campaign = &args.campaign;
    errand.reads.extend(args.select.scenario_file.iter().cloned());
    errand.reads.extend([&campaign.faults, &campaign.replay].into_iter().flatten().cloned());
    errand.reads.extend(args.reports.reads());
    // A report has its seed, and seeds are among the words already.
    if campaign.seed.is_none() && campaign.seeds.is_none() && campaign.replay.is_none() {
        errand.options.extend(["--seed".into(), seed.to_string().into()]);
    }
    // The variables of a job stay here.
    if let Some((part, Some(_))) = campaign.shard.map(|which| which.part()).transpose()? {
        errand.options.extend(["--shard".into(), part.to_string().into()]);
    }
    Ok(errand)
}

/// What the guests of a job have, where it is more than an emulated host has room for by itself.
fn memory(args: &LabArgs) -> u64 {
    args.guests.memory.map_or(GUEST_MEMORY, |size| size.0).saturating_add(GUEST_MEMORY)
}

fn version(kernel: &KernelSource) -> String {
    match &kernel.package_version {
        Some(package) => format!("{} (Debian {package})", kernel.release),
        None => kernel.release.clone(),
    }
}

/// A seed that no other run has had.
pub(super) fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64)
}
