// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Campaigns where no guest is needed: which rows a command line means, the parts of a run, their merging, and the job files of docs/campaigns.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Done, rnic, run};
use lab::campaign::{Part, PlanText, Setting, Shard};
use lab::expect::Expectation;
use lab::plan::{Row, all_rows};
use lab::report::{Report, RowResult};
use lab::verdict::{Observed, Verdict};

const LIMIT: Duration = Duration::from_secs(60);
const PLAN: &str = "title = 't'\n[[inject]]\nname = 'w'\ndevice = 'disk1'\naction = 'io-error'\nop = 'write'\nnth = [1, 9]\n\
    [lab]\nscenario = ['H01']\nmode = ['odp', 'pinned']\nfs = ['ext4']\nfolio = ['single']\nkernel = ['7.3']\n";

/// The repository's own folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A folder to work in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("plan.toml"), PLAN).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// rnic lab, without the variables of any job.
    fn lab(&self, words: &str) -> Command {
        let mut command = Command::new(rnic());
        command.arg("lab").args(words.split_whitespace()).current_dir(self.0.path()).env_remove("RUST_LOG");
        for name in ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"] {
            command.env_remove(name);
        }
        command.env_remove("JOB_COMPLETION_INDEX").env_remove("JOB_COMPLETIONS");
        command
    }

    /// The rows that would run.
    fn dry(&self, words: &str) -> Vec<String> {
        rows(&run(self.lab(words).arg("--dry-run"), LIMIT))
    }

    /// Refused in one sentence with all of `words` in it, and nothing is left behind.
    fn refuses(&self, line: &str, words: &[&str]) {
        let before = self.names();
        let done = run(&mut self.lab(line), LIMIT);
        let sentence =
            done.err.strip_suffix("\n\nFor more information, try '--help'.\n").unwrap_or(&done.err).trim_end();
        assert!(done.code() != 0 && done.out.is_empty() && !sentence.contains('\n'), "{line}: {done:?}");
        for word in words {
            assert!(sentence.contains(word), "{line}: {word:?} is not in: {sentence}");
        }
        assert_eq!(self.names(), before, "{line}");
    }
}

fn rows(done: &Done) -> Vec<String> {
    assert_eq!(done.code(), 0, "{done:?}");
    done.out.lines().map(str::to_owned).collect()
}

/// Rows of several parts, by their numbers.
fn together(parts: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut all: Vec<String> = parts.into_iter().flatten().collect();
    all.sort_by_key(|line| line.split(' ').next().and_then(|number| number.parse::<u64>().ok()));
    all
}

#[test]
fn a_dry_run_says_what_would_run_kernel_by_kernel_and_seed_by_seed() {
    let place = Place::new();
    let lines = place.dry("--faults plan.toml --seeds 5..6");
    assert_eq!(
        lines,
        [
            "0 7.3 H01 pinned ext4 single seed 5",
            "1 7.3 H01 odp ext4 single seed 5",
            "2 7.3 H01 pinned ext4 single seed 6",
            "3 7.3 H01 odp ext4 single seed 6"
        ]
    );
    // What the command line names goes before what the plan is meant for.
    let named =
        place.dry("--faults plan.toml --seed 3 --scenario H12 --fs ext4 --mode dio --kernel 6.1 --folio single");
    assert_eq!(named, ["0 6.1 H12 dio ext4 single seed 3"]);
    assert_eq!(place.dry("--faults plan.toml --repeat 2 --seed 5"), lines);
    let kernels =
        place.dry("--kernel 6.1 --kernel 7.3 --scenario H01 --exclude H01/odp --fs ext4 --folio single --seeds 1..2");
    let kernels: Vec<_> = kernels.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert!(kernels.len() > 4 && kernels.is_sorted(), "{kernels:?}");
    assert_eq!(place.names(), ["plan.toml"], "it makes nothing");
}

#[test]
fn three_dry_shards_are_the_whole() {
    let place = Place::new();
    for selection in ["--seeds 1..7 --faults plan.toml", "--seed 1", "--seeds 1..3 --all"] {
        let whole = place.dry(selection);
        let parts = [1, 2, 3].map(|index| place.dry(&format!("{selection} --shard {index}/3")));
        assert!(parts.iter().all(|part| !part.is_empty() && part.len() <= whole.len() / 3 + 1));
        assert_eq!(together(parts), whole);
    }
}

