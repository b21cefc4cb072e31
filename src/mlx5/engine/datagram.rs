// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Datagrams: UD, QP0 and QP1 (contract 6.3, 7.5). One packet, placed whole or dropped; the sender succeeds either way.

use std::sync::Arc;

use super::completion::{Arrival, Place, received};
use super::failure::{Failure, stopped};
use super::requester::{Cx, FaultEnd, Outcome, Requester, receives};
use super::transfer::{At, End, Plan, Stop, transfer};
use super::wqe::Grh;
use crate::command::port_gid;
use crate::hca::{Hca, PORT_LID};
use crate::mkey::Rights;
use crate::qp::{Qp, QpAttrs};
use crate::quiesce::Section;
use crate::sync::lock;
use mlx5_spec::cq::syndrome;
use mlx5_spec::qp::service_type;
use mlx5_spec::wqe::GRH_SIZE;

/// Bytes of the longest datagram: the port's MTU.
const MAX_DATAGRAM: u64 = 4096;
/// The one P_Key of the port, at index 0 (contract 11.2).
const PKEY: u32 = 0xffff;

/// Why a datagram is not delivered.
enum Lost {
    /// Nobody is told.
    Dropped,
    /// The sender's list cannot be read.
    Sender(Outcome),
}

impl Requester {
    /// Sends the current WQE's datagram.
    pub fn datagram(&mut self, cx: &mut Cx<'_>, section: &Section<'_>) -> Outcome {
        if self.wqe.total > MAX_DATAGRAM {
            return Outcome::Failed(Failure::local(syndrome::LOCAL_LENGTH_ERR));
        }
        let bytes = self.wqe.total;
        match self.place(cx, section) {
            Ok(()) => cx.hca.counters.bytes.add(bytes),
            Err(Lost::Dropped) => return self.lost(cx, section),
            Err(Lost::Sender(outcome)) => return outcome,
        }
        self.finish(cx.hca, 0)
    }

    fn place(&self, cx: &mut Cx<'_>, section: &Section<'_>) -> Result<(), Lost> {
        let av = self.wqe.av;
        let (to, attrs) = self.addressee(cx.hca).ok_or(Lost::Dropped)?;
        let mut responder = lock(&to.responder);
        responder.sync(&attrs);
        let recv = responder.take(cx.hca, &to, &attrs, attrs.srq.as_ref()).map_err(|_| Lost::Dropped)?;
        let total = self.wqe.total;
        let head = GRH_SIZE as u64;
        let list = End::List { segs: &recv.segs, wqe: &[], pd: recv.pd, qpn: to.qpn, rights: Rights::LOCAL_WRITE };
        if recv.room < head + total {
            // The WQE stays for the next message.
            return Err(Lost::Dropped);
        }
        if let Some(grh) = av.grh {
            let bytes = grh_bytes(&grh, port_gid(cx.hca.index, grh.sgid_index), total);
            let segs = [super::wqe::Seg::Inline { at: 0, len: head }];
            let from = End::List { segs: &segs, wqe: &bytes, pd: 0, qpn: 0, rights: Rights::LOCAL_READ };
            self.copy(cx, section, (&from, &list), (0, head))?;
        }
        if total > 0 {
            self.copy(cx, section, (&self.list(Rights::LOCAL_READ), &list), (head, total))?;
        }
        let arrival = Arrival {
            bytes: head + total,
            word: if to.service == service_type::QP1 { PKEY } else { Arrival::send(self.wqe.extra).word },
            source_qpn: self.source_qpn(),
            slid: PORT_LID,
            sl: av.sl,
            path_bits: av.path_bits,
            grh: av.grh.is_some(),
            solicited: self.wqe.solicited,
            ..Arrival::send(self.wqe.extra)
        };
        let place = Place { counter: recv.index, owner: to.user_index };
        let cq = attrs.recv_cq.as_ref().ok_or(Lost::Dropped)?;
        // A full CQ has told its own event.
        received(cx.hca, cq, &to, place, &arrival).map_err(|_| Lost::Dropped)?;
        responder.completed(&to);
        Ok(())
    }

    /// Copies all `len` bytes to byte `at` of the target, or nothing that anyone is told of.
    fn copy(
        &self,
        cx: &mut Cx<'_>,
        section: &Section<'_>,
        ends: (&End<'_>, &End<'_>),
        (at, len): (u64, u64),
    ) -> Result<(), Lost> {
        let mut done = 0;
        while done < len {
            let part = At { source: done, target: at + done, want: len - done };
            match transfer(cx.hca, section, (cx.scratch, self.mover()), ends, part, || Plan::Copy) {
                Ok(moved) => done += moved,
                // A page fault of the receiver drops the datagram (contract 9.4).
                Err(Stop::Target(_) | Stop::NoTarget) => return Err(Lost::Dropped),
                // Nothing counts as read: all of it is read again.
                Err(stop) => return Err(Lost::Sender(stopped(stop, FaultEnd::Local, FaultEnd::Receive))),
            }
        }
        Ok(())
    }

    /// Who gets it: by LID and QPN, if P_Key and Q_Key are theirs (IBTA 9.6, 10.2).
    fn addressee(&self, hca: &Hca) -> Option<(Arc<Qp>, Arc<QpAttrs>)> {
        let av = self.wqe.av;
        if av.dlid != PORT_LID || self.attrs.pkey_index != 0 {
            return None;
        }
        let qpn = match av.dqpn {
            special @ (0 | 1) => *lock(&hca.special).get(special as usize)?,
            qpn => Some(qpn),
        };
        let to = hca.qps.get(qpn?)?;
        let attrs = to.attrs();
        let qkey = if av.qkey >> 31 == 1 { self.attrs.qkey } else { av.qkey };
        let suits = match to.service {
            service_type::QP0 => self.qp.service == service_type::QP0,
            service_type::UD | service_type::QP1 => qkey == attrs.qkey,
            _ => false,
        };
        // Addressed by its own number a special QP does not exist.
        let named = matches!(to.service, service_type::QP0 | service_type::QP1) == (av.dqpn < 2);
        let taken = suits && named && receives(&attrs) && attrs.pkey_index == 0;
        taken.then_some((to, attrs))
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
