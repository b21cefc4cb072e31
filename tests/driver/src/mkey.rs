// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory keys: commands, registration, UMR (contract 6.6, 8).

use std::sync::Arc;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::mkey::{
    ANY_QPN, MKC_SIZE, MTT_READ, MTT_WRITE, OCTWORD_SIZE, UMR_ALIGNMENT, access_mode, create_in, create_out,
    destroy_in, mkc, umr_ctrl, umr_flags, umr_mask,
};
use mlx5_spec::qp::service_type;
use mlx5_spec::wqe::opcode;

use crate::command::Input;
use crate::cq::{Cq, CqSpec};
use crate::driver::{Context, Driver};
use crate::memory::{Buffer, PAGE};
use crate::qp::{Qp, QpSpec};
use crate::wqe::{Sge, Wqe};
use crate::{Error, Result};

/// MTT words (8 bytes) in 64 bytes, to which lists and offsets are rounded.
const ALIGNED_WORDS: u64 = UMR_ALIGNMENT as u64 / 8;
/// Bytes of lists that one UMR can load.
const LIST_BYTES: u64 = 1 << 20;

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Scatter into local memory.
    pub local_write: bool,
    /// RDMA READ.
    pub remote_read: bool,
    /// RDMA WRITE.
    pub remote_write: bool,
    /// Atomics.
    pub atomic: bool,
}

impl Access {
    /// Everything.
    pub const ALL: Self = Self { local_write: true, remote_read: true, remote_write: true, atomic: true };
    /// Gathering only.
    pub const NONE: Self = Self { local_write: false, remote_read: false, remote_write: false, atomic: false };
    /// Gathering and RDMA READ.
    pub const READ_ONLY: Self = Self { remote_read: true, ..Self::NONE };

    fn put(self, bytes: &mut [u8]) {
        mkc::LR.set(bytes, 1);
        mkc::LW.set(bytes, self.local_write.into());
        mkc::RR.set(bytes, self.remote_read.into());
        mkc::RW.set(bytes, self.remote_write.into());
        mkc::A.set(bytes, self.atomic.into());
    }

    fn writes(self) -> bool {
        self.local_write || self.remote_write || self.atomic
    }
}

/// Everything CREATE_MKEY decides.
#[derive(Debug, Clone)]
pub struct MkeySpec {
    /// Protection domain.
    pub pd: u32,
    /// Rights.
    pub access: Access,
    /// `spec::mkey::access_mode`.
    pub mode: u32,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The whole address space.
    pub length64: bool,
    /// log2 of the bytes that an entry covers.
    pub log_page: u32,
    /// Made free: a UMR must enable it.
    pub free: bool,
    /// Low byte of the key.
    pub variant: u8,
    /// Queue pair that alone may use it.
    pub qpn: u32,
    /// SEND with invalidate may free it.
    pub remote_invalidate: bool,
    /// Room for entries in 16-byte units; `None`: what `list` needs.
    pub octwords: Option<u32>,
    /// The list's words, as it is sent.
    pub list: Vec<u64>,
    /// Entries have presence bits.
    pub pg_access: bool,
}

impl MkeySpec {
    /// All memory by its address.
    pub fn physical(pd: u32, access: Access) -> Self {
        let mtt = Self::mtt(pd, access, 0, 0, Vec::new());
        Self { mode: access_mode::PA, length64: true, log_page: 0, ..mtt }
    }

    /// 4 KiB pages by a list of MTT words.
    pub fn mtt(pd: u32, access: Access, start: u64, len: u64, list: Vec<u64>) -> Self {
        Self {
            pd,
            access,
            mode: access_mode::MTT,
            start,
            len,
            length64: false,
            log_page: 12,
            free: false,
            variant: 0x5a,
            qpn: ANY_QPN,
            remote_invalidate: false,
            octwords: None,
            list,
            pg_access: true,
        }
    }

    /// The context, as in commands and UMRs.
    pub fn context(&self) -> Vec<u8> {
        let mut bytes = vec![0; MKC_SIZE];
        let b = &mut bytes;
        self.access.put(b);
        mkc::FREE.set(b, self.free.into());
        mkc::UMR_EN.set(b, 1);
        mkc::ACCESS_MODE_1_0.set(b, self.mode);
        mkc::ACCESS_MODE_4_2.set(b, self.mode >> 2);
        mkc::QPN.set(b, self.qpn);
        mkc::MKEY_7_0.set(b, self.variant.into());
        mkc::LENGTH64.set(b, self.length64.into());
        mkc::EN_RINVAL.set(b, self.remote_invalidate.into());
        mkc::PD.set(b, self.pd);
        mkc::START_ADDR.set(b, self.start);
        mkc::LEN.set(b, self.len);
        mkc::LOG_PAGE_SIZE.set(b, self.log_page);
        mkc::TRANSLATIONS_OCTWORD_SIZE.set(b, self.octwords.unwrap_or((self.list.len() as u32).div_ceil(2)));
        bytes
    }
}

