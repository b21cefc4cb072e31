// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pair transitions as a table (contract 6.4, 15.2, 15.3): which fields each takes always, and which only with a mask bit.
//!
//! The driver zeroes the context for every command and fills only what the verbs call had, so that nothing else may be copied.

use super::CommandError;
use super::qp::{Named, find_qp, load, refuse, refuse_ece};
use super::request::{Reply, Request};
use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::cmd::{Opcode, in_header};
use mlx5_spec::qp::{
    ADS_SIZE, PRIMARY_PATH, QPC_SIZE, ads, modify_in, modify_out, mtu, opt_param_mask as mask, pm_state, qpc,
    service_type, state, to_state_in,
};

/// Services for which a rule holds: bit n = service type n.
type Services = u32;

const RC: Services = 1 << service_type::RC | 1 << service_type::XRC | 1 << service_type::DCI;
const UC: Services = 1 << service_type::UC;
const DATAGRAM: Services = 1 << service_type::UD | 1 << service_type::QP0 | 1 << service_type::QP1;
const UMR: Services = 1 << service_type::REG_UMR;
const ALL: Services = u32::MAX;
const CONNECTED: Services = RC | UC | UMR;

/// What of the command's context goes into the queue pair's.
#[derive(Clone, Copy)]
enum Take {
    /// The field.
    Field(Field),
    /// The field unless it is zero: then what CREATE named stays (contract 15.3).
    Named(Field),
    /// The same for 64 bits.
    Named64(Field64),
    /// The address path at this offset, but for its P_Key index, and its port unless zero.
    Path(usize),
}

/// A rule: what, for which services, with which mask bits (0: always).
type Rule = (Take, Services, u32);

struct Transition {
    opcode: Opcode,
    from: u32,
    to: u32,
    rules: &'static [Rule],
}

const PATH_PKEY: Field = ads::PKEY_INDEX.plus(PRIMARY_PATH);
const PATH_PORT: Field = ads::VHCA_PORT_NUM.plus(PRIMARY_PATH);
const PATH_TIMEOUT: Field = ads::ACK_TIMEOUT.plus(PRIMARY_PATH);

const READ_RIGHT: Rule = (Take::Field(qpc::RRE), ALL, mask::RRE);
const WRITE_RIGHT: Rule = (Take::Field(qpc::RWE), ALL, mask::RWE);
const ATOMIC_RIGHT: Rule = (Take::Field(qpc::RAE), ALL, mask::RAE);
const ATOMIC_MODE: Rule = (Take::Field(qpc::ATOMIC_MODE), ALL, mask::RAE);
const PKEY: Rule = (Take::Field(PATH_PKEY), ALL, mask::PKEY_INDEX);
const QKEY: Rule = (Take::Field(qpc::Q_KEY), DATAGRAM, mask::Q_KEY);
const RNR_TIMER: Rule = (Take::Field(qpc::MIN_RNR_NAK), RC, mask::RNR_TIMEOUT);
const MIGRATION: Rule = (Take::Field(qpc::PM_STATE), ALL, mask::PM_STATE);
const COUNTER: Rule = (Take::Field(qpc::COUNTER_SET_ID), ALL, mask::COUNTER_SET_ID);

const fn always(field: Field) -> Rule {
    (Take::Field(field), ALL, 0)
}

const fn always_for(services: Services, field: Field) -> Rule {
    (Take::Field(field), services, 0)
}

