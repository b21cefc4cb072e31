// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases drawn from public bug reports on virtio-blk devices. Each asserts what virtio 1.2 says: a failure is a finding.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use virtio::VirtioDevice;

use crate::device::feature;
use crate::testing::*;
use crate::*;

fn writeback(driver: &Driver) -> u8 {
    let mut byte = [0xee];
    driver.device.config_read(32, &mut byte);
    byte[0]
}

/// Whether a write that has completed survives the cruel cut.
fn is_durable(driver: &mut Driver, byte: u8) -> bool {
    assert_eq!(driver.write_page(0, byte), S_OK);
    let image = driver.image("cut");
    driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    std::fs::read(&image).unwrap()[..4096] == [byte; 4096]
}

/// C00, virtio 1.2 5.2.5.2: with CONFIG_WCE negotiated and FLUSH not, writeback
/// starts as 0.
#[test]
fn c00_config_wce_without_flush() {
    let mut driver = Driver::inactive(64, |c| c.track = true);
    driver.features = feature::VERSION_1 | feature::CONFIG_WCE;
    driver.activate();
    let first = writeback(&driver);
    let durable = is_durable(&mut driver, 3);
    driver.device.config_write(32, &[1]);
    let set = writeback(&driver);
    let after_set = is_durable(&mut driver, 4);
    println!(
        "writeback at first {first}, a completed write is durable: {durable}; 1 written: reads {set}, durable: {after_set}"
    );
    driver.device.config_write(32, &[0]);
    assert!(is_durable(&mut driver, 5), "0 written by the driver");
    // Once more after a reset.
    driver.device.reset();
    driver.activate();
    let again = (writeback(&driver), is_durable(&mut driver, 6));
    assert_eq!((first, durable, again), (0, true, (0, true)));
}

/// The neighbours of C00.
#[test]
fn c00_the_other_combinations() {
    for (features, writeback_wanted, durable_wanted) in
        [(feature::FLUSH | feature::CONFIG_WCE, Some(1), false), (feature::FLUSH, None, false), (0, None, true)]
    {
        let mut driver = Driver::inactive(64, |c| c.track = true);
        driver.features = feature::VERSION_1 | features;
        driver.activate();
        if let Some(wanted) = writeback_wanted {
            assert_eq!(writeback(&driver), wanted);
        }
        assert_eq!(is_durable(&mut driver, 3), durable_wanted, "{features:#x}");
    }
}

/// A driver that turned writeback off, without FLUSH for its other half: a discard and a write-zeroes are durable too.
#[test]
fn c00_write_through_holds_for_discard_and_write_zeroes() {
    let mut driver = Driver::inactive(64, |c| c.track = true);
    driver.features = feature::VERSION_1 | feature::DISCARD | feature::WRITE_ZEROES;
    driver.activate();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(driver.write_page(0, 7), S_OK);
        driver.put(DATA, &segment(0, 8, 0));
        assert_eq!(driver.run(kind, 0, &[(DATA, 16)]), S_OK);
        let image = driver.image("cut");
        driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
        assert_eq!(std::fs::read(&image).unwrap()[..4096], [0; 4096], "{kind}");
    }
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// virtio-villain B0002, B0081, B0091; OpenVMM 4046; cloud-hypervisor 8388.
#[test]
fn c14_sectors_that_wrap() {
    let mut driver = Driver::new(64, |_| {});
    driver.put(DATA, &[7; 4096]);
    assert_eq!(driver.run(OUT, 0, &[(DATA, 4096)]), S_OK);
    let before = driver.on_disk(0, 64 * 512);
    driver.put(DATA, &[9; 4096]);
    for sector in [
        64,
        63,
        57,
        u64::MAX,
        u64::MAX - 7,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        1 << 55,
        (1 << 55) + 1,
        (1 << 55) - 1,
        1 << 63,
        (1 << 63) - 1,
        i64::MAX as u64 / 512,
        i64::MAX as u64 / 512 + 1,
    ] {
        for kind in [IN, OUT] {
            driver.put(DATA, &[9; 4096]);
            assert_eq!(driver.run(kind, sector, &[(DATA, 4096)]), S_IOERR, "{kind} at {sector:#x}");
            assert_eq!(driver.get(DATA, 4096), [9; 4096]);
        }
        for kind in [DISCARD, WRITE_ZEROES] {
            for sectors in [8, u32::MAX, 1 << 31, 1 << 17] {
                driver.put(DATA, &segment(sector, sectors, 0));
                assert_eq!(driver.run(kind, 0, &[(DATA, 16)]), S_IOERR, "{kind} at {sector:#x}, {sectors:#x} sectors");
            }
        }
    }
    assert_eq!(driver.on_disk(0, 64 * 512), before);
    assert!(!driver.failed());
}

