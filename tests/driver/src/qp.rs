// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs: making, connecting, posting (contract 6.3, 6.4, 7.1 to 7.4).

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mlx5_spec::bits::Field;
use mlx5_spec::cmd::Opcode;
use mlx5_spec::mkey::TERMINATOR_KEY;
use mlx5_spec::qp::{
    NO_USER_INDEX, PRIMARY_PATH, QPC_SIZE, SQ_BLOCK_SIZE, ads, create_in, create_out, dbr, destroy_in, modify_in,
    opt_param_mask, qpc, query_in, query_out, rq_type, service_type,
};
use mlx5_spec::uar;
use mlx5_spec::wqe::{SIGNATURE_SIZE, ctrl};

use crate::command::Input;
use crate::cq::Cq;
use crate::devx::Place;
use crate::driver::{Context, Driver};
use crate::memory::Buffer;
use crate::wqe::{Sge, Wqe};
use crate::{Error, Result};

/// 4.096 us << 14: 67 ms.
const ACK_TIMEOUT: u32 = 14;

/// How a queue pair is made and connected.
#[derive(Clone)]
pub struct QpSpec {
    /// `spec::qp::service_type`.
    pub service: u32,
    /// Protection domain.
    pub pd: u32,
    /// UAR page, which decides its engine.
    pub uar: u32,
    /// Send completions.
    pub send_cq: Arc<Cq>,
    /// Receive completions.
    pub recv_cq: Arc<Cq>,
    /// log2 of the send queue's 64-byte blocks.
    pub log_sq: u32,
    /// log2 of the receive WQEs.
    pub log_rq: u32,
    /// log2 of a receive WQE's data segments.
    pub log_rq_sges: u32,
    /// Shared receive queue instead of its own.
    pub srq: Option<u32>,
    /// XRC domain, 0 for other services.
    pub xrcd: u32,
    /// Value for CQEs.
    pub user_index: u32,
    /// What the peer may do.
    pub remote_write: bool,
    /// What the peer may do.
    pub remote_read: bool,
    /// What the peer may do.
    pub remote_atomic: bool,
    /// Transport retries.
    pub retry_count: u32,
    /// RNR retries; 7: no end.
    pub rnr_retry: u32,
    /// Code of the RNR timer that it asks of its peer; 1: 10 us.
    pub min_rnr_nak: u32,
    /// Code of the acknowledge timeout.
    pub ack_timeout: u32,
    /// Q_Key.
    pub qkey: u32,
    /// Code of the path MTU; 5: 4096 bytes.
    pub mtu: u32,
    /// PSN of the first packet that it sends.
    pub send_psn: u32,
    /// PSN of the first packet that it expects.
    pub rcv_psn: u32,
    /// Receive WQEs begin with a signature segment, send WQEs have a signature byte: both hold nonsense.
    pub signed: bool,
}

impl QpSpec {
    /// A reliable connection on the driver's UAR page: 64 send blocks, 16 receive WQEs of 4 segments, everything allowed.
    pub fn rc(driver: &Driver, pd: u32, cq: &Arc<Cq>) -> Self {
        Self {
            service: service_type::RC,
            pd,
            uar: driver.uar,
            send_cq: cq.clone(),
            recv_cq: cq.clone(),
            log_sq: 6,
            log_rq: 4,
            log_rq_sges: 2,
            srq: None,
            xrcd: 0,
            user_index: NO_USER_INDEX,
            remote_write: true,
            remote_read: true,
            remote_atomic: true,
            retry_count: 7,
            rnr_retry: 7,
            min_rnr_nak: 1,
            ack_timeout: ACK_TIMEOUT,
            qkey: 0x1111_1111,
            mtu: 5,
            send_psn: 0,
            rcv_psn: 0,
            signed: false,
        }
    }
}

/// Whom to connect to.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its QPN.
    pub qpn: u32,
    /// Its LID.
    pub lid: u32,
}

/// A queue pair.
pub struct Qp {
    /// Its number.
    pub qpn: u32,
    /// As made.
    pub spec: QpSpec,
    context: Arc<Context>,
    buffer: Buffer,
    /// Doorbell record.
    pub record: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blocks posted to the send queue.
    sent: u16,
    /// WQEs posted to the receive queue.
    received: u16,
    /// First 8 bytes of the last WQE posted.
    last: [u8; 8],
}

