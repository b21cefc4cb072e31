// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases drawn from public bug reports on virtio-pci transports. Each asserts what virtio 1.2 says: a failure is a finding.

use std::time::{Duration, Instant};

use pci::testing::{config_u32, set_config_u32};
use probe::ledger::Ledger;
use virtio::testing::{Rig, SLOT};

use crate::{BlockDevice, DiskConfig, DiskHandle};

/// A real disk behind the transport.
fn disk() -> (Rig, DiskHandle, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(64 * 512).unwrap();
    let mut config = DiskConfig::new(path);
    config.queue_size = 64;
    config.queues = 2;
    let (device, handle) = BlockDevice::open(0, config, Ledger::new()).unwrap();
    (Rig::with(Box::new(device)), handle, dir)
}

/// Up to FEATURES_OK with what a disk offers.
fn negotiate(rig: &Rig) {
    rig.set_status(1);
    rig.set_status(3);
    rig.accept(0, 1 << 2 | 1 << 9 | 1 << 29);
    rig.accept(1, 1);
    rig.set_status(0xb);
    assert_eq!(rig.status(), 0xb);
}

fn start(rig: &Rig) {
    negotiate(rig);
    rig.set_u16(0x10, 0);
    for (queue, base) in [(0u16, 0x1_0000u64), (1, 0x2_0000)] {
        rig.queue(queue, [base, base + 0x1000, base + 0x2000]);
    }
    rig.set_status(0xf);
}

/// OpenVMM 4049 (PCI0114): ISR right after DRIVER_OK.
#[test]
fn c14_isr_is_zero_at_driver_ok() {
    let rig = Rig::new();
    rig.start();
    assert_eq!(rig.read(rig.isr), [0]);
    let (rig, ..) = disk();
    for msix in [1u32 << 31, 0] {
        set_config_u32(&rig.bus, SLOT, rig.msix_at, msix);
        start(&rig);
        assert_eq!(rig.status(), 0xf);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(rig.read(rig.isr), [0]);
        rig.set_status(0);
        assert_eq!(rig.read(rig.isr), [0]);
    }
}

/// pci0028: kick, then at once status 0; 0 within 100 ms; then all over again.
#[test]
fn c14_kick_then_reset() {
    let (rig, handle, _dir) = disk();
    let mut times = Vec::new();
    for round in 0..200u64 {
        start(&rig);
        assert_eq!(rig.status(), 0xf, "round {round}");
        for _ in 0..=round % 3 {
            rig.write(rig.notify, &0u16.to_le_bytes());
            rig.write(rig.notify + 4, &1u16.to_le_bytes());
        }
        let begun = Instant::now();
        rig.set_status(0);
        assert_eq!(rig.status(), 0, "round {round}");
        times.push(begun.elapsed());
        assert_eq!((rig.u16_at(0x1c), rig.u16_at(0x18)), (0, 64));
    }
    // Half of them: a busy host may hold up single ones.
    times.sort_unstable();
    assert!(times[100] < Duration::from_millis(100), "{times:?}");
    assert_eq!(handle.stats().failures, 0);
}

/// cloud-hypervisor 8190: DRIVER_OK without any queue; and again after a reset. The VMM must live, a reset must heal.
#[test]
fn c14_driver_ok_without_queues() {
    let (rig, ..) = disk();
    for _ in 0..3 {
        negotiate(&rig);
        rig.set_u16(0x10, 0);
        rig.set_status(0xf);
        println!(
            "DRIVER_OK without a queue: status {:#x}, ISR {:x?}, messages {:?}",
            rig.status(),
            rig.read::<1>(rig.isr),
            rig.router.take()
        );
        rig.write(rig.notify, &0u16.to_le_bytes());
        rig.set_status(0);
        assert_eq!(rig.status(), 0);
    }
    start(&rig);
    assert_eq!(rig.status(), 0xf);
    // The second queue alone is fine.
    rig.set_status(0);
    negotiate(&rig);
    rig.queue(1, [0x4000, 0x5000, 0x6000]);
    rig.set_status(0xf);
    assert_eq!(rig.status(), 0xf);
}

