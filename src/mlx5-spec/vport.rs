// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port as HCA vport commands show it (contract 4.4).

/// Bytes of the HCA vport context.
pub const HCA_VPORT_CONTEXT_SIZE: usize = hca_vport_context::SIZE;
/// A GID or P_Key index that asks for the whole table.
pub const WHOLE_TABLE: u32 = 0xffff;
/// Bytes of a GID.
pub const GID_SIZE: usize = 16;
/// Bytes of a P_Key's entry in the reply.
pub const PKEY_SIZE: usize = pkey::SIZE;

layout! {
    /// HCA vport context, relative to its start.
    hca_vport_context: 512 {
        FIELD_SELECT: [0x00],
        SM_VIRT_AWARE: [0x20 31],
        HAS_SMI: [0x20 30],
        HAS_RAW: [0x20 29],
        GRH_REQUIRED: [0x20 28],
        NUM_PORT_PLANE: [0x20 23:16],
        /// See `physical_state`.
        PORT_PHYSICAL_STATE: [0x20 15:12],
        VPORT_STATE_POLICY: [0x20 11:8],
        /// See `port_state`.
        PORT_STATE: [0x20 7:4],
        /// See `port_state`; what the driver takes as the IB port's state.
        VPORT_STATE: [0x20 3:0],
        SYSTEM_IMAGE_GUID: [u64 0x28],
        PORT_GUID: [u64 0x30],
        NODE_GUID: [u64 0x38],
        /// See `cap_mask1`.
        CAP_MASK1: [0x40],
        CAP_MASK1_FIELD_SELECT: [0x44],
        CAP_MASK2: [0x48],
        CAP_MASK2_FIELD_SELECT: [0x4c],
        LID: [0x60 31:16],
        INIT_TYPE_REPLY: [0x60 11:8],
        LMC: [0x60 7:5],
        SUBNET_TIMEOUT: [0x60 4:0],
        SM_LID: [0x64 31:16],
        SM_SL: [0x64 15:12],
        QKEY_VIOLATION_COUNTER: [0x68 31:16],
        PKEY_VIOLATION_COUNTER: [0x68 15:0],
    }

    /// QUERY_HCA_VPORT_CONTEXT.
    query_context_in: 16 {
        OTHER_VPORT: [0x08 31],
        /// 0 too means port 1.
        PORT_NUM: [0x08 19:16],
        VPORT_NUMBER: [0x08 15:0],
    }

    /// QUERY_HCA_VPORT_CONTEXT's reply.
    query_context_out: 0x210 {
        HCA_VPORT_CONTEXT: [part 0x10 hca_vport_context],
    }

    /// MODIFY_HCA_VPORT_CONTEXT.
    modify_context_in: 0x210 {
        OTHER_VPORT: [0x08 31],
        PORT_NUM: [0x08 19:16],
        VPORT_NUMBER: [0x08 15:0],
        HCA_VPORT_CONTEXT: [part 0x10 hca_vport_context],
    }

    /// QUERY_HCA_VPORT_GID.
    query_gid_in: 16 {
        OTHER_VPORT: [0x08 31],
        PORT_NUM: [0x08 19:16],
        VPORT_NUMBER: [0x08 15:0],
        GID_INDEX: [0x0c 15:0],
    }

    /// QUERY_HCA_VPORT_GID's reply.
    query_gid_out: 16 {
        GIDS_NUM: [0x0c 31:16],
        /// GIDs of 16 bytes.
        GIDS: [tail],
    }

    /// QUERY_HCA_VPORT_PKEY.
    query_pkey_in: 16 {
        OTHER_VPORT: [0x08 31],
        PORT_NUM: [0x08 19:16],
        VPORT_NUMBER: [0x08 15:0],
        PKEY_INDEX: [0x0c 15:0],
    }

    /// QUERY_HCA_VPORT_PKEY's reply.
    query_pkey_out: 16 {
        /// Entries as in `pkey`.
        PKEYS: [tail],
    }

    /// A P_Key's entry.
    pkey: 4 {
        PKEY: [0x00 15:0],
    }

    /// MAD_IFC; op_mod bit 0 ignores the M_Key, bit 1 the B_Key.
    mad_ifc_in: 0x110 {
        REMOTE_LID: [0x08 31:16],
        PORT: [0x08 7:0],
        MAD: [bytes 0x10..0x110],
    }

    /// MAD_IFC's reply.
    mad_ifc_out: 0x110 {
        MAD: [bytes 0x10..0x110],
    }
}

values! {
    /// States of an IB port.
    port_state: u32 {
        NO_CHANGE = 0,
        DOWN = 1,
        INIT = 2,
        ARMED = 3,
        ACTIVE = 4,
    }

    /// Physical states of an IB port.
    physical_state: u32 {
        SLEEP = 1,
        POLLING = 2,
        DISABLED = 3,
        TRAINING = 4,
        LINK_UP = 5,
        ERROR_RECOVERY = 6,
    }

    /// Bits of the capability mask (contract 11).
    cap_mask1: u32 {
        SM = 1 << 1,
        SM_DISABLED = 1 << 10,
        SYS_IMAGE_GUID = 1 << 11,
        CAP_MASK2 = 1 << 15,
        CM_SUP = 1 << 16,
        DEVICE_MGMT = 1 << 19,
    }
}
