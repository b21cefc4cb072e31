// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::Arc;

use super::*;
use probe::KEPT;
use probe::ledger::{Ledger, Note};

fn write(lba: u64, gpa: u64) -> RequestStart {
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
    RequestStart {
        disk: 0,
        op: BlkOp::Write,
        ranges: std::iter::once(lba..lba + 8).collect(),
        lba,
        len: 4096,
        pages: vec![touch],
        pages_known: true,
    }
}

#[test]
fn one_order_for_notes_and_requests() {
    let ledger = Ledger::new();
    let begin = ledger.stamp(Note::new("step begin"));
    let id = ledger.begin(write(8, 0x3000)).unwrap();
    let end = ledger.stamp(Note::new("step end"));
    let record = ledger.request(id).unwrap();
    assert!(begin < record.arrived && record.arrived < end);
    assert_eq!(ledger.notes(end), vec![(end, Note::new("step end"))]);
}

#[test]
fn queries_find_by_page_and_by_time() {
    let ledger = Ledger::new();
    let first = ledger.begin(write(0, 0x1000)).unwrap();
    let second = ledger.begin(write(8, 0x2000)).unwrap();
    let over = ledger.tick();
    ledger.amend(first, |r| r.completed = Some(over));
    let later = ledger.tick();
    let ids = |records: Vec<RequestRecord>| records.iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(ledger.requests(0)), [first, second]);
    // The second is still in flight, so it is alive at any time.
    assert_eq!(ids(ledger.requests(later)), [second]);
    assert_eq!(ids(ledger.touching(0x1fff, 0)), [first]);
}

#[test]
fn the_ring_is_bounded_and_says_what_it_dropped() {
    let ledger = Ledger::new();
    for n in 0..KEPT as u64 {
        let id = ledger.begin(write(n, 0)).unwrap();
        let over = ledger.tick();
        ledger.amend(id, |r| r.completed = Some(over));
    }
    assert!(ledger.complete_since(0) && ledger.dropped() == 0);
    let mark = ledger.tick();
    ledger.begin(write(0, 0)).unwrap();
    assert_eq!((ledger.dropped(), ledger.requests(0).len()), (1, KEPT));
    assert!(!ledger.complete_since(0));
    assert!(ledger.complete_since(mark));
    assert!(ledger.request(1).is_none() && ledger.request(2).is_some());
    ledger.amend(1, |_| panic!("dropped records cannot be changed"));
}

#[test]
fn totals_show_a_request_that_was_not_recorded() {
    let ledger = Ledger::new();
    let counters = Arc::new(DiskCounters::default());
    counters.count(BlkOp::Write);
    ledger.register_disk(3, &counters);
    let mut start = write(0, 0);
    start.disk = 3;
    counters.count(BlkOp::Write);
    ledger.begin(start);
    ledger.register_disk(3, &counters);
    assert!(ledger.totals()[0].agree(), "counts before registration do not matter");
    counters.count(BlkOp::Write);
    let totals = ledger.totals()[0];
    assert_eq!((totals.device.write, totals.recorded.write, totals.agree()), (2, 1, false));
}

#[test]
fn a_hold_is_kept_only_if_nothing_moved_within_it() {
    let mut record = RequestRecord::new(1, write(0, 0), 1);
    let hold = Hold { point: HoldPoint::BeforeData, lever: 1, from: 2, to: Some(10), why: None };
    assert!(record.kept(&hold));
    record.data_begin = Some(11);
    record.data = Some(12);
    assert!(record.kept(&hold));
    record.data_begin = Some(3);
    record.data = Some(4);
    assert!(!record.kept(&hold));
    let late = Hold { point: HoldPoint::BeforeComplete, ..hold.clone() };
    assert!(record.kept(&late));
    record.completed = Some(5);
    assert!(!record.kept(&late));
    let open = Hold { to: None, ..late };
    assert!(!record.kept(&open));
}

#[test]
fn off_records_nothing() {
    let ledger = Ledger::new();
    ledger.set_on(false);
    assert!(ledger.begin(write(0, 0)).is_none());
    ledger.watch(0);
    assert!(!ledger.watches_any());
    ledger.set_on(true);
    assert!(ledger.requests(0).is_empty());
}
