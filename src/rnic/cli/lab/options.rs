// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options of `rnic lab`, and which of them go together.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use lab::bench::Cuts;
use lab::campaign::{Part, Seeds};
use lab::plan::Selection;

use super::merge::MergeArgs;
use crate::cli::host::HostArgs;
use crate::cli::reports::ReportArgs;
use crate::cli::values::{Size, memory};

/// Options of `rnic lab`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit status: 0 all rows as expected, 1 some differ (or harm data, on a kernel of your own), 2 some inconclusive."
)]
pub struct LabArgs {
    #[command(subcommand)]
    pub(super) command: Option<LabCommand>,
    #[command(flatten)]
    pub(super) select: SelectArgs,
    #[command(flatten)]
    pub(super) campaign: CampaignArgs,
    #[command(flatten)]
    pub(super) guests: GuestArgs,
    /// List scenarios and verdicts and do nothing; with --verbose what is expected of them too, and where that comes from.
    #[arg(long)]
    pub(super) list: bool,
    /// Print the report as JSON on standard output; rows go to standard error.
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) reports: ReportArgs,
    /// Keep rows that have ended in FILE, and do not run those again that it has: for a host that may die in between.
    #[arg(long, value_name = "FILE", overrides_with = "journal")]
    pub(super) journal: Option<PathBuf>,
    /// Leave the last guest running with a console when the rows are done.
    #[arg(long)]
    pub(super) keep: bool,
    /// Rows that run side by side, each with two guests of its own, and with an emulated host of its own where there is one
    /// [default: 1; of emulated hosts one for each core, with thirty rows or more].
    #[arg(long, value_name = "N", overrides_with = "jobs")]
    pub(super) jobs: Option<NonZeroUsize>,
    /// Only these of the rows, for one of several jobs: their report is another's.
    #[arg(long, hide = true)]
    pub(super) part: Option<Part>,
    /// Copy the guests' consoles to standard error.
    #[arg(long)]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) host: HostArgs,
}

/// What else `rnic lab` does.
#[derive(Subcommand)]
pub(super) enum LabCommand {
    /// Make one report of those that the shards of a run wrote.
    Merge(MergeArgs),
}

/// Which rows.
#[derive(Args)]
pub(super) struct SelectArgs {
    /// Every scenario, file system, folio size and kernel instead of the core set.
    #[arg(long)]
    pub(super) all: bool,
    /// Only these scenarios (all their rows), for example H12. May be given several times.
    #[arg(long)]
    pub(super) scenario: Vec<String>,
    /// A scenario of your own: a TOML file (docs/stories.md). May be given several times; then only these run.
    #[arg(long, value_name = "FILE")]
    pub(super) scenario_file: Vec<PathBuf>,
    /// Only these file systems.
    #[arg(long)]
    pub(super) fs: Vec<String>,
    /// Only rows on these disks: plain (the virtio disk itself), or what lies between it and the file system.
    #[arg(long)]
    pub(super) disk: Vec<String>,
    /// Only these modes (how the page is reached: pinned, odp, dio...). May be given several times.
    #[arg(long)]
    pub(super) mode: Vec<String>,
    /// Only folios of this size: single or large.
    #[arg(long, value_name = "SIZE")]
    pub(super) folio: Vec<String>,
    /// Not this scenario, or not this mode of it, for example H12/dio. May be given several times.
    #[arg(long, value_name = "ID[/MODE]")]
    pub(super) exclude: Vec<String>,
    /// Kernels: a name (6.1, 6.12, 7.3) or a path with --modules. May be given several times.
    #[arg(long)]
    pub(super) kernel: Vec<String>,
    /// The directory that holds lib/modules/VERSION for a kernel given by path.
    #[arg(long)]
    pub(super) modules: Option<PathBuf>,
    /// Break on purpose what the verdicts rest on: each row that says that all is well is run with its negative controls, and each of these
    /// must be noticed by the check that it names (docs/selftest.md). Takes --kernel, --scenario, --fs and --mode; all three kernels otherwise.
    #[arg(long, conflicts_with = "scenario_file")]
    pub(super) selftest: bool,
    /// Run what the mailing lists argued over in 2018, and set what came out beside each claim (docs/thread.md). Takes
    /// --kernel, --scenario, --fs, --disk and --mode; all three kernels otherwise.
    #[arg(long, conflicts_with_all = ["all", "selftest", "scenario_file"])]
    pub(super) thread: bool,
}

