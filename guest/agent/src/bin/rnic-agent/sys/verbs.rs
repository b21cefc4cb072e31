// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! libibverbs, through the shim of `shim/verbs.h`. Each object keeps alive what it was made from.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use rnic_agent::proto::{NicInfo, Wc, WrKind};

use super::mapping::Mapping;
use crate::serve::lock;

/// Completions taken at a time.
const POLL_BATCH: usize = 16;
/// Deepest queue offered.
pub const MAX_DEPTH: u32 = 1024;

#[repr(C)]
struct RvNic {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RvQp {
    _opaque: [u8; 0],
}

#[repr(C)]
struct IbvMr {
    _opaque: [u8; 0],
}

#[repr(C)]
struct RvInfo {
    name: [c_char; 64],
    fw: [c_char; 64],
    port_state: u8,
    link_layer: u8,
    lid: u16,
    vendor_id: u32,
    vendor_part_id: u32,
    odp_general: u64,
    odp_rc: u32,
    max_qp: i32,
    max_qp_rd_atom: i32,
}

/// A work request with addresses and keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RawWr {
    /// Comes back in the completion.
    pub id: u64,
    /// Local address.
    pub addr: u64,
    /// Remote address.
    pub remote_addr: u64,
    /// Atomics.
    pub compare_add: u64,
    /// Compare and swap.
    pub swap: u64,
    /// Bytes.
    pub len: u32,
    /// Local key.
    pub lkey: u32,
    /// Remote key.
    pub rkey: u32,
    /// Immediate data.
    pub imm: u32,
    /// See [`op_number`].
    pub op: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RvWc {
    id: u64,
    status: *const c_char,
    code: u32,
    vendor_err: u32,
    opcode: u32,
    len: u32,
    imm: u32,
    qpn: u32,
}

// Functions of shim/verbs.c; all but those without a result return 0 or an errno.
unsafe extern "C" {
    fn rv_open(name: *const c_char, out: *mut *mut RvNic) -> c_int;
    fn rv_close(nic: *mut RvNic) -> c_int;
    fn rv_info(nic: *const RvNic, out: *mut RvInfo);
    fn rv_reg(nic: *mut RvNic, addr: u64, len: u64, access: u32, out: *mut *mut IbvMr) -> c_int;
    fn rv_dereg(mr: *mut IbvMr) -> c_int;
    fn rv_rereg(mr: *mut IbvMr, access: u32) -> c_int;
    fn rv_keys(mr: *const IbvMr, lkey: *mut u32, rkey: *mut u32);
    fn rv_qp_open(nic: *mut RvNic, depth: u32, out: *mut *mut RvQp) -> c_int;
    fn rv_qpn(qp: *const RvQp) -> u32;
    fn rv_connect(qp: *mut RvQp, qpn: u32) -> c_int;
    fn rv_qp_close(qp: *mut RvQp) -> c_int;
    fn rv_qp_state(qp: *mut RvQp, state: *mut u32) -> c_int;
    fn rv_post(qp: *mut RvQp, wr: *const RawWr) -> c_int;
    fn rv_poll(qp: *mut RvQp, out: *mut RvWc, max: u32, n: *mut u32) -> c_int;
}

/// The shim's number of a kind of work request.
pub fn op_number(kind: WrKind) -> u32 {
    match kind {
        WrKind::Write => 0,
        WrKind::WriteImm => 1,
        WrKind::Read => 2,
        WrKind::Send => 3,
        WrKind::FetchAdd => 4,
        WrKind::CmpSwap => 5,
        WrKind::Recv => 6,
    }
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

fn made<T>(code: c_int, pointer: *mut T) -> io::Result<NonNull<T>> {
    check(code)?;
    NonNull::new(pointer).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
}

fn text(field: &[c_char]) -> String {
    field.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect()
}

/// An open device and its protection domain.
#[derive(Debug)]
pub struct Nic(NonNull<RvNic>);

// SAFETY: libibverbs allows any thread to use any object; the shim keeps no state beside them.
unsafe impl Send for Nic {}
// SAFETY: as above.
unsafe impl Sync for Nic {}

impl Nic {
    /// Opens the device `name`, or the first.
    pub fn open(name: Option<&str>) -> io::Result<Self> {
        let name = name.map(|name| CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL)));
        let name = name.transpose()?;
        let mut nic = std::ptr::null_mut();
        // SAFETY: a C string that lives through the call, or NULL; the result goes to a pointer of ours.
        let code = unsafe { rv_open(name.as_ref().map_or(std::ptr::null(), |name| name.as_ptr()), &raw mut nic) };
        made(code, nic).map(Self)
    }

