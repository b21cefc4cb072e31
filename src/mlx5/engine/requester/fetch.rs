// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking the next send WQE from its queue: copied in whole, once, then parsed.

use super::{Requester, Work};
use crate::engine::failure::Failure;
use crate::engine::receive::read_record;
use crate::engine::work::Effect;
use crate::engine::wqe::{BLOCK, Kind, length};
use crate::hca::Hca;
use mlx5_spec::cq::syndrome;

impl Requester {
    /// Copies in and parses the next WQE. False: none is posted.
    pub(super) fn fetch(&mut self, hca: &Hca) -> Result<bool, Failure> {
        let Some(log_size) = self.work.qp.layout.log_sq_size else { return Ok(false) };
        if self.work.index == self.posted {
            self.posted = read_record(hca, super::send_record(&self.work.attrs)).unwrap_or(self.work.index);
        }
        let available = self.posted.wrapping_sub(self.work.index);
        if available == 0 {
            return Ok(false);
        }
        self.begin();
        let broken = Failure::local(syndrome::LOCAL_QP_OP_ERR);
        if u32::from(available) > 1 << log_size {
            return Err(broken);
        }
        let len = copy_in(&mut self.work, hca, log_size, available).ok_or(broken)?;
        let Work { qp, index, wqe, bytes, .. } = &mut self.work;
        wqe.parse(bytes.get(..len).unwrap_or_default(), qp.service, qp.qpn).map_err(|error| {
            log::debug!("QPN {:#x}: send WQE {index:#x}: {error}", qp.qpn);
            broken
        })?;
        Ok(true)
    }

    fn begin(&mut self) {
        self.forget_background();
        self.active = true;
        let work = &mut self.work;
        (work.wqe.bytes, work.wqe.opcode, work.wqe.kind) = (BLOCK, 0, Kind::Nop);
        (work.done, work.effect, work.invalidated) = (0, Effect::Due, None);
        work.planned.set(false);
        work.heard.get_mut().clear();
        self.passed_gate = false;
        self.begin_attempts();
    }

    /// The current WQE is done.
    pub(super) fn retire(&mut self) {
        self.work.sent = self.work.sent.wrapping_add(self.work.packets());
        self.work.index = self.work.index.wrapping_add(self.work.wqe.blocks());
        self.active = false;
    }
}

/// Copies the WQE in, which may wrap at the end of the queue; its length is read once. `None`: unreadable, or cut short.
fn copy_in(work: &mut Work, hca: &Hca, log_size: u32, available: u16) -> Option<usize> {
    let (layout, blocks) = (work.qp.layout, 1usize << log_size.min(16));
    let slot = usize::from(work.index) & (blocks - 1);
    let read = |slot: usize, into: &mut [u8]| {
        let at = layout.sq_offset.checked_add((slot * BLOCK) as u64)?;
        work.qp.buffer.read(&hca.dma, at, into).ok()
    };
    let (first, rest) = work.bytes.split_at_mut(BLOCK);
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
