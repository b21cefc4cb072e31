// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! User contexts and umems: what lets programs send commands of their own (DEVX). Positions: include/linux/mlx5/mlx5_ifc.h of Linux 6.1.

/// The owner of what all user contexts may name: counters that the driver shares out (drivers/infiniband/hw/mlx5/counters.c of Linux 6.1).
pub const SHARED_UID: u16 = 0xffff;

layout! {
    /// CREATE_UCTX.
    create_uctx_in: 0x40 {
        /// Rights beyond its own objects, a bit each.
        CAP: [0x10],
    }

    /// CREATE_UCTX's reply; DESTROY_UCTX.
    uctx: 16 {
        UID: [0x08 15:0],
    }

    /// CREATE_UMEM.
    create_umem_in: 0x30 {
        /// The device translates addresses itself (PCI ATS).
        ATS: [0x20 31],
        /// Relative to 4 KiB.
        LOG_PAGE_SIZE: [0x20 4:0],
        /// In bytes.
        PAGE_OFFSET: [0x24],
        NUM_OF_MTT: [u64 0x28],
        NUM_OF_MTT_LOW: [also 0x2c],
        /// Translation entries of 8 bytes each, rights in their low bits.
        MTT: [tail],
    }

    /// CREATE_UMEM's reply; DESTROY_UMEM.
    umem: 16 {
        UMEM_ID: [0x08 23:0],
    }
}

/// Right of a translation entry: the device may write there.
pub const MTT_WRITE: u64 = 1 << 1;
