// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Multicast groups, and the subnet's administration that says who hears them.

use std::sync::Arc;
use std::time::Duration;

use mlx5_spec::caps::cmd_hca_cap as cap;
use mlx5_spec::cmd::{Opcode, status};
use mlx5_spec::cq::{cqe, opcode, syndrome};
use mlx5_spec::mad::{MAD_SIZE, attribute, class, join_state, mad, mc_member_record as member, method, path_record};
use mlx5_spec::qp::{qpc, service_type, state};
use mlx5_spec::small::mcg_in;
use mlx5_spec::wqe::{AV_SIZE, GRH_SIZE, av};
use rnic_testdrive::command::Input;
use rnic_testdrive::{Access, Buffer, Cq, Driver, Machine, MachineConfig, Mr, Qp, QpSpec, Wqe};

use crate::scene::machine;

const QKEY: u32 = 0x0b1b;
const LEN: u64 = 64 << 10;
const VA: u64 = 0x7000_0000_0000;
/// IPoIB's broadcast group.
const BROADCAST: [u8; 16] = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
const MLID: u16 = 0xc000;

fn group(number: u16) -> [u8; 16] {
    let mut gid = BROADCAST;
    gid[12..14].copy_from_slice(&number.to_be_bytes());
    gid
}

fn mcg(driver: &Driver, opcode: Opcode, qpn: u32, gid: &[u8; 16]) -> u8 {
    let input = Input::new(opcode, mcg_in::SIZE).with(mcg_in::QPN, qpn).bytes(mcg_in::MULTICAST_GID.start, gid);
    driver.command(input).err().map_or(status::OK, |error| error.status().unwrap())
}

/// A SEND to a group: every such datagram has a GRH.
fn to_group(gid: &[u8; 16], mlid: u16) -> Wqe {
    let mut bytes = [0; AV_SIZE];
    av::QKEY.set(&mut bytes, QKEY);
    av::EXTENDED.set(&mut bytes, 1);
    av::DQPN.set(&mut bytes, 0xff_ffff);
    av::RLID.set(&mut bytes, mlid.into());
    av::GRH.set(&mut bytes, 1);
    bytes[av::RGID].copy_from_slice(gid);
    Wqe::send().segment(&bytes)
}

/// A queue pair for datagrams with memory of its own, and a completion queue that tells of nothing else.
pub struct Ear {
    cq: Arc<Cq>,
    qp: Qp,
    memory: Buffer,
    mr: Mr,
}

impl Ear {
    fn new(driver: &Arc<Driver>, change: impl Fn(&mut QpSpec)) -> Self {
        let pd = driver.alloc_pd().unwrap();
        let cq = driver.create_cq(6).unwrap();
        let mut spec = QpSpec { service: service_type::UD, qkey: QKEY, ..QpSpec::rc(driver, pd, &cq) };
        change(&mut spec);
        let qp = Qp::create(&driver.context, spec).unwrap();
        qp.connect(qp.peer()).unwrap();
        let memory = driver.machine.guest.scattered(LEN);
        let mr = driver.register(pd, &memory, VA, Access::ALL).unwrap();
        Self { cq, qp, memory, mr }
    }

    fn listens(&self, messages: u64) {
        for at in 0..messages {
            self.qp.receive(&[self.mr.sge(at * 1024, 1024)]);
        }
    }

    /// The next message: its payload.
    fn hears(&self, at: u64, len: u32) -> Vec<u8> {
        let got = self.cq.wait_ok().unwrap();
        assert_eq!(got.byte_count(), len + GRH_SIZE as u32);
        self.memory.bytes(at * 1024 + GRH_SIZE as u64, len.into())
    }
}

