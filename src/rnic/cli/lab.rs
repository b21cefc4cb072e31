// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic lab`: scenarios, verdicts, evidence.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use image::{self, KernelSource};
use indicatif::{ProgressBar, ProgressStyle};
use lab::controls::{self, selftest};
use lab::expect::expected;
use lab::journal::{Header, Journal};
use lab::plan::{Row, Selection, rows_of, select};
use lab::report::{Report, RowResult, print_head, print_list, print_prices, print_row};
use lab::runner::{self, KernelPlan, LabConfig, News};
use lab::story::Story;
use lab::thread;

use super::host::{Errand, HostArgs, Way};
use super::parts::{Use, own_initramfs};
use super::reports::ReportArgs;

/// Kernels of the core set: before and after long-term pins of file mappings were refused.
const CORE_KERNELS: [&str; 2] = ["6.1", "7.3"];
/// Kernels of `--all`.
const ALL_KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];

/// Options of `rnic lab`.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 all rows as expected, 1 some differ (or harm data, on a kernel of your own), 2 some inconclusive."
)]
pub struct LabArgs {
    /// Every scenario, file system, folio size and kernel instead of the core set.
    #[arg(long)]
    all: bool,
    /// Only these scenarios (all their rows), for example H12. May be given several times.
    #[arg(long)]
    scenario: Vec<String>,
    /// A scenario of your own: a TOML file (docs/stories.md). May be given several times; then only these run.
    #[arg(long, value_name = "FILE")]
    scenario_file: Vec<PathBuf>,
    /// Only these file systems.
    #[arg(long)]
    fs: Vec<String>,
    /// Only rows on these disks: plain (the virtio disk itself), or what lies between it and the file system.
    #[arg(long)]
    disk: Vec<String>,
    /// Only these modes (how the page is reached: pinned, odp, dio...). May be given several times.
    #[arg(long)]
    mode: Vec<String>,
    /// Kernels: a name (6.1, 6.12, 7.3) or a path with --modules. May be given several times.
    #[arg(long)]
    kernel: Vec<String>,
    /// The directory that holds lib/modules/VERSION for a kernel given by path.
    #[arg(long)]
    modules: Option<PathBuf>,
    /// Break on purpose what the verdicts rest on: each row that says that all is well is run with its negative controls, and each of these
    /// must be noticed by the check that it names (docs/selftest.md). Takes --kernel, --scenario, --fs and --mode; all three kernels otherwise.
    #[arg(long, conflicts_with = "scenario_file")]
    selftest: bool,
    /// Run what the mailing lists argued over in 2018, and set what came out beside each claim (docs/thread.md). Takes
    /// --kernel, --scenario, --fs, --disk and --mode; all three kernels otherwise.
    #[arg(long, conflicts_with_all = ["all", "selftest", "scenario_file"])]
    thread: bool,
    /// List scenarios and verdicts and do nothing; with --verbose what is expected of them too, and where that comes from.
    #[arg(long)]
    list: bool,
    /// Print the report as JSON on standard output; rows go to standard error.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reports: ReportArgs,
    /// Keep rows that have ended in FILE, and do not run those again that it has: for a host that may die in between.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Leave the last guest running with a console when the rows are done.
    #[arg(long)]
    keep: bool,
    /// Kernels that run side by side. An emulated host is steadier with one.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Same seed, same data and same lever schedule [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
    /// Copy the guests' consoles to standard error.
    #[arg(long)]
    verbose: bool,
    #[command(flatten)]
    host: HostArgs,
}

