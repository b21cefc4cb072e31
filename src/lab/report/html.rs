// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A report as one HTML file for people, which needs nothing beside itself: a row's page timeline is drawn here, in SVG, and can be read
//! without the script, which only filters, and which keeps what nobody has opened out of the browser's way.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::ktap::mark;
use super::name::visible;
use super::{Report, RowResult, Score, short};
use crate::verdict::Verdict;

mod row;
mod svg;

const STYLE: &str = include_str!("html/page.css");
const SCRIPT: &str = include_str!("html/page.js");
/// Columns of the table.
const COLUMNS: [&str; 9] = ["scenario", "fs", "mode", "folio", "kernel", "expected", "observed", "", "seconds"];

/// The report as a page.
pub fn html(report: &Report) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>rnic lab: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&report.summary())
    );
    page.push_str(&heading(report));
    page.push_str(&words(report));
    page.push_str(&filters(report));
    let heads: String = COLUMNS.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    page.push_str(&format!("<table id=\"rows\">\n<caption>Rows in the order in which they ended. Below each, what its verdict rests on; open it for the page's timeline and all that was seen.</caption>\n<thead><tr>{heads}</tr></thead>\n"));
    for (result, number) in report.rows.iter().zip(1..) {
        page.push_str(&row::row(result, number));
    }
    page.push_str(&format!("</table>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"));
    page
}

/// Text as HTML has it, within an attribute too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// Host, kernels, seed and counts.
fn heading(report: &Report) -> String {
    let count = |score| report.rows.iter().filter(|row| row.score == score).count();
    let counts: String = [Score::Good, Score::Differs, Score::Inconclusive]
        .map(|score| format!("<li class=\"{}\"><b>{}</b> {}</li>", class(score), count(score), mark(score)))
        .concat();
    let kernels: Vec<_> = report
        .kernels()
        .iter()
        .map(|(name, version)| format!("{} ({})", escape(short(name)), escape(version)))
        .collect();
    format!(
        "<header>\n<h1>rnic lab</h1>\n<ul class=\"counts\"><li><b>{}</b> rows</li>{counts}</ul>\n<dl><dt>kernels</dt><dd>{}</dd><dt>host</dt><dd>{}</dd>\
         <dt>seed</dt><dd>{}</dd><dt>rnic</dt><dd>{}</dd></dl>\n</header>\n",
        report.rows.len(),
        kernels.join(", "),
        escape(&report.host),
        report.seed,
        escape(&report.rnic)
    )
}

/// The verdict words of this report, and what pages hold.
fn words(report: &Report) -> String {
    let seen = |verdict: &Verdict| report.rows.iter().any(|row| value(row, "verdict") == verdict.word());
    let term = |verdict: Verdict| format!("<dt>{}</dt><dd>{}</dd>", verdict.word(), escape(verdict.meaning()));
    let terms: String = Verdict::all().filter(seen).map(term).collect();
    format!(
        "<details class=\"words\"><summary>what the words mean</summary><dl>{terms}<dt>B*8</dt><dd>what is in a page, by the writer of each 512-byte sector: A the first content, B a CPU's store, C the device's data, other letters what the scenario says</dd>\
         <dt>kind cut</dt><dd>a power cut that every completed write survives</dd><dt>cruel cut</dt><dd>one that only what a completed flush covers survives</dd></dl></details>\n"
    )
}

/// How the style calls a score.
fn class(score: Score) -> &'static str {
    match score {
        Score::Good => "good",
        Score::Differs => "differs",
        Score::Inconclusive => "doubt",
    }
}

/// What a row can be filtered by.
const KEYS: [&str; 5] = ["scenario", "fs", "kernel", "verdict", "score"];

fn value<'a>(row: &'a RowResult, key: &str) -> Cow<'a, str> {
    match key {
        "scenario" => row.scenario.as_str().into(),
        "fs" => super::ground(&row.fs, row.disk.as_deref()).into(),
        "kernel" => short(&row.kernel).into(),
        "verdict" => row.observed.split(['(', '+']).next().unwrap_or_default().into(),
        _ => mark(row.score).into(),
    }
}

/// The form above the table; a page without the script does not show it.
fn filters(report: &Report) -> String {
    let mut form = String::from("<form id=\"filters\" hidden>\n");
    for key in KEYS {
        let values: BTreeSet<_> = report.rows.iter().map(|row| value(row, key)).collect();
        let options: String = values.iter().map(|value| format!("<option>{}</option>", escape(value))).collect();
        form.push_str(&format!(
            "<label>{key} <select name=\"{key}\"><option value=\"\">all</option>{options}</select></label>\n"
        ));
    }
    form.push_str("<label>text <input type=\"search\" name=\"text\" autocomplete=\"off\"></label>\n");
    form.push_str("<button type=\"reset\">all rows</button> <output aria-live=\"polite\"></output>\n</form>\n");
    form
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::name::tests::hostile;

    #[test]
    fn nothing_that_a_report_brings_becomes_markup() {
        let page = html(&hostile());
        assert!(!page.contains("<b> &") && !page.contains("</script><!--") && !page.contains("<\"7\">"));
        assert_eq!(page.matches("</script>").count(), 1, "the page's own");
        assert_eq!(page.matches("<noscript>").count(), page.matches("</noscript>").count());
        assert!(!page.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
    }

    #[test]
    fn nothing_is_fetched() {
        let page = html(&hostile());
        for word in ["src=", "href=", "url(", "@import", "http:", "https:", "fetch(", "import("] {
            assert!(!page.contains(word), "{word}");
        }
    }

    #[test]
    fn every_row_is_there_with_what_it_is_filtered_by() {
        let report = hostile();
        let page = html(&report);
        assert_eq!(page.matches("<tbody ").count(), report.rows.len());
        for row in &report.rows {
            for key in KEYS {
                assert!(page.contains(&format!("data-{key}=\"{}\"", escape(&value(row, key)))), "{key} of {row:?}");
            }
        }
    }
}
