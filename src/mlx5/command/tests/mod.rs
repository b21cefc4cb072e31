// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands as a driver sends them: entries, mailboxes and doorbells, through the PCI function. The whole driver is in tests/driver.

mod bring_up;
mod hostile;
mod objects;
mod resets;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::{Nic, NicConfig, NicHandle};
use dma::GuestRam;
use mlx5_spec::bits::Field;
use mlx5_spec::cmd::{
    ENTRY_SIZE, INLINE_SIZE, MAILBOX_DATA_SIZE, Opcode, TYPE_PCI, entry, in_header, mailbox, out_header, status,
};
use mlx5_spec::init::{CMDQ_ADDR_H, CMDQ_ADDR_L_SZ, COMMAND_DOORBELL};
use mlx5_spec::small::object;
use mlx5_spec::{cq, eq, qp};
use pci::PciDevice;
use pci::config::{BAR0, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use pci::testing::{FakeHost, FakeRouter};
use probe::ledger::Ledger;

const RAM: u64 = 32 << 20;
const QUEUE: u64 = 0x1_0000;
const INPUT_BLOCKS: u64 = 0x20_0000;
const OUTPUT_BLOCKS: u64 = 0x10_0000;
const BLOCK_STEP: u64 = 1024;
const PAGES: u64 = 0x100_0000;
const TOKEN: u32 = 0x5a;
/// Where BAR0 is placed.
pub const BASE: u64 = 0x40_0000_0000;

/// A machine with one NIC, and the driver's side of the command interface.
pub struct Guest {
    pub nic: Nic,
    pub handle: NicHandle,
    pub ram: Arc<GuestRam>,
    pub router: Arc<FakeRouter>,
    pub host: Arc<FakeHost>,
    next_page: u64,
}

/// An output with its delivery status.
#[derive(Debug)]
pub struct Answer {
    pub delivery: u8,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u8 {
        assert_eq!(self.delivery, 0, "delivery status");
        out_header::STATUS.get(&self.bytes) as u8
    }

    pub fn get(&self, field: Field) -> u32 {
        field.get(&self.bytes)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status(), status::OK, "syndrome {:#x}", out_header::SYNDROME.get(&self.bytes));
        self
    }
}

/// An input of `len` bytes.
pub fn input(opcode: Opcode, op_mod: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    in_header::OPCODE.set(&mut bytes, u32::from(opcode.0));
    in_header::OP_MOD.set(&mut bytes, op_mod);
    bytes
}

