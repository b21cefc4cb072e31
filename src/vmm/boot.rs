// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Puts a kernel, its initramfs and its command line into guest RAM and a vCPU at its 64-bit entry point
//! (Documentation/arch/x86/boot, "64-bit Boot Protocol").

use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};

use super::memory::Memory;
use super::{Kernel, VmmError, layout};
use dma::GuestRam;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// Persistent memory without an NFIT: Linux calls it legacy, `nd_e820` makes a region of it.
const E820_PERSISTENT: u32 = 12;

/// The kernel's ELF image.
pub fn read_kernel(kernel: &Kernel) -> Result<Vec<u8>, VmmError> {
    (kernel.read)(&kernel.path).map_err(|what| VmmError::Kernel { path: kernel.path.clone(), what })
}

/// Loads an ELF kernel and returns its entry point.
pub fn load_kernel(ram: &GuestRam, path: &Path, vmlinux: &[u8]) -> Result<u64, VmmError> {
    let mut cursor = Cursor::new(vmlinux);
    let loaded = Elf::load(ram, None, &mut cursor, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|error| VmmError::Kernel { path: path.into(), what: format!("cannot be loaded: {error}") })?;
    Ok(loaded.kernel_load.0)
}

/// Copies the initramfs to where [`super::placement`] has put it: (address, size).
pub fn load_initramfs(ram: &GuestRam, file: &std::fs::File, (address, size): (u64, u64)) -> Result<(), VmmError> {
    let io = |source| VmmError::Initramfs(source);
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let n = file.read_at(&mut chunk, offset).map_err(io)?;
        if n == 0 {
            return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let piece = &chunk[..n.min((size - offset) as usize)];
        ram.write_slice(piece, GuestAddress(address + offset)).map_err(|e| io(std::io::Error::other(e)))?;
        offset += piece.len() as u64;
    }
    Ok(())
}

/// Writes the command line, of which [`super::placement`] has checked the length, and the zero page.
pub fn write_boot_params(
    whole: &Memory,
    cmdline: &str,
    initramfs: Option<(u64, u64)>,
    rsdp: u64,
) -> Result<(), VmmError> {
    let memory = |e| VmmError::Memory(std::io::Error::other(e));
    let ram = &whole.all;
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE)).map_err(memory)?;
    ram.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64)).map_err(memory)?;

    let mut params = boot_params { acpi_rsdp_addr: rsdp, ..Default::default() };
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    params.hdr.version = 0x20f;
    params.hdr.type_of_loader = 0xff;
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if let Some((address, size)) = initramfs {
        // Both fit: the initramfs lies below 3 GiB.
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = size as u32;
    }
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(e820(whole)) {
        *slot = boot_e820_entry { addr, size, r#type: kind };
        params.e820_entries += 1;
    }
    ram.write_slice(&reset_code(), GuestAddress(layout::RESET_VECTOR)).map_err(memory)?;
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE)).map_err(memory)
}

/// Real-mode code for the reset vector that writes the ACPI reset register. On reduced-hardware ACPI Linux takes EFI for the way to
/// reset and, finding none, the BIOS: it never tries the register by itself.
fn reset_code() -> [u8; 9] {
    let [low, high] = layout::RESET_REGISTER.to_le_bytes();
    // mov dx, RESET_REGISTER; mov al, RESET_VALUE; out dx, al; 1: hlt; jmp 1b
    [0xba, low, high, 0xb0, layout::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

fn e820(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (layout::ACPI, layout::ACPI_END - layout::ACPI, E820_RESERVED),
        (layout::ECAM.0, layout::ECAM.1, E820_RESERVED),
    ];
    for (start, size, is_ram) in memory.pieces() {
        let from = start.max(layout::HIGH_RAM);
        map.push((from, start + size - from, if is_ram { E820_RAM } else { E820_PERSISTENT }));
    }
    map.sort_unstable();
    map
}

/// Puts the boot vCPU at `entry` in 64-bit mode with the first GiB identity-mapped.
pub fn set_boot_registers(vcpu: &VcpuFd, ram: &GuestRam, entry: u64) -> Result<(), VmmError> {
    write_page_tables(ram)?;
    let mut sregs = vcpu.get_sregs().map_err(VmmError::kvm("reading system registers"))?;
    let gdt = [0u64, 0, gdt_entry(0xa09b), gdt_entry(0xc093)];
    for (index, entry) in gdt.iter().enumerate() {
        ram.write_obj(*entry, GuestAddress(layout::GDT + 8 * index as u64))
            .map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (gdt.len() * 8 - 1) as u16;
    sregs.cs = segment(2, 0xb, true);
    for data in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *data = segment(3, 0x3, false);
    }
    const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
    const CR4_PAE: u64 = 1 << 5;
    const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0_PE_ET_PG, layout::PML4, CR4_PAE, EFER_LME_LMA);
    vcpu.set_sregs(&sregs).map_err(VmmError::kvm("setting system registers"))?;

    let mut regs = vcpu.get_regs().map_err(VmmError::kvm("reading registers"))?;
    (regs.rip, regs.rsi, regs.rsp, regs.rflags) = (entry, layout::ZERO_PAGE, layout::BOOT_STACK, 2);
    vcpu.set_regs(&regs).map_err(VmmError::kvm("setting registers"))
}

fn write_page_tables(ram: &GuestRam) -> Result<(), VmmError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let write = |address: u64, value: u64| {
        ram.write_obj(value, GuestAddress(address)).map_err(|e| VmmError::Memory(std::io::Error::other(e)))
    };
    write(layout::PML4, (layout::PML4 + 0x1000) | PRESENT_WRITABLE)?;
    write(layout::PML4 + 0x1000, (layout::PML4 + 0x2000) | PRESENT_WRITABLE)?;
    (0..512).try_for_each(|i| write(layout::PML4 + 0x2000 + 8 * i, i << 21 | PRESENT_WRITABLE | LARGE))
}

/// A flat descriptor with the given access flags (SDM 3A 3.4.5).
fn gdt_entry(flags: u64) -> u64 {
    0xffff | (flags & 0xf0ff) << 40 | 0xf << 48
}

fn segment(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(long),
        db: u8::from(!long),
        ..Default::default()
    }
}
