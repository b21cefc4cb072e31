// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Is this host's KVM an architectural one? Some cloud machines have a /dev/kvm that emulates guest kernel mode in software, a
//! thousand times slower and not faithfully (docs/architecture.md, "Hosts"). A micro-guest finds out in milliseconds: it times ring-0
//! code, and looks whether SYSCALL really changes the privilege level.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::error::VmmError;
use super::memory;
use dma::GuestRam;

/// Iterations of the timed loop, two instructions each.
const LOOPS: u32 = 1_000_000;
/// Hardware does billions a second, a KVM inside an emulated machine some 400 million, a software KVM a few million.
const SLOWEST_ARCHITECTURAL: f64 = 20e6;
/// A KVM that needs longer than this for the whole micro-guest is not usable, whatever it is.
const LIMIT: Duration = Duration::from_secs(5);

/// What the micro-guest found.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Ring-0 instructions a second.
    pub ring0_rate: f64,
    /// CS in user code and in the SYSCALL handler.
    pub selectors: (u16, u16),
}

impl Probe {
    /// Whether stock kernels can be expected to run.
    pub fn architectural(&self) -> bool {
        self.ring0_rate >= SLOWEST_ARCHITECTURAL && self.selectors.0 & 3 == 3 && self.selectors.1 & 3 == 0
    }
}

/// Runs the micro-guest. `Ok(None)` when it did not finish in time.
pub fn probe() -> Result<Option<Probe>, VmmError> {
    let kvm = super::assemble::open_kvm()?;
    let (send, receive) = channel();
    let thread = std::thread::Builder::new().name("probe".into());
    // A micro-guest that hangs keeps its thread; the process that asked ends soon.
    thread.spawn(move || send.send(run(&kvm))).map_err(VmmError::host("starting the probe"))?;
    receive.recv_timeout(LIMIT).map_or(Ok(None), |result| result.map(Some))
}

const CODE: u64 = 0x1000;
const USER: u64 = 0x1080;
const HANDLER: u64 = 0x10c0;
const GDT: u64 = 0x2000;
const PAGE_TABLES: u64 = 0x3000;
const TIMED_PORT: u16 = 0x10;
const USER_CS_PORT: u16 = 0x11;
const HANDLER_CS_PORT: u16 = 0x12;

/// `out TIMED; mov ecx, LOOPS; 1: dec ecx; jnz 1b; out TIMED; mov ecx, USER; mov r11d, 2; sysretq`
fn kernel_code() -> Vec<u8> {
    let mut code = vec![0xe6, TIMED_PORT as u8, 0xb9];
    code.extend(LOOPS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0xe6, TIMED_PORT as u8, 0xb9]);
    code.extend((USER as u32).to_le_bytes());
    code.extend([0x41, 0xbb, 2, 0, 0, 0, 0x48, 0x0f, 0x07]);
    code
}

/// `mov ebx, cs; syscall`
const USER_CODE: [u8; 4] = [0x8c, 0xcb, 0x0f, 0x05];
/// `mov eax, ebx; out USER_CS, eax; mov eax, cs; out HANDLER_CS, eax`
const HANDLER_CODE: [u8; 8] = [0x89, 0xd8, 0xe7, USER_CS_PORT as u8, 0x8c, 0xc8, 0xe7, HANDLER_CS_PORT as u8];

fn run(kvm: &Kvm) -> Result<Probe, VmmError> {
    let other = |e| VmmError::Memory(std::io::Error::other(e));
    let ram =
        GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
    let vm = kvm.create_vm().map_err(VmmError::kvm("creating the probe's VM"))?;
    memory::register(&vm, &ram)?;
    for (address, bytes) in [(CODE, &kernel_code()[..]), (USER, &USER_CODE), (HANDLER, &HANDLER_CODE)] {
        ram.write_slice(bytes, GuestAddress(address)).map_err(other)?;
    }
    // Null, kernel code and data, a hole for 32-bit user code, user data and code.
    let gdt = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff_u64];
    for (index, entry) in gdt.iter().enumerate() {
        ram.write_obj(*entry, GuestAddress(GDT + 8 * index as u64)).map_err(other)?;
    }
    // One 2 MiB page, user accessible.
    for (address, entry) in [(0, PAGE_TABLES + 0x1007), (0x1000, PAGE_TABLES + 0x2007), (0x2000, 0x87)] {
        ram.write_obj(entry, GuestAddress(PAGE_TABLES + address)).map_err(other)?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(VmmError::kvm("creating the probe's vCPU"))?;
    set_registers(&vcpu, kvm)?;
    observe(&mut vcpu)
}

fn set_registers(vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), VmmError> {
    let cpuid = super::cpuid::supported(kvm)?;
    vcpu.set_cpuid2(&cpuid).map_err(VmmError::kvm("setting the probe's CPUID"))?;
    let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("reading the probe's registers"))?;
    let flat = |selector, type_, l| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db: 1 - l,
        ..Default::default()
    };
    sregs.cs = flat(0x8, 0xb, 1);
    (sregs.ds, sregs.es, sregs.ss) = (flat(0x10, 3, 0), flat(0x10, 3, 0), flat(0x10, 3, 0));
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 6 * 8 - 1);
    // PE, ET, PG; PAE; SCE, LME, LMA.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, PAGE_TABLES, 0x20, 0x501);
    vcpu.set_sregs(&sregs).map_err(VmmError::kvm("setting the probe's registers"))?;
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    let values = [(STAR, 0x0018_0008_u64 << 32), (LSTAR, HANDLER)];
    let entries = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| VmmError::TooManyCpuidLeaves)?;
    vcpu.set_msrs(&msrs).map_err(VmmError::kvm("setting the probe's MSRs"))?;
    let mut regs = vcpu.get_regs().map_err(VmmError::kvm("reading the probe's registers"))?;
    (regs.rip, regs.rsp, regs.rflags) = (CODE, 0x8000, 2);
    vcpu.set_regs(&regs).map_err(VmmError::kvm("setting the probe's registers"))
}

fn observe(vcpu: &mut VcpuFd) -> Result<Probe, VmmError> {
    let mut probe = Probe { ring0_rate: 0.0, selectors: (0, 0xffff) };
    let mut begun = None;
    // Four exits at most are expected; anything else ends the observation with what was seen.
    for _ in 0..8 {
        match vcpu.run().map_err(VmmError::kvm("running the probe"))? {
            VcpuExit::IoOut(TIMED_PORT, _) => match begun {
                None => begun = Some(Instant::now()),
                Some(at) => probe.ring0_rate = f64::from(2 * LOOPS) / at.elapsed().as_secs_f64().max(1e-9),
            },
            VcpuExit::IoOut(USER_CS_PORT, data) => probe.selectors.0 = u16::from_le_bytes([data[0], data[1]]),
            VcpuExit::IoOut(HANDLER_CS_PORT, data) => {
                probe.selectors.1 = u16::from_le_bytes([data[0], data[1]]);
                break;
            }
            _ => break,
        }
    }
    Ok(probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_symptom_of_a_software_kvm_is_refused() {
        let good = Probe { ring0_rate: 4e8, selectors: (0x2b, 0x8) };
        assert!(good.architectural());
        assert!(!Probe { ring0_rate: 1.5e6, ..good.clone() }.architectural());
        assert!(!Probe { selectors: (0x2b, 0xb), ..good.clone() }.architectural());
        assert!(!Probe { selectors: (0x8, 0x8), ..good }.architectural());
    }
}
