// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a person sees of a run.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lab::report::{Report, print_head, print_prices, print_row};
use lab::runner::News;
use lab::thread;

/// Rows as they come on one stream, what is going on below them on a terminal.
pub(super) struct Screen {
    bar: ProgressBar,
    json: bool,
}

impl Screen {
    /// Nothing yet of `total` rows; with `json` standard output is the report's.
    pub(super) fn new(json: bool, total: usize) -> Result<Self, super::super::Error> {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total as u64) } else { ProgressBar::hidden() };
        bar.set_style(ProgressStyle::with_template("{spinner} row {pos} of {len}, about {eta} left: {msg}")?);
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self { bar, json })
    }

    /// Where rows go.
    pub(super) fn out(&self) -> Box<dyn Write> {
        if self.json { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) }
    }

    /// A line, or several.
    pub(super) fn line(&self, text: &str) {
        // A closed output is found out by the next write that matters.
        self.bar.suspend(|| drop(writeln!(self.out(), "{text}")));
    }

    /// The head of the table.
    pub(super) fn head(&self) -> std::io::Result<()> {
        self.bar.suspend(|| print_head(&mut self.out()))
    }

    /// Something happened.
    pub(super) fn news(&mut self, news: &News) {
        match news {
            News::Phase(kernel, what) => {
                self.bar.set_message(format!("{kernel}: {what}"));
                if self.bar.is_hidden() && what.starts_with("booting") {
                    eprintln!("{kernel}: {what}");
                }
            }
            News::Row(row) => {
                self.bar.suspend(|| drop(print_row(&mut self.out(), row)));
                self.bar.inc(1);
            }
            News::Broken(kernel, why) => self.bar.suspend(|| eprintln!("{kernel}: {why}")),
        }
    }

    /// Nothing goes on any more, and somebody else has the end to tell.
    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// The end: tables of what was measured and argued, and how many rows there were.
    pub(super) fn end(&self, report: &Report, claims: bool) {
        self.bar.finish_and_clear();
        let mut tables = Vec::new();
        // Writing to memory does not fail.
        drop(print_prices(&mut tables, &report.rows));
        if claims {
            drop(thread::print(&mut tables, &report.rows));
        }
        if !tables.is_empty() {
            self.line(String::from_utf8_lossy(&tables).trim_end());
        }
        self.line(&report.summary());
    }
}
