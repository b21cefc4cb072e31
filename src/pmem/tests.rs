// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that are media and files that are none; addresses and images.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;

fn config(path: Option<PathBuf>, size: Option<u64>) -> PmemConfig {
    PmemConfig { path, size }
}

#[test]
fn opening_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, size: u64| {
        let path = dir.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        Some(path)
    };
    let refused = |path: Option<PathBuf>, size, words: &[&str]| {
        let error = Medium::open(&config(path, size)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(error.contains(';'), "no remedy: {error}");
    };
    refused(None, None, &["size=256M"]);
    refused(None, Some(0), &["multiple of 2 MiB", "2097152"]);
    refused(None, Some(UNIT + 1), &["multiple of 2 MiB", "4194304"]);
    refused(None, Some(MAX_SIZE + UNIT), &["64 GiB"]);
    refused(Some(dir.path().join("absent")), None, &["absent", "does not exist", "size="]);
    refused(Some(dir.path().into()), None, &["regular file"]);
    refused(Some(dir.path().join("no/folder")), Some(UNIT), &["cannot be opened"]);
    refused(Some("/dev/null".into()), Some(UNIT), &["/dev/null", "regular file"]);
    refused(file("odd", UNIT + 4096), None, &["odd", "2101248 bytes", "4194304"]);
    refused(file("empty", 0), None, &["empty", "multiple of 2 MiB"]);
    refused(file("huge", MAX_SIZE + UNIT), None, &["huge", "64 GiB"]);
    refused(file("other", UNIT), Some(2 * UNIT), &["has 2 MiB, not 4 MiB", "truncate"]);
    let twice = file("twice", UNIT);
    let first = Medium::open(&config(twice.clone(), None)).unwrap();
    refused(twice, None, &["twice", "in use", "its own file"]);
    assert!(first.lasting);
}

#[test]
fn a_file_is_made_once_and_then_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let medium = Medium::open(&config(Some(path.clone()), Some(2 * UNIT))).unwrap();
    medium.file.write_all_at(b"kept", 5).unwrap();
    drop(medium);
    let again = Medium::open(&config(Some(path.clone()), Some(2 * UNIT))).unwrap();
    let mut bytes = [0; 4];
    again.file.read_exact_at(&mut bytes, 5).unwrap();
    assert_eq!((again.size, path.metadata().unwrap().len(), &bytes), (2 * UNIT, 2 * UNIT, b"kept"));
}

#[test]
fn pages_have_addresses_once_there_is_a_machine() {
    let medium = Medium::open(&config(None, Some(UNIT))).unwrap();
    let handle = medium.handle().unwrap();
    assert!(!medium.lasting);
    assert_eq!((handle.page_of(1 << 32), handle.gpa_of(0)), (None, None));
    medium.place.set(1 << 32).unwrap();
    assert_eq!(handle.page_of((1 << 32) - 1), None);
    assert_eq!(handle.page_of((1 << 32) + 4097), Some(1));
    assert_eq!(handle.page_of((1 << 32) + UNIT - 1), Some(511));
    assert_eq!(handle.page_of((1 << 32) + UNIT), None);
    assert_eq!((handle.gpa_of(511), handle.gpa_of(512)), (Some((1 << 32) + UNIT - PAGE), None));
    assert_eq!(handle.gpa_of(u64::MAX), None);
}

#[test]
fn an_image_is_what_it_holds_now_and_a_cleared_medium_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let medium = Medium::open(&config(None, Some(2 * UNIT))).unwrap();
    let handle = medium.handle().unwrap();
    medium.file.write_all_at(b"one", UNIT + 7).unwrap();
    medium.file.write_all_at(&[9; 3], 2 * UNIT - 3).unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    handle.image(&dir.path().join("a")).unwrap();
    medium.file.write_all_at(b"two", UNIT + 7).unwrap();
    handle.image(&dir.path().join("b")).unwrap();
    handle.clear().unwrap();
    handle.image(&dir.path().join("c")).unwrap();
    let mut wanted = vec![0; 2 * UNIT as usize];
    assert!(read("c") == wanted);
    wanted[UNIT as usize + 7..][..3].copy_from_slice(b"one");
    wanted[2 * UNIT as usize - 3..].copy_from_slice(&[9; 3]);
    assert!(read("a") == wanted);
    wanted[UNIT as usize + 7..][..3].copy_from_slice(b"two");
    assert!(read("b") == wanted);
    let error = handle.image(&dir.path().join("a")).unwrap_err().to_string();
    assert!(error.contains("could not be written"), "an image never replaces a file: {error}");
}
