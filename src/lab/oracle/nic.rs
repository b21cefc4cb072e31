// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Judgements on what the NIC did, from its records in the same order as those of the disks.

use crate::fact::What;
use blk::RequestRecord;
use mlx5::hooks::{NicKind, NicLedger, NicRecord};
use mlx5::mkey::Rights;
use probe::ledger::{Ledger, PAGE_SIZE, Seq};

fn same_page(a: u64, b: u64) -> bool {
    a / PAGE_SIZE == b / PAGE_SIZE
}

/// Whether it is a read or a write of page `page`.
pub fn is_of(record: &NicRecord, page: u64) -> bool {
    matches!(record.kind, NicKind::Wrote { gpa, .. } | NicKind::Read { gpa, .. } if same_page(gpa, page))
}

/// The NIC's last write into page `gpa`.
pub fn last_write(records: &[NicRecord], page: u64) -> Option<&NicRecord> {
    records.iter().rev().find(|r| matches!(r.kind, NicKind::Wrote { gpa, .. } if same_page(gpa, page)))
}

/// E1: the NIC wrote the page of `write` after `write` had arrived and before its data was taken.
pub fn landed_before_data(nic: &NicRecord, write: &RequestRecord) -> bool {
    write.data_begin.is_some_and(|taken| write.arrived < begun(nic) && nic.seq < taken)
}

/// The NIC wrote the page of `write` after its data was taken and before it completed.
pub fn landed_before_completion(nic: &NicRecord, write: &RequestRecord) -> bool {
    let (Some(taken), Some(completed)) = (write.data, write.completed) else { return false };
    taken < begun(nic) && nic.seq < completed
}

/// When the copy of a write or read began; otherwise when the event was.
fn begun(nic: &NicRecord) -> Seq {
    match nic.kind {
        NicKind::Wrote { begun, .. } | NicKind::Read { begun, .. } => begun,
        _ => nic.seq,
    }
}

/// Per NIC, how many writes of watched pages it counted more than are on record, since the guest started.
pub fn unrecorded(ledger: &Ledger) -> Vec<(u8, u64)> {
    ledger.nic_totals().iter().map(|totals| (totals.nic, totals.device.saturating_sub(totals.recorded))).collect()
}

/// Why the NIC's records are not fit to judge by: events were dropped, or the device wrote watched pages without telling. `before` is
/// [`unrecorded`] at the row's begin. Look while the NIC is quiet.
pub fn gap(ledger: &Ledger, since: Seq, before: &[(u8, u64)]) -> Option<String> {
    if !ledger.nic_complete_since(since) {
        return Some("the ledger has dropped events of the NIC".into());
    }
    let now = unrecorded(ledger);
    let (nic, missing) = now.iter().find(|pair| !before.contains(pair))?;
    let known = before.iter().find(|(other, _)| other == nic).map_or(0, |(_, missing)| *missing);
    Some(format!("NIC {nic} wrote watched pages {} times more than are on record", missing.saturating_sub(known)))
}

/// Design rule 3: a copy through a translation that was in flight before an update or revocation of its key began, and ended only
/// after that was complete. A device that keeps its promises never shows one.
pub fn dead_translation(records: &[NicRecord]) -> Option<String> {
    let deaths = records.iter().filter_map(|r| match r.kind {
        NicKind::Updated { index, begun, .. } | NicKind::Revoked { index, begun } => Some((index, begun, r)),
        _ => None,
    });
    deaths.into_iter().find_map(|(index, from, death)| {
        let copy = records.iter().find(|r| match r.kind {
            NicKind::Wrote { key, begun, .. } | NicKind::Read { key, begun, .. } => {
                key >> 8 == index && begun < from && r.seq > death.seq
            }
            _ => false,
        })?;
        let (copied, dead) = (describe(copy), death.seq);
        Some(format!(
            "{copied}, through a translation that it had looked up before #{from} and that was dead since #{dead}"
        ))
    })
}

