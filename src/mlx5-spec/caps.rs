// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities: QUERY_HCA_CAP, SET_HCA_CAP and their structures (contract 5).

/// Bytes of the union that holds any capability structure.
pub const UNION_SIZE: usize = 4096;
/// Bytes of a structure in use.
pub const CAP_SIZE: usize = cmd_hca_cap::SIZE;

layout! {
    /// QUERY_HCA_CAP: its op_mod is two fields.
    query_in: 16 {
        /// See `cap_type`.
        CAP_TYPE: [0x04 15:1],
        /// See `cap_mode`.
        CAP_MODE: [0x04 0],
        OTHER_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
    }

    /// QUERY_HCA_CAP's reply.
    query_out: 0x1010 {
        CAPABILITY: [part 0x10..0x1010],
    }

    /// SET_HCA_CAP.
    set_in: 0x1010 {
        /// See `cap_type`.
        CAP_TYPE: [0x04 15:1],
        OTHER_FUNCTION: [0x08 31],
        FUNCTION_ID: [0x08 15:0],
        CAPABILITY: [part 0x10..0x1010],
    }

    /// Device memory (MEMIC): where in BAR0, and how much.
    device_mem_cap: 256 {
        MEMIC: [0x00 31],
        LOG_MIN_MEMIC_ALLOC_SIZE: [0x04 20:16],
        /// Beyond 64 bytes.
        LOG_MAX_MEMIC_ADDR_ALIGNMENT: [0x04 7:0],
        MEMIC_BAR_START_ADDR: [u64 0x08],
        MEMIC_BAR_SIZE: [0x10],
        MAX_MEMIC_SIZE: [0x14],
        /// Atomic operations by an address of their own, a bit each.
        MEMIC_OPERATIONS: [0x40],
    }

    /// General capabilities: those of contract 5.1, and of 5.2 that keep features away.
    cmd_hca_cap: 256 {
        PAGE_REQUEST_DISABLE: [0x00 25],
        HCA_CAP_2: [0x04 31],
        VHCA_ID: [0x04 15:0],
        LOG_MAX_SRQ_SZ: [0x10 31:24],
        LOG_MAX_QP_SZ: [0x10 23:16],
        EVENT_CAP: [0x10 15],
        LOG_MAX_QP: [0x10 4:0],
        ECE_SUPPORT: [0x14 28],
        LOG_MAX_SRQ: [0x14 20:16],
        /// `SHAMPO` where 6.1 has it.
        SHAMPO_6_1: [0x14 5],
        MAX_SGL_FOR_OPTIMIZED_PERFORMANCE: [0x18 31:24],
        LOG_MAX_CQ_SZ: [0x18 23:16],
        RELAXED_ORDERING_WRITE_UMR: [0x18 15],
        RELAXED_ORDERING_READ_UMR: [0x18 14],
        LOG_MAX_CQ: [0x18 4:0],
        LOG_MAX_EQ_SZ: [0x1c 31:24],
        RELAXED_ORDERING_WRITE: [0x1c 23],
        RELAXED_ORDERING_READ_PCI_ENABLED: [0x1c 22],
        LOG_MAX_MKEY: [0x1c 21:16],
        TERMINATE_SCATTER_LIST_MKEY: [0x1c 9],
        REPEATED_MKEY: [0x1c 8],
        DUMP_FILL_MKEY: [0x1c 7],
        FAST_TEARDOWN: [0x1c 4],
        LOG_MAX_EQ: [0x1c 3:0],
        MAX_INDIRECTION: [0x20 31:24],
        FIXED_BUFFER_SIZE: [0x20 23],
        LOG_MAX_MRW_SZ: [0x20 22:16],
        FORCE_TEARDOWN: [0x20 15],
        UMR_EXTENDED_TRANSLATION_OFFSET: [0x20 7],
        NULL_MKEY: [0x20 6],
        LOG_MAX_KLM_LIST_SIZE: [0x20 5:0],
        LOG_MAX_RA_REQ_DC: [0x24 21:16],
        LOG_MAX_RA_RES_DC: [0x24 5:0],
        RELEASE_ALL_PAGES: [0x28 26],
        LOG_MAX_RA_REQ_QP: [0x28 21:16],
        LOG_MAX_RA_RES_QP: [0x28 5:0],
        CC_QUERY_ALLOWED: [0x2c 30],
        CC_MODIFY_ALLOWED: [0x2c 29],
        RTS2RTS_QP_COUNTERS_SET_ID: [0x2c 22],
        QCAM_REG: [0x2c 16],
        /// 8 << n GIDs.
        GID_TABLE_SIZE: [0x2c 15:0],
        OUT_OF_SEQ_CNT: [0x30 31],
        VPORT_COUNTERS: [0x30 30],
        RETRANSMISSION_Q_COUNTERS: [0x30 29],
        DEBUG: [0x30 28],
        MAX_QP_CNT: [0x30 25:16],
        /// 128 << n P_Keys.
        PKEY_TABLE_SIZE: [0x30 15:0],
        VPORT_GROUP_MANAGER: [0x34 31],
        VHCA_GROUP_MANAGER: [0x34 30],
        IB_VIRT: [0x34 29],
        ETH_VIRT: [0x34 28],
        ETS: [0x34 26],
        NIC_FLOW_TABLE: [0x34 25],
        ESWITCH_MANAGER: [0x34 24],
        DEVICE_MEMORY: [0x34 23],
        MCAM_REG: [0x34 22],
        PCAM_REG: [0x34 21],
        LOCAL_CA_ACK_DELAY: [0x34 20:16],
        PORT_MODULE_EVENT: [0x34 15],
        ENHANCED_ERROR_Q_COUNTERS: [0x34 14],
        /// See `port_type`.
        PORT_TYPE: [0x34 9:8],
        NUM_PORTS: [0x34 7:0],
        PPS: [0x38 30],
        /// Drivers put it into `qp::qpc::LOG_MSG_MAX`.
        LOG_MAX_MSG: [0x38 28:24],
        TEMP_WARN_EVENT: [0x38 15],
        GENERAL_NOTIFICATION_EVENT: [0x38 13],
        FPGA: [0x38 10],
        STAT_RATE_SUPPORT: [0x3c 31:16],
        CQE_VERSION: [0x3c 3:0],
        STRIDING_RQ: [0x40 30],
        IPOIB_ENHANCED_OFFLOADS: [0x40 28],
        IPOIB_BASIC_OFFLOADS: [0x40 27],
        /// 1 disables UMR page lists, and ODP with them.
        UMR_MODIFY_ENTITY_SIZE_DISABLED: [0x40 24],
        UMR_MODIFY_ATOMIC_DISABLED: [0x40 23],
        UMR_INDIRECT_MKEY_DISABLED: [0x40 22],
        /// See `umr_fence`.
        UMR_FENCE: [0x40 21:20],
        CMDIF_CHECKSUM: [0x40 15:14],
        WQ_SIGNATURE: [0x40 11],
        SCTR_DATA_CQE: [0x40 10],
        SHO: [0x40 8],
        DCT: [0x40 5],
        QOS: [0x40 4],
        ETH_NET_OFFLOADS: [0x40 3],
        ROCE: [0x40 2],
        ATOMIC: [0x40 1],
        CQ_OI: [0x44 31],
        CQ_RESIZE: [0x44 30],
        CQ_MODERATION: [0x44 29],
        /// On-demand paging; also makes drivers set the present bits of all MTTs.
        PG: [0x44 24],
        BLOCK_LB_MC: [0x44 23],
        CD: [0x44 19],
        APM: [0x44 17],
        VECTOR_CALC: [0x44 16],
        IMAICL: [0x44 14],
        SET_DETH_SQPN: [0x44 7],
        /// Must be 1, or mlx5_ib does not load: contract D10.
        XRC: [0x44 3],
        UD: [0x44 2],
        UC: [0x44 1],
        RC: [0x44 0],
        UAR_4K: [0x48 31],
        PORT_SELECTION_CAP: [0x48 15],
        /// log2 of the smallest page.
        LOG_PG_SZ: [0x48 7:0],
        /// Must be 0: contract D3.
        BF: [0x4c 31],
        DRIVER_VERSION: [0x4c 30],
        MKEY_BY_NAME: [0x4c 25],
        /// 9 even without BlueFlame: contract T1.
        LOG_BF_REG_SIZE: [0x4c 20:16],
        LAG_MASTER: [0x4c 4],
        NUM_LAG_PORTS: [0x4c 3:0],
        /// In bytes.
        MAX_WQE_SZ_SQ: [0x50 15:0],
        /// Where 6.12 and newer have it; 6.1 has `SHAMPO_6_1`.
        SHAMPO: [0x54 20],
        /// In bytes.
        MAX_WQE_SZ_RQ: [0x54 15:0],
        MAX_QP_MCG: [0x5c 24:0],
        LOG_MAX_MCG: [0x60 7:0],
        LOG_MAX_TRANSPORT_DOMAIN: [0x64 28:24],
        LOG_MAX_PD: [0x64 20:16],
        LOG_MAX_XRCD: [0x64 4:0],
        LOG_MAX_SQ: [0x6c 20:16],
        LOG_MAX_RMP: [0x70 28:24],
        ROCE_RW_SUPPORTED: [0x74 30],
        VHCA_STATE: [0x7c 21],
        GENERAL_OBJ_TYPES: [u64 0x80],
        ATS: [0x8c 30],
        LOG_MAX_UCTX: [0x8c 28:24],
        IPSEC_OFFLOAD: [0x8c 21],
        LOG_MAX_UMEM: [0x8c 20:16],
        MAX_NUM_EQS: [0x8c 15:0],
        TLS_TX: [0x90 30],
        TLS_RX: [0x90 29],
        LOG_UAR_PAGE_SZ: [0x90 15:0],
        /// Of the internal timer; 0 registers no clock.
        DEVICE_FREQUENCY_KHZ: [0x9c],
        ADV_VIRTUALIZATION: [0xac 6],
        CQE_128_ALWAYS: [0xb4 2],
        CQE_COMPRESSION_128: [0xb4 1],
        CQE_COMPRESSION: [0xb4 0],
        TAG_MATCHING: [0xbc 15],
        NATIVE_PORT_NUM: [0xc0 23:16],
        NUM_VHCA_PORTS: [0xc0 15:8],
        SW_OWNER_ID: [0xc0 1],
        MAX_NUM_SF: [0xc8 31:16],
        SF: [0xd0 31],
        UCTX_CAP: [0xd4],
    }

    /// Atomic capabilities (contract 5.3).
    atomic_caps: 256 {
        ATOMIC_REQ_8B_ENDIANNESS_MODE: [0x08 31:30],
        SUPPORTED_ATOMIC_REQ_8B_ENDIANNESS_MODE_1: [0x08 25],
        /// See `atomic_operations`.
        ATOMIC_OPERATIONS: [0x10 15:0],
        /// Bit mask of sizes in bytes.
        ATOMIC_SIZE_QP: [0x14 15:0],
        ATOMIC_SIZE_DC: [0x18 15:0],
    }

    /// ODP capabilities of the transport scheme (contract 5.4); the words' bits are in `odp_transport`.
    odp_caps: 256 {
        SIG: [0x08 31],
        RC_ODP_CAPS: [0x10],
        UC_ODP_CAPS: [0x14],
        UD_ODP_CAPS: [0x18],
        XRC_ODP_CAPS: [0x1c],
        DC_ODP_CAPS: [0x20],
        /// The memory scheme's block (6.12 and newer), laid out like the one above.
        MEMORY_SCHEME: [part 0x40..0x80],
        MEMORY_SCHEME_PAGE_PREFETCH: [also 0x48 26],
        MEM_PAGE_FAULT: [0xc0 31],
    }
}