const RST2INIT: &[Rule] = &[
    always(qpc::PM_STATE),
    // CREATE named it for all but UMR queue pairs; a program's own command says it once.
    (Take::Named(qpc::PD), ALL, 0),
    (Take::Named(qpc::CQN_SND), ALL, 0),
    (Take::Named(qpc::CQN_RCV), ALL, 0),
    // Zero if the queue pair has no receive queue: then CREATE's holds.
    (Take::Named64(qpc::DBR_ADDR), ALL, 0),
    always(PATH_PORT),
    always(PATH_PKEY),
    always(qpc::RRE),
    always(qpc::RWE),
    always(qpc::RAE),
    always(qpc::ATOMIC_MODE),
    always(qpc::Q_KEY),
    always(qpc::COUNTER_SET_ID),
    always(qpc::LOG_ACK_REQ_FREQ),
    always(qpc::DETH_SQPN),
    always(qpc::RLKY),
    always_for(DATAGRAM | UMR, qpc::MTU),
    always_for(DATAGRAM | UMR, qpc::LOG_MSG_MAX),
];
const INIT2INIT: &[Rule] =
    &[READ_RIGHT, WRITE_RIGHT, ATOMIC_RIGHT, ATOMIC_MODE, PKEY, QKEY, (Take::Field(PATH_PORT), ALL, mask::PRI_PORT)];
const INIT2RTR: &[Rule] = &[
    always(qpc::MTU),
    always(qpc::LOG_MSG_MAX),
    always_for(CONNECTED, qpc::REMOTE_QPN),
    (Take::Path(PRIMARY_PATH), CONNECTED, 0),
    always_for(CONNECTED, qpc::NEXT_RCV_PSN),
    always_for(RC, qpc::LOG_RRA_MAX),
    always_for(RC, qpc::MIN_RNR_NAK),
    READ_RIGHT,
    WRITE_RIGHT,
    ATOMIC_RIGHT,
    ATOMIC_MODE,
    PKEY,
    QKEY,
];
const RTR2RTS: &[Rule] = &[
    always(qpc::NEXT_SEND_PSN),
    // The rest of the path is zero here and must not be taken (contract T4).
    always_for(RC, PATH_TIMEOUT),
    always_for(RC, qpc::RETRY_COUNT),
    always_for(RC, qpc::RNR_RETRY),
    always_for(RC, qpc::LOG_SRA_MAX),
    always_for(DATAGRAM | UMR, qpc::MTU),
    always_for(DATAGRAM | UMR, qpc::LOG_MSG_MAX),
    READ_RIGHT,
    WRITE_RIGHT,
    ATOMIC_RIGHT,
    ATOMIC_MODE,
    MIGRATION,
    RNR_TIMER,
    QKEY,
];
const RTS2RTS: &[Rule] =
    &[READ_RIGHT, WRITE_RIGHT, ATOMIC_RIGHT, ATOMIC_MODE, PKEY, QKEY, MIGRATION, RNR_TIMER, COUNTER];
/// From SQ error and from drained: what RTS2RTS takes, and what may be changed while nothing is sent.
const BACK_TO_RTS: &[Rule] = &[
    READ_RIGHT,
    WRITE_RIGHT,
    ATOMIC_RIGHT,
    ATOMIC_MODE,
    PKEY,
    QKEY,
    MIGRATION,
    RNR_TIMER,
    (Take::Path(PRIMARY_PATH), RC | UC, mask::PRIMARY_ADDR_PATH),
    (Take::Field(qpc::RETRY_COUNT), RC, mask::RETRY_COUNT),
    (Take::Field(qpc::RNR_RETRY), RC, mask::RNR_RETRY),
    (Take::Field(PATH_TIMEOUT), RC, mask::ACK_TIMEOUT),
    (Take::Field(qpc::LOG_SRA_MAX), RC, mask::SRA_MAX),
    (Take::Field(qpc::LOG_RRA_MAX), RC, mask::RRA_MAX),
];

const fn step(opcode: Opcode, from: u32, to: u32, rules: &'static [Rule]) -> Transition {
    Transition { opcode, from, to, rules }
}

const TRANSITIONS: &[Transition] = &[
    step(Opcode::RST2INIT_QP, state::RST, state::INIT, RST2INIT),
    step(Opcode::INIT2INIT_QP, state::INIT, state::INIT, INIT2INIT),
    step(Opcode::INIT2RTR_QP, state::INIT, state::RTR, INIT2RTR),
    step(Opcode::RTR2RTS_QP, state::RTR, state::RTS, RTR2RTS),
    step(Opcode::RTS2RTS_QP, state::RTS, state::RTS, RTS2RTS),
    step(Opcode::SQERR2RTS_QP, state::SQER, state::RTS, BACK_TO_RTS),
    step(Opcode::SQD_RTS_QP, state::SQD, state::RTS, BACK_TO_RTS),
];

