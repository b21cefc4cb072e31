// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest kernel says about a row. An oops, WARN, BUG or hung task is part of the verdict; messages of the file
//! systems are evidence.

use rnic_agent::proto::{Op, Value};

use super::guest::Guest;

/// Reports that the kernel makes about itself.
const REPORTS: [&str; 8] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at",
    "Oops: ",
    "general protection fault",
    "blocked for more than",
    "UBSAN: ",
    "watchdog: ",
];
/// Lines that are worth quoting although they are not reports.
const QUOTED: [&str; 6] = ["EXT4-fs", "BTRFS", "XFS", "I/O error", "Buffer I/O", "JBD2"];
/// Lines quoted per row.
const MAX_QUOTED: usize = 6;

/// The kernel's messages of one row.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Complaints {
    /// First line of each WARN, BUG, oops or hung-task report.
    pub reports: Vec<String>,
    /// Messages of file systems and the block layer at warning level and worse.
    pub quoted: Vec<String>,
}

impl Complaints {
    /// Sorts messages, `<level>text` each.
    pub fn sort(lines: &[String]) -> Self {
        let mut complaints = Self::default();
        for line in lines {
            let text = line.split_once('>').map_or(line.as_str(), |(_, text)| text).trim();
            if REPORTS.iter().any(|report| text.contains(report)) {
                complaints.reports.push(text.into());
            } else if QUOTED.iter().any(|word| text.contains(word)) && complaints.quoted.len() < MAX_QUOTED {
                complaints.quoted.push(text.into());
            }
        }
        complaints
    }

    /// Messages of `guest` after `mark` (warning level and worse), oldest first. Empty when the guest does not answer: then the row
    /// ends as a dead guest anyway.
    pub fn since(guest: &Guest, mark: u64) -> Self {
        let words = REPORTS.iter().map(|word| (*word).to_string()).collect();
        match guest.call(Op::DmesgSince { mark, level: 4, words }) {
            Ok(Value::Lines(lines)) => Self::sort(&lines.lines),
            _ => Self::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_and_quotes_are_told_apart() {
        let lines = [
            "<4>WARNING: CPU: 0 PID: 71 at fs/ext4/inode.c:3675 ext4_dirty_folio+0x7e/0x90 [ext4]",
            "<4>EXT4-fs warning (device vdb): ext4_writepages: page 100 does not have buffers attached",
            "<6>INFO: task fsync:71 blocked for more than 120 seconds.",
            "<4>clocksource: something slow",
        ]
        .map(String::from);
        let complaints = Complaints::sort(&lines);
        assert_eq!((complaints.reports.len(), complaints.quoted.len()), (2, 1));
        assert!(complaints.quoted[0].starts_with("EXT4-fs"));
    }
}
