// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From key and address to guest memory (contract 8.1, 8.2, 9.5).
//!
//! What comes out is a list of guest physical addresses that nobody has checked to be RAM: the copy does that. It is void as soon
//! as the section ends, because nothing keeps the translation alive longer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Access, AccessError, Keys, Mkey, MkeyState, PageMissing, Rights, Span};
use crate::hca::{FIRST_MKEY, Hca};
use crate::hooks::{NicAction, WqeShape};
use crate::limits;
use dma::Section;
use mlx5_spec::mkey::{ANY_QPN, MTT_ADDRESS, MTT_READ, MTT_WRITE, REPEAT_BLOCK, access_mode};

/// Most bytes that one section may move, which bounds how long a zap waits.
const MAX_SECTION: u64 = 256 << 10;
/// Indirections below the key that was named (cap `max_indirection`).
const MAX_DEPTH: u8 = limits::MAX_INDIRECTION as u8;
/// What a step into another key counts as.
const KEY_STEPS: u32 = 128;
/// Table entries that one call looks at: bounds the walk through lists of tiny KLM entries. Enough for the last entry of the longest
/// list in as many lists, one below the other, as a walk goes through.
const MAX_STEPS: u32 = limits::MAX_INDIRECTION * ((1 << limits::LOG_MAX_KLM_LIST) + KEY_STEPS);
/// Smallest and largest page of MTT and KSM entries (contract 8.2; a KSM of implicit ODP has 30 or 34).
const LOG_PAGES: std::ops::RangeInclusive<u8> = 12..=40;

/// Why a walk ended early.
enum Stop {
    /// An entry lacks the right.
    Absent,
    Denied(&'static str),
    /// Enough for one section.
    Enough,
}

/// Checks `access` and appends the guest memory that it leads to, adjacent pieces merged. Returns how many bytes of `access` the
/// appended spans cover: fewer than `access.len` when a later entry is not present, or when it is more than one section may move
/// (256 KiB); ask again for the rest. Key, rights and bounds are checked for the whole of `access` first. On error nothing is appended.
///
/// Looks everything up anew (`keys` only shortens the way to what is still in the table); what it returns is void when the section ends. Rights of the queue pair (rre, rwe, rae) are the caller's to check.
///
/// # Errors
/// [`AccessError`].
pub fn translate(
    hca: &Hca,
    section: &Section<'_>,
    access: &Access,
    keys: &mut Keys,
    spans: &mut Vec<Span>,
) -> Result<u64, AccessError> {
    let _ = section;
    let first = spans.len();
    let mut walk =
        Walk { hca, access, spans, covered: 0, steps: MAX_STEPS, ignores_write_bit: None, ignores_rights: None };
    let result = walk.key(keys, access.key, (access.va, access.len), access.rights, 0);
    let covered = walk.covered;
    let error = match result {
        Ok(()) | Err(Stop::Enough) => return Ok(covered),
        Err(Stop::Absent) if covered > 0 => return Ok(covered),
        Err(Stop::Absent) => AccessError::Missing(PageMissing { key: access.key, va: access.va }),
        Err(Stop::Denied(why)) => AccessError::Denied { key: access.key, why },
    };
    spans.truncate(first);
    Err(error)
}

/// Checks key, rights and bounds as [`translate`] does, without looking for translations: what a responder does before the first byte.
///
/// # Errors
/// [`AccessError::Denied`].
pub fn check(hca: &Hca, section: &Section<'_>, access: &Access) -> Result<(), AccessError> {
    let _ = section;
    let denied = |why| AccessError::Denied { key: access.key, why };
    let index = access.key >> 8;
    let state = hca.mkeys.with(index, |mkey| mkey.state());
    let state = match state {
        Some(state) => in_effect(hca, index, state),
        None => hca.ghosts.find(hca, index).map(|(_, state)| state).ok_or(denied("no such key"))?,
    };
    let run = (access.va, access.len);
    permits(&state, access, run, access.key, access.rights, || ignores_rights(hca, access)).map_err(denied)
}

/// The state of the key `index` as accesses find it. An injection may know better than a key that is free.
fn in_effect(hca: &Hca, index: u32, state: MkeyState) -> MkeyState {
    if !state.free && !state.dead {
        return state;
    }
    hca.ghosts.find(hca, index).map_or(state, |(_, before)| before)
}

/// Whether the injection `IgnoreRights` lets an access through whose right is missing.
#[cold]
fn ignores_rights(hca: &Hca, access: &Access) -> bool {
    let shape = WqeShape::access(access.key, access.qpn);
    hca.injections.consult(&shape, |action| action == NicAction::IgnoreRights).is_some()
}

/// Whether a key in `state` serves the access `by` at these bytes. `excused` is asked if only a right is missing.
fn permits(
    state: &MkeyState,
    by: &Access,
    (va, len): (u64, u64),
    key: u32,
    rights: Rights,
    excused: impl FnOnce() -> bool,
) -> Result<(), &'static str> {
    if state.free || state.dead {
        return Err("it is free");
    }
    if u32::from(state.variant) != key & 0xff {
        return Err("wrong variant");
    }
    if state.pd != by.pd {
        return Err("it belongs to another protection domain");
    }
    if state.qpn != ANY_QPN && state.qpn != by.qpn {
        return Err("it is bound to another queue pair");
    }
    let inside = state.contains(va, len);
    if !(state.rights.allow(rights) || inside && excused()) {
        return Err("it does not give this right");
    }
    if !inside {
        return Err("out of its bounds");
    }
    Ok(())
}

