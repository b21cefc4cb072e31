// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What there is of everything, in numbers: capabilities say them (`command::caps`, contract 5.1), tables and commands keep them.

/// log2 of the most queue pairs.
pub const LOG_MAX_QP: u32 = 16;
/// log2 of the most completion queues.
pub const LOG_MAX_CQ: u32 = 16;
/// log2 of the most shared receive queues, of all kinds together.
pub const LOG_MAX_SRQ: u32 = 16;
/// log2 of the most event queues.
pub const LOG_MAX_EQ: u32 = 6;
/// log2 of the most memory keys.
pub const LOG_MAX_MKEY: u32 = 20;
/// log2 of the most protection domains.
pub const LOG_MAX_PD: u32 = 16;
/// log2 of the most XRC domains.
pub const LOG_MAX_XRCD: u32 = 16;
/// log2 of the most EQ entries.
pub const LOG_MAX_EQ_SIZE: u32 = 22;
/// log2 of the most CQEs.
pub const LOG_MAX_CQ_SIZE: u32 = 22;
/// log2 of the most WQEs of a shared receive queue.
pub const LOG_MAX_SRQ_SIZE: u32 = 15;
/// log2 of the most 64-byte blocks or receive WQEs of a queue pair.
pub const LOG_MAX_QP_SIZE: u32 = 15;
/// log2 of the most entries of a KLM key.
pub const LOG_MAX_KLM_LIST: u32 = 16;
/// Bytes of the longest send WQE: what the six bits of its length can say.
pub const MAX_SEND_WQE: u32 = crate::engine::MAX_SEND_WQE as u32;
/// Bytes of the longest receive WQE.
pub const MAX_RECV_WQE: u32 = 512;
/// Keys below the one that was named.
pub const MAX_INDIRECTION: u32 = 4;
/// log2 of the READs and atomics that a queue pair may have under way, as requester and as responder.
pub const LOG_MAX_RD_ATOMIC: u32 = 4;
/// log2 of the longest message in bytes.
pub const LOG_MAX_MSG: u32 = 30;
/// Sets of Q counters: their numbers have eight bits, and 0 is none.
pub const MAX_Q_COUNTERS: u32 = 255;
/// log2 of the multicast groups that queue pairs can be attached to.
pub const LOG_MAX_MCG: u32 = 10;
/// log2 of the most user contexts.
pub const LOG_MAX_UCTX: u32 = 12;
/// log2 of the most umems.
pub const LOG_MAX_UMEM: u32 = 18;
/// Queue pairs that can be attached to one of them.
pub const MAX_QP_MCG: u32 = 240;
