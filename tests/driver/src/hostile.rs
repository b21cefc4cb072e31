// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that means harm: programs of bytes that become commands, register accesses and work requests. The property tests and the
//! fuzz targets run the same programs.
//!
//! Whatever a program does, the device must answer afterwards: [`Victim::is_alive`] binds anew and moves data.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use mlx5_spec::cmd::{ENTRY_SIZE, OPCODES, Opcode, entry};
use mlx5_spec::qp::{qpc, state};
use mlx5_spec::wqe::opcode;
use mlx5_spec::{cmd, uar};

use crate::memory::PAGE;
use crate::mkey::{Access, MkeySpec, Mr, UmrSpec, mtt_words};
use crate::{Buffer, Driver, Error, Machine, MachineConfig, OdpMr, Qp, QpSpec, Result, Sge, Srq, Wqe};

/// Commands or work requests of one program at most.
const MAX_STEPS: usize = 48;
/// Programs that one machine lives through.
const FRESH_AFTER: u32 = 512;
const VA: u64 = 0x7700_0000_0000;
const LEN: u64 = 4 * PAGE;

/// A program: bytes that run out give zeroes.
pub struct Program<'a> {
    bytes: &'a [u8],
}

impl<'a> Program<'a> {
    /// From its bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next bytes, zeroes behind the end.
    pub fn word<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.take(N);
        std::array::from_fn(|i| taken.get(i).copied().unwrap_or(0))
    }

    /// One of `count`.
    pub fn pick(&mut self, count: usize) -> usize {
        usize::from(u16::from_le_bytes(self.word())) % count.max(1)
    }

    /// A dword: often one that sits on some border.
    pub fn dword(&mut self, live: &[u32]) -> u32 {
        let kind = self.byte();
        let value = u32::from_le_bytes(self.word());
        match kind % 8 {
            0 => 0,
            1 => u32::MAX,
            2 => 1 << (value % 32),
            3 => (1u32 << (value % 32)).wrapping_sub(1),
            4 | 5 => live.get(value as usize % live.len().max(1)).copied().unwrap_or(0),
            6 => value % 64,
            _ => value,
        }
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (now, later) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = later;
        now
    }
}

/// A machine whose driver has one of everything.
pub struct Victim {
    machine: Arc<Machine>,
    driver: Arc<Driver>,
    lanes: Vec<Qp>,
    srq: Srq,
    umr: Qp,
    memory: Buffer,
    mr: Mr,
    odp: OdpMr,
    /// Inputs of the commands that made all that.
    templates: Vec<Vec<u8>>,
    /// Numbers and keys that exist.
    live: Vec<u32>,
    programs: u32,
    /// Kinds of answers seen: what a fuzzer steers by.
    outcomes: HashSet<u64>,
    news: bool,
}

impl Victim {
    /// A fresh machine.
    pub fn new() -> Result<Self> {
        Self::on(Arc::new(Machine::new(MachineConfig { ram_mib: 64, ..MachineConfig::default() })))
    }

    /// Binds to a machine in whatever state, as a kexec'd kernel would.
    fn on(machine: Arc<Machine>) -> Result<Self> {
        machine.guest.reclaim();
        machine.enable();
        let driver = Driver::probe(&machine)?;
        driver.commands.record(true);
        let pd = driver.alloc_pd()?;
        let cq = driver.create_cq(8)?;
        let spec = QpSpec { retry_count: 1, ack_timeout: 4, rnr_retry: 1, ..QpSpec::rc(&driver, pd, &cq) };
        let srq = Srq::create(&driver.context, pd, 4)?;
        let (one, other) = Qp::pair(&driver, spec.clone(), spec.clone())?;
        // Another page, so that both engines have work.
        let other_page = QpSpec { uar: driver.alloc_uar()?, ..spec.clone() };
        let receiver = QpSpec { srq: Some(srq.srqn), ..spec.clone() };
        let (three, four) = Qp::pair(&driver, other_page, receiver)?;
        let memory = machine.guest.scattered(LEN);
        let mr = driver.register(pd, &memory, VA, Access::ALL)?;
        let ksm = MkeySpec { mode: 3, ..MkeySpec::mtt(pd, Access::ALL, 0, LEN, vec![u64::from(mr.key), VA]) };
        let ksm = driver.create_mkey(&ksm)?;
        let odp = OdpMr::register(&driver, pd, VA, LEN, Access::ALL)?;
        let umr = QpSpec { service: mlx5_spec::qp::service_type::REG_UMR, log_rq: 0, ..spec };
        let umr = Qp::create(&driver.context, umr)?;
        umr.connect(umr.peer())?;
        one.query()?;
        let lanes = vec![one, other, three, four];
        let numbers = [pd, cq.cqn, srq.srqn, umr.qpn, mr.key, mr.key >> 8, ksm, odp.mr.key, driver.dma_key, driver.uar];
        let live = numbers.into_iter().chain(lanes.iter().map(|qp| qp.qpn)).collect();
        let templates = driver.commands.record(false);
        // From here on a command may take away the queue that would tell of its end.
        driver.commands.use_events(None);
        Ok(Self {
            machine,
            driver,
            lanes,
            srq,
            umr,
            memory,
            mr,
            odp,
            templates,
            live,
            programs: 0,
            outcomes: HashSet::new(),
            news: false,
        })
    }

