// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Queue pairs: context, address paths, commands, doorbell record (contract 6.3, 6.4, 7.1).

/// Bytes of a QP context.
pub const QPC_SIZE: usize = qpc::SIZE;
/// Bytes of an address path.
pub const ADS_SIZE: usize = ads::SIZE;
/// The primary address path's offset in a QP context.
pub const PRIMARY_PATH: usize = qpc::PRIMARY_ADDRESS_PATH;
/// The secondary address path's offset in a QP context.
pub const SECONDARY_PATH: usize = qpc::SECONDARY_ADDRESS_PATH;
/// Bytes of a send queue's basic block; `log_sq_size` counts these.
pub const SQ_BLOCK_SIZE: usize = 64;
/// `user_index` of a QP that no user process owns.
pub const NO_USER_INDEX: u32 = 0xff_ffff;

layout! {
    /// QP context.
    qpc: 232 {
        STATE: [0x00 31:28],
        LAG_TX_PORT_AFFINITY: [0x00 27:24],
        /// See `service_type`.
        ST: [0x00 23:16],
        PM_STATE: [0x00 12:11],
        END_PADDING_MODE: [0x00 3:2],
        WQ_SIGNATURE: [0x04 31],
        BLOCK_LB_MC: [0x04 30],
        LATENCY_SENSITIVE: [0x04 28],
        DRAIN_SIGERR: [0x04 26],
        PD: [0x04 23:0],
        /// 1 = 256 bytes ..= 5 = 4096 bytes.
        MTU: [0x08 31:29],
        LOG_MSG_MAX: [0x08 28:24],
        /// In WQEs.
        LOG_RQ_SIZE: [0x08 22:19],
        /// A WQE has 16 << n bytes.
        LOG_RQ_STRIDE: [0x08 18:16],
        NO_SQ: [0x08 15],
        /// In blocks of 64 bytes.
        LOG_SQ_SIZE: [0x08 14:11],
        TS_FORMAT: [0x08 7:6],
        /// Reserved lkey allowed.
        RLKY: [0x08 4],
        COUNTER_SET_ID: [0x0c 31:24],
        UAR_PAGE: [0x0c 23:0],
        USER_INDEX: [0x10 23:0],
        /// Relative to 4 KiB.
        LOG_PAGE_SIZE: [0x14 28:24],
        REMOTE_QPN: [0x14 23:0],
        PRIMARY_ADDRESS_PATH: [part 0x18 ads],
        SECONDARY_ADDRESS_PATH: [part 0x44 ads],
        LOG_ACK_REQ_FREQ: [0x70 31:28],
        LOG_SRA_MAX: [0x70 23:21],
        RETRY_COUNT: [0x70 18:16],
        RNR_RETRY: [0x70 15:13],
        /// Fast registration allowed.
        FRE: [0x70 11],
        CUR_RNR_RETRY: [0x70 10:8],
        CUR_RETRY_COUNT: [0x70 7:5],
        NEXT_SEND_PSN: [0x78 23:0],
        CQN_SND: [0x7c 23:0],
        DETH_SQPN: [0x80 23:0],
        LAST_ACKED_PSN: [0x88 23:0],
        SSN: [0x8c 23:0],
        LOG_RRA_MAX: [0x90 23:21],
        ATOMIC_MODE: [0x90 19:16],
        /// Remote read enable.
        RRE: [0x90 15],
        /// Remote write enable.
        RWE: [0x90 14],
        /// Remote atomic enable.
        RAE: [0x90 13],
        /// In units of page size / 64.
        PAGE_OFFSET: [0x90 11:6],
        CD_SLAVE_RECEIVE: [0x90 2],
        CD_SLAVE_SEND: [0x90 1],
        CD_MASTER: [0x90 0],
        MIN_RNR_NAK: [0x94 28:24],
        NEXT_RCV_PSN: [0x94 23:0],
        XRCD: [0x98 23:0],
        CQN_RCV: [0x9c 23:0],
        DBR_ADDR: [u64 0xa0],
        Q_KEY: [0xa8],
        RQ_TYPE: [0xac 26:24],
        SRQN_RMPN_XRQN: [0xac 23:0],
        RMSN: [0xb0 23:0],
        HW_SQ_WQEBB_COUNTER: [0xb4 31:16],
        SW_SQ_WQEBB_COUNTER: [0xb4 15:0],
        HW_RQ_COUNTER: [0xb8],
        SW_RQ_COUNTER: [0xbc],
        CGS: [0xc4 16],
        /// Scatter to CQE, requester: 0x11 = 32 bytes, 0x22 = 64 bytes.
        CS_REQ: [0xc4 15:8],
        /// Scatter to CQE, responder: 1 = 32 bytes, 2 = 64 bytes.
        CS_RES: [0xc4 7:0],
        DC_ACCESS_KEY: [u64 0xc8],
        DBR_UMEM_VALID: [0xd0 28],
        DBR_UMEM_ID: [0xe4],
    }

    /// Address path, relative to its start; use `plus(PRIMARY_PATH)` in a QP context.
    ads: 44 {
        FL: [0x00 31],
        FREE_AR: [0x00 30],
        PKEY_INDEX: [0x00 15:0],
        GRH: [0x04 23],
        /// Path bits.
        MLID: [0x04 22:16],
        RLID: [0x04 15:0],
        ACK_TIMEOUT: [0x08 31:27],
        SRC_ADDR_INDEX: [0x08 23:16],
        STAT_RATE: [0x08 11:8],
        HOP_LIMIT: [0x08 7:0],
        TCLASS: [0x0c 27:20],
        FLOW_LABEL: [0x0c 19:0],
        RGID: [bytes 0x10..0x20],
        SL: [0x24 27:24],
        VHCA_PORT_NUM: [0x24 23:16],
        RMAC_47_32: [0x24 15:0],
        RMAC_31_0: [0x28],
    }

    /// Context of a DC target.
    dctc: 0x70 {
        STATE: [0x00 27:24],
        USER_INDEX: [0x04 23:0],
        CQN: [0x08 23:0],
        COUNTER_SET_ID: [0x0c 31:24],
        ATOMIC_MODE: [0x0c 23:20],
        RRE: [0x0c 19],
        RWE: [0x0c 18],
        RAE: [0x0c 17],
        ATOMIC_LIKE_WRITE_EN: [0x0c 16],
        LATENCY_SENSITIVE: [0x0c 15],
        RLKY: [0x0c 14],
        FREE_AR: [0x0c 13],
        CS_RES: [0x10 23:16],
        MIN_RNR_NAK: [0x10 12:8],
        SRQN_XRQN: [0x14 23:0],
        PD: [0x18 23:0],
        TCLASS: [0x1c 31:24],
        FLOW_LABEL: [0x1c 19:0],
        DC_ACCESS_KEY: [u64 0x20],
        MTU: [0x28 26:24],
        PORT: [0x28 23:16],
        PKEY_INDEX: [0x28 15:0],
        MY_ADDR_INDEX: [0x2c 23:16],
        HOP_LIMIT: [0x2c 7:0],
        DC_ACCESS_KEY_VIOLATION_COUNT: [0x30],
        ECE: [0x3c],
    }

    /// CREATE_DCT.
    create_dct_in: 0x80 {
        DCTC: [part 0x10 dctc],
    }

    /// CREATE_DCT's reply; DESTROY_DCT, DRAIN_DCT and QUERY_DCT.
    dct: 16 {
        DCTN: [0x08 23:0],
        ECE: [0x0c],
    }

    /// QUERY_DCT's reply.
    query_dct_out: 0x80 {
        DCTC: [part 0x10 dctc],
    }

    /// CREATE_QP.
    create_in: 0x110 {
        INPUT_QPN: [0x08 23:0],
        OPT_PARAM_MASK: [0x10],
        ECE: [0x14],
        QPC: [part 0x18 qpc],
        WQ_UMEM_OFFSET: [u64 0x100],
        WQ_UMEM_ID: [0x108],
        WQ_UMEM_VALID: [0x10c 31],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// CREATE_QP's reply.
    create_out: 16 {
        QPN: [0x08 23:0],
        ECE: [0x0c],
    }

    /// DESTROY_QP.
    destroy_in: 16 {
        QPN: [0x08 23:0],
    }

    /// QUERY_QP.
    query_in: 16 {
        QPN: [0x08 23:0],
    }

    /// QUERY_QP's reply.
    query_out: 0x110 {
        OPT_PARAM_MASK: [0x10],
        ECE: [0x14],
        QPC: [part 0x18 qpc],
        PAS: [tail],
    }

    /// The transitions that carry a context: RST2INIT, INIT2RTR, RTR2RTS, RTS2RTS, SQERR2RTS, SQD_RTS, INIT2INIT.
    modify_in: 0x110 {
        QPN: [0x08 23:0],
        /// See `opt_param_mask`.
        OPT_PARAM_MASK: [0x10],
        ECE: [0x14],
        QPC: [part 0x18 qpc],
    }

    /// Their reply; ECE only where the driver asks for it.
    modify_out: 16 {
        ECE: [0x0c],
    }

    /// The transitions without a context: 2ERR, 2RST.
    to_state_in: 16 {
        QPN: [0x08 23:0],
    }

    /// QP doorbell record, in guest memory (contract 7.1); both counters are modulo 2^16.
    dbr: 8 {
        /// WQEs posted to the receive queue.
        RECV_COUNTER: [0x00 15:0],
        /// Blocks posted to the send queue.
        SEND_COUNTER: [0x04 15:0],
    }
}

values! {
    /// `qpc::STATE`.
    state: u32 {
        RST = 0,
        INIT = 1,
        RTR = 2,
        RTS = 3,
        SQER = 4,
        SQD = 5,
        ERR = 6,
        SQ_DRAINING = 7,
        SUSPENDED = 9,
    }

    /// `qpc::ST`.
    service_type: u32 {
        RC = 0x0,
        UC = 0x1,
        UD = 0x2,
        XRC = 0x3,
        MLX = 0x4,
        DCI = 0x5,
        DCT = 0x6,
        QP0 = 0x7,
        QP1 = 0x8,
        RAW_ETH = 0x9,
        REG_UMR = 0xc,
        SYNC_UMR = 0xe,
    }

    /// `qpc::RQ_TYPE`.
    rq_type: u32 {
        /// Its own receive queue.
        REGULAR = 0,
        SRQ = 1,
        CRQ = 2,
        ZERO_SIZE = 3,
    }

    /// `qpc::PM_STATE`.
    pm_state: u32 {
        ARMED = 0,
        REARM = 1,
        MIGRATED = 3,
    }

    /// `qpc::MTU`.
    mtu: u32 {
        BYTES_256 = 1,
        BYTES_512 = 2,
        BYTES_1024 = 3,
        BYTES_2048 = 4,
        BYTES_4096 = 5,
    }

    /// `qpc::ATOMIC_MODE`.
    atomic_mode: u32 {
        NONE = 0,
        IB_COMP = 1,
    }

    /// Bits of `OPT_PARAM_MASK` (contract 6.4).
    opt_param_mask: u32 {
        ALT_ADDR_PATH = 1 << 0,
        RRE = 1 << 1,
        RAE = 1 << 2,
        RWE = 1 << 3,
        PKEY_INDEX = 1 << 4,
        Q_KEY = 1 << 5,
        RNR_TIMEOUT = 1 << 6,
        PRIMARY_ADDR_PATH = 1 << 7,
        SRA_MAX = 1 << 8,
        RRA_MAX = 1 << 9,
        PM_STATE = 1 << 10,
        RETRY_COUNT = 1 << 12,
        RNR_RETRY = 1 << 13,
        ACK_TIMEOUT = 1 << 14,
        LAG_TX_AFF = 1 << 15,
        PRI_PORT = 1 << 16,
        SRQN = 1 << 18,
        CQN_RCV = 1 << 19,
        DC_HS = 1 << 20,
        DC_KEY = 1 << 21,
        PP_INDEX = 1 << 22,
        COUNTER_SET_ID = 1 << 25,
    }
}
