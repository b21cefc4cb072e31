// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Event queues: context, commands, EQEs of every type (contract 6.1, 7.7, 9.2).

/// Bytes of an EQ context.
pub const EQC_SIZE: usize = eqc::SIZE;
/// Bytes of an EQE.
pub const EQE_SIZE: usize = eqe::SIZE;

layout! {
    /// EQ context.
    eqc: 64 {
        STATUS: [0x00 31:28],
        EC: [0x00 18],
        /// Overrun ignore.
        OI: [0x00 17],
        /// State; see `state`.
        ST: [0x00 11:8],
        /// In units of page size / 64.
        PAGE_OFFSET: [0x08 11:6],
        LOG_EQ_SIZE: [0x0c 28:24],
        UAR_PAGE: [0x0c 23:0],
        /// MSI-X index.
        INTR: [0x14 11:0],
        /// Relative to 4 KiB.
        LOG_PAGE_SIZE: [0x18 28:24],
        CONSUMER_COUNTER: [0x28 23:0],
        PRODUCER_COUNTER: [0x2c 23:0],
    }

    /// CREATE_EQ.
    create_in: 0x110 {
        EQC: [part 0x10 eqc],
        /// Four 64-bit words, word 0 first: event type t is bit t % 64 of word t / 64.
        EVENT_BITMASK: [part 0x58..0x78],
        EVENT_BITMASK_0: [also u64 0x58],
        EVENT_BITMASK_1: [also u64 0x60],
        EVENT_BITMASK_2: [also u64 0x68],
        EVENT_BITMASK_3: [also u64 0x70],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// CREATE_EQ's reply.
    create_out: 16 {
        EQN: [0x08 7:0],
    }

    /// DESTROY_EQ.
    destroy_in: 16 {
        EQN: [0x08 7:0],
    }

    /// QUERY_EQ.
    query_in: 16 {
        EQN: [0x08 7:0],
    }

    /// QUERY_EQ's reply.
    query_out: 0x110 {
        EQC: [part 0x10 eqc],
        EVENT_BITMASK: [u64 0x58],
        PAS: [tail],
    }

    /// Event queue entry; the data's layouts are in the modules named `eqe_*`, relative to the EQE's start too.
    eqe: 64 {
        TYPE: [0x00 23:16],
        SUB_TYPE: [0x00 7:0],
        DATA: [bytes 0x20..0x3c],
        SIGNATURE: [0x3c 15:8],
        OWNER: [0x3c 0],
        /// The byte with the owner bit; the device writes it last.
        OWNER_BYTE: [also byte 0x3f],
    }

    /// Completion.
    eqe_comp: 64 {
        CQN: [0x38 23:0],
    }

    /// QP and SRQ events.
    eqe_qp_srq: 64 {
        /// See `queue_type`.
        TYPE: [0x34 31:24],
        QP_SRQ_N: [0x38 23:0],
    }

    /// CQ error.
    eqe_cq_err: 64 {
        CQN: [0x20 23:0],
        SYNDROME: [0x28 7:0],
    }

    /// Port change.
    eqe_port: 64 {
        PORT_NUM: [0x28 31:28],
    }

    /// Command completion.
    eqe_cmd: 64 {
        /// Bit i = queue entry i has finished.
        VECTOR: [0x20],
    }

    /// Page request.
    eqe_page_req: 64 {
        EC_FUNCTION: [0x20 31],
        RELEASE_ALL_PAGES: [0x20 30],
        FUNC_ID: [0x20 15:0],
        /// Signed: pages wanted, or given back if negative.
        NUM_PAGES: [0x24],
    }

    /// Page fault of a WQE (sub type 0).
    eqe_page_fault_wqe: 64 {
        BYTES_COMMITTED: [0x20],
        WQE_INDEX: [0x24 15:0],
        PACKET_LENGTH: [0x28 15:0],
        /// Keep within 24 bits: the resume command has no more.
        TOKEN: [0x2c],
        /// See `odp::wqe_fault_type`.
        TYPE: [0x38 26:24],
        /// SRQN for type 0, else QPN.
        WQ_NUMBER: [0x38 23:0],
    }

    /// Page fault of an RDMA responder (sub type 1).
    eqe_page_fault_rdma: 64 {
        BYTES_COMMITTED: [0x20],
        R_KEY: [0x24],
        PACKET_LENGTH: [0x28 15:0],
        /// What remains of the message; 0 = unknown.
        RDMA_OP_LEN: [0x2c],
        RDMA_VA: [u64 0x30],
        /// See `odp::rdma_fault_type`.
        TYPE: [0x38 31:24],
        TOKEN: [0x38 23:0],
    }

    /// Page fault of the memory scheme (sub type 2; not negotiated here).
    eqe_page_fault_memory: 64 {
        LAST: [0x20 31],
        POST_DEMAND_PAGES: [0x20 15:0],
        PRE_DEMAND_PAGES: [0x24 31:16],
        TOKEN_47_32: [0x24 15:0],
        TOKEN_31_0: [0x28],
        DEMAND_FAULT_PAGES: [0x2c 31:12],
        MKEY: [0x30],
        VA: [u64 0x34],
    }
}

values! {
    /// Event types: EQE `TYPE` and bit numbers of the event bitmask (contract 4.1, 7.7, 12.2).
    event: u32 {
        COMP = 0x00,
        PATH_MIG = 0x01,
        COMM_EST = 0x02,
        SQ_DRAINED = 0x03,
        CQ_ERROR = 0x04,
        WQ_CATAS_ERROR = 0x05,
        PATH_MIG_FAILED = 0x07,
        PORT_CHANGE = 0x09,
        CMD = 0x0a,
        PAGE_REQUEST = 0x0b,
        PAGE_FAULT = 0x0c,
        WQ_INVAL_REQ_ERROR = 0x10,
        WQ_ACCESS_ERROR = 0x11,
        SRQ_CATAS_ERROR = 0x12,
        SRQ_LAST_WQE = 0x13,
        SRQ_RQ_LIMIT = 0x14,
        DCT_DRAINED = 0x1c,
        GENERAL_EVENT = 0x22,
    }

    /// Sub types of `event::PORT_CHANGE`.
    port_change: u32 {
        DOWN = 1,
        ACTIVE = 4,
        INITIALIZED = 5,
        LID = 6,
        PKEY = 7,
        GUID = 8,
        CLIENT_REREG = 9,
    }

    /// Which queue a QP event tells of.
    queue_type: u32 {
        QP = 0,
        RQ = 1,
        SQ = 2,
        DCT = 6,
    }

    /// Sub types of `event::PAGE_FAULT`.
    page_fault: u32 {
        WQE = 0,
        RDMA = 1,
        MEMORY = 2,
    }

    /// EQ states.
    state: u32 {
        ARMED = 9,
        FIRED = 0xa,
        ALWAYS_ARMED = 0xb,
    }
}