impl SelectArgs {
    /// What is named.
    pub(super) fn selection(&self) -> Selection {
        Selection {
            all: self.all || self.selftest,
            scenarios: self.scenario.clone(),
            filesystems: self.fs.clone(),
            disks: self.disk.clone(),
            modes: self.mode.clone(),
            folios: self.folio.clone(),
            exclude: self.exclude.clone(),
        }
    }

    /// Whether the command line says which rows, beside kernels.
    pub(super) fn names_rows(&self) -> bool {
        let lists = [&self.scenario, &self.fs, &self.disk, &self.mode, &self.folio];
        self.all
            || self.selftest
            || self.thread
            || !self.scenario_file.is_empty()
            || lists.iter().any(|list| !list.is_empty())
    }
}

/// Rows by the thousand (docs/campaigns.md).
#[derive(Args)]
pub(super) struct CampaignArgs {
    /// A plan of injections: while a row's steps run, devices misbehave as it says (docs/faults.md).
    #[arg(long, value_name = "FILE")]
    pub(super) faults: Option<PathBuf>,
    /// Exit status 1 if an injection of the plan fired in no row.
    #[arg(long)]
    pub(super) require_fired: bool,
    /// Same seed, same data, same lever schedule, same draws of a plan [default: from the clock].
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Each row once for each of these seeds, both ends included: 1..200.
    #[arg(long, value_name = "FIRST..LAST")]
    pub(super) seeds: Option<Seeds>,
    /// Each row so many times: seeds from --seed on.
    #[arg(long, value_name = "TIMES")]
    pub(super) repeat: Option<u64>,
    /// Only part I of N of the rows, for one of several machines; auto: as the variables of a Slurm array or an indexed job say.
    #[arg(long, value_name = "I/N|auto", overrides_with = "shard")]
    pub(super) shard: Option<WhichPart>,
    /// Run the rows of a report again that did not come out well, with their kernels, seeds, plan and options.
    #[arg(long, value_name = "FILE")]
    pub(super) replay: Option<PathBuf>,
    /// With --replay: all of its rows.
    #[arg(long)]
    pub(super) replay_all: bool,
    /// Power cuts where a row asks what one leaves: two (nothing of the disk's cache written out, all of it), or all: also eight disks that
    /// had written out a part of it, drawn by the seed (docs/lab.md).
    #[arg(long, value_name = "two|all", default_value = "two")]
    pub(super) cuts: Cuts,
    /// Print the rows that would run, one a line, and do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// End a row after so many seconds [default: none; each of its steps has a minute].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) row_limit: Option<u64>,
}

/// What guests and file systems are made with.
#[derive(Args)]
pub(super) struct GuestArgs {
    /// More kernel command line for the guests.
    #[arg(long, value_name = "TEXT")]
    pub(super) cmdline: Option<String>,
    /// Memory of the guest under test, for example 1G [default: 512M].
    #[arg(long, value_parser = memory)]
    pub(super) memory: Option<Size>,
    /// More options for mkfs of the file systems under test; best with --fs.
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(super) mkfs: Option<String>,
    /// More mount options for the file systems under test, with commas.
    #[arg(long, value_name = "OPTIONS")]
    pub(super) mount: Option<String>,
}

/// Least memory of a guest under test: its kernel, and an initramfs with the modules for RDMA.
const LEAST_MEMORY: u64 = 256 << 20;
/// Most that a machine has.
const MOST_MEMORY: u64 = 64 << 30;

/// `--shard`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhichPart {
    /// As the variables of a job say.
    Auto,
    /// This one.
    This(Part),
}

impl FromStr for WhichPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::This) }
    }
}

impl WhichPart {
    /// Which, and in which words somebody else has said so.
    pub(super) fn part(self) -> Result<(Part, Option<String>), String> {
        match self {
            Self::This(part) => Ok((part, None)),
            Self::Auto => Part::of_variables(|name| std::env::var(name).ok()).map(|(part, said)| (part, Some(said))),
        }
    }
}

