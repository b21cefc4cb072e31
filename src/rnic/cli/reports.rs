// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that people and other programs read a report from, for `rnic lab` and `rnic report`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use lab::report::{self, Report};

/// Where a report goes beside the screen.
#[derive(Args)]
pub struct ReportArgs {
    /// Write the report as JSON to a file as well.
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
    /// Write it as KTAP: a subtest a kernel, a test a row.
    #[arg(long, value_name = "FILE")]
    ktap: Option<PathBuf>,
    /// Write it as JUnit's XML: a test suite a kernel, a test case a row.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write it as one HTML file, with a page timeline for each row (docs/lab-reports.md).
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print what differs from an older report, which `--json-file` wrote. The exit status stays what it is.
    #[arg(long, value_name = "OLD")]
    compare: Option<PathBuf>,
}

/// Options of `rnic report`.
#[derive(Args)]
#[command(after_help = "Exit status: 0 whatever the rows say; 1 if a file cannot be read or written.")]
pub struct RenderArgs {
    /// What `rnic lab --json-file` wrote; an older version's will do.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    reports: ReportArgs,
}

/// Renders a report again, without a run. Without options the rows are printed.
pub fn main(args: &RenderArgs) -> Result<ExitCode, super::Error> {
    let old = args.reports.check()?;
    let report = read(&args.file)?;
    let mut out = std::io::stdout().lock();
    if args.reports.files().next().is_none() && old.is_none() {
        let mut table = Vec::new();
        report::print_head(&mut table)?;
        report.rows.iter().try_for_each(|row| report::print_row(&mut table, row))?;
        report::print_prices(&mut table, &report.rows)?;
        // A file may have brought what would steer a terminal.
        writeln!(out, "{}{}", report::visible(&String::from_utf8_lossy(&table)), report.summary())?;
    }
    args.reports.write(&report)?;
    args.reports.compare(&mut out, old.as_ref(), &report)?;
    Ok(ExitCode::SUCCESS)
}

/// How a report is written.
type Form = fn(&Report) -> Result<String, super::Error>;

impl ReportArgs {
    /// Each option's name, its file if it was given, and what goes into it.
    fn all(&self) -> [(&'static str, Option<&PathBuf>, Form); 4] {
        let json: Form = |report| Ok(serde_json::to_string_pretty(report)?);
        [
            ("--json-file", self.json_file.as_ref(), json),
            ("--ktap", self.ktap.as_ref(), |report| Ok(report::ktap(report))),
            ("--junit", self.junit.as_ref(), |report| Ok(report::junit(report)?)),
            ("--html", self.html.as_ref(), |report| Ok(report::html(report))),
        ]
    }

    /// The files that are to be written.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.all().into_iter().filter_map(|(_, path, _)| path.cloned())
    }

    /// The report that is only read.
    pub fn reads(&self) -> Option<PathBuf> {
        self.compare.clone()
    }

    /// Refuses what cannot work before the guests have run for minutes; the report to compare with.
    pub fn check(&self) -> Result<Option<Report>, super::Error> {
        let mut known: Vec<(PathBuf, &str)> = Vec::new();
        for (option, path, _) in self.all() {
            let Some(path) = path else { continue };
            let real = place(option, path)?;
            if let Some((_, other)) = known.iter().find(|(other, _)| *other == real) {
                let path = path.display();
                return Err(format!("{other} and {option} both name {path}: give each a file of its own").into());
            }
            known.push((real, option));
        }
        self.compare.as_deref().map(read).transpose()
    }

    /// Writes every file, complete; where one of them cannot be written none takes its place.
    pub fn write(&self, report: &Report) -> Result<(), super::Error> {
        let mut made: Vec<(PathBuf, &Path)> = Vec::new();
        let mut make = || {
            for (option, path, form) in self.all() {
                let Some(path) = path else { continue };
                let mut new = path.as_os_str().to_owned();
                new.push(".new");
                made.push((new.clone().into(), path));
                std::fs::write(&new, form(report)?).map_err(|error| unwritten(option, path, &error))?;
            }
            Ok(())
        };
        let written = make();
        for (new, path) in &made {
            match &written {
                Ok(()) => std::fs::rename(new, path)?,
                // It may never have been there.
                Err(_) => drop(std::fs::remove_file(new)),
            }
        }
        written
    }

    /// Prints what differs from the older report, if one was named.
    pub fn compare(&self, out: &mut dyn Write, old: Option<&Report>, new: &Report) -> std::io::Result<()> {
        match (&self.compare, old) {
            (Some(path), Some(old)) => report::print_comparison(out, &path.display().to_string(), old, new),
            _ => Ok(()),
        }
    }
}

/// A report as `--json-file` or `--json` wrote it.
fn read(path: &Path) -> Result<Report, super::Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!("the report {} cannot be read: {error}; name a file that --json-file wrote", path.display())
    })?;
    let wrong =
        |error| format!("{} is no report of rnic lab ({error}): name a file that --json-file wrote", path.display());
    Ok(serde_json::from_str(&text).map_err(wrong)?)
}

/// Where a file will be; refused where it cannot.
fn place(option: &str, path: &Path) -> Result<PathBuf, super::Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (dir.canonicalize(), path.file_name()) {
        (Ok(dir), Some(name)) if dir.is_dir() && !path.is_dir() => Ok(dir.join(name)),
        _ => Err(format!(
            "the report {} cannot be written: give {option} a file in a directory that exists",
            path.display()
        )
        .into()),
    }
}

fn unwritten(option: &str, path: &Path, error: &std::io::Error) -> super::Error {
    format!("the report {} cannot be written: {error}; give {option} another file", path.display()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, junit: &str) -> ReportArgs {
        let file = |name: &str| Some(dir.join(name));
        ReportArgs { json_file: None, ktap: file("a.ktap"), junit: file(junit), html: None, compare: None }
    }

    fn report() -> Report {
        Report { rnic: "0".into(), host: String::new(), seed: 1, rows: Vec::new() }
    }

    #[test]
    fn all_files_are_there_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        args(dir.path(), "b.xml").write(&report()).unwrap();
        assert_eq!(names(), ["a.ktap", "b.xml"]);
        std::fs::remove_file(dir.path().join("a.ktap")).unwrap();
        // The second cannot be written: the first is not there either.
        std::fs::create_dir(dir.path().join("c.xml.new")).unwrap();
        let error = args(dir.path(), "c.xml").write(&report()).unwrap_err().to_string();
        assert!(error.contains("c.xml cannot be written") && error.contains("--junit"), "{error}");
        assert_eq!(names(), ["b.xml", "c.xml.new"]);
    }

    #[test]
    fn two_reports_in_one_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = args(dir.path(), "./a.ktap").check().unwrap_err().to_string();
        assert!(error.contains("--ktap and --junit"), "{error}");
        assert!(args(&dir.path().join("nowhere"), "b").check().unwrap_err().to_string().contains("--ktap"));
        assert!(args(dir.path(), "b").check().unwrap().is_none());
    }
}
