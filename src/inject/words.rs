// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vocabulary: what can be injected into which device, by which keys it is bounded and what it takes.

use blk::{BlkOp, DiskAction, RequestMatch};
use mlx5::hooks::{NicAction, WqeMatch};
use mlx5_spec::cmd::{OPCODES, status};
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use mlx5_spec::{init, wqe};

use crate::keys::{Keys, Mistake};
use crate::plan::Kind;

/// What a device then does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// A NIC.
    Nic(NicAction),
    /// A disk.
    Disk(DiskAction),
}

/// One action.
pub struct Word {
    /// Which devices do it.
    pub kind: Kind,
    /// Its name in a plan.
    pub name: &'static str,
    /// Keys that say more of it: (key, what it is).
    pub takes: &'static [(&'static str, &'static str)],
    /// Keys that say what it happens to.
    pub matches: &'static [&'static str],
    /// One line for people.
    pub meaning: &'static str,
    pub(crate) make: fn(&mut Keys) -> Result<Does, Mistake>,
}

/// Keys of any action.
pub(crate) const COMMON: [&str; 8] = ["name", "device", "action", "nth", "every", "probability", "within_ms", "after"];

const COMMAND: &[&str] = &["command"];
const WQE: &[&str] = &["opcode", "qpn", "key", "address"];
const ACCESS: &[&str] = &["qpn", "key", "address"];
const COMPLETION: &[&str] = &["opcode", "qpn"];
const EVENT: &[&str] = &["event"];
const INTERRUPT: &[&str] = &["vector", "event"];
const REQUEST: &[&str] = &["op", "lba", "page", "watched"];
/// Of transfers, whose kind the action says.
const PLACE: &[&str] = &["lba", "page", "watched"];
const MS: (&str, &str) = ("ms", "milliseconds");
const SECTORS: (&str, &str) = ("sectors", "sectors of 512 bytes");
const FAILS: (&str, &str) = ("fails", "whether it is answered with an I/O error");
const BY: (&str, &str) = ("by", "sectors of 512 bytes further on");
const HEALTH: (&str, &str) = ("syndrome", "what the health buffer says, such as UNRECOVERABLE_HW");

/// How a send work request can fail.
const SYNDROMES: [(&str, u32); 12] = [
    ("LOCAL_LENGTH", syndrome::LOCAL_LENGTH_ERR),
    ("LOC_QP_OP", syndrome::LOCAL_QP_OP_ERR),
    ("LOCAL_PROT", syndrome::LOCAL_PROT_ERR),
    ("MW_BIND", syndrome::MW_BIND_ERR),
    ("BAD_RESP", syndrome::BAD_RESP_ERR),
    ("LOCAL_ACCESS", syndrome::LOCAL_ACCESS_ERR),
    ("REMOTE_INV_REQ", syndrome::REMOTE_INVAL_REQ_ERR),
    ("REMOTE_ACCESS", syndrome::REMOTE_ACCESS_ERR),
    ("REMOTE_OP", syndrome::REMOTE_OP_ERR),
    ("RETRY_EXC", syndrome::TRANSPORT_RETRY_EXC_ERR),
    ("RNR_RETRY_EXC", syndrome::RNR_RETRY_EXC_ERR),
    ("REMOTE_ABORTED", syndrome::REMOTE_ABORTED_ERR),
];

/// virtio 1.2 §5.2.6: VIRTIO_BLK_S_IOERR.
const IOERR: u8 = 1;
/// virtio 1.2 §5.2.6: VIRTIO_BLK_S_UNSUPP.
const UNSUPP: u8 = 2;

/// All of them, in the order of the documentation.
pub fn words() -> &'static [Word] {
    WORDS
}

