// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that a run writes: whether they can be written is found out before anything boots, and nothing half-written stays.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use lab::campaign::Setting;
use lab::journal::{Header, Journal};
use lab::report::{Report, RowResult};

use super::super::Error;

/// What a file is called until it is complete.
fn beginning(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Refuses a report's path that cannot work before the guests have run for minutes. `option` names it.
pub(super) fn place(path: &Path, option: &str) -> Result<(), Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |why: &str| {
        let path = path.display();
        Err(format!("the report {path} cannot be written{why}: give {option} a file in a directory that exists").into())
    };
    if !dir.is_dir() || path.is_dir() || path.file_name().is_none() {
        return refuse("");
    }
    let new = beginning(path);
    match File::create(&new).and_then(|_| fs::remove_file(&new)) {
        Ok(()) => Ok(()),
        Err(error) => refuse(&format!(" ({error})")),
    }
}

/// Nothing half-written: the file is complete or as it was.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<(), Error> {
    let new = beginning(path);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        // A disk that is full may say so only now.
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| {
        drop(fs::remove_file(&new));
        format!("the report {} cannot be written: {error}; make room, or name a file elsewhere", path.display()).into()
    })
}

/// A report of this program's.
pub(super) fn read_report(path: &Path) -> Result<Report, Error> {
    let text = fs::read_to_string(path).map_err(|e| format!("the report {} cannot be read: {e}", path.display()))?;
    let report = serde_json::from_str(&text);
    report.map_err(|e| format!("{} is no report that `rnic lab --json-file` wrote: {e}", path.display()).into())
}

/// A journal, the run's seed and the rows that have ended.
pub(super) struct Kept {
    /// Open for the next row.
    pub(super) journal: Journal,
    /// All nonces derive from it.
    pub(super) seed: u64,
    /// Rows that have ended.
    pub(super) done: Vec<RowResult>,
}

/// The journal at `path`. A run goes on with the seed that it began with, and under the same plan and options.
pub(super) fn open_journal(
    path: &Path,
    seed: Option<u64>,
    setting: &Setting,
    another: impl FnOnce() -> u64,
) -> Result<Kept, Error> {
    let place = path.display();
    let failed = |error: std::io::Error| {
        format!("the journal {place} cannot be used: {error}; give --journal a file in a directory that exists")
    };
    let (mut journal, header, done) = Journal::open(path).map_err(failed)?;
    let seed = seed.or(header.as_ref().map(|header| header.seed)).unwrap_or_else(another);
    let ours = Header::of(seed, setting);
    match header {
        Some(header) if header == ours => Ok(Kept { journal, seed, done }),
        None if journal.is_new() => {
            journal.begin(&ours).map_err(failed)?;
            Ok(Kept { journal, seed, done })
        }
        Some(header) if (&header.rnic, header.seed) != (&ours.rnic, seed) => Err(format!(
            "the journal {place} is of rnic {} with seed {}: give --seed {} to that program, or --journal another file",
            header.rnic, header.seed, header.seed
        )
        .into()),
        Some(header) => Err(match header.setting.differs(setting) {
            Some(option) => {
                format!("the journal {place} is of a run with another {option}: give the same, or --journal another file")
            }
            None => format!(
                "the journal {place} is of another build of rnic {}, whose rows this one does not vouch for: give --journal another file",
                header.rnic
            ),
        }
        .into()),
        None => Err(format!("{place} is no journal: its first line does not say of which run it is").into()),
    }
}

/// A folder of a run's own, for its disks or its journal; removed at its end.
pub(super) struct WorkDir(pub(super) PathBuf);

impl WorkDir {
    /// A new one.
    pub(super) fn new(what: &str) -> Result<Self, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use lab::campaign::PlanText;

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
        assert!(place(&path, "--json-file").is_ok() && names(dir.path()).is_empty());
        write_whole(&path, "one").unwrap();
        // A folder in the new file's place: it cannot be written, as on a disk that is full.
        fs::create_dir(dir.path().join("report.json.new")).unwrap();
        let said = write_whole(&path, "two").unwrap_err().to_string();
        assert!(said.contains("report.json cannot be written") && said.contains("make room"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert!(place(&path, "--json-file").is_err());
        for bad in ["/nowhere/report.json", "/", ".", ".."] {
            assert!(place(Path::new(bad), "--ktap").unwrap_err().to_string().contains("give --ktap a file"), "{bad}");
        }
    }

    #[test]
    fn a_journal_of_another_run_is_refused_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let plan = |text: &str| {
            let plan = Some(PlanText { path: "plan.toml".into(), text: text.into() });
            Setting { plan, ..Setting::default() }
        };
        let open = |seed, setting: &Setting| match open_journal(&path, seed, setting, || 99) {
            Ok(kept) => Ok(kept.seed),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(open(Some(7), &plan("a")), Ok(7));
        assert_eq!(open(None, &plan("a")), Ok(7), "it goes on with its seed");
        assert!(open(Some(8), &plan("a")).unwrap_err().contains("give --seed 7"));
        assert!(open(None, &plan("b")).unwrap_err().contains("a run with another --faults"));
        assert!(open(None, &Setting::default()).unwrap_err().contains("another --faults"));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "nobody wrote to it: {text}");
        fs::write(&path, text.replace("\"build\":\"", "\"build\":\"x")).unwrap();
        assert!(open(None, &plan("a")).unwrap_err().contains("another build"));
        fs::write(&path, "a letter").unwrap();
        assert!(open(None, &plan("a")).unwrap_err().contains("is no journal"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a letter");
        fs::write(&path, "").unwrap();
        assert_eq!(open(None, &plan("a")), Ok(99));
    }
}
