// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Facts: what was seen in a row, each with its place in the ledger's order. Tables, JSON and whatever else a report is made of are
//! renderings of them, and a finding cannot be made without one.

use blk::{BlkOp, PowerCut, RequestRecord};
use mlx5::hooks::{NicKind, NicRecord};
use probe::ledger::Seq;
use rnic_agent::pattern::Content;
use rnic_agent::proto::{Page, Wc};
use serde::{Deserialize, Serialize};

use super::bench::Parts;
use super::check::Check;
use super::complaints::Gravity;

mod text;

/// What is counted in rounds.
const HARM: &str = "harm";

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    /// When, in the ledger's order; 0: at some time of the row that the ledger cannot tell.
    #[serde(default)]
    pub seq: Seq,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// Which of a kernel's two guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The one under test.
    Test,
    /// The one that mounts what a power cut left.
    Witness,
}

/// What a reader found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// Bytes, by their writers: "B*8" is eight sectors of B.
    Content(String),
    /// An error instead.
    Errno(i32),
}

/// The kinds of fact. Names in JSON are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum What {
    /// A step has returned.
    Returned {
        /// The call.
        step: String,
        /// Its error, if it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        errno: Option<i32>,
    },
    /// A step had not returned when somebody looked.
    Waits {
        /// The call.
        step: String,
        /// Since when, seconds.
        seconds: f64,
        /// What was held meanwhile; nothing: then nobody knows what it waits for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        held: Option<String>,
    },
    /// A step that had waited has returned, once what was held went on.
    Waited {
        /// The call.
        step: String,
        /// Since when, seconds, to the millisecond or two that the lab takes to see it.
        seconds: f64,
        /// Milliseconds after what was held had been released.
        after_ms: f64,
    },
    /// A page of a file as a power cut left it.
    Cut {
        /// "kind": every completed write survives. "cruel": only what a completed flush covers. "drawn 3": of the others a part, the third that
        /// was drawn of this moment.
        cut: String,
        /// Name of the file.
        file: String,
        /// Byte offset of the page.
        at: u64,
        /// What is there.
        found: Found,
    },
    /// What somebody read.
    Seen {
        /// Who: "the mapping", "an O_DIRECT read", "RDMA READ".
        by: String,
        /// Name of the file.
        file: String,
        /// Byte offset of the page.
        at: u64,
        /// What.
        found: Found,
    },
    /// A request of a disk.
    Block {
        /// Number in the ledger.
        id: u64,
        /// "read", "write", "flush".
        op: String,
        /// Guest physical address of the page under test, if it moves it.
        gpa: Option<u64>,
        /// First sector, of that page.
        lba: u64,
        /// When it came.
        arrived: Seq,
        /// When its data had been moved.
        data: Option<Seq>,
        /// When it completed.
        completed: Option<Seq>,
        /// Its status; 0 is success.
        status: Option<u8>,
        /// Whether the bytes that it stored differ from those at its arrival; not known where they were not compared.
        changed: Option<bool>,
        /// The sectors of the medium that its data really went to or came from, where an injection made these others than it asked for: first
        /// and behind the last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        medium: Option<(u64, u64)>,
        /// From when to when a lever held it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        held: Vec<(Seq, Option<Seq>)>,
    },
    /// No disk request of a kind that was looked for.
    NoBlock {
        /// "write".
        op: String,
        /// Guest physical address of the page.
        gpa: u64,
        /// Since when none came.
        since: Seq,
    },
    /// What lies below the file system under test.
    Disk {
        /// Its name in the row.
        name: String,
        /// /sys/block/*/queue/stable_writes: pages must not change while they are written.
        stable_writes: bool,
    },
    /// What a disk that keeps things twice has of a page, after a power cut.
    Twice {
        /// "kind", "cruel" or "drawn 3".
        cut: String,
        /// Name of the file.
        file: String,
        /// Byte offset of the page.
        at: u64,
        /// Each leg of a mirror.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        legs: Vec<Found>,
        /// Whether one can be had for another: the legs are the same, or the parity is that of the data.
        agree: bool,
    },
    /// A disk's write does not take its bytes from the memory that it was asked to be from: the kernel has copied them.
    Copied {
        /// Number of the write in the ledger.
        id: u64,
        /// Guest physical address of the memory.
        gpa: u64,
    },
    /// An event of the NIC.
    Nic {
        /// The event in words.
        event: String,
        /// Queue pair.
        qpn: u32,
        /// Guest physical address, of reads and writes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gpa: Option<u64>,
        /// When the copy began, of reads and writes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begun: Option<Seq>,
    },
    /// What on-demand paging did for a key in the row.
    Paging {
        /// Page faults that the NIC raised.
        faults: u64,
        /// Of these, answered by the driver with the page.
        answered: u64,
        /// Updates of translations.
        updates: u64,
    },
    /// A work request's completion.
    Completion {
        /// Which.
        request: String,
        /// ibv_wc_status_str(3).
        status: String,
        /// enum ibv_wc_status.
        code: u32,
        /// The device's own code.
        vendor_err: u32,
    },
    /// Where a page of the mapping is.
    Folio {
        /// When: "before MADV_PAGEOUT".
        when: String,
        /// Page frame number.
        pfn: u64,
        /// Pages of its folio.
        pages: u32,
        /// It is mapped.
        mapped: bool,
        /// The file system has data attached to the folio (ext4: buffers). Not known where nobody looked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attached: Option<bool>,
    },
    /// A line of a guest's kernel.
    Kernel {
        /// Whose.
        guest: Role,
        /// What kind of line.
        gravity: Gravity,
        /// The line.
        line: String,
    },
    /// Where a processor of a guest is that does not answer.
    Processor {
        /// Whose.
        guest: Role,
        /// Its place in words.
        place: String,
    },
    /// The end of a guest's console.
    Console {
        /// Whose.
        guest: Role,
        /// What happened to it.
        why: String,
        /// Its last lines.
        tail: String,
    },
    /// How many of a row's trials showed something.
    Trials {
        /// What.
        what: String,
        /// So many.
        hits: u32,
        /// Of so many.
        of: u32,
    },
    /// An injection of a plan fired.
    Injected {
        /// Its name in the plan.
        name: String,
        /// The device: "nic0", "disk1".
        device: String,
        /// Which of its matches it was, from 1.
        matched: u64,
        /// What it happened to.
        occasion: String,
    },
    /// Evidence that cannot be used, or is missing.
    Unsound {
        /// Why.
        why: String,
        /// The check that noticed it, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        check: Option<Check>,
    },
    /// What a scenario says beside.
    Note {
        /// A sentence.
        text: String,
    },
}

