// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page faults of every end of a message (contract 9).

use std::sync::atomic::Ordering;

use super::*;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{eqe_page_fault_rdma as rdma, eqe_page_fault_wqe as wqe_fault, event, page_fault};
use mlx5_spec::odp::{rdma_fault_type, wqe_fault_type};
use mlx5_spec::wqe::{atomic, opcode};

const VA: u64 = 0x5500_0000_0000;

/// Fault events, and a key whose pages are all absent.
struct Pager {
    eq: TestEq,
    key: Arc<Mkey>,
    pages: u64,
    base: u64,
}

impl Pager {
    fn new(guest: &Guest, pages: u64) -> Self {
        let eq = guest.eq(&[event::PAGE_FAULT]);
        let key = guest.paged(VA, &vec![None; pages as usize]);
        Self { eq, key, pages, base: guest.alloc(pages * PAGE) }
    }

    fn map(&self, page: u64) {
        self.key.entries[page as usize].store((self.base + page * PAGE) | 3, Ordering::Release);
    }

    fn map_all(&self) {
        (0..self.pages).for_each(|page| self.map(page));
    }
}

/// Type, queue, WQE index and committed bytes of a WQE fault; and its token.
fn wqe_event(entry: &[u8]) -> ((u32, u32, u32, u32), u32) {
    assert_eq!((eqe::TYPE.get(entry), eqe::SUB_TYPE.get(entry)), (event::PAGE_FAULT, page_fault::WQE));
    let what = (wqe_fault::TYPE, wqe_fault::WQ_NUMBER, wqe_fault::WQE_INDEX, wqe_fault::BYTES_COMMITTED);
    let what = (what.0.get(entry), what.1.get(entry), what.2.get(entry), what.3.get(entry));
    (what, wqe_fault::TOKEN.get(entry))
}

/// Type, key, address, length and committed bytes of an RDMA fault; and its token.
fn rdma_event(entry: &[u8]) -> ((u32, u32, u64, u32, u32), u32) {
    assert_eq!((eqe::TYPE.get(entry), eqe::SUB_TYPE.get(entry)), (event::PAGE_FAULT, page_fault::RDMA));
    assert!(rdma::PACKET_LENGTH.get(entry) > 0);
    let (kind, key) = (rdma::TYPE.get(entry), rdma::R_KEY.get(entry));
    let sizes = (rdma::RDMA_OP_LEN.get(entry), rdma::BYTES_COMMITTED.get(entry));
    ((kind, key, rdma::RDMA_VA.get(entry), sizes.0, sizes.1), rdma::TOKEN.get(entry))
}

#[test]
fn the_senders_list_is_faulted_in_and_the_write_goes_on_where_it_stopped() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let pager = Pager::new(&guest, 4);
    let to = guest.alloc(4 * PAGE);
    let bytes = pattern(3 * PAGE as usize, 3);
    guest.write(pager.base + 100, &bytes);
    pager.map(0);
    let key = pager.key.key();
    guest.post(&a, &Wqe::new(opcode::NOP));
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).data(key, VA + 100, 3 * PAGE as u32));
    assert_eq!(guest.outcome(&a.send_cq).2, 0);
    let (what, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(what, (wqe_fault_type::REQUESTER_SEND_OR_WRITE, a.qp.qpn, 1, 4096 - 100));
    assert_eq!(guest.read(to, 4096), [&bytes[..3996], &[0; 100][..]].concat());
    // Resumed without a mapping it faults again; then page by page.
    guest.hca.page_faults.resume(&guest.hca, token, false);
    let (again, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(again, what);
    pager.map(1);
    guest.hca.page_faults.resume(&guest.hca, token, false);
    let (next, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(next.3, 2 * 4096 - 100);
    pager.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 1));
    assert_eq!(guest.read(to, bytes.len()), bytes);
    assert_eq!(guest.hca.counters.page_faults.get(), 3);
}

