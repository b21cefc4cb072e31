// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Capabilities as data (contract 5), QUERY_HCA_CAP and SET_HCA_CAP.
//!
//! What no table names is 0, which keeps the feature away (contract 5.2).

use super::CommandError;
use super::request::{Reply, Request};
use crate::{NicConfig, device_memory, limits};
use mlx5_spec::bits::Field;
use mlx5_spec::caps::{
    CAP_SIZE, atomic_caps, atomic_operations, cap_mode, cap_type, cmd_hca_cap as cap, device_mem_cap, odp_caps,
    odp_transport, port_type, query_in, query_out, set_in, umr_fence,
};

/// Port capabilities: GIDs are 8 << this, P_Keys 128 << this.
const TABLE_SIZE_CODE: u32 = 0;

const GENERAL: &[(Field, u32)] = &[
    (cap::LOG_MAX_SRQ_SZ, limits::LOG_MAX_SRQ_SIZE),
    (cap::LOG_MAX_QP_SZ, limits::LOG_MAX_QP_SIZE),
    (cap::LOG_MAX_QP, limits::LOG_MAX_QP),
    (cap::LOG_MAX_SRQ, limits::LOG_MAX_SRQ),
    (cap::MAX_SGL_FOR_OPTIMIZED_PERFORMANCE, 30),
    (cap::LOG_MAX_CQ_SZ, limits::LOG_MAX_CQ_SIZE),
    (cap::LOG_MAX_CQ, limits::LOG_MAX_CQ),
    (cap::LOG_MAX_EQ_SZ, limits::LOG_MAX_EQ_SIZE),
    (cap::LOG_MAX_MKEY, limits::LOG_MAX_MKEY),
    (cap::LOG_MAX_EQ, limits::LOG_MAX_EQ),
    (cap::MAX_INDIRECTION, limits::MAX_INDIRECTION),
    (cap::FAST_TEARDOWN, 1),
    (cap::FIXED_BUFFER_SIZE, 1),
    (cap::FORCE_TEARDOWN, 1),
    (cap::UMR_EXTENDED_TRANSLATION_OFFSET, 1),
    (cap::NULL_MKEY, 1),
    (cap::LOG_MAX_KLM_LIST_SIZE, limits::LOG_MAX_KLM_LIST),
    (cap::LOG_MAX_RA_REQ_DC, limits::LOG_MAX_RD_ATOMIC),
    (cap::LOG_MAX_RA_RES_DC, limits::LOG_MAX_RD_ATOMIC),
    (cap::LOG_MAX_RA_REQ_QP, limits::LOG_MAX_RD_ATOMIC),
    (cap::LOG_MAX_RA_RES_QP, limits::LOG_MAX_RD_ATOMIC),
    (cap::GID_TABLE_SIZE, TABLE_SIZE_CODE),
    (cap::RTS2RTS_QP_COUNTERS_SET_ID, 1),
    (cap::OUT_OF_SEQ_CNT, 1),
    (cap::VPORT_COUNTERS, 1),
    (cap::RETRANSMISSION_Q_COUNTERS, 1),
    (cap::MAX_QP_CNT, limits::MAX_Q_COUNTERS),
    (cap::ENHANCED_ERROR_Q_COUNTERS, 1),
    (cap::PKEY_TABLE_SIZE, TABLE_SIZE_CODE),
    (cap::IB_VIRT, 1),
    (cap::DEVICE_MEMORY, 1),
    (cap::LOCAL_CA_ACK_DELAY, 16),
    (cap::PORT_TYPE, port_type::IB),
    (cap::NUM_PORTS, 1),
    (cap::LOG_MAX_MSG, limits::LOG_MAX_MSG),
    (cap::CQE_VERSION, 1),
    (cap::UMR_FENCE, umr_fence::NONE),
    (cap::WQ_SIGNATURE, 1),
    (cap::DCT, 1),
    (cap::ATOMIC, 1),
    (cap::CQ_OI, 1),
    (cap::CQ_RESIZE, 1),
    (cap::PG, 1),
    (cap::BLOCK_LB_MC, 1),
    (cap::IMAICL, 1),
    (cap::RC, 1),
    (cap::UC, 1),
    (cap::UD, 1),
    (cap::XRC, 1),
    (cap::LOG_PG_SZ, 12),
    (cap::LOG_BF_REG_SIZE, 9),
    (cap::MAX_WQE_SZ_SQ, limits::MAX_SEND_WQE),
    (cap::MAX_WQE_SZ_RQ, limits::MAX_RECV_WQE),
    (cap::MAX_QP_MCG, limits::MAX_QP_MCG),
    (cap::LOG_MAX_MCG, limits::LOG_MAX_MCG),
    (cap::LOG_MAX_PD, limits::LOG_MAX_PD),
    (cap::LOG_MAX_XRCD, limits::LOG_MAX_XRCD),
    (cap::LOG_MAX_RMP, limits::LOG_MAX_SRQ),
    (cap::NATIVE_PORT_NUM, 1),
    (cap::CQE_128_ALWAYS, 1),
    (cap::LOG_MAX_UCTX, limits::LOG_MAX_UCTX),
    (cap::LOG_MAX_UMEM, limits::LOG_MAX_UMEM),
    // The timer of the initialization segment counts nanoseconds (contract 15.10).
    (cap::DEVICE_FREQUENCY_KHZ, 1_000_000),
];