/// T0008, OpenVMM 4047: an address whose end wraps, in every place of a chain.
#[test]
fn c14_addresses_that_wrap() {
    let mut driver = Driver::new(64, |_| {});
    for (kind, gpa, len) in [
        (IN, u64::MAX - 511, 512),
        (IN, u64::MAX - 511, 1024),
        (OUT, u64::MAX - 255, 512),
        (OUT, u64::MAX, 512),
        (GET_ID, u64::MAX - 10, 20),
        (DISCARD, u64::MAX - 7, 16),
        (WRITE_ZEROES, u64::MAX - 15, 16),
        (IN, RAM_BYTES - 1, 512),
        (IN, 1 << 63, 512),
    ] {
        assert_eq!(driver.run(kind, 0, &[(gpa, len)]), S_IOERR, "{kind} {gpa:#x} {len}");
    }
    assert!(!driver.failed());
    assert_eq!(driver.write_page(0, 1), S_OK);
}

/// cloud-hypervisor 730677730: the same head made available again while it is in flight.
#[test]
fn c14_one_head_twice() {
    // Held in flight when the second comes; and both in one batch.
    for hold in [true, false] {
        for kind in [OUT, IN, FLUSH] {
            let mut driver = Driver::new(64, |c| c.track = true);
            driver.put(DATA, &[5; 4096]);
            let op = [BlkOp::Write, BlkOp::Read, BlkOp::Flush]
                [[OUT, IN, FLUSH].iter().position(|one| *one == kind).unwrap()];
            let lever =
                hold.then(|| driver.handle.arm(Lever { times: 2, ..Lever::new(op, HoldPoint::BeforeComplete, SOON) }));
            let data: &[(u64, u32)] = if kind == FLUSH { &[] } else { &[(DATA, 4096)] };
            let ticket = driver.prepare(0, kind, 0, data);
            driver.publish(0, &[ticket.head]);
            driver.kick(0);
            if let Some(lever) = lever {
                driver.handle.wait_held(lever, SOON).unwrap();
            }
            driver.publish(0, &[ticket.head]);
            driver.kick(0);
            if let Some(lever) = lever {
                driver.handle.wait_held_many(lever, 2, SOON).unwrap();
                driver.handle.release(lever).unwrap();
            }
            let used = |driver: &Driver| {
                let idx: u16 = driver.ram.read_obj(GuestAddress(driver.ring_area(0) + 0xa000 + 2)).unwrap();
                u16::from_le(idx)
            };
            let end = Instant::now() + SOON;
            while used(&driver) < 2 && !driver.failed() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
            println!(
                "hold {hold}, type {kind}: used {} times, failed {}, in flight {}",
                used(&driver),
                driver.failed(),
                driver.handle.in_flight()
            );
            assert!(used(&driver) == 2 || driver.failed());
            assert_eq!(driver.handle.in_flight(), 0);
            driver.recover();
        }
    }
}

