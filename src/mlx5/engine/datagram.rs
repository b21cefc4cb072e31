// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Datagrams: UD, QP0 and QP1 (contract 6.3, 7.5). One packet, placed whole or dropped; the sender succeeds either way.

use std::sync::Arc;

use super::completion::{Arrival, Place, received};
use super::diagnosis::Diagnosis;
use super::failure::{Failure, stopped};
use super::receive::NoWqe;

use super::transfer::{Piece, Plan, Route, gather};
use super::work::{Cx, FaultEnd, Peer, Step, Work, has_pkey, receives};
use super::wqe::{Extra, Grh};
use crate::command::port_gid;
use crate::fabric;
use crate::hca::Hca;
use crate::mkey::Rights;
use crate::q_counters::Count;
use crate::subnet::{self, Mad};
use dma::Section;
use mlx5_spec::qp::service_type;
use mlx5_spec::wqe::GRH_SIZE;

/// Bytes of the longest datagram: the port's MTU.
const MAX_DATAGRAM: u64 = 4096;
/// The first LID of multicast (IBTA 4.1.3).
const FIRST_MULTICAST: u16 = 0xc000;
/// The one P_Key of the port, at index 0 (contract 11.2).
const PKEY: u32 = 0xffff;

/// Why a datagram is not delivered.
enum Undelivered {
    /// It is dropped, and nobody is told.
    Dropped,
    /// Its receive WQE is completed in error, or cannot be.
    Failed(Failure),
    /// Another engine has the receiver.
    Busy,
}

/// A datagram that arrives somewhere.
struct Packet<'a> {
    /// With the room for a GRH before it.
    bytes: &'a [u8],
    /// What its completion tells, but for what depends on who gets it.
    arrival: Arrival,
}

impl Work {
    /// Sends the current WQE's datagram.
    pub fn datagram(&self, cx: &mut Cx<'_>, section: &Section<'_>) -> Step {
        let (total, av) = (self.wqe.total, self.wqe.av);
        if total > MAX_DATAGRAM {
            return Step::Failed(Failure::diagnosed(Diagnosis::DATAGRAM_LENGTH));
        }
        let to_group = av.dlid >= FIRST_MULTICAST;
        let managing = av.dqpn == 1 && self.qp.service == service_type::QP1;
        let to_administration = managing && av.dlid == fabric::SM_LID;
        if self.peer.is_none() && !to_group && !managing {
            return self.lost(cx, section);
        }
        // What its sender cannot read takes nothing from the receiver.
        let mut packet = cx.scratch.packet();
        packet.extend(match av.grh {
            Some(grh) => grh_bytes(&grh, port_gid(cx.hca.index, grh.sgid_index), total),
            None => [0; GRH_SIZE],
        });
        let from = self.list(Rights::LOCAL_READ);
        let read = gather(cx.hca, section, (cx.scratch, self.mover()), (&from, total), &mut packet);
        let step = match read {
            Err(stop) => stopped(stop, FaultEnd::Local, FaultEnd::Receive),
            Ok(()) => {
                let sent = if to_group {
                    self.to_group(cx, section, &packet)
                } else if to_administration && subnet::is_administration(&packet[GRH_SIZE..]) {
                    self.to_administration(cx, section, &packet[GRH_SIZE..])
                } else if managing && subnet::is_performance(&packet[GRH_SIZE..]) {
                    self.to_port(cx, section, &packet[GRH_SIZE..])
                } else if let Some(peer) = &self.peer {
                    self.deliver_packet(cx, section, peer, &self.packet(cx.hca, &packet))
                } else {
                    Err(Undelivered::Dropped)
                };
                match sent {
                    Ok(()) => self.finish(cx.hca, total, 0),
                    Err(Undelivered::Dropped) => self.finish(cx.hca, 0, 0),
                    Err(Undelivered::Failed(failure)) => Step::Failed(failure),
                    Err(Undelivered::Busy) => Step::Busy,
                }
            }
        };
        cx.scratch.keep(packet);
        step
    }