impl Qp {
    /// CREATE_QP; state RST.
    pub fn create(context: &Arc<Context>, spec: QpSpec) -> Result<Self> {
        let guest = &context.machine.guest;
        let (has_rq, has_sq) = (has_rq(&spec), spec.log_sq > 0);
        let rq = if has_rq { 16u64 << spec.log_rq_sges << spec.log_rq } else { 0 };
        let sq = if has_sq { (SQ_BLOCK_SIZE as u64) << spec.log_sq } else { 0 };
        let buffer = guest.scattered(rq + sq);
        let record = guest.page();
        guest.write(record, &[0; dbr::SIZE]);
        // A driver names the domain of a UMR queue pair only at RST2INIT (contract 6.3).
        let pd = if spec.service == service_type::REG_UMR { 0 } else { spec.pd };
        let mut context_bytes = vec![0; QPC_SIZE];
        let c = &mut context_bytes;
        qpc::ST.set(c, spec.service);
        qpc::PM_STATE.set(c, 3);
        qpc::PD.set(c, pd);
        qpc::LOG_SQ_SIZE.set(c, spec.log_sq);
        qpc::NO_SQ.set(c, u32::from(!has_sq));
        qpc::UAR_PAGE.set(c, spec.uar);
        qpc::USER_INDEX.set(c, spec.user_index);
        qpc::CQN_SND.set(c, spec.send_cq.cqn);
        qpc::CQN_RCV.set(c, spec.recv_cq.cqn);
        qpc::DBR_ADDR.set(c, record);
        qpc::FRE.set(c, 1);
        qpc::WQ_SIGNATURE.set(c, u32::from(spec.signed));
        qpc::RLKY.set(c, 1);
        if has_rq {
            qpc::LOG_RQ_SIZE.set(c, spec.log_rq);
            qpc::LOG_RQ_STRIDE.set(c, spec.log_rq_sges);
        }
        let kind = match spec.srq {
            Some(_) => rq_type::SRQ,
            None if has_rq => rq_type::REGULAR,
            None => rq_type::ZERO_SIZE,
        };
        qpc::RQ_TYPE.set(c, kind);
        qpc::SRQN_RMPN_XRQN.set(c, spec.srq.unwrap_or(0));
        qpc::XRCD.set(c, spec.xrcd);
        let input = Input::new(Opcode::CREATE_QP, create_in::SIZE).bytes(create_in::QPC, c).list(&buffer.pages);
        let place = Place {
            valid: create_in::WQ_UMEM_VALID,
            id: create_in::WQ_UMEM_ID,
            record_valid: qpc::DBR_UMEM_VALID.plus(create_in::QPC),
            record_id: qpc::DBR_UMEM_ID.plus(create_in::QPC),
            record: create_in::QPC + qpc::DBR_ADDR.0,
        };
        let input = context.place(input, &place, &buffer, record)?;
        let qpn = create_out::QPN.get(&context.command(input)?);
        Ok(Self { qpn, spec, context: context.clone(), buffer, record, state: Mutex::default() })
    }

    /// A pair of connected queue pairs in RTS.
    pub fn pair(driver: &Driver, one: QpSpec, other: QpSpec) -> Result<(Self, Self)> {
        let (one, other) = (Self::create(&driver.context, one)?, Self::create(&driver.context, other)?);
        one.connect(other.peer())?;
        other.connect(one.peer())?;
        Ok((one, other))
    }

    /// How others reach it.
    pub fn peer(&self) -> Peer {
        Peer { qpn: self.qpn, lid: u32::from(self.context.machine.nic.hca().lid()) }
    }

    /// RST to RTS.
    pub fn connect(&self, peer: Peer) -> Result<()> {
        self.to_init()?;
        self.to_rtr(peer)?;
        self.to_rts()
    }

    /// RST2INIT.
    pub fn to_init(&self) -> Result<()> {
        let spec = &self.spec;
        let mut c = vec![0; QPC_SIZE];
        qpc::ST.set(&mut c, spec.service);
        qpc::PM_STATE.set(&mut c, 3);
        // A program's own commands say once what they name.
        let once = self.context.in_umems.load(Ordering::Relaxed);
        if !once {
            qpc::PD.set(&mut c, spec.pd);
        }
        qpc::CQN_SND.set(&mut c, spec.send_cq.cqn);
        // UMR queue pairs send 0 here (contract 15.3).
        qpc::CQN_RCV.set(&mut c, if has_rq(spec) || spec.srq.is_some() { spec.recv_cq.cqn } else { 0 });
        qpc::RWE.set(&mut c, u32::from(spec.remote_write));
        qpc::Q_KEY.set(&mut c, spec.qkey);
        if !once {
            qpc::DBR_ADDR.set(&mut c, self.record);
        }
        ads::VHCA_PORT_NUM.plus(PRIMARY_PATH).set(&mut c, 1);
        self.modify(Opcode::RST2INIT_QP, 0, &c)
    }