/// What SET_HCA_CAP may change (contract T3; 4.1, row 8), up to the most.
const GENERAL_WRITABLE: &[Field] = &[cap::PKEY_TABLE_SIZE, cap::LOG_MAX_QP, cap::CMDIF_CHECKSUM, cap::LOG_UAR_PAGE_SZ];

const ATOMIC: &[(Field, u32)] = &[
    (atomic_caps::SUPPORTED_ATOMIC_REQ_8B_ENDIANNESS_MODE_1, 1),
    (atomic_caps::ATOMIC_OPERATIONS, atomic_operations::COMPARE_SWAP | atomic_operations::FETCH_ADD),
    (atomic_caps::ATOMIC_SIZE_QP, 8),
    (atomic_caps::ATOMIC_SIZE_DC, 8),
];

const DEVICE_MEMORY: &[(Field, u32)] = &[
    (device_mem_cap::MEMIC, 1),
    (device_mem_cap::LOG_MIN_MEMIC_ALLOC_SIZE, device_memory::LOG_GRAIN),
    (device_mem_cap::LOG_MAX_MEMIC_ADDR_ALIGNMENT, device_memory::LOG_MOST_ALIGNMENT),
    (device_mem_cap::MEMIC_BAR_SIZE, device_memory::SIZE as u32),
    (device_mem_cap::MAX_MEMIC_SIZE, device_memory::SIZE as u32),
];

/// What of RC pages on demand before a driver asks: all but shared receive queues.
const RC_ODP: u32 =
    odp_transport::SEND | odp_transport::RECEIVE | odp_transport::WRITE | odp_transport::READ | odp_transport::ATOMIC;

/// The same of XRC and DC, whose messages go to shared receive queues only.
const SHARED_ODP: u32 = RC_ODP & !odp_transport::RECEIVE | odp_transport::SRQ_RECEIVE;

/// Drivers ask for shared receive queues and for all of XRC and DC by SET_HCA_CAP, the rest they expect to be on (contract 4.1, row 10).
const ODP_MOST: &[(Field, u32)] = &[
    (odp_caps::RC_ODP_CAPS, RC_ODP | odp_transport::SRQ_RECEIVE),
    (odp_caps::XRC_ODP_CAPS, SHARED_ODP),
    (odp_caps::DC_ODP_CAPS, SHARED_ODP),
    (odp_caps::UD_ODP_CAPS, odp_transport::SEND),
];

const ODP_INITIAL: &[(Field, u32)] = &[(odp_caps::RC_ODP_CAPS, RC_ODP), (odp_caps::UD_ODP_CAPS, odp_transport::SEND)];

/// A capability structure.
type Structure = [u8; CAP_SIZE];

fn structure(table: &[(Field, u32)]) -> Structure {
    let mut bytes = [0; CAP_SIZE];
    table.iter().for_each(|(field, value)| field.set(&mut bytes, *value));
    bytes
}

/// Capabilities, the most and as set.
pub struct Capabilities {
    /// (type, most, current).
    kinds: Vec<(u32, Structure, Structure)>,
}

