// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injections of the NIC, for negative controls: rules that make the one device break one of its promises.

use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use probe::{Action, Rule, Rules};
use serde::{Deserialize, Serialize};

use super::{WqeMatch, WqeShape};

/// A stall stays shorter than this, and whatever comes late is no later: 2 s.
const MAX_STALL_MS: u32 = 2000;
/// A command is at most this late, and a port down no longer: 120 s.
const MAX_COMMAND_MS: u32 = 120_000;
/// The device answers nothing for so long, if not for ever: 10 minutes.
const MAX_GONE_MS: u32 = 600_000;

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
        /// `mlx5_spec::cmd::status`.
        status: u8,
    },
    /// A command is executed and answered `ms` milliseconds late (at most 120,000: drivers wait for 60 s). Others are not delayed.
    CommandDelay {
        /// Milliseconds.
        ms: u32,
    },
    /// A command is never executed and its entry stays the device's, until the command queue is set up anew.
    CommandHang,
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
    /// A send WQE completes in error before it does anything, and its queue pair leaves service as with any error of its own.
    WqeError {
        /// `mlx5_spec::cq::syndrome`; vendor's bytes go with it where they are known.
        syndrome: u8,
    },
    /// A CQE is never written.
    CompletionLost,
    /// A CQE is written `ms` milliseconds late (at most 2,000), and none of its completion queue before it.
    CompletionLate {
        /// Milliseconds.
        ms: u32,
    },
    /// An EQE is never written.
    EventLost,
    /// An EQE is written `ms` milliseconds late (at most 2,000); others are not delayed.
    EventLate {
        /// Milliseconds.
        ms: u32,
    },
    /// An MSI-X message is not sent. Its event queue is disarmed as if it had been.
    InterruptLost,
    /// An MSI-X message is sent `ms` milliseconds late (at most 2,000).
    InterruptLate {
        /// Milliseconds.
        ms: u32,
    },
    /// An MSI-X message is sent, and a millisecond later once more.
    InterruptTwice,
    /// A page fault's event is held until the next one has been delivered, or 200 ms. While one is held, no other is.
    FaultEventReordered,
    /// PAGE_FAULT_RESUME succeeds and the page fault does not end: its event comes again, with the same token.
    ResumeFailing,
    /// A page fault at the beginning of a message that has taken its receive WQE from a shared queue completes that WQE in error, 0x22 with the
    /// vendor's 0x93, which libraries take as "post it again"; the sender gets an RNR NAK. The driver is told of the page fault as ever.
    AbortOnFault,
    /// One bit of a payload write flips: the lowest of the first byte of the piece. Ledger and completion are as if all were well.
    PayloadCorrupted,
    /// The number of what was just destroyed is the next that is given out. Asked for DESTROY_QP, DESTROY_CQ and DESTROY_MKEY when they have
    /// succeeded.
    NumberReuse,
    /// The health counter stands still until a reset.
    HealthStuck,
    /// The health buffer tells of an error until a reset; the device works on.
    HealthError {
        /// `mlx5_spec::init::syndrome`.
        syndrome: u8,
    },
    /// The device is beyond recovery: the health buffer says so and asks for a reset, and no command is answered. Half a second after a
    /// driver has seen it all that it had made is gone, and the interface is disabled until a driver begins anew (contract 12.3).
    FatalError {
        /// As for [`NicAction::HealthError`].
        syndrome: u8,
    },
    /// As if the device had been pulled out: every register reads as all ones, writes do nothing, no DMA, no message. After `ms`
    /// milliseconds (0: never; at most 600,000) it is back with its configuration space, and without anything else.
    AllOnes {
        /// Milliseconds.
        ms: u32,
    },
    /// The function is reset while the payload of a piece is in flight, as if somebody had asked for a function-level reset just then: none of it
    /// lands. For 100 ms it is as with [`NicAction::AllOnes`]. Asked once a WQE, when its first piece has
    /// been translated.
    FunctionReset,
    /// The port goes down, with its event, and up again `ms` milliseconds later (at most 120,000). Meanwhile no message is answered.
    PortDown {
        /// Milliseconds.
        ms: u32,
    },
    /// When a lever catches the WQE, the device says that it holds it, and lets it go on at once. Lever and ledger tell of a hold until it is
    /// released, its limit is over or the device is reset; what the WQE does meanwhile is on record as well.
    LieAboutHold,
}

impl Action for NicAction {
    fn bounded(mut self) -> Self {
        match &mut self {
            Self::StallInFlight { ms }
            | Self::DelayFaultEvent { ms }
            | Self::CompletionLate { ms }
            | Self::EventLate { ms }
            | Self::InterruptLate { ms } => *ms = (*ms).min(MAX_STALL_MS),
            Self::CommandDelay { ms } | Self::PortDown { ms } => *ms = (*ms).min(MAX_COMMAND_MS),
            Self::AllOnes { ms } => *ms = (*ms).min(MAX_GONE_MS),
            _ => {}
        }
        self
    }
}

