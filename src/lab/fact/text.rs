// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Facts in words, for tables.

use std::fmt;

use super::{Fact, Found, Role, What};
use crate::verdict::errno_name;
use probe::ledger::Seq;

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Content(text) => f.write_str(text),
            Found::Errno(errno) => f.write_str(&errno_name(*errno)),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seq > 0 {
            write!(f, "#{}: ", self.seq)?;
        }
        self.what.fmt(f)
    }
}

fn seq(at: Option<Seq>) -> String {
    at.map_or_else(|| "never".into(), |at| format!("#{at}"))
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Returned { step, errno: None } => write!(f, "{step} returned 0"),
            What::Returned { step, errno: Some(errno) } => write!(f, "{step} failed with {}", errno_name(*errno)),
            What::Waits { step, seconds, held } => {
                write!(f, "{step} still waited after {seconds:.0} s")?;
                held.as_ref().map_or(Ok(()), |held| write!(f, " while {held} was held"))
            }
            What::Waited { step, seconds, after_ms } => {
                write!(f, "{step} returned after {seconds:.1} s, {after_ms:.0} ms after what was held went on")
            }
            What::Cut { cut, file, at, found } => {
                write!(f, "{cut} power cut: page {} of \"{file}\" on disk: {found}", at / 4096)
            }
            What::Seen { by, file, at, found } => write!(f, "{by} of page {} of \"{file}\": {found}", at / 4096),
            What::Block { .. } => self.fmt_block(f),
            What::NoBlock { op, gpa, since } => write!(f, "no blk {op} of GPA {gpa:#x} since #{since}"),
            What::Disk { name, stable_writes } => {
                write!(f, "disk \"{name}\" has queue/stable_writes {}", u8::from(*stable_writes))
            }
            What::Twice { cut, file, at, legs, agree } => {
                write!(f, "{cut} power cut: page {} of \"{file}\"", at / 4096)?;
                for (number, leg) in legs.iter().enumerate() {
                    write!(f, "{} on leg {number}: {leg}", if number == 0 { "" } else { "," })?;
                }
                match (legs.is_empty(), agree) {
                    (true, true) => f.write_str(": the parity of its row is that of the data"),
                    (true, false) => f.write_str(": the parity of its row is not that of the data"),
                    (false, _) => Ok(()),
                }
            }
            What::Copied { id, gpa } => {
                write!(f, "blk write {id} takes its bytes from a copy, not from the buffer at GPA {gpa:#x}")
            }
            What::Nic { event, .. } => f.write_str(event),
            What::Paging { faults, answered, updates } => {
                write!(f, "{faults} page faults raised, {answered} answered, {updates} updates of translations")
            }
            What::Completion { request, status, code: 0, .. } => write!(f, "{request} completed: {status}"),
            What::Completion { request, status, vendor_err, .. } => {
                write!(f, "{request} completed in error: {status} (vendor error {vendor_err:#x})")
            }
            What::Folio { when, pfn, pages, mapped, attached } => {
                let mapped = if *mapped { "mapped" } else { "not mapped" };
                write!(f, "{when}: page frame {pfn:#x} of a folio of {pages}, {mapped}")?;
                match attached {
                    Some(true) => f.write_str(", file system data attached"),
                    Some(false) => f.write_str(", no file system data attached"),
                    None => Ok(()),
                }
            }
            What::Kernel { guest: Role::Test, line, .. } => write!(f, "dmesg: {line}"),
            What::Kernel { guest: Role::Witness, line, .. } => write!(f, "dmesg of the witness: {line}"),
            What::Processor { guest, place } => write!(f, "the {guest} guest's {place}"),
            What::Console { guest, why, tail } if tail.is_empty() => {
                write!(f, "the {guest} guest {why}; its console is empty")
            }
            What::Console { guest, why, tail } => {
                let last = tail.lines().last().unwrap_or_default();
                write!(f, "the {guest} guest {why}; the last of its console: {last}")
            }
            What::Trials { what, hits, of } => write!(f, "{what}: {hits} of {of} trials"),
            What::Injected { name, device, matched, occasion } => {
                write!(f, "injection \"{name}\" of {device}: {occasion} (match {matched})")
            }
            What::Unsound { why, check: None } => f.write_str(why),
            What::Unsound { why, check: Some(check) } => write!(f, "check \"{check}\": {why}"),
            What::Note { text } => f.write_str(text),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Test => "test",
            Role::Witness => "witness",
        })
    }
}

impl What {
    fn fmt_block(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let What::Block { id, op, gpa, lba, data, completed, status, changed, medium, held, arrived: _ } = self else {
            return Ok(());
        };
        write!(f, "blk {op} {id}")?;
        gpa.map_or(Ok(()), |gpa| write!(f, " of GPA {gpa:#x}"))?;
        write!(f, ", LBA {lba}: data at {}, completed {}", seq(*data), seq(*completed))?;
        if let Some(status) = status.filter(|status| *status != 0) {
            write!(f, " with status {status}")?;
        }
        if let Some((from, to)) = medium {
            write!(f, ", really of {} sectors from {from}", to.saturating_sub(*from))?;
        }
        for (from, to) in held {
            write!(f, ", held #{from} to {}", seq(*to))?;
        }
        match changed {
            Some(true) if op == "write" => f.write_str("; it stored other bytes than were there at its arrival"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_went_astray_says_where() {
        let block = |medium| What::Block {
            id: 7,
            op: "write".into(),
            gpa: None,
            lba: 800,
            arrived: 1,
            data: Some(2),
            completed: Some(3),
            status: Some(0),
            changed: None,
            medium,
            held: Vec::new(),
        };
        assert_eq!(block(None).to_string(), "blk write 7, LBA 800: data at #2, completed #3");
        let torn = block(Some((800, 803))).to_string();
        assert_eq!(torn, "blk write 7, LBA 800: data at #2, completed #3, really of 3 sectors from 800");
    }
}
