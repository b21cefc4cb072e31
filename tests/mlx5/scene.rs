// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What most tests begin with: a bound driver, two connected queue pairs, a piece of memory for each.

use std::sync::Arc;

use rnic_testdrive::{Access, Buffer, Cq, Driver, Machine, MachineConfig, Mr, Qp, QpSpec};

/// Where the pieces of memory are registered: neither page aligned nor where they lie.
pub const LOCAL_VA: u64 = 0x7000_1000_0000;
/// The other one.
pub const REMOTE_VA: u64 = 0x7fff_2000_0000;
/// Bytes of each.
pub const LEN: u64 = 64 << 10;

/// A machine with default settings.
pub fn machine() -> Arc<Machine> {
    Arc::new(Machine::new(MachineConfig::default()))
}

/// Two queue pairs of one process, connected: `one` asks, `other` answers.
pub struct Pair {
    pub driver: Arc<Driver>,
    pub pd: u32,
    pub one_cq: Arc<Cq>,
    pub other_cq: Arc<Cq>,
    pub one: Qp,
    pub other: Qp,
    pub local: Buffer,
    pub remote: Buffer,
    pub local_mr: Mr,
    pub remote_mr: Mr,
}

impl Pair {
    /// Reliable connections.
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// The same with changed attributes; both get them.
    pub fn with(change: impl Fn(&mut QpSpec)) -> Self {
        Self::on(Driver::probe(&machine()).unwrap(), change)
    }

    /// The same on a bound driver.
    pub fn on(driver: Arc<Driver>, change: impl Fn(&mut QpSpec)) -> Self {
        let pd = driver.alloc_pd().unwrap();
        let (one_cq, other_cq) = (driver.create_cq(6).unwrap(), driver.create_cq(6).unwrap());
        let spec = |cq| {
            let mut spec = QpSpec::rc(&driver, pd, cq);
            change(&mut spec);
            spec
        };
        let (one, other) = Qp::pair(&driver, spec(&one_cq), spec(&other_cq)).unwrap();
        let guest = &driver.machine.guest;
        let (local, remote) = (guest.scattered(LEN), guest.scattered(LEN));
        let local_mr = driver.register(pd, &local, LOCAL_VA, Access::ALL).unwrap();
        let remote_mr = driver.register(pd, &remote, REMOTE_VA, Access::ALL).unwrap();
        Self { driver, pd, one_cq, other_cq, one, other, local, remote, local_mr, remote_mr }
    }

    /// Destroys everything and unbinds.
    pub fn tear_down(self) {
        for qp in [&self.one, &self.other] {
            qp.to_reset().unwrap();
            qp.destroy().unwrap();
        }
        self.one_cq.destroy().unwrap();
        self.other_cq.destroy().unwrap();
        self.driver.destroy_mkey(self.local_mr.key).unwrap();
        self.driver.destroy_mkey(self.remote_mr.key).unwrap();
        self.driver.dealloc_pd(self.pd).unwrap();
        self.driver.remove().unwrap();
    }

    /// The bytes that a transfer of `len` from `from` to `to` must have left behind.
    pub fn assert_copied(&self, from: (&Buffer, u64), to: (&Buffer, u64), len: u64) {
        assert!(from.0.bytes(from.1, len) == to.0.bytes(to.1, len), "{len} bytes differ");
    }
}
