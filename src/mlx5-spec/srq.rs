// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared receive queues with ISSI 1: RMP (basic SRQ) and XRC SRQ (contract 6.5). Their numbers share one space.

/// Bytes of a receive memory pool's context, its WQ included but not the page list.
pub const RMPC_SIZE: usize = rmpc::SIZE;
/// Bytes of an XRC SRQ context.
pub const XRC_SRQC_SIZE: usize = xrc_srqc::SIZE;
/// Smallest WQE stride in bytes.
pub const MIN_STRIDE: usize = 32;

layout! {
    /// Work queue, relative to its start.
    wq: 0xc0 {
        /// See `wq_type`.
        WQ_TYPE: [0x00 31:28],
        WQ_SIGNATURE: [0x00 27],
        END_PADDING_MODE: [0x00 26:25],
        CD_SLAVE: [0x00 24],
        /// In units of page size / 64.
        PAGE_OFFSET: [0x04 20:16],
        LWM: [0x04 15:0],
        PD: [0x08 23:0],
        UAR_PAGE: [0x0c 23:0],
        DBR_ADDR: [u64 0x10],
        HW_COUNTER: [0x18],
        SW_COUNTER: [0x1c],
        /// A WQE has 1 << n bytes.
        LOG_WQ_STRIDE: [0x20 19:16],
        /// Relative to 4 KiB.
        LOG_WQ_PG_SZ: [0x20 12:8],
        LOG_WQ_SZ: [0x20 4:0],
        PAS: [tail],
    }

    /// Receive memory pool's context; use `wq::X.plus(rmpc::WQ)`.
    rmpc: 0xf0 {
        /// See `rmp_state`.
        STATE: [0x00 23:20],
        BASIC_CYCLIC_RCV_WQE: [0x04 31],
        WQ: [part 0x30 wq],
    }

    /// CREATE_RMP.
    create_rmp_in: 0x110 {
        RMPC: [part 0x20 rmpc],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// CREATE_RMP's reply.
    create_rmp_out: 16 {
        RMPN: [0x08 23:0],
    }

    /// DESTROY_RMP.
    destroy_rmp_in: 16 {
        RMPN: [0x08 23:0],
    }

    /// MODIFY_RMP.
    modify_rmp_in: 0x110 {
        RMP_STATE: [0x08 31:28],
        RMPN: [0x08 23:0],
        /// Takes the watermark from the context: the one bit of the 64-bit mask at 0x10.
        BITMASK_LWM: [0x14 0],
        RMPC: [part 0x20 rmpc],
    }

    /// QUERY_RMP.
    query_rmp_in: 16 {
        RMPN: [0x08 23:0],
    }

    /// QUERY_RMP's reply.
    query_rmp_out: 0x110 {
        RMPC: [part 0x20 rmpc],
        PAS: [tail],
    }

    /// XRC SRQ's context.
    xrc_srqc: 64 {
        /// 0 = good.
        STATE: [0x00 31:28],
        LOG_XRC_SRQ_SIZE: [0x00 27:24],
        WQ_SIGNATURE: [0x04 31],
        CONT_SRQ: [0x04 30],
        RLKY: [0x04 28],
        BASIC_CYCLIC_RCV_WQE: [0x04 27],
        /// A WQE has 16 << n bytes.
        LOG_RQ_STRIDE: [0x04 26:24],
        XRCD: [0x04 23:0],
        /// In units of page size / 64.
        PAGE_OFFSET: [0x08 31:26],
        DBR_UMEM_VALID: [0x08 24],
        CQN: [0x08 23:0],
        USER_INDEX_EQUAL_XRC_SRQN: [0x10 31],
        /// Relative to 4 KiB.
        LOG_PAGE_SIZE: [0x10 29:24],
        USER_INDEX: [0x10 23:0],
        PD: [0x18 23:0],
        LWM: [0x1c 31:16],
        WQE_CNT: [0x1c 15:0],
        DBR_ADDR: [u64 0x28],
    }

    /// CREATE_XRC_SRQ.
    create_xrc_srq_in: 0x110 {
        XRC_SRQC: [part 0x10 xrc_srqc],
        XRC_SRQ_UMEM_VALID: [0x5c 31],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// CREATE_XRC_SRQ's reply.
    create_xrc_srq_out: 16 {
        XRC_SRQN: [0x08 23:0],
    }

    /// DESTROY_XRC_SRQ.
    destroy_xrc_srq_in: 16 {
        XRC_SRQN: [0x08 23:0],
    }

    /// QUERY_XRC_SRQ.
    query_xrc_srq_in: 16 {
        XRC_SRQN: [0x08 23:0],
    }

    /// QUERY_XRC_SRQ's reply.
    query_xrc_srq_out: 0x110 {
        XRC_SRQC: [part 0x10 xrc_srqc],
        PAS: [tail],
    }

    /// ARM_XRC_SRQ; op_mod 1.
    arm_xrc_srq_in: 16 {
        XRC_SRQN: [0x08 23:0],
        LWM: [0x0c 15:0],
    }

    /// SRQ doorbell record, in guest memory (contract 7.1).
    dbr: 4 {
        /// WQEs posted, modulo 2^16.
        COUNTER: [0x00 15:0],
    }
}

values! {
    /// `wq::WQ_TYPE`.
    wq_type: u32 {
        LINKED_LIST = 0,
        CYCLIC = 1,
    }

    /// `rmpc::STATE` and `modify_rmp_in::RMP_STATE`.
    rmp_state: u32 {
        RST = 0,
        RDY = 1,
        ERR = 3,
    }

    /// ARM_XRC_SRQ's op_mod.
    arm_op_mod: u32 {
        XRC_SRQ = 1,
    }
}
