// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The arrows between crates are those of the table in docs/architecture.md, no more and no fewer.

use std::collections::BTreeSet;
use std::process::Command;
use std::{env, fs};

use serde_json::Value;

use super::none_of;
use super::tree::root;

/// The heading above the table.
const HEADING: &str = "## Crates";

/// Who knows whom: (crate, what it depends on).
type Arrow = (String, String);

/// Crates of the table and their arrows. A row is | `crate` | `folder` | holds | knows |; what a crate knows stands in backticks.
fn table(text: &str) -> (BTreeSet<String>, BTreeSet<Arrow>) {
    let lines = text.lines().skip_while(|line| *line != HEADING).skip(1).take_while(|line| !line.starts_with("## "));
    let (mut crates, mut arrows) = (BTreeSet::new(), BTreeSet::new());
    for row in lines.filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let (name, knows) = (cells[0], cells[cells.len() - 1]);
        let name = name.trim().trim_matches('`').to_owned();
        arrows.extend(knows.split('`').skip(1).step_by(2).map(|known| (name.clone(), known.to_owned())));
        crates.insert(name);
    }
    (crates, arrows)
}

/// Crates of the workspace and the dependencies of one on another that a build has; tests may know more.
fn workspace(metadata: &Value) -> (BTreeSet<String>, BTreeSet<Arrow>) {
    let packages = metadata["packages"].as_array().expect("metadata has packages");
    let name = |value: &Value| value["name"].as_str().expect("a package has a name").to_owned();
    let crates: BTreeSet<String> = packages.iter().map(name).collect();
    let mut arrows = BTreeSet::new();
    for package in packages {
        let all = package["dependencies"].as_array().expect("a package has dependencies").iter();
        let built = all.filter(|dependency| dependency["kind"] != "dev" && dependency["path"].is_string());
        arrows.extend(built.map(name).filter(|known| crates.contains(known)).map(|known| (name(package), known)));
    }
    (crates, arrows)
}

fn differences(said: &(BTreeSet<String>, BTreeSet<Arrow>), built: &(BTreeSet<String>, BTreeSet<Arrow>)) -> Vec<String> {
    let crates = built.0.difference(&said.0).map(|name| format!("{name} is not in the table"));
    let gone =
        said.0.difference(&built.0).map(|name| format!("{name} is in the table and is no crate of the workspace"));
    let unsaid = built
        .1
        .difference(&said.1)
        .map(|(name, known)| format!("{name} depends on {known}, and the table has no such arrow"));
    let unused = said
        .1
        .difference(&built.1)
        .map(|(name, known)| format!("the table says that {name} knows {known}, and it does not"));
    crates.chain(gone).chain(unsaid).chain(unused).collect()
}

/// Arrows of the table that lead to a crate below their own row.
fn downward(text: &str) -> Vec<String> {
    let (_, arrows) = table(text);
    let row = |name: &str| text.find(&format!("\n| `{name}` |"));
    let wrong = arrows.iter().filter(|(name, known)| row(known) > row(name));
    wrong.map(|(name, known)| format!("{known} stands below {name}, which knows it")).collect()
}

#[test]
fn crates_know_what_the_table_says() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(cargo).args(arguments).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("the table is there");
    none_of("docs/architecture.md and the workspace differ", &differences(&table(&text), &workspace(&metadata)));
}

#[test]
fn each_crate_knows_only_crates_above_its_own() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("the table is there");
    none_of("docs/architecture.md", &downward(&text));
    let turned = "## Crates\n| `a` | | | `b` |\n| `b` | | | nothing |";
    assert_eq!(downward(turned), ["b stands below a, which knows it"]);
}

#[test]
fn a_difference_is_found() {
    let said = table(
        "## Crates\n| crate | folder | holds | knows |\n|---|---|---|---|\n| `a` | `src/a` | x | `b`, `c` |\n| `b` | | | nothing |\n| `d` | | | nothing |\n## Next\n| `e` | | | `f` |",
    );
    let on = |name: &str, kind: &str| serde_json::json!({"name": name, "kind": kind, "path": "/x"});
    let built = workspace(&serde_json::json!({"packages": [
        {"name": "a", "dependencies": [on("b", ""), on("d", "dev")]},
        {"name": "b", "dependencies": [on("a", ""), {"name": "log", "path": null}]},
        {"name": "c", "dependencies": []},
    ]}));
    let expected = [
        "c is not in the table",
        "d is in the table and is no crate of the workspace",
        "b depends on a, and the table has no such arrow",
        "the table says that a knows c, and it does not",
    ];
    assert_eq!(differences(&said, &built), expected);
}
