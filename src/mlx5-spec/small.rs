// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Commands of the whole device and of its small objects (contract 4.1, 6.7, 8.6).

/// Bytes of a page that QUERY_PAGES and MANAGE_PAGES count.
pub const PAGE_SIZE: u64 = 4096;

layout! {
    /// ALLOC_PD, ALLOC_UAR, ALLOC_XRCD, ALLOC_TRANSPORT_DOMAIN in their reply, DEALLOC_* in their input.
    object: 16 {
        NUMBER: [0x08 23:0],
    }

    /// ENABLE_HCA and DISABLE_HCA.
    enable_hca_in: 16 {
        EMBEDDED_CPU_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
    }

    /// INIT_HCA.
    init_hca_in: 32 {
        SW_VHCA_ID: [0x0c 29:16],
        SW_OWNER_ID: [bytes 0x10..0x20],
    }

    /// TEARDOWN_HCA.
    teardown_hca_in: 16 {
        /// See `teardown_profile`.
        PROFILE: [0x08 15:0],
    }

    /// TEARDOWN_HCA's reply.
    teardown_hca_out: 16 {
        /// 0 = success.
        STATE: [0x0c 0],
    }

    /// QUERY_ISSI's reply.
    query_issi_out: 112 {
        CURRENT_ISSI: [0x08 15:0],
        /// Bit n = ISSI n.
        SUPPORTED_ISSI_DW0: [0x6c],
    }

    /// SET_ISSI.
    set_issi_in: 16 {
        CURRENT_ISSI: [0x08 15:0],
    }

    /// QUERY_PAGES; op_mod as in `query_pages_op_mod`.
    query_pages_in: 16 {
        EMBEDDED_CPU_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
    }

    /// QUERY_PAGES's reply.
    query_pages_out: 16 {
        EMBEDDED_CPU_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
        /// Signed.
        NUM_PAGES: [0x0c],
    }

    /// MANAGE_PAGES; op_mod as in `manage_pages_op_mod`.
    manage_pages_in: 16 {
        EMBEDDED_CPU_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
        INPUT_NUM_ENTRIES: [0x0c],
        /// Page addresses of 8 bytes each.
        PAS: [tail],
    }

    /// MANAGE_PAGES's reply.
    manage_pages_out: 16 {
        OUTPUT_NUM_ENTRIES: [0x08],
        PAS: [tail],
    }

    /// QUERY_ADAPTER's reply; the parameter block starts at 0x10.
    query_adapter_out: 272 {
        IEEE_VENDOR_ID: [0x28 23:0],
        VSD_VENDOR_ID: [0x2c 15:0],
        VSD: [bytes 0x30..0x100],
        /// Board id, a string.
        VSD_CONTD_PSID: [bytes 0x100..0x110],
    }

    /// QUERY_SPECIAL_CONTEXTS's reply.
    query_special_contexts_out: 32 {
        DUMP_FILL_MKEY: [0x08],
        RESD_LKEY: [0x0c],
        NULL_MKEY: [0x10],
        TERMINATE_SCATTER_LIST_MKEY: [0x14],
        REPEATED_MKEY: [0x18],
    }

    /// ATTACH_TO_MCG and DETACH_FROM_MCG.
    mcg_in: 32 {
        QPN: [0x08 23:0],
        MULTICAST_GID: [bytes 0x10..0x20],
    }

    /// ALLOC_MEMIC.
    alloc_memic_in: 32 {
        /// Beyond 64 bytes.
        LOG_MEMIC_ADDR_ALIGNMENT: [0x0c 7:0],
        /// Where in BAR0 it may be, and how far that goes.
        RANGE_START_ADDR: [u64 0x10],
        RANGE_SIZE: [0x18],
        MEMIC_SIZE: [0x1c],
    }

    /// ALLOC_MEMIC's reply.
    alloc_memic_out: 16 {
        /// In BAR0.
        MEMIC_START_ADDR: [u64 0x08],
    }

    /// DEALLOC_MEMIC.
    dealloc_memic_in: 32 {
        MEMIC_START_ADDR: [u64 0x10],
        MEMIC_SIZE: [0x18],
    }

    /// ALLOC_Q_COUNTER's reply and DEALLOC_Q_COUNTER.
    q_counter: 16 {
        COUNTER_SET_ID: [0x08 7:0],
    }

    /// QUERY_Q_COUNTER.
    query_q_counter_in: 32 {
        OTHER_VPORT: [0x08 31],
        VPORT_NUMBER: [0x08 15:0],
        CLEAR: [0x18 31],
        AGGREGATE: [0x18 30],
        COUNTER_SET_ID: [0x1c 7:0],
    }

    /// QUERY_Q_COUNTER's reply.
    query_q_counter_out: 256 {
        RX_WRITE_REQUESTS: [0x10],
        RX_READ_REQUESTS: [0x18],
        RX_ATOMIC_REQUESTS: [0x20],
        OUT_OF_BUFFER: [0x30],
        OUT_OF_SEQUENCE: [0x38],
        DUPLICATE_REQUEST: [0x40],
        RNR_NAK_RETRY_ERR: [0x48],
        PACKET_SEQ_ERR: [0x50],
        IMPLIED_NAK_SEQ_ERR: [0x58],
        LOCAL_ACK_TIMEOUT_ERR: [0x60],
        REQ_RNR_RETRIES_EXCEEDED: [0x70],
        RESP_LOCAL_LENGTH_ERROR: [0x78],
        REQ_LOCAL_LENGTH_ERROR: [0x7c],
        RESP_LOCAL_QP_ERROR: [0x80],
        LOCAL_OPERATION_ERROR: [0x84],
        RESP_LOCAL_PROTECTION: [0x88],
        REQ_LOCAL_PROTECTION: [0x8c],
        RESP_CQE_ERROR: [0x90],
        REQ_CQE_ERROR: [0x94],
        REQ_MW_BINDING: [0x98],
        REQ_BAD_RESPONSE: [0x9c],
        REQ_REMOTE_INVALID_REQUEST: [0xa0],
        RESP_REMOTE_INVALID_REQUEST: [0xa4],
        REQ_REMOTE_ACCESS_ERRORS: [0xa8],
        RESP_REMOTE_ACCESS_ERRORS: [0xac],
        REQ_REMOTE_OPERATION_ERRORS: [0xb0],
        REQ_TRANSPORT_RETRIES_EXCEEDED: [0xb4],
        CQ_OVERFLOW: [0xb8],
        RESP_CQE_FLUSH_ERROR: [0xbc],
        REQ_CQE_FLUSH_ERROR: [0xc0],
    }

    /// QUERY_VPORT_COUNTER.
    query_vport_counter_in: 32 {
        OTHER_VPORT: [0x08 31],
        PORT_NUM: [0x08 19:16],
        VPORT_NUMBER: [0x08 15:0],
        CLEAR: [0x18 31],
    }

    /// QUERY_VPORT_COUNTER's reply.
    query_vport_counter_out: 0x210 {
        RECEIVED_ERRORS_PACKETS: [u64 0x10],
        RECEIVED_ERRORS_OCTETS: [u64 0x18],
        TRANSMIT_ERRORS_PACKETS: [u64 0x20],
        TRANSMIT_ERRORS_OCTETS: [u64 0x28],
        RECEIVED_IB_UNICAST_PACKETS: [u64 0x30],
        RECEIVED_IB_UNICAST_OCTETS: [u64 0x38],
        TRANSMITTED_IB_UNICAST_PACKETS: [u64 0x40],
        TRANSMITTED_IB_UNICAST_OCTETS: [u64 0x48],
        RECEIVED_IB_MULTICAST_PACKETS: [u64 0x50],
        RECEIVED_IB_MULTICAST_OCTETS: [u64 0x58],
        TRANSMITTED_IB_MULTICAST_PACKETS: [u64 0x60],
        TRANSMITTED_IB_MULTICAST_OCTETS: [u64 0x68],
        LOCAL_LOOPBACK_PACKETS: [u64 0xd0],
        LOCAL_LOOPBACK_OCTETS: [u64 0xd8],
    }
}

values! {
    /// TEARDOWN_HCA's profile.
    teardown_profile: u32 {
        GRACEFUL_CLOSE = 0,
        FORCE_CLOSE = 1,
        PREPARE_FAST_TEARDOWN = 2,
    }

    /// QUERY_PAGES's op_mod.
    query_pages_op_mod: u32 {
        BOOT = 1,
        INIT = 2,
        REGULAR = 3,
    }

    /// MANAGE_PAGES's op_mod.
    manage_pages_op_mod: u32 {
        /// The driver cannot give pages.
        CANT_GIVE = 0,
        GIVE = 1,
        /// The driver wants pages back.
        TAKE = 2,
    }
}
