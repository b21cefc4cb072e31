// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows that have ended, one a line in a file: a run whose host dies is gone on with where it stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::report::{RowResult, Score};

/// A file of rows, open for the next one.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Opens or makes `path`; also returns the rows that it has. A line that was cut short, or is of another version of this program, is no row.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<RowResult>)> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if bytes.last().is_some_and(|&byte| byte != b'\n') {
            file.write_all(b"\n")?;
        }
        let rows = bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        Ok((Self(file), rows))
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
    use crate::plan::all_rows;
    use crate::verdict::{Observed, Verdict};

    fn result(index: usize, verdict: Verdict) -> RowResult {
        RowResult::new(&all_rows()[index], "6.1", "6.1.192-2", Some("LOST"), &Observed::new(verdict), Vec::new())
    }

    #[test]
    fn rows_come_back_and_what_was_cut_short_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, none) = Journal::open(&path).unwrap();
        assert!(none.is_empty());
        journal.add(&result(0, Verdict::Lost)).unwrap();
        journal.add(&result(1, Verdict::Inconclusive)).unwrap();
        journal.add(&result(2, Verdict::Safe)).unwrap();
        // The host dies in the middle of a line.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let (mut journal, rows) = Journal::open(&path).unwrap();
        assert_eq!(rows.len(), 1);
        assert!(
            rows[0].is_of(&all_rows()[0], "6.1", "6.1.192-2") && !rows[0].is_of(&all_rows()[2], "6.1", "6.1.192-2")
        );
        assert_eq!(rows[0].score, Score::Good);
        journal.add(&result(2, Verdict::Safe)).unwrap();
        let (_, rows) = Journal::open(&path).unwrap();
        assert_eq!(rows.iter().map(|row| row.score).collect::<Vec<_>>(), [Score::Good, Score::Differs]);
    }
}
