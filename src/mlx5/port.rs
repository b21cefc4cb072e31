// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port: what has gone over it, and its link, which is up unless somebody has pulled it or an injection has it down.
//!
//! While it is down the port's state is DOWN and nothing goes over it, not even to itself: a message is sent again as often as its queue
//! pair allows, and a datagram is lost. A reset ends what an injection does; it puts no cable back, which is none of the driver's.

use std::ops::Sub;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use mlx5_spec::eq::{eqe_port, event, port_change};
use mlx5_spec::vport::{cap_mask1, physical_state, port_state};

use super::bus::Counter;
use super::eq::Event;
use super::fabric;
use super::hca::Hca;
use super::nic::NicHandle;

/// A device's one port.
#[derive(Debug, Default)]
pub struct Port {
    /// [`Cause`]s of its being down, as bits.
    down: AtomicU8,
    /// What has gone over it.
    pub traffic: Traffic,
    /// What its driver says of it.
    pub identity: Mutex<Identity>,
}

/// What a driver says of a port and its node, which the subnet tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Capability mask, as MODIFY_HCA_VPORT_CONTEXT left it.
    pub cap_mask1: u32,
    /// NODE_DESC, a zero-padded string.
    pub node_desc: [u8; 64],
}

impl Default for Identity {
    /// Before a driver has said anything.
    fn default() -> Self {
        let mut node_desc = [0; 64];
        node_desc.iter_mut().zip(b"rnic emulated ConnectX-5").for_each(|(to, from)| *to = *from);
        Self { cap_mask1: cap_mask1::SYS_IMAGE_GUID, node_desc }
    }
}

/// Packets in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// How many.
    pub packets: u64,
    /// Their bytes from the local route header to the invariant CRC (IBTA 16.1.3.5, PortXmitData).
    pub octets: u64,
}

impl Flow {
    /// With so many octets more.
    #[must_use]
    pub fn with(self, octets: u64) -> Self {
        Self { octets: self.octets + octets, ..self }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, octets: self.octets + other.octets }
    }
}

impl Sub for Flow {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, octets: self.octets - before.octets }
    }
}

/// What has gone over a port since the device was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// From it.
    pub sent: Flow,
    /// To it.
    pub received: Flow,
    /// Of both what it sent to itself.
    pub loopback: Flow,
    /// How often its link has gone down.
    pub downs: u64,
}

impl Sub for Totals {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            sent: self.sent - before.sent,
            received: self.received - before.received,
            loopback: self.loopback - before.loopback,
            downs: self.downs - before.downs,
        }
    }
}

/// Who reads the counters: each can begin anew without the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// QUERY_VPORT_COUNTER.
    Vport = 0,
    /// PPCNT.
    Register = 1,
    /// Performance management of the subnet.
    Subnet = 2,
}

#[derive(Debug, Default)]
struct FlowCounter {
    packets: Counter,
    octets: Counter,
}

impl FlowCounter {
    fn add(&self, flow: Flow) {
        self.packets.add(flow.packets);
        self.octets.add(flow.octets);
    }

    fn get(&self) -> Flow {
        Flow { packets: self.packets.get(), octets: self.octets.get() }
    }
}

/// Counters of a port. No reset touches them.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: FlowCounter,
    received: FlowCounter,
    loopback: FlowCounter,
    downs: Counter,
    /// When each [`Reader`] began anew.
    cleared: [Mutex<Totals>; 3],
}

impl Traffic {
    /// Counts what has gone out and come in.
    pub fn add(&self, sent: Flow, received: Flow) {
        self.sent.add(sent);
        self.received.add(received);
    }

    /// Counts what the port has sent to itself.
    pub fn add_loopback(&self, flow: Flow) {
        self.add(flow, flow);
        self.loopback.add(flow);
    }

    /// Since the device was made.
    pub fn totals(&self) -> Totals {
        Totals {
            sent: self.sent.get(),
            received: self.received.get(),
            loopback: self.loopback.get(),
            downs: self.downs.get(),
        }
    }

    /// Since `reader` began anew, which it does again now if it says `clear`.
    pub fn seen_by(&self, reader: Reader, clear: bool) -> Totals {
        let mut cleared = self.cleared[reader as usize].lock();
        let now = self.totals();
        let seen = now - *cleared;
        if clear {
            *cleared = now;
        }
        seen
    }
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
    if !up {
        hca.port.traffic.downs.add(1);
        hca.link.subnet().leave_all(&fabric::facts(hca).gid);
    }
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
