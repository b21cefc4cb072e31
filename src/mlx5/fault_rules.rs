// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Planted faults of the NIC, for negative controls (design rule 7): rules that make the one device break one of its promises.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::sync::lock;
use probe::RuleId;

/// At most this many rules a device.
const MAX_RULES: usize = 256;
/// A stall stays shorter than this: 2 s.
const MAX_STALL_MS: u32 = 2000;

/// What a rule looks at. Whatever is not known where it is asked about matches every rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WqeShape {
    /// `mlx5_spec::wqe::opcode`, or [`WqeShape::ANY_OPCODE`].
    pub opcode: u8,
    /// Queue pair; 0 for commands.
    pub qpn: u32,
    /// Index of the WQE's first block.
    pub wqe_index: u16,
    /// rkey of the target, or the first lkey, or a UMR's target.
    pub key: u32,
}

impl WqeShape {
    /// Not a WQE, or its opcode is not known here: any rule's opcode matches.
    pub const ANY_OPCODE: u8 = 0xff;

    /// A command about the key `key`.
    pub fn command(key: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn: 0, wqe_index: 0, key }
    }

    /// An access by queue pair `qpn` under `key`, of whatever WQE.
    pub fn access(key: u32, qpn: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn, wqe_index: 0, key }
    }
}

/// What the device does when a rule fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NicAction {
    /// A write's data reaches the pages that were translated before, after the translation has died.
    LateDma,
    /// An MTT entry that may only be read passes for one that may be written.
    IgnoreMttWriteBit,
    /// A UMR or DESTROY_MKEY completes without waiting for DMA in flight.
    NoGuard,
    /// The engine stands still between translation and copy for `ms` milliseconds (at most 2,000).
    StallInFlight {
        /// Milliseconds.
        ms: u32,
    },
    /// A page fault at the responder is answered with an RNR NAK instead of a wait.
    RnrOnFault,
    /// A page fault's event never reaches the driver.
    DropFaultEvent,
    /// A page fault's event reaches the driver `ms` milliseconds late (at most 2,000).
    DelayFaultEvent {
        /// Milliseconds.
        ms: u32,
    },
    /// A command fails with this status before it does anything.
    CommandStatus {
        /// `mlx5_spec::cmd::Opcode`.
        opcode: u16,
        /// `mlx5_spec::cmd::status`.
        status: u8,
    },
    /// A payload write is carried out but not put on record in the ledger.
    HideFromLedger,
}

/// Match -> action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRule {
    /// Given by [`NicFaults::add`].
    #[serde(skip_deserializing)]
    pub id: RuleId,
    /// Only WQEs with this opcode.
    #[serde(default)]
    pub opcode: Option<u8>,
    /// Only this queue pair.
    #[serde(default)]
    pub qpn: Option<u32>,
    /// Only this key: its index counts, variants change with every registration.
    #[serde(default)]
    pub key: Option<u32>,
    /// Fires on the n-th match (1: the first) and once only; 0 fires on every match.
    pub nth: u32,
    /// What then happens.
    pub action: NicAction,
    /// Matches so far.
    #[serde(default)]
    pub matched: u64,
    /// Times fired so far. An oracle asks: a control that did not fire controls nothing.
    #[serde(default)]
    pub fired: u64,
}

impl NicRule {
    /// A rule for the n-th WQE of any kind.
    pub fn new(nth: u32, action: NicAction) -> Self {
        Self { id: RuleId(0), opcode: None, qpn: None, key: None, nth, action, matched: 0, fired: 0 }
    }

    /// The same for one opcode only.
    pub fn for_opcode(self, opcode: u8) -> Self {
        Self { opcode: Some(opcode), ..self }
    }

    /// The same for one key only.
    pub fn for_key(self, key: u32) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The same for one queue pair only.
    pub fn for_qpn(self, qpn: u32) -> Self {
        Self { qpn: Some(qpn), ..self }
    }

    fn matches(&self, shape: &WqeShape) -> bool {
        let opcode = shape.opcode == WqeShape::ANY_OPCODE || self.opcode.is_none_or(|opcode| opcode == shape.opcode);
        let key = self.key.is_none_or(|key| key >> 8 == shape.key >> 8);
        let qpn = shape.qpn == 0 || self.qpn.is_none_or(|qpn| qpn == shape.qpn);
        opcode && key && qpn
    }
}

/// The rules of one device. Not touched by resets: the lab plants and clears them.
#[derive(Default)]
pub struct NicFaults {
    any: AtomicBool,
    rules: Mutex<Rules>,
}

#[derive(Default)]
struct Rules {
    last_id: u64,
    rules: Vec<NicRule>,
}