/// A UMR work request.
#[derive(Debug, Clone)]
pub struct UmrSpec {
    /// Whole key.
    pub key: u32,
    /// `spec::mkey::umr_flags`.
    pub flags: u32,
    /// `spec::mkey::umr_mask`.
    pub mask: u64,
    /// Context from which masked fields are taken.
    pub context: Vec<u8>,
    /// First table word (8 bytes) to replace; a multiple of 8.
    pub first: u64,
    /// Words to load.
    pub list: Vec<u64>,
}

impl UmrSpec {
    /// Replaces translations of a key that is enabled (contract 8.4, "ODP update / zap").
    pub fn update(key: u32, first: u64, list: Vec<u64>) -> Self {
        let flags = umr_flags::CHECK_IS_NOT_FREE | umr_flags::TRANSLATION_OFFSET_EN;
        Self { key, flags, mask: 0, context: vec![0; MKC_SIZE], first, list }
    }

    /// Frees a key.
    pub fn revoke(key: u32) -> Self {
        let mut context = vec![0; MKC_SIZE];
        mkc::FREE.set(&mut context, 1);
        let flags = umr_flags::INLINE;
        Self { key, flags, mask: umr_mask::FREE, context, first: 0, list: Vec::new() }
    }

    /// Enables a free key as `spec` says, with its translations.
    pub fn enable(key: u32, spec: &MkeySpec) -> Self {
        let mask = umr_mask::LEN
            | umr_mask::LOG_PAGE_SIZE
            | umr_mask::START_ADDR
            | umr_mask::PD
            | umr_mask::KEY
            | umr_mask::LR
            | umr_mask::LW
            | umr_mask::RR
            | umr_mask::RW
            | umr_mask::A
            | umr_mask::FREE;
        let mut context = MkeySpec { free: false, ..spec.clone() }.context();
        mkc::MKEY_7_0.set(&mut context, key);
        Self { key, flags: umr_flags::CHECK_IS_FREE, mask, context, first: 0, list: spec.list.clone() }
    }

    /// The WQE; a list that is not inline lies at `list_at`, reached by `list_key`.
    pub fn wqe(&self, list_key: u32, list_at: u64) -> Wqe {
        let bytes = self.list.len().next_multiple_of(ALIGNED_WORDS as usize) * 8;
        let offset = self.first * 8 / OCTWORD_SIZE as u64;
        let mut control = vec![0; umr_ctrl::SIZE];
        umr_ctrl::FLAGS.set(&mut control, self.flags);
        umr_ctrl::XLT_OCTOWORDS.set(&mut control, (bytes / OCTWORD_SIZE) as u32);
        umr_ctrl::XLT_OFFSET_15_0.set(&mut control, offset as u32);
        umr_ctrl::XLT_OFFSET_47_16.set(&mut control, (offset >> 16) as u32);
        umr_ctrl::MKEY_MASK.set(&mut control, self.mask);
        let wqe = Wqe::new(opcode::UMR).immediate(self.key).segment(&control).segment(&self.context);
        match self.flags & umr_flags::INLINE != 0 {
            true => wqe.segment(&self.list.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>()),
            false => wqe.sge(Sge { key: list_key, va: list_at, len: bytes as u32 }),
        }
    }
}

/// The queue pair of all registrations.
pub(crate) struct UmrQp {
    qp: Qp,
    cq: Arc<Cq>,
    list: Buffer,
    list_key: u32,
}

impl UmrQp {
    fn create(driver: &Driver) -> Result<Self> {
        let context: &Arc<Context> = &driver.context;
        let spec = CqSpec { log_size: 6, uar: driver.uar, eqn: driver.comp_eq.eqn, ignore_overrun: false };
        let cq = Cq::create(context, spec)?;
        let spec = QpSpec { service: service_type::REG_UMR, log_rq: 0, ..QpSpec::rc(driver, driver.pd, &cq) };
        let qp = Qp::create(context, spec)?;
        qp.connect(qp.peer())?;
        let list = driver.machine.guest.contiguous(LIST_BYTES);
        Ok(Self { qp, cq, list, list_key: driver.dma_key })
    }

