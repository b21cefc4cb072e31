// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verdict words.

use std::fmt;

/// What a row's evidence shows. The words are those of the hazard literature; [`Verdict::meaning`] explains each. In order of weight: of
/// several findings the first in this list is the row's. Harm comes first, also before doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// A negative control: the injection was not noticed. The lab itself is broken.
    Missed,
    /// The guest kernel panicked.
    Panic,
    /// A thread of the guest kernel died.
    Oops,
    /// A step does not end, or a guest fell silent.
    Hung,
    /// What a power cut left is no file system, or holds what nobody wrote.
    Corrupt,
    /// Data landed in another file.
    LeakTo,
    /// Acknowledged data is not on disk.
    Lost,
    /// Checksum and data on disk disagree.
    Torn,
    /// The device and the mapping no longer share the page: what the device writes is seen by nobody.
    Split,
    /// The device reads a page that the file has left behind.
    Stale,
    /// A harm that came in some attempts and not in others.
    Flaky,
    /// The evidence is not enough to say.
    Inconclusive,
    /// This kernel and file system cannot be brought into the state that the row asks for.
    NotRun,
    /// An injection of a plan fired, the program was told of an error, and the row ended there: no harm was found.
    Erred,
    /// The kernel refused the registration.
    Refused,
    /// The operation waited for as long as the device was held.
    Blocked,
    /// The work request completed with an error, and nothing was harmed.
    ErrCqe,
    /// Memory and disk differed although fsync had succeeded, while the device's own request was not complete.
    Exposed,
    /// The overlap was seen and its outcome is legal.
    Benign,
    /// A negative control: the injection was noticed.
    Caught,
    /// Figures, no judgement.
    Measured,
    /// Nothing was harmed, and the mechanism that protected it is in the evidence.
    Safe,
}

/// Word and meaning of each verdict, for people.
const WORDS: [(Verdict, &str, &str); 22] = [
    (Verdict::Missed, "MISSED", "negative control: the injection was not noticed, so this lab cannot be trusted"),
    (Verdict::Panic, "PANIC", "the guest kernel panicked"),
    (Verdict::Oops, "OOPS", "a thread of the guest kernel died; its own report is in the evidence"),
    (Verdict::Hung, "HUNG", "a step does not end although nothing is held any more, or a guest fell silent"),
    (Verdict::Corrupt, "CORRUPT", "what a power cut left does not mount, lacks the file, or holds what nobody wrote"),
    (Verdict::LeakTo, "LEAKTO", "data landed in another file"),
    (Verdict::Lost, "LOST", "acknowledged data is not on disk after a power cut that keeps every completed write"),
    (Verdict::Torn, "TORN", "what is on disk disagrees with its own checksum"),
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
    (Verdict::Flaky, "FLAKY", "a harm that came in some attempts and not in others; all of them are in the evidence"),
    (Verdict::Inconclusive, "INCONCLUSIVE", "a lever did not fire or evidence is missing"),
    (Verdict::NotRun, "NOT-RUN", "this kernel or device cannot be brought into the state that the row asks for"),
    (Verdict::Erred, "ERRED", "the program was told of an injected error; no harm was found"),
    (Verdict::Refused, "REFUSED", "the kernel refused the registration, with this errno"),
    (Verdict::Blocked, "BLOCKED", "the operation waited until the device let go"),
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
    (Verdict::Benign, "BENIGN", "the overlap happened and its outcome is legal"),
    (Verdict::Caught, "CAUGHT", "negative control: the injection was noticed"),
    (Verdict::Measured, "MEASURED", "figures, no judgement"),
    (Verdict::Safe, "SAFE", "nothing was harmed"),
];

impl Verdict {
    /// All of them, in order of weight.
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

    /// Whether a kernel with this verdict does harm: what makes a user's own kernel fail.
    pub fn harmful(self) -> bool {
        self <= Verdict::Stale
    }

    /// Whether it is the kernel that broke, whatever became of the data: such a row is tried once more, since a host's own fault looks
    /// the same.
    pub fn is_collapse(self) -> bool {
        matches!(self, Verdict::Panic | Verdict::Oops | Verdict::Hung | Verdict::Corrupt)
    }
}

/// A verdict with what qualifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The word.
    pub verdict: Verdict,
    /// The error that the application got, if any.
    pub errno: Option<i32>,
    /// The kernel printed a warning.
    pub complained: bool,
    /// A later fsync brought what an earlier one had promised.
    pub late: bool,
    /// FLAKY: what came, in how many of how many attempts.
    pub of: Option<(Verdict, u32, u32)>,
}

impl Observed {
    /// A bare verdict.
    pub fn new(verdict: Verdict) -> Self {
        Self { verdict, errno: None, complained: false, late: false, of: None }
    }

    /// A harm that came in `hits` of `attempts` attempts.
    pub fn flaky(harm: Verdict, hits: u32, attempts: u32) -> Self {
        Self { of: Some((harm, hits, attempts)), ..Self::new(Verdict::Flaky) }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict.word())?;
        if let Some((harm, hits, attempts)) = self.of {
            write!(f, "({} {hits} of {attempts})", harm.word())?;
        }
        if let Some(errno) = self.errno {
            write!(f, "({})", errno_name(errno))?;
        }
        if self.late {
            f.write_str("+LATE")?;
        }
        if self.complained { f.write_str("+WARN") } else { Ok(()) }
    }
}

/// The symbol of an errno that scenarios meet, its number otherwise.
pub fn errno_name(errno: i32) -> String {
    const NAMES: [(i32, &str); 15] = [
        (libc::EIO, "EIO"),
        (libc::EUCLEAN, "EUCLEAN"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EFAULT, "EFAULT"),
        (libc::EINTR, "EINTR"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EROFS, "EROFS"),
        (libc::EBUSY, "EBUSY"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::EPERM, "EPERM"),
        (libc::EACCES, "EACCES"),
        (libc::ENODEV, "ENODEV"),
        (libc::EPIPE, "EPIPE"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == errno)
        .map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_one_word_in_order_of_weight() {
        let mut words: Vec<_> = WORDS.iter().map(|(_, word, _)| *word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), WORDS.len());
        assert!(WORDS.iter().all(|(verdict, word, meaning)| verdict.word() == *word && verdict.meaning() == *meaning));
        assert!(WORDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn qualifiers_are_part_of_the_text() {
        let observed = Observed { errno: Some(libc::EUCLEAN), complained: true, ..Observed::new(Verdict::Lost) };
        assert_eq!(observed.to_string(), "LOST(EUCLEAN)+WARN");
        assert_eq!(Observed { late: true, ..Observed::new(Verdict::Lost) }.to_string(), "LOST+LATE");
        assert_eq!(Observed::flaky(Verdict::Oops, 1, 2).to_string(), "FLAKY(OOPS 1 of 2)");
    }
}
