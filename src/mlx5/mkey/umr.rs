// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! UMR: work requests that change a memory key or its translations (contract 8.3, 8.4), and invalidations.
//!
//! Each is one unit (rule 3): what it asks for is read whole, then it has the key to itself while it is judged, applied, waited for and put
//! on record. So a right that another has taken away meanwhile is judged as gone, and none comes back by a request that was judged before.
//! Each returns only when no DMA through what it replaced is in flight (contract 8.5). None may be called inside a section.

use std::borrow::Cow;
use std::ops::Range;

use thiserror::Error;

use super::state::is_offered;
use super::{Access, AccessError, Keys, Mkey, MkeyState, PageMissing, Rights, Span, fence, record, translate};
use crate::hca::Hca;
use crate::hooks::{MomentKind, NicAction, NicKind, NicMoments, WqeShape, clock_ns};
use crate::qp::{Qp, QpAttrs};
use dma::DmaError;
use mlx5_spec::cq::syndrome;
use mlx5_spec::mkey::{ANY_QPN, MKC_SIZE, OCTWORD_SIZE, access_mode, mkc, umr_ctrl, umr_flags, umr_mask};
use mlx5_spec::qp::{qpc, service_type};
use mlx5_spec::wqe::{ctrl, data};
use probe::ledger::Seq;

/// Segments of the WQE: UMR control, context, then the list or the pointer to it.
const UMR_CTRL: Range<usize> = 16..64;
const CONTEXT: Range<usize> = 64..128;
const LIST: usize = 128;
/// Bytes of the list that are read in one section.
const PIECE: u64 = 64 << 10;

/// Why a UMR or an invalidation failed. Nothing of the key was changed then.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum UmrError {
    /// The WQE, or what its data segment describes, is too short for the octwords that it announces.
    #[error("the WQE is cut short")]
    CutShort,
    /// No such key.
    #[error("there is no key {0:#x}")]
    NoKey(u32),
    /// A condition that the WQE states, or the rule for queue pairs other than REG_UMR, is not met.
    #[error("key {key:#x}: {why}")]
    Refused {
        /// The key.
        key: u32,
        /// For the log.
        why: &'static str,
    },
    /// The key must not be free and is.
    #[error("key {0:#x} is free")]
    Free(u32),
    /// The list reaches beyond the key's table.
    #[error("translations beyond the table of key {0:#x}")]
    Beyond(u32),
    /// The list of translations cannot be read through its lkey.
    #[error("the list of translations: {0}")]
    List(AccessError),
    /// The list is not in guest RAM, or bus mastering is off.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The queue pair changed meanwhile: no completion, look at it again.
    #[error("the queue pair has changed")]
    Retired,
}

impl UmrError {
    /// Syndrome of the error CQE (contract 7.5, 8.3); `None`: there is none to write.
    pub fn syndrome(self) -> Option<u32> {
        match self {
            Self::CutShort => Some(syndrome::LOCAL_QP_OP_ERR),
            Self::NoKey(_) | Self::Refused { .. } | Self::Free(_) | Self::Beyond(_) => Some(syndrome::MW_BIND_ERR),
            Self::List(_) | Self::Dma(_) => Some(syndrome::LOCAL_PROT_ERR),
            Self::Retired => None,
        }
    }
}

