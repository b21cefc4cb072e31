// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command queue (contract 3): entries, mailboxes, waiting by polling or for events.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;

use mlx5_spec::bits::{Field, Field64};
use mlx5_spec::cmd::{self, Opcode, entry, mailbox};
use mlx5_spec::{eq as eq_spec, init};
use probe::Patience;

use crate::eq::EventQueue;
use crate::machine::Machine;
use crate::memory::PAGE;
use crate::{Error, PATIENCE, Result};

/// Entries that ordinary commands use; the last one is MANAGE_PAGES's.
const SLOTS: u32 = 31;
const PAGES_SLOT: u32 = 31;

/// BAR 0, big-endian.
#[derive(Clone)]
pub struct Bar {
    machine: Arc<Machine>,
    base: u64,
}

impl Bar {
    /// BAR 0 where it decodes now.
    pub fn map(machine: &Arc<Machine>) -> Self {
        Self { machine: machine.clone(), base: machine.bar(0) }
    }

    /// Reads a dword.
    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.machine.mmio_read(self.base + offset, &mut bytes);
        u32::from_be_bytes(bytes)
    }

    /// Reads bytes in one access.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.machine.mmio_read(self.base + offset, bytes);
    }

    /// Writes a dword.
    pub fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_be_bytes());
    }

    /// Writes bytes in one access.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.machine.mmio_write(self.base + offset, bytes);
    }
}

/// An input under construction.
pub struct Input {
    bytes: Vec<u8>,
}

impl Input {
    /// `size` zero bytes with `opcode` in the header.
    pub fn new(opcode: Opcode, size: usize) -> Self {
        let mut bytes = vec![0; size.max(16)];
        cmd::IN_OPCODE.set(&mut bytes, u32::from(opcode.0));
        Self { bytes }
    }

    /// The same with op_mod.
    pub fn op_mod(self, op_mod: u32) -> Self {
        self.with(cmd::IN_OP_MOD, op_mod)
    }

    /// The same with a field set.
    pub fn with(mut self, field: Field, value: u32) -> Self {
        field.set(&mut self.bytes, value);
        self
    }

    /// The same with a field of 64 bits.
    pub fn with64(mut self, field: Field64, value: u64) -> Self {
        field.set(&mut self.bytes, value);
        self
    }

    /// The same with bytes at an offset.
    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The same with a list of 64-bit words at its end.
    pub fn list(mut self, words: &[u64]) -> Self {
        self.bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        self
    }

    /// The message.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A command that the device works on.
#[derive(Debug)]
pub struct Pending {
    slot: u32,
    opcode: Opcode,
    out_len: usize,
    out_blocks: Vec<u64>,
    in_blocks: Vec<u64>,
}

impl Pending {
    /// Its place in the queue.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// Signs an entry: all its bytes together are 0xff by exclusive or (contract 3.2).
pub fn sign(bytes: &mut [u8; cmd::ENTRY_SIZE]) {
    entry::SIGNATURE.set(bytes, 0);
    let sum = bytes.iter().fold(0, |sum, byte| sum ^ byte);
    entry::SIGNATURE.set(bytes, u32::from(!sum));
}

/// The command queue of one device.
pub struct Commands {
    machine: Arc<Machine>,
    bar: Bar,
    ring: u64,
    stride: u64,
    state: Mutex<State>,
    /// One command at a time, unless a test starts more by itself.
    one: Mutex<()>,
}

#[derive(Default)]
struct State {
    next: u32,
    token: u8,
    /// Mailbox blocks that are free, 1 KiB aligned.
    blocks: Vec<u64>,
    events: Option<Arc<EventQueue>>,
    /// Entries whose completion event has come.
    completed: u32,
    /// Entries reported although nobody waited for them.
    strays: u32,
    /// Inputs executed, while they are wanted.
    recorded: Option<Vec<Vec<u8>>>,
    /// User context that commands are for; 0: the driver itself.
    uid: u16,
}

impl Commands {
    /// Tells the device where the queue is; polling mode.
    pub fn new(machine: &Arc<Machine>, bar: Bar) -> Result<Self> {
        wait_ready(&bar)?;
        let revision = bar.read32(4) >> 16;
        if revision != init::CMDIF_REV {
            return Err(Error::Device(format!("command interface revision {revision}")));
        }
        let geometry = bar.read32(init::CMDQ_ADDR_L_SZ as u64);
        let (log_size, log_stride) = (geometry >> 4 & 0xf, geometry & 0xf);
        if log_size != 5 || log_stride != 6 {
            return Err(Error::Device(format!("2^{log_size} command entries of 2^{log_stride} bytes")));
        }
        let ring = machine.guest.page();
        machine.guest.write(ring, &[0; PAGE as usize]);
        bar.write32(init::CMDQ_ADDR_H as u64, (ring >> 32) as u32);
        bar.write32(init::CMDQ_ADDR_L_SZ as u64, ring as u32);
        wait_ready(&bar)?;
        if bar.read32(init::CMDQ_ADDR_L_SZ as u64) & 0xff != geometry & 0xff {
            return Err(Error::Device("queue size and stride changed".into()));
        }
        let machine = machine.clone();
        Ok(Self { machine, bar, ring, stride: 1 << log_stride, state: Mutex::default(), one: Mutex::default() })
    }

