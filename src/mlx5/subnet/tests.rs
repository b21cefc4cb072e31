// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;
use mlx5_spec::mad::{
    join_state, mc_member_record as member, node_record, path_record as path, selector, service_record,
};

const BROADCAST: Gid = [0xff, 0x12, 0x40, 0x1b, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

fn port(lid: u16) -> PortFacts {
    let port_guid = 0x0002_c903_0000_0001 + u64::from(lid);
    let gid = (0xfe80_u128 << 112 | u128::from(port_guid)).to_be_bytes();
    PortFacts {
        lid,
        gid,
        node_guid: port_guid - 1,
        port_guid,
        device_id: 0x1018,
        description: [b'x'; 64],
        cap_mask1: 0,
    }
}

struct Scene {
    subnet: Subnet,
    ports: Vec<PortFacts>,
}

impl Scene {
    fn new(count: u16) -> Self {
        Self { subnet: Subnet::default(), ports: (1..=count).map(port).collect() }
    }

    fn send(&self, from: usize, what: u32, how: u32, mask: u64, fill: impl FnOnce(&mut [u8])) -> Vec<Mad> {
        let mut request = [0; MAD_SIZE];
        for (field, value) in [
            (mad::BASE_VERSION, 1),
            (mad::MGMT_CLASS, class::SUBN_ADM),
            (mad::CLASS_VERSION, 2),
            (mad::METHOD, how),
            (mad::ATTRIBUTE_ID, what),
        ] {
            field.set(&mut request, value);
        }
        mad::TRANSACTION_ID.set(&mut request, 77);
        mad::COMPONENT_MASK.set(&mut request, mask);
        fill(&mut request[mad::DATA..]);
        assert!(is_administration(&request));
        self.subnet.handle(&self.ports, &self.ports[from], &request)
    }

    /// A record, or the status.
    fn ask(&self, from: usize, what: u32, how: u32, mask: u64, fill: impl FnOnce(&mut [u8])) -> Result<Vec<u8>, u32> {
        let told = self.send(from, what, how, mask, fill);
        let [reply] = told[..] else { panic!("{} answers", told.len()) };
        assert_eq!(mad::TRANSACTION_ID.get(&reply), 77);
        assert_eq!(mad::METHOD.get(&reply), if how == method::SET { 0x81 } else { how | 0x80 });
        assert!(!is_administration(&reply));
        match mad::STATUS.get(&reply) {
            0 => Ok(reply[mad::DATA..].to_vec()),
            status => Err(status),
        }
    }

    fn join(&self, from: usize, mgid: &Gid, state: u32, mask: u64) -> Result<Vec<u8>, u32> {
        let gid = self.ports[from].gid;
        self.ask(from, attribute::MC_MEMBER_RECORD, method::SET, 1 | 2 | 1 << 16 | mask, |record| {
            put_gid(record, member::MGID, mgid);
            put_gid(record, member::PORT_GID, &gid);
            member::JOIN_STATE.set(record, state);
            member::P_KEY.set(record, 0xffff);
            member::Q_KEY.set(record, 0x0b1b);
        })
    }

    fn leave(&self, from: usize, mgid: &Gid, state: u32) -> Result<Vec<u8>, u32> {
        let gid = self.ports[from].gid;
        self.ask(from, attribute::MC_MEMBER_RECORD, method::DELETE, 1 | 2 | 1 << 16, |record| {
            put_gid(record, member::MGID, mgid);
            put_gid(record, member::PORT_GID, &gid);
            member::JOIN_STATE.set(record, state);
        })
    }
}

/// What must be said where a group is made: Q_Key, traffic class, P_Key, service level, flow label.
const MAKES: u64 = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13;

#[test]
fn ipoib_joins_its_broadcast_group_and_a_group_of_its_own() {
    let scene = Scene::new(2);
    // The broadcast group is there: who joins learns what it is.
    let told = scene.join(0, &BROADCAST, join_state::FULL_MEMBER, 1 << 7).unwrap();
    assert_eq!((member::Q_KEY.get(&told), member::MLID.get(&told), member::MTU.get(&told)), (0x0b1b, 0xc000, 4));
    assert_eq!((member::JOIN_STATE.get(&told), gid_at(&told, member::PORT_GID)), (1, scene.ports[0].gid));
    scene.join(1, &BROADCAST, join_state::FULL_MEMBER, 1 << 7).unwrap();
    assert_eq!(scene.subnet.listeners(&BROADCAST).unwrap().len(), 2);
    // Another group is made by the first that joins, and gone with the last.
    let mut own = BROADCAST;
    own[15] = 1;
    assert_eq!(scene.join(0, &own, join_state::SEND_ONLY_NON_MEMBER, MAKES), Err(status::REQUEST_INVALID));
    assert_eq!(scene.join(0, &own, join_state::FULL_MEMBER, 0), Err(status::INSUFFICIENT_COMPONENTS));
    let told = scene.join(0, &own, join_state::FULL_MEMBER, MAKES).unwrap();
    assert_eq!((member::MLID.get(&told), member::MTU.get(&told), member::SCOPE.get(&told)), (0xc001, 5, 2));
    scene.join(1, &own, join_state::SEND_ONLY_FULL_MEMBER, 0).unwrap();
    assert_eq!(scene.subnet.listeners(&own).unwrap(), [scene.ports[0].gid], "who only sends does not hear");
    scene.leave(0, &own, join_state::FULL_MEMBER).unwrap();
    assert_eq!(scene.subnet.listeners(&own).unwrap(), [] as [Gid; 0]);
    assert_eq!(scene.leave(0, &own, join_state::FULL_MEMBER), Err(status::REQUEST_INVALID));
    scene.leave(1, &own, join_state::SEND_ONLY_FULL_MEMBER).unwrap();
    assert_eq!(scene.subnet.listeners(&own), None);
    scene.leave(0, &BROADCAST, join_state::FULL_MEMBER).unwrap();
    scene.subnet.leave_all(&scene.ports[1].gid);
    assert_eq!(scene.subnet.listeners(&BROADCAST).unwrap(), [] as [Gid; 0], "it stays");
}

#[test]
fn a_group_is_what_its_maker_asked_for_or_is_not_made() {
    let scene = Scene::new(1);
    let gid = scene.ports[0].gid;
    let make = |picked, mtu| {
        let mask = 1 | 2 | 1 << 16 | MAKES | 1 << 4 | 1 << 5;
        let told = scene.ask(0, attribute::MC_MEMBER_RECORD, method::SET, mask, |record| {
            // A zero GID is the administration's to choose.
            put_gid(record, member::PORT_GID, &gid);
            member::JOIN_STATE.set(record, 1);
            member::MTU_SELECTOR.set(record, picked);
            member::MTU.set(record, mtu);
        });
        told.map(|told| (gid_at(&told, member::MGID), member::MTU.get(&told)))
    };
    let (first, mtu) = make(selector::EXACTLY, 3).unwrap();
    assert_eq!((first[0], mtu), (0xff, 3));
    let (second, mtu) = make(selector::LESS, 3).unwrap();
    assert_eq!(mtu, 2);
    assert_ne!(first, second);
    assert_eq!(make(selector::GREATER, 3).map(|(_, mtu)| mtu), Ok(5));
    assert_eq!(make(selector::LARGEST, 1).map(|(_, mtu)| mtu), Ok(5));
    assert_eq!(
        [make(selector::EXACTLY, 6), make(selector::GREATER, 5), make(selector::LESS, 0)],
        [Err(status::REQUEST_INVALID); 3]
    );
    // Who joins asks the same way.
    let joins_with = |mtu| {
        scene.ask(0, attribute::MC_MEMBER_RECORD, method::SET, 1 | 2 | 1 << 4 | 1 << 5 | 1 << 16, |record| {
            put_gid(record, member::MGID, &first);
            put_gid(record, member::PORT_GID, &gid);
            member::JOIN_STATE.set(record, 1);
            member::MTU_SELECTOR.set(record, selector::EXACTLY);
            member::MTU.set(record, mtu);
        })
    };
    assert_eq!((joins_with(3).err(), joins_with(5).err()), (None, Some(status::REQUEST_INVALID)));
    // A port joins for itself, and for no other; and there must be one.
    let joins = |port: Gid| {
        scene.ask(0, attribute::MC_MEMBER_RECORD, method::SET, 1 | 2 | 1 << 16, |record| {
            put_gid(record, member::MGID, &BROADCAST);
            put_gid(record, member::PORT_GID, &port);
            member::JOIN_STATE.set(record, 1);
        })
    };
    assert_eq!(joins([7; 16]).err(), Some(status::INVALID_GID));
    let groups = (0..2000).map(|_| make(selector::EXACTLY, 4)).filter(Result::is_ok).count();
    assert!((1000..1024).contains(&groups), "{groups}");
    assert_eq!(make(selector::EXACTLY, 4).err(), Some(status::NO_RESOURCES));
}

#[test]
fn a_path_leads_where_it_is_asked_to() {
    let scene = Scene::new(3);
    let (one, two) = (scene.ports[0].gid, scene.ports[1].gid);
    let told = scene
        .ask(0, attribute::PATH_RECORD, method::GET, 1 << 2 | 1 << 3 | 1 << 11 | 1 << 12 | 1 << 13, |record| {
            put_gid(record, path::DGID, &two);
            put_gid(record, path::SGID, &one);
            path::REVERSIBLE.set(record, 1);
            path::NUMB_PATH.set(record, 1);
            path::P_KEY.set(record, 0xffff);
        })
        .unwrap();
    assert_eq!((path::DLID.get(&told), path::SLID.get(&told), path::MTU.get(&told)), (2, 1, 5));
    assert_eq!((gid_at(&told, path::DGID), path::P_KEY.get(&told), path::RATE.get(&told)), (two, 0xffff, 16));
    let get = |mask, fill: &dyn Fn(&mut [u8])| scene.ask(0, attribute::PATH_RECORD, method::GET, mask, fill).err();
    assert_eq!(get(1 << 2, &|_| ()), Some(status::INSUFFICIENT_COMPONENTS));
    assert_eq!(get(1 << 3, &|record| put_gid(record, path::SGID, &one)), Some(status::TOO_MANY_RECORDS));
    let nowhere = |record: &mut [u8]| {
        put_gid(record, path::SGID, &one);
        put_gid(record, path::DGID, &[9; 16]);
    };
    assert_eq!(get(1 << 2 | 1 << 3, &nowhere), Some(status::NO_RECORDS));
    let foreign = |record: &mut [u8]| {
        path::SLID.set(record, 1);
        path::DLID.set(record, 2);
        path::P_KEY.set(record, 0x1234);
    };
    assert_eq!(get(1 << 4 | 1 << 5 | 1 << 13, &foreign), Some(status::NO_RECORDS));
    assert_eq!(get(1 << 4 | 1 << 5, &foreign), None);
    // To a group.
    let group = |record: &mut [u8]| {
        put_gid(record, path::SGID, &one);
        put_gid(record, path::DGID, &BROADCAST);
    };
    let told = scene.ask(0, attribute::PATH_RECORD, method::GET, 1 << 2 | 1 << 3, group).unwrap();
    assert_eq!((path::DLID.get(&told), path::MTU.get(&told)), (0xc000, 4));
}

/// Eight nodes of 112 bytes each are five segments: one at once, the others by the window.
#[test]
fn a_table_comes_in_segments_as_it_is_acknowledged() {
    let scene = Scene::new(8);
    let mut segments = scene.send(3, attribute::NODE_RECORD, method::GET_TABLE, 0, |_| ());
    assert_eq!(segments.len(), 1);
    let acknowledge = |segment: u32, window: u32| {
        let mut ack = [0; MAD_SIZE];
        mad::BASE_VERSION.set(&mut ack, 1);
        mad::MGMT_CLASS.set(&mut ack, class::SUBN_ADM);
        mad::CLASS_VERSION.set(&mut ack, 2);
        mad::METHOD.set(&mut ack, method::GET_TABLE);
        mad::TRANSACTION_ID.set(&mut ack, 77);
        mad::RMPP_VERSION.set(&mut ack, 1);
        mad::RMPP_TYPE.set(&mut ack, rmpp_type::ACK);
        mad::RMPP_FLAGS.set(&mut ack, rmpp_flags::ACTIVE);
        mad::SEGMENT_NUMBER.set(&mut ack, segment);
        mad::PAYLOAD_LENGTH_NEW_WINDOW.set(&mut ack, window);
        (
            scene.subnet.handle(&scene.ports, &scene.ports[3], &ack),
            scene.subnet.handle(&scene.ports, &scene.ports[2], &ack),
        )
    };
    for (segment, window, due) in [(1, 3, 2), (1, 3, 0), (2, 64, 2), (5, 70, 0), (5, 70, 0)] {
        let (told, to_others) = acknowledge(segment, window);
        assert_eq!((told.len(), to_others.len()), (due, 0), "{segment} {window}");
        segments.extend(told);
    }
    let numbers: Vec<u32> = segments.iter().map(|segment| mad::SEGMENT_NUMBER.get(segment)).collect();
    let flags: Vec<u32> = segments.iter().map(|segment| mad::RMPP_FLAGS.get(segment)).collect();
    let lengths: Vec<u32> = segments.iter().map(|segment| mad::PAYLOAD_LENGTH_NEW_WINDOW.get(segment)).collect();
    assert_eq!((numbers, flags), (vec![1, 2, 3, 4, 5], vec![3, 1, 1, 1, 5]));
    // 896 bytes: 20 more in each segment; 96 in the last.
    assert_eq!(lengths, [896 + 5 * 20, 0, 0, 0, 96 + 20]);
    assert!(segments.iter().all(|segment| mad::ATTRIBUTE_OFFSET.get(segment) == 14));
    let bytes: Vec<u8> = segments.iter().flat_map(|segment| segment[mad::DATA..].to_vec()).collect();
    let lids: Vec<u32> = bytes.chunks(112).take(8).map(|node| node_record::LID.get(node)).collect();
    assert_eq!(lids, [1, 2, 3, 4, 5, 6, 7, 8]);
    // A table that is empty is one all the same; one segment needs no acknowledgement.
    let [empty] = scene.send(0, attribute::SERVICE_RECORD, method::GET_TABLE, 0, |_| ())[..] else { panic!() };
    assert_eq!((mad::STATUS.get(&empty), mad::PAYLOAD_LENGTH_NEW_WINDOW.get(&empty)), (0, 20));
    assert_eq!(mad::RMPP_FLAGS.get(&empty), 7);
    // Whoever asks for tables and never acknowledges is forgotten in the end.
    for lid in 0..1000 {
        let asker = PortFacts { lid, ..scene.ports[0].clone() };
        let mut request = [0; MAD_SIZE];
        request.copy_from_slice(&segments[0]);
        mad::METHOD.set(&mut request, method::GET_TABLE);
        request[0x18..0x24].fill(0);
        scene.subnet.handle(&scene.ports, &asker, &request);
    }
    assert!(scene.subnet.0.lock().transfers.count() <= 64);
}

#[test]
fn services_are_registered_found_and_withdrawn() {
    let scene = Scene::new(2);
    let fill = |id: u64| move |record: &mut [u8]| service_record::SERVICE_ID.set(record, id);
    let set = |from, id| scene.ask(from, attribute::SERVICE_RECORD, method::SET, 1, fill(id));
    let get = |id| scene.ask(1, attribute::SERVICE_RECORD, method::GET, 1, fill(id));
    assert_eq!(get(5).err(), Some(status::NO_RECORDS));
    set(0, 5).unwrap();
    set(0, 5).unwrap();
    assert_eq!(gid_at(&get(5).unwrap(), service_record::SERVICE_GID), scene.ports[0].gid);
    set(1, 5).unwrap();
    assert_eq!(get(5).err(), Some(status::TOO_MANY_RECORDS));
    scene.ask(0, attribute::SERVICE_RECORD, method::DELETE, 1, fill(5)).unwrap();
    assert_eq!(gid_at(&get(5).unwrap(), service_record::SERVICE_GID), scene.ports[1].gid);
    let refused = (0..400).find_map(|id| set(0, 100 + id).err());
    assert_eq!(refused, Some(status::NO_RESOURCES));
}

#[test]
fn what_is_not_known_is_said() {
    let scene = Scene::new(1);
    let ask = |what, how| scene.ask(0, what, how, 0, |_| ()).err();
    assert_eq!(ask(0x99, method::GET), Some(status::UNSUPPORTED_ATTRIBUTE));
    assert_eq!(ask(attribute::PATH_RECORD, method::SET), Some(status::UNSUPPORTED_METHOD));
    assert_eq!(ask(attribute::CLASS_PORT_INFO, method::GET), None);
    assert_eq!(ask(attribute::INFORM_INFO, method::SET), None);
    let mut old = [0; MAD_SIZE];
    mad::MGMT_CLASS.set(&mut old, class::SUBN_ADM);
    let [told] = scene.subnet.handle(&scene.ports, &scene.ports[0], &old)[..] else { panic!() };
    assert_eq!(mad::STATUS.get(&told), status::BAD_VERSION);
    // Noise is answered or not, and harms nobody.
    let mut noise = 1u64;
    for _ in 0..20_000 {
        let mut bytes = [0; MAD_SIZE];
        for byte in &mut bytes {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (noise >> 56) as u8;
        }
        mad::BASE_VERSION.set(&mut bytes, 1);
        mad::CLASS_VERSION.set(&mut bytes, 2);
        mad::ATTRIBUTE_ID.set(&mut bytes, [0x11, 0x12, 0x31, 0x35, 0x38][noise as usize % 5]);
        mad::METHOD.set(&mut bytes, [1, 2, 0x12, 0x15][(noise >> 8) as usize % 4]);
        assert!(scene.subnet.handle(&scene.ports, &scene.ports[0], &bytes).len() <= 1024);
    }
}
