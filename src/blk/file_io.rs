// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls of the disk file: scatter-gather between guest pages and the file without a bounce buffer, holes, the
//! lock. The only `unsafe` of the block device.
#![allow(unsafe_code, reason = "preadv and pwritev move data between guest pages and a file without a copy")]

use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use dma::{Direction, Permit, Span};

/// Guest memory: address and length in bytes.
pub(super) type Segment = (u64, u64);

/// Buffers a call, IOV_MAX on Linux.
const IOV_MAX: usize = 1024;
/// Unit of copying and zeroing.
pub(super) const CHUNK: usize = 256 << 10;

/// Fills the guest's segments from the file at `offset` (bytes). The end of the file is an error.
pub(super) fn read_to_guest(file: &File, door: Permit<'_>, segments: &[Segment], offset: u64) -> io::Result<()> {
    // SAFETY: `transfer` passes an array of `count` buffers from the door: mapped guest memory that outlives the call.
    let call = |iov, count, at| unsafe { libc::preadv(file.as_raw_fd(), iov, count, at) };
    transfer((door, Direction::ToGuest), segments, offset, call)
}

/// Writes the guest's segments to the file at `offset` (bytes).
pub(super) fn write_from_guest(file: &File, door: Permit<'_>, segments: &[Segment], offset: u64) -> io::Result<()> {
    // SAFETY: as above; the kernel only reads the buffers.
    let call = |iov, count, at| unsafe { libc::pwritev(file.as_raw_fd(), iov, count, at) };
    transfer((door, Direction::FromGuest), segments, offset, call)
}

/// Calls `call` until all segments are done. The guest may change the memory meanwhile: as with real DMA, what counts is
/// what the copy saw.
fn transfer(
    (door, direction): (Permit<'_>, Direction),
    segments: &[Segment],
    offset: u64,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    let mut at = i64::try_from(offset).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    let spans = segments.iter().map(|&(addr, len)| Span { addr, len });
    let done = door.vectored(direction, spans, |buffers| {
        let mut first = 0;
        while first < buffers.len() {
            let batch = &buffers[first..buffers.len().min(first + IOV_MAX)];
            // IOV_MAX fits a c_int.
            let moved = match usize::try_from(call(batch.as_ptr(), batch.len() as libc::c_int, at)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(moved) => moved,
                Err(_) if Error::last_os_error().kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(Error::last_os_error()),
            };
            at = at.checked_add(moved as i64).ok_or(ErrorKind::InvalidInput)?;
            first += advance(&mut buffers[first..], moved);
        }
        Ok(())
    });
    done.map_err(Error::other)?
}

/// Takes `moved` bytes off the front; how many buffers are done.
fn advance(buffers: &mut [libc::iovec], mut moved: usize) -> usize {
    let mut done = 0;
    for buffer in buffers {
        if moved < buffer.iov_len {
            buffer.iov_base = buffer.iov_base.wrapping_byte_add(moved);
            buffer.iov_len -= moved;
            break;
        }
        moved -= buffer.iov_len;
        done += 1;
    }
    done
}

/// How a range is made to read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    /// Gives the blocks back.
    Punch,
    /// Keeps them.
    Keep,
}

