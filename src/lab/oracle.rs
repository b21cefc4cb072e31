// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Judgements on the ledger. Everything here compares sequence numbers and hashes of one guest's ledger; nothing knows
//! what was expected. Numbers E1, E2… (evidence) and V1… (rules) are those of docs/hazards.md, section 3.

pub mod cut;
pub mod nic;

use blk::{BlkOp, DiskLedger, DiskTotals, OpCounts, RequestRecord};
use probe::ReleaseWhy;
use probe::ledger::{Ledger, Seq};

/// E1: the DMA of `read` landed in a page of `write` after `write` had arrived and before its data was taken.
pub fn landed_before_data(read: &RequestRecord, write: &RequestRecord) -> bool {
    let (Some(landed), Some(taken)) = (read.data, write.data_begin) else { return false };
    write.arrived < landed && landed < taken
}

/// The write of page `gpa` that took its data last before `before`.
pub fn last_write_before(ledger: &Ledger, gpa: u64, since: Seq, before: Seq) -> Option<RequestRecord> {
    let writes = ledger.touching(gpa, since).into_iter();
    writes.filter(|r| r.op == BlkOp::Write && r.data.is_some_and(|at| at < before)).max_by_key(|r| r.data)
}

/// A write of page `gpa` that took its data after `after` and was acknowledged: the overlap was healed by a newer write (V1).
pub fn newer_write(ledger: &Ledger, gpa: u64, after: Seq) -> Option<RequestRecord> {
    let writes = ledger.touching(gpa, after).into_iter();
    writes.filter(|r| r.op == BlkOp::Write && r.data_begin.is_some_and(|at| at > after)).find(|r| r.status == Some(0))
}

/// Why a hold is no evidence: it was broken, expired, cancelled, or never ended. `None` when it is sound.
pub fn unsound_hold(record: &RequestRecord) -> Option<String> {
    record.holds.iter().find_map(|hold| {
        let name = describe(record);
        match hold.why {
            _ if !record.kept(hold) => Some(format!(
                "the lever said that it held {name} from #{} to {}, but the request went on meanwhile (data at {}, completed at {})",
                hold.from,
                seq(hold.to),
                seq(record.data),
                seq(record.completed),
            )),
            Some(ReleaseWhy::Expired) => Some(format!("the hold of {name} ran out before it was released")),
            Some(ReleaseWhy::Reset) => Some(format!("the hold of {name} was cancelled by a device reset")),
            _ => None,
        }
    })
}

/// Requests that a disk took and the ledger did not record, per disk since the guest started.
pub fn unrecorded(ledger: &Ledger) -> Vec<(u8, u64)> {
    let count = |counts: &OpCounts| counts.read + counts.write + counts.flush + counts.discard + counts.write_zeroes;
    let missing = |t: DiskTotals| (t.disk, count(&t.device).saturating_sub(count(&t.recorded)));
    ledger.totals().into_iter().map(missing).collect()
}

/// Why the ledger is not fit to judge by: it dropped records, or a disk took requests that it did not record. `before` is
/// [`unrecorded`] at the row's begin. `None` when it is whole. Look while the disks are quiet.
pub fn gap(ledger: &Ledger, since: Seq, before: &[(u8, u64)]) -> Option<String> {
    if !ledger.complete_since(since) {
        return Some(format!("the ledger has dropped {} requests", ledger.dropped()));
    }
    let now = unrecorded(ledger);
    let (disk, missing) = now.iter().find(|pair| !before.contains(pair))?;
    let known = before.iter().find(|(other, _)| other == disk).map_or(0, |(_, missing)| *missing);
    Some(format!("disk {disk} took {} requests that the ledger did not record", missing.saturating_sub(known)))
}

/// "blk write 30".
pub fn describe(record: &RequestRecord) -> String {
    let op = match record.op {
        BlkOp::Read => "read",
        BlkOp::Write => "write",
        BlkOp::Flush => "flush",
        _ => "request",
    };
    format!("blk {op} {}", record.id)
}

/// "#1204", or "never".
fn seq(at: Option<Seq>) -> String {
    at.map_or_else(|| "never".into(), |at| format!("#{at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk::{DiskLedger, PageTouch, RequestStart};

    fn start(op: BlkOp) -> RequestStart {
        let touch = PageTouch {
            gpa: 0x5000,
            offset: 0,
            len: 4096,
            lba: 8,
            lba_offset: 0,
            at_arrival: None,
            at_data: None,
            at_completion: None,
        };
        RequestStart {
            disk: 0,
            op,
            ranges: std::iter::once(8..16).collect(),
            lba: 8,
            len: 4096,
            pages: vec![touch],
            pages_known: true,
        }
    }

    /// A ledger with a write that arrives, a read that lands, and the write's data taken, in the given order.
    fn story(read_first: bool) -> (RequestRecord, RequestRecord, std::sync::Arc<Ledger>) {
        let ledger = Ledger::new();
        let (Some(write), Some(read)) = (ledger.begin(start(BlkOp::Write)), ledger.begin(start(BlkOp::Read))) else {
            panic!("the ledger is on")
        };
        let mut times = [ledger.tick(), ledger.tick(), ledger.tick()];
        if !read_first {
            times.rotate_left(2);
            times.sort_unstable_by(|a, b| b.cmp(a));
        }
        ledger.amend(read, |r| r.data = Some(times[0]));
        ledger.amend(write, |r| {
            r.data_begin = Some(times[1]);
            r.data = Some(times[1]);
            r.status = Some(0);
        });
        let get = |id| ledger.request(id).unwrap();
        (get(read), get(write), ledger.clone())
    }

    #[test]
    fn a_landing_counts_only_between_arrival_and_data() {
        let (read, write, _) = story(true);
        assert!(landed_before_data(&read, &write));
        let (read, write, _) = story(false);
        assert!(!landed_before_data(&read, &write));
    }

    #[test]
    fn only_a_later_acknowledged_write_heals() {
        let (read, _, ledger) = story(true);
        assert!(newer_write(&ledger, 0x5000, read.data.unwrap()).is_some());
        let (read, _, ledger) = story(false);
        assert!(newer_write(&ledger, 0x5000, read.data.unwrap()).is_none());
        assert!(newer_write(&ledger, 0x6000, 0).is_none());
    }
}