/// cloud-hypervisor 7858, 7852, 8ca521060; virtio 1.2 5.2.6.2.
#[test]
fn c14_discard_and_write_zeroes_limits_and_flags() {
    let mut driver = Driver::new(1 << 19, |_| {});
    let mut space = [0u8; 60];
    driver.device.config_read(0, &mut space);
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    let (discard_sectors, discard_segs, zero_sectors, zero_segs) = (word(36), word(40), word(48), word(52));
    for (kind, list, wanted) in [
        (DISCARD, segment(0, discard_sectors, 0), S_OK),
        (DISCARD, segment(0, discard_sectors + 1, 0), S_IOERR),
        (WRITE_ZEROES, segment(0, zero_sectors, 0), S_OK),
        (WRITE_ZEROES, segment(0, zero_sectors, 1), S_OK),
        (WRITE_ZEROES, segment(0, zero_sectors + 1, 0), S_IOERR),
        (DISCARD, segment(0, 8, 0).repeat(discard_segs as usize), S_OK),
        (DISCARD, segment(0, 8, 0).repeat(discard_segs as usize + 1), S_IOERR),
        (WRITE_ZEROES, segment(0, 8, 0).repeat(zero_segs as usize), S_OK),
        (WRITE_ZEROES, segment(0, 8, 0).repeat(zero_segs as usize + 1), S_IOERR),
        // Not aligned to discard_sector_alignment: a hint only.
        (DISCARD, segment(3, 5, 0), S_OK),
        // Empty ranges.
        (DISCARD, segment(0, 0, 0), S_OK),
        (WRITE_ZEROES, segment(0, 0, 0), S_OK),
        // Flags: unmap is not for discard, all others are unknown.
        (DISCARD, segment(0, 8, 1), S_UNSUPP),
        (DISCARD, segment(0, 8, 2), S_UNSUPP),
        (DISCARD, segment(0, 8, 1 << 31), S_UNSUPP),
        (WRITE_ZEROES, segment(0, 8, 2), S_UNSUPP),
        (WRITE_ZEROES, segment(0, 8, 3), S_UNSUPP),
        (WRITE_ZEROES, segment(0, 8, u32::MAX), S_UNSUPP),
        // Flags are looked at first: "MUST set the status to UNSUPP ... if any unknown flag is set".
        (DISCARD, segment(u64::MAX, 8, 2), S_UNSUPP),
        (WRITE_ZEROES, segment(0, zero_sectors + 1, 2), S_UNSUPP),
        (WRITE_ZEROES, [segment(0, 8, 0), segment(8, 8, 2)].concat(), S_UNSUPP),
        (WRITE_ZEROES, [segment(u64::MAX, 8, 0), segment(8, 8, 2)].concat(), S_UNSUPP),
    ] {
        driver.put(DATA, &[0x33; 4096]);
        assert_eq!(driver.run(OUT, 8, &[(DATA, 4096)]), S_OK);
        driver.put(DATA, &list);
        let got = driver.run(kind, 0, &[(DATA, list.len() as u32)]);
        let note = if got == wanted { "" } else { "  DIFFERS" };
        println!("{kind} {} segments, first {:02x?}: {got}, wanted {wanted}{note}", list.len() / 16, &list[..16]);
        if got != S_OK {
            assert_eq!(driver.on_disk(8, 512), [0x33; 512], "a refused request changed the disk");
        }
    }
    // Secure erase and lifetime are not offered.
    for kind in [2, 3, 5, 10, 14, 15, 0x8000_0000, u32::MAX] {
        driver.put(DATA, &segment(0, 8, 0));
        assert_eq!(driver.run(kind, 0, &[(DATA, 16)]), S_UNSUPP, "type {kind}");
    }
}

/// B0007, B0008, B0094: FLUSH with data, or with a sector. B0035, B0071, B0073: data of the wrong direction.
#[test]
fn c14_odd_requests() {
    let mut driver = Driver::new(64, |_| {});
    assert_eq!(driver.run(FLUSH, 0, &[(DATA, 512)]), S_OK);
    println!("flush with a sector: {}", driver.run(FLUSH, 5, &[]));
    // Wrong direction: nothing may be written to a buffer that is the driver's to write, nor the disk change.
    let chain = |driver: &mut Driver, kind: u32, data_flags: u16| {
        let mut raw = [0; 16];
        raw[..4].copy_from_slice(&kind.to_le_bytes());
        driver.put(DATA - 64, &raw);
        driver.put(DATA, &[0xee]);
        driver.put(DATA + 4096, &[0x44; 512]);
        let table = driver.ring_area(0);
        let list = match data_flags {
            WRITE => vec![(DATA - 64, 16, 0), (DATA + 4096, 512, WRITE), (DATA, 1, WRITE)],
            _ => vec![(DATA - 64, 16, 0), (DATA + 4096, 512, 0), (DATA, 1, WRITE)],
        };
        driver.write_chain(table, 0, &list);
        driver.publish(0, &[0]);
        driver.kick(0);
        Driver::until("a status", || driver.get(DATA, 1) != [0xee] || driver.failed());
        driver.get(DATA, 1)[0]
    };
    let before = driver.on_disk(0, 512);
    assert_eq!(chain(&mut driver, OUT, WRITE), S_IOERR);
    assert_eq!(driver.on_disk(0, 512), before);
    assert_eq!(chain(&mut driver, IN, 0), S_IOERR);
    assert_eq!(driver.get(DATA + 4096, 512), [0x44; 512]);
    assert_eq!(chain(&mut driver, GET_ID, 0), S_IOERR);
    assert_eq!(driver.get(DATA + 4096, 512), [0x44; 512]);
    assert!(!driver.failed());
}