impl Capabilities {
    /// As after power-on.
    pub fn new(config: &NicConfig) -> Self {
        let mut general = structure(GENERAL);
        cap::PG.set(&mut general, u32::from(config.odp));
        let atomic = structure(ATOMIC);
        let mut memory = structure(DEVICE_MEMORY);
        device_mem_cap::MEMIC_BAR_START_ADDR.set(&mut memory, device_memory::BAR_OFFSET);
        // Programs ask for flow tables of any ConnectX-5, whatever its port is: there are none.
        let none = (cap_type::NIC_FLOW_TABLE, structure(&[]));
        let kinds = [(cap_type::GENERAL, general), (cap_type::ATOMIC, atomic), (cap_type::DEVICE_MEMORY, memory), none];
        let mut kinds = kinds.map(|(kind, most)| (kind, most, most)).to_vec();
        if config.odp {
            kinds.push((cap_type::ODP, structure(ODP_MOST), structure(ODP_INITIAL)));
        }
        Self { kinds }
    }

    /// The ODP capabilities in force; without paging, none.
    pub fn paging(&self) -> &[u8] {
        let paging = self.kinds.iter().find(|(kind, ..)| *kind == cap_type::ODP);
        paging.map_or(&[], |(.., current)| current)
    }

    /// A field of the general capabilities in force.
    pub fn general(&self, field: Field) -> u32 {
        let general = self.kinds.iter().find(|(kind, ..)| *kind == cap_type::GENERAL);
        general.map_or(0, |(.., current)| field.get(current))
    }

    fn current_mut(&mut self, wanted: u32) -> Result<(&Structure, &mut Structure), CommandError> {
        let kind = self.kinds.iter_mut().find(|(kind, ..)| *kind == wanted);
        kind.map(|(_, most, current)| (&*most, current)).ok_or(CommandError::Param("capability type is not offered"))
    }
}

/// Capabilities of other functions are a group manager's to read and to set, which this is not (contract 5.2).
fn own(request: &Request<'_>) -> Result<(), CommandError> {
    if request.get(set_in::OTHER_FUNCTION) != 0 {
        return Err(CommandError::Param("there is no other function"));
    }
    Ok(())
}

/// QUERY_HCA_CAP. A program may have less room than the longest structure needs: what it has room for is told.
pub fn query(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    own(request)?;
    let (wanted, mode) = (request.get(query_in::CAP_TYPE), request.get(query_in::CAP_MODE));
    let (most, current) = request.settings.caps.current_mut(wanted)?;
    let caps: &Structure = if mode == cap_mode::CUR { current } else { most };
    Ok(Reply::new(query_out::SIZE).with_bytes(query_out::CAPABILITY, caps))
}

/// SET_HCA_CAP: fields that are not writable are ignored, for drivers send the whole structure back, or one that is zero but for
/// the field they mean (contract T3).
pub fn set(request: &mut Request<'_>) -> Result<Reply, CommandError> {
    own(request)?;
    let wanted = request.get(set_in::CAP_TYPE);
    let asked = request.part(set_in::CAPABILITY, CAP_SIZE)?;
    let (most, current) = request.settings.caps.current_mut(wanted)?;
    match wanted {
        cap_type::GENERAL => {
            for field in GENERAL_WRITABLE {
                if field.get(asked) > field.get(most) {
                    return Err(CommandError::Param("more than the capability's most"));
                }
            }
            GENERAL_WRITABLE.iter().for_each(|field| field.set(current, field.get(asked)));
        }
        cap_type::ATOMIC => {
            let mode = atomic_caps::ATOMIC_REQ_8B_ENDIANNESS_MODE;
            if mode.get(asked) > 1 {
                return Err(CommandError::Param("atomic endianness mode is 0 or 1"));
            }
            mode.set(current, mode.get(asked));
        }
        // Nothing of them can be set.
        cap_type::DEVICE_MEMORY | cap_type::NIC_FLOW_TABLE => {}
        // Bits beyond what is offered are not given.
        _ => {
            ODP_MOST.iter().for_each(|(field, most)| field.set(current, field.get(asked) & most));
            request.hca.paging.put(current);
        }
    }
    Ok(Reply::ok())
}
