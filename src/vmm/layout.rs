// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's address map. One table, so that ACPI, the memory slots and the bus cannot disagree.
//!
//! ```text
//! 0                  boot data (page tables, command line), low RAM up to 0x9fc00
//! 0xe0000            ACPI tables (reserved in e820)
//! 0x100000           RAM, up to 3 GiB
//! 0xc0000000         32-bit PCI window
//! 0xe0000000         ECAM, 256 buses
//! 0xfec00000         IOAPIC;  0xfee00000 local APIC;  0xfffbc000 KVM's own pages on Intel
//! 0x1_0000_0000      RAM beyond 3 GiB
//! behind it, by GiB  persistent memory, each range by itself
//! half of the physical address space, at most 256 GiB: 64-bit PCI window, up to 64 GiB
//! ```

/// Global descriptor table used until the kernel loads its own.
pub const GDT: u64 = 0x500;
/// `boot_params`, the "zero page" (Documentation/arch/x86/zero-page).
pub const ZERO_PAGE: u64 = 0x7000;
/// Top level page table; two more follow.
pub const PML4: u64 = 0x9000;
/// Stack the kernel starts with.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Longest command line x86 Linux takes (COMMAND_LINE_SIZE), terminating zero included.
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// End of what is reserved for ACPI tables; the last 16 bytes of it are the reset vector's.
pub const ACPI_END: u64 = 0x10_0000;
/// Where a processor starts after a reset in real mode, F000:FFF0, and where Linux jumps to reset a machine "by BIOS".
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// RAM above the legacy hole.
pub const HIGH_RAM: u64 = 0x10_0000;
/// First address that is never RAM below 4 GiB.
pub const RAM_HOLE: u64 = 0xc000_0000;
/// RAM continues here.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;

/// 32-bit PCI memory window: base and size.
pub const PCI_WINDOW_32: (u64, u64) = (0xc000_0000, 0x2000_0000);
/// ECAM (PCIe base 7.2.2): base and size for 256 buses.
pub const ECAM: (u64, u64) = (0xe000_0000, 0x1000_0000);
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// Page that KVM on Intel uses for real mode; unused elsewhere.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM on Intel uses for a task state segment.
pub const KVM_TSS: usize = 0xfffb_d000;

/// GSIs below this are IOAPIC pins; MSI routes start here.
pub const FIRST_MSI_GSI: u32 = 24;

/// The console UART (16550, PNP0501): I/O base and GSI.
pub const COM1: (u16, u32) = (0x3f8, 4);
/// The agent channel.
pub const COM2: (u16, u32) = (0x2f8, 3);
/// Sleep control register (ACPI 6.5 §4.8.3.7) and, one above, sleep status.
pub const SLEEP_CONTROL: u16 = 0x600;
/// Reset register (ACPI 6.5 §4.8.3.6); any write of [`RESET_VALUE`] resets.
pub const RESET_REGISTER: u16 = 0x602;
/// What to write there.
pub const RESET_VALUE: u8 = 1;
/// pvpanic's port (QEMU's documented interface "pvpanic device"), ACPI id QEMU0001.
pub const PVPANIC: u16 = 0x505;

/// The 64-bit PCI window for a CPU with `bits` physical address bits: base and size.
pub fn pci_window_64(bits: u8) -> (u64, u64) {
    let base = 1u64 << bits.clamp(34, 39).saturating_sub(1);
    (base, base.min(64 << 30))
}

/// RAM pieces for `size` bytes: (guest address, length).
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(RAM_HOLE);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((RAM_ABOVE_4G, size - low));
    }
    ranges
}

/// Where ranges of persistent memory begin, and what is left free between two: Linux hot-plugs memory by sections of 128 MiB, and two
/// ranges of one kind that touch would be one to it.
const PERSISTENT_ALIGN: u64 = 1 << 30;
const PERSISTENT_GAP: u64 = 128 << 20;

/// Places for ranges of persistent memory of `sizes` behind `ram` bytes of RAM: (guest address, length).
pub fn persistent_ranges(ram: u64, sizes: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let end_of_ram = ram_ranges(ram).last().map_or(0, |(start, length)| start + length);
    let mut free = end_of_ram.max(RAM_ABOVE_4G);
    let place = |size| {
        let start = free.next_multiple_of(PERSISTENT_ALIGN);
        free = start + size + PERSISTENT_GAP;
        (start, size)
    };
    sizes.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written before the kernel runs: (name, first byte, first byte behind it).
    const BOOT_DATA: [(&str, u64, u64); 8] = [
        ("GDT", GDT, GDT + 4 * 8),
        ("zero page", ZERO_PAGE, ZERO_PAGE + 0x1000),
        ("stack", ZERO_PAGE + 0x1000, BOOT_STACK),
        ("page tables", PML4, PML4 + 3 * 0x1000),
        ("command line", CMDLINE, CMDLINE + CMDLINE_MAX as u64),
        ("end of conventional memory", LOW_RAM_END, LOW_RAM_END),
        ("ACPI tables", ACPI, RESET_VECTOR),
        ("reset vector", RESET_VECTOR, ACPI_END),
    ];

    #[test]
    fn boot_data_do_not_overlap() {
        for pair in BOOT_DATA.windows(2) {
            assert!(pair[0].1 <= pair[0].2 && pair[0].2 <= pair[1].1, "{} and {}", pair[0].0, pair[1].0);
        }
        // What the kernel may be placed over begins behind all of them.
        assert!(BOOT_DATA.iter().all(|(_, _, end)| *end <= HIGH_RAM));
    }

    #[test]
    fn windows_do_not_overlap_ram_or_each_other() {
        for bits in [36, 39, 40, 46, 48] {
            let (base, size) = pci_window_64(bits);
            assert!(base + size <= 1 << bits.min(40), "{bits}");
            assert_eq!(base % size, 0);
        }
        assert!(PCI_WINDOW_32.0 + PCI_WINDOW_32.1 <= ECAM.0);
        assert!(ECAM.0 + ECAM.1 <= u64::from(IOAPIC));
        assert_eq!(ram_ranges(512 << 20), vec![(0, 512 << 20)]);
        assert_eq!(ram_ranges(4 << 30), vec![(0, RAM_HOLE), (RAM_ABOVE_4G, 1 << 30)]);
    }

    #[test]
    fn persistent_memory_lies_behind_ram_and_by_itself() {
        const GIB: u64 = 1 << 30;
        assert_eq!(persistent_ranges(GIB / 2, []), []);
        assert_eq!(persistent_ranges(GIB / 2, [256 << 20, 2 << 20]), [(4 * GIB, 256 << 20), (5 * GIB, 2 << 20)]);
        // One that ends at a boundary does not touch the next.
        assert_eq!(persistent_ranges(4 * GIB, [GIB, GIB]), [(5 * GIB, GIB), (7 * GIB, GIB)]);
        for ram in [64 << 20, RAM_HOLE, RAM_HOLE + (1 << 20), 64 * GIB] {
            let end = ram_ranges(ram).last().map(|(start, length)| start + length).unwrap();
            let ranges = persistent_ranges(ram, [GIB + (2 << 20); 4]);
            assert!(ranges[0].0 >= end.max(RAM_ABOVE_4G));
            assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 + (128 << 20) <= pair[1].0));
        }
    }
}