/// A block of a KLM list that repeats: the entries from `first` on, `bytes` of them together, so many times.
struct Repeat {
    first: u64,
    entries: u64,
    bytes: u64,
    count: u64,
}

struct Walk<'a> {
    hca: &'a Hca,
    access: &'a Access,
    spans: &'a mut Vec<Span>,
    covered: u64,
    steps: u32,
    /// Whether the injection says so, once asked.
    ignores_write_bit: Option<bool>,
    /// The same of rights.
    ignores_rights: Option<bool>,
}

impl Walk<'_> {
    fn key(&mut self, keys: &mut Keys, key: u32, (va, len): (u64, u64), rights: Rights, depth: u8) -> Result<(), Stop> {
        let hca = self.hca;
        let mut direct = |mkey: &Arc<Mkey>| {
            let state = in_effect(hca, mkey.index, mkey.state());
            let rights = if depth == 0 { rights } else { beneath(rights, state.rights) };
            let by = self.access;
            let excused = || *self.ignores_rights.get_or_insert_with(|| ignores_rights(hca, by));
            permits(&state, by, (va, len), key, rights, excused).map_err(Stop::Denied)?;
            match u32::from(state.mode) {
                _ if len == 0 => {}
                access_mode::PA => self.push(va, len)?,
                access_mode::MTT => self.mtt(mkey, &state, va, len)?,
                access_mode::MEMIC => self.device_memory(&state, va, len)?,
                // What is beneath is looked up in the same places, so later.
                _ => return Ok(Some((mkey.clone(), state))),
            }
            Ok(None)
        };
        let found = match hca.mkeys.with_recent(keys, key >> 8, &mut direct) {
            Some(found) => found?,
            None => {
                let (mkey, _) = hca.ghosts.find(hca, key >> 8).ok_or(Stop::Denied("no such key"))?;
                direct(&mkey)?
            }
        };
        let Some((mkey, state)) = found else { return Ok(()) };
        match u32::from(state.mode) {
            access_mode::KLM => self.klm(keys, &mkey, (va - state.start, len), depth),
            access_mode::KSM => self.ksm(keys, (&mkey, &state), (va, len), depth),
            _ => Err(Stop::Denied("unknown access mode")),
        }
    }

    /// Appends; ends the walk when the section has enough.
    fn push(&mut self, gpa: u64, len: u64) -> Result<(), Stop> {
        let room = MAX_SECTION - self.covered;
        let len_now = len.min(room);
        let merged = match self.spans.last_mut() {
            Some(last) if last.addr.checked_add(last.len) == Some(gpa) => Some(last),
            _ => None,
        };
        match merged {
            Some(last) if self.covered > 0 => last.len += len_now,
            _ => self.spans.push(Span { addr: gpa, len: len_now }),
        }
        self.covered += len_now;
        if self.covered == MAX_SECTION { Err(Stop::Enough) } else { Ok(()) }
    }

    /// What has been freed is nowhere, whatever keys of it are left.
    fn device_memory(&mut self, state: &MkeyState, va: u64, len: u64) -> Result<(), Stop> {
        let offset = state.start.checked_add(va);
        let at = offset.and_then(|offset| self.hca.device_memory.seen_at(offset, len));
        self.push(at.ok_or(Stop::Denied("its device memory is free"))?, len)
    }

    fn mtt(&mut self, mkey: &Mkey, state: &MkeyState, va: u64, len: u64) -> Result<(), Stop> {
        let (mut at, log_page) = paged(state, va, len, mkey.entries.len())?;
        let inside = (1u64 << log_page) - 1;
        let need = if self.access.rights.writes() { MTT_WRITE } else { 0 }
            | if self.access.rights.reads() { MTT_READ } else { 0 };
        let mut left = len;
        while left > 0 {
            let entry = mkey.entries.get((at >> log_page) as usize).map_or(0, |entry| entry.load(Ordering::Relaxed));
            if entry & need != need && !self.excused(state, entry) {
                return Err(Stop::Absent);
            }
            let now = left.min(inside + 1 - (at & inside));
            self.push(entry & MTT_ADDRESS & !inside | at & inside, now)?;
            at += now;
            left -= now;
        }
        Ok(())
    }

    /// A page that may be read only passes for writable where the injection `IgnoreMttWriteBit` says so, or where `IgnoreRights` has let
    /// the access through to a key that nobody may write by.
    #[cold]
    fn excused(&mut self, state: &MkeyState, entry: u64) -> bool {
        if entry & MTT_READ == 0 {
            return false;
        }
        if self.ignores_rights == Some(true) && !state.rights.writes() {
            return true;
        }
        let (hca, access) = (self.hca, self.access);
        *self.ignores_write_bit.get_or_insert_with(|| {
            let shape = WqeShape::access(access.key, access.qpn);
            hca.injections.consult(&shape, |action| matches!(action, NicAction::IgnoreMttWriteBit)).is_some()
        })
    }

    fn ksm(
        &mut self,
        keys: &mut Keys,
        (mkey, state): (&Mkey, &MkeyState),
        (va, len): (u64, u64),
        depth: u8,
    ) -> Result<(), Stop> {
        let (mut at, log_page) = paged(state, va, len, mkey.entries.len() / 2)?;
        let inside = (1u64 << log_page) - 1;
        let mut left = len;
        while left > 0 {
            let [head, base] = self.pair(mkey, at >> log_page)?;
            let now = left.min(inside + 1 - (at & inside));
            let child_va = base.checked_add(at & inside).ok_or(Stop::Denied("an entry's address wraps"))?;
            self.child(keys, head as u32, (child_va, now), depth)?;
            at += now;
            left -= now;
        }
        Ok(())
    }

    fn klm(&mut self, keys: &mut Keys, mkey: &Mkey, (skip, len): (u64, u64), depth: u8) -> Result<(), Stop> {
        let (mut skip, mut left) = (skip, len);
        let (mut index, entries) = (0, mkey.entries.len() as u64 / 2);
        while index < entries {
            let [head, base] = self.pair(mkey, index)?;
            index += 1;
            let bytes = head >> 32;
            if head as u32 == REPEAT_BLOCK {
                let block = Repeat { first: index, entries: base & 0xffff, bytes, count: base >> 32 };
                let all = block.bytes * block.count;
                index += block.entries;
                if skip >= all {
                    skip -= all;
                    continue;
                }
                let now = left.min(all - skip);
                self.repeat(keys, mkey, &block, (skip, now), depth)?;
                skip = 0;
                left -= now;
                if left == 0 {
                    return Ok(());
                }
                continue;
            }
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let now = left.min(bytes - skip);
            let child_va = base.checked_add(skip).ok_or(Stop::Denied("an entry's address wraps"))?;
            self.child(keys, head as u32, (child_va, now), depth)?;
            skip = 0;
            left -= now;
            if left == 0 {
                return Ok(());
            }
        }
        Err(Stop::Denied("its list is shorter than its length"))
    }

    /// `len` bytes at byte `skip` of a block that repeats: each time a piece of every entry, each further on by its stride.
    fn repeat(
        &mut self,
        keys: &mut Keys,
        mkey: &Mkey,
        block: &Repeat,
        (skip, len): (u64, u64),
        depth: u8,
    ) -> Result<(), Stop> {
        let entries = block.first..block.first + block.entries;
        let mut together = 0;
        for index in entries.clone() {
            together += self.pair(mkey, index)?[0] >> 32 & 0xffff;
        }
        // From here on each time through moves bytes.
        if together != block.bytes {
            return Err(Stop::Denied("the entries of a block that repeats do not have its length"));
        }
        let (mut time, mut skip, mut left) = (skip / block.bytes, skip % block.bytes, len);
        loop {
            for index in entries.clone() {
                let [head, base] = self.pair(mkey, index)?;
                let (stride, bytes) = (head >> 48, head >> 32 & 0xffff);
                if skip >= bytes {
                    skip -= bytes;
                    continue;
                }
                let now = left.min(bytes - skip);
                let at = base.checked_add(time * stride).and_then(|at| at.checked_add(skip));
                let at = at.ok_or(Stop::Denied("an entry's address wraps"))?;
                self.child(keys, head as u32, (at, now), depth)?;
                skip = 0;
                left -= now;
                if left == 0 {
                    return Ok(());
                }
            }
            time += 1;
        }
    }

    fn child(&mut self, keys: &mut Keys, key: u32, run: (u64, u64), depth: u8) -> Result<(), Stop> {
        if key >> 8 < FIRST_MKEY {
            // The null key, or an entry that was never written.
            return Err(Stop::Absent);
        }
        if depth >= MAX_DEPTH {
            return Err(Stop::Denied("too many indirections"));
        }
        self.spend(KEY_STEPS)?;
        self.key(keys, key, run, self.access.rights, depth + 1)
    }

    /// An entry of an indirect key.
    fn pair(&mut self, mkey: &Mkey, index: u64) -> Result<[u64; 2], Stop> {
        self.spend(1)?;
        Ok(mkey.pair(index).unwrap_or_default())
    }

    fn spend(&mut self, steps: u32) -> Result<(), Stop> {
        let Some(left) = self.steps.checked_sub(steps) else {
            return Err(if self.covered > 0 { Stop::Enough } else { Stop::Denied("its list is too scattered") });
        };
        self.steps = left;
        Ok(())
    }
}

