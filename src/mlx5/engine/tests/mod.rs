// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loopback on an HCA with memory of its own and no VM: queues are posted to and polled as a driver would.

mod datagrams;
mod errors;
mod loopback;
mod paging;
mod planted;
mod price;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::Engines;
use crate::NicConfig;
use crate::buffer::{Geometry, GuestBuffer};
use crate::cq::{Cq, CqSpec};
use crate::eq::{Eq, EqSpec};
use crate::hca::{FIRST_UAR, Hca, PORT_LID};
use crate::mkey::{self, Mkey};
use crate::qp::{Qp, QpAttrs, QpSpec, QueueLayout};
use crate::srq::{Srq, SrqKind, SrqState};
use dma::{BusMaster, DmaTarget, GuestRam};
use mlx5_spec::bits::Field;
use mlx5_spec::cq::{CQE_SIZE, cqe, opcode as cqe_opcode};
use mlx5_spec::eq::{EQE_SIZE, eqe};
use mlx5_spec::mkey::{ANY_QPN, MKC_SIZE, TERMINATOR_KEY, mkc};
use mlx5_spec::qp::{service_type, state};
use mlx5_spec::wqe::{ctrl, data, inline, raddr};
use pci::msix::{Msix, MsixPlace};
use pci::testing::FakeRouter;
use probe::ledger::Ledger;

const RAM: u64 = 64 << 20;
const PAGE: u64 = 4096;
const PD: u32 = 0x11;
const UAR: u32 = FIRST_UAR;
const SOON: Duration = Duration::from_secs(10);
/// log2 of blocks of a send queue, of WQEs of a receive queue, of entries of a CQ.
const LOG_SQ: u32 = 6;
const LOG_RQ: u32 = 4;
const LOG_CQ: u32 = 8;
const RQ_STRIDE: u64 = 64;

struct Guest {
    hca: Arc<Hca>,
    ram: Arc<GuestRam>,
    master: Arc<BusMaster>,
    free: Cell<u64>,
    /// A key for all of memory.
    all: u32,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.hca.engines.stop();
    }
}

struct TestCq {
    cq: Arc<Cq>,
    log_size: u32,
    base: u64,
    record: u64,
    next: Cell<u32>,
}

struct TestQp {
    qp: Arc<Qp>,
    send_cq: TestCq,
    recv_cq: TestCq,
    base: u64,
    record: u64,
    sent: Cell<u16>,
    posted: Cell<u16>,
}

struct TestEq {
    base: u64,
    eq: Arc<Eq>,
    next: Cell<u32>,
}

struct TestSrq {
    srq: Arc<Srq>,
    base: u64,
    record: u64,
    posted: Cell<u16>,
}

/// What a test waits for, within [`SOON`].
fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} came");
        std::thread::yield_now();
    }
}

impl Guest {
    fn new() -> Self {
        Self::with(NicConfig::default())
    }