    fn packet<'a>(&self, hca: &Hca, bytes: &'a [u8]) -> Packet<'a> {
        let av = self.wqe.av;
        let arrival = Arrival {
            bytes: bytes.len() as u64,
            source_qpn: self.source_qpn(),
            slid: hca.lid(),
            sl: av.sl,
            path_bits: av.path_bits,
            grh: av.grh.is_some(),
            solicited: self.wqe.solicited,
            ..Arrival::send(self.wqe.extra)
        };
        Packet { bytes, arrival }
    }

    /// To each queue pair that hears the group. One that another engine has gets it at a later look; the others have had it then.
    fn to_group(&self, cx: &mut Cx<'_>, section: &Section<'_>, bytes: &[u8]) -> Result<(), Undelivered> {
        let packet = self.packet(cx.hca, bytes);
        let mut outcome = Ok(());
        for peer in self.audience(cx.hca) {
            let number = (peer.hca.index, peer.qp.qpn);
            if self.heard.borrow().contains(&number) {
                continue;
            }
            let _visit = peer.visit(cx);
            // It may have changed before the section of its device began.
            if !peer.in_force() {
                continue;
            }
            let delivered = self.deliver_packet(cx, section, &peer, &packet);
            if let Err(Undelivered::Busy) = delivered {
                outcome = Err(Undelivered::Busy);
                continue;
            }
            self.heard.borrow_mut().push(number);
            // What one receiver makes of it is nobody else's affair.
            if let Err(Undelivered::Failed(Failure { responder: Some(at), .. })) = delivered {
                self.broken.borrow_mut().push((peer.clone(), at));
            }
        }
        outcome
    }

    /// Who hears the group that the datagram names: what is attached to it here, and elsewhere where the port has joined it (IBTA 10.5).
    fn audience(&self, hca: &Arc<Hca>) -> Vec<Peer> {
        let Some(grh) = self.wqe.av.grh.filter(|_| has_pkey(&self.attrs) && hca.port.is_up()) else {
            return Vec::new();
        };
        let joined = hca.link.subnet().listeners(&grh.dgid).unwrap_or_default();
        let there = fabric::ports(hca).into_iter();
        let there = there.filter(|there| Arc::ptr_eq(there, hca) || joined.contains(&port_gid(there.index, 0)));
        let qkey = if self.wqe.av.qkey >> 31 == 1 { self.attrs.qkey } else { self.wqe.av.qkey };
        let attached = there.flat_map(|there| {
            let qpns = there.multicast.attached(&grh.dgid).into_iter();
            qpns.filter_map(|qpn| {
                let qp = there.qps.get(qpn)?;
                let attrs = qp.attrs();
                let itself = Arc::ptr_eq(&qp, &self.qp) && attrs.deaf_to_itself;
                let taken = attrs.qkey == qkey && receives(&attrs) && has_pkey(&attrs) && !itself;
                taken.then(|| Peer { hca: there.clone(), qp, attrs })
            })
            .collect::<Vec<_>>()
        });
        attached.collect()
    }

    /// To the subnet's administration, whose answers come at once.
    fn to_administration(&self, cx: &mut Cx<'_>, section: &Section<'_>, request: &[u8]) -> Result<(), Undelivered> {
        let ports: Vec<_> = fabric::ports(cx.hca).iter().map(|there| fabric::facts(there)).collect();
        let (hca, subnet) = (cx.hca.clone(), cx.hca.link.subnet());
        self.answered(cx, section, request, |mad| subnet.handle(&ports, &fabric::facts(&hca), mad))
    }

    /// To the port that is addressed, which tells its counters by itself.
    fn to_port(&self, cx: &mut Cx<'_>, section: &Section<'_>, request: &[u8]) -> Result<(), Undelivered> {
        let there = fabric::resolve(cx.hca, self.wqe.av.dlid).ok_or(Undelivered::Dropped)?;
        self.answered(cx, section, request, |mad| vec![subnet::performance(&there.port.traffic, mad)])
    }

    /// What answers a management datagram comes back to its sender at once, from the LID that it was sent to.
    fn answered(
        &self,
        cx: &mut Cx<'_>,
        section: &Section<'_>,
        request: &[u8],
        answers: impl FnOnce(&Mad) -> Vec<Mad>,
    ) -> Result<(), Undelivered> {
        let Some(request) = request.first_chunk().filter(|_| cx.hca.port.is_up()) else {
            return Err(Undelivered::Dropped);
        };
        let asker = Peer { hca: cx.hca.clone(), qp: self.qp.clone(), attrs: self.attrs.clone() };
        // Who answers does it once: whoever has the queue pair is waited for before it is asked.
        drop(asker.attrs.life.responder.try_lock().ok_or(Undelivered::Busy)?);
        for answer in answers(request) {
            let bytes = [&[0; GRH_SIZE], &answer[..]].concat();
            let arrival = Arrival {
                bytes: bytes.len() as u64,
                source_qpn: 1,
                slid: self.wqe.av.dlid,
                ..Arrival::send(Extra::None)
            };
            // A queue pair without a receive WQE has lost its answer, and asks again.
            let delivered = self.deliver_packet(cx, section, &asker, &Packet { bytes: &bytes, arrival });
            if let Err(Undelivered::Failed(failure)) = delivered {
                return Err(Undelivered::Failed(failure));
            }
        }
        Ok(())
    }

    /// Places `packet`, which begins with the room for the GRH, and completes it.
    fn deliver_packet(
        &self,
        cx: &mut Cx<'_>,
        section: &Section<'_>,
        Peer { hca, qp: to, attrs }: &Peer,
        Packet { bytes: packet, arrival }: &Packet<'_>,
    ) -> Result<(), Undelivered> {
        let mut responder = attrs.life.responder.try_lock().ok_or(Undelivered::Busy)?;
        let offer = responder.next(hca, to, attrs, attrs.srq.as_ref()).map_err(|none| match none {
            NoWqe::NotReady => {
                attrs.count(Count::OutOfBuffer);
                Undelivered::Dropped
            }
            NoWqe::Misplaced => Undelivered::Dropped,
            NoWqe::Broken => Undelivered::Failed(Failure::BROKEN_QUEUE),
        })?;
        if offer.wqe().room < packet.len() as u64 {
            return Err(Undelivered::Dropped);
        }
        // Without a GRH its room stays as it is.
        let skip = if arrival.grh { 0 } else { GRH_SIZE };
        let part = match packet.get(skip..).filter(|bytes| !bytes.is_empty()) {
            None => Ok(None),
            Some(bytes) => {
                let mut part = Piece::of(bytes);
                let whole = part.len();
                let aimed = part.aim(hca, section, cx.scratch, &offer.wqe().list(to.qpn), skip as u64);
                match aimed {
                    // A page fault of the receiver drops the datagram (contract 9.4).
                    Ok(()) if part.len() < whole => return Err(Undelivered::Dropped),
                    Err(stop) if stop.is_absence() => return Err(Undelivered::Dropped),
                    aimed => aimed.map(|()| Some(part)),
                }
            }
        };
        let recv = offer.take(hca);
        let copied = part.and_then(|part| match part {
            Some(part) => {
                part.copy(Route { from: cx.hca, to: hca }, (cx.scratch, self.mover()), || Plan::Copy).map(|_| ())
            }
            None => Ok(()),
        });
        copied.map_err(|_| Undelivered::Failed(Failure::RECEIVE))?;
        let word = if to.service == service_type::QP1 { PKEY } else { arrival.word };
        let arrival = Arrival { word, ..*arrival };
        let place = Place { counter: recv.index, owner: to.user_index };
        let told = attrs.recv_cq.as_ref().is_some_and(|cq| received(hca, cq, to, place, &arrival).is_ok());
        if !told {
            return Err(Undelivered::Failed(Failure::NO_RECEIVE_CQE));
        }
        responder.completed(attrs);
        Ok(())
    }

    /// Who gets it: by LID and QPN, if P_Key and Q_Key are theirs (IBTA 9.6, 10.2).
    pub fn addressee(&self, hca: &Arc<Hca>) -> Option<Peer> {
        let av = self.wqe.av;
        let hca = fabric::resolve(hca, av.dlid).filter(|_| has_pkey(&self.attrs))?;
        let qpn = match av.dqpn {
            special @ (0 | 1) => *hca.special.lock().get(special as usize)?,
            qpn => Some(qpn),
        };
        let qp = hca.qps.get(qpn?)?;
        let attrs = qp.attrs();
        let qkey = if av.qkey >> 31 == 1 { self.attrs.qkey } else { av.qkey };
        let suits = match qp.service {
            service_type::QP0 => self.qp.service == service_type::QP0,
            service_type::UD | service_type::QP1 => qkey == attrs.qkey,
            _ => false,
        };
        // Addressed by its own number a special QP does not exist.
        let named = matches!(qp.service, service_type::QP0 | service_type::QP1) == (av.dqpn < 2);
        let taken = suits && named && receives(&attrs) && has_pkey(&attrs);
        taken.then_some(Peer { hca, qp, attrs })
    }

    fn source_qpn(&self) -> u32 {
        match self.qp.service {
            service_type::QP0 => 0,
            service_type::QP1 => 1,
            _ => self.qp.qpn,
        }
    }
}

/// A GRH as it lies before the payload (IBTA 8.3).
fn grh_bytes(grh: &Grh, sgid: [u8; 16], payload: u64) -> [u8; GRH_SIZE] {
    /// IPVer 6, the next header is the transport's.
    const VERSION: u32 = 6;
    const NEXT_HEADER: u8 = 0x1b;
    let mut bytes = [0; GRH_SIZE];
    let first = VERSION << 28 | (grh.tclass & 0xff) << 20 | (grh.flow_label & 0xf_ffff);
    bytes[..4].copy_from_slice(&first.to_be_bytes());
    // BTH, DETH and ICRC are counted as well.
    bytes[4..6].copy_from_slice(&(payload as u16 + 24).to_be_bytes());
    bytes[6] = NEXT_HEADER;
    bytes[7] = grh.hop_limit as u8;
    bytes[8..24].copy_from_slice(&sgid);
    bytes[24..].copy_from_slice(&grh.dgid);
    bytes
}
