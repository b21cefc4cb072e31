// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transport from the driver's side.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::testing::{RAM, Rig, SLOT, WINDOW};
use pci::testing::{config_u32, set_command, set_config_u32};

const NO_VECTOR: u16 = 0xffff;

#[test]
fn identity_and_regions_are_those_of_a_modern_block_device() {
    let rig = Rig::new();
    assert_eq!(config_u32(&rig.bus, SLOT, 0), 0x1042_1af4);
    assert_eq!(config_u32(&rig.bus, SLOT, 8), 0x0180_0001);
    assert_eq!((rig.common, rig.isr), (WINDOW, WINDOW + 0x1000));
    assert_eq!((rig.device, rig.notify), (WINDOW + 0x2000, WINDOW + 0x3000));
    assert_eq!(rig.u16_at(0x12), 2, "queues");
    assert_eq!(rig.read(rig.device + 2), [3, 4, 0, 0]);
    rig.write(rig.device + 1, &[9]);
    assert_eq!(rig.read(rig.device), [1, 9, 3, 4]);
    assert_eq!(rig.read(rig.common + 0x38), [0xff; 8], "a hole");
    assert_eq!(rig.doorbells(), 2);
}

#[test]
fn features_come_in_windows_and_transport_limits_are_kept() {
    let rig = Rig::new();
    assert_eq!(rig.offered(0), 0x15 | 1 << 29);
    assert_eq!(rig.offered(1), 1, "VERSION_1 and no packed rings");
    assert_eq!(rig.offered(2), 0);
    assert_eq!(rig.offered(u32::MAX), 0);
    rig.negotiate();
    rig.accept(0, 0);
    rig.set_u32(8, 0);
    assert_eq!(rig.read(rig.common + 0xc), (0x5_u32 | 1 << 29).to_le_bytes(), "settled by FEATURES_OK");
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_what_was_not_offered() {
    for (window, bits) in [(1, 0), (0, 2), (1, 5), (2, 1)] {
        let rig = Rig::new();
        rig.set_status(3);
        rig.accept(1, 1);
        rig.accept(window, bits);
        rig.set_status(0xb);
        assert_eq!(rig.status(), 3, "window {window} bits {bits:#x}");
        rig.set_status(0xf);
        assert_eq!(rig.status(), 3, "DRIVER_OK needs FEATURES_OK");
        assert_eq!(rig.told.lock().activations, 0);
    }
    let rig = Rig::new();
    rig.accept(1, 1);
    rig.set_status(8);
    assert_eq!(rig.status(), 0, "FEATURES_OK needs ACKNOWLEDGE and DRIVER");
}

#[test]
fn driver_ok_hands_over_the_queues_once() {
    let rig = Rig::new();
    rig.start();
    assert_eq!(rig.status(), 0xf);
    rig.set_status(0xf);
    rig.set_status(0x4f);
    assert_eq!(rig.status(), 0xf, "NEEDS_RESET is the device's to set");
    let told = rig.told.lock();
    assert_eq!(told.activations, 1);
    let activation = told.activation.as_ref().unwrap();
    assert_eq!(activation.features, 0x5 | 1 << 29 | 1 << 32);
    assert_eq!(activation.dma.requester(), u16::from(SLOT) << 3);
    let queue = &activation.queues[1];
    assert_eq!((queue.index, queue.queue.size()), (1, 64));
    assert_eq!((queue.queue.desc_table(), queue.queue.avail_ring(), queue.queue.used_ring()), (0x4000, 0x5000, 0x6000));
    assert!(queue.queue.ready() && queue.queue.event_idx_enabled());
}

#[test]
fn notifications_reach_the_queue_they_name() {
    let rig = Rig::new();
    rig.start();
    rig.write(rig.notify + 4, &1_u16.to_le_bytes());
    rig.write(rig.notify + 4, &[1]);
    rig.write(rig.notify + 8, &2_u16.to_le_bytes());
    let told = rig.told.lock();
    let queues = &told.activation.as_ref().unwrap().queues;
    assert_eq!(queues[1].kick.read().unwrap(), 2);
    assert!(queues[0].kick.read().is_err(), "never kicked");
}

#[test]
fn interrupts_go_to_the_vectors_that_were_given() {
    let rig = Rig::new();
    rig.start();
    let interrupt = rig.told.lock().activation.as_ref().unwrap().interrupt.clone();
    interrupt.used(0);
    interrupt.used(1);
    interrupt.used(7);
    assert_eq!(rig.router.take(), [1, 2]);
    assert_eq!(rig.read(rig.isr), [0], "no queue bit while MSI-X is on");
    let generation = rig.read::<1>(rig.common + 0x15)[0];
    interrupt.change_config(&mut || ());
    assert_eq!(rig.router.take(), [0]);
    assert_eq!(rig.read(rig.common + 0x15), [generation.wrapping_add(1)]);
    assert_eq!(rig.read(rig.isr), [2]);
    assert_eq!(rig.read(rig.isr), [0], "reading clears");
    interrupt.needs_reset();
    assert_eq!(rig.status(), 0x4f);
    assert_eq!(rig.router.take(), [0]);
    set_config_u32(&rig.bus, SLOT, rig.msix_at, 0);
    interrupt.used(1);
    assert!(rig.router.take().is_empty());
    assert_eq!(rig.read(rig.isr), [3], "configuration from before, and the queue");
}

#[test]
fn a_vector_beyond_the_table_reads_back_as_none() {
    let rig = Rig::new();
    assert_eq!((rig.u16_at(0x10), rig.u16_at(0x1a)), (NO_VECTOR, NO_VECTOR));
    rig.set_u16(0x10, 2);
    rig.set_u16(0x1a, 3);
    assert_eq!((rig.u16_at(0x10), rig.u16_at(0x1a)), (2, NO_VECTOR));
    rig.set_u16(0x10, 3);
    assert_eq!(rig.u16_at(0x10), NO_VECTOR);
}

#[test]
fn queue_registers_refuse_what_is_not_a_queue() {
    let rig = Rig::new();
    for bad in [0, 3, 512, 0xffff] {
        rig.set_u16(0x18, bad);
        assert_eq!(rig.u16_at(0x18), 256, "{bad} entries");
    }
    rig.set_u16(0x18, 1);
    assert_eq!(rig.u16_at(0x18), 1);
    rig.set_u16(0x16, 1);
    assert_eq!((rig.u16_at(0x18), rig.u16_at(0x1e)), (64, 1));
    rig.set_u16(0x1c, 1);
    rig.set_u16(0x18, 32);
    rig.set_u16(0x1c, 0);
    assert_eq!((rig.u16_at(0x18), rig.u16_at(0x1c)), (64, 1), "an enabled queue does not change");
    rig.set_u16(0x16, 2);
    rig.set_u16(0x18, 16);
    rig.set_u16(0x1c, 1);
    assert_eq!((rig.u16_at(0x18), rig.u16_at(0x1c), rig.u16_at(0x1a)), (0, 0, NO_VECTOR), "no such queue");
}

#[test]
fn rings_outside_ram_fail_the_device_and_a_reset_heals_it() {
    let ends_at_ram = RAM - 64 * 16;
    for (rings, fits) in [
        ([ends_at_ram, 0x2000, 0x3000], true),
        ([ends_at_ram + 16, 0x2000, 0x3000], false),
        ([0x1008, 0x2000, 0x3000], false),
        ([0x1000, 0x2001, 0x3000], false),
        ([0x1000, 0x2000, 0x3002], false),
        ([0x1000, RAM - 4, 0x3000], false),
        ([0x1000, 0x2000, u64::MAX - 3], false),
        ([u64::MAX - 15, 0x2000, 0x3000], false),
        ([0, 0, 0], true),
    ] {
        let rig = Rig::new();
        rig.negotiate();
        rig.set_u16(0x10, 0);
        rig.queue(1, rings);
        rig.set_status(0xf);
        assert_eq!(rig.status(), if fits { 0xf } else { 0x4f }, "{rings:x?}");
        assert_eq!(rig.told.lock().activations, usize::from(fits));
        assert_eq!(rig.router.take().len(), usize::from(!fits), "a failed device says so");
        rig.set_status(0);
        assert_eq!(rig.status(), 0);
        rig.start();
        assert_eq!(rig.status(), 0xf);
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let rig = Rig::new();
    rig.told.lock().fail = true;
    rig.start();
    assert_eq!(rig.status(), 0x4f);
    rig.set_status(0xf);
    assert_eq!(rig.told.lock().activations, 1, "not tried again before a reset");
    let rig = Rig::new();
    rig.negotiate();
    rig.set_status(0xf);
    assert_eq!(rig.status(), 0x4f, "no queue enabled");
}

#[test]
fn reset_stops_the_device_and_forgets_everything() {
    let rig = Rig::new();
    rig.start();
    rig.write(rig.notify, &[0, 0]);
    let interrupt = rig.told.lock().activation.as_ref().unwrap().interrupt.clone();
    let kick = rig.told.lock().activation.as_ref().unwrap().queues[0].kick.clone();
    let before = rig.told.lock().resets;
    rig.set_status(0);
    assert_eq!(rig.told.lock().resets, before + 1);
    assert_eq!((rig.status(), rig.u16_at(0x10), rig.u16_at(0x1c), rig.u16_at(0x18)), (0, NO_VECTOR, 0, 256));
    assert!(kick.read().is_err(), "kicks of the old life are gone");
    interrupt.used(0);
    interrupt.change_config(&mut || ());
    interrupt.used(1);
    assert!(rig.router.take().is_empty(), "nothing is sent before DRIVER_OK");
    set_config_u32(&rig.bus, SLOT, rig.msix_at, 0);
    interrupt.used(0);
    assert_eq!(rig.read(rig.isr), [0], "nor does it show in ISR");
    rig.start();
    assert_eq!(rig.told.lock().activations, 2);
}

#[test]
fn function_level_reset_stops_dma_first() {
    let rig = Rig::new();
    rig.start();
    let dma = rig.told.lock().activation.as_ref().unwrap().dma.clone();
    assert!(dma.check(0, 16).is_ok());
    let resets = rig.told.lock().resets;
    let mut at = config_u32(&rig.bus, SLOT, 0x34) as u16 & 0xff;
    while config_u32(&rig.bus, SLOT, at) as u8 != 0x10 {
        at = config_u32(&rig.bus, SLOT, at) as u16 >> 8;
    }
    set_config_u32(&rig.bus, SLOT, at + 8, 1 << 15);
    assert!(dma.check(0, 16).is_err());
    assert_eq!(rig.told.lock().resets, resets + 1);
    assert_eq!(rig.doorbells(), 0);
}

#[test]
fn partial_writes_of_registers_do_nothing() {
    let rig = Rig::new();
    rig.write(rig.common + 0x10, &[1]);
    assert_eq!(rig.u16_at(0x10), NO_VECTOR);
    rig.write(rig.common + 0x20, &[1, 2]);
    assert_eq!(rig.read(rig.common + 0x20), [0; 8]);
    rig.write(rig.common + 0x20, &0x1122_3344_5566_7788_u64.to_le_bytes());
    assert_eq!(rig.read(rig.common + 0x20), 0x1122_3344_5566_7788_u64.to_le_bytes(), "wide is fine");
    assert_eq!(rig.read(rig.common + 0x22), [0x66, 0x55], "so are partial reads");
}

#[test]
fn configuration_access_reaches_the_bars() {
    let rig = Rig::new();
    set_command(&rig.bus, SLOT, 0);
    let at = rig.access_at;
    let aim = |bar: u32, offset: u32, len: u32| {
        set_config_u32(&rig.bus, SLOT, at + 4, bar);
        set_config_u32(&rig.bus, SLOT, at + 8, offset);
        set_config_u32(&rig.bus, SLOT, at + 12, len);
    };
    aim(0, 0x12, 2);
    assert_eq!(config_u32(&rig.bus, SLOT, at + 16) & 0xffff, 2, "number of queues");
    aim(0, 0x14, 1);
    set_config_u32(&rig.bus, SLOT, at + 16, 3);
    assert_eq!(config_u32(&rig.bus, SLOT, at + 16) as u8, 3, "device status");
    aim(0, 0x2000, 4);
    assert_eq!(config_u32(&rig.bus, SLOT, at + 16), 0x0403_0201, "device configuration");
    for (bar, offset, len) in [(1, 0, 4), (9, 0, 4), (0, 2, 4), (0, 0, 0), (0, 0, 3), (0, 0, 8), (0, u32::MAX, 1)] {
        aim(bar, offset, len);
        set_config_u32(&rig.bus, SLOT, at + 16, 0);
        config_u32(&rig.bus, SLOT, at + 16);
    }
    set_command(&rig.bus, SLOT, 2);
    assert_eq!(rig.status(), 3, "nothing else got through");
}

/// An address in one of the BARs (registers far more often than holes) or anywhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..0x40_u64).prop_map(|at| WINDOW + at),
        1 => (0x1000..0x4000_u64).prop_map(|at| WINDOW + at),
        1 => (0..0x1100_u64).prop_map(|at| WINDOW + 0x4000 + at),
        1 => any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        // What a driver would write: small numbers, of every register width.
        3 => (0..16_u64, prop::sample::select(vec![1, 2, 4, 8_usize]))
            .prop_map(|(value, len)| value.to_le_bytes()[..len].to_vec()),
        2 => prop::collection::vec(any::<u8>(), 1..=8),
        1 => (1..=8_usize).prop_map(|len| vec![0xff; len]),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_the_transport(
        writes in prop::collection::vec((any::<bool>(), address(), 0x40..0x110_u64, value()), 1..80),
        negotiated in any::<bool>(),
    ) {
        let rig = Rig::new();
        if negotiated {
            rig.negotiate();
        }
        for (mmio, address, register, data) in writes {
            if mmio {
                rig.bus.mmio_write(address, &data);
                rig.bus.mmio_read(address, &mut vec![0; data.len()]);
            } else {
                rig.bus.ecam_write(u64::from(SLOT) << 15 | register, &data);
                rig.bus.ecam_read(u64::from(SLOT) << 15 | register, &mut vec![0; data.len()]);
            }
            // Writes may have reset the function; a driver that comes later can still look.
            set_config_u32(&rig.bus, SLOT, 0x10, WINDOW as u32);
            set_config_u32(&rig.bus, SLOT, 0x14, (WINDOW >> 32) as u32);
            set_command(&rig.bus, SLOT, 6);
            set_config_u32(&rig.bus, SLOT, rig.power_at + 4, 0);
            let status = rig.status();
            prop_assert!(status & 0x04 == 0 || status & 0x0b == 0x0b, "status {status:#x}");
            prop_assert!(status & 0x30 == 0, "reserved bits in status {status:#x}");
            prop_assert_eq!(config_u32(&rig.bus, SLOT, 0), 0x1042_1af4);
            prop_assert_eq!(rig.doorbells(), 2);
            let told = rig.told.lock();
            prop_assert!(told.activation.is_none() || status & 4 != 0, "runs without DRIVER_OK");
            if let Some(activation) = &told.activation {
                prop_assert_eq!(activation.features & !(0x15 | 1 << 29 | 1 << 32), 0);
                prop_assert!(activation.queues.iter().all(|queue| queue.queue.size().is_power_of_two()));
            }
        }
        rig.set_status(0);
        rig.start();
        prop_assert_eq!(rig.status(), 0xf, "a reset heals whatever was done");
    }
}

#[test]
fn features_are_told_at_features_ok_and_with_driver_ok_at_once() {
    let rig = Rig::new();
    let features = || rig.told.lock().features;
    rig.set_status(3);
    rig.accept(0, 0x5);
    rig.accept(1, 1);
    assert_eq!(features(), None);
    rig.set_status(0xb);
    assert_eq!(features(), Some(0x5 | 1 << 32));
    rig.set_status(0);
    assert_eq!(features(), None);
    // Both bits by one write: the device hears of the features first.
    rig.accept(0, 0x1);
    rig.accept(1, 1);
    rig.set_status(0xf);
    assert_eq!(features(), Some(0x1 | 1 << 32));
}

#[test]
fn the_generation_moves_at_any_time_and_is_announced_only_after_driver_ok() {
    let rig = Rig::new();
    let interrupt = rig.told.lock().interrupt.clone().unwrap();
    let generation = || rig.read::<1>(rig.common + 0x15)[0];
    for (status, told) in [(1, 0), (3, 0), (0xb, 0), (0xf, 1), (0, 0)] {
        if status == 0xb {
            rig.accept(1, 1);
        }
        if status == 0xf {
            rig.set_u16(0x10, 0);
            rig.queue(0, [0x1000, 0x2000, 0x3000]);
        }
        rig.set_status(status);
        let before = generation();
        interrupt.change_config(&mut || ());
        assert_eq!(generation(), before.wrapping_add(1), "status {status:#x}");
        assert_eq!((rig.router.take().len(), rig.read::<1>(rig.isr)[0] >> 1), (told, told as u8), "status {status:#x}");
    }
}

/// virtio 1.2 §4.1.4.3.1: a driver reads a field of 64 bits by halves, and again when the generation has moved. Its accesses for the
/// first half come before the change, or within it and before its store; those for the second half come after the store.
fn half_by_half(first_half_within: bool) {
    const NEW: u64 = 0x2222_2222_2222_2222;
    let rig = Rig::new();
    let interrupt = rig.told.lock().interrupt.clone().unwrap();
    let generation = || rig.read::<1>(rig.common + 0x15)[0];
    let half = |at| u32::from_le_bytes(rig.read(rig.device + at));
    let (first, second) = (AtomicBool::new(false), AtomicBool::new(false));
    let done = AtomicUsize::new(0);
    // The driver may have to wait until the change is over: then nobody waits for it here for long.
    let until = |count| {
        let end = Instant::now() + Duration::from_millis(100);
        while done.load(Ordering::Acquire) < count && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(20));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let wait = |flag: &AtomicBool| {
                while !flag.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_micros(20));
                }
            };
            wait(&first);
            let (before, low) = (generation(), half(8));
            done.store(1, Ordering::Release);
            wait(&second);
            let (high, after) = (half(12), generation());
            done.store(2, Ordering::Release);
            assert!(before != after || low == high, "{low:#x} and {high:#x} under generation {before}");
        });
        if !first_half_within {
            first.store(true, Ordering::Release);
            until(1);
        }
        interrupt.change_config(&mut || {
            first.store(true, Ordering::Release);
            until(1);
            rig.word.store(NEW, Ordering::Relaxed);
            second.store(true, Ordering::Release);
            until(2);
        });
    });
    assert_eq!((half(8), half(12)), (NEW as u32, NEW as u32));
}

#[test]
fn a_wide_field_read_by_halves_is_never_torn() {
    half_by_half(false);
    half_by_half(true);
}