/// Copies what the rules say from `asked` to `context`.
fn apply(rules: &[Rule], service: u32, mask: u32, asked: &[u8], context: &mut [u8]) {
    let holds = |services: Services, bits: u32| services >> service & 1 == 1 && (bits == 0 || mask & bits != 0);
    for (take, ..) in rules.iter().filter(|(_, services, bits)| holds(*services, *bits)) {
        match *take {
            Take::Field(field) => field.set(context, field.get(asked)),
            Take::Named(field) if !field.is_set(asked) => {}
            Take::Named(field) => field.set(context, field.get(asked)),
            Take::Named64(field) if field.get(asked) == 0 => {}
            Take::Named64(field) => field.set(context, field.get(asked)),
            Take::Path(at) => take_path(at, asked, context),
        }
    }
}

fn take_path(at: usize, asked: &[u8], context: &mut [u8]) {
    let (pkey, port) = (ads::PKEY_INDEX.plus(at), ads::VHCA_PORT_NUM.plus(at));
    let kept = (pkey.get(context), port.get(context));
    if let (Some(to), Some(from)) = (context.get_mut(at..at + ADS_SIZE), asked.get(at..at + ADS_SIZE)) {
        to.copy_from_slice(from);
    }
    pkey.set(context, kept.0);
    if !port.is_set(asked) {
        port.set(context, kept.1);
    }
}

/// Path migration is not offered (apm is 0): there is no alternate path, and a queue pair stays migrated.
fn refuse_migration(mask: u32, asked: &[u8]) -> Result<(), CommandError> {
    let armed = mask & mask::PM_STATE != 0 && qpc::PM_STATE.get(asked) != pm_state::MIGRATED;
    if armed || mask & mask::ALT_ADDR_PATH != 0 {
        return Err(CommandError::Param("path migration is not offered"));
    }
    Ok(())
}

/// The transitions that carry a context.
pub fn transition(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let opcode = Opcode(request.get(in_header::OPCODE) as u16);
    let transition = TRANSITIONS.iter().find(|transition| transition.opcode == opcode);
    let transition = transition.ok_or(CommandError::Unsupported(opcode))?;
    let qpn = request.get(modify_in::QPN);
    let qp = find_qp(request, qpn)?;
    let asked = request.part(modify_in::QPC, QPC_SIZE)?;
    refuse(request, modify_in::QPC)?;
    refuse_ece(request, modify_in::ECE)?;
    refuse_migration(request.get(modify_in::OPT_PARAM_MASK), asked)?;
    let mut context = qp.context.lock().clone();
    apply(transition.rules, qp.service, request.get(modify_in::OPT_PARAM_MASK), asked, &mut context);
    if transition.opcode == Opcode::INIT2RTR_QP && RC >> qp.service & 1 == 1 {
        let known = (mtu::BYTES_256..=mtu::BYTES_4096).contains(&qpc::MTU.get(&context));
        known.then_some(()).ok_or(CommandError::Param("MTU code is 1 to 5"))?;
    }
    let named = Named::find(request, &context, false)?;
    // An engine may have moved the queue pair to ERR a moment ago: the state is judged where it is changed.
    let mut found = None;
    request.hca.change_qp(&qp, |attrs| {
        found = Some(attrs.state);
        if found == Some(transition.from) {
            load(attrs, &context, &named);
            attrs.state = transition.to;
        }
    });
    match found {
        Some(state) if state == transition.from => {
            *qp.context.lock() = context;
            qp.uses.replace(named.uses);
            Ok(Reply::new(modify_out::SIZE))
        }
        other => Err(CommandError::QpState { qpn, state: other.unwrap_or_default() }),
    }
}

