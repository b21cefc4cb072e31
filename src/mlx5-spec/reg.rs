// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers behind ACCESS_REG (contract 4.3).

layout! {
    /// ACCESS_REG, and its reply's data too; op_mod as in `op_mod`.
    access_in: 16 {
        REGISTER_ID: [0x08 15:0],
        ARGUMENT: [0x0c],
        REGISTER_DATA: [tail],
    }

    /// ACCESS_REG's reply.
    access_out: 16 {
        REGISTER_DATA: [tail],
    }

    /// PTYS: port type and speed.
    ptys: 64 {
        LOCAL_PORT: [0x00 23:16],
        PLANE_IND: [0x00 7:4],
        /// See `proto_mask`.
        PROTO_MASK: [0x00 2:0],
        IB_LINK_WIDTH_CAPABILITY: [0x10 31:16],
        IB_PROTO_CAPABILITY: [0x10 15:0],
        IB_LINK_WIDTH_ADMIN: [0x1c 31:16],
        IB_PROTO_ADMIN: [0x1c 15:0],
        IB_LINK_WIDTH_OPER: [0x28 31:16],
        IB_PROTO_OPER: [0x28 15:0],
    }

    /// PMTU: port MTU, in bytes.
    pmtu: 16 {
        LOCAL_PORT: [0x00 23:16],
        MAX_MTU: [0x04 31:16],
        ADMIN_MTU: [0x08 31:16],
        OPER_MTU: [0x0c 31:16],
    }

    /// PVLC: virtual lanes.
    pvlc: 16 {
        LOCAL_PORT: [0x00 23:16],
        /// One of 1, 2, 4, 8, 15, or the driver refuses the port.
        VL_HW_CAP: [0x04 3:0],
        VL_ADMIN: [0x08 3:0],
        VL_OPERATIONAL: [0x0c 3:0],
    }

    /// NODE_DESC.
    node_desc: 64 {
        NODE_DESC: [bytes 0x00..0x40],
    }

    /// HOST_ENDIANNESS.
    host_endianness: 16 {
        HE: [0x00 31:24],
    }

    /// PPCNT: port counters.
    ppcnt: 256 {
        LOCAL_PORT: [0x00 23:16],
        /// See `ppcnt_grp`.
        GRP: [0x00 5:0],
        CLR: [0x04 31],
        COUNTER_SET: [part 0x08 ib_port_counters],
    }

    /// PPCNT's InfiniBand port counters, relative to `ppcnt::COUNTER_SET`.
    ib_port_counters: 0xf8 {
        SYMBOL_ERROR_COUNTER: [0x00 31:16],
        LINK_ERROR_RECOVERY_COUNTER: [0x00 15:8],
        LINK_DOWNED_COUNTER: [0x00 7:0],
        PORT_RCV_ERRORS: [0x04 31:16],
        PORT_RCV_REMOTE_PHYSICAL_ERRORS: [0x04 15:0],
        PORT_RCV_SWITCH_RELAY_ERRORS: [0x08 31:16],
        PORT_XMIT_DISCARDS: [0x08 15:0],
        PORT_XMIT_CONSTRAINT_ERRORS: [0x0c 31:24],
        PORT_RCV_CONSTRAINT_ERRORS: [0x0c 23:16],
        LINK_OVERRUN_ERRORS: [0x0c 7:0],
        VL_15_DROPPED: [0x10 15:0],
        /// In words of 4 bytes.
        PORT_XMIT_DATA: [0x14],
        /// In words of 4 bytes.
        PORT_RCV_DATA: [0x18],
        PORT_XMIT_PKTS: [0x1c],
        PORT_RCV_PKTS: [0x20],
        PORT_XMIT_WAIT: [0x24],
    }
}

values! {
    /// `access_in::REGISTER_ID`.
    id: u32 {
        QCAM = 0x4019,
        PCAP = 0x5001,
        PMTU = 0x5003,
        PTYS = 0x5004,
        PAOS = 0x5006,
        PPCNT = 0x5008,
        PVLC = 0x500f,
        PCAM = 0x507f,
        NODE_DESC = 0x6001,
        HOST_ENDIANNESS = 0x7004,
        MCIA = 0x9014,
        MFRL = 0x9028,
        MPEIN = 0x9050,
        MCAM = 0x907f,
        DTOR = 0xc00e,
    }

    /// ACCESS_REG's op_mod.
    op_mod: u32 {
        WRITE = 0,
        READ = 1,
    }

    /// `ptys::PROTO_MASK`.
    proto_mask: u32 {
        IB = 1,
    }

    /// Bits of the link widths.
    ib_width: u32 {
        X1 = 1,
        X2 = 2,
        X4 = 4,
        X8 = 8,
        X12 = 16,
    }

    /// Bits of the link speeds.
    ib_proto: u32 {
        SDR = 1,
        DDR = 2,
        QDR = 4,
        FDR10 = 8,
        FDR = 16,
        EDR = 32,
        HDR = 64,
        NDR = 128,
    }

    /// `ppcnt::GRP`.
    ppcnt_grp: u32 {
        IB_PORT_COUNTERS = 0x20,
    }
}
