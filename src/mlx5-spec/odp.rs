// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page faults: PAGE_FAULT_RESUME and fault types (contract 9). The EQE layouts are `eq::eqe_page_fault_*`.

/// Largest token: 24 bits.
pub const MAX_TOKEN: u32 = 0xff_ffff;

layout! {
    /// PAGE_FAULT_RESUME of the transport scheme.
    resume_in: 16 {
        ERROR: [0x08 31],
        PAGE_FAULT_TYPE: [0x08 26:24],
        /// Of a WQE fault as it was sent, of an RDMA fault the token.
        WQ_NUMBER: [0x08 23:0],
        TOKEN: [0x0c 23:0],
    }

    /// PAGE_FAULT_RESUME of the memory scheme (not negotiated here).
    resume_memory_in: 16 {
        ERROR: [0x08 31],
        TOKEN_47_32: [0x08 15:0],
        TOKEN_31_0: [0x0c],
    }
}

values! {
    /// `eq::eqe_page_fault_wqe::TYPE`; bit 0 tells the requester.
    wqe_fault_type: u32 {
        SRQ = 0,
        /// Reads the local list of a send or write.
        REQUESTER_SEND_OR_WRITE = 1,
        RESPONDER = 2,
        /// Scatters the response of a read or atomic.
        REQUESTER_READ_OR_ATOMIC = 3,
    }

    /// `eq::eqe_page_fault_rdma::TYPE`: bit 2 RDMA, bit 1 write.
    rdma_fault_type: u32 {
        READ = 4,
        WRITE = 6,
    }
}
