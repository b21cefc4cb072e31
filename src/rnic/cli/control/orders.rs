// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the orders do to a machine of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use blk::{DiskHandle, DiskLedger};
use lab::machine::Devices;
use mlx5::NicHandle;
use mlx5::hooks::NicLedger;
use parking_lot::Mutex;
use serde_json::{Value, json};
use vmm::orders::{Order, Remote, State};
use vmm::run::{Resident, resident_kib};

use super::events;
use super::protocol::{Args, Request, greeting};
use super::server::{Answer, Backend};

/// A machine that takes orders.
pub struct Machine {
    pub(super) devices: Arc<Devices>,
    remote: Remote,
    /// One order at a time changes the machine.
    pub(super) changes: Mutex<()>,
    /// Injections that there have been, so that each gets a name of its own.
    pub(super) injections: AtomicUsize,
}

type Does = fn(&Machine, Args) -> Result<Value, String>;

/// Name, keys, and what it does.
const ORDERS: &[(&str, &[&str], Does)] = &[
    ("ping", &[], |_, _| Ok(greeting())),
    ("pause", &[], |machine, _| machine.pause()),
    ("resume", &[], |machine, _| machine.resume()),
    ("inspect", &[], |machine, _| machine.inspect()),
    ("ledger", &["since", "limit"], |machine, args| events::ledger(&machine.devices.ledger, args)),
    ("counters", &[], |machine, _| Ok(machine.counters())),
    ("port", &["nic", "state"], Machine::port),
    ("fault-list", &["since", "limit"], Machine::fault_list),
    ("fault-arm", &["plan", "inject", "seed", "file"], Machine::fault_arm),
    ("fault-disarm", &["name", "all"], Machine::fault_disarm),
    (POWER_OFF, &[], |_, _| Ok(json!({}))),
];
/// Carried out when it has been answered: then nobody is there any more who could.
const POWER_OFF: &str = "power-off";

impl Backend for Machine {
    fn answer(&self, request: Request) -> Answer {
        let Some((name, keys, does)) = ORDERS.iter().find(|(name, ..)| *name == request.order) else {
            let names: Vec<&str> = ORDERS.iter().map(|(name, ..)| *name).collect();
            return Err(format!("{:?} is no order; those that are: {}", request.order, names.join(", "))).into();
        };
        let result = Args::new(request, keys).and_then(|args| does(self, args));
        let remote = self.remote.clone();
        let end = move || drop(remote.give(Order::End));
        let then = (*name == POWER_OFF && result.is_ok()).then(|| Box::new(end) as Box<dyn FnOnce() + Send>);
        Answer { result, then }
    }
}

impl Machine {
    /// The machine that `remote` leads to. `injections`: so many it has from the first on.
    pub fn new(devices: Arc<Devices>, remote: Remote, injections: usize) -> Self {
        Self { devices, remote, changes: Mutex::default(), injections: AtomicUsize::new(injections) }
    }

    pub(super) fn nics(&self) -> impl Iterator<Item = &NicHandle> {
        (0..).map_while(|index| self.devices.nic(index))
    }

    pub(super) fn disks(&self) -> &[DiskHandle] {
        &self.devices.disks
    }

    /// vCPUs first: what they have rung for by then waits in the NIC.
    fn pause(&self) -> Result<Value, String> {
        let _changes = self.changes.lock();
        let state = self.remote.give(Order::Pause)?;
        for (index, nic) in self.nics().enumerate() {
            if !nic.pause() {
                self.nics().for_each(NicHandle::resume);
                self.remote.give(Order::Resume)?;
                return Err(format!("an engine of nic{index} does not come to stand within 5 s; the machine goes on"));
            }
        }
        let in_flight: Vec<usize> = self.disks().iter().map(DiskHandle::in_flight).collect();
        let mut told = describe(&state);
        told["disk_requests_in_flight"] = json!(in_flight);
        Ok(told)
    }

    fn resume(&self) -> Result<Value, String> {
        let _changes = self.changes.lock();
        self.nics().for_each(NicHandle::resume);
        Ok(describe(&self.remote.give(Order::Resume)?))
    }

    fn inspect(&self) -> Result<Value, String> {
        let machine = describe(&self.remote.give(Order::Look)?);
        let disk = |disk: &DiskHandle| {
            json!({"disk": disk.index(), "path": disk.path().display().to_string(), "sectors": disk.capacity(), "in_flight": disk.in_flight(),
                "counters": disk.stats()})
        };
        let nics: Vec<Value> = self.nics().map(NicHandle::inspect).collect();
        let disks: Vec<Value> = self.disks().iter().map(disk).collect();
        let resident =
            resident_kib().map(|Resident { guest, own, files }| json!({"guest": guest, "own": own, "files": files}));
        let (requests, pages) = self.devices.ledger.requests_held();
        let ledger = json!({"requests": requests, "pages": pages, "nic_events": self.devices.ledger.nic_events_held()});
        Ok(json!({"machine": machine, "resident_kib": resident, "ledger": ledger, "nics": nics, "disks": disks}))
    }

    fn counters(&self) -> Value {
        let nics: Vec<Value> = self.nics().map(NicHandle::counters).collect();
        let disks: Vec<Value> = self.disks().iter().map(|disk| json!(disk.stats())).collect();
        json!({"nics": nics, "disks": disks, "next": self.devices.ledger.now() + 1})
    }

    fn port(&self, mut args: Args) -> Result<Value, String> {
        let index = args.number("nic", u8::MAX.into())?.unwrap_or(0);
        let wanted = args.word("state", &["up", "down"])?.map(|word| word == 0);
        let nic = self.nics().nth(index as usize);
        let count = self.nics().count();
        let nic = nic.ok_or_else(|| format!("there is no nic{index}: the machine has {count} (--nic adds one)"))?;
        let _changes = self.changes.lock();
        let changed = wanted.is_some_and(|up| nic.set_port(up));
        Ok(json!({"nic": index, "state": if nic.port_is_up() { "up" } else { "down" }, "changed": changed}))
    }

    /// The number of the first of `count` new injections.
    pub(super) fn number(&self, count: usize) -> usize {
        self.injections.fetch_add(count, Ordering::AcqRel) + 1
    }
}

fn describe(state: &State) -> Value {
    json!({
        "state": if state.paused { "paused" } else { "running" },
        "panicked": state.panicked,
        "age_ms": u64::try_from(state.age.as_millis()).unwrap_or(u64::MAX),
        "vcpus": state.vcpus,
    })
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
