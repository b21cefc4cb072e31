// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hot doorbells: a UAR page that is rung in a stream is plain memory for a while, and nothing that is written there is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mlx5::{EnginePolicy, NicConfig};
use mlx5_spec::cmd::Opcode;
use mlx5_spec::cq::syndrome;
use mlx5_spec::eq::event;
use rnic_testdrive::cq::CqSpec;
use rnic_testdrive::driver::COMPLETION_VECTOR;
use rnic_testdrive::eq::{EqSpec, EventQueue};
use rnic_testdrive::{Access, Buffer, Cq, Driver, Machine, MachineConfig, Mr, Qp, QpSpec, Wqe};

use crate::scene::{LEN, LOCAL_VA, REMOTE_VA};

/// Two queue pairs on a UAR page of their own, as a program has them.
struct Program {
    driver: Arc<Driver>,
    uar: u32,
    cq: Arc<Cq>,
    one: Qp,
    other: Qp,
    local: Buffer,
    remote: Buffer,
    local_mr: Mr,
    remote_mr: Mr,
}

impl Program {
    fn new(engines: EnginePolicy) -> Self {
        let config = MachineConfig::default();
        let nic = NicConfig { engines, hot_doorbells: true, ..config.nic };
        let driver = Driver::probe(&Arc::new(Machine::new(MachineConfig { nic, ..config }))).unwrap();
        let uar = driver.alloc_uar().unwrap();
        Self::on(driver, uar)
    }

    /// Another one on the same page.
    fn on(driver: Arc<Driver>, uar: u32) -> Self {
        let pd = driver.alloc_pd().unwrap();
        let spec = CqSpec { log_size: 6, uar, eqn: driver.comp_eq.eqn, ignore_overrun: false };
        let (cq, other_cq) = (Cq::create(&driver.context, spec).unwrap(), Cq::create(&driver.context, spec).unwrap());
        let spec = |cq| QpSpec { uar, ..QpSpec::rc(&driver, pd, cq) };
        let (one, other) = Qp::pair(&driver, spec(&cq), spec(&other_cq)).unwrap();
        let guest = &driver.machine.guest;
        let (local, remote) = (guest.scattered(LEN), guest.scattered(LEN));
        let local_mr = driver.register(pd, &local, LOCAL_VA, Access::ALL).unwrap();
        let remote_mr = driver.register(pd, &remote, REMOTE_VA, Access::ALL).unwrap();
        Self { driver, uar, cq, one, other, local, remote, local_mr, remote_mr }
    }

    fn hot(&self) -> u64 {
        self.driver.machine.nic.inspect()["hot_uars"].as_u64().unwrap()
    }

    /// Writes that told nobody.
    fn silent(&self) -> u64 {
        self.driver.machine.doorbells.silent.load(Ordering::Relaxed)
    }

    fn write(&self, at: u64) {
        let (at, len) = (at * 8 % (LEN - 8), 8);
        self.one.post_one(Wqe::write(REMOTE_VA + at, self.remote_mr.key).sge(self.local_mr.sge(at, len)).signaled());
        self.cq.wait_ok().unwrap();
    }

    /// Until the page is hot, and then so much on it that some of it told nobody.
    fn heat(&self) {
        self.driver
            .until("hot page", || {
                (0..100).for_each(|at| self.write(at));
                self.hot() == 1
            })
            .unwrap();
        let before = self.silent();
        self.driver
            .until("write that costs no exit", || {
                self.write(1);
                self.silent() > before
            })
            .unwrap();
    }

    fn cold(&self) {
        self.driver.until("cold page", || self.hot() == 0).unwrap();
    }
}

fn policies() -> [EnginePolicy; 2] {
    [EnginePolicy::Inline, EnginePolicy::Threads(2)]
}

#[test]
fn doorbells_in_a_stream_cost_no_exit() {
    for engines in policies() {
        let program = Program::new(engines);
        program.local.fill_pattern(1);
        program.heat();
        let before = program.silent();
        (0..LEN / 8).for_each(|at| program.write(at));
        assert!(program.local.bytes(0, LEN - 8) == program.remote.bytes(0, LEN - 8));
        assert!(program.silent() > before, "{engines}");
        // Nothing comes: it is registers again, and they work.
        program.cold();
        let before = program.silent();
        program.write(3);
        assert_eq!(program.silent(), before);
        assert!(program.driver.machine.nic.inspect()["counters"]["wqes"].as_u64().unwrap() > LEN / 8);
    }
}