/// The script of the array, with the variables that Slurm sets.
#[test]
fn the_array_s_script_runs_each_part() {
    let place = Place::new();
    let whole = place.dry("--seeds 1..200 --faults plan.toml");
    let script = root().join("docs/campaigns/slurm.sh");
    let array = fs::read_to_string(&script).unwrap();
    assert!(array.contains("#SBATCH --array=1-8"));
    let parts = (1..=8).map(|id| {
        let mut command = Command::new("bash");
        command.arg(&script).arg("--dry-run").current_dir(place.0.path()).env_remove("RUST_LOG");
        command.env("RNIC", rnic()).env("PLAN", "plan.toml");
        command.env("SLURM_ARRAY_TASK_ID", id.to_string()).env("SLURM_ARRAY_TASK_COUNT", "8");
        command.env("SLURM_ARRAY_TASK_MIN", "1").env_remove("SLURM_ARRAY_TASK_STEP");
        let done = run(&mut command, LIMIT);
        let said = format!(
            "shard {id}/8 (SLURM_ARRAY_TASK_ID={id}, from 1 on, of SLURM_ARRAY_TASK_COUNT=8): 50 of 400 rows\n"
        );
        assert_eq!(done.err, said);
        rows(&done)
    });
    assert_eq!(together(parts), whole);
    assert_eq!(whole.len(), 400);
}

/// What the pods and the matrix run, from their files.
#[test]
fn the_other_job_files_run_each_part() {
    let place = Place::new();
    let command_of = |file: &str, first: &str| -> Vec<String> {
        let text = fs::read_to_string(root().join("docs/campaigns").join(file)).unwrap();
        let words =
            text[text.find(first).unwrap_or_else(|| panic!("{file}: no {first}")) + first.len()..].split_whitespace();
        words.take_while(|word| *word != "||").map(str::to_owned).collect()
    };
    let words = |words: &[String], change: &dyn Fn(&str) -> String| {
        let kept =
            words.iter().map(|word| if word.ends_with("mixed.toml") { "plan.toml".into() } else { change(word) });
        kept.collect::<Vec<_>>().join(" ")
    };
    let pods = command_of("kubernetes.yaml", "rnic lab --faults");
    let pods = |index: u32| {
        format!("--faults {}", words(&pods, &|word| word.replace("$JOB_COMPLETION_INDEX", &index.to_string())))
    };
    let parts = (0..8).map(|index| {
        let mut command = place.lab(&pods(index));
        rows(&run(
            command.arg("--dry-run").env("JOB_COMPLETION_INDEX", index.to_string()).env("JOB_COMPLETIONS", "8"),
            LIMIT,
        ))
    });
    assert_eq!(together(parts), place.dry("--seeds 1..200 --faults plan.toml"));
    let matrix = command_of("ci-matrix.yml", "rnic lab --faults");
    let matrix =
        |index: u32| format!("--faults {}", matrix.join(" ").replace("${{ matrix.shard }}", &index.to_string()));
    let parts = (1..=4).map(|index| place.dry(&matrix(index).replace("faults/mixed.toml", "plan.toml")));
    assert_eq!(together(parts), place.dry("--seeds 1..40 --faults plan.toml"));
}

