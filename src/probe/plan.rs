// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules of one device and what they have done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::matcher::{RequestMatch, RequestShape};

/// At most this many rules a plan.
const MAX_RULES: usize = 256;

/// What the device does when a rule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultAction {
    /// When a lever catches the request, the device says that it holds it, and lets it go on at once.
    LieAboutHold,
    /// The request is carried out but not put on record in the ledger.
    HideFromLedger,
    /// The request is answered with this status byte (virtio 1.2 §5.2.6) and no data moves.
    Status(u8),
}

/// Identifies a rule in its plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RuleId(pub u64);

/// Match -> action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Given by [`FaultPlan::add`].
    #[serde(skip_deserializing)]
    pub id: RuleId,
    /// Which requests it looks at.
    #[serde(flatten)]
    pub request: RequestMatch,
    /// Fires on the n-th match (1: the first) and once only; 0 fires on every match.
    pub nth: u32,
    /// What then happens.
    pub action: FaultAction,
    /// Matches so far.
    #[serde(default)]
    pub matched: u64,
    /// Times fired so far. An oracle asks: a control that did not fire controls nothing.
    #[serde(default)]
    pub fired: u64,
}

impl Rule {
    /// A rule for the n-th request that `request` means.
    pub fn new(request: RequestMatch, nth: u32, action: FaultAction) -> Self {
        Self { id: RuleId(0), request, nth, action, matched: 0, fired: 0 }
    }
}

/// The rules of one device, shared between the device and the lab.
#[derive(Debug, Default)]
pub struct FaultPlan {
    any: AtomicBool,
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    last_id: u64,
    rules: Vec<Rule>,
}

impl FaultPlan {
    /// Adds a rule, with its counters at zero; `None` when the plan is full (256 rules).
    pub fn add(&self, mut rule: Rule) -> Option<RuleId> {
        let mut rules = self.lock();
        if rules.rules.len() >= MAX_RULES {
            return None;
        }
        rules.last_id += 1;
        rule.id = RuleId(rules.last_id);
        rule.matched = 0;
        rule.fired = 0;
        let id = rule.id;
        rules.rules.push(rule);
        self.any.store(true, Ordering::Release);
        Some(id)
    }

    /// Removes every rule.
    pub fn clear(&self) {
        self.lock().rules.clear();
        self.any.store(false, Ordering::Release);
    }

    /// A copy of the rules with their counters.
    pub fn rules(&self) -> Vec<Rule> {
        self.lock().rules.clone()
    }

    /// One rule.
    pub fn rule(&self, id: RuleId) -> Option<Rule> {
        self.lock().rules.iter().find(|rule| rule.id == id).cloned()
    }

    /// Asks every rule whose action `concerns` accepts about one request. The first that fires decides; all that match
    /// count. Each request is to be asked about once for each kind of action.
    pub fn consult(&self, request: &RequestShape<'_>, concerns: impl Fn(FaultAction) -> bool) -> Option<FaultAction> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut decision = None;
        for rule in self.lock().rules.iter_mut().filter(|rule| concerns(rule.action)) {
            if !rule.request.matches(request) {
                continue;
            }
            rule.matched += 1;
            let due = rule.nth == 0 || rule.matched == u64::from(rule.nth);
            if due && decision.is_none() {
                rule.fired += 1;
                decision = Some(rule.action);
            }
        }
        decision
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::BlkOp;

    const WRITE: RequestShape<'static> = RequestShape { op: BlkOp::Write, lba: &[], memory: &[] };
    const READ: RequestShape<'static> = RequestShape { op: BlkOp::Read, lba: &[], memory: &[] };

    fn writes() -> RequestMatch {
        RequestMatch { op: Some(BlkOp::Write), ..RequestMatch::default() }
    }

    #[test]
    fn fires_on_the_nth_match_once() {
        let plan = FaultPlan::default();
        let id = plan.add(Rule::new(writes(), 2, FaultAction::HideFromLedger)).unwrap();
        let ask = |shape| plan.consult(shape, |a| a == FaultAction::HideFromLedger);
        assert_eq!(ask(&WRITE), None);
        assert_eq!(ask(&READ), None);
        assert_eq!(ask(&WRITE), Some(FaultAction::HideFromLedger));
        assert_eq!(ask(&WRITE), None);
        let rule = plan.rule(id).unwrap();
        assert_eq!((rule.matched, rule.fired), (3, 1));
    }

    #[test]
    fn asks_only_rules_that_concern_the_moment_and_is_bounded() {
        let plan = FaultPlan::default();
        plan.add(Rule::new(writes(), 0, FaultAction::Status(1)));
        assert_eq!(plan.consult(&WRITE, |a| a == FaultAction::LieAboutHold), None);
        assert_eq!(plan.consult(&WRITE, |_| true), Some(FaultAction::Status(1)));
        assert_eq!(plan.consult(&WRITE, |_| true), Some(FaultAction::Status(1)));
        plan.clear();
        assert_eq!(plan.consult(&WRITE, |_| true), None);
        for _ in 0..MAX_RULES {
            assert!(plan.add(Rule::new(writes(), 1, FaultAction::LieAboutHold)).is_some());
        }
        assert!(plan.add(Rule::new(writes(), 1, FaultAction::LieAboutHold)).is_none());
    }
}
