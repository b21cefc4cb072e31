// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): no PIC, no PIT, no RTC, no 8042. What is there is said here:
//! CPUs and IOAPIC (MADT), ECAM (MCFG, and reserved as PNP0C02 because Linux ignores an MCFG that nothing reserves),
//! the host bridge with its windows, two UARTs, pvpanic, power-off and reset.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::{VmmError, layout};
use dma::GuestRam;

const OEM: [u8; 6] = *b"RNIC  ";
const OEM_TABLE: [u8; 8] = *b"RNICVMM ";
const REVISION: u32 = 1;
/// FADT IA-PC boot architecture flags: no VGA, no CMOS RTC; bits for legacy devices and 8042 stay clear.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;

/// Writes all tables and returns the address of the RSDP.
pub fn write_tables(ram: &GuestRam, cpus: u8, window_64: (u64, u64)) -> Result<u64, VmmError> {
    let mut room = Room { ram, next: layout::ACPI + 64 };
    let dsdt = room.place(&dsdt(cpus, window_64))?;
    let tables = [room.place(&fadt(dsdt))?, room.place(&madt(cpus))?, room.place(&mcfg())?];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, REVISION);
    tables.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = room.place(&bytes(&xsdt))?;
    room.next = layout::ACPI;
    room.place(&bytes(&Rsdp::new(OEM, xsdt)))
}

struct Room<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Room<'_> {
    fn place(&mut self, table: &[u8]) -> Result<u64, VmmError> {
        let address = self.next;
        let end = address + table.len() as u64;
        if end > layout::RESET_VECTOR {
            return Err(VmmError::AcpiTooLarge);
        }
        self.ram.write_slice(table, GuestAddress(address)).map_err(|e| VmmError::Memory(std::io::Error::other(e)))?;
        self.next = (end + 63) & !63;
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let register = |port: u16| GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt =
        FADTBuilder::new(OEM, OEM_TABLE, REVISION).dsdt_64(dsdt).flag(Flags::HwReducedAcpi).flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.reset_reg = register(layout::RESET_REGISTER);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::SLEEP_CONTROL + 1);
    bytes(&fadt.finalize())
}

fn madt(cpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, REVISION, LocalInterruptController::Address(layout::LAPIC));
    (0..cpus).for_each(|id| madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    bytes(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, REVISION);
    mcfg.add_ecam(layout::ECAM.0, 0, 0, 255);
    bytes(&mcfg)
}

fn dsdt(cpus: u8, window_64: (u64, u64)) -> Vec<u8> {
    let mut aml = Vec::new();
    host_bridge(&mut aml, window_64);
    reserved_ecam(&mut aml);
    uart(&mut aml, "_SB_.COM1", layout::COM1, 0);
    uart(&mut aml, "_SB_.COM2", layout::COM2, 1);
    pvpanic(&mut aml);
    processors(&mut aml, cpus);
    // Sleep type 5 in the sleep control register powers off (ACPI 6.5 §7.4.2.6).
    Name::new("_S5_".into(), &Package::new(vec![&5u8, &ZERO])).to_aml_bytes(&mut aml);
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, REVISION);
    sdt.append_slice(&aml);
    sdt.as_slice().to_vec()
}

fn host_bridge(aml: &mut Vec<u8>, window_64: (u64, u64)) {
    let (base_32, size_32) = layout::PCI_WINDOW_32;
    let (base_64, size_64) = window_64;
    let cacheable = AddressSpaceCacheable::NotCacheable;
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 255u16),
                    &IO::new(0xcf8, 0xcf8, 1, 8),
                    &AddressSpace::new_memory(
                        cacheable,
                        true,
                        base_32 as u32,
                        (base_32 + size_32 - 1) as u32,
                        None::<u32>,
                    ),
                    &AddressSpace::new_memory(cacheable, true, base_64, base_64 + size_64 - 1, None::<u64>),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn reserved_ecam(aml: &mut Vec<u8>) {
    Device::new(
        "_SB_.RES0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, layout::ECAM.0 as u32, layout::ECAM.1 as u32)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn uart(aml: &mut Vec<u8>, path: &str, (port, gsi): (u16, u32), uid: u8) {
    Device::new(
        path.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &uid),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, 8),
                    &Interrupt::new(true, true, false, false, gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn pvpanic(aml: &mut Vec<u8>) {
    let port = layout::PVPANIC;
    Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
        ],
    )
    .to_aml_bytes(aml);
}

fn processors(aml: &mut Vec<u8>, cpus: u8) {
    let mut devices = Vec::new();
    for id in 0..cpus {
        Device::new(
            Path::new(&format!("CP{id:02}")),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)],
        )
        .to_aml_bytes(&mut devices);
    }
    aml.extend(Scope::raw("_SB_".into(), devices));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(table: &[u8]) -> u8 {
        table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_have_good_checksums_and_fit() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let rsdp = write_tables(&ram, 8, layout::pci_window_64(40)).unwrap();
        let mut head = [0u8; 36];
        ram.read_slice(&mut head, GuestAddress(rsdp)).unwrap();
        assert_eq!((&head[..8], sum(&head[..20]), sum(&head)), (&b"RSD PTR "[..], 0, 0));
        for table in [fadt(0xe1000), madt(8), mcfg(), dsdt(8, layout::pci_window_64(40))] {
            assert_eq!(sum(&table), 0, "{:?}", &table[..4]);
            assert_eq!(table.len(), u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize);
        }
    }
}