#[test]
fn other_queue_pairs_go_on_meanwhile() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let (c, _d) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    let to = guest.alloc(PAGE);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(pager.key.key(), VA).inline(b"wait"));
    let (what, token) = rdma_event(&guest.event(&pager.eq));
    assert_eq!(what, (rdma_fault_type::WRITE, pager.key.key(), VA, 4, 0));
    assert_eq!(a.qp.uar % 2, c.qp.uar % 2, "one engine serves both");
    for _ in 0..5 {
        guest.post(&c, &Wqe::new(opcode::RDMA_WRITE).remote(guest.all, to).inline(b"go on"));
        assert_eq!(guest.outcome(&c.send_cq).1, 0);
    }
    pager.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert_eq!(guest.read(pager.base, 4), b"wait");
}

#[test]
fn reads_fault_at_both_ends() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let remote = Pager::new(&guest, 2);
    let local = guest.paged(VA, &[None, None]);
    let to = guest.alloc(2 * PAGE);
    let bytes = pattern(5000, 5);
    guest.write(remote.base, &bytes);
    remote.map(0);
    guest.post(&a, &Wqe::new(opcode::RDMA_READ).remote(remote.key.key(), VA).data(local.key(), VA, 5000));
    let (what, token) = wqe_event(&guest.event(&remote.eq));
    assert_eq!(what, (wqe_fault_type::REQUESTER_READ_OR_ATOMIC, a.qp.qpn, 0, 0));
    local.entries[0].store(to | 3, Ordering::Release);
    local.entries[1].store((to + PAGE) | 3, Ordering::Release);
    guest.hca.page_faults.resume(&guest.hca, token, false);
    let (what, token) = rdma_event(&guest.event(&remote.eq));
    assert_eq!(what, (rdma_fault_type::READ, remote.key.key(), VA, 5000, 4096));
    remote.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 0));
    assert_eq!(guest.read(to, 5000), bytes);
}

#[test]
fn receive_lists_fault_and_their_wqe_stays_taken() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let pager = Pager::new(&guest, 2);
    let from = guest.alloc(2 * PAGE);
    let bytes = pattern(6000, 6);
    guest.write(from, &bytes);
    pager.map(0);
    guest.post_recv(&b, &[(pager.key.key(), VA, 8192)]);
    guest.post(&a, &Wqe::new(opcode::SEND).data(guest.all, from, 6000));
    let (what, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(what, (wqe_fault_type::RESPONDER, b.qp.qpn, 0, 4096));
    pager.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&b.recv_cq), (cqe_opcode::RESP_SEND, 0, 0));
    assert_eq!(guest.outcome(&a.send_cq).1, 0);
    assert_eq!(guest.read(pager.base, 6000), bytes);
}

#[test]
fn shared_queue_faults_name_the_srq() {
    let guest = Guest::new();
    let srq = guest.srq();
    let make = || guest.qp_with(service_type::RC, guest.cq(LOG_CQ, 0), guest.cq(LOG_CQ, 0), Some(&srq));
    let (a, b) = (make(), make());
    guest.connect(&a, &b);
    let pager = Pager::new(&guest, 1);
    guest.post_srq(&srq, &[(pager.key.key(), VA, 64)]);
    guest.post(&a, &Wqe::new(opcode::SEND).inline(b"shared"));
    let (what, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(what, (wqe_fault_type::SRQ, srq.srq.srqn, 0, 0));
    guest.hca.page_faults.resume(&guest.hca, token, true);
    assert_eq!(guest.outcome(&b.recv_cq), (cqe_opcode::RESP_ERR, syndrome::LOCAL_PROT_ERR, 0));
    assert_eq!(guest.outcome(&a.send_cq).1, syndrome::REMOTE_OP_ERR);
}

#[test]
fn resume_with_error_is_a_protection_error_by_end() {
    let guest = Guest::new();
    let pager = Pager::new(&guest, 1);
    let key = pager.key.key();
    let from = guest.alloc(PAGE);
    let local = Wqe::new(opcode::RDMA_WRITE).remote(guest.all, from).data(key, VA, 8);
    let remote = Wqe::new(opcode::RDMA_WRITE).remote(key, VA).data(guest.all, from, 8);
    for (wqe, expected, responder) in
        [(local, syndrome::LOCAL_PROT_ERR, state::RTS), (remote, syndrome::REMOTE_ACCESS_ERR, state::ERR)]
    {
        let (a, b) = guest.rc_pair();
        guest.post(&a, &wqe);
        let entry = guest.event(&pager.eq);
        let token = match eqe::SUB_TYPE.get(&entry) {
            page_fault::WQE => wqe_event(&entry).1,
            _ => rdma_event(&entry).1,
        };
        guest.hca.page_faults.resume(&guest.hca, token, true);
        assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ_ERR, expected, 0));
        assert_eq!((a.qp.attrs().state, b.qp.attrs().state), (state::ERR, responder));
    }
}

