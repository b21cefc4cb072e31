// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests, from bytes that have been copied in to typed values (contract 7.3, 7.4). Nothing here touches guest memory.

use thiserror::Error;

use mlx5_spec::mkey::TERMINATOR_KEY;
use mlx5_spec::qp::service_type;
use mlx5_spec::wqe::{
    AV_BASE_SIZE, AV_SIZE, DS_UNIT, SIGNATURE_SIZE, ZERO_BYTE_COUNT, atomic, av, ctrl, data, inline, opcode, raddr,
    srq_next, xrc,
};

#[cfg(test)]
mod tests;

/// Bytes of the largest send WQE: 63 units of 16 bytes.
pub const MAX_SEND_WQE: usize = 63 * DS_UNIT;
/// Bytes of the largest receive WQE (QPC.log_rq_stride has three bits: 16 << 7).
pub const MAX_RECV_WQE: usize = 16 << 7;
/// Bytes of a send queue's block.
pub const BLOCK: usize = 64;

/// Why a send WQE is not executed; all are local QP operation errors (0x02).
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum WqeError {
    /// The length field is zero, or a segment passes it.
    #[error("the segments do not fit the length of {0} units")]
    Length(u32),
    /// The opcode is unknown or means nothing to this kind of queue pair.
    #[error("opcode {0:#x} does not suit the queue pair")]
    Opcode(u32),
    /// The control segment names another queue pair.
    #[error("the WQE belongs to QPN {0:#x}")]
    Qpn(u32),
}

/// What a send WQE does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Nothing.
    #[default]
    Nop,
    /// SEND and its kinds; the message takes a receive WQE.
    Send,
    /// RDMA WRITE; with immediate it takes a receive WQE.
    Write,
    /// RDMA READ.
    Read,
    /// Compare and swap.
    CompareSwap,
    /// Fetch and add.
    FetchAdd,
    /// Memory key update.
    Umr,
}

/// What comes along with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extra {
    /// Nothing.
    #[default]
    None,
    /// Immediate data.
    Imm(u32),
    /// The responder invalidates this key of its own.
    Inval(u32),
}

/// A part of a gather or scatter list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seg {
    /// Memory under a key.
    Key {
        /// Local key.
        lkey: u32,
        /// First byte.
        va: u64,
        /// Bytes, 1 to 2^31.
        len: u64,
    },
    /// Bytes of the WQE itself.
    Inline {
        /// Where in the WQE.
        at: usize,
        /// Bytes.
        len: u64,
    },
}

impl Seg {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        match *self {
            Self::Key { len, .. } | Self::Inline { len, .. } => len,
        }
    }
}

/// Destination of a datagram, or of a DC initiator's message (contract 7.3, AV).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Av {
    /// Q_Key; the queue pair's own if the high bit is set.
    pub qkey: u32,
    /// Destination QPN.
    pub dqpn: u32,
    /// Service level.
    pub sl: u32,
    /// Destination path bits.
    pub path_bits: u32,
    /// Destination LID.
    pub dlid: u16,
    /// Global routing, if wanted.
    pub grh: Option<Grh>,
}

/// The parts of a GRH that the sender chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grh {
    /// Traffic class.
    pub tclass: u32,
    /// Flow label.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u32,
    /// Index of the sender's GID.
    pub sgid_index: u32,
    /// Destination GID.
    pub dgid: [u8; 16],
}

/// A send WQE. Parsed into place, so that its list is allocated once a queue pair.
#[derive(Debug, Clone, Default)]
pub struct SendWqe {
    /// As in the control segment.
    pub opcode: u32,
    /// What it does.
    pub kind: Kind,
    /// Immediate or key to invalidate.
    pub extra: Extra,
    /// Whether its success is told of (`ce` 2 and 3).
    pub signaled: bool,
    /// Whether it asks for an event at the responder.
    pub solicited: bool,
    /// `ce` 3: its own completion asks for an event.
    pub own_event: bool,
    /// Address and key at the responder.
    pub remote: (u64, u32),
    /// Operands of an atomic: swap or add, compare.
    pub operands: (u64, u64),
    /// Destination of a datagram.
    pub av: Av,
    /// Key of the target that a DC initiator means.
    pub dc_key: u64,
    /// SRQ at the responder, of XRC.
    pub srqn: u32,
    /// Gather or scatter list.
    pub segs: Vec<Seg>,
    /// Bytes of the list.
    pub total: u64,
    /// Bytes of the WQE.
    pub bytes: usize,
}

