// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory keys: what they allow, and where their addresses lead (contract 8).
//!
//! * `state`: the context (MKC), decoded, and what a UMR replaces in it.
//! * `ghosts`: keys that an injection lets work on when they are gone.
//! * `translate`: from key and address to guest memory, inside a section only.
//! * [`umr`]: the work requests that change a key or its translations.
//! * `version`: several words that change as one.
//!
//! A key dies in one order everywhere: publish ([`Mkey::revoke`], or the stores of a UMR), [`fence`], then tell that it is done.

mod ghosts;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod translate;
pub mod umr;
mod version;

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use thiserror::Error;

use super::bus::Bus;
use super::hca::Hca;
use super::hooks::{NicAction, WqeShape};
use super::host_memory::Lease;
use super::table::{Owner, Recent};
use super::users::Uses;
use crate::hooks::{NicKind, NicLedger};
use mlx5_spec::mkey::{MKC_SIZE, MTT_READ, MTT_WRITE, OCTWORD_SIZE, UMR_ALIGNMENT, access_mode, mkc};
use probe::ledger::Seq;

pub use dma::Span;
pub use ghosts::Ghosts;
pub use state::MkeyState;
use state::StateCell;
pub use translate::{check, translate};
use version::Version;

/// Key whose index is reserved for absent entries of an indirect key: an access through it is a page fault (contract 8.6).
pub const NULL_MKEY: u32 = 0x200;
/// Largest translation table of one key: 64 MiB map 32 GiB in pages of 4 KiB.
pub const MAX_TABLE: u64 = 64 << 20;

/// What an access needs from a key, or a key gives. Bits can be combined; a number in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rights(pub u8);

impl Rights {
    /// Gather from local memory.
    pub const LOCAL_READ: Self = Self(1);
    /// Scatter into local memory.
    pub const LOCAL_WRITE: Self = Self(2);
    /// RDMA READ by the peer.
    pub const REMOTE_READ: Self = Self(4);
    /// RDMA WRITE by the peer.
    pub const REMOTE_WRITE: Self = Self(8);
    /// Atomic by the peer.
    pub const ATOMIC: Self = Self(16);

    /// Whether whoever has these has those of `wanted`.
    pub fn allow(self, wanted: Self) -> bool {
        wanted.0 & !self.0 == 0
    }

    /// Whether memory is changed.
    pub fn writes(self) -> bool {
        self.0 & (Self::LOCAL_WRITE.0 | Self::REMOTE_WRITE.0 | Self::ATOMIC.0) != 0
    }

    /// Whether memory is looked at.
    pub fn reads(self) -> bool {
        self.0 & (Self::LOCAL_READ.0 | Self::REMOTE_READ.0 | Self::ATOMIC.0) != 0
    }
}

/// One access by key.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Whole key: index << 8 | variant.
    pub key: u32,
    /// Protection domain of the queue pair (of the SRQ for its buffers).
    pub pd: u32,
    /// Queue pair, for keys bound to one.
    pub qpn: u32,
    /// First byte.
    pub va: u64,
    /// Bytes; 0 is checked like any other and gives no spans.
    pub len: u64,
    /// What it needs.
    pub rights: Rights,
}

/// A page that is missing, from the translation that finds no entry for it to the wait for it.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("no translation for {va:#x} under key {key:#x}")]
pub struct PageMissing {
    /// The key as the requester named it (contract 9.5: the parent's, not a child's).
    pub key: u32,
    /// First byte without translation.
    pub va: u64,
}

/// Why an access is refused. All but `Missing` are protection errors (0x04, 0x11 or 0x13 by whose they are).
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum AccessError {
    /// The entry of the first byte has not the right that is needed: a page fault if the device pages on demand.
    #[error(transparent)]
    Missing(PageMissing),
    /// No such key, wrong variant, free, wrong PD or QPN, missing right, out of bounds, too deep.
    #[error("key {key:#x}: {why}")]
    Denied {
        /// The key.
        key: u32,
        /// For the log.
        why: &'static str,
    },
}

