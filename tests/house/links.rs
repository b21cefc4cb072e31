// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Relative links of documents lead to files, and their fragments to headings.

use std::fs;

use super::none_of;
use super::tree::{File, Kind, files, root};

/// Targets of `[text](target)` in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// The fragment by which a heading is reached: lower case, blanks as dashes, other signs left out.
fn fragment(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Why `target` of a document in `folder` leads nowhere.
fn fault(document: &File, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, wanted) = target.split_once('#').unwrap_or((target, ""));
    let this = root().join(&document.path);
    let file = if path.is_empty() { this } else { this.parent()?.join(path) };
    if !file.exists() {
        return Some(format!("{target}: no such file"));
    }
    if wanted.is_empty() {
        return None;
    }
    let text = fs::read_to_string(&file).ok()?;
    let found = text.lines().any(|line| line.starts_with('#') && fragment(line) == wanted);
    (!found).then(|| format!("{target}: no such heading"))
}

fn faults(document: &File) -> Vec<String> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (at, line) in document.text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if !in_code {
            found.extend(
                targets(line)
                    .filter_map(|target| fault(document, target))
                    .map(|why| format!("{}:{}: {why}", document.path, at + 1)),
            );
        }
    }
    found
}

#[test]
fn every_relative_link_leads_somewhere() {
    let documents: Vec<_> = files().into_iter().filter(|file| file.kind == Kind::Markdown).collect();
    assert!(documents.iter().flat_map(|file| file.text.lines().flat_map(targets)).count() > 10, "links are not seen");
    none_of("links that lead nowhere", &documents.iter().flat_map(faults).collect::<Vec<_>>());
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let text = "[a](rules.md) [b](nothing.txt)\n```\n[c](nothing)\n```\n[d](rules.md#r1-one-door-to-guest-memory) [e](rules.md#r0)".to_owned();
    let document = File { path: "docs/sample".into(), kind: Kind::Markdown, text };
    assert_eq!(
        faults(&document),
        ["docs/sample:1: nothing.txt: no such file", "docs/sample:5: rules.md#r0: no such heading"]
    );
}