values! {
    /// Capability types.
    cap_type: u32 {
        GENERAL = 0x0,
        ODP = 0x2,
        ATOMIC = 0x3,
        NIC_FLOW_TABLE = 0x7,
        DEVICE_MEMORY = 0xf,
        HCA_CAP_2 = 0x20,
        PORT_SELECTION = 0x25,
    }

    /// QUERY_HCA_CAP's mode: what is supported, or what is set.
    cap_mode: u32 {
        MAX = 0,
        CUR = 1,
    }

    /// Bits of the ODP words.
    odp_transport: u32 {
        SEND = 1 << 31,
        RECEIVE = 1 << 30,
        WRITE = 1 << 29,
        READ = 1 << 28,
        ATOMIC = 1 << 27,
        SRQ_RECEIVE = 1 << 26,
    }

    /// Bits of the atomic operations.
    atomic_operations: u32 {
        COMPARE_SWAP = 1 << 0,
        FETCH_ADD = 1 << 1,
    }

    /// `cmd_hca_cap::PORT_TYPE`.
    port_type: u32 {
        IB = 0,
        ETH = 1,
    }

    /// `cmd_hca_cap::UMR_FENCE`.
    umr_fence: u32 {
        STRONG = 0,
        SMALL = 1,
        NONE = 2,
    }
}
