// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completion queues: context, commands, CQEs, doorbell record (contract 6.2, 7.1, 7.5).

/// Bytes of a CQ context.
pub const CQC_SIZE: usize = cqc::SIZE;
/// Bytes of a CQE.
pub const CQE_SIZE: usize = cqe::SIZE;

layout! {
    /// CQ context.
    cqc: 64 {
        STATUS: [0x00 31:28],
        DBR_UMEM_VALID: [0x00 25],
        APU_CQ: [0x00 24],
        /// See `cqe_sz`.
        CQE_SZ: [0x00 23:21],
        CC: [0x00 20],
        SCQE_BREAK_MODERATION_EN: [0x00 18],
        /// Overrun ignore.
        OI: [0x00 17],
        CQ_PERIOD_MODE: [0x00 16:15],
        CQE_COMP_EN: [0x00 14],
        MINI_CQE_RES_FORMAT: [0x00 13:12],
        /// State; see `state`.
        ST: [0x00 11:8],
        DBR_UMEM_ID: [0x04],
        /// In units of page size / 64.
        PAGE_OFFSET: [0x08 11:6],
        LOG_CQ_SIZE: [0x0c 28:24],
        UAR_PAGE: [0x0c 23:0],
        CQ_PERIOD: [0x10 27:16],
        CQ_MAX_COUNT: [0x10 15:0],
        C_EQN: [0x14],
        /// Relative to 4 KiB.
        LOG_PAGE_SIZE: [0x18 28:24],
        LAST_NOTIFIED_INDEX: [0x20 23:0],
        LAST_SOLICIT_INDEX: [0x24 23:0],
        CONSUMER_COUNTER: [0x28 23:0],
        PRODUCER_COUNTER: [0x2c 23:0],
        /// Guest physical, or relative to the umem.
        DBR_ADDR: [u64 0x38],
    }

    /// CREATE_CQ.
    create_in: 0x110 {
        CQC: [part 0x10 cqc],
        CQ_UMEM_OFFSET: [u64 0x50],
        CQ_UMEM_ID: [0x58],
        CQ_UMEM_VALID: [0x5c 31],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// CREATE_CQ's reply.
    create_out: 16 {
        CQN: [0x08 23:0],
    }

    /// DESTROY_CQ.
    destroy_in: 16 {
        CQN: [0x08 23:0],
    }

    /// QUERY_CQ.
    query_in: 16 {
        CQN: [0x08 23:0],
    }

    /// QUERY_CQ's reply.
    query_out: 0x110 {
        CQC: [part 0x10 cqc],
        PAS: [tail],
    }

    /// MODIFY_CQ; op_mod as in `modify_op_mod`.
    modify_in: 0x110 {
        CQN: [0x08 23:0],
        /// `modify_select` or, with op_mod RESIZE, `resize_select`.
        FIELD_SELECT: [0x0c],
        CQC: [part 0x10 cqc],
        CQ_UMEM_VALID: [0x5c 31],
        PAS: [tail],
    }

    /// Completion queue entry.
    cqe: 64 {
        /// Destination path bits.
        ML_PATH: [0x10 22:16],
        SLID: [0x14 15:0],
        /// GRH present, and which kind.
        GRH: [0x18 29:28],
        SL: [0x18 27:24],
        /// Source QPN.
        RQPN: [0x18 23:0],
        /// Checksum and VLAN flags; Ethernet only.
        CHECKSUM_VLAN: [0x1c],
        /// With cqe_version 1: the user_index.
        SRQN_UIDX: [0x20 23:0],
        /// Immediate, invalidated rkey, or P_Key, as on the wire.
        IMM_INVAL_PKEY: [0x24],
        BYTE_CNT: [0x2c],
        TIMESTAMP: [u64 0x30],
        /// In error CQEs, which have no timestamp.
        HW_ERR_SYND: [also 0x34 31:24],
        /// In error CQEs.
        VENDOR_ERR_SYND: [also 0x34 15:8],
        /// In error CQEs; see `syndrome`.
        SYNDROME: [also 0x34 7:0],
        /// The requester's opcode (`wqe::opcode`).
        SEND_OPCODE: [0x38 31:24],
        QPN: [0x38 23:0],
        WQE_COUNTER: [0x3c 31:16],
        SIGNATURE: [0x3c 15:8],
        /// See `opcode`.
        OPCODE: [0x3c 7:4],
        /// See `format`.
        FORMAT: [0x3c 3:2],
        /// Solicited event.
        SE: [0x3c 1],
        OWNER: [0x3c 0],
        /// The byte with opcode, format and owner; the device writes it last.
        OP_OWN: [also byte 0x3f],
    }

    /// CQ doorbell record, in guest memory (contract 7.1).
    dbr: 8 {
        CONSUMER_INDEX: [0x00 23:0],
        /// As the arm doorbell's first dword (`uar::cq_arm`).
        ARM: [0x04],
        ARM_CMD_SN: [also 0x04 29:28],
        ARM_CMD: [also 0x04 24],
        ARM_CI: [also 0x04 23:0],
    }
}

values! {
    /// `cqc::CQE_SZ`.
    cqe_sz: u32 {
        BYTES_64 = 0,
        /// 128-byte entries, the CQE in the upper half.
        BYTES_128 = 1,
        /// The same place; the device may write the whole line.
        BYTES_128_PADDED = 2,
    }

    /// `cqc::ST`.
    state: u32 {
        SOLICITED_ARMED = 0x6,
        ARMED = 0x9,
        FIRED = 0xa,
        ALWAYS_ARMED = 0xb,
    }

    /// `cqc::STATUS`.
    status: u32 {
        OK = 0x0,
        OVERFLOW = 0x9,
        WRITE_FAIL = 0xa,
    }

    /// MODIFY_CQ's op_mod.
    modify_op_mod: u32 {
        MODIFY = 0,
        RESIZE = 1,
    }

    /// `modify_in::FIELD_SELECT` bits.
    modify_select: u32 {
        PERIOD = 1 << 0,
        MAX_COUNT = 1 << 1,
        OVERRUN = 1 << 2,
        PERIOD_MODE = 1 << 4,
    }

    /// `modify_in::FIELD_SELECT` bits of a resize.
    resize_select: u32 {
        LOG_SIZE = 1 << 0,
        PAGE_OFFSET = 1 << 1,
        PAGE_SIZE = 1 << 2,
    }

    /// `cqe::OPCODE`.
    opcode: u32 {
        REQ = 0,
        RESP_WR_IMM = 1,
        RESP_SEND = 2,
        RESP_SEND_IMM = 3,
        RESP_SEND_INV = 4,
        RESIZE_CQ = 5,
        NO_PACKET = 6,
        SIG_ERR = 12,
        REQ_ERR = 13,
        RESP_ERR = 14,
        INVALID = 15,
    }

    /// `cqe::FORMAT`.
    format: u32 {
        NO_INLINE = 0,
        INLINE_32 = 1,
        INLINE_64 = 2,
        COMPRESSED = 3,
    }

    /// `cqe::SYNDROME`.
    syndrome: u32 {
        LOCAL_LENGTH_ERR = 0x01,
        LOCAL_QP_OP_ERR = 0x02,
        LOCAL_PROT_ERR = 0x04,
        WR_FLUSH_ERR = 0x05,
        MW_BIND_ERR = 0x06,
        BAD_RESP_ERR = 0x10,
        LOCAL_ACCESS_ERR = 0x11,
        REMOTE_INVAL_REQ_ERR = 0x12,
        REMOTE_ACCESS_ERR = 0x13,
        REMOTE_OP_ERR = 0x14,
        TRANSPORT_RETRY_EXC_ERR = 0x15,
        RNR_RETRY_EXC_ERR = 0x16,
        REMOTE_ABORTED_ERR = 0x22,
    }

    /// `cqe::VENDOR_ERR_SYND` that a driver understands.
    vendor_syndrome: u32 {
        ODP_PAGE_FAULT = 0x93,
    }

    /// CQ error event's syndrome (contract 7.5, uncertain).
    error_event: u32 {
        OVERRUN = 1,
        ACCESS_VIOLATION = 2,
    }
}