    /// What it says about itself.
    pub fn info(&self) -> NicInfo {
        // SAFETY: plain numbers and bytes, for which zero is a value; the shim fills it.
        let mut info: RvInfo = unsafe { std::mem::zeroed() };
        // SAFETY: an open device, and a structure of ours with the shim's layout.
        unsafe { rv_info(self.0.as_ptr(), &raw mut info) };
        NicInfo {
            name: text(&info.name),
            fw: text(&info.fw),
            id: (info.vendor_id, info.vendor_part_id),
            state: info.port_state,
            link: info.link_layer,
            lid: info.lid,
            odp: info.odp_general,
            odp_rc: info.odp_rc,
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        // SAFETY: nothing made from it is left: all of it holds a reference.
        unsafe { rv_close(self.0.as_ptr()) };
    }
}

/// A memory region. The mapping's address range stays reserved while it lives.
#[derive(Debug)]
pub struct Mr {
    /// `None` when it has been deregistered.
    mr: Mutex<Option<NonNull<IbvMr>>>,
    /// Address of its first byte.
    pub addr: u64,
    /// Local key.
    pub lkey: u32,
    /// Remote key.
    pub rkey: u32,
    _mapping: Arc<Mapping>,
    _nic: Arc<Nic>,
}

// SAFETY: see `Nic`.
unsafe impl Send for Mr {}
// SAFETY: see `Nic`; the pointer is behind a lock.
unsafe impl Sync for Mr {}

impl Mr {
    /// ibv_reg_mr(3).
    pub fn new(nic: Arc<Nic>, mapping: Arc<Mapping>, off: u64, len: u64, access: u32) -> io::Result<Self> {
        let addr = mapping.address(off, len)? as u64;
        let mut mr = std::ptr::null_mut();
        // SAFETY: an open device, and a range of a mapping without Rust references, reserved while the region lives.
        let mr = made(unsafe { rv_reg(nic.0.as_ptr(), addr, len, access, &raw mut mr) }, mr)?;
        let (mut lkey, mut rkey) = (0, 0);
        // SAFETY: a live region, and two numbers of ours.
        unsafe { rv_keys(mr.as_ptr(), &raw mut lkey, &raw mut rkey) };
        Ok(Self { mr: Mutex::new(Some(mr)), addr, lkey, rkey, _mapping: mapping, _nic: nic })
    }

    /// ibv_rereg_mr(3) with other rights.
    pub fn reregister(&self, access: u32) -> io::Result<()> {
        let mr = lock(&self.mr);
        let live = mr.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a live region, which stays one whatever comes of it.
        check(unsafe { rv_rereg(live.as_ptr(), access) })
    }

    /// ibv_dereg_mr(3), once.
    pub fn deregister(&self) -> io::Result<()> {
        let mut mr = lock(&self.mr);
        let live = mr.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a live region, which is forgotten when the call has succeeded.
        check(unsafe { rv_dereg(live.as_ptr()) })?;
        *mr = None;
        Ok(())
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // An error leaves the region to the end of the process.
        let _ = self.deregister();
    }
}

/// An RC queue pair with its CQ.
#[derive(Debug)]
pub struct Qp {
    /// Posting and polling are serialised, so that a batch's completions are its own.
    qp: Mutex<NonNull<RvQp>>,
    /// Its number.
    pub qpn: u32,
    _nic: Arc<Nic>,
}

// SAFETY: see `Nic`.
unsafe impl Send for Qp {}
// SAFETY: see `Nic`; the pointer is behind a lock.
unsafe impl Sync for Qp {}

impl Qp {
    /// A new QP in INIT.
    pub fn new(nic: Arc<Nic>, depth: u32) -> io::Result<Self> {
        if depth == 0 || depth > MAX_DEPTH {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut qp = std::ptr::null_mut();
        // SAFETY: an open device; the result goes to a pointer of ours.
        let qp = made(unsafe { rv_qp_open(nic.0.as_ptr(), depth, &raw mut qp) }, qp)?;
        // SAFETY: a live QP.
        let qpn = unsafe { rv_qpn(qp.as_ptr()) };
        Ok(Self { qp: Mutex::new(qp), qpn, _nic: nic })
    }

    /// To RTS, connected to the QP `qpn` of the same port.
    pub fn connect(&self, qpn: u32) -> io::Result<()> {
        // SAFETY: a live QP.
        check(unsafe { rv_connect(lock(&self.qp).as_ptr(), qpn) })
    }

    /// enum ibv_qp_state.
    pub fn state(&self) -> io::Result<u32> {
        let mut state = 0;
        // SAFETY: a live QP and a number of ours.
        check(unsafe { rv_qp_state(lock(&self.qp).as_ptr(), &raw mut state) })?;
        Ok(state)
    }

    /// Posts one work request.
    pub fn post(&self, wr: &RawWr) -> io::Result<()> {
        // SAFETY: a live QP, and a request with the shim's layout; the device checks addresses against keys.
        check(unsafe { rv_post(lock(&self.qp).as_ptr(), std::ptr::from_ref(wr)) })
    }

    /// Takes completions that are there, at most `max` of them.
    pub fn poll(&self, max: usize) -> io::Result<Vec<Wc>> {
        let empty = RvWc { id: 0, status: std::ptr::null(), code: 0, vendor_err: 0, opcode: 0, len: 0, imm: 0, qpn: 0 };
        let mut batch = [empty; POLL_BATCH];
        let mut n = 0;
        let max = max.min(POLL_BATCH) as u32;
        // SAFETY: a live QP, and an array of at least `max` completions.
        check(unsafe { rv_poll(lock(&self.qp).as_ptr(), batch.as_mut_ptr(), max, &raw mut n) })?;
        Ok(batch.iter().take(n as usize).map(completion).collect())
    }
}

fn completion(wc: &RvWc) -> Wc {
    let status = if wc.code == 0 || wc.status.is_null() {
        String::new()
    } else {
        // SAFETY: a string constant of libibverbs.
        unsafe { CStr::from_ptr(wc.status) }.to_string_lossy().into_owned()
    };
    Wc { code: wc.code, status, vendor_err: wc.vendor_err, opcode: wc.opcode, len: wc.len, qpn: wc.qpn }
}

impl Drop for Qp {
    fn drop(&mut self) {
        // SAFETY: nobody else knows it any more.
        unsafe { rv_qp_close(lock(&self.qp).as_ptr()) };
    }
}
