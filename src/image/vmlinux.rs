// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel files: an ELF vmlinux, or a bzImage whose payload is one (Documentation/arch/x86/boot.rst).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use thiserror::Error;

/// Most bytes that a kernel or module may have when unpacked.
pub const MAX_UNPACKED: u64 = 512 << 20;
/// Memory that the xz decoder may use for its dictionary.
const XZ_MEMORY: u64 = 512 << 20;

/// Offsets in the setup header of a bzImage.
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const HEADER_END: usize = 0x250;
/// First boot protocol with a payload offset.
const MIN_PROTOCOL: u16 = 0x208;

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// 64-bit, little-endian.
const ELF_IDENT: &[u8] = b"\x7fELF\x02\x01";
const ELF_HEADER: usize = 64;

/// A kernel file cannot be used.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// Neither ELF nor bzImage.
    #[error("it is neither an ELF vmlinux nor a bzImage")]
    Unknown,
    /// Not for x86-64.
    #[error("it is an ELF file, but not a 64-bit x86 one")]
    NotX86,
    /// An old bzImage.
    #[error("its boot protocol {}.{:02} is older than 2.08: give the vmlinux instead", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// The file ends before its payload does.
    #[error("it is truncated: it has {have} bytes and should have at least {need}")]
    Truncated {
        /// Bytes there.
        have: u64,
        /// Bytes that the header promises.
        need: u64,
    },
    /// A compression that is known but not unpacked here.
    #[error("its payload is compressed with {0}: rnic unpacks xz, zstd and gzip; give the vmlinux instead")]
    Compression(&'static str),
    /// No known compression.
    #[error("its payload is not compressed in any known way")]
    UnknownCompression,
    /// The decoder failed.
    #[error("its {format} data are damaged: {source}")]
    Damaged {
        /// "xz", "zstd", "gzip".
        format: &'static str,
        /// Why.
        source: io::Error,
    },
    /// More than [`MAX_UNPACKED`].
    #[error("it unpacks to more than 512 MiB")]
    TooLarge,
    /// The payload's own size field says something else.
    #[error("it unpacks to {have} bytes where its header says {need}: it is damaged")]
    WrongSize {
        /// Bytes that came out.
        have: u64,
        /// Bytes announced.
        need: u64,
    },
    /// The payload is no ELF file.
    #[error("its payload is not an ELF kernel")]
    NotElf,
    /// Reading failed.
    #[error(transparent)]
    Read(io::Error),
}

/// Kinds of kernel files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ELF.
    Vmlinux,
    /// bzImage.
    BzImage,
}

/// What the beginning of a kernel file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFile {
    /// Its kind.
    pub kind: Kind,
    /// `uname -r`, where the header has it (bzImage).
    pub release: Option<String>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// Where the payload of a bzImage is: (first byte, length).
fn payload_range(head: &[u8], have: u64) -> Result<(u64, u64), PayloadError> {
    let magic = u16_at(head, BOOT_FLAG) == Some(0xaa55) && head.get(HEADER..HEADER + 4) == Some(b"HdrS");
    if !magic {
        return Err(PayloadError::Unknown);
    }
    let protocol = u16_at(head, VERSION).unwrap_or(0);
    if protocol < MIN_PROTOCOL {
        return Err(PayloadError::OldProtocol(protocol));
    }
    let truncated = |need| PayloadError::Truncated { have, need };
    let fields = (u32_at(head, PAYLOAD_OFFSET), u32_at(head, PAYLOAD_LENGTH));
    let (Some(offset), Some(len)) = fields else { return Err(truncated(HEADER_END as u64)) };
    // 0 stands for 4 (boot.rst).
    let sectors = match head.get(SETUP_SECTS) {
        Some(0) | None => 4,
        Some(n) => u64::from(*n),
    };
    let start = (sectors + 1) * 512 + u64::from(offset);
    let end = start + u64::from(len);
    if end > have { Err(truncated(end)) } else { Ok((start, len.into())) }
}

/// Checks that an ELF file is for x86-64 and has all its segments.
fn check_elf(head: &[u8], have: u64) -> Result<(), PayloadError> {
    const EM_X86_64: u16 = 62;
    if head.len() < ELF_HEADER {
        return Err(PayloadError::Truncated { have, need: ELF_HEADER as u64 });
    }
    if !head.starts_with(ELF_IDENT) || u16_at(head, 18) != Some(EM_X86_64) {
        return Err(PayloadError::NotX86);
    }
    let (table, entry, count) = (u64_at(head, 32), u16_at(head, 54), u16_at(head, 56));
    let (Some(table), Some(entry), Some(count)) = (table, entry, count) else { return Err(PayloadError::NotX86) };
    let mut need = table.saturating_add(u64::from(entry) * u64::from(count));
    for index in 0..u64::from(count) {
        // Program headers follow the ELF header in every kernel; those elsewhere are left to the loader.
        let at = usize::try_from(table.saturating_add(index * u64::from(entry))).unwrap_or(usize::MAX);
        let segment = (u64_at(head, at.saturating_add(8)), u64_at(head, at.saturating_add(32)));
        if let (Some(offset), Some(size)) = segment {
            need = need.max(offset.saturating_add(size));
        }
    }
    if need > have { Err(PayloadError::Truncated { have, need }) } else { Ok(()) }
}

/// Tells a kernel file's kind from its first page and checks that it is whole. Does not unpack anything.
pub fn inspect(file: &mut File) -> Result<KernelFile, PayloadError> {
    let have = file.seek(SeekFrom::End(0)).map_err(PayloadError::Read)?;
    file.seek(SeekFrom::Start(0)).map_err(PayloadError::Read)?;
    let mut head = Vec::new();
    // The version string lies in the real-mode part, 64 KiB at most.
    file.take(64 * 1024 + 512).read_to_end(&mut head).map_err(PayloadError::Read)?;
    if head.starts_with(ELF_MAGIC) {
        check_elf(&head, have)?;
        return Ok(KernelFile { kind: Kind::Vmlinux, release: None });
    }
    payload_range(&head, have)?;
    Ok(KernelFile { kind: Kind::BzImage, release: header_release(&head) })
}