/// A key could not be made.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum MkeyError {
    /// Status BAD_PARAM.
    #[error("the key's context is not usable: {0}")]
    BadParam(&'static str),
    /// Status NO_RES.
    #[error("no more keys or no room for a translation table of {0} bytes")]
    NoRes(u64),
}

/// The keys that one end of an engine's transfers has used last.
pub type Keys = Recent<Mkey>;

/// A memory key.
pub struct Mkey {
    /// Bits 31:8 of the key.
    pub index: u32,
    /// The context as accesses are checked against it. Written under `context`'s lock.
    state: StateCell,
    /// Translation table as the driver wrote it, two words an octword; its size never changes.
    /// MTT: one word an entry, always with its presence bits. KLM and KSM: byte count and key, then the address.
    pub entries: Box<[AtomicU64]>,
    /// Of the entries of two words. They change under `context`'s lock.
    pairs: Version,
    /// Updates and revocations that are complete, DMA through the old state included.
    pub zaps: AtomicU64,
    /// MKC with all its bits. An engine that cannot copy the state otherwise waits for this lock inside its section: it is held for
    /// a few words at a time.
    context: Mutex<[u8; MKC_SIZE]>,
    /// Held by one change of the key at a time, from its judgement to its record; nobody waits for it inside a section.
    unit: Mutex<()>,
    /// The umem whose pages it has, if one.
    pub uses: Uses,
    /// The table's share of the device's host memory.
    _lease: Option<Lease>,
}