/// Makes `range` (bytes) read as zeroes; where the file system cannot, writes them.
pub(super) fn zero(file: &File, range: Range<u64>, how: Zero) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mode = match how {
        Zero::Punch => libc::FALLOC_FL_PUNCH_HOLE,
        Zero::Keep => libc::FALLOC_FL_ZERO_RANGE,
    } | libc::FALLOC_FL_KEEP_SIZE;
    let start = i64::try_from(range.start).map_err(Error::other)?;
    let len = i64::try_from(range.end - range.start).map_err(Error::other)?;
    loop {
        // SAFETY: takes no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, start, len) } == 0 {
            return Ok(());
        }
        let error = Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV) => break,
            _ => return Err(error),
        }
    }
    let zeroes = vec![0; CHUNK];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(CHUNK as u64);
        file.write_all_at(&zeroes[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

/// The first stretch of data (not hole) of the file in `range`. A file that does not know its holes is all data.
pub(super) fn next_data(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let Some(start) = seek(file, range.start, libc::SEEK_DATA)? else { return Ok(None) };
    if start >= range.end {
        return Ok(None);
    }
    let end = seek(file, start, libc::SEEK_HOLE)?.unwrap_or(range.end);
    Ok(Some(start..end.clamp(start, range.end)).filter(|found| !found.is_empty()))
}

/// `None`: nothing of that kind from here to the end (ENXIO).
fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(Error::other)?;
    // SAFETY: takes no pointers. The file position that it moves is used by nobody.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    let error = Error::last_os_error();
    match (error.raw_os_error(), whence) {
        (Some(libc::ENXIO), _) => Ok(None),
        // Block devices know no holes.
        (Some(libc::EINVAL | libc::EOPNOTSUPP), libc::SEEK_DATA) => Ok(Some(at as u64)),
        (Some(libc::EINVAL | libc::EOPNOTSUPP), _) => Ok(None),
        _ => Err(error),
    }
}

/// Takes the advisory lock of the file, shared or exclusive, for as long as it is open. False: somebody else has it.
pub(super) fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    loop {
        // SAFETY: takes no pointers.
        if unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) => return Ok(false),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use dma::{BusMaster, DmaTarget, GuestRam};
    use vm_memory::GuestAddress;

    #[test]
    fn many_segments_across_regions_and_short_files() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x40_0000), (GuestAddress(0x40_0000), 0x10_0000)]).unwrap();
        let master = Arc::new(BusMaster::default());
        master.set(true);
        let dma = DmaTarget::new(8, Arc::new(ram), master);
        let door = dma.permit().unwrap();
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..3000_u32 * 512).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        // More segments than one call takes, backwards, one of them over the seam between two regions.
        let mut segments: Vec<Segment> = (0..2990).rev().map(|n| (n * 0x400, 512)).collect();
        segments.push((0x40_0000 - 100, 512 * 9 + 1));
        read_to_guest(&file, door, &segments, 511).unwrap();
        let copy = tempfile::tempfile().unwrap();
        write_from_guest(&copy, door, &segments, 511).unwrap();
        let mut back = vec![0; 2999 * 512 + 1];
        copy.read_exact_at(&mut back, 511).unwrap();
        assert!(back == content[511..511 + back.len()]);
        let mut one = [0; 512];
        dma.read(2989 * 0x400, &mut one).unwrap();
        assert_eq!(one[..], content[511..1023]);
        let past_end = read_to_guest(&file, door, &[(0, 1024)], 3000 * 512 - 512);
        assert_eq!(past_end.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(read_to_guest(&file, door, &[(0x50_0000 - 1, 2)], 0).is_err());
        assert!(read_to_guest(&file, door, &[(u64::MAX, 2)], 0).is_err());
    }

    #[test]
    fn what_a_call_moved_comes_off_the_front() {
        let buffer = |base: usize, len| libc::iovec { iov_base: std::ptr::without_provenance_mut(base), iov_len: len };
        for (moved, done, wanted) in [
            (0, 0, [(0x1000, 4), (0x2000, 4)]),
            (3, 0, [(0x1003, 1), (0x2000, 4)]),
            (4, 1, [(0x1000, 4), (0x2000, 4)]),
            (6, 1, [(0x1000, 4), (0x2002, 2)]),
            (8, 2, [(0x1000, 4), (0x2000, 4)]),
        ] {
            let mut buffers = [buffer(0x1000, 4), buffer(0x2000, 4)];
            assert_eq!(advance(&mut buffers, moved), done);
            assert_eq!(buffers.map(|buffer| (buffer.iov_base.addr(), buffer.iov_len)), wanted, "{moved} moved");
        }
    }

    #[test]
    fn zeroes_by_hole_and_by_keeping() {
        for how in [Zero::Punch, Zero::Keep] {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[7; 0x30000], 0).unwrap();
            zero(&file, 0x1000..0x20200, how).unwrap();
            let mut all = vec![0; 0x30000];
            file.read_exact_at(&mut all, 0).unwrap();
            assert!(all[0x1000..0x20200].iter().all(|b| *b == 0));
            assert_eq!((all[0xfff], all[0x20200]), (7, 7));
        }
    }

    #[test]
    fn finds_data_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 4096], 0x40000).unwrap();
        let found = next_data(&file, 0..1 << 20).unwrap().unwrap();
        assert!(found.contains(&0x40000) && found.contains(&0x40fff));
        assert_eq!(next_data(&file, found.end..1 << 20).unwrap(), None);
        assert_eq!(next_data(&file, 0x40800..0x40900).unwrap(), Some(0x40800..0x40900));
        assert_eq!(next_data(&file, 5..5).unwrap(), None);
    }
}