#[test]
fn a_group_is_heard_by_who_is_attached() {
    let driver = Driver::probe(&machine()).unwrap();
    let ears: Vec<Ear> = (0..4).map(|_| Ear::new(&driver, |_| ())).collect();
    let [sender, first, second, other] = &ears[..] else { panic!() };
    for ear in [sender, first, second] {
        assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, ear.qp.qpn, &BROADCAST), status::OK);
    }
    assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, other.qp.qpn, &group(1)), status::OK);
    ears.iter().for_each(|ear| ear.listens(4));
    sender.memory.fill_pattern(1);
    sender.memory.fill(0, 4096, 0);
    let send = || to_group(&BROADCAST, MLID).sge(sender.mr.sge(8192, 100));
    sender.qp.post_one(send().signaled());
    let payload = sender.memory.bytes(8192, 100);
    for ear in [first, second] {
        assert_eq!(ear.hears(0, 100), payload);
    }
    // Its own completion, and the message that it has heard itself.
    let both = [sender.cq.wait_ok().unwrap(), sender.cq.wait_ok().unwrap()];
    assert_eq!(both.iter().filter(|cqe| cqe.byte_count() == 140).count(), 1);
    assert_eq!(mcg(&driver, Opcode::DETACH_FROM_MCG, first.qp.qpn, &BROADCAST), status::OK);
    assert_eq!(mcg(&driver, Opcode::DETACH_FROM_MCG, first.qp.qpn, &BROADCAST), status::BAD_RES);
    sender.qp.post_one(send().signaled());
    assert_eq!(second.hears(1, 100), payload);
    std::thread::sleep(Duration::from_millis(10));
    assert!(first.cq.poll().is_none() && other.cq.poll().is_none());
    // Nobody hears a group that nobody is attached to; its sender goes on.
    let before = [sender.cq.wait_ok().unwrap(), sender.cq.wait_ok().unwrap()];
    assert_eq!(before.len(), 2);
    sender.qp.run(to_group(&group(9), MLID).sge(sender.mr.sge(8192, 100))).unwrap();
    // Not a multicast GID, not a queue pair for datagrams, no such queue pair.
    assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, first.qp.qpn, &[0xfe; 16]), status::BAD_PARAM);
    let connected = Ear::new(&driver, |spec| spec.service = service_type::RC);
    assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, connected.qp.qpn, &BROADCAST), status::BAD_PARAM);
    assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, 0xab_cdef, &BROADCAST), status::BAD_RES);
    // A queue pair that is gone hears nothing, and whoever gets its number neither.
    second.qp.to_reset().unwrap();
    second.qp.destroy().unwrap();
    assert_eq!(driver.machine.nic.hca().multicast.attached(&BROADCAST), [sender.qp.qpn]);
}

#[test]
fn a_listener_that_fails_fails_alone() {
    let driver = Driver::probe(&machine()).unwrap();
    let ears: Vec<Ear> = (0..3).map(|_| Ear::new(&driver, |_| ())).collect();
    let [sender, good, bad] = &ears[..] else { panic!() };
    for ear in [bad, good] {
        assert_eq!(mcg(&driver, Opcode::ATTACH_TO_MCG, ear.qp.qpn, &BROADCAST), status::OK);
    }
    good.listens(2);
    // A key of another's domain.
    bad.qp.receive(&[good.mr.sge(32 << 10, 1024)]);
    sender.memory.fill_pattern(5);
    for at in 0..2 {
        sender.qp.run(to_group(&BROADCAST, MLID).sge(sender.mr.sge(0, 64))).unwrap();
        assert_eq!(good.hears(at, 64), sender.memory.bytes(0, 64));
    }
    assert_eq!(bad.cq.wait().unwrap().outcome(), (opcode::RESP_ERR, syndrome::LOCAL_PROT_ERR));
    driver.until("its end", || bad.qp.queried(qpc::STATE) == Ok(state::ERR)).unwrap();
}

#[test]
fn groups_are_as_many_as_offered() {
    let driver = Driver::probe(&machine()).unwrap();
    let (most, each) = (1 << driver.capability(cap::LOG_MAX_MCG).unwrap(), driver.capability(cap::MAX_QP_MCG).unwrap());
    let ear = Ear::new(&driver, |_| ());
    let attach = |number, qpn| mcg(&driver, Opcode::ATTACH_TO_MCG, qpn, &group(number));
    assert!((0..most).all(|number| attach(number, ear.qp.qpn) == status::OK));
    assert_eq!(attach(most, ear.qp.qpn), status::NO_RES);
    let more: Vec<Qp> = (0..each)
        .map(|_| Qp::create(&driver.context, QpSpec { service: service_type::UD, ..ear.qp.spec.clone() }).unwrap())
        .collect();
    assert!(more[1..].iter().all(|qp| attach(0, qp.qpn) == status::OK));
    assert_eq!(attach(0, more[0].qpn), status::NO_RES);
}

/// QP1 of a NIC, as ib_mad has it.
pub fn gsi(driver: &Arc<Driver>) -> Ear {
    Ear::new(driver, |spec| (spec.service, spec.qkey) = (service_type::QP1, 0x8001_0000))
}