/// Bytes that a WQE says it has, from its control segment: 16 to 1008.
pub fn length(control: &[u8]) -> Result<usize, WqeError> {
    match ctrl::DS.get(control) {
        0 => Err(WqeError::Length(0)),
        ds => Ok(ds as usize * DS_UNIT),
    }
}

/// Opcode in a control segment.
pub fn opcode_of(control: &[u8]) -> u32 {
    ctrl::OPCODE.get(control)
}

/// Target key of a UMR WQE.
pub fn umr_key(wqe: &[u8]) -> u32 {
    ctrl::UMR_MKEY.get(wqe)
}

/// Kind and whether the opcode carries an immediate (1) or a key to invalidate (2).
fn kind_of(code: u32) -> Option<(Kind, u8)> {
    Some(match code {
        opcode::NOP => (Kind::Nop, 0),
        opcode::SEND_INVAL => (Kind::Send, 2),
        opcode::RDMA_WRITE => (Kind::Write, 0),
        opcode::RDMA_WRITE_IMM => (Kind::Write, 1),
        opcode::SEND => (Kind::Send, 0),
        opcode::SEND_IMM => (Kind::Send, 1),
        opcode::RDMA_READ => (Kind::Read, 0),
        opcode::ATOMIC_CS => (Kind::CompareSwap, 0),
        opcode::ATOMIC_FA => (Kind::FetchAdd, 0),
        opcode::UMR => (Kind::Umr, 0),
        _ => return None,
    })
}

/// Whether a queue pair of service `service` executes `kind` (IBTA table 38; UMR: contract 8.4).
fn suits(service: u32, kind: Kind, extra: u8) -> bool {
    match service {
        service_type::RC | service_type::XRC | service_type::DCI => true,
        service_type::UC => matches!(kind, Kind::Nop | Kind::Send | Kind::Write) && extra != 2,
        service_type::UD | service_type::QP0 | service_type::QP1 => {
            matches!(kind, Kind::Nop | Kind::Send) && extra != 2
        }
        service_type::REG_UMR => matches!(kind, Kind::Nop | Kind::Umr),
        _ => kind == Kind::Nop,
    }
}

impl SendWqe {
    /// Parses `wqe`, all [`length`] bytes of it, as posted to queue pair `qpn`.
    pub fn parse(&mut self, wqe: &[u8], service: u32, qpn: u32) -> Result<(), WqeError> {
        self.segs.clear();
        self.total = 0;
        self.bytes = wqe.len();
        self.opcode = ctrl::OPCODE.get(wqe);
        self.signaled = ctrl::CE.get(wqe) >= 2;
        self.own_event = ctrl::CE.get(wqe) == 3;
        self.solicited = ctrl::SOLICITED.is_set(wqe);
        self.kind = Kind::Nop;
        self.extra = Extra::None;
        if ctrl::QPN.get(wqe) != qpn {
            return Err(WqeError::Qpn(ctrl::QPN.get(wqe)));
        }
        let (kind, extra) = kind_of(self.opcode)
            .filter(|&(kind, extra)| suits(service, kind, extra))
            .ok_or(WqeError::Opcode(self.opcode))?;
        self.kind = kind;
        self.extra = match extra {
            1 => Extra::Imm(ctrl::IMM.get(wqe)),
            2 => Extra::Inval(ctrl::INVAL_RKEY.get(wqe)),
            _ => Extra::None,
        };
        if matches!(kind, Kind::Nop | Kind::Umr) {
            return Ok(());
        }
        let at = self.headers(wqe, service).ok_or(WqeError::Length(ctrl::DS.get(wqe)))?;
        self.list(wqe, at).ok_or(WqeError::Length(ctrl::DS.get(wqe)))
    }

