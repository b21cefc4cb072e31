// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An AF_XDP socket in copy mode on the loopback interface (linux/if_xdp.h, linux/bpf.h): the kernel copies what arrives there into memory
//! of a mapping, which it has pinned for as long as the socket lives. No device has a part in it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use super::check;
use super::gup::owned;
use super::mapping::{Mapping, PAGE};
use super::shared::Shared;
use crate::serve::lock;

const SOL_XDP: i32 = 283;
const XDP_MMAP_OFFSETS: i32 = 1;
const XDP_RX_RING: i32 = 2;
const XDP_UMEM_REG: i32 = 4;
const XDP_UMEM_FILL_RING: i32 = 5;
const XDP_UMEM_COMPLETION_RING: i32 = 6;
const XDP_COPY: u16 = 2;
const XDP_UMEM_UNALIGNED_CHUNK_FLAG: u32 = 1;
const PGOFF_RX_RING: i64 = 0;
const PGOFF_FILL_RING: i64 = 0x1_0000_0000;
/// The kernel leaves as many bytes in front of a packet (XDP_PACKET_HEADROOM).
const HEADROOM: u64 = 256;
/// Longest packet: a chunk has a page, and the head room.
pub const LONGEST: u64 = PAGE - HEADROOM;
/// Entries of each ring.
const ENTRIES: u32 = 2;
/// A packet on the loopback interface that has not come by then does not come.
const LIMIT_MS: i32 = 5000;

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 2;

/// struct xdp_umem_reg.
#[repr(C)]
#[derive(Default)]
struct UmemReg {
    addr: u64,
    len: u64,
    chunk_size: u32,
    headroom: u32,
    flags: u32,
    tx_metadata_len: u32,
}

/// struct xdp_ring_offset.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Offsets {
    producer: u64,
    consumer: u64,
    desc: u64,
    flags: u64,
}

/// struct xdp_mmap_offsets.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AllOffsets {
    rx: Offsets,
    tx: Offsets,
    fill: Offsets,
    completion: Offsets,
}

/// struct sockaddr_xdp.
#[repr(C)]
struct Address {
    family: u16,
    flags: u16,
    ifindex: u32,
    queue: u32,
    shared_umem_fd: u32,
}

fn option<T>(socket: &OwnedFd, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: pointer and length of one value of plain numbers.
    let ret = unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), SOL_XDP, name, value, size_of::<T>() as libc::socklen_t)
    };
    check(ret.into()).map(drop)
}

/// An AF_XDP socket; its memory is pinned until it is closed.
pub struct Umem {
    mapping: Arc<Mapping>,
    off: u64,
    len: u64,
    socket: OwnedFd,
    /// What receiving wants; made when it is first asked for.
    port: Mutex<Option<Port>>,
}

impl Umem {
    /// XDP_UMEM_REG of `len` bytes of a mapping.
    pub fn new(mapping: Arc<Mapping>, off: u64, len: u64) -> io::Result<Self> {
        let addr = mapping.address(off, len)? as u64;
        // SAFETY: takes numbers.
        let socket = owned(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }.into())?;
        let (chunk_size, flags) = (PAGE as u32, XDP_UMEM_UNALIGNED_CHUNK_FLAG);
        // The range is reserved for the mapping, which is kept, and no Rust reference to it exists.
        option(&socket, XDP_UMEM_REG, &UmemReg { addr, len, chunk_size, flags, ..UmemReg::default() })?;
        Ok(Self { mapping, off, len, socket, port: Mutex::new(None) })
    }

    /// Sends `bytes` over the loopback interface, of which the kernel copies them to offset `off` of the mapping.
    pub fn receive(&self, off: u64, bytes: &[u8]) -> io::Result<()> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        self.mapping.address(off, PAGE)?;
        let at = off.checked_sub(self.off).and_then(|at| at.checked_sub(HEADROOM)).ok_or_else(invalid)?;
        if at + PAGE > self.len || bytes.len() as u64 > LONGEST || bytes.len() < 14 {
            return Err(invalid());
        }
        let mut port = lock(&self.port);
        if port.is_none() {
            *port = Some(Port::open(&self.socket)?);
        }
        port.as_ref().map_or(Ok(()), |port| port.receive(&self.socket, at, bytes))
    }
}

/// A bound socket, its rings, and the program that gives it what arrives.
struct Port {
    rx: Shared,
    fill: Shared,
    offsets: AllOffsets,
    _link: OwnedFd,
    sender: OwnedFd,
}