    fn execute(&self, umr: &UmrSpec) -> Result<()> {
        let bytes: Vec<u8> = umr.list.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.list.write(0, &bytes);
        let padding = bytes.len().next_multiple_of(UMR_ALIGNMENT) - bytes.len();
        self.list.fill(bytes.len() as u64, padding as u64, 0);
        self.qp.post_one(umr.wqe(self.list_key, self.list.gpa(0)).signaled());
        let cqe = self.cq.wait()?;
        if !cqe.is_error() {
            return Ok(());
        }
        // The driver's recovery: reset, set up again (contract 8.3).
        self.qp.to_reset()?;
        self.qp.connect(self.qp.peer())?;
        while self.cq.poll().is_some() {}
        Err(Error::Completion(Box::new(cqe)))
    }

    pub(crate) fn destroy(self) -> Result<()> {
        self.qp.to_reset()?;
        self.qp.destroy()?;
        self.cq.destroy()
    }
}

/// A registered piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mr {
    /// lkey and rkey.
    pub key: u32,
    /// First address.
    pub va: u64,
    /// Bytes.
    pub len: u64,
}

impl Mr {
    /// A piece of it.
    pub fn sge(&self, at: u64, len: u32) -> Sge {
        Sge { key: self.key, va: self.va.wrapping_add(at), len }
    }

    /// All of it.
    pub fn all(&self) -> Sge {
        self.sge(0, self.len as u32)
    }
}

/// MTT words of a buffer's pages.
pub fn mtt_words(buffer: &Buffer, access: Access) -> Vec<u64> {
    let bits = if access.writes() { MTT_READ | MTT_WRITE } else { MTT_READ };
    buffer.pages.iter().map(|page| page | bits).collect()
}

impl Driver {
    /// CREATE_MKEY: the whole key.
    pub fn create_mkey(&self, spec: &MkeySpec) -> Result<u32> {
        // Lists are sent in whole octwords.
        let mut list = spec.list.clone();
        list.resize(list.len().next_multiple_of(2), 0);
        let input = Input::new(Opcode::CREATE_MKEY, create_in::SIZE)
            .with(create_in::PG_ACCESS, spec.pg_access.into())
            .with(create_in::TRANSLATIONS_OCTWORD_ACTUAL_SIZE, list.len() as u32 / 2)
            .bytes(create_in::MKC, &spec.context())
            .list(&list);
        let index = create_out::MKEY_INDEX.get(&self.command(input)?);
        Ok(index << 8 | u32::from(spec.variant))
    }

    /// DESTROY_MKEY.
    pub fn destroy_mkey(&self, key: u32) -> Result<()> {
        let input = Input::new(Opcode::DESTROY_MKEY, 16).with(destroy_in::MKEY_INDEX, key >> 8);
        self.command(input).map(|_| ())
    }

    /// Registers a buffer at the address `va` with pinned pages, by CREATE_MKEY alone.
    pub fn register(&self, pd: u32, buffer: &Buffer, va: u64, access: Access) -> Result<Mr> {
        let spec = MkeySpec::mtt(pd, access, va, buffer.len, mtt_words(buffer, access));
        Ok(Mr { key: self.create_mkey(&spec)?, va, len: buffer.len })
    }

    /// Registers it as mlx5_ib does: a free key, then a UMR that loads the pages and enables it (contract 8.4).
    pub fn register_by_umr(&self, pd: u32, buffer: &Buffer, va: u64, access: Access) -> Result<Mr> {
        let spec = MkeySpec::mtt(pd, access, va, buffer.len, mtt_words(buffer, access));
        let empty =
            MkeySpec { free: true, octwords: Some(octwords(spec.list.len() as u64)), list: Vec::new(), ..spec.clone() };
        let key = self.create_mkey(&empty)?;
        self.umr(&UmrSpec::enable(key, &spec))?;
        Ok(Mr { key, va, len: buffer.len })
    }

    /// Executes a UMR and waits for its completion.
    pub fn umr(&self, umr: &UmrSpec) -> Result<()> {
        let mut slot = self.umr.lock();
        if slot.is_none() {
            *slot = Some(UmrQp::create(self)?);
        }
        slot.as_ref().map_or(Ok(()), |qp| qp.execute(umr))
    }
}

/// Table size in 16-byte units for `words` MTT words, rounded as drivers do.
pub fn octwords(words: u64) -> u32 {
    (words.next_multiple_of(ALIGNED_WORDS) * 8 / OCTWORD_SIZE as u64) as u32
}

/// Pages that `len` bytes at `va` touch.
pub fn pages_of(va: u64, len: u64) -> u64 {
    (va % PAGE + len).div_ceil(PAGE)
}
