// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that people and other programs read a report from, for `rnic lab` and `rnic report`.

use std::fs::{self, File};
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
        let mut texts = Vec::new();
        for (option, path, form) in self.all() {
            let Some(path) = path else { continue };
            texts.push((option, path.as_path(), form(report)?));
        }
        write_whole(&texts)
    }

    /// Prints what differs from the older report, if one was named.
    pub fn compare(&self, out: &mut dyn Write, old: Option<&Report>, new: &Report) -> std::io::Result<()> {
        match (&self.compare, old) {
            (Some(path), Some(old)) => report::print_comparison(out, &path.display().to_string(), old, new),
            _ => Ok(()),
        }
    }
}

/// A report of this program's, or of an older one.
pub fn read(path: &Path) -> Result<Report, super::Error> {
    let text = fs::read_to_string(path).map_err(|error| {
        format!("the report {} cannot be read: {error}; name a file that --json-file wrote", path.display())
    })?;
    let wrong =
        |error| format!("{} is no report of rnic lab ({error}): name a file that --json-file wrote", path.display());
    Ok(serde_json::from_str(&text).map_err(wrong)?)
}

/// What a file is called until it is complete.
fn beginning(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Where a report will be. Refuses a path that cannot work before guests have run for minutes; `option` names it.
pub fn place(option: &str, path: &Path) -> Result<PathBuf, super::Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |why: &str| {
        let path = path.display();
        Err(format!("the report {path} cannot be written{why}: give {option} a file in a directory that exists").into())
    };
    let (Ok(real), Some(name)) = (dir.canonicalize(), path.file_name()) else { return refuse("") };
    if !real.is_dir() || path.is_dir() {
        return refuse("");
    }
    let new = beginning(path);
    match File::create(&new).and_then(|_| fs::remove_file(&new)) {
        Ok(()) => Ok(real.join(name)),
        Err(error) => refuse(&format!(" ({error})")),
    }
}

/// Writes files, each complete; where one of them cannot be written none takes its place.
pub fn write_whole(texts: &[(&str, &Path, String)]) -> Result<(), super::Error> {
    let mut made = Vec::new();
    let mut written = Ok(());
    for (option, path, text) in texts {
        let new = beginning(path);
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            // A disk that is full may say so only now.
            file.sync_all()
        };
        written = write().map_err(|error| {
            let path = path.display();
            format!("the report {path} cannot be written: {error}; make room, or give {option} a file elsewhere").into()
        });
        made.push((new, path));
        if written.is_err() {
            break;
        }
    }
    for (new, path) in made {
        match &written {
            Ok(()) => fs::rename(new, path)?,
            // It may never have been there.
            Err(_) => drop(fs::remove_file(new)),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, junit: &str) -> ReportArgs {
        let file = |name: &str| Some(dir.join(name));
        ReportArgs { json_file: None, ktap: file("a.ktap"), junit: file(junit), html: None, compare: None }
    }

    fn report() -> Report {
        Report { rnic: "0".into(), seed: 1, ..Report::default() }
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

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_report_is_complete_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let write = |text: &str| write_whole(&[("--json-file", &path, text.into())]);
        assert!(place("--json-file", &path).is_ok() && names(dir.path()).is_empty());
        write("one").unwrap();
        // A folder in the new file's place: it cannot be written, as on a disk that is full.
        fs::create_dir(dir.path().join("report.json.new")).unwrap();
        let said = write("two").unwrap_err().to_string();
        assert!(said.contains("report.json cannot be written") && said.contains("make room"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert!(place("--json-file", &path).is_err());
        for bad in ["/nowhere/report.json", "/", ".", ".."] {
            assert!(place("--ktap", Path::new(bad)).unwrap_err().to_string().contains("give --ktap a file"), "{bad}");
        }
    }
}