/// cloud-hypervisor 8272, 8238; pci0080 to pci0084; virtio 1.2 4.1.4.9.
#[test]
fn c14_configuration_access_window() {
    let (rig, ..) = disk();
    let at = rig.access_at;
    let head = config_u32(&rig.bus, SLOT, at);
    assert_eq!((head as u8, head >> 16 & 0xff, head >> 24), (9, 20, 5), "vendor capability of 20 bytes, type 5");
    let next = head as u16 >> 8 & 0xff;
    assert!(next == 0 || next >= at + 20);
    let aim = |bar: u32, offset: u32, len: u32| {
        rig.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(at + 4), &[bar as u8]);
        set_config_u32(&rig.bus, SLOT, at + 8, offset);
        set_config_u32(&rig.bus, SLOT, at + 12, len);
    };
    let window = |len: usize, offset: u16| {
        let mut data = vec![0xee; len];
        rig.bus.ecam_read(u64::from(SLOT) << 15 | u64::from(at + 16 + offset), &mut data);
        data
    };
    // Number of queues by each width, read by each width.
    for read in [1, 2, 4] {
        aim(0, 0x12, 2);
        assert_eq!(window(read, 0)[..read.min(2)], [2, 0][..read.min(2)], "read by {read}");
        aim(0, 0x12, 1);
        assert_eq!(window(read, 0)[0], 2);
    }
    aim(0, 0x2000, 4);
    assert_eq!(window(4, 0), [64, 0, 0, 0], "capacity");
    // Its device-specific part too: blk_size at 20 by halves.
    aim(0, 0x2000 + 20, 2);
    assert_eq!(window(2, 0), [0, 2]);
    // Not these widths, and nothing that is not aligned to them.
    for len in [0u32, 3, 5, 6, 7, 8, 16, 0x100, 0x1_0001, u32::MAX] {
        aim(0, 0x14, len);
        rig.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(at + 16), &[1]);
        assert_eq!(rig.status(), 0, "a write of length {len:#x} got through");
    }
    // A byte written by a byte.
    aim(0, 0x14, 1);
    rig.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(at + 16), &[1]);
    assert_eq!(rig.status(), 1);
    // The ISR is cleared once by one read of the window, however wide the guest reads it.
    aim(0, 0x1000, 1);
    assert_eq!(window(4, 0)[0], 0);
    // Beyond the BAR, another BAR, the notification region.
    for (bar, offset, len) in
        [(1, 0, 1), (2, 0, 4), (3, 0, 4), (6, 0, 4), (0xff, 0, 4), (0, 0x4000, 4), (0, 0x3ffc, 4), (0, u32::MAX - 3, 4)]
    {
        aim(bar, offset, len);
        window(4, 0);
        rig.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(at + 16), &[0; 4]);
    }
    assert_eq!(rig.status(), 1);
    // A kick through the window reaches its queue.
    let rig2 = Rig::new();
    rig2.start();
    let at = rig2.access_at;
    set_config_u32(&rig2.bus, SLOT, at + 4, 0);
    set_config_u32(&rig2.bus, SLOT, at + 8, 0x3004);
    set_config_u32(&rig2.bus, SLOT, at + 12, 2);
    rig2.bus.ecam_write(u64::from(SLOT) << 15 | u64::from(at + 16), &1u16.to_le_bytes());
    let told = rig2.told.lock();
    let queues = &told.activation.as_ref().unwrap().queues;
    assert_eq!(queues[1].kick.read().unwrap(), 1);
    assert!(queues[0].kick.read().is_err());
}

/// cloud-hypervisor 8185: the generation changes with the configuration, also before DRIVER_OK, and a driver that reads a wide field by
/// halves around a change can tell.
#[test]
fn c14_config_generation() {
    let (rig, handle, dir) = disk();
    start(&rig);
    let generation = || rig.read::<1>(rig.common + 0x15)[0];
    let before = generation();
    let next = dir.path().join("next.raw");
    std::fs::File::create(&next).unwrap().set_len(128 * 512).unwrap();
    handle.swap(&next).unwrap();
    assert_ne!(generation(), before);
    assert_eq!(rig.read(rig.device), [128, 0, 0, 0, 0, 0, 0, 0]);
    // Status FEATURES_OK, not yet DRIVER_OK: the driver is reading the configuration just now.
    rig.set_status(0);
    negotiate(&rig);
    let before = generation();
    let capacity: [u8; 4] = rig.read(rig.device);
    let third = dir.path().join("third.raw");
    std::fs::File::create(&third).unwrap().set_len(256 * 512).unwrap();
    handle.swap(&third).unwrap();
    let after: [u8; 4] = rig.read(rig.device);
    assert_ne!(capacity, after);
    assert_ne!(
        generation(),
        before,
        "the capacity has changed between FEATURES_OK and DRIVER_OK, and the generation has not"
    );
}

/// writeback as a driver sees it between FEATURES_OK and DRIVER_OK (C00 by way of the transport).
#[test]
fn c00_writeback_after_features_ok() {
    let (rig, ..) = disk();
    rig.set_status(1);
    rig.set_status(3);
    rig.accept(0, 1 << 11);
    rig.accept(1, 1);
    rig.set_status(0xb);
    assert_eq!(rig.status(), 0xb);
    assert_eq!(rig.read(rig.device + 32), [0], "CONFIG_WCE without FLUSH");
}
