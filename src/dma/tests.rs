// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the door.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::*;

const RAM: u64 = 0x3000;
/// Where the second region begins.
const SEAM: u64 = 0x2000;

/// RAM of two regions without a gap, and a hole above.
fn door() -> (DmaTarget, Arc<BusMaster>) {
    let ranges = [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (RAM - SEAM) as usize)];
    let master = Arc::new(BusMaster::default());
    master.set(true);
    (DmaTarget::new(8, Arc::new(GuestRam::from_ranges(&ranges).unwrap()), master.clone()), master)
}

fn outside(addr: u64, len: u64) -> DmaError {
    DmaError::OutsideRam { requester: 8, addr, len }
}

fn span(addr: u64, len: u64) -> Span {
    Span { addr, len }
}

#[test]
fn bytes_go_through_the_door_across_regions() {
    let (dma, master) = door();
    dma.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
    let mut bytes = [0; 6];
    dma.read(0x1ffd, &mut bytes).unwrap();
    assert_eq!((bytes, master.refused()), ([0, 1, 2, 3, 4, 0], 0));
}

#[test]
fn what_is_not_all_ram_is_refused_whole_and_counted() {
    let (dma, master) = door();
    for (count, (addr, len)) in [(RAM - 1, 2), (RAM, 1), (u64::MAX, 2), (u64::MAX - 1, 1)].into_iter().enumerate() {
        let outside = Err(outside(addr, len as u64));
        assert_eq!(dma.write(addr, &[0xee; 2][..len]), outside);
        assert_eq!(dma.read(addr, &mut [0; 2][..len]), outside);
        assert!(!dma.is_ram(addr, len as u64));
        assert_eq!(master.refused(), 2 * (count as u64 + 1));
    }
    let mut last = [0xaa];
    dma.read(RAM - 1, &mut last).unwrap();
    assert_eq!(last, [0], "not a byte of it was written");
    // Nothing is RAM everywhere.
    dma.write(u64::MAX, &[]).unwrap();
    dma.read(RAM, &mut []).unwrap();
    assert!(dma.is_ram(0, RAM) && dma.is_ram(RAM, 0) && !dma.is_ram(u64::MAX, u64::MAX));
    assert_eq!((dma.ram_bytes(), master.refused()), (RAM, 8));
}

#[test]
fn without_bus_mastering_nothing_moves() {
    let (dma, master) = door();
    let off = DmaError::BusMasterOff(8);
    dma.write(0, &[7]).unwrap();
    master.set(false);
    let (mut byte, mut into) = ([9], vec![1]);
    assert_eq!(dma.read(0, &mut byte), Err(off));
    assert_eq!(dma.write(0, &[8]), Err(off));
    assert_eq!(dma.load::<u8>(0, Acquire), Err(off));
    assert_eq!(dma.store(0, 8u8, Release), Err(off));
    assert_eq!(dma.word(0, |_| unreachable!("it is not reached")), Err::<Result<(), ()>, _>(off));
    assert_eq!(dma.gather(&[span(0, 1)], &mut into), Err(off));
    assert!(matches!(dma.permit(), Err(error) if error == off));
    assert_eq!((master.refused(), dma.is_enabled(), dma.is_ram(0, 1)), (7, false, true));
    master.set(true);
    assert_eq!((byte, into), ([9], vec![1]));
    dma.read(0, &mut byte).unwrap();
    assert_eq!(byte, [7]);
}

#[test]
fn a_permit_is_one_look_at_the_switch() {
    let (dma, master) = door();
    let permit = dma.permit().unwrap();
    master.set(false);
    permit.write(0, &[1, 2]).unwrap();
    assert_eq!(permit.load::<u16>(0, Acquire), Ok(0x201));
    assert_eq!(permit.check(RAM - 1, 2), Err(outside(RAM - 1, 2)));
    assert_eq!(master.refused(), 1);
}

