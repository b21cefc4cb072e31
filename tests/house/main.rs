// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the repository as a whole. They read files, build nothing and need neither KVM nor root.
//!
//! * [`citations`]: each "contract 8.3", "T6", "H03", "R3", "rule 3", "finding 2" of a source or document leads somewhere.
//! * [`links`]: so does each relative link of a document, with its fragment.
//! * [`promises`]: each `file::test` that a document names is a test.
//! * [`arrows`]: dependencies between crates are those of the table in docs/architecture.md.
//! * [`bisect`]: the script of docs/bisect.md answers as git wants it.
//! * [`door`]: only who makes a guest's memory names it (rule 1).

mod anchors;
mod arrows;
mod bisect;
mod citations;
mod door;
mod links;
mod promises;
mod tree;

/// Fails with one line for each fault, so that one run shows all of them.
#[track_caller]
fn none_of(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}