impl Mkey {
    /// What CREATE_MKEY asks for: `mkc` is the context, `list` the translations that follow it (as many as the command said; may
    /// be empty). `pg_access`: the list's entries have presence bits. The table gets `translations_octword_size` octwords, rounded
    /// up to 64 bytes because drivers round their updates so (contract T6).
    ///
    /// # Errors
    /// What is wrong, for the log; the status is BAD_PARAM.
    pub fn from_command(index: u32, mkc: &[u8], list: &[u8], pg_access: bool) -> Result<Self, &'static str> {
        let mut context = [0; MKC_SIZE];
        context.copy_from_slice(mkc.get(..MKC_SIZE).ok_or("the context is cut short")?);
        let state = MkeyState::decode(&context);
        let mode = u32::from(state.mode);
        if !matches!(mode, access_mode::PA..=access_mode::KSM | access_mode::MEMIC) {
            return Err("access mode is not offered");
        }
        let bytes = if mode == access_mode::MEMIC { 0 } else { table_bytes(&context) };
        if bytes > MAX_TABLE {
            return Err("translation table is larger than 64 MiB");
        }
        let words = if mode == access_mode::PA { 0 } else { bytes / 8 };
        if list.len() as u64 > words * 8 {
            return Err("more translations than the table holds");
        }
        // An entry without presence bits is present.
        let bits = if mode == access_mode::MTT && !pg_access { MTT_READ | MTT_WRITE } else { 0 };
        let entries: Box<[AtomicU64]> = (0..words).map(|_| AtomicU64::new(0)).collect();
        for (entry, bytes) in entries.iter().zip(list.chunks_exact(8)) {
            entry.store(word(bytes) | bits, Ordering::Relaxed);
        }
        let (state, context, zaps) = (StateCell::new(&state), Mutex::new(context), AtomicU64::new(0));
        Ok(Self {
            index,
            state,
            entries,
            pairs: Version::default(),
            zaps,
            context,
            unit: Mutex::default(),
            uses: Uses::default(),
            _lease: None,
        })
    }

    fn numbered(mut self, index: u32) -> Self {
        self.index = index;
        self
    }

    /// The key with its variant, as the driver has set it last.
    pub fn key(&self) -> u32 {
        self.index << 8 | u32::from(self.state().variant)
    }

    /// The context.
    pub fn state(&self) -> MkeyState {
        self.state.get().unwrap_or_else(|| {
            let _writers = self.context.lock();
            self.state.get_settled()
        })
    }

    /// The key for one change: until the guard is dropped no other change of it is judged. Never inside a section.
    fn unit(&self) -> MutexGuard<'_, ()> {
        self.unit.lock()
    }

    /// No section that begins from now on gets anything from this key, until its context is set.
    fn suspend(&self) {
        let _writers = self.context.lock();
        self.state.set(&MkeyState { free: true, ..self.state.get_settled() });
    }

    /// The first step of DESTROY_MKEY: no section that begins from now on gets anything from this key, whatever a UMR says.
    /// What has begun is waited for with [`fence`].
    pub fn revoke(&self) {
        let _writers = self.context.lock();
        self.state.set(&MkeyState { dead: true, free: true, ..self.state.get_settled() });
    }

    /// An update or a revocation is complete, and in the ledger: a late piece that waits for it comes after it there too.
    pub fn completed(&self) {
        self.zaps.fetch_add(1, Ordering::Release);
    }

    /// QUERY_MKEY: the context and the first two octwords of the table.
    pub fn query(&self) -> ([u8; MKC_SIZE], [u8; 2 * OCTWORD_SIZE]) {
        // While nobody changes an entry: its two words belong together.
        let context = self.context.lock();
        let mut first = [0; 2 * OCTWORD_SIZE];
        for (to, entry) in first.chunks_exact_mut(8).zip(self.entries.iter()) {
            to.copy_from_slice(&entry.load(Ordering::Relaxed).to_be_bytes());
        }
        (*context, first)
    }

    /// Replaces the parts of the context that `mask` names (`spec::mkey::umr_mask`).
    fn set_context(&self, from: &[u8], mask: u64) {
        let mut context = self.context.lock();
        state::apply_mask(&mut context, from, mask);
        let dead = self.state.get_settled().dead;
        let decoded = MkeyState::decode(&context[..]);
        self.state.set(&MkeyState { dead, free: dead || decoded.free, ..decoded });
    }

    /// Replaces entries from word `first` on; the caller has bounded `list`. `keeps`: an MTT entry that would become absent stays.
    fn set_entries(&self, first: usize, list: &[u8], keeps: bool) {
        let entries = self.entries.get(first..).unwrap_or_default();
        if u32::from(self.state().mode) == access_mode::MTT {
            for (entry, bytes) in entries.iter().zip(list.chunks_exact(8)) {
                let word = word(bytes);
                if !(keeps && is_absent(word)) {
                    entry.store(word, Ordering::Relaxed);
                }
            }
            return;
        }
        for (pair, bytes) in entries.chunks_exact(2).zip(list.chunks_exact(OCTWORD_SIZE)) {
            // One at a time: an engine that finds the version changing all the time waits for one pair, not for the list.
            let _writers = self.context.lock();
            self.pairs.change(|| {
                for (entry, bytes) in pair.iter().zip(bytes.chunks_exact(8)) {
                    entry.store(word(bytes), Ordering::Relaxed);
                }
            });
        }
    }

    /// Whether `list`, from word `first` on, takes a translation away: a present MTT entry of a key that is in use becomes absent.
    fn loses(&self, first: usize, list: &[u8]) -> bool {
        let state = self.state();
        if state.free || u32::from(state.mode) != access_mode::MTT {
            return false;
        }
        let mut pairs = self.entries.get(first..).unwrap_or_default().iter().zip(list.chunks_exact(8));
        pairs.any(|(entry, bytes)| is_absent(word(bytes)) && !is_absent(entry.load(Ordering::Relaxed)))
    }

    /// The key as it is now, for the ledger.
    fn told(&self, begun: Seq) -> NicKind {
        let MkeyState { variant, rights, free, .. } = self.state();
        NicKind::Keyed { index: self.index, variant, rights, free, begun }
    }

    /// Entry `index` of an indirect key, both words of one update: byte count << 32 | key, and address. `None`: beyond the table.
    fn pair(&self, index: u64) -> Option<[u64; 2]> {
        let at = usize::try_from(index).ok()?.checked_mul(2)?;
        let entry = self.entries.get(at..)?.first_chunk::<2>()?;
        let copy = || [0, 1].map(|at: usize| entry[at].load(Ordering::Relaxed));
        let copied = self.pairs.read(copy);
        Some(copied.unwrap_or_else(|| {
            let _writers = self.context.lock();
            copy()
        }))
    }
}