#[test]
fn words_are_reached_at_once_or_not_at_all() {
    let (dma, master) = door();
    dma.store(0x10, 0x0807_0605_0403_0201u64, Release).unwrap();
    assert_eq!(dma.load::<u32>(0x14, Acquire), Ok(0x0807_0605));
    assert_eq!(dma.load::<u16>(0x12, Relaxed), Ok(0x0403));
    assert_eq!(dma.load::<u8>(0x17, Relaxed), Ok(8));
    assert_eq!(dma.word(0x10, |word| Ok::<_, ()>(word.fetch_add(1, Relaxed))), Ok(Ok(0x0807_0605_0403_0201)));
    assert_eq!(dma.load::<u8>(0x10, Acquire), Ok(2));
    assert_eq!(master.refused(), 0);
    // Over the seam of two regions, too.
    for addr in [0x12, SEAM - 2] {
        let misaligned = DmaError::Misaligned { requester: 8, addr, len: 4 };
        assert_eq!(dma.load::<u32>(addr, Acquire), Err(misaligned));
        assert_eq!(dma.store(addr, 1u32, Release), Err(misaligned));
    }
    let misaligned = DmaError::Misaligned { requester: 8, addr: 0x14, len: 8 };
    assert_eq!(dma.word(0x14, |_| unreachable!("it is not reached")), Err::<Result<(), ()>, _>(misaligned));
    assert_eq!(dma.word(RAM, |_| unreachable!("it is not reached")), Err::<Result<(), ()>, _>(outside(RAM, 8)));
    assert_eq!(dma.load::<u64>(RAM - 4, Acquire), Err(outside(RAM - 4, 8)));
    assert_eq!(dma.store(u64::MAX, 1u16, Release), Err(outside(u64::MAX, 2)));
    assert_eq!(master.refused(), 8);
}

/// In one run and over a seam: all of it or, where some byte is not RAM, nothing.
#[test]
fn entries_are_published_whole() {
    let (dma, _) = door();
    let entry: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
    for addr in [0x100, SEAM - 16, SEAM - 8, SEAM - 2] {
        dma.permit().unwrap().publish(addr, &entry).unwrap();
        let mut found = [0; 16];
        dma.read(addr, &mut found).unwrap();
        assert_eq!(found, entry, "{addr:#x}");
    }
    assert_eq!(dma.permit().unwrap().publish(RAM - 8, &entry), Err(outside(RAM - 8, 16)));
    let mut last = [0; 8];
    dma.read(RAM - 8, &mut last).unwrap();
    assert_eq!(last, [0; 8]);
}

#[test]
fn spans_are_gathered_in_order_and_whole() {
    let (dma, master) = door();
    dma.write(SEAM - 2, &[1, 2, 3, 4]).unwrap();
    let mut into = vec![9];
    dma.gather(&[span(SEAM, 2), span(0, 0), span(SEAM - 2, 3)], &mut into).unwrap();
    assert_eq!(into, [9, 3, 4, 1, 2, 3]);
    assert_eq!(dma.gather(&[span(SEAM, 2), span(RAM - 1, 2)], &mut into), Err(outside(RAM - 1, 2)));
    assert_eq!(dma.gather(&[span(RAM, u64::MAX)], &mut into), Err(outside(RAM, u64::MAX)));
    assert_eq!((into.len(), master.refused()), (6, 2));
}

#[test]
fn system_calls_get_one_buffer_for_each_run() {
    let (dma, master) = door();
    let permit = dma.permit().unwrap();
    let lens = |buffers: &mut [libc::iovec]| buffers.iter().map(|buffer| buffer.iov_len).collect::<Vec<_>>();
    let spans = [span(SEAM - 0x10, 0x30), span(RAM, 0), span(0, 1)];
    assert_eq!(permit.vectored(Direction::ToGuest, spans, lens), Ok(vec![0x10, 0x20, 1]));
    let never = |_: &mut [libc::iovec]| unreachable!("a span is not RAM");
    assert_eq!(
        permit.vectored(Direction::FromGuest, [span(0, 1), span(RAM - 1, 2)], never),
        Err::<(), _>(outside(RAM - 1, 2))
    );
    assert_eq!(permit.vectored(Direction::FromGuest, [span(u64::MAX, 2)], never), Err::<(), _>(outside(u64::MAX, 2)));
    assert_eq!(master.refused(), 2);
}

#[test]
fn copies_of_every_length_at_every_offset_arrive_whole() {
    const FROM: u64 = 0x800;
    let (dma, _) = door();
    let pattern: Vec<u8> = (0..64).map(|n| n as u8 + 1).collect();
    dma.write(FROM, &pattern).unwrap();
    // The second place has the seam of two regions in each of its halves.
    for to in [0x1000, SEAM - 20] {
        for (offset, len) in (0..9).flat_map(|offset| (1..35).map(move |len| (offset, len))) {
            let wanted = [vec![0; offset], pattern[..len].to_vec(), vec![0; 64 - offset - len]].concat();
            // At once from the host, and from two places of the guest to two that are cut elsewhere.
            let cut = len as u64 / 3;
            let spans = |base: u64, cut: u64| [span(base, cut), span(base + cut, len as u64 - cut)];
            let at = to + offset as u64;
            for (source, target) in [
                (Source::Bytes(&pattern), [span(at, len as u64), span(0, 0)]),
                (Source::Spans(&spans(FROM, cut)), spans(at, len as u64 - cut)),
            ] {
                dma.write(to, &[0; 64]).unwrap();
                copy((&dma, source), (&dma, &target), len as u64).unwrap();
                let mut found = vec![0; 64];
                dma.read(to, &mut found).unwrap();
                assert_eq!(found, wanted, "{len} bytes at {offset}");
            }
        }
    }
}

