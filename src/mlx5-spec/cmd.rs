// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command interface: queue entries, mailbox blocks, headers, status codes and opcodes (contract 3).

use std::fmt;

/// Bytes of one command queue entry.
pub const ENTRY_SIZE: usize = entry::SIZE;
/// What an entry's type must be: PCI transport.
pub const TYPE_PCI: u32 = 7;
/// Bytes of a command that its entry carries itself, input and output alike; the rest is in mailboxes.
pub const INLINE_SIZE: usize = 16;
/// Bytes of one mailbox block.
pub const MAILBOX_SIZE: usize = mailbox::SIZE;
/// Data bytes of one mailbox block.
pub const MAILBOX_DATA_SIZE: usize = 512;
/// Alignment of mailbox blocks in memory; lower bits of their addresses are reserved.
pub const MAILBOX_ALIGN: u64 = 1024;
/// Smallest output: status and syndrome.
pub const OUT_HEADER_SIZE: usize = 8;

layout! {
    /// Command queue entry (contract 3.1).
    entry: 64 {
        TYPE: [0x00 31:24],
        /// All of the input in bytes, the inline ones included.
        INPUT_LENGTH: [0x04],
        /// Address of the first input block; 0 if all is inline.
        INPUT_MAILBOX: [u64 0x08],
        INPUT_INLINE: [bytes 0x10..0x20],
        OUTPUT_INLINE: [bytes 0x20..0x30],
        /// Address of the first output block; 0 if all is inline.
        OUTPUT_MAILBOX: [u64 0x30],
        /// Space for the output in bytes, the inline ones included.
        OUTPUT_LENGTH: [0x38],
        TOKEN: [0x3c 31:24],
        /// Makes the XOR of all 64 bytes 0xff.
        SIGNATURE: [0x3c 23:16],
        /// Delivery status and ownership; the device writes this byte last.
        STATUS_OWN: [byte 0x3f],
        DELIVERY_STATUS: [also 0x3c 7:1],
        /// 1 = the device's.
        OWNERSHIP: [also 0x3c 0],
    }

    /// Mailbox block (contract 3.2).
    mailbox: 0x240 {
        DATA: [bytes 0x000..0x200],
        /// Address of the next block, 0 in the last.
        NEXT: [u64 0x230],
        /// Position in the chain, from 0.
        BLOCK_NUMBER: [0x238],
        TOKEN: [0x23c 23:16],
        /// Makes the XOR of bytes 0x200..0x23f 0xff.
        CTRL_SIGNATURE: [0x23c 15:8],
        /// Makes the XOR of all bytes 0xff.
        SIGNATURE: [0x23c 7:0],
    }

    /// Header of every input (contract 3.3).
    in_header: 8 {
        OPCODE: [0x00 31:16],
        UID: [0x00 15:0],
        OP_MOD: [0x04 15:0],
    }

    /// Header of every output (contract 3.3).
    out_header: 8 {
        STATUS: [0x00 31:24],
        SYNDROME: [0x04],
    }
}

pub use in_header::{OP_MOD as IN_OP_MOD, OPCODE as IN_OPCODE, UID as IN_UID};
pub use out_header::{STATUS as OUT_STATUS, SYNDROME as OUT_SYNDROME};

values! {
    /// Command status, in the output's header (contract 3.3).
    status: u8 {
        OK = 0x0,
        INTERNAL_ERR = 0x1,
        BAD_OP = 0x2,
        BAD_PARAM = 0x3,
        BAD_SYS_STATE = 0x4,
        BAD_RES = 0x5,
        RES_BUSY = 0x6,
        NOT_READY = 0x7,
        EXCEED_LIM = 0x8,
        BAD_RES_STATE = 0x9,
        BAD_INDEX = 0xa,
        NO_RES = 0xf,
        BAD_QP_STATE = 0x10,
        BAD_PKT = 0x30,
        BAD_SIZE_OUTS_CQES = 0x40,
        BAD_INPUT_LEN = 0x50,
        BAD_OUTPUT_LEN = 0x51,
    }

    /// Delivery status, in the entry: trouble with the message itself (contract 3.3).
    delivery: u8 {
        OK = 0x0,
        SIGNATURE_ERR = 0x1,
        TOKEN_ERR = 0x2,
        BAD_BLOCK_NUMBER = 0x3,
        BAD_OUT_PTR_ALIGN = 0x4,
        BAD_IN_PTR_ALIGN = 0x5,
        FW_ERR = 0x6,
        IN_LENGTH_ERR = 0x7,
        OUT_LENGTH_ERR = 0x8,
        RESERVED_NOT_CLEAR = 0x9,
        BAD_DESCRIPTOR = 0x10,
    }
}

/// A command's opcode; any number is one, those below have names (contract 4, 6, 13.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Opcode(pub u16);

