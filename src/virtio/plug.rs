// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio device on its way into a machine.

use std::sync::Arc;

use parking_lot::Mutex;
use pci::{Plug, PlugError, SharedDevice, Socket};

use crate::{VirtioDevice, VirtioPci};

/// Any virtio device, behind the PCI transport once it is plugged in.
pub struct VirtioPlug(pub Box<dyn VirtioDevice>);

impl Plug for VirtioPlug {
    fn vectors(&self) -> u16 {
        VirtioPci::vectors(&*self.0)
    }

    fn plug(self: Box<Self>, socket: Socket) -> Result<SharedDevice, PlugError> {
        let Socket { requester, ram, router, .. } = socket;
        Ok(Arc::new(Mutex::new(VirtioPci::new(self.0, requester, ram, router)?)))
    }
}