/// Bytes of the translation table that a context asks for, rounded up to 64.
fn table_bytes(context: &[u8]) -> u64 {
    let octwords = u64::from(mkc::TRANSLATIONS_OCTWORD_SIZE.get(context));
    (octwords * OCTWORD_SIZE as u64).next_multiple_of(UMR_ALIGNMENT as u64)
}

/// An MTT entry without any right.
fn is_absent(entry: u64) -> bool {
    entry & (MTT_READ | MTT_WRITE) == 0
}

fn word(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

/// CREATE_MKEY: a key under a fresh index. Arguments as [`Mkey::from_command`].
///
/// # Errors
/// See [`MkeyError`]; nothing was made.
pub fn create(hca: &Hca, mkc: &[u8], list: &[u8], pg_access: bool) -> Result<Arc<Mkey>, MkeyError> {
    create_for(hca, Owner::default(), mkc, list, pg_access)
}

/// The same for any owner.
pub fn create_for(hca: &Hca, owner: Owner, mkc: &[u8], list: &[u8], pg_access: bool) -> Result<Arc<Mkey>, MkeyError> {
    let bytes = table_bytes(mkc);
    hca.ghosts.sweep(hca);
    let lease = hca.memory.lease(bytes.min(MAX_TABLE)).ok_or(MkeyError::NoRes(bytes))?;
    // The table is made before the index is known: not under the number space's lock.
    let mut mkey = Mkey::from_command(0, mkc, list, pg_access).map_err(MkeyError::BadParam)?;
    mkey._lease = Some(lease);
    let begun = hca.ledger.tick();
    let made = hca.mkeys.insert_for(owner, |index| {
        hca.ghosts.lay(index);
        mkey.numbered(index)
    });
    let mkey = made.ok_or(MkeyError::NoRes(bytes))?;
    record(hca, 0, mkey.told(begun));
    Ok(mkey)
}

/// DESTROY_MKEY: when it returns, no DMA through the key is in flight and none will begin. False: there is no such key.
/// Never call it inside a section.
pub fn destroy(hca: &Hca, index: u32) -> bool {
    let Some(mkey) = hca.mkeys.get(index) else { return false };
    let _unit = mkey.unit();
    let begun = hca.ledger.tick();
    let shape = WqeShape::command(mkey.key());
    // While it is still in its table: what becomes a ghost is never missing.
    hca.ghosts.freed(hca, &shape, &mkey);
    if hca.mkeys.remove(index).is_none() {
        return false;
    }
    mkey.revoke();
    fence(hca, &shape);
    mkey.uses.end();
    record(hca, 0, NicKind::Revoked { index, begun });
    mkey.completed();
    true
}

/// Waits until no DMA through what was published before is in flight (rule 3), unless the injection
/// [`NicAction::NoGuard`] fires for `shape`. Never call it inside a section.
pub fn fence(bus: &Bus, shape: &WqeShape) {
    let skip = bus.injections.consult(shape, |action| matches!(action, NicAction::NoGuard));
    if skip.is_none() {
        bus.quiesce.wait();
    }
}

fn record(bus: &Bus, qpn: u32, kind: NicKind) -> Seq {
    bus.ledger.nic_push(bus.index, qpn, kind)
}
