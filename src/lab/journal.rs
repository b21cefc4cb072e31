// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows that have ended, one a line in a file: a run whose host dies is gone on with where it stopped. The first line says whose rows they
//! are: those of another seed are other data.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::campaign::Setting;
use super::report::{RowResult, Score};

/// A file of rows, open for the next one.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Nothing has been written to it.
    new: bool,
}

/// Of which run a journal is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the program.
    pub rnic: String,
    /// All nonces of the run derive from it.
    pub seed: u64,
    /// The program's bytes: another build may judge in another way.
    #[serde(default)]
    pub build: String,
    /// What all rows run under.
    #[serde(default, skip_serializing_if = "Setting::is_usual")]
    pub setting: Setting,
}

impl Header {
    /// Of a run of this program.
    pub fn of(seed: u64, setting: &Setting) -> Self {
        Self { rnic: env!("CARGO_PKG_VERSION").into(), seed, build: build(), setting: setting.clone() }
    }
}

/// FNV-1a of the program's file, by words. Empty where it cannot be read.
pub fn build() -> String {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
    let mix = |hash: u64, bytes: &[u8]| (hash ^ word(bytes)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = |bytes: Vec<u8>| format!("{:016x}", bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, mix));
    std::fs::read("/proc/self/exe").map(hash).unwrap_or_default()
}

/// Whether it is the beginning of a first line, and nothing more: whoever wrote it was killed.
fn is_torn_header(bytes: &[u8]) -> bool {
    const HEAD: &[u8] = br#"{"rnic":"#;
    let whole = || serde_json::from_slice::<Header>(bytes).is_ok();
    !bytes.is_empty() && !bytes.contains(&b'\n') && (bytes.starts_with(HEAD) || HEAD.starts_with(bytes)) && !whole()
}

impl Journal {
    /// Opens or makes `path`; also returns whose rows it has, and the rows. A line that was cut short is none. A journal without rows is
    /// nobody's.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Header>, Vec<RowResult>)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if is_torn_header(&bytes) {
            file.set_len(0)?;
            bytes.clear();
        }
        let mut lines = bytes.split(|&byte| byte == b'\n');
        let header: Option<Header> = lines.next().and_then(|line| serde_json::from_slice(line).ok());
        // A file that is somebody else's stays as it is.
        if header.is_some() && bytes.last() != Some(&b'\n') {
            file.write_all(b"\n")?;
        }
        let rows = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok((Self { file, new: bytes.is_empty() }, header, rows))
    }

    /// Whether nothing has been written to it.
    pub fn is_new(&self) -> bool {
        self.new
    }

    /// Begins a new journal: the first line.
    pub fn begin(&mut self, header: &Header) -> io::Result<()> {
        self.append(serde_json::to_vec(header)?)
    }

    /// Adds a row that has ended. One without enough evidence is left out, so that it runs again.
    pub fn add(&mut self, row: &RowResult) -> io::Result<()> {
        if row.score == Score::Inconclusive {
            return Ok(());
        }
        self.append(serde_json::to_vec(row)?)
    }

    /// A whole line, or nothing: a disk that is full may have room for the next one.
    fn append(&mut self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        let length = self.file.metadata()?.len();
        let written = self.file.write_all(&line);
        match written {
            Ok(()) => self.new = false,
            // What failed is told, whatever comes of this.
            Err(_) => drop(self.file.set_len(length)),
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expect::Expectation;
    use crate::plan::all_rows;
    use crate::verdict::{Observed, Verdict};

    fn result(index: usize, verdict: Verdict) -> RowResult {
        let expected = Some(Expectation { verdict: "LOST", source: "a test" });
        RowResult::new(&all_rows()[index], "6.1", "6.1.192-2", expected, &Observed::new(verdict), Vec::new())
    }

    #[test]
    fn rows_come_back_and_what_was_cut_short_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, nobody, none) = Journal::open(&path).unwrap();
        assert!(nobody.is_none() && none.is_empty());
        assert!(journal.is_new());
        let header_of = |seed| Header::of(seed, &Setting::default());
        journal.begin(&header_of(7)).unwrap();
        journal.add(&result(0, Verdict::Lost)).unwrap();
        journal.add(&result(1, Verdict::Inconclusive)).unwrap();
        journal.add(&result(2, Verdict::Safe)).unwrap();
        // The host dies in the middle of a line.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let (mut journal, header, rows) = Journal::open(&path).unwrap();
        assert_eq!((rows.len(), header), (1, Some(header_of(7))));
        assert_eq!((build().len(), build()), (16, header_of(7).build), "the same each time");
        assert!(
            rows[0].is_of(&all_rows()[0], "6.1", "6.1.192-2") && !rows[0].is_of(&all_rows()[2], "6.1", "6.1.192-2")
        );
        assert_eq!(rows[0].score, Score::Good);
        journal.add(&result(2, Verdict::Safe)).unwrap();
        let (_, _, rows) = Journal::open(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.score).collect::<Vec<_>>(), [Score::Good, Score::Differs]);
    }

    /// kill -9 at any byte: what was whole comes back, and the next run can go on in the same file.
    #[test]
    fn a_journal_that_was_cut_anywhere_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let setting = Setting { row_limit: Some(60), ..Setting::default() };
        let (mut journal, ..) = Journal::open(&path).unwrap();
        journal.begin(&Header::of(7, &setting)).unwrap();
        let seeded = |seed| RowResult { seed: Some(seed), ..result(0, Verdict::Lost) };
        journal.add(&seeded(1)).unwrap();
        journal.add(&seeded(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, header, rows) = Journal::open(&path).unwrap();
            // A line is whole with its last byte, whether its end came through or not.
            let kept = lines.iter().filter(|end| **end <= cut).count();
            assert_eq!((header.is_some(), rows.len()), (kept > 0, kept.saturating_sub(1)), "{cut}");
            assert_eq!(journal.is_new(), header.is_none(), "{cut}");
            if header.is_none() {
                journal.begin(&Header::of(7, &setting)).unwrap();
            }
            journal.add(&seeded(3)).unwrap();
            let (_, header, again) = Journal::open(&path).unwrap();
            assert_eq!((header.unwrap().setting, again.len()), (setting.clone(), rows.len() + 1), "{cut}");
            assert_eq!(again[rows.len()].seed, Some(3));
        }
    }

    #[test]
    fn a_file_that_is_no_journal_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        for text in ["a letter", "{\"rnic\": 1}\n{}", "{\n  \"rnic\": \"0.1.0\"\n}"] {
            std::fs::write(&path, text).unwrap();
            let (journal, header, rows) = Journal::open(&path).unwrap();
            assert!(!journal.is_new() && header.is_none() && rows.is_empty(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
