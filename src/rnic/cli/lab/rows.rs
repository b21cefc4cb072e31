// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a command line asks for: which rows on which kernels under what, found out before anything is made.

use std::path::Path;

use image::{self, KernelSource};
use inject::{Meant, Plan};
use lab::campaign::{MOST_ROWS, Numbered, Part, PlanText, Seeds, Setting, Shard, over_seeds, print_of, replay};
use lab::controls::{self, selftest};
use lab::expect::expected;
use lab::journal;
use lab::plan::{Row, Selection, all_rows, rows_of, select};
use lab::report::Report;
use lab::runner;
use lab::story::Story;
use lab::thread;

use super::super::Error;
use super::super::reports::read;
use super::options::{LabArgs, SelectArgs};

/// Kernels of the core set: before and after long-term pins of file mappings were refused.
const CORE_KERNELS: [&str; 2] = ["6.1", "7.3"];
/// Kernels of `--all`.
const ALL_KERNELS: [&str; 3] = ["6.1", "6.12", "7.3"];
/// Disks of a guest of the lab: root, under test, source.
const DISKS: usize = 3;
/// Most rows of a run of which this one is a part.
const MOST_WHOLE: u64 = 100 * MOST_ROWS;

/// What is asked for.
pub(super) struct Asked {
    /// What all rows run under.
    pub(super) setting: Setting,
    /// Its plan.
    pub(super) plan: Option<Plan>,
    /// The seed that is given, if one is.
    pub(super) seed: Option<u64>,
    /// Rows of each kernel, once.
    kernels: Vec<(KernelSource, Vec<Row>)>,
    /// What somebody may want to know.
    pub(super) notes: Vec<String>,
}

/// Rows of each kernel with their numbers, and which part of the whole they are.
pub(super) type Dealt = (Vec<(KernelSource, Vec<Numbered>)>, Option<Shard>);

impl Asked {
    /// Reads the files that are named, and finds the kernels.
    pub(super) fn of(args: &LabArgs) -> Result<Self, Error> {
        match &args.campaign.replay {
            Some(path) => Self::again(args, path),
            None => Self::new(args),
        }
    }

    fn new(args: &LabArgs) -> Result<Self, Error> {
        let (campaign, guests) = (&args.campaign, &args.guests);
        let (text, plan) = campaign.faults.as_deref().map(PlanText::read).transpose()?.unzip();
        let setting = Setting {
            plan: text,
            cmdline: guests.cmdline.clone(),
            memory: guests.memory.map(|size| size.0),
            mkfs: guests.mkfs.clone(),
            mount: guests.mount.clone(),
            row_limit: campaign.row_limit,
            cuts: campaign.cuts,
            selftest: args.select.selftest,
        };
        let meant = plan.as_ref().map(|plan| plan.meant.clone()).unwrap_or_default();
        let rows = rows(&args.select, &meant).map_err(|error| match &plan {
            Some(plan) if !args.select.names_rows() => format!("{}, [lab]: {error}", plan.path.display()).into(),
            _ => error,
        })?;
        let kernel = |name: &String| {
            let kernel = image::resolve_kernel(name, args.select.modules.as_deref())?;
            let rows = if args.select.selftest { controls_of(&rows, &kernel) } else { rows.clone() };
            Ok((kernel, rows))
        };
        let kernels = kernel_names(&args.select, &meant).iter().map(kernel).collect::<Result<_, Error>>()?;
        let seed = campaign.seeds.map(Seeds::first).or(campaign.seed);
        Self { setting, plan, seed, kernels, notes: Vec::new() }.checked()
    }

