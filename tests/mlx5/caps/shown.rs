// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Promises that no other test shows, each to its last element.

use std::sync::Arc;

use mlx5::limits;
use mlx5_spec::bits::Field;
use mlx5_spec::caps::cmd_hca_cap as cap;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::{self, eqc};
use mlx5_spec::mkey::{access_mode, umr_flags};
use mlx5_spec::odp::wqe_fault_type;
use mlx5_spec::qp::service_type;
use mlx5_spec::small;
use mlx5_spec::uar::SQ_DOORBELL;
use mlx5_spec::vport::query_context_in;
use mlx5_spec::wqe::{GRH_SIZE, ctrl};
use rnic_testdrive::command::Input;
use rnic_testdrive::mkey::mtt_words;
use rnic_testdrive::{
    Access, Driver, Machine, MachineConfig, MkeySpec, OdpMr, PATIENCE, PageFault, Qp, QpSpec, Sge, Srq, UmrSpec, Wqe,
};

use crate::scene::{LEN, LOCAL_VA, Pair, REMOTE_VA, machine};

const VA: u64 = 0x5555_0000_0000;

/// With memory for many page lists, of which little is touched.
fn roomy() -> Arc<Driver> {
    Driver::probe(&Arc::new(Machine::new(MachineConfig { ram_mib: 1024, ..MachineConfig::default() }))).unwrap()
}

fn status_of(driver: &Driver, input: Vec<u8>) -> u8 {
    driver.commands.execute(&input, 0x110).err().map_or(status::OK, |error| error.status().unwrap())
}

/// Every table ends where its capability says, and the host's memory does not end before. Cheap ones are filled to see it.
pub fn as_many_objects_as_offered() {
    let driver = roomy();
    let hca = driver.machine.nic.hca();
    let tables = [
        (cap::LOG_MAX_QP, hca.qps.limit(), hca.qps.charge()),
        (cap::LOG_MAX_CQ, hca.cqs.limit(), hca.cqs.charge()),
        (cap::LOG_MAX_SRQ, hca.srqs.limit(), hca.srqs.charge()),
        (cap::LOG_MAX_RMP, hca.srqs.limit(), hca.srqs.charge()),
        (cap::LOG_MAX_EQ, hca.eqs.limit(), hca.eqs.charge()),
        (cap::LOG_MAX_MKEY, hca.mkeys.limit(), hca.mkeys.charge()),
        (cap::LOG_MAX_PD, hca.pds.limit(), hca.pds.charge()),
        (cap::LOG_MAX_XRCD, hca.xrcds.limit(), hca.xrcds.charge()),
        (cap::LOG_MAX_UCTX, hca.user_contexts.limit(), hca.user_contexts.charge()),
        (cap::LOG_MAX_UMEM, hca.umems.limit(), hca.umems.charge()),
    ];
    for (field, limit, charge) in tables {
        assert_eq!(1 << driver.capability(field).unwrap(), limit, "{field:?}");
        assert!(charge > 0 && limit as u64 * charge <= mlx5::host_memory::MAX_HOST_MEMORY, "{field:?}: {charge}");
    }
    let fill = |input: Vec<u8>, already: usize, limit: usize| {
        let made = (already..limit).fold(Vec::new(), |_, _| driver.commands.execute(&input, 16).unwrap());
        assert_eq!(status_of(&driver, input.clone()), status::NO_RES, "{limit}");
        small::object::NUMBER.get(&made)
    };
    let last = fill(Input::new(Opcode::ALLOC_PD, 16).finish(), hca.pds.len(), hca.pds.limit());
    driver.create_mkey(&MkeySpec::physical(last, Access::ALL)).unwrap();
    driver.dealloc_pd(last).unwrap();
    driver.alloc_pd().unwrap();
    let queue = Input::new(Opcode::CREATE_EQ, eq::create_in::SIZE);
    let queue = queue.with(eqc::UAR_PAGE.plus(eq::create_in::EQC), driver.uar).list(&[driver.machine.guest.page()]);
    fill(queue.finish(), hca.eqs.len(), hca.eqs.limit());
}

