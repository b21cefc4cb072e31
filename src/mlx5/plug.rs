// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A NIC on its way into a machine.

use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

use pci::{Plug, PlugError, SharedDevice, Socket};
use probe::ledger::Ledger;

use crate::fabric::{LocalFabric, MAX_NICS};
use crate::hooks::NicRule;
use crate::{Nic, NicConfig, NicHandle};

/// The handle of a NIC: there once the machine has been made.
pub type PluggedNic = Arc<OnceLock<NicHandle>>;

/// A NIC that waits for its slot.
pub struct NicPlug {
    index: u8,
    config: NicConfig,
    ledger: Arc<Ledger>,
    fabric: Arc<LocalFabric>,
    rules: Vec<NicRule>,
    plugged: PluggedNic,
}

impl NicPlug {
    /// NIC number `index` of a machine, whose events go into `ledger`, and whose peers are behind `fabric`.
    pub fn new(index: u8, config: NicConfig, ledger: Arc<Ledger>, fabric: Arc<LocalFabric>) -> Self {
        Self { index, config, ledger, fabric, rules: Vec::new(), plugged: PluggedNic::default() }
    }

    /// The same with injections that are there before a guest sees the device; those beyond [`probe::MAX_RULES`] are not.
    pub fn injecting(self, rules: Vec<NicRule>) -> Self {
        Self { rules, ..self }
    }

    /// Where its handle will be.
    pub fn plugged(&self) -> PluggedNic {
        self.plugged.clone()
    }
}

impl Plug for NicPlug {
    fn vectors(&self) -> u16 {
        Nic::vectors(&self.config)
    }

    fn plug(self: Box<Self>, socket: Socket) -> Result<SharedDevice, PlugError> {
        let Socket { requester, ram, router, doorbells, vcpus } = socket;
        let config = NicConfig { engines: self.config.engines.resolve(vcpus), ..self.config };
        let (nic, handle) = Nic::new(self.index, config, requester, ram, self.ledger, router, doorbells)?;
        if !self.fabric.join(handle.hca()) {
            log::warn!("nic{}: a fabric joins {MAX_NICS} NICs; this one hears only itself", self.index);
        }
        for rule in self.rules {
            handle.injections().add(rule);
        }
        // A plug is used once.
        drop(self.plugged.set(handle));
        Ok(Arc::new(Mutex::new(nic)))
    }
}