const WORDS: &[Word] = &[
    Word {
        kind: Kind::Nic,
        name: "command-status",
        takes: &[("status", "a command status, such as NO_RES")],
        matches: COMMAND,
        meaning: "a command fails with a status before it does anything",
        make: |keys| {
            let status = keys.word("status", statuses().map(|(_, name)| name), status_of)?;
            let missing = || keys.mistake("needs the key \"status\": a command status, such as NO_RES");
            Ok(Does::Nic(NicAction::CommandStatus { status: status.ok_or_else(missing)? }))
        },
    },
    Word {
        kind: Kind::Nic,
        name: "command-delay",
        takes: &[MS],
        matches: COMMAND,
        meaning: "a command is executed and answered late (at most 120,000 ms); others are not delayed",
        make: |keys| Ok(Does::Nic(NicAction::CommandDelay { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "command-hang",
        takes: &[],
        matches: COMMAND,
        meaning: "a command is never executed: the driver gives it up after 60 s",
        make: |_| Ok(Does::Nic(NicAction::CommandHang)),
    },
    Word {
        kind: Kind::Nic,
        name: "stall",
        takes: &[MS],
        matches: WQE,
        meaning: "an engine stands still between translation and copy (at most 2,000 ms)",
        make: |keys| Ok(Does::Nic(NicAction::StallInFlight { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "late-dma",
        takes: &[],
        matches: WQE,
        meaning: "a write's data reach the pages that were translated before, after the translation has died",
        make: |_| Ok(Does::Nic(NicAction::LateDma)),
    },
    Word {
        kind: Kind::Nic,
        name: "rnr-on-fault",
        takes: &[],
        matches: WQE,
        meaning: "a page fault at the responder is answered with an RNR NAK instead of a wait",
        make: |_| Ok(Does::Nic(NicAction::RnrOnFault)),
    },
    Word {
        kind: Kind::Nic,
        name: "fault-event-lost",
        takes: &[],
        matches: ACCESS,
        meaning: "a page fault's event never reaches the driver",
        make: |_| Ok(Does::Nic(NicAction::DropFaultEvent)),
    },
    Word {
        kind: Kind::Nic,
        name: "fault-event-late",
        takes: &[MS],
        matches: ACCESS,
        meaning: "a page fault's event reaches the driver late (at most 2,000 ms)",
        make: |keys| Ok(Does::Nic(NicAction::DelayFaultEvent { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "strict-arm",
        takes: &[],
        matches: &[],
        meaning: "an arm of a completion queue with the number of one that has brought its event is ignored, as devices are reported to do",
        make: |_| Ok(Does::Nic(NicAction::StrictArm)),
    },
    Word {
        kind: Kind::Nic,
        name: "fault-event-reordered",
        takes: &[],
        matches: ACCESS,
        meaning: "a page fault's event is held until the next one has been delivered, or 200 ms",
        make: |_| Ok(Does::Nic(NicAction::FaultEventReordered)),
    },
    Word {
        kind: Kind::Nic,
        name: "resume-failing",
        takes: &[],
        matches: ACCESS,
        meaning: "PAGE_FAULT_RESUME succeeds, the page fault does not end, and its event comes again",
        make: |_| Ok(Does::Nic(NicAction::ResumeFailing)),
    },
    Word {
        kind: Kind::Nic,
        name: "abort-on-fault",
        takes: &[],
        matches: WQE,
        meaning: "a page fault at the beginning of a message completes the receive request of a shared queue in error 0x22/0x93, which libraries post again; the sender tries again",
        make: |_| Ok(Does::Nic(NicAction::AbortOnFault)),
    },
    Word {
        kind: Kind::Nic,
        name: "wqe-error",
        takes: &[("syndrome", "how a work request fails, such as RETRY_EXC")],
        matches: WQE,
        meaning: "a send work request completes in error and its queue pair goes to ERR; what else is posted is flushed",
        make: |keys| {
            let syndrome = keys.word("syndrome", SYNDROMES.iter().map(|(name, _)| *name), syndrome_of)?;
            let missing = || keys.mistake("needs the key \"syndrome\": how a work request fails, such as RETRY_EXC");
            Ok(Does::Nic(NicAction::WqeError { syndrome: syndrome.ok_or_else(missing)? }))
        },
    },
    Word {
        kind: Kind::Nic,
        name: "payload-corrupted",
        takes: &[],
        matches: WQE,
        meaning: "one bit of what a message of a connected queue pair writes flips; completion and ledger are as if all were well",
        make: |_| Ok(Does::Nic(NicAction::PayloadCorrupted)),
    },
    Word {
        kind: Kind::Nic,
        name: "completion-lost",
        takes: &[],
        matches: COMPLETION,
        meaning: "a CQE is never written",
        make: |_| Ok(Does::Nic(NicAction::CompletionLost)),
    },
    Word {
        kind: Kind::Nic,
        name: "completion-late",
        takes: &[MS],
        matches: COMPLETION,
        meaning: "a CQE is written late (at most 2,000 ms), and none of its queue before it",
        make: |keys| Ok(Does::Nic(NicAction::CompletionLate { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "event-lost",
        takes: &[],
        matches: EVENT,
        meaning: "an EQE is never written",
        make: |_| Ok(Does::Nic(NicAction::EventLost)),
    },
    Word {
        kind: Kind::Nic,
        name: "event-late",
        takes: &[MS],
        matches: EVENT,
        meaning: "an EQE is written late (at most 2,000 ms); others are not delayed",
        make: |keys| Ok(Does::Nic(NicAction::EventLate { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "interrupt-lost",
        takes: &[],
        matches: INTERRUPT,
        meaning: "an interrupt is not raised, and its event queue takes it for raised",
        make: |_| Ok(Does::Nic(NicAction::InterruptLost)),
    },
    Word {
        kind: Kind::Nic,
        name: "interrupt-late",
        takes: &[MS],
        matches: INTERRUPT,
        meaning: "an interrupt is raised late (at most 2,000 ms)",
        make: |keys| Ok(Does::Nic(NicAction::InterruptLate { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "interrupt-twice",
        takes: &[],
        matches: INTERRUPT,
        meaning: "an interrupt is raised, and once more a millisecond later",
        make: |_| Ok(Does::Nic(NicAction::InterruptTwice)),
    },
    Word {
        kind: Kind::Nic,
        name: "number-reuse",
        takes: &[],
        matches: COMMAND,
        meaning: "the number of a queue pair, completion queue or memory key that is destroyed is the next that is given out",
        make: |_| Ok(Does::Nic(NicAction::NumberReuse)),
    },
    Word {
        kind: Kind::Nic,
        name: "health-stuck",
        takes: &[],
        matches: COMMAND,
        meaning: "the health counter stands still until a reset",
        make: |_| Ok(Does::Nic(NicAction::HealthStuck)),
    },
    Word {
        kind: Kind::Nic,
        name: "health-error",
        takes: &[HEALTH],
        matches: COMMAND,
        meaning: "the health buffer tells of an error until a reset, and the device works on",
        make: |keys| Ok(Does::Nic(NicAction::HealthError { syndrome: health(keys)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "fatal-error",
        takes: &[HEALTH],
        matches: COMMAND,
        meaning: "the health buffer asks for a reset, and no command is answered; once the driver has seen it the device resets itself and waits for the driver to begin anew",
        make: |keys| Ok(Does::Nic(NicAction::FatalError { syndrome: health(keys)? })),
    },
    Word {
        kind: Kind::Nic,
        name: "all-ones",
        takes: &[("ms", "milliseconds; for ever where it is not given")],
        matches: COMMAND,
        meaning: "as if the device had been pulled out: every register reads all ones, no DMA, no interrupts; after `ms` (at most 600,000) it is back without what it had been told, configuration space apart",
        make: |keys| Ok(Does::Nic(NicAction::AllOnes { ms: keys.number("ms")?.unwrap_or(0) })),
    },
    Word {
        kind: Kind::Nic,
        name: "function-reset",
        takes: &[],
        matches: WQE,
        meaning: "the function is reset while payload is in flight, behind its driver's back; after 100 ms it is there again, as with `all-ones`",
        make: |_| Ok(Does::Nic(NicAction::FunctionReset)),
    },
    Word {
        kind: Kind::Nic,
        name: "port-down",
        takes: &[MS],
        matches: COMMAND,
        meaning: "the port goes down, and up again after `ms` (at most 120,000), each with its event; meanwhile no message is answered",
        make: |keys| Ok(Does::Nic(NicAction::PortDown { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Disk,
        name: "io-error",
        takes: &[],
        matches: REQUEST,
        meaning: "a request is answered with an I/O error, and no data move",
        make: |_| Ok(Does::Disk(DiskAction::Status(IOERR))),
    },
    Word {
        kind: Kind::Disk,
        name: "unsupported",
        takes: &[],
        matches: REQUEST,
        meaning: "a request is answered as one that the disk does not know, and no data move",
        make: |_| Ok(Does::Disk(DiskAction::Status(UNSUPP))),
    },
    Word {
        kind: Kind::Disk,
        name: "torn-write",
        takes: &[SECTORS, FAILS],
        matches: PLACE,
        meaning: "of a write with more than so many sectors only these reach the disk; it is answered with success, or with an I/O error if it `fails`",
        make: |keys| {
            let sectors = keys.needed(SECTORS.0, SECTORS.1)?;
            Ok(Does::Disk(DiskAction::TornWrite { sectors, fails: keys.flag(FAILS.0)? }))
        },
    },
    Word {
        kind: Kind::Disk,
        name: "misdirected",
        takes: &[BY],
        matches: REQUEST,
        meaning: "a read or a write is carried out so many sectors further on, where the disk has them, and answered with success",
        make: |keys| Ok(Does::Disk(DiskAction::Misdirected { by: keys.needed(BY.0, BY.1)? })),
    },
    Word {
        kind: Kind::Disk,
        name: "short",
        takes: &[SECTORS],
        matches: PLACE,
        meaning: "of a read of more than so many sectors only these are written to memory; it is answered with success and a used length that says so",
        make: |keys| Ok(Does::Disk(DiskAction::Short { sectors: keys.needed(SECTORS.0, SECTORS.1)? })),
    },
    Word {
        kind: Kind::Disk,
        name: "flush-lost",
        takes: &[],
        matches: &[],
        meaning: "a flush is answered with success, and nothing becomes durable by it",
        make: |_| Ok(Does::Disk(DiskAction::FlushLost)),
    },
    Word {
        kind: Kind::Disk,
        name: "delay",
        takes: &[MS],
        matches: REQUEST,
        meaning: "a request is carried out and answered late (at most 30,000 ms); others are not delayed",
        make: |keys| Ok(Does::Disk(DiskAction::Delay { ms: keys.needed(MS.0, MS.1)? })),
    },
    Word {
        kind: Kind::Disk,
        name: "reorder",
        takes: &[],
        matches: REQUEST,
        meaning: "a request is carried out once a later one to the same disk has completed, or after 200 ms; one at a time (legal: virtio-blk promises no order)",
        make: |_| Ok(Does::Disk(DiskAction::Reorder)),
    },
];

fn statuses() -> impl Iterator<Item = (u8, &'static str)> {
    (1..=u8::MAX).filter_map(|number| Some((number, status::name(number)?)))
}

fn status_of(name: &str) -> Option<u8> {
    statuses().find(|(_, known)| *known == name).map(|(number, _)| number)
}

fn syndrome_of(name: &str) -> Option<u8> {
    SYNDROMES.iter().find(|(known, _)| *known == name).and_then(|(_, number)| u8::try_from(*number).ok())
}

/// What the health buffer says: by name or number, for others are seen on hardware.
fn health(keys: &mut Keys) -> Result<u8, Mistake> {
    let names = || (1..=u8::MAX).filter_map(|number| Some((number, init::syndrome::name(number.into())?)));
    let find = |name: &str| names().find(|(_, known)| *known == name).map(|(number, _)| number);
    let syndrome = keys.word_or_byte("syndrome", names().map(|(_, name)| name), find)?;
    let missing = || keys.mistake("needs the key \"syndrome\": what the health buffer says, such as UNRECOVERABLE_HW");
    syndrome.ok_or_else(missing)
}

fn events() -> impl Iterator<Item = (u8, &'static str)> {
    (0..=u8::MAX).filter_map(|number| Some((number, event::name(number.into())?)))
}

fn opcodes() -> impl Iterator<Item = (u8, &'static str)> {
    (0..u8::MAX).filter_map(|number| Some((number, wqe::opcode::name(number.into())?)))
}

/// What an injection of a NIC happens to.
pub(crate) fn nic_match(keys: &mut Keys, word: &Word) -> Result<WqeMatch, Mistake> {
    let mut what = WqeMatch::default();
    for key in word.matches {
        match *key {
            "command" => {
                let find = |name: &str| OPCODES.iter().find(|(_, known)| *known == name).map(|(opcode, _)| opcode.0);
                what.command = keys.word(key, OPCODES.iter().map(|(_, name)| *name), find)?;
            }
            "opcode" => {
                let find = |name: &str| opcodes().find(|(_, known)| *known == name).map(|(number, _)| number);
                what.opcode = keys.word(key, opcodes().map(|(_, name)| name), find)?;
            }
            "event" => {
                let find = |name: &str| events().find(|(_, known)| *known == name).map(|(number, _)| number);
                what.event = keys.word(key, events().map(|(_, name)| name), find)?;
            }
            "vector" => what.vector = keys.number(key)?,
            "qpn" => what.qpn = keys.number(key)?,
            "address" => what.address = keys.range(key)?,
            _ => what.key = keys.number(key)?,
        }
    }
    Ok(what)
}

/// What an injection of a disk happens to.
pub(crate) fn disk_match(keys: &mut Keys, word: &Word) -> Result<RequestMatch, Mistake> {
    const OPS: [(&str, BlkOp); 5] = [
        ("read", BlkOp::Read),
        ("write", BlkOp::Write),
        ("flush", BlkOp::Flush),
        ("discard", BlkOp::Discard),
        ("write-zeroes", BlkOp::WriteZeroes),
    ];
    let mut what = RequestMatch::default();
    for key in word.matches {
        match *key {
            "op" => {
                let find = |name: &str| OPS.iter().find(|(known, _)| *known == name).map(|(_, op)| *op);
                what.op = keys.word(key, OPS.iter().map(|(name, _)| *name), find)?;
            }
            "lba" => what.lba = keys.range(key)?,
            "watched" => what.watched = keys.flag(key)?,
            _ => what.page = keys.number(key)?,
        }
    }
    Ok(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use std::collections::BTreeSet;
    use std::path::Path;

    const DOCUMENT: &str = include_str!("../../docs/faults.md");

    /// Cells of the rows of the document's tables.
    fn rows() -> impl Iterator<Item = Vec<&'static str>> {
        let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `"));
        rows.map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
    }

    #[test]
    fn the_document_has_each_action_as_it_is() {
        let code = |words: Vec<&str>| match words.is_empty() {
            true => "-".to_owned(),
            false => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        };
        let wanted: Vec<String> = WORDS
            .iter()
            .map(|word| {
                let takes = code(word.takes.iter().map(|(key, _)| *key).collect());
                let matches = code(word.matches.to_vec());
                [format!("`{}`", word.name), word.kind.to_string(), takes, matches, word.meaning.into()].join(" | ")
            })
            .collect();
        let told: Vec<String> = rows().filter(|cells| cells.len() == 5).map(|cells| cells.join(" | ")).collect();
        assert_eq!(told, wanted);
    }

    #[test]
    fn the_document_has_each_key() {
        let told: BTreeSet<_> =
            rows().filter(|cells| cells.len() == 3).map(|cells| cells[0].trim_matches('`')).collect();
        let of = |word: &'static Word| word.takes.iter().map(|(key, _)| *key).chain(word.matches.iter().copied());
        let wanted: BTreeSet<_> = COMMON.into_iter().chain(WORDS.iter().flat_map(of)).collect();
        assert_eq!(told, wanted);
    }

    /// Of the plans that are shipped: (file name, what it does).
    fn shipped() -> Vec<(String, Plan)> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../faults"));
        let files = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| (file.file_name().unwrap().display().to_string(), Plan::read(&file).unwrap())).collect()
    }

    #[test]
    fn each_action_has_a_plan_that_is_shipped() {
        let plans = shipped();
        let used: BTreeSet<_> =
            plans.iter().flat_map(|(_, plan)| plan.injections.iter().map(|injection| injection.action)).collect();
        let all: BTreeSet<_> = WORDS.iter().map(|word| word.name).collect();
        assert_eq!(used, all);
    }

    #[test]
    fn the_document_has_each_plan_that_is_shipped() {
        let told: BTreeSet<_> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("| [")?.split_once("](../faults/"))
            .map(|(name, rest)| (name, rest.split(')').next().unwrap()))
            .collect();
        let files = shipped();
        let wanted: BTreeSet<_> = files.iter().map(|(name, _)| (name.as_str(), name.as_str())).collect();
        assert_eq!(told, wanted);
    }

    #[test]
    fn a_name_is_one_action() {
        let names: BTreeSet<_> = WORDS.iter().map(|word| word.name).collect();
        assert_eq!(names.len(), WORDS.len());
    }
}
