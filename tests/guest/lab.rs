// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `rnic lab` on guests that are broken on purpose: it says the worst words, with the kernel's own lines as facts.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Running, rnic};

const LIMIT: Duration = Duration::from_secs(900);

/// The rows of `rnic lab` with these options, and its exit status.
fn lab(options: &[&str]) -> (Vec<Value>, Option<i32>) {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let mut command = Command::new(rnic());
    command.args(["lab", "--kernel", "6.1", "--json-file"]).arg(&report).args(options);
    let done = Running::start(&mut command).finish(LIMIT);
    let text = std::fs::read_to_string(&report).unwrap_or_else(|error| panic!("{error}: {}{}", done.out, done.err));
    let report: Value = serde_json::from_str(&text).unwrap();
    (report["rows"].as_array().unwrap().clone(), done.status.code())
}

/// The facts of this kind in an attempt.
fn facts<'a>(attempt: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    attempt["facts"].as_array().unwrap().iter().filter(move |fact| fact["fact"] == kind)
}

fn lines(attempt: &Value) -> String {
    facts(attempt, "kernel").filter_map(|fact| fact["line"].as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_kernel_that_breaks_gets_its_word_and_its_own_lines() {
    let plants = ["C-oops", "C-hang", "C-image", "C-silent"].map(|id| ["--scenario", id]).concat();
    let (rows, status) = lab(&plants);
    assert_eq!(status, Some(1));
    let words: Vec<_> = rows.iter().map(|row| (&row["scenario"], &row["mode"], &row["observed"])).collect();
    let text = format!("{words:?}").replace("String", "");
    let row = |id: &str, mode: &str| {
        let row = rows.iter().find(|row| row["scenario"] == id && row["mode"] == mode);
        row.unwrap_or_else(|| panic!("no {id} {mode}: {text}"))
    };
    let attempts = |row: &Value| row["attempts"].as_array().unwrap().clone();

    let oops = row("C-oops", "plant");
    assert_eq!((&oops["observed"], &oops["score"]), (&"OOPS".into(), &"differs".into()), "{text}");
    assert!(attempts(oops).iter().all(|attempt| lines(attempt).contains("invalid opcode")), "{oops:#}");
    // The same once: the second attempt is SAFE, and the row is not.
    let once = row("C-oops", "plant-once");
    assert_eq!(once["observed"], "FLAKY(OOPS 1 of 2)", "{text}");
    assert_eq!(attempts(once).iter().map(|attempt| &attempt["observed"]).collect::<Vec<_>>(), ["OOPS", "SAFE"]);

    let hang = row("C-hang", "plant");
    assert_eq!(hang["observed"], "HUNG", "{text}");
    let blocked = lines(&attempts(hang)[0]);
    assert!(blocked.contains("state:D") && blocked.contains("generic_shutdown_super"), "{blocked}");

    let image = row("C-image", "plant");
    assert_eq!(image["observed"], "CORRUPT(EINVAL)", "{text}");
    let said = lines(&attempts(image)[0]);
    assert!(said.contains("Can't find ext4 filesystem"), "{said}");

    let silent = row("C-silent", "plant");
    assert_eq!(silent["observed"], "HUNG", "{text}");
    let attempt = &attempts(silent)[0];
    assert!(facts(attempt, "console").count() == 1 && facts(attempt, "processor").count() > 1, "{attempt:#}");
}

/// The self-test's own words: each control CAUGHT, by the checks that it names, with their facts; and the story alone would have been believed
/// or not.
#[test]
fn what_is_planted_is_noticed_by_the_check_that_it_names() {
    let selection = ["C-keep", "C-deaf", "C-free", "H13", "H36"].map(|id| ["--scenario", id]).concat();
    let (rows, status) = lab(&[&["--selftest"], selection.as_slice()].concat());
    let words: Vec<_> =
        rows.iter().map(|row| format!("{} {} {}", row["scenario"], row["plant"], row["observed"])).collect();
    assert_eq!(status, Some(0), "{words:#?}");
    assert!(rows.len() >= 10 && rows.iter().all(|row| row["observed"] == "CAUGHT"), "{words:#?}");
    for (id, plant, check) in
        [("C-keep", "cut-keeps", "cut"), ("C-deaf", "deaf", "kernel"), ("C-free", "free-ignored", "freed")]
    {
        let row = rows.iter().find(|row| row["scenario"] == id).unwrap_or_else(|| panic!("no {id}: {words:#?}"));
        assert_eq!((&row["plant"], &row["checks"]), (&plant.into(), &serde_json::json!([check])));
        let attempts = row["attempts"].as_array().unwrap();
        assert!(facts(&attempts[0], "unsound").any(|fact| fact["check"] == check), "{row:#}");
    }
}

/// A report without what another run cannot have: times, addresses, numbers of the ledger and of what the kernel hands out; and the timelines,
/// which are of one interleaving and tell of the kernel's own work, too.
fn timeless(value: &Value) -> Value {
    const OF_A_RUN: [&str; 15] = [
        "seconds",
        "seq",
        "gpa",
        "lba",
        "arrived",
        "data",
        "completed",
        "held",
        "begun",
        "pfn",
        "id",
        "qpn",
        "since",
        "timeline",
        "timeline_left_out",
    ];
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, _)| !OF_A_RUN.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key.clone(), timeless(value))).collect())
        }
        Value::Array(list) => list.iter().map(timeless).collect(),
        Value::String(text) => {
            let digits = |word: &str| word.trim_start_matches(['#', '(']).starts_with(|c: char| c.is_ascii_digit());
            text.split(' ').map(|word| if digits(word) { "N" } else { word }).collect::<Vec<_>>().join(" ").into()
        }
        other => other.clone(),
    }
}

#[test]
fn one_seed_gives_one_report() {
    let selection =
        ["--seed", "7", "--scenario", "H12", "--scenario", "H01", "--fs", "ext4", "--mode", "dio", "--mode", "odp"];
    let [first, second] = [(); 2].map(|()| lab(&selection));
    // Of large folios this kernel says NOT-RUN, the same each time.
    assert_eq!((first.0.len(), first.1), (4, Some(0)));
    for (one, other) in first.0.iter().zip(&second.0) {
        assert_eq!(timeless(one), timeless(other));
        let drawn = |row: &Value| row["attempts"][0]["timeline"].as_array().is_some_and(|moments| !moments.is_empty());
        assert!(one["observed"] == "NOT-RUN" || drawn(one) && drawn(other), "{one:#}");
    }
    assert_eq!(first.0.len(), second.0.len());
}