#[test]
fn a_fault_of_a_queue_pair_that_ends_is_cancelled() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(pager.key.key(), VA).inline(b"x"));
    let (_, token) = rdma_event(&guest.event(&pager.eq));
    guest.set_state(&a, state::ERR);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ_ERR, syndrome::WR_FLUSH_ERR, 0));
    pager.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.read(pager.base, 1), [0]);
    assert!(guest.hca.page_faults.live().is_empty());
}

#[test]
fn a_responder_that_ends_ends_the_wait_as_well() {
    let guest = Guest::new();
    let (a, b) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(pager.key.key(), VA).inline(b"x"));
    guest.event(&pager.eq);
    guest.set_state(&b, state::ERR);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ_ERR, syndrome::TRANSPORT_RETRY_EXC_ERR, 0));
}

#[test]
fn faults_without_progress_end() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(pager.key.key(), VA).inline(b"x"));
    let mut faults = 0;
    let end = soon("end of the faults", || {
        if let Some(entry) = guest.try_event(&pager.eq) {
            faults += 1;
            guest.hca.page_faults.resume(&guest.hca, rdma_event(&entry).1, false);
        }
        guest.try_cqe(&a.send_cq)
    });
    assert_eq!((outcome(&end), faults), ((cqe_opcode::REQ_ERR, syndrome::REMOTE_ACCESS_ERR, 0), 1000));
}

#[test]
fn without_paging_an_absent_page_is_a_protection_error() {
    let guest = Guest::with(NicConfig { odp: false, ..NicConfig::default() });
    let (a, _b) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    guest.post(&a, &Wqe::new(opcode::RDMA_WRITE).remote(pager.key.key(), VA).inline(b"x"));
    assert_eq!(guest.outcome(&a.send_cq).1, syndrome::REMOTE_ACCESS_ERR);
    assert!(guest.try_event(&pager.eq).is_none());
}

#[test]
fn an_atomic_faults_before_it_acts() {
    let guest = Guest::new();
    let (a, _b) = guest.rc_pair();
    let pager = Pager::new(&guest, 1);
    let word = guest.alloc(PAGE);
    guest.write(word, &5u64.to_le_bytes());
    let mut seg = [0; 16];
    atomic::SWAP_ADD.set(&mut seg, 1);
    guest.post(&a, &Wqe::new(opcode::ATOMIC_FA).remote(guest.all, word).segment(&seg).data(pager.key.key(), VA, 8));
    let (what, token) = wqe_event(&guest.event(&pager.eq));
    assert_eq!(what, (wqe_fault_type::REQUESTER_READ_OR_ATOMIC, a.qp.qpn, 0, 0));
    assert_eq!(guest.read(word, 8), 5u64.to_le_bytes());
    pager.map_all();
    guest.hca.page_faults.resume(&guest.hca, token, false);
    assert_eq!(guest.outcome(&a.send_cq), (cqe_opcode::REQ, 0, 0));
    assert_eq!(
        (guest.read(word, 8), guest.read(pager.base, 8)),
        (6u64.to_le_bytes().into(), 5u64.to_le_bytes().into())
    );
}
