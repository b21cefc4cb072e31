// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab can match, make go wrong and find on record in the NIC (rule 7): its own shapes, conditions, actions and events.

mod events;
pub mod inject;
mod times;

use std::fmt;
use std::ops::Range;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::{eq, wqe};
use probe::Match;
use serde::{Deserialize, Serialize};

pub use crate::mkey::Rights;
pub use events::{NicCounters, NicKind, NicLedger, NicRecord, NicTotals};
pub use inject::{NicAction, NicInjections, NicRule};
pub use times::{MomentKind, NicMoment, NicMoments, clock_ns};

/// What rules and levers look at. Whatever is not known where it is asked about matches every rule.
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
    /// Opcode of a command of the command queue ([`Opcode`]); 0: it is none.
    pub command: u16,
    /// First byte under the key, and how many; `None`: not known, or nothing is accessed.
    pub at: Option<(u64, u64)>,
    /// What it is, where it is none of these.
    pub told: Told,
}

/// What a device is about to tell, or whether it is asked how it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Told {
    /// None of these.
    #[default]
    Nothing,
    /// A CQE.
    Completion,
    /// An EQE of this type (`mlx5_spec::eq::event`).
    Event(u8),
    /// A message of this MSI-X vector, for an event of this type, the newest of its queue.
    Vector(u16, u8),
    /// How the device is as a whole: a command is about to be executed, or, without one, the health counter is read.
    Health,
}

impl fmt::Display for WqeShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.told {
            Told::Event(kind) | Told::Vector(_, kind) => {
                if let Told::Vector(vector, _) = self.told {
                    write!(f, "vector {vector} for ")?;
                }
                return match eq::event::name(kind.into()) {
                    Some(name) => write!(f, "event {name}"),
                    None => write!(f, "event {kind:#x}"),
                };
            }
            Told::Health if self.command == 0 => return write!(f, "a reading of the health counter"),
            Told::Completion => write!(f, "completion of ")?,
            Told::Health | Told::Nothing => {}
        }
        if self.command != 0 {
            return write!(f, "command {}", Opcode(self.command));
        }
        match (self.opcode, self.qpn) {
            (Self::ANY_OPCODE, 0) => write!(f, "the device")?,
            (Self::ANY_OPCODE, qpn) => write!(f, "an access by QP {qpn:#x}")?,
            (Self::RECEIVE, qpn) => write!(f, "a receive of QP {qpn:#x}")?,
            (opcode, qpn) if self.told == Told::Completion => {
                write!(f, "{} of QP {qpn:#x}", wqe::opcode::name(opcode.into()).unwrap_or("a WQE"))?;
            }
            (opcode, qpn) => {
                let index = self.wqe_index;
                match wqe::opcode::name(opcode.into()) {
                    Some(name) => write!(f, "{name} {index} of QP {qpn:#x}")?,
                    None => write!(f, "WQE {index} with opcode {opcode:#x} of QP {qpn:#x}")?,
                }
            }
        }
        if self.key != 0 { write!(f, ", key {:#x}", self.key) } else { Ok(()) }
    }
}

impl WqeShape {
    /// Not a WQE, or its opcode is not known here: any rule's opcode matches.
    pub const ANY_OPCODE: u8 = 0xff;
    /// A receive WQE: no rule's opcode matches.
    pub const RECEIVE: u8 = 0xfe;

    /// A command about the key `key`, whichever it is.
    pub fn command(key: u32) -> Self {
        Self { opcode: Self::ANY_OPCODE, qpn: 0, wqe_index: 0, key, command: 0, at: None, told: Told::Nothing }
    }

    /// A command of the command queue before it is executed.
    pub fn queued(command: Opcode) -> Self {
        Self { command: command.0, ..Self::command(0) }
    }

    /// An access by queue pair `qpn` under `key`, of whatever WQE.
    pub fn access(key: u32, qpn: u32) -> Self {
        Self { qpn, ..Self::command(key) }
    }

    /// The same of so many bytes at this address.
    pub fn at(self, va: u64, len: u64) -> Self {
        Self { at: Some((va, len)), ..self }
    }