/// Runs the lab.
pub fn main(args: LabArgs) -> Result<ExitCode, super::Error> {
    if args.list && args.selftest {
        controls::print_list(&mut std::io::stdout())?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.list {
        print_list(&mut std::io::stdout(), args.verbose)?;
        return Ok(ExitCode::SUCCESS);
    }
    let older = args.reports.check()?;
    let (mut journal, seed, done) = match &args.journal {
        Some(path) => open_journal(path, args.seed).map(|(journal, seed, done)| (Some(journal), seed, done))?,
        None => (None, args.seed.unwrap_or_else(clock_seed), Vec::new()),
    };
    let own = args.scenario_file.iter().map(|path| story(path)).collect::<Result<Vec<_>, _>>()?;
    let selection = Selection {
        all: args.all || args.selftest,
        scenarios: args.scenario.clone(),
        filesystems: args.fs.clone(),
        disks: args.disk.clone(),
        modes: args.mode.clone(),
    };
    let rows = match own.is_empty() {
        _ if args.thread => {
            // Says which name there is not.
            select(&selection)?;
            thread::rows().into_iter().filter(|row| selection.names(row)).collect()
        }
        true => select(&selection)?,
        false => own.into_iter().flatten().filter(|row| selection.names(row)).collect::<Vec<_>>(),
    };
    if rows.is_empty() {
        let of = if args.thread { "that --thread runs" } else { "of the scenario files" };
        return Err(format!("--fs, --disk, --mode and --scenario leave no row {of}").into());
    }
    let names: Vec<String> = match (args.kernel.is_empty(), args.all || args.selftest || args.thread) {
        (false, _) => args.kernel.clone(),
        (true, true) => ALL_KERNELS.map(String::from).into(),
        (true, false) => CORE_KERNELS.map(String::from).into(),
    };
    let kernels = names
        .iter()
        .map(|name| {
            let kernel = image::resolve_kernel(name, args.modules.as_deref())?;
            let initramfs = Arc::new(own_initramfs(&kernel, Use::default())?);
            let rows = match args.selftest {
                true => controls_of(&rows, &kernel),
                false => rows.clone(),
            };
            Ok(KernelPlan { kernel, initramfs, rows })
        })
        .collect::<Result<Vec<_>, super::Error>>()?;
    if let Way::Emulated(why) = args.host.way()? {
        return elsewhere(&args, &kernels, seed, &why);
    }
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
    screen.head()?;
    if !done.is_empty() {
        screen.line(&format!("going on: {} rows have ended before", done.len()));
    }
    let (selftest, verbose) = (args.selftest, args.verbose);
    let config = LabConfig { kernels, done, jobs: args.jobs, seed, selftest, work: work.0.clone(), verbose };
    let (report, kept) = runner::run(config, args.keep, |news| {
        if let (News::Row(row), Some(journal)) = (news, &mut journal)
            && let Err(error) = journal.add(row)
        {
            log::warn!("the journal cannot be written: {error}; a run that goes on will run this row again");
        }
        screen.news(news);
    });
    screen.end(&report, args.thread);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    args.reports.write(&report)?;
    args.reports.compare(&mut screen.out(), older.as_ref(), &report)?;
    if let Some(guest) = kept {
        lab::console::attach(guest)?;
    }
    Ok(ExitCode::from(report.exit_status()))
}

/// Runs this command in an emulated host, which now and then dies: with a journal and one seed it is gone on with in the next one.
fn elsewhere(args: &LabArgs, kernels: &[KernelPlan], seed: u64, why: &str) -> Result<ExitCode, super::Error> {
    let mut errand = Errand::default();
    for KernelPlan { kernel, .. } in kernels {
        errand.reads.extend(
            [Some(&kernel.image), kernel.modules.as_ref(), kernel.root.as_ref()].into_iter().flatten().cloned(),
        );
    }
    errand.reads.extend(args.scenario_file.iter().cloned());
    errand.reads.extend(args.reports.reads());
    errand.writes.extend(args.reports.files());
    let mut own = None;
    let journal = match &args.journal {
        Some(path) => path.clone(),
        None => {
            let path = own.insert(WorkDir::new("journal")?).0.join("rows");
            errand.options.extend(["--journal".into(), path.clone().into()]);
            path
        }
    };
    if args.seed.is_none() {
        errand.options.extend(["--seed".into(), seed.to_string().into()]);
    }
    errand.writes.push(journal.clone());
    errand.progress = Some(journal);
    errand.run(why)
}

/// The rows of a file of the user's.
fn story(path: &Path) -> Result<Vec<Row>, super::Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("the scenario {} cannot be read: {error}", path.display()))?;
    let stories = Story::parse(&text).map_err(|mistake| format!("{}, {mistake}", path.display()))?;
    Ok(stories.into_iter().flat_map(rows_of).collect())
}