/// The first arm of a completion queue is a record of zero, like that of one which was never armed.
#[test]
fn an_arm_on_a_hot_page_brings_its_event() {
    for engines in policies() {
        let program = Program::new(engines);
        program.heat();
        for round in 0..20 {
            program.cq.arm(false);
            // While it goes on being rung.
            let mut told = None;
            let come = program.driver.until("completion event", || {
                program.write(round);
                told = told.take().or(program.driver.comp_eq.poll());
                told.is_some()
            });
            assert_eq!((come, told.unwrap().event_type()), (Ok(()), event::COMP), "{engines}, round {round}");
            program.driver.comp_eq.arm();
        }
        // It arms all the time, and is left alone for a while.
        program.cold();
        (0..300).for_each(|at| program.write(at));
        assert_eq!(program.hot(), 0, "{engines}");
    }
}

#[test]
fn a_page_of_event_queues_stays_registers() {
    let program = Program::new(EnginePolicy::Inline);
    program.heat();
    let spec = EqSpec { events: &[], vector: COMPLETION_VECTOR, log_size: 4, uar: program.uar };
    let driver = &program.driver;
    let eq = EventQueue::create(&driver.machine, &driver.bar, &driver.commands, spec).unwrap();
    program.cold();
    (0..500).for_each(|at| program.write(at));
    assert_eq!(program.hot(), 0);
    eq.destroy(&driver.commands).unwrap();
    program.heat();
}

#[test]
fn what_is_posted_in_error_is_flushed() {
    for engines in policies() {
        let program = Program::new(engines);
        let broken = Program::on(program.driver.clone(), program.uar);
        let write = |key| Wqe::write(REMOTE_VA, key).sge(broken.local_mr.sge(0, 8)).signaled();
        program.heat();
        broken.one.post_one(write(0x77_7777));
        // While the others of its page are rung.
        let completed = || {
            let mut found = None;
            let come = program.driver.until("completion", || {
                program.write(1);
                found = found.take().or(broken.cq.poll());
                found.is_some()
            });
            come.map(|()| found.unwrap().syndrome())
        };
        assert_eq!(completed(), Ok(syndrome::REMOTE_ACCESS_ERR), "{engines}");
        for _ in 0..20 {
            broken.one.post_one(write(broken.remote_mr.key));
            assert_eq!(completed(), Ok(syndrome::WR_FLUSH_ERR), "{engines}");
        }
    }
}

#[test]
fn pages_that_go_and_resets_leave_nothing_exposed() {
    let program = Program::new(EnginePolicy::Inline);
    program.heat();
    for qp in [&program.one, &program.other] {
        qp.destroy().unwrap();
    }
    program.driver.dealloc_uar(program.uar).unwrap();
    assert_eq!(program.hot(), 0);
    for reset in [Machine::function_reset, Machine::reset] {
        let program = Program::new(EnginePolicy::Inline);
        program.heat();
        reset(&program.driver.machine);
        assert_eq!(program.hot(), 0);
    }
    // Memory decoding goes, and comes back.
    let program = Program::new(EnginePolicy::Threads(1));
    program.heat();
    let command = program.driver.machine.config_read16(4);
    program.driver.machine.config_write16(4, command & !2);
    assert_eq!(program.hot(), 0);
    program.driver.machine.config_write16(4, command);
    program.heat();
}

#[test]
fn a_host_without_such_memory_goes_on_as_before() {
    let program = Program::new(EnginePolicy::Inline);
    program.driver.machine.doorbells.refuse.store(true, Ordering::Relaxed);
    (0..1000).for_each(|at| program.write(at));
    assert_eq!((program.hot(), program.silent()), (0, 0));
}

/// A queue pair that always has work does not keep the others of the page waiting.
#[test]
fn a_busy_neighbour_starves_nobody() {
    let program = Program::new(EnginePolicy::Threads(1));
    program.heat();
    let write = |at: u64| Wqe::write(REMOTE_VA + at * 8, program.remote_mr.key).sge(program.local_mr.sge(at * 8, 8));
    for round in 0..50 {
        // The other way the same registration serves: one process.
        let many: Vec<Wqe> = (0..31).map(write).collect();
        program.one.post(&many);
        program.other.post_one(write(40).signaled());
        program.other.spec.send_cq.wait_for(Duration::from_secs(10)).unwrap();
        program.one.post_one(write(round).signaled());
        program.cq.wait_ok().unwrap();
    }
    assert_eq!(program.driver.command(rnic_testdrive::command::Input::new(Opcode::NOP, 16)).map(|_| ()), Ok(()));
}
