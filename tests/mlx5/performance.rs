// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Performance management: a port tells its counters to whoever asks over the subnet, as perfquery does.

use mlx5_spec::mad::{
    EXTENDED_WIDTH, PERFORMANCE_DATA as AT, attribute, class, class_port_info, mad, method,
    performance_attribute as counters, port_counters as narrow, port_counters_extended as wide, status,
};
use rnic_testdrive::{Driver, Machine, MachineConfig};
use std::sync::Arc;

use crate::multicast::{Ear, answered, gsi, request};

/// A datagram of 256 bytes with its headers (LRH, BTH, DETH, ICRC), in words of 4 bytes.
const WORDS: u32 = (8 + 12 + 8 + 256 + 4) / 4;

fn asked(gsi: &Ear, lid: u16, what: u32, how: u32, fill: impl FnOnce(&mut [u8])) -> (u32, Vec<u8>) {
    let mut request = request((1, class::PERF), what, how);
    fill(&mut request[AT..]);
    let answer = answered(gsi, lid, &request);
    assert_eq!(mad::METHOD.get(&answer), method::GET | method::RESPONSE);
    (mad::STATUS.get(&answer), answer[AT..].to_vec())
}

#[test]
fn a_port_tells_its_counters_over_the_subnet() {
    let machines = Machine::with_nics(MachineConfig { ram_mib: 128, ..MachineConfig::default() }, 2);
    let drivers: Vec<_> = machines.into_iter().map(|machine| Driver::probe(&Arc::new(machine)).unwrap()).collect();
    let gsi = gsi(&drivers[0]);
    let (said, told) = asked(&gsi, 2, attribute::CLASS_PORT_INFO, method::GET, |_| ());
    assert_eq!((said, class_port_info::BASE_VERSION.get(&told), class_port_info::CLASS_VERSION.get(&told)), (0, 1, 1));
    assert_eq!(class_port_info::CAPABILITY_MASK.get(&told), EXTENDED_WIDTH);
    // What it hears is the questions, and what it answers goes without its driver: nothing is counted that its driver did not send.
    let port = |port| move |data: &mut [u8]| narrow::PORT_SELECT.set(data, port);
    let read = |lid| asked(&gsi, lid, counters::PORT_COUNTERS, method::GET, port(1));
    let (said, own) = read(1);
    let sent = narrow::PORT_XMIT_PKTS.get(&own);
    assert_eq!((said, narrow::PORT_XMIT_DATA.get(&own)), (0, sent * WORDS));
    let again = read(1).1;
    assert!(narrow::PORT_XMIT_PKTS.get(&again) > sent, "a question is traffic");
    // Wide, and from then on anew.
    let (said, told) = asked(&gsi, 1, counters::PORT_COUNTERS_EXTENDED, method::GET, port(0xff));
    assert_eq!((said, wide::PORT_XMIT_DATA.get(&told)), (0, wide::PORT_XMIT_PKTS.get(&told) * u64::from(WORDS)));
    assert_eq!(wide::PORT_UNICAST_XMIT_PKTS.get(&told), wide::PORT_XMIT_PKTS.get(&told));
    let clear = |data: &mut [u8]| {
        narrow::PORT_SELECT.set(data, 1);
        narrow::COUNTER_SELECT.set(data, 0xffff);
    };
    let (said, told) = asked(&gsi, 1, counters::PORT_COUNTERS, method::SET, clear);
    assert_eq!((said, narrow::PORT_XMIT_PKTS.get(&told), narrow::COUNTER_SELECT.get(&told)), (0, 0, 0xffff));
    assert!(narrow::PORT_XMIT_PKTS.get(&read(1).1) < sent + 2);
}

#[test]
fn what_a_port_does_not_count_it_says() {
    let driver = Driver::probe(&crate::scene::machine()).unwrap();
    let gsi = gsi(&driver);
    for (what, how, port, said) in [
        (counters::PORT_COUNTERS, method::GET, 2, status::INVALID_FIELD),
        (counters::PORT_COUNTERS, method::GET, 0, status::INVALID_FIELD),
        (0x15, method::GET, 1, status::UNSUPPORTED_ATTRIBUTE),
        (attribute::CLASS_PORT_INFO, method::SET, 1, status::UNSUPPORTED_METHOD),
    ] {
        let fill = |data: &mut [u8]| narrow::PORT_SELECT.set(data, port);
        assert_eq!(asked(&gsi, 1, what, how, fill).0, said, "{what:#x}");
    }
    let mut old = request((2, class::PERF), counters::PORT_COUNTERS, method::GET);
    narrow::PORT_SELECT.set(&mut old[AT..], 1);
    assert_eq!(mad::STATUS.get(&answered(&gsi, 1, &old)), status::BAD_VERSION);
}