/// The self-test's rows for a kernel.
fn controls_of(rows: &[Row], kernel: &KernelSource) -> Vec<Row> {
    let version = runner::version(kernel);
    selftest(rows, |row| expected(row, version?))
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

/// The journal, the run's seed and the rows that have ended. A run goes on with the seed that it began with.
fn open_journal(path: &Path, seed: Option<u64>) -> Result<(Journal, u64, Vec<RowResult>), super::Error> {
    let place = path.display();
    let failed = |error: std::io::Error| {
        format!("the journal {place} cannot be used: {error}; give --journal a file in a directory that exists")
    };
    let (mut journal, header, done) = Journal::open(path).map_err(failed)?;
    let seed = seed.or(header.as_ref().map(|header| header.seed)).unwrap_or_else(clock_seed);
    let ours = Header::of(seed);
    match header {
        Some(header) if header == ours => Ok((journal, seed, done)),
        None if done.is_empty() => {
            journal.begin(&ours).map_err(failed)?;
            Ok((journal, seed, done))
        }
        Some(header) if (&header.rnic, header.seed) == (&ours.rnic, seed) => Err(format!(
            "the journal {place} is of another build of rnic {}, whose rows this one does not vouch for: give --journal another file",
            header.rnic
        )
        .into()),
        Some(header) => Err(format!(
            "the journal {place} is of rnic {} with seed {}: give --seed {} to that program, or --journal another file",
            header.rnic, header.seed, header.seed
        )
        .into()),
        None => Err(format!("{place} is no journal: its first line does not say of which run it is").into()),
    }
}

/// A folder of a run's own, for its disks or its journal; removed at its end.
struct WorkDir(PathBuf);

impl WorkDir {
    fn new(what: &str) -> Result<Self, super::Error> {
        let path = std::env::temp_dir().join(format!("rnic-{what}-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|e| format!("cannot make {}: {e}; set TMPDIR to a directory with 2 GB of room", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// Rows as they come on one stream, what is going on below them on a terminal.
struct Screen {
    bar: ProgressBar,
    json: bool,
}

impl Screen {
    fn new(json: bool, total: usize) -> Result<Self, super::Error> {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total as u64) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{spinner} row {pos} of {len}, about {eta} left: {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self { bar, json })
    }

    fn out(&self) -> Box<dyn Write> {
        if self.json { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) }
    }

    fn line(&self, text: &str) {
        // A closed output is found out by the next write that matters.
        self.bar.suspend(|| drop(writeln!(self.out(), "{text}")));
    }

    fn head(&self) -> std::io::Result<()> {
        self.bar.suspend(|| print_head(&mut self.out()))
    }

    fn news(&mut self, news: &News) {
        match news {
            News::Phase(kernel, what) => {
                self.bar.set_message(format!("{kernel}: {what}"));
                if self.bar.is_hidden() && what.starts_with("booting") {
                    eprintln!("{kernel}: {what}");
                }
            }
            News::Row(row) => {
                self.bar.suspend(|| drop(print_row(&mut self.out(), row)));
                self.bar.inc(1);
            }
            News::Broken(kernel, why) => self.bar.suspend(|| eprintln!("{kernel}: {why}")),
        }
    }

    fn end(&self, report: &Report, claims: bool) {
        self.bar.finish_and_clear();
        let mut tables = Vec::new();
        // Writing to memory does not fail.
        drop(print_prices(&mut tables, &report.rows));
        if claims {
            drop(thread::print(&mut tables, &report.rows));
        }
        if !tables.is_empty() {
            self.line(String::from_utf8_lossy(&tables).trim_end());
        }
        self.line(&report.summary());
    }
}
