// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Datagrams: UD, QP0 and QP1 (contract 6.3, 7.5). One packet, placed whole or dropped; the sender succeeds either way.

use std::sync::Arc;

use super::completion::{Arrival, Place, received};
use super::diagnosis::Diagnosis;
use super::failure::{Failure, stopped};
use super::receive::NoWqe;

use super::transfer::{Piece, Plan, Route, gather};
use super::work::{Cx, FaultEnd, Peer, Step, Work, has_pkey, receives};
use super::wqe::Grh;
use crate::command::port_gid;
use crate::fabric;
use crate::hca::Hca;
use crate::mkey::Rights;
use crate::q_counters::Count;
use dma::Section;
use mlx5_spec::qp::service_type;
use mlx5_spec::wqe::GRH_SIZE;

/// Bytes of the longest datagram: the port's MTU.
const MAX_DATAGRAM: u64 = 4096;
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

impl Work {
    /// Sends the current WQE's datagram.
    pub fn datagram(&self, cx: &mut Cx<'_>, section: &Section<'_>) -> Step {
        let total = self.wqe.total;
        if total > MAX_DATAGRAM {
            return Step::Failed(Failure::diagnosed(Diagnosis::DATAGRAM_LENGTH));
        }
        let Some(peer) = &self.peer else { return self.lost(cx, section) };
        // What its sender cannot read takes nothing from the receiver.
        let mut packet = cx.scratch.packet();
        packet.extend(match self.wqe.av.grh {
            Some(grh) => grh_bytes(&grh, port_gid(cx.hca.index, grh.sgid_index), total),
            None => [0; GRH_SIZE],
        });
        let from = self.list(Rights::LOCAL_READ);
        let read = gather(cx.hca, section, (cx.scratch, self.mover()), (&from, total), &mut packet);
        let step = match read {
            Err(stop) => stopped(stop, FaultEnd::Local, FaultEnd::Receive),
            Ok(()) => match self.deliver_packet(cx, section, peer, &packet) {
                Ok(()) => self.finish(cx.hca, total, 0),
                Err(Undelivered::Dropped) => self.finish(cx.hca, 0, 0),
                Err(Undelivered::Failed(failure)) => Step::Failed(failure),
                Err(Undelivered::Busy) => Step::Busy,
            },
        };
        cx.scratch.keep(packet);
        step
    }

    /// Places `packet`, which begins with the room for the GRH, and completes it.
    fn deliver_packet(
        &self,
        cx: &mut Cx<'_>,
        section: &Section<'_>,
        Peer { hca, qp: to, attrs }: &Peer,
        packet: &[u8],
    ) -> Result<(), Undelivered> {
        let av = self.wqe.av;
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
        let skip = if av.grh.is_some() { 0 } else { GRH_SIZE };
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
        let arrival = Arrival {
            bytes: packet.len() as u64,
            word: if to.service == service_type::QP1 { PKEY } else { Arrival::send(self.wqe.extra).word },
            source_qpn: self.source_qpn(),
            slid: cx.hca.lid(),
            sl: av.sl,
            path_bits: av.path_bits,
            grh: av.grh.is_some(),
            solicited: self.wqe.solicited,
            ..Arrival::send(self.wqe.extra)
        };
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