impl NicFaults {
    /// Adds a rule, with its counters at zero; `None` when there are 256.
    pub fn add(&self, mut rule: NicRule) -> Option<RuleId> {
        let mut rules = lock(&self.rules);
        if rules.rules.len() >= MAX_RULES {
            return None;
        }
        rules.last_id += 1;
        rule.id = RuleId(rules.last_id);
        (rule.matched, rule.fired) = (0, 0);
        if let NicAction::StallInFlight { ms } | NicAction::DelayFaultEvent { ms } = &mut rule.action {
            *ms = (*ms).min(MAX_STALL_MS);
        }
        let id = rule.id;
        rules.rules.push(rule);
        self.any.store(true, Ordering::Release);
        Some(id)
    }

    /// Removes every rule.
    pub fn clear(&self) {
        lock(&self.rules).rules.clear();
        self.any.store(false, Ordering::Release);
    }

    /// Whether there is any rule: one load.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// A copy of the rules with their counters.
    pub fn rules(&self) -> Vec<NicRule> {
        lock(&self.rules).rules.clone()
    }

    /// One rule.
    pub fn rule(&self, id: RuleId) -> Option<NicRule> {
        lock(&self.rules).rules.iter().find(|rule| rule.id == id).cloned()
    }

    /// Asks every rule whose action `concerns` accepts about one WQE (or access, or command). The first that fires decides; all that
    /// match count. To be asked once for each kind of action at each occasion. One load and a branch while there is no rule.
    pub fn consult(&self, shape: &WqeShape, concerns: impl Fn(NicAction) -> bool) -> Option<NicAction> {
        if !self.any() {
            return None;
        }
        let mut decision = None;
        for rule in lock(&self.rules).rules.iter_mut().filter(|rule| concerns(rule.action)) {
            if !rule.matches(shape) {
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

    /// For the command plane: the status that a planted [`NicAction::CommandStatus`] gives the command `opcode`.
    pub fn command_status(&self, opcode: u16) -> Option<u8> {
        let mine = |action| matches!(action, NicAction::CommandStatus { opcode: planted, .. } if planted == opcode);
        match self.consult(&WqeShape::command(0), mine) {
            Some(NicAction::CommandStatus { status, .. }) => Some(status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: WqeShape = WqeShape { opcode: 8, qpn: 0x40, wqe_index: 0, key: 0x1_0001 };

    #[test]
    fn a_rule_matches_by_opcode_queue_pair_and_key_index() {
        let faults = NicFaults::default();
        let late = |action: NicAction| action == NicAction::LateDma;
        assert!(faults.consult(&WRITE, late).is_none() && !faults.any());
        let rule = NicRule::new(0, NicAction::LateDma).for_opcode(8).for_qpn(0x40).for_key(0x1_00ff);
        let id = faults.add(rule).unwrap();
        assert_eq!(faults.consult(&WRITE, late), Some(NicAction::LateDma));
        for other in
            [WqeShape { opcode: 0x10, ..WRITE }, WqeShape { qpn: 0x41, ..WRITE }, WqeShape { key: 0x2_0001, ..WRITE }]
        {
            assert_eq!(faults.consult(&other, late), None, "{other:?}");
        }
        assert_eq!(faults.consult(&WqeShape::access(0x1_0001, 0x40), late), Some(NicAction::LateDma));
        assert_eq!(faults.consult(&WRITE, |action| action == NicAction::NoGuard), None);
        let rule = faults.rule(id).unwrap();
        assert_eq!((rule.matched, rule.fired), (2, 2));
    }

    #[test]
    fn fires_on_the_nth_match_once_and_bounds_what_it_is_given() {
        let faults = NicFaults::default();
        let id = faults.add(NicRule::new(2, NicAction::StallInFlight { ms: u32::MAX })).unwrap();
        let ask = || faults.consult(&WRITE, |action| matches!(action, NicAction::StallInFlight { .. }));
        assert_eq!((ask(), ask(), ask()), (None, Some(NicAction::StallInFlight { ms: 2000 }), None));
        assert_eq!(faults.rule(id).map(|rule| (rule.matched, rule.fired)), Some((3, 1)));
        faults.clear();
        let full = (0..300).filter_map(|_| faults.add(NicRule::new(0, NicAction::NoGuard))).count();
        assert_eq!(full, MAX_RULES);
    }

    #[test]
    fn commands_fail_by_opcode() {
        let faults = NicFaults::default();
        faults.add(NicRule::new(1, NicAction::CommandStatus { opcode: 0x200, status: 0xf }));
        assert_eq!(faults.command_status(0x202), None);
        assert_eq!(faults.command_status(0x200), Some(0xf));
        assert_eq!(faults.command_status(0x200), None);
    }

    #[test]
    fn a_rule_is_written_as_a_table() {
        let text = "opcode = 8\nkey = 65537\nnth = 1\n[action.stall_in_flight]\nms = 100\n";
        let rule: NicRule = toml::from_str(text).unwrap();
        let wanted = NicRule::new(1, NicAction::StallInFlight { ms: 100 }).for_opcode(8).for_key(0x1_0001);
        assert_eq!(rule, wanted);
        let rule: NicRule = toml::from_str("nth = 0\naction = \"no_guard\"\n").unwrap();
        assert_eq!(rule, NicRule::new(0, NicAction::NoGuard));
    }
}
