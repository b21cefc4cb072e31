// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Management datagrams (IBTA 13.4), subnet administration (15.2) and the records that it tells of. Not the device's: what its guests send
//! to each other's QP1 and to the subnet's administration.

/// Bytes of a management datagram.
pub const MAD_SIZE: usize = mad::SIZE;
/// Where performance management's attributes begin in a datagram (IBTA 16.1.1).
pub const PERFORMANCE_DATA: usize = 64;
/// Performance management's `class_port_info::CAPABILITY_MASK`: the extended counters count packets of each kind (IBTA 16.1.3.1).
pub const EXTENDED_WIDTH: u32 = 1 << 9;

layout! {
    /// The header of every management datagram, and with RMPP's and administration's the whole of one of those (IBTA 13.4.3, 13.6.2, 15.2.1).
    mad: 256 {
        BASE_VERSION: [0x00 31:24],
        /// See `class`.
        MGMT_CLASS: [0x00 23:16],
        CLASS_VERSION: [0x00 15:8],
        /// See `method`.
        METHOD: [0x00 7:0],
        /// See `status`.
        STATUS: [0x04 31:16],
        CLASS_SPECIFIC: [0x04 15:0],
        TRANSACTION_ID: [u64 0x08],
        /// See `attribute`.
        ATTRIBUTE_ID: [0x10 31:16],
        ATTRIBUTE_MODIFIER: [0x14],
        RMPP_VERSION: [0x18 31:24],
        /// See `rmpp_type`.
        RMPP_TYPE: [0x18 23:16],
        RRESP_TIME: [0x18 15:11],
        /// See `rmpp_flags`.
        RMPP_FLAGS: [0x18 10:8],
        RMPP_STATUS: [0x18 7:0],
        SEGMENT_NUMBER: [0x1c],
        /// Of an acknowledgement the last segment of its window, of data their bytes with administration's header.
        PAYLOAD_LENGTH_NEW_WINDOW: [0x20],
        SM_KEY: [u64 0x24],
        /// From record to record, in units of 8 bytes.
        ATTRIBUTE_OFFSET: [0x2c 31:16],
        /// Which parts of a record are meant.
        COMPONENT_MASK: [u64 0x30],
        DATA: [part 0x38..0x100],
    }

    /// ClassPortInfo (IBTA 13.4.8.1).
    class_port_info: 72 {
        BASE_VERSION: [0x00 31:24],
        CLASS_VERSION: [0x00 23:16],
        CAPABILITY_MASK: [0x00 15:0],
        CAPABILITY_MASK2: [0x04 31:5],
        RESP_TIME_VALUE: [0x04 4:0],
    }

    /// PathRecord (IBTA 15.2.5.16).
    path_record: 64 {
        SERVICE_ID: [u64 0x00],
        DGID: [bytes 0x08..0x18],
        SGID: [bytes 0x18..0x28],
        DLID: [0x28 31:16],
        SLID: [0x28 15:0],
        RAW_TRAFFIC: [0x2c 31],
        FLOW_LABEL: [0x2c 27:8],
        HOP_LIMIT: [0x2c 7:0],
        TCLASS: [0x30 31:24],
        REVERSIBLE: [0x30 23],
        NUMB_PATH: [0x30 22:16],
        P_KEY: [0x30 15:0],
        QOS_CLASS: [0x34 31:20],
        SL: [0x34 19:16],
        /// See `selector`.
        MTU_SELECTOR: [0x34 15:14],
        MTU: [0x34 13:8],
        RATE_SELECTOR: [0x34 7:6],
        RATE: [0x34 5:0],
        LIFE_TIME_SELECTOR: [0x38 31:30],
        LIFE_TIME: [0x38 29:24],
        PREFERENCE: [0x38 23:16],
    }

    /// MCMemberRecord (IBTA 15.2.5.17).
    mc_member_record: 52 {
        MGID: [bytes 0x00..0x10],
        PORT_GID: [bytes 0x10..0x20],
        Q_KEY: [0x20],
        MLID: [0x24 31:16],
        MTU_SELECTOR: [0x24 15:14],
        MTU: [0x24 13:8],
        TCLASS: [0x24 7:0],
        P_KEY: [0x28 31:16],
        RATE_SELECTOR: [0x28 15:14],
        RATE: [0x28 13:8],
        LIFE_TIME_SELECTOR: [0x28 7:6],
        LIFE_TIME: [0x28 5:0],
        SL: [0x2c 31:28],
        FLOW_LABEL: [0x2c 27:8],
        HOP_LIMIT: [0x2c 7:0],
        SCOPE: [0x30 31:28],
        /// See `join_state`.
        JOIN_STATE: [0x30 27:24],
        PROXY_JOIN: [0x30 23],
    }

    /// NodeRecord (IBTA 15.2.5.2): LID, NodeInfo, NodeDescription.
    node_record: 108 {
        LID: [0x00 31:16],
        BASE_VERSION: [0x04 31:24],
        CLASS_VERSION: [0x04 23:16],
        /// 1: a channel adapter.
        NODE_TYPE: [0x04 15:8],
        NUM_PORTS: [0x04 7:0],
        SYSTEM_IMAGE_GUID: [u64 0x08],
        NODE_GUID: [u64 0x10],
        PORT_GUID: [u64 0x18],
        PARTITION_CAP: [0x20 31:16],
        DEVICE_ID: [0x20 15:0],
        REVISION: [0x24],
        LOCAL_PORT_NUM: [0x28 31:24],
        VENDOR_ID: [0x28 23:0],
        NODE_DESCRIPTION: [bytes 0x2c..0x6c],
    }

    /// PortInfoRecord (IBTA 15.2.5.3): LID and port, PortInfo (14.2.5.6).
    port_info_record: 68 {
        ENDPORT_LID: [0x00 31:16],
        PORT_NUM: [0x00 15:8],
        M_KEY: [u64 0x04],
        GID_PREFIX: [u64 0x0c],
        LID: [0x14 31:16],
        MASTER_SM_LID: [0x14 15:0],
        CAPABILITY_MASK: [0x18],
        DIAG_CODE: [0x1c 31:16],
        M_KEY_LEASE_PERIOD: [0x1c 15:0],
        LOCAL_PORT_NUM: [0x20 31:24],
        LINK_WIDTH_ENABLED: [0x20 23:16],
        LINK_WIDTH_SUPPORTED: [0x20 15:8],
        LINK_WIDTH_ACTIVE: [0x20 7:0],
        LINK_SPEED_SUPPORTED: [0x24 31:28],
        /// 4: ACTIVE.
        PORT_STATE: [0x24 27:24],
        /// 5: LinkUp.
        PORT_PHYSICAL_STATE: [0x24 23:20],
        LINK_DOWN_DEFAULT_STATE: [0x24 19:16],
        LINK_SPEED_ACTIVE: [0x24 7:4],
        LINK_SPEED_ENABLED: [0x24 3:0],
        NEIGHBOR_MTU: [0x28 31:28],
        MASTER_SM_SL: [0x28 27:24],
        VL_CAP: [0x28 23:20],
        INIT_TYPE: [0x28 19:16],
        MTU_CAP: [0x2c 15:12],
        OPERATIONAL_VLS: [0x30 31:28],
        SUBNET_TIMEOUT: [0x34 4:0],
        RESP_TIME_VALUE: [0x38 28:24],
    }

    /// PortCounters, at `PERFORMANCE_DATA` of a datagram (IBTA 16.1.3.5). Counters stop at their largest values; data counts words of 4 bytes.
    port_counters: 44 {
        PORT_SELECT: [0x00 23:16],
        /// Which ones a Set begins anew.
        COUNTER_SELECT: [0x00 15:0],
        LINK_DOWNED: [0x04 7:0],
        PORT_XMIT_DATA: [0x18],
        PORT_RCV_DATA: [0x1c],
        PORT_XMIT_PKTS: [0x20],
        PORT_RCV_PKTS: [0x24],
    }

    /// PortCountersExtended, at the same place (IBTA 16.1.4.11).
    port_counters_extended: 72 {
        PORT_SELECT: [0x00 23:16],
        COUNTER_SELECT: [0x00 15:0],
        PORT_XMIT_DATA: [u64 0x08],
        PORT_RCV_DATA: [u64 0x10],
        PORT_XMIT_PKTS: [u64 0x18],
        PORT_RCV_PKTS: [u64 0x20],
        PORT_UNICAST_XMIT_PKTS: [u64 0x28],
        PORT_UNICAST_RCV_PKTS: [u64 0x30],
        PORT_MULTICAST_XMIT_PKTS: [u64 0x38],
        PORT_MULTICAST_RCV_PKTS: [u64 0x40],
    }

    /// ServiceRecord (IBTA 15.2.5.14).
    service_record: 176 {
        SERVICE_ID: [u64 0x00],
        SERVICE_GID: [bytes 0x08..0x18],
        P_KEY: [0x18 31:16],
        /// In seconds; all ones: for ever.
        LEASE: [0x1c],
        SERVICE_KEY: [bytes 0x20..0x30],
        SERVICE_NAME: [bytes 0x30..0x70],
        SERVICE_DATA: [bytes 0x70..0xb0],
    }
}