    /// The segments between control and data; where the data segments begin.
    fn headers(&mut self, wqe: &[u8], service: u32) -> Option<usize> {
        let mut at = ctrl::SIZE;
        if service == service_type::XRC {
            self.srqn = xrc::XRC_SRQN.get(wqe.get(at..at + xrc::SIZE)?);
            at += xrc::SIZE;
        }
        if matches!(service, service_type::UD | service_type::QP0 | service_type::QP1 | service_type::DCI) {
            let bytes = wqe.get(at..)?;
            let size = if av::EXTENDED.is_set(bytes) { AV_SIZE } else { AV_BASE_SIZE };
            self.av = parse_av(bytes.get(..size)?);
            self.dc_key = av::DC_KEY.get(bytes);
            at += size;
        }
        if matches!(self.kind, Kind::Write | Kind::Read | Kind::CompareSwap | Kind::FetchAdd) {
            let bytes = wqe.get(at..at + raddr::SIZE)?;
            self.remote = (raddr::RADDR.get(bytes), raddr::RKEY.get(bytes));
            at += raddr::SIZE;
        }
        if matches!(self.kind, Kind::CompareSwap | Kind::FetchAdd) {
            let bytes = wqe.get(at..at + atomic::SIZE)?;
            self.operands = (atomic::SWAP_ADD.get(bytes), atomic::COMPARE.get(bytes));
            at += atomic::SIZE;
        }
        Some(at)
    }

    fn list(&mut self, wqe: &[u8], mut at: usize) -> Option<()> {
        while at < wqe.len() {
            let rest = wqe.get(at..)?;
            let seg = if data::INLINE.is_set(rest) {
                let len = inline::LENGTH.get(rest) as usize;
                rest.get(inline::SIZE..inline::SIZE + len)?;
                let seg = Seg::Inline { at: at + inline::SIZE, len: len as u64 };
                at += (inline::SIZE + len).next_multiple_of(DS_UNIT);
                seg
            } else {
                at += data::SIZE;
                parse_data(rest.get(..data::SIZE)?)
            };
            // At most 63 segments of at most 2^31 bytes.
            self.total += seg.bytes();
            self.segs.push(seg);
        }
        Some(())
    }

    /// 64-byte blocks that it takes in the send queue.
    pub fn blocks(&self) -> u16 {
        self.bytes.div_ceil(BLOCK) as u16
    }
}

fn parse_data(bytes: &[u8]) -> Seg {
    let len = match data::BYTE_COUNT.get(bytes) {
        0 => ZERO_BYTE_COUNT,
        len => u64::from(len),
    };
    Seg::Key { lkey: data::LKEY.get(bytes), va: data::ADDR.get(bytes), len }
}

fn parse_av(bytes: &[u8]) -> Av {
    let grh = av::GRH.is_set(bytes).then(|| Grh {
        tclass: av::TCLASS.get(bytes),
        flow_label: av::FLOW_LABEL.get(bytes),
        hop_limit: av::HOP_LIMIT.get(bytes),
        sgid_index: av::SRC_ADDR_INDEX.get(bytes),
        dgid: bytes.get(av::RGID).and_then(|gid| gid.try_into().ok()).unwrap_or_default(),
    });
    Av {
        qkey: av::QKEY.get(bytes),
        dqpn: av::DQPN.get(bytes),
        sl: av::SL.get(bytes),
        path_bits: av::MLID.get(bytes),
        dlid: av::RLID.get(bytes) as u16,
        grh,
    }
}

/// What a receive WQE begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Its list.
    None,
    /// A signature segment (`MLX5_QP_SIGNATURE` in a user's environment).
    Signature,
    /// A shared queue's link, which has the signature in it.
    Next,
}

/// Parses the scatter list of a receive WQE: `wqe` is all of its stride. Returns the bytes that it has room for.
pub fn parse_receive(wqe: &[u8], head: Head, segs: &mut Vec<Seg>) -> u64 {
    segs.clear();
    let skip = match head {
        Head::None => 0,
        Head::Signature => SIGNATURE_SIZE,
        Head::Next => srq_next::SIZE,
    };
    let mut total = 0;
    // At most 128 segments of at most 2^31 bytes.
    for bytes in wqe.get(skip..).unwrap_or_default().chunks_exact(data::SIZE) {
        if data::LKEY.get(bytes) == TERMINATOR_KEY {
            break;
        }
        let seg = parse_data(bytes);
        total += seg.bytes();
        segs.push(seg);
    }
    total
}
