// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port's link: up, unless somebody has pulled it or an injection has it down.
//!
//! While it is down the port's state is DOWN and nothing goes over it, not even to itself: a message is sent again as often as its queue
//! pair allows, and a datagram is lost. A reset ends what an injection does; it puts no cable back, which is none of the driver's.

use std::sync::atomic::{AtomicU8, Ordering};

use mlx5_spec::eq::{eqe_port, event, port_change};
use mlx5_spec::vport::{physical_state, port_state};

use super::eq::Event;
use super::fabric;
use super::hca::Hca;
use super::nic::NicHandle;

/// The link of a device's one port.
#[derive(Debug, Default)]
pub struct Port {
    /// [`Cause`]s of its being down, as bits.
    down: AtomicU8,
}

/// Why a port is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody has pulled the cable.
    Cable = 1,
    /// An injection.
    Injection = 2,
}

impl Port {
    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.down.load(Ordering::Acquire) == 0
    }

    /// A reset: no injection has it down any more, and nobody is told.
    pub fn mend(&self) {
        self.down.fetch_and(!(Cause::Injection as u8), Ordering::AcqRel);
    }

    /// `port_state` of the port, and its `physical_state` (contract 4.4).
    pub fn states(&self) -> (u32, u32) {
        match self.is_up() {
            true => (port_state::ACTIVE, physical_state::LINK_UP),
            false => (port_state::DOWN, physical_state::POLLING),
        }
    }
}

impl NicHandle {
    /// Whether the port is up.
    pub fn port_is_up(&self) -> bool {
        self.hca().port.is_up()
    }

    /// Pulls the port's link, or puts it back: the driver hears of it by an event (contract 7.7). Whether that changed anything.
    pub fn set_port(&self, up: bool) -> bool {
        // A query is answered either before the change or after the event.
        let between = self.command_unit().between_commands();
        let changed = set(self.hca(), Cause::Cable, up);
        drop(between);
        changed
    }
}

/// The same for who holds commands off already, for one cause of several. Drivers ask for the port's state when they hear of it: it has
/// changed before (contract 12.1).
pub fn set(hca: &Hca, cause: Cause, up: bool) -> bool {
    let cause = cause as u8;
    let before = match up {
        true => hca.port.down.fetch_and(!cause, Ordering::AcqRel),
        false => hca.port.down.fetch_or(cause, Ordering::AcqRel),
    };
    if (before & cause == 0) == up {
        return false;
    }
    if before & !cause != 0 {
        // Down for another reason, before and after.
        return true;
    }
    let change = if up { port_change::ACTIVE } else { port_change::DOWN };
    hca.async_event(Event::new(event::PORT_CHANGE, change).with(eqe_port::PORT_NUM, 1));
    if up {
        // Who waits for an answer may have one now: those here, and those who are connected to them.
        for (qpn, qp) in hca.qps.all() {
            let attrs = qp.attrs();
            hca.engines.kick(qp.uar, qpn);
            fabric::kick(hca, attrs.remote_lid, attrs.remote_qpn);
        }
    }
    true
}