    fn with(config: NicConfig) -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
        let master = Arc::new(BusMaster::default());
        master.set(true);
        let dma = DmaTarget::new(8, ram.clone(), master.clone());
        let (place, _) = MsixPlace::own_bar(2, 8);
        let msix = Arc::new(Msix::new(8, place, Arc::new(FakeRouter::default())));
        let hca = Arc::new(Hca::new(0, config, dma, Ledger::new(), msix).unwrap());
        Engines::start(&hca).unwrap();
        let mut guest = Self { hca, ram, master, free: Cell::new(PAGE), all: 0 };
        guest.all = guest.key(guest.context(0, 0, RAM, 0), &[]).key();
        guest
    }

    fn alloc(&self, bytes: u64) -> u64 {
        let at = self.free.get();
        self.free.set(at + bytes.next_multiple_of(PAGE));
        assert!(self.free.get() <= RAM);
        at
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn set_word(&self, gpa: u64, value: u32) {
        self.write(gpa, &value.to_be_bytes());
    }

    fn buffer(&self, bytes: u64) -> (u64, GuestBuffer) {
        let base = self.alloc(bytes);
        let pages: Vec<u8> = (base..base + bytes).step_by(PAGE as usize).flat_map(u64::to_be_bytes).collect();
        (base, GuestBuffer::new(Geometry::new(0, 0, bytes).unwrap(), &pages).unwrap())
    }

    /// MKC of mode 0 (PA) or 1 (MTT) with all rights.
    fn context(&self, mode: u32, start: u64, len: u64, octwords: u32) -> [u8; MKC_SIZE] {
        let mut bytes = [0; MKC_SIZE];
        let ones = [mkc::LR, mkc::LW, mkc::RR, mkc::RW, mkc::A, mkc::UMR_EN, mkc::EN_RINVAL];
        for right in ones {
            right.set(&mut bytes, 1);
        }
        let fields: [(Field, u32); 6] = [
            (mkc::ACCESS_MODE_1_0, mode),
            (mkc::QPN, ANY_QPN),
            (mkc::MKEY_7_0, 0x5a),
            (mkc::PD, PD),
            (mkc::LOG_PAGE_SIZE, 12),
            (mkc::TRANSLATIONS_OCTWORD_SIZE, octwords),
        ];
        for (field, value) in fields {
            field.set(&mut bytes, value);
        }
        mkc::START_ADDR.set(&mut bytes, start);
        mkc::LEN.set(&mut bytes, len);
        bytes
    }

    fn key(&self, context: [u8; MKC_SIZE], list: &[u8]) -> Arc<Mkey> {
        mkey::create(&self.hca, &context, list, true).unwrap()
    }

    /// A key from address `va` on over `pages`: guest page or `None` for absent ones.
    fn paged(&self, va: u64, pages: &[Option<u64>]) -> Arc<Mkey> {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.map_or(0, |gpa| gpa | 3).to_be_bytes()).collect();
        let octwords = pages.len().div_ceil(2) as u32;
        self.key(self.context(1, va, pages.len() as u64 * PAGE, octwords), &list)
    }

    fn cq(&self, log_size: u32, eqn: u32) -> TestCq {
        let (base, buffer) = self.buffer(Cq::bytes(log_size, 0).max(PAGE));
        for entry in 0..1 << log_size {
            self.write(base + entry * CQE_SIZE as u64 + 63, &[(cqe_opcode::INVALID << 4) as u8 | 1]);
        }
        let record = self.alloc(8);
        let spec =
            CqSpec { uar: UAR, eqn, log_size, entry: 0, ignore_overrun: false, record, buffer, context: Vec::new() };
        let cq = self.hca.cqs.insert(|cqn| Cq::new(cqn, spec)).unwrap();
        TestCq { cq, log_size, base, record, next: Cell::new(0) }
    }

    fn eq(&self, types: &[u32]) -> TestEq {
        let (base, buffer) = self.buffer(64 * EQE_SIZE as u64);
        for entry in 0..64 {
            self.write(base + entry * 64 + 63, &[1]);
        }
        let mut mask = [0; 4];
        for kind in types {
            mask[*kind as usize / 64] |= 1u64 << (kind % 64);
        }
        let spec = EqSpec { vector: 0, uar: UAR, mask, log_size: 6, buffer, context: Vec::new() };
        let eq = self.hca.eqs.insert(|eqn| Eq::new(eqn, spec)).unwrap();
        TestEq { base, eq, next: Cell::new(0) }
    }

    fn event(&self, eq: &TestEq) -> [u8; EQE_SIZE] {
        soon("event", || self.try_event(eq))
    }

    fn try_event(&self, eq: &TestEq) -> Option<[u8; EQE_SIZE]> {
        let at = eq.next.get();
        let bytes: [u8; EQE_SIZE] = self.read(eq.base + u64::from(at % 64) * 64, 64).try_into().unwrap();
        if eqe::OWNER.get(&bytes) != (at / 64) & 1 {
            return None;
        }
        eq.next.set(at + 1);
        eq.eq.update(&self.hca, at + 1, false);
        Some(bytes)
    }

    fn qp(&self, service: u32) -> TestQp {
        self.qp_with(service, self.cq(LOG_CQ, 0), self.cq(LOG_CQ, 0), None)
    }

    fn qp_with(&self, service: u32, send_cq: TestCq, recv_cq: TestCq, srq: Option<&TestSrq>) -> TestQp {
        let sq_offset = RQ_STRIDE << LOG_RQ;
        let (base, buffer) = self.buffer(sq_offset + (64 << LOG_SQ));
        let record = self.alloc(8);
        let attrs = QpAttrs {
            state: state::INIT,
            incarnation: 1,
            pd: PD,
            send_cq: Some(send_cq.cq.clone()),
            recv_cq: Some(recv_cq.cq.clone()),
            srq: srq.map(|srq| srq.srq.clone()),
            remote_lid: PORT_LID,
            mtu: 4096,
            remote_read: true,
            remote_write: true,
            remote_atomic: true,
            retry_count: 2,
            rnr_retry: 7,
            min_rnr_nak: 1,
            ack_timeout: 10,
            qkey: 0x1234,
            record,
            ..QpAttrs::default()
        };
        let log_rq_size = srq.is_none().then_some(LOG_RQ);
        let layout = QueueLayout { log_rq_size, log_rq_stride: 6, log_sq_size: Some(LOG_SQ), sq_offset };
        let make = |qpn| {
            let spec = QpSpec {
                service,
                user_index: qpn + 0x1000,
                uar: UAR + qpn % 2,
                layout,
                buffer,
                context: Vec::new(),
                attrs,
            };
            Qp::new(qpn, spec)
        };
        let qp = self.hca.qps.insert(make).unwrap();
        TestQp { qp, send_cq, recv_cq, base, record, sent: Cell::new(0), posted: Cell::new(0) }
    }

    fn set_state(&self, qp: &TestQp, to: u32) {
        self.hca.change_qp(&qp.qp, |attrs| attrs.state = to);
    }

    fn connect(&self, a: &TestQp, b: &TestQp) {
        for (qp, other) in [(a, b), (b, a)] {
            self.hca.change_qp(&qp.qp, |attrs| {
                attrs.remote_qpn = other.qp.qpn;
                attrs.state = state::RTS;
            });
        }
    }

    fn rc_pair(&self) -> (TestQp, TestQp) {
        let (a, b) = (self.qp(service_type::RC), self.qp(service_type::RC));
        self.connect(&a, &b);
        (a, b)
    }

    fn srq(&self) -> TestSrq {
        self.srq_of(SrqKind::Rmp, 0, 0, 0)
    }

    fn srq_of(&self, kind: SrqKind, xrcd: u32, cqn: u32, user_index: u32) -> TestSrq {
        let (base, buffer) = self.buffer(RQ_STRIDE << LOG_RQ);
        let record = self.alloc(4);
        for index in 0..1u64 << LOG_RQ {
            self.write(base + index * RQ_STRIDE + 2, &((index as u16 + 1) % (1 << LOG_RQ)).to_be_bytes());
        }
        let make = |srqn| Srq {
            srqn,
            kind,
            pd: PD,
            user_index,
            xrcd,
            cqn,
            log_size: LOG_RQ,
            log_stride: 6,
            record,
            buffer,
            context: Default::default(),
            state: SrqState::default().into(),
        };
        let srq = self.hca.srqs.insert(make).unwrap();
        TestSrq { srq, base, record, posted: Cell::new(0) }
    }

    /// Posts `list` of (key, address, bytes) at the next place of an SRQ that is used in order.
    fn post_srq(&self, srq: &TestSrq, list: &[(u32, u64, u32)]) {
        let posted = srq.posted.get();
        let at = srq.base + u64::from(posted % (1 << LOG_RQ)) * RQ_STRIDE;
        self.write(at + 16, &scatter(list, 3));
        srq.posted.set(posted.wrapping_add(1));
        self.set_word(srq.record, u32::from(srq.posted.get()));
    }

    fn post_recv(&self, qp: &TestQp, list: &[(u32, u64, u32)]) {
        let posted = qp.posted.get();
        let at = qp.base + u64::from(posted % (1 << LOG_RQ)) * RQ_STRIDE;
        self.write(at, &scatter(list, 4));
        qp.posted.set(posted.wrapping_add(1));
        self.set_word(qp.record, u32::from(qp.posted.get()));
    }

    /// Puts a WQE into the send queue; the doorbell is [`Guest::ring`].
    fn put(&self, qp: &TestQp, wqe: &Wqe) {
        let mut bytes = wqe.0.clone();
        let units = bytes.len() / 16;
        ctrl::DS.set(&mut bytes, units as u32);
        if ctrl::QPN.get(&bytes) == 0 {
            ctrl::QPN.set(&mut bytes, qp.qp.qpn);
        }
        ctrl::WQE_INDEX.set(&mut bytes, u32::from(qp.sent.get()));
        for block in bytes.chunks(64) {
            let slot = u64::from(qp.sent.get() % (1 << LOG_SQ));
            self.write(qp.base + (RQ_STRIDE << LOG_RQ) + slot * 64, block);
            qp.sent.set(qp.sent.get().wrapping_add(1));
        }
    }

    fn ring(&self, qp: &TestQp) {
        self.set_word(qp.record + 4, u32::from(qp.sent.get()));
        self.hca.engines.ring(qp.qp.uar);
    }

    fn post(&self, qp: &TestQp, wqe: &Wqe) {
        self.put(qp, wqe);
        self.ring(qp);
    }

    fn try_cqe(&self, cq: &TestCq) -> Option<[u8; CQE_SIZE]> {
        let at = cq.next.get();
        let size = 1u32 << cq.log_size;
        let bytes: [u8; CQE_SIZE] =
            self.read(cq.base + u64::from(at % size) * CQE_SIZE as u64, CQE_SIZE).try_into().unwrap();
        if cqe::OWNER.get(&bytes) != (at / size) & 1 || cqe::OPCODE.get(&bytes) == cqe_opcode::INVALID {
            return None;
        }
        cq.next.set(at + 1);
        self.set_word(cq.record, at + 1);
        Some(bytes)
    }

    fn cqe(&self, cq: &TestCq) -> [u8; CQE_SIZE] {
        soon("completion", || self.try_cqe(cq))
    }

    /// Opcode, syndrome (0 for successes) and WQE counter of the next completion.
    fn outcome(&self, cq: &TestCq) -> (u32, u32, u32) {
        outcome(&self.cqe(cq))
    }
}

