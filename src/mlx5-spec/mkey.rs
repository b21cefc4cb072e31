// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory keys: context, commands, translation entries, UMR work requests (contract 6.6, 8).

/// Bytes of a memory key's context.
pub const MKC_SIZE: usize = mkc::SIZE;
/// Translation tables and UMR lists are counted in these bytes.
pub const OCTWORD_SIZE: usize = 16;
/// What a `repeat_block` has for a key: an index that no key has.
pub const REPEAT_BLOCK: u32 = 0x400;
/// Bytes of an MTT entry: two in an octword.
pub const MTT_SIZE: usize = 8;
/// An MTT entry's page may be read.
pub const MTT_READ: u64 = 1 << 0;
/// An MTT entry's page may be written.
pub const MTT_WRITE: u64 = 1 << 1;
/// An MTT entry's address bits.
pub const MTT_ADDRESS: u64 = !0xff;
/// Bytes of a KLM or KSM entry.
pub const KLM_SIZE: usize = klm::SIZE;
/// The key that ends a scatter list and is never valid (contract 7.4, 8.1).
pub const TERMINATOR_KEY: u32 = 0x100;
/// `mkc::QPN` of a key that any QP may use.
pub const ANY_QPN: u32 = 0xff_ffff;
/// Drivers round UMR lists and offsets to these bytes.
pub const UMR_ALIGNMENT: usize = 64;
/// Bytes of the UMR control segment.
pub const UMR_CTRL_SIZE: usize = umr_ctrl::SIZE;

layout! {
    /// Memory key context.
    mkc: 64 {
        FREE: [0x00 30],
        ACCESS_MODE_4_2: [0x00 28:26],
        RELAXED_ORDERING_WRITE: [0x00 18],
        SMALL_FENCE_ON_RDMA_READ_RESPONSE: [0x00 16],
        UMR_EN: [0x00 15],
        /// Atomic.
        A: [0x00 14],
        /// Remote write.
        RW: [0x00 13],
        /// Remote read.
        RR: [0x00 12],
        /// Local write.
        LW: [0x00 11],
        /// Local read.
        LR: [0x00 10],
        ACCESS_MODE_1_0: [0x00 9:8],
        MA_TRANSLATION_MODE: [0x00 5:4],
        QPN: [0x04 31:8],
        /// The variant: the key's low byte.
        MKEY_7_0: [0x04 7:0],
        LENGTH64: [0x0c 31],
        BSF_EN: [0x0c 30],
        SYNC_UMR: [0x0c 29],
        EN_RINVAL: [0x0c 24],
        PD: [0x0c 23:0],
        START_ADDR: [u64 0x10],
        LEN: [u64 0x18],
        BSF_OCTWORD_SIZE: [0x20],
        TRANSLATIONS_OCTWORD_SIZE: [0x34],
        RELAXED_ORDERING_READ: [0x38 6],
        /// Absolute log2; bit 5 only with hca_cap_2.
        LOG_PAGE_SIZE: [0x38 5:0],
        LOG_PAGE_SIZE_4_0: [also 0x38 4:0],
    }

    /// CREATE_MKEY.
    create_in: 0x110 {
        PG_ACCESS: [0x0c 31],
        MKEY_UMEM_VALID: [0x0c 30],
        MKC: [part 0x10 mkc],
        TRANSLATIONS_OCTWORD_ACTUAL_SIZE: [0x60],
        MKEY_UMEM_ID: [0x64],
        MKEY_UMEM_OFFSET: [u64 0x68],
        /// The translation list.
        KLM_PAS_MTT: [tail],
    }

    /// CREATE_MKEY's reply.
    create_out: 16 {
        /// The key is this << 8 | variant.
        MKEY_INDEX: [0x08 23:0],
    }

    /// DESTROY_MKEY.
    destroy_in: 16 {
        MKEY_INDEX: [0x08 23:0],
    }

    /// QUERY_MKEY.
    query_in: 16 {
        MKEY_INDEX: [0x08 23:0],
        PG_ACCESS: [0x0c 31],
    }

    /// QUERY_MKEY's reply.
    query_out: 0x130 {
        MKC: [part 0x10 mkc],
        /// The first two octwords of the translation table.
        TRANSLATIONS: [bytes 0x110..0x130],
    }

    /// KLM and KSM entry; a KSM's byte count is reserved.
    klm: 16 {
        BYTE_COUNT: [0x00],
        KEY: [0x04],
        VA: [u64 0x08],
    }

    /// In place of a KLM entry: so many entries behind it are gone through so many times (providers/mlx5/qp.c of rdma-core 56).
    repeat_block: 16 {
        /// Of one time.
        BYTE_COUNT: [0x00],
        /// `REPEAT_BLOCK`, where a KLM entry has its key.
        OP: [0x04],
        REPEAT_COUNT: [0x08],
        NUM_ENT: [0x0c 15:0],
    }

    /// An entry behind a `repeat_block`; it begins further on by its stride each time.
    repeat_entry: 16 {
        STRIDE: [0x00 31:16],
        BYTE_COUNT: [0x00 15:0],
        KEY: [0x04],
        VA: [u64 0x08],
    }

    /// UMR control segment (contract 8.3); follows the WQE's control segment.
    umr_ctrl: 48 {
        /// See `umr_flags`.
        FLAGS: [0x00 31:24],
        XLT_OCTOWORDS: [0x04 31:16],
        /// In octwords.
        XLT_OFFSET_15_0: [0x04 15:0],
        /// See `umr_mask`.
        MKEY_MASK: [u64 0x08],
        XLT_OFFSET_47_16: [0x10],
    }
}

values! {
    /// Access modes: `ACCESS_MODE_4_2` << 2 | `ACCESS_MODE_1_0`.
    access_mode: u32 {
        PA = 0,
        MTT = 1,
        KLM = 2,
        KSM = 3,
        SW_ICM = 4,
        MEMIC = 5,
    }

    /// `umr_ctrl::FLAGS` (contract 8.3).
    umr_flags: u32 {
        /// QPN check of memory windows.
        CHECK_QPN = 0x08,
        TRANSLATION_OFFSET_EN = 0x10,
        /// Fails unless the key is free.
        CHECK_IS_FREE = 0x20,
        /// Fails if the key is free.
        CHECK_IS_NOT_FREE = 0x40,
        /// Translations follow in the WQE.
        INLINE = 0x80,
    }

    /// `umr_ctrl::MKEY_MASK`: which fields of the context are copied (contract 8.3).
    umr_mask: u64 {
        /// With `LENGTH64`.
        LEN = 1 << 0,
        LOG_PAGE_SIZE = 1 << 1,
        START_ADDR = 1 << 6,
        PD = 1 << 7,
        EN_RINVAL = 1 << 8,
        EN_SIGERR = 1 << 9,
        BSF_EN = 1 << 12,
        /// The variant.
        KEY = 1 << 13,
        QPN = 1 << 14,
        LR = 1 << 17,
        LW = 1 << 18,
        RR = 1 << 19,
        RW = 1 << 20,
        A = 1 << 21,
        SMALL_FENCE = 1 << 23,
        RELAXED_ORDERING_WRITE = 1 << 25,
        FREE = 1 << 29,
        LOG_PAGE_SIZE_5 = 1 << 42,
        RELAXED_ORDERING_READ = 1 << 47,
    }
}
