// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CQEs as requester and responder write them (contract 7.5). All of them leave through [`Cq::push`].

use super::diagnosis::Diagnosis;
use super::wqe::Extra;
use crate::cq::{Cq, CqError};
use crate::hca::Hca;
use crate::hooks::{NicKind, NicLedger};
use crate::q_counters::Count;
use crate::qp::Qp;
use mlx5_spec::bits::Field;
use mlx5_spec::cq::{CQE_SIZE, cqe, opcode, syndrome};
use mlx5_spec::qp::{NO_USER_INDEX, service_type};

/// What a responder's CQE tells beside the WQE.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival {
    /// `spec::cq::opcode`.
    pub opcode: u32,
    /// Bytes, GRH space included.
    pub bytes: u64,
    /// Immediate, key or P_Key.
    pub word: u32,
    /// Source QPN.
    pub source_qpn: u32,
    /// Source LID.
    pub slid: u16,
    /// Service level.
    pub sl: u32,
    /// Destination path bits.
    pub path_bits: u32,
    /// A GRH is in the buffer.
    pub grh: bool,
    /// The sender asked for an event.
    pub solicited: bool,
}

impl Arrival {
    /// A SEND with `extra`.
    pub fn send(extra: Extra) -> Self {
        let (opcode, word) = match extra {
            Extra::None => (opcode::RESP_SEND, 0),
            Extra::Imm(word) => (opcode::RESP_SEND_IMM, word),
            Extra::Inval(word) => (opcode::RESP_SEND_INV, word),
        };
        Self { opcode, word, ..Self::default() }
    }
}

/// Where a WQE was, for its CQE.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Send queue: block counter; receive queue: counter; SRQ: index.
    pub counter: u16,
    /// What 0x20 says: user_index, or SRQN.
    pub owner: u32,
}

/// What 0x20 of a receive CQE says (contract 7.5): with cqe_version 1 the user_index; for kernel users of XRC the SRQN.
pub fn receive_owner(hca: &Hca, qp: &Qp, srqn: Option<u32>) -> u32 {
    match srqn {
        Some(srqn) if qp.service == service_type::XRC => {
            hca.srqs.get(srqn).map(|srq| srq.user_index).filter(|index| *index != NO_USER_INDEX).unwrap_or(srqn)
        }
        _ => qp.user_index,
    }
}

fn entry(qp: &Qp, place: Place, code: u32) -> [u8; CQE_SIZE] {
    let mut entry = [0; CQE_SIZE];
    let fields: [(Field, u32); 4] = [
        (cqe::SRQN_UIDX, place.owner),
        (cqe::QPN, qp.qpn),
        (cqe::WQE_COUNTER, u32::from(place.counter)),
        (cqe::OPCODE, code),
    ];
    for (field, value) in fields {
        field.set(&mut entry, value);
    }
    entry
}

/// Success of the send WQE whose opcode is `opcode`; `bytes` for reads and atomics.
pub fn sent(
    hca: &Hca,
    cq: &Cq,
    qp: &Qp,
    place: Place,
    (opcode, bytes): (u32, u64),
    event: bool,
) -> Result<(), CqError> {
    record(hca, qp, place, opcode, 0);
    let mut entry = entry(qp, place, opcode::REQ);
    cqe::SEND_OPCODE.set(&mut entry, opcode);
    cqe::BYTE_CNT.set(&mut entry, bytes as u32);
    push(hca, cq, qp, entry, event)
}

fn push(hca: &Hca, cq: &Cq, qp: &Qp, entry: [u8; CQE_SIZE], solicited: bool) -> Result<(), CqError> {
    let pushed = cq.push(hca, entry, solicited);
    if let Err(CqError::Overrun(_)) = pushed {
        qp.attrs().count(Count::CqOverflow);
    }
    pushed
}

/// For the ledger, while it watches anything.
fn record(hca: &Hca, qp: &Qp, place: Place, opcode: u32, status: u32) {
    let ledger = &hca.ledger;
    if ledger.watches_any() {
        let kind = NicKind::Completed { wqe_index: place.counter, opcode: opcode as u8, status: status as u8 };
        ledger.nic_push(hca.index, qp.qpn, kind);
    }
}

/// A message has arrived in the receive WQE at `place`.
pub fn received(hca: &Hca, cq: &Cq, qp: &Qp, place: Place, arrival: &Arrival) -> Result<(), CqError> {
    let mut entry = entry(qp, place, arrival.opcode);
    let fields: [(Field, u32); 8] = [
        (cqe::BYTE_CNT, arrival.bytes as u32),
        (cqe::IMM_INVAL_PKEY, arrival.word),
        (cqe::RQPN, arrival.source_qpn),
        (cqe::SLID, u32::from(arrival.slid)),
        (cqe::SL, arrival.sl),
        (cqe::ML_PATH, arrival.path_bits),
        (cqe::GRH, u32::from(arrival.grh)),
        (cqe::SE, u32::from(arrival.solicited)),
    ];
    for (field, value) in fields {
        field.set(&mut entry, value);
    }
    push(hca, cq, qp, entry, arrival.solicited)
}

/// Which half of a queue pair failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// A send WQE, with its opcode.
    Requester(u32),
    /// A receive WQE.
    Responder,
}

/// A WQE is completed in error.
pub fn failed(hca: &Hca, cq: &Cq, qp: &Qp, place: Place, half: Half, why: Diagnosis) -> Result<(), CqError> {
    let mut entry = match half {
        Half::Requester(_) => entry(qp, place, opcode::REQ_ERR),
        Half::Responder => entry(qp, place, opcode::RESP_ERR),
    };
    if let Half::Requester(opcode) = half {
        record(hca, qp, place, opcode, why.syndrome);
        cqe::SEND_OPCODE.set(&mut entry, opcode);
    }
    why.put(&mut entry);
    if why.syndrome != syndrome::WR_FLUSH_ERR {
        log::debug!("QPN {:#x}: {half:?} completes in error {:#x}", qp.qpn, why.syndrome);
    }
    hca.counters.error_cqes.add(1);
    if let Some(counters) = &qp.attrs().counters {
        counters.add_error(matches!(half, Half::Requester(_)), why.syndrome);
    }
    push(hca, cq, qp, entry, true)
}