/// Declares the opcodes once: constants and the table of their names.
macro_rules! opcodes {
    ($($name:ident = $number:literal $(as $text:literal)?,)*) => {
        #[allow(missing_docs)]
        impl Opcode {
            $( pub const $name: Self = Self($number); )*
        }
        /// Every opcode that has a name.
        pub const OPCODES: &[(Opcode, &str)] = &[$( (Opcode($number), opcodes!(@text $name $($text)?)) ),*];
        const _: () = super::layout::check_distinct(&[$( $number ),*]);
    };
    (@text $name:ident) => { stringify!($name) };
    (@text $name:ident $text:literal) => { $text };
}

opcodes! {
    QUERY_HCA_CAP = 0x100,
    QUERY_ADAPTER = 0x101,
    INIT_HCA = 0x102,
    TEARDOWN_HCA = 0x103,
    ENABLE_HCA = 0x104,
    DISABLE_HCA = 0x105,
    QUERY_PAGES = 0x107,
    MANAGE_PAGES = 0x108,
    SET_HCA_CAP = 0x109,
    QUERY_ISSI = 0x10a,
    SET_ISSI = 0x10b,
    SET_DRIVER_VERSION = 0x10d,
    CREATE_MKEY = 0x200,
    QUERY_MKEY = 0x201,
    DESTROY_MKEY = 0x202,
    QUERY_SPECIAL_CONTEXTS = 0x203,
    PAGE_FAULT_RESUME = 0x204,
    ALLOC_MEMIC = 0x205,
    DEALLOC_MEMIC = 0x206,
    CREATE_EQ = 0x301,
    DESTROY_EQ = 0x302,
    QUERY_EQ = 0x303,
    CREATE_CQ = 0x400,
    DESTROY_CQ = 0x401,
    QUERY_CQ = 0x402,
    MODIFY_CQ = 0x403,
    CREATE_QP = 0x500,
    DESTROY_QP = 0x501,
    RST2INIT_QP = 0x502,
    INIT2RTR_QP = 0x503,
    RTR2RTS_QP = 0x504,
    RTS2RTS_QP = 0x505,
    SQERR2RTS_QP = 0x506,
    TO_ERR_QP = 0x507 as "2ERR_QP",
    TO_RST_QP = 0x50a as "2RST_QP",
    QUERY_QP = 0x50b,
    SQD_RTS_QP = 0x50c,
    MAD_IFC = 0x50d,
    INIT2INIT_QP = 0x50e,
    CREATE_PSV = 0x600,
    DESTROY_PSV = 0x601,
    CREATE_SRQ = 0x700,
    DESTROY_SRQ = 0x701,
    QUERY_SRQ = 0x702,
    ARM_RQ = 0x703,
    CREATE_XRC_SRQ = 0x705,
    DESTROY_XRC_SRQ = 0x706,
    QUERY_XRC_SRQ = 0x707,
    ARM_XRC_SRQ = 0x708,
    CREATE_DCT = 0x710,
    DESTROY_DCT = 0x711,
    DRAIN_DCT = 0x712,
    QUERY_DCT = 0x713,
    CREATE_XRQ = 0x717,
    QUERY_HCA_VPORT_CONTEXT = 0x762,
    MODIFY_HCA_VPORT_CONTEXT = 0x763,
    QUERY_HCA_VPORT_GID = 0x764,
    QUERY_HCA_VPORT_PKEY = 0x765,
    QUERY_VPORT_COUNTER = 0x770,
    ALLOC_Q_COUNTER = 0x771,
    DEALLOC_Q_COUNTER = 0x772,
    QUERY_Q_COUNTER = 0x773,
    ALLOC_PD = 0x800,
    DEALLOC_PD = 0x801,
    ALLOC_UAR = 0x802,
    DEALLOC_UAR = 0x803,
    ACCESS_REG = 0x805,
    ATTACH_TO_MCG = 0x806,
    DETACH_FROM_MCG = 0x807,
    NOP = 0x80d,
    ALLOC_XRCD = 0x80e,
    DEALLOC_XRCD = 0x80f,
    ALLOC_TRANSPORT_DOMAIN = 0x816,
    DEALLOC_TRANSPORT_DOMAIN = 0x817,
    CREATE_SQ = 0x904,
    CREATE_RMP = 0x90c,
    MODIFY_RMP = 0x90d,
    DESTROY_RMP = 0x90e,
    QUERY_RMP = 0x90f,
    CREATE_UCTX = 0xa04,
    DESTROY_UCTX = 0xa06,
    CREATE_UMEM = 0xa08,
    DESTROY_UMEM = 0xa0a,
}

impl Opcode {
    /// Its name, if it is a known one.
    pub fn name(self) -> Option<&'static str> {
        OPCODES.iter().find(|(opcode, _)| *opcode == self).map(|(_, name)| *name)
    }
}

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Debug for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
