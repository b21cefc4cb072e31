// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UAR pages and their doorbells, and where things lie in BAR0 (contract 1.2, 7.1).

/// Bytes of a UAR page; UAR n lies at offset n * this in BAR0 (contract D4).
pub const PAGE_SIZE: u64 = 4096;
/// Offset in a UAR page: CQ arm, 8 bytes.
pub const CQ_ARM: u64 = 0x20;
/// Offset in a UAR page: EQ consumer index with arm, 4 bytes.
pub const EQ_ARM: u64 = 0x40;
/// Offset in a UAR page: EQ consumer index without arm, 4 bytes.
pub const EQ_UPDATE: u64 = 0x48;
/// Offset in a UAR page from which every aligned write of 8 bytes is a send doorbell.
pub const SQ_DOORBELL: u64 = 0x800;

layout! {
    /// CQ arm doorbell.
    cq_arm: 8 {
        CMD_SN: [0x00 29:28],
        /// See `arm_cmd`.
        CMD: [0x00 24],
        CI: [0x00 23:0],
        CQN: [0x04 23:0],
    }

    /// EQ doorbell, with and without arm.
    eq: 4 {
        EQN: [0x00 31:24],
        CI: [0x00 23:0],
    }

    /// Send doorbell: the start of the control segment of the last WQE posted.
    sq: 8 {
        OPMOD: [0x00 31:24],
        WQE_INDEX: [0x00 23:8],
        OPCODE: [0x00 7:0],
        QPN: [0x04 31:8],
        DS: [0x04 5:0],
    }
}

values! {
    /// `cq_arm::CMD`.
    arm_cmd: u32 {
        ANY = 0,
        SOLICITED = 1,
    }
}
