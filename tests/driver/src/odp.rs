// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On-demand paging: keys without pinned pages, page faults and their service (contract 9).

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mlx5_spec::cmd::Opcode;
use mlx5_spec::eq::{eqe_page_fault_rdma as rdma, eqe_page_fault_wqe as wqe, page_fault};
use mlx5_spec::mkey::{MTT_READ, MTT_WRITE};
use mlx5_spec::odp::{rdma_fault_type, resume_in};

use crate::command::Input;
use crate::driver::Driver;
use crate::eq::Eqe;
use crate::mkey::{Access, MkeySpec, Mr, UmrSpec, octwords, pages_of};
use crate::{Error, Result};

/// A page fault, decoded (contract 9.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFault {
    /// The list of a WQE cannot be gathered or scattered.
    Wqe {
        /// `spec::odp::wqe_fault_type`.
        kind: u32,
        /// QPN or SRQN.
        number: u32,
        /// Block counter or WQE index.
        index: u16,
        /// Bytes done.
        committed: u32,
        /// Token.
        token: u32,
    },
    /// An incoming RDMA operation.
    Rdma {
        /// Key.
        rkey: u32,
        /// First byte of the operation.
        va: u64,
        /// Bytes of the operation.
        len: u32,
        /// Bytes done.
        committed: u32,
        /// Whether memory is to be written.
        write: bool,
        /// Token.
        token: u32,
    },
}

impl PageFault {
    /// From an event.
    pub fn decode(event: &Eqe) -> Option<Self> {
        let b = &event.bytes;
        match event.sub_type() {
            page_fault::WQE => Some(Self::Wqe {
                kind: wqe::TYPE.get(b),
                number: wqe::WQ_NUMBER.get(b),
                index: wqe::WQE_INDEX.get(b) as u16,
                committed: wqe::BYTES_COMMITTED.get(b),
                token: wqe::TOKEN.get(b),
            }),
            page_fault::RDMA => Some(Self::Rdma {
                rkey: rdma::R_KEY.get(b),
                va: rdma::RDMA_VA.get(b),
                len: rdma::RDMA_OP_LEN.get(b),
                committed: rdma::BYTES_COMMITTED.get(b),
                write: rdma::TYPE.get(b) == rdma_fault_type::WRITE,
                token: rdma::TOKEN.get(b),
            }),
            _ => None,
        }
    }

    /// What the resume names.
    pub fn token(&self) -> u32 {
        match self {
            Self::Wqe { token, .. } | Self::Rdma { token, .. } => *token,
        }
    }
}

/// A key whose pages come and go. Page `n` covers what lies `n` pages after the page of `va`.
pub struct OdpMr {
    /// Key and range.
    pub mr: Mr,
    /// MTT words as the device should see them; a lock over the update, as the driver's is.
    words: Mutex<Vec<u64>>,
}

impl OdpMr {
    /// Registers `len` bytes at `va`; no page is mapped.
    pub fn register(driver: &Driver, pd: u32, va: u64, len: u64, access: Access) -> Result<Self> {
        driver.fault_eq()?;
        let count = pages_of(va, len);
        let words = vec![0; count as usize];
        let spec = MkeySpec::mtt(pd, access, va, len, words.clone());
        let empty = MkeySpec { free: true, octwords: Some(octwords(count)), list: Vec::new(), ..spec.clone() };
        let key = driver.create_mkey(&empty)?;
        driver.umr(&UmrSpec::enable(key, &spec))?;
        Ok(Self { mr: Mr { key, va, len }, words: Mutex::new(words) })
    }

    /// Pages.
    pub fn pages(&self) -> u64 {
        pages_of(self.mr.va, self.mr.len)
    }

    /// Maps page `first` and those after it to `pages`. When it returns the device uses them.
    pub fn map(&self, driver: &Driver, first: u64, pages: &[u64], writable: bool) -> Result<()> {
        let bits = if writable { MTT_READ | MTT_WRITE } else { MTT_READ };
        let words: Vec<u64> = pages.iter().map(|page| page | bits).collect();
        self.update(driver, first, &words)
    }

    /// Unmaps `count` pages. When it returns no access to them is in flight.
    pub fn zap(&self, driver: &Driver, first: u64, count: u64) -> Result<()> {
        self.update(driver, first, &vec![0; count as usize])
    }

    /// Replaces MTT words, in whole groups of eight as drivers do.
    pub fn update(&self, driver: &Driver, first: u64, new: &[u64]) -> Result<()> {
        let mut words = self.words.lock();
        let at = first as usize;
        words[at..at + new.len()].copy_from_slice(new);
        let begin = at / 8 * 8;
        let end = (at + new.len()).next_multiple_of(8).min(words.len());
        driver.umr(&UmrSpec::update(self.mr.key, begin as u64, words[begin..end].to_vec()))
    }
}

impl Driver {
    /// The next page fault, by interrupt.
    pub fn next_fault(&self, timeout: Duration) -> Result<PageFault> {
        let event = self.fault_eq()?.wait(timeout, "page fault")?;
        PageFault::decode(&event).ok_or_else(|| Error::Device(format!("{event:?} on the page-fault EQ")))
    }

    /// PAGE_FAULT_RESUME.
    pub fn resume(&self, fault: &PageFault, error: bool) -> Result<()> {
        let (kind, number, token) = match *fault {
            PageFault::Wqe { kind, number, token, .. } => (kind, number, token),
            PageFault::Rdma { write, token, .. } => {
                (if write { rdma_fault_type::WRITE } else { rdma_fault_type::READ }, token, token)
            }
        };
        let input = Input::new(Opcode::PAGE_FAULT_RESUME, resume_in::SIZE)
            .with(resume_in::ERROR, error.into())
            .with(resume_in::PAGE_FAULT_TYPE, kind)
            .with(resume_in::WQ_NUMBER, number)
            .with(resume_in::TOKEN, token);
        self.command(input).map(|_| ())
    }
}

/// A thread that answers page faults: `service` maps what it likes, and says whether it failed.
pub struct FaultService {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FaultService {
    /// Starts it.
    pub fn start(driver: &Arc<Driver>, service: impl Fn(&PageFault) -> bool + Send + 'static) -> Result<Self> {
        driver.fault_eq()?;
        let (stop, served) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (driver, stop, served) = (driver.clone(), stop.clone(), served.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok(fault) = driver.next_fault(Duration::from_millis(20)) else { continue };
                    let mapped = service(&fault);
                    served.fetch_add(1, Ordering::Relaxed);
                    if driver.resume(&fault, !mapped).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { stop, served, thread: Some(thread) })
    }

    /// Faults answered so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for FaultService {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
