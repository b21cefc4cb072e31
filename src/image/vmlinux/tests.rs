// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::io::Write;

use proptest::prelude::*;

use super::testing::{bzimage, elf};
use super::*;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend_from_slice(&(size as u32).to_le_bytes());
    packed
}

fn xz(data: &[u8]) -> Vec<u8> {
    with_size(liblzma::encode_all(data, 0).unwrap(), data.len())
}

fn zst(data: &[u8]) -> Vec<u8> {
    with_size(zstd::encode_all(data, 1).unwrap(), data.len())
}

#[test]
fn all_three_compressions_come_out_as_they_went_in() {
    let kernel = elf(10_000);
    for packed in [gzip(&kernel), xz(&kernel), zst(&kernel)] {
        assert_eq!(unpack(bzimage(&packed, "6.1.0 x")).unwrap(), kernel);
    }
    assert_eq!(unpack(kernel.clone()).unwrap(), kernel);
}

#[test]
fn other_formats_get_a_clear_error() {
    for (magic, name) in [
        (&b"BZh9...."[..], "bzip2"),
        (b"\x5d\0\0\0....", "lzma"),
        (b"\x89LZO....", "lzo"),
        (b"\x02\x21\x4c\x18....", "lz4"),
    ] {
        let error = unpack(bzimage(magic, "x")).unwrap_err().to_string();
        assert!(error.contains(&format!("compressed with {name}")) && error.contains("give the vmlinux"), "{error}");
    }
    assert!(matches!(unpack(bzimage(b"????????", "x")), Err(PayloadError::UnknownCompression)));
    assert!(matches!(unpack(b"PK\x03\x04".to_vec()), Err(PayloadError::Unknown)));
    assert!(matches!(unpack(bzimage(&gzip(b"no kernel"), "x")), Err(PayloadError::NotElf)));
    let mut old = bzimage(&gzip(&elf(0)), "x");
    old[VERSION..VERSION + 2].copy_from_slice(&0x207u16.to_le_bytes());
    assert!(unpack(old).unwrap_err().to_string().contains("2.07"));
}

#[test]
fn damage_is_noticed() {
    let kernel = elf(50_000);
    let mut wrong_size = xz(&kernel);
    let end = wrong_size.len();
    wrong_size[end - 4..].copy_from_slice(&7u32.to_le_bytes());
    assert!(matches!(unpack(bzimage(&wrong_size, "x")), Err(PayloadError::WrongSize { need: 7, .. })));
    let whole = bzimage(&xz(&kernel), "x");
    assert!(matches!(unpack(whole[..whole.len() - 60].to_vec()), Err(PayloadError::Truncated { .. })));
    let mut segment = elf(56);
    // One program header at 64 that says 4 KiB of file.
    segment[32..40].copy_from_slice(&64u64.to_le_bytes());
    segment[54] = 56;
    segment[56] = 1;
    segment[64 + 32..64 + 40].copy_from_slice(&4096u64.to_le_bytes());
    assert!(matches!(unpack(segment), Err(PayloadError::Truncated { need: 4096, .. })));
}

#[test]
fn a_bomb_is_bounded() {
    let zeroes = vec![0; 1 << 20];
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..(MAX_UNPACKED >> 20) + 1 {
        encoder.write_all(&zeroes).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    assert!(matches!(unpack(bzimage(&with_size(bomb, 1), "x")), Err(PayloadError::TooLarge)));
}

#[test]
fn releases_are_read_from_headers_and_banners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    std::fs::write(&path, bzimage(&gzip(&elf(0)), "6.12.3-x (me) #1")).unwrap();
    let found = inspect(&mut File::open(&path).unwrap()).unwrap();
    assert_eq!(found, KernelFile { kind: Kind::BzImage, release: Some("6.12.3-x".into()) });
    // The banner straddles the scan's pieces; a format string comes first.
    let mut kernel = elf((1 << 20) + 500);
    kernel[1000..1017].copy_from_slice(b"Linux version %s ");
    let at = (1 << 20) - 20;
    kernel[at..at + 25].copy_from_slice(b"Linux version 7.3.4-rnic ");
    std::fs::write(&path, &kernel).unwrap();
    assert_eq!(inspect(&mut File::open(&path).unwrap()).unwrap().kind, Kind::Vmlinux);
    assert_eq!(scan_release(&path).unwrap().as_deref(), Some("7.3.4-rnic"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn truncations_and_flips_never_panic(cut in 0usize..3000, at in 0usize..3000, flip in any::<u8>(), kind in 0..4) {
        let kernel = elf(2000);
        let mut bytes = match kind {
            0 => bzimage(&gzip(&kernel), "6.1 x"),
            1 => bzimage(&xz(&kernel), "6.1 x"),
            2 => bzimage(&zst(&kernel), "6.1 x"),
            _ => kernel,
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= flip;
        }
        bytes.truncate(cut);
        let _ = header_release(&bytes);
        if let Ok(elf) = unpack(bytes) {
            prop_assert!(elf.starts_with(ELF_MAGIC));
        }
    }
}
