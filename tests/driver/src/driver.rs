// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Probing and unloading (contract 4.1, 4.6), and what a driver has in between.

use parking_lot::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mlx5_spec::bits::Field;
use mlx5_spec::caps::{self, cap_mode, cap_type, cmd_hca_cap};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::eq::event;
use mlx5_spec::{init, reg, small};
use probe::Patience;

use crate::command::{Bar, Commands, Input};
use crate::cq::{Cq, CqSpec};
use crate::eq::{EqSpec, Eqe, EventQueue};
use crate::machine::Machine;
use crate::mkey::{Access, MkeySpec, UmrQp};
use crate::{Error, PATIENCE, Result};

/// MSI-X vectors: command, asynchronous and page request events share the first.
pub const CONTROL_VECTOR: u16 = 0;
/// Completions.
pub const COMPLETION_VECTOR: u16 = 1;
/// Page faults.
pub const FAULT_VECTOR: u16 = 2;
/// Asynchronous events that a driver asks for (contract 4.1, row 17).
const ASYNC_EVENTS: &[u32] = &[
    event::PATH_MIG,
    event::COMM_EST,
    event::SQ_DRAINED,
    event::CQ_ERROR,
    event::WQ_CATAS_ERROR,
    event::PATH_MIG_FAILED,
    event::PORT_CHANGE,
    event::WQ_INVAL_REQ_ERROR,
    event::WQ_ACCESS_ERROR,
    event::SRQ_CATAS_ERROR,
    event::SRQ_LAST_WQE,
    event::SRQ_RQ_LIMIT,
    event::DCT_DRAINED,
];

/// How to probe.
#[derive(Debug, Clone, Copy)]
pub struct ProbeOptions {
    /// Commands complete by events once there is an event queue; else all are polled.
    pub command_events: bool,
    /// log2 of the entries of the asynchronous event queue.
    pub log_async_eq: u32,
    /// log2 of the entries of the completion event queue.
    pub log_comp_eq: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { command_events: true, log_async_eq: 8, log_comp_eq: 8 }
    }
}

/// What every object of a driver needs.
pub struct Context {
    /// The machine.
    pub machine: Arc<Machine>,
    /// BAR 0.
    pub bar: Bar,
    /// The command queue.
    pub commands: Commands,
    /// Queues and their doorbell records lie in umems from now on.
    pub in_umems: AtomicBool,
}

/// A bound driver.
pub struct Driver {
    /// Machine, BAR, commands.
    pub context: Arc<Context>,
    /// The driver's own UAR page.
    pub uar: u32,
    /// The driver's own protection domain.
    pub pd: u32,
    /// Key of that domain for all memory by its address (contract 4.2, row 24).
    pub dma_key: u32,
    /// Command completions.
    pub command_eq: Arc<EventQueue>,
    /// Asynchronous events.
    pub async_eq: Arc<EventQueue>,
    /// Page requests, of which there are none.
    pub pages_eq: Arc<EventQueue>,
    /// Completion events.
    pub comp_eq: Arc<EventQueue>,
    /// The UMR queue pair, made when first needed.
    pub(crate) umr: Mutex<Option<UmrQp>>,
    fault_eq: OnceLock<Arc<EventQueue>>,
}

impl std::ops::Deref for Driver {
    type Target = Context;

    fn deref(&self) -> &Context {
        &self.context
    }
}

impl Context {
    /// Executes a command for which only its status matters.
    pub fn command(&self, input: Input) -> Result<Vec<u8>> {
        self.commands.execute(&input.finish(), 16)
    }

    /// Executes a command whose output has `size` bytes.
    pub fn query(&self, input: Input, size: usize) -> Result<Vec<u8>> {
        self.commands.execute(&input.finish(), size)
    }

    /// ALLOC_PD.
    pub fn alloc_pd(&self) -> Result<u32> {
        self.alloc_number(Opcode::ALLOC_PD)
    }

    /// DEALLOC_PD.
    pub fn dealloc_pd(&self, pd: u32) -> Result<()> {
        self.free_number(Opcode::DEALLOC_PD, pd)
    }

    /// ALLOC_UAR.
    pub fn alloc_uar(&self) -> Result<u32> {
        self.alloc_number(Opcode::ALLOC_UAR)
    }

    /// DEALLOC_UAR.
    pub fn dealloc_uar(&self, uar: u32) -> Result<()> {
        self.free_number(Opcode::DEALLOC_UAR, uar)
    }

    /// ALLOC_PD, ALLOC_UAR, ALLOC_XRCD.
    pub fn alloc_number(&self, opcode: Opcode) -> Result<u32> {
        Ok(number(&self.command(Input::new(opcode, 16))?))
    }

    /// DEALLOC_*.
    pub fn free_number(&self, opcode: Opcode, number: u32) -> Result<()> {
        self.command(Input::new(opcode, 16).with(small::object::NUMBER, number)).map(|_| ())
    }

