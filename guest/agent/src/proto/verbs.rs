// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RDMA verbs, through the guest's own libibverbs. An agent without it refuses them with ENOSYS.

use serde::{Deserialize, Serialize};

/// Access flags of a memory region (enum ibv_access_flags of libibverbs).
pub mod access {
    /// The device may write it: receive, RDMA READ into it, atomics' results.
    pub const LOCAL_WRITE: u32 = 1;
    /// The other end may RDMA WRITE it.
    pub const REMOTE_WRITE: u32 = 1 << 1;
    /// The other end may RDMA READ it.
    pub const REMOTE_READ: u32 = 1 << 2;
    /// The other end may use atomics on it.
    pub const REMOTE_ATOMIC: u32 = 1 << 3;
    /// On-demand paging instead of pinning.
    pub const ON_DEMAND: u32 = 1 << 6;
}

/// One verbs step. Each variant names the [`Value`](super::Value) it returns; `Unit` where none is named.
///
/// `nic` is an open device with its protection domain, `mr` a memory region, `p` a pair of connected queue pairs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerbsOp {
    /// Opens a device and makes a protection domain. Returns `Handle`.
    Open {
        /// Its name; the first device where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// Returns `Nic`.
    Info {
        /// Device.
        nic: u32,
    },
    /// ibv_reg_mr(3) of a part of a mapping. Returns `Mr`. A mapping under an MR may be unmapped; its address range stays reserved.
    Reg {
        /// Device.
        nic: u32,
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
        /// [`access`] flags.
        #[serde(rename = "a")]
        access: u32,
    },
    /// ibv_dereg_mr(3). `Close` of the handle does it too, without its errno.
    Dereg {
        /// Memory region.
        mr: u32,
    },
    /// ibv_rereg_mr(3) with other rights (IBV_REREG_MR_CHANGE_ACCESS). Its keys stay.
    Rereg {
        /// Memory region.
        mr: u32,
        /// [`access`] flags.
        #[serde(rename = "a")]
        access: u32,
    },
    /// To be asked before somebody takes away blocks of an open file. Returns `Handle`.
    Guard {
        /// Open file.
        h: u32,
        /// How.
        #[serde(rename = "y")]
        way: Way,
    },
    /// Waits until somebody asks a [`VerbsOp::Guard`], deregisters, and lets them go on. ETIMEDOUT when nobody asked.
    GiveWay {
        /// From [`VerbsOp::Guard`].
        g: u32,
        /// Memory region.
        mr: u32,
        /// Milliseconds.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Two RC queue pairs on one port, connected to each other, each with a CQ of its own. Returns `Pair`.
    Pair {
        /// Device.
        nic: u32,
        /// Entries of each queue.
        depth: u32,
    },
    /// Posts one work request and does not wait.
    Post {
        /// Pair.
        p: u32,
        /// What.
        #[serde(flatten)]
        wr: Wr,
    },
    /// Waits for one completion. Returns `Wc`; ETIMEDOUT when none came.
    Poll {
        /// Pair.
        p: u32,
        /// Which end's CQ, 0 or 1.
        #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
        end: u8,
        /// Milliseconds.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Posts one work request at end 0 and waits for its completion. Returns `Wc`.
    Do {
        /// Pair.
        p: u32,
        /// What.
        #[serde(flatten)]
        wr: Wr,
        /// Milliseconds.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Returns `Num`: the state of one end (enum ibv_qp_state: 3 RTS, 6 ERR).
    QpState {
        /// Pair.
        p: u32,
        /// Which end, 0 or 1.
        #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
        end: u8,
    },
    /// The same work request again and again, at most `depth` of them unfinished. Returns `Timed`.
    Batch {
        /// Pair.
        p: u32,
        /// What.
        #[serde(flatten)]
        wr: Wr,
        /// How often.
        #[serde(rename = "n")]
        count: u32,
        /// Unfinished at a time (1 measures latency); no more than the pair's queues hold.
        depth: u32,
        /// Milliseconds for each completion.
        #[serde(rename = "ms")]
        limit_ms: u32,
        /// Done before each of them, and timed with it; wants a `depth` of 1.
        #[serde(rename = "b", default, skip_serializing_if = "Option::is_none")]
        between: Option<Between>,
    },
    /// As a batch with a depth of 1, and each turn has times of its own. Returns `Laps`: what was done before, the work request.
    Laps {
        /// Pair.
        p: u32,
        /// What.
        #[serde(flatten)]
        wr: Wr,
        /// How often, 1,000 at most.
        #[serde(rename = "n")]
        count: u32,
        /// Milliseconds for each completion.
        #[serde(rename = "ms")]
        limit_ms: u32,
        /// Done before each of them.
        #[serde(rename = "b")]
        between: Between,
    },
    /// The same work request on each of several pairs, then the completion of each; again and again. Returns `Timed`.
    Rounds {
        /// Pairs.
        ps: Vec<u32>,
        /// What.
        #[serde(flatten)]
        wr: Wr,
        /// How often.
        #[serde(rename = "n")]
        rounds: u32,
        /// Milliseconds for each completion.
        #[serde(rename = "ms")]
        limit_ms: u32,
    },
    /// Registers and deregisters the same range again and again. Returns `Timed` of the registrations alone.
    RegBatch {
        /// Device.
        nic: u32,
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
        /// [`access`] flags.
        #[serde(rename = "a")]
        access: u32,
        /// How often.
        #[serde(rename = "n")]
        count: u32,
    },
}

/// How the owner of a mapping can be asked today before its blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A write lease (fcntl(2), F_SETLEASE): broken by open(2) and truncate(2) of others, who wait.
    Lease,
    /// A listener for pre-content events (fanotify(7), FAN_PRE_ACCESS; since Linux 6.14), among others of fallocate(2) and truncation.
    PreContent,
}

/// What takes translations away between work requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Between {
    /// MADV_DONTNEED of a part of a mapping.
    Dontneed {
        /// Mapping.
        m: u32,
        /// Offset in the mapping.
        #[serde(rename = "o")]
        off: u64,
        /// Length.
        #[serde(rename = "l")]
        len: u64,
    },
    /// fsync(2) of a file.
    Fsync {
        /// File.
        h: u32,
    },
}

/// Kinds of work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrKind {
    /// RDMA WRITE.
    Write,
    /// RDMA WRITE with immediate.
    WriteImm,
    /// RDMA READ.
    Read,
    /// SEND.
    Send,
    /// Atomic fetch and add, 8 bytes.
    FetchAdd,
    /// Atomic compare and swap, 8 bytes.
    CmpSwap,
    /// Receive: posted to the receive queue.
    Recv,
}

