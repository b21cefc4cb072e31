// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every citation leads somewhere.
//!
//! Cited are sections of the contract ("contract 8.3, 8.4", "contract 4.1, row 17"), codes ("contract T6, D4", "H03", "R3", "V5"), rules by
//! number ("rule 3"), findings ("findings 7 and 8"), sections of a document within itself, and documents by their path.

use super::anchors::{Anchors, CONTRACT, HAZARDS, is_code};
use super::none_of;
use super::tree::{File, Kind, files, root};

/// Letters of codes that are looked for in prose. F and N have no anchor: findings had such numbers once.
const CODES: &[&str] = &["T", "D", "H", "R", "E", "V", "Q", "LV", "F", "N"];

/// What looks like a code and is none, with what it is.
const OTHERS: &[(&str, &str)] = &[("D0", "a power state"), ("H99", "a scenario that a test wants not to exist")];

/// A word, or one character between words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token<'a> {
    Word(&'a str),
    Sign(char),
}

/// Words are letters, digits and `_`; a dot or a dash within a word belongs to it ("8.3", "T10-PI", "findings.md").
fn tokens(line: &str) -> Vec<Token<'_>> {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        if inside(first) {
            let joins = |at: usize| rest[at + 1..].starts_with(inside);
            let end = rest.char_indices().find(|(at, c)| !(inside(*c) || matches!(c, '.' | '-' | '/') && joins(*at)));
            let (word, later) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
            found.push(Token::Word(word));
            rest = later;
        } else {
            if first != ' ' {
                found.push(Token::Sign(first));
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// "8.3", "12"; at most three numbers, as no document has deeper sections.
fn is_section(word: &str) -> bool {
    word.split('.').all(|part| !part.is_empty() && part.len() <= 2 && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The members of a list that begins at `tokens`: words that `fits` names, with commas, "and", "or", "to" between them.
fn list<'a>(mut tokens: &[Token<'a>], fits: impl Fn(&str) -> bool) -> Vec<&'a str> {
    let mut members = Vec::new();
    while let [Token::Word(word), rest @ ..] = tokens
        && fits(word)
    {
        members.push(*word);
        tokens = rest;
        while let [Token::Sign(',' | ';') | Token::Word("and" | "or" | "to"), rest @ ..] = tokens {
            tokens = rest;
        }
    }
    members
}

/// What follows the word "contract": sections, codes and rows of the section before, by the names of their anchors.
fn of_contract(tokens: &[Token<'_>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut section = "";
    let mut row = false;
    for word in list(tokens, |word| is_section(word) || is_code(word) || matches!(word, "row" | "rows")) {
        match word {
            "row" | "rows" => row = true,
            _ if row => names.push(format!("contract {section} row {word}")),
            _ if is_section(word) => {
                section = word;
                names.push(format!("contract {word}"));
            }
            _ => names.push(word.to_owned()),
        }
    }
    names
}

/// The names of everything that `line` of `file` cites. A list that `line` begins may go on in the `next` one.
fn cited(file: &File, line: &str, next: &str) -> Vec<String> {
    let mut names = Vec::new();
    let next = tokens(file.prose(next).trim_start_matches(['/', '!', '#', ' ']));
    let mut all = tokens(line);
    let own = all.len();
    all.extend(&next);
    for (at, token) in all.iter().take(own).enumerate() {
        let Token::Word(word) = token else { continue };
        let rest = &all[at + 1..];
        match word.to_ascii_lowercase().as_str() {
            "contract" => names.extend(of_contract(rest)),
            "finding" | "findings" => {
                names.extend(list(rest, is_section).iter().map(|number| format!("finding {number}")))
            }
            "section" | "sections" => names.extend(own_sections(file, rest)),
            _ => {}
        }
        // A scenario's number is cited in code, too.
        if word.starts_with('H') && word.len() == 3 && is_code(word) {
            names.push((*word).to_owned());
        }
    }
    names.extend(cited_in_prose(tokens(file.prose(line)), &next));
    names.retain(|name| OTHERS.iter().all(|(other, _)| other != name));
    names.sort();
    names.dedup();
    names
}

/// Codes and rules, which code could have for names of its own.
fn cited_in_prose<'a>(mut all: Vec<Token<'a>>, next: &[Token<'a>]) -> Vec<String> {
    let mut names = Vec::new();
    let own = all.len();
    all.extend(next);
    for (at, token) in all.iter().take(own).enumerate() {
        let Token::Word(word) = token else { continue };
        match *word {
            "rule" | "Rule" | "rules" | "Rules" => {
                names.extend(list(&all[at + 1..], is_section).iter().map(|number| format!("R{number}")));
            }
            _ if is_code(word) && CODES.contains(&word.trim_end_matches(|c: char| c.is_ascii_digit())) => {
                names.push((*word).to_owned());
            }
            _ => {}
        }
    }
    names
}

/// "section 6" within a document that has numbered sections is one of its own.
fn own_sections(file: &File, rest: &[Token<'_>]) -> Vec<String> {
    let document = match file.path.as_str() {
        CONTRACT => "contract",
        HAZARDS => "catalogue",
        _ => return Vec::new(),
    };
    list(rest, is_section).iter().map(|number| format!("{document} {number}")).collect()
}

/// `path:line: name` of each citation that leads nowhere.
fn dangling(file: &File, anchors: &Anchors) -> Vec<String> {
    let next = file.text.lines().skip(1).chain([""]);
    let lines = file.text.lines().zip(next).enumerate();
    let all = lines.flat_map(|(at, (line, next))| cited(file, line, next).into_iter().map(move |name| (at + 1, name)));
    all.filter(|(_, name)| !anchors.has(name)).map(|(at, name)| format!("{}:{at}: {name}", file.path)).collect()
}

/// Documents that are named by their path ("docs/findings.md") and are not there.
fn missing_documents(file: &File) -> Vec<String> {
    let folder = root().join(&file.path);
    let places = [root(), root().join("docs"), folder.parent().expect("a file is in a folder").to_owned()];
    let mut faults = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        for token in tokens(file.prose(line)) {
            if let Token::Word(word) = token
                && word.ends_with(".md")
                && !places.iter().any(|place| place.join(word).exists())
            {
                faults.push(format!("{}:{}: {word}", file.path, at + 1));
            }
        }
    }
    faults
}

#[test]
fn every_citation_has_an_anchor() {
    let anchors = Anchors::read();
    let faults: Vec<_> = files().iter().flat_map(|file| dangling(file, &anchors)).collect();
    none_of("citations that lead nowhere", &faults);
}

#[test]
fn every_document_that_is_named_is_there() {
    let faults: Vec<_> = files().iter().flat_map(missing_documents).collect();
    none_of("documents that are not there", &faults);
}

/// What the first test would say of `text` in a Rust file.
#[cfg(test)]
fn found_in(text: &str) -> Vec<String> {
    dangling(&File { path: "sample".into(), kind: Kind::Rust, text: text.into() }, &Anchors::read())
}

/// The samples lie in a file that is not searched, or they would be citations themselves.
#[test]
fn a_citation_that_leads_nowhere_is_found() {
    for sample in include_str!("samples.txt").lines() {
        let (text, name) = sample.split_once(" => ").expect("a sample says what it cites");
        // A bar stands for the end of a line.
        assert_eq!(found_in(&text.replace('|', "\n")), [format!("sample:1: {name}")], "{text}");
    }
}

#[test]
fn what_is_no_citation_is_left_alone() {
    for line in [
        "struct R77(F2);",
        "// IBTA 9.7.77, PCIe 7.5.1.1.99",
        "// from D0 to D3hot",
        "// T77_OFFSET and x.T77",
        "// contract: 99 bytes",
    ] {
        assert_eq!(found_in(line), [""; 0], "{line}");
    }
}

#[test]
fn a_document_that_is_not_there_is_found() {
    let text = ["// see docs/nothing", ".md and docs/rules.md"].concat();
    let file = File { path: "src/sample.rs".into(), kind: Kind::Rust, text };
    assert_eq!(missing_documents(&file), [format!("src/sample.rs:1: docs/nothing{}", ".md")]);
}
