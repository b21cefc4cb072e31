// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queues, completion queues and their buffers, entry by entry as a driver reads them.

use super::buffer::{Geometry, GuestBuffer};
use super::cq::{ArmDoorbell, Cq, CqError, CqSpec};
use super::eq::{Eq, EqSpec, Event};
use super::testing::{Bench, RAM};
use mlx5_spec::cq::{CQE_SIZE, cqe};
use mlx5_spec::eq::{EQE_SIZE, eqe, eqe_comp, eqe_cq_err, event};

const EQ_PAGE: u64 = 0x10_0000;
const CQ_PAGE: u64 = 0x11_0000;
const NONE: [u16; 0] = [];
const RECORD: u64 = 0x12_0000;

fn eq(bench: &Bench, vector: u16, mask: u64, log_size: u32) -> std::sync::Arc<Eq> {
    let buffer = bench.buffer(&[EQ_PAGE + u64::from(vector) * 4096], (EQE_SIZE as u64) << log_size);
    let spec = EqSpec { vector, uar: 16, mask: [mask, 0, 0, 0], log_size, buffer, context: vec![] };
    bench.hca.insert_eq(spec).unwrap()
}

fn cq(bench: &Bench, eqn: u32, log_size: u32, ignore_overrun: bool) -> std::sync::Arc<Cq> {
    cq_at(bench, RECORD, eqn, log_size, ignore_overrun)
}

fn cq_at(bench: &Bench, record: u64, eqn: u32, log_size: u32, ignore_overrun: bool) -> std::sync::Arc<Cq> {
    let buffer = bench.buffer(&[CQ_PAGE], Cq::bytes(log_size, 0));
    let spec = CqSpec { uar: 16, eqn, log_size, entry: 0, ignore_overrun, record, buffer, context: vec![] };
    bench.hca.cqs.insert(|cqn| Cq::new(cqn, spec)).unwrap()
}

/// No driver puts a doorbell record askew, or over the end of memory; what comes of it is that it is read, or that there is none.
#[test]
fn a_record_is_read_wherever_it_is() {
    for (record, room) in [(RECORD, true), (RECORD + 1, true), (RECORD + 2, true), (RAM - 2, false), (RAM, false)] {
        let bench = Bench::new();
        let cq = cq_at(&bench, record, 0, 0, false);
        cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
        if room {
            bench.write(record, &1u32.to_be_bytes());
        }
        assert_eq!(cq.push(&bench.hca, [0; CQE_SIZE], false).is_ok(), room, "{record:#x}");
        assert_eq!(bench.master.refused(), u64::from(!room));
    }
}

fn eqe_at(bench: &Bench, eq: &Eq, index: u64) -> Vec<u8> {
    bench.read(EQ_PAGE + u64::from(eq.vector) * 4096 + index * EQE_SIZE as u64, EQE_SIZE)
}

#[test]
fn an_armed_event_queue_interrupts_once_and_again_after_its_doorbell() {
    let bench = Bench::new();
    let eq = eq(&bench, 3, 0, 2);
    eq.push(&bench.hca, Event::new(event::COMP, 0).with(eqe_comp::CQN, 7));
    assert_eq!(bench.router.take(), NONE, "not armed yet");
    eq.update(&bench.hca, 0, true);
    assert_eq!(bench.router.take(), [3], "armed with an entry waiting");
    eq.push(&bench.hca, Event::new(event::COMP, 0).with(eqe_comp::CQN, 8));
    assert_eq!(bench.router.take(), NONE, "disarmed by its interrupt");
    let first = eqe_at(&bench, &eq, 0);
    assert_eq!((eqe_comp::CQN.get(&first), eqe::OWNER.get(&first)), (7, 0));
    eq.update(&bench.hca, 2, true);
    assert_eq!(bench.router.take(), NONE);
    eq.push(&bench.hca, Event::new(event::COMP, 0));
    assert_eq!(bench.router.take(), [3]);
}

