// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The repository's files as the tests read them.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// What a line of a file is written in, which says what of it is prose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `//` begins a comment.
    Rust,
    /// `#` begins a comment: shell, Python, make, TOML.
    Script,
    /// All of it is prose.
    Markdown,
}

/// A file of the repository.
pub struct File {
    /// Relative to the repository, with slashes.
    pub path: String,
    pub kind: Kind,
    pub text: String,
}

impl File {
    /// What people read in `line`: a comment, or the line itself in a document. `//` within a string is taken for a comment, too:
    /// a citation in a string is one as well.
    pub fn prose<'a>(&self, line: &'a str) -> &'a str {
        let comment = match self.kind {
            Kind::Markdown => return line,
            Kind::Rust => line.find("//"),
            Kind::Script => line.find('#'),
        };
        comment.map_or("", |at| &line[at..])
    }
}

/// The repository's own folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

/// Every Rust, C, shell, Python, TOML, make and Markdown file, in the order of their paths.
pub fn files() -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                // What programs make (cargo marks its own), and what is git's.
                if !path.join("CACHEDIR.TAG").exists() && !path.ends_with("target") && !path.ends_with(".git") {
                    folders.push(path);
                }
            } else if let Some(file) = read(&root, &path) {
                found.push(file);
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn read(root: &Path, path: &Path) -> Option<File> {
    let kind = match path.extension().and_then(|extension| extension.to_str()) {
        Some("rs" | "c" | "h") => Kind::Rust,
        Some("sh" | "py" | "toml") => Kind::Script,
        Some("md") => Kind::Markdown,
        // Programs without an ending begin with their interpreter.
        None => Kind::Script,
        Some(_) => return None,
    };
    let text = fs::read_to_string(path).ok()?;
    let program = text.starts_with("#!") || path.ends_with("Makefile");
    if path.extension().is_none() && !program {
        return None;
    }
    let path = path.strip_prefix(root).ok()?.to_str()?.to_owned();
    Some(File { path, kind, text })
}

#[test]
fn every_kind_of_file_is_found() {
    let files = files();
    for path in [
        "README.md",
        "docs/rules.md",
        "tests/house/tree.rs",
        "tests/steps",
        "Makefile",
        "images/lib/rnic_images/qemu.py",
    ] {
        assert!(files.iter().any(|file| file.path == path), "{path}");
    }
    assert!(files.iter().all(|file| !file.path.starts_with("target/")));
}