    /// Runs a program of commands and register accesses.
    ///
    /// # Errors
    /// The device does not answer any more.
    pub fn commands(&mut self, bytes: &[u8]) -> Result<()> {
        let mut program = Program::new(bytes);
        for _ in 0..MAX_STEPS {
            if program.is_over() {
                break;
            }
            match program.byte() % 16 {
                0..=9 => self.command(&mut program)?,
                10 | 11 => self.raw_entry(&mut program),
                12 | 13 => self.register_write(&mut program),
                14 => self.register_read(&mut program),
                _ => self.driver.commands.doorbell(u32::from_le_bytes(program.word())),
            }
        }
        self.is_alive()
    }

    /// Runs a program of work requests.
    ///
    /// # Errors
    /// The device does not answer any more.
    pub fn wqes(&mut self, bytes: &[u8]) -> Result<()> {
        let mut program = Program::new(bytes);
        for _ in 0..MAX_STEPS {
            if program.is_over() {
                break;
            }
            match program.byte() % 16 {
                0..=10 => self.send(&mut program),
                11 | 12 => self.receive(&mut program),
                13 => self.record(&mut program),
                14 => self.scribble(&mut program),
                _ => std::thread::sleep(Duration::from_micros(u64::from(program.byte()))),
            }
        }
        let cq = self.lanes[0].spec.send_cq.clone();
        while let Some(cqe) = cq.poll() {
            let opcode = mlx5_spec::cq::cqe::SEND_OPCODE.get(&cqe.bytes);
            let (kind, syndrome) = cqe.outcome();
            self.note(u64::from(kind) << 16 | u64::from(syndrome) << 8 | u64::from(opcode));
        }
        self.is_alive()
    }

    /// Whether the device still does its work: binds anew when the old binding has suffered, and moves data.
    ///
    /// # Errors
    /// It does not.
    pub fn is_alive(&mut self) -> Result<()> {
        self.programs += 1;
        let moved = match self.programs % 16 {
            0 => None,
            turn if turn % 4 == 0 => Some(self.repair()),
            _ => Some(self.mend()),
        };
        match moved {
            Some(Ok(())) => Ok(()),
            // Hostile commands may have destroyed anything. A new binding finds a device like new.
            _ => {
                let machine = if self.is_fresh() {
                    Arc::new(Machine::new(MachineConfig { ram_mib: 64, ..MachineConfig::default() }))
                } else {
                    self.machine.clone()
                };
                let (programs, news) = (self.programs, self.news);
                let outcomes = std::mem::take(&mut self.outcomes);
                *self = Self { programs, news, outcomes, ..Self::on(machine)? };
                self.repair()
            }
        }
    }

    /// Whether an answer of a kind not seen before has come since this was last asked.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Whether the machine is a new one, so that earlier programs do not matter for what follows.
    pub fn is_fresh(&self) -> bool {
        self.programs.is_multiple_of(FRESH_AFTER)
    }

    fn note(&mut self, outcome: u64) {
        self.news |= self.outcomes.insert(outcome);
    }

    /// Sets those queue pairs up again that have failed; the others keep what they are waiting for.
    fn mend(&self) -> Result<()> {
        let qps = &self.machine.nic.hca().qps;
        let works = |qp: &Qp| qps.get(qp.qpn).is_some_and(|qp| qp.attrs().state == state::RTS);
        for pair in self.lanes.chunks(2).filter(|pair| !pair.iter().all(works)) {
            for qp in pair {
                qp.to_reset()?;
            }
            pair[0].connect(pair[1].peer())?;
            pair[1].connect(pair[0].peer())?;
        }
        if !works(&self.umr) {
            self.umr.to_reset()?;
            self.umr.connect(self.umr.peer())?;
        }
        Ok(())
    }