#[test]
fn a_copy_says_which_end_was_at_fault() {
    let (here, our_switch) = door();
    let (there, their_switch) = door();
    let done = |source: Source<'_>, target: &[Span]| copy((&here, source), (&there, target), 20);
    let early = |why, touched| Err(CopyError { why, touched });
    let (good, bytes) = ([span(0x1000, 20)], Source::Bytes(&[1; 20]));
    assert_eq!(done(Source::Bytes(&[1; 19]), &good), early(CopyFault::SourceShort, 20));
    assert_eq!(done(Source::Spans(&[span(0, 19)]), &good), early(CopyFault::SourceShort, 20));
    assert_eq!(done(Source::Spans(&[span(RAM, 20)]), &good), early(CopyFault::Source(outside(RAM, 20)), 20));
    assert_eq!(done(Source::Spans(&[span(RAM - 3, 20)]), &good), early(CopyFault::Source(outside(RAM, 17)), 20));
    assert_eq!((our_switch.refused(), their_switch.refused()), (2, 0));
    assert_eq!(done(bytes, &[span(0x1000, 19)]), early(CopyFault::TargetShort, 19));
    assert_eq!(done(bytes, &[span(u64::MAX - 3, 20)]), early(CopyFault::Target(outside(u64::MAX - 3, 20)), 20));
    assert_eq!(done(bytes, &[span(RAM - 3, 20)]), early(CopyFault::Target(outside(RAM, 17)), 20));
    assert_eq!((our_switch.refused(), their_switch.refused()), (2, 2));
    their_switch.set(false);
    assert_eq!(done(bytes, &good), early(CopyFault::Target(DmaError::BusMasterOff(8)), 0));
    // Who sends must be allowed to, also what it has in its own hands.
    our_switch.set(false);
    let off = done(bytes, &good).unwrap_err();
    assert_eq!((off.why, off.is_source()), (CopyFault::Source(DmaError::BusMasterOff(8)), true));
}

#[derive(Default)]
struct Told(std::sync::Mutex<Vec<Span>>);

impl Observer for Told {
    fn wrote(&self, span: Span) {
        self.0.lock().unwrap().push(span);
    }
}

/// Of payload, whole or cut short, and of nothing that a device reads or writes for itself.
#[test]
fn the_observer_is_told_of_what_is_written_for_others() {
    let told = Arc::new(Told::default());
    let (dma, master) = door();
    let dma = dma.observed(told.clone());
    let news = || std::mem::take(&mut *told.0.lock().unwrap());
    let copied = |target: &[Span]| copy((&dma, Source::Bytes(&[1; 16])), (&dma, target), 16).is_ok();
    assert!(copied(&[span(0x100, 10), span(0x200, 0), span(SEAM - 3, 20)]));
    assert_eq!(news(), [span(0x100, 10), span(SEAM - 3, 6)]);
    // The second span is cut short, or not reached at all.
    assert!(!copied(&[span(0x100, 10), span(RAM - 3, 6)]));
    assert_eq!(news(), [span(0x100, 10), span(RAM - 3, 6)]);
    assert!(copy((&dma, Source::Bytes(&[1; 16])), (&dma, &[span(0, 8)]), 16).is_err());
    assert_eq!(news(), [span(0, 8)]);
    assert_eq!(dma.word(0x40, |_| Err::<(), _>("no")), Ok(Err("no")));
    assert_eq!(news(), []);
    assert_eq!(dma.word(0x40, |_| Ok::<_, ()>(())), Ok(Ok(())));
    assert_eq!(news(), [span(0x40, 8)]);
    let permit = dma.permit().unwrap();
    let data = [span(0x80, 4), span(0x90, 4)];
    permit.vectored(Direction::FromGuest, data, |_| ()).unwrap();
    assert_eq!(news(), []);
    permit.vectored(Direction::ToGuest, data, |_| ()).unwrap();
    assert_eq!(news(), data);
    permit.gather(&data, &mut Vec::new()).unwrap();
    dma.write(0, &[1; 8]).unwrap();
    dma.store(0, 1u32, Release).unwrap();
    permit.publish(0, &[1; 64]).unwrap();
    master.set(false);
    assert!(!copied(&data));
    assert_eq!(news(), []);
}