#[test]
fn variables_alone_change_nothing() {
    let place = Place::new();
    let slurm = |words: &str| {
        let mut command = place.lab(words);
        command.env("SLURM_ARRAY_TASK_ID", "2").env("SLURM_ARRAY_TASK_COUNT", "3").env("SLURM_ARRAY_TASK_MIN", "1");
        run(command.arg("--dry-run"), LIMIT)
    };
    let selection = "--seeds 1..3 --faults plan.toml";
    assert_eq!(rows(&slurm(selection)).len(), 6);
    assert_eq!(rows(&slurm(&format!("{selection} --shard auto"))), place.dry(&format!("{selection} --shard 2/3")));
    // The option wins.
    assert_eq!(rows(&slurm(&format!("{selection} --shard 3/3"))), place.dry(&format!("{selection} --shard 3/3")));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let place = Place::new();
    fs::write(place.path("bad.toml"), format!("{PLAN}[[inject]]\ndevice = 'nic'\naction = 'command-hang'\nnht = 3\n"))
        .unwrap();
    fs::write(place.path("nic1.toml"), PLAN.replace("disk1", "disk3")).unwrap();
    fs::write(place.path("meant.toml"), PLAN.replace("'H01'", "'H99'")).unwrap();
    fs::write(place.path("letter"), "dear reader").unwrap();
    for (line, words) in [
        ("--faults bad.toml --journal rows", &["bad.toml, line 17: ", "\"nht\" is no key here"][..]),
        ("--faults nowhere.toml --journal rows", &["nowhere.toml", "No such file"]),
        ("--faults nic1.toml --journal rows", &["nic1.toml, line 2: ", "disk3", "disk1 (under test)"]),
        ("--faults meant.toml --journal rows", &["meant.toml, [lab]: no scenario H99"]),
        ("--seeds 1..3 --seed 4", &["--seeds and --seed exclude each other"]),
        ("--seeds 1..999999999 --scenario H01 --journal rows", &["too many for one run", "--seeds"]),
        ("--seeds 1..3 --shard auto", &["--shard auto needs SLURM_ARRAY_TASK_ID", "--shard I/N"]),
        ("--shard 1/3", &["--shard needs --seed or --seeds"]),
        ("--shard 4/3 --seed 1", &["4/3", "1/3, 2/3 or 3/3"]),
        ("--require-fired", &["name one with --faults"]),
        ("--scenario H12 --exclude H12 --seed 1", &["has no rows"]),
        ("--scenario H12 --kernel 6.1 --json-file nowhere/r.json --journal rows", &["nowhere/r.json", "--json-file"]),
        ("--scenario H12 --kernel 6.1 --journal letter", &["letter is no journal"]),
        ("--replay letter", &["letter is no report"]),
        ("--replay letter --seed 1", &["--replay and --seed exclude"]),
        ("merge letter -o out.json", &["letter is no report"]),
        ("merge nowhere.json", &["nowhere.json cannot be read"]),
        ("merge plan.toml -o nowhere/out.json", &["nowhere/out.json cannot be written", "--output"]),
    ] {
        place.refuses(line, words);
    }
    assert_eq!(fs::read_to_string(place.path("letter")).unwrap(), "dear reader");
}

/// The report of a run of H01 and others on 6.1, over a few seeds, with some verdicts that are not well.
fn report() -> Report {
    let setting = Setting {
        plan: Some(PlanText { path: "plan.toml".into(), text: PLAN.into() }),
        row_limit: Some(300),
        ..Setting::default()
    };
    let rows: Vec<Row> = all_rows().into_iter().filter(|row| row.scenario.id == "H01").collect();
    let verdicts = [Verdict::Safe, Verdict::Lost, Verdict::Safe, Verdict::Inconclusive, Verdict::Safe];
    let result = |number: u64| {
        let row = Row { seed: Some(1 + number / 3), ..rows[number as usize % 3] };
        let observed = Observed::new(verdicts[number as usize % 5]);
        let expected = Some(Expectation { verdict: "SAFE", source: "a test" });
        let row = RowResult::new(&row, "6.1", "6.1.192-2", expected, &observed, Vec::new());
        let fired = u64::from(number == 7);
        let outcome = serde_json::json!({"name": "w", "line": 2, "device": "disk1", "action": "io-error", "matched": 3, "fired": fired});
        RowResult { number: Some(number), injections: vec![serde_json::from_value(outcome).unwrap()], ..row }
    };
    let rows = (0..9).map(result).collect();
    Report {
        rnic: env!("CARGO_PKG_VERSION").into(),
        seed: 1,
        plan: Some("plan.toml (t)".into()),
        setting,
        rows,
        ..Report::default()
    }
}

fn shard(index: u32) -> Report {
    let whole = report();
    let part = Part { index, of: 3 };
    let rows = whole.rows.iter().filter(|row| part.has(row.number.unwrap())).cloned().collect();
    Report { shard: Some(Shard { part, rows: 9, whole: "w".into() }), rows, ..whole }
}

fn keep(place: &Place, name: &str, report: &Report) {
    fs::write(place.path(name), serde_json::to_string_pretty(report).unwrap()).unwrap();
}

