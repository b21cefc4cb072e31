// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What error CQEs say beside the syndrome: the vendor's bytes that people search their logs for (contract 7.5).

use crate::mkey::umr::UmrError;
use mlx5_spec::cq::{cqe, syndrome, vendor_syndrome};

/// Why a WQE is completed in error, as its CQE says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagnosis {
    /// `spec::cq::syndrome`.
    pub syndrome: u32,
    vendor: u32,
    hw: u32,
}

/// (syndrome, vendor_err_synd, hw_synd) of send WQEs in full dumps of hardware. Three pairs are known of local protection errors and not
/// which cause gives which: the one in the middle stands for all.
const SEND: &[(u32, u32, u32)] = &[
    (syndrome::LOCAL_PROT_ERR, 0x52, 0x93),
    (syndrome::WR_FLUSH_ERR, 0xf9, 0),
    (syndrome::REMOTE_INVAL_REQ_ERR, 0x8a, 0),
    (syndrome::REMOTE_ACCESS_ERR, 0x88, 0),
    (syndrome::REMOTE_OP_ERR, 0x89, 0),
    (syndrome::TRANSPORT_RETRY_EXC_ERR, 0x81, 0),
];

/// The same of receive WQEs.
const RECEIVE: &[(u32, u32, u32)] = &[(syndrome::LOCAL_PROT_ERR, 0x56, 0xa9), (syndrome::WR_FLUSH_ERR, 0xf9, 0)];

impl Diagnosis {
    /// A datagram that is longer than the port's MTU.
    pub const DATAGRAM_LENGTH: Self = Self::new(syndrome::LOCAL_QP_OP_ERR, 0x68, 0x1f);

    /// A receive WQE of a shared queue that met a page fault: libraries post it again and tell nobody (contract 10.3).
    pub const ABORTED: Self = Self::new(syndrome::REMOTE_ABORTED_ERR, vendor_syndrome::ODP_PAGE_FAULT, 0);

    const fn new(syndrome: u32, vendor: u32, hw: u32) -> Self {
        Self { syndrome, vendor, hw }
    }

    /// Of a send WQE.
    pub const fn send(syndrome: u32) -> Self {
        Self::find(SEND, syndrome)
    }

    /// Of a UMR WQE; `None`: there is no CQE to write.
    pub fn umr(error: UmrError) -> Option<Self> {
        error.syndrome().map(|syndrome| match error {
            UmrError::Free(_) | UmrError::NoKey(_) => Self::new(syndrome, 0x78, 0x08),
            UmrError::Beyond(_) => Self::new(syndrome, 0x78, 0x0f),
            _ => Self::send(syndrome),
        })
    }

    /// Of a receive WQE.
    pub const fn receive(syndrome: u32) -> Self {
        Self::find(RECEIVE, syndrome)
    }

    /// Bytes that are not known are 0.
    const fn find(table: &[(u32, u32, u32)], syndrome: u32) -> Self {
        let mut at = 0;
        while at < table.len() {
            if table[at].0 == syndrome {
                return Self::new(syndrome, table[at].1, table[at].2);
            }
            at += 1;
        }
        Self::new(syndrome, 0, 0)
    }

    /// Writes it into a CQE. Every full dump has the solicited-event bit set.
    pub fn put(self, entry: &mut [u8]) {
        cqe::SYNDROME.set(entry, self.syndrome);
        cqe::VENDOR_ERR_SYND.set(entry, self.vendor);
        cqe::HW_ERR_SYND.set(entry, self.hw);
        cqe::SE.set(entry, 1);
    }
}