    /// Sets queue pairs up again and moves data through two of them.
    fn repair(&mut self) -> Result<()> {
        let peers = [1, 0, 3, 2].map(|peer| self.lanes[peer].peer());
        for qp in self.lanes.iter().chain([&self.umr]) {
            qp.to_reset()?;
        }
        for (qp, peer) in self.lanes.iter().zip(peers) {
            qp.connect(peer)?;
        }
        self.umr.connect(self.umr.peer())?;
        let one = &self.lanes[0];
        while one.spec.send_cq.poll().is_some() {}
        // A key of its own: those in use may have been changed by a UMR.
        let spec = MkeySpec::mtt(one.spec.pd, Access::ALL, VA, LEN, mtt_words(&self.memory, Access::ALL));
        let key = self.driver.create_mkey(&spec)?;
        one.run(Wqe::write(VA + PAGE, key).sge(Sge { key, va: VA, len: 64 }))?;
        self.driver.destroy_mkey(key)?;
        match one.queried(qpc::STATE)? {
            state::RTS => Ok(()),
            other => Err(Error::Device(format!("queue pair in state {other}"))),
        }
    }

    fn command(&mut self, program: &mut Program<'_>) -> Result<()> {
        let mut input = match program.byte() % 4 {
            0 => vec![0; 16 + program.pick(0x400)],
            _ => self.templates[program.pick(self.templates.len())].clone(),
        };
        match program.byte() % 16 {
            0 => cmd::IN_OPCODE.set(&mut input, u32::from(u16::from_le_bytes(program.word()))),
            1..=3 => cmd::IN_OPCODE.set(&mut input, u32::from(OPCODES[program.pick(OPCODES.len())].0.0)),
            _ => (),
        }
        for _ in 0..program.byte() % 6 {
            let at = program.pick(input.len() / 4) * 4;
            let value = program.dword(&self.live);
            if let Some(to) = input.get_mut(at..at + 4) {
                to.copy_from_slice(&value.to_be_bytes());
            }
        }
        if program.byte().is_multiple_of(8) {
            input.truncate(program.pick(input.len()).max(4));
        }
        let out_len = if program.byte().is_multiple_of(4) { program.pick(0x1200) } else { 0x110 };
        let opcode = Opcode(cmd::IN_OPCODE.get(&input) as u16);
        let answer = self.driver.commands.execute(&input, out_len);
        // Unknown opcodes are all alike.
        let named = opcode.name().map_or(0, |_| u64::from(opcode.0));
        self.note(match &answer {
            Ok(_) => named,
            Err(Error::Command { status, .. }) => 1 << 32 | u64::from(*status) << 16 | named,
            Err(Error::Delivery { status, .. }) => 2 << 32 | u64::from(*status) << 16,
            Err(_) => 3 << 32,
        });
        match answer {
            Err(error @ Error::Timeout(_)) => Err(error),
            _ => Ok(()),
        }
    }

    fn raw_entry(&mut self, program: &mut Program<'_>) {
        let slot = program.pick(32) as u32;
        let mut bytes = [0; ENTRY_SIZE];
        entry::TYPE.set(&mut bytes, cmd::TYPE_PCI);
        entry::INPUT_LENGTH.set(&mut bytes, program.dword(&[16, 32, 0x110]));
        entry::INPUT_MAILBOX.set(&mut bytes, self.address(program));
        entry::OUTPUT_MAILBOX.set(&mut bytes, self.address(program));
        entry::OUTPUT_LENGTH.set(&mut bytes, program.dword(&[16, 32, 0x110]));
        entry::OWNERSHIP.set(&mut bytes, 1);
        for _ in 0..program.byte() % 4 {
            bytes[program.pick(ENTRY_SIZE - 1)] = program.byte();
        }
        self.driver.commands.write_entry(slot, &bytes);
        self.driver.commands.doorbell(1 << slot);
        // The driver must not use the slot while it is the device's.
        let _ = self.driver.commands.settle(slot);
    }

    fn address(&self, program: &mut Program<'_>) -> u64 {
        match program.byte() % 4 {
            0 => 0,
            1 => u64::from_le_bytes(program.word()),
            _ => self.memory.gpa(program.pick(LEN as usize / 1024) as u64 * 1024),
        }
    }