/// Executes the UMR WQE `wqe` (contiguous, from its control segment on, `ds` * 16 bytes) of queue pair `qpn`, on its engine's thread.
///
/// # Errors
/// See [`UmrError`]; [`UmrError::syndrome`] is what the error CQE says.
pub fn execute(hca: &Hca, engine: usize, attrs: &QpAttrs, qpn: u32, wqe: &[u8]) -> Result<(), UmrError> {
    let begun_ns = clock_ns();
    let request = Request::parse(wqe)?;
    let qp = hca.qps.get(qpn).ok_or(UmrError::Retired)?;
    let mkey = hca.mkeys.get(request.key >> 8).ok_or(UmrError::NoKey(request.key))?;
    let list = request.list(hca, engine, &qp, attrs)?;
    let _unit = mkey.unit();
    request.permit(&mkey, list.len() as u64, &Poster::of(&qp, attrs))?;
    hca.counters.umrs.add(1);
    let begun = hca.ledger.tick();
    let access = WqeShape::access(request.key, qpn);
    let shape = WqeShape { opcode: request.opcode, wqe_index: request.wqe_index, ..access };
    if request.frees() {
        hca.ghosts.freed(hca, &shape, &mkey);
    } else if hca.ghosts.lay(mkey.index) {
        // Nobody goes by its old state any more when the new one comes.
        hca.quiesce.wait();
    }
    let keeps = hca.injections.any()
        && mkey.loses(request.first_word(), &list)
        && hca.injections.consult(&shape, |action| action == NicAction::IgnoreZap).is_some();
    request.apply(hca, engine, (&qp, attrs), &mkey, (&list, keeps))?;
    fence(hca, &shape);
    if request.mask != 0 {
        record(hca, qpn, mkey.told(begun));
    }
    record(hca, qpn, request.tell(&mkey, list.len() as u64, begun));
    hca.ledger.moment(qpn, MomentKind::Updated { index: mkey.index, begun_ns });
    mkey.completed();
    Ok(())
}

/// The responder's part of SEND with invalidate (contract 8.4): `attrs` and `qp` are the responder's. `enter` begins the section in which
/// the key is taken away, once it is this request's; there is none if a queue pair of the message has changed since it was judged.
///
/// # Errors
/// No such key, its context does not allow this, or there is no section.
pub fn invalidate_remote<S>(
    hca: &Hca,
    (qp, attrs): (&Qp, &QpAttrs),
    key: u32,
    enter: impl FnOnce() -> Option<S>,
) -> Result<(), UmrError> {
    let mkey = hca.mkeys.get(key >> 8).ok_or(UmrError::NoKey(key))?;
    let _unit = mkey.unit();
    let section = enter().ok_or(UmrError::Retired)?;
    let state = mkey.state();
    if u32::from(state.variant) != key & 0xff || state.free {
        return Err(UmrError::NoKey(key));
    }
    if state.pd != attrs.pd || !state.en_rinval || (state.qpn != ANY_QPN && state.qpn != qp.qpn) {
        return Err(UmrError::Refused { key, why: "not the peer's to invalidate" });
    }
    let begun = hca.ledger.tick();
    let shape = WqeShape::access(key, qp.qpn);
    hca.ghosts.freed(hca, &shape, &mkey);
    let mut context = [0; MKC_SIZE];
    mkc::FREE.set(&mut context, 1);
    mkey.set_context(&context, umr_mask::FREE);
    drop(section);
    fence(hca, &shape);
    record(hca, qp.qpn, mkey.told(begun));
    record(hca, qp.qpn, NicKind::Revoked { index: mkey.index, begun });
    mkey.completed();
    Ok(())
}

/// What the queue pair that posted the WQE may do.
struct Poster {
    qpn: u32,
    pd: u32,
    /// REG_UMR: keys of any PD, and without `umr_en` (contract T6).
    trusted: bool,
    /// QPC.fre: may write page addresses. The kernel's queue pairs have it, a process's have not: else a process could read any memory.
    registers: bool,
}

impl Poster {
    fn of(qp: &Qp, attrs: &QpAttrs) -> Self {
        let trusted = qp.service == service_type::REG_UMR;
        let registers = trusted || qpc::FRE.is_set(&qp.context.lock());
        Self { qpn: qp.qpn, pd: attrs.pd, trusted, registers }
    }
}

/// Where the translations come from.
enum List<'a> {
    Inline(&'a [u8]),
    /// `len` bytes of what the data segment describes.
    Pointer {
        lkey: u32,
        va: u64,
        len: u64,
    },
}

/// A UMR WQE, copied in before.
struct Request<'a> {
    opcode: u8,
    wqe_index: u16,
    key: u32,
    flags: u32,
    mask: u64,
    context: &'a [u8],
    /// First octword of the table that is replaced.
    offset: u64,
    list: List<'a>,
}

