// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Parameters: `"$name"` in a story stands for each of the values that `[parameters]` gives it. The text is changed before it is read, so
//! that lines and keys of mistakes stay what they are.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Combinations of one file.
const MOST: usize = 64;

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    parameters: BTreeMap<String, Vec<toml::Value>>,
}

/// Each combination's name, its values joined by '+', and its text.
pub(super) fn of(text: &str) -> Result<Vec<(String, String)>, String> {
    // What is wrong with the rest of the text is told when it is read as a story.
    let Ok(Parameters { parameters }) = toml::from_str::<Parameters>(text) else { return Ok(vec![plain(text)]) };
    let mut all = vec![plain(text)];
    for (name, values) in &parameters {
        let mark = format!("\"${name}\"");
        if !text.contains(&mark) {
            return Err(format!("line 1, `parameters`: no step says {mark}"));
        }
        if all.len() * values.len() > MOST || values.is_empty() {
            return Err(format!(
                "line 1, `parameters`: there are {} combinations; 1 to {MOST} will do",
                all.len() * values.len()
            ));
        }
        let with = |(variant, text): &(String, String)| {
            let (variant, text) = (variant.clone(), text.clone());
            let mark = &mark;
            values.iter().map(move |value| (join(&variant, value), text.replace(mark.as_str(), &value.to_string())))
        };
        all = all.iter().flat_map(with).collect();
    }
    Ok(all)
}

fn plain(text: &str) -> (String, String) {
    (String::new(), text.into())
}

fn join(variant: &str, value: &toml::Value) -> String {
    let value = value.as_str().map_or_else(|| value.to_string(), String::from);
    if variant.is_empty() { value } else { format!("{variant}+{value}") }
}