/// A memory that counts how often it is asked, and whose last 8 bytes end the address space.
struct Counting {
    ram: GuestRam,
    asked: AtomicU64,
}

const TOP: u64 = u64::MAX - 7;

impl Ram for Counting {
    fn find(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        self.asked.fetch_add(1, Relaxed);
        if addr >= TOP { self.ram.find(addr - TOP + RAM - 8, len) } else { self.ram.find(addr, len) }
    }

    fn bytes(&self) -> u64 {
        self.ram.bytes()
    }
}

fn counting() -> (DmaTarget, Arc<Counting>) {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let ram = Arc::new(Counting { ram, asked: AtomicU64::new(0) });
    let master = Arc::new(BusMaster::default());
    master.set(true);
    (DmaTarget::new(8, ram.clone(), master), ram)
}

#[test]
fn a_memory_is_asked_once_for_each_run() {
    let (dma, ram) = counting();
    let asked = |access: &dyn Fn()| {
        access();
        ram.asked.swap(0, Relaxed)
    };
    for len in [1, 8, 9, 0x800] {
        let copied = || copy((&dma, Source::Spans(&[span(1, len)])), (&dma, &[span(0x1001, len)]), len).unwrap();
        assert_eq!(asked(&copied), 2, "{len} bytes");
    }
    let cut = [span(0, 100), span(0x200, 0), span(0x100, 28)];
    assert_eq!(asked(&|| copy((&dma, Source::Spans(&cut)), (&dma, &[span(0x1000, 128)]), 128).unwrap()), 3);
    assert_eq!(asked(&|| dma.read(0, &mut [0; 0x100]).unwrap()), 1);
    assert_eq!(asked(&|| dma.write(0, &[0; 0x100]).unwrap()), 1);
    assert_eq!(asked(&|| assert_eq!(dma.load::<u32>(0, Acquire), Ok(0))), 1);
}

/// An access that begins in the last page of the address space does not go on at address 0.
#[test]
fn nothing_wraps() {
    let (dma, _) = counting();
    dma.write(TOP, &[7]).unwrap();
    let over = outside(TOP, 16);
    assert_eq!(dma.read(TOP, &mut [0; 16]), Err(over));
    assert_eq!(dma.write(TOP, &[0; 16]), Err(over));
    assert_eq!(dma.gather(&[span(TOP, 16)], &mut Vec::new()), Err(over));
    let here = [span(0x1000, 16)];
    assert_eq!(
        copy((&dma, Source::Spans(&[span(TOP, 16)])), (&dma, &here), 16),
        Err(CopyError { why: CopyFault::Source(over), touched: 16 })
    );
    assert_eq!(
        copy((&dma, Source::Spans(&here)), (&dma, &[span(TOP, 16)]), 16),
        Err(CopyError { why: CopyFault::Target(over), touched: 16 })
    );
    assert!(dma.read_obj::<u128>(GuestAddress(TOP)).is_err() && !dma.is_ram(TOP, 16));
}

#[test]
fn a_ring_is_walked_through_the_door() {
    let (dma, master) = door();
    dma.write_obj(0x1234_u16, GuestAddress(SEAM - 1)).unwrap();
    assert_eq!(dma.read_obj::<u16>(GuestAddress(SEAM - 1)).unwrap(), 0x1234);
    let walk = |dma: &DmaTarget, addr, count| {
        let slices = dma.get_slices(GuestAddress(addr), count, Permissions::Read).ok()?;
        slices.map(|slice| slice.ok().map(|slice| slice.len())).collect::<Option<Vec<_>>>()
    };
    assert_eq!(walk(&dma, SEAM - 4, 10), Some(vec![4, 6]));
    assert_eq!((walk(&dma, RAM - 4, 10), walk(&dma, u64::MAX, 2), master.refused()), (None, None, 2));
    let is_ram = |addr| dma.check_range(GuestAddress(addr), 4, Permissions::Write);
    assert!(is_ram(RAM - 4) && !is_ram(RAM - 3));
    master.set(false);
    assert!(is_ram(0), "no access, so that the switch does not matter");
    assert_eq!((walk(&dma, 0, 1), master.refused()), (None, 3));
    assert!(dma.read_obj::<u16>(GuestAddress(0)).is_err() && dma.physical_memory().is_none());
}