/// A fact of a row. Only [`Facts`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FactId(usize);

/// The facts of a row's attempt, in the order in which they were found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// Adds one; one that is there already keeps its place.
    pub fn add(&mut self, seq: Seq, what: What) -> FactId {
        let fact = Fact { seq, what };
        let at = self.0.iter().position(|known| known.says(&fact)).unwrap_or(self.0.len());
        if at == self.0.len() {
            self.0.push(fact);
        }
        FactId(at)
    }

    /// All of them.
    pub fn list(&self) -> &[Fact] {
        &self.0
    }

    /// One of them.
    pub fn get(&self, id: FactId) -> Option<&Fact> {
        self.0.get(id.0)
    }
}

impl FactId {
    /// Its place in the list.
    pub fn place(self) -> usize {
        self.0
    }
}

impl Found {
    /// What the agent's read gave.
    pub fn of(read: &Result<Content, i32>) -> Self {
        match read {
            Ok(content) => Found::Content(content.to_string()),
            Err(errno) => Found::Errno(*errno),
        }
    }
}

impl What {
    /// In how many of a story's rounds harm was seen.
    pub fn harm(hits: u32, of: u32) -> Self {
        What::Trials { what: HARM.into(), hits, of }
    }

    /// A disk's request, seen from page `gpa`.
    pub fn block(record: &RequestRecord, gpa: u64) -> Self {
        let op = match record.op {
            BlkOp::Read => "read",
            BlkOp::Write => "write",
            BlkOp::Flush => "flush",
            _ => "other",
        };
        let touch = record.pages.iter().find(|touch| touch.gpa == gpa);
        let changed = touch.and_then(|touch| Some(touch.at_arrival? != touch.at_data?));
        What::Block {
            id: record.id,
            op: op.into(),
            gpa: touch.map(|touch| touch.gpa),
            lba: touch.map_or(record.lba, |touch| touch.lba),
            arrived: record.arrived,
            data: record.data,
            completed: record.completed,
            status: record.status,
            changed,
            medium: record.medium.as_ref().map(|medium| (medium.start, medium.end)),
            held: record.holds.iter().map(|hold| (hold.from, hold.to)).collect(),
        }
    }

    /// An event of the NIC.
    pub fn nic(record: &NicRecord) -> Self {
        let (gpa, begun) = match record.kind {
            NicKind::Wrote { gpa, begun, .. } | NicKind::Read { gpa, begun, .. } => (Some(gpa), Some(begun)),
            NicKind::Updated { begun, .. } | NicKind::Revoked { begun, .. } => (None, Some(begun)),
            _ => (None, None),
        };
        let event = super::oracle::nic::describe(record);
        // The fact has its place already.
        let event = event.strip_suffix(&format!(" at #{}", record.seq)).unwrap_or(&event).to_string();
        What::Nic { event, qpn: record.qpn, gpa, begun }
    }

    /// A work request's completion.
    pub fn completion(request: &str, wc: &Wc) -> Self {
        let status = if wc.ok() { "success".into() } else { wc.status.clone() };
        let code = wc.code;
        What::Completion { request: request.into(), status, code, vendor_err: wc.vendor_err }
    }

    /// A power cut's page.
    pub fn cut(cut: PowerCut, file: &str, at: u64, found: &Result<Content, i32>) -> Self {
        What::Cut { cut: cut.to_string(), file: file.into(), at, found: Found::of(found) }
    }

    /// A power cut's page on a disk that keeps things twice.
    pub fn twice(cut: PowerCut, file: &str, at: u64, parts: &Parts) -> Self {
        let legs = match parts {
            Parts::Legs(legs, _) => legs.clone(),
            Parts::Parity(_) => Vec::new(),
        };
        What::Twice { cut: cut.to_string(), file: file.into(), at, legs, agree: parts.agree() }
    }

    /// A page of the mapping.
    pub fn folio(when: &str, page: &Page, attached: Option<bool>) -> Self {
        let (pfn, pages, mapped) = (page.pfn, page.folio_pages, page.present);
        What::Folio { when: when.into(), pfn, pages, mapped, attached }
    }
}

impl Fact {
    /// Of [`What::harm`]: in how many of how many rounds.
    pub fn harmful_rounds(&self) -> Option<(u32, u32)> {
        match &self.what {
            What::Trials { what, hits, of } if what == HARM => Some((*hits, *of)),
            _ => None,
        }
    }

    /// A kernel reports something about itself.
    pub fn is_report(&self) -> bool {
        matches!(self.what, What::Kernel { gravity, .. } if gravity > Gravity::Message)
    }

    /// Whether it tells what `other` does. A line of a kernel is the same whoever asked for it.
    fn says(&self, other: &Fact) -> bool {
        match (&self.what, &other.what) {
            (What::Kernel { .. }, What::Kernel { .. }) => self.what == other.what,
            _ => self == other,
        }
    }
}
