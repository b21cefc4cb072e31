// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that a run keeps for itself: its journal, and a folder for disks.

use std::path::{Path, PathBuf};

use lab::campaign::Setting;
use lab::journal::{Header, Journal};
use lab::report::RowResult;

use super::super::Error;

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
    use std::fs;

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