/// Work goes through the last entry of queue pairs and shared receive queues and on at the first; completion and event queues are made.
pub fn largest_queues() {
    let driver = roomy();
    let log_qp = driver.capability(cap::LOG_MAX_QP_SZ).unwrap();
    let pair = Pair::on(driver.clone(), |spec| (spec.log_sq, spec.log_rq, spec.log_rq_sges) = (log_qp, log_qp, 0));
    pair.local.fill_pattern(1);
    let count = (1u32 << log_qp) + 2;
    for at in 0..count {
        pair.other.receive(&[pair.remote_mr.sge(u64::from(at % 64) * 8, 8)]);
        pair.one.run(Wqe::send().sge(pair.local_mr.sge(u64::from(at % 64) * 8, 8))).unwrap();
        pair.other_cq.wait_ok().unwrap();
    }
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), 512);
    let log_srq = driver.capability(cap::LOG_MAX_SRQ_SZ).unwrap();
    let srq = Srq::create(&driver.context, pair.pd, log_srq).unwrap();
    let spec = QpSpec::rc(&driver, pair.pd, &pair.one_cq);
    let shared = QpSpec { srq: Some(srq.srqn), ..QpSpec::rc(&driver, pair.pd, &pair.other_cq) };
    let (sender, _receiver) = Qp::pair(&driver, spec, shared).unwrap();
    // The list's order: each entry once before the first comes again.
    for at in 0..(1u32 << log_srq) + 2 {
        let index = srq.post(&[pair.remote_mr.sge(4096 + u64::from(at % 64) * 8, 8)]).unwrap();
        sender.run(Wqe::send().sge(pair.local_mr.sge(u64::from(at % 64) * 8, 8))).unwrap();
        assert_eq!(pair.other_cq.wait_ok().unwrap().wqe_counter(), index);
        srq.release(index);
    }
    pair.assert_copied((&pair.local, 0), (&pair.remote, 4096), 512);
    super::limits::sizes(&driver);
}

/// READs of thirty pieces, as drivers report it.
pub fn a_read_scatters_over_thirty() {
    let pair = Pair::new();
    let pieces = u64::from(pair.driver.capability(cap::MAX_SGL_FOR_OPTIMIZED_PERFORMANCE).unwrap());
    pair.remote.fill_pattern(3);
    let read = (0..pieces).fold(Wqe::read(REMOTE_VA, pair.remote_mr.key), |wqe, piece| {
        wqe.sge(pair.local_mr.sge((pieces - 1 - piece) * 100, 100))
    });
    pair.one.run(read).unwrap();
    for piece in 0..pieces {
        pair.assert_copied((&pair.remote, piece * 100), (&pair.local, (pieces - 1 - piece) * 100), 100);
    }
}

/// A key leads through as many others as offered, and through one more it does not.
pub fn four_indirections() {
    let pair = Pair::new();
    let most = pair.driver.capability(cap::MAX_INDIRECTION).unwrap();
    let above = |key: u32, va: u64| {
        let list = vec![u64::from(key), va];
        let spec =
            MkeySpec { mode: access_mode::KSM, log_page: 16, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, LEN, list) };
        pair.driver.create_mkey(&spec).unwrap()
    };
    pair.local.fill_pattern(4);
    let mut key = above(pair.remote_mr.key, REMOTE_VA);
    for _ in 1..most {
        key = above(key, 0);
    }
    pair.one.run(Wqe::write(5, key).sge(pair.local_mr.sge(0, 1000))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 5), 1000);
    pair.one.post_one(Wqe::write(5, above(key, 0)).sge(pair.local_mr.sge(0, 1000)).signaled());
    assert_eq!(pair.one_cq.wait().unwrap().syndrome(), syndrome::REMOTE_ACCESS_ERR);
}

/// An update that begins beyond what 16 bits count.
pub fn a_umr_far_into_its_table() {
    let pair = Pair::new();
    let octwords = (1u64 << 16) + 64;
    let spec = MkeySpec::mtt(pair.pd, Access::ALL, VA, octwords * 2 * 4096, Vec::new());
    let key = pair.driver.create_mkey(&MkeySpec { octwords: Some(octwords as u32), ..spec }).unwrap();
    let first = (octwords - 8) * 2;
    pair.driver.umr(&UmrSpec::update(key, first, mtt_words(&pair.remote, Access::ALL))).unwrap();
    pair.local.fill_pattern(5);
    pair.one.run(Wqe::write(VA + first * 4096 + 10, key).sge(pair.local_mr.sge(0, 5000))).unwrap();
    pair.assert_copied((&pair.local, 0), (&pair.remote, 10), 5000);
}

