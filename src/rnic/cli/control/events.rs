// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ledger by pages: what happened from a number on, a bounded part at a time, and the number to go on with.

use blk::{DiskLedger, RequestRecord};
use mlx5::hooks::NicLedger;
use probe::firings_page;
use probe::ledger::{Ledger, Seq};
use serde_json::{Value, json};

use super::protocol::Args;

/// Events of a page, where nothing is said.
const USUAL: u64 = 100;
/// Events of a page at most.
const MOST: u64 = 1000;
/// Guest pages of a request that are told.
const PAGES: usize = 8;

/// `since` and `limit` of an order.
pub fn page(args: &mut Args) -> Result<(Seq, usize), String> {
    let since = args.number("since", u64::MAX)?.unwrap_or(0);
    let limit = args.number("limit", MOST)?.unwrap_or(USUAL);
    Ok((since, limit as usize))
}

/// The order `ledger`.
pub fn ledger(ledger: &Ledger, mut args: Args) -> Result<Value, String> {
    let (since, limit) = page(&mut args)?;
    // Before the look: whatever has a number up to this one is seen by it.
    let now = ledger.now();
    let mut events: Vec<(Seq, Value)> = Vec::new();
    let told = |key: &str, seq: Seq, value: Value| (seq, json!({"seq": seq, key: value}));
    events.extend(ledger.notes_page(since, limit).into_iter().map(|(seq, note)| told("note", seq, json!(note.text))));
    events.extend(ledger.requests_page(since, limit).iter().map(|one| told("disk", one.arrived, request(one))));
    events.extend(ledger.nic_page(since, limit).iter().map(|one| told("nic", one.seq, json!(one))));
    events.extend(firings_page(ledger, since, limit).iter().map(|one| told("firing", one.seq, json!(one))));
    events.sort_by_key(|(seq, _)| *seq);
    let next = next(&mut events, limit, since, now);
    let whole = ledger.complete_since(since) && ledger.nic_complete_since(since) && ledger.notes_complete_since(since);
    let events: Vec<Value> = events.into_iter().map(|(_, event)| event).collect();
    Ok(json!({"events": events, "next": next, "complete": whole}))
}

/// Cuts a page to its limit; the number that the next one begins with. Only what has a number up to `now` was looked for everywhere.
pub fn next<T>(events: &mut Vec<(Seq, T)>, limit: usize, since: Seq, now: Seq) -> Seq {
    events.retain(|(seq, _)| *seq <= now);
    if events.len() < limit {
        return since.max(now + 1);
    }
    events.truncate(limit);
    events.last().map_or(since, |(seq, _)| seq + 1)
}

/// A request may have a thousand pages.
fn request(record: &RequestRecord) -> Value {
    let pages = record.pages.len();
    let mut shown = record.clone();
    shown.pages.truncate(PAGES);
    let mut told = json!(shown);
    told["pages_in_all"] = json!(pages);
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::control::protocol::Request;
    use blk::{BlkOp, RequestStart};
    use mlx5::hooks::NicKind;
    use probe::ledger::Note;

    fn ask(book: &Ledger, args: Value) -> Value {
        let mut args = args;
        args["order"] = json!("ledger");
        let request = Request::parse(args.to_string().as_bytes()).unwrap();
        ledger(book, Args::new(request, &["since", "limit"]).unwrap()).unwrap()
    }

    fn flush(ledger: &Ledger) {
        let (lba, len, ranges, pages) = (0, 0, Vec::new(), Vec::new());
        ledger.begin(RequestStart { disk: 0, op: BlkOp::Flush, ranges, lba, len, pages, pages_known: true });
    }

    #[test]
    fn all_kinds_are_in_one_order_and_each_is_told_once() {
        let ledger = Ledger::new();
        for _ in 0..5 {
            ledger.stamp(Note::new("here"));
            flush(&ledger);
            ledger.nic_push(0, 7, NicKind::Resumed { token: 1, error: false });
            // A number without an event.
            ledger.tick();
        }
        let mut told = Vec::new();
        let mut since = json!(0);
        for _ in 0..9 {
            let page = ask(&ledger, json!({"since": since, "limit": 4}));
            assert!(page["events"].as_array().unwrap().len() <= 4 && page["complete"] == true);
            told.extend(page["events"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()));
            since = page["next"].clone();
        }
        let wanted: Vec<u64> = (1..=20).filter(|seq| seq % 4 != 0).collect();
        assert_eq!((told, since), (wanted, json!(21)));
        flush(&ledger);
        let page = ask(&ledger, json!({"since": 21}));
        assert_eq!((&page["events"][0]["disk"]["op"], &page["next"]), (&json!("flush"), &json!(22)));
        assert_eq!(ask(&ledger, json!({"since": 3, "limit": 0}))["next"], 3);
        assert_eq!(ask(&ledger, json!({"since": u64::MAX}))["events"], json!([]));
    }
}