impl Guest {
    /// BAR0 placed, bus mastering and MSI-X on, command queue set.
    pub fn new(config: NicConfig) -> Self {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap());
        let (router, host) = (Arc::new(FakeRouter::default()), Arc::new(FakeHost::default()));
        let ledger = Ledger::new();
        let (nic, handle) = Nic::new(0, config, 8, ram.clone(), ledger, router.clone(), host.clone()).unwrap();
        let mut guest = Self { nic, handle, ram, router, host, next_page: PAGES };
        guest.plug();
        guest.begin();
        guest.initialize();
        guest
    }

    /// What the PCI core does.
    pub fn plug(&mut self) {
        self.nic.config_write(BAR0, &(BASE as u32).to_le_bytes());
        self.nic.config_write(BAR0 + 4, &((BASE >> 32) as u32).to_le_bytes());
        self.nic.config_write(COMMAND, &(COMMAND_MEMORY | COMMAND_BUS_MASTER).to_le_bytes());
        // MSI-X is the first capability.
        self.nic.config_write(0x40 + 2, &(1u16 << 15).to_le_bytes());
        for vector in 0..4u64 {
            self.nic.bar_write(2, vector * 16, &0xfee0_0000u64.to_le_bytes());
            self.nic.bar_write(2, vector * 16 + 8, &vector.to_le_bytes());
        }
    }

    /// Tells the device where the command queue is.
    pub fn begin(&mut self) {
        self.ram.write_slice(&[0; 32 * ENTRY_SIZE], GuestAddress(QUEUE)).unwrap();
        self.nic.bar_write(0, CMDQ_ADDR_H as u64, &0u32.to_be_bytes());
        self.nic.bar_write(0, CMDQ_ADDR_L_SZ as u64, &(QUEUE as u32).to_be_bytes());
    }

    /// From here on there may be objects.
    pub fn initialize(&mut self) {
        self.call(Opcode::ENABLE_HCA, 0, 0).ok();
        self.call(Opcode::INIT_HCA, 0, 0).ok();
    }

    pub fn read_dword(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.nic.bar_read(0, offset, &mut bytes);
        u32::from_be_bytes(bytes)
    }

    /// `count` fresh pages as a list for a create command.
    pub fn pages(&mut self, count: usize) -> Vec<u8> {
        let first = self.next_page;
        self.next_page += count as u64 * 4096;
        assert!(self.next_page <= RAM);
        (0..count as u64).flat_map(|page| (first + page * 4096).to_be_bytes()).collect()
    }

    /// Writes mailboxes of `data` at `at` and returns the pointer for the entry.
    pub fn put_mailboxes(&self, at: u64, data: &[u8]) -> u64 {
        if data.is_empty() {
            return 0;
        }
        for (index, part) in (0u64..).zip(data.chunks(MAILBOX_DATA_SIZE)) {
            let here = at + index * BLOCK_STEP;
            let mut block = [0; mailbox::SIZE];
            block[..part.len()].copy_from_slice(part);
            // The chain goes on beyond the data, as cached chains do (contract T5).
            mailbox::NEXT.set(&mut block, here + BLOCK_STEP);
            mailbox::BLOCK_NUMBER.set(&mut block, index as u32);
            mailbox::TOKEN.set(&mut block, TOKEN);
            self.ram.write_slice(&block, GuestAddress(here)).unwrap();
        }
        at
    }

    /// A signed entry, owned by the device.
    pub fn entry(&self, input: &[u8], output: u32) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        let inline = input.len().min(INLINE_SIZE);
        entry::TYPE.set(&mut bytes, TYPE_PCI);
        entry::INPUT_LENGTH.set(&mut bytes, input.len() as u32);
        entry::INPUT_MAILBOX.set(&mut bytes, self.put_mailboxes(INPUT_BLOCKS, &input[inline..]));
        bytes[entry::INPUT_INLINE][..inline].copy_from_slice(&input[..inline]);
        let room = vec![0; (output as usize).saturating_sub(INLINE_SIZE)];
        entry::OUTPUT_MAILBOX.set(&mut bytes, self.put_mailboxes(OUTPUT_BLOCKS, &room));
        entry::OUTPUT_LENGTH.set(&mut bytes, output);
        entry::TOKEN.set(&mut bytes, TOKEN);
        entry::OWNERSHIP.set(&mut bytes, 1);
        sign(&mut bytes);
        bytes
    }

    /// Puts `entry` into `slot`, rings, waits, and reads the answer.
    pub fn submit(&mut self, slot: u64, entry: &[u8; ENTRY_SIZE]) -> Answer {
        let at = QUEUE + slot * ENTRY_SIZE as u64;
        self.ram.write_slice(entry, GuestAddress(at)).unwrap();
        self.nic.bar_write(0, COMMAND_DOORBELL as u64, &(1u32 << slot).to_be_bytes());
        let mut answer = [0; ENTRY_SIZE];
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            self.ram.read_slice(&mut answer, GuestAddress(at)).unwrap();
            if !entry::OWNERSHIP.is_set(&answer) {
                break;
            }
            assert!(Instant::now() < limit, "the command is not answered");
            std::thread::sleep(Duration::from_micros(50));
        }
        let delivery = entry::DELIVERY_STATUS.get(&answer) as u8;
        let len = if delivery == 0 { entry::OUTPUT_LENGTH.get(entry) as usize } else { 0 };
        let mut bytes = answer[entry::OUTPUT_INLINE][..len.min(INLINE_SIZE)].to_vec();
        for block in 0..len.saturating_sub(INLINE_SIZE).div_ceil(MAILBOX_DATA_SIZE) as u64 {
            let mut part = vec![0; (len - bytes.len()).min(MAILBOX_DATA_SIZE)];
            self.ram.read_slice(&mut part, GuestAddress(OUTPUT_BLOCKS + block * BLOCK_STEP)).unwrap();
            bytes.extend(part);
        }
        Answer { delivery, bytes }
    }

    pub fn run(&mut self, input: &[u8], output: usize) -> Answer {
        let entry = self.entry(input, output as u32);
        self.submit(0, &entry)
    }

    /// A command with a short input whose argument is the dword at 8.
    pub fn call(&mut self, opcode: Opcode, op_mod: u32, argument: u32) -> Answer {
        let mut input = input(opcode, op_mod, 16);
        Field::dword(8).set(&mut input, argument);
        self.run(&input, 0x110)
    }

    pub fn alloc(&mut self, opcode: Opcode) -> u32 {
        self.call(opcode, 0, 0).ok().get(object::NUMBER)
    }

    pub fn try_create_eq(&mut self, uar: u32, vector: u32, mask: u64) -> Answer {
        let mut input = input(Opcode::CREATE_EQ, 0, eq::create_in::SIZE);
        let at = eq::create_in::EQC;
        eq::eqc::LOG_EQ_SIZE.plus(at).set(&mut input, 7);
        eq::eqc::UAR_PAGE.plus(at).set(&mut input, uar);
        eq::eqc::INTR.plus(at).set(&mut input, vector);
        eq::create_in::EVENT_BITMASK_0.set(&mut input, mask);
        input.extend(self.pages(2));
        self.run(&input, 16)
    }

    pub fn create_eq(&mut self, uar: u32, vector: u32, mask: u64) -> u32 {
        self.try_create_eq(uar, vector, mask).ok().get(eq::create_out::EQN)
    }

    pub fn create_cq(&mut self, uar: u32, eqn: u32) -> u32 {
        let mut input = input(Opcode::CREATE_CQ, 0, cq::create_in::SIZE);
        let at = cq::create_in::CQC;
        cq::cqc::LOG_CQ_SIZE.plus(at).set(&mut input, 6);
        cq::cqc::UAR_PAGE.plus(at).set(&mut input, uar);
        cq::cqc::C_EQN.plus(at).set(&mut input, eqn);
        input.extend(self.pages(1));
        self.run(&input, 16).ok().get(cq::create_out::CQN)
    }

    /// An RC queue pair with 64 blocks to send and 16 WQEs to receive.
    pub fn create_qp(&mut self, service: u32, uar: u32, pd: u32, cqn: u32) -> u32 {
        let mut input = input(Opcode::CREATE_QP, 0, qp::create_in::SIZE);
        for (field, value) in [
            (qp::qpc::ST, service),
            (qp::qpc::PD, pd),
            (qp::qpc::UAR_PAGE, uar),
            (qp::qpc::LOG_SQ_SIZE, 6),
            (qp::qpc::LOG_RQ_SIZE, 4),
            (qp::qpc::LOG_RQ_STRIDE, 2),
            (qp::qpc::CQN_SND, cqn),
            (qp::qpc::CQN_RCV, cqn),
        ] {
            field.plus(qp::create_in::QPC).set(&mut input, value);
        }
        input.extend(self.pages(2));
        self.run(&input, 16).ok().get(qp::create_out::QPN)
    }

    /// A transition with these fields of the context.
    pub fn modify_qp(&mut self, opcode: Opcode, qpn: u32, mask: u32, fields: &[(Field, u32)]) -> Answer {
        let mut input = input(opcode, 0, qp::modify_in::SIZE);
        qp::modify_in::QPN.set(&mut input, qpn);
        qp::modify_in::OPT_PARAM_MASK.set(&mut input, mask);
        fields.iter().for_each(|(field, value)| field.plus(qp::modify_in::QPC).set(&mut input, *value));
        self.run(&input, 16)
    }
}

pub fn sign(bytes: &mut [u8; ENTRY_SIZE]) {
    entry::SIGNATURE.set(bytes, 0);
    let xor = bytes.iter().fold(0, |xor, byte| xor ^ byte);
    entry::SIGNATURE.set(bytes, u32::from(xor ^ 0xff));
}
