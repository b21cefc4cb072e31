// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules: match -> action. A device asks about each occasion; what it can match and what it then does is its own.

use std::collections::VecDeque;
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::firing::{Firing, Firings};
use crate::ledger::{Ledger, Seq};

/// At most this many rules a device.
pub const MAX_RULES: usize = 256;

/// Conditions on what a device is about to do.
pub trait Match: Clone {
    /// What can be seen of it.
    type Shape<'a>: Display;

    /// Whether it is meant. Empty conditions mean everything.
    fn matches(&self, shape: &Self::Shape<'_>) -> bool;
}

/// What a device does when a rule fires.
pub trait Action: Copy + Debug {
    /// The same within the device's bounds: whoever writes a rule may ask for too much. Applied when a rule is added.
    fn bounded(self) -> Self {
        self
    }
}

/// Identifies a rule in its table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u64);

/// A part of the matches, drawn by a seed: the same matches in every run with this seed, whatever the time between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chance {
    /// Of a million matches so many fire.
    pub ppm: u32,
    /// What they are drawn by.
    pub seed: u64,
}

/// Number `n` of those that `seed` draws (SplitMix64).
pub fn drawn(seed: u64, n: u64) -> u64 {
    let mut word = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

impl Chance {
    /// Whether match number `n` is drawn.
    fn draws(self, n: u64) -> bool {
        drawn(self.seed, n) % 1_000_000 < u64::from(self.ppm)
    }
}

/// Match -> action. Of the matches those count that meet every condition on their number and time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule<M, A> {
    /// Given by [`Rules::add`].
    #[serde(skip_deserializing)]
    pub id: RuleId,
    /// What people call it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What it looks at.
    #[serde(flatten)]
    pub what: M,
    /// Fires on the n-th match (1: the first) and once only; 0: on any.
    pub nth: u32,
    /// Fires on each match whose number is a multiple of this; 0: on any.
    #[serde(default)]
    pub every: u32,
    /// Fires on a part of the matches only.
    #[serde(default)]
    pub chance: Option<Chance>,
    /// Fires within so many milliseconds from when it was added, and not later.
    #[serde(default)]
    pub within_ms: Option<u64>,
    /// Waits until a rule of this name has fired, on whatever device of the ledger, since this one was added: what comes before is no match.
    /// Without a ledger it waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// What then happens.
    pub action: A,
    /// Matches so far.
    #[serde(default)]
    pub matched: u64,
    /// Times fired so far. An oracle asks: a control that did not fire controls nothing.
    #[serde(default)]
    pub fired: u64,
}

impl<M: Default, A> Rule<M, A> {
    /// A rule for the n-th occasion of any kind (0: for all of them).
    pub fn new(nth: u32, action: A) -> Self {
        Self {
            id: RuleId::default(),
            name: String::new(),
            what: M::default(),
            nth,
            every: 0,
            chance: None,
            within_ms: None,
            after: None,
            action,
            matched: 0,
            fired: 0,
        }
    }

    /// The same for what `what` means only.
    pub fn on(self, what: impl Into<M>) -> Self {
        Self { what: what.into(), ..self }
    }
}

struct Entry<M, A> {
    rule: Rule<M, A>,
    /// When it ends; `None`: never.
    until: Option<Instant>,
    /// When it was added.
    since: Seq,
    /// The rule that it comes after has not been seen to fire, among the first so many firings of the ledger; `None`: it waits for none.
    waits: Option<u64>,
}

impl<M: Match, A: Action> Entry<M, A> {
    /// Whether its time has come: what it waits for has fired.
    fn is_on(&mut self, record: Option<&Ledger>) -> bool {
        let (Some(seen), Some(name)) = (self.waits, &self.rule.after) else { return true };
        let Some(ledger) = record else { return false };
        let (fired, newest) =
            ledger.book::<Firings>().any_since(seen, |firing| firing.seq >= self.since && firing.name == *name);
        self.waits = (!fired).then_some(newest);
        fired
    }

    /// Counts a match; whether it is one that the rule fires on.
    fn is_due(&mut self) -> bool {
        let rule = &mut self.rule;
        rule.matched += 1;
        (rule.nth == 0 || rule.matched == u64::from(rule.nth))
            && (rule.every == 0 || rule.matched.is_multiple_of(rule.every.into()))
            && rule.chance.is_none_or(|chance| chance.draws(rule.matched))
            && self.until.is_none_or(|end| Instant::now() < end)
    }
}

