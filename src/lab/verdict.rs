// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verdict words, and what a row ends with.

use std::fmt;

/// What a row's evidence shows. The words are those of the hazard literature; [`Verdict::meaning`] explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Acknowledged data is not on disk.
    Lost,
    /// Checksum and data on disk disagree.
    Torn,
    /// Data landed in another file.
    LeakTo,
    /// The device and the mapping no longer share the page: what the device writes is seen by nobody.
    Split,
    /// The device reads a page that the file has left behind.
    Stale,
    /// The kernel refused the registration.
    Refused,
    /// The work request completed with an error, and nothing was harmed.
    ErrCqe,
    /// Memory and disk differed although fsync had succeeded, while the device's own request was not complete.
    Exposed,
    /// The operation waited for as long as the device was held.
    Blocked,
    /// Nothing was harmed, and the mechanism that protected it is in the evidence.
    Safe,
    /// The overlap was seen and its outcome is legal.
    Benign,
    /// The guest kernel panicked.
    Panic,
    /// A negative control: the injection was noticed.
    Caught,
    /// A negative control: the injection was not noticed. The lab itself is broken.
    Missed,
    /// Figures, no judgement.
    Measured,
    /// This kernel and file system cannot be brought into the state that the row asks for.
    NotRun,
    /// The evidence is not enough to say.
    Inconclusive,
}

/// Word and meaning of each verdict, for people.
const WORDS: [(Verdict, &str, &str); 17] = [
    (Verdict::Lost, "LOST", "acknowledged data is not on disk after a power cut"),
    (Verdict::Torn, "TORN", "what is on disk disagrees with its own checksum"),
    (Verdict::LeakTo, "LEAKTO", "data landed in another file"),
    (
        Verdict::Split,
        "SPLIT",
        "the device's writes succeed and no reader of the file sees them: the page was replaced under the registration",
    ),
    (
        Verdict::Stale,
        "STALE",
        "the device reads bytes that the file no longer has: the page was replaced under the registration",
    ),
    (Verdict::Refused, "REFUSED", "the kernel refused the registration, with this errno"),
    (
        Verdict::ErrCqe,
        "ERR-CQE",
        "the device was told that the memory is gone: an error completion, and nothing was harmed",
    ),
    (
        Verdict::Exposed,
        "EXPOSED",
        "fsync succeeded, then a power cut found older bytes; the device's request was still open, so no promise was broken",
    ),
    (Verdict::Blocked, "BLOCKED", "the operation waited until the device let go"),
    (Verdict::Safe, "SAFE", "nothing was harmed"),
    (Verdict::Benign, "BENIGN", "the overlap happened and its outcome is legal"),
    (Verdict::Panic, "PANIC", "the guest kernel panicked"),
    (Verdict::Caught, "CAUGHT", "negative control: the injection was noticed"),
    (Verdict::Missed, "MISSED", "negative control: the injection was not noticed, so this lab cannot be trusted"),
    (Verdict::Measured, "MEASURED", "figures, no judgement"),
    (Verdict::NotRun, "NOT-RUN", "this kernel or device cannot be brought into the state that the row asks for"),
    (Verdict::Inconclusive, "INCONCLUSIVE", "a lever did not fire or evidence is missing"),
];

impl Verdict {
    /// All of them, in the order of the list for people.
    pub fn all() -> impl Iterator<Item = Verdict> {
        WORDS.iter().map(|(verdict, ..)| *verdict)
    }

    /// The word in tables and JSON.
    pub fn word(self) -> &'static str {
        WORDS.iter().find(|(verdict, ..)| *verdict == self).map_or("", |(_, word, _)| word)
    }

    /// One line for people.
    pub fn meaning(self) -> &'static str {
        WORDS.iter().find(|(verdict, ..)| *verdict == self).map_or("", |(.., meaning)| meaning)
    }

    /// Whether a kernel with this verdict harms data: what makes a user's own kernel fail.
    pub fn harmful(self) -> bool {
        matches!(
            self,
            Verdict::Lost | Verdict::Torn | Verdict::LeakTo | Verdict::Split | Verdict::Panic | Verdict::Missed
        )
    }
}

/// A verdict with what qualifies it: the errno that told the application, and complaints of the guest kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The word.
    pub verdict: Verdict,
    /// The error that the application got, if any.
    pub errno: Option<i32>,
    /// The kernel printed a WARN, BUG, oops or hung-task report.
    pub complained: bool,
}

impl Observed {
    /// A bare verdict.
    pub fn new(verdict: Verdict) -> Self {
        Self { verdict, errno: None, complained: false }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict.word())?;
        if let Some(errno) = self.errno {
            write!(f, "({})", errno_name(errno))?;
        }
        if self.complained { f.write_str("+WARN") } else { Ok(()) }
    }
}

/// The symbol of an errno that scenarios meet, its number otherwise.
pub fn errno_name(errno: i32) -> String {
    const NAMES: [(i32, &str); 8] = [
        (libc::EIO, "EIO"),
        (libc::EUCLEAN, "EUCLEAN"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EFAULT, "EFAULT"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EROFS, "EROFS"),
        (libc::EBUSY, "EBUSY"),
        (libc::EINVAL, "EINVAL"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == errno)
        .map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).into())
}

/// What a scenario found out.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The verdict and its errno.
    pub observed: Observed,
}

impl Finding {
    /// A bare verdict.
    pub fn new(verdict: Verdict) -> Self {
        Self { observed: Observed::new(verdict) }
    }

    /// A verdict that the application was told about.
    pub fn with_errno(verdict: Verdict, errno: Option<i32>) -> Self {
        Self { observed: Observed { errno, ..Observed::new(verdict) } }
    }
}

/// Why a row ended without a finding.
#[derive(Debug)]
pub enum Stop {
    /// A step that the judgement rests on did not do what it should: lever not fired, folio of the wrong size, trial void.
    Inconclusive(String),
    /// The kernel cannot make what the row is about.
    NotRun(String),
    /// The guest kernel panicked, and said so.
    Panicked(String),
    /// The lab, the agent or the host failed; a guest that went away without a word is such a failure.
    Failed(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Stop::Inconclusive(what) | Stop::NotRun(what) | Stop::Panicked(what) | Stop::Failed(what)) = self;
        f.write_str(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_one_word() {
        let mut words: Vec<_> = WORDS.iter().map(|(_, word, _)| *word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), WORDS.len());
        assert!(WORDS.iter().all(|(verdict, word, meaning)| verdict.word() == *word && verdict.meaning() == *meaning));
    }

    #[test]
    fn qualifiers_are_part_of_the_text() {
        let observed = Observed { verdict: Verdict::Lost, errno: Some(libc::EUCLEAN), complained: true };
        assert_eq!(observed.to_string(), "LOST(EUCLEAN)+WARN");
    }
}