    /// A CQE of queue pair `qpn`: of a send WQE with this opcode, or of a receive WQE. Of UD queue pairs too, and whatever its syndrome.
    pub fn completion(qpn: u32, sent: Option<u8>) -> Self {
        Self { opcode: sent.unwrap_or(Self::RECEIVE), qpn, told: Told::Completion, ..Self::command(0) }
    }

    /// An EQE.
    pub fn event(event_type: u32) -> Self {
        Self { told: Told::Event(event_type as u8), ..Self::command(0) }
    }

    /// An MSI-X message, for an event of this type.
    pub fn vector(vector: u16, event_type: u32) -> Self {
        Self { told: Told::Vector(vector, event_type as u8), ..Self::command(0) }
    }

    /// How the device is, when this command is about to be executed; `None`: when the health counter is read.
    pub fn health(command: Option<Opcode>) -> Self {
        Self { command: command.map_or(0, |opcode| opcode.0), told: Told::Health, ..Self::command(0) }
    }
}

/// Which WQEs (or accesses, or commands) a rule or a lever means. All given conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WqeMatch {
    /// Only WQEs with this opcode.
    #[serde(default)]
    pub opcode: Option<u8>,
    /// Only this queue pair.
    #[serde(default)]
    pub qpn: Option<u32>,
    /// Only this key: its index counts, variants change with every registration.
    #[serde(default)]
    pub key: Option<u32>,
    /// Only accesses to one of these addresses under their key.
    #[serde(default)]
    pub address: Option<Range<u64>>,
    /// Only commands of the command queue with this opcode ([`Opcode`]).
    #[serde(default)]
    pub command: Option<u16>,
    /// Only events of this type (`mlx5_spec::eq::event`), or messages for one.
    #[serde(default)]
    pub event: Option<u8>,
    /// Only messages of this MSI-X vector.
    #[serde(default)]
    pub vector: Option<u16>,
}

impl WqeMatch {
    /// WQEs with this opcode (`mlx5_spec::wqe::opcode`).
    pub fn opcode(opcode: u8) -> Self {
        Self { opcode: Some(opcode), ..Self::default() }
    }

    /// Whatever goes by this key.
    pub fn key(key: u32) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// Commands with this opcode.
    pub fn command(command: Opcode) -> Self {
        Self { command: Some(command.0), ..Self::default() }
    }
}

impl From<u8> for WqeMatch {
    fn from(opcode: u8) -> Self {
        Self::opcode(opcode)
    }
}

impl Match for WqeMatch {
    type Shape<'a> = WqeShape;