struct Table<M, A> {
    last_id: u64,
    entries: Vec<Entry<M, A>>,
    /// Rules that were removed one by one, the newest [`MAX_RULES`]: what they did is still to be told.
    removed: VecDeque<Rule<M, A>>,
}

impl<M, A> Default for Table<M, A> {
    fn default() -> Self {
        Self { last_id: 0, entries: Vec::new(), removed: VecDeque::new() }
    }
}

/// The rules of one device, shared between the device and the lab. No reset touches them: who adds them clears them.
pub struct Rules<M, A> {
    any: AtomicBool,
    clears: AtomicU64,
    table: Mutex<Table<M, A>>,
    /// Where firings are put on record, and the name of the device there.
    record: Option<(Arc<Ledger>, String)>,
}

impl<M, A> Default for Rules<M, A> {
    fn default() -> Self {
        let (any, clears, record) = Default::default();
        Self { any, clears, table: Mutex::default(), record }
    }
}

impl<M: Match, A: Action> Rules<M, A> {
    /// None yet. Each firing will be an event of `ledger`, which knows the device as `device`.
    pub fn on_record(ledger: &Arc<Ledger>, device: impl Into<String>) -> Self {
        Self { record: Some((ledger.clone(), device.into())), ..Self::default() }
    }

    /// Adds a rule, with its counters at zero and its action within bounds; `None` when there are [`MAX_RULES`].
    pub fn add(&self, rule: Rule<M, A>) -> Option<RuleId> {
        let mut table = self.table.lock();
        if table.entries.len() >= MAX_RULES {
            return None;
        }
        table.last_id += 1;
        let id = RuleId(table.last_id);
        // A time too far away to be named never comes.
        let until = rule.within_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
        let rule = Rule { id, action: rule.action.bounded(), matched: 0, fired: 0, ..rule };
        let since = self.record.as_ref().map_or(0, |(ledger, _)| ledger.tick());
        let waits = rule.after.is_some().then_some(0);
        table.entries.push(Entry { rule, until, since, waits });
        self.any.store(true, Ordering::Release);
        Some(id)
    }

    /// Removes one rule, which is given back with its counters. What of its misbehaviour outlasts the occasion is over, as with
    /// [`Rules::clear`].
    pub fn remove(&self, id: RuleId) -> Option<Rule<M, A>> {
        let mut table = self.table.lock();
        let at = table.entries.iter().position(|entry| entry.rule.id == id)?;
        let rule = table.entries.remove(at).rule;
        if table.removed.len() == MAX_RULES {
            table.removed.pop_front();
        }
        table.removed.push_back(rule.clone());
        self.clears.fetch_add(1, Ordering::Release);
        self.any.store(!table.entries.is_empty(), Ordering::Release);
        Some(rule)
    }

    /// Removes every rule, and forgets those that were removed before.
    pub fn clear(&self) {
        let mut table = self.table.lock();
        table.entries.clear();
        table.removed.clear();
        self.clears.fetch_add(1, Ordering::Release);
        self.any.store(false, Ordering::Release);
    }

    /// How often rules were removed. A device whose misbehaviour outlasts the occasion notes it before it asks, and is well again when
    /// it has changed.
    pub fn clears(&self) -> u64 {
        self.clears.load(Ordering::Acquire)
    }

    /// Whether there is any rule: one load.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// A copy of the rules with their counters.
    pub fn rules(&self) -> Vec<Rule<M, A>> {
        self.table.lock().entries.iter().map(|entry| entry.rule.clone()).collect()
    }

    /// The newest [`MAX_RULES`] rules that were removed one by one, with the counters that they had then, oldest first.
    pub fn removed(&self) -> Vec<Rule<M, A>> {
        self.table.lock().removed.iter().cloned().collect()
    }

    /// One rule.
    pub fn rule(&self, id: RuleId) -> Option<Rule<M, A>> {
        self.table.lock().entries.iter().find(|entry| entry.rule.id == id).map(|entry| entry.rule.clone())
    }

    /// Asks every rule whose action `concerns` accepts about one occasion. The first that fires decides; all that match count. To be
    /// asked once for each kind of action at each occasion. One load and a branch while there is no rule. A firing is on record when this
    /// returns.
    pub fn consult(&self, shape: &M::Shape<'_>, concerns: impl Fn(A) -> bool) -> Option<A> {
        if !self.any() {
            return None;
        }
        let mut decision = None;
        let mut table = self.table.lock();
        for entry in table.entries.iter_mut().filter(|entry| concerns(entry.rule.action)) {
            let record = self.record.as_ref().map(|(ledger, _)| &**ledger);
            if entry.rule.what.matches(shape) && entry.is_on(record) && entry.is_due() && decision.is_none() {
                entry.rule.fired += 1;
                decision = Some(entry.rule.action);
                self.put_on_record(&entry.rule, shape);
            }
        }
        decision
    }

