// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be cited: headings, rows and items of the documents in docs/.

use std::collections::BTreeSet;
use std::fs;

use super::tree::root;

/// The contract, whose sections, decisions, traps and rows are cited.
pub const CONTRACT: &str = "docs/device-contract.md";
/// The hazard catalogue.
pub const HAZARDS: &str = "docs/hazards.md";

/// Everything that can be cited, under the name that it is cited by: "contract 8.3", "contract 4.1 row 17", "catalogue 3", "H03",
/// "T6", "D5", "R3", "E1", "V1", "Q1", "LV1", "finding 2".
pub struct Anchors(BTreeSet<String>);

impl Anchors {
    /// Reads the documents.
    pub fn read() -> Self {
        let text = |path: &str| fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut all = BTreeSet::new();
        sections(&text(CONTRACT), "contract", &mut all);
        sections(&text(HAZARDS), "catalogue", &mut all);
        for path in [CONTRACT, HAZARDS, "docs/rules.md"] {
            codes(&text(path), &mut all);
        }
        let findings = text("docs/findings.md");
        let numbers = findings.lines().filter_map(|line| line.strip_prefix("## Finding ")?.split_once('.'));
        all.extend(numbers.map(|(number, _)| format!("finding {number}")));
        Self(all)
    }

    /// Whether `name` leads somewhere.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Headings that begin with a number ("### 8.3 UMR WQE", "## 8a. Steps"), and below them items ("15.3") and rows ("4.1 row 17") that do.
fn sections(text: &str, document: &str, all: &mut BTreeSet<String>) {
    let mut section = String::new();
    for line in text.lines() {
        if line.starts_with('#') {
            let number = line.trim_start_matches('#').trim_start().split(' ').next().unwrap_or_default();
            section = number.trim_end_matches('.').to_owned();
            if section.starts_with(|c: char| c.is_ascii_digit()) {
                all.insert(format!("{document} {section}"));
            }
        } else if let Some(row) =
            line.strip_prefix("| ").and_then(|row| row.split(' ').next()).filter(|row| is_number(row))
        {
            all.insert(format!("{document} {section} row {row}"));
        } else if let Some((item, _)) = line.split_once(". ").filter(|(item, _)| is_number(item)) {
            all.insert(format!("{document} {section}.{item}"));
        }
    }
}

/// Codes at the head of a heading ("### H03 LOST-NOBUF"), of a row ("| D5 |") or in bold ("**T6**").
fn codes(text: &str, all: &mut BTreeSet<String>) {
    for line in text.lines() {
        let head = line.trim_start_matches(['#', '|', ' ']).split([' ', '.']).next().unwrap_or_default();
        if line.starts_with(['#', '|']) && is_code(head) {
            all.insert(head.to_owned());
        }
        // A code in bold is an anchor at the head of its list item, or of a sentence within it.
        if line.starts_with("- **") {
            all.extend(line.split("**").skip(1).step_by(2).filter(|bold| is_code(bold)).map(str::to_owned));
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Capital letters, then one or two digits.
pub fn is_code(text: &str) -> bool {
    let number = text.trim_start_matches(|c: char| c.is_ascii_uppercase());
    (1..=2).contains(&(text.len() - number.len())) && number.len() <= 2 && is_number(number)
}

#[test]
fn documents_have_the_anchors_that_they_are_known_for() {
    let anchors = Anchors::read();
    let some = [
        "contract 8.3",
        "contract 15.3",
        "contract 4.1 row 17",
        "T1",
        "T23",
        "D1",
        "D10",
        "H01",
        "H38",
        "R1",
        "R9",
        "catalogue 8a",
    ];
    let more = ["LV14", "E9", "V5", "Q8", "finding 1", "finding 10"];
    for name in some.iter().chain(&more) {
        assert!(anchors.has(name), "{name}");
    }
    // In pieces, or they would be citations.
    for (head, number) in [
        ("contract ", "16"),
        ("contract ", "8.9"),
        ("T", "24"),
        ("D", "11"),
        ("H", "39"),
        ("R", "10"),
        ("finding ", "0"),
    ] {
        let name = format!("{head}{number}");
        assert!(!anchors.has(&name), "{name}");
    }
}
