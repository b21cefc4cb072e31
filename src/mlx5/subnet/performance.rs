// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Performance management (IBTA 16.1): a port's counters, for whoever asks over the subnet. The device answers it by itself, as hardware
//! does: the driver's own answer to what reaches it has no header (mlx5_ib of 6.1 to 7.3, seen with perfquery).

use super::Mad;
use super::reply::head;
use crate::port::{Reader, Totals, Traffic};
use mlx5_spec::mad::{
    EXTENDED_WIDTH, PERFORMANCE_DATA, attribute, class, class_port_info, mad, method, performance_attribute,
    port_counters, port_counters_extended as extended, status,
};

/// The one port; 255 means all of them.
const PORT: u32 = 1;
const ALL_PORTS: u32 = 0xff;
/// An answer comes within 4.096 us << this.
const RESPONSE_TIME: u32 = 18;
/// Data is counted in words of 4 bytes.
const WORD: u64 = 4;

/// Whether a datagram to QP1 is for the port itself.
pub fn is_performance(bytes: &[u8]) -> bool {
    bytes.len() >= mad::SIZE
        && mad::MGMT_CLASS.get(bytes) == class::PERF
        && matches!(mad::METHOD.get(bytes), method::GET | method::SET)
}

/// What comes back for `request` from the port with these counters. A Set begins anew: all of them, since they are read together.
pub fn performance(traffic: &Traffic, request: &Mad) -> Mad {
    let mut reply = head(request);
    let mut data = request[PERFORMANCE_DATA..].to_vec();
    let clear = mad::METHOD.get(request) == method::SET;
    match told(traffic, request, clear, &mut data) {
        Ok(()) => {}
        Err(status) => mad::STATUS.set(&mut reply, status),
    }
    reply[PERFORMANCE_DATA..].copy_from_slice(&data);
    reply
}

fn told(traffic: &Traffic, request: &Mad, clear: bool, data: &mut [u8]) -> Result<(), u32> {
    if mad::BASE_VERSION.get(request) != 1 || mad::CLASS_VERSION.get(request) != 1 {
        return Err(status::BAD_VERSION);
    }
    let what = mad::ATTRIBUTE_ID.get(request);
    match what {
        attribute::CLASS_PORT_INFO if clear => return Err(status::UNSUPPORTED_METHOD),
        attribute::CLASS_PORT_INFO => {
            data.fill(0);
            class_port_info::BASE_VERSION.set(data, 1);
            class_port_info::CLASS_VERSION.set(data, 1);
            class_port_info::CAPABILITY_MASK.set(data, EXTENDED_WIDTH);
            class_port_info::RESP_TIME_VALUE.set(data, RESPONSE_TIME);
            return Ok(());
        }
        performance_attribute::PORT_COUNTERS | performance_attribute::PORT_COUNTERS_EXTENDED => {}
        _ => return Err(status::UNSUPPORTED_ATTRIBUTE),
    }
    if !matches!(port_counters::PORT_SELECT.get(data), PORT | ALL_PORTS) {
        return Err(status::INVALID_FIELD);
    }
    let clears = clear && port_counters::COUNTER_SELECT.get(data) != 0;
    let before = traffic.seen_by(Reader::Subnet, clears);
    let seen = if clears { Totals::default() } else { before };
    // What selects stays as it was asked.
    data[4..].fill(0);
    match what {
        performance_attribute::PORT_COUNTERS => narrow(&seen, data),
        _ => wide(&seen, data),
    }
    Ok(())
}

fn narrow(seen: &Totals, data: &mut [u8]) {
    let most = |value: u64, largest: u32| u32::try_from(value).unwrap_or(largest).min(largest);
    port_counters::LINK_DOWNED.set(data, most(seen.downs, 0xff));
    port_counters::PORT_XMIT_DATA.set(data, most(seen.sent.octets / WORD, u32::MAX));
    port_counters::PORT_RCV_DATA.set(data, most(seen.received.octets / WORD, u32::MAX));
    port_counters::PORT_XMIT_PKTS.set(data, most(seen.sent.packets, u32::MAX));
    port_counters::PORT_RCV_PKTS.set(data, most(seen.received.packets, u32::MAX));
}

fn wide(seen: &Totals, data: &mut [u8]) {
    extended::PORT_XMIT_DATA.set(data, seen.sent.octets / WORD);
    extended::PORT_RCV_DATA.set(data, seen.received.octets / WORD);
    extended::PORT_XMIT_PKTS.set(data, seen.sent.packets);
    extended::PORT_RCV_PKTS.set(data, seen.received.packets);
    extended::PORT_UNICAST_XMIT_PKTS.set(data, seen.sent.packets);
    extended::PORT_UNICAST_RCV_PKTS.set(data, seen.received.packets);
}
