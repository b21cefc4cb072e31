// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What follows the negotiated features: the cache mode and its field, before negotiation and after a reset too.

use std::sync::atomic::Ordering;

use virtio::VirtioDevice;

use crate::device::feature::{CONFIG_WCE, DISCARD, FLUSH, VERSION_1, WRITE_ZEROES};
use crate::testing::*;
use crate::{PowerCut, S_OK, S_UNSUPP};

fn writeback(driver: &Driver) -> u8 {
    let mut byte = [0xee];
    driver.device.config_read(32, &mut byte);
    byte[0]
}

/// Whether a completed write of `byte` survives a cruel cut.
fn durable(driver: &mut Driver, byte: u8) -> bool {
    assert_eq!(driver.write_page(0, byte), S_OK);
    let image = driver.image("cut");
    driver.handle.freeze(PowerCut::Cruel, &image).unwrap();
    std::fs::read(&image).unwrap()[..4096] == [byte; 4096]
}

/// virtio 1.2 §5.2.5.2, §5.2.6.2: features, then the mode at FEATURES_OK, then whether the driver may change it.
#[test]
fn the_cache_mode_follows_the_features() {
    let table = [(FLUSH | CONFIG_WCE, 1, true), (FLUSH, 1, false), (CONFIG_WCE, 0, true), (0, 0, false)];
    for (features, mode, may_change) in table {
        let mut driver = Driver::inactive(64, |c| c.track = true);
        driver.features = VERSION_1 | features;
        for round in 1..=2 {
            // The field shows what is offered, and nobody may change it yet.
            driver.device.config_write(32, &[0]);
            assert_eq!(writeback(&driver), 1, "{features:#x}");
            driver.activate();
            assert_eq!(writeback(&driver), mode, "{features:#x}, round {round}");
            assert_eq!(durable(&mut driver, round), mode == 0, "{features:#x}, round {round}");
            driver.device.config_write(32, &[1 - mode]);
            let now = if may_change { 1 - mode } else { mode };
            assert_eq!(writeback(&driver), now, "{features:#x}, round {round}");
            assert_eq!(durable(&mut driver, 0x10 + round), now == 0, "{features:#x}, round {round}");
            driver.device.reset();
        }
    }
}

#[test]
fn request_types_follow_the_features_of_this_negotiation_not_of_the_last() {
    let mut driver = Driver::inactive(64, |_| {});
    let segment = [&0_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]].concat();
    for features in [DISCARD | WRITE_ZEROES, DISCARD, WRITE_ZEROES, 0] {
        driver.features = VERSION_1 | features;
        driver.activate();
        for (kind, bit) in [(crate::testing::DISCARD, DISCARD), (crate::testing::WRITE_ZEROES, WRITE_ZEROES)] {
            driver.put(DATA, &segment);
            let wanted = if features & bit != 0 { S_OK } else { S_UNSUPP };
            assert_eq!(driver.run(kind, 0, &[(DATA, 16)]), wanted, "type {kind}, {features:#x}");
        }
        driver.device.reset();
    }
}

#[test]
fn a_new_capacity_is_told_before_the_device_runs_too() {
    let mut driver = Driver::inactive(64, |_| {});
    let capacity = |driver: &Driver| {
        let mut bytes = [0; 8];
        driver.device.config_read(0, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    for (told, sectors) in [(1, 128), (2, 8)] {
        let next = driver.image(&format!("{sectors}"));
        std::fs::File::create(&next).unwrap().set_len(sectors * 512).unwrap();
        driver.handle.swap(&next).unwrap();
        assert_eq!((capacity(&driver), driver.irq.config.load(Ordering::SeqCst)), (sectors, told));
        driver.activate();
        driver.device.reset();
    }
}