/// 2ERR, from any state: the engine flushes (contract 7.8).
pub fn to_error(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let qp = find_qp(request, request.get(to_state_in::QPN))?;
    request.hca.change_qp(&qp, |attrs| attrs.state = state::ERR);
    Ok(Reply::ok())
}

/// 2RST, from any state: when it is answered nothing of the queue pair is in flight and no CQE of it follows.
pub fn to_reset(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    let qp = find_qp(request, request.get(to_state_in::QPN))?;
    let incarnation = request.settings.incarnation();
    request.hca.change_qp(&qp, |attrs| {
        attrs.state = state::RST;
        attrs.incarnation = incarnation;
    });
    Ok(Reply::ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rules: &[Rule], service: u32, mask: u32, asked: &[u8], context: &[u8]) -> Vec<u8> {
        let mut context = context.to_vec();
        apply(rules, service, mask, asked, &mut context);
        context
    }

    #[test]
    fn rtr2rts_keeps_the_path_and_the_mtu() {
        let mut context = vec![0; QPC_SIZE];
        ads::RLID.plus(PRIMARY_PATH).set(&mut context, 7);
        qpc::MTU.set(&mut context, mtu::BYTES_1024);
        let mut asked = vec![0; QPC_SIZE];
        PATH_TIMEOUT.set(&mut asked, 14);
        qpc::RETRY_COUNT.set(&mut asked, 6);
        let context = after(RTR2RTS, service_type::RC, 0, &asked, &context);
        assert_eq!(ads::RLID.plus(PRIMARY_PATH).get(&context), 7);
        assert_eq!(qpc::MTU.get(&context), mtu::BYTES_1024);
        assert_eq!((PATH_TIMEOUT.get(&context), qpc::RETRY_COUNT.get(&context)), (14, 6));
    }

    #[test]
    fn rights_come_only_with_their_mask_bits() {
        let mut asked = vec![0; QPC_SIZE];
        for field in [qpc::RRE, qpc::RWE, qpc::RAE, qpc::ATOMIC_MODE] {
            field.set(&mut asked, 1);
        }
        let none = after(INIT2RTR, service_type::RC, 0, &asked, &[0; QPC_SIZE]);
        assert!(!qpc::RRE.is_set(&none) && !qpc::RWE.is_set(&none) && !qpc::RAE.is_set(&none));
        let atomic = after(INIT2RTR, service_type::RC, mask::RAE, &asked, &[0; QPC_SIZE]);
        assert!(qpc::RAE.is_set(&atomic) && qpc::ATOMIC_MODE.is_set(&atomic) && !qpc::RRE.is_set(&atomic));
    }

    #[test]
    fn init2rtr_takes_the_path_but_not_the_pkey_index_without_its_bit() {
        let mut asked = vec![0; QPC_SIZE];
        ads::RLID.plus(PRIMARY_PATH).set(&mut asked, 9);
        PATH_PKEY.set(&mut asked, 0);
        let mut context = vec![0; QPC_SIZE];
        PATH_PKEY.set(&mut context, 3);
        PATH_PORT.set(&mut context, 1);
        let taken = after(INIT2RTR, service_type::RC, 0, &asked, &context);
        assert_eq!(ads::RLID.plus(PRIMARY_PATH).get(&taken), 9);
        assert_eq!((PATH_PKEY.get(&taken), PATH_PORT.get(&taken)), (3, 1));
        let taken = after(INIT2RTR, service_type::RC, mask::PKEY_INDEX, &asked, &context);
        assert_eq!(PATH_PKEY.get(&taken), 0);
    }

    #[test]
    fn rst2init_keeps_a_cq_that_the_command_leaves_out() {
        let mut context = vec![0; QPC_SIZE];
        qpc::CQN_RCV.set(&mut context, 0x81);
        let mut asked = vec![0; QPC_SIZE];
        qpc::CQN_SND.set(&mut asked, 0x82);
        let context = after(RST2INIT, service_type::REG_UMR, 0, &asked, &context);
        assert_eq!((qpc::CQN_RCV.get(&context), qpc::CQN_SND.get(&context)), (0x81, 0x82));
    }
}
