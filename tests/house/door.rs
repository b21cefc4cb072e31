// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rule 1 in the source: who makes a guest's memory may name it, and nobody else; devices know the door only.

use super::none_of;
use super::tree::{File, files};

/// Whose memory it is: the door, and the machine that makes it.
const OWNERS: [&str; 2] = ["src/dma/", "src/vmm/"];
/// What gives bytes of a guest's memory past the door.
const KEYS: [&str; 6] =
    ["GuestRam", "GuestMemoryMmap", "GuestMemoryBackend", "GuestRegionMmap", "VolatileSlice", "VolatileMemory"];
/// All that anybody else needs of vm-memory: addresses, for virtio-queue.
const ALLOWED: &str = "use vm_memory::GuestAddress;";

/// Whether the attribute puts what follows it into tests only.
fn is_for_tests(line: &str) -> bool {
    line.starts_with("#[cfg(") && line.contains("test")
}

/// Files, and folders with a slash at their end, that are modules of tests: those that `file` declares so.
fn modules_of_tests(file: &File) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let folder = match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_owned(),
        _ => file.path.trim_end_matches(".rs").to_owned(),
    };
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let declared = lines.windows(2).filter(|pair| is_for_tests(pair[0]));
    let names = declared.filter_map(|pair| pair[1].strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name));
    names.flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/")]).collect()
}

/// Lines of `file` that reach past the door. Comments and the tests at its end may.
fn faults(file: &File) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let tests = lines.windows(2).position(|pair| is_for_tests(pair[0]) && pair[1].trim_end().ends_with('{'));
    let code = lines.iter().take(tests.unwrap_or(lines.len())).enumerate();
    let reaches = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        let named = words.into_iter().any(|word| KEYS.contains(&word));
        named || line.contains("vm_memory") && line.trim() != ALLOWED
    };
    code.filter(|(_, line)| reaches(line)).map(|(at, line)| format!("{}:{}: {line}", file.path, at + 1)).collect()
}

/// What of `files` is to know the door only.
fn outside(files: &[File]) -> Vec<&File> {
    let tests: Vec<String> = files.iter().flat_map(modules_of_tests).collect();
    let is_test = |path: &str| tests.iter().any(|test| path == test || test.ends_with('/') && path.starts_with(test));
    let is_device = |path: &str| path.starts_with("src/") && path.ends_with(".rs");
    let theirs = |path: &str| OWNERS.iter().any(|owner| path.starts_with(owner));
    files.iter().filter(|file| is_device(&file.path) && !theirs(&file.path) && !is_test(&file.path)).collect()
}

#[test]
fn no_crate_but_the_door_and_the_machine_sees_guest_memory() {
    let files = files();
    let outside = outside(&files);
    assert!(outside.len() > 100, "the devices are not seen");
    assert!(outside.iter().any(|file| file.path == "src/mlx5/buffer.rs"));
    none_of("rule 1", &outside.into_iter().flat_map(faults).collect::<Vec<_>>());
}

#[test]
fn a_way_past_the_door_is_found() {
    let file = |path: &str, text: &str| {
        let kind = super::tree::Kind::Rust;
        File { path: path.to_owned(), kind, text: text.to_owned() }
    };
    let files = [
        file("src/a/lib.rs", "mod one;\n#[cfg(test)]\nmod two;\n#[cfg(any(test, feature = \"x\"))]\npub mod three;"),
        file("src/a/one.rs", "use vm_memory::{Bytes, GuestAddress};\n// GuestRam\nfn f(ram: &GuestRam) {}"),
        file("src/a/two.rs", "use dma::GuestRam;"),
        file("src/a/three/four.rs", "use dma::GuestRam;"),
        file("src/a/five.rs", "use vm_memory::GuestAddress;\n#[cfg(test)]\nmod tests {\n    use dma::GuestRam;\n}"),
        file("src/vmm/memory.rs", "use dma::GuestRam;"),
    ];
    let outside = outside(&files);
    let paths: Vec<&str> = outside.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["src/a/lib.rs", "src/a/one.rs", "src/a/five.rs"]);
    let found: Vec<String> = outside.into_iter().flat_map(faults).collect();
    let expected = ["src/a/one.rs:1: use vm_memory::{Bytes, GuestAddress};", "src/a/one.rs:3: fn f(ram: &GuestRam) {}"];
    assert_eq!(found, expected);
}