    /// The rows of a report, under what they ran under.
    fn again(args: &LabArgs, path: &Path) -> Result<Self, Error> {
        let report = read(path)?;
        let mut known: Vec<Row> = all_rows();
        known.extend(stories(&args.select)?);
        // Rows of the self-test are rows with something planted.
        let planted = |row: &Row| -> Vec<_> {
            controls::of(row.scenario).map(|control| Row { control: Some(control), ..*row }).collect()
        };
        let controls: Vec<_> = known.iter().flat_map(planted).collect();
        known.extend(controls);
        let selection = args.select.selection();
        let mut notes = other_program(&report);
        let mut kernels = Vec::new();
        for again in replay(&report, &known, args.campaign.replay_all)? {
            let rows: Vec<_> = again.rows.into_iter().filter(|row| selection.names(row)).collect();
            if rows.is_empty() {
                continue;
            }
            let kernel = kernel_of(&again.kernel, &args.select)?;
            let version = runner::label(&kernel);
            if version != again.version {
                notes
                    .push(format!("the report's kernel {} was {}, and is {version} here", again.kernel, again.version));
            }
            kernels.push((kernel, rows));
        }
        let Report { setting, seed, .. } = report;
        let plan = setting.plan.as_ref().map(PlanText::plan).transpose()?;
        Self { setting, plan, seed: Some(seed), kernels, notes }.checked()
    }

    /// Whether the guests have what the plan wants.
    fn checked(self) -> Result<Self, Error> {
        if let Some((injection, count)) = self.plan.as_ref().and_then(|plan| plan.missing(1, DISKS)) {
            let path = self.plan.as_ref().map(|plan| plan.path.display().to_string()).unwrap_or_default();
            return Err(format!(
                "{path}, line {}: \"device\" is {}, and a guest of the lab has {count} of that kind: nic0, disk0 (root), disk1 (under test), disk2 (source)",
                injection.line, injection.device
            )
            .into());
        }
        Ok(self)
    }

    /// Whether there is nothing to run.
    pub(super) fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// All rows over the seeds, or this part of them.
    pub(super) fn deal(&self, args: &LabArgs, seed: u64) -> Result<Dealt, Error> {
        let campaign = &args.campaign;
        let repeat = campaign.repeat.map(|times| Seeds::from(seed, times)).transpose()?;
        let seeds = campaign.seeds.or(repeat);
        let each: u64 = self.kernels.iter().map(|(_, rows)| rows.len() as u64).sum();
        let count = each.saturating_mul(seeds.map_or(1, Seeds::count));
        let part = campaign.shard.map(|which| which.part()).transpose()?.map(|(part, _)| part);
        let own = part.map_or(count, |part| part.count(count));
        if count > MOST_WHOLE || own > MOST_ROWS {
            return Err(format!(
                "{own} rows, of a whole of {count}, are too many for one run (at most {MOST_ROWS}, of {MOST_WHOLE}): use fewer --seeds, or more shards"
            )
            .into());
        }
        let whole: Vec<(&KernelSource, Vec<Row>)> =
            self.kernels.iter().map(|(kernel, rows)| (kernel, over_seeds(rows, seeds))).collect();
        let named = whole.iter().map(|(kernel, rows)| (kernel.name.as_str(), runner::label(kernel), rows.as_slice()));
        let shard = part.map(|part| Shard { part, rows: count, whole: print_of(named) });
        let (mut first, mut dealt) = (0, Vec::new());
        for (kernel, rows) in whole {
            let after = first + rows.len() as u64;
            let own = |(number, _): &Numbered| part.is_none_or(|part| part.has(*number));
            let rows: Vec<Numbered> = (first..after).zip(rows).filter(own).collect();
            first = after;
            dealt.push((kernel.clone(), rows));
        }
        if let Some(part) = args.part {
            keep_stretch(&mut dealt, part);
        }
        dealt.retain(|(_, rows)| !rows.is_empty());
        Ok((dealt, shard))
    }
}