/// All full event queues together keep a bounded number of events, and a queue that is destroyed keeps none.
#[test]
fn a_flood_of_events_is_bounded_and_leaves_nothing() {
    let bench = Bench::new();
    let (one, other) = (eq(&bench, 1, 0, 2), eq(&bench, 2, 0, 2));
    for _ in 0..80_000 {
        one.push(&bench.hca, Event::new(event::COMP, 0));
        other.push(&bench.hca, Event::new(event::COMP, 0));
    }
    let waiting = || bench.hca.waiting_events.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((waiting(), bench.hca.counters.events_dropped.get()), (131_072, 160_000 - 8 - 131_072));
    one.kill(&bench.hca);
    assert_eq!(waiting(), 131_072 / 2);
    // Four entries at a time.
    (1..=131_072 / 8).for_each(|turn| other.update(&bench.hca, turn * 4, false));
    assert_eq!((waiting(), other.indices().0), (0, 131_072 / 2 + 4));
    other.kill(&bench.hca);
    assert_eq!(waiting(), 0);
}

#[test]
fn a_full_event_queue_keeps_events_until_there_is_room_and_flips_the_owner() {
    let bench = Bench::new();
    let eq = eq(&bench, 1, 0, 2);
    for cqn in 0..10 {
        eq.push(&bench.hca, Event::new(event::COMP, 0).with(eqe_comp::CQN, cqn));
    }
    let mut seen = Vec::new();
    for index in 0..10u32 {
        let entry = eqe_at(&bench, &eq, u64::from(index % 4));
        assert_eq!(eqe::OWNER.get(&entry), index >> 2 & 1, "entry {index}");
        seen.push(eqe_comp::CQN.get(&entry));
        eq.update(&bench.hca, index + 1, false);
    }
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    // An index that was never produced changes nothing.
    eq.update(&bench.hca, 99, false);
    assert_eq!(eq.indices(), (10, 10, false));
}

/// A vCPU that rings the arm doorbell is inside no section, so that nobody but the queue's own lock can wait for it.
#[test]
fn no_event_tells_of_a_completion_queue_once_it_is_dead() {
    let bench = Bench::new();
    let eq = eq(&bench, 1, 0, 6);
    for round in 0..20_000u32 {
        let cq = cq(&bench, eq.eqn, 2, true);
        cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
        let start = std::sync::Barrier::new(2);
        let (before, after) = std::thread::scope(|scope| {
            let arming = scope.spawn(|| {
                start.wait();
                cq.arm(&bench.hca, ArmDoorbell::default(), false);
            });
            start.wait();
            (0..round % 64).for_each(|_| std::hint::spin_loop());
            cq.kill(&bench.hca);
            let before = eq.indices().0;
            arming.join().unwrap();
            (before, eq.indices().0)
        });
        assert_eq!(before, after, "round {round}");
        bench.hca.cqs.remove(cq.cqn);
        eq.update(&bench.hca, after, false);
    }
}

#[test]
fn a_dead_event_queue_writes_and_interrupts_no_more() {
    let bench = Bench::new();
    let eq = eq(&bench, 1, 0, 2);
    eq.update(&bench.hca, 0, true);
    eq.kill(&bench.hca);
    eq.push(&bench.hca, Event::new(event::COMP, 0).with(eqe_comp::CQN, 5));
    assert_eq!((bench.router.take(), eqe_at(&bench, &eq, 0)), (NONE.to_vec(), vec![0; EQE_SIZE]));
}

#[test]
fn a_late_arm_fires_at_once_and_a_solicited_arm_waits_for_its_kind() {
    let bench = Bench::new();
    let eq = eq(&bench, 2, 0, 4);
    let cq = cq(&bench, eq.eqn, 4, false);
    eq.update(&bench.hca, 0, true);
    cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
    assert_eq!(bench.router.take(), NONE, "nobody armed the CQ");
    cq.arm(&bench.hca, ArmDoorbell::default(), false);
    assert_eq!(bench.router.take(), [2], "armed behind the producer");
    assert_eq!(eqe_comp::CQN.get(&eqe_at(&bench, &eq, 0)), cq.cqn);
    eq.update(&bench.hca, 1, true);
    cq.arm(&bench.hca, ArmDoorbell { ci: 1, sn: 1, solicited_only: true }, false);
    cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
    assert_eq!(bench.router.take(), NONE, "not solicited");
    cq.push(&bench.hca, [0; CQE_SIZE], true).unwrap();
    assert_eq!(bench.router.take(), [2]);
    eq.update(&bench.hca, 2, true);
    cq.push(&bench.hca, [0; CQE_SIZE], true).unwrap();
    assert_eq!(bench.router.take(), NONE, "one event an arm");
}