    /// Writes 8 bytes into a UAR page.
    pub fn doorbell(&self, uar: u32, at: u64, bytes: [u8; 8]) {
        self.bar.write(u64::from(uar) * mlx5_spec::uar::PAGE_SIZE + at, &bytes);
    }
}

impl Driver {
    /// Binds to a machine's NIC.
    pub fn probe(machine: &Arc<Machine>) -> Result<Arc<Self>> {
        Self::probe_with(machine, ProbeOptions::default())
    }

    /// The same with options.
    pub fn probe_with(machine: &Arc<Machine>, options: ProbeOptions) -> Result<Arc<Self>> {
        machine.enable();
        let bar = Bar::map(machine);
        let commands = Commands::new(machine, bar.clone())?;
        start_hca(&commands)?;
        let uar = number(&commands.execute(&Input::new(Opcode::ALLOC_UAR, 16).finish(), 16)?);
        let eq = |events: &[u32], vector, log_size| {
            EventQueue::create(machine, &bar, &commands, EqSpec { events, vector, log_size, uar })
        };
        let command_eq = eq(&[event::CMD], CONTROL_VECTOR, 6)?;
        if options.command_events {
            commands.use_events(Some(command_eq.clone()));
        }
        let async_eq = eq(ASYNC_EVENTS, CONTROL_VECTOR, options.log_async_eq)?;
        let pages_eq = eq(&[event::PAGE_REQUEST], CONTROL_VECTOR, 6)?;
        let comp_eq = eq(&[], COMPLETION_VECTOR, options.log_comp_eq)?;
        let mut driver = Self {
            context: Arc::new(Context { machine: machine.clone(), bar, commands, in_umems: AtomicBool::new(false) }),
            uar,
            pd: 0,
            dma_key: 0,
            command_eq,
            async_eq,
            pages_eq,
            comp_eq,
            umr: Mutex::default(),
            fault_eq: OnceLock::new(),
        };
        driver.pd = driver.alloc_pd()?;
        driver.dma_key = driver.create_mkey(&MkeySpec::physical(driver.pd, Access::ALL))?;
        Ok(Arc::new(driver))
    }

    /// Unbinds. What a test made must be destroyed before, or stays in the device's tables.
    pub fn remove(self: Arc<Self>) -> Result<()> {
        if let Some(umr) = self.umr.lock().take() {
            umr.destroy()?;
        }
        self.destroy_mkey(self.dma_key)?;
        self.dealloc_pd(self.pd)?;
        let commands = &self.commands;
        for eq in self.fault_eq.get().into_iter().chain([&self.comp_eq, &self.pages_eq, &self.async_eq]) {
            eq.destroy(commands)?;
        }
        commands.use_events(None);
        self.command_eq.destroy(commands)?;
        self.free_number(Opcode::DEALLOC_UAR, self.uar)?;
        commands.execute(&Input::new(Opcode::TEARDOWN_HCA, 16).finish(), 16)?;
        commands.execute(&Input::new(Opcode::DISABLE_HCA, 16).finish(), 16)?;
        Ok(())
    }

    /// A completion queue of 2^`log_size` entries on the driver's UAR page.
    pub fn create_cq(&self, log_size: u32) -> Result<Arc<Cq>> {
        let spec = CqSpec { log_size, uar: self.uar, eqn: self.comp_eq.eqn, ignore_overrun: false };
        Cq::create(&self.context, spec)
    }

    /// A field of the general capabilities in force.
    pub fn capability(&self, field: Field) -> Result<u32> {
        Ok(field.get(&query_caps(&self.commands, cap_type::GENERAL, cap_mode::CUR)?))
    }

    /// The next asynchronous event, by interrupt.
    pub fn async_event(&self, timeout: Duration) -> Result<Eqe> {
        self.async_eq.wait(timeout, "asynchronous event")
    }

    /// The page-fault event queue, created when first needed, as drivers do (contract 9.1).
    pub fn fault_eq(&self) -> Result<&Arc<EventQueue>> {
        if let Some(eq) = self.fault_eq.get() {
            return Ok(eq);
        }
        let spec = EqSpec { events: &[event::PAGE_FAULT], vector: FAULT_VECTOR, log_size: 10, uar: self.uar };
        let eq = EventQueue::create(&self.machine, &self.bar, &self.commands, spec)?;
        Ok(self.fault_eq.get_or_init(|| eq))
    }