/// What a key gave while a copy under it began at `from` and was over at `to`: the last word of the device before, and each that it was
/// about to say. Empty: nothing was said since the records begin.
fn given(records: &[NicRecord], key: u32, (from, to): (Seq, Seq)) -> Vec<Rights> {
    let mut given = Vec::new();
    for r in records {
        let NicKind::Keyed { index, rights, free: false, begun, .. } = r.kind else { continue };
        if index != key >> 8 || begun > to {
            continue;
        }
        if r.seq < from {
            given.clear();
        }
        given.push(rights);
    }
    given
}

/// A copy through a key that the device had said was free or destroyed before the copy began.
pub fn freed_key(records: &[NicRecord]) -> Option<String> {
    copies(records).find_map(|(copy, key, from, _)| {
        let dead = records.iter().rev().find(|r| match r.kind {
            NicKind::Revoked { index, .. } => index == key >> 8 && r.seq < from,
            _ => false,
        })?;
        let alive = records.iter().any(|r| match r.kind {
            NicKind::Keyed { index, free: false, begun, .. } => {
                index == key >> 8 && dead.seq < r.seq && begun < copy.seq
            }
            _ => false,
        });
        (!alive).then(|| format!("{}, through a key that was dead since #{}", describe(copy), dead.seq))
    })
}

/// A write through a key that gave no right to write, neither before nor in a change under way.
pub fn against_rights(records: &[NicRecord]) -> Option<String> {
    copies(records).filter(|(.., write)| *write).find_map(|(copy, key, from, _)| {
        let given = given(records, key, (from, copy.seq));
        let allowed = given.is_empty() || given.iter().any(|rights| rights.writes());
        (!allowed).then(|| format!("{}, through a key that gives no right to write", describe(copy)))
    })
}

/// Copies of payload: the record, its key, when it began, and whether it wrote.
fn copies(records: &[NicRecord]) -> impl Iterator<Item = (&NicRecord, u32, Seq, bool)> {
    records.iter().filter_map(|r| match r.kind {
        NicKind::Wrote { key, begun, .. } => Some((r, key, begun, true)),
        NicKind::Read { key, begun, .. } => Some((r, key, begun, false)),
        _ => None,
    })
}

/// A gate that was none: a queue pair whose work request the NIC said that it held moved payload or completed something meanwhile.
pub fn gate_not_kept(records: &[NicRecord]) -> Option<String> {
    let gates = records.iter().filter_map(|r| match r.kind {
        NicKind::Gated { token, .. } => Some((r, token)),
        _ => None,
    });
    gates.into_iter().find_map(|(gated, of)| {
        let opened = |r: &&NicRecord| matches!(r.kind, NicKind::Ungated { token, .. } if token == of);
        let until = records.iter().find(opened).map_or(Seq::MAX, |r| r.seq);
        let went_on = records.iter().find(|r| {
            let moved = matches!(r.kind, NicKind::Wrote { .. } | NicKind::Read { .. } | NicKind::Completed { .. });
            moved && (r.nic, r.qpn) == (gated.nic, gated.qpn) && gated.seq < r.seq && r.seq < until
        })?;
        Some(format!(
            "the gate said that it held a work request of qp {:#x} from #{}, but the queue pair went on: {}",
            gated.qpn,
            gated.seq,
            describe(went_on)
        ))
    })
}

/// The first page fault of the queue pairs `qpns` that nobody has answered.
pub fn unanswered_fault<'a>(records: &'a [NicRecord], qpns: &[u32]) -> Option<&'a NicRecord> {
    records.iter().find(|r| match r.kind {
        NicKind::Fault { token, .. } => qpns.contains(&r.qpn) && answered(records, r.seq, token).is_none(),
        _ => false,
    })
}

/// Whether an update or revocation of the key of `copy` began while `copy` was in flight.
pub fn met_in_flight(records: &[NicRecord], copy: &NicRecord) -> bool {
    let NicKind::Wrote { key, begun: from, .. } = copy.kind else { return false };
    records.iter().any(|r| match r.kind {
        NicKind::Updated { index, begun, .. } | NicKind::Revoked { index, begun } => {
            index == key >> 8 && from < begun && begun < copy.seq
        }
        _ => false,
    })
}