/// Where in a paged table `va` lies: byte offset from the start of the first entry's page, and log2 of the page. All of `len` is in the table.
fn paged(state: &MkeyState, va: u64, len: u64, entries: usize) -> Result<(u64, u8), Stop> {
    if !LOG_PAGES.contains(&state.log_page) {
        return Err(Stop::Denied("its page size is not supported"));
    }
    let first = state.start & ((1u64 << state.log_page) - 1);
    let end = "its table is shorter than its length";
    let at = (va - state.start).checked_add(first).ok_or(Stop::Denied(end))?;
    let last = at.checked_add(len - 1).ok_or(Stop::Denied(end))?;
    if last >> state.log_page >= entries as u64 {
        return Err(Stop::Denied(end));
    }
    Ok((at, state.log_page))
}

/// What the child of an indirect key must give: the parent has given the remote right, which for a memory window over a region
/// needs no more of the region than the local one.
fn beneath(wanted: Rights, given: Rights) -> Rights {
    let stands_for = [
        (Rights::LOCAL_READ, Rights::REMOTE_READ),
        (Rights::LOCAL_WRITE, Rights::REMOTE_WRITE),
        (Rights::LOCAL_WRITE, Rights::ATOMIC),
    ];
    let excused = stands_for.iter().filter(|(local, _)| given.0 & local.0 != 0);
    Rights(excused.fold(wanted.0, |wanted, (_, remote)| wanted & !remote.0))
}
