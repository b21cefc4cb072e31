// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the ledger has of an attempt, for the report's timeline.

use std::collections::{BTreeMap, BTreeSet};

use blk::{BlkOp, DiskLedger, RequestRecord};
use mlx5::hooks::{NicKind, NicLedger, NicRecord};
use probe::firings;
use probe::ledger::{Ledger, Note, Seq};

use super::{Bench, PAGE};
use crate::fact::{FactId, Facts, What};
use crate::finding::{Finding, heaviest};
use crate::oracle::nic::describe;
use crate::report::timeline::{Lane, Moment, Timeline, block, lane_of_step, nic_text};

/// Sectors of a page.
const SECTORS: u64 = 8;
/// Marks among which the begin of a step is looked for that was not called so.
const RECENT: usize = 64;

impl Bench<'_> {
    /// The attempt's timeline, once its facts and findings are complete. `until`: when its story had been told. What made the bench ready, and
    /// what cleans up, is in it only where a fact speaks of it.
    pub fn timeline(&self, facts: &Facts, findings: &[Finding], until: Seq) -> Timeline {
        let grounds: Vec<FactId> = heaviest(findings).map_or_else(Vec::new, |own| own.facts().to_vec());
        let mut events = events(self.guest.ledger(), self.ready);
        events.retain(|moment| moment.seq <= until);
        Timeline::new(events, facts, &grounds)
    }
}

/// Everything on record since `since`.
fn events(ledger: &Ledger, since: Seq) -> Vec<Moment> {
    let mut all = steps(ledger.notes(since));
    all.extend(nic(&ledger.nic(since)));
    all.extend(requests(ledger, since).iter().flat_map(|(record, gpa)| block(&What::block(record, *gpa))));
    all.extend(firings(ledger, since).into_iter().map(|firing| {
        let name = if firing.name.is_empty() { format!("rule {}", firing.rule.0) } else { firing.name };
        let text =
            format!("{}: {} \"{name}\", match {}, {}", firing.action, firing.device, firing.matched, firing.occasion);
        Moment::at(firing.seq, Lane::Injection, text)
    }));
    all
}

/// The lab's marks: a step's begin and its end are one moment.
fn steps(notes: Vec<(Seq, Note)>) -> Vec<Moment> {
    let mut all: Vec<Moment> = Vec::new();
    let mut begun: Vec<(usize, String)> = Vec::new();
    for (seq, Note { text }) in notes {
        if let Some(step) = [" begin", " posted"].iter().find_map(|word| text.strip_suffix(word)) {
            // A story may have named the step right before.
            if all.last().is_some_and(|last| last.text == step && last.end.is_none() && last.seq + 1 == seq) {
                all.pop();
            }
            begun.push((all.len(), step.to_owned()));
        } else if let Some((step, how)) = end_of(&text)
            && let Some((place, step)) = begin_of(step, &mut begun, &all)
            && let Some(moment) = all.get_mut(place)
        {
            moment.end = Some(seq);
            moment.text = if how == "end" { step } else { format!("{step}: {how}") };
            continue;
        }
        all.push(Moment::at(seq, lane_of_step(&text), text));
    }
    all
}

/// The moment that `step` began with, and how it was called then: a story may say more ("fsync of file"), and may not say "begin".
fn begin_of(step: &str, begun: &mut Vec<(usize, String)>, all: &[Moment]) -> Option<(usize, String)> {
    if let Some(place) = begun.iter().position(|(_, known)| is_of(known, step)) {
        return Some(begun.remove(place));
    }
    let recent = all.iter().enumerate().rev().take(RECENT);
    let same = |moment: &Moment| moment.text == step && moment.end.is_none();
    recent.into_iter().find(|(_, moment)| same(moment)).map(|(place, _)| (place, step.to_owned()))
}

/// Of "fsync returned 0": the step, and how it ended.
fn end_of(text: &str) -> Option<(&str, &str)> {
    let at = [" returned", " completed", " has returned", " end"].iter().filter_map(|word| text.find(word)).min()?;
    Some((&text[..at], &text[at + 1..]))
}