/// A work request with one scatter entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wr {
    /// What.
    #[serde(rename = "k")]
    pub kind: WrKind,
    /// Which end posts it, 0 or 1.
    #[serde(rename = "e", default, skip_serializing_if = "is_zero")]
    pub end: u8,
    /// Local memory region.
    #[serde(rename = "lm")]
    pub local: u32,
    /// Offset in it.
    #[serde(rename = "lo", default, skip_serializing_if = "is_zero")]
    pub local_off: u64,
    /// Bytes.
    #[serde(rename = "l")]
    pub len: u32,
    /// Remote memory region (of this process); 0 for SEND and receive.
    #[serde(rename = "rm", default, skip_serializing_if = "is_zero")]
    pub remote: u32,
    /// Offset in it. Not checked against the region: the device does that.
    #[serde(rename = "ro", default, skip_serializing_if = "is_zero")]
    pub remote_off: u64,
    /// Immediate data; of atomics: what to add, or what to compare with.
    #[serde(rename = "v", default, skip_serializing_if = "is_zero")]
    pub value: u64,
    /// Compare and swap: the new value.
    #[serde(rename = "sw", default, skip_serializing_if = "is_zero")]
    pub swap: u64,
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a device says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicInfo {
    /// "mlx5_0", "rxe0".
    pub name: String,
    /// Firmware version.
    #[serde(default)]
    pub fw: String,
    /// Vendor and part id.
    pub id: (u32, u32),
    /// enum ibv_port_state: 4 is ACTIVE.
    pub state: u8,
    /// 1 InfiniBand, 2 Ethernet.
    pub link: u8,
    /// LID.
    pub lid: u16,
    /// enum ibv_odp_general_caps: bit 0 ODP, bit 1 implicit.
    pub odp: u64,
    /// enum ibv_odp_transport_cap_bits of RC: send 1, recv 2, write 4, read 8, atomic 16, srq 32.
    pub odp_rc: u32,
}

impl NicInfo {
    /// Whether RC RDMA WRITE and READ work on ODP memory.
    pub fn has_odp(&self) -> bool {
        self.odp & 1 == 1 && self.odp_rc & 0xc == 0xc
    }
}

/// A memory region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MrInfo {
    /// Handle.
    #[serde(rename = "h")]
    pub handle: u32,
    /// Local key.
    #[serde(rename = "l")]
    pub lkey: u32,
    /// Remote key.
    #[serde(rename = "r")]
    pub rkey: u32,
    /// Virtual address of its first byte.
    #[serde(rename = "a")]
    pub addr: u64,
}

/// A pair of connected queue pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairInfo {
    /// Handle.
    #[serde(rename = "h")]
    pub handle: u32,
    /// QPN of either end.
    #[serde(rename = "q")]
    pub qpns: [u32; 2],
}

/// A completion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wc {
    /// enum ibv_wc_status; 0 is success.
    #[serde(rename = "s")]
    pub code: u32,
    /// The same in words.
    #[serde(rename = "w", default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// The device's own error code; 0 when it succeeded.
    #[serde(rename = "ve", default, skip_serializing_if = "is_zero")]
    pub vendor_err: u32,
    /// enum ibv_wc_opcode; no meaning when it failed.
    #[serde(rename = "o", default, skip_serializing_if = "is_zero")]
    pub opcode: u32,
    /// Bytes received or read; 0 of any other request.
    #[serde(rename = "l", default, skip_serializing_if = "is_zero")]
    pub len: u32,
    /// QPN that it belongs to.
    #[serde(rename = "q", default, skip_serializing_if = "is_zero")]
    pub qpn: u32,
}

impl Wc {
    /// Whether the work request succeeded.
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

/// How long many of the same took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// Completed.
    #[serde(rename = "n")]
    pub done: u32,
    /// Nanoseconds of CLOCK_MONOTONIC for all of them.
    pub ns: u64,
    /// Nanoseconds of the first.
    #[serde(rename = "f", default, skip_serializing_if = "is_zero")]
    pub first_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;
    use crate::proto::{Op, Request};

    #[test]
    fn a_flattened_work_request_survives_and_stays_short() {
        let wr = Wr {
            kind: WrKind::Write,
            end: 0,
            local: 7,
            local_off: 409_600,
            len: 4096,
            remote: 6,
            remote_off: 409_600,
            value: 0,
            swap: 0,
        };
        let request = Request { id: 9, bg: true, op: Op::Verbs(VerbsOp::Do { p: 8, wr, limit_ms: 5000 }) };
        let line = frame::encode(&request).unwrap();
        assert!(line.len() < 160, "{} bytes", line.len());
        assert_eq!(frame::decode(&line[..line.len() - 1]), frame::Line::Message(request));
    }
}
