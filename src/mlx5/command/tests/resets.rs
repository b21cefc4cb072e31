// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How everything goes at once, and where doorbells are meanwhile.

use super::*;
use mlx5_spec::qp::{service_type, state};

/// A driver's objects of most kinds.
fn populate(guest: &mut Guest) -> u32 {
    let uar = guest.alloc(Opcode::ALLOC_UAR);
    let pd = guest.alloc(Opcode::ALLOC_PD);
    guest.alloc(Opcode::ALLOC_XRCD);
    let eqn = guest.create_eq(uar, 0, 0xffff_ffff);
    let cqn = guest.create_cq(uar, eqn);
    guest.create_qp(service_type::RC, uar, pd, cqn);
    uar
}

fn doorbell_addresses(guest: &Guest) -> Vec<u64> {
    guest.host.attached.lock().unwrap().iter().map(|(address, ..)| *address).collect()
}

#[test]
fn a_function_reset_leaves_nothing() {
    let mut guest = Guest::new(NicConfig::default());
    populate(&mut guest);
    let qp = guest.handle.hca().qps.all()[0].1.clone();
    let old = qp.attrs();
    assert_eq!(guest.handle.objects(), 6);
    // Device Control of the PCI Express capability, behind MSI-X.
    guest.nic.config_write(0x4c + 8, &0x8000u16.to_le_bytes());
    assert_eq!(guest.handle.objects(), 0);
    assert!(doorbell_addresses(&guest).is_empty());
    assert!(guest.nic.bars().is_empty());
    assert!(!qp.in_force(&old) && qp.attrs().state == state::RST);
    assert!(guest.handle.hca().dma.ram().is_err());
    guest.plug();
    guest.begin();
    guest.initialize();
    // Numbers begin anew, lives do not.
    populate(&mut guest);
    let fresh = guest.handle.hca().qps.all()[0].1.clone();
    assert_eq!(fresh.qpn, qp.qpn);
    assert_ne!(fresh.attrs().incarnation, old.incarnation);
}

#[test]
fn a_driver_that_begins_anew_finds_an_empty_device() {
    let mut guest = Guest::new(NicConfig::default());
    populate(&mut guest);
    guest.begin();
    assert_eq!(guest.handle.objects(), 0);
    assert!(doorbell_addresses(&guest).is_empty());
    guest.initialize();
    populate(&mut guest);
    guest.call(Opcode::TEARDOWN_HCA, 0, 0).ok();
    assert_eq!(guest.handle.objects(), 0);
}

#[test]
fn send_doorbells_follow_bar0_and_the_page_s_life() {
    let mut guest = Guest::new(NicConfig::default());
    let uar = guest.alloc(Opcode::ALLOC_UAR);
    let at = |base: u64| [0x800, 0x900, 0xc00, 0xd00].map(|offset| base + u64::from(uar) * 4096 + offset);
    assert_eq!(doorbell_addresses(&guest), at(BASE));
    let moved = BASE + (1 << 30);
    guest.nic.config_write(BAR0, &(moved as u32).to_le_bytes());
    assert_eq!(doorbell_addresses(&guest), at(moved));
    guest.nic.config_write(COMMAND, &COMMAND_BUS_MASTER.to_le_bytes());
    assert!(doorbell_addresses(&guest).is_empty());
    guest.nic.config_write(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
    assert_eq!(doorbell_addresses(&guest), at(moved));
    guest.call(Opcode::DEALLOC_UAR, 0, uar).ok();
    assert!(doorbell_addresses(&guest).is_empty());
    // A host without eventfds: the page works by exits.
    guest.host.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    guest.alloc(Opcode::ALLOC_UAR);
    assert!(doorbell_addresses(&guest).is_empty());
}

#[test]
fn without_bus_mastering_no_command_is_taken() {
    let mut guest = Guest::new(NicConfig::default());
    guest.nic.config_write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    let entry = guest.entry(&input(Opcode::NOP, 0, 16), 16);
    guest.ram.write_slice(&entry, GuestAddress(QUEUE)).unwrap();
    guest.nic.bar_write(0, COMMAND_DOORBELL as u64, &1u32.to_be_bytes());
    std::thread::sleep(Duration::from_millis(20));
    let mut after = [0; ENTRY_SIZE];
    guest.ram.read_slice(&mut after, GuestAddress(QUEUE)).unwrap();
    assert_eq!(after, entry);
    guest.nic.config_write(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
    guest.submit(0, &entry).ok();
}

#[test]
fn a_firmware_reset_disables_the_interface_until_a_driver_begins() {
    let mut guest = Guest::new(NicConfig::default());
    populate(&mut guest);
    guest.nic.bar_write(0, CMDQ_ADDR_L_SZ as u64, &0x700u32.to_be_bytes());
    assert_eq!(guest.read_dword(CMDQ_ADDR_L_SZ as u64) >> 8 & 7, 1);
    assert_eq!(guest.handle.objects(), 0);
    guest.begin();
    assert_eq!(guest.read_dword(CMDQ_ADDR_L_SZ as u64) >> 8 & 7, 0);
    guest.call(Opcode::ENABLE_HCA, 0, 0).ok();
}

#[test]
fn inspection_shows_what_there_is() {
    let mut guest = Guest::new(NicConfig::default());
    let uar = populate(&mut guest);
    let seen = guest.handle.inspect();
    assert_eq!(seen["objects"], 6);
    assert_eq!(seen["qps"]["list"][0]["service"], "RC");
    assert_eq!(seen["qps"]["list"][0]["state"], "RST");
    assert_eq!(seen["uars"]["list"][0], uar);
    assert_eq!(seen["doorbell_eventfds"], 4);
}

/// Rule 3: whoever takes a right away waits for the section in which an engine may still use it.
#[test]
fn what_takes_rights_away_waits_for_what_is_in_flight() {
    type Act = fn(&mut Guest, u32);
    let acts: [(&str, Act); 7] = [
        ("bus mastering off", |guest, _| guest.nic.config_write(COMMAND, &COMMAND_MEMORY.to_le_bytes())),
        ("FLR", |guest, _| guest.nic.config_write(0x4c + 8, &0x8000u16.to_le_bytes())),
        ("platform reset", |guest, _| guest.nic.reset()),
        ("a driver begins anew", |guest, _| guest.begin()),
        ("2RST", |guest, qpn| drop(guest.call(Opcode::TO_RST_QP, 0, qpn).ok())),
        ("2ERR", |guest, qpn| drop(guest.call(Opcode::TO_ERR_QP, 0, qpn).ok())),
        ("DESTROY_QP", |guest, qpn| drop(guest.call(Opcode::DESTROY_QP, 0, qpn).ok())),
    ];
    let mut hasty = Vec::new();
    for (name, act) in acts {
        // One engine, which has nothing to do: its slot is this thread's.
        let mut guest = Guest::new(NicConfig { engines: 1, ..NicConfig::default() });
        populate(&mut guest);
        let qpn = guest.handle.hca().qps.all()[0].0;
        let hca = guest.handle.hca().clone();
        std::thread::sleep(Duration::from_millis(5));
        let section = hca.quiesce.enter(0);
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let waiter = std::thread::spawn({
            let done = done.clone();
            move || {
                act(&mut guest, qpn);
                done.store(true, std::sync::atomic::Ordering::SeqCst);
                guest
            }
        });
        std::thread::sleep(Duration::from_millis(30));
        if done.load(std::sync::atomic::Ordering::SeqCst) {
            hasty.push(name);
        }
        drop(section);
        waiter.join().unwrap();
    }
    assert!(hasty.is_empty(), "did not wait: {hasty:?}");
}
