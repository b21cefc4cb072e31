// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers behind ACCESS_REG (contract 4.3).

use super::CommandError;
use super::request::{Reply, Request};
use crate::hca::Hca;
use crate::port::{Reader, Traffic};
use mlx5_spec::bits::Field;
use mlx5_spec::reg::{
    access_in, access_out, ib_port_counters, ib_proto, ib_width, id, node_desc, op_mod, pmtu, ppcnt, ppcnt_grp, ptys,
    pvlc,
};

/// Bytes of the port's largest MTU.
const MTU: u32 = 4096;

enum Register {
    /// Reads as these fields; writes are accepted and change nothing.
    Fixed(&'static [(Field, u32)]),
    NodeDescription,
    /// Of the groups of counters it has that of InfiniBand ports; others stand at zero.
    PortCounters,
}

const REGISTERS: &[(u32, usize, Register)] = &[
    (
        id::PTYS,
        ptys::SIZE,
        Register::Fixed(&[
            (ptys::IB_LINK_WIDTH_CAPABILITY, ib_width::X1 | ib_width::X4),
            (ptys::IB_PROTO_CAPABILITY, PROTOCOLS),
            (ptys::IB_LINK_WIDTH_ADMIN, ib_width::X1 | ib_width::X4),
            (ptys::IB_PROTO_ADMIN, PROTOCOLS),
            (ptys::IB_LINK_WIDTH_OPER, ib_width::X4),
            (ptys::IB_PROTO_OPER, ib_proto::EDR),
        ]),
    ),
    (id::PMTU, pmtu::SIZE, Register::Fixed(&[(pmtu::MAX_MTU, MTU), (pmtu::ADMIN_MTU, MTU), (pmtu::OPER_MTU, MTU)])),
    (id::PVLC, pvlc::SIZE, Register::Fixed(&[(pvlc::VL_HW_CAP, 4), (pvlc::VL_ADMIN, 4), (pvlc::VL_OPERATIONAL, 4)])),
    (id::NODE_DESC, node_desc::SIZE, Register::NodeDescription),
    (id::HOST_ENDIANNESS, 16, Register::Fixed(&[])),
    (id::PPCNT, ppcnt::SIZE, Register::PortCounters),
];

const PROTOCOLS: u32 = ib_proto::SDR | ib_proto::DDR | ib_proto::QDR | ib_proto::FDR10 | ib_proto::FDR | ib_proto::EDR;

/// ACCESS_REG.
pub fn access(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let wanted = request.get(access_in::REGISTER_ID);
    let register = REGISTERS.iter().find(|(register, ..)| *register == wanted);
    let (_, size, register) = register.ok_or(CommandError::Param("no such register"))?;
    let data = request.part(access_in::REGISTER_DATA, *size)?;
    request.room_for(access_out::REGISTER_DATA + size)?;
    // What the driver sent comes back with what the register says: port number and group are echoed.
    let mut answer = data.to_vec();
    match request.op_mod() {
        op_mod::READ => read(register, request, &mut answer),
        op_mod::WRITE => write(register, request.hca, data),
        _ => return Err(CommandError::Param("op_mod is 0 or 1")),
    }
    Ok(Reply::new(access_out::REGISTER_DATA + size).with_bytes(access_out::REGISTER_DATA, &answer))
}

fn read(register: &Register, request: &Request<'_>, answer: &mut [u8]) {
    match register {
        Register::Fixed(fields) => fields.iter().for_each(|(field, value)| field.set(answer, *value)),
        Register::NodeDescription => {
            answer.iter_mut().zip(request.hca.port.identity.lock().node_desc).for_each(|(to, from)| *to = from);
        }
        Register::PortCounters => port_counters(&request.hca.port.traffic, answer),
    }
}

/// Counters of the IBTA's PortCounters attribute stop at their highest value (16.1.3.5).
fn port_counters(traffic: &Traffic, answer: &mut [u8]) {
    use ib_port_counters as counters;
    if ppcnt::GRP.get(answer) != ppcnt_grp::IB_PORT_COUNTERS {
        return;
    }
    let seen = traffic.seen_by(Reader::Register, ppcnt::CLR.is_set(answer));
    for (field, value, most) in [
        (counters::LINK_DOWNED_COUNTER, seen.downs, 0xff),
        (counters::PORT_XMIT_DATA, seen.sent.octets / 4, u64::from(u32::MAX)),
        (counters::PORT_RCV_DATA, seen.received.octets / 4, u64::from(u32::MAX)),
        (counters::PORT_XMIT_PKTS, seen.sent.packets, u64::from(u32::MAX)),
        (counters::PORT_RCV_PKTS, seen.received.packets, u64::from(u32::MAX)),
    ] {
        field.plus(ppcnt::COUNTER_SET).set(answer, value.min(most) as u32);
    }
}

fn write(register: &Register, hca: &Hca, data: &[u8]) {
    if let Register::NodeDescription = register {
        hca.port.identity.lock().node_desc.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    }
}