/// The page fault on `key` that was open at `at`: raised before, not answered until then.
pub fn fault_open_at(records: &[NicRecord], key: u32, at: Seq) -> Option<&NicRecord> {
    records.iter().filter(|r| r.seq < at).find(|r| match r.kind {
        NicKind::Fault { key: of, token, .. } => {
            of >> 8 == key >> 8 && answered(records, r.seq, token).is_none_or(|s| s > at)
        }
        _ => false,
    })
}

/// When the fault with this token, raised at `raised`, was answered.
fn answered(records: &[NicRecord], raised: Seq, of: u32) -> Option<Seq> {
    let answer = |r: &&NicRecord| r.seq > raised && matches!(r.kind, NicKind::Resumed { token, .. } if token == of);
    records.iter().find(answer).map(|r| r.seq)
}

/// How many faults were raised and answered, how often translations were written or taken away: the cycle of on-demand paging, for evidence.
pub fn paging(records: &[NicRecord], key: u32) -> What {
    let index = key >> 8;
    let count = |wanted: &dyn Fn(&NicKind) -> bool| records.iter().filter(|r| wanted(&r.kind)).count() as u64;
    let faults = count(&|kind| matches!(kind, NicKind::Fault { key, .. } if key >> 8 == index));
    let updates = count(&|kind| matches!(kind, NicKind::Updated { index: of, .. } if *of == index));
    let answered = count(&|kind| matches!(kind, NicKind::Resumed { error: false, .. }));
    What::Paging { faults, answered, updates }
}

