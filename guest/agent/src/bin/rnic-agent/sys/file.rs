// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls on open files.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use rnic_agent::proto::{Extent, Fadvice, FallocMode};

use super::check;

/// Offsets are signed in the kernel.
pub fn offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// sync_file_range(2).
pub fn sync_file_range(file: &File, off: u64, len: u64, flags: u32) -> io::Result<()> {
    // SAFETY: an open descriptor and numbers.
    let ret = unsafe { libc::sync_file_range(file.as_raw_fd(), offset(off)?, offset(len)?, flags) };
    check(ret.into()).map(drop)
}

/// syncfs(2).
pub fn syncfs(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }.into()).map(drop)
}

/// fallocate(2).
pub fn fallocate(file: &File, mode: FallocMode, off: u64, len: u64) -> io::Result<()> {
    let mode = match mode {
        FallocMode::Allocate => 0,
        FallocMode::KeepSize => libc::FALLOC_FL_KEEP_SIZE,
        FallocMode::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        FallocMode::ZeroRange => libc::FALLOC_FL_ZERO_RANGE,
        FallocMode::CollapseRange => libc::FALLOC_FL_COLLAPSE_RANGE,
        FallocMode::InsertRange => libc::FALLOC_FL_INSERT_RANGE,
        FallocMode::UnshareRange => libc::FALLOC_FL_UNSHARE_RANGE,
    };
    // SAFETY: an open descriptor and numbers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset(off)?, offset(len)?) }.into()).map(drop)
}

/// posix_fadvise(2).
pub fn fadvise(file: &File, off: u64, len: u64, advice: Fadvice) -> io::Result<()> {
    let advice = match advice {
        Fadvice::Normal => libc::POSIX_FADV_NORMAL,
        Fadvice::Random => libc::POSIX_FADV_RANDOM,
        Fadvice::Sequential => libc::POSIX_FADV_SEQUENTIAL,
        Fadvice::Willneed => libc::POSIX_FADV_WILLNEED,
        Fadvice::Dontneed => libc::POSIX_FADV_DONTNEED,
    };
    // SAFETY: an open descriptor and numbers.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset(off)?, offset(len)?, advice) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// `_IOW(0x94, 9, int)`, linux/fs.h.
const FICLONE: libc::c_ulong = 0x4004_9409;

/// ioctl FICLONE.
pub fn ficlone(source: &File, target: &File) -> io::Result<()> {
    // SAFETY: two open descriptors; the argument is a number.
    check(unsafe { libc::ioctl(target.as_raw_fd(), FICLONE, source.as_raw_fd()) }.into()).map(drop)
}

/// `_IOW(0x94, 5, struct btrfs_ioctl_vol_args)`, linux/btrfs.h.
const BTRFS_IOC_FORGET_DEV: libc::c_ulong = 0x5000_9405;

/// ioctl BTRFS_IOC_FORGET_DEV of all devices that are not in use. Without btrfs there is nothing to forget.
pub fn btrfs_forget() -> io::Result<()> {
    let control = match File::options().read(true).write(true).open("/dev/btrfs-control") {
        Ok(control) => control,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // struct btrfs_ioctl_vol_args: no file descriptor, and no name, which stands for all.
    let arguments = [0_u8; 4096];
    // SAFETY: the kernel reads 4096 bytes.
    check(unsafe { libc::ioctl(control.as_raw_fd(), BTRFS_IOC_FORGET_DEV, arguments.as_ptr()) }.into()).map(drop)
}

/// `_IOWR('f', 11, struct fiemap)`, linux/fs.h.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// Extents asked for in one call, and at most reported.
pub const MAX_EXTENTS: usize = 512;

/// struct fiemap_extent, linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    len: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// struct fiemap, linux/fiemap.h, with room for the extents.
#[repr(C)]
struct RawFiemap {
    start: u64,
    len: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; MAX_EXTENTS],
}

/// FS_IOC_FIEMAP of the whole file.
pub fn fiemap(file: &File, sync: bool) -> io::Result<Vec<Extent>> {
    let mut map = Box::new(RawFiemap {
        start: 0,
        len: u64::MAX,
        flags: u32::from(sync),
        mapped: 0,
        count: MAX_EXTENTS as u32,
        reserved: 0,
        extents: [RawExtent::default(); MAX_EXTENTS],
    });
    // SAFETY: the kernel writes at most `count` extents behind the header, and there is room for as many.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) }.into())?;
    let extents = map.extents.iter().take(map.mapped as usize);
    Ok(extents.map(|e| Extent { logical: e.logical, physical: e.physical, len: e.len, flags: e.flags }).collect())
}

/// F_SEAL_WRITE of a memory file.
pub fn seal_write(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor and numbers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) }.into()).map(drop)
}

/// A memory file, used as a kernel-side bounce buffer.
pub fn memfd() -> io::Result<File> {
    // SAFETY: a C string and a number; the new descriptor is owned at once.
    unsafe {
        let fd = check(libc::memfd_create(c"rnic-agent".as_ptr(), libc::MFD_CLOEXEC).into())?;
        Ok(File::from_raw_fd(fd as i32))
    }
}
