// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initialization segment at the start of BAR0 (contract 2).

/// What `CMDIF_REV` must read for the drivers.
pub const CMDIF_REV: u32 = 5;

layout! {
    /// The whole segment, as the driver maps it.
    segment: 0x2010 {
        FW_REV_MINOR: [0x000 31:16],
        FW_REV_MAJOR: [0x000 15:0],
        CMDIF_REV: [0x004 31:16],
        FW_REV_SUBMINOR: [0x004 15:0],
        /// Bits 63:32 of the command queue's address.
        CMDQ_ADDR_H: [0x010],
        /// Bits 31:12 of the command queue's address.
        CMDQ_ADDR_L: [0x014 31:12],
        /// Three bits wide for the driver: see `nic_interface`.
        NIC_INTERFACE: [0x014 10:8],
        LOG_CMDQ_SIZE: [0x014 7:4],
        LOG_CMDQ_STRIDE: [0x014 3:0],
        /// Bit i = entry i.
        COMMAND_DOORBELL: [0x018],
        /// 1 = busy.
        INITIALIZING: [0x1fc 31],
        FW_RESET_SUPPORTED: [0x1fc 30],
        NIC_INTERFACE_SUPPORTED: [0x1fc 26:24],
        EMBEDDED_CPU: [0x1fc 23],
        HEALTH_BUFFER: [part 0x200 health],
        CMD_EXEC_TO_UNIT: [0xff8 31:29],
        CMD_EXEC_TO_VALUE: [0xff8 19:0],
        CMD_Q_INIT_TO_UNIT: [0xffc 31:29],
        CMD_Q_INIT_TO_VALUE: [0xffc 19:0],
        INTERNAL_TIMER_H: [0x1000],
        INTERNAL_TIMER_L: [0x1004],
        /// What drivers compare is the whole dword.
        HEALTH_SYNDROME: [0x1010 31:24],
        HEALTH_COUNTER: [0x1010 23:0],
        REAL_TIME_H: [0x1040],
        REAL_TIME_L: [0x1044],
        IEEE1588_CLK: [u64 0x2000],
        IEEE1588_CLK_TYPE: [0x2008],
        CLR_INTX: [0x200c],
    }

    /// Health buffer, relative to its start.
    health: 64 {
        ASSERT_VAR: [bytes 0x00..0x18],
        ASSERT_EXIT_PTR: [0x20],
        ASSERT_CALLRA: [0x24],
        TIME: [0x2c],
        /// Must not read all ones.
        FW_VER: [0x30],
        HW_ID: [0x34],
        /// Reset requested.
        RFR: [0x38 31],
        SEVERITY_VALID: [0x38 27],
        SEVERITY: [0x38 26:24],
        /// The byte that the driver reads for the three above.
        RFR_SEVERITY: [also byte 0x38],
        IRISC_INDEX: [0x3c 31:24],
        SYND: [0x3c 23:16],
        /// The byte that the driver reads for the one above.
        SYND_BYTE: [also byte 0x3d],
        EXT_SYND: [0x3c 15:0],
    }
}

/// Offset of the command queue's address, high half.
pub const CMDQ_ADDR_H: usize = 0x010;
/// Offset of the command queue's address, low half, with interface, size and stride.
pub const CMDQ_ADDR_L_SZ: usize = 0x014;
/// Offset of the command doorbell.
pub const COMMAND_DOORBELL: usize = 0x018;
/// Offset of the dword with the `INITIALIZING` bit.
pub const INITIALIZING: usize = 0x1fc;
/// Offset of the health buffer.
pub const HEALTH_BUFFER: usize = 0x200;
/// Offset of the timer's high half; the low half follows.
pub const INTERNAL_TIMER: usize = 0x1000;
/// Offset of the health counter.
pub const HEALTH_COUNTER: usize = 0x1010;

values! {
    /// The NIC interface's state, as read back (contract 2).
    nic_interface: u32 {
        FULL = 0,
        DISABLED = 1,
        NO_DRAM = 2,
        SW_RESET = 7,
    }

    /// Units of the timeouts.
    timeout_unit: u32 {
        MILLISECONDS = 0,
        SECONDS = 1,
        MINUTES = 2,
        HOURS = 3,
    }

    /// Health syndromes that the driver names; 0 is healthy.
    syndrome: u32 {
        HEALTHY = 0x0,
        FW_INTERNAL = 0x1,
        IRISC_NOT_RESPONDING = 0x7,
        UNRECOVERABLE_HW = 0x8,
        FW_CRC = 0x9,
        ICM_FETCH_PCI = 0xa,
        HW_FATAL = 0xb,
        ASYNC_EQ_OVERRUN = 0xc,
        EQ_ERROR = 0xd,
        EQ_INVALID = 0xe,
        FFSER = 0xf,
        HIGH_TEMPERATURE = 0x10,
    }
}
