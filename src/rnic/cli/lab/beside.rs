// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Jobs of a run on a machine whose KVM does not run stock kernels: an emulated host each. Two guests beside two others in one such host stand in
//! each other's way, since with-kvm puts its CPUs on one core (docs/findings.md); two hosts have two cores.
//!
//! Each host runs a part of the rows and keeps them in a journal of its own; here they are shown and put into the run's. What is left then, such
//! as rows without enough evidence, and all that is written or said at the end, is the last host's, which goes on by that journal.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use lab::campaign::Part;
use lab::journal::Journal;
use lab::report::RowResult;
use lab::runner::News;

use super::super::Error;
use super::super::host::{Errand, Hosts};
use super::files::WorkDir;
use super::screen::Screen;

/// How often journals are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Rows for which another emulated host pays, some minutes of them: rows of two kernels come mixed then, and it boots as long as five or six take.
const WORTH: usize = 30;

/// Jobs where nobody has said how many: one for each core, if each has rows enough, and `room` bytes of memory for its host.
pub(super) fn usual(rows: usize, room: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    few(rows, cores, (vmm::available_memory().unwrap_or(0) / room) as usize)
}

fn few(rows: usize, cores: usize, hosts: usize) -> usize {
    (rows / WORTH).min(cores).min(hosts).max(1)
}

/// What jobs have in common.
pub(super) struct Beside<'a> {
    /// How many; no more than there are rows left.
    pub(super) jobs: usize,
    /// What each host is told; the last one is told no more.
    pub(super) errand: &'a Errand,
    /// Of the run, with what has ended before.
    pub(super) journal: (&'a mut Journal, &'a PathBuf),
    /// Why there are emulated hosts.
    pub(super) why: &'a str,
}

impl Beside<'_> {
    /// Runs the rows. Which jobs did not come to their end, with exit status.
    pub(super) fn run(&mut self, hosts: &Hosts, screen: &mut Screen) -> Result<Vec<(Part, u8)>, Error> {
        let folder = WorkDir::new("jobs")?;
        let mut jobs = Vec::new();
        for part in Part::all(self.jobs as u32) {
            let path = folder.0.join(format!("job-{}", part.index));
            // What has ended before is none of its rows.
            std::fs::copy(self.journal.1, &path)?;
            jobs.push((part, self.errand(part, &path), Tail::at_end(&path)?));
        }
        let why = self.why;
        std::thread::scope(|scope| {
            let run = |errand: Errand| scope.spawn(move || hosts.run(&errand, why).map_err(|error| error.to_string()));
            let mut running: Vec<_> = jobs.into_iter().map(|(part, errand, tail)| (part, run(errand), tail)).collect();
            loop {
                let over = running.iter().all(|(_, job, _)| job.is_finished());
                for (_, _, tail) in &mut running {
                    self.take(tail, screen);
                }
                if over {
                    break;
                }
                std::thread::sleep(LOOK);
            }
            let mut short = Vec::new();
            for (part, job, _) in running {
                let status = job.join().map_err(|_| "a job's thread panicked")??;
                // As expected, differs, inconclusive: the three ways to end.
                if status > 2 {
                    short.push((part, status));
                }
            }
            Ok(short)
        })
    }

    fn errand(&self, part: Part, journal: &PathBuf) -> Errand {
        let mut options = self.errand.options.clone();
        let part = part.to_string();
        options.extend(["--jobs", "1", "--part", &part, "--journal"].map(Into::into));
        options.push(journal.into());
        Errand {
            reads: self.errand.reads.clone(),
            writes: vec![journal.clone()],
            memory: self.errand.memory,
            options,
            aside: true,
            progress: Some(journal.clone()),
            ..Errand::default()
        }
    }

    /// Rows that have ended since. The last host runs again what cannot be kept.
    fn take(&mut self, tail: &mut Tail, screen: &mut Screen) {
        let rows = tail.rows().unwrap_or_else(|error| {
            log::warn!("a job's journal cannot be read: {error}");
            Vec::new()
        });
        for row in rows {
            if let Err(error) = self.journal.0.add(&row) {
                log::warn!("the journal cannot be written: {error}; the last host will run this row again");
            }
            screen.news(&News::Row(Box::new(row)));
        }
    }
}

/// The end of a journal that somebody else writes to.
struct Tail {
    file: File,
    /// A line's beginning.
    rest: Vec<u8>,
}

impl Tail {
    /// What comes from now on.
    fn at_end(path: &PathBuf) -> io::Result<Self> {
        let mut file = File::open(path)?;
        io::copy(&mut file, &mut io::sink())?;
        Ok(Self { file, rest: Vec::new() })
    }

    /// Whole lines since the last time.
    fn rows(&mut self) -> io::Result<Vec<RowResult>> {
        self.file.read_to_end(&mut self.rest)?;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        Ok(lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::expect::Expectation;
    use lab::plan::all_rows;
    use lab::verdict::{Observed, Verdict};
    use std::io::Write;

    #[test]
    fn another_host_is_for_rows_enough_and_where_there_is_room() {
        assert_eq!([0, 1, 59, 60, 89, 400].map(|rows| few(rows, 2, 3)), [1, 1, 1, 2, 2, 2]);
        assert_eq!([(8, 0), (8, 1), (8, 5), (1, 5)].map(|(cores, hosts)| few(400, cores, hosts)), [1, 1, 5, 1]);
    }

    #[test]
    fn a_journal_is_followed_by_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let row = |index: usize| {
            let expected = Some(Expectation { verdict: "SAFE", source: "a test" });
            let row = &all_rows()[index];
            let result = RowResult::new(row, "6.1", "6.1.192-2", expected, &Observed::new(Verdict::Safe), Vec::new());
            serde_json::to_string(&result).unwrap() + "\n"
        };
        std::fs::write(&path, row(0)).unwrap();
        let mut tail = Tail::at_end(&path).unwrap();
        assert!(tail.rows().unwrap().is_empty(), "that was there before");
        let mut file = File::options().append(true).open(&path).unwrap();
        let (one, two) = (row(1), row(2));
        file.write_all(one.as_bytes()).unwrap();
        file.write_all(&two.as_bytes()[..20]).unwrap();
        let names = |rows: Vec<RowResult>| rows.into_iter().map(|row| (row.scenario, row.fs)).collect::<Vec<_>>();
        let name =
            |index: usize| vec![(all_rows()[index].scenario.id.to_owned(), all_rows()[index].fs.name().to_owned())];
        assert_eq!(names(tail.rows().unwrap()), name(1));
        assert!(tail.rows().unwrap().is_empty());
        file.write_all(&two.as_bytes()[20..]).unwrap();
        assert_eq!(names(tail.rows().unwrap()), name(2));
    }
}