    /// Waits for events of `eq` from now on; `None`: polls.
    pub fn use_events(&self, eq: Option<Arc<EventQueue>>) {
        self.lock().events = eq;
    }

    /// Completion events of entries that nobody waited for.
    pub fn strays(&self) -> u32 {
        self.lock().strays
    }

    /// Begins or ends keeping the inputs of commands; those kept so far.
    pub fn record(&self, on: bool) -> Vec<Vec<u8>> {
        std::mem::replace(&mut self.lock().recorded, on.then(Vec::new)).unwrap_or_default()
    }

    /// Waits a little until an entry that was written by hand is given back.
    pub fn settle(&self, slot: u32) -> Result<()> {
        let mut patience = Patience::new(Duration::from_secs(1));
        while self.is_device_owned(slot) {
            if patience.is_over() {
                return Err(Error::Timeout("command completion"));
            }
            std::thread::sleep(Duration::from_micros(5));
        }
        Ok(())
    }

    /// Executes a command and returns its output, if its status is OK.
    pub fn execute(&self, input: &[u8], out_len: usize) -> Result<Vec<u8>> {
        let _one = self.one.lock();
        let pending = self.start(input, out_len);
        self.doorbell(1 << pending.slot);
        self.finish(pending)
    }

    /// Commands are for this user context from now on; 0: the driver itself.
    pub fn act_for(&self, uid: u16) {
        self.lock().uid = uid;
    }

    /// Prepares an entry, without the doorbell. At most 31 at once.
    pub fn start(&self, input: &[u8], out_len: usize) -> Pending {
        let mut state = self.lock();
        let mut input = input.to_vec();
        if state.uid != 0 && input.len() >= cmd::OUT_HEADER_SIZE {
            cmd::IN_UID.set(&mut input, u32::from(state.uid));
        }
        let input = &input[..];
        if let Some(recorded) = &mut state.recorded {
            recorded.push(input.to_vec());
        }
        let opcode = Opcode(cmd::IN_OPCODE.get(input) as u16);
        let slot = if opcode == Opcode::MANAGE_PAGES { PAGES_SLOT } else { state.next };
        if slot != PAGES_SLOT {
            state.next = (state.next + 1) % SLOTS;
        }
        state.token = state.token.wrapping_add(1).max(1);
        let token = state.token;
        let in_blocks = self.chain(&mut state, input.get(16..).unwrap_or_default(), token);
        let out_blocks = self.chain(&mut state, &vec![0; out_len.saturating_sub(16)], token);
        let mut bytes = [0; cmd::ENTRY_SIZE];
        entry::TYPE.set(&mut bytes, cmd::TYPE_PCI);
        entry::INPUT_LENGTH.set(&mut bytes, input.len() as u32);
        entry::INPUT_MAILBOX.set(&mut bytes, in_blocks.first().copied().unwrap_or(0));
        let inline = input.len().min(16);
        bytes[entry::INPUT_INLINE][..inline].copy_from_slice(&input[..inline]);
        entry::OUTPUT_MAILBOX.set(&mut bytes, out_blocks.first().copied().unwrap_or(0));
        entry::OUTPUT_LENGTH.set(&mut bytes, out_len as u32);
        entry::TOKEN.set(&mut bytes, u32::from(token));
        entry::OWNERSHIP.set(&mut bytes, 1);
        sign(&mut bytes);
        state.completed &= !(1 << slot);
        self.write_entry(slot, &bytes);
        Pending { slot, opcode, out_len, out_blocks, in_blocks }
    }

    /// Rings the command doorbell: bit i for entry i.
    pub fn doorbell(&self, vector: u32) {
        self.bar.write32(init::COMMAND_DOORBELL as u64, vector);
    }

    /// Rings for one prepared entry.
    pub fn ring(&self, pending: &Pending) {
        self.doorbell(1 << pending.slot);
    }