    /// INIT2RTR.
    pub fn to_rtr(&self, peer: Peer) -> Result<()> {
        self.to_rtr_as(&self.spec, peer)
    }

    /// INIT2RTR with other attributes than it was made with.
    pub fn to_rtr_as(&self, spec: &QpSpec, peer: Peer) -> Result<()> {
        let mut c = vec![0; QPC_SIZE];
        qpc::MTU.set(&mut c, spec.mtu);
        qpc::NEXT_RCV_PSN.set(&mut c, spec.rcv_psn);
        qpc::LOG_MSG_MAX.set(&mut c, 30);
        qpc::REMOTE_QPN.set(&mut c, peer.qpn);
        qpc::LOG_RRA_MAX.set(&mut c, 4);
        qpc::MIN_RNR_NAK.set(&mut c, spec.min_rnr_nak);
        qpc::RRE.set(&mut c, u32::from(spec.remote_read));
        qpc::RWE.set(&mut c, u32::from(spec.remote_write));
        qpc::RAE.set(&mut c, u32::from(spec.remote_atomic));
        qpc::ATOMIC_MODE.set(&mut c, u32::from(spec.remote_atomic));
        ads::RLID.plus(PRIMARY_PATH).set(&mut c, peer.lid);
        ads::VHCA_PORT_NUM.plus(PRIMARY_PATH).set(&mut c, 1);
        let mask = match spec.service {
            service_type::RC | service_type::XRC => opt_param_mask::RRE | opt_param_mask::RAE | opt_param_mask::RWE,
            service_type::UC => opt_param_mask::RWE,
            _ => 0,
        };
        self.modify(Opcode::INIT2RTR_QP, mask, &c)
    }

    /// RTR2RTS.
    pub fn to_rts(&self) -> Result<()> {
        self.to_rts_as(&self.spec)
    }

    /// RTR2RTS with other attributes than it was made with.
    pub fn to_rts_as(&self, spec: &QpSpec) -> Result<()> {
        let mut c = vec![0; QPC_SIZE];
        qpc::NEXT_SEND_PSN.set(&mut c, spec.send_psn);
        qpc::RETRY_COUNT.set(&mut c, spec.retry_count);
        qpc::RNR_RETRY.set(&mut c, spec.rnr_retry);
        qpc::LOG_SRA_MAX.set(&mut c, 4);
        ads::ACK_TIMEOUT.plus(PRIMARY_PATH).set(&mut c, spec.ack_timeout);
        self.modify(Opcode::RTR2RTS_QP, 0, &c)
    }

    /// A transition with a context.
    pub fn modify(&self, opcode: Opcode, mask: u32, context: &[u8]) -> Result<()> {
        let input = Input::new(opcode, modify_in::SIZE)
            .with(modify_in::QPN, self.qpn)
            .with(modify_in::OPT_PARAM_MASK, mask)
            .bytes(modify_in::QPC, context);
        self.context.command(input).map(|_| ())
    }

    /// 2ERR.
    pub fn to_error(&self) -> Result<()> {
        self.number_only(Opcode::TO_ERR_QP)
    }

    /// 2RST: queues are empty, counters and record 0.
    pub fn to_reset(&self) -> Result<()> {
        self.number_only(Opcode::TO_RST_QP)?;
        *self.lock() = State::default();
        self.context.machine.guest.write(self.record, &[0; dbr::SIZE]);
        Ok(())
    }

    /// DESTROY_QP.
    pub fn destroy(&self) -> Result<()> {
        self.number_only(Opcode::DESTROY_QP)
    }

    /// QUERY_QP: the context.
    pub fn query(&self) -> Result<Vec<u8>> {
        let input = Input::new(Opcode::QUERY_QP, query_in::SIZE).with(query_in::QPN, self.qpn);
        let output = self.context.query(input, query_out::SIZE)?;
        Ok(output[query_out::QPC..query_out::QPC + QPC_SIZE].to_vec())
    }

    /// A field of the context.
    pub fn queried(&self, field: Field) -> Result<u32> {
        Ok(field.get(&self.query()?))
    }

    /// Writes WQEs behind those posted and rings once. Returns the block index of each. The caller knows that there is room.
    pub fn post(&self, wqes: &[Wqe]) -> Vec<u16> {
        let indices = wqes.iter().map(|wqe| self.write(wqe)).collect();
        self.ring();
        indices
    }