    /// Waits until `done` says so.
    ///
    /// # Errors
    /// [`Error::Timeout`] with `what`.
    pub fn until(&self, what: &'static str, mut done: impl FnMut() -> bool) -> Result<()> {
        let mut patience = Patience::new(PATIENCE);
        while !done() {
            if patience.is_over() {
                return Err(Error::Timeout(what));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

/// Commands from ENABLE_HCA to QUERY_ADAPTER, with a stock driver's expectations of their outputs.
fn start_hca(commands: &Commands) -> Result<()> {
    let simple = |opcode, op_mod| commands.execute(&Input::new(opcode, 16).op_mod(op_mod).finish(), 16);
    simple(Opcode::ENABLE_HCA, 0)?;
    let issi = commands.execute(&Input::new(Opcode::QUERY_ISSI, 16).finish(), small::query_issi_out::SIZE)?;
    if small::query_issi_out::SUPPORTED_ISSI_DW0.get(&issi) & 2 == 0 {
        return Err(Error::Device("no ISSI 1".into()));
    }
    let issi = Input::new(Opcode::SET_ISSI, 16).with(small::set_issi_in::CURRENT_ISSI, 1);
    commands.execute(&issi.finish(), 16)?;
    give_pages(commands, 1)?;
    let mut general = query_caps(commands, cap_type::GENERAL, cap_mode::CUR)?;
    query_caps(commands, cap_type::GENERAL, cap_mode::MAX)?;
    cmd_hca_cap::CMDIF_CHECKSUM.set(&mut general, 0);
    cmd_hca_cap::PKEY_TABLE_SIZE.set(&mut general, 0);
    set_caps(commands, cap_type::GENERAL, &general)?;
    if cmd_hca_cap::ATOMIC.is_set(&general) {
        query_caps(commands, cap_type::ATOMIC, cap_mode::CUR)?;
        let mut atomic = vec![0; caps::UNION_SIZE];
        caps::atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE.set(&mut atomic, 1);
        set_caps(commands, cap_type::ATOMIC, &atomic)?;
    }
    if cmd_hca_cap::PG.is_set(&general) {
        // Shared receive queues are off until they are asked for.
        query_caps(commands, cap_type::ODP, cap_mode::CUR)?;
        let paging = query_caps(commands, cap_type::ODP, cap_mode::MAX)?;
        set_caps(commands, cap_type::ODP, &paging)?;
    }
    give_pages(commands, 2)?;
    commands.execute(&Input::new(Opcode::INIT_HCA, small::init_hca_in::SIZE).finish(), 16)?;
    let adapter = commands.execute(&Input::new(Opcode::QUERY_ADAPTER, 16).finish(), small::query_adapter_out::SIZE)?;
    if small::query_adapter_out::IEEE_VENDOR_ID.get(&adapter) != 0x00_02c9 {
        return Err(Error::Device("vendor id of the adapter".into()));
    }
    Ok(())
}

/// QUERY_PAGES and, as 6.1 does even for none, MANAGE_PAGES.
fn give_pages(commands: &Commands, when: u32) -> Result<()> {
    let query = Input::new(Opcode::QUERY_PAGES, 16).op_mod(when).finish();
    let wanted = small::query_pages_out::NUM_PAGES.get(&commands.execute(&query, 16)?);
    if wanted != 0 {
        return Err(Error::Device(format!("wants {wanted} pages (contract D7: none)")));
    }
    let give = Input::new(Opcode::MANAGE_PAGES, small::manage_pages_in::SIZE).op_mod(1);
    commands.execute(&give.finish(), 16).map(|_| ())
}

/// QUERY_HCA_CAP: the capability structure.
pub fn query_caps(commands: &Commands, cap_type: u32, mode: u32) -> Result<Vec<u8>> {
    let query = Input::new(Opcode::QUERY_HCA_CAP, 16)
        .with(caps::query_in::CAP_TYPE, cap_type)
        .with(caps::query_in::CAP_MODE, mode);
    let output = commands.execute(&query.finish(), caps::query_out::SIZE)?;
    Ok(output[caps::query_out::CAPABILITY..].to_vec())
}

/// SET_HCA_CAP.
pub fn set_caps(commands: &Commands, cap_type: u32, structure: &[u8]) -> Result<()> {
    let set = Input::new(Opcode::SET_HCA_CAP, caps::set_in::SIZE)
        .with(caps::set_in::CAP_TYPE, cap_type)
        .bytes(caps::set_in::CAPABILITY, structure);
    commands.execute(&set.finish(), 16).map(|_| ())
}

/// ACCESS_REG, reading.
pub fn read_register(commands: &Commands, register: u32, data: &[u8]) -> Result<Vec<u8>> {
    let read = Input::new(Opcode::ACCESS_REG, reg::access_in::SIZE + data.len())
        .op_mod(1)
        .with(reg::access_in::REGISTER_ID, register)
        .bytes(reg::access_in::REGISTER_DATA, data);
    let output = commands.execute(&read.finish(), reg::access_out::SIZE + data.len())?;
    Ok(output[reg::access_out::REGISTER_DATA..].to_vec())
}

/// The health counter, which must move (contract 2).
pub fn health_counter(bar: &Bar) -> u32 {
    bar.read32(init::HEALTH_COUNTER as u64)
}

fn number(output: &[u8]) -> u32 {
    small::object::NUMBER.get(output)
}