/// Leaves a job its part of the rows, with neighbours together.
fn keep_stretch<K>(dealt: &mut [(K, Vec<Numbered>)], part: Part) {
    let own = part.stretch(dealt.iter().map(|(_, rows)| rows.len()).sum());
    let mut at = 0;
    for (_, rows) in dealt {
        rows.retain(|_| {
            at += 1;
            own.contains(&(at - 1))
        });
    }
}

/// The rows that the command line names, or those that the plan is meant for.
fn rows(args: &SelectArgs, meant: &Meant) -> Result<Vec<Row>, Error> {
    let mut selection = args.selection();
    if !args.names_rows() {
        let Meant { scenario, mode, fs, folio, .. } = meant.clone();
        selection = Selection { scenarios: scenario, modes: mode, filesystems: fs, folios: folio, ..selection };
    }
    let own = stories(args)?;
    let rows = match own.is_empty() {
        _ if args.thread => {
            // Says which name there is not.
            select(&selection)?;
            thread::rows().into_iter().filter(|row| selection.names(row)).collect()
        }
        true => select(&selection)?,
        false => own.into_iter().filter(|row| selection.names(row)).collect::<Vec<_>>(),
    };
    if rows.is_empty() {
        let of = if args.thread { "that --thread runs" } else { "of the scenario files" };
        return Err(format!("--fs, --disk, --mode, --folio, --exclude and --scenario leave no row {of}").into());
    }
    Ok(rows)
}

fn kernel_names(args: &SelectArgs, meant: &Meant) -> Vec<String> {
    match (args.kernel.is_empty(), args.all || args.selftest || args.thread) {
        (false, _) => args.kernel.clone(),
        (true, true) => ALL_KERNELS.map(String::from).into(),
        (true, false) if !meant.kernel.is_empty() => meant.kernel.clone(),
        (true, false) => CORE_KERNELS.map(String::from).into(),
    }
}

/// A kernel of a report: of one given by path the report has the file's name only.
fn kernel_of(name: &str, args: &SelectArgs) -> Result<KernelSource, Error> {
    let is_it = |given: &&String| Path::new(given).file_name().is_some_and(|file| file.to_string_lossy() == name);
    let given = args.kernel.iter().find(is_it).map_or(name, String::as_str);
    image::resolve_kernel(given, args.modules.as_deref()).map_err(|error| {
        format!("the report's kernel {name}: {error}; one that was given by path is to be given with --kernel again")
            .into()
    })
}

/// That a report is of another program.
fn other_program(report: &Report) -> Vec<String> {
    let ours = (env!("CARGO_PKG_VERSION"), journal::build());
    let same = report.rnic == ours.0 && (report.build.is_empty() || report.build == ours.1);
    let words =
        format!("the report is of rnic {}, build {}; this is {}, build {}", report.rnic, report.build, ours.0, ours.1);
    if same { Vec::new() } else { vec![words] }
}

/// The rows of the user's own files.
fn stories(args: &SelectArgs) -> Result<Vec<Row>, Error> {
    let rows = args.scenario_file.iter().map(|path| story(path)).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().flatten().collect())
}

/// The rows of a file of the user's.
fn story(path: &Path) -> Result<Vec<Row>, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_have_all_rows_and_few_kernels_each() {
        let row = all_rows()[0];
        let whole = || vec![("6.1", vec![(0, row), (1, row), (2, row)]), ("7.3", vec![(7, row), (8, row), (9, row)])];
        let numbers = |part| {
            let mut dealt = whole();
            keep_stretch(&mut dealt, part);
            dealt.into_iter().map(|(_, rows)| rows.iter().map(|(number, _)| *number).collect()).collect::<Vec<Vec<_>>>()
        };
        let two: Vec<_> = Part::all(2).map(numbers).collect();
        assert_eq!(two, [[vec![0, 1, 2], vec![]], [vec![], vec![7, 8, 9]]]);
        let four: Vec<_> = Part::all(4).flat_map(numbers).flatten().collect();
        assert_eq!(four, [0, 1, 2, 7, 8, 9]);
    }
}