/// First word of the version string that `kernel_version` (less 0x200) points to.
fn header_release(head: &[u8]) -> Option<String> {
    let at = usize::from(u16_at(head, KERNEL_VERSION).filter(|at| *at != 0)?) + 0x200;
    release_word(head.get(at..)?)
}

/// Printable bytes up to a space or NUL; None when there are none or too many.
fn release_word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(128).position(|b| matches!(b, b' ' | 0 | b'\n'))?;
    let word = std::str::from_utf8(&bytes[..end]).ok()?;
    (!word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && b != b'/')).then(|| word.to_owned())
}

/// Looks for "Linux version RELEASE " in an ELF kernel. Reads the whole file in pieces, in the worst case.
pub fn scan_release(path: &Path) -> io::Result<Option<String>> {
    const BANNER: &[u8] = b"Linux version ";
    const OVERLAP: usize = 256;
    let file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let n = file.read_at(&mut buffer, at)?;
        let window = &buffer[..n];
        let starts = window.windows(BANNER.len()).enumerate().filter(|(_, piece)| *piece == BANNER);
        let found = starts.filter_map(|(start, _)| release_word(&window[start + BANNER.len()..]));
        // A format string has "%s" in this place.
        if let Some(release) = found.into_iter().find(|word| word.starts_with(|c: char| c.is_ascii_digit())) {
            return Ok(Some(release));
        }
        if n <= OVERLAP || at > MAX_UNPACKED {
            return Ok(None);
        }
        at += (n - OVERLAP) as u64;
    }
}

/// (magic, format)
const MAGICS: [(&[u8], &str); 7] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\x5d\0\0", "lzma"),
    (b"\x89LZO", "lzo"),
    (b"\x02\x21\x4c\x18", "lz4"),
];

/// Name of the compression by its magic number.
fn format_of(data: &[u8]) -> Option<&'static str> {
    MAGICS.iter().find(|(magic, _)| data.starts_with(magic)).map(|(_, name)| *name)
}

/// Decompresses xz, zstd or gzip data, told apart by their magic numbers; bytes after the end of the stream are ignored.
/// `expected` is a size to reserve.
pub fn decompress(data: &[u8], expected: u64) -> Result<Vec<u8>, PayloadError> {
    let format = format_of(data).ok_or(PayloadError::UnknownCompression)?;
    let damaged = |source| PayloadError::Damaged { format, source };
    let decoder: Box<dyn Read + '_> = match format {
        "xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0);
            let stream = stream.map_err(|error| damaged(io::Error::other(error)))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(data, stream))
        }
        "zstd" => Box::new(zstd::stream::read::Decoder::with_buffer(data).map_err(damaged)?.single_frame()),
        "gzip" => Box::new(flate2::bufread::GzDecoder::new(data)),
        other => return Err(PayloadError::Compression(other)),
    };
    let mut out = Vec::with_capacity(expected.min(MAX_UNPACKED) as usize);
    decoder.take(MAX_UNPACKED + 1).read_to_end(&mut out).map_err(damaged)?;
    if out.len() as u64 > MAX_UNPACKED { Err(PayloadError::TooLarge) } else { Ok(out) }
}

/// Reads a kernel file: an ELF vmlinux as it is, a bzImage unpacked.
///
/// # Errors
/// One sentence: the file cannot be read, or what it holds is no kernel that we can start.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    unpack(bytes).map_err(|error| error.to_string())
}

/// Makes an ELF vmlinux of a kernel file: ELF passes through, a bzImage's payload is unpacked.
pub fn unpack(bytes: Vec<u8>) -> Result<Vec<u8>, PayloadError> {
    let have = bytes.len() as u64;
    if bytes.starts_with(ELF_MAGIC) {
        check_elf(&bytes, have)?;
        return Ok(bytes);
    }
    let (start, len) = payload_range(&bytes, have)?;
    let payload = usize::try_from(start).ok().zip(usize::try_from(start + len).ok());
    let payload = payload.and_then(|(start, end)| bytes.get(start..end)).unwrap_or_default();
    let tail = payload.last_chunk().copied().map_or(0, u32::from_le_bytes);
    // The build appends the unpacked size to what does not carry it; gzip ends with the same number by itself.
    let sized = format_of(payload).is_some();
    let elf = decompress(payload, if sized { tail.into() } else { 0 })?;
    if elf.len() as u64 != u64::from(tail) {
        return Err(PayloadError::WrongSize { have: elf.len() as u64, need: tail.into() });
    }
    if !elf.starts_with(ELF_MAGIC) {
        return Err(PayloadError::NotElf);
    }
    check_elf(&elf, elf.len() as u64)?;
    Ok(elf)
}

/// Kernel files for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The least ELF header that passes, with `extra` bytes behind it.
    pub fn elf(extra: usize) -> Vec<u8> {
        let mut bytes = vec![0; ELF_HEADER + extra];
        bytes[..6].copy_from_slice(ELF_IDENT);
        bytes[18] = 62;
        bytes
    }

    /// A bzImage around `payload`.
    pub fn bzimage(payload: &[u8], version: &str) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[SETUP_SECTS] = 1;
        bytes[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        bytes[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        bytes[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        bytes[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100u16.to_le_bytes());
        bytes[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
        bytes[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        bytes[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&[0x90; 16]);
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&[0x90; 32]);
        bytes
    }
}

#[cfg(test)]
mod tests;