    /// Under the table's lock: firings have the order of the matches.
    fn put_on_record(&self, rule: &Rule<M, A>, shape: &M::Shape<'_>) {
        let Some((ledger, device)) = &self.record else { return };
        let firing = |id, seq| Firing {
            seq,
            number: id,
            device: device.clone(),
            rule: rule.id,
            name: rule.name.clone(),
            matched: rule.matched,
            action: format!("{:?}", rule.action),
            occasion: shape.to_string(),
        };
        ledger.book::<Firings>().push(ledger, firing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firing::firings;

    /// Matches numbers, all of them or one.
    #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
    struct Only {
        number: Option<u8>,
    }

    impl Match for Only {
        type Shape<'a> = u8;

        fn matches(&self, shape: &u8) -> bool {
            self.number.is_none_or(|number| number == *shape)
        }
    }

    impl From<u8> for Only {
        fn from(number: u8) -> Self {
            Self { number: Some(number) }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Does {
        Fail,
        Stall(u32),
    }

    impl Action for Does {
        fn bounded(self) -> Self {
            match self {
                Self::Stall(ms) => Self::Stall(ms.min(100)),
                Self::Fail => self,
            }
        }
    }

    type Table = Rules<Only, Does>;

    /// Which of the first `n` occasions fire.
    fn firing(table: &Table, n: u32) -> Vec<u32> {
        (1..=n).filter(|_| table.consult(&7, |_| true).is_some()).collect()
    }

    fn with(rule: Rule<Only, Does>) -> Table {
        let table = Table::default();
        table.add(rule).unwrap();
        table
    }

    #[test]
    fn fires_on_the_nth_match_once() {
        let table = Table::default();
        let id = table.add(Rule::new(2, Does::Fail).on(7)).unwrap();
        let ask = |number| table.consult(&number, |_| true);
        assert_eq!([ask(7), ask(8), ask(7), ask(7)], [None, None, Some(Does::Fail), None]);
        assert_eq!(table.rule(id).map(|rule| (rule.matched, rule.fired)), Some((3, 1)));
    }

    #[test]
    fn every_chance_and_time_choose_among_the_matches() {
        assert_eq!(firing(&with(Rule { every: 3, ..Rule::new(0, Does::Fail) }), 10), [3, 6, 9]);
        assert_eq!(firing(&with(Rule { every: 3, ..Rule::new(6, Does::Fail) }), 10), [6], "all conditions hold");
        let drawn =
            |seed, ppm| firing(&with(Rule { chance: Some(Chance { ppm, seed }), ..Rule::new(0, Does::Fail) }), 10_000);
        let some = drawn(1, 250_000);
        assert!((2_200..2_800).contains(&some.len()), "{}", some.len());
        assert_eq!(some, drawn(1, 250_000), "a seed draws the same again");
        assert_ne!(some, drawn(2, 250_000));
        assert_eq!((drawn(1, 0).len(), drawn(1, 1_000_000).len()), (0, 10_000));
        assert_eq!(firing(&with(Rule { within_ms: Some(0), ..Rule::new(0, Does::Fail) }), 5), []);
        assert_eq!(firing(&with(Rule { within_ms: Some(u64::MAX), ..Rule::new(0, Does::Fail) }), 2), [1, 2]);
    }

    #[test]
    fn asks_only_rules_that_concern_the_moment_and_the_first_decides() {
        let table = with(Rule::new(0, Does::Fail));
        let second = table.add(Rule::new(0, Does::Stall(5))).unwrap();
        let stalls = |action| matches!(action, Does::Stall(_));
        assert_eq!(table.consult(&0, stalls), Some(Does::Stall(5)));
        assert_eq!(table.consult(&0, |_| true), Some(Does::Fail));
        // It matched twice and fired where it decided.
        assert_eq!(table.rule(second).map(|rule| (rule.matched, rule.fired)), Some((2, 1)));
        table.clear();
        assert!(table.consult(&0, |_| true).is_none() && !table.any());
        assert_eq!(table.clears(), 1);
    }

    #[test]
    fn each_firing_is_an_event_with_its_number() {
        let ledger = Ledger::new();
        let table = Table::on_record(&ledger, "disk0");
        let named = Rule { name: "odd".into(), every: 2, ..Rule::new(0, Does::Fail).on(7) };
        let id = table.add(named).unwrap();
        let before = ledger.tick();
        assert_eq!((0..5).filter_map(|_| table.consult(&7, |_| true)).count(), 2);
        let firings = firings(&ledger, 0);
        assert_eq!(firings.iter().map(|one| (one.number, one.matched)).collect::<Vec<_>>(), [(1, 2), (2, 4)]);
        let first = &firings[0];
        assert!(first.seq > before && (first.device.as_str(), first.rule, first.name.as_str()) == ("disk0", id, "odd"));
        assert_eq!((first.action.as_str(), first.occasion.as_str()), ("Fail", "7"));
        assert_eq!(crate::firing::firings(&ledger, first.seq + 1).len(), 1);
    }

    #[test]
    fn a_rule_after_another_counts_from_its_firing_on() {
        let ledger = Ledger::new();
        let (first, second) = (Table::on_record(&ledger, "nic0"), Table::on_record(&ledger, "disk0"));
        let begin =
            |table: &Table, nth| table.add(Rule { name: "begin".into(), ..Rule::new(nth, Does::Fail) }).unwrap();
        begin(&first, 1);
        assert!(first.consult(&7, |_| true).is_some(), "before the other was there");
        let id = second.add(Rule { after: Some("begin".into()), ..Rule::new(2, Does::Stall(5)) }).unwrap();
        assert_eq!(firing(&second, 4), []);
        assert_eq!(second.rule(id).map(|rule| rule.matched), Some(0));
        begin(&first, 2);
        assert_eq!((firing(&first, 1), firing(&second, 4)), (vec![], vec![]), "a match is no firing");
        assert_eq!((firing(&first, 1), firing(&second, 4)), (vec![1], vec![2]));
        let alone = with(Rule { after: Some("begin".into()), ..Rule::new(0, Does::Fail) });
        assert_eq!(firing(&alone, 4), []);
    }

    /// Of one device, at one occasion: the first decides, and the second begins with the next.
    #[test]
    fn a_rule_can_come_after_one_of_its_own_table() {
        let table = Table::on_record(&Ledger::new(), "nic0");
        table.add(Rule { name: "begin".into(), ..Rule::new(3, Does::Fail) }).unwrap();
        table.add(Rule { after: Some("begin".into()), ..Rule::new(0, Does::Stall(5)) }).unwrap();
        let said: Vec<_> = (0..5).map(|_| table.consult(&7, |_| true)).collect();
        assert_eq!(said, [None, None, Some(Does::Fail), Some(Does::Stall(5)), Some(Does::Stall(5))]);
    }

    #[test]
    fn one_rule_is_removed_with_its_counters_and_the_others_stay() {
        let table = with(Rule::new(0, Does::Fail));
        let stall = table.add(Rule { name: "slow".into(), ..Rule::new(0, Does::Stall(5)) }).unwrap();
        let stalls = |action| matches!(action, Does::Stall(_));
        assert!(table.consult(&0, stalls).is_some());
        let gone = table.remove(stall).unwrap();
        assert_eq!((gone.id, gone.name.as_str(), gone.matched, gone.fired), (stall, "slow", 1, 1));
        assert_eq!((table.consult(&0, stalls), table.remove(stall)), (None, None));
        assert!(table.any() && table.consult(&0, |_| true) == Some(Does::Fail), "the other rule is still there");
        assert_eq!((table.removed(), table.clears()), (vec![gone], 1));
        // No number is given twice, and the last that goes switches all off.
        let again = table.add(Rule::new(0, Does::Fail)).unwrap();
        assert!(again > stall);
        for rule in table.rules() {
            table.remove(rule.id);
        }
        assert!(!table.any() && table.removed().len() == 3);
        table.clear();
        assert!(table.removed().is_empty());
    }

    #[test]
    fn what_was_removed_is_bounded() {
        let table = Table::default();
        for _ in 0..MAX_RULES + 5 {
            let id = table.add(Rule::new(0, Does::Fail)).unwrap();
            table.remove(id);
        }
        let removed = table.removed();
        assert_eq!((removed.len(), removed[0].id), (MAX_RULES, RuleId(6)));
    }

    #[test]
    fn what_is_added_is_bounded() {
        let table = Table::default();
        let given = Rule { matched: 9, fired: 9, ..Rule::new(0, Does::Stall(u32::MAX)) };
        let added = (0..300).filter_map(|_| table.add(given.clone())).count();
        assert_eq!(added, MAX_RULES);
        let first = &table.rules()[0];
        assert_eq!((first.action, first.matched, first.fired), (Does::Stall(100), 0, 0));
    }
}