    /// Writes an entry as it is, its ownership last.
    pub fn write_entry(&self, slot: u32, bytes: &[u8; cmd::ENTRY_SIZE]) {
        let at = self.ring + u64::from(slot) * self.stride;
        let guest = &self.machine.guest;
        guest.write(at, &bytes[..cmd::ENTRY_SIZE - 4]);
        let last = [bytes[60], bytes[61], bytes[62], bytes[63]];
        guest.publish_u32(at + 60, u32::from_be_bytes(last));
    }

    /// An entry as it lies in the queue.
    pub fn entry(&self, slot: u32) -> [u8; cmd::ENTRY_SIZE] {
        let mut bytes = [0; cmd::ENTRY_SIZE];
        self.machine.guest.read(self.ring + u64::from(slot) * self.stride, &mut bytes);
        bytes
    }

    /// Waits for an entry and takes its output.
    pub fn finish(&self, pending: Pending) -> Result<Vec<u8>> {
        self.wait(pending.slot)?;
        let Pending { slot, opcode, out_len, out_blocks, in_blocks } = pending;
        let guest = &self.machine.guest;
        let bytes = self.entry(slot);
        let delivery = entry::DELIVERY_STATUS.get(&bytes) as u8;
        let mut output = bytes[entry::OUTPUT_INLINE].to_vec();
        for block in &out_blocks {
            let mut data = [0; cmd::MAILBOX_DATA_SIZE];
            guest.read(*block, &mut data);
            output.extend(data);
        }
        output.truncate(out_len.max(cmd::OUT_HEADER_SIZE));
        self.lock().blocks.extend(in_blocks.into_iter().chain(out_blocks));
        if delivery != cmd::delivery::OK {
            return Err(Error::Delivery { opcode, status: delivery });
        }
        match cmd::OUT_STATUS.get(&output) as u8 {
            cmd::status::OK => Ok(output),
            status => Err(Error::Command { opcode, status, syndrome: cmd::OUT_SYNDROME.get(&output) }),
        }
    }

    fn wait(&self, slot: u32) -> Result<()> {
        let events = self.lock().events.clone();
        let Some(eq) = events else {
            let mut patience = Patience::new(PATIENCE);
            while self.is_device_owned(slot) {
                if patience.is_over() {
                    return Err(Error::Timeout("command completion"));
                }
                std::thread::sleep(Duration::from_micros(5));
            }
            return Ok(());
        };
        while self.lock().completed >> slot & 1 == 0 {
            let event = eq.wait(PATIENCE, "command completion event")?;
            let vector = eq_spec::eqe_cmd::VECTOR.get(&event.bytes);
            let mut state = self.lock();
            state.strays += (vector & state.completed).count_ones();
            state.completed |= vector;
        }
        match self.is_device_owned(slot) {
            // Owner first, then the event (rule 4).
            true => Err(Error::Device(format!("entry {slot} was reported before it was given back"))),
            false => Ok(()),
        }
    }

    fn is_device_owned(&self, slot: u32) -> bool {
        let at = self.ring + u64::from(slot) * self.stride + entry::STATUS_OWN as u64;
        self.machine.guest.observe_u8(at) & 1 == 1
    }

    /// A chain of blocks with `data`.
    fn chain(&self, state: &mut State, data: &[u8], token: u8) -> Vec<u64> {
        let chunks: Vec<_> = data.chunks(cmd::MAILBOX_DATA_SIZE).collect();
        let blocks: Vec<u64> = chunks.iter().map(|_| self.block(state)).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut bytes = [0; cmd::MAILBOX_SIZE];
            bytes[..chunk.len()].copy_from_slice(chunk);
            mailbox::NEXT.set(&mut bytes, blocks.get(index + 1).copied().unwrap_or(0));
            mailbox::BLOCK_NUMBER.set(&mut bytes, index as u32);
            mailbox::TOKEN.set(&mut bytes, u32::from(token));
            self.machine.guest.write(blocks[index], &bytes);
        }
        blocks
    }

    fn block(&self, state: &mut State) -> u64 {
        if state.blocks.is_empty() {
            let page = self.machine.guest.page();
            state.blocks.extend((0..PAGE / cmd::MAILBOX_ALIGN).map(|i| page + i * cmd::MAILBOX_ALIGN));
        }
        state.blocks.pop().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

fn wait_ready(bar: &Bar) -> Result<()> {
    let mut patience = Patience::new(PATIENCE);
    while bar.read32(init::INITIALIZING as u64) >> 31 == 1 {
        if patience.is_over() {
            return Err(Error::Timeout("end of initialization"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
