// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections of the NIC, for negative controls: rules that make the one device break one of its promises.

use probe::{Action, Rule, Rules};
use serde::{Deserialize, Serialize};

use super::{WqeMatch, WqeShape};

/// A stall stays shorter than this: 2 s.
const MAX_STALL_MS: u32 = 2000;

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
    /// An arm of a completion queue with the sequence number of an arm that has already brought its event is ignored. Legal: devices
    /// are reported to do so, and a driver that forgets to count waits for ever.
    StrictArm,
    /// A key that is freed (by a UMR, LOCAL_INV among them, or a SEND with invalidate) or destroyed goes on working as it did: its number and
    /// variant with its protection domain, rights, bounds and translations. All else is as if it had not: the completion, the ledger, what a
    /// query says, and that a UMR may make it anew. It ends when that happens, when it is freed again without this, by a reset,
    /// with the rules themselves ([`NicInjections`]' `clear`), and when 64 younger ones are there.
    ///
    /// Asked once for each of these, of which only the UMR's opcode is known: for the others a rule's opcode does not count.
    IgnoreFree,
    /// An MTT entry that a UMR takes away from a key in use stays; those that it replaces by present ones are replaced. It completes as
    /// ever. Asked once for each UMR that takes one away, so that a later one, of neighbours, may do it if this does not fire again.
    IgnoreZap,
    /// An access by key passes for which the key, or one beneath it, has not the right. Protection domain, bounds, variant and `free` count as ever.
    /// To a key without any right to write the write bits of its entries are no obstacle then either, for no driver would ever set one; an
    /// entry that may not be read stays a page fault. Asked whenever a piece of a message is looked up that lacks the right, and
    /// for a long message once more at its beginning: a rule with `nth` may let a part through.
    IgnoreRights,
    /// When a lever catches the WQE, the device says that it holds it, and lets it go on at once. Lever and ledger tell of a hold until it is
    /// released, its limit is over or the device is reset; what the WQE does meanwhile is on record as well.
    LieAboutHold,
}

impl Action for NicAction {
    fn bounded(mut self) -> Self {
        if let Self::StallInFlight { ms } | Self::DelayFaultEvent { ms } = &mut self {
            *ms = (*ms).min(MAX_STALL_MS);
        }
        self
    }
}

/// An injection: which WQE, and what goes wrong with it.
pub type NicRule = Rule<WqeMatch, NicAction>;

/// The injections of one NIC.
pub type NicInjections = Rules<WqeMatch, NicAction>;

/// For the command unit: the status that an injected [`NicAction::CommandStatus`] gives the command `opcode`.
pub fn command_status(injections: &NicInjections, opcode: u16) -> Option<u8> {
    let mine = |action| matches!(action, NicAction::CommandStatus { opcode: wanted, .. } if wanted == opcode);
    match injections.consult(&WqeShape::command(0), mine) {
        Some(NicAction::CommandStatus { status, .. }) => Some(status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_and_delays_are_bounded() {
        let injections = NicInjections::default();
        for action in [NicAction::StallInFlight { ms: u32::MAX }, NicAction::DelayFaultEvent { ms: 2001 }] {
            injections.add(NicRule::new(1, action)).unwrap();
        }
        let actions: Vec<_> = injections.rules().iter().map(|rule| rule.action).collect();
        assert_eq!(actions, [NicAction::StallInFlight { ms: 2000 }, NicAction::DelayFaultEvent { ms: 2000 }]);
    }

    #[test]
    fn commands_fail_by_opcode() {
        let injections = NicInjections::default();
        injections.add(NicRule::new(1, NicAction::CommandStatus { opcode: 0x200, status: 0xf }));
        assert_eq!(command_status(&injections, 0x202), None);
        assert_eq!(command_status(&injections, 0x200), Some(0xf));
        assert_eq!(command_status(&injections, 0x200), None);
    }

    #[test]
    fn a_rule_is_written_as_a_table() {
        let text = "opcode = 8\nkey = 65537\nnth = 1\n[action.stall_in_flight]\nms = 100\n";
        let rule: NicRule = toml::from_str(text).unwrap();
        let what = WqeMatch { opcode: Some(8), ..WqeMatch::key(0x1_0001) };
        let wanted = NicRule::new(1, NicAction::StallInFlight { ms: 100 }).on(what);
        assert_eq!(rule, wanted);
        let rule: NicRule = toml::from_str("nth = 0\naction = \"no_guard\"\n").unwrap();
        assert_eq!(rule, NicRule::new(0, NicAction::NoGuard));
        for (name, action) in [
            ("ignore_free", NicAction::IgnoreFree),
            ("ignore_zap", NicAction::IgnoreZap),
            ("ignore_rights", NicAction::IgnoreRights),
            ("lie_about_hold", NicAction::LieAboutHold),
        ] {
            let rule: NicRule = toml::from_str(&format!("nth = 0\naction = \"{name}\"\n")).unwrap();
            assert_eq!(rule, NicRule::new(0, action));
        }
    }
}