    fn register_write(&self, program: &mut Program<'_>) {
        let offset = match program.byte() % 4 {
            0 => u64::from(u32::from_le_bytes(program.word())),
            1 => u64::from(u16::from_le_bytes(program.word())),
            _ => u64::from(self.driver.uar) * uar::PAGE_SIZE + program.pick(0x1000) as u64,
        };
        // Not the queue's address or the interface: that is an orderly reset, which ends the program's effect.
        if (0x10..0x18).contains(&offset) {
            return;
        }
        let bytes: [u8; 8] = program.word();
        self.driver.bar.write(offset, &bytes[..1 << (program.byte() % 4)]);
    }

    fn register_read(&self, program: &mut Program<'_>) {
        let offset = u64::from(u32::from_le_bytes(program.word()) % 0x3000);
        let mut bytes = [0; 8];
        self.driver.bar.read(offset, &mut bytes[..1 << (program.byte() % 4)]);
    }

    fn sge(&self, program: &mut Program<'_>) -> Sge {
        let key = if program.byte().is_multiple_of(8) {
            program.dword(&self.live)
        } else {
            [self.mr.key, self.odp.mr.key, self.driver.dma_key][program.pick(3)]
        };
        let va = match program.byte() % 8 {
            0 => u64::from_le_bytes(program.word()),
            1 => u64::MAX - u64::from(program.byte()),
            2 => self.memory.gpa(0),
            _ => VA + program.pick(LEN as usize + 8) as u64,
        };
        let len = if program.byte().is_multiple_of(8) { program.dword(&[]) } else { program.pick(9000) as u32 };
        Sge { key, va, len }
    }

    fn send(&self, program: &mut Program<'_>) {
        let target = self.sge(program);
        let mut wqe = match program.byte() % 12 {
            0 | 1 => Wqe::write(target.va, target.key),
            2 | 3 => Wqe::read(target.va, target.key),
            4 => Wqe::send(),
            5 => Wqe::fetch_add(target.va & !7, target.key, 1),
            6 => Wqe::new(opcode::RDMA_WRITE_IMM).remote(target.va, target.key),
            7 => Wqe::new(opcode::SEND_INVAL).immediate(target.key),
            8 => self.umr(program, target.key),
            9 => Wqe::nop().inline(&program.word::<16>()),
            10 => Wqe::send().datagram(target.key, 1, target.len),
            _ => Wqe::new(u32::from(program.byte())).immediate(target.key),
        };
        for _ in 0..program.byte() % 4 {
            wqe = match program.byte() % 4 {
                0 => wqe.inline(&vec![program.byte(); program.pick(200)]),
                1 => wqe.segment(&program.word::<16>()),
                _ => wqe.sge(self.sge(program)),
            };
        }
        if program.byte().is_multiple_of(8) {
            wqe = wqe.claiming(u32::from(program.byte()));
        }
        let qp = match program.byte() % 6 {
            lane @ 0..4 => &self.lanes[usize::from(lane)],
            _ => &self.umr,
        };
        qp.post_one(wqe.signaled());
    }

    fn umr(&self, program: &mut Program<'_>, key: u32) -> Wqe {
        let mut context = vec![0; 64];
        for _ in 0..program.byte() % 4 {
            let (at, value) = (program.pick(16) * 4, program.dword(&self.live));
            context[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let list = (0..program.byte() % 16).map(|_| self.address(program) | u64::from(program.byte() % 4)).collect();
        let umr = UmrSpec {
            key,
            flags: u32::from(program.byte()),
            mask: u64::from_le_bytes(program.word()),
            context,
            first: u64::from(program.dword(&[0, 8])) * 8,
            list,
        };
        umr.wqe(self.driver.dma_key, self.memory.gpa(0))
    }

    fn receive(&self, program: &mut Program<'_>) {
        let list: Vec<_> = (0..program.byte() % 5).map(|_| self.sge(program)).collect();
        match program.byte() % 4 {
            0 => drop(self.srq.post(&list)),
            1 => self.srq.link(u16::from(program.byte()), u16::from_le_bytes(program.word())),
            lane => drop(self.lanes[usize::from(lane) - 1].receive(&list)),
        }
    }

    fn record(&self, program: &mut Program<'_>) {
        let qp = &self.lanes[program.pick(4)];
        self.machine.guest.write(qp.record, &program.word::<8>());
        self.driver.doorbell(qp.spec.uar, uar::SQ_DOORBELL, program.word());
    }

    fn scribble(&self, program: &mut Program<'_>) {
        let qp = &self.lanes[program.pick(4)];
        let at = program.pick((64 << qp.spec.log_sq) - 8) as u64;
        qp.scribble_sq(at, &program.word::<8>());
    }
}