/// "nic write qp 0x41 wrote GPA 0x5000 at #12".
pub fn describe(record: &NicRecord) -> String {
    let qpn = record.qpn;
    match record.kind {
        NicKind::Wrote { gpa, key, .. } => {
            format!("nic write qp {qpn:#x} mkey {key:#x} wrote GPA {gpa:#x} at #{}", record.seq)
        }
        NicKind::Read { gpa, key, .. } => {
            format!("nic read qp {qpn:#x} mkey {key:#x} read GPA {gpa:#x} at #{}", record.seq)
        }
        NicKind::Fault { key, va, write, token } => {
            let kind = if write { "write" } else { "read" };
            format!("{kind} fault {token:#x} on mkey {key:#x} address {va:#x} raised at #{}", record.seq)
        }
        _ => format!("{:?} at #{}", record.kind, record.seq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: Seq, kind: NicKind) -> NicRecord {
        NicRecord { seq, nic: 0, qpn: 0x41, kind }
    }

    #[test]
    fn a_fault_is_open_until_it_is_answered() {
        let fault = NicKind::Fault { key: 0x1200, va: 0, write: true, token: 7 };
        let records = [
            record(5, fault),
            record(8, NicKind::Resumed { token: 6, error: false }),
            record(9, NicKind::Resumed { token: 7, error: false }),
        ];
        assert!(fault_open_at(&records, 0x1234, 5).is_none(), "not raised yet");
        assert_eq!(fault_open_at(&records, 0x1234, 8).map(|r| r.seq), Some(5), "another fault's answer");
        assert!(fault_open_at(&records, 0x1234, 10).is_none(), "answered");
        assert!(fault_open_at(&records, 0x1300, 8).is_none(), "another key");
    }

    #[test]
    fn a_copy_across_the_death_of_its_translation_is_seen() {
        let wrote = |begun, seq, key| record(seq, NicKind::Wrote { gpa: 0x5000, len: 8, key, begun });
        let update = record(20, NicKind::Updated { index: 0x12, first_entry: 0, entries: 1, begun: 10 });
        for (copy, dead) in [
            (wrote(5, 15, 0x1234), false),
            (wrote(5, 25, 0x1234), true),
            (wrote(12, 25, 0x1234), false),
            (wrote(5, 25, 0x1334), false),
        ] {
            let mut records = [update, copy];
            records.sort_by_key(|r| r.seq);
            assert_eq!(dead_translation(&records).is_some(), dead, "{copy:?}");
        }
        assert!(met_in_flight(&[update], &wrote(5, 15, 0x1234)) && met_in_flight(&[update], &wrote(5, 25, 0x1234)));
        assert!(!met_in_flight(&[update], &wrote(12, 25, 0x1234)) && !met_in_flight(&[update], &wrote(5, 9, 0x1234)));
    }

    #[test]
    fn what_moves_behind_a_closed_gate_is_seen() {
        let gated = record(10, NicKind::Gated { opcode: 8, token: 3 });
        let opened = record(20, NicKind::Ungated { token: 3, why: probe::ReleaseWhy::Released });
        let wrote = |seq| record(seq, NicKind::Wrote { gpa: 0x5000, len: 8, key: 1, begun: seq });
        let done = |seq| record(seq, NicKind::Completed { wqe_index: 0, opcode: 8, status: 0 });
        assert!(gate_not_kept(&[wrote(5), gated, opened, wrote(21), done(22)]).is_none());
        assert!(gate_not_kept(&[gated, wrote(15), opened]).is_some() && gate_not_kept(&[gated, done(15)]).is_some());
        let other = NicRecord { qpn: 0x42, ..wrote(15) };
        assert!(gate_not_kept(&[gated, other, opened]).is_none(), "another queue pair");
    }

    #[test]
    fn what_moves_through_a_dead_key_or_against_its_rights_is_seen() {
        let keyed =
            |begun, seq, rights, free| record(seq, NicKind::Keyed { index: 0x12, variant: 0x34, rights, free, begun });
        let wrote = |begun, seq| record(seq, NicKind::Wrote { gpa: 0x5000, len: 8, key: 0x1234, begun });
        let read = |begun, seq| record(seq, NicKind::Read { gpa: 0x5000, len: 8, key: 0x1234, begun });
        let revoked = record(21, NicKind::Revoked { index: 0x12, begun: 18 });
        let (all, ro) = (Rights::REMOTE_WRITE, Rights::REMOTE_READ);
        // Dead from 21 on, until it is made anew.
        assert!(freed_key(&[keyed(1, 2, all, false), wrote(5, 6), revoked]).is_none());
        assert!(freed_key(&[wrote(20, 25), revoked]).is_none(), "in flight: another check's");
        assert!(freed_key(&[revoked, wrote(22, 25)]).is_some() && freed_key(&[revoked, read(22, 25)]).is_some());
        assert!(freed_key(&[revoked, keyed(23, 26, all, false), wrote(24, 25)]).is_none(), "being made anew");
        assert!(freed_key(&[revoked, wrote(22, 25), keyed(30, 31, all, false)]).is_some());
        assert!(freed_key(&[revoked, keyed(22, 23, all, true), wrote(24, 25)]).is_some());
        // Rights.
        assert!(against_rights(&[keyed(1, 2, ro, false), wrote(5, 6)]).is_some());
        assert!(against_rights(&[keyed(1, 2, ro, false), read(5, 6)]).is_none());
        assert!(against_rights(&[wrote(5, 6)]).is_none(), "nothing is known of the key");
        assert!(against_rights(&[keyed(1, 2, ro, false), keyed(3, 4, all, false), wrote(5, 6)]).is_none());
        assert!(against_rights(&[keyed(1, 2, all, false), keyed(3, 4, ro, false), wrote(5, 6)]).is_some());
        assert!(against_rights(&[keyed(1, 2, ro, false), keyed(4, 9, all, false), wrote(5, 6)]).is_none(), "changing");
    }

    #[test]
    fn a_fault_without_an_answer_is_found() {
        let fault = record(5, NicKind::Fault { key: 0x1200, va: 0, write: true, token: 7 });
        let answer = record(9, NicKind::Resumed { token: 7, error: true });
        assert_eq!(unanswered_fault(&[fault], &[0x41, 0x42]).map(|r| r.seq), Some(5));
        assert!(unanswered_fault(&[fault, answer], &[0x41]).is_none() && unanswered_fault(&[fault], &[0x42]).is_none());
    }

    #[test]
    fn the_last_write_of_a_page_is_found() {
        let wrote = |seq, gpa| record(seq, NicKind::Wrote { gpa, len: 64, key: 1, begun: seq });
        let records = [wrote(3, 0x5000), wrote(4, 0x5fc0), wrote(6, 0x6000)];
        assert_eq!(last_write(&records, 0x5000).map(|r| r.seq), Some(4));
        assert!(last_write(&records, 0x7000).is_none());
    }
}
