// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts and doorbells over KVM: each interrupt is an irqfd, each doorbell an ioeventfd, so that neither costs an exit.
//! Both belong to a KVM machine, which a reset of the platform replaces.

use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::layout;
use super::memory::ExposedPages;
use pci::{Doorbell, DoorbellHost, Exposed, MsiRouter};

/// The KVM machine under the devices. A reset of the platform puts another one in its place, devices stay.
pub struct Host(RwLock<Arc<VmFd>>);

impl Host {
    /// Starts with `vm`.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(vm)))
    }

    fn vm(&self) -> Arc<VmFd> {
        self.0.read().clone()
    }

    fn replace(&self, vm: Arc<VmFd>) {
        *self.0.write() = vm;
    }
}

/// What KVM has been told, by GSI.
struct Routes {
    table: BTreeMap<u32, kvm_irq_routing_entry>,
    /// MSI vectors whose eventfd raises their GSI.
    attached: BTreeSet<u32>,
    /// IOAPIC pins that an eventfd raises.
    lines: Vec<(u32, EventFd)>,
}

/// KVM's GSI routing table, which is written as a whole: IOAPIC pins one to one, then MSI routes as functions ask for them.
pub struct Interrupts {
    host: Arc<Host>,
    routes: Mutex<Routes>,
}

impl Interrupts {
    /// Routes the IOAPIC pins.
    pub fn new(host: Arc<Host>) -> io::Result<Arc<Self>> {
        let table = (0..layout::FIRST_MSI_GSI).map(|gsi| (gsi, ioapic_route(gsi))).collect();
        let routes = Mutex::new(Routes { table, attached: BTreeSet::new(), lines: Vec::new() });
        let this = Self { host, routes };
        this.commit(&this.lock())?;
        Ok(Arc::new(this))
    }

    /// An eventfd that raises IOAPIC pin `gsi` (edge).
    pub fn line(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        self.host.vm().register_irqfd(&event, gsi).map_err(os_error)?;
        self.lock().lines.push((gsi, event.try_clone()?));
        Ok(event)
    }

    /// MSI vectors for one function.
    pub fn function(self: &Arc<Self>, vectors: u16) -> io::Result<Arc<MsiFunction>> {
        let first = {
            let table = &mut self.lock().table;
            let first = table.last_key_value().map_or(layout::FIRST_MSI_GSI, |(gsi, _)| gsi + 1);
            // Reserve the range; a vector without a message is not routed anywhere.
            table.extend((0..u32::from(vectors)).map(|n| (first + n, msi_route(first + n, 0, 0))));
            first
        };
        let events = (0..vectors).map(|_| EventFd::new(EFD_NONBLOCK)).collect::<io::Result<Vec<_>>>()?;
        Ok(Arc::new(MsiFunction { interrupts: self.clone(), first, events }))
    }

    /// Goes on with another KVM machine: the pins as before, no MSI routed. No device may be at work, no doorbell attached.
    pub fn move_to(&self, vm: Arc<VmFd>) -> io::Result<()> {
        let mut routes = self.lock();
        routes.attached.clear();
        let msi = routes.table.range_mut(layout::FIRST_MSI_GSI..);
        msi.for_each(|(gsi, entry)| *entry = msi_route(*gsi, 0, 0));
        self.host.replace(vm.clone());
        self.commit(&routes)?;
        for (gsi, event) in &routes.lines {
            drain(event);
            vm.register_irqfd(event, *gsi).map_err(os_error)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock()
    }

    fn commit(&self, routes: &Routes) -> io::Result<()> {
        // A vector that has no message yet only keeps its number.
        let told: Vec<_> = routes.table.values().filter(|entry| entry.flags == 0).copied().collect();
        let table = KvmIrqRouting::from_entries(&told).map_err(|_| io::Error::other("too many interrupt routes"))?;
        self.host.vm().set_gsi_routing(&table).map_err(os_error)
    }
}

/// Forgets what was signalled while nobody listened.
fn drain(event: &EventFd) {
    // Nothing there is an error of a non-blocking eventfd.
    drop(event.read());
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
}

impl MsiRouter for MsiFunction {
    fn route(&self, vector: u16, address: u64, data: u32) -> io::Result<()> {
        let (Some(event), gsi) = (self.events.get(usize::from(vector)), self.first + u32::from(vector)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut routes = self.interrupts.lock();
        routes.table.insert(gsi, msi_route(gsi, address, data));
        self.interrupts.commit(&routes)?;
        if address != 0 && !routes.attached.contains(&gsi) {
            drain(event);
            self.interrupts.host.vm().register_irqfd(event, gsi).map_err(os_error)?;
            routes.attached.insert(gsi);
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

/// Doorbells as ioeventfds, and as memory.
pub struct IoEvents {
    host: Arc<Host>,
    exposed: ExposedPages,
}

impl IoEvents {
    /// Of this host's machine.
    pub fn new(host: Arc<Host>) -> Self {
        Self { host, exposed: ExposedPages::default() }
    }
}

impl DoorbellHost for IoEvents {
    fn attach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        let (vm, at) = (self.host.vm(), IoEventAddress::Mmio(address));
        match (doorbell.value, doorbell.len) {
            (None, _) => vm.register_ioevent(&doorbell.event, &at, NoDatamatch),
            (Some(value), 8) => vm.register_ioevent(&doorbell.event, &at, value),
            (Some(value), _) => vm.register_ioevent(&doorbell.event, &at, value as u32),
        }
        .map_err(os_error)
    }

    fn detach(&self, address: u64, doorbell: &Doorbell) -> io::Result<()> {
        let (vm, at) = (self.host.vm(), IoEventAddress::Mmio(address));
        match (doorbell.value, doorbell.len) {
            (None, _) => vm.unregister_ioevent(&doorbell.event, &at, NoDatamatch),
            (Some(value), 8) => vm.unregister_ioevent(&doorbell.event, &at, value),
            (Some(value), _) => vm.unregister_ioevent(&doorbell.event, &at, value as u32),
        }
        .map_err(os_error)
    }

    fn expose(&self, address: u64) -> io::Result<Arc<dyn Exposed>> {
        self.exposed.expose(self.host.vm(), address)
    }

    fn conceal(&self, address: u64) -> io::Result<()> {
        self.exposed.conceal(address)
    }
}

fn os_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
