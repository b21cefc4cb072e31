// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Documents name tests as `file::test` and sources by their path; both are there.

use std::fs;

use super::none_of;
use super::tree::{File, Kind, files, root};

/// What stands between backticks in a line.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Whether `text` has a test of this name: a function below `#[test]`.
fn has_test(text: &str, name: &str) -> bool {
    let head = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.iter().enumerate().filter(|(_, line)| line.contains(&head)).any(|(at, _)| {
        let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes.into_iter().any(|line| *line == "#[test]")
    })
}

/// Why `span`, code of a document, names what is not there. Paths are relative to the repository.
fn fault(span: &str) -> Option<String> {
    let (path, test) = span.split_once("::").map_or((span, None), |(path, test)| (path, Some(test)));
    let is_path = path.ends_with(".rs") && path.contains('/') && !path.contains([' ', '*', '{']);
    if !is_path {
        return None;
    }
    let Ok(text) = fs::read_to_string(root().join(path)) else {
        return Some(format!("{path} is not there"));
    };
    test.filter(|name| !has_test(&text, name)).map(|name| format!("{path} has no test {name}"))
}

fn faults(document: &File) -> Vec<String> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (at, line) in document.text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if !in_code {
            found.extend(code_spans(line).filter_map(fault).map(|why| format!("{}:{}: {why}", document.path, at + 1)));
        }
    }
    found
}

#[test]
fn every_test_and_source_that_a_document_names_is_there() {
    let documents: Vec<_> = files().into_iter().filter(|file| file.kind == Kind::Markdown).collect();
    none_of("documents name what is not there", &documents.iter().flat_map(faults).collect::<Vec<_>>());
}

#[test]
fn every_promise_names_its_test_or_says_that_none_enforces_it() {
    let text = fs::read_to_string(root().join("SPECIFICATION.md")).expect("the specification is there");
    let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with("| ") && !line.starts_with("| promise"));
    let promises: Vec<_> = rows.collect();
    assert!(promises.len() > 50, "promises are not seen");
    let proven = |line: &str| {
        let by = line.rsplit(" | ").next().unwrap_or_default();
        by.contains("**not enforced**") || by.contains("lab row") || code_spans(by).next().is_some()
    };
    let faults: Vec<_> = promises
        .iter()
        .filter(|(_, line)| !proven(line))
        .map(|(at, _)| format!("SPECIFICATION.md:{}", at + 1))
        .collect();
    none_of("promises without a test", &faults);
}

/// `Type::name` of a span, with or without an argument list behind it.
fn item(span: &str) -> Option<(&str, &str)> {
    let (kind, name) = span.split_once("::")?;
    let is_name = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_');
    let name = name.split('(').next().unwrap_or_default();
    (kind.starts_with(char::is_uppercase) && is_name(kind) && is_name(name)).then_some((kind, name))
}

/// Whether some source has both words.
fn is_in_source(sources: &[File], (kind, name): (&str, &str)) -> bool {
    let has =
        |text: &str, word: &str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|other| other == word);
    sources.iter().any(|file| has(&file.text, kind) && has(&file.text, name))
}

#[test]
fn every_item_that_a_document_names_is_in_the_source() {
    let (documents, rest): (Vec<_>, Vec<_>) = files().into_iter().partition(|file| file.kind == Kind::Markdown);
    let sources: Vec<_> = rest.into_iter().filter(|file| file.kind == Kind::Rust).collect();
    let mut faults = Vec::new();
    for document in &documents {
        for (at, line) in document.text.lines().enumerate() {
            let gone = code_spans(line).filter_map(item).filter(|item| !is_in_source(&sources, *item));
            faults.extend(gone.map(|(kind, name)| format!("{}:{}: {kind}::{name}", document.path, at + 1)));
        }
    }
    none_of("documents name what the source does not have", &faults);
    // In pieces, or this file would have them.
    assert!(!is_in_source(&sources, (["Ben", "ch"].concat().as_str(), ["no_such", "_step"].concat().as_str())));
    assert!(
        is_in_source(&sources, ("Quiesce", "wait"))
            && item("Quiesce::wait(x)").is_some()
            && item("lab::guest").is_none()
    );
}

#[test]
fn unsafe_code_is_allowed_in_the_files_that_the_architecture_names() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("the architecture is there");
    let mark = ["allow(", "unsafe_code"].concat();
    let allowed: Vec<_> =
        files().into_iter().filter(|file| file.kind == Kind::Rust && file.text.contains(&mark)).collect();
    assert!(!allowed.is_empty(), "no file is seen");
    let unnamed = allowed.iter().filter(|file| !text.contains(&format!("`{}`", file.path)));
    none_of(
        "unsafe code is allowed, and docs/architecture.md does not say so",
        &unnamed.map(|file| file.path.clone()).collect::<Vec<_>>(),
    );
}

#[test]
fn a_test_that_is_not_there_is_found() {
    let text = "`tests/house/promises.rs::a_test_that_is_not_there_is_found`, `tests/house/promises.rs::fault`, `tests/house/none.rs`".to_owned();
    let document = File { path: "sample".into(), kind: Kind::Markdown, text };
    let expected =
        ["sample:1: tests/house/promises.rs has no test fault", "sample:1: tests/house/none.rs is not there"];
    assert_eq!(faults(&document), expected);
}