impl LabArgs {
    /// Options that exclude each other, or need one that is not there: one sentence, before anything is done.
    pub(super) fn check(&self) -> Result<(), String> {
        let (c, g, s) = (&self.campaign, &self.guests, &self.select);
        let seeds = ("--seeds", c.seeds.is_some());
        let replay = ("--replay", c.replay.is_some());
        let cuts = ("--cuts all", c.cuts == Cuts::All);
        // A report says all of this by itself.
        let of_report = [
            ("--faults", c.faults.is_some()),
            ("--seed", c.seed.is_some()),
            seeds,
            ("--repeat", c.repeat.is_some()),
            ("--row-limit", c.row_limit.is_some()),
            ("--cmdline", g.cmdline.is_some()),
            ("--memory", g.memory.is_some()),
            ("--mkfs", g.mkfs.is_some()),
            ("--mount", g.mount.is_some()),
            cuts,
            ("--all", s.all),
            ("--thread", s.thread),
            ("--selftest", s.selftest),
        ];
        let pairs = [
            (seeds, ("--seed", c.seed.is_some())),
            (seeds, ("--repeat", c.repeat.is_some())),
            (("--faults", c.faults.is_some()), ("--selftest", s.selftest)),
            (cuts, ("--selftest", s.selftest)),
        ];
        let pairs = pairs.into_iter().chain(of_report.map(|other| (replay, other)));
        for ((one, given), (other, too)) in pairs {
            if given && too {
                return Err(format!("{one} and {other} exclude each other: leave one out"));
            }
        }
        if c.require_fired && c.faults.is_none() && c.replay.is_none() {
            return Err("--require-fired is of a plan: name one with --faults".into());
        }
        if c.replay_all && c.replay.is_none() {
            return Err("--replay-all is of a report: name one with --replay".into());
        }
        if c.shard.is_some() && c.seed.is_none() && c.seeds.is_none() && c.replay.is_none() {
            return Err("--shard needs --seed or --seeds: without, each part would be of another run".into());
        }
        match g.memory {
            Some(Size(bytes)) if !(LEAST_MEMORY..=MOST_MEMORY).contains(&bytes) => {
                Err(format!("--memory of {} MiB is out of range; use 256M to 64G", bytes >> 20))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        lab: LabArgs,
    }

    fn check(words: &str) -> Result<(), String> {
        let words = std::iter::once("lab").chain(words.split_whitespace());
        Whole::try_parse_from(words).map_err(|error| error.to_string())?.lab.check()
    }

    #[test]
    fn what_excludes_what() {
        for good in [
            "",
            "--seeds 1..3 --shard 2/3",
            "--seed 7 --repeat 3",
            "--repeat 3",
            "--faults p.toml --seeds 1..200 --require-fired --jobs 2",
            "--replay r.json --replay-all --require-fired --scenario H01",
            "--shard 1/3 --seed 1 --shard 2/3",
            "--mkfs -O^has_journal --mount data=journal --memory 1G --cmdline debug",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, word) in [
            ("--seeds 1..3 --seed 4", "--seeds and --seed exclude each other"),
            ("--seeds 1..3 --repeat 4", "--seeds and --repeat exclude"),
            ("--faults p --selftest", "--faults and --selftest exclude"),
            ("--replay r --faults p", "--replay and --faults exclude"),
            ("--replay r --seeds 1..2", "--replay and --seeds exclude"),
            ("--replay r --memory 1G", "--replay and --memory exclude"),
            ("--replay r --all", "--replay and --all exclude"),
            ("--require-fired", "name one with --faults"),
            ("--replay-all", "name one with --replay"),
            ("--shard 1/3", "--shard needs --seed or --seeds"),
            ("--shard 4/3 --seed 1", "1/3, 2/3 or 3/3"),
            ("--seeds 5..1", "1..200"),
            ("--memory 100M", "256M to 64G"),
            ("--memory 65G", "256M to 64G"),
            ("--row-limit 0", "--row-limit"),
        ] {
            let said = check(bad).unwrap_err();
            assert!(said.contains(word), "{bad}: {said}");
        }
    }

    #[test]
    fn rows_that_are_named() {
        let names = |words: &str| {
            let words = std::iter::once("lab").chain(words.split_whitespace());
            Whole::try_parse_from(words).ok().unwrap().lab.select.names_rows()
        };
        assert!(!names("") && !names("--kernel 7.3 --exclude H01"));
        for words in ["--all", "--mode odp", "--folio large", "--scenario-file a.toml", "--thread", "--disk pmem"] {
            assert!(names(words), "{words}");
        }
    }
}
