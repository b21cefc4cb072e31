// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows that have ended, one a line in a file: a run whose host dies is gone on with where it stopped. The first line says whose rows they
//! are: those of another seed are other data.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::report::{RowResult, Score};

/// A file of rows, open for the next one.
#[derive(Debug)]
pub struct Journal(File);

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
}

impl Header {
    /// Of a run of this program.
    pub fn of(seed: u64) -> Self {
        Self { rnic: env!("CARGO_PKG_VERSION").into(), seed, build: build() }
    }
}

/// FNV-1a of the program's file, by words. Empty where it cannot be read.
fn build() -> String {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word: u64, byte| word << 8 | u64::from(*byte));
    let mix = |hash: u64, bytes: &[u8]| (hash ^ word(bytes)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = |bytes: Vec<u8>| format!("{:016x}", bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, mix));
    std::fs::read("/proc/self/exe").map(hash).unwrap_or_default()
}

impl Journal {
    /// Opens or makes `path`; also returns whose rows it has, and the rows. A line that was cut short is none. A journal without rows is
    /// nobody's.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Header>, Vec<RowResult>)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if bytes.last().is_some_and(|&byte| byte != b'\n') {
            file.write_all(b"\n")?;
        }
        let mut lines = bytes.split(|&byte| byte == b'\n');
        let header = lines.next().and_then(|line| serde_json::from_slice(line).ok());
        let rows = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok((Self(file), header, rows))
    }

    /// Begins a new journal: the first line.
    pub fn begin(&mut self, header: &Header) -> io::Result<()> {
        let mut line = serde_json::to_vec(header)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }

    /// Adds a row that has ended. One without enough evidence is left out, so that it runs again.
    pub fn add(&mut self, row: &RowResult) -> io::Result<()> {
        if row.score == Score::Inconclusive {
            return Ok(());
        }
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.0.write_all(&line)
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
        journal.begin(&Header::of(7)).unwrap();
        journal.add(&result(0, Verdict::Lost)).unwrap();
        journal.add(&result(1, Verdict::Inconclusive)).unwrap();
        journal.add(&result(2, Verdict::Safe)).unwrap();
        // The host dies in the middle of a line.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let (mut journal, header, rows) = Journal::open(&path).unwrap();
        assert_eq!((rows.len(), header), (1, Some(Header::of(7))));
        assert_eq!((build().len(), build()), (16, Header::of(7).build), "the same each time");
        assert!(
            rows[0].is_of(&all_rows()[0], "6.1", "6.1.192-2") && !rows[0].is_of(&all_rows()[2], "6.1", "6.1.192-2")
        );
        assert_eq!(rows[0].score, Score::Good);
        journal.add(&result(2, Verdict::Safe)).unwrap();
        let (_, _, rows) = Journal::open(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.score).collect::<Vec<_>>(), [Score::Good, Score::Differs]);
    }
}
