// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work requests: segments of send and receive WQEs (contract 7.3, 7.4). UMR's own segments are in `mkey`.

/// Bytes of one unit of `ctrl::DS`.
pub const DS_UNIT: usize = 16;
/// What a data segment's byte count of 0 means.
pub const ZERO_BYTE_COUNT: u64 = 1 << 31;
/// Bytes of an address vector that is extended, as the drivers' always are.
pub const AV_SIZE: usize = av::SIZE;
/// Bytes of an address vector that is not.
pub const AV_BASE_SIZE: usize = 16;
/// Bytes of the segment before a receive WQE's list if QPC.wq_signature is set; the signature is its byte 4.
pub const SIGNATURE_SIZE: usize = 16;
/// Bytes at the start of a datagram's receive buffer that belong to the GRH (contract 7.5).
pub const GRH_SIZE: usize = 40;

layout! {
    /// Control segment; its first 8 bytes are also the send doorbell.
    ctrl: 16 {
        OPMOD: [0x00 31:24],
        WQE_INDEX: [0x00 23:8],
        /// See `opcode`.
        OPCODE: [0x00 7:0],
        QPN: [0x04 31:8],
        /// Length of the WQE in units of 16 bytes.
        DS: [0x04 5:0],
        SIGNATURE: [0x08 31:24],
        /// The byte of the three below.
        FM_CE_SE: [also 0x08 7:0],
        /// See `fence`.
        FENCE: [0x08 7:5],
        /// See `ce`.
        CE: [0x08 3:2],
        SOLICITED: [0x08 1],
        /// Immediate, as on the wire.
        IMM: [0x0c],
        /// Of SEND_INVAL and LOCAL_INVAL.
        INVAL_RKEY: [also 0x0c],
        /// Target of a UMR.
        UMR_MKEY: [also 0x0c],
    }

    /// Remote address segment.
    raddr: 16 {
        RADDR: [u64 0x00],
        RKEY: [0x08],
    }

    /// Atomic segment.
    atomic: 16 {
        SWAP_ADD: [u64 0x00],
        COMPARE: [u64 0x08],
    }

    /// Segment of masked atomics, two units.
    masked_atomic: 32 {
        SWAP_ADD: [u64 0x00],
        COMPARE: [u64 0x08],
        SWAP_ADD_MASK: [u64 0x10],
        COMPARE_MASK: [u64 0x18],
    }

    /// Data segment, of send and receive WQEs.
    data: 16 {
        /// Set: this is an inline segment.
        INLINE: [0x00 31],
        BYTE_COUNT: [0x00 30:0],
        LKEY: [0x04],
        ADDR: [u64 0x08],
    }

    /// Inline segment's header; the data follows, padded to 16 bytes in all.
    inline: 4 {
        INLINE: [0x00 31],
        LENGTH: [0x00 9:0],
        DATA: [tail],
    }

    /// Address vector of UD, QP0 and QP1.
    av: 48 {
        QKEY: [0x00],
        /// Where a DC initiator has its target's key.
        DC_KEY: [also u64 0x00],
        /// All 48 bytes are there.
        EXTENDED: [0x08 31],
        DQPN: [0x08 23:0],
        STATIC_RATE: [0x0c 31:28],
        SL: [0x0c 27:24],
        FL: [0x0c 23],
        /// Path bits.
        MLID: [0x0c 22:16],
        /// DLID.
        RLID: [0x0c 15:0],
        RMAC: [bytes 0x14..0x1a],
        TCLASS: [0x18 15:8],
        HOP_LIMIT: [0x18 7:0],
        GRH: [0x1c 30],
        SRC_ADDR_INDEX: [0x1c 27:20],
        FLOW_LABEL: [0x1c 19:0],
        /// DGID.
        RGID: [bytes 0x20..0x30],
    }

    /// XRC segment.
    xrc: 16 {
        XRC_SRQN: [0x00 23:0],
    }

    /// First segment of an SRQ's WQE.
    srq_next: 16 {
        NEXT_WQE_INDEX: [0x00 15:0],
        SIGNATURE: [0x04 31:24],
    }
}

values! {
    /// `ctrl::OPCODE`.
    opcode: u32 {
        NOP = 0x00,
        SEND_INVAL = 0x01,
        RDMA_WRITE = 0x08,
        RDMA_WRITE_IMM = 0x09,
        SEND = 0x0a,
        SEND_IMM = 0x0b,
        LSO = 0x0e,
        RDMA_READ = 0x10,
        ATOMIC_CS = 0x11,
        ATOMIC_FA = 0x12,
        ATOMIC_MASKED_CS = 0x14,
        ATOMIC_MASKED_FA = 0x15,
        BIND_MW = 0x18,
        FMR = 0x19,
        LOCAL_INVAL = 0x1b,
        CONFIG_CMD = 0x1f,
        SET_PSV = 0x20,
        GET_PSV = 0x21,
        CHECK_PSV = 0x22,
        DUMP = 0x23,
        UMR = 0x25,
        RGET_PSV = 0x26,
        RCHECK_PSV = 0x27,
        TAG_MATCHING = 0x28,
        ENHANCED_MPSW = 0x29,
        MMO = 0x2f,
    }

    /// `ctrl::FENCE`.
    fence: u32 {
        NONE = 0,
        /// Waits for earlier local UMRs and invalidations.
        INITIATOR_SMALL = 1,
        /// Waits for earlier RDMA reads and atomics.
        FENCE = 2,
        STRONG_ORDERING = 3,
        SMALL_AND_FENCE = 4,
    }

    /// `ctrl::CE`.
    ce: u32 {
        CQE_ON_ERROR = 0,
        CQE_ALWAYS = 2,
        CQE_AND_EQE = 3,
    }
}