impl<'a> Request<'a> {
    fn parse(wqe: &'a [u8]) -> Result<Self, UmrError> {
        let control = wqe.get(UMR_CTRL).ok_or(UmrError::CutShort)?;
        let context = wqe.get(CONTEXT).ok_or(UmrError::CutShort)?;
        let rest = wqe.get(LIST..).ok_or(UmrError::CutShort)?;
        let flags = umr_ctrl::FLAGS.get(control);
        let bytes = umr_ctrl::XLT_OCTOWORDS.get(control) as usize * OCTWORD_SIZE;
        let offset = match flags & umr_flags::TRANSLATION_OFFSET_EN {
            0 => 0,
            _ => {
                let high = u64::from(umr_ctrl::XLT_OFFSET_47_16.get(control));
                high << 16 | u64::from(umr_ctrl::XLT_OFFSET_15_0.get(control))
            }
        };
        let list = if bytes == 0 || flags & umr_flags::INLINE != 0 {
            List::Inline(rest.get(..bytes).ok_or(UmrError::CutShort)?)
        } else {
            let pointer = rest.get(..data::SIZE).ok_or(UmrError::CutShort)?;
            // Drivers round both lengths alike.
            if (data::BYTE_COUNT.get(pointer) as usize) < bytes {
                return Err(UmrError::CutShort);
            }
            List::Pointer { lkey: data::LKEY.get(pointer), va: data::ADDR.get(pointer), len: bytes as u64 }
        };
        let mask = umr_ctrl::MKEY_MASK.get(control);
        let (opcode, wqe_index) = (ctrl::OPCODE.get(wqe) as u8, ctrl::WQE_INDEX.get(wqe) as u16);
        Ok(Self { opcode, wqe_index, key: ctrl::UMR_MKEY.get(wqe), flags, mask, context, offset, list })
    }

    /// The whole list, from wherever it is: at most 1 MiB, for octwords have 16 bits. Nobody waits for the key meanwhile.
    fn list(&self, hca: &Hca, engine: usize, qp: &Qp, attrs: &QpAttrs) -> Result<Cow<'a, [u8]>, UmrError> {
        match self.list {
            List::Inline(bytes) => Ok(Cow::Borrowed(bytes)),
            List::Pointer { lkey, va, len } => {
                let reader =
                    Reader { hca, engine, qp, attrs, keys: Keys::default(), spans: Vec::new(), bytes: Vec::new() };
                reader.read(lkey, va, len).map(Cow::Owned)
            }
        }
    }

    /// The conditions of the WQE, and of queue pairs other than REG_UMR.
    fn permit(&self, mkey: &Mkey, len: u64, poster: &Poster) -> Result<(), UmrError> {
        let state = mkey.state();
        self.permit_key(&state, len, poster)?;
        // Tables and lists are whole 64 bytes: what drivers round fits (contract T6).
        let table = mkey.entries.len() as u64 * 8;
        let at = self.offset.saturating_mul(OCTWORD_SIZE as u64);
        if len > 0 && (at > table || len > table - at) {
            return Err(UmrError::Beyond(self.key));
        }
        Ok(())
    }

    fn permit_key(&self, state: &MkeyState, len: u64, poster: &Poster) -> Result<(), UmrError> {
        let refused = |why| Err(UmrError::Refused { key: self.key, why });
        let has = |flag| self.flags & flag != 0;
        if state.dead {
            return Err(UmrError::NoKey(self.key));
        }
        if !is_offered(self.mask) {
            return refused("its mask names what is not offered");
        }
        if has(umr_flags::CHECK_IS_FREE) && !state.free {
            return refused("it is not free");
        }
        if has(umr_flags::CHECK_IS_NOT_FREE) && state.free {
            return Err(UmrError::Free(self.key));
        }
        if has(umr_flags::CHECK_QPN) && state.qpn != ANY_QPN && state.qpn != poster.qpn {
            return refused("it is bound to another queue pair");
        }
        if poster.trusted {
            return Ok(());
        }
        if !state.umr_en || state.pd != poster.pd {
            return refused("not this queue pair's to change");
        }
        if self.mask & umr_mask::PD != 0 && mkc::PD.get(self.context) != poster.pd {
            return refused("a protection domain that is not the queue pair's");
        }
        let indirect = matches!(u32::from(state.mode), access_mode::KLM | access_mode::KSM);
        let only_frees = self.mask == umr_mask::FREE && self.frees() && len == 0;
        if !poster.registers && !indirect && !only_frees {
            return refused("the queue pair may not register memory");
        }
        Ok(())
    }

    /// Whether the key is free afterwards because of it.
    fn frees(&self) -> bool {
        self.mask & umr_mask::FREE != 0 && mkc::FREE.is_set(self.context)
    }

    /// The first word of the table that is replaced.
    fn first_word(&self) -> usize {
        self.offset.saturating_mul(2) as usize
    }

    /// Translations first, then the context: a key is never usable before its translations are. `keeps` as in [`Mkey::set_entries`].
    fn apply(
        &self,
        hca: &Hca,
        engine: usize,
        (qp, attrs): (&Qp, &QpAttrs),
        mkey: &Mkey,
        (list, keeps): (&[u8], bool),
    ) -> Result<(), UmrError> {
        if !list.is_empty() && self.moves(&mkey.state()) {
            let section = hca.quiesce.enter(engine);
            in_force(qp, attrs)?;
            mkey.suspend();
            drop(section);
            hca.quiesce.wait();
        }
        let _section = hca.quiesce.enter(engine);
        let still = in_force(qp, attrs);
        if still.is_ok() {
            mkey.set_entries(self.first_word(), list, keeps);
        }
        // With an empty mask it is what it was, and not suspended.
        mkey.set_context(self.context, if still.is_ok() { self.mask } else { 0 });
        still
    }

    /// Whether entries mean other addresses afterwards, while the key is in use: then neither the old ones may be used with the new
    /// page size nor the new ones with the old, and for the time in between there is no access.
    fn moves(&self, state: &MkeyState) -> bool {
        let next = MkeyState::decode(self.context);
        let changes = |bit, differs: bool| self.mask & bit != 0 && differs;
        !state.free
            && (changes(umr_mask::LOG_PAGE_SIZE, next.log_page != state.log_page)
                || changes(umr_mask::START_ADDR, next.start != state.start))
    }

    fn tell(&self, mkey: &Mkey, len: u64, begun: Seq) -> NicKind {
        if self.frees() {
            return NicKind::Revoked { index: mkey.index, begun };
        }
        let (per_octword, bytes) = match u32::from(mkey.state().mode) {
            access_mode::MTT => (2, 8),
            _ => (1, OCTWORD_SIZE as u64),
        };
        let first_entry = self.offset.saturating_mul(per_octword);
        NicKind::Updated { index: mkey.index, first_entry, entries: len / bytes, begun }
    }
}

