// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands between a row's evidence and its verdict: checks that every row passes, whatever its story. Each has a name, and each has
//! been seen to notice: see [`crate::controls`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// A check. Names in JSON are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// A request that a disk's lever held did not go on meanwhile.
    Hold,
    /// A work request that a gate at the NIC held did not go on meanwhile.
    Gate,
    /// The disks put on record what they counted.
    DiskRecords,
    /// The NIC put on record what it counted.
    NicRecords,
    /// No payload moved through a translation after its death.
    Translation,
    /// No payload moved through a key after its death.
    Freed,
    /// No payload moved against the rights of its key.
    Rights,
    /// No page fault stayed unanswered with nothing held.
    Fault,
    /// A power cut's image has what the ledger says that it must have.
    Cut,
    /// What a guest's kernel prints is heard.
    Kernel,
    /// The scenario itself finds harm.
    Harm,
    /// The scenario itself finds a legal outcome that is not SAFE.
    Benign,
}

/// Each with its name and what it looks at.
const NAMES: [(Check, &str, &str); 12] = [
    (Check::Hold, "hold", "a request that a disk's lever held did not go on meanwhile"),
    (Check::Gate, "gate", "a work request that a gate at the NIC held did not go on meanwhile"),
    (Check::DiskRecords, "disk-records", "the disks put on record what they counted"),
    (Check::NicRecords, "nic-records", "the NIC put on record what it counted"),
    (Check::Translation, "translation", "no payload moved through a translation after its death"),
    (Check::Freed, "freed", "no payload moved through a key after its death"),
    (Check::Rights, "rights", "no payload moved against the rights of its key"),
    (Check::Fault, "fault", "no page fault stayed unanswered with nothing held"),
    (Check::Cut, "cut", "a power cut's image has what the ledger says that it must have"),
    (Check::Kernel, "kernel", "what a guest's kernel prints is heard"),
    (Check::Harm, "harm", "the scenario itself finds harm"),
    (Check::Benign, "benign", "the scenario itself finds a legal outcome that is not SAFE"),
];

impl Check {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Check> {
        NAMES.iter().map(|(check, ..)| *check)
    }

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(check, ..)| *check == self).map_or("", |(_, name, _)| name)
    }

    /// What it looks at.
    pub fn meaning(self) -> &'static str {
        NAMES.iter().find(|(check, ..)| *check == self).map_or("", |(.., meaning)| meaning)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A check that has noticed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tripped {
    /// Which.
    pub check: Check,
    /// What it noticed.
    pub why: String,
}

impl Tripped {
    /// `check` noticed `why`, if it noticed anything.
    pub fn by(check: Check, why: Option<String>) -> Option<Self> {
        Some(Self { check, why: why? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_a_name_of_its_own() {
        let mut names: Vec<_> = Check::all().map(Check::name).collect();
        assert!(names.iter().all(|name| !name.is_empty()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Check::all().count());
        for check in Check::all() {
            assert_eq!(serde_json::to_value(check).unwrap(), check.name());
        }
    }
}
