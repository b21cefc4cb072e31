// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Facts as moments.

use super::{Lane, Moment};
use crate::fact::{Fact, What};
use probe::ledger::Seq;

/// How the disks' own marks of power cuts begin.
const MARK: &str = "power cut (";

/// Whether it is a disk's own mark of a power cut.
pub(super) fn is_mark(moment: &Moment) -> bool {
    moment.text.starts_with(MARK)
}

/// The lane of what the lab marks in the ledger.
pub fn lane_of_step(text: &str) -> Lane {
    match text {
        _ if text.starts_with(MARK) => Lane::Cut,
        _ if text.starts_with("fsync") => Lane::Fsync,
        _ => Lane::Cpu,
    }
}

/// An event of the NIC in the words of its fact, its first words apart.
pub fn nic_text(event: &str) -> String {
    match event.starts_with("nic ") {
        true => event.replacen(" qp ", ": qp ", 1),
        false => event.replacen(" on mkey ", ": mkey ", 1),
    }
}

/// What a fact tells. None of a fact whose place nobody knows.
pub(super) fn moments(fact: &Fact) -> Vec<Moment> {
    let (seq, words) = (fact.seq, fact.what.to_string());
    let one = |lane, text: String| vec![Moment::at(seq, lane, text)];
    if seq == 0 {
        return Vec::new();
    }
    match &fact.what {
        What::Block { .. } => block(&fact.what),
        What::NoBlock { op, gpa, since } => {
            let text = format!("no {op}: none of GPA {gpa:#x} since #{since}");
            vec![Moment::span(*since.min(&seq), seq, Lane::Disk, text).of_page(Some(*gpa))]
        }
        What::Nic { event, gpa, begun, .. } => {
            let lane = match event.as_str() {
                event if event.starts_with("nic ") => Lane::Nic,
                event if event.contains(" fault ") => Lane::Fault,
                event if event.contains("ated {") && event.contains("token") => Lane::Nic,
                event if event.starts_with("Completed") => Lane::Nic,
                _ => Lane::Mkey,
            };
            let page = gpa.map(|gpa| gpa & !0xfff);
            vec![Moment::span(begun.unwrap_or(seq).min(seq), seq, lane, nic_text(event)).of_page(page)]
        }
        What::Cut { cut, file, at, found } => {
            one(Lane::Cut, format!("{cut} cut {found}: page {} of \"{file}\" on disk", at / 4096))
        }
        What::Twice { .. } => one(Lane::Cut, words),
        What::Seen { by, file, at, found } => {
            one(Lane::Cpu, format!("{by} sees {found}: page {} of \"{file}\"", at / 4096))
        }
        What::Returned { step, .. } | What::Waits { step, .. } | What::Waited { step, .. } => {
            one(lane_of_step(step), words)
        }
        What::Completion { .. } => one(Lane::Cpu, words),
        What::Disk { .. } | What::Copied { .. } => one(Lane::Disk, words),
        What::Paging { .. } => one(Lane::Fault, words),
        What::Folio { .. } | What::Note { .. } => one(Lane::Cpu, words),
        What::Kernel { .. } | What::Processor { .. } | What::Console { .. } | What::Unsound { .. } => {
            one(Lane::Kernel, words)
        }
        // Firings are in the ledger.
        What::Trials { .. } | What::Injected { .. } => Vec::new(),
    }
}

/// A disk's request: the whole of it, its holds, and when its data moved.
pub fn block(what: &What) -> Vec<Moment> {
    let What::Block { id, op, gpa, lba, arrived, data, completed, status, changed, held, medium } = what else {
        return Vec::new();
    };
    let name = format!("{op} {id}");
    let span = |from: Seq, to: Option<Seq>, text: String| {
        let open = to.is_none();
        Moment { open, ..Moment::span(from, to.unwrap_or(from), Lane::Disk, text) }.of_page(*gpa)
    };
    let of = gpa.map_or_else(String::new, |gpa| format!("GPA {gpa:#x}, "));
    let error = status.filter(|status| *status != 0).map_or_else(String::new, |status| format!(", status {status}"));
    let moved = medium.map_or_else(String::new, |(from, to)| format!(", really LBA {from} to {to}"));
    let ended = if completed.is_none() { ", not completed" } else { "" };
    let name_of_whole = if error.is_empty() { name.clone() } else { format!("{name} failed") };
    let mut all = vec![span(*arrived, *completed, format!("{name_of_whole}: {of}LBA {lba}{moved}{ended}{error}"))];
    all.extend(held.iter().map(|(from, to)| span(*from, *to, format!("{name} held: by a lever"))));
    if let Some(data) = data {
        let changed = if *changed == Some(true) && op == "write" { ", other bytes than at its arrival" } else { "" };
        let way = if op == "read" { "into memory" } else { "out of memory" };
        all.push(Moment::at(*data, Lane::Disk, format!("{name}'s data: moved {way}{changed}")).of_page(*gpa));
    }
    all
}