#[test]
fn merged_shards_are_one_run() {
    let place = Place::new();
    (1..=3).for_each(|index| keep(&place, &format!("{index}.json"), &shard(index)));
    let merged = run(&mut place.lab("merge -o out.json 3.json 1.json 2.json --require-fired"), LIMIT);
    assert_eq!((merged.code(), merged.out.as_str()), (1, ""), "{merged:?}");
    assert!(merged.err.starts_with(&report().summary()) && !merged.err.contains("missing"), "{merged:?}");
    let table: Vec<_> = merged.err.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(table, ["w", "disk1", "io-error", "27", "1"]);
    let text = fs::read_to_string(place.path("out.json")).unwrap();
    assert_eq!(text, serde_json::to_string_pretty(&report()).unwrap());
    // Without a file it goes to standard output.
    let merged = run(&mut place.lab("merge 1.json 2.json 3.json"), LIMIT);
    assert_eq!(merged.out, text + "\n");
    // One is missing, and with it all firings.
    let merged = run(&mut place.lab("merge -o two.json 1.json 3.json"), LIMIT);
    assert_eq!(merged.code(), 1);
    assert!(merged.err.contains("rnic: missing: shard 2/3\n"), "{merged:?}");
    let merged = run(&mut place.lab("merge -o two.json 1.json 3.json --require-fired"), LIMIT);
    assert!(merged.code() == 1 && merged.err.contains("never fired: w (line 2, 18 matches)"), "{merged:?}");
    // Rows that are well, and a part that is missing: nothing differs, and it is not the whole.
    for index in [1, 2] {
        let mut good = shard(index);
        good.rows.iter_mut().for_each(|row| row.score = lab::report::Score::Good);
        keep(&place, &format!("good{index}.json"), &good);
    }
    assert_eq!(run(&mut place.lab("merge -o two.json good1.json good2.json"), LIMIT).code(), 2);
    keep(&place, "seed.json", &Report { seed: 2, ..shard(2) });
    place.refuses(
        "merge -o other.json 1.json seed.json",
        &["seed.json is of another run than 1.json", "its seed is 2, not 1"],
    );
    place.refuses("merge -o other.json 1.json 2.json 1.json", &["both shard 1/3", "leave one out"]);
}

#[test]
fn a_report_runs_again_what_was_not_well() {
    let place = Place::new();
    keep(&place, "report.json", &report());
    let dry = |words: &str| run(place.lab(words).arg("--dry-run"), LIMIT);
    let bad = dry("--replay report.json");
    let named = |number: usize| {
        let row = &report().rows[number];
        format!("6.1 {} {} {} {} seed {}", row.scenario, row.mode, row.fs, row.folio, row.seed.unwrap())
    };
    let wanted: Vec<_> =
        [1, 3, 6, 8].into_iter().zip(0..).map(|(number, at)| format!("{at} {}", named(number))).collect();
    assert_eq!(rows(&bad), wanted);
    assert!(!bad.err.contains("build"), "{bad:?}");
    assert_eq!(rows(&dry("--replay report.json --replay-all")).len(), 9);
    // Narrowed down, and of another program.
    let mode = &report().rows[1].mode.clone();
    let narrowed = rows(&dry(&format!("--replay report.json --mode {mode}")));
    assert!(!narrowed.is_empty() && narrowed.iter().all(|line| line.contains(mode.as_str())));
    keep(&place, "old.json", &Report { rnic: "0.0.9".into(), build: "b".into(), ..report() });
    let old = dry("--replay old.json");
    assert!(old.err.contains("the report is of rnic 0.0.9, build b") && rows(&old) == wanted, "{old:?}");
    let mut well = report();
    well.rows.retain(|row| row.observed == "SAFE");
    keep(&place, "well.json", &well);
    let done = dry("--replay well.json");
    assert!(done.code() == 0 && done.err.contains("nothing is to run again"), "{done:?}");
}

/// A disk that is full: one sentence, and neither half a report nor the old one harmed.
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let place = Place::new();
    keep(&place, "1.json", &shard(1));
    fs::create_dir(place.path("full")).unwrap();
    let script = "set -e; mount -t tmpfs -o size=16k tmpfs full; echo old >full/out.json; head -c 12k /dev/zero >full/filler 2>/dev/null || true; \
        status=0; \"$RNIC\" lab merge -o full/out.json 1.json || status=$?; ls full; cat full/out.json; exit $status";
    let user = user_id();
    let namespaces: &[&str] = if user == 0 { &["--mount"] } else { &["--mount", "--user", "--map-root-user"] };
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-c", script]).current_dir(place.0.path()).env("RNIC", rnic());
    let done = run(&mut command, LIMIT);
    assert_eq!((done.code(), done.out.as_str()), (1, "filler\nout.json\nold\n"), "{done:?}");
    assert!(done.err.contains("full/out.json cannot be written") && done.err.contains("No space left"), "{done:?}");
    assert_eq!(done.err.lines().count(), 1, "{done:?}");
}

/// Who runs this test.
fn user_id() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap())
}