/// An injection: which WQE, and what goes wrong with it.
pub type NicRule = Rule<WqeMatch, NicAction>;

/// The injections of one NIC.
pub type NicInjections = Rules<WqeMatch, NicAction>;

/// What becomes of something that the device tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is told.
    Now,
    /// It is told so much later.
    Late(Duration),
    /// It is never told.
    Lost,
    /// It is told twice.
    Twice,
}

impl Fate {
    fn late(ms: u32) -> Self {
        Self::Late(Duration::from_millis(ms.into()))
    }
}

/// For a completion queue that is about to publish a CQE: of a send WQE with this opcode, or of a receive WQE.
pub fn completion(injections: &NicInjections, qpn: u32, sent: Option<u8>) -> Fate {
    let mine = |action| matches!(action, NicAction::CompletionLost | NicAction::CompletionLate { .. });
    match injections.consult(&WqeShape::completion(qpn, sent), mine) {
        Some(NicAction::CompletionLost) => Fate::Lost,
        Some(NicAction::CompletionLate { ms }) => Fate::late(ms),
        _ => Fate::Now,
    }
}

/// For an event queue that is about to publish an EQE of this type.
pub fn event(injections: &NicInjections, event_type: u32) -> Fate {
    let mine = |action| matches!(action, NicAction::EventLost | NicAction::EventLate { .. });
    match injections.consult(&WqeShape::event(event_type), mine) {
        Some(NicAction::EventLost) => Fate::Lost,
        Some(NicAction::EventLate { ms }) => Fate::late(ms),
        _ => Fate::Now,
    }
}

/// For an event queue that is about to raise this vector; its newest event has this type.
pub fn interrupt(injections: &NicInjections, vector: u16, event_type: u32) -> Fate {
    let mine = |action| {
        matches!(action, NicAction::InterruptLost | NicAction::InterruptLate { .. } | NicAction::InterruptTwice)
    };
    match injections.consult(&WqeShape::vector(vector, event_type), mine) {
        Some(NicAction::InterruptLost) => Fate::Lost,
        Some(NicAction::InterruptLate { ms }) => Fate::late(ms),
        Some(NicAction::InterruptTwice) => Fate::Twice,
        _ => Fate::Now,
    }
}

/// When a command is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandTime {
    /// At once.
    Now,
    /// So much later.
    After(Duration),
    /// Not at all.
    Never,
}

/// For the command unit: when it is to execute this command.
pub fn command_time(injections: &NicInjections, opcode: Opcode) -> CommandTime {
    let mine = |action| matches!(action, NicAction::CommandDelay { .. } | NicAction::CommandHang);
    match injections.consult(&WqeShape::queued(opcode), mine) {
        Some(NicAction::CommandDelay { ms }) => CommandTime::After(Duration::from_millis(ms.into())),
        Some(NicAction::CommandHang) => CommandTime::Never,
        _ => CommandTime::Now,
    }
}

/// For the command unit: the status that an injected [`NicAction::CommandStatus`] gives this command.
pub fn command_status(injections: &NicInjections, opcode: Opcode) -> Option<u8> {
    let mine = |action| matches!(action, NicAction::CommandStatus { .. });
    match injections.consult(&WqeShape::queued(opcode), mine) {
        Some(NicAction::CommandStatus { status }) => Some(status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_and_delays_are_bounded() {
        let injections = NicInjections::default();
        let asked = [
            NicAction::StallInFlight { ms: u32::MAX },
            NicAction::DelayFaultEvent { ms: 2001 },
            NicAction::CommandDelay { ms: u32::MAX },
        ];
        for action in asked {
            injections.add(NicRule::new(1, action)).unwrap();
        }
        let actions: Vec<_> = injections.rules().iter().map(|rule| rule.action).collect();
        let bounded = [
            NicAction::StallInFlight { ms: 2000 },
            NicAction::DelayFaultEvent { ms: 2000 },
            NicAction::CommandDelay { ms: 120_000 },
        ];
        assert_eq!(actions, bounded);
    }

    #[test]
    fn commands_fail_by_opcode() {
        let injections = NicInjections::default();
        let make = WqeMatch::command(Opcode::CREATE_MKEY);
        injections.add(NicRule::new(1, NicAction::CommandStatus { status: 0xf }).on(make));
        assert_eq!(command_status(&injections, Opcode::DESTROY_MKEY), None);
        assert_eq!(command_status(&injections, Opcode::CREATE_MKEY), Some(0xf));
        assert_eq!(command_status(&injections, Opcode::CREATE_MKEY), None);
        injections.add(NicRule::new(1, NicAction::CommandDelay { ms: 7 }));
        injections.add(NicRule::new(2, NicAction::CommandHang));
        let times = [(); 3].map(|()| command_time(&injections, Opcode::NOP));
        assert_eq!(times, [CommandTime::After(Duration::from_millis(7)), CommandTime::Never, CommandTime::Now]);
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
