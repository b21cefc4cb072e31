// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel log (/dev/kmsg, Documentation/ABI/testing/dev-kmsg).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use rnic_agent::proto::{Lines, Value};

use super::{Failure, Outcome, failed};
use crate::serve::{Context, lock};

/// Records kept in the agent.
const KEPT: usize = 4000;
/// Lines of one reply, characters of one line, bytes of all lines of one reply.
const MAX_LINES: usize = 200;
const MAX_CHARS: usize = 400;
const MAX_BYTES: usize = 48 * 1024;

/// One record. `mark` is its sequence number plus one, so that 0 is before all.
struct Record {
    mark: u64,
    level: u8,
    text: String,
}

/// Follows the kernel log from its beginning.
#[derive(Default)]
pub struct Kmsg {
    file: Option<File>,
    records: VecDeque<Record>,
    /// Records that the kernel overwrote before they were read.
    lost: u64,
    mark: u64,
    /// Of [`keep`].
    words: Vec<String>,
}

impl Kmsg {
    /// Reads what is new.
    fn catch_up(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?);
        }
        let mut buffer = [0; 8192];
        while let Some(file) = &mut self.file {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.take(&String::from_utf8_lossy(&buffer[..n])),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(()),
                    Some(libc::EPIPE) => self.lost += 1,
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn take(&mut self, record: &str) {
        let Some(record) = parse(record) else { return };
        self.mark = self.mark.max(record.mark);
        if self.records.len() >= KEPT {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// The newest lines after `mark` that pass the filter.
    fn since(&self, mark: u64, level: u8) -> Lines {
        let passes = |record: &&Record| {
            record.mark > mark
                && (record.level <= level || self.words.iter().any(|word| record.text.contains(word.as_str())))
        };
        let mut lines = Lines { mark: self.mark, dropped: self.lost, ..Lines::default() };
        let mut bytes = 0;
        for record in self.records.iter().rev().filter(passes) {
            let text: String = format!("<{}>{}", record.level, record.text).chars().take(MAX_CHARS).collect();
            bytes += text.len();
            if lines.lines.len() >= MAX_LINES || bytes > MAX_BYTES {
                lines.dropped += 1;
            } else {
                lines.lines.push(text);
            }
        }
        lines.lines.reverse();
        lines
    }
}

/// `prefix,sequence,time,flags[,more];text\n KEY=value...`; the prefix is facility * 8 + level.
fn parse(record: &str) -> Option<Record> {
    let (head, body) = record.split_once(';')?;
    let mut fields = head.split(',');
    let prefix: u64 = fields.next()?.parse().ok()?;
    let sequence: u64 = fields.next()?.parse().ok()?;
    let text = body.lines().next().unwrap_or_default().to_owned();
    Some(Record { mark: sequence.saturating_add(1), level: (prefix & 7) as u8, text })
}

fn with_kmsg<T>(context: &Context, look: impl FnOnce(&Kmsg) -> T) -> Result<T, Failure> {
    let mut kmsg = lock(&context.kmsg);
    kmsg.catch_up().map_err(failed("/dev/kmsg"))?;
    Ok(look(&kmsg))
}

/// Mark of the newest record.
pub fn mark(context: &Context) -> Outcome {
    with_kmsg(context, |kmsg| Value::Num(kmsg.mark))
}

/// Messages with one of these words count from now on, whatever their level.
pub fn keep(context: &Context, words: Vec<String>) -> Outcome {
    lock(&context.kmsg).words = words;
    Ok(Value::Unit)
}

/// Records after a mark.
pub fn since(context: &Context, mark: u64, level: u8) -> Outcome {
    with_kmsg(context, |kmsg| Value::Lines(kmsg.since(mark, level)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Kmsg {
        let mut kmsg = Kmsg::default();
        for (seq, (prefix, text)) in
            [(6, "Linux version"), (4, "WARNING: CPU: 0"), (30, "from user space"), (3, "EXT4-fs error")]
                .iter()
                .enumerate()
        {
            kmsg.take(&format!("{prefix},{seq},123456,-;{text}\n SUBSYSTEM=x\n"));
        }
        kmsg
    }

    #[test]
    fn records_are_filtered_by_mark_level_and_words() {
        let kmsg = log();
        assert_eq!(kmsg.since(0, 4).lines, ["<4>WARNING: CPU: 0", "<3>EXT4-fs error"]);
        assert_eq!(kmsg.since(2, 4).lines, ["<3>EXT4-fs error"]);
        assert_eq!(kmsg.since(4, 7).lines.len(), 0);
        assert_eq!(kmsg.since(0, 7).mark, 4);
        let kept = Kmsg { words: vec!["Linux".into(), "user".into()], ..kmsg };
        assert_eq!(kept.since(0, 0).lines, ["<6>Linux version", "<6>from user space"]);
        assert_eq!(kept.since(3, 3).lines, ["<3>EXT4-fs error"]);
    }

    #[test]
    fn the_newest_are_kept_and_the_rest_counted() {
        let mut kmsg = Kmsg::default();
        for seq in 0..MAX_LINES + 50 {
            kmsg.take(&format!("4,{seq},0,-;line {seq} {}", "x".repeat(1000)));
        }
        let lines = kmsg.since(0, 7);
        assert_eq!(lines.lines.len() as u64 + lines.dropped, MAX_LINES as u64 + 50);
        assert!(lines.lines.last().unwrap().contains("line 249 "));
        assert!(lines.lines.iter().map(String::len).sum::<usize>() <= MAX_BYTES);
        assert!(lines.lines.iter().all(|line| line.chars().count() <= MAX_CHARS));
    }

    #[test]
    fn odd_records_are_skipped() {
        for text in ["", ";", "x,1,2;t", "4;t", "4,,;t", "99999999999999999999,1;t"] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }
}