    /// Posts one.
    pub fn post_one(&self, wqe: Wqe) -> u16 {
        self.post(&[wqe])[0]
    }

    /// Posts one and waits for its completion, which is asked for.
    ///
    /// # Errors
    /// None came, or one in error.
    pub fn run(&self, wqe: Wqe) -> Result<()> {
        let index = self.post_one(wqe.signaled());
        let cqe = self.spec.send_cq.wait_ok()?;
        match (cqe.qpn(), cqe.wqe_counter()) == (self.qpn, index) {
            true => Ok(()),
            false => Err(Error::Device(format!("{cqe:?} instead of QPN {:#x} WQE {index}", self.qpn))),
        }
    }

    /// Writes a WQE without telling the device. It may wrap at the queue's end.
    pub fn write(&self, wqe: &Wqe) -> u16 {
        let mut state = self.lock();
        let index = state.sent;
        let mut bytes = wqe.finish(index, self.qpn);
        if self.spec.signed {
            ctrl::SIGNATURE.set(&mut bytes, 0x5a);
        }
        let blocks = bytes.len().div_ceil(SQ_BLOCK_SIZE) as u16;
        for (block, bytes) in (0..).zip(bytes.chunks(SQ_BLOCK_SIZE)) {
            self.buffer.write(self.block(index.wrapping_add(block)), bytes);
        }
        state.last.copy_from_slice(&bytes[..8]);
        state.sent = index.wrapping_add(blocks);
        index
    }

    /// Record, then doorbell. It names this queue pair, whatever the WQE says.
    pub fn ring(&self) {
        self.publish();
        let mut last = self.lock().last;
        ctrl::QPN.set(&mut last, self.qpn);
        self.context.doorbell(self.spec.uar, uar::SQ_DOORBELL, last);
    }

    /// Posts `blocks` blocks of WQEs again that lie in the queue from an earlier round, and rings: what a benchmark does.
    pub fn repeat(&self, blocks: u16) {
        let mut state = self.lock();
        state.sent = state.sent.wrapping_add(blocks);
        drop(state);
        self.ring();
    }

    /// Only the send record.
    pub fn publish(&self) {
        let state = self.lock();
        self.context.machine.guest.publish_u32(self.record + 4, u32::from(state.sent));
    }

    /// Posts a receive WQE and returns its counter. No doorbell: the device looks at the record.
    pub fn receive(&self, list: &[Sge]) -> u16 {
        let mut state = self.lock();
        let index = state.received;
        let stride = 16u64 << self.spec.log_rq_sges;
        let at = u64::from(index) % (1 << self.spec.log_rq) * stride;
        let head = if self.spec.signed { SIGNATURE_SIZE } else { 0 };
        self.buffer.write(at, &vec![0x5a; head]);
        self.buffer.write(at + head as u64, &scatter_list(list, stride as usize - head));
        state.received = index.wrapping_add(1);
        self.context.machine.guest.publish_u32(self.record, u32::from(state.received));
        index
    }

    /// Overwrites bytes of the work queues, as a guest can at any time. `at` counts from the first send block.
    pub fn scribble_sq(&self, at: u64, bytes: &[u8]) {
        self.buffer.write(self.block(0) + at, bytes);
    }

    /// Blocks posted so far.
    pub fn posted(&self) -> u16 {
        self.lock().sent
    }

    fn block(&self, index: u16) -> u64 {
        let rq = if has_rq(&self.spec) { 16u64 << self.spec.log_rq_sges << self.spec.log_rq } else { 0 };
        rq + u64::from(index) % (1 << self.spec.log_sq) * SQ_BLOCK_SIZE as u64
    }

    fn number_only(&self, opcode: Opcode) -> Result<()> {
        self.context.command(Input::new(opcode, 16).with(destroy_in::QPN, self.qpn)).map(|_| ())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn has_rq(spec: &QpSpec) -> bool {
    spec.srq.is_none() && spec.log_rq > 0 && spec.service != service_type::REG_UMR
}

/// The data segments of a receive WQE with their terminator, if there is room for one (contract 7.4).
pub(crate) fn scatter_list(list: &[Sge], room: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = list.iter().flat_map(|sge| sge.segment()).collect();
    if bytes.len() < room {
        bytes.extend(Sge { key: TERMINATOR_KEY, va: 0, len: 0 }.segment());
    }
    bytes.truncate(room);
    bytes
}
