// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts and doorbells over KVM: each interrupt is an irqfd, each doorbell an ioeventfd, so that neither costs an exit.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::layout;
use crate::pci::{Doorbell, DoorbellHost, MsiRouter};

/// KVM's GSI routing table, which is written as a whole: IOAPIC pins one to one, then MSI routes as functions ask for them.
pub struct Interrupts {
    vm: Arc<VmFd>,
    routes: Mutex<BTreeMap<u32, kvm_irq_routing_entry>>,
}

impl Interrupts {
    /// Routes the IOAPIC pins.
    pub fn new(vm: Arc<VmFd>) -> io::Result<Arc<Self>> {
        let pins = (0..layout::FIRST_MSI_GSI).map(|gsi| (gsi, ioapic_route(gsi))).collect();
        let this = Self { vm, routes: Mutex::new(pins) };
        this.commit(&this.lock())?;
        Ok(Arc::new(this))
    }

    /// An eventfd that raises IOAPIC pin `gsi` (edge).
    pub fn line(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi).map_err(os_error)?;
        Ok(event)
    }

    /// MSI vectors for one function.
    pub fn function(self: &Arc<Self>, vectors: u16) -> io::Result<Arc<MsiFunction>> {
        let first = {
            let mut routes = self.lock();
            let first = routes.last_key_value().map_or(layout::FIRST_MSI_GSI, |(gsi, _)| gsi + 1);
            // Reserve the range; a vector without a message is not routed anywhere.
            routes.extend((0..u32::from(vectors)).map(|n| (first + n, msi_route(first + n, 0, 0))));
            first
        };
        let events = (0..vectors).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Vec<_>>>()?;
        let attached = Mutex::new(vec![false; usize::from(vectors)]);
        Ok(Arc::new(MsiFunction { interrupts: self.clone(), first, events, attached }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, kvm_irq_routing_entry>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, routes: &BTreeMap<u32, kvm_irq_routing_entry>) -> io::Result<()> {
        // A vector that has no message yet only keeps its number.
        let told: Vec<_> = routes.values().filter(|entry| entry.flags == 0).copied().collect();
        let table = KvmIrqRouting::from_entries(&told).map_err(|_| io::Error::other("too many interrupt routes"))?;
        self.vm.set_gsi_routing(&table).map_err(os_error)
    }
}

/// Marks a reserved route in `flags`; never given to KVM.
const RESERVED: u32 = u32::MAX;

fn ioapic_route(gsi: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin: gsi };
    entry
}

fn msi_route(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let flags = if address == 0 { RESERVED } else { 0 };
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, flags, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        ..Default::default()
    };
    entry
}

/// The MSI vectors of one function: GSIs `first..`, an eventfd each.
pub struct MsiFunction {
    interrupts: Arc<Interrupts>,
    first: u32,
    events: Vec<EventFd>,
    attached: Mutex<Vec<bool>>,
}

impl MsiRouter for MsiFunction {
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()> {
        let (Some(event), gsi) = (self.events.get(usize::from(vector)), self.first + u32::from(vector)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        {
            let mut routes = self.interrupts.lock();
            routes.insert(gsi, msi_route(gsi, address, data));
            self.interrupts.commit(&routes)?;
        }
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if !attached[usize::from(vector)] && address != 0 {
            self.interrupts.vm.register_irqfd(event, gsi).map_err(os_error)?;
            attached[usize::from(vector)] = true;
        }
        Ok(())
    }

    fn trigger(&self, vector: u16) {
        let Some(event) = self.events.get(usize::from(vector)) else { return };
        if let Err(error) = event.write(1) {
            log::warn!("MSI-X vector {vector}: interrupt not delivered: {error}");
        }
    }
}

/// Doorbells as ioeventfds.
pub struct IoEvents(pub Arc<VmFd>);

impl DoorbellHost for IoEvents {
    fn attach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        let at = IoEventAddress::Mmio(address);
        match (doorbell.value, doorbell.len) {
            (None, _) => self.0.register_ioevent(&doorbell.event, &at, NoDatamatch),
            (Some(value), 8) => self.0.register_ioevent(&doorbell.event, &at, value),
            (Some(value), _) => self.0.register_ioevent(&doorbell.event, &at, value as u32),
        }
        .map_err(os_error)
    }

    fn detach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        let at = IoEventAddress::Mmio(address);
        match (doorbell.value, doorbell.len) {
            (None, _) => self.0.unregister_ioevent(&doorbell.event, &at, NoDatamatch),
            (Some(value), 8) => self.0.unregister_ioevent(&doorbell.event, &at, value),
            (Some(value), _) => self.0.unregister_ioevent(&doorbell.event, &at, value as u32),
        }
        .map_err(os_error)
    }
}

fn os_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
