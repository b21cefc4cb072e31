// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A row of the page: a line of the table, below it what the verdict rests on, and behind that its attempts.

use super::super::ktap::mark;
use super::super::timeline::{Moment, Timeline};
use super::super::{Attempt, RowResult, Score, ground, short};
use super::{KEYS, class, escape, svg, value};

/// Moments that are drawn of an attempt: more cannot be read at a glance.
const DRAWN: usize = 80;
/// Of these, before and after all that the verdict rests on.
const AROUND: usize = 4;

/// The row's part of the table.
pub(super) fn row(row: &RowResult, number: usize) -> String {
    let data: String = KEYS.map(|key| format!(" data-{key}=\"{}\"", escape(&value(row, key)))).concat();
    let sign = if row.score == Score::Good { "" } else { mark(row.score) };
    let seconds = format!("{:.1}", row.seconds);
    let place = ground(&row.fs, row.disk.as_deref());
    let words = [&row.scenario, &place, &row.mode, &row.folio, short(&row.kernel), &row.expected];
    let cells: String = words.iter().map(|word| format!("<td>{}</td>", escape(word))).collect();
    format!(
        "<tbody id=\"r{number}\" class=\"{}\"{data}>\n<tr>{cells}<td class=\"verdict\">{}</td><td class=\"sign\">{sign}</td><td class=\"n\">{seconds}</td></tr>\n\
         <tr class=\"more\"><td colspan=\"9\">{}</td></tr>\n</tbody>\n",
        class(row.score),
        escape(&row.observed),
        details(row, number)
    )
}

/// What opens.
fn details(row: &RowResult, number: usize) -> String {
    let mut inside = about(row);
    for (attempt, which) in row.attempts.iter().zip(1..) {
        if row.attempts.len() > 1 {
            let (of, observed) = (row.attempts.len(), escape(&attempt.observed));
            inside.push_str(&format!("<h3>attempt {which} of {of}: {observed}</h3>\n"));
        }
        inside.push_str(&one(attempt, &format!("t{number}-{which}")));
    }
    if row.attempts.is_empty() {
        inside.push_str(&list("facts", row.evidence.iter().map(|line| (line.clone(), false))));
    }
    let glance =
        row.attempts.last().map(|attempt| glance(&Timeline::of(attempt).moments)).filter(|text| !text.is_empty());
    let glance = glance.or_else(|| row.evidence.last().cloned()).unwrap_or_else(|| "nothing is on record".into());
    // A browser with scripts keeps what is in `noscript` as text until the row is opened; one without shows it.
    format!("<details><summary>{}</summary><noscript>{inside}</noscript></details>", escape(&glance))
}

/// What the verdict rests on, in the order in which it happened. A request is named once.
fn glance(moments: &[Moment]) -> String {
    let part = |label: &str| label.ends_with("'s data") || label.ends_with(" held");
    let whole = |moment: &&Moment| moment.ground && !part(moment.label());
    let grounds: Vec<_> = moments.iter().filter(whole).map(svg::label).collect();
    grounds.join(" \u{2192} ")
}

/// What is not of one attempt.
fn about(row: &RowResult) -> String {
    let mut terms = vec![("kernel", format!("{} ({})", row.kernel, row.kernel_version))];
    terms.extend(row.expected_source.iter().map(|source| ("expected by", source.clone())));
    terms.extend(row.plant.iter().map(|plant| ("planted", format!("{plant}; must notice: {}", row.checks.join(", ")))));
    terms.extend(row.rounds.iter().map(|rounds| ("harm in", format!("{} of {} rounds", rounds.hits, rounds.of))));
    terms.extend(
        row.figures.iter().map(|figure| ("measured", format!("{}: {} {}", figure.name, figure.value, figure.unit))),
    );
    let terms: String = terms.iter().map(|(term, text)| format!("<dt>{term}</dt><dd>{}</dd>", escape(text))).collect();
    format!("<dl>{terms}</dl>\n")
}

/// An attempt: its timeline, the facts, and the timeline in words.
fn one(attempt: &Attempt, id: &str) -> String {
    let whole = Timeline::of(attempt);
    let words = whole.moments.clone();
    let drawn = whole.around(AROUND).nearest(DRAWN);
    let mut text = String::new();
    if !drawn.moments.is_empty() {
        let left_out = match drawn.left_out {
            0 => String::new(),
            count => format!(" {count} moments farther from these are not drawn."),
        };
        text.push_str(&format!(
            "<figure>{}<figcaption>Page timeline, in the ledger's order and not to scale. What the verdict rests on is marked.{left_out}</figcaption></figure>\n",
            svg::svg(&drawn.moments, id)
        ));
    }
    text.push_str(&list("facts", attempt.lines_with_grounds()));
    let all = words.iter().map(|moment| (svg::sentence(moment), moment.ground));
    if !words.is_empty() {
        let inside = list("moments", all);
        text.push_str(&format!(
            "<details><summary>the timeline in words ({})</summary>{inside}</details>\n",
            words.len()
        ));
    }
    text
}

/// Lines, those that a verdict rests on marked.
fn list(class: &str, lines: impl Iterator<Item = (String, bool)>) -> String {
    let line = |(text, ground): (String, bool)| match ground {
        true => format!("<li class=\"g\">{}</li>", escape(&text)),
        false => format!("<li>{}</li>", escape(&text)),
    };
    format!("<ul class=\"{class}\">{}</ul>\n", lines.map(line).collect::<String>())
}
