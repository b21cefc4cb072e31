// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What injections make of a request: asked once, when it comes off its ring.

use std::ops::Range;

use super::hooks::{DiskAction, DiskInjections};
use super::request::{Request, S_OK};
use crate::hooks::BlkOp;
use probe::ledger::{Ledger, SECTOR_SIZE};

/// Why a request is kept back before its data move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For so many milliseconds.
    Late(u32),
    /// Until one that came later has completed.
    Overtaken,
}

/// What injections make of one request. The default: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Injected {
    /// It is not put on record.
    pub(super) hidden: bool,
    /// It is answered with this status, and no data move.
    pub(super) status: Option<u8>,
    /// The sectors of the medium that its data really go to or come from: its first bytes, if these are fewer than it asked for. `None`: those
    /// that it asked for.
    pub(super) medium: Option<Range<u64>>,
    /// It is answered with an I/O error although its data moved.
    pub(super) fails: bool,
    /// It is kept back first.
    pub(super) wait: Option<Wait>,
}

impl Injected {
    /// Asks `rules` about `request` on a disk of `capacity` sectors. `waits`: whether there is room for one that is kept back so.
    pub(super) fn by(
        rules: &DiskInjections,
        request: &Request,
        ledger: &Ledger,
        capacity: u64,
        waits: impl Fn(Wait) -> bool,
    ) -> Self {
        if !rules.any() {
            return Self::default();
        }
        let shape = request.shape(ledger);
        let hidden = rules.consult(&shape, |action| action == DiskAction::HideFromLedger).is_some();
        // A request that is refused moves nothing: no rule could act on it, and one that does not act has not fired.
        if request.refusal.is_some() {
            return Self { hidden, ..Self::default() };
        }
        let wait = rules.consult(&shape, |action| wait_of(action).is_some_and(&waits)).and_then(wait_of);
        let status = rules.consult(&shape, |action| status_of(action, request.op).is_some());
        let status = status.and_then(|action| status_of(action, request.op));
        if status.is_some() {
            return Self { hidden, status, wait, ..Self::default() };
        }
        let moves = rules.consult(&shape, |action| medium_of(action, request, capacity).is_some());
        let medium = moves.and_then(|action| medium_of(action, request, capacity));
        let fails = matches!(moves, Some(DiskAction::TornWrite { fails: true, .. }));
        Self { hidden, status, medium, fails, wait }
    }
}

fn wait_of(action: DiskAction) -> Option<Wait> {
    match action {
        DiskAction::Delay { ms } => Some(Wait::Late(ms)),
        DiskAction::Reorder => Some(Wait::Overtaken),
        _ => None,
    }
}

fn status_of(action: DiskAction, op: BlkOp) -> Option<u8> {
    match action {
        DiskAction::Status(status) => Some(status),
        DiskAction::FlushLost if op == BlkOp::Flush => Some(S_OK),
        _ => None,
    }
}

/// Where data go or come from instead; `None` where the action would change nothing about this request.
fn medium_of(action: DiskAction, request: &Request, capacity: u64) -> Option<Range<u64>> {
    let asked = request.len / SECTOR_SIZE;
    let first = |sectors: u32| (u64::from(sectors) < asked).then(|| request.lba..request.lba + u64::from(sectors));
    match (action, request.op) {
        (DiskAction::TornWrite { sectors, .. }, BlkOp::Write) | (DiskAction::Short { sectors }, BlkOp::Read) => {
            first(sectors)
        }
        (DiskAction::Misdirected { by }, BlkOp::Read | BlkOp::Write) if by != 0 => {
            let start = request.lba.checked_add(by.into())?;
            let left = capacity.checked_sub(start)?;
            (asked <= left).then(|| start..start + asked)
        }
        _ => None,
    }
}