fn outcome(entry: &[u8]) -> (u32, u32, u32) {
    let opcode = cqe::OPCODE.get(entry);
    let failed = matches!(opcode, cqe_opcode::REQ_ERR | cqe_opcode::RESP_ERR);
    (opcode, if failed { cqe::SYNDROME.get(entry) } else { 0 }, cqe::WQE_COUNTER.get(entry))
}

fn scatter(list: &[(u32, u64, u32)], room: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, va, len) in list.iter().copied().chain((list.len() < room).then_some((TERMINATOR_KEY, 0, 0))) {
        bytes.extend(data_segment(key, va, len));
    }
    bytes
}

fn data_segment(key: u32, va: u64, len: u32) -> [u8; 16] {
    let mut seg = [0; 16];
    data::BYTE_COUNT.set(&mut seg, len);
    data::LKEY.set(&mut seg, key);
    data::ADDR.set(&mut seg, va);
    seg
}

/// A send WQE that is being put together.
#[derive(Clone)]
struct Wqe(Vec<u8>);

impl Wqe {
    /// Signaled.
    fn new(opcode: u32) -> Self {
        let mut bytes = vec![0; 16];
        ctrl::OPCODE.set(&mut bytes, opcode);
        ctrl::CE.set(&mut bytes, 2);
        Self(bytes)
    }

    fn with(mut self, field: Field, value: u32) -> Self {
        field.set(&mut self.0, value);
        self
    }

    fn remote(mut self, key: u32, va: u64) -> Self {
        let mut seg = [0; 16];
        raddr::RADDR.set(&mut seg, va);
        raddr::RKEY.set(&mut seg, key);
        self.0.extend(seg);
        self
    }

    fn data(mut self, key: u32, va: u64, len: u32) -> Self {
        self.0.extend(data_segment(key, va, len));
        self
    }

    fn inline(mut self, bytes: &[u8]) -> Self {
        let mut head = [0; 4];
        inline::INLINE.set(&mut head, 1);
        inline::LENGTH.set(&mut head, bytes.len() as u32);
        self.0.extend(head);
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(16), 0);
        self
    }

    fn segment(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

/// Bytes that differ from page to page.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}
