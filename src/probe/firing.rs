// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Firings of rules in the ledger: what was made to go wrong, when, and at what.

use serde::Serialize;

use crate::ledger::{Ledger, Seq};
use crate::ring::{Event, Ring};
use crate::rules::RuleId;

/// A rule has fired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Firing {
    /// Its place in the order. What the device then does comes later.
    pub seq: Seq,
    /// Its number among the firings of this ledger, from 1.
    pub number: u64,
    /// The device: "nic0", "disk1".
    pub device: String,
    /// The rule, in the device's table.
    pub rule: RuleId,
    /// The rule's name, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Which of the rule's matches it was, from 1.
    pub matched: u64,
    /// What the device does.
    pub action: String,
    /// What it does it to.
    pub occasion: String,
}

impl Event for Firing {
    fn ended(&self) -> Option<Seq> {
        Some(self.seq)
    }
}

/// The newest 65,536 of a ledger.
pub type Firings = Ring<Firing>;

/// The firings at `since` or later, oldest first. They are on record while the ledger is off, too.
pub fn firings(ledger: &Ledger, since: Seq) -> Vec<Firing> {
    ledger.book::<Firings>().select(since, |_| true)
}

/// The oldest firings at `since` or later, at most `limit`.
pub fn firings_page(ledger: &Ledger, since: Seq, limit: usize) -> Vec<Firing> {
    ledger.book::<Firings>().page(limit, |firing| firing.seq >= since)
}