/// The request `(version and class, attribute, method)`.
pub fn request((version, of): (u32, u32), what: u32, how: u32) -> Vec<u8> {
    let mut request = vec![0; MAD_SIZE];
    for (field, value) in [
        (mad::BASE_VERSION, 1),
        (mad::MGMT_CLASS, of),
        (mad::CLASS_VERSION, version),
        (mad::METHOD, how),
        (mad::ATTRIBUTE_ID, what),
    ] {
        field.set(&mut request, value);
    }
    request
}

/// What comes back for `request` from QP1 of the port with `lid`.
pub fn answered(gsi: &Ear, lid: u16, request: &[u8]) -> Vec<u8> {
    gsi.memory.write(32 << 10, request);
    gsi.qp.receive(&[gsi.mr.sge(0, 512)]);
    let wqe = Wqe::send().datagram(1, lid, 0x8001_0000);
    gsi.qp.post_one(wqe.sge(gsi.mr.sge(32 << 10, MAD_SIZE as u32)).signaled());
    let both = [gsi.cq.wait_ok().unwrap(), gsi.cq.wait_ok().unwrap()];
    let got = both.iter().find(|cqe| cqe.byte_count() == 296).unwrap();
    assert_eq!((cqe::RQPN.get(&got.bytes), cqe::SLID.get(&got.bytes)), (1, lid.into()));
    assert_eq!(got.immediate() & 0xffff, 0xffff);
    gsi.memory.bytes(GRH_SIZE as u64, MAD_SIZE as u64)
}

/// Asks the administration and gives back the answer's data.
fn asked(gsi: &Ear, what: u32, how: u32, mask: u64, fill: impl FnOnce(&mut [u8])) -> (u32, Vec<u8>) {
    let mut request = request((2, class::SUBN_ADM), what, how);
    mad::COMPONENT_MASK.set(&mut request, mask);
    fill(&mut request[mad::DATA..]);
    let answer = answered(gsi, 1, &request);
    (mad::STATUS.get(&answer), answer[mad::DATA..].to_vec())
}

#[test]
fn a_port_hears_a_group_that_it_has_joined() {
    let machines = Machine::with_nics(MachineConfig { ram_mib: 128, ..MachineConfig::default() }, 2);
    let drivers: Vec<_> = machines.into_iter().map(|machine| Driver::probe(&Arc::new(machine)).unwrap()).collect();
    let sender = Ear::new(&drivers[0], |_| ());
    let ear = Ear::new(&drivers[1], |_| ());
    let gsi = gsi(&drivers[1]);
    assert_eq!(mcg(&drivers[1], Opcode::ATTACH_TO_MCG, ear.qp.qpn, &BROADCAST), status::OK);
    ear.listens(2);
    sender.memory.fill_pattern(3);
    let send = || sender.qp.run(to_group(&BROADCAST, MLID).sge(sender.mr.sge(0, 64))).unwrap();
    // Attached, and its port has not joined.
    send();
    std::thread::sleep(Duration::from_millis(10));
    assert!(ear.cq.poll().is_none());
    let gids = [0, 1].map(|nic| mlx5::command::port_gid(nic, 0));
    let (said, told) = asked(&gsi, attribute::MC_MEMBER_RECORD, method::SET, 1 | 2 | 1 << 16, |record| {
        record[member::MGID].copy_from_slice(&BROADCAST);
        record[member::PORT_GID].copy_from_slice(&gids[1]);
        member::JOIN_STATE.set(record, join_state::FULL_MEMBER);
    });
    assert_eq!((said, member::MLID.get(&told), member::Q_KEY.get(&told)), (0, MLID.into(), QKEY));
    send();
    assert_eq!(ear.hears(0, 64), sender.memory.bytes(0, 64));
    // The path to the other port.
    let (said, told) = asked(&gsi, attribute::PATH_RECORD, method::GET, 1 << 2 | 1 << 3, |record| {
        record[path_record::DGID].copy_from_slice(&gids[0]);
        record[path_record::SGID].copy_from_slice(&gids[1]);
    });
    assert_eq!((said, path_record::DLID.get(&told), path_record::SLID.get(&told)), (0, 1, 2));
    // A port that goes down has left.
    drivers[1].machine.nic.set_port(false);
    drivers[1].machine.nic.set_port(true);
    send();
    std::thread::sleep(Duration::from_millis(10));
    assert!(ear.cq.poll().is_none());
}