/// Four bytes an entry; the last one is reached from its start, and over all entries.
pub fn the_longest_klm_list() {
    let pair = Pair::new();
    let count = 1u64 << pair.driver.capability(cap::LOG_MAX_KLM_LIST_SIZE).unwrap();
    let entry = |at: u64| [4 << 32 | u64::from(pair.remote_mr.key), REMOTE_VA + at % 1024 * 4];
    let list = (0..count).flat_map(entry).collect();
    let spec = MkeySpec { mode: access_mode::KLM, ..MkeySpec::mtt(pair.pd, Access::ALL, 0, count * 4, list) };
    let key = pair.driver.create_mkey(&spec).unwrap();
    pair.remote.fill_pattern(6);
    pair.one.run(Wqe::read((count - 1) * 4, key).sge(pair.local_mr.sge(0, 4))).unwrap();
    pair.assert_copied((&pair.remote, 1023 * 4), (&pair.local, 0), 4);
    pair.one.run(Wqe::read((count - 1024) * 4, key).sge(pair.local_mr.sge(0, 4096))).unwrap();
    pair.assert_copied((&pair.remote, 0), (&pair.local, 0), 4096);
}

/// Sixteen READs posted at once.
pub fn sixteen_reads() {
    let pair = Pair::new();
    pair.remote.fill_pattern(7);
    let reads = 1u64 << pair.driver.capability(cap::LOG_MAX_RA_REQ_QP).unwrap();
    let read = |at: u64| Wqe::read(REMOTE_VA + at * 3000, pair.remote_mr.key).sge(pair.local_mr.sge(at * 3000, 3000));
    let mut wqes: Vec<Wqe> = (0..reads).map(read).collect();
    *wqes.last_mut().unwrap() = read(reads - 1).signaled();
    pair.one.post(&wqes);
    pair.one_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.remote, 0), (&pair.local, 0), reads * 3000);
}

/// Port 1 answers, and 0, which means it.
pub fn port_one_only() {
    let driver = Driver::probe(&machine()).unwrap();
    let ports = driver.capability(cap::NUM_PORTS).unwrap();
    for port in 0..=query_context_in::PORT_NUM.max() {
        for opcode in [Opcode::QUERY_HCA_VPORT_CONTEXT, Opcode::QUERY_HCA_VPORT_GID, Opcode::QUERY_HCA_VPORT_PKEY] {
            let input = Input::new(opcode, 16).with(query_context_in::PORT_NUM, port);
            let said = driver.query(input, 0x210).err().map(|error| error.status().unwrap());
            assert_eq!(said, (port > ports).then_some(status::BAD_PARAM), "{opcode} port {port}");
        }
    }
}

/// The command answers for this port and for no other.
pub fn port_counters() {
    let driver = Driver::probe(&machine()).unwrap();
    let query = |port| {
        let input = Input::new(Opcode::QUERY_VPORT_COUNTER, small::query_vport_counter_in::SIZE);
        let input = input.with(small::query_vport_counter_in::PORT_NUM, port);
        driver.query(input, small::query_vport_counter_out::SIZE).map_err(|error| error.status())
    };
    query(0).unwrap();
    query(1).unwrap();
    assert_eq!(query(2), Err(Some(status::BAD_PARAM)));
}

/// UMR and WRITE through the key that it enables, one behind the other, no fence: again and again, each time to another page.
pub fn a_umr_and_its_use_in_one_post() {
    let pair = Pair::new();
    let key_of = |page: usize| MkeySpec {
        free: true,
        octwords: Some(4),
        ..MkeySpec::mtt(pair.pd, Access::ALL, VA, 4096, vec![pair.local.pages[page] | 3, 0, 0, 0, 0, 0, 0, 0])
    };
    let key = pair.driver.create_mkey(&MkeySpec { list: Vec::new(), ..key_of(0) }).unwrap();
    pair.local.fill_pattern(8);
    for page in 0..LEN / 4096 {
        let mut enable = UmrSpec::enable(key, &key_of(page as usize));
        enable.flags |= umr_flags::INLINE;
        let revoke = UmrSpec::revoke(key);
        let write = Wqe::write(REMOTE_VA + page * 4096, pair.remote_mr.key).sge(Sge { key, va: VA, len: 4096 });
        pair.one.post(&[enable.wqe(0, 0), write, revoke.wqe(0, 0).signaled()]);
        pair.one_cq.wait_ok().unwrap();
    }
    pair.assert_copied((&pair.local, 0), (&pair.remote, 0), LEN);
}