values! {
    /// `mad::MGMT_CLASS`.
    class: u32 {
        SUBN_LID_ROUTED = 0x01,
        SUBN_ADM = 0x03,
        PERF = 0x04,
        CM = 0x07,
        SUBN_DIRECTED = 0x81,
    }

    /// `mad::METHOD`; an answer's has `RESPONSE`.
    method: u32 {
        GET = 0x01,
        SET = 0x02,
        REPORT = 0x06,
        GET_TABLE = 0x12,
        DELETE = 0x15,
        RESPONSE = 0x80,
    }

    /// `mad::STATUS`: bits 4:2 for every class, the upper byte for administration (IBTA 15.2.2).
    status: u32 {
        BAD_VERSION = 1 << 2,
        UNSUPPORTED_METHOD = 2 << 2,
        UNSUPPORTED_ATTRIBUTE = 3 << 2,
        INVALID_FIELD = 7 << 2,
        NO_RESOURCES = 0x0100,
        REQUEST_INVALID = 0x0200,
        NO_RECORDS = 0x0300,
        TOO_MANY_RECORDS = 0x0400,
        INVALID_GID = 0x0500,
        INSUFFICIENT_COMPONENTS = 0x0600,
        REQUEST_DENIED = 0x0700,
    }

    /// `mad::ATTRIBUTE_ID`.
    attribute: u32 {
        CLASS_PORT_INFO = 0x01,
        NOTICE = 0x02,
        INFORM_INFO = 0x03,
        NODE_RECORD = 0x11,
        PORT_INFO_RECORD = 0x12,
        SERVICE_RECORD = 0x31,
        PATH_RECORD = 0x35,
        MC_MEMBER_RECORD = 0x38,
    }

    /// `mad::ATTRIBUTE_ID` of performance management.
    performance_attribute: u32 {
        PORT_COUNTERS = 0x12,
        PORT_COUNTERS_EXTENDED = 0x1d,
    }

    /// `mad::RMPP_TYPE`.
    rmpp_type: u32 {
        NONE = 0,
        DATA = 1,
        ACK = 2,
        STOP = 3,
        ABORT = 4,
    }

    /// `mad::RMPP_FLAGS`.
    rmpp_flags: u32 {
        ACTIVE = 1,
        FIRST = 2,
        LAST = 4,
    }

    /// `MTU_SELECTOR` and its like.
    selector: u32 {
        GREATER = 0,
        LESS = 1,
        EXACTLY = 2,
        LARGEST = 3,
    }

    /// `mc_member_record::JOIN_STATE`.
    join_state: u32 {
        FULL_MEMBER = 1,
        NON_MEMBER = 2,
        SEND_ONLY_NON_MEMBER = 4,
        SEND_ONLY_FULL_MEMBER = 8,
    }
}
