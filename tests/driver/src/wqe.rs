// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Send work requests, segment by segment (contract 7.3).

use mlx5_spec::wqe::{DS_UNIT, atomic, av, ce, ctrl, data, fence, opcode, raddr, xrc};

/// A piece of memory in a scatter or gather list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sge {
    /// Key.
    pub key: u32,
    /// First byte.
    pub va: u64,
    /// Bytes.
    pub len: u32,
}

impl Sge {
    /// The data segment.
    pub fn segment(self) -> [u8; data::SIZE] {
        let mut bytes = [0; data::SIZE];
        data::BYTE_COUNT.set(&mut bytes, self.len);
        data::LKEY.set(&mut bytes, self.key);
        data::ADDR.set(&mut bytes, self.va);
        bytes
    }
}

/// A send work request; the queue pair fills in index, QPN and size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wqe {
    bytes: Vec<u8>,
    /// Size to claim in units of 16 bytes, when it is not the true one.
    pub claimed_ds: Option<u32>,
    /// Queue pair to claim, when it is not the true one.
    pub claimed_qpn: Option<u32>,
}

impl Wqe {
    /// Only a control segment.
    pub fn new(opcode: u32) -> Self {
        let mut bytes = vec![0; ctrl::SIZE];
        ctrl::OPCODE.set(&mut bytes, opcode);
        Self { bytes, claimed_ds: None, claimed_qpn: None }
    }

    /// NOP.
    pub fn nop() -> Self {
        Self::new(opcode::NOP)
    }

    /// SEND.
    pub fn send() -> Self {
        Self::new(opcode::SEND)
    }

    /// RDMA WRITE to `va` under `rkey`.
    pub fn write(va: u64, rkey: u32) -> Self {
        Self::new(opcode::RDMA_WRITE).remote(va, rkey)
    }

    /// RDMA READ from `va` under `rkey`.
    pub fn read(va: u64, rkey: u32) -> Self {
        Self::new(opcode::RDMA_READ).remote(va, rkey)
    }

    /// Compare and swap of the 8 bytes at `va`.
    pub fn compare_swap(va: u64, rkey: u32, compare: u64, swap: u64) -> Self {
        Self::new(opcode::ATOMIC_CS).remote(va, rkey).atomic(swap, compare)
    }

    /// Fetch and add on the 8 bytes at `va`.
    pub fn fetch_add(va: u64, rkey: u32, add: u64) -> Self {
        Self::new(opcode::ATOMIC_FA).remote(va, rkey).atomic(add, 0)
    }

    /// Remote address segment.
    pub fn remote(self, va: u64, rkey: u32) -> Self {
        let mut bytes = [0; raddr::SIZE];
        raddr::RADDR.set(&mut bytes, va);
        raddr::RKEY.set(&mut bytes, rkey);
        self.segment(&bytes)
    }

    /// Data segment.
    pub fn sge(self, sge: Sge) -> Self {
        self.segment(&sge.segment())
    }

    /// Inline data segment.
    pub fn inline(self, payload: &[u8]) -> Self {
        let mut bytes = (1 << 31 | payload.len() as u32).to_be_bytes().to_vec();
        bytes.extend(payload);
        self.segment(&bytes)
    }

    /// Extended address vector.
    pub fn datagram(self, qpn: u32, lid: u16, qkey: u32) -> Self {
        let mut bytes = [0; av::SIZE];
        av::QKEY.set(&mut bytes, qkey);
        av::EXTENDED.set(&mut bytes, 1);
        av::DQPN.set(&mut bytes, qpn);
        av::RLID.set(&mut bytes, u32::from(lid));
        self.segment(&bytes)
    }

    /// XRC segment: the shared receive queue that the message is for.
    pub fn xrc(self, srqn: u32) -> Self {
        let mut bytes = [0; DS_UNIT];
        xrc::XRC_SRQN.set(&mut bytes, srqn);
        self.segment(&bytes)
    }

    /// Any segment; padded to 16 bytes.
    pub fn segment(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(DS_UNIT), 0);
        self
    }

    /// Immediate, key to invalidate or target of a UMR.
    pub fn immediate(mut self, value: u32) -> Self {
        ctrl::IMM.set(&mut self.bytes, value);
        self
    }

    /// A completion even if all goes well.
    pub fn signaled(mut self) -> Self {
        ctrl::CE.set(&mut self.bytes, ce::CQE_ALWAYS);
        self
    }

    /// The receiver's completion is a solicited event.
    pub fn solicited(mut self) -> Self {
        ctrl::SOLICITED.set(&mut self.bytes, 1);
        self
    }

    /// Not before earlier reads and atomics are done.
    pub fn fenced(mut self) -> Self {
        ctrl::FENCE.set(&mut self.bytes, fence::SMALL_AND_FENCE);
        self
    }

    /// Claims another size than it has, in units of 16 bytes.
    pub fn claiming(mut self, ds: u32) -> Self {
        self.claimed_ds = Some(ds);
        self
    }

    /// Claims to belong to another queue pair.
    pub fn claiming_qpn(mut self, qpn: u32) -> Self {
        self.claimed_qpn = Some(qpn);
        self
    }

    /// The finished bytes for a place in a queue.
    pub(crate) fn finish(&self, index: u16, qpn: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        ctrl::WQE_INDEX.set(&mut bytes, u32::from(index));
        ctrl::QPN.set(&mut bytes, self.claimed_qpn.unwrap_or(qpn));
        ctrl::DS.set(&mut bytes, self.claimed_ds.unwrap_or((self.bytes.len() / DS_UNIT) as u32));
        bytes
    }

    fn atomic(self, swap_add: u64, compare: u64) -> Self {
        let mut bytes = [0; atomic::SIZE];
        atomic::SWAP_ADD.set(&mut bytes, swap_add);
        atomic::COMPARE.set(&mut bytes, compare);
        self.segment(&bytes)
    }
}