/// Both halves of all four registers of a UAR page.
pub fn every_doorbell_register() {
    let pair = Pair::new();
    let bytes = 1u64 << pair.driver.capability(cap::LOG_BF_REG_SIZE).unwrap();
    for half in 0..8 {
        let index = pair.one.write(&Wqe::nop().signaled());
        pair.one.publish();
        let mut doorbell = [0; 8];
        ctrl::QPN.set(&mut doorbell, pair.one.qpn);
        pair.driver.doorbell(pair.driver.uar, SQ_DOORBELL + half * bytes / 2, doorbell);
        assert_eq!(pair.one_cq.wait_ok().unwrap().wqe_counter(), index);
    }
}

/// A send WQE of as many segments as its length can say, into receive WQEs of as many as offered.
pub fn largest_wqes() {
    let driver = Driver::probe(&machine()).unwrap();
    let bytes = |field: Field| u64::from(driver.capability(field).unwrap());
    let (sends, receives) = (bytes(cap::MAX_WQE_SZ_SQ) / 16 - 1, bytes(cap::MAX_WQE_SZ_RQ) / 16);
    assert_eq!(receives.count_ones(), 1);
    let pair = Pair::on(driver.clone(), |spec| spec.log_rq_sges = receives.ilog2());
    pair.local.fill_pattern(9);
    let scatter: Vec<Sge> = (0..receives).map(|at| pair.remote_mr.sge((receives - 1 - at) * 62, 62)).collect();
    pair.other.receive(&scatter);
    let send = (0..sends).fold(Wqe::send(), |wqe, at| wqe.sge(pair.local_mr.sge(at * 32, 32)));
    pair.one.run(send).unwrap();
    assert_eq!(u64::from(pair.other_cq.wait_ok().unwrap().byte_count()), sends * 32);
    for at in 0..receives {
        pair.assert_copied((&pair.local, at * 62), (&pair.remote, (receives - 1 - at) * 62), 62);
    }
    assert_eq!(u64::from(limits::MAX_RECV_WQE), receives * 16);
    let spec = QpSpec { log_rq_sges: receives.ilog2() + 1, ..QpSpec::rc(&driver, pair.pd, &pair.one_cq) };
    let refused = Qp::create(&driver.context, spec).err().and_then(|error| error.status());
    assert_eq!(refused, Some(status::EXCEED_LIM));
}

/// A datagram waits for the page that it is gathered from.
pub fn a_datagram_from_an_absent_page() {
    let pair = Pair::with(|spec| spec.service = service_type::UD);
    let odp = OdpMr::register(&pair.driver, pair.pd, VA, 4096, Access::ALL).unwrap();
    pair.other.receive(&[pair.remote_mr.sge(0, 2048)]);
    let send = Wqe::send().datagram(pair.other.qpn, 1, pair.one.spec.qkey).sge(odp.mr.sge(8, 1000)).signaled();
    let index = pair.one.post_one(send);
    let fault = pair.driver.next_fault(PATIENCE).unwrap();
    let PageFault::Wqe { kind, number, index: at, .. } = fault else { panic!("{fault:?}") };
    assert_eq!((kind, number, at), (wqe_fault_type::REQUESTER_SEND_OR_WRITE, pair.one.qpn, index));
    pair.local.fill_pattern(10);
    odp.map(&pair.driver, 0, &pair.local.pages[..1], true).unwrap();
    pair.driver.resume(&fault, false).unwrap();
    pair.one_cq.wait_ok().unwrap();
    pair.other_cq.wait_ok().unwrap();
    pair.assert_copied((&pair.local, 8), (&pair.remote, GRH_SIZE as u64), 1000);
    assert_eq!(pair.local_mr.va, LOCAL_VA);
}