impl Port {
    fn open(socket: &OwnedFd) -> io::Result<Self> {
        for ring in [XDP_RX_RING, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING] {
            option(socket, ring, &ENTRIES)?;
        }
        let mut offsets = AllOffsets::default();
        let mut size = size_of::<AllOffsets>() as libc::socklen_t;
        // SAFETY: pointer and length of one value of plain numbers.
        let ret = unsafe {
            let value = (&raw mut offsets).cast();
            libc::getsockopt(socket.as_raw_fd(), SOL_XDP, XDP_MMAP_OFFSETS, value, &raw mut size)
        };
        check(ret.into())?;
        let end = |ring: Offsets, entry: u64| (ring.desc + u64::from(ENTRIES) * entry) as usize;
        let rx = Shared::map(socket, end(offsets.rx, 16), PGOFF_RX_RING)?;
        let fill = Shared::map(socket, end(offsets.fill, 8), PGOFF_FILL_RING)?;
        let ifindex = loopback()?;
        let family = libc::AF_XDP as u16;
        let address = Address { family, flags: XDP_COPY, ifindex, queue: 0, shared_umem_fd: 0 };
        bind(socket, &address)?;
        let link = program(socket, ifindex)?;
        // SAFETY: takes numbers.
        let sender = owned(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }.into())?;
        // SAFETY: sockaddr_ll is plain numbers, for which zero is a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = ifindex as i32;
        bind(&sender, &to)?;
        Ok(Self { rx, fill, offsets, _link: link, sender })
    }

    fn receive(&self, socket: &OwnedFd, at: u64, bytes: &[u8]) -> io::Result<()> {
        let word = |area: &Shared, at: u64| area.word(at as u32).map(|word| word.load(Ordering::Acquire));
        let filled = word(&self.fill, self.offsets.fill.producer)?;
        let slot = self.offsets.fill.desc + u64::from(filled % ENTRIES) * 8;
        // SAFETY: it lies inside the mapping; the kernel reads it once the producer has moved.
        unsafe { self.fill.at::<u64>(slot as usize)?.write_volatile(at) };
        self.fill.word(self.offsets.fill.producer as u32)?.fetch_add(1, Ordering::Release);
        let seen = word(&self.rx, self.offsets.rx.consumer)?;
        // SAFETY: pointer and length of one slice.
        let sent = unsafe { libc::send(self.sender.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        check(sent as i64)?;
        let mut ready = [super::process::readable(Some(socket))];
        super::process::poll(&mut ready, LIMIT_MS)?;
        if word(&self.rx, self.offsets.rx.producer)? == seen {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let desc = self.offsets.rx.desc + u64::from(seen % ENTRIES) * 16;
        // SAFETY: it lies inside the mapping; the kernel has written it before it moved the producer.
        let len = unsafe { self.rx.at::<u32>(desc as usize + 8)?.read_volatile() };
        self.rx.word(self.offsets.rx.consumer as u32)?.store(seen.wrapping_add(1), Ordering::Release);
        let whole = len as usize == bytes.len();
        if whole { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) }
    }
}

fn loopback() -> io::Result<u32> {
    // SAFETY: a C string.
    match unsafe { libc::if_nametoindex(c"lo".as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

fn bind<T>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: pointer and length of one address.
    let ret = unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), size) };
    check(ret.into()).map(drop)
}

/// bpf(2) with the attributes of `command`, of which each is a number at its place.
fn bpf(command: i32, words: &[(usize, u64, usize)]) -> io::Result<u64> {
    let mut attributes = [0u8; 128];
    for (at, value, bytes) in words {
        attributes[*at..at + bytes].copy_from_slice(&value.to_le_bytes()[..*bytes]);
    }
    // SAFETY: pointer and length of one array; the addresses in it are of values that live through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), attributes.len()) })
}

/// One instruction: opcode, registers (source and destination), immediate.
fn insn(opcode: u8, registers: u8, imm: u32) -> u64 {
    u64::from(opcode) | u64::from(registers) << 8 | u64::from(imm) << 32
}

/// Gives everything that arrives on queue 0 of the interface to the socket; the link that says so.
fn program(socket: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    let map =
        owned(bpf(BPF_MAP_CREATE, &[(0, BPF_MAP_TYPE_XSKMAP.into(), 4), (4, 4, 4), (8, 4, 4), (12, 1, 4)])? as i64)?;
    let fd = |fd: &OwnedFd| fd.as_raw_fd() as u32;
    let (key, value) = (0u32, fd(socket));
    let address = |of: &u32| std::ptr::from_ref(of) as u64;
    bpf(BPF_MAP_UPDATE_ELEM, &[(0, fd(&map).into(), 4), (8, address(&key), 8), (16, address(&value), 8)])?;
    // r1 = the map; r2 = 0, its entry; r3 = XDP_PASS, where there is none; return bpf_redirect_map(r1, r2, r3).
    let text = [insn(0x18, 0x11, fd(&map)), 0, insn(0xb7, 2, 0), insn(0xb7, 3, 2), insn(0x85, 0, 51), insn(0x95, 0, 0)];
    let license = c"Dual BSD/GPL";
    let load = [
        (0, BPF_PROG_TYPE_XDP.into(), 4),
        (4, text.len() as u64, 4),
        (8, text.as_ptr() as u64, 8),
        (16, license.as_ptr() as u64, 8),
    ];
    let program = owned(bpf(BPF_PROG_LOAD, &load)? as i64)?;
    let flags = XDP_FLAGS_SKB_MODE.into();
    let link = [(0, fd(&program).into(), 4), (4, ifindex.into(), 4), (8, BPF_XDP.into(), 4), (12, flags, 4)];
    owned(bpf(BPF_LINK_CREATE, &link)? as i64)
}
