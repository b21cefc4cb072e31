// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking the next send WQE from its queue: copied in whole, once, then parsed.

use super::Requester;
use crate::engine::failure::Failure;
use crate::engine::receive::read_record;
use crate::engine::wqe::{BLOCK, length};
use crate::hca::Hca;
use mlx5_spec::cq::syndrome;

impl Requester {
    /// Copies in and parses the next WQE. False: none is posted.
    pub(super) fn fetch(&mut self, hca: &Hca) -> Result<bool, Failure> {
        let Some(log_size) = self.qp.layout.log_sq_size else { return Ok(false) };
        if self.next == self.posted {
            self.posted = read_record(hca, super::send_record(&self.attrs)).unwrap_or(self.next);
        }
        let available = self.posted.wrapping_sub(self.next);
        if available == 0 {
            return Ok(false);
        }
        self.begin(hca);
        let broken = Failure::local(syndrome::LOCAL_QP_OP_ERR);
        if u32::from(available) > 1 << log_size {
            return Err(broken);
        }
        let len = self.copy_in(hca, log_size, available).ok_or(broken)?;
        let wqe = self.bytes.get(..len).unwrap_or_default();
        self.wqe.parse(wqe, self.qp.service, self.qp.qpn).map_err(|error| {
            log::debug!("QPN {:#x}: send WQE {:#x}: {error}", self.qp.qpn, self.next);
            broken
        })?;
        Ok(true)
    }

    fn begin(&mut self, hca: &Hca) {
        if let Some(token) = self.background.take() {
            hca.page_faults.cancel(token);
        }
        self.active = true;
        self.wqe.bytes = BLOCK;
        self.wqe.opcode = 0;
        self.done = 0;
        self.planned.set(false);
        self.passed_gate = false;
        self.invalidated = false;
        self.faults = 0;
        self.rnr_left = self.attrs.rnr_retry;
        self.retries_left = self.attrs.retry_count;
    }

    /// Copies the WQE in, which may wrap at the end of the queue; its length is read once. `None`: unreadable, or cut short.
    fn copy_in(&mut self, hca: &Hca, log_size: u32, available: u16) -> Option<usize> {
        let (layout, blocks) = (self.qp.layout, 1usize << log_size.min(16));
        let slot = usize::from(self.next) & (blocks - 1);
        let read = |slot: usize, into: &mut [u8]| {
            let at = layout.sq_offset.checked_add((slot * BLOCK) as u64)?;
            self.qp.buffer.read(&hca.dma, at, into).ok()
        };
        let (first, rest) = self.bytes.split_at_mut(BLOCK);
        read(slot, first)?;
        let len = length(first).ok()?;
        let more = len.saturating_sub(BLOCK);
        if len.div_ceil(BLOCK) > usize::from(available) {
            return None;
        }
        if more > 0 {
            // Up to the end of the queue, then from its start.
            let straight = more.min((blocks - slot - 1) * BLOCK);
            let (now, later) = rest.get_mut(..more)?.split_at_mut(straight);
            if !now.is_empty() {
                read(slot + 1, now)?;
            }
            if !later.is_empty() {
                read(0, later)?;
            }
        }
        Some(len)
    }

    /// The current WQE is done.
    pub fn retire(&mut self) {
        self.next = self.next.wrapping_add(self.wqe.blocks());
        self.active = false;
    }
}