/// Whether `step` is the step that began as `known`.
fn is_of(known: &str, step: &str) -> bool {
    known.strip_prefix(step).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// What comes later than the record that is looked at.
#[derive(Default)]
struct Later {
    /// When a page fault's token was resumed, and whether with an error.
    answers: BTreeMap<u32, (Seq, bool)>,
    /// When a gate was opened.
    opened: BTreeMap<u64, Seq>,
    /// Changes of keys: index, and when the device began.
    changes: BTreeSet<(u32, Seq)>,
}

/// Events of the NIC; a fault and its answer, a gate's begin and end are one moment. In one pass from the end, since there may be thousands.
fn nic(records: &[NicRecord]) -> Vec<Moment> {
    let mut later = Later::default();
    let mut all: Vec<_> = records.iter().rev().filter_map(|record| later.moment(record)).collect();
    all.reverse();
    all
}

impl Later {
    /// What a record tells; its words are those of a fact of it.
    fn moment(&mut self, record: &NicRecord) -> Option<Moment> {
        let seq = record.seq;
        let words = describe(record);
        let told = nic_text(words.strip_suffix(&format!(" at #{seq}")).unwrap_or(&words));
        match record.kind {
            NicKind::Resumed { token, error } => drop(self.answers.insert(token, (seq, error))),
            NicKind::Ungated { token, .. } => drop(self.opened.insert(token, seq)),
            NicKind::Wrote { gpa, begun, .. } | NicKind::Read { gpa, begun, .. } => {
                return Some(Moment::span(begun, seq, Lane::Nic, told).of_page(Some(gpa & !(PAGE - 1))));
            }
            NicKind::Fault { token, .. } => {
                let answer = self.answers.get(&token);
                let how = answer.map_or("never answered", |(_, error)| match error {
                    true => "answered with an error",
                    false => "answered",
                });
                return Some(until(answer.map(|(at, _)| *at), seq, Lane::Fault, format!("{told}, {how}")));
            }
            NicKind::Gated { opcode, token } => {
                let text = format!("work request held: qp {:#x}, opcode {opcode:#x}, by a lever", record.qpn);
                return Some(until(self.opened.get(&token).copied(), seq, Lane::Nic, text));
            }
            NicKind::Completed { wqe_index, opcode, status } => {
                let how = if status == 0 { "done".into() } else { format!("failed, syndrome {status:#x}") };
                let text = format!("work request {how}: qp {:#x}, WQE {wqe_index}, opcode {opcode:#x}", record.qpn);
                return Some(Moment::at(seq, Lane::Nic, text));
            }
            NicKind::Updated { .. } | NicKind::Revoked { .. } | NicKind::Keyed { .. } => return self.change(record),
        }
        None
    }

    /// A change of a memory key.
    fn change(&mut self, record: &NicRecord) -> Option<Moment> {
        let (index, begun, what) = match record.kind {
            NicKind::Updated { index, entries: 0, begun, .. } => (index, begun, "rights changed".to_owned()),
            NicKind::Updated { index, first_entry, entries, begun } => {
                (index, begun, format!("{entries} translations replaced, from {first_entry}"))
            }
            NicKind::Revoked { index, begun } => (index, begun, "key revoked".into()),
            // A change's own `Updated` or `Revoked` tells it.
            NicKind::Keyed { index, begun, .. } if self.changes.contains(&(index, begun)) => return None,
            NicKind::Keyed { index, free, begun, .. } => {
                (index, begun, if free { "key made, free" } else { "key made" }.into())
            }
            _ => return None,
        };
        self.changes.insert((index, begun));
        Some(Moment::span(begun, record.seq, Lane::Mkey, format!("{what}: mkey index {index:#x}")))
    }
}

/// From `seq` on, to its end if that came.
fn until(end: Option<Seq>, seq: Seq, lane: Lane, text: String) -> Moment {
    Moment { open: end.is_none(), ..Moment::span(seq, end.unwrap_or(seq), lane, text) }
}

/// Requests that have to do with the watched pages, each with the page that it is told of: those that move one, those of the same sectors,
/// flushes, and what was held or failed.
fn requests(ledger: &Ledger, since: Seq) -> Vec<(RequestRecord, u64)> {
    let all = ledger.requests(since);
    let watched = |record: &RequestRecord| record.pages.iter().find(|touch| ledger.watches(touch.gpa)).map(|t| t.gpa);
    let touched = |record: &RequestRecord| {
        let of_disk = record.disk;
        let pages: Vec<_> = record.pages.iter().filter(|touch| ledger.watches(touch.gpa)).collect();
        pages.into_iter().map(move |touch| (of_disk, touch.lba / SECTORS)).collect::<Vec<_>>()
    };
    let blocks: BTreeSet<(u8, u64)> = all.iter().flat_map(touched).collect();
    let same = |record: &RequestRecord| {
        record.pages.iter().find(|touch| blocks.contains(&(record.disk, touch.lba / SECTORS))).map(|touch| touch.gpa)
    };
    all.into_iter()
        .filter_map(|record| {
            let page = watched(&record).or_else(|| same(&record));
            let stands_out = record.op == BlkOp::Flush
                || !record.holds.is_empty()
                || record.status.is_some_and(|status| status != 0);
            (page.is_some() || stands_out).then_some((record, page.unwrap_or_default()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk::{PageTouch, RequestStart};

    fn start(op: BlkOp, gpa: u64, lba: u64) -> RequestStart {
        let touch = PageTouch {
            gpa,
            offset: 0,
            len: 4096,
            lba,
            lba_offset: 0,
            at_arrival: None,
            at_data: None,
            at_completion: None,
        };
        let pages = if op == BlkOp::Flush { Vec::new() } else { vec![touch] };
        RequestStart { disk: 1, op, ranges: Vec::new(), lba, len: 4096, pages, pages_known: true }
    }

    #[test]
    fn a_step_is_one_moment_from_its_begin_to_its_end() {
        let ledger = Ledger::new();
        for text in ["fsync of file begin", "RDMA WRITE C begin", "store B", "RDMA WRITE C completed: success"] {
            ledger.stamp(Note::new(text));
        }
        for text in [
            "fsync returned 0",
            "dio read begin",
            "load of k",
            "load of k end",
            "swap",
            "swap begin",
            "the process has ended",
            "power cut (Kind) of disk 1",
        ] {
            ledger.stamp(Note::new(text));
        }
        let told: Vec<_> = events(&ledger, 0).into_iter().map(|m| (m.seq, m.end, m.lane, m.text)).collect();
        let of = |seq, end, lane, text: &str| (seq, end, lane, text.to_owned());
        assert_eq!(
            told,
            [
                of(1, Some(5), Lane::Fsync, "fsync of file: returned 0"),
                of(2, Some(4), Lane::Cpu, "RDMA WRITE C: completed: success"),
                of(3, None, Lane::Cpu, "store B"),
                of(6, None, Lane::Cpu, "dio read begin"),
                of(7, Some(8), Lane::Cpu, "load of k"),
                of(10, None, Lane::Cpu, "swap begin"),
                of(11, None, Lane::Cpu, "the process has ended"),
                of(12, None, Lane::Cut, "power cut (Kind) of disk 1"),
            ]
        );
    }

    #[test]
    fn requests_of_the_page_and_of_its_block_and_flushes_are_told_and_others_are_not() {
        let ledger = Ledger::new();
        ledger.watch(0x5000);
        let begin = |op, gpa, lba| ledger.begin(start(op, gpa, lba)).unwrap();
        let first = begin(BlkOp::Write, 0x5000, 80);
        let (other, same, flush) =
            (begin(BlkOp::Write, 0x9000, 400), begin(BlkOp::Read, 0xa000, 80), begin(BlkOp::Flush, 0, 0));
        ledger.amend(first, |r| (r.data, r.completed, r.status) = (Some(9), Some(10), Some(0)));
        let told: Vec<_> = requests(&ledger, 0).iter().map(|(record, _)| record.id).collect();
        assert_eq!(told, [first, same, flush], "not {other}");
        let labels: Vec<_> = events(&ledger, 0).iter().map(|m| (m.label().to_owned(), m.open)).collect();
        assert_eq!(labels[0], (format!("write {first}"), false));
        assert_eq!(labels[1].0, format!("write {first}'s data"));
        assert_eq!(labels[2], (format!("read {same}"), true));
    }

    #[test]
    fn a_page_fault_lasts_until_it_is_answered_and_a_copy_is_a_span() {
        let ledger = Ledger::new();
        ledger.watch(0x5000);
        let fault = |token| NicKind::Fault { key: 0x1200, va: 0x7000, write: true, token };
        ledger.nic_push(0, 0x43, fault(7));
        ledger.nic_push(0, 0, NicKind::Resumed { token: 7, error: false });
        ledger.nic_push(0, 0x43, fault(8));
        let begun = ledger.tick();
        ledger.nic_wrote(0, 0x43, (0x5000, 64), 0x1200, begun);
        let told = events(&ledger, 0);
        let seen: Vec<_> = told.iter().map(|m| (m.seq, m.end, m.open, m.lane, m.label())).collect();
        assert_eq!(
            seen,
            [
                (1, Some(2), false, Lane::Fault, "write fault 0x7"),
                (3, None, true, Lane::Fault, "write fault 0x8"),
                (4, Some(6), false, Lane::Nic, "nic write"),
            ]
        );
        assert_eq!(told[2].page, Some(0x5000));
    }
}
