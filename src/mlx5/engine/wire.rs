// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a message is on the wire: packets, and octets with their headers. Nothing is sent that way here; the port's counters tell of it as
//! if it were.

use std::mem::take;
use std::sync::Arc;

use super::work::Work;
use super::wqe::{Extra, Kind};
use crate::fabric;
use crate::hca::Hca;
use crate::port::Flow;
use mlx5_spec::qp::service_type;

/// Bytes of headers (IBTA 7.7, 8.3, 9.2 to 9.3, 14.3).
mod header {
    pub const LRH: u64 = 8;
    pub const GRH: u64 = 40;
    pub const BTH: u64 = 12;
    pub const DETH: u64 = 8;
    pub const RETH: u64 = 16;
    pub const AETH: u64 = 4;
    pub const XRCETH: u64 = 4;
    pub const ATOMICETH: u64 = 28;
    pub const ATOMICACKETH: u64 = 8;
    /// Immediate data, or the key of an invalidation.
    pub const WORD: u64 = 4;
    pub const ICRC: u64 = 4;
}

/// What goes to the responder, and what comes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exchange {
    /// From the requester.
    pub request: Flow,
    /// To the requester.
    pub response: Flow,
}

impl Work {
    /// The current WQE's message, as one that is answered at once: each packet goes once, and one acknowledgement comes back.
    pub fn exchange(&self) -> Exchange {
        let global = if self.is_datagram() { self.wqe.av.grh.is_some() } else { self.attrs.remote_gid.is_some() };
        let each = header::LRH + header::BTH + header::ICRC + if global { header::GRH } else { 0 };
        // All payload is padded to words; what its packets but the last carry is whole words already.
        let payload = self.wqe.total.next_multiple_of(4);
        let packets = u64::from(self.packets());
        let flow = |packets: u64, more: u64| Flow { packets, octets: packets * each + more };
        let ack = flow(1, header::AETH);
        let word = if self.wqe.extra == Extra::None { 0 } else { header::WORD };
        let (request, response) = match self.wqe.kind {
            Kind::Nop | Kind::Umr => return Exchange::default(),
            Kind::Send => (flow(packets, payload + word), ack),
            Kind::Write => (flow(packets, payload + header::RETH + word), ack),
            // Of the responses the first and the last are acknowledgements.
            Kind::Read => (flow(1, header::RETH), flow(packets, payload + packets.min(2) * header::AETH)),
            Kind::CompareSwap | Kind::FetchAdd => {
                (flow(1, header::ATOMICETH), flow(1, header::AETH + header::ATOMICACKETH))
            }
        };
        match self.qp.service {
            service_type::RC => Exchange { request, response },
            service_type::XRC => Exchange { request: request.with(request.packets * header::XRCETH), response },
            _ if self.is_datagram() => Exchange { request: request.with(header::DETH), response: Flow::default() },
            _ => Exchange { request, response: Flow::default() },
        }
    }
}

/// What one turn of a queue pair has sent to a device and had back from it. The ports' counters are shared by all engines: they hear of it
/// once a turn.
#[derive(Default)]
pub struct Tally {
    there: Option<Arc<Hca>>,
    exchange: Exchange,
}

impl Tally {
    /// The current WQE of `work` is done. What nobody got has been sent all the same, if the port is up.
    pub fn add(&mut self, hca: &Arc<Hca>, work: &Work) {
        let Exchange { request, response } = work.exchange();
        if request.packets == 0 || !hca.port.is_up() {
            return;
        }
        match &work.peer {
            Some(peer) if self.there.as_ref().is_some_and(|there| Arc::ptr_eq(there, &peer.hca)) => {}
            Some(peer) => self.turn_to(hca, Some(peer.hca.clone())),
            // The port behind the LID has had it.
            None => {
                let lid = if work.is_datagram() { work.wqe.av.dlid } else { work.attrs.remote_lid };
                self.turn_to(hca, fabric::resolve(hca, lid));
            }
        }
        self.exchange.request = self.exchange.request.and(request);
        self.exchange.response = self.exchange.response.and(response);
    }

    fn turn_to(&mut self, hca: &Arc<Hca>, there: Option<Arc<Hca>>) {
        self.tell(hca);
        self.there = there;
    }

    /// Tells the ports.
    pub fn tell(&mut self, hca: &Arc<Hca>) {
        let Exchange { request, response } = take(&mut self.exchange);
        if request.packets == 0 {
            return;
        }
        match &self.there {
            Some(there) if Arc::ptr_eq(there, hca) => hca.port.traffic.add_loopback(request.and(response)),
            there => {
                hca.port.traffic.add(request, response);
                there.iter().for_each(|there| there.port.traffic.add(response, request));
            }
        }
    }
}
