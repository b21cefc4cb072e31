// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases drawn from public bug reports on virtio-pci transports that need no real device behind the transport. Each asserts what
//! virtio 1.2 says: a failure is a finding.

use super::testing::Rig;

const NO_VECTOR: u16 = 0xffff;

/// cloud-hypervisor 082fdc4d0, pci0009, pci0052, pci0087.
#[test]
fn c14_queue_select_beyond() {
    let rig = Rig::new();
    rig.start();
    for queue in [2u16, 3, 0x7fff, 0x8000, 0xffff] {
        rig.set_u16(0x16, queue);
        assert_eq!(rig.u16_at(0x16), queue);
        for offset in [0x18, 0x1c, 0x1e] {
            assert_eq!(rig.u16_at(offset), 0, "queue {queue:#x} register {offset:#x}");
            rig.set_u16(offset, 1);
            assert_eq!(rig.u16_at(offset), 0, "queue {queue:#x} register {offset:#x}");
        }
        rig.set_u16(0x1a, 1);
        assert_eq!(rig.u16_at(0x1a), NO_VECTOR);
        for offset in [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34] {
            rig.set_u32(offset, 0x1000);
            assert_eq!(rig.read(rig.common + offset), [0; 4]);
        }
    }
    for queue in [0u16, 1] {
        rig.set_u16(0x16, queue);
        assert_eq!((rig.u16_at(0x18), rig.u16_at(0x1c), rig.u16_at(0x1a)), (64, 1, queue + 1));
    }
    assert_eq!(rig.status(), 0xf);
}

/// cloud-hypervisor 8138: a vector beyond the table reads back as none, also where a good one was, also of a running device.
#[test]
fn c14_vectors_beyond_the_table() {
    let rig = Rig::new();
    rig.start();
    for bad in [3u16, 4, 0x7ff, 0x800, 0x7fff, 0xfffe] {
        rig.set_u16(0x10, 2);
        rig.set_u16(0x10, bad);
        assert_eq!(rig.u16_at(0x10), NO_VECTOR, "{bad:#x}");
        rig.set_u16(0x16, 0);
        rig.set_u16(0x1a, 1);
        rig.set_u16(0x1a, bad);
        assert_eq!(rig.u16_at(0x1a), NO_VECTOR, "{bad:#x}");
    }
    let interrupt = rig.told.lock().activation.as_ref().unwrap().interrupt.clone();
    interrupt.used(0);
    interrupt.change_config(&mut || ());
    assert!(rig.router.take().is_empty());
    // One vector for all.
    rig.set_u16(0x10, 1);
    rig.set_u16(0x1a, 1);
    interrupt.used(0);
    interrupt.change_config(&mut || ());
    interrupt.used(1);
    assert_eq!(rig.router.take(), [1, 1, 2]);
}

/// cloud-hypervisor 8131: table and pending bits by accesses of 1 and 2 bytes, and across.
#[test]
fn c14_mis_sized_accesses_of_the_vector_table() {
    let rig = Rig::new();
    let before: Vec<[u8; 4]> = (0..12).map(|dword| rig.read(rig.msix + dword * 4)).collect();
    for offset in (0..0x40).chain(0x7f0..0x820).chain(0xff0..0x1000) {
        for len in 1..=8usize {
            if matches!(len, 4 | 8) && offset % len as u64 == 0 {
                continue;
            }
            rig.bus.mmio_write(rig.msix + offset, &vec![0xa5; len]);
            let mut data = vec![0; len];
            rig.bus.mmio_read(rig.msix + offset, &mut data);
            assert!(data.iter().all(|byte| *byte == 0xff), "{offset:#x} {len}");
        }
    }
    let after: Vec<[u8; 4]> = (0..12).map(|dword| rig.read(rig.msix + dword * 4)).collect();
    assert_eq!(before, after);
    // Pending bits are read-only.
    rig.write(rig.msix + 0x800, &[0xff; 8]);
    assert_eq!(rig.read(rig.msix + 0x800), [0; 8]);
    rig.start();
    let interrupt = rig.told.lock().activation.as_ref().unwrap().interrupt.clone();
    interrupt.used(0);
    assert_eq!(rig.router.take(), [1]);
}

/// A queue that was enabled before a reset is not enabled after it (OpenVMM e29e332d1), and a status of FAILED stays.
#[test]
fn c14_status_bits() {
    let rig = Rig::new();
    rig.set_status(0x30);
    assert_eq!(rig.status(), 0, "reserved bits");
    rig.start();
    rig.set_status(0x8f);
    assert_eq!(rig.status(), 0x8f);
    rig.set_status(0);
    assert_eq!((rig.status(), rig.u16_at(0x1c)), (0, 0));
}