    fn matches(&self, shape: &WqeShape) -> bool {
        let opcode = shape.opcode == WqeShape::ANY_OPCODE || self.opcode.is_none_or(|opcode| opcode == shape.opcode);
        let key = self.key.is_none_or(|key| key >> 8 == shape.key >> 8);
        let qpn = shape.qpn == 0 || self.qpn.is_none_or(|qpn| qpn == shape.qpn);
        let command = match shape.told {
            // Commands and readings of the health counter are never counted together.
            Told::Health => self.command.unwrap_or_default() == shape.command,
            _ => self.command.is_none_or(|command| command == shape.command),
        };
        let (told, raised) = match shape.told {
            Told::Event(event) => (Some(event), None),
            Told::Vector(vector, event) => (Some(event), Some(vector)),
            _ => (None, None),
        };
        let event = self.event.is_none_or(|event| told == Some(event));
        let vector = self.vector.is_none_or(|vector| raised == Some(vector));
        // An access without bytes is none to its address.
        let meets = |range: &Range<u64>| {
            shape.at.is_some_and(|(va, len)| len > 0 && va < range.end && range.start < va.saturating_add(len))
        };
        opcode && key && qpn && command && event && vector && self.address.as_ref().is_none_or(meets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_opcode_queue_pair_and_key_index() {
        const WRITE: WqeShape =
            WqeShape { opcode: 8, qpn: 0x40, wqe_index: 0, key: 0x1_0001, command: 0, at: None, told: Told::Nothing };
        let all = WqeMatch { opcode: Some(8), qpn: Some(0x40), ..WqeMatch::key(0x1_00ff) };
        assert!(all.matches(&WRITE) && WqeMatch::default().matches(&WRITE));
        for other in
            [WqeShape { opcode: 0x10, ..WRITE }, WqeShape { qpn: 0x41, ..WRITE }, WqeShape { key: 0x2_0001, ..WRITE }]
        {
            assert!(!all.matches(&other), "{other:?}");
        }
        // What is not known matches; the key always is.
        assert!(all.matches(&WqeShape::access(0x1_0001, 0x40)) && all.matches(&WqeShape::command(0x1_0001)));
        assert!(!all.matches(&WqeShape::command(0x2_0001)));
    }
    #[test]
    fn an_address_is_meant_by_the_bytes_that_are_accessed() {
        let what = WqeMatch { address: Some(0x1000..0x2000), ..WqeMatch::default() };
        let access = WqeShape::access(0x1_0001, 0x40);
        let meets = [(0xfff, 2), (0x1000, 1), (0x1fff, 1), (0, u64::MAX), (0xf00, 0x100), (0x2000, 8), (0x1800, 0)]
            .map(|(va, len)| what.matches(&access.at(va, len)));
        assert_eq!(meets, [true, true, true, true, false, false, false]);
        assert!(!what.matches(&access), "what is accessed is not known");
        let last = WqeMatch { address: Some(u64::MAX - 7..u64::MAX), ..what };
        assert!(last.matches(&access.at(u64::MAX - 15, 16)));
    }

    #[test]
    fn a_command_is_meant_by_its_opcode_and_told_by_its_name() {
        let create = WqeShape::queued(Opcode::CREATE_QP);
        assert!(WqeMatch::command(Opcode::CREATE_QP).matches(&create) && WqeMatch::default().matches(&create));
        assert!(!WqeMatch::command(Opcode::CREATE_QP).matches(&WqeShape::queued(Opcode::CREATE_CQ)));
        let write = WqeShape { opcode: 8, wqe_index: 3, ..WqeShape::access(0x1_0001, 0x40) };
        assert!(!WqeMatch::command(Opcode::CREATE_QP).matches(&write));
        let told = [create.to_string(), write.to_string(), WqeShape::access(0x1_0001, 0x40).to_string()];
        assert_eq!(
            told,
            ["command CREATE_QP", "RDMA_WRITE 3 of QP 0x40, key 0x10001", "an access by QP 0x40, key 0x10001"]
        );
    }

    #[test]
    fn what_is_told_is_meant_by_what_it_is() {
        let any = WqeMatch::default();
        let comp = WqeMatch { event: Some(eq::event::COMP as u8), ..any.clone() };
        let third = WqeMatch { vector: Some(3), ..any.clone() };
        let (told, other) = (WqeShape::event(eq::event::COMP), WqeShape::event(eq::event::CMD));
        assert!(comp.matches(&told) && any.matches(&told) && !comp.matches(&other) && !third.matches(&told));
        let raised = |vector| WqeShape::vector(vector, eq::event::CMD);
        assert!(third.matches(&raised(3)) && !third.matches(&raised(4)));
        assert!(comp.matches(&WqeShape::vector(3, eq::event::COMP)) && !comp.matches(&raised(3)));
        let write = WqeMatch::opcode(8);
        let of = |sent| WqeShape::completion(0x40, sent);
        assert!(write.matches(&of(Some(8))) && !write.matches(&of(Some(0x10))) && !write.matches(&of(None)));
        let (read, nop) = (WqeShape::health(None), WqeShape::health(Some(Opcode::NOP)));
        assert!(any.matches(&read) && !any.matches(&nop), "readings and commands are counted apart");
        assert!(WqeMatch::command(Opcode::NOP).matches(&nop) && !WqeMatch::command(Opcode::NOP).matches(&read));
        let texts = [told, raised(3), of(Some(8)), of(None), read, nop].map(|shape| shape.to_string());
        let wanted = [
            "event COMP",
            "vector 3 for event CMD",
            "completion of RDMA_WRITE of QP 0x40",
            "completion of a receive of QP 0x40",
            "a reading of the health counter",
            "command NOP",
        ];
        assert_eq!(texts, wanted);
    }
}