/// Inside a section: nothing of the WQE may take effect after 2RST or DESTROY_QP is complete. A change that leaves the queue pair in
/// service is none of its business: a WQE that has begun is not begun again.
fn in_force(qp: &Qp, attrs: &QpAttrs) -> Result<(), UmrError> {
    if qp.serves(attrs) { Ok(()) } else { Err(UmrError::Retired) }
}

/// Reads a list from guest memory, in pieces of a bounded section each.
struct Reader<'a> {
    hca: &'a Hca,
    engine: usize,
    qp: &'a Qp,
    attrs: &'a QpAttrs,
    keys: Keys,
    spans: Vec<Span>,
    bytes: Vec<u8>,
}

impl Reader<'_> {
    /// `len` bytes at `va`.
    fn read(mut self, lkey: u32, va: u64, len: u64) -> Result<Vec<u8>, UmrError> {
        let mut done = 0;
        while done < len {
            let section = self.hca.quiesce.enter(self.engine);
            in_force(self.qp, self.attrs)?;
            let wanted = (len - done).min(PIECE);
            let beyond = UmrError::List(AccessError::Denied { key: lkey, why: "its address wraps" });
            let va = va.checked_add(done).ok_or(beyond)?;
            let (pd, qpn) = (self.attrs.pd, self.qp.qpn);
            let access = Access { key: lkey, pd, qpn, va, len: wanted, rights: Rights::LOCAL_READ };
            self.spans.clear();
            let covered =
                translate(self.hca, &section, &access, &mut self.keys, &mut self.spans).map_err(UmrError::List)?;
            if covered < wanted {
                // A list in memory that pages on demand: drivers keep theirs in memory that stays.
                let missing = PageMissing { key: lkey, va: va.saturating_add(covered) };
                return Err(UmrError::List(AccessError::Missing(missing)));
            }
            self.hca.dma.gather(&self.spans, &mut self.bytes)?;
            done += wanted;
        }
        Ok(self.bytes)
    }
}
