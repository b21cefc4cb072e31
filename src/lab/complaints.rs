// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's kernel says. A thread that died is a verdict, a warning part of one; messages of the file systems are evidence.

use rnic_agent::proto::{Op, Value};
use serde::{Deserialize, Serialize};

use super::guest::{Guest, SPOKEN};

/// How much a line of the kernel weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gravity {
    /// A file system or the block layer tells something.
    Message,
    /// The kernel found itself in a state that it had not expected, and went on.
    Warning,
    /// A task is blocked for longer than the kernel likes.
    Hung,
    /// A thread died, or memory was used that may not be.
    Oops,
}

/// Beginnings of reports, the gravest first: a line counts by the first that it has.
const REPORTS: [(&str, Gravity); 15] = [
    ("Oops: ", Gravity::Oops),
    ("kernel BUG at", Gravity::Oops),
    ("BUG: unable to handle", Gravity::Oops),
    ("BUG: kernel NULL pointer", Gravity::Oops),
    ("BUG: KASAN", Gravity::Oops),
    ("BUG: KFENCE", Gravity::Oops),
    ("BUG: Bad page", Gravity::Oops),
    ("general protection fault", Gravity::Oops),
    ("invalid opcode: ", Gravity::Oops),
    ("---[ end Kernel panic", Gravity::Oops),
    ("blocked for more than", Gravity::Hung),
    ("WARNING: ", Gravity::Warning),
    ("BUG: ", Gravity::Warning),
    ("UBSAN: ", Gravity::Warning),
    ("watchdog: ", Gravity::Warning),
];
/// Lines that are worth quoting although they are not reports.
const QUOTED: [&str; 8] = ["EXT4-fs", "BTRFS", "XFS", "I/O error", "Buffer I/O", "JBD2", "device-mapper: ", "md/raid"];
/// What a kernel says of a block whose checksum is wrong: btrfs and dm-integrity.
pub const CHECKSUM: [&str; 3] = ["csum failed", "checksum error", "Checksum failed at sector"];
/// Lines quoted per row.
const MAX_QUOTED: usize = 6;

/// One line of a kernel that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// How much.
    pub gravity: Gravity,
    /// The line.
    pub line: String,
}

/// Sorts messages, `<level>text` each: the first line of each report, and some messages of file systems.
pub fn sort<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Complaint> {
    let mut quoted = 0;
    let mut judge = |line: &str| {
        let text = line.split_once('>').map_or(line, |(_, text)| text).trim();
        let report = REPORTS.iter().find(|(word, _)| text.contains(word)).map(|(_, gravity)| *gravity);
        // The lab's own line is quoted whatever else there was, and so is what a verdict rests on.
        let told = text.starts_with(SPOKEN) || CHECKSUM.iter().any(|word| text.contains(word));
        let own = told.then_some(Gravity::Message);
        let gravity = report.or(own).or_else(|| {
            let quote = QUOTED.iter().any(|word| text.contains(word)) && quoted < MAX_QUOTED;
            quoted += usize::from(quote);
            quote.then_some(Gravity::Message)
        })?;
        Some(Complaint { gravity, line: text.into() })
    };
    lines.into_iter().filter_map(&mut judge).collect()
}

/// Tells a guest's agent which messages count whatever their level.
pub fn words() -> Op {
    Op::DmesgWords { words: REPORTS.iter().map(|(word, _)| *word).chain([SPOKEN]).map(String::from).collect() }
}

/// What `guest`'s kernel has said after `mark` that counts, oldest first, and the newest mark. Empty when the guest does not answer: then
/// its console tells.
pub fn since(guest: &Guest, mark: u64) -> (Vec<Complaint>, u64) {
    match guest.call(Op::DmesgSince { mark, level: 4 }) {
        Ok(Value::Lines(lines)) => (sort(lines.lines.iter().map(String::as_str)), lines.mark),
        _ => (Vec::new(), mark),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A verdict rests on it, however much the file system had to say before.
    #[test]
    fn a_wrong_checksum_is_always_quoted() {
        let line = "<3>device-mapper: integrity: dm-0: Checksum failed at sector 0xe250";
        let before = [["<4>EXT4-fs (dm-0): something"; 20].as_slice(), &[line]].concat();
        assert!(sort(before).last().unwrap().line.ends_with("Checksum failed at sector 0xe250"));
    }

    #[test]
    fn lines_count_by_their_gravest_word() {
        let lines = [
            "<4>WARNING: CPU: 0 PID: 71 at fs/ext4/inode.c:3675 ext4_dirty_folio+0x7e/0x90 [ext4]",
            "<4>EXT4-fs warning (device vdb): ext4_writepages: page 100 does not have buffers attached",
            "<3>INFO: task fsync:71 blocked for more than 120 seconds.",
            "<4>clocksource: something slow",
            "<1>BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "<4>Oops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
            "<3>BUG: sleeping function called from invalid context at mm/memory.c:12",
        ];
        use Gravity::{Hung, Message, Oops, Warning};
        let found: Vec<_> = sort(lines).iter().map(|complaint| complaint.gravity).collect();
        assert_eq!(found, [Warning, Message, Hung, Oops, Oops, Warning]);
        assert!(sort(lines)[1].line.starts_with("EXT4-fs"), "without its level");
    }
}