#[test]
fn an_overrun_is_an_error_event_and_the_end_of_the_queue() {
    let bench = Bench::new();
    let eq = eq(&bench, 0, 1 << event::CQ_ERROR, 4);
    let cq = cq(&bench, eq.eqn, 1, false);
    for _ in 0..2 {
        cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
    }
    // The driver has consumed one: there is room again, and the record is looked at only now.
    bench.write(RECORD, &1u32.to_be_bytes());
    cq.push(&bench.hca, [0; CQE_SIZE], false).unwrap();
    assert_eq!(cqe::OWNER.get(&bench.read(CQ_PAGE, CQE_SIZE)), 1);
    assert_eq!(cq.push(&bench.hca, [0; CQE_SIZE], false), Err(CqError::Overrun(cq.cqn)));
    let event = eqe_at(&bench, &eq, 0);
    assert_eq!((eqe::TYPE.get(&event), eqe_cq_err::CQN.get(&event)), (event::CQ_ERROR, cq.cqn));
    assert_eq!(cq.push(&bench.hca, [0; CQE_SIZE], false), Err(CqError::Dead(cq.cqn)));
}

#[test]
fn buffers_cross_scattered_pages_and_end_where_they_end() {
    let bench = Bench::new();
    let buffer = bench.buffer(&[0x5000, 0x9000, 0x2000], 3 * 4096);
    let bytes: Vec<u8> = (0..6000u32).map(|n| n as u8).collect();
    buffer.write(&bench.hca.dma, 3000, &bytes).unwrap();
    assert_eq!(bench.read(0x5000 + 3000, 1096), bytes[..1096]);
    assert_eq!(bench.read(0x9000, 4096), bytes[1096..1096 + 4096]);
    let mut back = vec![0; 6000];
    buffer.read(&bench.hca.dma, 3000, &mut back).unwrap();
    assert_eq!(back, bytes);
    assert!(buffer.read(&bench.hca.dma, 3 * 4096 - 1, &mut [0; 2]).is_err());
    assert!(buffer.read(&bench.hca.dma, u64::MAX, &mut [0; 2]).is_err());
    bench.master.set(false);
    assert!(buffer.read(&bench.hca.dma, 0, &mut [0; 2]).is_err());
    bench.master.set(true);
    let outside = bench.buffer(&[RAM], 4096);
    assert!(outside.write(&bench.hca.dma, 0, &[1]).is_err());
}

#[test]
fn geometries_count_pages_from_their_offset() {
    assert_eq!(Geometry::new(0, 0, 4096).unwrap().pages(), 1);
    assert_eq!(Geometry::new(0, 1, 4096).unwrap().pages(), 2);
    assert_eq!(Geometry::new(1, 63, 128).unwrap().pages(), 1);
    assert_eq!(Geometry::new(1, 63, 129).unwrap().pages(), 2);
    for (log_page, offset, len) in [(32, 0, 1), (0, 64, 1), (0, 0, 0), (0, 0, u64::MAX)] {
        assert_eq!(Geometry::new(log_page, offset, len), None);
    }
    let two = Geometry::new(0, 1, 4096).unwrap();
    assert!(GuestBuffer::new(two, &[0; 15]).is_none(), "a page short");
    assert_eq!(GuestBuffer::new(two, &[0; 16]).unwrap().len(), 4096);
}

#[test]
fn entries_of_128_bytes_are_in_the_upper_half() {
    let bench = Bench::new();
    let eq = eq(&bench, 1, 0, 2);
    for entry in [1, 2] {
        bench.write(CQ_PAGE, &[0xee; 4 * 128]);
        let buffer = bench.buffer(&[CQ_PAGE], Cq::bytes(2, entry));
        let (eqn, context) = (eq.eqn, vec![]);
        let spec = CqSpec { uar: 16, eqn, log_size: 2, entry, ignore_overrun: true, record: RECORD, buffer, context };
        let cq = bench.hca.cqs.insert(|cqn| Cq::new(cqn, spec)).unwrap();
        for index in 0..6u32 {
            let mut bytes = [0; CQE_SIZE];
            cqe::QPN.set(&mut bytes, 0x100 + index);
            cq.push(&bench.hca, bytes, false).unwrap();
            let slot = bench.read(CQ_PAGE + u64::from(index % 4) * 128, 128);
            assert_eq!(slot[..64], [if entry == 2 { 0 } else { 0xee }; 64], "kind {entry}, entry {index}");
            let upper = &slot[64..];
            assert_eq!((cqe::QPN.get(upper), cqe::OWNER.get(upper)), (0x100 + index, index >> 2 & 1));
        }
    }
}
